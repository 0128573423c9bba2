"""The two unpatched runs, and which prompts a model answers (Section 2.1, Appendix B and C)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.models.loading import describe
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs
from patchlib.sweep import metrics as metric_definitions
from patchlib.sweep.runs import Run, run_with_edits, two_runs

_ROWS = 64


def baselines(
    model: TransformerBridge,
    pairs: PromptPairs,
    corruption: Corruption | None = None,
    metrics: Sequence[str] = ("logit_diff", "prob", "kl"),
) -> xr.Dataset:
    """Measures the clean run and, where a corruption is given, the corrupted run.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths.
        corruption: `STR` or `GN`; over several draws of noise the mean.
        metrics: names of metrics; KL is measured from the clean run.

    Returns:
        A dataset with the variable ``clean`` and, with a corruption, ``corrupted``, over the
        dimensions ``metric`` and ``prompt``.

    Raises:
        PatchlibError: for unknown metrics, and for sites that the task does not have.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> runs = pl.baselines(model, pl.tasks.ioi(model, n=20), pl.STR("S2"))
        >>> ld = runs.sel(metric="logit_diff").mean("prompt")
        >>> bool(ld.clean > 0 > ld.corrupted)
        True
    """
    chosen = metric_definitions.choose(metrics)
    draws = 1 if corruption is None else corruption.draws
    values = np.full((2, draws, len(chosen), len(pairs)), np.nan)
    for index, group in pairs.by_length():
        for start in range(0, len(group), _ROWS):
            some, rows = group[start : start + _ROWS], index[start : start + _ROWS]
            r, r_wrong = some.answers, some.wrong_answers
            there, _ = run_with_edits(model, Run(some.clean_tokens))
            clean = metric_definitions.measure(chosen, there, r, r_wrong, there)
            values[0, :, :, rows] = clean.T[:, None].numpy()
            for draw in range(draws):
                if corruption is None:
                    continue
                _, run = two_runs(model, some, corruption, draw)
                here, _ = run_with_edits(model, run)
                corrupted = metric_definitions.measure(chosen, here, r, r_wrong, there)
                values[1, draw, :, rows] = corrupted.T.numpy()
    names = ["clean"] if corruption is None else ["clean", "corrupted"]
    return xr.Dataset(
        {
            name: (("metric", "prompt"), mean)
            for name, mean in zip(names, values.mean(1), strict=False)
        },
        coords={"metric": [metric.name for metric in chosen]},
        attrs=describe(model) | ({} if corruption is None else corruption.describe()),
    )


def answered(model: TransformerBridge, pairs: PromptPairs) -> PromptPairs:
    """The prompts whose right answer is the model's most likely token (Appendix C).

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths.

    Returns:
        Those prompts; their ``settings`` say how many were ``dropped``.

    Raises:
        PatchlibError: where the model answers none of them.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> kept = pl.answered(model, pl.tasks.arithmetic(model, n=10))
        >>> len(kept) + kept.settings["dropped"]
        10
    """
    right = baselines(model, pairs, metrics=["accuracy"]).clean.squeeze("metric").values
    kept = np.flatnonzero(right == 1).tolist()
    if not kept:
        raise PatchlibError(
            f"the model answers none of these {len(pairs)} prompts of {pairs.task}: patching "
            "cannot bring back an answer that is not there; use a model that has this skill"
        )
    settings = pairs.settings | {"dropped": len(pairs) - len(kept)}
    return dataclasses.replace(pairs[kept], settings=settings)

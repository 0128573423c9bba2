"""The two unpatched runs, and which prompts a model answers (Section 2.1, Appendix B and C)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.patching import metrics as metric_definitions
from patchlib.patching import store
from patchlib.patching.metrics import Metric
from patchlib.patching.runs import (
    Run,
    batches,
    require_corruption,
    require_prompts,
    run_with_edits,
    two_runs,
)
from patchlib.patching.settings import of_result
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs


def baselines(
    model: TransformerBridge,
    pairs: PromptPairs,
    corruption: Corruption | None = None,
    metrics: Sequence[str | Metric] = ("logit_diff", "prob", "kl"),
    memory_budget: float | None = None,
) -> xr.Dataset:
    """Measures the clean run and, where a corruption is given, the corrupted run.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths.
        corruption: `STR`, `GN` or one of your own; over several draws of noise the mean.
        metrics: as in `patchlib.patch`; KL is measured from the clean run.
        memory_budget: as in `patchlib.patch`.

    Returns:
        A dataset with the variable ``clean`` and, with a corruption, ``corrupted``, over the
        dimensions ``metric`` and ``prompt``. The attributes hold every setting.

    Raises:
        PatchlibError: for unknown metrics, sites that the task does not have, logits that are NaN
            or infinite, and a memory budget that is too small for one prompt.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> runs = pl.baselines(model, pl.tasks.ioi(model, n=20), pl.STR("S2"))
        >>> ld = runs.sel(metric="logit_diff").mean("prompt")
        >>> bool(ld.clean > 0 > ld.corrupted)
        True
    """
    require_prompts(model, pairs)
    chosen = metric_definitions.choose(metrics)
    if corruption is not None:
        require_corruption(model, pairs, corruption)
    draws = 0 if corruption is None else corruption.draws
    clean = np.full((len(chosen), len(pairs)), np.nan)
    corrupted = np.full((draws, *clean.shape), np.nan)
    for rows, some in batches(model, pairs, memory_budget):
        answers = some.answers, some.wrong_answers
        there, _ = run_with_edits(model, Run(some.clean_tokens))
        clean[:, rows] = metric_definitions.measure(chosen, there, *answers, there, some.texts)
        if corruption is None:
            continue
        for draw in range(draws):
            _, run = two_runs(model, some, corruption, draw)
            here, _ = run_with_edits(model, run)
            corrupted[draw][:, rows] = metric_definitions.measure(
                chosen, here, *answers, there, some.texts
            )
    runs = {"clean": clean} | ({} if corruption is None else {"corrupted": corrupted.mean(0)})
    return xr.Dataset(
        {name: (("metric", "prompt"), values) for name, values in runs.items()},
        coords={"metric": [metric.name for metric in chosen]},
        attrs=of_result(model, pairs, corruption, chosen),
    )


def keep_answered(
    model: TransformerBridge,
    pairs: PromptPairs,
    memory_budget: float | None = None,
    recompute: bool = False,
) -> PromptPairs:
    """The prompts whose right answer is the model's most likely token (Appendix C).

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths.
        memory_budget: as in `patchlib.patch`.
        recompute: run the model also where a stored sweep holds the prompts that it answers.

    Returns:
        Those prompts; their ``settings`` say how many were ``dropped``, now and before.

    Raises:
        PatchlibError: where the model answers none of them.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> kept = pl.keep_answered(model, pl.tasks.arithmetic(model, n=10))
        >>> len(kept) + kept.settings["dropped"]
        10
    """
    require_prompts(model, pairs)
    right = None if recompute else store.answered(model, pairs)
    if right is None:
        runs = baselines(model, pairs, metrics=["accuracy"], memory_budget=memory_budget)
        right = runs.clean.values[0] == 1
    kept = np.flatnonzero(right).tolist()
    if not kept:
        raise PatchlibError(
            f"the model answers none of these {len(pairs)} prompts of {pairs.task}: patching "
            "cannot bring back an answer that is not there; use a model that has this skill"
        )
    dropped = pairs.settings.get("dropped", 0) + len(pairs) - len(kept)
    settings = pairs.settings | {"dropped": dropped}
    return dataclasses.replace(pairs[kept], settings=settings)

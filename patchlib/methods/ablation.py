"""Ablation: what the clean run loses without a component, by zeros, means or resampling."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.patching.cells import Limits
from patchlib.patching.patch import Metrics, _components, _one_or_list, _patch
from patchlib.patching.runs import require_evaluation, require_prompts
from patchlib.patching.sources import Source
from patchlib.prompts.pairs import PromptPairs


def ablate(
    model: TransformerBridge,
    pairs: PromptPairs,
    component: str = "head",
    *,
    with_: Source,
    metrics: Metrics = ("logit_diff", "prob", "kl"),
    layers: int | Iterable[int] | None = None,
    heads: Iterable[object] | None = None,
    positions: str | int | Sequence[str | int] = "all",
    keep_prompts: bool = False,
    keep_draws: bool = False,
    memory_budget: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    recompute: bool = False,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Replaces every head, MLP, attention or residual of the clean run, one at a time.

    There is no corrupted run. Putting activations into the clean run is noising, and what
    ``patch(direction="noise", source=...)`` measures differs from this in two metrics alone, which
    it reads on the way to a corrupted run: the logit difference, by its unit, and KL.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths; only their clean versions are run.
        component: as in `patch`.
        with_: what activations become: ``Zero()``; ``Mean(reference)``; ``Resample(pool)``; or
            prompts, one for each, whose clean run is taken. A zero may be far from everything that
            the model has ever seen, a mean hides how a component varies, and a resampled activation
            brings another prompt's information along.
        metrics: as in `patch`.
        layers: as in `patch`.
        heads: as in `patch`.
        positions: as in `patch`.
        keep_prompts: as in `patch`.
        keep_draws: keep one value per draw of `Resample` instead of their mean.
        memory_budget: as in `patch`.
        checkpoint: as in `patch`.
        recompute: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset as `patch` gives it when noising, over the same dimensions. Its ``effect`` is
        positive where the component helps, as it is there: where the ablation lowers P(r),
        P_cl(r) - P_abl(r), and likewise for the other metrics. The logit difference is
        ``(LD_cl - LD_abl) / |LD_cl|``, where LD_cl is a mean over the prompts that have the
        position: 1 where none is left. KL is D(P_cl||P_abl), never negative. ``patched`` is the
        ablated run, and ``corrupted`` NaN.

    Raises:
        PatchlibError: without ``with_``, and as `patch` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.ablate(model, pairs, with_=pl.Zero(), metrics="kl", progress=False)
        >>> fx.attrs["source"], bool((fx.effect > 0).any())
        ('zeros', True)
        >>> same = pl.ablate(model, pairs, with_=pairs, metrics="kl", progress=False)
        >>> bool((abs(same.effect) < 1e-5).all())
        True
    """
    if with_ is None:
        raise PatchlibError(
            "with_=None: say what activations become: pl.Zero(), pl.Mean(), pl.Resample() or "
            "prompts; for those of a corrupted run use pl.patch(..., direction='noise')"
        )
    positions = _one_or_list(positions)
    require_evaluation(model)
    require_prompts(model, pairs)
    frame, what = _components(model, pairs, component, layers, heads, 1, None, positions)
    return _patch(
        model,
        pairs,
        frame,
        None,
        metrics,
        {"method": "ablation", **what},
        positions,
        "noise",
        with_,
        keep_prompts,
        keep_draws,
        "auto",
        Limits.of(model, "auto", memory_budget),
        checkpoint,
        progress,
        stored=not recompute,
    )

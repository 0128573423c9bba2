"""How sure a mean over prompts is: bootstrap intervals."""

from __future__ import annotations

from numbers import Real

import numpy as np
import xarray as xr

from patchlib.errors import PatchlibError, require_result, whole
from patchlib.measure.resamples import resampled


def interval(
    fx: xr.Dataset, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> xr.Dataset:
    """A bootstrap interval of the mean effect over prompts, as by TransformerLens' `bootstrap_ci`.

    Args:
        fx: a result of `patch` with ``keep_prompts=True``.
        confidence: the interval's coverage.
        n_resamples: how many resamples of the prompts.
        seed: seeds the resampling.

    Returns:
        A dataset with the variables ``low`` and ``high``, over the prompts that have the patched
        position, as the mean is; NaN where fewer than two have it. The normaliser of the logit
        difference is taken as given.

    Raises:
        PatchlibError: for what is no result or holds no values per prompt, and for a confidence, a
            number of resamples or a seed that is none.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, "mlp", corruption=pl.STR("S2"), keep_prompts=True,
        ...               progress=False)
        >>> ci = pl.interval(fx)
        >>> bool((ci.low <= fx.effect.mean("prompt")).all())
        True
    """
    require_result(fx)
    if "prompt" not in fx.dims:
        raise PatchlibError(
            "this result holds means over prompts: call pl.patch(..., keep_prompts=True) to keep "
            "one value per prompt"
        )
    if not isinstance(confidence, Real) or not 0 < confidence < 1:
        raise PatchlibError(f"confidence={confidence!r}: give a number between 0 and 1")
    n_resamples, seed = whole("n_resamples", n_resamples, 1), whole("seed", seed, 0)
    effect = fx.effect.transpose(..., "prompt")
    cells = effect.values.reshape(-1, effect.sizes["prompt"])
    bounds = np.full((2, len(cells)), np.nan)
    # Cells that were measured on the same prompts are resampled together.
    kinds, kind = np.unique(~np.isnan(cells), axis=0, return_inverse=True)
    for number, measured in enumerate(kinds):
        rows = np.flatnonzero(kind.ravel() == number)
        if measured.sum() > 1:
            values = xr.DataArray(cells[rows][:, measured], dims=("cell", "prompt"))
            ends = (1 - confidence) / 2, (1 + confidence) / 2
            bounds[:, rows] = resampled(values, n_resamples, seed).quantile(ends, "resample")
    template = effect.isel(prompt=0, drop=True)
    both = zip(("low", "high"), bounds.reshape(2, *template.shape), strict=True)
    return xr.Dataset(
        {name: template.copy(data=values) for name, values in both},
        attrs=fx.attrs
        | {"confidence": float(confidence), "n_resamples": n_resamples, "resampling_seed": seed},
    )

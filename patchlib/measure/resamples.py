"""Means over resampled prompts, for intervals of what is no mean: ratios, peaks, thresholds."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from transformer_lens.utilities.statistics import derive_generator

RESAMPLES, CONFIDENCE = 1000, 0.95


def resampled(values: xr.DataArray, n_resamples: int = RESAMPLES, seed: int = 0) -> xr.DataArray:
    """Means over resamples of the prompts, the same resamples for all values of as many prompts.

    Args:
        values: numbers over ``prompt`` and any other dimensions, none of them NaN.
        n_resamples: how many resamples.
        seed: seeds the resampling.

    Returns:
        The means, with the dimension ``resample`` in place of ``prompt``; NaN for a single prompt.

    Example:
        >>> means = resampled(xr.DataArray([2.0, 2.0, 2.0], dims="prompt"), n_resamples=4)
        >>> means.values.tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    n = values.sizes["prompt"]
    if n < 2:
        # One prompt, drawn again and again, would look certain.
        return values.isel(prompt=[0] * n_resamples).rename(prompt="resample") * np.nan
    rest = values.transpose("prompt", ...)
    means = _shares(n, n_resamples, seed) @ rest.values.reshape(n, -1)
    again = rest.isel(prompt=0, drop=True).expand_dims(resample=n_resamples)
    return again.copy(data=means.reshape(again.shape))


@lru_cache(maxsize=4)
def _shares(n: int, n_resamples: int, seed: int) -> Float[np.ndarray, "resample prompt"]:
    """Which share each of n prompts has in each resample."""
    chosen = torch.randint(0, n, (n_resamples, n), generator=derive_generator(seed, "bootstrap"))
    counts = torch.zeros(n_resamples, n, dtype=torch.float64)
    return counts.scatter_add_(1, chosen, torch.ones_like(counts)).numpy() / n


def ratio_ends(top: xr.DataArray, bottom: xr.DataArray) -> dict[str, float]:
    """The bootstrap interval of a ratio of two quantities over the same resamples.

    Args:
        top: the numerator in each resample.
        bottom: the denominator.

    Returns:
        The ends ``low`` and ``high``; NaN where the denominator's own interval holds zero, so that
        the ratio could be anything.
    """
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    least, most = np.quantile(bottom, ends)
    if least <= 0 <= most:
        return {"low": np.nan, "high": np.nan}
    low, high = np.quantile(top / bottom, ends)
    return {"low": float(low), "high": float(high)}

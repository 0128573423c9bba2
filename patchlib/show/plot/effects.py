"""What figures show of a result of `patchlib.patch`."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr

from patchlib.errors import PatchlibError
from patchlib.measure.detection import detect
from patchlib.patching.cells import UNITS
from patchlib.show.plot.style import DETECTION_SD


def effect_of(fx: xr.Dataset, metric: str, keep: str = "") -> xr.DataArray:
    """One metric's effect, as the mean over prompts and draws.

    Args:
        fx: a result of `patchlib.patch`.
        metric: one of its metrics.
        keep: ``"prompt"`` or ``"draw"`` to keep the values of each.

    Raises:
        PatchlibError: for a metric that the result does not hold, for a single number, and where
            there are no values to keep.
    """
    if "effect" not in fx or "metric" not in fx.effect.dims:
        raise PatchlibError(
            "only results of pl.patch can be drawn, with their dimension 'metric': pass the "
            "whole result and name the metric"
        )
    if metric not in fx.metric.values:
        raise PatchlibError(
            f"metric={metric!r}: this result holds {', '.join(fx.metric.values)}. Name the metric "
            "in pl.patch(..., metrics=[...]) to measure it"
        )
    effect = fx.effect.sel(metric=metric, drop=True)
    if "layer" not in effect.dims:
        raise PatchlibError(
            "this result has no dimension 'layer': pl.patch gives one, pl.patch_together is a "
            "single number for each metric"
        )
    if keep and keep not in effect.dims:
        raise PatchlibError(
            f"this result holds means over {keep}s, and the figure shows each {keep}'s share: call "
            f"pl.patch(..., keep_{keep}s=True)"
        )
    return effect.mean([dim for dim in ("prompt", "draw") if dim in effect.dims and dim != keep])


def of_cells(fx: xr.Dataset, metric: str, keep: str = "") -> xr.DataArray:
    """Effects of heads or of whole layers, without positions and windows.

    Raises:
        PatchlibError: as `effect_of`, and for results with other dimensions.
    """
    effect = effect_of(fx, metric, keep)
    for dim in effect.dims:
        if dim not in ("layer", keep, *UNITS):
            raise PatchlibError(
                f"this result has the dimensions {', '.join(map(str, effect.dims))}, and the "
                f"figure has heads or layers: select one with fx.sel({dim}=...)"
            )
    return effect


def unit(effect: xr.DataArray) -> str:
    """What the cells of a result are."""
    dim = next((dim for dim in UNITS if dim in effect.dims), "layer")
    return dim.replace("kv_head", "key/value head")


def detected(effect: xr.DataArray) -> tuple[tuple[float, float], list[str], list[str]]:
    """Both thresholds, the lower first; the cells above and those below, strongest first.

    Args:
        effect: of one metric, over layers and what they consist of.
    """
    table = detect(effect.expand_dims(metric=["effect"]).to_dataset(name="effect"), DETECTION_SD)
    (high, low), (above, below) = table.threshold, table.heads
    return (low, high), above, below


def named(results: Mapping[str, xr.Dataset] | xr.Dataset) -> Mapping[str, xr.Dataset]:
    """Results with their names; a single one has none.

    Raises:
        PatchlibError: where nothing is given.
    """
    series = {"": results} if isinstance(results, xr.Dataset) else results
    if not series:
        raise PatchlibError("no result was given: allowed is one or more of pl.patch")
    return series

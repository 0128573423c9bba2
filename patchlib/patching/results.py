"""The numbers of a sweep, labelled, and the effects that Section 2.1 defines from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from patchlib.patching.frames import Frame
from patchlib.patching.metrics import Metric


def label(
    metrics: Sequence[Metric],
    patched: Float[np.ndarray, "metric draw prompt cell"],
    unpatched: Float[np.ndarray, "run metric draw prompt"],
    frame: Frame,
    direction: str | None,
) -> xr.Dataset:
    """Labels the numbers of every prompt and draw, and works out the effects.

    Args:
        metrics: what was measured.
        patched: the patched runs, NaN where a prompt has no token at the cell's position.
        unpatched: the run on the source's side, and the one that was patched.
        frame: the cells.
        direction: as in `patchlib.patch`; None for `patchlib.ablate`, where both unpatched runs
            are the clean one, and nothing is known of a corrupted one.
    """
    baseline, coordinates = ("metric", "draw", "prompt"), frame.coordinates
    shape = (*patched.shape[:3], *map(len, coordinates.values()))
    names = ("clean", "corrupted") if direction == "denoise" else ("corrupted", "clean")
    data = xr.Dataset(
        {"patched": ((*baseline, *coordinates), patched.reshape(shape))}
        | {name: (baseline, run) for name, run in zip(names, unpatched, strict=True)},
        coords={"metric": [metric.name for metric in metrics]}
        | {name: list(labels) for name, labels in coordinates.items()},
    )
    if frame.tokens is not None:
        data = data.assign_coords(token=("position", frame.tokens))
    there, here = (data[name] for name in names)
    if direction is None:
        # The way leads to no logit difference at all.
        there, data["corrupted"] = 0 * here, np.nan * here

    def of_metrics(values: Sequence[float]) -> xr.DataArray:
        return xr.DataArray(list(values), dims="metric")

    # Which way a metric moves where the run comes closer to the source: a distance from the
    # source shrinks in both directions, an answer's probability falls when it is noised away. In
    # an ablation the source's side is the clean run, too, and the distance from it grows.
    way = there - here
    towards = of_metrics(
        [
            m.sign if direction == "denoise" or (direction and m.from_source) else -m.sign
            for m in metrics
        ]
    )
    # The mean over prompts keeps single prompts with a tiny difference from blowing up; it is
    # taken over those prompts that have the position.
    distance = way.where(frame.present).mean("prompt")
    if direction is None:
        distance = -abs(distance)
    distance = distance.where(distance != 0)
    normalized = of_metrics([m.normalized for m in metrics])
    data["effect"] = (data.patched - here) * xr.where(normalized, 1 / distance, towards)
    data["effect"] = data.effect.transpose(*data.patched.dims)
    return data[["effect", "patched", "clean", "corrupted"]]


def average(
    data: xr.Dataset, frame: Frame, texts: Sequence[str], keep_prompts: bool, keep_draws: bool
) -> xr.Dataset:
    """Means over prompts and draws, unless they are to be kept.

    Means of the unpatched runs are over the prompts that have the position, as those of the
    patched runs are.
    """
    if keep_prompts:
        data = data.assign_coords(text=("prompt", list(texts)))
    else:
        if not frame.present.all():
            runs = {name: data[name].where(frame.present) for name in ("clean", "corrupted")}
            data = data.assign(runs)
        data = data.mean("prompt", skipna=True)
    return data if keep_draws else over_draws(data)


def over_draws(data: xr.Dataset) -> xr.Dataset:
    """Means over draws, and the effect's standard deviation."""
    one = xr.full_like(data.effect.isel(draw=0, drop=True), np.nan)
    spread = data.effect.std("draw", ddof=1) if data.sizes["draw"] > 1 else one
    return data.mean("draw", keep_attrs=True).assign(effect_sd=spread)

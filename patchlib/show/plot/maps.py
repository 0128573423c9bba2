"""Heat maps of effects: layer by head, or layer by position."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from patchlib.errors import PatchlibError
from patchlib.patching.cells import UNITS
from patchlib.patching.metrics import label as metric_label
from patchlib.show.plot.curves import lines
from patchlib.show.plot.effects import detected, effect_of, named
from patchlib.show.plot.style import (
    DETECTION_SD,
    STYLE,
    DescribedFigure,
    label,
    legend,
    new_figure,
    spelt,
    title,
)

_DIVERGING = "RdBu"
_NOT_MEASURED = {"facecolor": "0.88", "edgecolor": "0.55", "hatch": "/////"}
# Inches: the side of a map that stands alone and of one among several, and of its cells.
_ALONE, _TOGETHER = 2.8, 2.1
_CELL_MOST, _NAMED_POSITION, _POSITIONS_LEAST = 0.26, 0.36, 1.2


def heatmap(fx: xr.Dataset, metric: str = "logit_diff", found: bool = True) -> DescribedFigure:
    """Draws the effects of one sweep: layer by head, or layer by position (Figures 4, 9, 28).

    Layers run downwards from 0, blue is a positive effect and red a negative one, on a scale that
    is symmetric about 0. Cells that were not measured (NaN) are hatched. A result with neither
    heads nor positions is drawn by `curve`.

    Args:
        fx: a result of `patchlib.patch`.
        metric: one of its metrics.
        found: outline the heads that `patchlib.detect` finds beyond mean ± 2 SD.

    Raises:
        PatchlibError: for a metric that the result does not hold, and for dimensions that do not
            fit on a map, as those of neurons.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S2"), progress=False)
        >>> plot.heatmap(fx, "kl").axes[0].get_xlabel()
        'head'
    """
    effect = effect_of(fx, metric)
    if effect.dims == ("layer",):
        return lines(fx, metric)
    effect = _map(effect)
    with matplotlib.rc_context(STYLE):
        width, height = _map_size(effect, _ALONE)
        drawn = new_figure(width + 1.4, height + 1.3, "compressed")
        axes = drawn.subplots()
        image, notes = _draw_map(axes, effect, _limit([effect]), found)
        axes.set_xlabel(_columns(effect))
        axes.set_ylabel("layer")
        axes.set_title(title(fx))
        drawn.colorbar(image, ax=axes, label=label(metric, fx), aspect=height / 0.12, pad=0.03)
        legend(drawn, notes)
        drawn.alt = f"Heat map, {_shape(effect)}. {label(metric, fx)}. {title(fx)}"
    return drawn


def heatmaps(
    results: Mapping[str, xr.Dataset], metrics: Sequence[str], found: bool = True
) -> Figure:
    """Draws several sweeps side by side: a row for each result, a column for each metric.

    All maps of a metric have one symmetric scale, so that their colours can be compared.

    Args:
        results: results of `patchlib.patch`, named as their rows are to be, such as ``"STR"``.
        metrics: the columns.
        found: outline the heads that `patchlib.detect` finds beyond mean ± 2 SD.

    Raises:
        PatchlibError: as `heatmap` does, where nothing is given, and for results over layers
            alone.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S2"), progress=False)
        >>> [axes.get_title() for axes in plot.heatmaps({"STR": fx}, ["prob", "kl"]).axes[:2]]
        ['probability', 'KL divergence (nats)']
    """
    if isinstance(metrics, str):
        metrics = [metrics]
    series = named(results)
    first = next(iter(series.values()))
    if not metrics:
        raise PatchlibError("no metrics were given: allowed is one or more, such as ['prob', 'kl']")
    columns = {
        metric: {run: _map(effect_of(fx, metric)) for run, fx in series.items()}
        for metric in metrics
    }
    effects = [effect for column in columns.values() for effect in column.values()]
    sizes = [_map_size(effect, _TOGETHER) for effect in effects]
    width, height = max(width for width, _ in sizes), max(height for _, height in sizes)
    names = {metric: metric_label(metric, first.attrs) for metric in metrics}
    notes: dict[str, Artist] = {}
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(
            (width + 0.8) * len(metrics) + 0.4, (height + 0.3) * len(series) + 1.2, "compressed"
        )
        grid = drawn.subplots(len(series), len(metrics), squeeze=False)
        for place, (metric, column) in zip(grid.T, columns.items(), strict=True):
            limit = _limit(column.values())
            for axes, effect in zip(place, column.values(), strict=True):
                image, more = _draw_map(axes, effect, limit, found)
                notes |= more
            drawn.colorbar(image, ax=place, aspect=len(series) * height / 0.1, pad=0.03)
            place[0].set_title(textwrap.fill(names[metric], int((width + 0.7) / 0.075)))
            place[-1].set_xlabel(_columns(effect))
        for axes, run in zip(grid[:, 0], series, strict=True):
            axes.set_ylabel("layer")
            axes.annotate(
                run,
                xy=(0, 0.5),
                xycoords="axes fraction",
                xytext=(-32, 0),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="center",
                fontsize=9,
                fontweight="bold",
            )
        heading = title(*series.values())
        drawn.suptitle(heading)
        drawn.alt = (
            f"{len(effects)} heat maps, rows {', '.join(series)}, columns "
            f"{', '.join(names.values())}; each {_shape(effects[0])}. {heading}"
        )
        legend(drawn, notes)
    return drawn


def _limit(effects: Iterable[xr.DataArray]) -> float:
    """The largest absolute effect, where there is one."""
    return max(float(abs(effect).fillna(0).max()) for effect in effects) or 1.0


def _shape(effect: xr.DataArray) -> str:
    rows, columns = effect.shape
    return f"{rows} layers by {columns} {_columns(effect)}s"


def _map(effect: xr.DataArray) -> xr.DataArray:
    """The effect with layers first and one other dimension."""
    others = [dim for dim in effect.dims if dim != "layer"]
    if others == ["neuron"]:
        raise PatchlibError(
            f"a map has no room for {effect.sizes['neuron']} neurons of a layer: pl.detect(fx) "
            "lists those that stand out, and fx.effect holds the numbers"
        )
    if others not in (["head"], ["kv_head"], ["position"]):
        raise PatchlibError(
            f"this result has the dimensions {', '.join(map(str, effect.dims))}, and a map has "
            "layer and head, or layer and position. Select one position with "
            "fx.sel(position=...); for layers alone use plot.lines"
        )
    return effect.transpose("layer", *others)


def _map_size(effect: xr.DataArray, side: float) -> tuple[float, float]:
    """Width and height of a map in inches."""
    rows, columns = effect.shape
    if effect.dims[1] in UNITS:
        width = height = _cell(side, max(rows, columns))
    else:
        height = _cell(side, rows)
        width = _NAMED_POSITION if _is_named(effect) else _cell(side, columns)
        width = max(width, _POSITIONS_LEAST / columns)
    return columns * width, rows * height


def _cell(side: float, cells: int) -> float:
    # A map of many cells grows, so that its cells can be told apart.
    return min(max(side / cells, 0.038 * side), _CELL_MOST)


def _is_named(effect: xr.DataArray) -> bool:
    return not np.issubdtype(effect[effect.dims[1]].dtype, np.number)


def _draw_map(
    axes: Axes, effect: xr.DataArray, limit: float, found: bool
) -> tuple[AxesImage, dict[str, Artist]]:
    """One map, with the heads that are detected outlined; and what its signs mean."""
    notes: dict[str, Artist] = {}
    values = effect.values
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=_DIVERGING,
        vmin=-limit,
        vmax=limit,
        interpolation="none",
        aspect="equal" if effect.dims[1] in UNITS else "auto",
    )
    if not np.isfinite(values).all():
        axes.patch.set(**_NOT_MEASURED)
        notes["not measured"] = Patch(**_NOT_MEASURED)  # type: ignore[arg-type]
    if found and effect.dims[1] in UNITS:
        outline: dict[str, Any] = {"fill": False, "edgecolor": "black", "linewidth": 0.9}
        (low, high), *_ = detected(effect)
        for row, column in np.argwhere((values > high) | (values < low)):
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, clip_on=False, zorder=3, **outline))
        notes[f"beyond mean ± {DETECTION_SD} SD"] = Patch(**outline)
    _label_cells(axes, effect)
    return image, notes


def _columns(effect: xr.DataArray) -> str:
    """What the columns of a map are."""
    return str(effect.dims[1]).replace("kv_head", "key/value head")


def _label_cells(axes: Axes, effect: xr.DataArray) -> None:
    """Writes layers, and heads or positions, as often as there is room."""
    layers, columns = (effect[dim].values for dim in effect.dims)
    step = 1 if len(layers) <= 16 else 4
    axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    if _is_named(effect):
        names = [spelt(str(name)) for name in columns]
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    else:
        step = 1 if len(columns) <= 16 else 4
        axes.set_xticks(range(0, len(columns), step), [str(column) for column in columns[::step]])
    axes.tick_params(length=2)

"""Pairs of components: which need each other, and which stand in for each other."""

from __future__ import annotations

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
from patchlib.patching.metrics import label as metric_label
from patchlib.show.plot.style import STYLE, legend, new_figure, title

# Inches.
_CELL = 0.33
_OUTLINE: dict[str, Any] = {"fill": False, "edgecolor": "black", "linewidth": 0.9}
_ALONE: dict[str, Any] = {"facecolor": "0.92", "edgecolor": "0.7", "linewidth": 0.4}


def pairs(data: xr.Dataset, metric: str = "logit_diff") -> Figure:
    """Draws the interactions of every two components, a map for each direction.

    Blue pairs need each other (AND), red ones stand in for each other (OR); a frame says that the
    interval over prompts does not hold zero. The diagonal has the effect of each alone.

    Args:
        data: a result of `patchlib.interactions`.
        metric: one of its metrics.

    Raises:
        PatchlibError: for another result, a metric that it does not hold, and for several
            positions.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> both = pl.interactions(model, pl.tasks.ioi(model, n=4), ["4.1", "5.0"],
        ...                        corruption=pl.STR("S2"), progress=False)
        >>> [axes.get_title() for axes in pl.plot.pairs(both).axes[:2]]
        ['denoise', 'noise']
    """
    if "interaction" not in data or metric not in data.metric.values:
        held = ", ".join(map(str, data.metric.values)) if "metric" in data.coords else "none"
        raise PatchlibError(
            f"metric={metric!r}: give a result of pl.interactions and one of its metrics; this "
            f"result has {held}"
        )
    chosen = data.sel(metric=metric)
    if set(chosen.interaction.dims) != {"direction", "first", "second"}:
        raise PatchlibError("this result has several positions: select one, data.sel(position=...)")
    names, directions = chosen.first.values.tolist(), chosen.direction.values.tolist()
    limit = float(abs(chosen.interaction).max()) or 1.0
    side = _CELL * len(names)
    with matplotlib.rc_context(STYLE):
        drawn = new_figure((side + 0.6) * len(directions) + 1.0, side + 1.5, "compressed")
        grid = drawn.subplots(1, len(directions), squeeze=False)[0]
        for axes, direction in zip(grid, directions, strict=True):
            image = _draw(axes, chosen.sel(direction=direction), names, limit)
            axes.set_title(direction)
        said = f"interaction: {metric_label(metric, data.attrs)}"
        drawn.colorbar(image, ax=grid, label=said, aspect=side / 0.12, pad=0.03)
        heading = title(data.assign_attrs(direction="denoise", source="clean run"))
        drawn.suptitle(f"blue: both are needed (AND) · red: either will do (OR)\n{heading}")
        drawn.alt = (
            f"{len(directions)} maps of the interactions of {len(names)} components, "
            f"{', '.join(directions)}. {metric_label(metric, data.attrs)}. {heading}"
        )
        notes: dict[str, Artist] = {
            "interval without zero": Patch(**_OUTLINE),
            "effect alone": Patch(**_ALONE),
        }
        legend(drawn, notes)
    return drawn


def _draw(axes: Axes, chosen: xr.Dataset, names: list[str], limit: float) -> AxesImage:
    """One map: every pair once, below the effects of each alone."""
    order = {"first": names, "second": names}
    values, effects, gates = (
        chosen[name].sel(order).transpose("second", "first").values
        for name in ("interaction", "effect", "gate")
    )
    below = np.tri(len(names), k=-1, dtype=bool)
    image = axes.imshow(np.ma.masked_where(~below, values), cmap="RdBu", vmin=-limit, vmax=limit)
    for row, column in zip(*np.nonzero(below), strict=True):
        value = values[row, column]
        strong = abs(value) > 0.6 * limit
        _write(axes, row, column, value, "white" if strong else "black")
        if gates[row, column] in ("AND", "OR"):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, zorder=3, **_OUTLINE))
    for number in range(len(names)):
        axes.add_patch(Rectangle((number - 0.5, number - 0.5), 1, 1, **_ALONE))
        _write(axes, number, number, effects[number, number], "0.35")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _write(axes: Axes, row: int, column: int, value: float, colour: str) -> None:
    text = f"{value:.2f}".replace("0.", ".", 1)
    axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)

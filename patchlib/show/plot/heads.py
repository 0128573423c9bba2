"""Effects head by head: in order, of two results, in each draw of noise, and with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from patchlib.errors import PatchlibError
from patchlib.measure.detection import by_cell
from patchlib.measure.intervals import interval
from patchlib.patching.metrics import label as metric_label
from patchlib.show.plot.effects import detected, named, of_cells, unit
from patchlib.show.plot.style import (
    DETECTION_SD,
    NEGATIVE,
    NEITHER,
    POSITIVE,
    STYLE,
    VARIANTS,
    colours,
    label,
    legend,
    new_figure,
    title,
)

_THRESHOLD = f"mean ± {DETECTION_SD} SD"
_DASHES: Any = {"linestyle": "--", "linewidth": 0.8, "zorder": 1}
# Inches: one line of type, and what stands above and below the rows of a figure.
_LINE, _AROUND = 0.14, 1.3
_STRONGEST = 8
# How many names a side has room for: of neurons dozens are detected.
_NAMED = 14


def ranked(fx: xr.Dataset, metric: str = "logit_diff") -> Figure:
    """Draws all effects in order of size, and names the strongest that detection finds.

    Dashed lines are the thresholds, mean ± 2 standard deviations of all heads (Section 3).

    Args:
        fx: a result of `patchlib.patch` by head or by layer.
        metric: one of its metrics.

    Raises:
        PatchlibError: for a metric that the result does not hold, and for results with positions
            or windows.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S2"), progress=False)
        >>> plot.ranked(fx).axes[0].get_xlabel()
        'all 64 heads, largest effect first'
    """
    effect = of_cells(fx, metric)
    thresholds, above, below = detected(effect)
    cells = by_cell(effect).dropna("cell")
    cells = cells.isel(cell=np.argsort(-cells.values, kind="stable"))
    order, what = {name: rank for rank, name in enumerate(cells.cell.values)}, unit(effect)
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(5, max(3.4, _AROUND + _LINE * min(_NAMED, max(len(above), len(below)))))
        axes = drawn.subplots()
        axes.axhline(0, color="0.5", linewidth=0.6, zorder=1)
        _thresholds(axes.axhline, thresholds, "0.3")
        axes.scatter(range(len(order)), cells, s=9, color=NEITHER, zorder=2)
        for names, colour in ((above, POSITIVE), (below, NEGATIVE)):
            values = cells.sel(cell=names)
            axes.scatter([order[name] for name in names], values, s=14, color=colour, zorder=3)
        axes.set_xlabel(f"all {len(order)} {what}s, largest effect first")
        axes.set_ylabel(label(metric, fx))
        axes.set_title(title(fx))
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02, y=0.12)
        _name(drawn, axes, cells, order, above[:_NAMED], 1)
        _name(drawn, axes, cells, order, below[:_NAMED][::-1], -1)
        drawn.alt = (
            f"All {len(order)} {what}s in order of {label(metric, fx)}. Above mean + "
            f"{DETECTION_SD} SD: {_listed(above)}; below mean - {DETECTION_SD} SD: "
            f"{_listed(below)}. {title(fx)}"
        )
        notes: dict[str, Artist] = {_THRESHOLD: Line2D([], [], color="0.3", **_DASHES)}
        legend(drawn, notes)
    return drawn


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", ".join(names[:_NAMED]) or "none") + more


def _name(
    drawn: Figure,
    axes: Axes,
    cells: xr.DataArray,
    order: Mapping[str, int],
    names: Sequence[str],
    side: int,
) -> None:
    """Writes names, sorted from the top, beside their points and not over one another."""
    low, high = axes.get_ylim()
    step = (high - low) * _LINE / (drawn.get_figheight() - _AROUND)
    heights = _spread([float(cells.sel(cell=name)) for name in names], step, low, high)
    room = 0.06 * len(order)
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            name,
            xy=(order[name], float(cells.sel(cell=name))),
            xytext=(order[name] + side * room, height),
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=7,
            # Not crossed out by a threshold.
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.7},
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkB": 2},
        )


def _spread(values: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Falling values moved apart to at least a step, within limits where there is room."""
    heights: list[float] = []
    for value in values:
        heights.append(min(value, heights[-1] - step) if heights else min(value, high - step / 2))
    lowest = low + step / 2
    for number in reversed(range(len(heights))):
        heights[number] = max(heights[number], lowest)
        lowest = heights[number] + step
    return heights


def scatter(
    across: Mapping[str, xr.Dataset] | xr.Dataset,
    up: Mapping[str, xr.Dataset] | xr.Dataset,
    metric: str = "logit_diff",
    n: int = 6,
) -> Figure:
    """Draws the effects of one result against those of another, such as an estimate of it.

    A point for each head, layer or edge that both have, a panel for each name, all on one scale. On
    the dashed line both are the same. Names stand at the ``n`` points with the largest absolute
    value in either.

    Args:
        across: a result of `patchlib.patch` or another method by head, layer or edge, or several,
            named as the panels are to be; a single one stands in every panel.
        up: what is drawn upwards, likewise.
        metric: one of their metrics.
        n: how many names.

    Raises:
        PatchlibError: where the names differ, where two results have no head or layer in common,
            and as `ranked` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> options = {"corruption": pl.STR("S2"), "progress": False}
        >>> figure = pl.plot.scatter(pl.patch(model, pairs, **options),
        ...                          pl.attribute(model, pairs, **options))
        >>> figure.axes[0].get_ylabel().splitlines()
        ['effect by attribution patching', 'normalised logit difference']
    """
    names = [*named(up)] if isinstance(across, xr.Dataset) else [*named(across)]
    first, second = (
        dict.fromkeys(names, each) if isinstance(each, xr.Dataset) else dict(each)
        for each in (across, up)
    )
    if first.keys() != second.keys():
        raise PatchlibError(
            f"the results across are {', '.join(first)}, those upwards {', '.join(second)}: give "
            "both the same names"
        )
    points = {name: _both(first[name], second[name], metric) for name in names}
    everything = xr.concat([each.drop_vars("cell") for each in points.values()], "cell")
    ends = float(everything.min()), float(everything.max())
    room = 0.12 * ((ends[1] - ends[0]) or 1.0)
    limits = min(ends[0], 0.0) - room, max(ends[1], 0.0) + room
    what = metric_label(metric, first[names[0]].attrs)
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(0.6 + 2.8 * len(names), 4.1, "compressed")
        grid = drawn.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, (x, y)) in zip(grid, points.items(), strict=True):
            axes.axhline(0, color="0.8", linewidth=0.6, zorder=1)
            axes.axvline(0, color="0.8", linewidth=0.6, zorder=1)
            axes.plot(limits, limits, color="0.3", **_DASHES)
            axes.scatter(x, y, s=10, color=POSITIVE, alpha=0.7, linewidths=0, zorder=2)
            axes.set(title=name, xlim=limits, ylim=limits, aspect="equal")
            axes.spines[["top", "right"]].set_visible(False)
            _name_points(axes, x, y, n, limits)
            axes.set_xlabel(f"effect by {_method(first[name])}\n{what}")
            if axes is grid[0] or _method(second[name]) != _method(second[names[0]]):
                axes.set_ylabel(f"effect by {_method(second[name])}\n{what}")
        heading = title(*first.values(), *second.values())
        drawn.suptitle(heading)
        drawn.alt = (
            f"Effects by {_method(second[names[0]])} against those by {_method(first[names[0]])}"
            f"{': ' if names != [''] else ''}{', '.join(names)}. {what}. {heading}"
        )
        legend(drawn, {"both the same": Line2D([], [], color="0.3", **_DASHES)})
    return drawn


def _both(first: xr.Dataset, second: xr.Dataset, metric: str) -> xr.DataArray:
    """The cells that two results have both measured."""
    cells = [_cells(fx, metric).reset_coords(drop=True) for fx in (first, second)]
    both = xr.concat(cells, "result", join="inner").dropna("cell")
    if not both.sizes["cell"]:
        raise PatchlibError(
            "two results can be drawn against each other where both have measured the same heads, "
            "layers or edges: these have none in common"
        )
    return both


def _cells(fx: xr.Dataset, metric: str) -> xr.DataArray:
    """Effects of heads or layers; or of edges, named as in `patchlib.Edges`."""
    if not {"writer", "reader"} <= {*fx.dims}:
        return by_cell(of_cells(fx, metric))
    effect = fx.effect.sel(metric=metric, drop=True)
    cells = effect.mean({*effect.dims} & {"prompt", "draw"}).stack(cell=["writer", "reader"])
    names = ["->".join(edge) for edge in cells.cell.values]
    return cells.drop_vars(["cell", "writer", "reader"]).assign_coords(cell=names)


def _method(fx: xr.Dataset) -> str:
    """What an axis of one of two results is called."""
    more = [name for key, name in VARIANTS.items() if fx.attrs.get(key)]
    return " with ".join([str(fx.attrs.get("method", "patching")), *more])


def _name_points(
    axes: Axes, x: xr.DataArray, y: xr.DataArray, n: int, limits: tuple[float, float]
) -> None:
    """Writes the names of the largest: on the left above the diagonal, where there is room."""
    low, high = limits
    beside = np.where((y > x) & (x > low + 0.16 * (high - low)), -1, 1)
    largest = np.argsort(-np.maximum(abs(x.values), abs(y.values)), kind="stable")[:n]
    for side in (-1, 1):
        mine = [i for i in largest if beside[i] == side]
        mine.sort(key=lambda i: -float(y.values[i]))
        heights = _spread([float(y.values[i]) for i in mine], 0.055 * (high - low), low, high)
        for i, height in zip(mine, heights, strict=True):
            axes.annotate(
                str(x.cell.values[i]),
                xy=(float(x.values[i]), float(y.values[i])),
                xytext=(float(x.values[i]) + side * 0.05 * (high - low), height),
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=7,
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkB": 2},
            )


def draws(fx: xr.Dataset, metric: str = "logit_diff") -> Figure:
    """Draws for each draw the effects of the heads that any draw detects.

    Filled points are detected in their draw, with its own threshold; the bands show where the
    thresholds of all draws lie. After a head stands in how many of the draws it is detected.

    Args:
        fx: a result of `patchlib.patch` with ``keep_draws=True``.
        metric: one of its metrics.

    Raises:
        PatchlibError: where the result holds no draws, for a metric that it does not hold, and for
            results with positions or windows.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> fx = pl.patch(model, pairs, corruption=pl.GN("S2", draws=3), keep_draws=True,
        ...               progress=False)
        >>> plot.draws(fx).axes[0].get_xlabel().splitlines()[1]
        'after each head: in how many of 3 draws it is detected'
    """
    effect = of_cells(fx, metric, keep="draw")
    cells, n_draws = by_cell(effect).dropna("cell"), effect.sizes["draw"]
    limits, found = [], []
    for draw in range(n_draws):
        thresholds, above, below = detected(effect.isel(draw=draw))
        limits.append(thresholds)
        found.append({*above, *below})
    mean = abs(cells.mean("draw"))
    strongest = mean.cell.values[np.argsort(-mean.values, kind="stable")].tolist()
    # Where no draw detects any, the strongest show how far they are from it.
    some = set().union(*found) or set(strongest[:_STRONGEST])
    names = [name for name in strongest if name in some]
    what = unit(effect)
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(5, _AROUND + 1.7 * _LINE * len(names))
        axes = drawn.subplots()
        axes.axvline(0, color="0.5", linewidth=0.6, zorder=1)
        for threshold in zip(*limits, strict=True):
            axes.axvspan(min(threshold), max(threshold), color="0.85", linewidth=0, zorder=0)
            axes.axvline(float(np.mean(threshold)), color="0.3", **_DASHES)
        offsets = np.linspace(-0.28, 0.28, n_draws) if n_draws > 1 else np.zeros(1)
        for row, name in enumerate(names):
            values = cells.sel(cell=name).values
            is_found = [name in of_draw for of_draw in found]
            colour = POSITIVE if values.mean() > 0 else NEGATIVE
            faces = [colour if yes else "white" for yes in is_found]
            axes.scatter(values, row + offsets, s=10, c=faces, edgecolors=colour, linewidths=0.7)
        counts = [sum(name in of_draw for of_draw in found) for name in names]
        rows = [f"{name}  {count}/{n_draws}" for name, count in zip(names, counts, strict=True)]
        _rows(axes, rows, what)
        axes.set_xlabel(
            f"{label(metric, fx)}\nafter each {what}: in how many of {n_draws} draws it is detected"
        )
        axes.set_title(title(fx))
        drawn.alt = (
            f"Effects of {len(names)} {what}s in each of {n_draws} draws, with the "
            f"thresholds. {label(metric, fx)}. {title(fx)}"
        )
        point: Any = {"color": "none", "marker": "o", "markersize": 4, "markeredgecolor": "0.3"}
        legend(
            drawn,
            {
                "detected in this draw": Line2D([], [], **point | {"markerfacecolor": "0.3"}),
                "not detected": Line2D([], [], **point | {"markerfacecolor": "white"}),
                f"{_THRESHOLD} (band: all draws)": Line2D([], [], color="0.3", **_DASHES),
            },
        )
    return drawn


def intervals(
    results: Mapping[str, xr.Dataset] | xr.Dataset, metric: str = "logit_diff", n: int = 15
) -> Figure:
    """Draws the strongest heads of several runs with 95 % intervals over prompts.

    Dashed lines are the thresholds of each run, mean ± 2 standard deviations of all its heads;
    filled points lie beyond them. A head whose interval holds a threshold is neither detected nor
    not detected: it is at the threshold.

    Args:
        results: results of `patchlib.patch` with ``keep_prompts=True``, named by run, as
            `patchlib.sweep` gives them; or a single one.
        metric: one of their metrics.
        n: how many heads, those of the largest absolute effect in any run.

    Raises:
        PatchlibError: where no values per prompt were kept, for a metric that a result does not
            hold, and for results with positions or windows.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S2"), keep_prompts=True, progress=False)
        >>> len(plot.intervals({"STR": fx}, n=5).axes[0].get_yticks())
        5
    """
    series = named(results)
    first = next(iter(series.values()))
    effects = {run: of_cells(fx, metric, keep="prompt") for run, fx in series.items()}
    means = {run: effect.mean("prompt") for run, effect in effects.items()}
    sizes = xr.concat([abs(by_cell(mean)) for mean in means.values()], "run").max("run")
    sizes = sizes.dropna("cell")
    names = sizes.cell.values[np.argsort(-sizes.values, kind="stable")][:n].tolist()
    of_run, what = colours(series), unit(next(iter(effects.values())))
    offsets = (np.arange(len(series)) - (len(series) - 1) / 2) * 0.8 / len(series)
    notes: dict[str, Artist] = {}
    with matplotlib.rc_context(STYLE):
        per_row = max(1.3, 0.75 * len(series)) * _LINE
        drawn = new_figure(5, _AROUND + per_row * len(names))
        axes = drawn.subplots()
        axes.axvline(0, color="0.5", linewidth=0.6, zorder=1)
        for (run, effect), offset in zip(effects.items(), offsets, strict=True):
            thresholds, above, below = detected(means[run])
            _thresholds(axes.axvline, thresholds, of_run[run])
            values = by_cell(effect).sel(cell=names)
            mean, ends = values.mean("prompt"), interval(xr.Dataset({"effect": values}))
            faces = [of_run[run] if name in {*above, *below} else "white" for name in names]
            rows = np.arange(len(names)) + offset
            axes.hlines(rows, ends.low, ends.high, color=of_run[run], linewidth=1.1, zorder=2)
            axes.scatter(mean, rows, s=14, c=faces, edgecolors=of_run[run], zorder=3)
            if run:
                notes[run] = Line2D([], [], color=of_run[run], marker="o", markersize=4)
        _rows(axes, names, what)
        axes.set_xlabel(f"{label(metric, first)}\nmean and 95 % interval over prompts")
        axes.set_title(title(*series.values()))
        drawn.alt = (
            f"The {len(names)} strongest {what}s with 95 % intervals over prompts and the "
            f"thresholds{' of ' if notes else ''}{', '.join(notes)}. {label(metric, first)}. "
            f"{axes.get_title()}"
        )
        notes[f"{_THRESHOLD} (filled: beyond)"] = Line2D([], [], color="0.3", **_DASHES)
        legend(drawn, notes)
    return drawn


def _thresholds(line: Callable[..., object], values: tuple[float, float], colour: str) -> None:
    for value in values:
        line(value, color=colour, **_DASHES)


def _rows(axes: Axes, names: Sequence[str], what: str) -> None:
    """Names rows from the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_ylabel(what)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)

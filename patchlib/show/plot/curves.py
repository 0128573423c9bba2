"""Effects over layers: lines, and windows restored together against the sum of their layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle, product
from typing import Any

import matplotlib
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from patchlib.errors import PatchlibError
from patchlib.measure.effects import sum_windows
from patchlib.show.plot.effects import effect_of, named
from patchlib.show.plot.style import (
    COLOURS,
    MARKERS,
    STYLE,
    DescribedFigure,
    colours,
    label,
    legend,
    new_figure,
    spelt,
    title,
)

_PER_LAYER = 0.09
_LINES = ("-", "--", ":", "-.")
_BAND = "± SD over draws"


def lines(
    results: Mapping[str, xr.Dataset] | xr.Dataset, metric: str = "logit_diff"
) -> DescribedFigure:
    """Draws effects by layer, one line for each run, position and window (Figures 2 and 5).

    A run has its colour. Where a result holds several draws of noise or their standard deviation,
    a band shows mean ± one standard deviation.

    Args:
        results: a result of `patchlib.patch` over layers, with or without positions and windows,
            or several, named as the legend is to name them.
        metric: one of their metrics.

    Raises:
        PatchlibError: for a metric that a result does not hold, for results by head or neuron, and
            where no result is given.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> fx = pl.patch(model, pairs, "resid", corruption=pl.STR("S2"),
        ...               positions=["S2", "last"], progress=False)
        >>> [text.get_text() for text in plot.lines(fx).legends[0].get_texts()]
        ['S2', 'last']
    """
    series = named(results)
    first = next(iter(series.values()))
    several = {name: list(_each_line(fx, metric)) for name, fx in series.items()}
    n_layers = max(mean.sizes["layer"] for found in several.values() for _, mean, _ in found)
    of_run, other = colours(series), zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    width = min(max(2.4 + _PER_LAYER * n_layers, 3.4), 6.8)
    notes: dict[str, Artist] = {}
    band = False
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(width, 3.0)
        axes = drawn.subplots()
        axes.axhline(0, color="0.5", linewidth=0.6, zorder=1)
        for (run, found), run_marker in zip(several.items(), cycle(MARKERS), strict=False):
            for number, (what, mean, sd) in enumerate(found):
                if len(series) == 1 and not run:
                    (colour, marker), dashes = next(other), "-"
                elif len(found) == 1:
                    colour, marker, dashes = of_run[run], run_marker, "-"
                else:
                    # A run keeps its colour, what was patched has a marker and dashes.
                    colour, marker = of_run[run], MARKERS[number % len(MARKERS)]
                    dashes = _LINES[number % len(_LINES)]
                name = ", ".join(filter(None, (run, what)))
                line = _draw_curve(axes, mean, sd, name, colour, marker, dashes)
                band = band or sd is not None
                if name:
                    notes[name] = line
        axes.set_xlabel("layer")
        axes.set_ylabel(label(metric, first))
        axes.set_title(title(*series.values()))
        drawn.alt = (
            f"Lines over {n_layers} layers{': ' if notes else ''}{'; '.join(notes)}. "
            f"{label(metric, first)}. {axes.get_title()}"
        )
        if band:
            notes[_BAND] = Patch(facecolor="0.5", alpha=0.3)
        legend(drawn, notes)
    return drawn


def _each_line(
    fx: xr.Dataset, metric: str
) -> Iterator[tuple[str, xr.DataArray, xr.DataArray | None]]:
    """What each line is of, its mean, and its standard deviation over draws."""
    mean, sd = effect_of(fx, metric), None
    others = [dim for dim in mean.dims if dim != "layer"]
    if not set(others) <= {"position", "window"}:
        raise PatchlibError(
            f"this result has the dimensions {', '.join(map(str, mean.dims))}, and lines go over "
            "layers alone: select one head with fx.sel(head=...), or use plot.heatmap"
        )
    if fx.sizes.get("draw", 1) > 1:
        sd = effect_of(fx, metric, keep="draw").std("draw", ddof=1)
    elif "effect_sd" in fx and "prompt" not in fx.effect_sd.dims and fx.effect_sd.notnull().any():
        sd = fx.effect_sd.sel(metric=metric)
    for labels in product(*(mean[dim].values.tolist() for dim in others)):
        at = dict(zip(others, labels, strict=True))
        what = [f"window {at[dim]}" if dim == "window" else spelt(str(at[dim])) for dim in at]
        yield ", ".join(what), mean.sel(at), None if sd is None else sd.sel(at)


def _draw_curve(
    axes: Axes,
    mean: xr.DataArray,
    sd: xr.DataArray | None,
    label: str,
    colour: str,
    marker: str,
    dashes: str = "-",
) -> Line2D:
    (line,) = axes.plot(
        mean.layer,
        mean,
        color=colour,
        marker=marker,
        linestyle=dashes,
        markersize=3.5,
        linewidth=1.1,
        label=label,
    )
    if sd is not None:
        axes.fill_between(mean.layer, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 10]))
    axes.spines[["top", "right"]].set_visible(False)
    return line


def windows(results: Mapping[str, xr.Dataset] | xr.Dataset, metric: str = "prob") -> Figure:
    """Draws windows of layers restored together beside the sum of their layers' own effects.

    A panel for each window of more than one layer, all on one scale (Figure 5, Section 5).

    Args:
        results: results of `patchlib.patch` with ``window=[1, ...]``, over layers, named by run,
            as `patchlib.sweep` gives them; or a single one.
        metric: one of their metrics.

    Raises:
        PatchlibError: for results without single layers or without windows, with other
            dimensions, or with other windows than the first, and for a metric they do not hold.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> fx = pl.patch(model, pairs, "mlp", corruption=pl.STR("S2"), window=[1, 3, 5],
        ...               progress=False)
        >>> [axes.get_title() for axes in plot.windows({"STR": fx}).axes]
        ['3 of 8 layers', '5 of 8 layers']
    """
    series = named(results)
    first = next(iter(series.values()))
    effects = {run: effect_of(fx, metric) for run, fx in series.items()}
    sizes: list[int] = []
    for effect in effects.values():
        if set(effect.dims) != {"layer", "window"}:
            raise PatchlibError(
                f"this result has the dimensions {', '.join(map(str, effect.dims))}, and the "
                "figure needs layer and window: patch with window=[1, 3, 5], and select one "
                "position with fx.sel(position=...)"
            )
        sizes = sizes or effect.window.values.tolist()
        if 1 not in sizes or len(sizes) < 2 or effect.window.values.tolist() != sizes:
            raise PatchlibError(
                f"the windows are {', '.join(map(str, effect.window.values))}; allowed are 1, for "
                "the sums, and at least one more, the same in all results"
            )
    before = _layers_before(first, sizes)
    n_layers = next(iter(effects.values())).sizes["layer"]
    of_run = colours(series)
    shown = [size for size in sizes if size > 1]
    together: dict[str, Any] = {"restored together": "-", "sum of single layers": "--"}
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(min(3.0 * len(shown) + 0.6, 9), 3.1)
        grid = drawn.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, size in zip(grid, shown, strict=True):
            axes.axhline(0, color="0.5", linewidth=0.6, zorder=1)
            for (run, effect), marker in zip(effects.items(), cycle(MARKERS), strict=False):
                single = effect.sel(window=1, drop=True)
                both = effect.sel(window=size), sum_windows(single, size, before[size])
                for values, dashes in zip(both, together.values(), strict=True):
                    sign = marker if dashes == "-" else ""
                    _draw_curve(axes, values, None, run, of_run[run], sign, dashes)
            axes.set_title(f"{size} of {n_layers} layers")
            axes.set_xlabel("middle layer of the window")
        grid[0].set_ylabel(label(metric, first))
        heading = title(*series.values())
        drawn.suptitle(heading)
        drawn.alt = (
            f"Panels of lines over {n_layers} layers, for windows of "
            f"{', '.join(map(str, shown))} layers: restored together, and the sum of single "
            f"layers{', for ' if any(series) else ''}{', '.join(series)}. {label(metric, first)}. "
            f"{heading}"
        )
        notes: dict[str, Artist] = {
            run: Line2D([], [], color=of_run[run], marker=marker, markersize=3.5)
            for run, marker in zip(series, cycle(MARKERS), strict=False)
            if run
        }
        notes |= {
            name: Line2D([], [], color="0.3", linestyle=dashes, linewidth=1.1)
            for name, dashes in together.items()
        }
        legend(drawn, notes)
    return drawn


def _layers_before(fx: xr.Dataset, sizes: list[int]) -> dict[int, int]:
    """How many layers of each window lie before its layer."""
    befores = str(fx.attrs.get("window_before", "")).split(", ")
    if len(befores) != len(sizes):
        return {size: size // 2 for size in sizes}
    return {size: int(before) for size, before in zip(sizes, befores, strict=True)}

"""What is left of a model's performance where it is scrubbed by one hypothesis after another."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from patchlib.errors import PatchlibError
from patchlib.patching.metrics import label
from patchlib.show.plot.effects import named
from patchlib.show.plot.style import STYLE, colours, legend, new_figure, spelt

_LINE, _AROUND = 0.2, 1.0


def recovered(results: Mapping[str, xr.Dataset] | xr.Dataset, metric: str = "logit_diff") -> Figure:
    """Draws the recovered performance of several hypotheses with 95 % intervals.

    Lines stand at 0, where nothing matters, and at 1, the model itself.

    Args:
        results: a result of `patchlib.scrub` for several hypotheses, or more than one of the same
            hypotheses, such as on other prompts, by name.
        metric: one of their metrics.

    Raises:
        PatchlibError: for other results, and for a metric that they do not hold.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> hypotheses = {"nothing": {}, "everything": {"logits": "all"}}
        >>> fx = pl.scrub(model, pl.tasks.ioi(model, n=4), hypotheses)
        >>> [label.get_text() for label in plot.recovered(fx).axes[0].get_yticklabels()]
        ['nothing', 'everything']
    """
    series = named(results)
    for fx in series.values():
        if "recovered" not in fx or "hypothesis" not in fx.dims:
            raise PatchlibError(
                "give a result of pl.scrub(model, pairs, {name: hypothesis, ...}) for hypotheses "
                "by their names"
            )
        if metric not in fx.metric.values:
            raise PatchlibError(f"metric={metric!r}: this result has {', '.join(fx.metric.values)}")
    first, of_run = next(iter(series.values())), colours(series)
    names = first.hypothesis.values.tolist()
    rows, notes = np.arange(len(names)), dict[str, Artist]()
    offsets = (np.arange(len(series)) - (len(series) - 1) / 2) * 0.6 / len(series)
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(5, _AROUND + _LINE * len(names) * max(1, 0.7 * len(series)))
        axes = drawn.subplots()
        for at in (0, 1):
            axes.axvline(at, color="0.5", linewidth=0.6, zorder=1)
        for (run, fx), offset in zip(series.items(), offsets, strict=True):
            one = fx.sel(metric=metric, hypothesis=names)
            axes.hlines(rows + offset, one.low, one.high, color=of_run[run], linewidth=1.2)
            axes.scatter(one.recovered, rows + offset, s=16, color=of_run[run], zorder=3)
            if run:
                notes[run] = Line2D([], [], color=of_run[run], marker="o", markersize=4)
        axes.set_yticks(rows, names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        what = label(metric, first.attrs).removeprefix("normalised ")
        axes.set_xlabel(f"recovered share of {what}\nmean and 95 % interval over prompts")
        said = first.attrs
        counts = dict.fromkeys(str(fx.attrs["n_prompts"]) for fx in series.values())
        where = [spelt(said["model"]), spelt(said["task"]), f"{' and '.join(counts)} prompts"]
        axes.set_title(", ".join([*where, f"{said['draws']} draws"]))
        drawn.alt = (
            f"Recovered performance, with 95 % intervals, of {', '.join(names)}"
            f"{' for ' if notes else ''}{' and '.join(notes)}. {axes.get_title()}"
        )
        if notes:
            legend(drawn, notes)
    return drawn

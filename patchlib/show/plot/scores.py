"""Scores of methods on models whose circuit is known: which is better, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from patchlib.errors import PatchlibError, names_in
from patchlib.measure.score import chance
from patchlib.show.plot.style import COLOURS, STYLE, legend, new_figure

_LINE, _AROUND = 0.19, 0.75
_TITLES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "precision": "precision at the true size",
    "needed": "taken to have all",
    "signed_auc": "AUC, most helpful first",
    "size_error": "mean error of sizes",
    "signs": "share of right signs",
}


def scores(
    table: pd.DataFrame,
    by: str | Sequence[str] = "method",
    of: str | Sequence[str] = ("auc", "average_precision"),
) -> Figure:
    """Draws scores by method or choice: of each model, and their mean and range over models.

    Of several rows of one model in a group the mean is taken. A tick says what a random order has,
    on the average over the group.

    Args:
        table: rows of `patchlib.scores`.
        by: the columns that tell groups apart, such as ``["method", "site"]``.
        of: the scores, a panel for each.

    Raises:
        PatchlibError: for a table without rows, and for columns that it does not have.

    Example:
        >>> import pandas as pd
        >>> from patchlib import plot
        >>> row = {"model": "known", "method": "EAP", "n_true": 8, "n": 460}
        >>> table = pd.DataFrame([row | {"auc": 0.9, "average_precision": 0.5}])
        >>> [axes.get_title() for axes in plot.scores(table).axes]
        ['AUC', 'average precision']
    """
    by, of = names_in("by", by), names_in("of", of)
    names = _names(table, by, ["model", *of])
    # In the order of the table, which is that of its methods.
    order = list(dict.fromkeys(names))
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(2.1 + 2.3 * len(of), _AROUND + _LINE * len(order))
        grid = drawn.subplots(1, len(of), sharey=True, squeeze=False)[0]
        for axes, score in zip(grid, of, strict=True):
            for row, name in enumerate(order):
                _draw(axes, row, table[names == name], score)
            axes.set_title(_TITLES.get(score, score))
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", color="0.92", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
        grid[0].set_yticks(range(len(order)), order)
        grid[0].set_ylim(len(order) - 0.5, -0.5)
        drawn.alt = (
            f"{', '.join(of)} of {', '.join(order)}: a dot for each of {table.model.nunique()} "
            "models, their mean and their range."
        )
        notes: dict[str, Artist] = {
            "a model": Line2D([], [], color="0.6", marker="o", markersize=3, linestyle=""),
            "mean and range": Line2D([], [], color=COLOURS[0], marker="o", markersize=4.5),
            "random order": Line2D([], [], color="black", marker="|", linestyle=""),
        }
        legend(drawn, notes)
    return drawn


def _names(table: pd.DataFrame, by: Sequence[str], more: Sequence[str]) -> pd.Series:
    """What each row's group is called."""
    if missing := [name for name in (*by, *more) if name not in table]:
        raise PatchlibError(f"no column {', '.join(missing)}: this table has {', '.join(table)}")
    if table.empty:
        raise PatchlibError("this table has no rows: select others of pl.scores()")
    return table[[*by]].astype(str).agg(lambda row: ", ".join(filter(None, row)), axis=1)


def _draw(axes: Axes, row: int, some: pd.DataFrame, score: str) -> None:
    """One group: every model, their mean and range, and what a random order has."""
    models = some.groupby("model")[score].mean()
    axes.scatter(models, [row] * len(models), s=7, color="0.6", linewidths=0, zorder=2)
    axes.hlines(row, models.min(), models.max(), color=COLOURS[0], linewidth=1.2, zorder=1)
    axes.scatter(models.mean(), row, s=20, color=COLOURS[0], zorder=3)
    counts = zip(some.n_true, some.n, strict=True)
    by_chance = [chance(*each)[score] for each in counts if score in chance(*each)]
    if by_chance:
        mean = sum(by_chance) / len(by_chance)
        axes.scatter(mean, row, s=45, marker="|", color="black", linewidths=0.9, zorder=2)


def costs(table: pd.DataFrame, score: str = "average_precision") -> Figure:
    """Draws how well each method does against how many forward passes it takes of each prompt.

    Args:
        table: rows of `patchlib.scores`.
        score: the score.

    Raises:
        PatchlibError: for a table without rows, and for a column that it does not have.

    Example:
        >>> import pandas as pd
        >>> from patchlib import plot
        >>> rows = {"model": "known", "method": ["EAP", "edge patching"], "passes": [5, 462]}
        >>> table = pd.DataFrame(rows | {"average_precision": [0.5, 0.9]})
        >>> plot.costs(table).axes[0].get_xscale()
        'symlog'
    """
    names = _names(table, ["method"], ["model", "passes", score])
    groups = table.groupby(names, sort=False)
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(5.2, 3.2)
        axes = drawn.subplots()
        for name, some in groups:
            models = some.groupby("model")[score].mean()
            passes = some.passes.mean()
            axes.vlines(passes, models.min(), models.max(), color=COLOURS[0], linewidth=1)
            axes.scatter(passes, models.mean(), s=16, color=COLOURS[0], zorder=3)
            axes.annotate(str(name), (passes, models.mean()), (4, 3), textcoords="offset points")
        # Some take none.
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(-0.2, 3 * table.passes.max())
        axes.set_xlabel("forward passes of each prompt (a backward pass counts as two)")
        axes.set_ylabel(_TITLES.get(score, score))
        axes.set_title("mean and range over models")
        axes.spines[["top", "right"]].set_visible(False)
        drawn.alt = (
            f"{_TITLES.get(score, score)} against forward passes: mean and range over "
            f"{table.model.nunique()} models, of {', '.join(dict.fromkeys(names))}."
        )
    return drawn

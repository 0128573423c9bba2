"""Circuits of edges: a drawing by layers, and how faithful circuits of growing size are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any

import matplotlib
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from patchlib.errors import PatchlibError
from patchlib.methods.edges import Edges
from patchlib.patching import metrics
from patchlib.show.plot.effects import named
from patchlib.show.plot.style import (
    COLOURS,
    MARKERS,
    NEGATIVE,
    NEITHER,
    POSITIVE,
    STYLE,
    legend,
    new_figure,
    title,
)

# Inches: a node's lane and a row.
_WIDE, _HIGH = 0.52, 0.5
# Points: the thickest arrow and the thinnest.
_THICK, _THIN = 3.5, 0.5
_LINE: Any = {"markersize": 3.5, "linewidth": 1.1}
# To which side arrows into the same head are bent.
_BOW = {"q": 0.12, "k": -0.12, "v": 0.02}


def edges(
    circuit: Edges | Iterable[object], fx: xr.Dataset | None = None, metric: str = "logit_diff"
) -> Figure:
    """Draws a circuit of edges, early layers below, each arrow as thick as the edge's effect.

    A letter at an arrow's head says whether a head's query, key or value reads.

    Args:
        circuit: the edges; up to about eighty can be told apart.
        fx: a result for each edge, whose mean effects over prompts and draws give arrows their
            width and colour: blue where the edge helps the answer, red where it works against it.
        metric: one of its metrics.

    Raises:
        PatchlibError: for a circuit without edges, and for a result that does not have these edges
            or the metric.

    Example:
        >>> from patchlib import plot
        >>> figure = plot.edges("resid0->v0.1, 0.1->q4.2, 4.2->logits, mlp2->logits")
        >>> [text.get_text() for text in figure.axes[0].texts if "." in text.get_text()]
        ['0.1', '4.2']
    """
    chosen = Edges(circuit)
    if not chosen:
        raise PatchlibError("a circuit without edges: give at least one, such as '4.6->logits'")
    effects = {str(edge): _effect(fx, metric, edge) for edge in chosen}
    most = max(map(abs, effects.values())) or 1
    pairs = [(edge.writer, _node(edge.reader)) for edge in chosen]
    places = _places(pairs)
    wide = max(x for x, _ in places.values()) - min(x for x, _ in places.values())
    high = max(y for _, y in places.values())
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(_WIDE * (wide + 2.2), _HIGH * (high + 1) + 1)
        axes = drawn.subplots()
        left = min(x for x, _ in places.values())
        axes.set(xlim=(left - 1.6, left + wide + 0.6), ylim=(-0.5, high + 0.5))
        axes.set_axis_off()
        boxes = {name: _box(axes, name, place) for name, place in places.items()}
        for edge, (writer, reader) in sorted(
            zip(chosen, pairs, strict=True), key=lambda both: abs(effects[str(both[0])])
        ):
            letter = edge.reader[0] if edge.reader != reader and "." in reader else ""
            strength = effects[str(edge)] / most if fx is not None else 0.0
            _arrow(axes, boxes[writer], boxes[reader], letter, strength)
        for layer in sorted({name for name in map(_layer, places) if name is not None}):
            heights = [y for name, (_, y) in places.items() if _layer(name) == layer]
            middle = sum({*heights}) / len({*heights})
            axes.text(left - 1.5, middle, f"layer {layer}", va="center", color="0.4", fontsize=6.5)
        if fx is not None:
            said = title(fx)
            axes.set_title(f"{said}\non arrows: {metrics.label(metric, fx.attrs)}")
            sides = (("helps the answer", POSITIVE), ("works against it", NEGATIVE))
            legend(drawn, {k: Line2D([], [], color=colour, linewidth=2) for k, colour in sides})
        drawn.alt = (
            f"A circuit of {len(chosen)} edges as a graph, early layers below, with the nodes "
            f"{', '.join(places)}. {axes.get_title()}"
        )
    return drawn


def _effect(fx: xr.Dataset | None, metric: str, edge: tuple[str, str]) -> float:
    if fx is None:
        return 0.0
    try:
        effect = fx.effect.sel(metric=metric, writer=edge[0], reader=edge[1])
        mean = float(effect.mean())
    except KeyError:
        mean = float("nan")
    if mean != mean:
        raise PatchlibError(
            f"this result has no effect of '{edge[0]}->{edge[1]}' on {metric!r}: give one for each "
            "edge, such as pl.attribute_edges gives it"
        )
    return mean


def _node(reader: str) -> str:
    """The node that a reader belongs to."""
    return re.sub("^[qkv](?=[0-9])", "", reader).replace("mlp_in", "mlp")


def _layer(name: str) -> int | None:
    """The layer of a head or an MLP."""
    found = re.fullmatch("(?:mlp)?([0-9]+)(?:[.][0-9]+)?", name)
    return int(found[1]) if found else None


def _places(pairs: list[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """Where each node stands: a row for the heads of a layer, one for its MLP, early ones below.

    Within a row nodes are in the order of the middle of what writes to them, so that few arrows
    cross.
    """
    names = {name for pair in pairs for name in pair}
    rank = {name: _rank(name) for name in names}
    rows = sorted({*rank.values()})
    places = dict[str, tuple[float, float]]()
    for height, row in enumerate(rows):
        here = sorted(name for name in names if rank[name] == row)
        before = {
            name: [places[w][0] for w, r in pairs if r == name and w in places] for name in here
        }
        here.sort(key=lambda name: sum(before[name]) / len(before[name]) if before[name] else 0.0)
        for number, name in enumerate(here):
            # Rows that begin half a lane apart hide fewer arrows behind their nodes.
            shift = 0.5 * (height % 2) if len(here) % 2 else 0.0
            places[name] = number - (len(here) - 1) / 2 + shift, float(height)
    return places


def _rank(name: str) -> tuple[float, int]:
    layer = _layer(name)
    if layer is None:
        return (-1.0, 0) if name == "resid0" else (float("inf"), 0)
    return float(layer), int(name.startswith("mlp"))


def _box(axes: Axes, name: str, place: tuple[float, float]) -> Text:
    shown = {"resid0": "embedding", "logits": "logits"}.get(name, name.replace("mlp", "MLP "))
    return axes.text(
        *place,
        shown,
        ha="center",
        va="center",
        fontsize=6.5,
        zorder=3,
        bbox={
            "boxstyle": "round,pad=0.25" if "." in name else "square,pad=0.25",
            "facecolor": "white",
            "edgecolor": "0.3",
            "linewidth": 0.6,
        },
    )


def _arrow(axes: Axes, writer: Text, reader: Text, letter: str, strength: float) -> None:
    """From one node to another, with the letter of what reads near its head."""
    colour = NEITHER if not strength else POSITIVE if strength > 0 else NEGATIVE
    (x0, y0), (x1, y1) = writer.get_position(), reader.get_position()
    bow = _BOW.get(letter, 0.05)
    axes.annotate(
        "",
        xy=(x1, y1),
        xytext=(x0, y0),
        zorder=2,
        arrowprops={
            "arrowstyle": "-|>,head_length=0.3,head_width=0.15",
            "connectionstyle": f"arc3,rad={bow}",
            "linewidth": _THIN + (_THICK - _THIN) * abs(strength),
            "color": colour,
            "alpha": 0.85,
            "patchA": writer.get_bbox_patch(),
            "patchB": reader.get_bbox_patch(),
            "shrinkA": 0,
            "shrinkB": 1,
        },
    )
    if letter:
        # Matplotlib bends an arrow into a parabola whose top is beside the middle.
        share = 1 - 0.55 / max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1)
        bent = 2 * share * (1 - share) * bow
        x = x0 + share * (x1 - x0) + bent * (y1 - y0) * _HIGH / _WIDE
        y = y0 + share * (y1 - y0) - bent * (x1 - x0) * _WIDE / _HIGH
        axes.text(
            x,
            y,
            letter,
            ha="center",
            va="center",
            fontsize=5.5,
            color=colour,
            zorder=4,
            bbox={"boxstyle": "circle,pad=0.05", "facecolor": "white", "edgecolor": "none"},
        )


def sizes(curves: Mapping[str, xr.Dataset] | xr.Dataset, metric: str = "logit_diff") -> Figure:
    """Draws how faithful circuits of growing size are, a line for each way of choosing them.

    Args:
        curves: results of `patchlib.faithfulness_curve`, named as the legend is to name them.
        metric: one of their metrics.

    Raises:
        PatchlibError: for another result, and a metric that they do not hold.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> options = {"corruption": pl.STR("S2"), "progress": False}
        >>> fx = pl.attribute_edges(model, pairs, **options)
        >>> curve = pl.faithfulness_curve(model, pairs, fx, shares=[0.01, 1], **options)
        >>> pl.plot.sizes({"EAP": curve}).axes[0].get_ylabel()
        'faithfulness: normalised logit difference'
    """
    series = named(curves)
    first = next(iter(series.values()))
    for curve in series.values():
        if "share" not in curve.dims or metric not in curve.metric.values:
            raise PatchlibError(
                f"metric={metric!r}: give results of pl.faithfulness_curve and one of their metrics"
            )
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(4.2, 3.0)
        axes = drawn.subplots()
        for height in (0, 1):
            axes.axhline(height, color="0.5", linewidth=0.6, linestyle="--" if height else "-")
        notes = {}
        looks = zip(series.items(), cycle(COLOURS), cycle(MARKERS), strict=False)
        for (name, curve), colour, marker in looks:
            one = curve.sel(metric=metric)
            x = 100 * one.share
            (notes[name],) = axes.plot(x, one.faithfulness, color=colour, marker=marker, **_LINE)
            axes.fill_between(x, one.low, one.high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("% of all edges")
        axes.set_ylabel(f"faithfulness: {metrics.label(metric, first.attrs)}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title(*series.values()))
        drawn.alt = (
            f"Faithfulness over the share of edges in a circuit"
            f"{': ' if any(series) else ''}{', '.join(series)}. {axes.get_title()}"
        )
        legend(drawn, {name: line for name, line in notes.items() if name})
    return drawn

"""A circuit as a graph: classes of heads by layer and token, and what each tells the next."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

import matplotlib
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from patchlib.errors import PatchlibError
from patchlib.heads import Heads
from patchlib.show.plot.style import NEGATIVE, POSITIVE, STYLE, legend, new_figure, title

_OUTPUT = "logits"
# Inches: a lane and a row. Boxes may be wider than a lane, since neighbours differ in their rows.
_WIDE, _HIGH = 0.92, 0.66
_HEADS_A_LINE = 18
# Points: the thickest arrow and the thinnest.
_THICK, _THIN = 5.0, 0.8


def circuit(
    classes: Mapping[str, Iterable[object] | str],
    edges: Mapping[tuple[str, str], float],
    at: Mapping[str, str] | None = None,
    about: xr.Dataset | None = None,
) -> Figure:
    """Draws classes of heads by layer, and arrows between them, as thick as their effect.

    Args:
        classes: the heads of each class, such as ``{"Name Mover": ["9.9", "10.0"]}``.
        edges: the effect from one class to another, or to ``"logits"``: blue where it helps the
            answer, red where it works against it. Classes send to later ones alone. A
            class without heads is left out, and its edges with it.
        at: at which token each class works, such as ``{"Name Mover": "END"}``, from left to right
            in the order of the sentence; one column where None.
        about: a result whose model, task, corruption and number of prompts go into the title.

    Raises:
        PatchlibError: where no class has a head, for a class without a token, and for edges of
            classes that there are not or that lead back.

    Example:
        >>> from patchlib import plot
        >>> classes = {"Induction": ["5.5", "6.9"], "S-Inhibition": ["7.3"], "Name Mover": ["9.9"]}
        >>> edges = {("Induction", "S-Inhibition"): 0.2, ("S-Inhibition", "Name Mover"): 0.5}
        >>> figure = plot.circuit(classes, edges | {("Name Mover", "logits"): 0.9})
        >>> [text.get_text() for text in figure.axes[0].texts if "9.9" in text.get_text()]
        ['Name Mover\\n9.9']
    """
    given = {name: Heads(each) for name, each in classes.items()}
    tokens = dict.fromkeys(given, "") if at is None else dict(at)
    _require_sense(given, edges, tokens)
    heads = {name: each for name, each in given.items() if each}
    edges = {ends: effect for ends, effect in edges.items() if {*ends} <= {*heads, _OUTPUT}}
    layer = {name: sum(head.layer for head in each) / len(each) for name, each in heads.items()}
    places, lanes = _places(layer, tokens)
    height = places[_OUTPUT][1]
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(_WIDE * lanes + 0.6, _HIGH * (height + 1) + 1)
        axes = drawn.subplots()
        axes.set(xlim=(-0.8, lanes - 0.2), ylim=(-0.9, height + 0.5))
        axes.set_axis_off()
        named = heads | {_OUTPUT: Heads()}
        boxes = {name: _box(axes, name, each, places[name]) for name, each in named.items()}
        most = max(map(abs, edges.values()), default=1) or 1
        for (sender, receiver), effect in edges.items():
            _arrow(axes, boxes[sender], boxes[receiver], effect, most)
        for token in dict.fromkeys(tokens.values()):
            where = [places[name][0] for name in heads if tokens[name] == token]
            middle = (min(where) + max(where)) / 2
            axes.text(middle, -0.8, token, ha="center", style="italic")
        if about is not None:
            axes.set_title(title(about))
        notes: dict[str, Artist] = {
            what: Line2D([], [], color=colour, linewidth=2)
            for what, colour in (("helps the answer", POSITIVE), ("works against it", NEGATIVE))
        }
        legend(drawn, notes)
        drawn.alt = (
            "A circuit as a graph, early layers below: "
            + "; ".join(f"{name} ({each})" for name, each in heads.items())
            + ". Arrows: "
            + "; ".join(f"{sender} to {receiver}" for sender, receiver in edges)
            + f". {axes.get_title()}"
        )
    return drawn


def _require_sense(
    heads: Mapping[str, Heads], edges: Mapping[tuple[str, str], float], at: Mapping[str, str]
) -> None:
    if not any(heads.values()):
        raise PatchlibError("a circuit has at least one head: give classes of heads")
    if lacking := [name for name in heads if name not in at]:
        raise PatchlibError(f"at= names no token of {', '.join(lacking)}: give one for each class")
    for sender, receiver in edges:
        for name in (sender, receiver):
            if name not in heads and (name, name) != (receiver, _OUTPUT):
                raise PatchlibError(
                    f"an edge of {name!r}: allowed are {', '.join(heads)} and, as receiver, "
                    f"{_OUTPUT!r}"
                )
        ends = [heads[name] for name in (sender, receiver) if name != _OUTPUT]
        if len(ends) == 2 and all(ends) and min(ends[0]).layer >= max(ends[1]).layer:
            raise PatchlibError(
                f"an edge from {sender!r} to {receiver!r}, none of whose heads comes later"
            )


def _places(
    layer: Mapping[str, float], tokens: Mapping[str, str]
) -> tuple[dict[str, tuple[float, float]], int]:
    """Where each class stands, and how many lanes there are.

    Rows are steps from layer to layer, since layers lie unevenly; classes less than a layer apart
    share one. At each token every class has a lane of its own, early classes in the middle, so that
    no arrow to the logits crosses another class.
    """
    places: dict[str, tuple[float, float]] = {}
    by_layer = sorted(layer, key=lambda name: layer[name])
    row, before = 0, layer[by_layer[0]]
    rows = {}
    for name in by_layer:
        if layer[name] - before >= 1:
            row, before = row + 1, layer[name]
        rows[name] = float(row)
    left, mine = 0, list[str]()
    for token in dict.fromkeys(tokens.values()):
        mine = [name for name in by_layer if tokens[name] == token]
        outwards = sorted(range(len(mine)), key=lambda lane: abs(lane - (len(mine) - 1) / 2))
        places |= {
            name: (float(left + lane), rows[name])
            for name, lane in zip(mine, outwards, strict=True)
        }
        left += len(mine)
    # The last token's answer.
    ends = [x for x, _ in places.values() if x >= left - len(mine)]
    places[_OUTPUT] = (sum(ends) / len(ends), row + 1.0)
    return places, left


def _box(axes: Axes, name: str, heads: Heads, place: tuple[float, float]) -> Text:
    """A class with its heads, or the output."""
    lines = textwrap.wrap(str(heads.by_layer), _HEADS_A_LINE) if heads else []
    return axes.text(
        *place,
        "\n".join([name, *lines]),
        ha="center",
        va="center",
        fontsize=7,
        zorder=3,
        bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "0.3"},
    )


def _arrow(axes: Axes, sender: Text, receiver: Text, effect: float, most: float) -> None:
    colour = POSITIVE if effect > 0 else NEGATIVE
    (x0, y0), (x1, y1) = sender.get_position(), receiver.get_position()
    axes.annotate(
        "",
        xy=(x1, y1),
        xytext=(x0, y0),
        zorder=2,
        arrowprops={
            "arrowstyle": "-|>,head_length=0.5,head_width=0.25",
            "linewidth": _THIN + (_THICK - _THIN) * abs(effect) / most,
            "color": colour,
            "patchA": sender.get_bbox_patch(),
            "patchB": receiver.get_bbox_patch(),
            "shrinkA": 1,
            "shrinkB": 1,
        },
    )
    axes.text(
        (x0 + x1) / 2,
        (y0 + y1) / 2,
        f"{effect:+.2f}".replace("-", "−"),
        ha="center",
        va="center",
        fontsize=6.5,
        color=colour,
        zorder=4,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"},
    )

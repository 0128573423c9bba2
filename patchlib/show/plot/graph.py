"""A circuit as a graph: classes of heads by layer and token, and what each tells the next."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from patchlib.errors import PatchlibError
from patchlib.heads import Heads
from patchlib.patching import metrics
from patchlib.show.plot.style import NEGATIVE, POSITIVE, STYLE, legend, new_figure, title

_OUTPUT = "logits"
# What arrows of several experiments have in common.
_SAID = {"model", "task", "n_prompts", "corruption", "site", "direction"}
# Lane and row.
_Point = tuple[float, float]
# Inches: a lane and a row. Boxes may be wider than a lane, since neighbours differ in their rows.
_WIDE, _HIGH = 1.15, 0.66
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
            class without heads is left out, and its edges and a token of its own with it.
        at: at which token each class works, such as ``{"Name Mover": "END"}``, from left to right
            in the order of the sentence; one column where None.
        about: a result whose model, task, corruption and number of prompts go into the title, and
            its metric as the arrows' where there is one alone.

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
    tokens = {name: token for name, token in tokens.items() if name in heads}
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
        written = list[_Point]()
        for (sender, receiver), effect in edges.items():
            others = [box for name, box in boxes.items() if name not in (sender, receiver)]
            bow = _bow(boxes[sender], boxes[receiver], others)
            _arrow(axes, boxes[sender], boxes[receiver], bow, effect, most)
            written.append(_room(boxes[sender], boxes[receiver], bow, [*boxes.values()], written))
            _number(axes, written[-1], effect)
        for token in dict.fromkeys(tokens.values()):
            where = [places[name][0] for name in heads if tokens[name] == token]
            middle = (min(where) + max(where)) / 2
            axes.text(middle, -0.8, token, ha="center", style="italic")
        if about is not None:
            said = title(xr.Dataset(attrs={k: about.attrs[k] for k in _SAID & {*about.attrs}}))
            measured = about.metric.values.tolist() if "metric" in about.dims else []
            if len(measured) == 1:
                said += f"\non arrows: {metrics.label(measured[0], about.attrs)}"
            axes.set_title(said)
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


def _places(layer: Mapping[str, float], tokens: Mapping[str, str]) -> tuple[dict[str, _Point], int]:
    """Where each class stands, and how many lanes there are.

    Rows are steps from layer to layer, since layers lie unevenly; classes less than a layer apart
    share one. At each token every class has a lane of its own, early classes in the middle, so that
    no arrow to the logits crosses another class.
    """
    places: dict[str, _Point] = {}
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


def _box(axes: Axes, name: str, heads: Heads, place: _Point) -> Text:
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


def _is_in(point: _Point, box: Text) -> bool:
    """Whether a point lies within a box or close to it, in lanes and rows."""
    lines = box.get_text().split("\n")
    x, y = box.get_position()
    half_wide = (0.05 * max(map(len, lines)) / 2 + 0.12) / _WIDE
    half_high = (0.13 * len(lines) / 2 + 0.1) / _HIGH
    return abs(point[0] - x) < half_wide and abs(point[1] - y) < half_high


def _on(sender: Text, receiver: Text, bow: float, share: float) -> _Point:
    """A point on an arrow, as matplotlib bends it: a parabola with its top beside the middle."""
    (x0, y0), (x1, y1) = sender.get_position(), receiver.get_position()
    beside = bow * (y1 - y0) * _HIGH / _WIDE, -bow * (x1 - x0) * _WIDE / _HIGH
    bent = 2 * share * (1 - share)
    return x0 + share * (x1 - x0) + bent * beside[0], y0 + share * (y1 - y0) + bent * beside[1]


def _bow(sender: Text, receiver: Text, others: Sequence[Text]) -> float:
    """How much an arrow is bent to get past other classes."""

    def crossed(bow: float) -> int:
        points = [_on(sender, receiver, bow, share / 20) for share in range(1, 20)]
        return sum(_is_in(point, box) for point in points for box in others)

    return min((0, 0.2, -0.2, 0.4, -0.4, 0.6, -0.6), key=crossed)


def _room(
    sender: Text, receiver: Text, bow: float, boxes: Sequence[Text], written: Sequence[_Point]
) -> _Point:
    """Where on an arrow there is room for its number, near the middle if possible."""

    def taken(point: _Point) -> int:
        near = [abs(x - point[0]) < 0.35 and abs(y - point[1]) < 0.25 for x, y in written]
        return sum(near) + sum(_is_in(point, box) for box in boxes)

    shares = (0.5, 0.45, 0.55, 0.4, 0.6, 0.35, 0.65, 0.3, 0.7)
    return min((_on(sender, receiver, bow, share) for share in shares), key=taken)


def _colour(effect: float) -> str:
    return POSITIVE if effect > 0 else NEGATIVE


def _arrow(
    axes: Axes, sender: Text, receiver: Text, bow: float, effect: float, most: float
) -> None:
    axes.annotate(
        "",
        xy=receiver.get_position(),
        xytext=sender.get_position(),
        zorder=2,
        arrowprops={
            "arrowstyle": "-|>,head_length=0.5,head_width=0.25",
            "connectionstyle": f"arc3,rad={bow}",
            "linewidth": _THIN + (_THICK - _THIN) * abs(effect) / most,
            "color": _colour(effect),
            "patchA": sender.get_bbox_patch(),
            "patchB": receiver.get_bbox_patch(),
            "shrinkA": 1,
            "shrinkB": 1,
        },
    )


def _number(axes: Axes, place: _Point, effect: float) -> None:
    axes.text(
        *place,
        f"{effect:+.2f}".replace("-", "−"),
        ha="center",
        va="center",
        fontsize=6.5,
        color=_colour(effect),
        zorder=4,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"},
    )

"""Exercises of ``22_acdc``. The notebook prints:

**1 The next to go.** Of the edges that stayed in `found`, which one is nearest to being cut, and by
how much did KL grow without it?

    answer = {"edge": ..., "change": ...}  # such as "4.3->logits"
    pl.check("22.1", answer, found=found)

**2 The rule.** Write ACDC without a model: a function of a list of edges, in the order of the
decisions, of a function `loss` that maps a set of edges to a number, and of τ. It returns the set
that is left. It is tried on gates.

    my_acdc = ...  # a function of edges, loss and tau
    pl.check("22.2", my_acdc)

**3 Another order.** Guess first: by which merged edges do the circuits in the order `"reverse"` and
`"forward"` of section 4 differ? Give the edges that only one of them has.

    answer = {"reverse": ..., "forward": ...}  # two lists of edges such as "4.3->logits"
    pl.check("22.3", answer, by_order=by_order)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from patchlib.lessons.answers import Hint, call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.methods.acdc import Pruning

_GATES: dict[str, Callable[[set[str]], float]] = {
    "an OR": lambda left: 0.0 if left & {"a", "b"} else 1.0,
    "an AND": lambda left: 0.0 if {"a", "b"} <= left else 1.0,
    "five small steps": lambda left: 0.06 * (5 - len(left & {*"abcde"})),
    "an edge that works against it": lambda left: 1.0 if "a" in left else 0.5,
}


def _rule(edges: list[str], loss: Callable[[set[str]], float], tau: float) -> set[str]:
    left = set(edges)
    for edge in edges:
        if loss(left - {edge}) - loss(left) < tau:
            left = left - {edge}
    return left


def _all_at_once(edges: list[str], loss: Callable[[set[str]], float], tau: float) -> set[str]:
    every = set(edges)
    return {edge for edge in edges if loss(every - {edge}) - loss(every) >= tau}


def _by_total(edges: list[str], loss: Callable[[set[str]], float], tau: float) -> set[str]:
    left, start = set(edges), loss(set(edges))
    for edge in edges:
        if loss(left - {edge}) - start < tau:
            left = left - {edge}
    return left


@exercise("22.1")
def next_to_go(answer: object, found: Pruning) -> str | None:
    """The smallest change among the edges that stayed."""
    edge, change = entries(answer, ["edge", "change"])
    change = number(change, "the change")
    changes = found.decisions.change.to_series()
    stayed = changes[~found.decisions.removed.values]
    if not isinstance(edge, str) or edge not in changes:
        return "the edge has to be one that was decided about, named as in the table"
    if edge not in stayed:
        return "that edge was cut: take one that stayed"
    if edge == stayed.idxmin():
        return None if close(change, stayed.min()) else "the edge is right, its change is not"
    return mistake(
        lambda wrong: edge == wrong,
        {"that is the one that KL grows most without": stayed.idxmax()},
        "another one that stayed has a smaller change",
    )


@exercise("22.2")
def the_rule(answer: object) -> str | None:
    """One edge after the other, each judged with those before it gone."""
    edges = [*"abcdef"]

    def given(gate: Callable[[set[str]], float]) -> set[str]:
        result = call(answer, list(edges), gate, 0.1, of="edges, loss and tau")
        if not isinstance(result, set | frozenset | list | tuple):
            raise Hint("your function has to return the set of edges that are left")
        return set(result)

    found = {name: given(gate) for name, gate in _GATES.items()}
    right = {name: _rule(edges, gate, 0.1) for name, gate in _GATES.items()}
    if found == right:
        return None
    wrong = next(name for name in _GATES if found[name] != right[name])
    others = {
        "each edge is judged with those gone that were cut before it": _all_at_once,
        "what counts is the growth since the last decision, not since the start": _by_total,
    }
    return mistake(
        lambda rule: found == {name: rule(edges, gate, 0.1) for name, gate in _GATES.items()},
        others,
        f"{wrong} comes out otherwise: cut where the loss grows by less than tau",
    )


@exercise("22.3")
def another_order(answer: object, by_order: Mapping[object, Pruning]) -> str | None:
    """Edges that only one of two orders keeps."""
    given = []
    for each in entries(answer, ["reverse", "forward"]):
        if not isinstance(each, list | tuple | set) or not all(isinstance(e, str) for e in each):
            raise Hint("give two lists of edges, each such as '4.3->logits'")
        given.append(set(each))
    kept = []
    for order in ("reverse", "forward"):
        decisions = by_order[order].decisions
        kept.append({*decisions.edge.values[~decisions.removed.values].tolist()})
    one, other = kept
    if given == [one - other, other - one]:
        return None
    return mistake(
        lambda wrong: given == wrong,
        {
            "you exchanged the two orders": [other - one, one - other],
            "leave out what both of them have": kept,
        },
        "compare the edges of the two circuits that stayed, as sets",
    )

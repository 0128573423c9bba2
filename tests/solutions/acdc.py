from types import SimpleNamespace

import pandas as pd

import patchlib as pl


def given(model):
    pairs = pl.tasks.ioi(model, n=2)
    options = {"corruption": pl.STR("S2"), "progress": False}
    scores = pl.attribute_edges(model, pairs, direction="noise", **options).effect
    top = abs(scores).squeeze().to_series().nlargest(150).index

    def run(order):
        return pl.acdc(model, pairs, 0.03, among=top, order=order, merged=True, **options)

    by_order = {order: run(order) for order in ("reverse", "forward")}
    return SimpleNamespace(found=by_order["reverse"], by_order=by_order)


def stayed(found):
    changes = found.decisions.change.to_series()
    return changes[~found.decisions.removed.values]


def take(changes, name):
    return {"edge": name, "change": changes[name]}


def cut(nb):
    return nb.found.decisions.change.to_series()[nb.found.decisions.removed.values]


def rule(edges, loss, tau):
    left = set(edges)
    for edge in edges:
        if loss(left - {edge}) - loss(left) < tau:
            left.remove(edge)
    return left


def at_once(edges, loss, tau):
    return {edge for edge in edges if loss(set(edges) - {edge}) - loss(set(edges)) >= tau}


def by_total(edges, loss, tau):
    left = set(edges)
    for edge in edges:
        if loss(left - {edge}) - loss(set(edges)) < tau:
            left.remove(edge)
    return left


def sets(nb):
    return [pd.Index(stayed(nb.by_order[order]).index) for order in ("reverse", "forward")]


def only(nb, swap=False):
    one, other = sets(nb)
    both = [one.difference(other).tolist(), other.difference(one).tolist()]
    return dict(zip(("forward", "reverse") if swap else ("reverse", "forward"), both, strict=True))


SOLUTIONS = {
    "22.1": (
        lambda nb: take(stayed(nb.found), stayed(nb.found).idxmin()),
        {
            "KL grows most without": lambda nb: take(stayed(nb.found), stayed(nb.found).idxmax()),
            "that edge was cut": lambda nb: take(cut(nb), cut(nb).idxmax()),
        },
    ),
    "22.2": (
        lambda nb: rule,
        {
            "judged with those gone that were cut before it": lambda nb: at_once,
            "the growth since the last decision": lambda nb: by_total,
        },
    ),
    "22.3": (
        only,
        {
            "you exchanged the two orders": lambda nb: only(nb, swap=True),
            "leave out what both of them have": lambda nb: dict(
                zip(("reverse", "forward"), map(list, sets(nb)), strict=True)
            ),
        },
    ),
}

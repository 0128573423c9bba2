"""Exercises of ``26_which_method_finds_the_circuit``. The notebook prints:

**1 Cheap and good.** Which method of edges has the largest mean average precision, over all of its
rows in the table, of those that take at most twenty passes of each prompt? Give its name and that
mean.

    answer = ...  # a pair: a name of the column "method", and a number
    pl.check("26.1", answer, table=table)

**2 The average precision.** Write it as a function of the `sizes` of effects and of `true`, which
says of each whether it is in the circuit: the mean, over the true ones, of the share of true ones
among all that are as large. Arrays of numpy; no two sizes are equal.

    my_precision = ...  # a function of sizes and true
    pl.check("26.2", my_precision)

**3 Predict, then test.** Rank the heads by their largest absolute effect under any of the three
choices of tokens. How many of the first six are in the circuit? And how many by S2 alone? Guess
first.

    answer = {"S2": ..., "any": ...}
    pl.check("26.3", answer, results=by_site, circuit=circuit)

`table` is that of `pl.scores`, and `by_site` has one result with values per prompt for each choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from patchlib.heads import Heads
from patchlib.lessons.answers import Hint, call, close, entries, mistake, number, pair
from patchlib.lessons.checks import exercise

_PASSES = 20


@exercise("26.1")
def cheap_and_good(answer: object, table: pd.DataFrame) -> str | None:
    """The best method of edges by average precision that takes few passes."""
    name, given = pair(answer, 'a method and a number, such as ("ACDC", 0.25)')
    value = number(given, "the average precision")
    edges = table[table.of == "edges"]
    means = edges.groupby("method")[["average_precision", "auc", "passes"]].mean()
    if name not in list(means.index):
        raise Hint("the first part has to be a method that scores edges, as the table names it")
    cheap = means[means.passes <= _PASSES]
    if not close(means.average_precision[name], cheap.average_precision.max(), 1e-6):
        if means.passes[name] > _PASSES:
            return "that one takes more than twenty passes"
        return "another one of those that take at most twenty passes has more"
    if close(value, means.average_precision[name]):
        return None
    best = edges[edges.method == name].average_precision.max()
    mistakes = {
        "the method is right; that is its AUC": means.auc[name],
        "the method is right; that is its best row: take the mean over all of them": best,
    }
    otherwise = "the method is right; take the mean of its column average_precision"
    return mistake(lambda one: close(value, one), mistakes, otherwise)


@exercise("26.2")
def average_precision(answer: object) -> str | None:
    """At each true one the share of true ones from the top; the mean of these shares."""
    draw = np.random.default_rng(0)
    cases = [(draw.permutation(20) + 0.5, draw.permutation(20) < n) for n in (3, 5, 8)]
    given = [
        number(call(answer, sizes.copy(), true.copy(), of="sizes and true"), "what it returns")
        for sizes, true in cases
    ]

    def of(ranked: np.ndarray, every: bool = False) -> float:
        """From whether each is true, in the order of the ranking."""
        shares = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
        return float(shares.mean() if every else shares[ranked].mean())

    falling = [true[np.argsort(-sizes)] for sizes, true in cases]

    def is_given(values: list[float]) -> bool:
        return bool(np.allclose(given, values, atol=1e-3))

    if is_given([of(ranked) for ranked in falling]):
        return None
    n = [int(ranked.sum()) for ranked in falling]
    mistakes = {
        "you begin with the smallest: the largest comes first": [of(r[::-1]) for r in falling],
        "take the mean over the true ones alone, not over all": [of(r, True) for r in falling],
        "that is the precision at the true size alone": [
            float(ranked[:k].mean()) for ranked, k in zip(falling, n, strict=True)
        ],
    }
    otherwise = "another number: at each true one, count the true ones and all from the top to it"
    return mistake(is_given, mistakes, otherwise)


@exercise("26.3")
def under_any_choice(
    answer: object, results: Mapping[str, xr.Dataset], circuit: Iterable[object]
) -> str | None:
    """How many of as many heads as the circuit has are in it, by one choice and by the largest."""
    names = ["S2", "any"]
    given = [number(each, name) for each, name in zip(entries(answer, names), names, strict=True)]
    heads = Heads(circuit)
    effects = {site: fx.effect.sel(metric="logit_diff") for site, fx in results.items()}
    means = {site: each.mean("prompt") for site, each in effects.items()}
    sizes = {"S2": abs(means["S2"]), "any": abs(xr.concat([*means.values()], "site")).max("site")}
    right = {name: _found(size, heads) for name, size in sizes.items()}
    wrong = [name for name, value in zip(names, given, strict=True) if value != right[name]]
    if not wrong:
        return None
    first = wrong[0]
    value = given[names.index(first)]
    if value > len(heads):
        return f"{first}: you take as many as the circuit has heads, so it cannot be more"
    signed = {"S2": means["S2"], "any": xr.concat([*means.values()], "site").max("site")}
    mistakes = {
        f"{first}: the size counts, so take absolute values": _found(signed[first], heads),
        f"{first}: that is how many are not in the circuit": len(heads) - right[first],
    }
    otherwise = f"{first}: another number; rank the mean effects over prompts by their size"
    return mistake(lambda one: one == value, mistakes, otherwise)


def _found(size: xr.DataArray, heads: Heads) -> int:
    ranked = size.stack(cell=["layer", "head"])
    first = ranked.cell.values[np.argsort(-ranked.values, kind="stable")][: len(heads)]
    return len(Heads(first) & heads)

"""Exercises of ``06_recommendations``. The notebook prints:

**1 What costs most?** Which single change of the table `steps` leaves least in common with the
start? Measure by the share of heads that both detect, of those that either does.

    answer = ...  # a pair: the text in the column "change", and the share
    pl.check("6.1", answer, steps=steps)

**2 The distance.** Write the Mahalanobis distance of section 1 as a function of `x`, an array of
shape [width], and `cloud`, an array of shape [prompt, width] with many more prompts than
dimensions. No shrinkage, and the covariance with 1/n, as `np.cov(..., bias=True)` has it.

    my_distance = ...  # a function of x and cloud
    pl.check("6.2", my_distance)

**3 Predict, then test.** What moves a list more: other sentences, or another metric? Compare (a)
the heads that STR at S2 detects by LD on the even prompts with those on the odd ones, and (b) the
heads by LD with those by probability, on all prompts. Give for each the number of heads that are in
one list and not in the other.

    answer = {"sentences": ..., "metric": ...}  # two numbers of heads
    pl.check("6.3", answer, sweep=by_site)

`steps` is the table of `pl.choices.Study`, and `by_site` the sweep at S2, S1+IO and ABC.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from patchlib.heads import Heads
from patchlib.lessons.answers import Hint, call, close, entries, mistake, number, pair
from patchlib.lessons.checks import exercise
from patchlib.measure.sweeps import Sweep


@exercise("6.1")
def what_costs_most(answer: object, steps: pd.DataFrame) -> str | None:
    """The change after which the share of shared heads, of all in either list, is smallest."""
    change, given = pair(answer, 'a change and a share, such as ("metric: ...", 0.75)')
    share = number(given, "the share")
    changed = steps.iloc[1:].set_index("change")
    if change not in list(changed.index):
        raise Hint("the first part has to be one of the texts in the column change, whole")
    counts = changed[["shared", "lost", "gained"]].map(_count)
    shares = counts.shared / counts.sum(axis=1).clip(lower=1)
    if not close(shares[change], shares.min(), 1e-6):
        return "another change leaves a smaller share in common"
    if close(share, shares[change]):
        return None
    of_start = counts.shared / (counts.shared + counts.lost).clip(lower=1)
    mistakes = {
        "the change is right; divide by the heads that either detects, gained ones included": (
            of_start[change]
        ),
        "the change is right; you give what is not shared": 1 - shares[change],
        "the change is right; give the share, not the number of heads": counts.shared[change],
    }
    otherwise = "the change is right; its share is shared / (shared + lost + gained)"
    return mistake(lambda value: close(share, value), mistakes, otherwise)


def _count(heads: str) -> int:
    return 0 if heads == "none" else len(heads.split(", "))


@exercise("6.2")
def mahalanobis(answer: object) -> str | None:
    """The square root of (x - mean) times the inverse covariance times (x - mean)."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(3, 3)) + 2 * np.eye(3)
    cloud = rng.normal(size=(200, 3)) @ mixed + [1.0, -2.0, 0.5]
    points = rng.normal(size=(3, 3)) * 3
    of = "x and cloud"
    given = [number(call(answer, x, cloud, of=of), "what your function returns") for x in points]
    covariance, away = np.cov(cloud.T, bias=True), points - cloud.mean(0)

    def distance(inverse: np.ndarray, away: np.ndarray = away) -> np.ndarray:
        return np.sqrt(np.abs(np.einsum("pi,ij,pj->p", away, inverse, away)))

    def is_given(values: np.ndarray) -> bool:
        return bool(np.allclose(given, values, rtol=1e-3))

    right = distance(np.linalg.inv(covariance))
    if is_given(right):
        return None
    mistakes = {
        "that is the square of the distance": right**2,
        "that is the Euclidean distance: the covariance has to come in": distance(np.eye(3)),
        "invert the covariance: a direction of much spread counts for less": distance(covariance),
        "measure from the mean of the cloud, not from zero": distance(
            np.linalg.inv(covariance), points
        ),
        "you use the variances alone: directions of a cloud go together, so invert the matrix": (
            distance(np.diag(1 / np.diag(covariance)))
        ),
        "divide the covariance by n, not by n - 1": right * np.sqrt(199 / 200),
    }
    return mistake(is_given, mistakes, "another number: sqrt((x - mean) @ inverse @ (x - mean))")


@exercise("6.3")
def what_moves_a_list(answer: object, sweep: Sweep) -> str | None:
    """Heads in one list and not in the other: halves of the prompts, and two metrics."""
    names = ["sentences", "metric"]
    given = [number(each, name) for each, name in zip(entries(answer, names), names, strict=True)]
    fx = sweep["S2"]
    even, odd = (Sweep({"S2": fx.isel(prompt=slice(first, None, 2))}) for first in (0, 1))
    lists = {
        "sentences": (even.found("S2"), odd.found("S2")),
        "metric": (sweep.found("S2"), sweep.found("S2", "prob")),
    }

    def all_are(count: Callable[[Heads, Heads], int], name: str) -> bool:
        return given[names.index(name)] == count(*lists[name])

    wrong = [name for name in names if not all_are(_apart, name)]
    if not wrong:
        return None
    first = wrong[0]
    mistakes = {
        f"{first}: that is what both lists hold; count what only one holds": (
            lambda one, other: len(one & other)
        ),
        f"{first}: count in both directions, what is only in the one and only in the other": (
            lambda one, other: len(one - other)
        ),
        f"{first}: you subtract the lengths; lists of one length can differ": (
            lambda one, other: abs(len(one) - len(other))
        ),
    }
    otherwise = f"{first}: another number; both signs count, and each list has its own threshold"
    return mistake(lambda count: all_are(count, first), mistakes, otherwise)


def _apart(one: Heads, other: Heads) -> int:
    return len(one - other) + len(other - one)

"""Exercises of ``app_h_ioi_details``. The notebook prints:

**1 By one map alone.** Which heads are detected in exactly *one* of the six maps, whatever their
sign? These are the first that you would not put into an abstract.

    answer = ...  # a list of "layer.head"
    pl.check("H.1", answer, sweep=sweep)

**2 A rule that strong heads do not move.** The median and the MAD (median of the absolute distances
from the median) hardly change when one head grows. Write a function of an array of effects that
marks those beyond median ± 2 · 1.4826 · MAD. The factor makes it the same rule as ± 2 SD for
normally distributed values. Try it on `effects["STR", "logit_diff"]`: is its list longer or
shorter, and why?

    my_rule = ...  # a function of an array, that returns an array of True and False
    pl.check("H.2", my_rule, sweep=sweep)

**3 One loud head.** Suppose that the strongest head under STR, by logit difference, had three times
its effect, and all other heads did exactly what they do. Which of the heads that are detected now
would no longer be? Predict, then compute it with NumPy.

    answer = ...  # a list of "layer.head"; [] where no head is lost
    pl.check("H.3", answer, sweep=sweep)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from patchlib.heads import Head, Heads
from patchlib.lessons.answers import Hint, call, heads, mistake
from patchlib.lessons.checks import exercise
from patchlib.measure.sweeps import Sweep

_NORMAL = 1.4826
Effects = Float[np.ndarray, "..."]


@exercise("H.1")
def by_one_map(answer: object, sweep: Sweep) -> str | None:
    """The heads that one corruption and one metric detect, and no others."""
    given = heads(answer, "the answer")

    def times(sign: str = "both", *metrics: str) -> dict[Head, int]:
        return Counter(
            head
            for run in sweep
            for metric in metrics or sweep.metrics
            for head in sweep.found(run, metric, sign)
        )

    def in_exactly(number: int, of: dict[Head, int]) -> set[Head]:
        return {head for head, count in of.items() if count == number}

    every = times()
    if given == in_exactly(1, every):
        return None
    mistakes = {
        "these are the heads of all maps; asked for are those of a single one": (
            in_exactly(len(sweep) * len(sweep.metrics), every)
        ),
        "these are the heads of any map; leave out those that a second map has, too": set(every),
        "these are the heads of one corruption; within it, several metrics may detect them": {
            head
            for head in every
            if sum(any(head in sweep.found(run, m) for m in sweep.metrics) for run in sweep) == 1
        },
        "you left out the negative side: a head counts whatever its sign": (
            in_exactly(1, times("positive"))
        ),
        "you looked at the logit difference alone: there are six maps": (
            in_exactly(1, times("both", "logit_diff"))
        ),
    }
    otherwise = "another list: count for each head in how many of the six lists it stands"
    return mistake(given.__eq__, mistakes, otherwise)


@exercise("H.2")
def robust_rule(answer: object, sweep: Sweep) -> str | None:
    """Marks effects beyond median ± 2 scaled MAD, on all maps and on numbers made up for it."""
    maps = [fx.effect.sel(metric=m).values for fx in sweep.mean.values() for m in sweep.metrics]
    # Far from zero, and with one very large value below the others.
    cases = [*maps, 5 + np.random.default_rng(0).standard_normal(99), np.r_[-50.0, range(12)]]
    given = [_marks(call(answer, case.copy(), of="an array of effects"), case) for case in cases]

    def is_given(rule: Callable[[Effects], Bool[np.ndarray, "..."]]) -> bool:
        return all(np.array_equal(one, rule(case)) for one, case in zip(given, cases, strict=True))

    def mad(values: Effects, middle: float, factor: float = _NORMAL) -> float:
        return factor * float(np.median(abs(values - middle)))

    def beyond(values: Effects) -> Bool[np.ndarray, "..."]:
        middle = np.median(values)
        return abs(values - middle) > 2 * mad(values, middle)

    if is_given(beyond):
        return None
    mistakes: dict[str, Callable[[Effects], Bool[np.ndarray, "..."]]] = {
        "that is the old rule: mean and standard deviation": (
            lambda x: abs(x - x.mean()) > 2 * x.std()
        ),
        "the factor is missing: without it the rule is stricter than it seems on normal values": (
            lambda x: abs(x - np.median(x)) > 2 * mad(x, np.median(x), 1)
        ),
        "you begin at the mean, which strong heads move: take the median": (
            lambda x: abs(x - x.mean()) > 2 * mad(x, x.mean())
        ),
        "you measure from zero: the rule says median ± so much": (
            lambda x: abs(x) > 2 * mad(x, np.median(x))
        ),
        "the lower side is missing: effects far below the median count, too": (
            lambda x: x > np.median(x) + 2 * mad(x, np.median(x))
        ),
        "you took the mean of the distances; the MAD is their median": (
            lambda x: abs(x - np.median(x)) > 2 * _NORMAL * abs(x - np.median(x)).mean()
        ),
        "the marks are turned: True is for effects beyond the bounds": lambda x: ~beyond(x),
    }
    otherwise = "other marks: take the distances from the median, their median, and twice 1.4826"
    return mistake(is_given, mistakes, otherwise)


def _marks(given: object, case: Effects) -> Bool[np.ndarray, "..."]:
    marks = np.asarray(given)
    if marks.dtype != bool or marks.shape != case.shape:
        raise Hint(
            "your function has to return one True or False for each effect, in an array of the "
            "same shape"
        )
    return marks


@exercise("H.3")
def one_loud_head(answer: object, sweep: Sweep) -> str | None:
    """The detected heads that are lost where the strongest effect is three times as large."""
    given = heads(answer, "the answer")
    effect = sweep.mean["STR"].effect.sel(metric="logit_diff").values
    strongest = np.unravel_index(abs(effect).argmax(), effect.shape)
    loud = effect.copy()
    loud[strongest] *= 3

    def beyond(values: Effects, mean: float, sd: float) -> set[Head]:
        return set(Heads(np.argwhere(abs(values - mean) > 2 * sd).tolist()))

    before = beyond(effect, effect.mean(), effect.std())
    after = beyond(loud, loud.mean(), loud.std())
    if given == before - after:
        return None
    mistakes = {
        "these are the heads that stay; asked for are those that are lost": after,
        "no head is lost only if the thresholds stay where they are; they are computed from all "
        "effects": set(),
        "all others are lost only if the threshold comes to lie above them: compute it": (
            before - set(Heads([tuple(map(int, strongest))]))
        ),
    }
    otherwise = (
        "another list: change one number of the map, and compute mean, standard deviation and "
        "both thresholds anew"
    )
    return mistake(given.__eq__, mistakes, otherwise)

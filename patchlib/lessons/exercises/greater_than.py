"""Exercises of ``app_e_greater_than``. The notebook prints:

**1 Read it off.** Which heads does GN detect by probability in *every* one of the ten draws? Use
`pl.stability` or `pl.detect`.

    answer = ...  # a list of "layer.head"
    pl.check("E.1", answer, fx=draws)

**2 A metric without the constant.** Write a logit difference between sets that does not change when
a number is added to all logits, whatever the sizes of the sets: the *mean* over r minus the mean
over r′. It is tried on a list of logits of its own, with lists of the tokens that are right and
wrong.

    my_metric = ...  # a function of the logits, the right tokens and the wrong ones
    pl.check("E.2", my_metric)

**3 Two halves.** Predict which list changes more with the prompts, that of STR or that of GN. Then
detect heads by logit difference in the first and in the second half of the prompts
(`gt[run].isel(prompt=...)`, mean over prompts, 2 SD), and give for each run the share of the heads
found in either half that both halves find.

    answer = {"STR": ..., "GN": ...}  # two numbers from 0 to 1
    pl.check("E.3", answer, sweep=gt)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from patchlib.heads import Heads
from patchlib.lessons.answers import call, close, entries, heads, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.measure.detection import detect, heads_of
from patchlib.measure.sweeps import Sweep, stability


@exercise("E.1")
def in_every_draw(answer: object, fx: xr.Dataset) -> str | None:
    """The heads that each draw detects by probability."""
    given = heads(answer, "the answer")
    share = stability(fx, "prob")
    by_logits = stability(fx, "logit_diff")
    if given == set(Heads(share.index[share == 1])):
        return None
    found = detect(fx.mean("draw", keep_attrs=True))
    positive, negative = (set(heads_of(found, "prob", sign)) for sign in ("positive", "negative"))
    mistakes = {
        "these are the heads of at least one draw": set(Heads(share.index)),
        "that is by logit difference; the question is about the probability": (
            set(Heads(by_logits.index[by_logits == 1]))
        ),
        "these are the heads that the mean over draws detects": positive | negative,
        "you left out the negative heads": set(Heads(share.index[share == 1])) & positive,
    }
    otherwise = "another list: a head counts where every draw detects it, by that draw's threshold"
    return mistake(given.__eq__, mistakes, otherwise)


@exercise("E.2")
def without_the_constant(answer: object) -> str | None:
    """The mean logit over r minus that over r'."""
    rng = np.random.default_rng(0)
    cases = [
        (rng.normal(2, 1, 12).tolist(), [1, 4, 5, 9], [0, 2]),
        (rng.normal(-3, 2, 12).tolist(), [11], [0, 3, 4, 5, 7]),
    ]
    of = "the logits, the right tokens and the wrong ones"
    given = [number(call(answer, *case, of=of), "what your function returns") for case in cases]

    def values(of_set: Callable[[np.ndarray], float]) -> list[float]:
        return [
            float(of_set(np.array(logits)[r]) - of_set(np.array(logits)[w]))
            for logits, r, w in cases
        ]

    def same(values: list[float]) -> bool:
        return all(close(one, other, 1e-4) for one, other in zip(given, values, strict=True))

    right = values(np.mean)
    if same(right):
        return None

    def probability(logits: list[float], tokens: list[int]) -> float:
        weights = np.exp(logits)
        return float(weights[tokens].sum() / weights.sum())

    mistakes = {
        "that is the sum's difference, which has the constant": values(np.sum),
        "the sign is turned: the right tokens come first": [-each for each in right],
        "that asks for the best of each set; take the means": values(np.max),
        "that is a difference of probabilities; stay with the logits": [
            probability(logits, r) - probability(logits, w) for logits, r, w in cases
        ],
        "you divide both sums by the same number; each has its own size": [
            float((np.array(logits)[r].sum() - np.array(logits)[w].sum()) / (len(r) + len(w)))
            for logits, r, w in cases
        ],
    }
    return mistake(same, mistakes, "another number: the mean logit over r minus that over r'")


@exercise("E.3")
def two_halves(answer: object, sweep: Sweep) -> str | None:
    """Of the heads found in either half of the prompts, the share that both find."""
    runs = ["STR", "GN"]
    given = list(map(number, entries(answer, runs), runs))
    n = sweep["STR"].sizes["prompt"]

    def found(run: str, metric: str, part: slice) -> Heads:
        return Sweep({run: sweep[run].isel(prompt=part)}).found(run, metric)

    def lists(metric: str, one: slice, other: slice) -> list[tuple[Heads, Heads]]:
        return [(found(run, metric, one), found(run, metric, other)) for run in runs]

    def shares(pairs: list[tuple[Heads, Heads]]) -> list[float]:
        # Two empty lists are the same list.
        return [len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs]

    def same(values: list[float]) -> bool:
        return all(close(one, other) for one, other in zip(given, values, strict=True))

    halves = slice(None, n // 2), slice(n // 2, None)
    both = lists("logit_diff", *halves)
    right = shares(both)
    if same(right):
        return None
    mistakes = {
        "the two runs are exchanged": right[::-1],
        "that is the number of heads that both find: divide by those that either finds": [
            float(len(a & b)) for a, b in both
        ],
        "you divide by the first half's heads: divide by those that either half finds": [
            len(a & b) / max(len(a), 1) for a, b in both
        ],
        "that is what differs; give the share that both halves find": [1 - each for each in right],
        "that is by probability; take the logit difference": shares(lists("prob", *halves)),
        "these halves are every other prompt; take the first and the second": (
            shares(lists("logit_diff", slice(None, None, 2), slice(1, None, 2)))
        ),
    }
    otherwise = "another share: detect in each half with that half's own mean and deviation"
    return mistake(same, mistakes, otherwise)

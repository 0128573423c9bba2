"""Exercises of ``10_directions``. The notebook prints:

**1 The strongest stand-ins.** Take only pairs of heads with positive effects alone under noising.
Which pair has the lowest interaction under noising? Read it from `both`.

    answer = ["0.0", ...]  # two heads
    pl.check("10.1", answer, both=both)

**2 A metric that makes gates.** Two heads are perfect adders: each adds x to the log odds of the
answer, which the corrupted run has at o. Measure probability instead, 1 / (1 + e^-(log odds)).
Write the interaction under denoising as a function of o and x, and look at it for o = -4 and o = 4
with x = 2.

    my_interaction = ...  # a function of o and x
    pl.check("10.2", my_interaction)

**3 All at once.** Noise the heads of section 4 with positive effects alone under noising, all
together, on `few` (`pl.patch_together` with `direction="noise"` and ABC; logit difference). Guess
first: more or less than the sum of their effects alone on `few`?

    answer = {"sum": ..., "together": ...}
    pl.check("10.3", answer, model=model, pairs=few, both=both)
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.heads import Heads
from patchlib.lessons.answers import call, close, entries, heads, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.patching.patch import patch, patch_together
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


def _alone(both: xr.Dataset, direction: str = "noise") -> dict[str, float]:
    effect = both.effect.sel(metric="logit_diff", direction=direction)
    return {name: float(effect.sel(first=name, second=name)) for name in both.first.values}


@exercise("10.1")
def stand_ins(answer: object, both: xr.Dataset) -> str | None:
    """The pair of helpful heads with the lowest interaction under noising."""
    given = heads(answer, "the pair")
    if len(given) != 2:
        return f"a pair has two different heads, and yours has {len(given)}"

    def lowest(direction: str = "noise", helpful: bool = True, sign: int = 1) -> set:
        beyond = both.interaction.sel(metric="logit_diff", direction=direction)
        names = [
            name for name, value in _alone(both, direction).items() if value > 0 or not helpful
        ]
        couples = list(combinations(names, 2))
        values = [sign * float(beyond.sel(first=a, second=b)) for a, b in couples]
        return set(Heads(couples[int(np.argmin(values))])) if couples else set()

    if given == lowest():
        return None
    mistakes = {
        "that is the highest: stand-ins have an interaction below zero": lowest(sign=-1),
        "that pair is the lowest under denoising": lowest("denoise"),
        "one of the two has a negative effect alone, which turns the sign's meaning round": (
            lowest(helpful=False)
        ),
    }
    otherwise = "another pair is lower: compare all with a positive diagonal, under noising"
    return mistake(given.__eq__, mistakes, otherwise)


@exercise("10.2")
def gates_by_metric(answer: object) -> str | None:
    """P(o + 2x) - 2 P(o + x) + P(o)."""
    cases = [(-4.0, 2.0), (4.0, 2.0), (0.0, 1.0), (-1.0, 1.0), (-6.0, 0.5)]
    given = [
        number(call(answer, o, x, of="o and x"), "what your function returns") for o, x in cases
    ]

    def p(odds: float) -> float:
        return 1 / (1 + float(np.exp(-odds)))

    def is_given(values: list[float]) -> bool:
        return all(close(one, other, 1e-4) for one, other in zip(given, values, strict=True))

    if is_given([p(o + 2 * x) - 2 * p(o + x) + p(o) for o, x in cases]):
        return None
    mistakes = {
        "effects begin at the corrupted run: you took probabilities for effects": [
            p(o + 2 * x) - 2 * p(o + x) for o, x in cases
        ],
        "you took only one of the two single effects away": [
            p(o + 2 * x) - p(o + x) for o, x in cases
        ],
        "that is the effect of both together: take each alone away": [
            p(o + 2 * x) - p(o) for o, x in cases
        ],
        "the sign is turned round: what both do beyond each alone": [
            2 * p(o + x) - p(o + 2 * x) - p(o) for o, x in cases
        ],
        "by log odds the heads add up; take the probability of each run first": [
            0.0 for _ in cases
        ],
    }
    otherwise = "three effects on the probability: of both, and twice of one, each from P at o"
    return mistake(is_given, mistakes, otherwise)


@exercise("10.3")
def all_at_once(
    answer: object, model: TransformerBridge, pairs: PromptPairs, both: xr.Dataset
) -> str | None:
    """The helpful heads noised one at a time, added up, and together."""
    names = ["sum", "together"]
    total, together = map(number, entries(answer, names), names)
    helpful = [name for name, value in _alone(both).items() if value > 0]

    def single(chosen: list[str], direction: str = "noise") -> float:
        fx = patch(
            model,
            pairs,
            corruption=STR("ABC"),
            metrics="logit_diff",
            heads=chosen,
            direction=direction,
            progress=False,
        )
        return float(fx.effect.sum())

    def joint(direction: str = "noise") -> float:
        fx = patch_together(
            model,
            pairs,
            helpful,
            corruption=STR("ABC"),
            metrics="logit_diff",
            direction=direction,
        )
        return float(fx.effect.squeeze())

    if not close(total, single(helpful)):
        mistakes = {
            "sum: these are the effects of denoising": single(helpful, "denoise"),
            "sum: leave out the heads whose effect alone is negative": single([*_alone(both)]),
            "sum: that is of the prompts of section 4; take `few`": sum(
                value for value in _alone(both).values() if value > 0
            ),
        }
        otherwise = "sum: noise each helpful head alone, under ABC, and add the effects up"
        return mistake(lambda value: close(total, value), mistakes, otherwise)
    if close(together, joint()):
        return None
    if close(together, total):
        return "together: that is the sum again; noise them in one run"
    if close(together, joint("denoise")):
        return "together: you put clean activations into the corrupted run; noise instead"
    return "together: all helpful heads in one run, under ABC, by logit difference"

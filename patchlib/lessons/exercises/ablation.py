"""Exercises of ``11_ablation``. The notebook prints:

**1 Overrated.** For which head does zeroing cost most beyond resampling, in logits, and for which
least (perhaps less than resampling)? Read both from `costs`, over all heads.

    answer = {"most": ..., "least": ...}  # a head each, such as "4.6"
    pl.check("11.1", answer, costs=costs)

**2 Three ablations of a toy.** A model is a function `m` of one activation `a`, which has the
values `values` over a few sentences. Write a function of m, values and the number of a sentence
that returns what zero, mean and resample ablation of that sentence cost: m of its own value, minus
m ablated. The mean is over all sentences, resampling over all *others*.

    my_costs = ...  # a function of m, values and number, which returns three numbers
    pl.check("11.2", my_costs)

**3 Where does the zero hurt?** Take the head that zeroing makes look most important by KL. Guess
at which of IO, S1, S2 and the last token the damage is done. Then zero it at one of them at a time,
in the first ten sentences (`pl.ablate` with `heads` and `positions`). Give the position, and the
share of the KL of zeroing everywhere that it alone reaches.

    answer = (..., ...)  # position, share
    pl.check("11.3", answer, model=model, pairs=pairs[:10], head=worst)
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from patchlib.heads import Head
from patchlib.lessons.answers import call, close, entries, mistake, number, pair, three
from patchlib.lessons.answers import head as one_head
from patchlib.lessons.checks import exercise
from patchlib.methods.ablation import ablate
from patchlib.patching.sources import Zero
from patchlib.prompts.pairs import PromptPairs


@exercise("11.1")
def overrated(answer: object, costs: pd.DataFrame) -> str | None:
    """The heads with the largest and the smallest difference of zero and resample."""
    names = ["most", "least"]
    given = [one_head(each, name) for each, name in zip(entries(answer, names), names, strict=True)]

    def ends(values: pd.Series) -> list[Head]:
        return [Head(*values.idxmax()), Head(*values.idxmin())]

    beyond = costs["zero"] - costs["resample"]
    right = ends(beyond)
    if given == right:
        return None
    if given == right[::-1]:
        return "the two are exchanged: cost is positive where the head helps"
    mistakes = {
        "you read the column of zeros alone: take what resampling costs away": ends(costs["zero"]),
        "you compare with the mean; here it is resampling": ends(costs["zero"] - costs["mean"]),
        "take the difference with its sign, not its size": ends(abs(beyond)),
    }
    wrong = [name for name, a, b in zip(names, given, right, strict=True) if a != b]
    return mistake(given.__eq__, mistakes, f"{' and '.join(wrong)}: another head differs more")


@exercise("11.2")
def costs_of_a_toy(answer: object) -> str | None:
    """m(a) - m(0), m(a) - m(mean a), m(a) - mean of m over the others."""
    models: list[Callable[[float], float]] = [
        lambda a: 2 * a + 1,
        lambda a: a**2,
        lambda a: max(0.0, a - 1),
    ]
    values = [3.0, -1.0, 0.5, 2.0]
    cases = [(m, number) for m in models for number in (0, 2)]
    given = [
        three(call(answer, m, list(values), n, of="m, values and number"), "zero, mean, resample")
        for m, n in cases
    ]

    def is_given(one: Callable[[Callable[[float], float], int], list[float]]) -> bool:
        expected = [one(m, number) for m, number in cases]
        return bool(np.allclose(given, expected, atol=1e-6))

    def costs(m: Callable[[float], float], n: int, others: bool = True) -> list[float]:
        rest = [m(each) for i, each in enumerate(values) if i != n or not others]
        return [m(values[n]) - base for base in (m(0.0), m(mean(values)), mean(rest))]

    def of_means(m: Callable[[float], float], n: int) -> list[float]:
        rest = [each for i, each in enumerate(values) if i != n]
        return [*costs(m, n)[:2], m(values[n]) - m(mean(rest))]

    if is_given(costs):
        return None
    mistakes = {
        "resample: draw from the other sentences, without its own": lambda m, n: costs(m, n, False),
        "resample: the mean of what m gives, not m of the mean: these differ where m bends": (
            of_means
        ),
        "the sign is turned round: a cost is positive where the ablation lowers m": (
            lambda m, n: [-each for each in costs(m, n)]
        ),
    }
    otherwise = "three numbers in the order zero, mean, resample, each m of its own value minus m"
    return mistake(is_given, mistakes, otherwise)


@exercise("11.3")
def where_zero_hurts(
    answer: object, model: TransformerBridge, pairs: PromptPairs, head: object
) -> str | None:
    """The position with the largest KL, and its share of that at all positions."""
    names = ["IO", "S1", "S2", "last"]
    position, of = pair(answer, 'a position and a share, such as ("IO", 0.5)')
    if position not in names:
        return "the position has to be one of 'IO', 'S1', 'S2' and 'last'"
    share = number(of, "the share")

    def damage(positions: str | list[str]) -> np.ndarray:
        fx = ablate(
            model,
            pairs,
            with_=Zero(),
            heads=[head],
            positions=positions,
            metrics="kl",
            progress=False,
        )
        layer, unit = Head.of(head)
        return fx.effect.sel(metric="kl", layer=layer, head=unit).values

    each, whole = damage(names), float(damage("all"))
    right = int(each.argmax())
    if names.index(position) != right:
        return "zeroing it at another of the four costs more: compare their KL"
    if close(share, each[right] / whole):
        return None
    mistakes = {
        "that is the KL itself: divide it by that of zeroing everywhere": each[right],
        "divide by the KL of zeroing everywhere at once, not by the sum over positions": (
            each[right] / each.sum()
        ),
    }
    otherwise = "the position is right, its share is another: by KL, over the given sentences"
    return mistake(lambda value: close(share, value), mistakes, otherwise)

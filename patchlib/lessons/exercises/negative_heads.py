"""Exercises of ``04_2_negative_heads``. The notebook prints:

**1 Out of reach.** Under STR, how far down can the effect on the probability of any head go at
most, and below which threshold (2 standard deviations) would a head count as negative? Compute
both from `sweep["STR"]`, with NumPy.

    answer = {"floor": ..., "threshold": ...}
    pl.check("4.2.1", answer, sweep=sweep)

**2 The floor in a toy.** A model knows two answers and gives the right one the probability p. A
head takes `nats` nats away from the right one's logit. Write its effect on the probability as a
function of p and nats, and look at it for p = 0.5 and p = 0.01.

    my_effect = ...  # a function of p and nats
    pl.check("4.2.2", my_effect)

**3 Predict, then test.** Take the head with the lowest effect on the logit difference under GN. In
sentences in which the corrupted run leaves the answer *more* probability, does this head's effect
on the probability lie higher or lower? Guess the sign; then compute the correlation over the
prompts of `sweep["GN"]`.

    answer = ...  # a number from -1 to 1
    pl.check("4.2.3", answer, sweep=sweep)
"""

from __future__ import annotations

import numpy as np

from patchlib.lessons.answers import call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.measure.sweeps import Sweep


@exercise("4.2.1")
def out_of_reach(answer: object, sweep: Sweep) -> str | None:
    """The floor is -P of the corrupted run, the threshold the mean minus 2 SD of the effects."""
    names = ["floor", "threshold"]
    floor, threshold = map(number, entries(answer, names), names)
    fx = sweep.mean["STR"].sel(metric="prob")
    corrupted, effect = float(fx.corrupted), fx.effect.values
    # Probabilities can be small: a hundredth of one would take many numbers for right.
    size = max(corrupted, float(effect.std())) / 50

    def same(one: float, other: float) -> bool:
        return abs(one - other) <= size

    if not same(floor, -corrupted):
        mistakes = {
            "floor: an effect that takes probability away is negative": corrupted,
            "floor: effects begin at the corrupted run, and you took the clean one": (
                -float(fx.clean)
            ),
            "floor: that is the lowest effect there is, not the lowest that there can be": (
                effect.min()
            ),
        }
        otherwise = "floor: a patched run cannot leave less probability than 0"
        return mistake(lambda value: same(floor, value), mistakes, otherwise)
    if same(threshold, effect.mean() - 2 * effect.std()):
        return None
    mistakes = {
        "threshold: that is the positive side": effect.mean() + 2 * effect.std(),
        "threshold: begin at the mean of the effects and not at zero": -2 * effect.std(),
        "threshold: take two standard deviations, not one": effect.mean() - effect.std(),
    }
    otherwise = "threshold: mean and standard deviation are those of all heads' effects"
    return mistake(lambda value: same(threshold, value), mistakes, otherwise)


@exercise("4.2.2")
def toy(answer: object) -> str | None:
    """The new probability, p e^-n / (p e^-n + 1 - p), minus the old one."""
    cases = [(0.5, 1.0), (0.5, 2.0), (0.01, 2.0), (0.9, 3.0), (0.3, 0.0)]
    given = [
        number(call(answer, p, nats, of="p and nats"), "what your function returns")
        for p, nats in cases
    ]

    def after(p: float, nats: float) -> float:
        return p * np.exp(-nats) / (p * np.exp(-nats) + 1 - p)

    def is_given(values: list[float]) -> bool:
        return all(close(one, other, 1e-5) for one, other in zip(given, values, strict=True))

    if is_given([after(p, nats) - p for p, nats in cases]):
        return None
    mistakes = {
        "probabilities have to sum to 1 again: divide by what both answers have now": [
            p * np.exp(-nats) - p for p, nats in cases
        ],
        "that is the new probability; the effect is what it differs by from p": [
            after(p, nats) for p, nats in cases
        ],
        "the sign is turned: a head that takes probability away has a negative effect": [
            p - after(p, nats) for p, nats in cases
        ],
        "that head adds nats to the right answer, and here it takes them away": [
            after(p, -nats) - p for p, nats in cases
        ],
        "nats are of logits, not of the probability: exponentiate them": [
            p - nats - p for p, nats in cases
        ],
    }
    otherwise = "another number: the odds p / (1 - p) are multiplied by exp(-nats)"
    return mistake(is_given, mistakes, otherwise)


@exercise("4.2.3")
def more_room(answer: object, sweep: Sweep) -> str | None:
    """Over prompts, the correlation of P of the corrupted run with the head's effect on it."""
    given = number(answer, "the correlation")
    if not -1 <= given <= 1:
        return "a correlation lies between -1 and 1"
    fx = sweep["GN"]
    by_head = fx.effect.mean("prompt").stack(cell=["layer", "head"])
    layer, head = by_head.cell.values[int(by_head.sel(metric="logit_diff").values.argmin())]
    effect = fx.effect.sel(layer=layer, head=head)
    # The unpatched runs may be kept once for each prompt.
    prob = {name: fx[name].sel(metric="prob").squeeze() for name in ("clean", "corrupted")}

    def correlation(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])

    right = correlation(prob["corrupted"].values, effect.sel(metric="prob").values)
    if close(given, right):
        return None
    patched = fx.patched.sel(metric="prob", layer=layer, head=head).values
    lowest = by_head.cell.values[int(by_head.sel(metric="prob").values.argmin())]
    other = fx.effect.sel(metric="prob", layer=lowest[0], head=lowest[1]).values
    mistakes = {
        "the size is right and the sign turned: the effect is patched minus corrupted": -right,
        "you took the clean run's probability: the floor is that of the corrupted run": (
            correlation(prob["clean"].values, effect.sel(metric="prob").values)
        ),
        "you took the effect on the logit difference: the question is about the probability": (
            correlation(prob["corrupted"].values, effect.sel(metric="logit_diff").values)
        ),
        "you took the patched run's probability: the effect is its difference": (
            correlation(prob["corrupted"].values, patched)
        ),
        "that is the lowest head by probability: choose it by logit difference": (
            correlation(prob["corrupted"].values, other)
        ),
    }
    otherwise = "another number: one value a prompt, P of the corrupted run and the head's effect"
    return mistake(lambda value: close(given, value), mistakes, otherwise)

"""Exercises of ``14_causal_mediation``. The notebook prints:

**1 Through and past.** Which share of the total effect, in log odds, goes through the *values* of
all heads, and which share goes past them? Compute both from `joint["v"]`, as ratios of means over
prompts.

    answer = {"through": ..., "past": ...}
    pl.check("14.1", answer, joint=joint)

**2 The effects by hand.** Write the relative effects of Vig et al. as a function of the four
outcomes Y(x, M(x)), Y(x′, M(x′)), Y(x, M(x′)) and Y(x′, M(x)), in this order. It returns the total,
the direct and the indirect effect.

    my_effects = ...  # a function of four numbers
    pl.check("14.2", my_effects)

**3 Predict, then test.** A pattern is made by queries and keys. Which of the two carries more of
the effect through the patterns of all heads? Guess; then call `mediated("q")` and `mediated("k")`,
and give the letter with the larger size of the mean indirect effect in log odds, and this effect.

    answer = ...  # a pair, such as ("k", -0.05)
    pl.check("14.3", answer, model=model, pairs=some)
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.lessons.answers import call, close, entries, mistake, number, pair, three
from patchlib.lessons.checks import exercise
from patchlib.methods.mediation import mediate
from patchlib.patching.patch import patch_together
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


def _means(fx: xr.Dataset) -> dict[str, float]:
    logs = fx.sel(metric="log_odds").mean("prompt")
    return {name: float(logs[name]) for name in ("total", "direct", "indirect", "interaction")}


@exercise("14.1")
def through_and_past(answer: object, joint: Mapping[str, xr.Dataset]) -> str | None:
    """Indirect and direct effect, each divided by the total one."""
    names = ["through", "past"]
    through, past = map(number, entries(answer, names), names)
    means = _means(joint["v"])
    right = {
        "through": means["indirect"] / means["total"],
        "past": means["direct"] / means["total"],
    }
    if close(through, right["through"]) and close(past, right["past"]):
        return None
    if close(through, right["past"]) and close(past, right["through"]):
        return "the two are exchanged: the indirect effect goes through, the direct one past"
    patterns = _means(joint["pattern"])
    wrong_through = {
        "through: that is the share through patterns; the question is about values": (
            patterns["indirect"] / patterns["total"]
        ),
        "through: that is the effect in nats: divide it by the total": means["indirect"],
        "through: the inverse of the share: the total stands below the line": (
            means["total"] / means["indirect"] if means["indirect"] else 0.0
        ),
    }
    if not close(through, right["through"]):
        otherwise = "through: another number: the mean indirect effect over the mean total one"
        return mistake(lambda value: close(through, value), wrong_through, otherwise)
    wrong_past = {
        "past: what is left of 1 holds the interaction, too: take the direct effect": (
            1 - right["through"]
        ),
        "past: that is the effect in nats: divide it by the total": means["direct"],
    }
    otherwise = "past: another number: the mean direct effect over the mean total one"
    return mistake(lambda value: close(past, value), wrong_past, otherwise)


@exercise("14.2")
def by_hand(answer: object) -> str | None:
    """Each outcome but the first over the first, less 1."""
    cases = [(0.5, 2.0, 0.8, 1.5), (3.0, 1.0, 2.0, 2.5), (1.0, 1.0, 4.0, 0.25)]
    given = []
    for case in cases:
        given.append(three(call(answer, *case, of="four outcomes"), "total, direct, indirect"))

    def is_given(effects: list[list[float]]) -> bool:
        both = zip(given, effects, strict=True)
        pairs = [two for mine, theirs in both for two in zip(mine, theirs, strict=True)]
        return all(close(one, other, 1e-5) for one, other in pairs)

    if is_given([[b / a - 1, d / a - 1, c / a - 1] for a, b, c, d in cases]):
        return None
    mistakes = {
        "direct and indirect are exchanged: the mediator alone changes in Y(x, M(x′))": [
            [b / a - 1, c / a - 1, d / a - 1] for a, b, c, d in cases
        ],
        "these are differences: the relative effects are ratios less 1": [
            [b - a, d - a, c - a] for a, b, c, d in cases
        ],
        "these are ratios: an effect of nothing has to be 0, so take 1 off": [
            [b / a, d / a, c / a] for a, b, c, d in cases
        ],
        "the direct effect begins at Y(x, M(x)), too, and not at the corrupted run": [
            [b / a - 1, d / b - 1, c / a - 1] for a, b, c, d in cases
        ],
    }
    otherwise = "another result: all three begin at Y(x, M(x)), by which they are divided"
    return mistake(is_given, mistakes, otherwise)


@exercise("14.3")
def queries_or_keys(answer: object, model: TransformerBridge, pairs: PromptPairs) -> str | None:
    """The indirect effects of all heads' queries and of all heads' keys."""
    letter, effect = pair(answer, "the letter and its effect, such as ('k', -0.05)")
    if letter not in ("q", "k"):
        return "the first of the pair has to be 'q' or 'k'"
    given = number(effect, "the effect")
    every = list(product(range(model.cfg.n_layers), range(model.cfg.n_heads)))
    found = {}
    for name in ("q", "k"):
        denoised, noised = (
            patch_together(
                model,
                pairs,
                every,
                corruption=STR("pronoun"),
                activation=name,
                metrics="log_odds",
                direction=way,
                keep_prompts=True,
            )
            for way in ("denoise", "noise")
        )
        found[name] = _means(mediate(denoised, noised))
    right = max(found, key=lambda name: abs(found[name]["indirect"]))
    if letter != right:
        return "the other letter's indirect effect is larger: compare sizes, without the sign"
    mine = found[right]
    if close(given, mine["indirect"]):
        return None
    mistakes = {
        "that is what goes past it: the indirect effect changes the mediator alone": mine["direct"],
        "the size is right and the sign turned: the effect is Y(x, M(x′)) − Y(x, M(x))": (
            -mine["indirect"]
        ),
        "that is a share: give the effect itself, in nats": mine["indirect"] / mine["total"],
    }
    otherwise = "the letter is right and the effect another number: the mean of indirect"
    return mistake(lambda value: close(given, value), mistakes, otherwise)

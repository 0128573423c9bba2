"""Exercises of ``23_causal_scrubbing``. The notebook prints:

**1 Work out a score.** `by_hand` holds the logit difference of each prompt in `scrubbed`, `model`
and `random`. What does the hypothesis of section 2 recover? Without reading `recovered`.

    answer = ...  # a number
    pl.check("23.1", answer, fx=by_hand)

**2 Who may be drawn.** Write a function of a list of prompts, a number and a feature that returns
the numbers of all prompts that may be drawn for the prompt with this number, in order.

    my_choices = ...  # a function of prompts, number and feature
    pl.check("23.2", my_choices, pairs=data)

**3 A false claim that passes.** Write a feature of a prompt, other than `odd`, that has nothing to
do with the mechanism and would pass in `half`, but not in `data`. Many prompts must share its
values, or it is not tested. Then scrub by it.

    my_feature = ...  # a function of a prompt
    pl.check("23.3", my_feature, pairs=data, half=half)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from patchlib.lessons.answers import Hint, call, close, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.prompts.pairs import PromptPairs
from patchlib.prompts.tokenizing import TokenizedPrompt


def _s_first(prompt: TokenizedPrompt) -> bool:
    return prompt.positions["S1"] < prompt.positions["IO"]


def _odd(prompt: TokenizedPrompt) -> bool:
    return prompt.clean[prompt.positions["S2"][0]] % 2 == 1


def _io(prompt: TokenizedPrompt) -> int:
    return prompt.clean[prompt.positions["IO"][0]]


@exercise("23.1")
def score_by_hand(answer: object, fx: xr.Dataset) -> str | None:
    """The share of the way from random to the model, of means over prompts and draws."""
    given = number(answer, "the score")
    each = fx.squeeze("metric").mean("draw")
    mean = each.mean("prompt")
    top, bottom = mean.scrubbed - mean.random, mean.model - mean.random
    if close(given, float(top / bottom)):
        return None
    mistakes = {
        "that is a share of the model's logit difference: the way begins at random": (
            mean.scrubbed / mean.model
        ),
        "that is a mean of ratios, and prompts that random leaves alone have none: divide means": (
            np.mean((each.scrubbed - each.random) / (each.model - each.random))
        ),
        "that is the logit difference itself": mean.scrubbed,
    }
    return mistake(
        lambda value: close(given, float(value)),
        mistakes,
        "how far is the scrubbed mean from the random one, and how far is the model's",
    )


@exercise("23.2")
def choices(answer: object, pairs: PromptPairs) -> str | None:
    """All prompts with the feature's value of the given one, and that prompt itself."""
    prompts, which = list(pairs.prompts[:40]), range(0, 40, 7)
    for feature in (_s_first, _io):
        for asked in which:
            given = call(answer, prompts, asked, feature, of="prompts, number and feature")
            try:
                given = [int(each) for each in given]
            except (TypeError, ValueError):
                raise Hint("your function has to return a list of numbers of prompts") from None
            value = feature(prompts[asked])
            right = [i for i, prompt in enumerate(prompts) if feature(prompt) == value]
            if given != right:
                mistakes: dict[str, Any] = {
                    "a prompt may be drawn for itself, too: you left it out": (
                        [i for i in right if i != asked]
                    ),
                    "that is all of them: only those with the same value of the feature": (
                        list(range(len(prompts)))
                    ),
                    "those are the ones with another value of the feature": (
                        [i for i in range(len(prompts)) if i not in right]
                    ),
                }
                otherwise = "compare the feature's value of each prompt with that of the given one"
                return mistake(given.__eq__, mistakes, otherwise)
    return None


@exercise("23.3")
def passes_in_half(answer: object, pairs: PromptPairs, half: PromptPairs) -> str | None:
    """It has to decide the order in half of the prompts, not in all of them, and not be `odd`."""

    def mixed(some: PromptPairs) -> float:
        """The share of prompts that share a value with one of the other order."""
        of_value: dict[object, set[bool]] = {}
        for prompt, value in zip(some.prompts, values(some), strict=True):
            of_value.setdefault(value, set()).add(_s_first(prompt))
        return float(np.mean([len(of_value[value]) == 2 for value in values(some)]))

    def values(some: PromptPairs) -> list[Any]:
        return [call(answer, prompt, of="a prompt") for prompt in some.prompts]

    try:
        if mixed(half) > 0.02:
            return "in `half`, prompts of both orders share its values, so that it would not pass"
    except TypeError:
        raise Hint("its values have to be numbers, texts or tuples of them") from None
    found = values(half)
    if np.mean([found.count(value) for value in found]) < 5:
        return "hardly any two prompts share its values: nothing would be resampled"
    if mixed(pairs) < 0.2:
        return "it decides the order in `data`, too: what passes there is no false claim"
    found = values(pairs)
    split = {(value, _odd(prompt)) for value, prompt in zip(found, pairs.prompts, strict=True)}
    if len(split) == len(set(found)) == 2:
        return "it splits the prompts as `odd` does: find one that splits them otherwise"
    return None

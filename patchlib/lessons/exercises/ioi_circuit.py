"""Exercises of ``03_1_ioi_circuit``. The notebook prints:

**1 Another rule.** Which heads do STR and the logit difference detect at 1.5, 2 and 3 standard
deviations? Use NumPy on `sweep.mean["STR"].effect`, not `pl.detect`.

    answer = {1.5: ..., 2: ..., 3: ...}  # lists of "layer.head"
    pl.check("3.1.1", answer, sweep=sweep)

**2 The method itself.** Turn section 2 into a function of layer and head that returns the
normalised effect on the logit difference of `some`. It is compared with `pl.patch` at three heads
that you do not know beforehand.

    my_effect = ...  # a function of layer and head
    pl.check("3.1.2", my_effect, sweep=sweep, model=model, pairs=some)

**3 Where it looks, or what it reads?** STR changed something in the strongest head of the last
token. Was it where the head looks (queries `q`, keys `k`) or what it finds there (values `v`)?
Decide from section 6 first, then restore each letter alone with `pl.patch_together`, at all
positions of `some`. Give the letter that brings most of the logit difference back, and how much.

    answer = ...  # a pair, such as ("k", 0.05)
    pl.check("3.1.3", answer, model=model, pairs=some, head="4.6")

`some` is `pairs[:50]`; the head is the strongest one at the last token that section 5 lists. Where
heads share keys and values, as in SmolLM2, these are restored for all heads of the group.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.heads import Head, Heads
from patchlib.lessons.answers import call, close, entries, heads, mistake, number, pair
from patchlib.lessons.checks import exercise
from patchlib.measure.sweeps import Sweep
from patchlib.patching.patch import patch, patch_together
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


@exercise("3.1.1")
def another_rule(answer: object, sweep: Sweep) -> str | None:
    """The heads beyond the mean ± 1.5, 2 and 3 standard deviations."""
    rules = [1.5, 2, 3]
    given = [
        heads(each, f"what is detected at {sd} SD")
        for each, sd in zip(entries(answer, rules), rules, strict=True)
    ]
    effect = sweep.mean["STR"].effect.sel(metric="logit_diff")
    if given == [_beyond(effect, sd) for sd in rules]:
        return None
    other = sweep.mean["STR"].effect.sel(metric="prob") if "prob" in sweep.metrics else effect
    mistakes = {
        "you list the heads above the mean only: the rule has a negative side": [
            {each for each in _beyond(effect, sd) if effect[each] > effect.mean()} for sd in rules
        ],
        "you measure from zero: the rule says mean ± so many standard deviations": [
            _beyond(effect, sd, center=0) for sd in rules
        ],
        "you divide by n - 1 in the standard deviation; np.std divides by n, as pl.detect does": [
            _beyond(effect, sd * np.sqrt(effect.size / (effect.size - 1))) for sd in rules
        ],
        "these are the heads by probability: choose metric='logit_diff'": [
            _beyond(other, sd) for sd in rules
        ],
    }
    wrong = [sd for sd, one in zip(rules, given, strict=True) if one != _beyond(effect, sd)]
    otherwise = (
        f"at {', '.join(map(str, wrong))} SD the list is another: mean and standard deviation are "
        "those of all heads of this one map"
    )
    return mistake(given.__eq__, mistakes, otherwise)


def _beyond(effect: xr.DataArray, sd: float, center: float | None = None) -> set[Head]:
    values = effect.values
    middle = values.mean() if center is None else center
    return set(Heads(np.argwhere(abs(values - middle) > sd * values.std()).tolist()))


@exercise("3.1.2")
def method_itself(
    answer: object, sweep: Sweep, model: TransformerBridge, pairs: PromptPairs
) -> str | None:
    """The effect of the strongest head, of the most negative one and of one in between."""
    effect = sweep.mean["STR"].effect.sel(metric="logit_diff")
    order = np.argsort(effect.values, axis=None)
    chosen = [
        Head(*divmod(int(order[at]), effect.sizes["head"])) for at in (-1, 0, order.size // 2)
    ]

    def effects(component: str, direction: str = "denoise") -> xr.Dataset:
        return patch(
            model,
            pairs,
            component,
            corruption=STR("S2"),
            metrics="logit_diff",
            heads=chosen if component == "head" else None,
            direction=direction,
            progress=False,
        ).squeeze("metric")

    fx = effects("head")
    given = [
        number(call(answer, *at, of="layer and head"), "what your function returns")
        for at in chosen
    ]

    def gives(values: xr.DataArray) -> bool:
        cells = [{str(dim): getattr(at, str(dim)) for dim in values.dims} for at in chosen]
        expected = [float(values.sel(cell)) for cell in cells]
        return all(close(one, other, 0.002) for one, other in zip(given, expected, strict=True))

    if gives(fx.effect):
        return None
    if gives(fx.patched):
        return "that is the patched run's logit difference; the effect is its share of the way"
    if gives(fx.patched - fx.corrupted):
        return "that is the step in logits; divide it by the way from corrupted to clean"
    if gives(1 - fx.effect):
        return "you give what is still missing: a patch that changes nothing has the effect 0"
    if gives(effects("attn").effect):
        return "you restore all heads of the layer: write to z[:, :, head] alone"
    if gives(effects("head", "noise").effect):
        return "you put corrupted activations into the clean run; here it is the other way round"
    return "another number at some head: run the corrupted tokens, and change z of this head alone"


@exercise("3.1.3")
def looks_or_reads(
    answer: object, model: TransformerBridge, pairs: PromptPairs, head: object
) -> str | None:
    """Which of a head's queries, keys and values brings most back, and how much."""
    letter, given = pair(answer, 'a letter and a number, such as ("k", 0.05)')
    if letter not in ("q", "k", "v"):
        return "the first part has to be one of 'q', 'k' and 'v'"
    share = number(given, "the second part")

    def effect(activation: str) -> float:
        fx = patch_together(
            model,
            pairs,
            [head],
            corruption=STR("S2"),
            activation=activation,
            metrics="logit_diff",
        )
        return float(fx.effect.squeeze())

    by_letter = {each: effect(each) for each in "qkv"}
    right = max(by_letter, key=lambda each: by_letter[each])
    if letter == right and close(share, by_letter[right]):
        return None
    if letter == right and close(share, effect("z")):
        return "the letter is right; the number is that of the head's whole output z"
    if letter == right:
        return (
            "the letter is right, its number is another: restore it at all positions of this head"
        )
    if close(share, by_letter[letter]):
        return "the number belongs to this letter, and another letter brings more back"
    if letter == "v":
        return "where the head looks matters more here than what it finds there"
    return (
        "compare the head's attention in both runs: does it look elsewhere, or find another name?"
    )

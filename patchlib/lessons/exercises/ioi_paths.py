"""Exercises of ``13_ioi_circuit_of_smollm2``. The notebook prints:

**1 How few write?** Under ABC, sum the direct effects of all heads that help (those with a positive
mean). Which share of this sum do the three strongest hold? Use NumPy on `writes["ABC"].effect`.

    answer = ...  # a number from 0 to 1
    pl.check("13.1", answer, writes=writes)

**2 A path by hand.** With MLPs frozen, the direct effect of a head needs no patched run: its change
of z times W_O is added to the last residual stream, which the final norm and the unembedding then
read. Write that as a function of layer and head for `pairs[:20]` and ABC. It returns the mean loss
of logit difference as a share of the mean way, from clean to ABC.

    my_direct = ...  # a function of layer and head
    pl.check("13.2", my_direct, model=model, pairs=pairs[:20])

**3 Predict, then test.** Which head of the circuit would you take out to make its logit difference
*larger*? Predict from section 1; then name the one that raises F(C) most when it is removed alone.

    answer = ...  # a head, such as "4.6"
    pl.check("13.3", answer, needed=needed)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.lessons.answers import call, close, head, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.measure.sweeps import Sweep
from patchlib.methods.paths import path_patch
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


@exercise("13.1")
def few_writers(answer: object, writes: Sweep) -> str | None:
    """The three largest mean effects over the sum of all positive ones."""
    given = number(answer, "the share")
    effect = writes["ABC"].effect.sel(metric="logit_diff")
    mean = np.sort(effect.mean("prompt").values.ravel())
    helps = mean[mean > 0]
    if close(given, helps[-3:].sum() / helps.sum()):
        return None
    single = effect.values
    swapped = np.sort(writes["S2"].effect.sel(metric="logit_diff").mean("prompt").values.ravel())
    mistakes = {
        "leave out what works against the answer: the sum is over positive means": (
            helps[-3:].sum() / mean.sum()
        ),
        "that sum takes the size of all effects, also of those against the answer": (
            helps[-3:].sum() / abs(mean).sum()
        ),
        "average over prompts first: a head helps where its mean is positive": (
            helps[-3:].sum() / np.maximum(single, 0).sum() * single.shape[-1]
        ),
        "that is the strongest alone": helps[-1] / helps.sum(),
        "those are the effects with S2 swapped; the question is about ABC": (
            swapped[-3:].sum() / swapped[swapped > 0].sum()
        ),
    }
    otherwise = "another number: three largest means over the sum of all positive means"
    return mistake(lambda value: close(given, value), mistakes, otherwise)


@exercise("13.2")
def direct_effect_by_hand(
    answer: object, model: TransformerBridge, pairs: PromptPairs
) -> str | None:
    """As `path_patch` gives it with MLPs frozen, for three heads."""
    options: dict[str, Any] = {"direction": "noise", "metrics": "logit_diff", "progress": False}

    def direct(mlps: str) -> xr.DataArray:
        fx = path_patch(model, pairs, "head", "logits", corruption=STR("ABC"), mlps=mlps, **options)
        return fx.effect.squeeze("metric")

    frozen = direct("freeze")
    order = np.argsort(-abs(frozen.values), axis=None)[[0, 1, 5]]
    heads = [divmod(int(cell), frozen.sizes["head"]) for cell in order]
    given = [
        number(call(answer, *head, of="layer and head"), "what your function returns")
        for head in heads
    ]

    def at(effects: xr.DataArray) -> list[float]:
        return [float(effects.sel(layer=layer, head=head)) for layer, head in heads]

    def is_given(values: list[float]) -> bool:
        return all(close(one, other, 1e-3) for one, other in zip(given, values, strict=True))

    if is_given(at(frozen)):
        return None
    mistakes = {
        "the sign is turned: a loss of logit difference is positive": at(-frozen),
        "that lets MLPs answer; with frozen ones the stream changes by z times W_O alone": at(
            direct("recompute")
        ),
    }
    otherwise = "another number: add (z of ABC - z clean) W_O to the last residual stream, at END"
    return mistake(is_given, mistakes, otherwise)


@exercise("13.3")
def better_without(answer: object, needed: xr.Dataset) -> str | None:
    """The node whose removal from the whole circuit changes F(C) most upwards."""
    given = str(head(answer, "the head"))
    change = needed.change.sel(without="nothing").to_series()
    if given not in change.index:
        return "that head is not in the circuit"
    if given == change.idxmax():
        return None
    mistakes = {
        "without that head the circuit loses most: it is the one that helps most": change.idxmin(),
        "that is the smallest change in size; ask for the largest upwards": abs(change).idxmin(),
        "that one gains most beside the rest of its class; remove it alone": (
            needed.change.sel(without="its class").to_series().idxmax()
        ),
    }
    otherwise = "another head: the largest positive change with nothing else removed"
    return mistake(lambda name: given == name, mistakes, otherwise)

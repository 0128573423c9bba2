"""Exercises of ``00_start_here``. The notebook prints:

**1 Read a map.** Which head brings most of the logit difference back, and what share of the way
from the corrupted run to the clean one? Read both from `fx`, the result of `pl.patch`.

    answer = ...  # a pair: a head and a number, such as ("1.2", 0.05)
    pl.check("0.1", answer, fx=fx)

**2 The formula.** Write the effect as a function of three logit differences, those of the clean,
the corrupted and the patched run. What are 0 and 1 to mean?

    my_effect = ...  # a function of clean, corrupted and patched
    pl.check("0.2", my_effect)

**3 Predict, then test.** Restore the *residual stream* in place of a head, before one layer and at
one token. Before layer 0, what must come back if you restore it at S2 alone? And at the last token
alone? Write your two guesses down. Then test them with `component="resid"` and
`positions=["S2", "last"]`, and find the first layer before which the last token brings back more
than S2 does; if there is none, say how many layers there are.

    few = pairs[:20]
    answer = {"S2": ..., "last": ..., "layer": ...}  # two effects before layer 0, and a layer
    pl.check("0.3", answer, model=model, pairs=few)
"""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.heads import Head
from patchlib.lessons.answers import call, close, entries, head, mistake, number, pair
from patchlib.lessons.checks import exercise
from patchlib.patching.patch import patch
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


@exercise("0.1")
def strongest_head(answer: object, fx: xr.Dataset) -> str | None:
    """The head with the largest effect by logit difference, and the effect."""
    named, given = pair(answer, 'a head and a number, such as ("1.2", 0.05)')
    which, share = head(named, "the first part"), number(given, "the second part")
    by_metric = {str(name): _largest(fx, str(name)) for name in fx.metric.values}
    right, effect = by_metric["logit_diff"]
    if which == right:
        if close(share, effect):
            return None
        if close(share, 100 * effect, 0.02):
            return "the head is right; its share is in per cent: 1 stands for all of the way"
        if close(share, float(fx.patched.sel(metric="logit_diff", layer=right[0], head=right[1]))):
            return "the head is right; the number is the patched run's logit difference itself"
        return "the head is right, its share is another: read fx.effect at this layer and head"
    if which == right[::-1]:
        return "a head is written layer first: you have exchanged layer and head"
    if which in [found for found, _ in by_metric.values()]:
        return "that head is the strongest by another metric: choose metric='logit_diff'"
    return "another head has a larger effect by logit difference"


def _largest(fx: xr.Dataset, metric: str) -> tuple[Head, float]:
    effect = fx.effect.sel(metric=metric)
    at = {dim: int(place) for dim, place in effect.argmax(["layer", "head"]).items()}
    cell = effect.isel(at)
    return Head(int(cell["layer"]), int(cell["head"])), float(cell)


@exercise("0.2")
def normalised_effect(answer: object) -> str | None:
    """The effect of Section 2.1: (patched - corrupted) / (clean - corrupted)."""
    mistakes = {
        "you give how much is missing, not how much is restored: the corrupted run has to be 0": (
            lambda clean, corrupted, patched: (clean - patched) / (clean - corrupted)
        ),
        "that is the step in logits; divide it by the whole way, so that the clean run is 1": (
            lambda clean, corrupted, patched: patched - corrupted
        ),
        "the way does not begin at zero: a patch that changes nothing must give 0": (
            lambda clean, corrupted, patched: patched / clean
        ),
        "you divide by the clean run alone: the way is from the corrupted run to the clean one": (
            lambda clean, corrupted, patched: (patched - corrupted) / clean
        ),
        "the sign is turned: an effect that goes towards the clean run is positive": (
            lambda clean, corrupted, patched: (corrupted - patched) / (clean - corrupted)
        ),
    }
    runs = [(4.0, -3.0, 1.0), (2.5, 0.5, 0.5), (3.0, -1.0, -2.0), (-1.0, 2.0, 1.5)]
    of = "clean, corrupted and patched"
    given = [number(call(answer, *run, of=of), "what your function returns") for run in runs]

    def gives(formula: Callable[[float, float, float], float]) -> bool:
        return all(close(one, formula(*run), 1e-6) for one, run in zip(given, runs, strict=True))

    if gives(lambda clean, corrupted, patched: (patched - corrupted) / (clean - corrupted)):
        return None
    otherwise = "try it: where patched equals corrupted it must give 0, where it equals clean 1"
    return mistake(gives, mistakes, otherwise)


@exercise("0.3")
def where_information_is(
    answer: object, model: TransformerBridge, pairs: PromptPairs
) -> str | None:
    """The residual stream at S2 and at the last token: before layer 0, and where they cross."""
    names = ["S2", "last", "layer"]
    at_s2, at_last, layer = map(number, entries(answer, names), names)
    fx = patch(
        model,
        pairs,
        "resid",
        corruption=STR("S2"),
        metrics="logit_diff",
        positions=["S2", "last"],
        progress=False,
    )
    s2, last = (fx.effect.sel(metric="logit_diff", position=name).values for name in names[:2])
    if not close(at_s2, s2[0]):
        return "S2: before layer 0 the two sentences differ in nothing but what stands at S2"
    if not close(at_last, last[0]):
        return "last: before layer 0 the last token knows nothing yet of the tokens before it"
    crossed = [at for at in range(len(s2)) if last[at] > s2[at]] or [len(s2)]
    if layer == crossed[0]:
        return None
    if layer in crossed:
        return "layer: there the last token has more, and so it has already before an earlier layer"
    return "layer: compare the two effects before each layer; there S2 still has as much or more"

"""Exercises of ``05_sliding_window``. The notebook prints:

**1 Where are the peaks?** By probability under GN and for windows of w, at which middle layer does
sliding peak, and at which adding? The first layer that counts is w // 2 plus a twelfth of the
layers, rounded down, at least 1.

    answer = {"sliding": ..., "adding": ...}  # layers
    pl.check("5.1", answer, sweep=sweep, w=w)

**2 Adding by hand.** Write a function of a list of single-layer effects and an odd window that
returns the list of sums. Windows are centred on their layer, and cut at the first and the last one.

    my_sums = ...  # a function of effects and window
    pl.check("5.2", my_sums)

**3 Predict, then test.** The widest window of all holds *every* MLP. Under STR, by logit
difference, will it bring back more or less than the sum of all single layers? Guess. Then restore
all at once (`window` as wide as the model, `before=0`, `layers=[0]`) at the last subject token of
`some`, and divide by the sum of the single effects of `some`.

    some = pairs[:30]
    answer = ...  # a ratio
    pl.check("5.3", answer, model=model, pairs=some)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.lessons.answers import Hint, call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.measure.effects import sum_windows
from patchlib.measure.sweeps import Sweep
from patchlib.patching.patch import patch
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


@exercise("5.1")
def where_peaks_are(answer: object, sweep: Sweep, w: int) -> str | None:
    """The middle layer of the highest window, and of the highest sum."""
    names = ["sliding", "adding"]
    given = [number(each, f"the layer of {name}") for each, name in
             zip(entries(answer, names), names, strict=True)]  # fmt: skip
    n_layers = sweep["GN"].sizes["layer"]
    first = w // 2 + max(1, n_layers // 12)

    def curves(run: str = "GN", metric: str = "prob") -> list[np.ndarray]:
        effect = sweep.mean[run].effect.sel(metric=metric)
        added = sum_windows(effect.sel(window=1, drop=True), w, w // 2)
        return [effect.sel(window=w).values, added.values]

    def tops(curves: list[np.ndarray], first: int = first) -> list[int]:
        return [first + int(curve[first:].argmax()) for curve in curves]

    right = tops(curves())
    if given == right:
        return None
    mistakes = {
        "you took the highest of all layers: leave out those before the middle": tops(curves(), 0),
        "you count from the first middle layer: add its number": [at - first for at in right],
        "layers count from zero": [at + 1 for at in right],
        "sliding and adding have changed places": right[::-1],
        "that is so under STR": tops(curves("STR")),
        "that is so by logit difference": tops(curves(metric="logit_diff")),
    }
    otherwise = "another layer for one of them: take means over prompts, and pl.sum_windows to add"
    return mistake(given.__eq__, mistakes, otherwise)


@exercise("5.2")
def adding_by_hand(answer: object) -> str | None:
    """Sums over centred windows that are cut at both ends."""
    cases = [
        ([1.0, 2.0, 4.0, 8.0, 16.0], 3),
        ([3.0, 0.0, 0.5, -1.0, 2.0, 7.0, 1.0], 5),
        ([2.0, 5.0, 1.0], 1),
    ]
    given = []
    for effects, window in cases:
        sums = call(answer, list(effects), window, of="effects and window")
        if not hasattr(sums, "__len__") or isinstance(sums, str | dict):
            raise Hint("your function has to return a list of sums, one for each layer")
        if len(sums) != len(effects):
            return (
                "one sum for each layer: at the first and the last one the window is cut, and "
                "does not fall away"
            )
        given.append([number(each, "each sum") for each in sums])

    def gives(rule: Callable[[np.ndarray, int, int], float]) -> bool:
        expected = [
            [rule(np.array(effects), layer, window) for layer in range(len(effects))]
            for effects, window in cases
        ]
        return all(
            np.allclose(one, other, atol=1e-6) for one, other in zip(given, expected, strict=True)
        )

    def cut(effects: np.ndarray, layer: int, window: int) -> np.ndarray:
        return effects[max(0, layer - window // 2) : layer + window // 2 + 1]

    if gives(lambda effects, layer, window: cut(effects, layer, window).sum()):
        return None
    mistakes: dict[str, Callable[[np.ndarray, int, int], float]] = {
        "these are means: adding means the sum": lambda effects, layer, window: cut(
            effects, layer, window
        ).mean(),
        "you divide by the window: adding means the sum": lambda effects, layer, window: (
            cut(effects, layer, window).sum() / window
        ),
        "your window begins at its layer: centre it": lambda effects, layer, window: effects[
            layer : layer + window
        ].sum(),
        "your window ends at its layer: centre it": lambda effects, layer, window: effects[
            max(0, layer - window + 1) : layer + 1
        ].sum(),
        "your windows go round, from the last layer on to the first: cut them": (
            lambda effects, layer, window: np.roll(effects, window // 2 - layer)[:window].sum()
        ),
        "the last layer of each window is missing: a slice ends before its end": (
            lambda effects, layer, window: effects[
                max(0, layer - window // 2) : layer + window // 2
            ].sum()
        ),
        "at the first layers a negative beginning of a slice counts from the end": (
            lambda effects, layer, window: effects[
                layer - window // 2 : layer + window // 2 + 1
            ].sum()
        ),
    }
    otherwise = (
        "another sum for some layer: try effects of 1, 2, 4, 8, 16 and a window of 3 by hand"
    )
    return mistake(gives, mistakes, otherwise)


@exercise("5.3")
def all_at_once(answer: object, model: TransformerBridge, pairs: PromptPairs) -> str | None:
    """The effect of all MLPs in one run, over the sum of their own effects."""
    given = number(answer, "the ratio")

    def effects(layers: list[int] | None, window: int, before: int, at: str) -> xr.DataArray:
        fx = patch(
            model,
            pairs,
            "mlp",
            corruption=STR("subject"),
            metrics=["logit_diff", "prob"],
            layers=layers,
            window=window,
            before=before,
            positions=at,
            progress=False,
        )
        return fx.effect

    n_layers = model.cfg.n_layers

    def sides(at: str = "last_subject") -> tuple[xr.DataArray, xr.DataArray]:
        together = effects([0], n_layers, 0, at).squeeze("layer", drop=True)
        return together, effects(None, 1, 0, at).sum("layer")

    together, added = sides()
    ratio = together / added
    right = float(ratio.sel(metric="logit_diff"))
    if close(given, right):
        return None
    mistakes = {
        "upside down: the window stands above the bar": 1 / right,
        "that is the ratio by probability": float(ratio.sel(metric="prob")),
        "that is what all MLPs bring back together: divide it by the sum of single effects": float(
            together.sel(metric="logit_diff")
        ),
        "that is the difference of the two: divide": float(
            (together - added).sel(metric="logit_diff")
        ),
    }
    otherwise = (
        "another number: with before=0 the window at layer 0 holds all layers, and both sides are "
        "of the same prompts at the subject's last token"
    )
    return mistake(lambda value: close(given, value), mistakes, otherwise)

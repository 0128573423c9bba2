"""Exercises of ``03_1_factual_recall``. The notebook prints:

**1 The share of the way.** Under GN and under STR the way from the corrupted to the clean
probability has different lengths. How much of it does the middle peak of w go? Compute both shares
by probability, at the layers that `peaks` names, from `clean`, `corrupted` and `patched` of
`sweep.sel(window=w).mean`.

    answer = {"STR": ..., "GN": ...}  # numbers
    pl.check("3.1f.1", answer, sweep=sweep.sel(window=w))

**2 A window by hand.** Turn section 2 into a function of a layer and an odd number of layers that
restores all MLPs from layer - size // 2 to layer + size // 2, cut at the first and the last layer,
in one run, and returns the effect on LD of the sentence `one`. Take care: each hook has to read its
own layer.

    my_window = ...  # a function of layer and size
    pl.check("3.1f.2", my_window, model=model, pair=one)

**3 Predict, then test.** Is the last token of the subject special, or would its first do? Guess;
then restore windows of w at `"first_subject"` under STR, and divide their middle peak (`pl.peaks`)
by that at `"last_subject"`, by logit difference.

    answer = ...  # a number
    pl.check("3.1f.3", answer, model=model, pairs=pairs, w=w)
"""

from __future__ import annotations

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.lessons.answers import call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.measure.curves import peaks
from patchlib.measure.sweeps import Sweep
from patchlib.measure.sweeps import sweep as swept
from patchlib.patching.patch import patch
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs

_RUNS = ["STR", "GN"]


@exercise("3.1f.1")
def share_of_the_way(answer: object, sweep: Sweep) -> str | None:
    """(P_pt - P_*) / (P_cl - P_*) at the middle peak, for each corruption."""
    given = [
        number(each, f"the share under {run}")
        for each, run in zip(entries(answer, _RUNS), _RUNS, strict=True)
    ]
    top = peaks(sweep).layer.droplevel("window")
    runs: dict[str, list[float]] = {"clean": [], "corrupted": [], "patched": []}
    for run in _RUNS:
        at = sweep.mean[run].sel(metric="prob", layer=top[run, "prob"])
        for name, values in runs.items():
            values.append(float(at[name]))
    found = list(zip(*runs.values(), strict=True))

    def gives(values: list[float]) -> bool:
        return all(close(one, other) for one, other in zip(given, values, strict=True))

    shares = [(patched - dirty) / (clean - dirty) for clean, dirty, patched in found]
    if gives(shares):
        return None
    mistakes = {
        "these are the effects themselves: divide each by its way, clean minus corrupted": [
            patched - dirty for _, dirty, patched in found
        ],
        "divide by the way, and not by the clean probability": [
            (patched - dirty) / clean for clean, dirty, patched in found
        ],
        "the way begins at the corrupted run: take its probability off above the bar, too": [
            patched / (clean - dirty) for clean, dirty, patched in found
        ],
        "you give what is still missing at the peak": [1 - share for share in shares],
        "STR and GN have changed places": shares[::-1],
    }
    otherwise = "another number for one of them: use means over prompts at the layer of its peak"
    return mistake(gives, mistakes, otherwise)


@exercise("3.1f.2")
def window_by_hand(answer: object, model: TransformerBridge, pair: PromptPairs) -> str | None:
    """The effect of windows in the middle, at both ends, and of a single layer."""
    n_layers = model.cfg.n_layers
    chosen = [(n_layers // 2, 3), (0, 3), (n_layers - 1, 3), (1, 1)]
    given = [
        number(call(answer, *at, of="layer and size"), "what your function returns")
        for at in chosen
    ]

    def cells(before: int = 1, at: str = "last_subject") -> xr.Dataset:
        fx = patch(
            model,
            pair,
            "mlp",
            corruption=STR("subject"),
            metrics="logit_diff",
            window=[1, 3],
            before=[0, before],
            positions=at,
            progress=False,
        ).squeeze("metric")
        return xr.concat([fx.sel(layer=layer, window=size) for layer, size in chosen], "cell")

    def gives(values: xr.DataArray) -> bool:
        return all(close(one, float(other), 2e-3) for one, other in zip(given, values, strict=True))

    fx = cells()
    if gives(fx.effect):
        return None
    mistakes = {
        "that is the patched run's logit difference; the effect is its share of the way": (
            fx.patched
        ),
        "that is the step in logits; divide it by the way from corrupted to clean": (
            fx.patched - fx.corrupted
        ),
        "your window begins at its layer: it has to be centred on it": cells(before=0).effect,
        "your window ends at its layer: it has to be centred on it": cells(before=2).effect,
        "you restore all tokens: write to the one at place alone": cells(at="all").effect,
        "you restore the prompt's final token: the place is that of the subject's": (
            cells(at="last").effect
        ),
    }
    otherwise = (
        "another number for some window: give each hook its own layer's clean output, by "
        "hook.name or by a default argument, since a name in a loop is read when the hook runs"
    )
    return mistake(gives, mistakes, otherwise)


@exercise("3.1f.3")
def first_token(answer: object, model: TransformerBridge, pairs: PromptPairs, w: int) -> str | None:
    """The middle peak at the first subject token, over that at the last one."""
    given = number(answer, "the ratio")
    both = swept(
        model,
        pairs,
        {"STR": STR("subject")},
        "mlp",
        metrics=["prob", "logit_diff"],
        window=[w],
        before=[w // 2],
        positions=["first_subject", "last_subject"],
        progress=False,
    )
    first, last = (
        peaks(both.sel(position=at)).peak["STR"].droplevel("window")
        for at in both["STR"].position.values
    )
    ratios = first / last
    right = float(ratios["logit_diff"])
    if close(given, right):
        return None
    highest = both.mean["STR"].effect.sel(metric="logit_diff", window=w).max("layer").values
    mistakes = {
        "upside down: the first token stands above the bar": 1 / right,
        "that is the ratio by probability": float(ratios["prob"]),
        "you took the highest of all layers: leave out those before the middle": (
            highest[0] / highest[1]
        ),
        "that is the peak at the first token: divide it by that at the last one": float(
            first["logit_diff"]
        ),
    }
    otherwise = "another number: all prompts, STR on the subject, windows of w layers"
    return mistake(lambda value: close(given, value), mistakes, otherwise)

"""Exercises of ``app_g_factual_recall_details``. The notebook prints:

**1 Two to five times.** The paper says that GN's middle peak is two to five times STR's, whatever
window and metric. In which of *this run's* combinations is it not? Read `peaks`.

    answer = [(..., ...)]  # pairs of metric and window, such as ("prob", 3); [] for none
    pl.check("G.1", answer, peaks=peaks)

**2 The buckets by hand.** Write a function of the number of tokens of a prompt and of the first and
the last index of its subject that returns a dict from bucket to list of indices, for all six of
`S["positions"]`; empty where there is none.

    my_buckets = ...  # a function of n_tokens, first and last
    pl.check("G.2", my_buckets, pairs=pairs)

**3 Predict, then test.** At the last token of the prompt, which brings more back under STR: one
attention layer or one MLP? And early or late? Guess; then patch `"attn"` and `"mlp"` of the layers
in `some_layers` at `"last"`, for the prompts `some`, by logit difference, and give the component
and the layer of the largest effect.

    some, some_layers = pairs[:16], range(0, model.cfg.n_layers, 3)
    answer = (..., ...)  # such as ("mlp", 3)
    pl.check("G.3", answer, model=model, pairs=some, layers=some_layers)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.lessons.answers import Hint, call, mistake, number, pair
from patchlib.lessons.checks import exercise
from patchlib.patching.patch import patch
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs

_BUCKETS = ["first_subject", "middle_subject", "last_subject", "next", "further", "last"]


@exercise("G.1")
def two_to_five(answer: object, peaks: pd.DataFrame) -> str | None:
    """The metrics and windows for which GN's peak is not two to five times STR's."""
    form = 'a metric and a window, such as ("prob", 3)'
    if not isinstance(answer, list | tuple | set) or answer == ():
        raise Hint(f"the answer has to be a list of pairs, each {form}")
    factor = (peaks.peak["GN"] / peaks.peak["STR"]).dropna()
    given = {(str(metric), number(window, "the window")) for metric, window in
             (pair(each, form) for each in answer)}  # fmt: skip
    if not given <= set(factor.index):
        return "there is a combination in it that this run does not have"

    def among(chosen: pd.Series) -> set[Any]:
        return set(factor.index[chosen])

    right = among(~factor.between(2, 5))
    if given == right:
        return None
    mistakes = {
        "these are the combinations that do fit": among(factor.between(2, 5)),
        "below two is outside as well": among(factor > 5),
        "above five is outside as well": among(factor < 2),
        "you divided STR by GN": among(~(1 / factor).between(2, 5)),
    }
    otherwise = (
        "one is in it that does not belong there"
        if given > right
        else "one is missing: divide GN's peaks by STR's, for every metric and window"
    )
    return mistake(given.__eq__, mistakes, otherwise)


@exercise("G.2")
def buckets_by_hand(answer: object, pairs: PromptPairs) -> str | None:
    """The six buckets of prompts of several lengths."""
    hints = {
        "middle_subject": "the middle lies between the first and the last token of the subject, "
        "and holds neither",
        "next": "next is the one token after the subject, and none where that is the prompt's last",
        "further": "further begins two tokens after the subject and ends before the last token, "
        "which has a bucket of its own",
        "last": "the last token has the index n_tokens - 1",
    }
    for prompt in pairs.prompts:
        subject = prompt.positions["subject"]
        whole = call(
            answer, len(prompt.clean), subject[0], subject[-1], of="n_tokens, first and last"
        )
        if not isinstance(whole, Mapping) or set(whole) != set(_BUCKETS):
            raise Hint("your function has to return a dict with the six names of S['positions']")
        for name in _BUCKETS:
            if not isinstance(whole[name], Iterable):
                raise Hint("each bucket has to be a list of indices, empty where there is none")
            if {number(each, "each index") for each in whole[name]} != {*prompt.positions[name]}:
                return hints.get(name, "one of the two ends of the subject is another token")
    return None


@exercise("G.3")
def attention_or_mlp(
    answer: object, model: TransformerBridge, pairs: PromptPairs, layers: Iterable[int]
) -> str | None:
    """The component and the layer of the largest effect at the last token."""
    component, layer = pair(answer, 'a component and a layer, such as ("mlp", 3)')
    if component not in ("attn", "mlp"):
        raise Hint("the first part has to name one of the two components that were patched")
    at = number(layer, "the layer")

    def effects(component: str, positions: str) -> xr.DataArray:
        fx = patch(
            model,
            pairs,
            component,
            corruption=STR("subject"),
            metrics=["logit_diff", "prob"],
            layers=layers,
            positions=positions,
            progress=False,
        )
        return fx.effect

    by_name = {name: effects(name, "last").sel(metric="logit_diff") for name in ("attn", "mlp")}
    best = max(by_name, key=lambda name: float(by_name[name].max()))
    tops = {name: int(each.idxmax()) for name, each in by_name.items()}
    if at not in by_name[best].layer.values:
        return "this layer is not among those that were patched"
    if component == best:
        return None if at == tops[best] else "the component is right, its strongest layer another"
    if at == tops[component]:
        return "that is the strongest layer of its kind, and the other kind brings more back"
    return "compare the two maxima first, and then ask for the layer"

"""Exercises of ``03_2_out_of_distribution``. The notebook prints:

**1 The mirror.** How far is each run's attention from the *mirror image* of the clean row, in which
IO and S1 have changed places? Measure half the sum of the absolute differences in the table
`attention`, with pandas.

    answer = {"STR": ..., "GN": ...}
    pl.check("3.2.1", answer, attention=attention)

**2 Attention by hand.** Write a function of one head's attention pattern (prompt, query, key) and
the name of a position. It returns how much the last token attends to that position, as a mean over
prompts. `pairs.positions[name]` holds one place for each prompt.

    my_attention = ...  # a function of pattern and name
    pl.check("3.2.2", my_attention, model=model, pairs=pairs, head=heads[0])

**3 What steers them?** Restore the Name Movers' *own* queries, keys or values with
`pl.patch_together(model, few, heads, corruption=..., activation=...)`. One letter carries what S2
says to these heads. Guess which, and whether restoring it helps as much under noise. Then test:
give the letter that brings most of the logit difference back under STR, and what it brings back
under each corruption.

    answer = {"letter": ..., "STR": ..., "GN": ...}
    pl.check("3.2.3", answer, model=model, pairs=few, heads=heads)

`attention` has the rows clean, STR and GN and the columns IO, S1, S2 and others; `heads` are the
Name Movers; `pairs` are 50 prompts and `few` the first 20 of them; corruptions are at S2, with one
draw of the noise.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from patchlib.heads import Head
from patchlib.lessons.answers import call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.measure.heads import attention_patterns
from patchlib.patching.patch import patch_together
from patchlib.prompts.corruption import GN, STR
from patchlib.prompts.pairs import PromptPairs

CORRUPTIONS = {"STR": STR("S2"), "GN": GN("S2")}


@exercise("3.2.1")
def mirror(answer: object, attention: pd.DataFrame) -> str | None:
    """Half the sum of absolute differences to the clean row with IO and S1 exchanged."""
    runs = list(CORRUPTIONS)
    given = list(map(number, entries(answer, runs), runs))
    columns = ["IO", "S1", "S2", "others"]
    clean, image = (
        attention.loc["clean", order].to_numpy(float)
        for order in (columns, ["S1", "IO", "S2", "others"])
    )
    rows = [attention.loc[run, columns].to_numpy(float) for run in runs]

    def is_given(distances: list[float]) -> bool:
        return all(close(one, other) for one, other in zip(given, distances, strict=True))

    if is_given([abs(row - image).sum() / 2 for row in rows]):
        return None
    mistakes = {
        "that is the distance from the clean row itself: exchange IO and S1 first": [
            abs(row - clean).sum() / 2 for row in rows
        ],
        "take half of the sum: what one position gains another loses": [
            abs(row - image).sum() for row in rows
        ],
        "sum absolute values: differences of attention cancel": [0.0, 0.0],
        "sum over all four columns, the others too": [
            abs(row - image)[:2].sum() / 2 for row in rows
        ],
    }
    return mistake(is_given, mistakes, "another number: compare the four columns with the image")


@exercise("3.2.2")
def attention_by_hand(
    answer: object, model: TransformerBridge, pairs: PromptPairs, head: object
) -> str | None:
    """The last row of the pattern at each prompt's own position, averaged over prompts."""
    pattern = attention_patterns(model, pairs, [head])[0]
    names = ["IO", "S1", "S2"]
    of = "pattern and name"
    given = [number(call(answer, pattern, name, of=of), "what it returns") for name in names]
    rows = np.arange(len(pairs))
    places = [pairs.positions[name].numpy() for name in names]

    def is_given(values: list[float]) -> bool:
        return all(close(one, float(other), 1e-4) for one, other in zip(given, values, strict=True))

    weights = pattern.numpy()
    if is_given([weights[rows, -1, at].mean() for at in places]):
        return None
    mistakes = {
        "query comes before key: the last token is the query": [
            weights[rows, at, -1].mean() for at in places
        ],
        "each prompt has a place of its own: index prompts and places together": [
            weights[:, -1, at].mean() for at in places
        ],
        "you use the first prompt's place in all prompts": [
            weights[:, -1, at[0]].mean() for at in places
        ],
        "you average over all queries: only the last token's row is asked": [
            weights[rows, :, at].mean() for at in places
        ],
        "you sum over prompts: take their mean": [weights[rows, -1, at].sum() for at in places],
        "that is the first prompt alone: take the mean": [weights[0, -1, at[0]] for at in places],
    }
    return mistake(is_given, mistakes, "another number: take pattern[prompt, -1, place]")


@exercise("3.2.3")
def what_steers_them(
    answer: object, model: TransformerBridge, pairs: PromptPairs, heads: Iterable[object]
) -> str | None:
    """The letter that brings most back under STR, and what it does under both corruptions."""
    names = ["letter", *CORRUPTIONS]
    letter, *given = entries(answer, names)
    if letter not in ("q", "k", "v"):
        return "letter has to be one of 'q', 'k' and 'v'"
    under = dict(zip(CORRUPTIONS, map(number, given, names[1:]), strict=True))
    chosen = list(map(Head.of, heads))

    def effect(activation: str, run: str) -> float:
        fx = patch_together(
            model,
            pairs,
            chosen,
            corruption=CORRUPTIONS[run],
            activation=activation,
            metrics="logit_diff",
        )
        return float(fx.effect.squeeze())

    by_letter = {each: effect(each, "STR") for each in "qkv"}
    right = max(by_letter, key=lambda each: by_letter[each])
    if letter != right and close(under["STR"], by_letter[letter]):
        return "the number under STR belongs to this letter, and another letter brings more back"
    if letter != right:
        return "another letter brings more back: what of these heads depends on the token at S2?"
    expected = {run: effect(letter, run) for run in CORRUPTIONS}
    wrong = [run for run in CORRUPTIONS if not close(under[run], expected[run])]
    if not wrong:
        return None
    if close(under["STR"], expected["GN"]) and close(under["GN"], expected["STR"]):
        return "you have exchanged STR and GN"
    if wrong == ["GN"] and close(under["GN"], under["STR"]):
        return "GN: give the corruption anew, this is the number under STR"
    if all(close(under[run], sum(_alone(model, pairs, chosen, letter, run))) for run in wrong):
        return "restore all of the heads in one run: effects of single heads do not add up"
    return f"{' and '.join(wrong)}: another number; restore all of these heads, at all positions"


def _alone(
    model: TransformerBridge, pairs: PromptPairs, heads: list[Head], letter: str, run: str
) -> list[float]:
    parts = [
        patch_together(model, pairs, [head], corruption=CORRUPTIONS[run], activation=letter)
        for head in heads
    ]
    return [float(fx.effect.sel(metric="logit_diff")) for fx in parts]

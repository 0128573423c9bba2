"""Exercises of ``21_edges_and_eap``. The notebook prints:

**1 Read the table.** Of all edges of `mini` for which EAP has the wrong sign, which has the largest
effect when it is patched? Give the edge.

    answer = ...  # an edge such as "0.1->q4.2"
    pl.check("21.1", answer, exact=exact, eap=eap)

**2 How many edges?** Write a function of the numbers of layers and of heads in a layer that returns
the number of edges of a model like GPT-2, in which the MLP reads the heads of its own layer. GPT-2
small, 12 and 12, has 32,491.

    my_count = ...  # a function of layers and heads
    pl.check("21.2", my_count)

**3 By size or by sign?** Take 332 edges of `mini` (5 %) by EAP-IG: once the largest in size, once
the most helpful. Guess first which circuit is more faithful. Then measure both with
`pl.edge_faithfulness`.

    answer = {"size": ..., "sign": ...}  # two faithfulnesses
    pl.check("21.3", answer, model=mini, pairs=ours, ig=ig)
"""

from __future__ import annotations

import pandas as pd
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.lessons.answers import Hint, call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.methods.edge_circuits import edge_faithfulness
from patchlib.methods.edges import Edges
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


def _effects(fx: xr.Dataset) -> pd.Series:
    effect = fx.effect.squeeze("metric").to_series().dropna()
    return effect.set_axis(["->".join(edge) for edge in effect.index])


@exercise("21.1")
def wrong_sign(answer: object, exact: xr.Dataset, eap: xr.Dataset) -> str | None:
    """The edge with the largest effect among those of the wrong sign."""
    try:
        (given,) = map(str, Edges([answer]))
    except (PatchlibError, TypeError):
        raise Hint("the answer has to be one edge, such as '0.1->q4.2' or 'mlp3->logits'") from None
    patched, estimated = _effects(exact), _effects(eap)
    if given not in patched:
        return f"{given} is no edge of this model"
    wrong = patched * estimated < 0
    if abs(patched[given]) >= abs(patched[wrong]).max() - 1e-4 and wrong[given]:
        return None
    mistakes = {
        "that edge has the right sign": given if not wrong[given] else None,
        "you took the largest estimate: it is the patched effect that is to be large": (
            abs(estimated[wrong]).idxmax()
        ),
    }
    otherwise = "another edge of the wrong sign has a larger effect when it is patched"
    return mistake(lambda each: each == given, mistakes, otherwise)


@exercise("21.2")
def count_edges(answer: object) -> str | None:
    """Readers times the writers before them."""

    def count(layers: int, heads: int, readers: int = 3, own: bool = True, embed: int = 1) -> int:
        before = [embed + layer * (heads + 1) for layer in range(layers + 1)]
        within = sum((readers * heads + 1) * each + own * heads for each in before[:-1])
        return within + before[-1]

    sizes = ((1, 1), (3, 4), (12, 12))
    given = [number(call(answer, *size, of="layers and heads"), "the count") for size in sizes]

    def is_given(numbers: list[int]) -> bool:
        return given == numbers

    if is_given([count(*size) for size in sizes]):
        return None
    mistakes = {
        "a head reads three times, with its query, its key and its value": [
            count(*size, readers=1) for size in sizes
        ],
        "the MLP reads the heads of its own layer, too": [
            count(*size, own=False) for size in sizes
        ],
        "the embedding writes, too": [count(*size, embed=0) for size in sizes],
        "the logits read, too": [count(*size) - 1 - size[0] * (size[1] + 1) for size in sizes],
    }
    otherwise = "add up over all readers how many writers come before each"
    return mistake(is_given, mistakes, otherwise)


@exercise("21.3")
def size_or_sign(
    answer: object, model: TransformerBridge, pairs: PromptPairs, ig: xr.Dataset
) -> str | None:
    """Faithfulness of 332 edges, by absolute and by signed effect."""
    names = ["size", "sign"]
    given = list(map(number, entries(answer, names), names))
    effect = _effects(ig)
    chosen = {
        "size": effect.abs().nlargest(332).index,
        "sign": effect.nlargest(332).index,
        "least": effect.nsmallest(332).index,
    }
    every = Edges.of(model)
    circuits = {name: Edges(each) for name, each in chosen.items()}
    circuits |= {f"without {name}": every - circuits[name] for name in names}
    fx = edge_faithfulness(model, pairs, circuits, corruption=STR("S2"), progress=False)
    right = dict(zip(circuits, fx.faithfulness.values[0], strict=True))
    if all(close(one, right[name]) for one, name in zip(given, names, strict=True)):
        return None

    def is_given(pair: tuple[str, str]) -> bool:
        return all(close(one, right[name]) for one, name in zip(given, pair, strict=True))

    mistakes = {
        "you have them the wrong way round": ("sign", "size"),
        "you cut these edges, and kept all others": ("without size", "without sign"),
        "sign: you took the most harmful ones": ("size", "least"),
    }
    otherwise = "size: pl.Edges(pl.rank_edges(model, ig)[:332]); sign: sort the effects themselves"
    return mistake(is_given, mistakes, otherwise)

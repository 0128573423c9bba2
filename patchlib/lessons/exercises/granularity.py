"""Exercises of ``12_granularity``. The notebook prints:

**1 Read the table.** For each of the five heads of section 4: which of `q`, `k` and `v`, restored
alone, changes most (in absolute value)? On `one`, as in the section.

    answer = {"20.0": ...}  # a letter for each of the five heads
    pl.check("12.1", answer, model=model, pairs=one, heads=strongest)

**2 Pattern times value.** Write a function of a head's pattern (query, key) and of the values that
it reads (key, d_head) that returns its z (query, d_head). It is tried on a head of the model.

    my_z = ...  # a function of pattern and values
    pl.check("12.2", my_z, model=model, pairs=one)

**3 Do effects of neurons add up?** Take the ten strongest neurons of section 6. Guess first: is the
effect of all ten together the sum of their effects alone? Then give both.

    answer = {"sum": ..., "together": ...}
    pl.check("12.3", answer, model=model, pairs=one, neurons=neurons)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.heads import Heads
from patchlib.lessons.answers import Hint, call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.patching.patch import patch_together
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


def _effect(
    model: TransformerBridge,
    pairs: PromptPairs,
    parts: Iterable[object],
    activation: str = "z",
    positions: str = "all",
) -> float:
    fx = patch_together(
        model,
        pairs,
        parts,
        corruption=STR("S2"),
        activation=activation,
        metrics="logit_diff",
        positions=positions,
    )
    return float(fx.effect.squeeze())


@exercise("12.1")
def which_letter(
    answer: object, model: TransformerBridge, pairs: PromptPairs, heads: Iterable[object]
) -> str | None:
    """The letter with the largest absolute effect, for each head."""
    names = [str(head) for head in Heads(heads)]
    if isinstance(answer, Mapping):
        answer = {str(head): letter for head, letter in answer.items()}
    given = entries(answer, names)
    if not all(letter in ("q", "k", "v") for letter in given):
        return "each answer has to be one of 'q', 'k' and 'v'"
    effects = [
        {letter: _effect(model, pairs, [name], letter) for letter in "qkv"} for name in names
    ]
    # Where two are as strong, either is right.
    right = [
        abs(each[letter]) > max(map(abs, each.values())) - 0.005
        for each, letter in zip(effects, given, strict=True)
    ]
    if all(right):
        return None
    if given == [max(each, key=lambda letter: each[letter]) for each in effects]:
        return "you took the highest: an effect below zero is a change, too"
    wrong = [name for name, ok in zip(names, right, strict=True) if not ok]
    return f"of {', '.join(wrong)} another letter changes more: compare the three columns"


@exercise("12.2")
def pattern_times_value(answer: object, model: TransformerBridge, pairs: PromptPairs) -> str | None:
    """z is the pattern times the values, as a product of matrices."""
    layer = int(model.cfg.n_layers) // 2
    names = {name: get_act_name(name, layer) for name in ("pattern", "v", "z")}
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean_tokens[:1], names_filter=[*names.values()])
    pattern, values, z = (cache[name][0] for name in names.values())
    head = pattern.shape[0] - 1
    pattern, z = pattern[head], z[:, head]
    values = values[:, values.shape[1] - 1]
    given = call(answer, pattern.clone(), values.clone(), of="pattern and values")
    try:
        given = torch.as_tensor(given).to(z.dtype)
    except (TypeError, ValueError, RuntimeError):
        raise Hint("your function has to return a matrix of numbers") from None

    def is_given(expected: torch.Tensor) -> bool:
        return given.shape == expected.shape and torch.allclose(given, expected, atol=1e-4)

    if is_given(z):
        return None
    mistakes = {
        "the pattern's rows are the queries: you added over them": pattern.T @ values,
        "that is the last query's z alone: give one row for each query": z[-1],
        "that is z with its sides exchanged: queries are its rows": z.T,
    }
    otherwise = (
        f"z has {z.shape[0]} rows and {z.shape[1]} columns, and yours has the shape "
        f"{tuple(given.shape)}"
        if given.shape != z.shape
        else "each query takes from every key as much of its value as the pattern says"
    )
    return mistake(is_given, mistakes, otherwise)


@exercise("12.3")
def sum_of_neurons(
    answer: object, model: TransformerBridge, pairs: PromptPairs, neurons: xr.Dataset
) -> str | None:
    """The ten largest effects, added up, and those of the ten neurons restored together."""
    names = ["sum", "together"]
    alone, together = map(number, entries(answer, names), names)
    effect = neurons.effect.sel(metric="logit_diff").squeeze("layer").values
    layer, order = int(neurons.layer[0]), np.argsort(-abs(effect), kind="stable")

    def joint(chosen: np.ndarray, positions: str = "last") -> float:
        parts = [f"neuron{layer}.{unit}" for unit in chosen]
        return _effect(model, pairs, parts, positions=positions)

    ten = order[:10]
    if not close(alone, effect[ten].sum()):
        mistakes = {
            "sum: strong are those with large absolute effects, below zero as well": (
                np.sort(effect)[-10:].sum()
            ),
            "sum: you added absolute values": abs(effect[ten]).sum(),
            "sum: you took all neurons": effect.sum(),
        }
        otherwise = "sum: it is of the ten largest, in absolute value, at the last token"
        return mistake(lambda value: close(alone, value), mistakes, otherwise)
    if close(together, joint(ten)):
        return None
    if close(together, alone):
        return "together: that is the sum again; restore the ten in one run"
    if close(together, joint(ten, "all")):
        return "together: restore them at the last token only, as alone"
    return "together: give pl.patch_together the ten as 'neuron', layer, point and number"

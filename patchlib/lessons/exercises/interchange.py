"""Exercises of ``24_interchange_and_das``. The notebook prints:

**1 Read the figure.** Before which layer (of those in the figure) does the last token come nearest
to each causal model, by KL?

    answer = {"slot": ..., "name": ...}  # two layers
    pl.check("24.1", answer, held=held)

**2 Exchange a subspace.** Write a function of the base activations and the source's (both prompt ×
width) and a basis (width × rank, columns of length 1 at right angles) that returns the activations
to go on with.

    my_exchange = ...  # a function of here, there and basis
    pl.check("24.2", my_exchange)

**3 A third guess.** In the last layers the last token may hold the answer itself. Write this causal
model, with the one variable `"answer"`. Guess its interchange accuracy at the last token before the
last layer, where the source is quite another sentence, `some[[*range(1, len(some)), 0]]`. Then
measure it with `pl.interchange`.

    copied = ...  # a function of words and **held
    answer = {"model": copied, "accuracy": ...}
    pl.check("24.3", answer, model=model, pairs=some)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.interchange import SubspaceInterchange, random_basis

from patchlib.lessons.answers import Hint, call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.methods.interchange import interchange
from patchlib.prompts.pairs import PromptPairs


@exercise("24.1")
def nearest_layers(answer: object, held: Mapping[str, xr.Dataset]) -> str | None:
    """Where KL is lowest at the last token."""
    names = ["slot", "name"]
    given = entries(answer, names)
    for name, value in zip(names, given, strict=True):
        layer = number(value, name)
        kl = held[name].effect.sel(metric="causal_kl")
        last = kl.sel(position="last")
        if layer not in last.layer:
            return f"{name}: the figure has no such layer"
        if last.sel(layer=layer) <= last.min() + 0.01:
            continue
        mistakes = {
            f"{name}: KL is low where a place comes near; you took the highest": last.idxmax(),
            f"{name}: that is the lowest at S2": kl.sel(position="S2").idxmin(),
        }
        otherwise = f"{name}: there is a layer with a lower KL at the last token"
        return mistake(partial(close, layer), mistakes, otherwise)
    return None


@exercise("24.2")
def subspace(answer: object) -> str | None:
    """h + (h_source - h) B Bᵀ."""
    generator = torch.Generator().manual_seed(0)
    here, there = torch.randn(2, 5, 16, generator=generator)
    basis = random_basis(16, 3, seed=0)
    given = call(answer, here.clone(), there.clone(), basis.clone(), of="here, there and basis")
    try:
        given = torch.as_tensor(given).float()
    except (TypeError, ValueError, RuntimeError):
        raise Hint("your function has to return a matrix of numbers") from None

    def is_given(expected: torch.Tensor) -> bool:
        return given.shape == expected.shape and torch.allclose(given, expected, atol=1e-5)

    if is_given(SubspaceInterchange(basis)(here, there)):
        return None
    mistakes = {
        "that is what changes: add it to the base activations": (there - here) @ basis @ basis.T,
        "those are coordinates in the subspace: turn them back with the transposed basis": (
            (there - here) @ basis
        ),
        "you lost what the base holds outside of the subspace": there @ basis @ basis.T,
        "you kept the base inside of the subspace and exchanged the rest": SubspaceInterchange(
            basis
        )(there, here),
    }
    otherwise = (
        f"it has to return {tuple(here.shape)}, and yours has the shape {tuple(given.shape)}"
        if given.shape != here.shape
        else "inside of the subspace the source's part, outside of it the base's"
    )
    return mistake(is_given, mistakes, otherwise)


@exercise("24.3")
def the_answer_itself(answer: object, model: TransformerBridge, pairs: PromptPairs) -> str | None:
    """A causal model with the one variable "answer", and its accuracy before the last layer."""
    causal, guess = entries(answer, ["model", "accuracy"])
    accuracy = number(guess, "accuracy")
    words = {"S1": "John", "IO": "Mary", "S2": "John"}
    given, held = (call(function, dict(words), of="words") for function in (causal, _hold(causal)))
    if not isinstance(given, Mapping) or given.get("answer") != "Mary":
        return "model: of John, Mary, John it has to return a dict with the answer Mary"
    if not isinstance(held, Mapping) or held.get("answer") != "Anna":
        return "model: where the answer is held, it has to return that one"
    n = len(pairs)
    fx = interchange(
        model,
        pairs,
        causal,
        "answer",
        f"resid{int(model.cfg.n_layers) - 1}",
        positions="last",
        source=pairs[[*range(1, n), 0]],
        progress=False,
    ).sel(metric="accuracy")
    if close(accuracy, float(fx.effect)):
        return None
    if close(accuracy, float(fx.base)):
        return "accuracy: that is base, without any exchange"
    return "accuracy: pl.interchange gives another one; exchange resid of the last layer at 'last'"


def _hold(causal: Any) -> Any:
    return (lambda words: causal(words, answer="Anna")) if callable(causal) else causal

from dataclasses import dataclass
from types import SimpleNamespace

import torch

import patchlib as pl


@dataclass(frozen=True)
class Swap(pl.Corruption):
    def tokens(self, pairs):
        tokens, rows = pairs.clean_tokens.clone(), torch.arange(len(pairs))
        io, s = pairs.positions["IO"], pairs.positions["S1"]
        tokens[rows, io], tokens[rows, s] = tokens[rows, s], tokens[rows, io]
        return tokens


def slots(words, **held):
    first, second, third, *_ = words.values()
    slot = held.get("slot", 1 if third == first else 2)
    return {"slot": slot, "answer": second if slot == 1 else first}


def by_name(words, **held):
    first, second, third, *_ = words.values()
    name = held.get("name", third)
    return {"name": name, "answer": second if name == first else first}


def copied(words, **held):
    first, second, third, *_ = words.values()
    return {"answer": held.get("answer", second if third == first else first)}


def given(model):
    pairs = pl.tasks.ioi(model, n=6)
    options = {"source": Swap("IO+S1"), "positions": ["S2", "last"], "progress": False}
    models = {"slot": slots, "name": by_name}
    held = {v: pl.interchange(model, pairs, h, v, **options) for v, h in models.items()}
    return SimpleNamespace(model=model, pairs=pairs, held=held)


def layers(nb, least=True, position="last"):
    kl = {v: fx.effect.sel(metric="causal_kl", position=position) for v, fx in nb.held.items()}
    return {v: int(each.idxmin() if least else each.idxmax()) for v, each in kl.items()}


def accuracy(nb, of="effect"):
    fx = pl.interchange(
        nb.model,
        nb.pairs,
        copied,
        "answer",
        f"resid{nb.model.cfg.n_layers - 1}",
        positions="last",
        source=nb.pairs[[*range(1, len(nb.pairs)), 0]],
        progress=False,
    )
    return {"model": copied, "accuracy": fx[of].sel(metric="accuracy").item()}


SOLUTIONS = {
    "24.1": (
        layers,
        {
            "you took the highest": lambda nb: layers(nb, least=False),
            "has no such layer": lambda nb: {"slot": 99, "name": 99},
        },
    ),
    "24.2": (
        lambda nb: lambda here, there, basis: here + (there - here) @ basis @ basis.T,
        {
            "add it to the base": lambda nb: lambda h, s, B: (s - h) @ B @ B.T,
            "with the transposed basis": lambda nb: lambda h, s, B: (s - h) @ B,
        },
    ),
    "24.3": (
        accuracy,
        {
            "where the answer is held": lambda nb: {"model": slots, "accuracy": 1.0},
            "without any exchange": lambda nb: accuracy(nb, "base"),
        },
    ),
}

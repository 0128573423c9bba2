from types import SimpleNamespace

import numpy as np

import patchlib as pl


def given(model):
    pairs = pl.tasks.ioi(model, n=4)[3:4]
    options = {"corruption": pl.STR("S2"), "metrics": "logit_diff", "progress": False}
    neurons = pl.patch(model, pairs, "neuron", layers=[4], positions="last", **options)
    return SimpleNamespace(
        model=model, pairs=pairs, heads=pl.Heads("5.0, 4.6, 3.7"), neurons=neurons
    )


def restore(nb, parts, **more):
    fx = pl.patch_together(
        nb.model, nb.pairs, parts, corruption=pl.STR("S2"), metrics="logit_diff", **more
    )
    return fx.effect.item()


def letters(nb, choose=lambda effects: max(effects, key=lambda letter: abs(effects[letter]))):
    return {
        str(head): choose({a: restore(nb, [head], activation=a) for a in "qkv"})
        for head in nb.heads
    }


def ten(nb):
    effect = nb.neurons.effect.values.ravel()
    return effect, np.argsort(-abs(effect), kind="stable")[:10]


def together(nb, positions="last"):
    layer = nb.neurons.layer.item()
    return restore(nb, [f"neuron{layer}.{unit}" for unit in ten(nb)[1]], positions=positions)


def total(nb, of=lambda effect: effect):
    effect, chosen = ten(nb)
    return of(effect[chosen]).sum()


SOLUTIONS = {
    "12.1": (
        letters,
        {
            "another letter changes more": lambda nb: letters(nb, lambda effects: "k"),
            "each answer has to be one": lambda nb: dict.fromkeys(nb.heads, "z"),
        },
    ),
    "12.2": (
        lambda nb: lambda pattern, values: pattern @ values,
        {
            "rows are the queries": lambda nb: lambda pattern, values: pattern.T @ values,
            "the last query's z alone": lambda nb: lambda pattern, values: pattern[-1] @ values,
        },
    ),
    "12.3": (
        lambda nb: {"sum": total(nb), "together": together(nb)},
        {
            "you added absolute values": lambda nb: {
                "sum": total(nb, np.abs),
                "together": together(nb),
            },
            "that is the sum again": lambda nb: {"sum": total(nb), "together": total(nb)},
        },
    ),
}

from types import SimpleNamespace

import numpy as np

import patchlib as pl

# Windows of five of eight layers: the highest one of all holds layer 0.
W = 5


def given(model):
    pairs = pl.tasks.factual_recall(model, n=10)
    sweep = pl.sweep(
        model,
        pairs,
        {"STR": pl.STR("subject"), "GN": pl.GN("subject")},
        "mlp",
        positions="last_subject",
        window=[1, W],
        progress=False,
    )
    return SimpleNamespace(model=model, pairs=pairs, sweep=sweep, w=W)


def middle(nb):
    n_layers = nb.sweep.mean["GN"].sizes["layer"]
    return nb.w // 2 + max(1, n_layers // 12)


def layers(nb, first=None, count_from=0):
    first = middle(nb) if first is None else first
    effect = nb.sweep.mean["GN"].effect.sel(metric="prob")
    single, sliding = (effect.sel(window=size).values for size in (1, nb.w))
    added = np.array(sums(single, nb.w))
    return {
        "sliding": first + int(sliding[first:].argmax()) - count_from,
        "adding": first + int(added[first:].argmax()) - count_from,
    }


def sums(effects, window):
    reach = window // 2
    return [sum(effects[max(0, at - reach) : at + reach + 1]) for at in range(len(effects))]


def ratio(nb, metric="logit_diff"):
    settings = {
        "corruption": pl.STR("subject"),
        "positions": "last_subject",
        "metrics": [metric],
        "progress": False,
    }
    every = {"window": nb.model.cfg.n_layers, "before": 0, "layers": [0]}
    together = pl.patch(nb.model, nb.pairs, "mlp", **every, **settings)
    single = pl.patch(nb.model, nb.pairs, "mlp", **settings)
    return float(together.effect.sum() / single.effect.sum())


SOLUTIONS = {
    "5.1": (
        layers,
        {
            "leave out those before the middle": lambda nb: layers(nb, first=0),
            "count from the first middle layer": lambda nb: layers(nb, count_from=middle(nb)),
        },
    ),
    "5.2": (
        lambda nb: sums,
        {
            "does not fall away": lambda nb: (
                lambda effects, window: np.convolve(effects, np.ones(window), "valid")
            ),
            "a slice ends before its end": lambda nb: (
                lambda effects, window: [
                    sum(effects[max(0, at - window // 2) : at + window // 2])
                    for at in range(len(effects))
                ]
            ),
        },
    ),
    "5.3": (
        ratio,
        {
            "upside down": lambda nb: 1 / ratio(nb),
            "by probability": lambda nb: ratio(nb, "prob"),
        },
    ),
}

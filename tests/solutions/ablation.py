from types import SimpleNamespace

import numpy as np
import pandas as pd

import patchlib as pl

PLACES = ["IO", "S1", "S2", "last"]


def given(model):
    pairs = pl.tasks.ioi(model, n=8)
    sources = {"zero": pl.Zero(), "mean": pl.Mean(), "resample": pl.Resample()}
    costs = {}
    for name, source in sources.items():
        fx = pl.ablate(model, pairs, with_=source, metrics="logit_diff", progress=False)
        costs[name] = (fx.clean - fx.patched).squeeze("metric").to_series()
    return SimpleNamespace(
        model=model, pairs=pairs[:4], costs=pd.DataFrame(costs), head=pl.Head.of("4.6")
    )


def ends(values):
    return {"most": values.idxmax(), "least": values.idxmin()}


def toy(sign=1, others=True):
    def costs(m, values, number):
        rest = [m(each) for i, each in enumerate(values) if i != number or not others]
        bases = m(0), m(np.mean(values)), np.mean(rest)
        return [sign * (m(values[number]) - base) for base in bases]

    return costs


def damage(nb, positions):
    fx = pl.ablate(
        nb.model,
        nb.pairs,
        with_=pl.Zero(),
        heads=[nb.head],
        positions=positions,
        metrics="kl",
        progress=False,
    )
    layer, head = pl.Head.of(nb.head)
    return fx.effect.sel(layer=layer, head=head).squeeze("metric").values


def worst(nb):
    return PLACES[int(damage(nb, PLACES).argmax())]


SOLUTIONS = {
    "11.1": (
        lambda nb: ends(nb.costs.zero - nb.costs["resample"]),
        {
            "column of zeros alone": lambda nb: ends(nb.costs.zero),
            "exchanged": lambda nb: ends(nb.costs["resample"] - nb.costs.zero),
        },
    ),
    "11.2": (
        lambda nb: toy(),
        {
            "without its own": lambda nb: toy(others=False),
            "the sign is turned": lambda nb: toy(-1),
        },
    ),
    "11.3": (
        lambda nb: (worst(nb), damage(nb, PLACES).max() / damage(nb, "all")),
        {
            "that is the KL itself": lambda nb: (worst(nb), damage(nb, PLACES).max()),
            "another of the four": lambda nb: ("IO" if worst(nb) != "IO" else "S1", 0.5),
        },
    ),
}

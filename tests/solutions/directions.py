from itertools import combinations
from types import SimpleNamespace

import numpy as np

import patchlib as pl

HEADS = ["4.6", "5.1", "5.0", "6.3", "5.4"]


def given(model):
    pairs = pl.tasks.ioi(model, n=8)
    both = pl.interactions(
        model, pairs, HEADS, corruption=pl.STR("ABC"), metrics="logit_diff", progress=False
    )
    return SimpleNamespace(model=model, pairs=pairs, both=both)


def alone(nb):
    effect = nb.both.effect.sel(metric="logit_diff", direction="noise")
    return {head: float(effect.sel(first=head, second=head)) for head in effect["first"].values}


def helpful(nb):
    return [head for head, value in alone(nb).items() if value > 0]


def pair(nb, choose=min):
    beyond = nb.both.interaction.sel(metric="logit_diff", direction="noise")
    return choose(
        combinations(helpful(nb), 2), key=lambda two: float(beyond.sel(first=two[0], second=two[1]))
    )


def p(odds):
    return 1 / (1 + np.exp(-odds))


def noised(nb, heads, direction="noise"):
    fx = pl.patch_together(
        nb.model,
        nb.pairs,
        heads,
        corruption=pl.STR("ABC"),
        direction=direction,
        metrics="logit_diff",
    )
    return fx.effect.item()


def total(nb, direction="noise"):
    return sum(noised(nb, [head], direction) for head in helpful(nb))


SOLUTIONS = {
    "10.1": (
        lambda nb: list(pair(nb)),
        {
            "that is the highest": lambda nb: list(pair(nb, max)),
            "a pair has two different heads": lambda nb: ["4.6"],
        },
    ),
    "10.2": (
        lambda nb: lambda o, x: p(o + 2 * x) - 2 * p(o + x) + p(o),
        {
            "probabilities for effects": lambda nb: lambda o, x: p(o + 2 * x) - 2 * p(o + x),
            "the sign is turned": lambda nb: lambda o, x: 2 * p(o + x) - p(o + 2 * x) - p(o),
        },
    ),
    "10.3": (
        lambda nb: {"sum": total(nb), "together": noised(nb, helpful(nb))},
        {
            "effects of denoising": lambda nb: {"sum": total(nb, "denoise"), "together": 0.5},
            "that is the sum again": lambda nb: {"sum": total(nb), "together": total(nb)},
        },
    ),
}

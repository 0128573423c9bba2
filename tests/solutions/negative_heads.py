from types import SimpleNamespace

import numpy as np

import patchlib as pl


def given(model):
    pairs = pl.tasks.ioi(model, n=12)
    sweep = pl.sweep(model, pairs, {"STR": pl.STR("S2"), "GN": pl.GN("S2")})
    return SimpleNamespace(sweep=sweep)


def floor(nb, run="corrupted"):
    return -nb.sweep["STR"][run].sel(metric="prob").mean().item()


def threshold(nb, sign=-1):
    effect = nb.sweep["STR"].effect.sel(metric="prob").mean("prompt").values
    return effect.mean() + sign * 2 * effect.std()


def toy(p, nats):
    odds = p / (1 - p) * np.exp(-nats)
    return odds / (1 + odds) - p


def correlation(nb, metric="prob"):
    fx = nb.sweep["GN"]
    effect = fx.effect.sel(metric="logit_diff").mean("prompt").values
    layer, head = np.unravel_index(effect.argmin(), effect.shape)
    single = fx.effect.sel(metric=metric, layer=layer, head=head).values
    return np.corrcoef(fx.corrupted.sel(metric="prob").values.ravel(), single.ravel())[0, 1]


SOLUTIONS = {
    "4.2.1": (
        lambda nb: {"floor": floor(nb), "threshold": threshold(nb)},
        {
            "you took the clean one": lambda nb: {
                "floor": floor(nb, "clean"),
                "threshold": threshold(nb),
            },
            "the positive side": lambda nb: {"floor": floor(nb), "threshold": threshold(nb, 1)},
        },
    ),
    "4.2.2": (
        lambda nb: toy,
        {
            "sum to 1 again": lambda nb: lambda p, nats: p * np.exp(-nats) - p,
            "that is the new probability": lambda nb: lambda p, nats: toy(p, nats) + p,
        },
    ),
    "4.2.3": (
        correlation,
        {
            "the sign turned": lambda nb: -correlation(nb),
            "on the logit difference": lambda nb: correlation(nb, "logit_diff"),
        },
    ),
}

from types import SimpleNamespace

import numpy as np

import patchlib as pl

METRICS = ["prob", "logit_diff", "kl"]


def given(model):
    pairs = pl.tasks.ioi(model, n=12)
    sweep = pl.sweep(model, pairs, {"STR": pl.STR("S2"), "GN": pl.GN("S2")}, metrics=METRICS)
    return SimpleNamespace(sweep=sweep)


def in_maps(nb, is_asked):
    lists = [[str(h) for h in nb.sweep.found(run, m)] for run in nb.sweep for m in METRICS]
    every = {head for some in lists for head in some}
    return sorted(head for head in every if is_asked(sum(head in some for some in lists)))


def rule(values, factor=1.4826):
    distances = abs(values - np.median(values))
    return distances > 2 * factor * np.median(distances)


def lost(nb, of=lambda before, after: before - after):
    effect = nb.sweep["STR"].effect.sel(metric="logit_diff").mean("prompt").values

    def detected(values):
        far = abs(values - values.mean()) > 2 * values.std()
        return {f"{layer}.{head}" for layer, head in np.argwhere(far)}

    loud = np.where(abs(effect) == abs(effect).max(), 3 * effect, effect)
    return sorted(of(detected(effect), detected(loud)))


SOLUTIONS = {
    "H.1": (
        lambda nb: in_maps(nb, lambda count: count == 1),
        {
            "the heads of all maps": lambda nb: in_maps(nb, lambda count: count == 6),
            "the heads of any map": lambda nb: in_maps(nb, lambda count: count > 0),
        },
    ),
    "H.2": (
        lambda nb: rule,
        {
            "the factor is missing": lambda nb: lambda values: rule(values, 1),
            "that is the old rule": lambda nb: (
                lambda values: abs(values - values.mean()) > 2 * values.std()
            ),
        },
    ),
    "H.3": (
        lost,
        {
            "the heads that stay": lambda nb: lost(nb, lambda before, after: after),
            "only if the thresholds stay": lambda nb: [],
        },
    ),
}

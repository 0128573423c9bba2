from types import SimpleNamespace

import numpy as np

import patchlib as pl


def given(model):
    pairs = pl.tasks.ioi(model, n=12)
    sites = {site: pl.STR(site) for site in ("S2", "S1+IO", "ABC")}
    sweep = pl.sweep(model, pairs, sites, progress=False)
    study = pl.choices.Study(model, pairs, draws=1)
    steps = study.table(pl.choices.Choice("S2"), sites=["S1+IO"])
    return SimpleNamespace(steps=steps, sweep=sweep)


def costliest(nb, of=("shared", "lost", "gained"), least=True):
    """The change that leaves least in common (or most), and the shared heads' share of these."""
    rows = nb.steps.iloc[1:].set_index("change")[["shared", "lost", "gained"]]
    counts = rows.map(lambda text: len(pl.Heads(text.replace("+", "").replace("-", ""))))
    shares = counts.shared / counts.sum(axis=1)
    change = shares.idxmin() if least else shares.idxmax()
    return change, counts.shared[change] / counts.loc[change, list(of)].sum()


def distance(x, cloud):
    away = x - cloud.mean(0)
    return np.sqrt(away @ np.linalg.solve(np.cov(cloud.T, bias=True), away))


def detected(fx, metric="logit_diff"):
    found = pl.detect(fx)
    return {head for sign in ("positive", "negative") for head in pl.heads_of(found, metric, sign)}


def lists(nb):
    mean, fx = nb.sweep.mean["S2"], nb.sweep["S2"]
    even, odd = (
        detected(fx.isel(prompt=slice(first, None, 2)).mean("prompt", keep_attrs=True))
        for first in (0, 1)
    )
    return {"sentences": (even, odd), "metric": (detected(mean), detected(mean, "prob"))}


def counts(nb, count):
    return {name: count(*pair) for name, pair in lists(nb).items()}


SOLUTIONS = {
    "6.1": (
        costliest,
        {
            "smaller share": lambda nb: costliest(nb, least=False),
            "what is not shared": lambda nb: (costliest(nb)[0], 1 - costliest(nb)[1]),
        },
    ),
    "6.2": (
        lambda nb: distance,
        {
            "the square of": lambda nb: lambda x, cloud: distance(x, cloud) ** 2,
            "Euclidean": lambda nb: lambda x, cloud: np.linalg.norm(x - cloud.mean(0)),
        },
    ),
    "6.3": (
        lambda nb: counts(nb, lambda one, other: len(one ^ other)),
        {
            "what only one holds": lambda nb: counts(nb, lambda one, other: len(one & other)),
            "metric: another number": lambda nb: (
                counts(nb, lambda one, other: len(one ^ other)) | {"metric": 99}
            ),
        },
    ),
}

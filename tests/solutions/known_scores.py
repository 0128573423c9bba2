from functools import reduce
from types import SimpleNamespace

import numpy as np
import pandas as pd

import patchlib as pl

CIRCUIT = ["0.4", "2.1", "4.6", "5.0"]


def given(model):
    pairs = pl.tasks.ioi(model, n=6)
    options = {"metrics": "logit_diff", "keep_prompts": True, "progress": False}
    by_site = {
        site: pl.patch(model, pairs, corruption=pl.STR(site), direction="noise", **options)
        for site in ("S2", "ABC")
    }
    table = pd.DataFrame(
        {
            "method": ["patching", "edge patching", "EAP", "EAP", "EAP-IG", "EAP-IG"],
            "of": ["heads"] + ["edges"] * 5,
            "average_precision": [1, 0.95, 0.5, 0.7, 0.8, 0.9],
            "auc": [1, 0.99, 0.9, 0.95, 0.97, 0.99],
            "passes": [2, 462, 5, 5, 17, 17],
        }
    )
    return SimpleNamespace(table=table, results=by_site, circuit=CIRCUIT)


def best(nb, passes=20, column="average_precision"):
    edges = nb.table[(nb.table.of == "edges") & (nb.table.passes <= passes)]
    name = edges.groupby("method").average_precision.mean().idxmax()
    return name, edges[edges.method == name][column].mean()


def precision(sizes, true):
    ranked = true[np.argsort(-sizes)]
    return (np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean()


def found(size, circuit):
    order = size.to_series().sort_values(ascending=False).index[: len(circuit)]
    return len(pl.Heads(order) & circuit)


def counts(nb, size=np.abs):
    means = {
        site: fx.effect.mean("prompt").squeeze("metric", drop=True)
        for site, fx in nb.results.items()
    }
    largest = reduce(np.maximum, map(size, means.values()))
    return {"S2": found(size(means["S2"]), nb.circuit), "any": found(largest, nb.circuit)}


SOLUTIONS = {
    "26.1": (
        best,
        {
            "more than twenty passes": lambda nb: best(nb, 1000),
            "that is its AUC": lambda nb: best(nb, column="auc"),
        },
    ),
    "26.2": (
        lambda nb: precision,
        {
            "you begin with the smallest": lambda nb: lambda sizes, true: precision(-sizes, true),
            "at the true size alone": lambda nb: (
                lambda sizes, true: true[np.argsort(-sizes)][: true.sum()].mean()
            ),
        },
    ),
    "26.3": (
        counts,
        {
            "cannot be more": lambda nb: counts(nb) | {"any": 20},
            "another number": lambda nb: counts(nb) | {"S2": -1},
        },
    ),
}

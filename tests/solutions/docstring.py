from types import SimpleNamespace

import numpy as np
import pandas as pd

import patchlib as pl

HEADS = ["6.3", "5.0", "5.1", "5.5"]


def given(model):
    pairs = pl.tasks.docstring(model, n=4)
    corruptions = {"STR": pl.STR("C_def"), "GN": pl.GN("C_def")}
    sweep = pl.sweep(model, pairs, corruptions, positions=["C_def", "B_doc", "last"])
    found = {run: pl.detect(fx, shared=["position"]) for run, fx in sweep.mean.items()}
    found = pd.concat(found, names=["run"]).reset_index("run")
    return SimpleNamespace(model=model, pairs=pairs, found=found, heads=HEADS)


def share(nb, per=1.0):
    counts = nb.found.assign(n=[len(heads) for heads in nb.found.heads])
    n = counts.groupby(["run", "position"]).n.sum().unstack()
    return {run: per * n["last"][run] / n.loc[run].sum() for run in ("STR", "GN")}


def numbers(nb):
    last = nb.found[nb.found.position == "last"]
    return {run: sum(map(len, last.heads[last.run == run])) for run in ("STR", "GN")}


def beyond(effect, over=None):
    values = effect.values
    away = np.abs(values - values.mean(axis=over, keepdims=True))
    return np.count_nonzero(away > 2 * np.std(values, axis=over, keepdims=True))


def positive(effect):
    return int((effect > effect.mean() + 2 * effect.std()).sum())


def joint(nb, heads):
    fx = pl.patch_together(nb.model, nb.pairs, heads, corruption=pl.STR("C_def"), positions="last")
    return float(fx.effect.sel(metric="logit_diff"))


def parts(nb, over=1):
    total = sum(joint(nb, [head]) for head in nb.heads)
    return {"together": joint(nb, nb.heads), "sum": total / over}


SOLUTIONS = {
    "D.1": (
        share,
        {
            "in percent": lambda nb: share(nb, 100),
            "numbers of pairs": numbers,
        },
    ),
    "D.2": (
        lambda nb: beyond,
        {
            "for each position": lambda nb: lambda effect: beyond(effect, (0, 1)),
            "has a negative side": lambda nb: positive,
        },
    ),
    "D.3": (
        parts,
        {
            "exchanged": lambda nb: dict(zip(("sum", "together"), parts(nb).values(), strict=True)),
            "mean of the four": lambda nb: parts(nb, len(nb.heads)),
        },
    ),
}

from types import SimpleNamespace

import numpy as np

import patchlib as pl


def given(model):
    pairs = pl.tasks.greater_than(model, n=8)
    corruptions = {"STR": pl.STR("YY"), "GN": pl.GN("YY", draws=3)}
    fx = {
        run: pl.patch(model, pairs, corruption=each, keep_prompts=True, keep_draws=True)
        for run, each in corruptions.items()
    }
    sweep = pl.Sweep({run: each.mean("draw", keep_attrs=True) for run, each in fx.items()})
    return SimpleNamespace(fx=fx["GN"].mean("prompt", keep_attrs=True), sweep=sweep)


def heads(nb, metric, enough):
    effect = nb.fx.effect.sel(metric=metric)
    away = abs(effect - effect.mean(["layer", "head"])) > 2 * effect.std(["layer", "head"])
    layers, numbers = np.nonzero(enough(away.values, effect.dims.index("draw")))
    return [f"{layer}.{head}" for layer, head in zip(layers, numbers, strict=True)]


def difference(reduce):
    return lambda logits, right, wrong: (
        reduce([logits[token] for token in right]) - reduce([logits[token] for token in wrong])
    )


def halves(nb, of):
    shares = {}
    for run, fx in nb.sweep.items():
        effect = fx.effect.sel(metric="logit_diff")
        lists = []
        for part in np.split(effect.transpose("prompt", ...).values, 2):
            mean = part.mean(0)
            lists.append(set(np.flatnonzero(abs(mean - mean.mean()) > 2 * mean.std())))
        shares[run] = of(*lists)
    return shares


SOLUTIONS = {
    "E.1": (
        lambda nb: heads(nb, "prob", np.all),
        {
            "at least one draw": lambda nb: heads(nb, "prob", np.any),
            "by logit difference": lambda nb: heads(nb, "logit_diff", np.all),
        },
    ),
    "E.2": (
        lambda nb: difference(np.mean),
        {
            "which has the constant": lambda nb: difference(sum),
            "best of each set": lambda nb: difference(max),
        },
    ),
    "E.3": (
        lambda nb: halves(nb, lambda a, b: len(a & b) / len(a | b)),
        {
            "number of heads": lambda nb: halves(nb, lambda a, b: len(a & b)),
            "what differs": lambda nb: halves(nb, lambda a, b: len(a ^ b) / len(a | b)),
        },
    ),
}

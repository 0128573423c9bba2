from types import SimpleNamespace

import patchlib as pl


def given(model):
    pairs = pl.tasks.ioi(model, n=12)
    fx = pl.patch(model, pairs, corruption=pl.STR("S2"), progress=False)
    return SimpleNamespace(model=model, pairs=pairs, fx=fx)


def strongest(nb, metric="logit_diff"):
    return pl.strongest(nb.fx, metric, n=1).iloc[0][["head", "effect"]]


def stream(nb):
    fx = pl.patch(
        nb.model,
        nb.pairs,
        "resid",
        corruption=pl.STR("S2"),
        positions=["S2", "last"],
        progress=False,
    )
    return fx.effect.sel(metric="logit_diff")


def crossing(nb):
    effect = stream(nb)
    ahead = effect.sel(position="last") > effect.sel(position="S2")
    return int(ahead.values.argmax())


SOLUTIONS = {
    "0.1": (
        lambda nb: tuple(strongest(nb)),
        {
            "in per cent": lambda nb: (strongest(nb)["head"], 100 * strongest(nb)["effect"]),
            "exchanged layer and head": lambda nb: (strongest(nb)["head"][::-1], 0.3),
        },
    ),
    "0.2": (
        lambda nb: lambda clean, corrupted, patched: (patched - corrupted) / (clean - corrupted),
        {
            "how much is missing": lambda nb: lambda a, b, c: (a - c) / (a - b),
            "the step in logits": lambda nb: lambda a, b, c: c - b,
        },
    ),
    "0.3": (
        lambda nb: {"S2": 1, "last": 0, "layer": crossing(nb)},
        {
            "the last token knows nothing yet": lambda nb: {
                "S2": 1.0,
                "last": 1.0,
                "layer": crossing(nb),
            },
            "S2 still has as much": lambda nb: {"S2": 1, "last": 0, "layer": crossing(nb) - 1},
        },
    ),
}

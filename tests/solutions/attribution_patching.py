from types import SimpleNamespace

import patchlib as pl

OPTIONS = {"corruption": pl.STR("S2"), "metrics": "logit_diff", "progress": False}


def given(model):
    pairs = pl.tasks.ioi(model, n=4)
    exact, estimate = (f(model, pairs, **OPTIONS) for f in (pl.patch, pl.attribute))
    return SimpleNamespace(model=model, pairs=pairs, head="0.4", exact=exact, estimate=estimate)


def shares(nb):
    both = [
        pl.strongest(fx, n=fx.effect.size).set_index("head").effect
        for fx in (nb.exact, nb.estimate)
    ]
    return (both[1] / both[0])[both[0].index[:10]].sort_values()


def noising(nb, **options):
    options = OPTIONS | {"direction": "noise", "heads": [nb.head]} | options
    return {
        name: float(method(nb.model, nb.pairs, **options).effect.sum())
        for name, method in (("patching", pl.patch), ("attribution", pl.attribute))
    }


SOLUTIONS = {
    "20.1": (
        lambda nb: (shares(nb).index[0], shares(nb).iloc[0]),
        {
            "a smaller share of another head": lambda nb: (shares(nb).index[1], shares(nb).iloc[1]),
            "divide attribution by patching": lambda nb: (
                shares(nb).index[0],
                1 / shares(nb).iloc[0],
            ),
        },
    ),
    "20.2": (
        lambda nb: lambda here, there, gradient: ((there - here) * gradient).sum((0, 2)),
        {
            "the sign is the other way": lambda nb: (
                lambda here, there, gradient: ((here - there) * gradient).sum((0, 2))
            ),
            "for each position and head": lambda nb: (
                lambda here, there, gradient: ((there - here) * gradient).sum(-1)
            ),
        },
    ),
    "20.3": (
        noising,
        {
            "you exchanged the two methods": lambda nb: dict(
                zip(noising(nb), reversed(noising(nb).values()), strict=True)
            ),
            "that is denoising": lambda nb: noising(nb, direction="denoise"),
        },
    ),
}

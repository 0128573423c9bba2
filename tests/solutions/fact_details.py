from types import SimpleNamespace

import patchlib as pl


def given(model):
    pairs = pl.tasks.factual_recall(model, n=12)
    corruptions = {"STR": pl.STR("subject"), "GN": pl.GN("subject")}
    sweep = pl.sweep(
        model,
        pairs,
        corruptions,
        "mlp",
        positions="last_subject",
        window=[1, 3, 5, 7],
        metrics=["prob", "logit_diff"],
        progress=False,
    )
    return SimpleNamespace(model=model, pairs=pairs, peaks=pl.peaks(sweep), layers=range(0, 8, 3))


def combinations(nb, is_meant):
    factor = (nb.peaks.peak["GN"] / nb.peaks.peak["STR"]).dropna()
    return [combination for combination, value in factor.items() if is_meant(value)]


def buckets(middle=0, end=0):
    def of(n_tokens, first, last):
        inside = range(last + 1, n_tokens - 1)
        return {
            "first_subject": [first],
            "middle_subject": list(range(first + 1 - middle, last)),
            "last_subject": [last],
            "next": list(inside[:1]),
            "further": list(range(last + 2, n_tokens - 1 + end)),
            "last": [n_tokens - 1],
        }

    return of


def strongest(nb, kinds=("attn", "mlp"), layer=None):
    settings = {
        "corruption": pl.STR("subject"),
        "layers": nb.layers,
        "positions": "last",
        "metrics": ["logit_diff"],
        "progress": False,
    }
    found = {}
    for kind in kinds:
        effect = pl.patch(nb.model, nb.pairs, kind, **settings).effect.squeeze().to_pandas()
        found[float(effect.max())] = kind, int(effect.idxmax())
    return found[max(found)]


def other(nb):
    best, _ = strongest(nb)
    return strongest(nb, ["mlp" if best == "attn" else "attn"])


SOLUTIONS = {
    "G.1": (
        lambda nb: combinations(nb, lambda factor: not 2 <= factor <= 5),
        {
            "that do fit": lambda nb: combinations(nb, lambda factor: 2 <= factor <= 5),
            "does not have": lambda nb: [("prob", 10)],
        },
    ),
    "G.2": (
        lambda nb: buckets(),
        {
            "holds neither": lambda nb: buckets(middle=1),
            "a bucket of its own": lambda nb: buckets(end=1),
        },
    ),
    "G.3": (
        strongest,
        {
            "the other kind brings more back": other,
            "strongest layer another": lambda nb: (
                strongest(nb)[0],
                next(at for at in nb.layers if at != strongest(nb)[1]),
            ),
        },
    ),
}

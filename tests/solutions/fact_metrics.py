from types import SimpleNamespace

import numpy as np

import patchlib as pl

AT = ["first_subject", "middle_subject", "last_subject", "last"]


def given(model):
    pairs = pl.tasks.factual_recall(model, n=30)
    corruptions = {"STR": pl.STR("subject"), "GN": pl.GN("subject")}
    maps = pl.sweep(model, pairs, corruptions, "mlp", positions=AT, window=3, progress=False)
    at = maps["STR"].sel(layer=3, position="last_subject").squeeze()
    # As if some prompts had no such token.
    at = at.where(at.prompt >= 5)
    return SimpleNamespace(maps=maps, at=at)


def largest(nb, run="GN", leave_out=("last_subject",)):
    effect = nb.maps.mean[run].effect.drop_sel(position=list(leave_out))
    table = effect.max("layer").to_pandas()
    return table.idxmax(axis=1)[["prob", "logit_diff"]].to_dict()


def sums(nb):
    effect = nb.maps["STR"].effect.sel(metric="prob").transpose("position", "layer", "prompt")
    last, middle = (effect.sel(position=f"{at}_subject").values.sum(0) for at in ("last", "middle"))
    return last, middle


def ratio(nb, everybody=False):
    last, middle = sums(nb)
    there = ~np.isnan(middle)
    return (last if everybody else last[there]).mean() / middle[there].mean()


def gains(nb, everybody=False):
    gained = nb.at.patched - nb.at.corrupted
    gained = gained if everybody else gained.dropna("prompt")
    return [gained.sel(metric=metric) for metric in ("logit_diff", "prob")]


def count(nb, everybody=False):
    nats, prob = gains(nb, everybody)
    return float(((nats >= 1) & (prob < 0.01)).mean())


def gained_logits(nb):
    nats, _ = gains(nb)
    return float((nats >= 1).mean())


# A third wrong answer.
MORE = {"4.1.3": {"a prompt without this token": lambda nb: count(nb, everybody=True)}}

SOLUTIONS = {
    "4.1.1": (
        largest,
        {
            "leave the subject's last token out": lambda nb: largest(nb, leave_out=()),
            "another bucket": lambda nb: largest(nb, leave_out=AT[:3]),
        },
    ),
    "4.1.2": (
        ratio,
        {
            "took all prompts": lambda nb: ratio(nb, everybody=True),
            "upside down": lambda nb: 1 / ratio(nb),
        },
    ),
    "4.1.3": (
        count,
        {
            "of all others": lambda nb: 1 - count(nb),
            "every gain of logits": gained_logits,
        },
    ),
}

from types import SimpleNamespace

import torch

import patchlib as pl


def given(model):
    pairs = pl.tasks.ioi(model, n=12)
    sweep = pl.sweep(model, pairs, {"STR": pl.STR("S2"), "GN": pl.GN("S2")}, layers=[0])
    return SimpleNamespace(model=model, pairs=pairs, runs=sweep.runs())


def further(nb, kl=1):
    far = nb.runs.loc["clean"] - nb.runs
    far["kl"] *= -kl
    return far.loc[["STR", "GN"]].idxmax().to_dict()


def kl(clean, other):
    p, q = clean.softmax(-1), other.softmax(-1)
    return (p * (p.log() - q.log())).sum()


def change(nb, who):
    before = nb.model(nb.pairs.clean_tokens)[:, -1].detach()
    rows, after = torch.arange(len(before)), before.clone()
    for answers in who:
        after[rows, answers] += 1
    right, wrong = nb.pairs.answers, nb.pairs.wrong_answers

    def both(logits):
        return logits.softmax(-1)[rows, right], logits[rows, right] - logits[rows, wrong]

    prob, difference = (new - old for new, old in zip(both(after), both(before), strict=True))
    return {"prob": prob.mean(), "logit_diff": difference.mean()}


def others(nb):
    return {"STR": "GN", "GN": "STR"}


SOLUTIONS = {
    "2.1": (
        further,
        {
            "a divergence grows": lambda nb: further(nb, kl=-1),
            "the lower this value falls": lambda nb: (
                further(nb) | {"prob": others(nb)[further(nb)["prob"]]}
            ),
        },
    ),
    "2.2": (
        lambda nb: kl,
        {
            "exchanged the two": lambda nb: lambda clean, other: kl(other, clean),
            "no log-probabilities": lambda nb: (
                lambda clean, other: (clean.softmax(-1) * (clean - other)).sum()
            ),
        },
    ),
    "2.3": (
        lambda nb: change(nb, [nb.pairs.answers, nb.pairs.wrong_answers]),
        {
            "this is not zero": lambda nb: {"prob": 0, "logit_diff": 0},
            "both terms of a difference": lambda nb: change(nb, [nb.pairs.answers]),
        },
    ),
}

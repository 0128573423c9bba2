from types import SimpleNamespace

import pandas as pd
import torch

import patchlib as pl

CORRUPTIONS = {"STR": pl.STR("S2"), "GN": pl.GN("S2")}


def given(model):
    pairs, heads = pl.tasks.ioi(model, n=12), pl.Heads("5.1, 5.5")
    rows = {}
    for run, corruption in {"clean": None, **CORRUPTIONS}.items():
        patterns = pl.attention_patterns(model, pairs, heads, corruption)
        rows[run] = pl.attention_to(patterns, pairs).mean(["head", "prompt"]).to_series()
    attention = pd.DataFrame(rows).T
    return SimpleNamespace(
        model=model, pairs=pairs, heads=heads, head=heads[0], attention=attention
    )


def distance(nb, row):
    return {run: (nb.attention.loc[run] - row).abs().sum() / 2 for run in CORRUPTIONS}


def image(nb):
    clean = nb.attention.loc["clean"]
    return clean.rename({"IO": "S1", "S1": "IO"})


def by_hand(nb, turned=False):
    def attention(pattern, name):
        rows, at = torch.arange(len(nb.pairs)), nb.pairs.positions[name]
        return (pattern[rows, at, -1] if turned else pattern[rows, -1, at]).mean()

    return attention


def effect(nb, letter, run):
    fx = pl.patch_together(
        nb.model, nb.pairs, nb.heads, corruption=CORRUPTIONS[run], activation=letter
    )
    return float(fx.effect.sel(metric="logit_diff"))


def steers(nb, choose=max, runs=tuple(CORRUPTIONS)):
    letter = choose("qkv", key=lambda each: effect(nb, each, "STR"))
    numbers = [effect(nb, letter, run) for run in runs]
    return {"letter": letter, **dict(zip(CORRUPTIONS, numbers, strict=True))}


SOLUTIONS = {
    "3.2.1": (
        lambda nb: distance(nb, image(nb)),
        {
            "from the clean row itself": lambda nb: distance(nb, nb.attention.loc["clean"]),
            "take half": lambda nb: {
                run: 2 * value for run, value in distance(nb, image(nb)).items()
            },
        },
    ),
    "3.2.2": (
        by_hand,
        {
            "query comes before key": lambda nb: by_hand(nb, turned=True),
            "index prompts and places together": lambda nb: (
                lambda pattern, name: pattern[:, -1, nb.pairs.positions[name]].mean()
            ),
        },
    ),
    "3.2.3": (
        steers,
        {
            "another letter brings more": lambda nb: steers(nb, min),
            "the number under STR": lambda nb: steers(nb, runs=("STR", "STR")),
        },
    ),
}

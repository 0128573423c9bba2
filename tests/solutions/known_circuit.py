from types import SimpleNamespace

import patchlib as pl

SETTINGS = [(site, way) for site in ("S2", "S1+IO", "ABC") for way in ("denoise", "noise")]


def given(model):
    known = pl.load_model("known")
    return SimpleNamespace(model=known, pairs=pl.tasks.ioi(known, n=8))


def count(nb, counts=lambda effect: effect != 0):
    return {
        (site, way): sum(
            map(counts, pl.known.heads(nb.pairs, pl.STR(site), direction=way).values())
        )
        for site, way in SETTINGS
    }


def edge(nb, direction="noise", **predicted):
    fx = pl.patch_edges(
        nb.model,
        nb.pairs,
        [("3.1", kind + "4.3") for kind in "qkv"],
        corruption=pl.STR("ABC"),
        direction=direction,
        metrics="logit_diff",
        progress=False,
    )
    expected = pl.known.edges(nb.pairs, pl.STR("ABC"), direction="noise")["3.1", "4.3"]
    return {"predicted": expected, "measured": fx.effect.item(), **predicted}


def accuracy(answers, logits):
    return (logits.gather(1, answers[:, None])[:, 0] == logits.max(-1).values).float().mean()


SOLUTIONS = {
    "25.1": (
        count,
        {
            "an effect below zero": lambda nb: count(nb, lambda effect: effect > 0),
            "direction matters": lambda nb: dict.fromkeys(SETTINGS, 5),
        },
    ),
    "25.2": (
        lambda nb: accuracy,
        {
            "ties count as right": lambda nb: (
                lambda answers, logits: (logits.argmax(-1) == answers).float().mean()
            ),
            "divide by how many": lambda nb: lambda answers, logits: accuracy(answers, logits) * 4,
        },
    ),
    "25.3": (
        edge,
        {
            "read the edge": lambda nb: edge(nb, predicted=1.0),
            "restores the edge": lambda nb: edge(nb, "denoise"),
        },
    ),
}

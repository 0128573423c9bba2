from types import SimpleNamespace

import patchlib as pl


def mediated(model, pairs, activation):
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    every = [(layer, head) for layer in layers for head in heads]
    denoised, noised = (
        pl.patch_together(
            model,
            pairs,
            every,
            activation=activation,
            direction=way,
            corruption=pl.STR("pronoun"),
            metrics=["log_odds", "odds"],
            keep_prompts=True,
        )
        for way in ("denoise", "noise")
    )
    return pl.mediate(denoised, noised)


def given(model):
    pairs = pl.tasks.pronouns(model, n=6)
    joint = {name: mediated(model, pairs, name) for name in ("pattern", "v")}
    return SimpleNamespace(model=model, pairs=pairs, joint=joint)


def shares(fx):
    mean = fx.sel(metric="log_odds").mean("prompt")
    return float(mean.indirect / mean.total), float(mean.direct / mean.total)


def named(through, past):
    return {"through": through, "past": past}


def effects(nb):
    found = {}
    for letter in "qk":
        fx = mediated(nb.model, nb.pairs, letter)
        found[letter] = float(fx.indirect.sel(metric="log_odds").mean())
    return found


def larger(nb):
    found = effects(nb)
    letter = max(found, key=lambda name: abs(found[name]))
    return letter, found[letter]


def other(nb):
    found = effects(nb)
    letter = min(found, key=lambda name: abs(found[name]))
    return letter, found[letter]


SOLUTIONS = {
    "14.1": (
        lambda nb: named(*shares(nb.joint["v"])),
        {
            "exchanged": lambda nb: named(*shares(nb.joint["v"])[::-1]),
            "the share through patterns": lambda nb: named(*shares(nb.joint["pattern"])),
        },
    ),
    "14.2": (
        lambda nb: lambda a, b, c, d: (b / a - 1, d / a - 1, c / a - 1),
        {
            "exchanged": lambda nb: lambda a, b, c, d: (b / a - 1, c / a - 1, d / a - 1),
            "differences": lambda nb: lambda a, b, c, d: (b - a, d - a, c - a),
        },
    ),
    "14.3": (
        larger,
        {
            "other letter": other,
            "the sign turned": lambda nb: (larger(nb)[0], -larger(nb)[1]),
        },
    ),
}

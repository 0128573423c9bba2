from math import log
from types import SimpleNamespace

import patchlib as pl


def given(model):
    pairs = pl.keep_answered(model, pl.tasks.arithmetic(model, n=12))
    fx = pl.patch(
        model,
        pairs,
        "mlp",
        corruption=pl.STR("X3+Y3"),
        positions="last",
        metrics=["logit_diff", "prob", "wrong_prob"],
        keep_prompts=True,
        keep_draws=True,
    )
    return SimpleNamespace(model=model, pairs=pairs, fx=fx)


def centre(nb, kind):
    values = pl.stolfo(nb.fx).squeeze("draw")
    curve = getattr(values, kind)("prompt")
    return int(values.median("prompt").argmax("layer")), curve


def curves(nb, kind="median"):
    layer, curve = centre(nb, kind)
    return {"layer": layer, "median": float(curve[layer])}


def half(right, right_after, wrong, wrong_after):
    return 0.5 * (log(right_after) - log(right) + log(wrong) - log(wrong_after))


def relative(right, right_after, wrong, wrong_after):
    return 0.5 * (right_after / right - 1 + wrong / wrong_after - 1)


def strongest(nb, component):
    fx = pl.patch(nb.model, nb.pairs, component, corruption=pl.STR("X3+Y3"), positions="last")
    return int(fx.effect.sel(metric="logit_diff").argmax("layer"))


SOLUTIONS = {
    "C.1": (
        curves,
        {
            "is the mean over prompts": lambda nb: curves(nb, "mean"),
            "layers count from zero": lambda nb: curves(nb) | {"layer": curves(nb)["layer"] + 1},
        },
    ),
    "C.2": (
        lambda nb: half,
        {
            "left out the ½": lambda nb: lambda *four: 2 * half(*four),
            "equation 2 itself": lambda nb: relative,
        },
    ),
    "C.3": (
        lambda nb: {name: strongest(nb, name) for name in ("attn", "mlp")},
        {
            "exchanged": lambda nb: {"attn": strongest(nb, "mlp"), "mlp": strongest(nb, "attn")},
            "of attn is another": lambda nb: {"attn": 0, "mlp": strongest(nb, "mlp")},
        },
    ),
}

from types import SimpleNamespace

import numpy as np
import torch

import patchlib as pl


def given(model):
    pairs = pl.tasks.ioi(model, n=12)
    sweep = pl.sweep(model, pairs, {"STR": pl.STR("S2")})
    return SimpleNamespace(model=model, pairs=pairs, sweep=sweep, head="4.6")


def beyond(nb, is_far, metric="logit_diff"):
    effect = nb.sweep.mean["STR"].effect.sel(metric=metric).values
    return {sd: [f"{a}.{b}" for a, b in np.argwhere(is_far(effect, sd))] for sd in (1.5, 2, 3)}


def is_detected(effect, sd):
    return abs(effect - effect.mean()) > sd * effect.std()


def by_hand(nb, normalise):
    clean, dirty = nb.pairs.clean_tokens, pl.STR("S2").tokens(nb.pairs)
    _, cache = nb.model.run_with_cache(clean)

    def difference(logits):
        rows = torch.arange(len(nb.pairs))
        right, wrong = (logits[rows, -1, at] for at in (nb.pairs.answers, nb.pairs.wrong_answers))
        return (right - wrong).mean().item()

    def effect(layer, head):
        name = f"blocks.{layer}.attn.hook_z"

        def restore(z, hook):
            z[:, :, head] = cache[name][:, :, head]
            return z

        with torch.no_grad():
            runs = [nb.model(clean), nb.model(dirty)]
            runs.append(nb.model.run_with_hooks(dirty, fwd_hooks=[(name, restore)]))
        return normalise(*map(difference, runs))

    return effect


def letter(nb, activation, positions="all"):
    fx = pl.patch_together(
        nb.model,
        nb.pairs,
        [nb.head],
        corruption=pl.STR("S2"),
        activation=activation,
        positions=positions,
    )
    return float(fx.effect.sel(metric="logit_diff"))


def best(nb, choose=max):
    return choose("qkv", key=lambda activation: letter(nb, activation))


SOLUTIONS = {
    "3.1.1": (
        lambda nb: beyond(nb, is_detected),
        {
            "from zero": lambda nb: beyond(nb, lambda x, sd: abs(x) > sd * x.std()),
            "by probability": lambda nb: beyond(nb, is_detected, "prob"),
        },
    ),
    "3.1.2": (
        lambda nb: by_hand(nb, lambda clean, dirty, patched: (patched - dirty) / (clean - dirty)),
        {
            "the step in logits": lambda nb: by_hand(
                nb, lambda clean, dirty, patched: patched - dirty
            ),
            "the patched run's logit difference": lambda nb: by_hand(
                nb, lambda a, b, patched: patched
            ),
        },
    ),
    "3.1.3": (
        lambda nb: (best(nb), letter(nb, best(nb))),
        {
            "another letter brings more": lambda nb: (best(nb, min), letter(nb, best(nb, min))),
            "at all positions": lambda nb: (best(nb), letter(nb, best(nb), "last")),
        },
    ),
}

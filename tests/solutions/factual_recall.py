from types import SimpleNamespace

import torch

import patchlib as pl

# A window of five of eight layers: the highest one of all holds layer 0.
W = 5


def given(model):
    pairs = pl.tasks.factual_recall(model, n=10)
    corruptions = {"STR": pl.STR("subject"), "GN": pl.GN("subject")}
    sweep = pl.sweep(
        model, pairs, corruptions, "mlp", positions="last_subject", window=W, progress=False
    )
    return SimpleNamespace(model=model, pairs=pairs, pair=pairs[:1], sweep=sweep, w=W)


def shares(nb, share):
    found, layers = {}, pl.peaks(nb.sweep).layer.droplevel("window")
    for run, fx in nb.sweep.mean.items():
        fx = fx.sel(metric="prob")
        runs = (fx.clean, fx.corrupted, fx.patched.sel(layer=layers[run, "prob"]))
        found[run] = share(*map(float, runs))
    return found


def by_hand(nb, normalise, reach=lambda layer, size: (layer - size // 2, layer + size // 2)):
    clean, dirty = nb.pair.clean_tokens, pl.STR("subject").tokens(nb.pair)
    _, cache = nb.model.run_with_cache(clean)
    [(place,)] = nb.pair.at("last_subject")

    def difference(logits):
        return (logits[0, -1, nb.pair.answers] - logits[0, -1, nb.pair.wrong_answers]).item()

    def restore(mlp_out, hook):
        mlp_out[:, place] = cache[hook.name][:, place]
        return mlp_out

    def effect(layer, size):
        first, last = reach(layer, size)
        layers = range(max(first, 0), min(last, nb.model.cfg.n_layers - 1) + 1)
        hooks = [(f"blocks.{each}.hook_mlp_out", restore) for each in layers]
        with torch.no_grad():
            runs = [nb.model(clean), nb.model(dirty)]
            runs.append(nb.model.run_with_hooks(dirty, fwd_hooks=hooks))
        return normalise(*map(difference, runs))

    return effect


def share(clean, dirty, patched):
    return (patched - dirty) / (clean - dirty)


def peak(nb, position, metric="logit_diff"):
    sweep = pl.sweep(
        nb.model,
        nb.pairs,
        {"STR": pl.STR("subject")},
        "mlp",
        positions=position,
        window=[nb.w],
        progress=False,
    )
    return pl.peaks(sweep).peak["STR", metric, nb.w]


def ratio(nb, metric="logit_diff"):
    return peak(nb, "first_subject", metric) / peak(nb, "last_subject", metric)


SOLUTIONS = {
    "3.1f.1": (
        lambda nb: shares(nb, share),
        {
            "the effects themselves": lambda nb: shares(nb, lambda clean, dirty, pt: pt - dirty),
            "not by the clean probability": lambda nb: shares(
                nb, lambda clean, dirty, pt: (pt - dirty) / clean
            ),
        },
    ),
    "3.1f.2": (
        lambda nb: by_hand(nb, share),
        {
            "the step in logits": lambda nb: by_hand(nb, lambda clean, dirty, pt: pt - dirty),
            "begins at its layer": lambda nb: by_hand(
                nb, share, lambda layer, size: (layer, layer + size - 1)
            ),
        },
    ),
    "3.1f.3": (
        ratio,
        {
            "upside down": lambda nb: 1 / ratio(nb),
            "by probability": lambda nb: ratio(nb, "prob"),
        },
    ),
}

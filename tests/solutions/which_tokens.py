from types import SimpleNamespace

import torch

import patchlib as pl


def given(model):
    pairs = pl.tasks.ioi(model, n=12)
    sweep, s1io = (pl.sweep(model, pairs, {"STR": pl.STR(site)}) for site in ("S2", "S1+IO"))
    # Two of them in one layer.
    return SimpleNamespace(
        model=model, pairs=pairs, sweep=sweep, s1io=s1io, heads=["6.3", "5.1", "5.0"]
    )


def logits(nb, of):
    effect = nb.s1io["STR"].effect.sel(metric="logit_diff").mean("prompt")
    layer, head = divmod(int(abs(effect.values).argmax()), effect.sizes["head"])
    runs = {"S2": nb.sweep["STR"], "S1+IO": nb.s1io["STR"]}
    return {
        site: of(fx.sel(metric="logit_diff").mean("prompt"), {"layer": layer, "head": head})
        for site, fx in runs.items()
    }


def by_hand(nb, finish, forgetful=False):
    clean, dirty = nb.pairs.clean_tokens, pl.STR("S1+IO").tokens(nb.pairs)
    _, cache = nb.model.run_with_cache(clean)

    def difference(logits):
        rows = torch.arange(len(nb.pairs))
        right, wrong = (logits[rows, -1, at] for at in (nb.pairs.answers, nb.pairs.wrong_answers))
        return (right - wrong).mean().item()

    def effect(heads):
        def restore(layer, head):
            name = f"blocks.{layer}.attn.hook_z"

            def hook(z, hook):
                z[:, :, head] = cache[name][:, :, head]
                return z

            return name, hook

        hooks = [restore(*map(int, head.split("."))) for head in heads]
        with torch.no_grad():
            runs = [nb.model(clean), nb.model(dirty)]
            hooks = hooks[-1:] if forgetful else hooks
            runs.append(nb.model.run_with_hooks(dirty, fwd_hooks=hooks))
        return finish(*map(difference, runs))

    return effect


def share(clean, dirty, patched):
    return (patched - dirty) / (clean - dirty)


def nats(nb, site, metric="kl"):
    fx = pl.patch_together(nb.model, nb.pairs, nb.heads, corruption=pl.STR(site))
    return float(fx.effect.sel(metric=metric))


def best(nb, choose=max):
    return choose(("S1", "IO"), key=lambda site: nats(nb, site))


SOLUTIONS = {
    "F.1": (
        lambda nb: logits(nb, lambda fx, at: float(fx.patched.sel(at) - fx.corrupted)),
        {
            "these are shares of the way": lambda nb: logits(
                nb, lambda fx, at: float(fx.effect.sel(at))
            ),
            "the patched runs' logit differences": lambda nb: logits(
                nb, lambda fx, at: float(fx.patched.sel(at))
            ),
        },
    ),
    "F.2": (
        lambda nb: by_hand(nb, share),
        {
            "does every hook know its own head": lambda nb: by_hand(nb, share, forgetful=True),
            "the patched run's logit difference": lambda nb: by_hand(
                nb, lambda clean, dirty, patched: patched
            ),
        },
    ),
    "F.3": (
        lambda nb: (best(nb), nats(nb, best(nb))),
        {
            "at the other one they bring back more": lambda nb: (
                best(nb, min),
                nats(nb, best(nb, min)),
            ),
            "that of both names replaced": lambda nb: (best(nb), nats(nb, "S1+IO")),
        },
    ),
}

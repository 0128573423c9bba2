from types import SimpleNamespace

import patchlib as pl


def given(model):
    pairs = pl.tasks.ioi(model, n=12)
    each = ["5.1", "5.0"]
    zero = pl.self_repair(
        model, pairs, [*each, each], with_=pl.Zero(), keep_prompts=True, progress=False
    )
    together = ", ".join(each)
    return SimpleNamespace(model=model, pairs=pairs, each=each, zero=zero, together=together)


def most(nb):
    # The last row is of all of them together.
    made_up = nb.zero.heads.isel(removed=-1).mean("prompt").squeeze("metric").to_series()
    layer, head = made_up.dropna().idxmax()
    return f"{layer}.{head}", made_up.max()


def share(nb, of="direct"):
    head, nats = most(nb)
    return head, nats / float(nb.zero[of].sel(removed=nb.together).mean())


def losses(nb, what="total"):
    parts = [nb.each[0], most(nb)[0]]
    fx = pl.self_repair(nb.model, nb.pairs, [*parts, parts], with_=pl.Zero(), progress=False)
    return fx[what].values.ravel()


def direct(z, W_O, gain, scale, direction):
    return (z @ W_O * gain / scale) @ direction


SOLUTIONS = {
    "15.1": (
        share,
        {
            "in nats": most,
            "of all that is repaired": lambda nb: share(nb, "repaired"),
        },
    ),
    "15.2": (
        lambda nb: direct,
        {
            "the norm divides": lambda nb: lambda z, W_O, gain, scale, d: (z @ W_O * gain) @ d,
            "gain is missing": lambda nb: lambda z, W_O, gain, scale, d: (z @ W_O / scale) @ d,
        },
    ),
    "15.3": (
        lambda nb: losses(nb)[2] - losses(nb)[:2].sum(),
        {
            "the sign is turned": lambda nb: losses(nb)[:2].sum() - losses(nb)[2],
            "the loss of both": lambda nb: losses(nb)[2],
        },
    ),
}

from types import SimpleNamespace

import patchlib as pl

OPTIONS = {"corruption": pl.STR("S2"), "metrics": "logit_diff", "progress": False}


def given(model):
    pairs = pl.tasks.ioi(model, n=1)
    eap = pl.attribute_edges(model, pairs, **OPTIONS)
    # What is patched here is a stand-in, of the same form.
    exact = pl.attribute_edges(model, pairs, steps=3, **OPTIONS)
    return SimpleNamespace(model=model, pairs=pairs, eap=eap, exact=exact, ig=exact)


def effects(fx):
    return fx.effect.squeeze("metric").to_series().dropna()


def wrong(nb):
    exact, eap = effects(nb.exact), effects(nb.eap)
    return "->".join(exact[exact * eap < 0].abs().idxmax())


def right_sign(nb):
    exact, eap = effects(nb.exact), effects(nb.eap)
    return "->".join(exact[exact * eap > 0].abs().idxmax())


def count(layers, heads, readers=3, logits=True):
    total, writers = 0, 1
    for _ in range(layers):
        total += readers * heads * writers + writers + heads
        writers += heads + 1
    return total + logits * writers


def alone(nb, *, cut=False):
    effect, every = effects(nb.ig), pl.Edges.of(nb.model)
    chosen = {"size": effect.abs().nlargest(332).index, "sign": effect.nlargest(332).index}
    circuits = {name: pl.Edges(edges) for name, edges in chosen.items()}
    if cut:
        circuits = {name: every - circuit for name, circuit in circuits.items()}
    fx = pl.edge_faithfulness(nb.model, nb.pairs, circuits, corruption=pl.STR("S2"), progress=False)
    return dict(zip(circuits, fx.faithfulness.values[0].tolist(), strict=True))


SOLUTIONS = {
    "21.1": (
        wrong,
        {
            "that edge has the right sign": lambda nb: right_sign(nb),
            "is no edge of this model": lambda nb: "9.9->logits",
        },
    ),
    "21.2": (
        lambda nb: count,
        {
            "three times": lambda nb: lambda layers, heads: count(layers, heads, readers=1),
            "the logits read": lambda nb: lambda layers, heads: count(layers, heads, logits=False),
        },
    ),
    "21.3": (
        alone,
        {
            "wrong way round": lambda nb: dict(
                zip(("sign", "size"), alone(nb).values(), strict=True)
            ),
            "you cut these edges": lambda nb: alone(nb, cut=True),
        },
    ),
}

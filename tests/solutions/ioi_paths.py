from types import SimpleNamespace

import numpy as np
import torch

import patchlib as pl

HOW = {"direction": "noise", "metrics": ["logit_diff"], "keep_prompts": True, "progress": False}


def given(model):
    pairs = pl.tasks.ioi(model, n=8)
    writes = {
        site: pl.path_patch(model, pairs, "head", "logits", corruption=pl.STR(site), **HOW)
        for site in ("ABC", "S2")
    }
    circuit = {"Writers": ["5.1", "5.0", "6.3"], "S-Inhibition": ["3.7", "4.2"]}
    needed = pl.minimality(model, pairs, circuit, with_=pl.Mean(site="ABC"), progress=False)
    return SimpleNamespace(
        model=model,
        pairs=pairs,
        writes=pl.Sweep(writes),
        needed=needed.squeeze("metric", drop=True),
    )


def share(nb, site="ABC", only_helpful=True):
    mean = nb.writes[site].effect.sel(metric="logit_diff").mean("prompt").values
    three = np.sort(mean.ravel())[-3:].sum()
    return three / (mean[mean > 0] if only_helpful else mean).sum()


def by_hand(nb, sign=1, mlps_answer=False):
    model, pairs = nb.model, nb.pairs
    if mlps_answer:
        fx = nb.writes["ABC"].effect.sel(metric="logit_diff").mean("prompt")
        return lambda layer, head: float(fx.sel(layer=layer, head=head))
    logits, clean = model.run_with_cache(pairs.clean_tokens)
    dirty, other = model.run_with_cache(pairs.corrupted_tokens("ABC"))

    def difference(logits):
        rows = torch.arange(len(pairs))
        return (logits[rows, pairs.answers] - logits[rows, pairs.wrong_answers]).mean().item()

    start, end = difference(logits[:, -1]), difference(dirty[:, -1])

    def effect(layer, head):
        name = f"blocks.{layer}.attn.hook_z"
        change = (other[name] - clean[name])[:, -1, head] @ model.W_O[layer, head]
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        stream = clean[last][:, -1:] + change[:, None]
        patched = difference(model.unembed(model.ln_final(stream))[:, -1])
        return sign * (start - patched) / (start - end)

    return effect


def removed(nb, choose):
    change = nb.needed.change.sel(without="nothing").to_series()
    return getattr(change, choose)()


SOLUTIONS = {
    "13.1": (
        share,
        {
            "leave out what works against": lambda nb: share(nb, only_helpful=False),
            "with S2 swapped": lambda nb: share(nb, "S2"),
        },
    ),
    "13.2": (
        by_hand,
        {
            "the sign is turned": lambda nb: by_hand(nb, -1),
            "that lets MLPs answer": lambda nb: by_hand(nb, mlps_answer=True),
        },
    ),
    "13.3": (
        lambda nb: removed(nb, "idxmax"),
        {
            "helps most": lambda nb: removed(nb, "idxmin"),
            "not in the circuit": lambda nb: "0.3",
        },
    ),
}

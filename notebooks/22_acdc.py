# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 22 ACDC: cut edges until it hurts
#
# **Time** 20 minutes, with the exercises 40 · **Beyond the paper** [Conmy et al., NeurIPS 2023](https://arxiv.org/abs/2304.14997) (ACDC), [Syed et al. 2023](https://arxiv.org/abs/2310.10348), with [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 2 · **Before this** `10_directions`, `21_edges_and_eap`
#
# Patching tells what one component does. But the aim is a *circuit*: a small set of edges that does the task while all
# others carry another sentence. Nobody can try all sets. ACDC is the simplest search there is: walk from the logits
# back, cut one edge after the other, and take the cut back only where the model's answer changes by more than a
# threshold τ.
#
# Does it find the right circuit? On GPT-2 nobody can say. Here it runs on a small model that was trained to have a stated
# circuit of twelve edges ([25](25_known_circuit.ipynb) tells how). At the end you can run ACDC, choose τ, say which two
# kinds of edges it misses and why, and what it costs beside a gradient.

# %%
import pandas as pd

import patchlib as pl

model, pairs, S = pl.start("3_1_ioi", "known", n=8)
options = {"corruption": pl.STR("ABC"), "progress": False}
pl.show_pairs(model, pairs, "ABC", n=1)

# %% [markdown]
# ## 1 One decision by hand
#
# A cut edge carries what its writer writes in the corrupted sentence; all others carry what theirs write now. So a
# circuit is run by *noising every edge outside it*. Here are three edges into the logits, each cut alone: what is lost of
# the logit difference?

# %%
every = pl.Edges.of(model)


def value(circuit, metric="logit_diff"):
    cut = every - circuit
    fx = pl.patch_edges(model, pairs, cut, direction="noise", metrics=metric, **options)
    return fx.patched.item()


three = ["4.3->logits", "5.2->logits", "mlp5->logits"]
{edge: round(value(every) - value(every - pl.Edges([edge])), 3) for edge in three}

# %% [markdown]
# 4.3 is this model's Name Mover, 5.2 its negative Name Mover: without it the answer gets *better*. MLP 5 does next to
# nothing. A rule that asks "does the answer get clearly worse?" keeps the first edge alone.
#
# ACDC asks another question: **does the model still say the same?** Its metric is the KL divergence from the whole
# model to the circuit, over all next tokens, and that grows whichever way the answer moves. An edge is cut for good where KL
# grows by less than τ, and the next edge is judged with this one gone.
#
# ## 2 All decisions
#
# There are 1,108 edges, 460 if a head's query, key and value are one reader (`merged`). Guess: how many are left at
# τ = 0.01, and how many of the twelve true ones are among them?

# %%
pl.predict("22-1", "30, with 10 of 12")

# %%
true = set(pl.known.edges(pairs, options["corruption"]))
found = pl.acdc(model, pairs, 0.01, merged=True, **options)


def ends(pruning):
    return {(edge.writer, edge.reader.lstrip("qkv")) for edge in pruning.circuit}


found

# %%
heads = set(pl.known.HEADS.values())
kept = {str(head) for head in heads} & {writer for writer, _ in ends(found)}
pl.claim(
    "22-1",
    len(kept) == len(heads) and len(ends(found)) < 460 / 10,
    heads=pl.Heads(sorted(kept)),
    edges=len(ends(found)),
    true=len(true & ends(found)),
    of=460,
)

# %% [markdown]
# On the known model 32 edges stay, which are twelve when queries, keys and values are merged: the twelve true ones, and
# no other. How much KL would have grown without each of them, in the order of the decisions:

# %%
stayed = found.decisions.where(~found.decisions.removed, drop=True)
stayed.change.to_series().round(3)

# %% [markdown]
# KL has no sign. The figure has one: what each edge between heads, cut alone, takes from the logit difference. **Look
# for** arrows that take a third of the answer or more, and that stand in the list with less than 0.1.

# %%
names = {str(head): name for name, head in pl.known.HEADS.items()} | {"logits": "logits"}
cuts = {
    f"{w}->{r}": [e for e in found.circuit if (e.writer, e.reader.lstrip("qkv")) == (w, r)]
    for w, r in sorted(ends(found))
    if {w, r} <= {*names}
}
alone = pl.patch_edges(model, pairs, cuts, direction="noise", metrics="logit_diff", **options)
effects = alone.effect.squeeze("metric").to_series()
arrows = {tuple(names[end] for end in edge.split("->")): x for edge, x in effects.items()}
pl.plot.circuit({name: [head] for name, head in pl.known.HEADS.items()}, arrows, about=alone)

# %% [markdown]
# On the known model these are the arrows of the two votes, and of `previous`, which serves one of them. Without one vote the
# right name is still much likelier than the wrong one, so that probabilities, and KL with them, hardly move.
#
# Two savings make ACDC cheap, and neither changes a decision. A run begins at the layer of the reader. And where all
# edges *out of* a head are cut, nobody reads it any more: what it reads goes without a run.

# %%
pd.Series(
    {
        "decisions": found.decisions.sizes["edge"],
        "runs": found.passes,
        "bound on KL: τ times cuts": 0.01 * int(found.decisions.removed.sum()),
        "KL": found.value,
    }
).round(4)

# %% [markdown]
# The bound is no comfort: hundreds of small steps may add up. That they did not is luck, or the model; measure the
# circuit's KL at the end, always.
#
# ## 3 The threshold
#
# Now τ from small to large, each time from the whole model. **Look for** the order in which true edges go. Guess first:
# which true head is the first to lose its edge to the logits?

# %%
pl.predict("22-2", "the negative one")

# %%
TAUS = [0.001, 0.01, 0.06, 0.2, 1]
by_tau = pl.acdc_sweep(model, pairs, TAUS, merged=True, reuse=False, **options)


def row(pruning):
    here = ends(pruning)
    counts = {"edges": len(here), "not true": len(here - true), "metric": round(pruning.value, 3)}
    return counts | {f"{w}->{r}": "kept" * ((w, r) in here) for w, r in sorted(true)}


pd.DataFrame({tau: row(each) for tau, each in by_tau.items()})


# %%
def last_tau(edge):
    return max((tau for tau, each in by_tau.items() if edge in ends(each)), default=0)


movers = {name: last_tau((str(pl.known.HEADS[name]), "logits")) for name in ("mover", "negative")}
pl.claim("22-2", movers["negative"] < movers["mover"], **movers)

# %% [markdown]
# A negative head takes a third of the Name Mover's weight away, so that KL hardly grows without it. ACDC does not look
# for edges that *work*, it looks for edges that the output *needs*; the weak ones go first, whatever they do.
#
# ## 4 Two that do the same
#
# The table shows a second loss. Duplicate 2.2 and induction 2.0 both tell S-Inhibition which name is repeated. With
# either alone the model says nearly the same. Which of them goes is then a matter of *order*. `reverse`, as before,
# visits the last writers first, `forward` the first ones, and a number draws an order. Guess for τ = 0.2.

# %%
pl.predict("22-3", "2.0 goes in one order, 2.2 in the other")

# %%
votes = {str(pl.known.HEADS[name]) for name in ("duplicate", "induction")}
by_order = {"reverse": by_tau[0.2]} | {
    order: pl.acdc(model, pairs, 0.2, order=order, merged=True, **options)
    for order in ("forward", 0)
}
voters = {order: sorted(votes & {w for w, _ in ends(each)}) for order, each in by_order.items()}
pd.DataFrame({"votes": voters, "KL": {order: each.value for order, each in by_order.items()}})

# %%
one_each = all(len(each) == 1 for each in voters.values())
pl.claim(
    "22-3",
    one_each and voters["reverse"] != voters["forward"],
    reverse=voters["reverse"],
    forward=voters["forward"],
)

# %% [markdown]
# Where the rows differ, a paper that reports one order reports a coin. To KL the two votes of the known model are the OR of
# [10](10_directions.ipynb), though its gate is their mean and the logit difference misses either: noising one part loses
# next to nothing while its partner is there, and ACDC noises one edge at a time. Once the partner is gone the other one is
# needed, and stays. So run several orders, and join what they keep.
#
# ## 5 KL or the task?
#
# By the logit difference an edge goes where the answer loses less than τ. Guess how many of the true edges are left
# with as small a threshold as above.

# %%
pl.predict("22-4", "all 12")

# %%
by_task = pl.acdc(model, pairs, 0.01, metric="logit_diff", merged=True, **options)
pd.DataFrame({"KL": row(found), "logit difference": row(by_task)})

# %%
pl.claim(
    "22-4",
    len(true & ends(found)) > len(true & ends(by_task)),
    kl=len(true & ends(found)),
    logit_diff=len(true & ends(by_task)),
    true=len(true),
)

# %% [markdown]
# The metric has a sign, and what works against the answer goes at *any* threshold: its removal is an improvement. Such a
# circuit does the task better than the model, and is not what the model does. (The row `metric` holds the KL of the first
# circuit and the logit difference of the second.) That more wrong edges stay is a matter of units: 0.01 is much
# for KL and little for a difference of logits.
#
# ## 6 What it costs beside a gradient
#
# Attribution ([21](21_edges_and_eap.ipynb)) scores all edges with two forward passes and one backward. Take as many of
# its top edges as ACDC kept. Syed et al. found attribution better than ACDC on three tasks. Guess: here?

# %%
pl.predict("22-5", "attribution finds 9 of 12")

# %%
eap = pl.attribute_edges(model, pairs, direction="noise", **options)
size = abs(eap.effect).squeeze().to_series().dropna()
size = size.groupby(lambda edge: (edge[0], edge[1].lstrip("qkv"))).sum()
top = {*size.nlargest(len(ends(found))).index}
pl.claim(
    "22-5",
    len(true & top) > len(true & ends(found)),
    eap=len(true & top),
    acdc=len(true & ends(found)),
)

# %% [markdown]
# On the known model it is the other way round. The one gradient is taken where attention is saturated, which hides edges that
# are needed ([21](21_edges_and_eap.ipynb)), and the true circuit is as small as ACDC likes them;
# [26](26_which_method_finds_the_circuit.ipynb) repeats this with other models and corruptions.
#
# On larger models there is little choice: a decision is a run, and decisions come one after the other. `mini` has 2,477
# merged edges. So attribution **preselects**, and ACDC decides among its top edges alone. Mind the first row: what was
# not selected is cut before ACDC begins, and no threshold gives back what that costs.

# %%
mini = pl.load_model("mini")
few, s2 = pl.tasks.ioi(mini, 4), options | {"corruption": pl.STR("S2")}
scores = pl.attribute_edges(mini, few, direction="noise", **s2)
order = abs(scores.effect).squeeze().to_series().dropna().sort_values(ascending=False).index


def preselected(n):
    some = pl.acdc(mini, few, 0.02, among=order[:n], merged=True, **s2)
    first = some.decisions.isel(edge=0)
    before = float(first.value - first.change)
    return {"KL before": before, "KL": some.value, "edges": len(some.circuit), "runs": some.passes}


pd.DataFrame({n: preselected(n) for n in (100, 300, 800)}).round(2)

# %% [markdown]
# On `mini` 300 of 6,637 edges look like plenty, and have lost more than half of what there is to lose (the corrupted run
# is 4.5 nats away) before ACDC asks its first question. With 800 nearly all is there. What ACDC then adds it adds in
# steps below τ, hundreds of them: this is the bound of section 2 at work.
#
# A sweep over thresholds can prune on what the threshold below it left (`reuse`). That is cheaper, and circuits are
# nested. It is another rule: an edge is judged when others are gone already that would still be there from scratch.

# %%
nested = pl.acdc_sweep(model, pairs, TAUS, merged=True, **options)
pd.DataFrame(
    {
        name: {tau: f"{len(ends(each))} edges, {each.passes} runs" for tau, each in sweep.items()}
        for name, sweep in {"from scratch": by_tau, "pruned on": nested}.items()
    }
)

# %% [markdown]
# ## Summary
#
# * ACDC cuts edges from the logits back and keeps those without which KL to the whole model grows by τ or more.
# * It keeps what the output needs: weak edges, negative heads first, go as τ grows.
# * Of two that do the same it keeps one, and the order decides which. Run several.
# * A signed metric throws out what works against the answer, at any τ.
# * One run for each decision. Preselect by attribution, and look at what the selection itself costs.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 The next to go.** Of the edges that stayed in `found`, which one is nearest to being cut, and by how much did KL
# grow without it?

# %%
answer = {"edge": ..., "change": ...}  # such as "4.3->logits"
pl.check("22.1", answer, found=found)

# %% [markdown]
# **2 The rule.** Write ACDC without a model: a function of a list of edges, in the order of the decisions, of a function
# `loss` that maps a set of edges to a number, and of τ. It returns the set that is left. It is tried on gates.

# %%
my_acdc = ...  # a function of edges, loss and tau
pl.check("22.2", my_acdc)

# %% [markdown]
# **3 Another order.** Guess first: by which merged edges do the circuits in the order `"reverse"` and `"forward"` of
# section 4 differ? Give the edges that only one of them has.

# %%
answer = {"reverse": ..., "forward": ...}  # two lists of edges such as "4.3->logits"
pl.check("22.3", answer, by_order=by_order)

# %% [markdown]
# **To discuss.** "ACDC found that no negative head plays a role." Which three things would you ask before you believe it? Next:
# [23](23_causal_scrubbing.ipynb), which tests what a circuit is *said* to do.

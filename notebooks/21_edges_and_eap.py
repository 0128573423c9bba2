# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 21 From heads to edges: who tells whom, from one gradient
#
# **Time** 25 minutes, with the exercises 50 · **Works** [Syed, Rager & Conmy, 2023](https://arxiv.org/abs/2310.10348) (EAP); [Hanna, Pezzelle & Belinkov, 2024](https://arxiv.org/abs/2403.17806) (EAP-IG), with [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042) · **Before this** [13](13_ioi_circuit_of_smollm2.ipynb), [20](20_attribution_patching.ipynb)
#
# A list of heads is no circuit. It says who matters, and not who listens to whom. In [13](13_ioi_circuit_of_smollm2.ipynb)
# paths were patched a few at a time, from the logits back. Why not all of them at once? Because there are very many: a
# run for each, on each prompt, takes a day where heads take minutes.
#
# Two passes and one gradient give an estimate for **every** edge (EAP). A few gradients more, taken on the way between the
# two sentences, mend its worst fault (EAP-IG). At the end you can compute both by hand, say when each is wrong, cut out a
# circuit of any size, and put a number under it.

# %%
import pandas as pd
import torch

import patchlib as pl

model, pairs, S = pl.start("3_1_ioi", n=3)
how = {"corruption": pl.STR("S2"), "progress": False}
options = how | {"metrics": "logit_diff"}
mini = pl.load_model("mini")  # small enough to patch every edge
ours = pl.tasks.ioi(mini, n=2)

# %% [markdown]
# ## 1 What an edge is
#
# The embedding, each head and each MLP **write** into the residual stream. Each head's query, key and value, each MLP and
# the logits **read** it: what they read is the sum of all that was written before. Each summand of each reader is an edge.
# To patch the edge `4.6->q5.0` means that the query of 5.0, and nothing else, reads what 4.6 writes in the other run.
#
# SmolLM2 has 30 layers of nine heads, and `mini` 8 of eight. Guess how many edges each has.

# %%
pd.Series({"this model": len(pl.Edges.of(model)), "mini": len(pl.Edges.of(mini))})

# %% [markdown]
# ## 2 One edge by hand
#
# The simplest reader is the logits. By how much does head 5.0 of `mini` write something else at the last token in the two
# runs? Add that to what the logits read in the corrupted run, and the edge is patched. Multiply it by the gradient there
# instead, and you have EAP's estimate, without a run.

# %%
one = ours[:1]
with torch.no_grad():
    _, clean = mini.run_with_cache(one.clean_tokens)
    _, corrupted = mini.run_with_cache(one.corrupted_tokens("S2"))
change = (clean["z", 5] - corrupted["z", 5])[0, -1, 0] @ mini.blocks[5].attn.W_O[0]
read = corrupted["resid_post", 7][:, -1:].clone().requires_grad_()


# %%
def margin(logits):
    return logits[0, -1, one.answers[0]] - logits[0, -1, one.wrong_answers[0]]


def difference(stream):
    return margin(mini.unembed(mini.ln_final(stream)))


difference(read).backward()
with torch.no_grad():
    by_hand = {
        "patched": difference(read + change).item(),
        "estimated": (difference(read) + read.grad[0, 0] @ change).item(),
    }

# %%
place = {"writer": "5.0", "reader": "logits"}
theirs = {
    "patched": pl.patch_edges(mini, one, "5.0->logits", **options).patched.item(),
    "estimated": pl.attribute_edges(mini, one, **options).patched.sel(place).item(),
}
pd.DataFrame({"by hand": by_hand, "patchlib": theirs}).round(4)

# %%
pl.claim(
    "By hand the same",
    all(abs(by_hand[name] - theirs[name]) < 1e-3 for name in by_hand),
    difference=max(abs(by_hand[name] - theirs[name]) for name in by_hand),
)

# %% [markdown]
# ## 3 All edges of mini, patched and estimated
#
# For `mini` the truth can be had: a run for each of its edges. Guess how well the estimate correlates with it.
#
# **Look for** points far from the dashed line, and for points in the upper left or lower right corner, where even the sign
# is wrong.

# %%
exact = pl.patch_edges(mini, ours, **options)
eap = pl.attribute_edges(mini, ours, **options)
pl.plot.scatter(exact, eap, n=3)


# %%
def effects(fx):
    return fx.effect.squeeze("metric").to_series().dropna()


table = pd.DataFrame({"patched": effects(exact), "EAP": effects(eap)})
largest = table.loc[table.patched.abs().nlargest(100).index]
agree = (largest.patched * largest.EAP > 0).mean()
pd.Series({"correlation": table.corr().iloc[0, 1], "right sign, of the 100 largest": agree}).round(
    3
)

# %%
wrong = table[table.patched * table.EAP < 0]
wrong.loc[wrong.patched.abs().nlargest(5).index].round(3)

# %% [markdown]
# On `mini` the estimate of the edges into the logits is nearly exact. Those that leave the embedding come out much too
# small, and some, into queries, keys and MLPs, have the wrong sign. Both have one cause.
#
# ## 4 Why a gradient misses
#
# Walk from the corrupted sentence to the clean one: mix the two embeddings of S2, and measure the logit difference at each
# step. EAP knows this walk by its first step only, the **slope where it begins**. Guess the form of the walk: is it
# straight?


# %%
def walk(share):
    mixed = there + share * (here - there)
    return margin(mini.run_with_hooks(away, fwd_hooks=[("hook_embed", lambda *_, **__: mixed)]))


away = one.corrupted_tokens("S2")
with torch.no_grad():
    there, here = corrupted["hook_embed"], clean["hook_embed"]
    height = pd.Series({share: walk(share).item() for share in (0, 0.1, 0.2, 0.4, 0.6, 0.8, 1)})
whole = height[1] - height[0]
slope = pl.attribute_edges(mini, one, **options).effect.sel(writer="resid0").sum().item()
pd.DataFrame({"walk": (height - height[0]) / whole, "EAP": slope * height.index}).T.round(2)

# %% [markdown]
# The upper row is the walk, as a share of the whole; the lower one goes on as the walk begins. It begins flat and is steep
# in the middle. In both sentences the model is sure of its answer: attention that is fixed on one place, and a norm that
# one direction fills, hardly answer to a small change. This is saturation.
#
# A gradient is right about small changes, and S2 is no small change. An edge that first hurts a little and later helps has
# the wrong sign.
#
# ## 5 Gradients on the way: EAP-IG
#
# The remedy of Hanna et al.: take the gradient at several points of the walk, and their mean. (The mean of all slopes is
# the whole rise: the fundamental theorem of calculus.) So the edges that **leave the embedding**, which alone goes straight,
# must add up to the whole effect, 1, if the points are many. Guess what they add up to with one gradient (EAP) and with five.
# Those **into the logits** are a cut through all paths as well: do they add up to 1, too?

# %%
pl.predict("21-1", "EAP .5, five steps .9")  # what the embedding's edges add up to, in this model

# %%
rows = {}
for steps in (1, 2, 5, 10, 20, 50):
    fx = pl.attribute_edges(mini, ours, steps=steps, **options).effect
    rows[steps] = {
        "from the embedding": fx.sel(writer="resid0").sum().item(),
        "into the logits": fx.sel(reader="logits").sum().item(),
    }
pd.DataFrame(rows).round(3)

# %%
estimates = {
    "EAP": pl.attribute_edges(model, pairs, **options),
    "EAP-IG": pl.attribute_edges(model, pairs, steps=5, **options),
}
total = {name: fx.effect.sel(writer="resid0").sum().item() for name, fx in estimates.items()}
pl.claim("21-1", abs(total["EAP-IG"] - 1) < abs(total["EAP"] - 1) / 2, **total)

# %% [markdown]
# On SmolLM2 EAP's edges from the embedding add up to −.15: its walk begins downhill. Five gradients bring them to 1.00.
#
# On `mini`, into the logits, the sum stays short of 1, however many the steps: later nodes do not walk straight while the embedding
# does. An EAP-IG score is an edge's *share* of the whole, and no estimate of what patching it alone would do. Is it then the
# worse estimate of that?

# %%
ig = pl.attribute_edges(mini, ours, steps=5, **options)
table["EAP-IG"] = effects(ig)
table.corr().patched.round(3)

# %% [markdown]
# Both correlate, and neither is the other. What a score is good for shows only in what it is used for.
#
# ## 6 A circuit of any size
#
# Take the strongest edges by size, n of them, in the clean run; every other edge carries what it carries in the corrupted
# one. **Faithfulness** is how far such a circuit comes on the way from the corrupted logit difference to the clean one: 1
# with all edges, 0 with none, exactly. Two areas sum up the curve: **CPR**, below it (large is good), and **CMD**, between
# it and 1 (small is good), as in the benchmark MIB.
#
# Guess how many percent of the edges come four fifths of the way, and whether EAP-IG needs fewer than EAP.

# %%
pl.predict("21-2", "5 %, and EAP-IG fewer")

# %%
curves = {name: pl.faithfulness_curve(model, pairs, fx, **how) for name, fx in estimates.items()}
pl.plot.sizes(curves)

# %%
areas = {area: {name: fx[area].item() for name, fx in curves.items()} for area in ("cmd", "cpr")}
cmd, cpr = areas.values()
tied = {name: abs(area["EAP-IG"] - area["EAP"]) < 0.01 for name, area in areas.items()}
pl.claim("21-2", cmd["EAP-IG"] < cmd["EAP"], close=tied["cmd"], **cmd)

# %%
pl.claim("21-3", cpr["EAP-IG"] > cpr["EAP"], close=tied["cpr"], **cpr)

# %% [markdown]
# Areas less than .01 apart count as too close to call: three prompts decide no more. On SmolLM2 they are, and the curves are
# not: with a thousandth of its edges EAP-IG comes half of the way and EAP next to nowhere. Nine tenths of the axis, and so of
# CPR, lie to the right of 10 % (the figure's axis is logarithmic), where every ranking does well and nobody looks for a
# circuit. Look at the curve before you quote an area.

# %%
hundredth = {name: fx.faithfulness.sel(share=0.01).item() for name, fx in curves.items()}
pl.claim("21-4", hundredth["EAP-IG"] > hundredth["EAP"], **hundredth)

# %% [markdown]
# The same for `mini`, and with the edges that exact patching ranks highest. Guess: is the exact ranking the best?

# %%
ranked = {"patched alone": exact, "EAP": eap, "EAP-IG": ig}
found = {name: pl.faithfulness_curve(mini, ours, fx, **how) for name, fx in ranked.items()}
pl.plot.sizes(found)

# %% [markdown]
# On `mini` the exact ranking finds hardly better circuits than EAP, for 6,637 runs a prompt, and EAP-IG far better ones than
# both: a twentieth of the edges comes nine tenths of the way, where the others come less than half. (In MIB, too: exact
# patching of edges has a CMD of .29, EAP-IG one of .07.) Exact is the answer to another question. Patched alone into the
# corrupted run, an edge whose partners are missing does nothing; the ranking that knows each effect best need not find the
# edges that work *together*.
#
# ## 7 A circuit to look at
#
# By size alone edges may hang in the air: their writer hears nothing, or nobody hears their reader. Hanna et al. therefore
# grow a circuit back from the logits, and prune what does not lead from the embedding. **Look for** who reads with a query
# (q), who with a value (v), and who writes to the logits.

# %%
strongest = pl.rank_edges(model, estimates["EAP-IG"], grow=True)[:60]
circuit = pl.Edges(strongest).pruned(model)
pl.plot.edges(circuit, estimates["EAP-IG"])

# %%
alone = pl.edge_faithfulness(model, pairs, circuit, **how)
alone[["model", "empty", "circuit_alone", "faithfulness"]].to_dataframe().round(2)

# %% [markdown]
# On SmolLM2 the drawing reads like the story of [13](13_ioi_circuit_of_smollm2.ipynb), which took a page of path patching:
# 17.4 tells 20.0 which name is repeated (v), 20.0 and 19.2 tell the queries of layer 23 where to look (q), 23.3 writes to the
# logits, and 24.4 listens to layer 23 and works against it.
#
# Compare the table with the drawing before you believe in it. On SmolLM2 these 54 edges come six tenths of the way, which
# starts far below 0: their logit difference is still negative, so that on average they prefer the *wrong* name. A drawing
# looks like an explanation, and may not even do the task.
#
# ## Summary
#
# * An edge is one summand of what one reader reads. There are tens of thousands.
# * EAP: the change of the writer times the gradient at the reader, all from one backward pass. It is good where little
#   changes, and wrong, also in sign, where something saturates. Rank by size, not by sign.
# * EAP-IG: the mean of gradients on the way. From the embedding it adds up to the whole effect; elsewhere it need not.
#   With `along="activations"` each writer goes its own way in its turn, and every node's edges add up to what patching the
#   node does, at the price of those gradients for each writer.
# * A score is judged by the circuits that it finds: faithfulness by size, CPR, CMD. Say at which size, with which
#   corruption, and over which positions (here all together).

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Read the table.** Of all edges of `mini` for which EAP has the wrong sign, which has the largest effect when it is
# patched? Give the edge.

# %%
answer = ...  # an edge such as "0.1->q4.2"
pl.check("21.1", answer, exact=exact, eap=eap)

# %% [markdown]
# **2 How many edges?** Write a function of the numbers of layers and of heads in a layer that returns the number of edges
# of a model like GPT-2, in which the MLP reads the heads of its own layer. GPT-2 small, 12 and 12, has 32,491.

# %%
my_count = ...  # a function of layers and heads
pl.check("21.2", my_count)

# %% [markdown]
# **3 By size or by sign?** Take 332 edges of `mini` (5 %) by EAP-IG: once the largest in size, once the most helpful. Guess
# first which circuit is more faithful. Then measure both with `pl.edge_faithfulness`.

# %%
answer = {"size": ..., "sign": ...}  # two faithfulnesses
pl.check("21.3", answer, model=mini, pairs=ours, ig=ig)

# %% [markdown]
# **To discuss.** Two circuits of a hundred edges have the same faithfulness, and ten edges in common. Which is the circuit of
# the model? Next: [22](22_acdc.ipynb), which cuts one edge after another and looks each time what is left.

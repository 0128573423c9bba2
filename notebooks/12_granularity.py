# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12 One answer under the microscope
#
# **Time** 20 minutes, with the exercises 40 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 2.1; [Wang et al., ICLR 2023](https://arxiv.org/abs/2211.00593), Section 3 · **Before this** `03_1_ioi_circuit`, `03_2_out_of_distribution`
#
# "Head 20.0 of SmolLM2 matters" sounds like the end of a search. Which *part* of the head? It looks somewhere (its
# query meets the keys of earlier tokens, which gives its attention pattern), and it takes something from there (the
# values). Each can be patched alone. Each MLP is 1,536 neurons, which can be patched alone, too. And nobody makes you
# begin with heads.
#
# Here you follow **one answer to one sentence** through six sizes: residual stream, attention and MLP, head, pattern
# and value, query and key, neuron. At the end you can choose the size that answers your question, add parts up and know
# when that must give the whole, and test whether one head acts *through the query* of another.

# %%
import pandas as pd

import patchlib as pl

model, pairs, S = pl.start("3_1_ioi", n=50)
one, options = pairs[3:4], {"corruption": pl.STR("S2"), "metrics": "logit_diff", "progress": False}
pl.show_pairs(model, one, "S2")

# %% [markdown]
# ## 1 The residual stream: where is the answer?
#
# The largest piece is the whole stream at one token before one layer. An effect of 1 restores the clean logit
# difference of this sentence, 0 changes nothing.
#
# **Look for** the layers at which the dark column ends, and the one at which the next begins.

# %%
stream = pl.patch(model, one, "resid", positions="each", **options)
pl.plot.heatmap(stream)

# %% [markdown]
# Tokens before S2 are white: they are the same in both runs. What was replaced is at S2 first and at the last token in
# the end. In between it *moves*: on SmolLM2 in layers 20 to 23. The map says when and where to, but not what moved it.
#
# ## 2 Attention or MLP?
#
# What a layer adds to the stream comes from its attention and from its MLP. Only one of them can carry something from
# S2 to the last token. Guess which of the two has the larger effects at the last token all the same, added up over
# layers (their absolute values).

# %%
halves = {
    part: pl.patch(model, one, part, positions=["S2", "last"], **options)
    for part in ("attn", "mlp")
}
pl.plot.lines(halves)

# %%
size = {
    part: abs(fx.effect).sum("layer").squeeze("metric").to_series() for part, fx in halves.items()
}
pd.DataFrame(size).round(2)

# %% [markdown]
# On SmolLM2 three steps stand out: MLP 0 at S2, which makes of a token what all later layers read; attention in layer
# 17 at S2; attention in layers 20 and 23 at the last token, against which layer 24 works. Effects of parts need not add
# up to 1: a later layer reads an earlier one, so that the same information is restored by both, and counted twice.
#
# ## 3 Which heads?
#
# Attention of one layer is the sum of its heads. The five strongest of this sentence, at all positions:

# %%
heads = pl.patch(model, one, **options)
strongest = pl.Heads(pl.strongest(heads, n=5)["head"])
pl.plot.heatmap(heads)

# %% [markdown]
# ## 4 Where it looks, or what it finds?
#
# A head's output z is its pattern times the values. The pattern comes from its queries and the keys. Restore each
# alone, in the five heads. (Where heads share keys and values, in SmolLM2 in groups of three, those of one head are
# those of its group.)
#
# In SmolLM2 23.3 and 20.0 look at S2, 24.4 at the right name. Guess for each: does the exchange of S2 change where it
# looks, or what it finds there?


# %%
def restore(parts, prompts=one, **more):
    return pl.patch_together(model, prompts, parts, **options, **more).effect.item()


LETTERS = ["q", "k", "pattern", "v"]
pd.DataFrame({a: {str(h): restore([h], activation=a) for h in strongest} for a in LETTERS}).round(2)

# %% [markdown]
# A row with everything under `v` is a head that looks at the same place in both runs and finds another name there. A
# row with everything under `q` is a head that is *told* where to look.
#
# ## 5 What must add up, and what need not
#
# Parts of one thing can be restored together. Then some sums are no matter of luck: pattern times values *is* z. Here
# are three things and their parts, all of the strongest head's layer; `head` is the z of all its heads. Guess: where are
# the parts together exactly the whole, and where is the sum of what they do alone?

# %%
layer = strongest[0].layer
WHOLES = {
    f"pattern{layer}": [f"q{layer}", f"k{layer}"],
    f"head{layer}": [f"pattern{layer}", f"v{layer}"],
    f"attn{layer}": [f"{layer}.{head}" for head in range(model.cfg.n_heads)],
}

# %%
sums = {
    whole: {
        "whole": restore([whole]),
        "parts together": restore(parts),
        "sum of parts alone": sum(restore([part]) for part in parts),
    }
    for whole, parts in WHOLES.items()
}
pd.DataFrame(sums).T.round(3)

# %%
pl.claim(
    "Parts restored together are the whole",
    all(abs(row["whole"] - row["parts together"]) < 1e-3 for row in sums.values()),
    difference=max(abs(row["whole"] - row["parts together"]) for row in sums.values()),
)

# %% [markdown]
# *Together* is exact, on any model and any prompt, because nothing else reads the parts. The *sum of effects* is not: a
# softmax stands between query and pattern, a product between pattern and value. Whoever splits a head's effect into "40
# % query, 60 % value" has to say how the two were restored.
#
# ## 6 Down to neurons
#
# The smallest piece that has a name. One MLP, the one with the largest effect at the last token, and each of its
# neurons alone.
#
# Guess: how many of them reach half of the effect of all?

# %%
mlp = int(abs(halves["mlp"].effect).sel(position="last").squeeze().argmax("layer"))
neurons = pl.patch(model, one, "neuron", layers=[mlp], positions="last", **options)
pl.plot.ranked(neurons)

# %%
effect = neurons.effect.squeeze(["metric", "layer"]).to_series()
order = effect.abs().sort_values(ascending=False).index


def top(n):
    return restore([f"neuron{mlp}.{unit}" for unit in order[:n]], positions="last")


pd.Series({n: top(n) for n in (1, 3, 10, 30, 100, len(order))}, name=f"MLP {mlp}").round(3)

# %% [markdown]
# The last line is the effect of the MLP again. Between the ends lies the price of a small unit: no neuron says much,
# and a list of neurons is a list of a few of very many.
#
# ## 7 From one sentence to a finding
#
# Nothing so far is more than an anecdote. But it leads to a question that prompts can answer. Wang et al. found in
# GPT-2 small that S-Inhibition heads, which look at S2, act **through the queries of the Name Movers**: they tell them
# where not to look. If so, the Name Movers' own queries should bring the answer back, their keys and values should not.

# %%
few = pairs[:20]
roles = pl.head_roles(model, pairs)
movers, readers = (
    pl.Heads(roles.index[roles.role == role]) for role in ("Name Mover", "S-Inhibition")
)
asked = movers or pl.Heads(roles.IO.nlargest(3).index)
senders = readers or pl.Heads(roles.S2.nlargest(3).index)
roles.loc[map(str, asked | senders), ["IO", "S1", "S2", "copies", "role"]].round(2)

# %%
pl.predict("12-1", "q .5, k 0, v 0")  # your three numbers

# %%
by_letter = {a: restore(asked, few, activation=a) for a in "qkv"}
by_letter |= {"z of S-Inhibition": restore(senders, few)}

# %%
pl.claim(
    "12-1",
    by_letter["q"] > 2 * max(abs(by_letter["k"]), abs(by_letter["v"])),
    parts=bool(movers),
    **by_letter,
    prompts=len(few),
)

# %% [markdown]
# That is half of the sentence: the queries carry it. The other half, that *these* heads wrote what the queries read,
# takes a patch of a path: the senders change, and the receiver alone reads the change. Everything else stays as it was
# in the corrupted run.

# %%
path = {
    a: pl.path_patch(model, few, senders, [f"{a}{h}" for h in asked], **options).effect.item()
    for a in "qkv"
}
pl.claim(
    "12-2",
    path["q"] > 2 * max(abs(path["k"]), abs(path["v"])),
    parts=bool(movers and readers),
    **path,
    prompts=len(few),
)

# %% [markdown]
# On SmolLM2 the Name Movers' queries bring back two fifths of the answer, and nearly all of that comes on the path from
# the S-Inhibition heads. But their whole output brings back all of it. The rest goes another way: of the three, 23.3
# and 25.2 stand beside and behind the Name Movers and cannot reach their queries ([13](13_ioi_circuit_of_smollm2.ipynb)
# follows them to the logits).
#
# ## Summary
#
# * Begin with the stream by position, then halves of layers, then heads; go down only where the larger unit says that
#   something happens.
# * Parts restored together are exactly the whole. Effects of parts alone need not add up, to it or to 1.
# * `v` says that a head finds something else, `q` that it is sent elsewhere. Under shared keys and values, `k` and `v`
#   speak of a group of heads.
# * One sentence gives questions; findings take prompts. That a query carries a message does not yet say who sent it.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Read the table.** For each of the five heads of section 4: which of `q`, `k` and `v`, restored alone, changes most
# (in absolute value)? On `one`, as in the section.

# %%
answer = {"20.0": ...}  # a letter for each of the five heads
pl.check("12.1", answer, model=model, pairs=one, heads=strongest)

# %% [markdown]
# **2 Pattern times value.** Write a function of a head's pattern (query, key) and of the values that it reads (key,
# d_head) that returns its z (query, d_head). It is tried on a head of the model.

# %%
my_z = ...  # a function of pattern and values
pl.check("12.2", my_z, model=model, pairs=one)

# %% [markdown]
# **3 Do effects of neurons add up?** Take the ten strongest neurons of section 6. Guess first: is the effect of all ten
# together the sum of their effects alone? Give both, and how far apart they would have to be for you to say no.

# %%
answer = {"sum": ..., "together": ...}
pl.check("12.3", answer, model=model, pairs=one, neurons=neurons)

# %% [markdown]
# **To discuss.** A paper reports "the neuron that knows who was said twice". Which of the sizes above would you want to
# see beside it, and why? Next: [13](13_ioi_circuit_of_smollm2.ipynb), the whole circuit, path by path.

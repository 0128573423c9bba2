# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 Taking a head out: what do you put in its place?
#
# **Time** 20 minutes, with the exercises 40 · **Beyond the paper** [Wang et al., ICLR 2023](https://arxiv.org/abs/2211.00593), [McGrath et al. 2023](https://arxiv.org/abs/2307.15771) and Chan et al. 2022, with [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 2 · **Before this** `10_directions`
#
# "I removed the head, and the answer broke." A head cannot be removed. Its output is a vector, later layers read a
# vector, and something has to stand there: zeros, a mean, or the output for another sentence. The choice looks like a
# detail. On SmolLM2 it decides whether the most important head of this task is one that reads names, or one of the
# first two layers that writes the same thing whatever the names are.
#
# At the end you can say what each replacement takes away *beside* what you meant, measure how far it lies from anything
# that the model has seen, and choose.

# %%
import pandas as pd
import torch

import patchlib as pl

model, pairs, S = pl.start("11_ablation")
pl.show_pairs(model, pairs, "ABC", n=1)

# %% [markdown]
# ## 1 Three replacements
#
# There is one run, the clean one, and in it one head at a time gets another output:
#
# * **zero**: nothing. Also what the head writes for *every* sentence is gone.
# * **mean**: its mean over other sentences of the task, at each token. What all of them have in common stays.
# * **resample**: its output for another sentence, drawn at random; the effect is the mean over draws. McGrath et al.
#   draw 15, here it is five.
#
# Effects are positive where the head helps: 1 means that nothing of the clean logit difference is left.
#
# Guess: will the heads with the largest effects be the same? **Look for** frames in one row and not in the others.

# %%
pl.predict("11-1", "the same heads")

# %%
reference = pl.tasks.ioi(model, n=S["n_reference"])
SOURCES = {
    "zero": pl.Zero(),
    "mean": pl.Mean(reference),
    "resample": pl.Resample(reference, draws=S["draws"]),
}
gone = {
    name: pl.ablate(model, pairs, with_=source, keep_prompts=True, progress=False)
    for name, source in SOURCES.items()
}
sweep = pl.Sweep(gone)
pl.plot.heatmaps(sweep.mean, ["logit_diff", "kl"])

# %%
sweep.overlap("zero", "resample")

# %%
only_zero = sweep.found("zero") - sweep.found("resample")
pl.claim(
    "11-1", bool(only_zero), only_zero=only_zero, both=sweep.found("zero") & sweep.found("resample")
)

# %% [markdown]
# On SmolLM2 zeros bring up heads of the first two layers, by logit difference and still more by KL, where they outdo
# all others. Under the other two these heads are nearly white. What did the zeros take away that another sentence's output does not?
#
# ## 2 How far is zero?
#
# Collect what a head writes at the last token in a hundred other clean sentences: a cloud of vectors. The distance from
# that cloud counts in the cloud's own spread (Mahalanobis, as in [3.2](03_2_out_of_distribution.ipynb)). The unit is
# another clean sentence: 1 is ordinary.
#
# Heads to look at: the five strongest by zeros (KL), and the six strongest when all names are exchanged (ABC, noising),
# which takes away only what the names say.

# %%
abc = pl.patch(model, pairs, corruption=pl.STR("ABC"), direction="noise", progress=False)
top = [*pl.strongest(sweep.mean["zero"], "kl", 5)["head"], *pl.strongest(abc, n=6)["head"]]
heads = pl.Heads(sorted({*pl.Heads(top)}))


# %%
def last_token(tokens):
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: "hook_z" in name)
    return {head: cache["z", head.layer][:, -1, head.head].double().cpu() for head in heads}


cloud, mine = last_token(reference.clean_tokens[-100:]), last_token(pairs.clean_tokens[:40])
other = last_token(pl.STR("ABC").tokens(pairs[:40]))

# %% [markdown]
# Guess for zeros and for the mean: nearer than another sentence (below 1), or further (above)? The same for all heads?

# %%
pl.predict("11-2", "zero 3, mean 1")  # your two distances


# %%
def away(head, points):
    return pl.distance(points.numpy(), cloud[head].numpy())[0]


def distances(head):
    clean, zero, mean = mine[head], torch.zeros_like(mine[head]), mine[head].mean(0, keepdim=True)
    points = {"zero": zero, "mean": mean, "names replaced": other[head]}
    row = {name: away(head, each).mean() for name, each in points.items()}
    return pd.Series(row | {"nearest sentence": away(head, clean).min()}) / away(head, clean).mean()


far = pd.DataFrame({str(head): distances(head) for head in heads}).T
far.round(2)

# %%
pl.claim("11-2", bool((far.zero > 1).all()), zero=far.zero.round(1))

# %%
pl.claim(
    "11-3",
    bool((far["mean"] < far["nearest sentence"]).all()),
    mean=far["mean"].max(),
    nearest=far["nearest sentence"].min(),
)

# %% [markdown]
# Two surprises. Zero is far from the cloud, on SmolLM2 more than forty times as far as another sentence, but only where a
# head writes nearly the same for every sentence: then the cloud is small and lies far from the origin. A head that
# writes another name in every sentence, as 23.3 and 24.4 of SmolLM2 do, has a cloud around the origin, and zero is
# *nearer* to its middle than a sentence is. And the mean is in the middle by construction, where no sentence of many
# dimensions is. Neither is a typical output. Only resampling is ordinary, since it *is* an output.
#
# ## 3 Effects beside distances
#
# Now both in one table: how many logits each replacement costs, and how far zero lies.


# %%
def lost(fx):
    difference = (fx.clean - fx.patched).sel(metric="logit_diff")
    return difference.mean(set(difference.dims) - {"layer", "head"}).to_series()


costs = pd.DataFrame({name: lost(fx) for name, fx in {**sweep.mean, "names replaced": abc}.items()})
table = costs.loc[list(heads)].set_index(far.index)
table.assign(distance_of_zero=far.zero).round(2)

# %% [markdown]
# Read a row from left to right. Where zero lies far and costs much, and the other columns cost nothing, later layers
# had come to *rely* on what this head always writes: a constant, which says nothing about this sentence. That is no
# error of the measurement, the model really breaks. It is an answer to another question: "does the model need this
# vector?", not "does this head know who gets the ring?"
#
# Where do the replacements agree about *all* heads? Rank correlations of the columns:

# %%
agreement = costs.corr("spearman")
agreement.round(2)

# %%
pl.claim(
    "Resampling agrees more with the mean than with zeros",
    agreement.loc["resample", "mean"] > agreement.loc["resample", "zero"],
    **agreement.loc["resample", ["zero", "mean", "names replaced"]],
)

# %% [markdown]
# The last column exchanges the names and nothing else; resampling exchanges the whole sentence: its template, its
# places and objects, and the order of the names. Both are resampling. They differ in *what the pool of sentences has in
# common*, and that is yours to choose.
#
# ## 4 The mean of what?
#
# The same choice hides in a mean. Over all templates, one token is a name here and a verb there, and the mean is
# neither: it mixes roles. Wang et al. therefore take means within a template. `by="roles"` takes them over sentences
# whose names stand at the same places.
#
# Mind what such sentences have in common, besides: *which* of the two names, the first or the second, is said again.
# Guess: what does the narrow mean take from a head that says just that? Wang et al. take it over sentences with three
# different names (p_ABC), the last line here.

# %%
pl.predict("11-4", "nothing")

# %%
MEANS = {
    "over all": pl.Mean(reference),
    "by roles": pl.Mean(reference, by="roles"),
    "by roles, ABC": pl.Mean(reference, by="roles", site="ABC"),
}
means = {name: pl.ablate(model, pairs, with_=mean, progress=False) for name, mean in MEANS.items()}
table = pd.DataFrame({name: lost(fx)[list(heads)].values for name, fx in means.items()}, far.index)
table.round(2)

# %%
total = {name: float(fx.effect.sel(metric="kl").sum()) for name, fx in means.items()}
pl.claim("11-4", total["over all"] > total["by roles"], **total)

# %% [markdown]
# On SmolLM2 17.4 and 20.0 cost about a logit under the mean over all, and nothing under the narrow one:
# within sentences of one form it is always the same of the two names that is said again, so that the mean *still says
# it*. Two of the most important heads leave the list, not since they do nothing, but since all sentences of the
# reference agree on what they do. With p_ABC they are back, since there nobody is said twice. A reference has to vary
# in what you ask about, and in nothing else.
#
# ## 5 Noise
#
# The last candidate: the head's output in a run whose names are drowned in noise. **Look for** heads at which noise and
# replaced names disagree.

# %%
few, names = pairs[:20], {"STR": pl.STR("ABC"), "GN": pl.GN("IO+S1+S2")}
noisy = {
    run: lost(pl.patch(model, few, corruption=c, direction="noise", heads=heads, progress=False))[
        list(heads)
    ].values
    for run, c in names.items()
}
pd.DataFrame(noisy, index=far.index).round(2)

# %% [markdown]
# On SmolLM2 they agree at the late heads, and part in layer 0, whose heads read the noisy tokens themselves: an
# embedding with noise is nothing that they know ([3.2](03_2_out_of_distribution.ipynb)).
#
# ## 6 How many draws?
#
# A resampled effect is a mean over draws, and a draw can be unlucky. **Look for** heads that change their place.

# %%
draws = pl.ablate(
    model, pairs, with_=SOURCES["resample"], keep_draws=True, metrics="logit_diff", progress=False
)
pl.plot.draws(draws)

# %% [markdown]
# Each draw is a mean over many sentences already, every one with a stranger of its own, so that little is left to
# chance. For the effect on a *single* sentence one draw would say next to nothing.
#
# ## Summary
#
# * Nothing is removed, something is put in its place. Say what, and from which sentences.
# * Zero asks whether the model needs the vector at all; a mean or another sentence asks whether it needs what is
#   *particular* to this one.
# * Zero and mean are both untypical, on different sides: measure it, head by head.
# * For "which heads do this task", resample, or replace tokens. Keep zero for "can the model do without".

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Overrated.** For which head does zeroing cost most beyond resampling, in logits, and for which least (perhaps less
# than resampling)? Read both from `costs`, over all heads.

# %%
answer = {"most": ..., "least": ...}  # a head each, such as "4.6"
pl.check("11.1", answer, costs=costs)

# %% [markdown]
# **2 Three ablations of a toy.** A model is a function `m` of one activation, which has the values `values` over a few
# sentences. Write a function of m, values and the number of a sentence that returns what zero, mean and resample
# ablation of that sentence cost: m of its own value, minus m ablated. The mean is over all sentences, resampling over
# all *others*.

# %%
my_costs = ...  # a function of m, values and number, which returns three numbers
pl.check("11.2", my_costs)

# %% [markdown]
# **3 Where does the zero hurt?** Take the head that zeroing makes look most important by KL. Guess at which of IO, S1,
# S2 and the last token the damage is done. Then zero it at one of them at a time, in the first ten sentences
# (`pl.ablate` with `heads` and `positions`). Give the position, and the share of the KL of zeroing everywhere that it
# alone reaches.

# %%
worst = pl.strongest(sweep.mean["zero"], "kl", 1)["head"][0]
answer = (..., ...)  # position, share
pl.check("11.3", answer, model=model, pairs=pairs[:10], head=worst)

# %% [markdown]
# **To discuss.** "Ablating this head costs 2 logits." List what has to follow in the sentence before you believe it.
# Next: [12](12_granularity.ipynb), smaller than a head.

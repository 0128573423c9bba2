# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 15 Remove a head, and others step in
#
# **Time** 20 minutes, with the exercises 40 · **Papers** [McGrath et al., 2023](https://arxiv.org/abs/2307.15771), [McDougall et al., 2023](https://arxiv.org/abs/2310.04625), [Rushing & Nanda, 2024](https://arxiv.org/abs/2402.15390); to Section 2.1 of [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042) · **Before this** `04_2_negative_heads`, `11_ablation`
#
# The Name Movers of GPT-2 small write the answer. Wang et al. removed all three, and the logit difference hardly moved.
# Were they unimportant? No: when they fall silent, other heads do something else than before. Whoever judges a head by
# what is lost without it measures the head *and* everybody's answer to its absence.
#
# At the end you can split a loss into what was removed and what came back, name who brought it back, set apart the share
# that is no head's doing at all, and say when an ablation tells you little about the part that you removed.

# %%
import pandas as pd

import patchlib as pl

model, pairs, S = pl.start("3_1_ioi", n=60)
roles = pl.head_roles(model, pairs)
movers, negative = (
    pl.Heads(roles.index[roles.role == role]) for role in ("Name Mover", "Negative Name Mover")
)
roles.loc[[str(head) for head in movers | negative], ["IO", "S1", "S2", "role"]].round(2)

# %% [markdown]
# ## 1 What a head writes, and what is lost without it
#
# Everything that a head says about the answer in its own voice is what it adds to the residual stream at the last token,
# read through the final norm and the unembedding: its **direct effect**. Sums are exact here. The logit difference *is*
# the sum of what all heads, all MLPs and the embedding write, as long as the norm divides by the same number.
#
# Now take the head out and run the rest. If nothing else changed, the logit difference would fall by the direct effect.
# Whatever is missing from that fall was **made up**:
#
# $$\text{repaired} = \text{direct} - \text{total} = \sum_\text{later heads} + \sum_\text{later MLPs} + \text{norm}.$$
#
# Guess: of what the Name Movers write, which share comes back when they are set to zero, all of them together?

# %%
pl.predict("15-3", "a quarter")

# %%
each = [str(head) for head in movers or pl.Heads(roles.IO.nlargest(3).index)]
together = ", ".join(each)
zero = pl.self_repair(
    model, pairs, [*each, each], with_=pl.Zero(), keep_prompts=True, progress=False
)
shares = pl.repaired_share(zero)
shares.round(2)

# %% [markdown]
# A row for each head and, last, one for all of them. `direct` and `total` are in nats of the logit difference; all other
# columns are shares of `direct`, and `heads`, `mlps` and `norm` add up to `share`. **Look at** `total` beside `direct`. On
# SmolLM2 23.0 writes most of the three and is hardly missed, and without 23.1 the answer comes out better than before.

# %%
made_up = zero.heads.sum(["layer", "head"]) + zero.mlps.sum("layer") + zero.norm
pl.claim(
    "The parts add up to what was made up, in every prompt",
    float(abs(made_up - zero.repaired).max()) < 1e-3,
    largest_difference=float(abs(made_up - zero.repaired).max()),
)

# %%
pl.claim(
    "15-3",
    shares.total[together] < 0.1 * float(zero.clean.mean()),
    parts=movers,
    clean=float(zero.clean.mean()),
    written=shares.direct[together],
    lost=shares.total[together],
)

# %% [markdown]
# ## 2 Who steps in?
#
# Each cell of the map says by how much a head's own direct effect *rises* when the Name Movers are gone. Heads upstream
# cannot know of it and stay at exactly 0; the removed ones are hatched. Guess before you look: many heads a little, or few
# heads a lot? And are those that step in Name Movers that were silent before?

# %%
gone = zero.sel(removed=together).rename(heads="effect")
pl.plot.heatmap(gone)

# %%
steps_in = pl.strongest(gone, n=6)
before = pl.direct_effect(
    model, pairs, corruption=pl.STR("ABC"), direction="noise", metrics="log_odds", progress=False
)
writes = (before.clean - before.patched).sel(metric="log_odds").stack(cell=["layer", "head"])
steps_in["writes"] = [float(writes.sel(cell=tuple(pl.Head.of(h)))) for h in steps_in["head"]]
steps_in.round(2)

# %% [markdown]
# `writes` is what each of them writes *before* anything is removed, against three unrelated names. Wang et al. found
# **Backup** Name Movers in GPT-2 small, heads that begin to copy the name. On SmolLM2 the largest cell of the map belongs
# to 24.4, which writes *against* the right name: a negative head that falls silent helps as much as a positive one that
# wakes up. McDougall et al. explain why it does. Such a head takes down whatever the layers before it are about to copy
# (**copy suppression**). No copy, nothing to suppress.

# %%
by_negative = sum(float(gone.effect.sel(layer=h.layer, head=h.head).mean()) for h in negative)
repaired = float(gone.repaired.mean())
pl.claim(
    "15-2",
    by_negative > repaired / 3,
    parts=movers and negative,
    by_negative_heads=by_negative,
    repaired=repaired,
)

# %% [markdown]
# An explanation can be tested: remove the negative heads *as well*. If the rest had a reserve of its own, it would still
# step in.

# %%
against = [str(head) for head in negative]
both = pl.self_repair(
    model, pairs, [each, [*each, *against]], with_=pl.Zero(), keep_prompts=True, progress=False
)
pl.repaired_share(both).round(2)

# %% [markdown]
# On SmolLM2 the share of later heads falls from more than half to less than a tenth: what looked like a reserve of many
# heads was one head's silence.
#
# ## 3 Nobody's doing: the final norm
#
# The last column is no component's answer. The removed heads also made the residual stream *longer*; without them the
# final norm divides by less, and everything that is left counts for more. It would happen if all later layers were
# frozen. Rushing & Nanda put it at about 30 % of the direct effect, over many heads and models.

# %%
alone = shares.loc[each]
pl.claim(
    "15-4",
    0.1 < float(alone.norm.mul(alone.direct).sum() / alone.direct.sum()) < 0.5,
    parts=movers,
    share_of_direct=alone.norm.to_dict(),
)

# %% [markdown]
# ## 4 How you remove decides how much is repaired
#
# Zeros are something that no later head has ever seen. Three ways to take the same heads out: zeros; the mean over prompts
# with three other names, as in Wang et al.; and the output on another sentence, as in McGrath et al. and Rushing & Nanda.
# The last one does not silence a Name Mover: it makes it name somebody else. Guess which of the three is repaired least.

# %%
SOURCES = {"zero": pl.Zero(), "mean": pl.Mean(site="ABC"), "resample": pl.Resample()}
ways = {
    name: pl.self_repair(
        model, pairs, [each[0], each], with_=source, keep_prompts=True, progress=False
    )
    for name, source in SOURCES.items()
}
table = pd.concat({name: pl.repaired_share(fx) for name, fx in ways.items()})
table.round(2)

# %%
resampled = table.loc["resample", together]
pl.claim(
    "15-1",
    0 < resampled.share < 1,
    close=resampled.low < 0 < resampled.high or resampled.low < 1 < resampled.high,
    parts=movers,
    share=resampled.share,
    interval=[resampled.low, resampled.high],
)

# %% [markdown]
# Read the intervals before the differences: two shares whose intervals overlap widely have not been told apart by these
# prompts.
#
# ## 5 A mean that few prompts look like
#
# A share of 40 % could mean that every sentence gets 40 % back, or that some get everything and others nothing. Guess
# which. Then look at the sentences one by one, under resampling.

# %%
one = ways["resample"].sel(removed=together, metric="logit_diff")
single = one[["direct", "total", "repaired", "norm"]].to_dataframe().drop(columns="metric")
single[["direct", "total", "repaired", "norm"]].quantile([0.05, 0.25, 0.5, 0.75, 0.95]).round(2)

# %%
more, less = float((one.repaired > one.direct).mean()), float((one.repaired < 0).mean())
pl.claim("15-5", min(more, less) > 0.02, parts=movers, more_than_all=more, less_than_nothing=less)

# %% [markdown]
# In some sentences more comes back than was taken, in others the loss *grows*. Both disappear in the mean. Whoever reports
# "the model repairs 40 %" should add over what, how removed, and how far single prompts lie from it.
#
# ## Summary
#
# * total = direct − repaired. A small total effect says that a head is not *missed*, not that it does nothing.
# * Repair has three parts: later heads, later MLPs, and the final norm, which is arithmetic and no mechanism.
# * A negative head that has nothing left to suppress repairs as well as a backup. Look for both signs.
# * Zeros, means and other sentences ask three different questions, and get three different shares.
# * The direct effect of a head can be read without removing anything: `pl.direct_effect`.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 The largest share.** All Name Movers are removed by zeros, as in section 2. Which head makes up most, and which share
# of the *direct* effect is that? Compute it from `zero` with means over prompts.

# %%
answer = ...  # a pair, such as ("9.9", 0.1)
pl.check("15.1", answer, zero=zero, together=together)

# %% [markdown]
# **2 A direct effect by hand.** Write the direct effect of one head as a function of `z` (its output at the last token,
# d_head numbers), `W_O` (d_head × d_model), `gain` and `scale` (what the final norm multiplies and divides by) and
# `direction` (the unembedding of the right answer minus that of the wrong one), all of them tensors. The norm takes no
# mean off, as in SmolLM2.

# %%
my_direct = ...  # a function of z, W_O, gain, scale and direction
pl.check("15.2", my_direct)

# %% [markdown]
# **3 Predict, then test.** Take the first Name Mover of `each` and, from your answer to 1, the head that makes up most.
# Remove both at once by zeros. Is the loss larger or smaller than the two losses alone together? Guess the sign; then give
# the difference in nats, loss of both minus sum of the losses, from one call of `pl.self_repair`.

# %%
answer = ...  # a number of nats
pl.check("15.3", answer, model=model, pairs=pairs, zero=zero, each=each)

# %% [markdown]
# **To discuss.** A colleague ablates every head, one at a time, and concludes from small losses that the model does not
# need heads for this task. Which two numbers do you ask for? Sets of heads are judged
# together in [13](13_ioi_circuit_of_smollm2.ipynb). Next: [20](20_attribution_patching.ipynb), where a gradient stands in
# for a sweep.

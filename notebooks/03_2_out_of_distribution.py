# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3.2 Does noise show you the model, or a model that is lost?
#
# **Time** 20 minutes, with the exercises 40 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 3.2, Figure 3 · **Before this** `03_1_ioi_circuit`
#
# Replace a name and the model reads a sentence like thousands that it was trained on. Add noise to the name and it reads
# something that no text ever held: an input **out of its distribution**. If heads then do what they never do on text,
# patching describes a machine that exists only in your experiment. A serious charge. What would be evidence for it?
#
# The paper looks over the shoulder of the **Name Movers**, the heads that copy the answer: where do they look when S2 is
# replaced, where when it is noise, and can they be brought back? At the end you can read a head's attention in a
# corrupted and in a repaired run, restore one activation of several heads at once, and say which part of the evidence is
# about noise and which is merely about missing information.

# %%
import pandas as pd
import torch

import patchlib as pl

model, pairs, S = pl.start("3_1_ioi", n=50)
few = pairs[:20]
pl.show_pairs(model, pairs, "S2", n=1)

# %% [markdown]
# ## 1 Two groups of heads
#
# Nothing here is a sweep: a handful of heads at a time, on fifty sentences, and on the first twenty where each number takes
# three runs.
#
# Notebook 3.1 found the heads by what they do on clean sentences. **Name Movers** look from the last token at the right name,
# IO, and copy what they look at. **S-Inhibition** heads look from the last token at S2; in GPT-2 small they tell the Name
# Movers which name *not* to look at. For GPT-2 small the lists are those of Wang et al.; for another model they are rules,
# and a head that fits one only acts like its class.

# %%
roles = pl.head_roles(model, pairs)
movers, inhibition = (
    pl.Heads(roles.index[roles.role == role]) for role in ("Name Mover", "S-Inhibition")
)
roles.loc[map(str, movers | inhibition), ["IO", "S1", "S2", "copies", "role"]].round(2)

# %% [markdown]
# Two stand-ins keep every cell below running on a model that has no such heads: the three that look most at IO, or at S2.
# Claims about Name Movers are then marked –.

# %%
heads = movers or pl.Heads(roles.IO.nlargest(3).index)
readers = inhibition or pl.Heads(roles.S2.nlargest(3).index)

# %% [markdown]
# ## 2 One head, one sentence
#
# An attention pattern says for each token (row) how much it takes from each earlier token (column). Only the last row
# matters here: that is where the answer is written. The three names are labelled by their part in the sentence. Click a
# small pattern to enlarge it. The first cell runs the model three times and keeps the patterns of both groups.
#
# **Look for** the two cells in the last row that change, from clean to STR and from clean to GN.

# %%
corruptions = {"STR": pl.STR("S2"), "GN": pl.GN("S2")}
runs = {"clean": None, **corruptions}
both = [*heads, *readers]
kept = {run: pl.attention_patterns(model, pairs, both, each) for run, each in runs.items()}
patterns = {run: each[: len(heads)] for run, each in kept.items()}

# %%
tokens = model.to_str_tokens(pairs.clean_tokens[0], prepend_bos=False)
for name in ("IO", "S1", "S2"):
    tokens[pairs.positions[name][0]] = name
first = torch.stack([each[0, 0] for each in patterns.values()])
pl.AttentionHeads(first, tokens, [f"{heads[0]} {run}" for run in patterns])

# %% [markdown]
# ## 3 All Name Movers, all sentences
#
# One sentence is an anecdote. Now the mean over the heads and the prompts. In a clean sentence S1 is the wrong name.
# Under STR at S2 the roles are exchanged: now the *other* name is said twice, and a model that reads the sentence should
# look at S1. And under noise? Guess the share of attention that IO keeps, beside that of S1.

# %%
pl.predict("32-4", "IO .35, S1 .15")  # your two numbers


# %%
def last_token(patterns):
    return pl.attention_to(patterns, pairs).mean(["head", "prompt"]).to_series()


attention = pd.DataFrame({run: last_token(each) for run, each in patterns.items()}).T
attention.attrs = roles.attrs
pl.plot.bars({"the loaded model": attention, "the paper, GPT-2 small": pl.paper.attention()})

# %%
pl.claim(
    "32-2",
    attention.IO["clean"] > attention.S1["clean"] + 0.3,
    parts=movers,
    **attention.loc["clean", ["IO", "S1"]],
)

# %%
swapped = attention.loc["clean"].rename({"IO": "S1", "S1": "IO"})
pl.claim(
    "32-3",
    abs(attention.loc["STR"] - swapped).sum() / 2 < 0.1,
    parts=movers,
    **attention.loc["STR", ["IO", "S1"]],
    distance_to_swapped=abs(attention.loc["STR"] - swapped).sum() / 2,
)

# %% [markdown]
# The distance is half the sum of the absolute differences of two rows: 0 for equal ones, 1 for rows that have nothing in
# common. The next claim asks for more than .1 from the clean row *and* from its mirror image.

# %%
pl.claim(
    "32-4",
    all(
        abs(attention.loc["GN"] - other).sum() / 2 > 0.1
        for other in (attention.loc["clean"], swapped)
    )
    and abs(attention.IO["GN"] - attention.S1["GN"]) < 0.1,
    parts=movers,
    **attention.loc["GN", ["IO", "S1"]],
)

# %% [markdown]
# Under STR the heads do just what they always do, for another sentence. Under GN they do neither. So noise breaks them?
# Not so fast.
#
# ## 4 Lost, or only uninformed?
#
# Noise at S2 does two things. It makes an odd input, *and it hides which name was said twice*. A healthy head that does
# not know would not prefer a name either. The paper has no run that tells these apart, but one is easy to make: replace
# **S1** by a stranger. "When Mary and *Alice* went to the store, John gave a drink to": an ordinary sentence, in which
# nobody is said twice.
#
# **Look for** the difference between the two rows at IO and S1. Is there anything left for noise to explain?

# %%
stranger = pl.attention_patterns(model, pairs, heads, pl.STR("S1"))
pd.DataFrame({"noise at S2": attention.loc["GN"], "stranger at S1": last_token(stranger)}).T.round(
    2
)

# %% [markdown]
# The second row's S1 is the stranger. On SmolLM2 and on `mini` the two names are less than .05 apart in either row: to
# prefer no name is what *not knowing* looks like, and no sign of a lost model. (On SmolLM2 the stranger's sentence shares
# the attention out among three names, each said once; noise leaves two.)
#
# One more trap. "As much at IO as at S1" is a statement about a mean. Are the single sentences undecided, too?

# %%
single = pl.attention_to(patterns["GN"], pairs).mean("head")
print("IO ahead of S1 in", f"{float((single.sel(to='IO') > single.sel(to='S1')).mean()):.0%}")
single[:8].to_pandas().round(2)

# %% [markdown]
# On `mini` most sentences are decided, for one name or for the other, and only their mean is not. So show the sentences
# before you write "the head looks at both".
#
# ## 5 Repair what steers them
#
# Here is a test that missing information does not explain so easily. The S-Inhibition heads carry the message from S2 to
# the last token. Give them back their clean **values** (`v`: what a head takes from a token it looks at). Their queries
# and keys (which decide where it looks) stay corrupted. If the message is all that was missing, the answer comes back.
#
# 1 is the clean logit difference, 0 the corrupted one. In the paper STR gets 1.04. What does GN get? (Where heads share their
# keys and values, in SmolLM2 in groups of three, restoring those of one head restores its group's.)

# %%
pl.predict("32-7", "0.9")  # your number


# %%
def recover(run, activation):
    what = {"corruption": corruptions[run], "activation": activation, "metrics": "logit_diff"}
    return pl.patch_together(model, few, readers, **what).effect.item()


recovered = pd.Series({run: recover(run, "v") for run in corruptions})

# %%
n = len(few)
pl.claim("32-6", recovered["STR"] > 0.9, parts=inhibition, STR=recovered["STR"], prompts=n)

# %%
pl.claim("32-7", recovered["GN"] < recovered["STR"] - 0.1, parts=inhibition, **recovered, prompts=n)

# %% [markdown]
# The same message, handed over in full, and under noise less of it arrives. Before you blame a lost model, ask the plain
# question: a value matters only where somebody looks. **Do these heads still look at S2?** And what if under noise their
# whole output `z` is restored, which no longer depends on where they look?

# %%
looks = {run: pl.attention_to(each[len(heads) :], pairs) for run, each in kept.items()}
at_S2 = {run: float(each.sel(to="S2").mean()) for run, each in looks.items()}
rows = {"attention to S2": at_S2, "v restored": recovered, "z restored": {"GN": recover("GN", "z")}}
pd.DataFrame(rows).loc[list(runs)].T.round(2)

# %% [markdown]
# STR leaves a *name* at S2, so that the readers find it as before, and only its content is wrong. Noise spoils the key as
# well: the heads turn away, and the restored value lies where nobody looks. On SmolLM2 the whole output brings
# everything back under noise. So noise corrupts **more than you meant to corrupt**: not only *which* name stands
# there, but *that* a name stands there.
#
# ## 6 And the Name Movers?
#
# With those values restored, where do the Name Movers look? **Look for** a colour that comes back to the height of
# the grey bar.

# %%
repaired = {
    run: pl.attention_patterns(model, pairs, heads, each, readers, "v")
    for run, each in corruptions.items()
}
restored = pd.DataFrame({run: last_token(each) for run, each in repaired.items()}).T
restored.attrs = roles.attrs
panels = {
    "corrupted": attention,
    "values restored": pd.concat([attention.loc[["clean"]], restored]),
}
pl.plot.bars(panels)

# %%
far = {run: abs(restored.loc[run] - attention.loc["clean"]).sum() / 2 for run in corruptions}
pl.claim(
    "32-8",
    abs(restored.loc["STR"] - attention.loc["clean"]).sum() / 2 < 0.05
    and abs(restored.loc["GN"] - attention.loc["clean"]).sum() / 2 > 0.1,
    parts=bool(movers and inhibition),
    distance_to_clean=far,
)

# %% [markdown]
# In GPT-2 small STR comes back to clean and GN stays about half-way, .40 at IO where clean has .58. On SmolLM2 not even
# STR comes back, although its *whole* logit difference does. Look at the layers in the table of section 1: two of the three
# heads that read S2 stand beside or behind the Name Movers and cannot steer them. They must act on the answer in another
# way. A repaired answer does not say by which way it was repaired; the attention does.
#
# ## 7 How far out is it?
#
# "Out of distribution" can be measured. Fit a mean and a covariance to the residual stream of a hundred other clean
# sentences; then ask how far each of our first thirty lies from them once it is corrupted (the Mahalanobis distance). The
# unit is the distance of these thirty while they are clean, so that 1 is ordinary.
#
# **Look for** the first and the last layer at S2, and for the columns of the last token.

# %%
cloud = pl.tasks.ioi(model, n=150, prepend_bos=S["prepend_bos"])[50:]
away = {
    run: pl.ood(model, pairs[:30], corruption, ["S2", "last"], reference=cloud)
    for run, corruption in corruptions.items()
}
means = {run: each.corrupted.mean(["draw", "prompt"]).to_series() for run, each in away.items()}
distance = pd.DataFrame(means).unstack()
distance[:: max(1, model.cfg.n_layers // 8)].round(2)

# %%
pl.claim(
    "6-2",
    distance["GN", "S2"].mean() > 1.5 * distance["STR", "S2"].mean(),
    **distance.mean().unstack().T,
    prompts=30,
)

# %% [markdown]
# The claim asks for a mean distance at S2 one and a half times that of STR. Mind what it does not say: this is the token
# that was noised, and the Name Movers read the last one. On SmolLM2 some of it arrives there in the middle of the model, and
# less than stands at S2.
#
# ## Summary
#
# * STR gives the model another sentence of the same kind: the Name Movers exchange IO and S1 and go on working.
# * Attention that prefers no name is what noise gives, and so does an ordinary sentence without the information. Build
#   the control before you call it a broken model.
# * Noise destroys more than the content: keys, too, so that a repaired value may lie where nobody looks. That is what
#   makes effects under GN hard to read, whether you call it out of distribution or not.
# * The paper calls its own evidence tentative, and recommends STR wherever a sensible replacement exists.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 The mirror.** How far is each run's attention from the *mirror image* of the clean row, in which IO and S1 have
# changed places? Measure half the sum of the absolute differences in the table `attention`, with pandas.

# %%
answer = {"STR": ..., "GN": ...}
pl.check("3.2.1", answer, attention=attention)

# %% [markdown]
# **2 Attention by hand.** Write a function of one head's attention pattern (prompt, query, key) and the name of a
# position. It returns how much the last token attends to that position, as a mean over prompts.
# `pairs.positions[name]` holds one place for each prompt.

# %%
my_attention = ...  # a function of pattern and name
pl.check("3.2.2", my_attention, model=model, pairs=pairs, head=heads[0])

# %% [markdown]
# **3 What steers them?** Restore the Name Movers' *own* queries, keys or values with `pl.patch_together(model, few,
# heads, corruption=..., activation=...)`. One letter carries what S2 says to these heads. Guess which, and whether
# restoring it helps as much under noise. Then test: give the letter that brings most of the logit difference back under
# STR, and what it brings back under each corruption.

# %%
answer = {"letter": ..., "STR": ..., "GN": ...}
pl.check("3.2.3", answer, model=model, pairs=few, heads=heads)

# %% [markdown]
# **To discuss.** "Under GN head 23.3 of SmolLM2 has the effect .50." Write down two different things that this number may
# mean, and a run that would tell them apart. Next: [4.2](04_2_negative_heads.ipynb), heads that one metric cannot see.

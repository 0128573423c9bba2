# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4.2 The heads that your metric cannot see
#
# **Time** 15 minutes, with the exercises 30 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 4.2, Figure 30 · **Before this** `03_1_ioi_circuit`
#
# Head 11.10 of GPT-2 small looks at the right name and writes *against* it. The logit difference finds it at once. The
# probability of the right name, under token replacement, does not. No bad luck with prompts, no bug: a short
# argument on paper says that it could hardly have come out otherwise, and you can make it before you run anything.
#
# At the end you can work out **in advance** whether a metric is able to show a negative effect, tell "no negative heads"
# from "no room for negative heads", and choose a corruption that leaves room.

# %%
import pandas as pd

import patchlib as pl

model, pairs, S = pl.start("4_2_negative_heads")
pl.show_pairs(model, pairs, "ABC", n=1)

# %% [markdown]
# ## 1 Three corruptions
#
# You know STR and GN at **S2**. The line above shows a third, **ABC**: all three names become three others. The right
# answer is still the *original* IO, a name that the corrupted sentence does not contain.
#
# **Look for** the column `prob`, the probability that each run leaves to the right name. Everything below follows from it.

# %%
METRICS, RUNS = ["prob", "logit_diff", "kl"], ["STR", "GN"]
sweep = pl.sweep(model, pairs, {"STR": pl.STR("S2"), "GN": pl.GN("S2")}, metrics=METRICS)
abc = pl.sweep(model, pairs, {"STR": pl.STR("ABC")}, metrics=METRICS)
pd.concat({"S2": sweep.runs(), "ABC": abc.runs()}).round(4)

# %%
pl.claim("42-4", abc.runs().prob["STR"] < 0.01 * abc.runs().prob["clean"], **abc.runs().prob)

# %% [markdown]
# ## 2 A floor that nobody can fall through
#
# The probability effect of a head is what its restoring adds: $P_\mathrm{patched} - P_*$, where $P_*$ is what the
# corrupted run gives to the right name. No probability is below 0, hence
#
# $$\text{effect} \ge -P_* .$$
#
# That is the **floor**. A head on the way up has nearly the whole range from $P_*$ to 1; a head on the way down has $P_*$
# and no more, however hard it pushes. The logit difference has no such bound in either direction, and the KL effect has
# one only at the top: no patch can be closer to the clean run than equal to it.
#
# It holds for each sentence, so that it holds for the mean. Compare the lowest effect of any head with the floor:

# %%
sweeps = {"STR at S2": sweep["STR"], "GN at S2": sweep["GN"], "STR at ABC": abc["STR"]}
prob = {run: fx.sel(metric="prob") for run, fx in sweeps.items()}
lowest = {run: float(fx.effect.mean("prompt").min()) for run, fx in prob.items()}
floor = {run: -float(fx.corrupted.mean()) for run, fx in prob.items()}
pl.claim(
    "42-7",
    all(bool((fx.effect >= -fx.corrupted - 1e-6).all()) for fx in prob.values()),
    lowest=lowest,
    floor=floor,
)

# %% [markdown]
# ## 3 The floor beside the threshold
#
# To be detected as negative, a head must fall below the mean of all heads minus two standard deviations. This threshold
# knows nothing of the floor: the strong *positive* heads make the standard deviation large and push it down. In GPT-2
# small under STR the threshold is −.027 and the floor −.03.
#
# If threshold / floor is near 1, a head must take nearly all of the probability away to be seen. **Above 1, no head can
# be detected, whatever it does.** Guess the ratio under STR and under GN.

# %%
pl.predict("42-2", "STR 0.5, GN 0.5")  # your two ratios

# %%
floors = {run: pl.floor(fx) for run, fx in sweep.items()}
pd.DataFrame(floors | {"ABC": pl.floor(abc["STR"])}).T.round(4)

# %%
pl.claim(
    "42-2",
    floors["STR"].ratio > 0.7,
    close=floors["STR"].low < 0.7 < floors["STR"].high,
    ratio=floors["STR"].ratio,
    interval=[floors["STR"].low, floors["STR"].high],
)

# %%
pl.claim(
    "42-3",
    floors["GN"].ratio < floors["STR"].ratio,
    close=floors["GN"].low < floors["STR"].ratio < floors["GN"].high,
    STR=floors["STR"].ratio,
    GN=floors["GN"].ratio,
)

# %% [markdown]
# `low` and `high` hold 95 % of the ratios over resampled prompts. On SmolLM2 the ratio under STR is above 1, and so is
# its interval: there the empty list of negative heads was certain before any head was patched. Under GN, where the
# corrupted run keeps more of the answer, the threshold takes a quarter of the room.
#
# ## 4 Who is missed?
#
# To say that a head is *missed* we have to know from elsewhere that it is negative. **Negative Name Movers** look from
# the last token at the right name and, when their output is read as logits, suppress what they look at (for GPT-2 small the
# list of Wang et al.). That needs no patching and no metric.

# %%
roles = pl.head_roles(model, pairs[:50])
negative = pl.Heads(roles.index[roles.role == "Negative Name Mover"])
roles.nlargest(4, "suppresses")[["IO", "S1", "S2", "suppresses", "role"]].round(2)

# %% [markdown]
# Now the maps. **Look for** the red cells: which column shows them at all, and which of them has a frame?

# %%
pl.plot.heatmaps(sweep.mean, ["prob", "logit_diff"])

# %%
pl.claim(
    "42-1",
    negative <= sweep.found("STR", "logit_diff", "negative")
    and not negative <= sweep.found("STR", "prob", "negative"),
    parts=negative,
    negative=negative,
    LD=sweep.found("STR", "logit_diff", "negative"),
    P=sweep.found("STR", "prob", "negative"),
)

# %% [markdown]
# Numbers beside the colours: the five heads that the logit difference puts lowest under STR. Compare each `prob` with the
# threshold of its corruption, in the table of section 3.

# %%
effects = {
    (run, metric): fx.effect.sel(metric=metric).to_series()
    for run, fx in sweep.mean.items()
    for metric in ["logit_diff", "prob"]
}
pd.DataFrame(effects).nsmallest(5, ("STR", "logit_diff")).round(4)

# %% [markdown]
# On SmolLM2 the lowest is 24.4. It undoes a fifth of the logit difference under STR and a quarter under GN, nearly the same;
# but the probability that it takes away is more than ten times as large under GN. The head does what it does in both. Only
# the room differs. How a list by probability looks when there is none:

# %%
pl.plot.ranked(sweep.mean["STR"], "prob")

# %% [markdown]
# Nothing in such a figure warns you. The lower dashed line stands where the rule puts it, within reach or not, and the
# list of positive heads at the left looks as trustworthy as ever.
#
# ## 5 The extreme case
#
# ABC takes the right name out of the sentence, and with it nearly all of its probability. Guess how many negative heads
# probability finds there, and what the logit difference does.

# %%
pl.predict("42-5", "one")

# %%
pl.plot.heatmaps(abc.mean, ["prob", "logit_diff"])

# %%
pl.claim(
    "42-6",
    negative <= abc.found("STR", "logit_diff", "negative"),
    parts=negative,
    negative=negative,
    LD=abc.found("STR", "logit_diff", "negative"),
)

# %%
pl.claim(
    "42-5",
    not negative & abc.found("STR", "prob", "negative"),
    parts=negative,
    P=abc.found("STR", "prob", "negative"),
)

# %% [markdown]
# Whoever patches GPT-2 small with ABC and probability alone would report, in good faith, that no head works against the
# answer. The figure would be right and the sentence wrong.
#
# ## Summary
#
# * $\text{effect} \ge -P_*$. Before you look for negative heads by probability, compare $P_*$ with the threshold:
#   `pl.floor`.
# * The floor belongs to the *corruption*. The same metric that is blind under STR can see under GN.
# * The logit difference has no floor. That is one reason for the paper's advice to prefer it, or to read it beside
#   probability.
# * "None detected" is a result only where something could have been detected.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Out of reach.** Under STR, how far down can the effect on the probability of any head go at most, and below which
# threshold (2 standard deviations) would a head count as negative? Compute both from `sweep["STR"]`, with NumPy.

# %%
answer = {"floor": ..., "threshold": ...}
pl.check("4.2.1", answer, sweep=sweep)

# %% [markdown]
# **2 The floor in a toy.** A model knows two answers and gives the right one the probability p. A head takes `nats` nats
# away from the right one's logit. Write its effect on the probability as a function of p and nats, and look at it for
# `p = 0.5` and `p = 0.01`.

# %%
my_effect = ...  # a function of p and nats
pl.check("4.2.2", my_effect)

# %% [markdown]
# **3 Predict, then test.** Take the head with the lowest effect on the logit difference under GN. In sentences in which
# the corrupted run leaves the answer *more* probability, does this head's effect on the probability lie higher or lower?
# Guess the sign; then compute the correlation over the prompts of `sweep["GN"]`.

# %%
answer = ...  # a number from -1 to 1
pl.check("4.2.3", answer, sweep=sweep)

# %% [markdown]
# **To discuss.** The logit difference of a head can also fall because the head raises the *wrong* name. Is that a negative
# head? Which measurement would tell the two apart? Next: [facts](03_1_factual_recall.ipynb), where noise finds a peak that
# replacement does not.

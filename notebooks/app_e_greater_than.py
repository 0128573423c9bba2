# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Appendix E: greater-than, where the answer is a set and the noise is noisy
#
# **Time** 15 minutes, with the exercises 30 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Appendix E, Table 3, Figures 9 and 10 · **Before this** `03_1_ioi_circuit`
#
# "The war lasted from the year 1732 to the year 17" has 67 right answers. Which head knows that 1733 comes after 1732 and
# 1731 does not? In GPT-2 small noise detects eight heads by logit difference and token replacement five, and they share
# three. Before you look for the reason in the model, look for it in the experiment: in the metric, and in the dice.
#
# At the end you can measure an answer that is a set, find out whether a metric depends on something that the model's
# output does not depend on, and say how much of a list of heads was chance.

# %%
import pandas as pd
import torch

import patchlib as pl

pd.options.display.max_colwidth = None  # lists of heads are shown whole
model, pairs, S = pl.start("app_e_greater_than")
pl.show_pairs(model, pairs, "YY", n=2)

# %% [markdown]
# ## 1 The task
#
# XX is the century, **YY** the year in it. A right answer is any year after YY, a wrong one any before. STR sets YY to 01,
# after which nearly every year is right; GN adds noise to the embedding of YY. Where a tokenizer makes each digit a
# token, as SmolLM2's does, the answer is the next *digit*: above the tens digit of YY right, below it wrong, the digit
# itself neither.

# %%
METRICS, RUNS = ["prob", "logit_diff", "kl"], ["STR", "GN"]
corruptions = {"STR": pl.STR("YY"), "GN": pl.GN("YY", draws=S["draws"])}
gt = pl.sweep(model, pairs, corruptions, metrics=METRICS, progress=False)
gt.runs().round(3)

# %% [markdown]
# Three metrics on sets: the **probability** of r is a sum over its years; the **logit difference** is the sum of r's
# logits minus the sum of those of r′; the **KL divergence** needs no answers. Look at how far apart the
# three rows are by logit difference: further than one logit is from another. What was added up?
#
# ## 2 A metric with a hidden constant
#
# Add 1 to *every* logit. The softmax does not notice, so that the model says exactly the same. Which metrics change?

# %%
some = pairs[:20]
with torch.no_grad():
    logits = {
        "clean": model(some.clean_tokens)[:, -1],
        "STR": model(pl.STR("YY").tokens(some))[:, -1],
    }


# %%
def measured(name, logits):
    answers = some.answers, some.wrong_answers
    # The last argument is the clean run, which KL alone needs.
    return pl.metrics.METRICS[name].value(logits, *answers, logits)


# %%
before = logits["clean"]
moved = {
    m: abs(measured(m, before + 1) - measured(m, before)).max() for m in ("prob", "logit_diff")
}
pl.claim(
    "Adding 1 to all logits moves the difference of sums and no probability",
    moved["prob"] < 1e-4 < moved["logit_diff"],
    largest_change=moved,
)

# %% [markdown]
# The sum has as many ones as there are years in r, minus as many as in r′: nothing where both sets are of one size, and
# up to 97 where they are not. For a single right and a single wrong answer it cancels, so that you never met this in IOI.
#
# Models do not keep the level of their logits. Here is the same mean with the model's own level, and with the level that
# `log_softmax` gives to every run. If the two columns fall by different amounts from clean to STR, the rest is the level.

# %%
levels = {
    "own level": dict(logits),
    "log_softmax": {run: each.log_softmax(-1) for run, each in logits.items()},
}
pd.DataFrame(
    {
        name: {run: measured("logit_diff", each).mean().item() for run, each in runs.items()}
        for name, runs in levels.items()
    }
).round(1)

# %% [markdown]
# Effects by logit difference are shares of the way between the two runs, and the level is a part of that way. Exercise 2
# mends it. The paper uses the sum, so that the rest of this notebook does, too.
#
# ## 3 Two lists
#
# In the paper GN detects more heads than STR by every metric. Guess: will the same be so for the model that is loaded?
# Then **look for** frames in layers where the other row has none.

# %%
pl.predict("E-2", "GN more by every metric")  # or "by some", "by none"

# %%
pl.plot.heatmaps(gt.mean, METRICS)

# %%
gt.overlap("STR", "GN")

# %%
pl.claim(
    "E-1",
    all(
        2 * len(gt.found("STR", m) & gt.found("GN", m))
        < len(gt.found("STR", m) | gt.found("GN", m))
        for m in METRICS
    ),
    shared={m: len(gt.found("STR", m) & gt.found("GN", m)) for m in METRICS},
    of={m: len(gt.found("STR", m) | gt.found("GN", m)) for m in METRICS},
)

# %%
counts = {r: {m: len(gt.found(r, m)) for m in METRICS} for r in RUNS}
pl.claim("E-2", all(len(gt.found("GN", m)) > len(gt.found("STR", m)) for m in METRICS), **counts)

# %%
below = {r: sum(len(gt.found(r, m, "negative")) for m in METRICS) for r in RUNS}
pl.claim(
    "E-3",
    sum(len(gt.found("GN", m, "negative")) for m in METRICS)
    > sum(len(gt.found("STR", m, "negative")) for m in METRICS),
    **below,
)

# %%
pl.claim("E-4", bool(gt.everywhere()), in_all_six=gt.everywhere())

# %% [markdown]
# Hanna et al. had found the heads of this task in GPT-2 small before, by another method. There STR and KL divergence
# point at heads that are among theirs, and the heads that every list names are 7.10 and 9.1:

# %%
pl.paper.sweep("table3").overlap("STR", "GN")

# %%
pl.claim(
    "E-5",
    gt.found("STR", "kl", "positive") <= pl.Heads("5.1 5.5 6.1 6.9 7.10 8.8 8.11 9.1"),
    by_KL_under_STR=gt.found("STR", "kl", "positive"),
)

# %% [markdown]
# ## 4 How noisy is the noise?
#
# A list under GN is the list of *these* draws. So draw the noise ten times for the same twenty prompts. Each point below is
# a head in one draw; filled points are detected in that draw. **Look for** heads that are filled in one draw and empty in
# another.

# %%
draws = pl.patch(
    model, pairs[:20], corruption=pl.GN("YY", draws=10), keep_draws=True, progress=False
)
pl.plot.draws(draws)

# %%
pl.stability(draws).to_frame("share of draws")

# %% [markdown]
# A head in some of the draws is what you would have published with a probability. More draws help: their mean is a better
# number, and the draws show how good. STR has no dice. But it has prompts, as GN has:

# %%
pl.plot.intervals(gt, n=10)

# %%
pd.Series({r: str(gt.at_threshold(r)) for r in RUNS}, name="at the threshold")

# %% [markdown]
# The interval of a head at the threshold holds it: with other prompts the head may be in or out. If the lists of two
# corruptions differ by such heads alone, they differ by nothing that you know.
#
# ## Summary
#
# * For a set of answers say what is added up: probabilities, logits, or means of logits.
# * Test a metric by what it must not depend on. A constant on all logits is the first thing to try.
# * A list under noise is a draw. Give the number of draws, and how many of them find each head.
# * Compare two lists only after you know which of their heads are at a threshold.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Read it off.** Which heads does GN detect by probability in *every* one of the ten draws? Use `pl.stability` or `pl.detect`.

# %%
answer = ...  # a list of "layer.head"
pl.check("E.1", answer, fx=draws)

# %% [markdown]
# **2 A metric without the constant.** Write a logit difference between sets that does not change when a number is added to
# all logits, whatever the sizes of the sets: the *mean* over r minus the mean over r′. It is tried on a list of logits of
# its own, with lists of the tokens that are right and wrong.

# %%
my_metric = ...  # a function of the logits, the right tokens and the wrong ones
pl.check("E.2", my_metric)

# %% [markdown]
# **3 Two halves.** Predict which list changes more with the prompts, that of STR or that of GN. Then detect heads by logit
# difference in the first and in the second half of the prompts (`gt[run].isel(prompt=...)`, mean over prompts, 2 SD), and
# give for each run the share of the heads found in either half that both halves find.

# %%
answer = {"STR": ..., "GN": ...}  # two numbers from 0 to 1
pl.check("E.3", answer, sweep=gt)

# %% [markdown]
# **To discuss.** Eight heads under noise, five under replacement: which further run would tell you whether the three more
# are noise, the metric, or the model? Next: [Appendix C](app_c_arithmetic.ipynb), a metric with another trap.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 Several layers at once: is a window more than the sum of its layers?
#
# **Time** 20 minutes, with the exercises 40 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 5, Figure 5, Figures 20 to 23 · **Before this** [3.1 Where is a fact recalled?](03_1_factual_recall.ipynb)
#
# You restore one MLP in the middle of GPT-2 XL, and the answer gains at best 0.015 of probability. You restore five adjacent
# ones together, and it gains 0.08: nearly twice what the five gain one by one. Do the layers work together, so that one
# alone is of little use? Or is it your ruler that gives little for the first steps? The famous hump of factual recall was
# drawn with windows of ten layers, so the question is not idle.
#
# At the end you can set a window beside the sum of its layers, name two causes of a difference that have nothing to do with
# each other, and test which of them it is. Layers count from zero.

# %%
import numpy as np
import pandas as pd

import patchlib as pl

model, pairs, S = pl.start("5_sliding_window")

# %% [markdown]
# ## 1 Single layers first
#
# The task is that of [3.1](03_1_factual_recall.ipynb): facts in pairs, the subject corrupted by STR or GN, MLPs restored at the
# last token of the subject. One call sweeps all windows, single layers among them. w is the window that comes nearest to a
# tenth of the layers, as the paper's 5 of 48: a window is a share of the depth and has no size of its own.

# %%
METRICS, RUNS = ["prob", "logit_diff"], ["STR", "GN"]
w = S["tenth"]
corruptions = {"STR": pl.STR("subject"), "GN": pl.GN("subject", draws=S["draws"])}

# %%
sweep = pl.sweep(
    model,
    pairs,
    corruptions,
    "mlp",
    metrics=METRICS,
    positions="last_subject",
    window=S["window"],
    before=S["before"],
    progress=False,
)
print("w =", w, "of", model.cfg.n_layers, "layers, of the windows", S["window"])

# %% [markdown]
# **Look for** the first layers against all others. In GPT-2 XL layer 0 alone brings back five times as much as the best layer
# in the middle: it repairs the corrupted token. The middle is where the paper looks for the fact.

# %%
pl.plot.lines(sweep.sel(window=1).mean, "prob")

# %%
peaks = pl.peaks(sweep)
pl.claim(
    "5-3",
    peaks.peak["GN", "prob", 1] < 0.5 * peaks.plateau["GN", "prob", 1],
    middle=peaks.peak["GN", "prob", 1],
    first=peaks.plateau["GN", "prob", 1],
)

# %% [markdown]
# ## 2 Sliding against adding
#
# **Sliding**: restore the MLPs of a window in *one* run. **Adding**: restore each in a run of its own, and add up the effects.
# If layers worked independently of each other, and if the metric were a straight line, both would agree.
#
# Guess before the figure: by probability under GN, does sliding peak above adding, as in the paper, or below?

# %%
pl.predict("5-1", "above by a fifth or more")  # or "about equal", "below"

# %%
pl.plot.windows(sweep, "prob")

# %% [markdown]
# Solid lines are windows, dashed ones are sums. In GPT-2 XL the sums tower over the windows at the left edge: layers 0 to 3
# each repair much of the same damage, and a sum counts that again and again. **The claims are about middle layers**, those
# whose window holds none of the first twelfth.

# %%
windows = pl.compare_windows(sweep)
windows.loc[["GN"]].xs("prob", level="metric").round(3)

# %%
gn = windows.loc["GN", "prob"]
pl.claim(
    "5-1",
    (windows.ratio["GN", "prob"] >= 1.2).all(),
    close=bool((gn.high > 1.2).all() and (gn.low < 1.2).any()),
    ratio=gn.ratio,
    low=gn.low,
    high=gn.high,
)

# %%
sizes = peaks.peak["GN", "prob"].dropna()
pl.claim("5-4", peaks.peak["GN", "prob"].is_monotonic_increasing, peaks=sizes)

# %% [markdown]
# The second claim is nearly free: a wider window restores more. What it teaches is to distrust the sentence "with windows
# of ten the effect is large" until the same was done with one.
#
# ## 3 Two causes that look alike
#
# Make a model of your own: two layers, and a logit difference that starts at −6 and is *simply added to*, 4 by the first,
# 4 by the second. There is no teamwork whatsoever in it. Now measure by probability:


# %%
def probability(ld):
    return 1 / (1 + np.exp(-ld))


def toy(start, each=4):
    alone, together = (probability(start + n * each) - probability(start) for n in (1, 2))
    return {"adding": 2 * alone, "sliding": together, "ratio": together / (2 * alone)}


pd.DataFrame({start: toy(start) for start in (-6, -4, -2, 0)}).T.rename_axis(
    "LD at the start"
).round(2)

# %% [markdown]
# From −6 sliding is several times adding, from 0 it is half of it, and nothing about the layers has changed. **The metric
# makes an interaction where the layers have none.** That is the first cause. It depends on where the corrupted run stands:
# deep at the flat lower end (STR, a confident wrong answer), or near the slope (GN).
#
# The second cause is the layers. One may read what the other wrote, so that either alone is useless (an AND: sliding above
# adding), or both may write the same thing, so that either alone suffices (an OR: sliding below adding). A metric without a
# curve is the place to see it: the logit difference.

# %%
pl.plot.windows(sweep, "logit_diff")

# %%
windows.xs("logit_diff", level="metric").round(3)

# %% [markdown]
# In GPT-2 XL the logit difference under STR is the exception that the paper shows in an appendix (Figure 21a): both peaks are
# equal. Read it with the toy in mind: by a ruler that does not bend, and on sentences that make sense, those layers add up.

# %%
row = windows.loc[("STR", "logit_diff", w)]
pl.claim(
    "5-5",
    abs(windows.ratio["STR", "logit_diff", w] - 1) < 0.1,
    close=bool(row.low < 0.9 < row.high or row.low < 1.1 < row.high),
    ratio=row.ratio,
    low=row.low,
    high=row.high,
)

# %% [markdown]
# ## 4 How typical?
#
# "Typically at least 20 % more", says the paper of all its windows, metrics and corruptions. Here are its own, as far as
# they are printed or can be read off its figures, and those of this run.

# %%
both = {"GPT-2 XL": pl.paper.windows().ratio, "here": windows.ratio}
pd.concat({name: ratio.unstack("window") for name, ratio in both.items()}, axis=1).round(2)

# %%
pl.claim(
    "5-2",
    (windows.ratio >= 1.2).mean() > 0.5,
    share=(windows.ratio >= 1.2).mean(),
    of=windows.ratio.size,
)

# %% [markdown]
# ## 5 A test for the first cause
#
# Is it the layers or the ruler? The bend of probability has a straight twin: the **log odds** of the answer, log(P / (1 − P)).
# Take from the single-layer runs what each did to the log odds, prompt by prompt, *pretend* that these add up, and turn the
# sum back into a probability. Such layers are independent by construction. How high would their window peak at middle
# layers, from `first` on?
#
# Guess: will "adding log odds" lie nearer to adding, or to sliding?

# %%
first = w // 2 + max(1, model.cfg.n_layers // 12)


def log_odds(p):
    return np.log(p.clip(1e-9, 1 - 1e-9) / (1 - p.clip(1e-9, 1 - 1e-9)))


def three(run):
    fx = sweep[run].sel(metric="prob")
    single, start = fx.sel(window=1), log_odds(fx.corrupted)
    odds = start + pl.sum_windows(log_odds(single.patched) - start, w)
    sums = pl.sum_windows(single.effect, w)
    rows = sums, probability(odds) - fx.corrupted, fx.effect.sel(window=w)
    return [row.mean("prompt")[first:].max().item() for row in rows]


ways = ["adding", "adding log odds", "sliding"]
pd.DataFrame({run: three(run) for run in RUNS}, index=ways).T.round(3)

# %% [markdown]
# From the first column to the second nothing changed but the ruler; from the second to the third, nothing but the layers. On
# SmolLM2 under GN, layers that are independent by construction would give 0.058, and the real window gives 0.060: the
# excess over adding, which claim 5-1 reads as teamwork, is by probability the bend of the ruler. (The logit difference still
# puts that window above its sum; it also counts what r′ loses.) Under STR the real window stays far below the independent
# one (0.05 to 0.14): there the layers repeat each other, as the logit difference has said.
#
# So the advice of Section 6 has a reason: single layers first; a window if they are all small; and then the sum
# beside it, by the logit difference.
#
# ## Summary
#
# * A window restores layers in one run, a sum adds runs. Their difference is an *interaction*: of the layers, or of the metric.
# * Probability bends. From a confident wrong answer it makes AND out of plain addition.
# * First layers repair the token and are counted by every sum that holds them: compare middle layers.
# * Windows scale with depth. What this run says to the paper's claims:

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Where are the peaks?** By probability under GN and for windows of w, at which middle layer does sliding peak, and at
# which adding? The first layer that counts is w // 2 plus a twelfth of the layers, rounded down, at least 1.

# %%
answer = {"sliding": ..., "adding": ...}  # layers
pl.check("5.1", answer, sweep=sweep, w=w)

# %% [markdown]
# **2 Adding by hand.** Write a function of a list of single-layer effects and an odd window that returns the list of sums.
# Windows are centred on their layer, and cut at the first and the last one.

# %%
my_sums = ...  # a function of effects and window
pl.check("5.2", my_sums)

# %% [markdown]
# **3 Predict, then test.** The widest window of all holds *every* MLP. Under STR, by logit difference, will it bring back
# more or less than the sum of all single layers? Guess. Then restore all at once (`window` as wide as the model, `before=0`,
# `layers=[0]`) at the last subject token of `some`, and divide by the sum of the single effects of `some`.

# %%
some = pairs[:30]
answer = ...  # a ratio
pl.check("5.3", answer, model=model, pairs=some)

# %% [markdown]
# **To discuss.** A colleague reports "layers 10 to 20 together recover 40 % of the probability, no single layer more than
# 2 %: the fact is distributed". Which number do you ask for? Next: [6](06_recommendations.ipynb), what to do with your own
# model; all windows and positions are in [Appendix G](app_g_factual_recall_details.ipynb).

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Appendix G: factual recall, every window, every position
#
# **Time** 12 minutes, with the exercises 30 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Appendix G, Figures 12 to 27 · **Before this** [4.1 One run, two rulers](04_1_metrics_factual_recall.ipynb)
#
# Sections 3.1 and 4.1 of the paper show one window of one model. Does the story change with a window of one layer, or of ten?
# Sixteen figures of its appendix answer that, and a reader who trusts a finding should be able to say which of them would
# have refuted it.
#
# At the end you can read a row of maps over window sizes, and know the traps of the paper's own figures. Layers count from
# zero.

# %%
import pandas as pd

import patchlib as pl

model, pairs, S = pl.start("app_g_factual_recall")

# %% [markdown]
# ## 1 The curve at the last subject token, by window
#
# Corruptions, positions and facts are those of [4.1](04_1_metrics_factual_recall.ipynb). w is the window nearest to a tenth of
# the layers, as the paper's 5 of 48. One call sweeps all windows at all six kinds of positions.

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
    positions=S["positions"],
    window=S["window"],
    before=S["before"],
    progress=False,
)
print("w =", w, "of", model.cfg.n_layers, "layers, of the windows", S["window"])

# %% [markdown]
# Which layer stands out? A peak is **salient** where it stands at middle layers, above both its neighbours, and reaches a
# tenth of the way from the corrupted to the clean run. Guess: does the line of single layers have one?

# %%
pl.predict("G-1", "no salient peak of single layers")  # or "one", "several"

# %% [markdown]
# **Look for** the line of window 1. A hump that grows with the window and is absent at one layer is a hump *of windows*: no
# single MLP is the place. Pass over the left end: layer 0 brings much back by itself, and so does every window that reaches
# down to it. It is the first to read what was corrupted, whatever the task.

# %%
last = sweep.sel(position="last_subject")
pl.plot.lines({"GN": last.mean["GN"]}, "prob")

# %%
pl.plot.lines({"STR": last.mean["STR"]}, "prob")

# %% [markdown]
# The highest effect in the middle, and whether it is a salient peak; for GPT-2 XL (read from Figures 2 and 12 to 14), and
# for this run:

# %%
peaks = pl.peaks(last)
both = {"GPT-2 XL": pl.paper.peaks(), "here": peaks}
pd.concat({name: each.peak.unstack("window") for name, each in both.items()}, axis=1).round(3)

# %%
pd.concat({name: each.salient.unstack("window") for name, each in both.items()}, axis=1)

# %%
single = peaks.peak.xs(1, level="window")
pl.claim(
    "G-1",
    not any(peaks.salient[r, m, 1] for r in RUNS for m in ["prob", "logit_diff"]),
    **{run: {m: single[run, m] for m in METRICS} for run in RUNS},
)

# %% [markdown]
# ## 2 All positions, by window
#
# A row for each window, STR first, then GN. **Look for** (1) a column that appears only in the wide windows, (2) red cells:
# a clean MLP that takes the answer further away, as in the last layers of the paper's Figure 4 at the last token.


# %%
def by_window(run):
    return {f"w = {size}": sweep.sel(window=size).mean[run] for size in S["window"]}


pl.plot.heatmaps(by_window("STR"), METRICS)

# %%
pl.plot.heatmaps(by_window("GN"), METRICS)

# %% [markdown]
# A wider window *smears* a map over layers. That makes a place look deeper than it is, and it cannot make a column out of
# nothing. So: narrow windows for "which layer", wide ones for "which position".
#
# ## 3 Does the ratio of last to middle depend on the window?
#
# Last over middle subject tokens, summed over layers. A wider window counts every layer more often, above and below the
# fraction bar alike; nothing forces the ratio to stay, and nothing to move.

# %%
ratios = pl.last_to_middle(sweep)
ratios.ratio.unstack("window").round(2)

# %% [markdown]
# How sure? The share of resampled prompts in which probability has the larger ratio, as in
# [4.1](04_1_metrics_factual_recall.ipynb):

# %%
share = pl.favours_last(sweep)
share.unstack("window").round(3)

# %% [markdown]
# The claim is about the windows beside w, single layers left out, since the paper shows no map of them. ≈ says that none of
# its comparisons is refuted, and that one at least is not sure.

# %%
others = share.drop([1, w], level="window")

# %%
pl.claim(
    "41-4",
    all(
        ratios.ratio[r, "prob", size] > ratios.ratio[r, "logit_diff", size]
        for r in RUNS
        for size in S["window"]
        if size not in (1, w)
    ),
    close=bool((others > 0.025).all() and (others < 0.975).any()),
    **{run: ratios.ratio[run].drop([1, w], level="window") for run in RUNS},
    share=others,
)

# %% [markdown]
# ## 4 The paper's other models
#
# GPT-2 large has 36 layers and GPT-J 28, and the paper takes the same five layers for both: a seventh and more than a sixth
# of the depth. How high the middle of GPT-2 large comes, as far as Figure 25
# can be read (under STR an upper bound by probability, and no peak by logit difference):

# %%
large = pl.paper.value("figure25")
pd.Series(
    {(run, m): large[run][m].get("peak") for run in RUNS for m in METRICS},
    name="peak, GPT-2 large, window of 5",
)

# %% [markdown]
# Under GN it lies at layer 9 of 36, a quarter of the depth; in GPT-2 XL at 15 of 48, a third. For GPT-J there are maps alone,
# and what can be read from them is the colour range:

# %%
pd.DataFrame({"STR": pl.paper.value("figure26")["STR"], "GN": pl.paper.value("figure27")["GN"]})

# %% [markdown]
# Three traps wait for those who compare with these figures:
#
# * **Figures 24 and 25** have captions for windows of 3 and of 5, and the printed images are the same.
# * **Figures 26 and 27**: the small captions of both say GN; the large ones say that 26 is STR.
# * **GPT-J** runs attention and MLP of a layer side by side. Its MLP reads the stream *before* that layer's attention, so
#   that "the same layer" is not quite the same thing as in GPT-2.
#
# With `PATCHLIB_MODEL=EleutherAI/gpt-j-6b` this notebook is the paper's own experiment; it needs a machine that holds the
# model.
#
# ## Summary
#
# * Sweep several windows and show one layer first: a hump that only windows have is no place.
# * Windows smear over layers and do not invent positions.
# * A bound read from a figure is data with an error bar. What this run says to the paper's claims:

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Two to five times.** The paper says that GN's middle peak is two to five times STR's, whatever window and metric. In
# which of *this run's* combinations is it not? Read `peaks`.

# %%
answer = [(..., ...)]  # pairs of metric and window, such as ("prob", 3); [] for none
pl.check("G.1", answer, peaks=peaks)

# %% [markdown]
# **2 The buckets by hand.** Write a function of the number of tokens of a prompt and of the first and the last index of its
# subject that returns a dict from bucket to list of indices, for all six of `S["positions"]`; empty where there is none.

# %%
my_buckets = ...  # a function of n_tokens, first and last
pl.check("G.2", my_buckets, pairs=pairs)

# %% [markdown]
# **3 Predict, then test.** At the last token of the prompt, which brings more back under STR: one attention layer or one
# MLP? And early or late? Guess; then patch `"attn"` and `"mlp"` of the layers in `some_layers` at `"last"`, for the prompts
# `some`, by logit difference, and give the component and the layer of the largest effect.

# %%
some, some_layers = pairs[:16], range(0, model.cfg.n_layers, 3)
answer = (..., ...)  # such as ("mlp", 3)
pl.check("G.3", answer, model=model, pairs=some, layers=some_layers)

# %% [markdown]
# **To discuss.** Which of the pictures above would have made you doubt the paper's Section 3.1, had it come out otherwise? Next:
# [Appendix C](app_c_arithmetic.ipynb), a task where replacement has the sharper peak.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4.1 One run, two rulers: what does the metric do to the map?
#
# **Time** 20 minutes, with the exercises 40 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 4.1, Figure 4, Appendix G · **Before this** [3.1 Where is a fact recalled?](03_1_factual_recall.ipynb)
#
# You restore MLPs at every token of *"The Royal Albert Hall is in the city of"* and draw a map. By probability there is one
# dark column, the last token of the subject, and you have a headline. Your colleague takes the *same runs*, divides logits
# in place of subtracting probabilities, and her map has a second column: the tokens in the middle of the name do as much.
# No activation differs between your maps. What does?
#
# At the end you can read a map over positions, say why a metric may hide a column, and form a ratio of two sums without
# fooling yourself. Layers count from zero.

# %%
import pandas as pd

import patchlib as pl

model, pairs, S = pl.start("4_1_factual_recall")
pl.show_pairs(model, pairs, "subject", n=2)

# %% [markdown]
# ## 1 Six kinds of positions
#
# Prompts differ in length, so that "token 5" means nothing. The paper sorts positions into six buckets:
#
# | bucket | in *"The Royal Albert Hall is in the city of"* |
# |---|---|
# | first subject | Royal |
# | middle subject | Albert |
# | last subject | Hall |
# | next | is |
# | further | in the city |
# | last | of |
#
# (As if every word were one token.) All tokens of a bucket are restored together, in one run. A subject of two tokens has a
# first and a last and *nothing in between*; such a prompt does not count for that column. How many do?

# %%
pd.Series({name: sum(map(bool, pairs.at(name))) for name in S["positions"]}, name="prompts")

# %% [markdown]
# The corruptions are those of [3.1](03_1_factual_recall.ipynb), and w is chosen in the same way: the window that comes nearest
# to a tenth of the layers, as the paper's 5 of 48.

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
    window=[w],
    progress=False,
)
print("w =", w, "of", model.cfg.n_layers, "layers")

# %% [markdown]
# ## 2 The maps
#
# Guess first: by probability under STR, which of the six columns holds the largest effect? Then **look for** three things. (1)
# The strongest column. (2) How far *down* it reaches by each metric. (3) A second column: the last token of the prompt, late,
# is where the answer is read; there an MLP can add to it directly.

# %%
pl.predict("41-5", "last_subject")  # or first_subject, middle_subject, next, further, last

# %%
maps = sweep.sel(window=w)
pl.plot.heatmaps(maps.mean, METRICS)

# %% [markdown]
# The eye is a poor judge of small differences of blue. The strongest cells by probability under STR, as a table:

# %%
cells = pl.strongest(maps.mean["STR"], "prob", n=1000)
cells.head()

# %% [markdown]
# How sure is the first place? Compare the best cell of *another* column with the lower end of the first one's interval.

# %%
strongest, rival = cells.position[0], cells[cells.position != cells.position[0]].iloc[0]
first = maps["STR"].sel(metric=["prob"], layer=[int(cells["layer"][0])], position=[strongest])
low = pl.interval(first).low.item()
pl.claim(
    "41-5",
    strongest == "last_subject",
    close=low < rival.effect,
    bucket=strongest,
    effect=cells.effect[0],
    low=low,
    best_elsewhere=rival.effect,
)

# %% [markdown]
# A strong column hides the others. Here is what each column holds, summed over layers, as a share of the last subject
# token's sum. **Look for** columns that are next to nothing by one metric and not by the other.

# %%
sums = pd.concat({run: fx.effect.sum("layer").to_pandas() for run, fx in maps.mean.items()})
sums.div(sums["last_subject"], axis=0).round(2)

# %% [markdown]
# ## 3 One number for the difference
#
# The paper puts it into a ratio: the sum of the effects over all layers at the last subject token, divided by the same sum
# at the middle ones. For GPT-2 XL:

# %%
pl.paper.last_to_middle().ratio.unstack("metric")

# %% [markdown]
# By probability the last token has more than four times as much under STR, by logit difference hardly more than the middle;
# under GN the middle is even ahead. A conclusion about *where* turned into one about *by what*.
#
# A ratio has two traps. Both sums must be of the *same* prompts, those that have a middle. And a denominator near zero makes
# any ratio you like. So look at `last` and `middle`, then at the interval over prompts (`low`, `high`; NaN where the
# denominator cannot be told from zero), and only then at the ratio.

# %%
pl.predict("41-1", "larger by probability")  # or "larger by logit difference"
ratios = pl.last_to_middle(sweep)
ratios.xs(w, level="window").round(2)

# %% [markdown]
# Intervals that overlap do not settle which ratio is larger: both are of the same prompts, and go up and down together. So
# resample the prompts once for both metrics, and count in which share of the resamples probability has the larger ratio.
# Between 0.025 and 0.975 nothing is sure, and the mark below is ≈. (The two directions of a pair are drawn as if they were
# independent, which they are not: the truth is a little less sure still.)

# %%
share = pl.favours_last(sweep)
share.unstack("window").round(3)

# %%
pl.claim(
    "41-1",
    ratios.ratio["STR", "prob", w] > ratios.ratio["STR", "logit_diff", w],
    close=0.025 < share["STR", w] < 0.975,
    **{m: ratios.ratio["STR", m, w] for m in METRICS},
    prompts=ratios.attrs["n_prompts"],
)

# %%
pl.claim(
    "41-2",
    ratios.ratio["GN", "prob", w] > ratios.ratio["GN", "logit_diff", w],
    close=0.025 < share["GN", w] < 0.975,
    **{m: ratios.ratio["GN", m, w] for m in METRICS},
    prompts=ratios.attrs["n_prompts"],
)

# %% [markdown]
# On SmolLM2 one row stands out: by probability under STR the last token is a third ahead of the middle ones, and by the logit
# difference of the same runs the two are level. That order holds in 97 of 100 resamples of the prompts, just short of a ✓.
# There the headline "facts sit at the last token" would come from the choice of a metric.

# %%
row = ratios.loc[("GN", "logit_diff", w)]
pl.claim(
    "41-3",
    ratios.ratio["GN", "logit_diff", w] < 1,
    close=not (row.high < 1 or row.low > 1),
    ratio=row.ratio,
    low=row.low,
    high=row.high,
)

# %% [markdown]
# ## 4 Why do the two metrics disagree?
#
# Take the cell with the largest effect under STR, and look at single prompts: how many nats of logit difference did each
# gain, and how much probability? Prompts are sorted into four equal groups by what they gained in logits.

# %%
at = maps["STR"].sel(layer=int(cells["layer"][0]), position=strongest).squeeze()
both = {"before": at.corrupted, "gained": at.patched - at.corrupted}
frame = pd.concat({name: values.to_pandas().T for name, values in both.items()}, axis=1)
groups = ["least", "less", "more", "most"]
quarter = pd.qcut(frame["gained", "logit_diff"], 4, labels=groups).rename("logits gained")
frame.groupby(quarter, observed=True).mean().round(3)

# %% [markdown]
# **Compare** the two columns of what was gained. If the metrics were two units of one thing, both would climb from row to
# row. Where they do not, look at where that group began. Three things stand between the metrics:
#
# 1. **A curve.** Probability is an S-shaped function of logits. After STR the model is sure of r′, r begins at the flat
#    lower end, and the first nats are spent on the way to the slope.
# 2. **One answer or two.** LD = log P(r) − log P(r′). To take r′ down is a gain of LD, and it is none of P(r), unless r gets
#    what r′ loses.
# 3. **A floor.** Probability cannot fall below 0, so that no effect is below −P_\*(r). Harm cannot show where nothing is left
#    to be harmed ([4.2](04_2_negative_heads.ipynb)).
#
# The curve alone, as arithmetic: an answer that begins with LD = −6, and two places that give it 4 nats each.


# %%
def probability(ld):
    return 1 / (1 + 2.718**-ld)


for nats in (4, 8):
    print(
        nats,
        "nats: share of LD",
        nats / 8,
        "· gain of P",
        round(probability(-6 + nats) - probability(-6), 2),
    )

# %% [markdown]
# By logit difference each of the two places has done half of the work. By probability one place alone has done a seventh of
# what both do together, and a place with 5 nats would tower over one with 3. **Probability favours whatever is strongest**,
# and so it sharpens maps. A sharp map is not a true one.
#
# ## Summary
#
# * The same runs give different maps by different metrics: the metric decides how many columns you see.
# * Probability favours the strongest place and what pushes r alone; the logit difference counts every nat, and what takes r′ down.
# * A ratio needs both sums, the same prompts in both, and an interval.
# * The paper recommends the logit difference. What this run says to its claims:

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Read the maps.** Leave the last subject token out. Which of the other buckets has the largest effect *under GN*, by each
# metric? Use `maps.mean["GN"].effect`.

# %%
answer = {"prob": ..., "logit_diff": ...}  # names of buckets
pl.check("4.1.1", answer, maps=maps)

# %% [markdown]
# **2 The ratio by hand.** Compute the ratio of last to middle by probability under STR from `maps["STR"].effect` with NumPy
# or xarray, from the prompts that have both.

# %%
answer = ...  # a number
pl.check("4.1.2", answer, maps=maps)

# %% [markdown]
# **3 Predict, then test.** At the cell of section 4, which share of the prompts that have this token gained at least one nat
# of logit difference and less than a hundredth of probability? Guess from the table, then count in `at`, which holds NaN
# for the others.

# %%
answer = ...  # a number from 0 to 1
pl.check("4.1.3", answer, at=at)

# %% [markdown]
# **To discuss.** A paper shows one map, by probability, with one dark column. Which two further pictures do you ask for?
# Next: [5](05_sliding_window.ipynb), what a window of layers does beyond the sum of its layers.

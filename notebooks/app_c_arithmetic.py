# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Appendix C: arithmetic, and a metric that divides by almost nothing
#
# **Time** 15 minutes, with the exercises 30 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Appendix C, equation 2, Figures 6 to 8 · **Before this** `02_background`
#
# One layer of GPT-J, the same sums, three metrics. By logit difference, token replacement scores .285 and noise .165. By
# probability .021 and .008. By the third metric 7500 and 0. Nobody made a mistake in the arithmetic; the third metric
# does what its formula says. Here you find out what that is.
#
# At the end you can sweep layers instead of heads, say which of a model's prompts belong in an experiment, and look
# into a mean before you believe it.

# %%
import numpy as np
import pandas as pd

import patchlib as pl
from patchlib.tasks.sums import asked
from patchlib.tasks.tokens import splits_digits

model, pairs, S = pl.start("app_c_arithmetic")
pl.show_pairs(model, pairs, "X3+Y3", n=2)

# %% [markdown]
# ## 1 Only what the model can do
#
# Two worked lines, and a third to finish: `X3 + Y3 =`. Token replacement (STR) writes two other numbers there, whose
# result is the wrong answer r′. Noise (GN) leaves the numbers and blurs their embeddings.
#
# Patching brings an answer *back*, so the answer has to be there first. As in the paper, a prompt counts only if its
# right result is the model's first choice. `pl.keep_answered` does that in one call; here it is by hand, so that you see
# what is lost. A model that answers nothing keeps all its prompts below, and no claim is tested.

# %%
kept, answered = {}, {}
for o in "+-*":
    # Where a number is one token there are 81 products, and no more.
    n = S["n"] if splits_digits(model) else min(S["n"], len(asked(o)))
    drawn = pl.tasks.arithmetic(model, n=n, operator=o, prepend_bos=S["prepend_bos"])
    right = pl.baselines(model, drawn, metrics=["accuracy"]).clean.values[0] == 1
    kept[o] = drawn[np.flatnonzero(right).tolist()] if right.any() else drawn
    answered[o] = right.mean()
pd.DataFrame({"answered": answered, "prompts": {o: len(kept[o]) for o in kept}}).round(2)

# %% [markdown]
# Report such a table. What is left is a chosen sample: everything below is about sums that the model gets right.
#
# ## 2 One layer at a time
#
# The result is read at the last token. Restore there the output of one MLP after the other, under both corruptions. Noise
# is drawn several times, and every draw kept: a mean of ratios, which comes below, is no ratio of means.

# %%
METRICS, RUNS = ["logit_diff", "prob", "wrong_prob"], ["STR", "GN"]
corruptions = {"STR": pl.STR("X3+Y3"), "GN": pl.GN("X3+Y3", draws=S["draws"])}
settings = dict(
    positions="last", metrics=METRICS, keep_prompts=True, keep_draws=True, progress=False
)
fx = {
    (o, run): pl.patch(model, kept[o], "mlp", corruption=corruptions[run], **settings)
    for o in kept
    for run in RUNS
}

# %% [markdown]
# In the paper the two curves are far apart for + and −, and lie on each other for ×. Guess for the loaded model: under
# which corruption is the peak for + higher? Then **look for** the layer of the peak, which is the same question as
# "where is the sum computed?", and ask whether both corruptions give the same answer to it.

# %%
pl.predict("C-1", "STR")  # or "GN"

# %%
pl.plot.lines({f"{run}, +": fx["+", run] for run in RUNS}, "logit_diff")

# %%
pl.plot.lines({f"{run}, ×": fx["*", run] for run in RUNS}, "logit_diff")

# %% [markdown]
# On SmolLM2 the peak for + lies at layer 24 under replacement and at layer 29, the last, under noise; for × both have it at
# 24. The place of a peak, too, can hang on the corruption.
#
# Each effect is a mean over prompts and draws. The height of its peak over the layers, for all three operators:

# %%
sums = {
    (*key, m): each.effect.sel(metric=m).mean(["prompt", "draw"]).values.max()
    for key, each in fx.items()
    for m in ["logit_diff", "prob"]
}
pd.Series(sums).rename_axis(["operator", "run", "metric"]).unstack().round(3)

# %%
pl.claim(
    "C-1",
    all(sums[o, "STR", "logit_diff"] > sums[o, "GN", "logit_diff"] for o in "+-"),
    parts=all(answered.values()),
    STR_to_GN={o: sums[o, "STR", "logit_diff"] / sums[o, "GN", "logit_diff"] for o in "+-"},
)

# %%
pl.claim(
    "C-2",
    all(sums[o, "STR", "prob"] > sums[o, "GN", "prob"] for o in "+-"),
    parts=all(answered.values()),
    STR_to_GN={o: sums[o, "STR", "prob"] / sums[o, "GN", "prob"] for o in "+-"},
)

# %%
pl.claim(
    "C-3",
    all(0.8 < sums["*", "STR", m] / sums["*", "GN", m] < 1.25 for m in ["logit_diff", "prob"]),
    parts=all(answered.values()),
    STR_to_GN={m: sums["*", "STR", m] / sums["*", "GN", m] for m in ["logit_diff", "prob"]},
)

# %% [markdown]
# Two things can differ between the columns: the logit difference is a share of the way from corrupted to clean, and that
# way is longer under STR; the probability is an absolute number, and it can start at 0 or somewhere above.
#
# ## 3 The third metric
#
# Stolfo et al. (2023) ask two questions at once: how much does the right answer gain, *relative to what it had*, and how
# much does the wrong one lose, relative to what is left? With P_* before and P_pt after the patch (equation 2):
#
#     ½ [ (P_pt(r) − P_*(r)) / P_*(r)  +  (P_*(r′) − P_pt(r′)) / P_pt(r′) ]
#
# It is a number for each prompt; the figures of the paper show the mean. Read the two denominators again before you run
# the next cell. What happens to a prompt to which the corrupted run gives the right answer the probability 0.000001?


# %%
def terms(fx):
    right, wrong = (fx.sel(metric=name, drop=True) for name in ("prob", "wrong_prob"))
    gained = (right.patched - right.corrupted) / right.corrupted
    lost = (wrong.corrupted - wrong.patched) / wrong.patched
    return gained / 2, lost / 2


# %%
stolfo = {key: pl.stolfo(each) for key, each in fx.items()}
apart = {
    key: float(abs(sum(terms(fx[key])) - each).max() / abs(each).max())
    for key, each in stolfo.items()
}
furthest = max(apart.values())
pl.claim("By hand and by pl.stolfo the same", furthest < 1e-6, relative_difference=furthest)

# %%
sums |= {
    (*key, "stolfo"): each.mean(["prompt", "draw"]).values.max() for key, each in stolfo.items()
}
pd.Series(sums).rename_axis(["operator", "run", "metric"]).unstack().round(3)

# %%
pl.claim(
    "C-5",
    all(sums[o, "STR", "stolfo"] > 10 * sums[o, "GN", "stolfo"] for o in "+-*"),
    parts=all(answered.values()),
    STR_to_GN={o: sums[o, "STR", "stolfo"] / sums[o, "GN", "stolfo"] for o in "+-*"},
)

# %% [markdown]
# The three columns come from the same runs. Whatever the third says, it is not that a layer matters thousands of times.
#
# ## 4 Who is speaking?
#
# Take one mean apart: addition under STR, at the layer where the mean is highest. The five prompts that say most (one sum
# can stand here twice, after other worked lines):

# %%
layer = int(stolfo["+", "STR"].mean(["prompt", "draw"]).argmax("layer"))
first, second = (term.sel(layer=layer).squeeze("draw") for term in terms(fx["+", "STR"]))
prob = fx["+", "STR"].corrupted.sel(metric="prob").squeeze("draw")
lines = [text.splitlines()[-1] for text in kept["+"].texts]
table = pd.DataFrame({"P_*(r)": prob, "first term": first, "second term": second}, index=lines)
table.sort_values("first term", ascending=False).head(5)

# %% [markdown]
# P_pt(r) is at most 1, so that the first term is at most ½ (1 / P_*(r) − 1), and it comes near that wherever the patch
# makes the right answer likely. Then it measures how *small* the probability was, not how much the layer did. A prompt
# weighs as much as its denominator is tiny.
#
# **Look at** the last column: what share of the whole mean is one single prompt (under GN: one draw of one prompt)?

# %%
rows = {
    key: each.isel(layer=int(each.mean(["prompt", "draw"]).argmax("layer")))
    for key, each in stolfo.items()
}

# %%
pd.DataFrame(
    {
        key: {
            "mean": float(one.mean()),
            "median": float(one.median()),
            "largest share": float(one.max() / one.sum()),
        }
        for key, one in rows.items()
    }
).T.map("{:.3g}".format)

# %% [markdown]
# On SmolLM2 the mean for addition is about 5,800 under STR and 4 under noise, the medians are 56 and 1.7, and a single
# prompt of 171 gives more than a quarter of the 5,800. So the last question: how much of the mean comes from the first
# term, of those prompts alone that had less than one percent left for the right answer?


# %%
def small_denominators(o):
    first, both = terms(fx[o, "STR"])[0], stolfo[o, "STR"]
    tiny = fx[o, "STR"].corrupted.sel(metric="prob") < 0.01
    parts = [each.mean(["prompt", "draw"]) for each in (first.where(tiny, 0), both)]
    return float((parts[0] / parts[1])[parts[1].argmax("layer")])


# %%
share = {o: small_denominators(o) for o in "+-*"}
pl.claim(
    "C-6",
    all(share[o] > 0.5 for o in "+-*"),
    parts=all(answered.values()),
    first_terms_of_P_below_one_percent=share,
)

# %% [markdown]
# The paper explains its 7500 by the first denominator: STR makes the model sure of another sum, so that P_*(r) is tiny;
# noise leaves it unsure. The second denominator can do the same, since P_pt(r′) *after* a patch is tiny wherever the patch
# works well, and so can noise in a model that stays sure of something.
#
# What to report instead? A ratio of probabilities wants a logarithm: then a factor of ten is worth the same wherever it
# begins. Exercise 2 asks which metric that gives. You know it already.
#
# ## Summary
#
# * Patch what the model can do, and say how much that leaves.
# * A sweep over layers at one token asks *where* a result appears. Corruption and metric change the height of the curve;
#   check whether they change the place of its peak before you name it.
# * Before you believe a mean, look at the median, and at the share of the largest value.
# * A relative change has the weights of its denominators. The logit difference asks the same question without one.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Read it off.** For addition under STR: at which layer is the *median* over prompts of equation 2 highest, and what
# is it there?

# %%
answer = {"layer": ..., "median": ...}
pl.check("C.1", answer, fx=fx["+", "STR"])

# %% [markdown]
# **2 With logarithms.** Write equation 2 with differences of logarithms in place of relative changes, and keep the ½. Try
# it on P_*(r) = 0.1, P_pt(r) = 0.4, P_*(r′) = 0.8, P_pt(r′) = 0.2. Of which metric is it one half?

# %%
my_metric = ...  # a function of P_*(r), P_pt(r), P_*(r'), P_pt(r')
pl.check("C.2", my_metric)

# %% [markdown]
# **3 Where do the numbers arrive?** The operands stand at other tokens, and MLPs look at their own token only. Predict:
# at the last token, is the strongest *attention* layer before or after the strongest MLP? Then restore `"attn"` as
# section 2 restored `"mlp"`, for the prompts of `some` under STR, and give the layer with the highest effect on the logit
# difference for each.

# %%
some = kept["+"][:30]
answer = {"attn": ..., "mlp": ...}
pl.check("C.3", answer, model=model, pairs=some)

# %% [markdown]
# **To discuss.** A colleague sends you a figure with effects of 7500. Which two numbers do you ask for before you look at
# its shape? Next: [the replication](replication.ipynb), all claims of the paper in one table.

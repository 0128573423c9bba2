# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 Which settings for a study of your own?
#
# **Time** 25 minutes, with the exercises 40 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 6, with §3.2, §4.2, §5 and Appendix F · **Before this** `02_background`, `03_1_ioi_circuit`
#
# You have a model, a behaviour and a week. Before the first sweep you must choose how to corrupt, what to measure, how many
# layers to restore at a time, and which tokens to spoil. The paper ends on advice for each choice. But advice from GPT-2 is
# advice from GPT-2. Here you treat each piece as what it is, a **decision that can be tested**, and you test it on the model
# that is loaded: change one setting, and see which of your conclusions move.
#
# At the end you can say what each choice costs on your own model, measure whether a corruption takes the model off its
# distribution, name the heads that survive every change, and have a study checked.
#
# | decision | the paper recommends | since | here |
# |---|---|---|---|
# | corruption | replace tokens (STR) where possible; noise (GN) only where not | noise may take the model off its distribution | 1 |
# | metric | logit difference; KL for finding circuits; avoid probability | probability misses what works against the answer | 2 |
# | window | single layers first; read a window as a joint effect | a window does more than the sum of its layers | 3 |
# | tokens | try several sets of corrupted tokens | another set brings other components to light | 4 |

# %%
from textwrap import fill

import pandas as pd
import torch

import patchlib as pl

pd.options.display.max_colwidth = None  # lists of heads are shown whole
model, pairs, S = pl.start("3_1_ioi")
some = pairs[:50]
METRICS, RUNS = ["prob", "logit_diff", "kl"], ["STR", "GN"]
corruptions = {"STR": pl.STR("S2"), "GN": pl.GN("S2")}

# %% [markdown]
# ## 1 Corruption: how far from home is the corrupted run?
#
# "Off the distribution" can be measured. At one position, the residual stream after a layer is a vector. Clean prompts give
# a cloud of such vectors, and the **Mahalanobis distance** says how far a new one lies from the cloud, in units of the
# cloud's own spread in each direction: d(x)² = (x − μ)ᵀ Σ⁻¹ (x − μ). `pl.ood` divides by the mean distance of clean prompts
# that were *not* used to find μ and Σ, so that 1 means "like any other clean prompt".
#
# As in [3.2](03_2_out_of_distribution.ipynb), a hundred prompts make the cloud and thirty others are measured: with fewer in
# the cloud its spread is known too badly to tell the two corruptions apart. The sweeps below are of all prompts.
#
# S2 is where the prompt is spoilt; the last token is where the answer is read. **Guess** for both: does the distance grow or
# shrink from layer to layer?

# %%
cloud = pl.tasks.ioi(model, n=150, prepend_bos=S["prepend_bos"])[50:]
far = {
    name: pl.ood(model, some[:30], corruption, positions=["S2", "last"], reference=cloud)
    for name, corruption in corruptions.items()
}

# %%
layers = [0, model.cfg.n_layers // 3, 2 * model.cfg.n_layers // 3, model.cfg.n_layers - 1]
means = {name: fx.corrupted.mean(["draw", "prompt"]) for name, fx in far.items()}
pd.concat({name: mean.sel(layer=layers).to_pandas() for name, mean in means.items()}, axis=1).round(
    2
)

# %% [markdown]
# On SmolLM2 replacement stays near 1 in every layer, while noise at S2 moves *out*, from 1.6 times the ordinary distance in the
# first layer to 2.5 in the last; on `mini` it starts far out and comes back part of the way. A distance far above 1 says that the
# run being patched is unlike any clean prompt *of this task*. It does not say that a result is wrong.
# [3.2](03_2_out_of_distribution.ipynb) shows what it does to the heads that read the names.
#
# ## 2 Metric: what does probability add, and what does it hide?
#
# Suppose a component knows nothing of who gave what to whom, and just makes *all names* more likely. A metric for this task
# should ignore it. We need no such component to test that: add 1 to the logits of both names after the corrupted runs of the
# fifty prompts.

# %%
pl.predict("6-1", "both rise")  # or "only probability rises", "neither"


# %%
def logits_of(name):
    noise = corruptions[name].noise(model, some, 0)
    hooks = [] if noise is None else [("hook_embed", lambda embed, hook: embed + noise.to(embed))]
    with torch.no_grad():
        return model.run_with_hooks(corruptions[name].tokens(some), fwd_hooks=hooks)[:, -1]


# %%
rows = torch.arange(len(some))


def values(logits):
    right, wrong = logits[rows, some.answers], logits[rows, some.wrong_answers]
    prob = logits.softmax(-1)[rows, some.answers]
    return pd.Series({"prob": float(prob.mean()), "logit_diff": float((right - wrong).mean())})


# %%
def raised(logits):
    more = logits.clone()
    for names in (some.answers, some.wrong_answers):
        more[rows, names] += 1
    return values(more) - values(logits)


change = pd.DataFrame({name: raised(logits_of(name)) for name in RUNS}).T
change.round(4)

# %%
pl.claim(
    "6-1",
    (abs(change.logit_diff) < 1e-3).all() and (change.prob > 0).all(),
    **change,
    prompts=len(some),
)

# %% [markdown]
# Probability gives credit for what has nothing to do with the task. The other fault is worse, since it is silent: an effect
# by probability cannot be below −P_*(r), so that a corruption which leaves little of P(r) hides what works *against* the
# answer. Here are maps of all prompts, for three choices of tokens to replace: S2, the two other names, all three at once.
# **Compare** the columns, each of which has one scale: where does the red go?

# %%
sites = {site: pl.STR(site) for site in ("S2", "S1+IO", "ABC")}
by_site = pl.sweep(model, pairs, sites, metrics=METRICS, progress=False)
pl.plot.heatmaps(by_site.mean, ["logit_diff", "prob"])


# %%
def negative(metric):
    return {site: str(by_site.found(site, metric, "negative")) for site in sites}


pd.DataFrame({metric: negative(metric) for metric in ("logit_diff", "kl", "prob")})

# %% [markdown]
# On SmolLM2 the logit difference finds 29.0 and 24.4 working against the answer under each of the three choices, and
# probability under none of them.
#
# ## 3 Window: more than its layers?
#
# Where single layers show little, one may restore several adjacent ones together, as the paper does for facts. Compare a
# **sliding** window with the **sum** of its single layers' effects: MLPs at the last subject token. A ratio above 1 may say
# that the layers do together what none does alone; below 1, that they do the same thing twice.

# %%
F = pl.experiments.settings("5_sliding_window", model)
facts = pl.tasks.factual_recall(model, n=F["n"], prepend_bos=F["prepend_bos"])
windows = {"window": F["window"], "before": F["before"], "positions": "last_subject"}
replaced = {"STR": pl.STR("subject")}
mlps = pl.sweep(model, facts, replaced, "mlp", metrics=METRICS, progress=False, **windows)
pl.compare_windows(mlps).round(2)

# %% [markdown]
# The interval (`low` to `high`) is over prompts. Where it holds 1 you cannot tell. On SmolLM2 windows do clearly *less* than
# the sum of their layers by logit difference, and by probability as much or more, so that even "more than its layers" is a
# statement about a metric. And a peak of a window belongs to the window: do not write that "layer 15" does it.
# [Notebook 5](05_sliding_window.ipynb) has the whole comparison.
#
# ## 4 Tokens: another question, other heads
#
# Which tokens you spoil decides which information is missing, and so what a head has to bring back. With S2 replaced, what is
# missing is *who occurs twice*; with S1 and IO replaced, *which name stands where*.

# %%
lists = {site: by_site.found(site) for site in sites}
table = by_site.runs()[["logit_diff"]].drop("clean").round(2)
table["detected by LD"] = pd.Series(lists).map(str)
table

# %%
print("under every choice:", lists["S2"] & lists["S1+IO"] & lists["ABC"])

# %% [markdown]
# Few heads are in all three lists, and no list is wrong. Each answers the question that its tokens ask, and
# [Appendix F](app_f_which_tokens.ipynb) names the heads behind each.
#
# ## 5 One step away
#
# Now the same thing in one table, of all prompts again. Start from the recommended settings and change exactly *one*. The
# conclusion that we watch is the list of detected heads with their signs. **Guess** first: which single change costs most?

# %%
study = pl.choices.Study(model, pairs, draws=1)
start = pl.choices.Choice("S2")
steps = study.table(start, sites=["S1+IO", "ABC"])
steps

# %% [markdown]
# A head under `shared` in every row survives all of these changes. Any other belongs to its settings, and a report has to name
# them beside it. Step through the changes below: the recommended setting on the horizontal axis, the changed one on
# the vertical, effects in standard deviations, thresholds dashed. **Look for** heads close to a line: they are in one list
# and out of the other for next to nothing.

# %%
choices = pl.choices.Choices(study, start, sites=["S1+IO", "ABC"])

# %% [markdown]
# ## 6 Have it checked
#
# `pl.advise` reads the results of a study and lists the cautions that apply, each with the numbers that gave rise to it. The
# paper gives no thresholds; those of the package are named constants in `patchlib/paper/advice.py`. First a study that does
# most things as they should not be done. How many faults do you find before you run the next cell?


# %%
def told(cautions):
    print(len(cautions), "cautions")
    for row in cautions.itertuples():
        print(row.caution.upper(), fill(row.because, 96), "→ " + row.instead, "", sep="\n")


settings = {"corruption": pl.GN("S2"), "metrics": ["prob"], "window": 5, "positions": "S2"}
careless = pl.patch(model, pairs[:6], "mlp", progress=False, **settings)
told(pl.advise(careless, ood=far["GN"]))

# %% [markdown]
# Now single heads, tokens replaced, logit difference and KL, three choices of tokens, values kept for each prompt.

# %%
sound = {site: fx.sel(metric=["logit_diff", "kl"]) for site, fx in by_site.items()}
told(pl.advise(sound, ood=far["STR"]))

# %% [markdown]
# No caution is no proof that all is well. The paper names its own limits: decoder-only models of up to six billion
# parameters, clean activations put into corrupted runs and not the other way round, and evidence on the distribution that
# is tentative.
#
# ## Summary
#
# * Treat advice as a decision: change one setting, and report what moves.
# * Replace tokens where you can; where you cannot, measure how far the noise takes the model.
# * Never probability alone. A head that it does not show may still be there, working against the answer.
# * Single layers before windows; several sets of tokens before a list is called *the* circuit.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 What costs most?** Which single change of the table `steps` leaves least in common with the start? Measure by the share
# of heads that both detect, of those that either does.

# %%
answer = ...  # a pair: a text of the column "change", and a share, such as ("site: ...", 0.75)
pl.check("6.1", answer, steps=steps)

# %% [markdown]
# **2 The distance.** Write the Mahalanobis distance of section 1 as a function of `x`, an array of shape [width], and
# `cloud`, an array of shape [prompt, width] with many more prompts than dimensions. No shrinkage, and the covariance with
# 1/n, as `np.cov(..., bias=True)` has it.

# %%
my_distance = ...  # a function of x and cloud
pl.check("6.2", my_distance)

# %% [markdown]
# **3 Predict, then test.** What moves a list more: other sentences, or another metric? Compare (a) the heads that STR at S2
# detects by LD on the even prompts with those on the odd ones, and (b) the heads by LD with those by probability, on all
# prompts. Give for each the number of heads that are in one list and not in the other. Nothing has to be computed anew:
# `by_site["S2"].isel(prompt=slice(0, None, 2)).mean("prompt", keep_attrs=True)` goes into `pl.detect`.

# %%
answer = {"sentences": ..., "metric": ...}  # two numbers of heads
pl.check("6.3", answer, sweep=by_site)

# %% [markdown]
# **To discuss.** A reviewer asks why you did not use noise "as everybody does". Answer in two sentences, with one number of
# this notebook. Back to the [start](00_start_here.ipynb), or on to [Appendix F](app_f_which_tokens.ipynb).

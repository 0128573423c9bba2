# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Appendix H: from six maps to thirty fractions
#
# **Time** 20 minutes, with the exercises 45 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Appendix H (Table 5, Figures 28 and 29), Table 1 · **Before this** [3.1](03_1_ioi_circuit.ipynb)
#
# Table 1 of the paper is what people quote: "of three Name Movers, one was found". It holds thirty such fractions and not a
# single effect. Behind it stand six lists of heads (Table 5), behind them six maps (Figures 28 and 29), and behind these
# 864 numbers for GPT-2 small. Each step makes the result easier to read and throws something away.
#
# Here you walk down these steps and up again. At the end you can derive Table 1 in a few lines, make the same table for
# another model, and say of a fraction such as 1/3 how much of it is the model, the threshold, or the sentences drawn.

# %%
from statistics import NormalDist

import pandas as pd

import patchlib as pl

pd.options.display.max_colwidth = None  # lists of heads are shown whole
model, pairs, S = pl.start("3_1_ioi")
METRICS, RUNS = ["prob", "logit_diff", "kl"], ["STR", "GN"]

# %% [markdown]
# ## 1 From Table 5 to Table 1, without a model
#
# Table 5 lists the heads of GPT-2 small that each metric detects under each corruption. Wang et al. had sorted the heads of
# this model into classes before, by other experiments. **Look for** the expected sign of each class, and for the difference
# between *main* and *fuzzy*: fuzzy heads do the work of their class only in part.

# %%
wang = pl.paper.value("ioi_circuit")
pd.DataFrame(
    {
        role: {
            "sign": one["sign"],
            **{kind: str(pl.Heads(one[kind])) for kind in ("main", "fuzzy")},
        }
        for role, one in wang.items()
    }
).T

# %% [markdown]
# Three rules turn the lists into fractions. Only *main* heads count. A head counts if it was detected *with the sign of its
# class*: negative for Negative Name Movers, positive for all others. And only five of the classes are shown.

# %%
ROLES = ["Name Mover", "Duplicate Token", "S-Inhibition", "Negative Name Mover", "Induction"]


def count(heads, role, lists, metric, run):
    found = lists.found(run, metric, wang[role]["sign"])
    return f"{len(heads & found)}/{len(heads)}"


def table1(lists, classes):
    rows = pd.MultiIndex.from_product([METRICS, RUNS], names=["metric", "corruption"])
    return pd.DataFrame(
        {role: [count(classes[role], role, lists, *row) for row in rows] for role in ROLES}, rows
    )


# %%
counted = table1(pl.paper.sweep("table5"), {role: pl.Heads(wang[role]["main"]) for role in ROLES})
printed = pd.DataFrame(pl.paper.value("table1")).set_index(["metric", "corruption"])[ROLES]
pl.claim(
    "All thirty fractions of Table 1 follow from Table 5",
    (counted == printed).all(axis=None),
    fractions=counted.size,
)

# %%
counted

# %% [markdown]
# One head to keep in mind: 0.10 of GPT-2 small, a fuzzy Duplicate Token head. GN marks it as *negative*, by two metrics,
# though it is known to help. Table 1 cannot show this: the head is not main, and the sign is not that of its class. What a
# table does not count, it cannot contradict.
#
# ## 2 The maps behind the lists
#
# Now the model that you loaded: its Figures 28 (STR) and 29 (GN). **Look for** the numbers at the colour bars before you
# look at the colours: they have three different units.

# %%
sweep = pl.sweep(model, pairs, {"STR": pl.STR("S2"), "GN": pl.GN("S2")}, metrics=METRICS)
pl.plot.heatmaps(sweep.mean, METRICS)

# %% [markdown]
# All that the rule "mean ± 2 standard deviations" knows of a map are two numbers. Here they are, beside those that can be
# read off the paper's figures for GPT-2 small, to about 2 % of the colour range.

# %%
effects = {(run, m): sweep.mean[run].effect.sel(metric=m) for run in RUNS for m in METRICS}
here = {key: {"mean": float(each.mean()), "sd": float(each.std())} for key, each in effects.items()}

# %%
read = {"STR": pl.paper.value("figure28")["STR"], "GN": pl.paper.value("figure29")["GN"]}
gpt2 = {(run, m): read[run][m] for run, m in effects}
tables = {"here": pd.DataFrame(here).T, "GPT-2 small": pd.DataFrame(gpt2).T[["mean", "sd"]]}
pd.concat(tables, axis=1).astype(float).round(4)

# %% [markdown]
# In GPT-2 small the means are close to zero, since most heads do nothing, and the standard deviation is made by the few that
# do much. So the strongest heads decide how strong the others have to be (exercise 3).
#
# ## 3 The lists
#
# Under STR the three metrics list the *same* positive heads of GPT-2 small. Do you expect that of another model?

# %%
pl.predict("31-9", "the same heads")  # or "different heads"

# %%
pd.DataFrame(
    {
        (run, sign): {m: str(sweep.found(run, m, sign)) for m in METRICS}
        for run in RUNS
        for sign in ("positive", "negative")
    }
)

# %%
pl.claim(
    "31-9",
    all(
        sweep.found("STR", m, "positive") == sweep.found("STR", "prob", "positive") for m in METRICS
    ),
    **{m: sweep.found("STR", m, "positive") for m in METRICS},
)

# %% [markdown]
# Is there a head like 0.10 of GPT-2 small, one that only noise makes negative?

# %%
pl.claim(
    "32-1",
    bool(
        pl.Heads(h for m in METRICS for h in sweep.found("GN", m, "negative"))
        - [h for m in METRICS for h in sweep.found("STR", m, "negative")]
    ),
    **{r: {m: sweep.found(r, m, "negative") for m in METRICS} for r in RUNS},
)

# %% [markdown]
# On SmolLM2 the rule finds one such head, 21.5, by KL divergence.
#
# The paper takes comfort from one thing: every head that it detects is known to belong to the circuit. That can be asked of
# GPT-2 small alone, for which there is a list.

# %%
circuit = pl.Heads(
    head for one in wang.values() for kind in ("main", "fuzzy") for head in one[kind]
)
pl.claim(
    "31-12",
    sweep.anywhere() <= circuit,
    detected=sweep.anywhere(),
    outside=sweep.anywhere() - circuit,
)

# %% [markdown]
# ## 4 Table 1 of this model
#
# For another model nobody has written down classes, and head numbers mean nothing across models. So the classes have to be
# *measured*, by the rule of [3.1](03_1_ioi_circuit.ipynb): where a head looks, and whether it would copy a name that it
# looks at. (For GPT-2 small, `pl.head_roles` returns the list of Wang et al., fuzzy heads included.) Mind what a fraction
# now says: of the heads that *look* like a class, how many patching detects. A head can look at S2 for other reasons.

# %%
roles = pl.head_roles(model, pairs[:50])
classes = {role: pl.Heads(roles.index[roles.role == role]) for role in ROLES}
duplicate, inhibition = classes["Duplicate Token"], classes["S-Inhibition"]
table1(sweep, classes)

# %% [markdown]
# Two things about Table 1 that the paper points out. Under GN a Duplicate Token head appears that STR never shows; and by
# probability and by KL divergence, GN shows fewer of the S-Inhibition heads. What do you expect of the second one here?

# %%
pl.predict("31-15", "GN finds fewer")  # or "as many", "more"

# %%
under_noise = {m: duplicate & sweep.found("GN", m) for m in METRICS}
at_threshold = {m: sweep.at_threshold("GN", m) for m in METRICS}
unsure = all(heads <= at_threshold[m] for m, heads in under_noise.items())
pl.claim(
    "31-14",
    any(duplicate & sweep.found("GN", m) for m in METRICS)
    and not any(duplicate & sweep.found("STR", m) for m in METRICS),
    parts=duplicate,
    close=any(under_noise.values()) and unsure,
    act_like_one=len(duplicate),
    GN=under_noise,
)

# %%
pl.claim(
    "31-15",
    all(
        len(inhibition & sweep.found("GN", m)) < len(inhibition & sweep.found("STR", m))
        for m in ["prob", "kl"]
    ),
    parts=inhibition,
    **{m: {r: inhibition & sweep.found(r, m) for r in RUNS} for m in ["prob", "kl"]},
)

# %% [markdown]
# Each of these claims compares counts of a few heads, and one head that crosses its threshold turns ✓ into ✗. On SmolLM2 both
# rest on a single head: 8.1, which lies at its threshold, and 23.3. That leads to the last question.
#
# ## 5 How much of a list is luck?
#
# Suppose that no head did anything, and that the effects were normally distributed noise. How many would the rule still
# detect? Guess, for the number of heads of this model, before you run the cell.

# %%
cells = model.cfg.n_layers * model.cfg.n_heads
by_chance = 2 * NormalDist().cdf(-2) * cells
found = {f"{r}, {m}": len(sweep.found(r, m)) for r in RUNS for m in METRICS}
pd.Series({"all heads": cells, "expected by chance": by_chance} | found).round(1)

# %% [markdown]
# A rule that measures a map by itself finds something in nearly every map, so that the *length* of a list proves nothing. In
# GPT-2 small chance would give 6.6 of 144 heads, and the paper's lists have six to eight; on SmolLM2 every list is shorter
# than chance would make it, since the strong heads widen the band of the rule. What proves something is that the
# *same* heads come back with other sentences; chance would repeat one head in twenty-two. So cut the prompts into two
# halves, detect in each, and compare.

# %%
halves = {
    r: pl.Sweep(
        {
            half: sweep[r].isel(prompt=slice(start, None, 2))
            for start, half in enumerate(["first", "second"])
        }
    )
    for r in RUNS
}
pd.concat({r: halves[r].overlap("first", "second") for r in RUNS}, names=["corruption"])

# %%
both = {r: halves[r].found("first") & halves[r].found("second") for r in RUNS}
either = {r: halves[r].found("first") | halves[r].found("second") for r in RUNS}
pl.claim(
    "Two halves of the prompts detect mostly the same heads, by logit difference",
    all(2 * len(both[r]) > len(either[r]) for r in RUNS),
    both=both,
    only_one={r: either[r] - both[r] for r in RUNS},
)

# %% [markdown]
# The heads of one half alone are those to be careful with. They are no errors: their effect lies at the threshold, and
# "detected" is a yes or no. The next figure shows the distance to it for GN and KL divergence, which no list and no fraction
# can show. **Look for** gaps: a threshold that runs through a gap between the effects gives the same list with any sentences.

# %%
pl.plot.ranked(sweep.mean["GN"], "kl")

# %%
pd.Series(at_threshold, name="GN, at the threshold").map(str).to_frame()

# %% [markdown]
# ## Summary
#
# * Maps hold effects, lists hold yes or no, fractions hold counts: quote the last, and show the first.
# * Table 1 follows from Table 5 by three rules. They hide signs that no class has, and heads that no class counts.
# * Mean ± 2 SD measures a map by itself. It finds some heads in any noise; heads that come back with other prompts are a result.
# * A class in another model is a class by a rule, and so is every fraction about it.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# Fill in, run, read the hint. The right answers are computed from the model that you loaded.
#
# **1 By one map alone.** Which heads are detected in exactly *one* of the six maps, whatever their sign? These are the first
# that you would not put into an abstract.

# %%
answer = ...  # a list of "layer.head"
pl.check("H.1", answer, sweep=sweep)

# %% [markdown]
# **2 A rule that strong heads do not move.** The median and the MAD (median of the absolute distances from the median)
# hardly change when one head grows. Write a function of an array of effects that marks those beyond median ± 2 · 1.4826 ·
# MAD. The factor makes it the same rule as ± 2 SD for normally distributed values. Try it on `effects["STR", "logit_diff"]`:
# is its list longer or shorter, and why?

# %%
my_rule = ...  # a function of an array, that returns an array of True and False
pl.check("H.2", my_rule, sweep=sweep)

# %% [markdown]
# **3 One loud head.** Suppose that the strongest head under STR, by logit difference, had three times its effect, and all
# other heads did exactly what they do. Which of the heads that are detected now would no longer be? Predict, then compute
# it with NumPy.

# %%
answer = ...  # a list of "layer.head"; [] where no head is lost
pl.check("H.3", answer, sweep=sweep)

# %% [markdown]
# **To discuss.** A table reports "S-Inhibition 3/4". Which two numbers would you ask for before you believe that the fourth
# head does something else? Next: [Appendix G](app_g_factual_recall_details.ipynb), the details of factual recall.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Appendix D: docstrings, or where in the prompt a head works
#
# **Time** 15 minutes, with the exercises 30 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Appendix D, Table 2 · **Before this** `03_1_ioi_circuit`
#
# "That head matters." Where? A head computes something at *every* token, and restoring it everywhere at once cannot tell
# whether it matters where the information enters or where the answer is read. So patch each head at each position. That
# gives six maps instead of one, six times as many chances to call something detected, and a question about the rule.
#
# At the end you can patch by position, say before any run which positions cannot matter, and choose over which cells a
# threshold is drawn.

# %%
import pandas as pd

import patchlib as pl

pd.options.display.max_colwidth = None  # lists of heads are shown whole
model, pairs, S = pl.start("app_d_docstring")
pl.show_pairs(model, pairs, "C_def", n=1)

# %% [markdown]
# ## 1 The task
#
# A function has six arguments, and its docstring has documented two of them, A and B, in the order of the definition. The
# third `:param` must be about the argument that follows B: that is **C**. The model has to find its place in the
# definition by matching the docstring with it, which is what induction heads do.
#
# Six positions have names: `A_def`, `B_def`, `C_def` in the definition, `A_doc`, `B_doc` in the docstring, and `last`,
# where the answer is read. Both corruptions are at `C_def`: STR puts another word there, which is also the wrong answer
# r′; GN adds noise to the word that is there.

# %%
METRICS, RUNS = ["prob", "logit_diff", "kl"], ["STR", "GN"]
PLACES = ["A_def", "B_def", "C_def", "A_doc", "B_doc", "last"]
corruptions = {"STR": pl.STR("C_def"), "GN": pl.GN("C_def", draws=S["draws"])}
sweep = pl.sweep(model, pairs, corruptions, positions=PLACES, metrics=METRICS, progress=False)
sweep.runs().round(3)

# %% [markdown]
# Under STR there is another word to copy, and the model can copy it: a strongly negative logit difference says that it
# does. Under GN there is no other word. Then r′ is a word that stands nowhere in the prompt, and the logit difference
# asks how far C is ahead of *that*, which is not the question that you meant. Probability and KL divergence do not know r′.
#
# ## 2 What cannot matter
#
# Before you look: at two of the six positions no head of any model can have an effect. Which two, and why?

# %%
early = sweep.mean["STR"].effect.sel(position=["A_def", "B_def"])
largest = float(abs(early).max())
pl.claim("Before the corrupted token no head has an effect", largest < 1e-3, largest_effect=largest)

# %% [markdown]
# A token is seen only from later ones. At `A_def` and `B_def` the clean and the corrupted run are the same, so that
# restoring changes nothing. Such a check costs nothing and finds the commonest bug, positions that are off by one.
#
# ## 3 Where, and when
#
# One line for each position: the effects of all heads of a layer, added up. Adding single effects is no joint effect, but
# it shows where something happens. **Look for** the layer at which `C_def` becomes quiet, and that at which `last` begins.

# %%
pl.plot.lines(sweep.mean["STR"].sum("head", keep_attrs=True))

# %% [markdown]
# The paper's model has four layers of attention and nothing else. There nearly all heads that are found at `C_def` are of
# layer 0, and all that are found at the last token of layers 1 to 3: early heads prepare at C what late ones look up. On
# SmolLM2 the line of the last token stays at zero for more than half of the layers, and that of `C_def` hardly leaves it.
#
# ## 4 Maps at the last token
#
# **Look for** heads that are strong in both rows, and for the numbers at the first colour bar: how much of the answer's
# probability does a single head bring back?

# %%
pl.plot.heatmaps(sweep.sel(position="last").mean, METRICS, found=False)

# %% [markdown]
# No frames this time: which heads are detected depends on a choice that you make now.
#
# ## 5 A threshold for six maps
#
# The rule is mean ± 2 standard deviations. Of which cells? The paper's Table 2 lists pairs of head and position, so we
# take **all pairs** of one metric together (`shared=["position"]`). The table counts the detected pairs of all three metrics.
# Guess first: what share of them will lie at `C_def` and at the last token?

# %%
pl.predict("D-1", "nearly all")  # or "half", "a third"

# %%
found = pd.concat(
    {run: pl.detect(fx, shared=["position"]) for run, fx in sweep.mean.items()}, names=["run"]
)
found = found.reset_index("run")
count = found.assign(pairs=found.heads.str.len()).pivot_table("pairs", "position", "run", "sum")
count.loc[PLACES, RUNS]

# %%
elsewhere = int(count.drop(["C_def", "last"]).sum().sum())
detected = int(count.sum().sum())
pl.claim("D-1", elsewhere <= 0.1 * detected, elsewhere=elsewhere, detected=detected)

# %% [markdown]
# What would the rule say, if each position had a threshold of its own?

# %%
apart = pd.concat([pl.detect(fx) for fx in sweep.mean.values()])
apart.heads.str.len().groupby(apart.position).sum()[PLACES]

# %% [markdown]
# A rule that looks for the outliers of each map finds outliers in each map, however small its numbers are. Only where
# all effects are the same, as before the corrupted token, it is silent. Neither rule is wrong. One asks which pairs
# stand out in the whole prompt, the other which heads stand out at a place; say which you asked.
#
# ## 6 The heads
#
# The positive ones, as in Table 2. **Look for** names that stand in all rows of a column.

# %%
docs = {
    (row.run, row.metric, row.position): pl.Heads(row.heads)
    for row in found[found.sign == "positive"].itertuples()
}
always = pl.Heads(
    h
    for h in docs["STR", "prob", "last"]
    if all(h in docs[r, m, "last"] for r in RUNS for m in METRICS)
)
pd.Series({key: str(heads) for key, heads in docs.items()}).unstack()[["C_def", "last"]]

# %%
pl.claim(
    "D-2",
    any(
        all(h in docs[r, m, "last"] for r in RUNS for m in METRICS)
        for h in docs["STR", "prob", "last"]
    ),
    in_all_six=always,
)

# %%
pl.claim(
    "D-3",
    not any(docs[r, "prob", "C_def"] for r in RUNS),
    **{r: docs[r, "prob", "C_def"] for r in RUNS},
)

# %%
pl.claim(
    "D-4",
    len(docs["GN", "logit_diff", "last"]) > len(docs["STR", "logit_diff", "last"]),
    **{r: len(docs[r, "logit_diff", "last"]) for r in RUNS},
)

# %% [markdown]
# And the paper's table, for a model of four layers without MLPs:

# %%
pd.DataFrame(pl.paper.value("table2")).set_index(["corruption", "metric"]).map(", ".join)

# %% [markdown]
# In the paper a head at `C_def` is missed by probability and found by the logit difference. One reason is the way back:
# restoring a word where it stands has to go through all later heads, which are still corrupted at their own positions.
# A little of the answer returns, and a probability near 0 shows little of a little.
#
# ## Summary
#
# * A head has an effect *at a position*. Patch at named positions once the map over all positions says who is involved.
# * No effect can come before the corrupted token: the cheapest test of a patching experiment.
# * A threshold belongs to a set of cells. Pooled over positions it finds the pairs that stand out; one for each position
#   finds something at every position.
# * The logit difference needs an r′ that means something in the corrupted run. Under noise think twice what that is.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Read it off.** Of all pairs that are detected (both signs, all metrics), what share is at the last token under STR,
# and what share under GN? `found` has all you need.

# %%
answer = {"STR": ..., "GN": ...}  # two numbers from 0 to 1
pl.check("D.1", answer, found=found)

# %% [markdown]
# **2 The rule itself.** Write a function of `effect`, one metric's effects over layer, head and position (such as
# `sweep.mean["STR"].effect.sel(metric="prob")`), that counts the pairs beyond mean ± 2 standard deviations of all of
# them. It is tried on other numbers than yours.

# %%
my_count = ...  # a function of effect
pl.check("D.2", my_count)

# %% [markdown]
# **3 More than its parts?** Take the four strongest heads at the last token. Predict: if they are restored *together*, is
# the effect on the logit difference larger or smaller than the sum of their own? Then use `pl.patch_together` for both,
# with `positions="last"`, on `some` under STR.

# %%
some, four = pairs[:20], list(pl.strongest(sweep["STR"].sel(position="last"), n=4)["head"])
answer = {"together": ..., "sum": ...}
pl.check("D.3", answer, model=model, pairs=some, heads=four)

# %% [markdown]
# **To discuss.** You choose r′ yourself: the word that STR wrote, argument A, or any argument of the function but C. Which
# heads might each choice hide? Next: [Appendix E](app_e_greater_than.ipynb), where the right answer is a set.

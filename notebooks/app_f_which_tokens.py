# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Appendix F: corrupt other tokens, find other heads
#
# **Time** 15 minutes, with the exercises 40 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Appendix F, Table 4, Figure 11 · **Before this** [3.1](03_1_ioi_circuit.ipynb)
#
# In GPT-2 small three heads do the last and plainest step of the task: they look at the right name and write it down.
# Patching with S2 corrupted misses at least two of these three Name Movers, with every metric and under both corruptions.
# Six settings, and the heads that say the answer stay in the dark. It is neither the metric nor the noise: the question
# was put to the wrong tokens.
#
# At the end you can say which heads a choice of tokens is able to show, choose tokens for a question of your own, and
# compare effects between choices without being misled by their units.

# %%
import pandas as pd

import patchlib as pl

pd.options.display.max_colwidth = None  # lists of heads are shown whole
model, pairs, S = pl.start("app_f_which_tokens")
for site in ["S2", "S1+IO"]:
    pl.show_pairs(model, pairs, site, n=1)

# %% [markdown]
# ## 1 What is destroyed, and who could bring it back?
#
# Patching asks one question: *which component carries what the corruption destroyed?* What survives the corruption needs
# nobody to bring it back, so the heads that carry it cannot be seen.
#
# | corrupted | STR writes there | destroyed | still there |
# |---|---|---|---|
# | **S2** | the other name | which of the two names occurs twice | both names |
# | **S1+IO** | two new names | the answer itself; that any name occurs twice | S2, and with it the wrong answer |
# | **ABC** | three new names (S1, IO and S2) | all of this | the sentence around the names |
#
# Think of the last two stages of the circuit. S-Inhibition heads say *where not to look*; Name Movers look, and copy what
# stands there. With S2 corrupted, both names are in place and only the instruction is wrong. Put one instruction right,
# and all Name Movers follow; put one Name Mover right, and it is one voice among several. With S1 and IO replaced, the
# right name is nowhere in the sentence. What use is the right instruction now?
#
# Two guesses, then. With S1 and IO corrupted, how many of the S-Inhibition heads will be detected? And will most of the
# detected heads be those of S2, or others?

# %%
pl.predict("F-2", "some of them")  # or "all", "none"
pl.predict("F-4", "mostly the same heads")  # or "mostly others"

# %% [markdown]
# The same prompts twice, with other tokens corrupted (the prompts are those of
# [3.1](03_1_ioi_circuit.ipynb)). First the runs in which nothing is patched. **Look for** what is left of the answer under
# STR, and for the logit difference of each corrupted run.

# %%
METRICS, RUNS = ["prob", "logit_diff", "kl"], ["STR", "GN"]
sweep = pl.sweep(model, pairs, {"STR": pl.STR("S2"), "GN": pl.GN("S2")}, metrics=METRICS)
s1io = pl.sweep(model, pairs, {"STR": pl.STR("S1+IO"), "GN": pl.GN("S1+IO")}, metrics=METRICS)
runs = {"S2": sweep.runs(), "S1+IO": s1io.runs()}
pd.concat(runs, names=["corrupted"]).round(3)

# %% [markdown]
# A name that is not in the sentence gets next to no probability, so under STR at S1+IO almost nothing is left of it. The
# logit difference is another matter: it compares the right name with the wrong one, and the wrong one still stands at S2.
#
# A normalised effect is a share of the way from the corrupted run to the clean one, and this way has its own length for
# each choice. Here it is, in logits:

# %%
way = pd.DataFrame(
    {site: run.logit_diff["clean"] - run.logit_diff.loc[RUNS] for site, run in runs.items()}
)
way.round(2)

# %% [markdown]
# An effect of a third is a third of these. Before you say that a head does *more* under one choice than under another,
# multiply (exercise 1). Where the way is short, small changes look large; where it is negative, all signs turn round.
#
# ## 2 The same rule, other heads
#
# STR at S2 above, STR at S1+IO below: the same prompts, the same rule, and one scale for each column. **Look for** frames
# that only one of the rows has, and for the layers in which they lie.

# %%
destroyed = pl.Sweep({"S2": sweep["STR"], "S1+IO": s1io["STR"]})
pl.plot.heatmaps(destroyed.mean, ["logit_diff", "kl"])

# %%
destroyed.overlap("S2", "S1+IO")

# %%
pl.claim(
    "F-4",
    2 * len(s1io.found("STR") & sweep.found("STR")) < len(s1io.found("STR") | sweep.found("STR")),
    S2=sweep.found("STR"),
    S1_and_IO=s1io.found("STR"),
)

# %% [markdown]
# This is no disagreement between methods, such as that of STR and GN in [3.1](03_1_ioi_circuit.ipynb). The two choices ask
# about two different things, and each list answers its own question. A list of heads without the corrupted tokens beside it
# says little.
#
# ## 3 Who came to light?
#
# Now all six maps of S1+IO; the upper row is the setting of the paper's Figure 11.

# %%
pl.plot.heatmaps(s1io.mean, METRICS)

# %% [markdown]
# The paper's Table 4 holds the lists for GPT-2 small. Five heads, and all of them work at the end: 9.6, 9.9 and 10.0 are the
# Name Movers, 10.7 and 11.10 the Negative Name Movers. Nothing that comes before them is left.

# %%
pl.paper.sweep("table4").overlap("STR", "GN")

# %% [markdown]
# For the loaded model we ask what *all* heads look at, not only the detected ones, or we could not see which are missed.
# The rule is that of [3.1](03_1_ioi_circuit.ipynb): a Name Mover looks at IO from the last token and would copy a name that
# it looks at, a Negative Name Mover looks there and suppresses it, an S-Inhibition head looks at S2.

# %%
roles = pl.head_roles(model, pairs[:50])
movers, negative, inhibition = (
    pl.Heads(roles.index[roles.role == role])
    for role in ("Name Mover", "Negative Name Mover", "S-Inhibition")
)

# %%
pl.claim(
    "F-1",
    all(
        movers <= s1io.found(r, m, "positive")
        for r in RUNS
        for m in METRICS
        if (r, m) != ("STR", "prob")
    ),
    parts=movers,
    name_movers=movers,
    **{r: movers & s1io.found(r, sign="positive") for r in RUNS},
)

# %%
unsure = pl.Heads(h for r in RUNS for m in METRICS for h in inhibition & s1io.at_threshold(r, m))
pl.claim(
    "F-2",
    not any(inhibition & s1io.found(r, m) for r in RUNS for m in METRICS),
    parts=inhibition,
    close=bool(unsure) and inhibition & s1io.anywhere() <= unsure,
    at_threshold=pl.Heads(dict.fromkeys(unsure)),
    with_S2=inhibition & sweep.anywhere(),
    with_S1_and_IO=inhibition & s1io.anywhere(),
)

# %% [markdown]
# The Negative Name Movers suppress a name that they look at. Which metric can see that, where the name has hardly any
# probability left to lose?

# %%
pl.claim(
    "F-3",
    all(negative & s1io.found(r, m, "negative") for r in RUNS for m in ["logit_diff", "kl"])
    and not any(negative & s1io.found(r, "prob") for r in RUNS),
    parts=negative,
    **{m: negative & s1io.found("STR", m, "negative") for m in METRICS},
)

# %% [markdown]
# On SmolLM2, a model of another family, the Name Movers 23.0, 23.1 and 23.7 come to light as in GPT-2 small, and 24.4 works
# against them by logit difference and KL divergence alone. Of the S-Inhibition heads none is detected; the interval of
# 23.3 reaches a threshold, so that "none" is not certain.
#
# The reason for what probability misses is the floor of [4.2](04_2_negative_heads.ipynb): no patch can take more probability
# than the corrupted run has. Other tokens change what can be found, and they also change how much room each metric leaves.
#
# ## 4 One table: what each choice can see
#
# A third choice destroys everything at once: ABC, three new names. Would that not be the best of both? Below are all heads
# that any of the three choices detects by any metric, and what each brings back of the logit difference under STR.
# **Look for** heads with a large number in one column and next to nothing in the others.

# %%
abc = pl.sweep(model, pairs, {"STR": pl.STR("ABC")}, metrics=METRICS)
choices = pl.Sweep({"S2": sweep["STR"], "S1+IO": s1io["STR"], "ABC": abc["STR"]})
found = choices.anywhere()
by_choice = pd.DataFrame(
    {
        site: fx.effect.sel(metric="logit_diff").to_series().loc[list(found)]
        for site, fx in choices.mean.items()
    }
)
by_choice.index = list(map(str, found))
roles[["role"]].join(by_choice.round(2), how="right")

# %% [markdown]
# To destroy more is not to see more. On SmolLM2, 20.0 and 17.4 stand out where only *which name occurs twice* was destroyed.
# With three new names they do nothing: what they pass on has no names left to act on. And 23.3 does more than ever, since
# it looks at S2 and suppresses the name that stands there, with no help from any other head. Each column is one question.
#
# ## 5 How sure are you?
#
# An interval holds 95 % of the means over resampled prompts, and a filled point is a detected head. **Look for** heads that
# are clearly beyond the dashed lines of one colour and clearly inside those of the other: these carry the claim that other
# tokens find other heads. Heads at a line carry nothing.

# %%
pl.plot.intervals(destroyed)

# %%
print("at the threshold:", {site: str(destroyed.at_threshold(site)) for site in destroyed})

# %% [markdown]
# ## Summary
#
# * Patching shows who carries what was destroyed. What survives the corruption, and who carries it, stays invisible.
# * To find the heads that *decide*, corrupt what they decide by (S2); for the heads that *fetch the answer*, corrupt the
#   answer (S1 and IO). Choose the tokens by your question, and try more than one choice.
# * A normalised effect belongs to its choice of tokens: give the length of the way beside it.
# * "Not detected" means "not with these tokens". What this run says to the paper's claims:

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# Fill in, run, read the hint. The right answers are computed from the model that you loaded.
#
# **1 In logits.** Take the head with the largest effect on the logit difference under STR at S1+IO. How many *logits* of
# difference does it bring back there, and how many with S2 corrupted? In which of the two does it do more?

# %%
answer = {"S2": ..., "S1+IO": ...}  # two numbers, in logits
pl.check("F.1", answer, sweep=sweep, s1io=s1io)

# %% [markdown]
# **2 Several voices.** Write a function of a list of heads, such as `["4.6", "5.1"]`, that restores all of them *together*
# under STR at S1+IO, on `some`, and returns the normalised effect on the logit difference. Section 2 of
# [3.1](03_1_ioi_circuit.ipynb) does it for one head. Do the effects of single heads add up?

# %%
some, best = pairs[:20], pl.strongest(s1io.mean["STR"], n=3)["head"]
my_together = ...  # a function of a list of heads
pl.check("F.2", my_together, model=model, pairs=some, heads=best)

# %% [markdown]
# **3 Which of the two?** S1+IO replaces two names at once. The three heads that do most there (`best`): do they bring
# back what stood at S1, or what stood at IO? Guess from what they look at. Then corrupt S1 alone and IO alone (STR), and restore the
# three together with `pl.patch_together`, on `some`. Give the site at which they bring back more KL divergence, and how
# many nats.

# %%
answer = ...  # a pair, such as ("S1", 0.3)
pl.check("F.3", answer, model=model, pairs=some, heads=best)

# %% [markdown]
# **To discuss.** You want to know which heads of a model find the *verb* of a sentence. Which tokens would you corrupt, and
# which heads could you then never see? Next: [Appendix H](app_h_ioi_details.ipynb), from six maps to one table.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 26 Which method finds the circuit?
#
# **Time** 25 minutes, with the exercises 45 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 6; [Gupta et al., NeurIPS 2024](https://arxiv.org/abs/2407.14494) · **Before this** [6](06_recommendations.ipynb), [25](25_known_circuit.ipynb); best after [20](20_attribution_patching.ipynb), [21](21_edges_and_eap.ipynb), [22](22_acdc.ipynb)
#
# The paper advises: replace tokens, do not trust probability, single layers first, several sets of tokens. It can argue for
# that, and it cannot prove it. Nobody knows the true circuit of GPT-2 small, so nobody can say which of two lists of heads is
# *right*. Of the known models of [25](25_known_circuit.ipynb) one can: six heads and twelve edges do the task, and nothing else
# does. That turns an argument about taste into an exam.
#
# Here every method and every choice of this collection sits it, on nine models: three gates (graded, OR, AND), each trained
# from three seeds. At the end you can read a score and say when it flatters, mark each piece of the paper's advice, and choose a method by
# what it finds for its price.

# %%
import pandas as pd

import patchlib as pl

model, pairs, S = pl.start("3_1_ioi", "known", n=64)
truth = pl.known.heads(pairs, pl.STR("S2"))
pd.Series({str(head): effect for head, effect in truth.items()}, name="predicted effect")

# %% [markdown]
# Those are the heads of `known`, with the effects that the mechanism *predicts* for an exchange of S2. Head 0.1, the previous-token head,
# is in the circuit and idle here: it sits at the first names, which the exchange leaves alone. What is idle cannot be found, and
# is not asked for.
#
# ## 1 One score, by hand
#
# Patch all heads and rank them by the size of their effects. Take a head of the circuit and one that is not: in what share of
# all such couples does the right one stand higher? That share is the **AUC**: 1 for a perfect ranking, .5 for a shuffled one.

# %%
options = {"metrics": "logit_diff", "keep_prompts": True, "progress": False}
fx = pl.patch(model, pairs, corruption=pl.STR("S2"), **options)
size = abs(fx.effect.mean("prompt")).squeeze("metric").to_series()
active = [head for head, effect in truth.items() if effect]
inside, outside = size[active], size.drop(active)
sum(a > b for a in inside for b in outside) / (len(inside) * len(outside))

# %%
found = pl.score(fx, truth)
found.round(3)

# %% [markdown]
# `low` and `high` are the ends of an interval over prompts, and `chance` is what a shuffled ranking has. `precision` is
# the share of right ones among the first five, as many as there are; `needed` says how far down the last right one
# stands; `size_error` is the mean distance from the predicted effects, and `signs` the share of right signs. The other
# two deserve a second look. **Average precision** goes down the ranking and asks at each right one what share of the
# list so far is right. Among 460 edges of which 12 are right, a method that puts 40 wrong ones on top still has an AUC
# of .91, and an average precision of .14. And **signed AUC** puts the most *helpful* first: a head that works against
# the answer then counts as a miss.
#
# ## 2 The exam
#
# The same for every method and choice on every model: `make score`, some minutes for each model. (The six of other seeds do not
# come with the project: `python -m patchlib.training.known --gate or --seed 1` makes one in half an hour.) One row of the table
# is one choice on one model: `n_true` of `n` heads or edges are right, and `passes` are forward passes of each prompt, a backward one counted as
# two. AtP is the attribution patching of [20](20_attribution_patching.ipynb), EAP that of edges.

# %%
table = pl.scores()
print(len(table), "scores of", table.model.nunique(), "models")
table[table.site == "S2"].drop_duplicates("method")[["method", "of", "n_true", "n", "passes"]]

# %% [markdown]
# First the heads. The last three rows of the figure ask for no causal effect at all: where a head looks, how much its
# output differs between the two runs, and a number by chance. **Guess** how far "its output differs" gets.

# %%
pl.plot.scores(table[(table.of == "heads") & table.metric.isin(["logit_diff", ""])])

# %% [markdown]
# A norm that knows nothing of the answer is perfect. That is a warning about the exam, not a discovery about norms: training
# told every other head to write the same whatever the prompt says, and the six where to look. In a real model most heads write
# about other things. So heads are the easy part of the exam. Edges are the hard part. (`direct effect` is asked
# for edges into the logits alone, `path patching` for those between heads and into the logits.)

# %%
pl.plot.scores(table[(table.of == "edges") & table.metric.isin(["logit_diff", ""])])


# %% [markdown]
# Now the norm is found out, and only by average precision. The AUC forgives it: nearly all edges are wrong, and it gets most of
# these right. Read AUC alone and you would use it.
#
# ## 3 The paper's advice
#
# Each piece is a comparison in which *one* choice differs. The first function gives the mean average precision for each model. The
# second says in how many of them one choice is better than the other, and calls it too close where the mean difference is less
# than two of its standard errors over the models.


# %%
def precision(by, **where):
    rows = table
    for column, values in where.items():
        rows = rows[rows[column].isin(values)]
    return rows.pivot_table("average_precision", "model", by, sort=False)


def compared(one, other):
    apart = one - other
    close = abs(apart.mean()) < 2 * apart.std() / len(apart) ** 0.5
    return {"close": close, "better_in": (apart > 0).sum(), "of": len(apart)}


# %% [markdown]
# **Replace tokens where possible, noise where not.** Patching of heads by the logit difference, with all three choices of
# tokens. Guess: is noise worse everywhere?

# %%
pl.predict("26-1", "at S2")  # or "everywhere", "nowhere"

# %%
patched = table[(table.method == "patching") & (table.metric == "logit_diff")]
pl.plot.scores(patched, ["corruption", "site"])

# %%
by = precision("corruption", method=["patching"], metric=["logit_diff"])
pl.claim("26-1", by.STR.mean() > by.GN.mean(), **by.mean(), **compared(by.STR, by.GN))

# %%
gone = {"method": ["patching"], "metric": ["logit_diff"], "site": ["S1+IO", "ABC"]}
precision(["direction", "corruption"], **gone).round(2)

# %% [markdown]
# The table takes the two choices that replace the names. Noising, replaced tokens are nowhere the worse choice. Denoising, the
# gates disagree: on the OR models and two of the three AND models noise finds more, since half of a name is left to restore.
# Section 4 says why nothing is left of a replaced one. A comparison of corruptions is one of directions, too.
#
# **Not probability but the logit difference, or KL to find circuits.** The same heads by all three metrics.

# %%
patched = table[table.method == "patching"]
pl.plot.scores(patched, ["corruption", "metric"], of=["average_precision", "signed_auc"])

# %%
by = precision("metric", method=["patching"])
better = compared(by.logit_diff, by.prob)
pl.claim("26-2", by.logit_diff.mean() > by.prob.mean(), **by.mean(), **better)

# %%
by = precision("metric", method=["patching"], corruption=["STR"])
pl.claim("26-3", by.kl.mean() > by.logit_diff.mean() - 0.05, **by.mean(), models=len(by))

# %% [markdown]
# With tokens replaced the metric hardly matters for *finding* heads, which is all that is asked here. Under noise it does:
# probability and KL also count what noise does to words that are no answer.
#
# **Single layers before windows.** Restore the attention of one layer, and of three neighbours. The circuit has heads in the
# layers 0, 2, 3, 4 and 5, of which 0 is idle under S2. Guess what a window says of layer 1.

# %%
attention = pl.patch(model, pairs, "attn", corruption=pl.STR("S2"), window=[1, 3], **options)
windows = attention.effect.mean("prompt").squeeze("metric").to_pandas()
windows.round(2)

# %%
pl.claim(
    "26-4",
    bool(abs(windows.loc[1, 1]) < 0.05 and windows.loc[3, 1] > 0.5),
    layer_1_alone=windows.loc[1, 1],
    layer_1_in_a_window=windows.loc[3, 1],
)

# %% [markdown]
# **Try several sets of tokens.** All heads of the circuit, by three sets. The run is the clean one, and each head in turn is
# noised.

# %%
SITES, circuit = ["S2", "S1+IO", "ABC"], list(truth)
noise = {"direction": "noise", **options}
by_site = {site: pl.patch(model, pairs, corruption=pl.STR(site), **noise) for site in SITES}
means = {
    site: fx.effect.mean("prompt").squeeze("metric").to_series() for site, fx in by_site.items()
}
effects = pd.DataFrame(means).loc[circuit]
effects.round(2)

# %%
unseen = (abs(effects) < 0.05).sum()
pl.claim("26-5", unseen.S2 > 0 and abs(effects).max(axis=1).min() > 0.05, unseen=unseen.to_dict())

# %% [markdown]
# ## 4 The advice that the paper does not give
#
# It restores clean activations in a corrupted run, and says that the other direction is left open. The mechanism itself says
# what each direction must see. With the names gone (ABC):

# %%
both = {way: pl.known.heads(pairs, pl.STR("ABC"), direction=way) for way in ("denoise", "noise")}
here = {
    "denoise": pl.patch(model, pairs, corruption=pl.STR("ABC"), **options),
    "noise": by_site["ABC"],
}
measured = {
    f"{way}, measured": fx.effect.mean("prompt").squeeze("metric").to_series()
    for way, fx in here.items()
}
pd.DataFrame(both | measured).dropna().round(2)

# %% [markdown]
# Denoising restores the *decision which name not to say* in a sentence that has neither name, and there is nothing to decide
# about. Only the movers, which bring the names, have an effect. That is no fault of a method. Before you call a head unimportant,
# ask whether the corrupted sentence leaves it anything to do.
#
# ## 5 What it costs
#
# Edges are where cost matters: here 460, in GPT-2 small 11,611 (32,491 with query, key and value apart). A gradient
# costs the same for all of them. Of the methods that say something of every edge:

# %%
pl.plot.costs(table[table.n == table.n.max()])

# %%
pl.predict("26-6", "yes")

# %%
by = precision("method", method=["EAP", "EAP-IG"], metric=["logit_diff"])
better = compared(by["EAP-IG"], by.EAP)
pl.claim("26-6", by["EAP-IG"].mean() > by.EAP.mean(), **by.mean(), **better)

# %%
by = precision("method", method=["EAP", "ACDC"], metric=["kl"], direction=["noise"])
pl.claim("26-7", by.ACDC.mean() > by.EAP.mean(), **by.mean(), **compared(by.ACDC, by.EAP))

# %% [markdown]
# One gradient, at the run that is patched, meets attention that is saturated: the slope there says nothing, or has the wrong
# sign, where the effect is large. Five gradients on the way between the runs mend most of it; taken along
# every writer's own way, at the price of patching each edge, they find hardly more.
#
# ## 6 What surprised us
#
# Rank the same estimates by their *sign*, helpful first, as a threshold without absolute values does. Guess before you run it:
# above or below .5?

# %%
table[table.of == "edges"].groupby("method", sort=False)[
    ["auc", "signed_auc", "average_precision"]
].mean().round(2)

# %% [markdown]
# Edges of the circuit that work against the answer, or whose estimate has the wrong sign, go to the end of the list, below hundreds
# of edges that do nothing: for EAP enough to fall below .5, for patching each edge to .65. (ACDC's order and norms have no sign, and
# lose nothing.) A published score below chance need not mean that a method is worse than chance. It may mean
# a missing absolute value.
#
# What this exam cannot say: it has **one task, one architecture and one recipe of training**. The six heads were put in their
# places, everything else was told to keep still, and no head does two things. A method that fails here is in doubt. One that
# passes has shown that it *can* find a circuit, not that it will find yours.
#
# ## Summary
#
# * A ranking is scored against what is active under the corruption. Heads are easy here, edges are not.
# * Among few right ones, read average precision. AUC alone would pass a norm without any causal information.
# * Each mark on the paper's advice is one comparison: of metrics and corruptions on all nine models, of windows and sets of
#   tokens on `known` alone.
# * By the logit difference integrated gradients find as much as ACDC and more than patching each edge, for a fraction of the
#   passes of both. Take absolute values.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Cheap and good.** Which method of edges has the largest mean average precision, over all of its rows in the table, of those
# that take at most twenty passes of each prompt? Give its name and that mean.

# %%
answer = ...  # a pair: a name of the column "method", and a number
pl.check("26.1", answer, table=table)

# %% [markdown]
# **2 The average precision.** Write it as a function of the `sizes` of effects and of `true`, which says of each whether it is in
# the circuit: the mean, over the true ones, of the share of true ones among all that are as large. Arrays of numpy; no two sizes
# are equal.

# %%
my_precision = ...  # a function of sizes and true
pl.check("26.2", my_precision)

# %% [markdown]
# **3 Predict, then test.** Rank the heads by their largest absolute effect under any of the three choices of tokens. How many of
# the first six are in the circuit? And how many by S2 alone? Guess first.

# %%
answer = {"S2": ..., "any": ...}
pl.check("26.3", answer, results=by_site, circuit=circuit)

# %% [markdown]
# **To discuss.** A paper ranks methods on a model whose circuit is known, and its own method wins. What would you ask about how
# that model was made? Back to the [start](00_start_here.ipynb).

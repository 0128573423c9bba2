# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3.1 Where is a fact recalled? Two corruptions, two curves
#
# **Time** 20 minutes, with the exercises 40 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 3.1, Figure 2, Appendix B · **Before this** `02_background`, [3.1 on IOI](03_1_ioi_circuit.ipynb)
#
# *"The Eiffel Tower is in the city of"*: Paris, says GPT-2 XL. In 2022 Meng et al. put noise on the words *Eiffel Tower*
# and asked which activations bring Paris back. A few MLPs in the middle of the model did, at the last word of the subject,
# and the hump they drew became famous: here, it seemed, facts are looked up, and here they can be edited. Zhang and Nanda
# drew the curve once more and changed one thing. They replaced the words in place of making noise, and the hump all but
# vanished.
#
# At the end you can restore a window of layers, tell a peak from the slope beside it, and say what a curve owes to the
# model and what it owes to the corruption. Layers count from zero.

# %%
import torch
from transformer_lens.utilities import get_act_name

import patchlib as pl

model, pairs, S = pl.start("3_1_factual_recall")
pl.show_pairs(model, pairs, "subject", n=2)

# %% [markdown]
# ## 1 Facts in pairs
#
# Two sentences of one form and one length, two subjects, two answers. The right answer is r; that of the partner sentence
# is r′, and LD = Logit(r) − Logit(r′). **STR** writes the partner's subject into the sentence. **GN** adds noise of three
# standard deviations to the embedding of every token of the subject. In each pair both sentences are the clean one once.
#
# What is patched is the output of MLPs at the **last token of the subject**, the first place where the model has read all
# of the name.

# %%
METRICS, RUNS = ["prob", "logit_diff"], ["STR", "GN"]
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
sweep.runs().round(3)

# %% [markdown]
# **Look for** the sign of the logit difference. Below zero, the model is sure of another fact. Near zero it has no fact to
# be sure of. Patching goes back from there: after STR it has to *overwrite* an answer, after GN it has to *supply* one.
#
# ## 2 One fact by hand
#
# One sentence, one layer: run it clean and keep what each MLP writes, run it corrupted, and put the clean output back at
# one token.

# %%
one, dirty = pairs[:1], pl.STR("subject").tokens(pairs[:1])
[(place,)] = one.at("last_subject")  # one prompt, one token
with torch.no_grad():
    clean_logits, cache = model.run_with_cache(one.clean_tokens)


def ld(logits):
    return (logits[0, -1, one.answers] - logits[0, -1, one.wrong_answers]).item()


# %%
layer = 0
name = get_act_name("mlp_out", layer)


def restore(mlp_out, hook):
    mlp_out[:, place] = cache[name][:, place]
    return mlp_out


with torch.no_grad():
    corrupted = ld(model(dirty))
    patched = ld(model.run_with_hooks(dirty, fwd_hooks=[(name, restore)]))
effect = (patched - corrupted) / (ld(clean_logits) - corrupted)

# %%
fx = pl.patch(
    model, one, "mlp", corruption=pl.STR("subject"), positions="last_subject", progress=False
)
same = float(fx.effect.sel(metric="logit_diff", layer=layer))
pl.claim(
    "By hand and by pl.patch the same", abs(effect - same) < 1e-3, by_hand=effect, by_patch=same
)

# %% [markdown]
# ## 3 A window of a tenth of the layers
#
# Single MLPs of a large model restore little, so one restores several adjacent layers in *one* run: a window. A window has
# no size of its own; it has a share of the depth. The paper's 5 of 48 layers are a tenth of GPT-2 XL. Five of the 30 layers
# of SmolLM2 would be a sixth, and of the eight of mini more than half. So all claims of these notebooks about facts are made
# at **w**, the window, of those that were swept, that comes nearest to a tenth of the loaded model's layers.

# %%
w = S["tenth"]
print("w =", w, "of", model.cfg.n_layers, "layers, of the windows", S["window"])

# %% [markdown]
# Now the two curves. The **left edge** needs care. A window that holds the very first layers repairs the corrupted token
# itself, almost before anything was computed from it. Both curves are high there, and that says where the *damage* is and
# nothing about facts. The question is what comes after: is there a second rise in the middle?
#
# In GPT-2 XL there is one under GN. Guess for this model: will STR show a rise in the same place?

# %%
pl.predict("31-3", "not salient under STR")  # or "as salient as under GN"

# %%
pl.plot.lines(sweep.sel(window=w).mean, "prob")

# %%
pl.plot.lines(sweep.sel(window=w).mean, "logit_diff")

# %% [markdown]
# To see a hump is not to measure one. `pl.peaks` calls a peak **salient** where it is (1) at middle layers, those whose
# window holds none of the first twelfth of the layers, (2) higher than both its neighbours, and (3) at least a tenth of the
# way from the corrupted run to the clean one. The paper gives no rule. Ours is met by the paper's own Figure 2 under GN and
# not under STR; the limits are arbitrary, and they are written down. `plateau` is the highest point before the middle.

# %%
peaks = pl.peaks(sweep)
peaks.xs(w, level="window").round(3)

# %%
pl.claim(
    "31-1",
    all(peaks.salient["GN", m, w] for m in ["prob", "logit_diff"]),
    peak={m: peaks.peak["GN", m, w] for m in METRICS},
    layer={m: peaks.layer["GN", m, w] for m in METRICS},
)

# %%
pl.claim(
    "31-3",
    not any(peaks.salient["STR", m, w] for m in ["prob", "logit_diff"]),
    peak={m: peaks.peak["STR", m, w] for m in METRICS},
    layer={m: peaks.layer["STR", m, w] for m in METRICS},
)

# %% [markdown]
# A rule that is written down can be disputed. On SmolLM2 both corruptions have a rise by probability, of .06 under GN and of
# .05 under STR; a tenth of the way lies in between, so that one is salient and the other is not. By logit difference GN has a
# rise, and STR has a *shelf*: 0.18 at layer 2, 0.21 at layer 6, and then the fall. One layer in between is lower, so the rule
# calls the end of the shelf a peak, and the mark is ✗. Would you?
#
# ## 4 How much higher?
#
# In the paper the middle peak under GN is two to five times as high as under STR, by either metric. **Look at** both
# metrics before you trust the factor: probability is a difference, and counts how much of the answer came back; the logit
# difference is a share, and STR's share is one of a longer way.

# %%
factor = {m: peaks.peak["GN", m, w] / peaks.peak["STR", m, w] for m in METRICS}
pl.claim(
    "31-5",
    all(2 <= peaks.peak["GN", m, w] / peaks.peak["STR", m, w] <= 5 for m in ["prob", "logit_diff"]),
    **factor,
)

# %% [markdown]
# Is the factor one of this window? The other windows were swept as well.

# %%
(peaks.peak["GN"] / peaks.peak["STR"]).unstack("window").round(2)

# %% [markdown]
# The paper's own figures, read in the same way. By probability the peaks under STR of the two small windows are upper bounds,
# read off a figure in which they hardly rise. A ratio of two small numbers is the least certain number of a paper.

# %%
paper = pl.paper.peaks()
(paper.peak["GN"] / paper.peak["STR"]).unstack("window").round(1)

# %% [markdown]
# ## 5 How sure are you?
#
# Prompts were drawn at random, and so was the noise. First the prompts: the 95 % interval of each middle peak, by probability.
# Where the two intervals lie apart, the difference between the corruptions is more than the luck of the sample.

# %%
top = {run: int(peaks.layer[run, "prob", w]) for run in RUNS}
at = {run: pl.interval(sweep[run].sel(window=w, metric=["prob"], layer=[top[run]])) for run in RUNS}
for run in RUNS:
    print(run, "layer", top[run], f"{at[run].low.item():.3f} to {at[run].high.item():.3f}")

# %% [markdown]
# Then the noise: five draws at GN's peak, on a few prompts. **Compare** how far the draws lie apart with how wide the interval
# was. The mean over prompts evens out much of the noise, since every prompt has noise of its own; over all prompts the draws
# would lie closer still.

# %%
draws = pl.patch(
    model,
    pairs[:30],
    "mlp",
    corruption=pl.GN("subject", draws=5),
    metrics=["prob"],
    window=w,
    layers=[top["GN"]],
    positions="last_subject",
    keep_draws=True,
    progress=False,
)

# %%
draws.effect.squeeze().values.round(3)

# %% [markdown]
# ## 6 Which curve is right?
#
# Neither is wrong: each answers its own question. GN asks what supplies *an* answer to a model that has lost its input; STR
# asks what turns *one fact into another*. Noise on a name also makes an embedding that the model has never met, so that
# what you restore meets activations of no ordinary sentence ([3.2](03_2_out_of_distribution.ipynb) measures this). For that
# reason the paper prefers STR. "The fact is stored in layers x to y" needs more than one of these curves.
#
# ## Summary
#
# * The same model, the same facts, the same patch: the corruption changes the curve. In GPT-2 XL it decides whether there is
#   a hump; on SmolLM2 it turns a hump into a shelf by logit difference, and by probability it changes little.
# * A window is a share of the depth. Report its size *and* the number of layers.
# * First layers repair the token. Compare peaks of middle layers, by a rule that is written down.
# * What this run says to the paper's claims:

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 The share of the way.** Under GN and under STR the way from the corrupted to the clean probability has different
# lengths. How much of it does the middle peak of w go? Compute both shares by probability, at the layers that `peaks` names,
# from `clean`, `corrupted` and `patched` of `sweep.sel(window=w).mean`.

# %%
answer = {"STR": ..., "GN": ...}  # numbers
pl.check("3.1f.1", answer, sweep=sweep.sel(window=w))

# %% [markdown]
# **2 A window by hand.** Turn section 2 into a function of a layer and an odd number of layers that restores all MLPs from
# layer − size // 2 to layer + size // 2, cut at the first and the last layer, in one run, and returns the effect on LD of
# the sentence `one`. Take care: each hook has to read its own layer.

# %%
my_window = ...  # a function of layer and size
pl.check("3.1f.2", my_window, model=model, pair=one)

# %% [markdown]
# **3 Predict, then test.** Is the last token of the subject special, or would its first do? Guess; then restore windows of w
# at `"first_subject"` under STR, and divide their middle peak (`pl.peaks`) by that at `"last_subject"`, by logit difference.

# %%
answer = ...  # a number
pl.check("3.1f.3", answer, model=model, pairs=pairs, w=w)

# %% [markdown]
# **To discuss.** You want to *edit* a fact, and you may change the MLPs of three layers. Which curve would you choose them
# by, and what would you measure afterwards? Next: [4.1](04_1_metrics_factual_recall.ipynb), the same sweep at every
# position, and what the metric does to the map.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2 Background: what exactly is spoilt, and what exactly is measured?
#
# **Time** 25 minutes, with the exercises 40 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 2, Appendices B to E · **Before this** `00_start_here`
#
# "This head brings back thirty percent." Thirty percent of *what*? Of a number that depends on how the sentence was spoilt
# and on what you read off the model's output. The two choices are made in a line of code and rarely looked at again, and the
# paper shows that they decide what you find. So here we take both apart, on one sentence, with nothing but PyTorch.
#
# At the end you can corrupt a prompt in both of the paper's ways, compute its three metrics from logits, say how low and how
# high each effect can go, and say which tasks the loaded model does at all.
#
# Notation, as in the paper: *cl* is the clean run, * the corrupted one, *pt* the patched one; *r* is the right answer, *r′*
# the wrong one.

# %%
import pandas as pd
import torch
from torch.nn.functional import cosine_similarity, kl_div
from transformer_lens.utilities import get_act_name

import patchlib as pl

model, pairs, S = pl.start("3_1_ioi")
_ = torch.set_grad_enabled(False)

# %% [markdown]
# Two preparations. `pl.sweep` patches every head on every prompt under both corruptions; we need its numbers from section 3
# on. And for work by hand we pick the prompt that the model answers most surely, so that there is something to lose.

# %%
METRICS = ["prob", "logit_diff", "kl"]
corruptions = {"STR": pl.STR("S2"), "GN": pl.GN("S2")}
sweep = pl.sweep(model, pairs, corruptions, metrics=METRICS, progress=False)
number = int(sweep["STR"].clean.sel(metric="prob").argmax("prompt"))
one = pairs[number]
pl.show_pairs(model, one, "S2", n=1)

# %% [markdown]
# ## 1 Symmetric token replacement (STR)
#
# Each prompt has **named positions**, since words in a text and positions of tokens are two things: if the model puts a
# beginning-of-sequence token in front, every word moves one to the right.

# %%
print({name: at.tolist() for name, at in one.positions.items()})
s2 = one.at("S2")[0][0]
clean_tokens, str_tokens = one.clean_tokens, pl.STR("S2").tokens(one)
print("positions that STR changes:", (clean_tokens != str_tokens)[0].nonzero().flatten().tolist())

# %% [markdown]
# One token of another name, and all the rest as before. That is the point of *symmetric*: the corrupted prompt is a sentence
# of the same kind, with an answer of its own, r′. The model is shown nothing strange. What STR needs in return is a
# replacement with as many tokens as the original; where there is none, `patchlib` refuses to shift positions.
#
# ## 2 Gaussian noise (GN)
#
# GN leaves the token and adds noise to its *embedding*, the vector that the model reads in its place. The standard deviation
# of the noise is three times that of all entries of the embedding matrix (Section 2.1).
#
# Is that much? **Guess**: with the noise added, is the nearest token of the vocabulary still the name? **Look** also at the
# cosine between the embedding before and after: 1 is an unchanged direction, 0 leaves nothing of it.

# %%
W = model.W_E.detach().cpu()
print("sigma = 3 x", round(float(W.std()), 4), "=", round(pl.GN("S2").sigma(model), 4))
print("length of the embedding:", round(float(W[clean_tokens[0, s2]].norm()), 2))


# %%
def draw_of_noise(draw):
    name, noise = W[clean_tokens[0, s2]], pl.GN("S2").noise(model, one, draw)[0, s2]
    nearest = model.tokenizer.decode([int(torch.cdist((name + noise)[None], W).argmin())])
    return float(noise.norm()), float(cosine_similarity(name, name + noise, dim=0)), repr(nearest)


columns = ["length of the noise", "cosine", "nearest token"]
pd.DataFrame([draw_of_noise(draw) for draw in range(5)], columns=columns).round(2)

# %% [markdown]
# On SmolLM2 the name is still the nearest token in all five draws, since in 576 dimensions a random vector is close to
# nothing else. But the vector is almost five times as long as before, and little of its direction is the name's. No training
# text ever put such a vector there. The paper suspects that noise takes a model *off its
# distribution*; [3.2](03_2_out_of_distribution.ipynb) looks for what follows from that.
#
# Now run the model on both. STR needs other tokens; GN needs a hook on the embedding that adds the noise.


# %%
def run(tokens, noise=0, edits=()):
    add = ("hook_embed", lambda embed, hook: embed + torch.as_tensor(noise).to(embed))
    return model.run_with_hooks(tokens, fwd_hooks=[add, *edits])[0, -1]


inputs = {"STR": (str_tokens, 0), "GN": (clean_tokens, pl.GN("S2").noise(model, one, 0))}
clean, corrupted = run(clean_tokens), {name: run(*each) for name, each in inputs.items()}

# %% [markdown]
# STR gives one corrupted run. GN gives another one with each draw. **Look for** the spread of P(r) between the draws.

# %%
r, wrong = one.answers[0], one.wrong_answers[0]
noise = [pl.GN("S2").noise(model, one, draw) for draw in range(6)]
shown = {"clean": clean, "STR": corrupted["STR"]}
shown |= {f"GN, draw {draw}": run(clean_tokens, each) for draw, each in enumerate(noise)}
{name: round(float(logits.softmax(-1)[r]), 3) for name, logits in shown.items()}

# %% [markdown]
# A result under noise is an average over draws, and should come with its spread.
#
# ## 3 Three metrics
#
# All of them read the logits at the last token, where the answer comes next.
#
# | metric | of one run | effect of a patch |
# |---|---|---|
# | **probability** | P(r) | P_pt(r) − P_*(r) |
# | **logit difference** | LD = Logit(r) − Logit(r′) | (LD_pt − LD_*) / (LD_cl − LD_*) |
# | **KL divergence** | D_KL(P_cl ‖ P), how far the whole prediction is from the clean run's | D_KL(P_cl ‖ P_*) − D_KL(P_cl ‖ P_pt) |
#
# In each a positive effect means: the patch brings the model towards the clean run. Only the logit difference is normalised.

# %%


def measure(logits):
    log_p, log_q = clean.log_softmax(-1), logits.log_softmax(-1)
    divergence = kl_div(log_q, log_p, log_target=True, reduction="sum")
    values = logits.softmax(-1)[r], logits[r] - logits[wrong], divergence
    return pd.Series(values, METRICS).astype(float)


# %% [markdown]
# What is to be patched? The head that brings most back over all prompts under STR.

# %%
layer, head = sweep.found("STR", "logit_diff", "positive")[0]
act = get_act_name("z", layer)
_, cache = model.run_with_cache(clean_tokens, names_filter=act)


def restore(z, hook):
    z[:, :, head] = cache[act][:, :, head]
    return z


patched = {name: run(*each, edits=[(act, restore)]) for name, each in inputs.items()}

# %% [markdown]
# Five runs, three numbers each. **Compare** the two rows *patched*: the same head, on the same prompt.

# %%
runs_by_hand = {"clean": clean, "STR": corrupted["STR"], "STR, patched": patched["STR"]}
runs_by_hand |= {"GN": corrupted["GN"], "GN, patched": patched["GN"]}
values = pd.DataFrame({name: measure(logits) for name, logits in runs_by_hand.items()}).T
values.round(3)

# %% [markdown]
# Now the effects, as the formulas say.


# %%
def effects(name):
    change = values.loc[name + ", patched"] - values.loc[name]
    change["logit_diff"] /= values.logit_diff["clean"] - values.logit_diff[name]
    return change * [1, 1, -1]


pd.DataFrame({name: effects(name) for name in corruptions}).T.round(3)

# %% [markdown]
# The factor −1 is for KL: a divergence *falls* as the model comes closer. On SmolLM2 the head does *more* under STR than under
# GN if you ask probability, and *less* if you ask the logit difference. Same head, same prompt. An effect belongs to its
# corruption and to its metric; a number without both says nothing. Does the package measure the same?


# %%
def off(name):
    by_patch = sweep[name].patched.isel(prompt=number, layer=layer, head=head).to_series()
    return abs(measure(patched[name]) - by_patch).max()


off_by = {name: off(name) for name in sweep}
same = max(off_by.values()) < 1e-3
pl.claim("By hand and by pl.patch the same", same, head=pl.Head(layer, head), off_by=off_by)

# %% [markdown]
# One thing is left to agree on. For many prompts `pl.patch` divides the *mean* change of LD by the *mean* way from corrupted
# to clean. A mean of quotients would be ruled by prompts whose way is almost nothing.
#
# ## 4 Which corruption is stronger?
#
# From one prompt to all. Under which corruption does the right answer keep more of its probability? **Guess** first.

# %%
pl.predict("2-1", "GN keeps more")  # or "STR keeps more", "both the same"

# %%
runs = sweep.runs()
runs.round(3)

# %%
pl.claim("2-1", runs.prob["STR"] < runs.prob["GN"] < runs.prob["clean"], **runs.prob)

# %% [markdown]
# STR puts *wrong* information in the place of the right one: the sentence now argues for r′. Noise takes information away and
# argues for nothing. That is why STR can push P(r) far lower, and why the logit difference under STR can turn negative.
#
# What does the scale of the noise do? On `mini`, the small model that comes with the project, trying costs a second.
# **Look for** the row in which noise has as little P(r) as STR.

# %%
mini = pl.load_model("mini")
few = pl.tasks.ioi(mini, n=60)
kinds = {f"GN, scale {scale}": pl.GN("S2", scale=scale, draws=3) for scale in (0.5, 1, 2, 3, 6)}
kinds["STR"] = pl.STR("S2")
means = {
    name: pl.baselines(mini, few, kind, METRICS).mean("prompt") for name, kind in kinds.items()
}
pd.DataFrame({name: fx.corrupted.to_series() for name, fx in means.items()}).T.round(2)

# %% [markdown]
# There is none. On `mini` more noise stops helping soon: what is gone cannot be taken away twice.
#
# ## 5 How low, how high?
#
# | metric | lowest possible effect | clean run fully restored | highest possible effect |
# |---|---|---|---|
# | probability | −P_*(r) | P_cl(r) − P_*(r) | 1 − P_*(r) |
# | logit difference | none | 1 | none |
# | KL divergence | none | D_KL(P_cl ‖ P_*) | the same: no prediction is closer than equal |
#
# The first entry matters most. Where the corruption has pushed P(r) to almost nothing, a head that works *against* the right
# answer has no room to show it. **Compare** the first two columns: how near does the lowest of all heads come to the floor?


# %%
def ends(name):
    fx = sweep.mean[name].sel(metric="prob")
    return -fx.corrupted, fx.effect.min(), fx.effect.max(), fx.clean - fx.corrupted


columns = ["lowest possible", "lowest head", "highest head", "fully restored"]
pd.DataFrame({name: ends(name) for name in sweep}, index=columns, dtype=float).T.round(3)

# %% [markdown]
# [4.2](04_2_negative_heads.ipynb) shows what is lost there: heads that every other metric finds.
#
# ## 6 The five tasks
#
# The paper uses five tasks. One prompt of each:

# %%
SITES = {"ioi": "S2", "factual_recall": "subject", "greater_than": "YY"}
SITES |= {"docstring": "C_def", "arithmetic": "X3+Y3"}
tasks = {name: getattr(pl.tasks, name)(model, n=20) for name in SITES}
for name, site in SITES.items():
    print(name.upper(), "corrupted at", site)
    pl.show_pairs(model, tasks[name], site, n=1)

# %% [markdown]
# * **IOI** (indirect object identification): the name that occurs once is the answer.
# * **Factual recall**: STR replaces the whole subject by another one, so r′ is the answer of another fact.
# * **Greater-than**: nothing ends before it began. r is the *set* of all later years (for a model that reads digit by digit,
#   of larger digits), r′ the set of earlier ones, and P(r) is a sum.
# * **Docstring**: arguments are documented in their order; which one comes next?
# * **Arithmetic**: two solved lines set the pattern. STR draws both operands anew.
#
# Patching explains how a model does a task, so the model has to *do* it first. `accuracy` is the share of prompts whose most
# likely next token is right. **Look for** the task that the model does worst, and for the one whose corruption leaves most.


# %%
def skill(name):
    corruption, metrics = pl.STR(SITES[name]), ["accuracy", "prob"]
    fx = pl.baselines(model, tasks[name], corruption, metrics).mean("prompt")
    return [*fx.clean.values, float(fx.corrupted.sel(metric="prob"))]


columns = ["accuracy", "P(r) clean", "P(r) under STR"]
pd.DataFrame({name: skill(name) for name in SITES}, index=columns).T.round(2)

# %% [markdown]
# (The facts for SmolLM2 were chosen among those that it knows: its 1.00 there is no skill.) Twenty prompts are enough to see
# whether a task is within reach, and too few for a decimal. Where a model fails, keep the
# prompts that it answers (`pl.keep_answered`), as the paper does for arithmetic, and say how many were dropped.
#
# ## Summary
#
# * STR writes another answer into the prompt, GN takes the information away and leaves a vector that is no word.
# * Three metrics, three scales: probability has a floor at −P_*(r), the logit difference has none, KL looks at all tokens.
# * An effect is a share of a way, and the two corruptions start from different places.
# * The paper's advice (Section 6): STR where a replacement of equal length exists; the logit difference, or KL; probability
#   never alone.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Which is stronger?** By each metric, which corruption at S2 takes the model further from the clean run? Read it from
# `runs`.

# %%
answer = {"prob": ..., "logit_diff": ..., "kl": ...}  # "STR" or "GN"
pl.check("2.1", answer, runs=runs)

# %% [markdown]
# **2 KL divergence by hand.** `kl_div` hides the formula and takes its arguments in a surprising order. Write
# D_KL(P_clean ‖ P_other), in nats, as a function of two tensors of logits, one number for each token of the vocabulary.

# %%
my_kl = ...  # a function of clean_logits and other_logits
pl.check("2.2", my_kl)

# %% [markdown]
# **3 Predict, then test.** Something adds 1 to the logits of *both* names, r and r′, at the last token of the clean prompts.
# By how much does the logit difference change, and by how much P(r)? Say first which of the two stays, then compute both as
# means over the prompts of `some`.

# %%
some = pairs[:50]
answer = {"prob": ..., "logit_diff": ...}  # after minus before
pl.check("2.3", answer, model=model, pairs=some)

# %% [markdown]
# **To discuss.** A paper reports "noise on the subject, effect .08" and another "subject replaced, effect .30". List what you
# would have to know before you compare the two. Next: [3.1](03_1_ioi_circuit.ipynb), which heads do the two corruptions find?

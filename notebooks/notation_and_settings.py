# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Appendices A and B: notation and settings
#
# **Time** look things up as you need them · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 2, Appendices A and B · **Before this** nothing
#
# What a symbol means, what it is called in code, with which settings every experiment runs, and what a result says about
# itself. Numbers are computed from the loaded model or read from the files that all notebooks read.

# %%
import json

import pandas as pd
import torch

import patchlib as pl

pd.options.display.max_colwidth = None  # texts are shown whole
model, pairs, S = pl.start("3_1_ioi", n=20)
pl.show_pairs(model, pairs, "S2", n=1)

# %% [markdown]
# ## Notation
#
# A transformer carries one vector for each token, the **residual stream**, and every block adds to it. Layers and heads are
# counted from zero: `9.6` is head 6 of layer 9. For layer $i$ with $H$ heads the paper writes
#
# $$ y_i = \sum_{j} h_{i,j}(x_i), \qquad A = \mathrm{softmax}\left(\frac{(x W_Q)(x W_K)^\top}{\sqrt{d/H}} + M\right) $$
#
# with $x_i$ what layer $i$ reads, $h_{i,j}$ what head $j$ writes, $d$ the width of the stream, $A$ a head's attention pattern
# and $M$ the mask that hides later tokens. The same things under their names in code:
#
# | paper | what it is | TransformerLens | `pl.patch` | shape |
# |---|---|---|---|---|
# | $x$ | the stream before block l | `blocks.{l}.hook_resid_pre` | `"resid"` | prompt × token × d |
# | | the stream after attention (serial blocks) | `blocks.{l}.hook_resid_mid` | `"resid_mid"` | prompt × token × d |
# | $x W_Q$, $x W_K$, $x W_V$ | queries, keys, values of a head | `blocks.{l}.attn.hook_q`, `hook_k`, `hook_v` | `"q"`, `"k"`, `"v"` | prompt × token × H × d/H |
# | $A$ | attention pattern | `blocks.{l}.attn.hook_pattern` | `"pattern"` | prompt × H × to × from |
# | $z = A V$ | **a head's output, which is what is patched as "the head"** | `blocks.{l}.attn.hook_z` | `"head"` | prompt × token × H × d/H |
# | $h = z W_O$ | what a head writes into the stream | none by default | | prompt × token × d |
# | $y$ | the sum over heads, plus a bias | `blocks.{l}.hook_attn_out` | `"attn"` | prompt × token × d |
# | | what the MLP writes | `blocks.{l}.hook_mlp_out` | `"mlp"` | prompt × token × d |
# | | the MLP's neurons | `blocks.{l}.mlp.hook_post` | `"neuron"` | prompt × token × neurons |
#
# To patch $z$ or $h$ of a head at all positions is the same experiment, since $h$ is a fixed linear function of $z$. Where
# heads share keys and values (**grouped-query attention**, as in SmolLM2), `"k"` and `"v"` are those of a group. Where blocks
# are **parallel** (GPT-J), attention and MLP read the same input, so a patch of attention does not reach the MLP of its own
# layer; in **serial** blocks (GPT-2, SmolLM2, `mini`) it does. **Rotary** positions (GPT-J, SmolLM2) turn queries and keys
# after `hook_q` and `hook_k`.

# %%
names = [
    "n_layers",
    "n_heads",
    "n_key_value_heads",
    "d_model",
    "d_head",
    "d_vocab",
    "n_ctx",
    "positional_embedding_type",
]

# %%
pd.Series(
    {name: getattr(model.cfg, name, None) for name in names}, name=model.cfg.model_name
).to_frame()

# %% [markdown]
# ## Three runs and two corruptions
#
# | symbol | run |
# |---|---|
# | cl | **clean**: the prompt X_clean, with the right answer r |
# | \* | **corrupted**: X_corrupt, or X_clean with noise on the embeddings |
# | pt | **patched**: the corrupted run, in which one activation is put back to its clean value (`direction="denoise"`, the paper's choice); with `direction="noise"` clean and corrupted change places |
#
# **STR**, `pl.STR(site)`: symmetric token replacement puts other tokens in the place of the key tokens, of the same number.
# The table below says which is the wrong answer r′. **GN**, `pl.GN(site, scale=3.0, draws=1, seed=0)`: Gaussian noise is added
# to the embeddings of the key tokens, and r′ is that of STR.
#
# ## Names of positions and sites
#
# A *position* is where something is restored (`positions=`), a *site* what is corrupted. `"all"` restores all tokens
# jointly, `"each"` every token on its own; a name that covers several tokens restores them jointly.
#
# | task | positions | sites for STR | wrong answer r′ |
# |---|---|---|---|
# | `ioi` | `IO`, `S1`, `S2`, `last` | `S2` (by the other name), `S1`, `IO`, `S1+IO`, `ABC` (by unrelated names) | the name that occurs twice, for every site |
# | `factual_recall` | `subject`, `first_subject`, `middle_subject`, `last_subject`, `next`, `further`, `last` | `subject` (by the paired subject) | the paired fact's answer |
# | `greater_than` | `noun`, `XX`, `YY`, `end`, `last` | `YY` (by 01) | all earlier years (r: all later ones) |
# | `docstring` | `A_def`, `B_def`, `C_def`, `A_doc`, `B_doc`, `last` | `C_def` | the variable in C's place |
# | `arithmetic` | `X3`, `Y3`, `last` | `X3+Y3` | the result of the replaced sum |
# | `pronouns` | `first`, `second`, `pronoun`, `last` | `pronoun` (by the other one) | the other profession |
#
# GN takes every position as a site, and several joined by `+`, such as `"S1+IO"`.
#
# ## Metrics
#
# LD is Logit(r) − Logit(r′). An effect is positive where the patch takes the run *towards* the one that activations come from.
# The formulas are those for `direction="denoise"`.
#
# | `metrics=` | effect | at full recovery |
# |---|---|---|
# | `"prob"` | P_pt(r) − P_\*(r) | P_cl(r) − P_\*(r) |
# | `"logit_diff"` | (LD_pt − LD_\*) / (LD_cl − LD_\*), with a mean over prompts below the line | 1 |
# | `"kl"` | D(P_cl‖P_\*) − D(P_cl‖P_pt), in nats | D(P_cl‖P_\*) |
# | `"log_prob"` | log P_pt(r) − log P_\*(r), in nats | log P_cl(r) − log P_\*(r) |
# | `"wrong_prob"` | P_\*(r′) − P_pt(r′) | P_\*(r′) − P_cl(r′) |
# | `"rank"` | places that r gains among all tokens | |
# | `"accuracy"` | share of prompts with r on top, pt − \* | |
# | `"log_odds"` | log P(r)/P(r′) of pt − that of \*, in nats: LD without the division, where both are single tokens | its way from \* to cl |
# | `"odds"` | P(r)/P(r′) of pt − that of \* | its way from \* to cl |
#
# Where r is a set (greater-than), P sums over it and LD is a difference of sums of logits. Functions of logits and
# `pl.Metric(name, label, value)` add metrics of your own. A head is **detected** where its effect lies beyond the mean ± 2
# standard deviations of all heads of its map (`pl.detect`).
#
# ## Gaussian noise
#
# The noise has the *standard deviation* ν = 3 σ, where σ is that of all entries of the embedding matrix, as in the code of
# Meng et al., which the paper follows. **Look for** how much longer a vector of noise is than an embedding.

# %%
noise = pl.GN("S2")
at_s2 = [places[0] for places in pairs.at("S2")]
drawn = noise.noise(model, pairs, 0)[torch.arange(len(pairs)), at_s2]
lengths = {
    "σ of the embedding matrix": noise.sigma(model) / 3,
    "ν of the noise": noise.sigma(model),
    "mean length of an embedding": model.W_E.float().norm(dim=-1).mean().item(),
    "mean length of a noise vector": drawn.float().norm(dim=-1).mean().item(),
}
pd.Series(lengths, name=model.cfg.model_name).to_frame().round(4)

# %% [markdown]
# ## Seeds
#
# Nothing is drawn without a seed, and all seeds are 0 unless you give another.
#
# | what is drawn | by | seed |
# |---|---|---|
# | prompts | `pl.tasks.ioi(model, n, seed=0)` and the other tasks | `seed=`; fewer prompts are the first of more |
# | noise | `pl.GN(site, draws=1, seed=0)` | `seed=`, the number of the draw and the prompt's own tokens, so that other prompts beside it change nothing |
# | resamples of prompts, for intervals | `pl.interval(fx, n_resamples=1000, seed=0)`; `pl.floor`, `pl.compare_windows` and others | `seed=`; 0 where there is no such argument |
#
# ## Settings of every experiment
#
# `data/experiments.json` holds them; `pl.start(name)` reads it. What is patched, where, and what is corrupted:

# %%
experiments = json.loads(pl.experiments.EXPERIMENTS.read_text(encoding="utf-8"))
what = pd.DataFrame(experiments).T.drop(columns="settings")
what.map(lambda cell: ", ".join(cell) if isinstance(cell, list) else cell)

# %% [markdown]
# How much of it, for each model. n counts prompts, so that 290 stands for the 145 pairs of facts in both directions. A window
# restores that many adjacent layers, of which `before` lie before the layer it is named after. `prepend_bos` None leaves
# it to the model's own default. A model that an experiment does not name gets the settings of `mini`.

# %%
own = {
    (name, of): {key: str(value) for key, value in chosen.items()}
    for name, entry in experiments.items()
    for of, chosen in entry["settings"].items()
}
pd.DataFrame(own).T.rename_axis(["experiment", "model"]).fillna("–")

# %% [markdown]
# The paper's own numbers of prompts, and how well its models do the tasks (clean prompts), as `data/paper_results.json` has
# them. `pl.paper.load()` gives all entries of this file with their source and unit.

# %%
pd.Series(pl.paper.value("prompts"), name="prompts in the paper").to_frame()

# %%
models = pl.paper.value("skills") | {
    f"facts, {name}": {"model": name, **row} for name, row in pl.paper.value("facts_models").items()
}
pd.DataFrame(models).T.drop(index="facts").fillna("–")

# %% [markdown]
# ## What a result says about itself
#
# Every result of `pl.patch` is an xarray dataset. Its variables are `effect`, `patched`, `clean`, `corrupted`, and `effect_sd`
# (over draws); its dimensions are `metric` and, as asked for, `layer`, `head` (`kv_head`, `neuron`), `position`, `window`,
# `prompt`, `draw`. NaN is what was not measured. Everything that decided the numbers stands in `fx.attrs`:
#
# | attribute | meaning |
# |---|---|
# | `model`, `revision` | the model's name; the hash of its weights, or the revision on the hub |
# | `dtype`, `device` | precision and device of the weights |
# | `weight_processing` | `none`, or `compatibility mode` where TransformerLens folded layer norms |
# | `task`, `task_settings` | the task, and what it was called with: `n`, `seed`, what was left out |
# | `n_prompts`, `prompts` | how many prompts, and the hash of their tokens |
# | `replacements` | the sites that token replacement can corrupt |
# | `corruption`, `site` | `STR`, `GN` or your own, and where |
# | `scale`, `draws`, `noise_seed` | of GN: its standard deviation in units of σ, the number of draws, the seed |
# | `component` | what was patched one at a time (`pl.patch`) |
# | `parts` | what was patched together (`pl.patch_together`) |
# | `layers`, `heads` | which ones, where not all |
# | `positions` | `all`, `each`, or names |
# | `window`, `window_before` | how many adjacent layers together, and how many of them before the layer |
# | `direction`, `source` | `denoise` or `noise`; where the activations come from (`clean run`, `zeros`, a mean, other prompts) |
# | `engine` | `fast` or `hooks`: the same numbers, in less or more time |
# | `stored` | when the numbers were computed, where they were read from `data/sweeps` |
# | `own_metrics`, `own_corruption`, `hooks` | hashes of code of your own, and hooks that sat on the model |
# | `patchlib`, `torch`, `transformer_lens`, `transformers` | versions |
#
# The attributes of one result:

# %%
heads = pl.Heads([(model.cfg.n_layers - 1, 0)])
fx = pl.patch(model, pairs, corruption=pl.GN("S2"), heads=heads, progress=False)
pd.Series({name: str(value) for name, value in fx.attrs.items()}, name="fx.attrs").to_frame()

# %% [markdown]
# ## What the paper leaves open
#
# A replication has to decide what a paper does not say. The left column is open, as far as text and printed figures go; the
# right one is what this collection does. Change a choice, and see whether your conclusion survives.
#
# | the paper does not say | here |
# |---|---|
# | how many draws of the noise, which seeds | the column `draws` above; seed 0; notebooks show the spread over draws |
# | over which embeddings σ is taken | over the whole matrix; Meng et al. take the tokens of their subjects |
# | the precision of the weights | single precision (`dtype=` of `pl.load_model`) |
# | the 145 pairs of facts, apart from four samples | own pairs of the same form in `data`; `path=` of `pl.tasks.factual_recall` reads others |
# | the edges of a window of 10 layers | l − 5 to l + 4, as in the code of Meng et al. |
# | which layers count as *middle* when peaks are compared | layers whose window holds none of the first twelfth of the layers (`pl.peaks`) |
# | how several middle subject tokens are treated | restored jointly |
# | r′ with S1 and IO corrupted (Appendix F) | still the name that occurs twice in the clean prompt |
# | r′ of the docstring task (Appendix D) | the variable in C's place |
# | how a sum of logits over a set is normalised (Appendix E) | like every logit difference; [Appendix E](app_e_greater_than.ipynb) shows what it depends on |
# | what the error bars of Figure 3 are | here: standard deviations, named as such |
# | how many arithmetic prompts are left after wrong ones are dropped | `pl.keep_answered` drops them; `n_prompts` says how many are left |
#
# In three places the paper contradicts itself: it calls the 49.0 % of GPT-2 XL an accuracy (Section 3) and a mean
# probability (Appendix B); Figures 24 and 25 show the same plots under two windows; and the sub-captions of Figures 26 and
# 27 do not fit.
#
# Back to [the start](00_start_here.ipynb), or to [Section 2](02_background.ipynb) for the ideas behind the symbols.

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
# | | |
# |---|---|
# | **You will learn** | what the symbols of the paper mean, what they are called in code, and that they add up; with which settings every experiment is run; what the paper leaves open and what this collection chose |
# | **Time** | look things up as you need them; reading all takes 20 minutes, running less than a minute |
# | **Paper** | [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042): Section 2.1, Appendices A and B |
# | **You need** | nothing |
# | **Another model** | set the environment variable `PATCHLIB_MODEL=gpt2` before you start Jupyter, and run all cells again |
#
# This page is a reference. Every number in it is computed from the loaded model, or read from the
# files that the other notebooks read.

# %%
import json

import einops
import pandas as pd
import torch
from IPython.display import Markdown, display

import patchlib as pl
from patchlib.sweep.cells import COMPONENTS
from patchlib.sweep.runs import Run, run_with_edits

model = pl.load_model()
pl.notebooks.versions(model)

# %% [markdown]
# ## Notation
#
# A transformer reads tokens and carries one vector for each position, the **residual stream**. Every
# block adds to it. Following Elhage et al., the paper writes for layer i with its H heads
#
# $$ y_i = \sum_{j} h_{i,j}(x_i), \qquad
# A = \mathrm{softmax}\!\Big(\frac{(x W_Q)(x W_K)^\top}{\sqrt{d/H}} + M\Big), $$
#
# where $x_i$ is what layer i reads, $h_{i,j}$ is what head j of layer i writes into the stream, $d$
# is the width, $A$ is the attention pattern of a head and $M$ the mask that hides later tokens. The
# attention layer's output is the concatenation of $A\,V$ of all heads, times $W_O$; it is added to
# the stream. Layers and heads are counted from zero: `9.6` is head 6 of layer 9.
#
# Four things are easily confused:
#
# | symbol | what it is | width |
# |---|---|---|
# | $V = x W_V$ | the values of a head, one for each *source* position | d / H |
# | $z = A\,V$ | a head's output before $W_O$: values mixed by attention. **This is what is patched as "the head's output"** | d / H |
# | $h = z\,W_O$ | what the head writes into the stream | d |
# | $y$, `attn_out` | the sum over all heads, plus one bias $b_O$ (GPT-J has none) | d |
#
# Where positions are *rotary*, as in GPT-J, queries and keys are turned by an angle that depends on
# their position before they are multiplied; GPT-2 and `mini` add a vector to the embeddings instead.
#
# To patch $z$ or $h$ of a head at all positions is the same experiment, since $h$ is a fixed linear
# function of $z$.

# %%
cfg = model.cfg
parallel = bool(getattr(cfg, "parallel_attn_mlp", False))
attention_only = bool(getattr(cfg, "attn_only", False))
pl.notebooks.show(
    pd.DataFrame(
        [
            ("layers L", "n_layers", cfg.n_layers),
            ("heads in a layer H", "n_heads", cfg.n_heads),
            ("width d", "d_model", cfg.d_model),
            ("width of a head d / H", "d_head", cfg.d_head),
            ("vocabulary", "d_vocab", cfg.d_vocab),
            ("longest prompt", "n_ctx", cfg.n_ctx),
            ("attention and MLP side by side", "parallel_attn_mlp", "yes" if parallel else "no"),
            ("positions", "positional_embedding_type", cfg.positional_embedding_type),
        ],
        columns=["quantity", "model.cfg.", model.cfg.model_name],
    )
)

# %% [markdown]
# ## The parts add up
#
# Three identities hold in every model of the collection, and are checked here on a few prompts of
# each kind. The first is the residual stream itself:
#
# $$ \texttt{resid\_post}_l = \texttt{resid\_pre}_l + \texttt{attn\_out}_l + \texttt{mlp\_out}_l . $$

# %%
pairs = pl.tasks.ioi(model, n=4)
with torch.no_grad():
    _, cache = model.run_with_cache(pairs.clean_tokens)


def distance(one: torch.Tensor, two: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((one - two).abs().max() / two.abs().max()).item()


# %%
# claim: what a block adds to the stream is its attention plus its MLP
for layer in range(cfg.n_layers):
    added = cache["attn_out", layer]
    if not attention_only:
        added = added + cache["mlp_out", layer]
    assert distance(cache["resid_pre", layer] + added, cache["resid_post", layer]) < 1e-3
    if layer:
        assert torch.equal(cache["resid_pre", layer], cache["resid_post", layer - 1])

# %% [markdown]
# The second: attention is the sum over heads of $z W_O$, plus one bias for the whole layer. So it
# makes sense to patch single heads, and the effects of single heads are *parts* of what patching the
# layer does (though not parts that add up after the softmax).

# %%
# claim: attn_out is the sum of what the heads write, plus the bias where there is one
biases = getattr(model, "b_O", None)
for layer in range(cfg.n_layers):
    written = einops.einsum(
        cache["z", layer],
        model.W_O[layer],
        "prompt position head d_head, head d_head d_model -> prompt position head d_model",
    )
    bias = 0 if biases is None else biases[layer]
    assert distance(written.sum(2) + bias, cache["attn_out", layer]) < 1e-3

# %% [markdown]
# The third: $z$ is the attention pattern times the values, and the pattern is a distribution over
# the token itself and those before it.

# %%
# claim: z = A V, where every row of A sums to 1 and no token looks ahead
for layer in range(cfg.n_layers):
    pattern, values = cache["pattern", layer], cache["v", layer]
    # Under grouped-query attention several heads share the values of one.
    values = values.repeat_interleave(cfg.n_heads // values.shape[2], dim=2)
    mixed = einops.einsum(
        pattern, values, "prompt head query key, prompt key head d -> prompt query head d"
    )
    assert distance(mixed, cache["z", layer]) < 1e-3
    assert (pattern.sum(-1) - 1).abs().max() < 1e-3
    assert pattern.triu(1).abs().max() < 1e-6

# %% [markdown]
# ## Serial and parallel blocks
#
# GPT-2 and `mini` are **serial**: the MLP reads the stream after attention has written to it
# (`resid_mid`). GPT-J is **parallel**: attention and MLP read the same input, and both outputs are
# added at once. The first identity above is the same for both. What differs is what a patch reaches:
#
# | patch of `attn_out` in layer l | reaches the MLP of layer l | reaches layer l + 1 |
# |---|---|---|
# | serial block | yes | yes |
# | parallel block | no | yes |

# %%
layer = cfg.n_layers // 2
attn_out = f"blocks.{layer}.hook_attn_out"
reads = [f"blocks.{layer}.{part}" for part in ("hook_mlp_out", "hook_resid_post")]
reads = reads[attention_only:]
run = Run(pairs.clean_tokens)
_, plain = run_with_edits(model, run, keep=reads)
_, doubled = run_with_edits(model, run, [(attn_out, lambda activation: 2 * activation)], keep=reads)
moved = {name: not torch.allclose(plain[name], doubled[name]) for name in reads}
block = "parallel" if parallel else "attention-only" if attention_only else "serial"
display(
    Markdown(
        f"In this model ({block} blocks), doubling `attn_out` in layer {layer} changes "
        + " and ".join(
            f"`{name}`: {'yes' if is_moved else 'no'}" for name, is_moved in moved.items()
        )
        + "."
    )
)

# %%
# claim: a patch of attention reaches the stream, and its own layer's MLP only in a serial block
assert moved[f"blocks.{layer}.hook_resid_post"]
if not attention_only:
    assert moved[f"blocks.{layer}.hook_mlp_out"] == (not parallel)

# %% [markdown]
# ## Names
#
# The same activation has a symbol in the paper, a hook in TransformerLens, and (where it can be
# patched) a name in `pl.patch`. The last column is its shape in this model, for the prompts above.

# %%
component = {hook: name for name, hook in COMPONENTS.items()}
SYMBOLS = {
    "resid_pre": "x, the stream before block l",
    "resid_mid": "the stream after attention",
    "resid_post": "the stream after block l",
    "q": "x W_Q, queries",
    "k": "x W_K, keys",
    "v": "x W_V, values",
    "attn_scores": "(x W_Q)(x W_K)ᵀ / √(d/H) + M",
    "pattern": "A, attention pattern",
    "z": "A V, a head's output",
    "attn_out": "y, sum over heads",
    "mlp_out": "output of the MLP",
}
layer_names = []
for hook, symbol in SYMBOLS.items():
    name = f"blocks.{layer}." + ("" if hook.endswith(("out", "pre", "mid", "post")) else "attn.")
    full = f"{name}hook_{hook}"
    if full in cache:
        layer_names.append(
            {
                "paper": symbol,
                "TransformerLens": full.replace(f".{layer}.", ".{l}."),
                "pl.patch": component.get(hook, "–"),
                "shape": " × ".join(map(str, cache[full].shape)),
            }
        )
pl.notebooks.show(pd.DataFrame(layer_names))

# %% [markdown]
# The tokens' embeddings, where Gaussian noise is added, are `hook_embed`; positions come after it
# as `hook_pos_embed`, where the model has position embeddings. `pl.patch_together` and
# `pl.attention_patterns` also restore the values, queries and keys of chosen heads
# (`activation="v"`, `"q"`, `"k"`), as Section 3.2 of the paper needs.

# %%
# claim: every component of pl.patch is an activation of this model
for name, hook in COMPONENTS.items():
    where = "attn." if hook in ("z", "q", "k", "v", "pattern") else "mlp." * (hook == "post")
    if not (attention_only and name in ("mlp", "neuron", "resid_mid")):
        assert f"blocks.{layer}.{where}hook_{hook}" in model.hook_dict

# %% [markdown]
# ## Three runs and two corruptions
#
# | symbol | run |
# |---|---|
# | cl | **clean**: the prompt X_clean, with the answer r |
# | \* | **corrupted**: X_corrupt, or noise on X_clean |
# | pt | **patched**: the corrupted run, in which one activation is put back to its clean value |
#
# | metric | effect of a patch | at full recovery |
# |---|---|---|
# | probability | P_pt(r) − P_\*(r) | P_cl(r) − P_\*(r) |
# | logit difference, LD = Logit(r) − Logit(r′) | (LD_pt − LD_\*) / (LD_cl − LD_\*) | 1 |
# | KL divergence | D(P_cl‖P_\*) − D(P_cl‖P_pt) | D(P_cl‖P_\*) |
#
# LD_cl − LD_\* is a mean over prompts. **STR** puts similar tokens of equal number in the place of
# the key tokens, and r′ is the answer of X_corrupt. **GN** keeps the tokens and adds noise to their
# embeddings; r′ is the one of STR. [Section 2](02_background.ipynb) explains all this step by step.

# %% [markdown]
# ## Gaussian noise
#
# ν = 3 × the standard deviation of the token embeddings. Here this is the standard deviation over
# all entries of the embedding matrix, and ν is the noise's *standard deviation*, not its variance,
# as in the code that the paper follows (Meng et al.). A vector of noise is then several times as
# long as an embedding. **Look for** the ratio in the last row.

# %%
noise = pl.GN("S2")
entries = model.W_E.float()
drawn = torch.cat(
    [
        noise.noise(model, group, draw)[torch.arange(len(group)), group.positions["S2"]]
        for _, group in pl.tasks.ioi(model, n=100).by_length()
        for draw in range(5)
    ]
)
embedding_length = entries.norm(dim=-1).mean().item()
sizes = {
    "standard deviation of the embedding matrix": f"{entries.std().item():.4f}",
    "ν, standard deviation of the noise": f"{noise.sigma(model):.4f}",
    "mean length of a token's embedding": f"{embedding_length:.2f}",
    "mean length of a noise vector": f"{drawn.norm(dim=-1).mean().item():.2f}",
    "noise / embedding": f"{drawn.norm(dim=-1).mean().item() / embedding_length:.1f}",
}
pl.notebooks.show(pd.DataFrame(sizes.items(), columns=["quantity", model.cfg.model_name]))

# %%
# claim: ν is three standard deviations, and what is drawn has this spread
assert abs(noise.sigma(model) - 3 * entries.std().item()) < 1e-6
assert abs(drawn.std().item() / noise.sigma(model) - 1) < 0.05

# %% [markdown]
# ## Settings of every experiment
#
# From `data/experiments.json`, which the notebooks with the paper's experiments read through
# `pl.experiments.settings`. First the paper's settings, for the model named in the second column.
# `positions`: a component is patched at `all` of them at once, at `each` on its own, or at named ones,
# one at a time. The paper gives no number of draws of the noise; here stands the collection's choice.
# A notebook that shows how far single draws lie apart may take more.

# %%
everything = json.loads(pl.experiments.EXPERIMENTS.read_text(encoding="utf-8"))


def setting(name: str, entry: dict, for_model: str) -> dict[str, str]:
    """One row of the table."""
    own = entry["settings"][for_model]
    sites, positions = entry["sites"], entry["positions"]
    return {
        "experiment": name,
        "model": for_model.split("/")[-1],
        "task": entry["task"],
        "patched": entry["component"],
        "positions": positions if isinstance(positions, str) else f"{len(positions)} named",
        "corrupted": ", ".join(sites),
        "n": str(own["n"]),
        "draws": str(own["draws"]),
        "window": str(own.get("window", "–")),
        "BOS": {True: "yes", False: "no", None: "default"}[own["prepend_bos"]],
    }


of_paper = [
    setting(name, entry, for_model)
    for name, entry in everything.items()
    for for_model in entry["settings"]
    if for_model != "mini"
]
pl.notebooks.show(pd.DataFrame(of_paper))

# %% [markdown]
# And for `mini`, which also holds for every model that is not named above: the same experiments on
# fewer prompts, with windows that fit into few layers. `mini` is small, so most take ten draws.

# %%
of_mini = [setting(name, entry, "mini") for name, entry in everything.items()]
pl.notebooks.show(pd.DataFrame(of_mini).drop(columns="model"))

# %% [markdown]
# The size of the noise is the same in all: the next cell says so. `window` is the number of adjacent
# layers that are restored together; `n` counts ordered prompts, so 290 stands for the 145 pairs of
# facts in both directions.

# %%
# claim: every experiment uses noise of three standard deviations, and its settings load
assert {entry["scale"] for entry in everything.values()} == {3.0}
for name in everything:
    assert pl.experiments.settings(name, model)["n"] > 0

# %% [markdown]
# ## Baselines of the fact models
#
# Appendix B gives the mean probability of the right answer and the mean logit difference on clean
# prompts of the factual-recall data, for three models. Beside them, the loaded model on this
# project's own pairs of facts. For `mini` these are facts it was trained on.

# %%
S = pl.experiments.settings("3_1_factual_recall", model)
facts = pl.tasks.factual_recall(model, n=S["n"], prepend_bos=S["prepend_bos"])
clean = pl.baselines(model, facts, metrics=["prob", "logit_diff", "accuracy"]).clean.mean("prompt")
measured = {metric: float(clean.sel(metric=metric)) for metric in clean.metric.values}
paper_models = pl.paper.value("facts_models")
pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "model": f"{name} (paper)",
                "P(r)": f"{row['prob']:.3f}",
                "logit difference": f"{row['logit_diff']:.2f}",
                "accuracy": "not given",
            }
            for name, row in paper_models.items()
        ]
        + [
            {
                "model": f"{cfg.model_name} (this run, {len(facts)} prompts)",
                "P(r)": f"{measured['prob']:.3f}",
                "logit difference": f"{measured['logit_diff']:.2f}",
                "accuracy": f"{measured['accuracy']:.2f}",
            }
        ]
    )
)

# %%
display(
    Markdown(
        "The paper calls the same 49.0 % of GPT-2 XL an *accuracy* in Section 3 and a *mean "
        "probability* in Appendix B. In this run the two differ: mean probability "
        f"{measured['prob']:.3f}, accuracy {measured['accuracy']:.2f}."
        if abs(measured["prob"] - measured["accuracy"]) >= 0.005
        else "The paper calls the same 49.0 % of GPT-2 XL an *accuracy* in Section 3 and a *mean "
        "probability* in Appendix B. In this run the two happen to agree."
    )
)

# %% [markdown]
# ## What the paper leaves open
#
# A replication has to decide what a paper does not say. The left column is open, as far as the text
# and the printed figures go; the right one is what this collection does. Change a choice, run again,
# and see whether your conclusion survives.
#
# | the paper does not say | this collection |
# |---|---|
# | how many draws of the noise, and which seeds | the column `draws` of the tables above; notebooks show the spread over several draws; seeds are arguments (`pl.GN(..., draws=, seed=)`). Meng et al. use 10 draws, and so do the settings of the paper's fact models |
# | over which embeddings the noise's standard deviation is taken | over the whole embedding matrix; Meng et al. take the tokens of their subjects |
# | the precision of the weights | single precision, as the weights were trained (`dtype=` of `pl.load_model`) |
# | the 145 pairs of facts in print, apart from four samples (a footnote links to the full file, of which this collection holds no copy) | own pairs in the same form (`data/paired_facts.json`); `path=` of `pl.tasks.factual_recall` reads others |
# | the edges of a window of 10 layers | as in the code of Meng et al., from l − 5 to l + 4 (`before=`); the figures fit this |
# | which layers count as *middle* when peaks are compared, so that the plateau of the first layers is left out | stated in [3.1 on facts](03_1_factual_recall.ipynb) beside each peak |
# | whether several middle subject tokens, or further tokens, are averaged or added up inside a prompt | a named position that covers several tokens is restored at all of them *jointly* |
# | the wrong answer r′ after corrupting S1 and IO (Appendix F) | still S's name |
# | the wrong answer r′ of the docstring task (Appendix D) | the variable that replaces C |
# | how a sum of logits over a set is normalised (Appendix E) | like every logit difference; [Appendix E](app_e_greater_than.ipynb) shows what the sum depends on |
# | what the error bars of Figure 3 are | standard deviations, named as such |
# | how many arithmetic prompts are left after wrong ones are dropped, and what is done with answers of several tokens | `pl.keep_answered` counts what it drops; answers of several tokens are refused |
# | why the curve of summed layers for a window of 10 is higher than the sum of the ten values in the figure | not resolved; our sums are sums of the single layers, cut at the ends |
#
# Three places where the paper contradicts itself are known: 49.0 % as accuracy and as probability
# (see above); Figures 24 and 25, which show the same plots under two windows; and the sub-captions of
# Figures 26 and 27.

# %% [markdown]
# ## Exercises
#
# **1 (easy). Which is larger?** Compare, layer by layer, the mean length of `attn_out` and of
# `mlp_out` at the last token. Where does each write most?
#
# <details><summary>Solution</summary>
#
# ```python
# for layer in range(cfg.n_layers):
#     lengths = [cache[name, layer][:, -1].norm(dim=-1).mean().item()
#                for name in ("attn_out", "mlp_out")]
#     print(layer, *(f"{length:.1f}" for length in lengths))
# ```
#
# A long vector need not matter for the answer: patching asks about the answer, lengths do not.
#
# </details>
#
# **2 (medium). z or h?** Show that restoring `z` of every head of a layer is the same as restoring
# `attn_out`.
#
# <details><summary>Solution</summary>
#
# ```python
# ioi = pl.tasks.ioi(model, n=20)
# layer = 0
# heads = [(layer, head) for head in range(cfg.n_heads)]
# together = pl.patch_together(model, ioi, heads, corruption=pl.STR("S2"))
# attention = pl.patch(model, ioi, "attn", corruption=pl.STR("S2"), progress=False)
# print(together.effect.values.round(4), attention.effect.sel(layer=layer).values.round(4))
# ```
#
# `attn_out` is the sum of z W_O over heads plus a bias that both runs share, so the two patches put
# the same vector into the stream.
#
# </details>
#
# **3 (hard). Variance or standard deviation?** Read N(0, ν) as noise of *variance* ν. Which scale
# has `pl.GN` to get for that, and what becomes of the corrupted run?
#
# <details><summary>Solution</summary>
#
# ```python
# sd = model.W_E.std().item()
# scale = (3 * sd) ** 0.5 / sd
# for s in (3.0, scale):
#     runs = pl.baselines(model, pl.tasks.ioi(model, n=50), pl.GN("S2", scale=s, draws=3))
#     print(f"{s:.1f}", runs.corrupted.mean("prompt").to_series().round(2).to_dict())
# ```
#
# The standard deviation is then √(3 sd), which is more than 3 sd wherever 3 sd is below 1, as it is
# here. The smaller a model's embeddings are, the more the two readings differ.
#
# </details>
#
# ## Where to go next
#
# [Start here](00_start_here.ipynb) for a first experiment, [Section 2](02_background.ipynb) for the
# ideas behind the symbols.

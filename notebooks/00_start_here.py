# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Start here: put one memory back, and see whether the answer returns
#
# **Time** 20 minutes, with the exercises 35 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Sections 1 and 2, Figure 1 · **Before this** some Python and PyTorch; a transformer is layers, each with attention heads and an MLP
#
# > When Mary and John went to the store, John gave a drink to …
#
# You say *Mary*, and so does a small language model. John occurs twice, so he is the one who gives. Somewhere among the
# model's hundreds of attention heads, something must notice that and pass it on. Which head is it?
#
# You could read the weights for a year. **Activation patching** answers in seconds: spoil the sentence, so that the answer
# changes, put back what *one* head computed on the unspoilt sentence, and see whether the answer returns.
#
# At the end you can do that by hand for one head, do it for all heads in one line, read the map that results, and try
# other settings in a widget.

# %%
import torch
from transformer_lens.utilities import get_act_name

import patchlib as pl

model, pairs, S = pl.start("3_1_ioi")
_ = torch.set_grad_enabled(False)
print(model.cfg.n_layers, "layers of", model.cfg.n_heads, "heads each")

# %% [markdown]
# The line above says which model runs. Unless you chose another one it is SmolLM2, a pretrained model of 135 million
# parameters. Layers and heads count from zero, and a head is written `layer.head`.
#
# ## 1 One sentence, and its spoilt twin
#
# The twin differs in one word, the one in braces: the second name. Now it is Mary who gives, and a reader would go on with
# *John*. Everything else stays as it is.

# %%
row = {
    "clean": "When Mary and John went to the store, {John} gave a drink to",
    "corrupted": "When Mary and John went to the store, {Mary} gave a drink to",
    "answer": " Mary",
    "wrong_answer": " John",
}
one = pl.PromptPairs.from_table(model, [row], prepend_bos=S["prepend_bos"])

# %% [markdown]
# A model reads tokens, not words. **Look for** two things: both sentences have the same number of tokens, since patching
# copies activations position by position; and names are single tokens, with their leading space.

# %%
clean, corrupted = one.clean_tokens, one.corrupted_tokens("changed")
for tokens in (clean, corrupted):
    print(tokens.shape[1], "tokens:", "|".join(model.tokenizer.decode([t]) for t in tokens[0]))

# %% [markdown]
# ## 2 Three runs
#
# 1. The **clean** run reads the first sentence, and we keep all its activations.
# 2. The **corrupted** run reads the second.
# 3. The **patched** run reads the second, too, but one activation in it is overwritten by the one from the clean run.
#
# The first two now. What does the model say next?

# %%
clean_logits, cache = model.run_with_cache(clean)
corrupted_logits = model(corrupted)


def says(logits):
    p, tokens = logits[0, -1].softmax(-1).topk(3)
    return {model.tokenizer.decode([t]): round(float(x), 2) for t, x in zip(tokens, p, strict=True)}


says(clean_logits), says(corrupted_logits)

# %% [markdown]
# On SmolLM2 the clean run says *Mary* with a probability of .92, the corrupted one *John* with .75. One word did that.
#
# To measure it in one number, take the **logit difference**, LD = Logit(Mary) − Logit(John). It is positive where Mary is
# ahead and negative where John is; one more unit multiplies the odds of Mary against John by e ≈ 2.7.


# %%
def ld(logits):
    return float(logits[0, -1, one.answers[0]] - logits[0, -1, one.wrong_answers[0]])


print("LD clean", round(ld(clean_logits), 2), "· corrupted", round(ld(corrupted_logits), 2))

# %% [markdown]
# ## 3 The patched run, by hand
#
# For each token a head gathers a vector `z` from the tokens that it attends to. A *hook* is a function that the model
# calls in mid-run and whose result replaces the activation. Ours puts back the clean `z` of one head, and of no other.
# (`get_act_name` gives the name of a place in the model, and `z` has the shape sentence, token, head, width.)


# %%
def patched(layer, head):
    def restore(z, hook):
        z[:, :, head] = cache[hook.name][:, :, head]
        return z

    return model.run_with_hooks(corrupted, fwd_hooks=[(get_act_name("z", layer), restore)])


# %% [markdown]
# How much came back? Put the logit difference on a scale on which the corrupted run is 0 and the clean run 1:
#
# **effect = (LD patched − LD corrupted) / (LD clean − LD corrupted)**


# %%
def effect(logits):
    return (ld(logits) - ld(corrupted_logits)) / (ld(clean_logits) - ld(corrupted_logits))


# %% [markdown]
# Try the heads of the last layer, one run each. **Guess first**: will they all do nothing, or all a little?

# %%
last = model.cfg.n_layers - 1
for head in range(model.cfg.n_heads):
    print(f"{last}.{head}", f"{effect(patched(last, head)):5.2f}")

# %% [markdown]
# On SmolLM2 neither is true. Seven of the nine change little, one, 29.1, brings the answer a quarter of the way back by
# itself, and its neighbour 29.0 has a *negative* effect: with it put back the answer is even further away. Heads that work
# against the right answer exist in GPT-2 small as well, and [4.2](04_2_negative_heads.ipynb) is about them.
#
# ## 4 All heads in one line
#
# `pl.patch` is the same loop over all layers and heads. It takes the prompts, and how they are corrupted: `STR`, *symmetric
# token replacement*, is the paper's name for what we did.

# %%
fx_one = pl.patch(model, one, corruption=pl.STR("changed"), metrics=["logit_diff"], progress=False)
pl.strongest(fx_one, n=5).round(3)

# %% [markdown]
# Do not take a package's word for it. The strongest head of the table, once more by hand:

# %%
layer, head = pl.Head.of(pl.strongest(fx_one)["head"][0])
by_hand = effect(patched(layer, head))
by_patch = float(fx_one.effect.squeeze().sel(layer=layer, head=head))
same = abs(by_hand - by_patch) < 1e-3
pl.claim("By hand and by pl.patch the same", same, by_hand=by_hand, by_patch=by_patch)

# %% [markdown]
# The line begins with ✓: it was tested in this run, and holds. And what does the model say with that one head put back?

# %%
says(corrupted_logits), says(patched(layer, head))

# %% [markdown]
# On SmolLM2 head 23.3, one of 270, lifts *Mary* from .003 (*John*'s .75 times e to the −5.49) to about one half, in a
# sentence in which Mary is the giver. That head, then, carries much of what the second name tells the model.
#
# ## 5 From one sentence to hundreds
#
# One sentence proves little: the head may matter for these two names only. Here are more, with many names and several
# phrasings. **S2** is the word that is replaced, the second occurrence of a name. (The line GN shows another way to corrupt,
# by noise; it comes in [02](02_background.ipynb).)

# %%
print(len(pairs), "sentences, such as")
pl.show_pairs(model, pairs, "S2", n=2)

# %% [markdown]
# Now every head on every sentence; the map shows means over sentences. Layers run downwards, heads to the right. Blue
# brings the clean answer back, red takes it away. **Look for** how few cells have any colour, and for the layers they are in.
# A frame marks a head that is **detected** by the paper's rule: further than two standard deviations from the mean of all
# heads.

# %%
fx = pl.patch(model, pairs, corruption=pl.STR("S2"), progress=False)
pl.plot.heatmap(fx, "logit_diff")

# %%
pl.detect(fx)[["metric", "sign", "heads"]]

# %% [markdown]
# On SmolLM2 all framed heads are in layers 17 to 29, the second half of the model, and they are nine of 270.
#
# Is the list the same for every **metric**? On SmolLM2 probability (`prob`) finds four of the six positive heads of the
# logit difference, and none of the three negative ones: same model, same runs, another list. Another **corruption** would
# give other runs as well. Whether such choices matter, and which to prefer, is the question of the paper, and of the
# notebooks that follow.
#
# ## 6 Explore
#
# The controls below run the same function. Three things to try:
#
# 1. **Metric**: change `logit_diff` to `prob`. Where did the red cells go?
# 2. **Corruption**: change STR to GN. Which frames stay?
# 3. **Click a framed cell.** The picture below shows where this head attends. Read its last row: from the last token, does it
#    look at IO (the name that occurs once), at S1 or at S2?

# %%
explorer = pl.explore(model, pairs)

# %% [markdown]
# ## How to read this collection
#
# **The path for a class** has seven steps. Each stands alone, with a list of what to read before.
#
# | | notebook | question |
# |---|---|---|
# | 1 | `00_start_here` | what is activation patching? |
# | 2 | [02_background](02_background.ipynb) | what exactly do corruptions and metrics do? |
# | 3 | [03_1_ioi_circuit](03_1_ioi_circuit.ipynb) | which heads does patching find, and who decides? |
# | 4 | [03_2_out_of_distribution](03_2_out_of_distribution.ipynb) | what does noise break? |
# | 5 | [04_2_negative_heads](04_2_negative_heads.ipynb) | what can a metric not see? |
# | 6 | [03_1_factual_recall](03_1_factual_recall.ipynb), with [04_1](04_1_metrics_factual_recall.ipynb) and [05](05_sliding_window.ipynb) | where are facts recalled: in one layer, or in several together? |
# | 7 | [06_recommendations](06_recommendations.ipynb) | which settings for a study of your own? |
#
# Notebooks `app_c` to `app_h` follow the paper's appendices; [notation_and_settings](notation_and_settings.ipynb) explains
# every symbol.
#
# **The marks.** A line with a mark is a claim, most often the paper's, tested on the model that is loaded: **✓** it holds,
# **✗** it does not, and then this model differs from the paper's, which is no error, **≈** too close to call, **–** cannot be
# tested on this model. With the environment variable `PATCHLIB_MODEL=gpt2` (or `mini`, a model so small that everything runs
# at once) before Jupyter starts, the same notebooks study another model: numbers and marks change, and what is said about
# SmolLM2 stays about SmolLM2.
#
# ## Summary
#
# * Three runs: clean, corrupted, and corrupted with one clean activation put back.
# * The effect is 0 for the corrupted run and 1 for the clean one; it can be negative, and more than 1.
# * Both sentences need the same number of tokens.
# * Few heads matter. *Which* ones depends on the corruption and on the metric, too.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# Fill in, run, read the hint. The right answers are computed from the model that you loaded.
# `pl.progress()` is a table of the exercises that you have checked so far.
#
# **1 Read a map.** Which head brings most of the logit difference back, and what share of the way from the corrupted run to
# the clean one? Read both from `fx`, the result of `pl.patch` in section 5.

# %%
answer = ...  # a pair: a head and a number, such as ("1.2", 0.05)
pl.check("0.1", answer, fx=fx)

# %% [markdown]
# **2 The formula.** Write the effect as a function of three logit differences, those of the clean, the corrupted and the
# patched run, without looking up. What are 0 and 1 to mean?

# %%
my_effect = ...  # a function of clean, corrupted and patched
pl.check("0.2", my_effect)

# %% [markdown]
# **3 Predict, then test.** Restore the *residual stream* in place of a head, before one layer and at one token. Before layer
# 0, what must come back if you restore it at S2 alone? And at the last token alone? Write your two guesses down. Then test
# them with `pl.patch(model, few, "resid", corruption=pl.STR("S2"), positions=["S2", "last"])`, and find the first layer
# before which the last token brings back more than S2 does; if there is none, say how many layers there are.

# %%
few = pairs[:20]
answer = {"S2": ..., "last": ..., "layer": ...}  # two effects before layer 0, and a layer
pl.check("0.3", answer, model=model, pairs=few)

# %% [markdown]
# **To discuss.** Putting head 23.3 back brings the answer back in SmolLM2. Does that show that the model *needs* head 23.3?
# What would you run to find out? Next: [02](02_background.ipynb), the two corruptions and the metrics, down to the embedding.

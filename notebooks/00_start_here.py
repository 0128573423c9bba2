# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Start here: activation patching by hand
#
# | | |
# |---|---|
# | **You will learn** | the three runs of activation patching: clean, corrupted, patched; how to patch one attention head with nothing but TransformerLens; how to read a logit difference and say how much of it a patch brought back; how to do the same for every head on many prompts with `patchlib`, with an interval |
# | **Time** | 25 minutes to read, less than a minute to run |
# | **Paper** | [Zhang & Nanda, *Towards Best Practices of Activation Patching in Language Models*, ICLR 2024](https://arxiv.org/abs/2309.16042): Sections 1 and 2, Figure 1 |
# | **You need** | some Python and PyTorch, and to know that a transformer is a stack of layers, each with attention heads and an MLP; no GPU, no download |
# | **Another model** | set the environment variable `PATCHLIB_MODEL=gpt2` before you start Jupyter, and run all cells again |

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown, display
from transformer_lens.utilities import get_act_name

import patchlib as pl

model = pl.load_model()
pl.notebooks.versions(model, "3_1_ioi", n=50)

# %% [markdown]
# `pl.load_model()` loads `mini`, a small model that comes with this project. It returns what
# TransformerLens makes of any model: a `TransformerBridge`, whose activations can be read and
# replaced.

# %%
display(
    Markdown(
        f"The model is `{model.cfg.model_name}`: **{model.cfg.n_layers} layers**, each with "
        f"**{model.cfg.n_heads} attention heads**, and a residual stream of width "
        f"{model.cfg.d_model}. Layers and heads count from zero, so the last head of the last "
        f"layer is **{model.cfg.n_layers - 1}.{model.cfg.n_heads - 1}** (layer.head)."
    )
)

# %% [markdown]
# ## 1 The question
#
# > When Mary and John went to the store, John gave a drink to …
#
# … Mary, you would say: John occurs twice, so the other one receives the drink. This is *indirect
# object identification*, IOI for short
# ([Wang et al. 2023](https://arxiv.org/abs/2211.00593)). Three words have names: **IO** is the
# indirect object (Mary), **S1** and **S2** are the first and second mention of the subject (John).
#
# Somewhere inside the model, something must notice the repetition and pass it on. Activation
# patching finds out where. It takes three runs of the model:
#
# 1. the **clean** run, on the sentence above, which keeps all activations;
# 2. the **corrupted** run, on a sentence in which the crucial information is destroyed;
# 3. the **patched** run: the corrupted run once more, but with *one* activation overwritten by the
#    one from the clean run.
#
# If the answer comes back in the third run, that one activation carried what the corrupted run
# was missing.
#
# | run | the model reads | a reader would go on with | |
# |---|---|---|---|
# | clean | When Mary and John …, **John** gave a drink to | Mary | keep every activation |
# | corrupted | When Mary and John …, **Mary** gave a drink to | John | |
# | patched | When Mary and John …, **Mary** gave a drink to | ? | one activation comes from the clean run |

# %% [markdown]
# ## 2 Two prompts of equal length
#
# A model reads tokens, not words. So first look at what it will read.

# %%
clean_prompt = "When Mary and John went to the store, John gave a drink to"
clean_tokens = model.to_tokens(clean_prompt)
for position, word in enumerate(model.to_str_tokens(clean_prompt)):
    print(f"{position:2} {word!r}")

# %% [markdown]
# Does position 0 hold something that is not in the sentence? Then the model's default
# (`model.cfg.default_prepend_bos`) put a *beginning-of-sequence* token there, BOS for short. It
# moves every word one position to the right. A position counted in the text and used on tokens
# with a BOS is off by one, and patching there gives numbers that look fine and mean something
# else. Count on the tokens that the model sees, as we just did.

# %%
print("BOS in front:", model.cfg.default_prepend_bos)
print("tokens:", clean_tokens.shape[1])
print("without BOS:", model.to_tokens(clean_prompt, prepend_bos=False).shape[1])

# %% [markdown]
# The corrupted prompt replaces S2 by the other name. Now it is Mary who gives, and a reader would
# continue with John. The paper calls this *symmetric token replacement* (STR, Section 2.1): a
# token is replaced by a similar one, so that the corrupted prompt is as natural as the clean one.

# %%
corrupted_prompt = "When Mary and John went to the store, Mary gave a drink to"
corrupted_tokens = model.to_tokens(corrupted_prompt)

assert corrupted_tokens.shape == clean_tokens.shape
(S2,) = (clean_tokens != corrupted_tokens)[0].nonzero().flatten().tolist()
clean_words, corrupted_words = map(model.to_str_tokens, (clean_prompt, corrupted_prompt))
print(f"position {S2}: {clean_words[S2]!r} becomes {corrupted_words[S2]!r}, the rest is the same")

# %% [markdown]
# Both prompts must have the same number of tokens, and the cell above insists on it: patching
# copies activations position by position, and position 10 has to mean the same thing in both.
# A name of two tokens in place of a name of one would shift everything behind it.

# %% [markdown]
# ## 3 What to measure
#
# The two answers are single tokens, with their leading space. The **logit difference**
#
# `LD = Logit(Mary) − Logit(John)`
#
# asks how strongly the model prefers the one name over the other. It is positive where Mary is
# ahead, negative where John is, and one unit of it makes the ratio of the two probabilities
# e ≈ 2.7 times larger.

# %%
mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")


def logit_difference(logits):
    """Logit(Mary) - Logit(John) at the last position; logits: [batch, position, vocabulary]."""
    return (logits[0, -1, mary] - logits[0, -1, john]).item()


# %% [markdown]
# ## 4 The clean run
#
# `run_with_cache` runs the model and keeps every activation.

# %%
with torch.no_grad():
    clean_logits, clean_cache = model.run_with_cache(clean_tokens)

clean_ld = logit_difference(clean_logits)
print(f"clean: LD = {clean_ld:.2f}")

# %% [markdown]
# And what does the model say next? The three most likely tokens:


# %%
def most_likely(logits, k=3):
    probabilities, tokens = logits[0, -1].softmax(-1).topk(k)
    words = [repr(model.tokenizer.decode([token])) for token in tokens.tolist()]
    return pd.DataFrame({"next token": words, "probability": probabilities.numpy().round(2)})


pl.notebooks.show(most_likely(clean_logits))

# %% [markdown]
# The cache is a dictionary from names to tensors. A name is long, so TransformerLens has
# `get_act_name`, which writes it out. For us one activation matters most: `z`, what each head of
# a layer has gathered through its attention, before it is written back to the residual stream.
# Changing one head's `z` changes that head's output and nothing else.

# %%
name = get_act_name("z", 0)
print(f"get_act_name('z', 0) = {name!r}")
print("shape:", tuple(clean_cache[name].shape), "= batch, position, head, width of a head")

# %% [markdown]
# ## 5 The corrupted run

# %%
with torch.no_grad():
    corrupted_logits = model(corrupted_tokens)

corrupted_ld = logit_difference(corrupted_logits)
print(f"corrupted: LD = {corrupted_ld:.2f}")
pl.notebooks.show(most_likely(corrupted_logits))

# %%
ahead = {"clean": clean_ld > 0, "corrupted": corrupted_ld > 0}
winners = {run: "Mary" if mary_wins else "John" for run, mary_wins in ahead.items()}
if ahead["clean"] and not ahead["corrupted"]:
    verdict = "One token changed, and the model's preference turned around, as a reader's would."
else:
    verdict = "A reader's preference would turn around; this model's does not on this sentence."
display(
    Markdown(
        f"Between the two names, the clean run prefers **{winners['clean']}** (LD = "
        f"{clean_ld:.2f}) and the corrupted run **{winners['corrupted']}** (LD = "
        f"{corrupted_ld:.2f}). {verdict}"
    )
)
assert (clean_ld > 0) == (clean_logits[0, -1, mary] > clean_logits[0, -1, john]).item()
assert clean_ld != corrupted_ld  # or there is nothing that a patch could bring back

# %% [markdown]
# ## 6 The patched run
#
# `run_with_hooks` runs the model and calls a function of ours, a *hook*, at the activation we
# name. What the hook returns takes the activation's place. Ours overwrites one head's `z`, at all
# positions, with the clean run's.


# %%
def patched_logit_difference(layer, head):
    name = get_act_name("z", layer)

    def restore(z, hook):  # z: [batch, position, head, width of a head]
        z = z.clone()
        z[:, :, head] = clean_cache[name][:, :, head]
        return z

    with torch.no_grad():
        logits = model.run_with_hooks(corrupted_tokens, fwd_hooks=[(name, restore)])
    return logit_difference(logits)


# %% [markdown]
# A logit difference by itself is hard to judge, so the paper puts it on a scale (Section 2.1):
#
# `how much came back = (LD_patched − LD_corrupted) / (LD_clean − LD_corrupted)`
#
# 0 means the patch did nothing, 1 means it brought everything back. A negative value means the
# head pushed the answer further away; a value above 1 is possible too.


# %%
def came_back(patched_ld):
    return (patched_ld - corrupted_ld) / (clean_ld - corrupted_ld)


# %% [markdown]
# Before the first result, a check that costs one line and catches most mistakes: if we restore
# *everything*, the clean run has to come back. The residual stream before layer 0 (`resid_pre`) is
# everything that the layers get to see.

# %%
everything = get_act_name("resid_pre", 0)
with torch.no_grad():
    logits = model.run_with_hooks(
        corrupted_tokens, fwd_hooks=[(everything, lambda resid, hook: clean_cache[everything])]
    )
print(f"everything restored: {came_back(logit_difference(logits)):.2f} came back")
assert abs(came_back(logit_difference(logits)) - 1) < 1e-4

# %% [markdown]
# Now every head in turn, one patched run each.

# %%
by_hand = torch.tensor(
    [
        [came_back(patched_logit_difference(layer, head)) for head in range(model.cfg.n_heads)]
        for layer in range(model.cfg.n_layers)
    ]
)
strongest = divmod(by_hand.argmax().item(), model.cfg.n_heads)

rows = []
for index in by_hand.flatten().argsort(descending=True)[:5].tolist():
    layer, head = divmod(index, model.cfg.n_heads)
    rows.append((f"{layer}.{head}", f"{by_hand[layer, head]:.2f}"))
pl.notebooks.show(pd.DataFrame(rows, columns=["head", "came back"]))

# %%
share = by_hand[strongest].item()
patched_ld = patched_logit_difference(*strongest)
display(
    Markdown(
        f"On this sentence, head **{strongest[0]}.{strongest[1]}** brings most back. With its `z` "
        f"alone, the logit difference goes from {corrupted_ld:.2f} (corrupted) to "
        f"**{patched_ld:.2f}** (patched), where the clean run has {clean_ld:.2f}: "
        f"**{share:.0%}** of the way. "
        + (
            "No single head is enough to bring the answer back."
            if share < 0.9
            else "That one head nearly brings the answer back by itself."
        )
    )
)

# %% [markdown]
# The same as a picture. **What to look for.** The three runs on the axis of the logit difference; the
# arrow is what this one head brought back.


# %%
def draw_runs(runs, title):
    """The logit difference of each run on one axis, with an arrow from corrupted to patched."""
    figure, axes = plt.subplots(figsize=(5.6, 1.6), layout="constrained")
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    colours = {"corrupted": "#0072B2", "patched": "black", "clean": "#999999"}
    for run, value in runs.items():
        axes.scatter(value, 0, s=40, color=colours[run], zorder=3)
        height = -0.95 if run == "patched" else 0.35  # below and above the dots
        text = {"ha": "center", "va": "bottom", "fontsize": 8, "color": colours[run]}
        axes.text(value, height, f"{run}\n{value:.2f}", **text)
    ends = {"xy": (runs["patched"], 0), "xytext": (runs["corrupted"], 0)}
    axes.annotate("", **ends, arrowprops={"arrowstyle": "-|>", "color": "black", "shrinkB": 4})
    axes.set(ylim=(-1, 1.1), yticks=[])
    axes.set_xlabel("LD = Logit(Mary) − Logit(John)", fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.margins(x=0.1)
    axes.spines[["top", "left", "right"]].set_visible(False)
    plt.close(figure)
    return figure


figure = draw_runs(
    {"corrupted": corrupted_ld, "patched": patched_ld, "clean": clean_ld},
    f"head {strongest[0]}.{strongest[1]} brings back {share:.0%}",
)
pl.notebooks.keep("00_by_hand", figure)
figure

# %% [markdown]
# What the sentence above says, as code that fails if it is not so:

# %%
assert (by_hand <= share).all() and by_hand.shape == (model.cfg.n_layers, model.cfg.n_heads)
assert abs(corrupted_ld + share * (clean_ld - corrupted_ld) - patched_ld) < 1e-4

# %% [markdown]
# ## 7 The same with `patchlib`
#
# The loop above is all there is to activation patching. `pl.patch` is this loop with batches,
# metrics, other components and checks. It wants the two prompts as *prompt pairs*, with the
# answers and the named positions; here they are written by hand.

# %%
start = clean_prompt.rindex("John")
prompt = pl.Prompt(
    text=clean_prompt,
    spans={"S2": (start, start + len("John"))},  # where S2 stands in the text
    answers=(" Mary",),
    wrong_answers=(" John",),
    corrupted={"S2": corrupted_prompt},
)
one_pair = pl.PromptPairs.from_prompts(model, [prompt], task="Mary and John")
print("S2 is at position", one_pair.at("S2")[0][0])

# %%
fx = pl.patch(
    model, one_pair, "head", corruption=pl.STR("S2"), metrics=["logit_diff"], progress=False
)
by_patchlib = torch.from_numpy(fx.effect.sel(metric="logit_diff").values)
assert one_pair.at("S2")[0] == (S2,)
# Compared in nats, as a small distance between the two runs would magnify rounding.
assert ((by_patchlib - by_hand) * (clean_ld - corrupted_ld)).abs().max() < 1e-4
print(f"{by_hand.numel()} heads, and both ways agree on every one of them")

# %% [markdown]
# The result is an [xarray](https://xarray.dev) dataset: an array that knows its dimensions by
# name. `effect` is what we called "how much came back".

# %%
layer, head = strongest
print(dict(fx.effect.sizes))
print(f"{float(fx.effect.sel(metric='logit_diff', layer=layer, head=head)):.2f}")

# %% [markdown]
# ## 8 From one sentence to fifty
#
# One sentence proves little: the head may matter only for these two names. `pl.tasks.ioi` draws
# as many prompts as you like, with many names and many phrasings.

# %%
pairs = pl.tasks.ioi(model, n=50)
for i in (0, 1):
    corrupted = model.tokenizer.decode(pairs.prompts[i].corrupted["S2"], skip_special_tokens=True)
    print(f"clean:     {pairs.texts[i]} →{model.tokenizer.decode([pairs.answers[i].item()])}")
    print(f"corrupted: {corrupted} →{model.tokenizer.decode([pairs.wrong_answers[i].item()])}\n")

# %% [markdown]
# Were these sentences in the text that the model was trained on? If so, it may repeat what it has
# learnt by heart. For `mini` we know: its corpus uses the same phrasings, but in about one of eight
# pairs of names the two were never giver and receiver, and `pl.tasks.ioi` draws from these
# *held-out* pairs only. For models trained by others, one can rarely know.

# %%
from patchlib.tasks import indirect_objects

held_out = indirect_objects.is_held_out("Mary", "John")
if model.cfg.model_name != "mini":
    note = (
        f"What `{model.cfg.model_name}` was trained on is not ours to check, so whether it has "
        "met Mary, John and the store before is unknown."
    )
elif held_out:
    note = "Mary and John are a held-out pair: in `mini`'s corpus, neither gave the other anything."
else:
    note = (
        "Mary and John are **not** a held-out pair: `mini` may have seen sentences about the two. "
        "They are good enough to learn the method, and the results from here on use held-out pairs."
    )
display(Markdown(note))

for drawn in pairs.prompts:  # r is the indirect object, r' the subject
    io, subject = model.tokenizer.decode(drawn.answers + drawn.wrong_answers).split()
    assert indirect_objects.is_held_out(io, subject)

# %% [markdown]
# Now all heads on all fifty prompts. `keep_prompts=True` keeps a value for each prompt, which we
# need in a moment; the mean over prompts is what one usually shows.

# %%
per_prompt = pl.patch(
    model, pairs, "head", corruption=pl.STR("S2"), keep_prompts=True, progress=False
)
fx_str = per_prompt.mean("prompt", keep_attrs=True)

# %% [markdown]
# **What to look for.** Each cell of the map is one head: layers run downwards, heads to the right.
# Blue means that a head brings the clean answer back, red that it pushes it away. Look first at how
# many cells have any colour, then at the layers where they are. Black frames mark the heads that
# stand out by the paper's rule: an effect more than 2 standard deviations away from the mean over
# all heads (Section 3).

# %%
figure = pl.plot.heatmap(fx_str, "logit_diff")
pl.notebooks.keep("00_heads_STR", figure)
pl.notebooks.keep("00_heads_STR", per_prompt)
figure

# %%
found = pl.detect(fx_str)
positive = pl.heads_of(found, "logit_diff", "positive")
negative = pl.heads_of(found, "logit_diff", "negative")


def listed(heads):
    return ", ".join(f"{layer}.{head}" for layer, head in sorted(heads)) or "none"


def counted(heads, of):
    return f"**{len(heads)}** of {of} heads stand{'s' * (len(heads) == 1)} out"


def threshold_of(found, sign):
    """The effect beyond which a head stands out."""
    return found[(found.metric == "logit_diff") & (found.sign == sign)].threshold.item()


effect = fx_str.effect.sel(metric="logit_diff")  # layer by head
fifty = float(effect[strongest])
same_head = strongest in positive
coloured = abs(effect) >= 0.02
in_layers = ", ".join(str(int(layer)) for layer in effect.layer[coloured.any("head")])
display(
    Markdown(
        f"* {int(coloured.sum())} of {by_hand.numel()} heads have an effect of at least 0.02 in size, in "
        f"layers {in_layers or 'none'}.\n"
        f"* {counted(positive, by_hand.numel())} as bringing the answer back: {listed(positive)}. "
        f"As pushing it away: {listed(negative)}.\n"
        f"* The strongest head of the single sentence, {strongest[0]}.{strongest[1]}, is "
        f"{'among them' if same_head else 'not among them'}. It brought back {share:.0%} there, "
        f"and brings back {fifty:.0%} on average over the {len(pairs)} prompts."
    )
)

# %%
mean, spread = float(effect.mean()), float(effect.std())
assert all(float(effect[head]) > mean + 2 * spread for head in positive)
assert all(float(effect[head]) < mean - 2 * spread for head in negative)
assert int((abs(effect - mean) > 2 * spread).sum()) == len(positive) + len(negative)

# %% [markdown]
# ### A number that can be published
#
# A mean over 50 prompts is an estimate. `pl.interval` says how far to trust it: it draws the
# prompts again and again with replacement (a bootstrap) and reports where the mean falls in 95 %
# of the draws. And the dataset remembers how it came about.

# %%
ci = pl.interval(per_prompt)
top = positive or [strongest]
threshold = threshold_of(found, "positive")
rows, unsure = [], []
for head in top:
    low, high = (float(end.sel(metric="logit_diff")[head]) for end in (ci.low, ci.high))
    rows.append((listed([head]), f"{float(effect[head]):.3f}", f"{low:.3f} to {high:.3f}"))
    if low <= threshold <= high:
        unsure.append(head)
    assert low <= float(effect[head]) <= high
pl.notebooks.show(pd.DataFrame(rows, columns=["head", "effect", "95 % interval"]))

# %%
display(
    Markdown(
        f"A head stands out where its effect is above **{threshold:.3f}** (mean + 2 SD). "
        + (
            f"That lies inside the interval of {listed(unsure)}: with other prompts the rule may "
            "decide otherwise."
            if unsure
            else "That lies inside none of these intervals."
        )
    )
)

# %%
for key in ("model", "task", "n_prompts", "corruption", "site", "component", "direction"):
    print(f"{key:11}", fx_str.attrs[key])

# %% [markdown]
# ## 9 Another way to corrupt: noise
#
# Instead of replacing a token one can leave it and add *Gaussian noise* (GN) to its embedding. Many
# studies do so, following [Meng et al. 2022](https://arxiv.org/abs/2202.05262). The paper's main
# question is whether this choice matters.
#
# Noise is drawn at random, here once for each prompt.
#
# **What to look for.** The same map twice, once for each corruption of S2. Is the same set of heads
# framed? Each map has its own colour scale, so compare patterns, not shades.

# %%
per_prompt_gn = pl.patch(
    model, pairs, "head", corruption=pl.GN("S2", scale=3.0), keep_prompts=True, progress=False
)
fx_gn = per_prompt_gn.mean("prompt", keep_attrs=True)
figure = pl.plot.heatmaps({"STR": fx_str, "GN": fx_gn}, ["logit_diff"])
pl.notebooks.keep("00_heads_STR_GN", figure)
pl.notebooks.keep("00_heads_GN", fx_gn)
figure

# %%
found_gn = pl.detect(fx_gn)
by_str = {sign: set(pl.heads_of(found, "logit_diff", sign)) for sign in ("positive", "negative")}
by_gn = {sign: set(pl.heads_of(found_gn, "logit_diff", sign)) for sign in ("positive", "negative")}
results = {"STR": (found, effect, ci)}
results["GN"] = (found_gn, fx_gn.effect.sel(metric="logit_diff"), pl.interval(per_prompt_gn))


def standing(head, name, sign):
    """A head's effect beside the threshold, and on which side of it its whole interval lies."""
    found, effect, ci = results[name]
    threshold = threshold_of(found, sign)
    low, high = (float(end.sel(metric="logit_diff")[head]) for end in (ci.low, ci.high))
    above, below = low > threshold, high < threshold
    outside, inside = (above, below) if sign == "positive" else (below, above)
    side = "outside" if outside else "inside" if inside else "both"
    return f"{float(effect[head]):z.3f} under {name} (threshold {threshold:z.3f})", side


lines, details, clear = [], [], []
for sign in ("positive", "negative"):
    both, only_str, only_gn = (
        by_str[sign] & by_gn[sign],
        by_str[sign] - by_gn[sign],
        by_gn[sign] - by_str[sign],
    )
    lines.append(
        f"* **{sign}**: both find {listed(both)}; only STR {listed(only_str)}; "
        f"only GN {listed(only_gn)}"
    )
    assert both | only_str == by_str[sign] and both | only_gn == by_gn[sign]
    for head in sorted(only_str | only_gn):
        (by_one, one_side), (by_other, other_side) = (
            standing(head, name, sign) for name in ("STR", "GN")
        )
        details.append(f"* {listed([head])}: {by_one}, {by_other}")
        if {one_side, other_side} == {"outside", "inside"}:
            clear.append(head)
if not details:
    verdict = "Here the two corruptions single out the same heads."
elif clear:
    verdict = (
        "The two corruptions do not single out the same heads: **the choice matters**, also here. "
        f"The whole interval of {listed(clear)} lies beyond one threshold and within the other."
    )
else:
    verdict = (
        "The lists differ by heads that lie at a threshold: with other prompts they may not. "
        "[03_1_ioi_circuit](03_1_ioi_circuit.ipynb) looks closer."
    )
display(Markdown("\n".join([*lines, *details, "", verdict])))

# %% [markdown]
# Which of the two to trust, and why, is what the next notebooks are about.

# %% [markdown]
# ## 10 Explore
#
# The controls below run the same function as above, on sixteen prompts to be quick. Three things to
# try:
#
# 1. **Change the metric** from `logit_diff` to `prob`. Are the same heads framed? (Nothing is
#    computed anew: all metrics come from one pass.)
# 2. **Change the component** to `resid` and the **positions** to `each`. The map then shows layer by
#    position: in which layers does it matter what stands at S2, and from which layer on what stands
#    at the last token?
# 3. **Choose a framed head** in the list and look at where it attends from S2 and from the last token,
#    in the clean and in the corrupted run: to IO, S1, S2 or elsewhere?
#
# Without a running kernel (on a web page, or on GitHub) you see the first pictures only.

# %%
explorer = pl.explore(model, pairs[:16])

# %% [markdown]
# ## Summary

# %%
clean, corrupted = (fx_str[run].sel(metric="logit_diff").item() for run in ("clean", "corrupted"))
best = top[0]
best_effect = float(effect[best])
display(
    Markdown(
        "* Activation patching compares three runs: clean, corrupted, and corrupted with one clean "
        "activation.\n"
        "* Both prompts need the same number of tokens, and positions are counted on tokens, BOS "
        "included.\n"
        f"* On {len(pairs)} prompts, `{model.cfg.model_name}` has a mean logit difference of "
        f"{clean:.2f} clean and {corrupted:.2f} corrupted by STR. Head {best[0]}.{best[1]} alone "
        f"brings back {best_effect:.0%} of that distance.\n"
        f"* By the rule of mean ± 2 SD, STR finds {len(by_str['positive'])} positive and "
        f"{len(by_str['negative'])} negative heads, GN {len(by_gn['positive'])} and "
        f"{len(by_gn['negative'])}."
        + (
            f" Under STR the threshold lies inside the interval of {listed(unsure)}."
            if unsure
            else ""
        )
    )
)
assert best_effect == max(float(effect[head]) for head in top)

# %% [markdown]
# Beside the paper. The number of a head means nothing in another model, so only counts and the
# models' outputs stand side by side. The paper's prompts are others, too, and there are 500 of them.
# Counts say of how many heads: GPT-2 small, the paper's model, has 12 layers of 12.

# %%
baselines = pl.paper.value("ioi_baselines")
table5 = {
    row["corruption"]: row for row in pl.paper.value("table5") if row["metric"] == "logit_diff"
}
prob = {"STR": fx_str.sel(metric="prob"), "GN": fx_gn.sel(metric="prob")}
here = {"STR": by_str, "GN": by_gn}
rows = [
    ("P(IO), clean", baselines["clean"], prob["STR"].clean, "Appendix B"),
    ("P(IO), corrupted by STR", baselines["STR"], prob["STR"].corrupted, "4.2"),
    ("P(IO), corrupted by GN", baselines["GN"], prob["GN"].corrupted, "Appendix B"),
    ("mean LD, clean (Wang et al.)", baselines["logit_diff"], clean, "Wang et al."),
]
for corruption in ("STR", "GN"):
    for sign in ("positive", "negative"):
        rows.append(
            (
                f"{sign} heads found, {corruption}, LD",
                f"{len(table5[corruption][sign])} of {12 * 12}",
                f"{len(here[corruption][sign])} of {by_hand.numel()}",
                "Appendix H",
            )
        )
pl.notebooks.show(pl.paper.table(rows))

# %% [markdown]
# ## Exercises
#
# **1 (easy). The other way round.** So far clean activations went into the corrupted run, which is
# called *denoising*. Put corrupted activations into the clean run instead (*noising*) for one head.
# What do 0 and 1 now mean?
#
# <details><summary>Solution</summary>
#
# ```python
# fx_noise = pl.patch(model, pairs, corruption=pl.STR("S2"), direction="noise", progress=False)
# pl.plot.heatmap(fx_noise, "logit_diff")
# ```
#
# Clean and corrupted run change places: 0 means that the patched run still behaves like the clean
# one, 1 that this one head has turned it into the corrupted one. The two directions answer
# different questions. Denoising asks whether a head is *enough* to restore the behaviour, noising
# whether the behaviour *needs* it.
#
# </details>
#
# **2 (easy). One position.** We restored the head at all positions. Restore it at the last position
# only. Which heads keep their effect?
#
# <details><summary>Solution</summary>
#
# ```python
# fx_last = pl.patch(model, pairs, corruption=pl.STR("S2"), positions="last", progress=False)
# pl.plot.heatmap(fx_last, "logit_diff")
# ```
#
# A head that keeps its effect writes what matters at the last token. A head that loses it does its
# work earlier in the sentence, and later layers carry the result on.
#
# </details>
#
# **3 (medium). A sentence of your own.** Write a pair of prompts in which a single word decides the
# answer, and patch it. What does `pl.PromptPairs.from_prompts` say if the two differ in length?
#
# <details><summary>Solution</summary>
#
# Follow section 7. With a replacement of another length you get an error that names both lengths;
# choose another word. With `mini`, keep to words that it knows: it was trained on a small corpus,
# and an unknown word falls into many tokens.
#
# ```python
# longer = corrupted_prompt.replace("Mary gave", "Mary always gave")
# try:
#     bad = pl.Prompt(clean_prompt, prompt.spans, (" Mary",), (" John",), {"S2": longer})
#     pl.PromptPairs.from_prompts(model, [bad], task="mine")
# except pl.PatchlibError as error:
#     print(error)
# ```
#
# </details>
#
# **4 (hard). Does it add up?** Restore all framed heads of section 8 together. Is the joint effect
# the sum of the single ones?
#
# <details><summary>Solution</summary>
#
# ```python
# together = pl.patch_together(model, pairs, top, corruption=pl.STR("S2"))
# single = sum(float(effect[head]) for head in top)
# print(f"{float(together.effect.sel(metric='logit_diff')):.2f} together, {single:.2f} added up")
# ```
#
# It need not be. If one head passes its information on to another, restoring both counts the same
# information once, and the joint effect is smaller than the sum. If two heads are needed at the same
# time, it is larger. Section 5 of the paper meets the same question with whole layers.
#
# </details>

# %% [markdown]
# ## Where to go next
#
# * [02_background](02_background.ipynb): the two corruptions and all metrics, worked out on one
#   prompt; the five tasks and how well the model does on them.
# * [03_1_ioi_circuit](03_1_ioi_circuit.ipynb): which heads do corruption and metric find in IOI, and
#   what do these heads do?
# * [03_2_out_of_distribution](03_2_out_of_distribution.ipynb): what noise does to the model beyond
#   removing information.
# * [04_2_negative_heads](04_2_negative_heads.ipynb) and
#   [05_sliding_window](05_sliding_window.ipynb): what a metric cannot see, and what a window adds.
# * [06_recommendations](06_recommendations.ipynb): the paper's advice, as decisions to test.
#
# The README lists all notebooks; [notation_and_settings](notation_and_settings.ipynb) explains every
# symbol.

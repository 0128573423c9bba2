# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 20 A sweep for the price of three runs
#
# **Time** 20 minutes, with the exercises 40 · **Papers** [Nanda, 2023](https://www.neelnanda.io/mechanistic-interpretability/attribution-patching); [Kramár, Lieberum, Shah & Nanda, 2024](https://arxiv.org/abs/2403.00745); to Section 2.1 of [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042) · **Before this** `03_1_ioi_circuit`, `03_2_out_of_distribution`
#
# A sweep runs the model once for every head. SmolLM2 has 270 of them, which takes minutes. It has 46,080 neurons, and
# tens of thousands of edges between its parts, which takes hours to days. Yet all these runs ask the same question,
# *what would the metric do if this activation were another?*, and calculus answers it for all activations at once: by
# the gradient.
#
# **Attribution patching** takes two forward passes and one backward pass, however many components there are. Here you
# do it by hand, hold it against the exact sweep, find out where it fails and why, and mend some of that. At the end you
# can say which of its numbers to believe, and which to check.

# %%
import numpy as np
import pandas as pd
import torch
from transformer_lens.utilities import get_act_name

import patchlib as pl

model, pairs, S = pl.start("3_1_ioi", n=16)
few, runs = pairs[:3], {"STR": pl.STR("S2"), "GN": pl.GN("S2")}
options = {"metrics": "logit_diff", "progress": False}
by_names = {"corruption": runs["STR"], **options}

# %% [markdown]
# ## 1 One layer by hand
#
# Let $a$ be an activation of the corrupted run, $a'$ the same in the clean run, and $m$ the metric. Patching computes
# $m$ anew with $a'$ in place of $a$. Near $a$ the metric is as good as a straight line, so that the change is about
#
# $$(a' - a) \cdot \frac{\partial m}{\partial a}.$$
#
# Both runs are needed for the difference, one of them also backwards for the gradient. Here are the heads of the last
# layer, on one sentence. Nothing (a `shift` of zero) is added to their outputs, and the derivative is taken by it.

# %%
one, last = pairs[3:4], model.cfg.n_layers - 1
clean, corrupted, z = one.clean_tokens, one.corrupted_tokens("S2"), get_act_name("z", last)
there, here = (
    model.run_with_cache(tokens, names_filter=z)[1][z].detach() for tokens in (clean, corrupted)
)

# %%
shift = torch.zeros_like(here, requires_grad=True)
logits = model.run_with_hooks(corrupted, fwd_hooks=[(z, lambda a, hook: a + shift)])[0, -1]
difference = logits[one.answers.item()] - logits[one.wrong_answers.item()]
(gradient,) = torch.autograd.grad(difference, shift)
# prompt, position, head, d_head: all but the heads are added up.
nats = ((there - here) * gradient).sum((0, 1, 3)).cpu()

# %% [markdown]
# Nats become an effect when they are divided by the way between the runs, as in a sweep. `pl.attribute` takes what
# `pl.patch` takes, and gives the same kind of result.

# %%
by_call, exact = (f(model, one, layers=[last], **by_names) for f in (pl.attribute, pl.patch))
table = {
    "by hand": nats.numpy() / (exact.clean - exact.corrupted).item(),
    "pl.attribute": by_call.effect.values.ravel(),
    "pl.patch": exact.effect.values.ravel(),
}
pd.DataFrame(table, index=[f"{last}.{head}" for head in range(len(nats))]).round(3).T

# %%
away = abs(table["by hand"] - table["pl.attribute"]).max()
pl.claim("The product by hand is what pl.attribute gives", away < 1e-4, largest_difference=away)

# %% [markdown]
# After the last heads come one MLP, one norm and the unembedding: not much that bends, and the third row is near the
# others.
#
# ## 2 All heads at once
#
# Now all heads, on all prompts, under both corruptions. The exact sweeps are stored for SmolLM2. Guess: of the ten heads
# with the largest absolute effects under STR, how many are among attribution's ten?

# %%
pl.predict("20-1", "7 of 10")

# %%
exact, estimate = (
    {run: f(model, pairs, corruption=each, **options) for run, each in runs.items()}
    for f in (pl.patch, pl.attribute)
)
pl.plot.scatter(exact, estimate)


# %%
def ten(fx):
    return pl.Heads(pl.strongest(fx, n=10)["head"])


shared = {run: ten(exact[run]) & ten(estimate[run]) for run in runs}
pl.claim(
    "20-1",
    len(shared["STR"]) >= 8,
    **{run: len(heads) for run, heads in shared.items()},
    missed=ten(exact["STR"]) - shared["STR"],
)

# %% [markdown]
# As a search it does its work: what it puts on top is worth patching. As a *measurement* it does not: on SmolLM2, under
# STR, 20.0 and 17.4 lie far below the diagonal, and under GN it praises two heads that do nothing.
#
# ## 3 Where the line bends
#
# Take the head whose estimate is furthest off under STR, and move its output from the corrupted run to the clean one in
# steps. The gradient knows the first step alone. Guess how the logit difference goes: at the same pace all the way, fast at first,
# or late?

# %%
missed = exact["STR"].assign(effect=exact["STR"].effect - estimate["STR"].effect)
worst = pl.Heads(pl.strongest(missed, n=1)["head"])[0]
clean, corrupted = few.clean_tokens, few.corrupted_tokens("S2")
z = get_act_name("z", worst.layer)
there, here = (
    model.run_with_cache(tokens, names_filter=z)[1][z].detach() for tokens in (clean, corrupted)
)


# %%
@torch.no_grad()
def moved(part):
    between = here.clone()
    between[:, :, worst.head] += part * (there - here)[:, :, worst.head]
    logits = model.run_with_hooks(corrupted, fwd_hooks=[(z, lambda a, hook: between)])[:, -1].cpu()
    right, wrong = (each.view(-1, 1) for each in (few.answers, few.wrong_answers))
    return (logits.gather(1, right) - logits.gather(1, wrong)).mean().item()


# %%
line = pl.attribute(model, few, heads=[worst], **by_names).sum(["layer", "head"])
slope = (line.patched - line.corrupted).item()
steps = pd.DataFrame({"part": [0, 0.1, 0.25, 0.5, 0.75, 1]})
steps["logit difference"] = steps.part.map(moved)
steps["by the gradient"] = line.corrupted.item() + slope * steps.part
steps.set_index("part").round(2).T.rename_axis(f"head {worst}")

# %% [markdown]
# On SmolLM2 the gradient is right for the first tenth of the way. Then the pace grows, and nearly two thirds of the
# effect come in the second half. What bends is a softmax further on. After STR the model is sure of the *wrong* name,
# and its Name Movers (23.0, 23.1, 23.7; see [13](13_ioi_circuit_of_smollm2.ipynb)) look at that name. Where a softmax
# is near one of its ends a small push moves little: they let go late. Such attention is **saturated**, and its gradient
# says "this does not matter" where the truth is "not yet".
#
# So the corruption counts. Noise leaves a model undecided, where slopes are steep:

# %%
pd.DataFrame(
    {
        run: {
            "logit difference, clean": exact[run].clean.item(),
            "logit difference, corrupted": exact[run].corrupted.item(),
            "correlation with patching": np.corrcoef(
                exact[run].effect.values.ravel(), estimate[run].effect.values.ravel()
            )[0, 1],
        }
        for run in runs
    }
).round(2)

# %% [markdown]
# That is no reason to prefer noise, which takes the model to inputs that it never saw
# ([03.2](03_2_out_of_distribution.ipynb)). It is a reason to know which corruption an estimate was made with.
#
# ## 4 Large pieces change too much
#
# A head's output is a small part of what later layers read. The residual stream is all of it. Here are both, layer by
# layer, at S2 and at the last token.
#
# **Look for** the positions and layers at which the lines of attribution and of patching part. Guess: what does
# attribution give for the early stream at S2, where patching gives 1?

# %%
pl.predict("20-3", 0.5)

# %%
METHODS = {"patching": pl.patch, "attribution": pl.attribute}
stream = {
    name: f(model, pairs, "resid", positions=["S2", "last"], **by_names)
    for name, f in METHODS.items()
}
pl.plot.lines(stream)

# %%
early = {
    name: fx.effect.sel(position="S2")[:, 1 : model.cfg.n_layers // 4].mean().item()
    for name, fx in stream.items()
}
pl.claim("20-3", abs(early["attribution"]) < early["patching"] / 2, **early)

# %% [markdown]
# At the last token, late, little is left that bends. At S2 the estimate asks what a *small* change of the name would do,
# and patching exchanges the name. MLPs show the same, since the first one makes of a token what all later layers read:

# %%
mlps = {name: f(model, few, "mlp", **by_names) for name, f in METHODS.items()}
pl.plot.lines(mlps)

# %%
first = {name: fx.effect.sel(layer=0).item() for name, fx in mlps.items()}
share = first["attribution"] / first["patching"]
pl.claim("20-2", abs(share) < 0.5, close=abs(abs(share) - 0.5) < 0.05, **first, prompts=len(few))

# %% [markdown]
# ## 5 First repair: through the softmax
#
# Queries and keys have the worst place of all: a softmax stands right behind them. But that step is cheap to compute.
# Kramár et al. put the patched query in, compute the head's attention anew, and take the gradient *after* the softmax
# (`qk_fix=True`).
#
# Patching all queries exactly takes its time. That is what estimates are for: patch those that an estimate ranks among
# the first ten, and those of the heads that matter by their output. (In SmolLM2 three heads share one key: `kv24.1` is
# the second of layer 24's three.)


# %%
def estimates(part):
    return {
        name: pl.attribute(model, few, part, qk_fix=fix, **by_names)
        for name, fix in (("gradient", False), ("QK fix", True))
    }


queries, keys = estimates("q"), estimates("k")
checked = ten(exact["STR"]) | ten(queries["gradient"]) | ten(queries["QK fix"])
patched = {part: pl.patch(model, few, part, heads=checked, **by_names) for part in "qk"}

# %%
pl.plot.scatter(patched["q"], queries, n=6)

# %%
pl.plot.scatter(patched["k"], keys, n=4)

# %%
off = {
    part: {name: abs(fx.effect - patched[part].effect).sum().item() for name, fx in found.items()}
    for part, found in (("q", queries), ("k", keys))
}
pl.claim("20-4", all(each["QK fix"] < each["gradient"] for each in off.values()), off=off)

# %% [markdown]
# On SmolLM2 the fix takes 8.0 back, which only the gradient ever praised, and puts the keys near the diagonal. It does
# not mend 17.4: what is saturated there is no softmax of its own, but that of heads which come later. For those the only
# remedy is a gradient from further along the way ([21](21_edges_and_eap.ipynb)), or the patch itself.
#
# ## 6 Second repair: paths that cancel
#
# A component acts on many paths. If one of +0.3 and one of -0.3 add up to nothing in the corrupted run, attribution
# gives 0. **GradDrop** takes the gradient once for each layer, past whatever that layer adds, and averages the sizes:
# what cancels with all layers does not cancel without one of the two. The price is a backward pass for each layer, and
# the sign. Guess: does it find more of patching's ten heads?

# %%
pl.predict("20-5", "9 in place of 8")

# %%
together = {
    "patching": pl.patch(model, few, **by_names),
    "attribution": pl.attribute(model, few, **by_names),
    "GradDrop": pl.attribute(model, few, grad_drop=True, **by_names),
}
names = pl.strongest(together["patching"], n=10)["head"]
effects = {
    method: pl.strongest(fx, n=fx.effect.size).set_index("head").effect[names]
    for method, fx in together.items()
}
pd.DataFrame(effects).round(2).T

# %%
found = {
    method: len(ten(together["patching"]) & ten(together[method]))
    for method in ("attribution", "GradDrop")
}
pl.claim("20-5", found["GradDrop"] >= found["attribution"], **found, prompts=len(few))

# %% [markdown]
# On SmolLM2 it adds next to nothing: what was missed there was not hidden by a path of the other sign. And what cancels
# in the estimate may well cancel in truth. For averages over many prompts Kramár et al. suggest the QK fix alone.
#
# ## 7 What it costs
#
# | SmolLM2, 270 heads, one metric | forward | backward | seconds per prompt, on one core |
# |---|---|---|---|
# | sweep with hooks | 2 + 270 | | 9.6 |
# | sweep with the [fast engine](using_patchlib.md#engines-and-speed) | 2 + parts of 270 | | 1.6 |
# | attribution | 2 | 1 | 0.15 |
# | GradDrop | 2 | 30 | 1.6 |
#
# For 270 heads and a fast engine the estimate saves a factor of ten, and GradDrop nothing at all. For every position,
# 46,080 neurons or all edges the last two lines stay what they are, and the first two grow with the number of cells.
#
# ## Summary
#
# * Attribution is difference times gradient: two forward passes and one backward pass, whatever the number of cells. It
#   is exact where the metric is a straight line between the runs.
# * It ranks heads' outputs well, the later the better. It misses what changes much (the early residual stream, the first
#   MLP) and what a saturated softmax hides.
# * Parts add up to their whole, positions to a head and heads to a layer: always so with a product of difference and
#   gradient, seldom with patches.
# * The QK fix mends the softmax next to a query or key, GradDrop paths that cancel. Neither mends saturation further on.
# * Rank by attribution, then patch what is on top. What is *not* on top has not been shown to be unimportant.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 What a ranking would lose.** Under STR, of the ten heads that patching ranks highest: of which one does attribution
# find the smallest share, its effect divided by that of patching?

# %%
answer = ...  # a pair, such as ("9.9", 0.5)
pl.check("20.1", answer, exact=exact["STR"], estimate=estimate["STR"])

# %% [markdown]
# **2 Attribution of heads.** Write a function of what the heads put out in the corrupted run (`here`), in the clean run
# (`there`) and of the gradient of the metric in the corrupted run, all three position × head × d_head, that returns the
# estimate for each head of restoring it at all positions.

# %%
my_attribution = ...  # a function of here, there and gradient
pl.check("20.2", my_attribution)

# %% [markdown]
# **3 From the other end.** Noising takes the gradient in the clean run. Guess first: is the head `worst` missed there,
# too? Then give its effect on `few` with `direction="noise"`, under STR, by both methods.

# %%
answer = {"patching": ..., "attribution": ...}
pl.check("20.3", answer, model=model, pairs=few, head=worst)

# %% [markdown]
# **To discuss.** A paper lists the 50 neurons with the largest attribution and calls all others irrelevant. Which two
# experiments would you ask for, and how many runs do they take? Next: [21](21_edges_and_eap.ipynb), where estimates are
# made of edges, and gradients taken on the way between the runs.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14 Through a head or past it: causal mediation
#
# **Time** 25 minutes, with the exercises 45 · **Papers** [Vig et al., 2020](https://arxiv.org/abs/2004.12265); to Section 2.1 of [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042) · **Before this** `00_start_here`, `10_directions`
#
# "A nurse met a builder at the station. **She** was the ..." Nothing in the sentence says who. A model answers all the same,
# with what it has learnt about nurses, builders and pronouns. Vig et al. asked in which heads of GPT-2 that bias sits. They
# took the question to causal mediation, a theory made for medicine and the social sciences, and so did activation patching
# before it had its name: their "indirect effect" is noising, their "direct effect" is denoising seen from the other side.
#
# At the end you can translate between both languages, read a direct and an indirect effect off two patched runs, tell
# what goes through where heads *look* from what goes through what they *find*, and say why odds are a treacherous unit.

# %%
import numpy as np
import pandas as pd

import patchlib as pl

model, pairs, S = pl.start("14_mediation")
SHE = pl.STR("pronoun")
pl.show_pairs(model, pairs, "pronoun", n=2)

# %% [markdown]
# ## 1 Two prompts and four runs
#
# x is the clean prompt, x′ the one with the other pronoun. The right answer r is the profession that mostly people of the
# pronoun's gender have, r′ the other one; half of the prompts are about a woman, and either profession comes first as
# often. Y is the outcome, for which Vig et al. take the **odds** of the two answers.
#
# How far does the pronoun alone move it? Y(x′) − Y(x) is the **total effect**. First in log odds, log P(r)/P(r′), in nats.

# %%
total = pl.baselines(model, pairs, corruption=SHE, metrics="log_odds").squeeze()
odds_fall = total.corrupted - total.clean
total[["clean", "corrupted"]].mean().to_pandas().round(2)

# %% [markdown]
# Now let a component M (the **mediator**) see one prompt and the rest of the model the other one:
#
# | run | | in patching's words |
# |---|---|---|
# | Y(x, M(x)) | clean | |
# | Y(x′, M(x′)) | corrupted | |
# | Y(x, M(x′)) | only the mediator changes | noising |
# | Y(x′, M(x)) | everything but the mediator changes | denoising |
#
# * **Natural indirect effect**: Y(x, M(x′)) − Y(x, M(x)), what goes *through* M.
# * **Natural direct effect**: Y(x′, M(x)) − Y(x, M(x)), what goes *past* M.
#
# Both start at the clean run. What denoising shows, Y(x′, M(x)) − Y(x′, M(x′)), is the indirect effect of the way back, and
# total = direct − indirect of the way back, always. `pl.mediate` takes two results of `pl.patch` and needs no further run.
#
# ## 2 Where heads look, and what they find
#
# Vig et al. take attention *patterns* as mediators: where each head looks from each token. In GPT-2 small, all patterns
# together carry .18 of a total of .25. Guess for the model that is loaded: which share of the total goes through the
# patterns of all heads together?

# %%
pl.predict("14-2", "three quarters")

# %%
some = pairs[:16]
every = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]


def mediated(activation):
    options = {"corruption": SHE, "metrics": ["log_odds", "odds"], "keep_prompts": True}
    ways = [{"direction": way, "activation": activation} for way in ("denoise", "noise")]
    return pl.mediate(*(pl.patch_together(model, some, every, **way, **options) for way in ways))


joint = {name: mediated(name) for name in ("pattern", "v", "z")}

# %%
PARTS = ["total", "direct", "indirect", "interaction"]
logs = {name: fx.sel(metric="log_odds")[PARTS] for name, fx in joint.items()}
table = pd.DataFrame({name: fx.mean().to_pandas() for name, fx in logs.items()}).T
table.round(3)

# %% [markdown]
# **Read the last row first.** z, the output of all heads, is a **full cut**: no other way leads from the pronoun to the last
# token. Then the direct effect has to be 0, whatever the model is, and it makes a good test of any code. The patterns and
# the values v are the two halves of z. On SmolLM2 the values carry nearly everything: the heads look at the pronoun anyway,
# and find another word there. In GPT-2 small it was mostly a matter of where they looked.

# %%
pl.claim(
    "All heads together are a full cut: nothing goes past them",
    abs(table.direct["z"]) < 1e-3 * max(1, abs(table.total["z"])),
    direct=table.direct["z"],
    total=table.total["z"],
)

# %%
moved = pl.interval(joint["pattern"].rename(total="effect")[["effect"]]).sel(metric="log_odds")
pl.claim(
    "14-1",
    table.total["pattern"] < 0,
    close=bool(moved.low < 0 < moved.high),
    log_odds=table.total["pattern"],
    interval=[float(moved.low), float(moved.high)],
)

# %%
pl.claim(
    "14-2",
    table.indirect["pattern"] / table.total["pattern"] > 0.5,
    share_through_patterns=table.indirect["pattern"] / table.total["pattern"],
    share_through_values=table.indirect["v"] / table.total["v"],
)

# %% [markdown]
# ## 3 Which heads?
#
# One head at a time. The maps show indirect effects with their sign turned, so that blue heads carry the bias. First
# patterns, as Vig et al. drew them for GPT-2. **Look for** how many heads stand out, in which layers, and how many are red.


# %%
def mediators(component):
    options = {"corruption": SHE, "metrics": ["log_odds", "odds"], "keep_prompts": True}
    ways = [{"direction": way, "progress": False, **options} for way in ("denoise", "noise")]
    single = pl.mediate(*(pl.patch(model, pairs, component, **way) for way in ways))
    return single.assign(effect=-single.indirect)


patterns = mediators("pattern")
pl.plot.heatmap(patterns, "log_odds")

# %%
same = patterns[["effect"]].isel(prompt=slice(len(some))).sum(["layer", "head"])
ends = pl.interval(same).sel(metric="log_odds")
summed, jointly = float(same.effect.sel(metric="log_odds").mean()), -table.indirect["pattern"]
pl.claim(
    "14-4",
    abs(summed / jointly - 1) < 0.2,
    close=any(ends.low < bound * jointly < ends.high for bound in (0.8, 1.2)),
    sum_of_single_heads=summed,
    interval=[float(ends.low), float(ends.high)],
    jointly=jointly,
)

# %%
each = patterns.effect.sel(metric="log_odds").mean("prompt").to_series()
first = each.nlargest(4)
strong = pl.Heads(list(first.index))
pl.claim("14-5", first.sum() > each.sum() / 2, heads=strong, carry=first.sum(), all=each.sum())

# %%
depth = first.index.get_level_values("layer").to_numpy().mean() / (model.cfg.n_layers - 1)
pl.claim("14-6", 1 / 3 < depth < 2 / 3, heads=strong, mean_depth=depth)

# %% [markdown]
# A sum of many small effects of both signs can be near the joint one, and four heads can "carry more than half" of a sum in
# which the rest cancels. A map of single heads says who *could* change the outcome alone; only the joint run says what all
# of them do. Now the values, on a scale of their own: whose values carry the pronoun?

# %%
values = mediators("v")
pl.plot.heatmap(values, "log_odds")

# %% [markdown]
# Under grouped-query attention, as in SmolLM2, several heads share a value, and the map has a column for each group. Which
# heads make use of the strongest one? And does it matter what they find at the pronoun, or at the last token?

# %%
layer, _ = values.effect.sel(metric="log_odds").mean("prompt").to_series().idxmax()
near = {"corruption": SHE, "layers": [layer], "metrics": "log_odds", "progress": False}
heads = pl.patch(model, some, direction="noise", **near)
pl.strongest(heads, "log_odds", n=3).round(3)

# %%
at = pl.patch(model, some, "v", direction="noise", positions=["pronoun", "last"], **near)
pl.strongest(at, "log_odds", n=3).round(3)

# %% [markdown]
# On SmolLM2 this is one head, 25.1. From the last token it reads the pronoun, and with nothing but its own output exchanged
# more than three quarters of the total effect is there. That is a finding about *these* sentences: four templates, in which
# the pronoun stands three words before the answer. Whether the same head carries the bias elsewhere is another experiment.
#
# ## 4 Why odds explode
#
# Vig et al. report every effect as Y / Y(x) − 1, with P(r′)/P(r) as Y: an effect of 1 means that the odds of the *other*
# profession doubled. That sounds harmless. Guess: if you had taken P(r)/P(r′) as Y, would the mean effect have the same
# size with the sign turned?

# %%
relative = pd.DataFrame(
    {
        "P(r')/P(r)": np.expm1(-odds_fall),
        "P(r)/P(r')": np.expm1(odds_fall),
        "log P(r)/P(r')": odds_fall,
    }
)
relative.describe().loc[["mean", "min", "50%", "max"]].round(2)

# %% [markdown]
# The three columns are **the same numbers**, prompt by prompt. One is bounded by −1 and can never look large; the other has
# no bound, and its mean lies far above its median. Which profession you write on top decides which one you get. Where a model
# gives one of the two answers next to no probability, a single prompt can outweigh all others:

# %%
largest = relative.sort_values("P(r')/P(r)", ascending=False)
share = largest["P(r')/P(r)"].cumsum() / largest["P(r')/P(r)"].sum()
print(
    "share of the mean that a tenth of the prompts holds:", round(share.iloc[len(share) // 10], 2)
)

# %% [markdown]
# Log odds treat both answers alike: exchange them, and only the sign turns. And they **add** where odds multiply. If the ways
# through and past a component multiply the odds by 1 + a and 1 + b, the total is a + b + ab; for effects of .2 nobody notices
# the last term, for effects of 2 it is most of the total.

# %%
ratios = np.expm1(-logs["pattern"][["total", "direct", "indirect"]]).mean()
left = ratios.total - ratios.direct - ratios.indirect
pl.claim(
    "14-3",
    abs(float(left / ratios.total)) < 0.2,
    relative={name: float(value) for name, value in ratios.items()},
    log_odds=table.loc["pattern", PARTS[:3]].to_dict(),
)

# %% [markdown]
# ## Summary
#
# * Noising is the natural indirect effect of a component. Denoising is the total effect without the natural direct one.
# * total = direct − indirect of the way back, exactly. total = direct + indirect only where there is no interaction.
# * "Direct" always means *past something*: past one head, past all heads. Say past what.
# * Patterns and values are two mediators with one output. Ask which of them carries an effect before you speak of attention.
#   On SmolLM2 the answer differs from that of Vig et al. on GPT-2.
# * Report log odds, or medians of odds beside their means.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Through and past.** Which share of the total effect, in log odds, goes through the *values* of all heads, and which
# share goes past them? Compute both from `joint["v"]`, as ratios of means over prompts.

# %%
answer = {"through": ..., "past": ...}
pl.check("14.1", answer, joint=joint)

# %% [markdown]
# **2 The effects by hand.** Write the relative effects of Vig et al. as a function of the four outcomes Y(x, M(x)),
# Y(x′, M(x′)), Y(x, M(x′)) and Y(x′, M(x)), in this order. It returns the total, the direct and the indirect effect.

# %%
my_effects = ...  # a function of four numbers
pl.check("14.2", my_effects)

# %% [markdown]
# **3 Predict, then test.** A pattern is made by queries and keys. Which of the two carries more of the effect through the
# patterns of all heads? Guess; then call `mediated("q")` and `mediated("k")`, and give the letter with the larger size of the
# mean indirect effect in log odds, and this effect.

# %%
answer = ...  # a pair, such as ("k", -0.05)
pl.check("14.3", answer, model=model, pairs=some)

# %% [markdown]
# **To discuss.** Set all patterns to those of the other pronoun, and a model still calls the nurse *she*. Is its bias then in
# the values, in the embeddings, or in the sentence that you chose? Next: [15](15_self_repair.ipynb), what steps in when a
# mediator is taken away.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 What is enough, and what is needed?
#
# **Time** 20 minutes, with the exercises 40 · **Beyond the paper** [Heimersheim & Nanda 2024](https://arxiv.org/abs/2404.15255), with [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 2.1 · **Before this** `03_1_ioi_circuit`
#
# Put a clean activation into the corrupted run, and see what comes back: **denoising**, as in all notebooks so far. Or
# put a corrupted activation into the clean run, and see what is lost: **noising**. On SmolLM2 head 23.0, with some
# names replaced, restores more than a quarter of the answer in the first experiment and loses next to nothing in the second. Two
# correct numbers, one head. Is it important?
#
# At the end you can say which question each direction answers, tell from two heads patched together whether they need
# each other or stand in for each other, and see from a figure where the words AND and OR stop being safe.

# %%
from itertools import combinations

import pandas as pd

import patchlib as pl

model, pairs, S = pl.start("10_directions")
pl.show_pairs(model, pairs, "ABC", n=1)

# %% [markdown]
# ## 1 Three gates, by hand
#
# Before any model, the smallest circuit there is: two parts, A and B, and an answer that is some function of both. Each
# part is 1 in the clean run and 0 in the corrupted one. Here are three such functions.

# %%
GATES = {
    "AND": lambda a, b: a * b,
    "OR": lambda a, b: a + b - a * b,
    "adder": lambda a, b: (a + b) / 2,
}

# %% [markdown]
# Denoising A sets A to 1 where all else is 0. Noising A sets A to 0 where all else is 1. An effect is 1 where the whole
# answer comes back, or where all of it is lost.
#
# Guess the six effects of A alone: D and N of the AND, the OR and the adder.

# %%
pl.predict("10-1", "AND 1 1, OR 1 1, adder 1 1")  # D and N of A alone, three times


# %%
def effects(gate):
    denoise = {"D(A)": gate(1, 0), "D(B)": gate(0, 1), "D(AB)": gate(1, 1)}
    noise = {"N(A)": 1 - gate(0, 1), "N(B)": 1 - gate(1, 0), "N(AB)": 1 - gate(0, 0)}
    return denoise | noise


table = pd.DataFrame({name: effects(gate) for name, gate in GATES.items()}).T
table

# %%
of_A = table[["D(A)", "N(A)"]]
pl.claim(
    "10-1",
    list(of_A.loc["AND"]) == [0, 1] and list(of_A.loc["OR"]) == [1, 0],
    **{name: list(row) for name, row in of_A.iterrows()},
)

# %% [markdown]
# **Denoising finds what is enough, noising finds what is needed.** A part of an AND is needed and not enough, a part of
# an OR is enough and not needed. Whoever patches in one direction only, one part at a time, misses every AND or every
# OR.
#
# What gives them away is the pair. The **interaction** is what both do together beyond what each does alone:
#
# $$I_D = D(AB) - D(A) - D(B) \qquad I_N = N(A) + N(B) - N(AB)$$
#
# Above 0 they need each other (AND), below 0 they stand in for each other (OR), at 0 they add up. Compute both columns
# in your head from the table before you run the cell.

# %%
interaction = pd.DataFrame(
    {
        "I_D": table["D(AB)"] - table["D(A)"] - table["D(B)"],
        "I_N": table["N(A)"] + table["N(B)"] - table["N(AB)"],
    }
)
pl.claim(
    "In a gate of two parts both directions have the same interaction",
    bool((interaction.I_D == interaction.I_N).all()),
    **interaction.I_D,
)

# %% [markdown]
# The two are equal because A and B are *all* there is: both formulas are made of the same four runs. In a model there
# is always something else, and then they may differ.
#
# ## 2 All heads, both directions
#
# The corruption is **ABC**: all three names are replaced by others, so that the corrupted run knows nothing of the
# answer. A name mover that is restored there can bring the right name back. What can a head that says "*not this one*"
# do in a sentence without either name?
#
# Guess: do denoising and noising find the same heads? **Look for** framed cells in one row of the figure that are white
# in the other.

# %%
pl.predict("10-2", "the same")

# %%
runs = {
    way: pl.patch(
        model, pairs, corruption=pl.STR("ABC"), direction=way, keep_prompts=True, progress=False
    )
    for way in ("denoise", "noise")
}
sweep = pl.Sweep(runs)
pl.plot.heatmaps(sweep.mean, ["logit_diff"])

# %%
sweep.overlap("denoise", "noise")

# %%
found = {way: sweep.found(way) for way in runs}
pl.claim(
    "10-2",
    bool(found["denoise"] - found["noise"]) and bool(found["noise"] - found["denoise"]),
    **found,
)

# %% [markdown]
# On SmolLM2 noising finds heads of layers 17 to 20 that denoising gives nothing at all: they tell the name movers where
# not to look, and without names there is nothing to tell. A zero under denoising does not say that a head does nothing.
#
# ## 3 Twins
#
# Was that the direction, or the corruption? Exchange S2 instead. Here are a few heads whose work at the last token is
# known (by where they look, as in [3.1](03_1_ioi_circuit.ipynb)), at most three of each class.

# %%
roles = pl.head_roles(model, pairs[:50])
roles["size"] = abs(sweep.mean["noise"].effect.sel(metric="logit_diff")).values.ravel()
CLASSES = ["Induction", "S-Inhibition", "Name Mover", "Negative Name Mover"]
known = roles.sort_values("size", ascending=False).groupby("role").head(3)
heads = [head for role in CLASSES for head in known.index[known.role == role]]
# A model that has no such heads shows its strongest.
heads = heads if len(heads) > 1 else list(roles["size"].nlargest(4).index)
few = pairs[:20]


# %%
def effect_of(site, way):
    what = {"corruption": pl.STR(site), "direction": way, "heads": heads, "metrics": "logit_diff"}
    effect = pl.patch(model, few, **what, progress=False).effect.squeeze("metric")
    return effect.to_series()[list(pl.Heads(heads))].values


ways = {(site, way): effect_of(site, way) for site in ("S2", "ABC") for way in runs}
pd.DataFrame(ways, index=[[roles.role[head] for head in heads], heads]).round(2)

# %% [markdown]
# Under S2 the two columns say nearly the same, and no wonder: a sentence with S2 exchanged is another sentence of the
# same kind, whose answer is the other name. Noising a sentence is denoising its twin. ABC has no such symmetry, since
# one run holds the answer and the other does not. **Which corruption you choose decides whether the direction
# matters.**
#
# ## 4 Pairs
#
# Now every two of these heads together, in both directions, under ABC. Blue pairs need each other, red ones stand in
# for each other; the diagonal has the effect of each alone.
#
# Guess the colour of two Name Movers under noising. Wang et al. saw in GPT-2 small that others take over when the Name
# Movers are knocked out.

# %%
pl.predict("10-3", "blue")  # or "red", "white"

# %%
both = pl.interactions(
    model,
    pairs[: S["n_together"]],
    heads,
    corruption=pl.STR("ABC"),
    metrics="logit_diff",
    progress=False,
)
pl.plot.pairs(both)

# %%
movers = [head for head in heads if roles.role[head] == "Name Mover"]
noise = both.sel(direction="noise", metric="logit_diff")
pairs_of_movers = {
    f"{a}, {b}": float(noise.interaction.sel(first=a, second=b)) for a, b in combinations(movers, 2)
}
pl.claim(
    "10-3",
    all(value < 0 for value in pairs_of_movers.values()),
    parts=pairs_of_movers,
    **pairs_of_movers,
)

# %% [markdown]
# Three readings, each with its trap.
#
# * **Red under noising: stand-ins.** On SmolLM2 the Name Movers are red with each other, and each alone is hardly
#   needed. Add up their single effects and you underrate them.
# * **Blue under noising: an AND, or a chain.** On SmolLM2 17.4 and 20.0 are blue. If 17.4 only feeds 20.0, noising one
#   breaks the chain, and noising both does not break it twice. The sign cannot tell a chain from two heads that are
#   both needed; a path can ([13](13_ioi_circuit_of_smollm2.ipynb)).
# * **A harmful partner turns the colours round.** 24.4 alone has a *negative* effect. Its deep red beside 20.0 says
#   that its harm is gone when 20.0 is noised, so that the harm needs both: an AND. Read the diagonal before the colour.
#
# Left and right differ here, as they could not in a gate: under ABC on SmolLM2 17.4 and 20.0 are blue on the right and
# white on the left. So no two of these heads carry everything that the corruption changes, and the same two look like
# an AND in one direction and like nothing in the other. Report both.
#
# ## Summary
#
# * Denoising asks what is enough, noising what is needed. They agree by force only where the corrupted sentence is a
#   twin of the clean one.
# * A zero has a direction, too: "restores nothing" is not "does nothing".
# * One at a time you miss every partner of an OR or of an AND. Patch pairs; the sign of the interaction tells them
#   apart, as long as both effects are helpful.
# * An AND and a chain look the same.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 The strongest stand-ins.** Take only pairs of heads with positive effects alone under noising. Which pair has the
# lowest interaction under noising? Read it from `both`.

# %%
answer = ["0.0", ...]  # two heads
pl.check("10.1", answer, both=both)

# %% [markdown]
# **2 A metric that makes gates.** Two heads are perfect adders: each adds x to the log odds of the answer, which the
# corrupted run has at o. Measure probability instead, $1 / (1 + e^{-\text{log odds}})$. Write the interaction under
# denoising as a function of o and x, and look at it for o = −4 and o = 4 with x = 2.

# %%
my_interaction = ...  # a function of o and x
pl.check("10.2", my_interaction)

# %% [markdown]
# **3 All at once.** Noise the heads of section 4 with positive effects alone under noising, all together, on `few`
# (`pl.patch_together` with `direction="noise"` and ABC; logit difference). Guess first: more or less than the sum of
# their effects alone on `few`?

# %%
answer = {"sum": ..., "together": ...}
pl.check("10.3", answer, model=model, pairs=few, both=both)

# %% [markdown]
# **To discuss.** A colleague has "ruled out" a head, since restoring it does nothing. Which run would you ask for, and
# with which corruption? Next: [11](11_ablation.ipynb), where nothing is put in place of the clean activation but what
# *you* choose.

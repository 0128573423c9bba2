# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3.1 Which heads does patching find, and who decides: the model or you?
#
# **Time** 25 minutes, with the exercises 45 · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 3.1, Table 1, Appendix H · **Before this** `00_start_here`, `02_background`
#
# You and a colleague study the same model on the same sentences. You replace a token; she adds noise to it. You both
# patch every head, and you both use the rule "two standard deviations". You come back with two different lists. Who is
# right? That happened to the authors with GPT-2 small. Here you repeat it, with a model that runs on your machine.
#
# At the end you can sweep all heads and read the map, say *where in the sentence* a head does its work, tell a
# difference between models from a difference between settings, and put an error bar on a list of heads.
#
# Two habits. **Guess before you run**: a cell with `pl.predict` keeps your guess until the answer comes. **Read the
# marks**: a line with ✓ or ✗ is something the paper says, tested on the model that is loaded. ✗ is no error; this model
# does something else than the paper's. ≈ is too close to call, and – cannot be tested here. Heads are written
# `layer.head`, both counted from zero.

# %%
import torch
from transformer_lens.utilities import get_act_name

import patchlib as pl

model, pairs, S = pl.start("3_1_ioi")
pl.show_pairs(model, pairs, "S2")

# %% [markdown]
# ## 1 Two ways to destroy one fact
#
# In every sentence one name occurs twice. Its second occurrence is **S2**, and there the model can learn who is *not* the
# answer. We destroy just that. Symmetric token replacement (**STR**) writes the other name there: the sentence still
# makes sense and now means the opposite. Gaussian noise (**GN**) leaves the token and adds noise of three standard
# deviations to its embedding: the sentence makes no sense any more.
#
# A sweep patches every head in turn, under each corruption. First, what do the corruptions themselves do?

# %%
METRICS, RUNS = ["prob", "logit_diff", "kl"], ["STR", "GN"]
corruptions = {"STR": pl.STR("S2"), "GN": pl.GN("S2")}
sweep = pl.sweep(model, pairs, corruptions, metrics=METRICS)
sweep.runs().round(3)

# %% [markdown]
# Read the column `logit_diff` slowly, since everything below is measured in it: the logit of the right name minus that of
# the wrong one. A negative mean says that the model now *believes the other name*. A mean near zero can say two things:
# undecided in every sentence, or decided in each and right in half of them. A mean cannot tell; single sentences can.

# %%
single = sweep["GN"].corrupted.sel(metric="logit_diff").squeeze()
print("GN, eight sentences:", single.values[:8].round(1))
print(
    "right name ahead in",
    f"{float((single > 0).mean()):.0%}",
    "· mean size",
    f"{float(abs(single).mean()):.1f}",
)

# %% [markdown]
# **STR reverses the information, GN scrambles it.** "Thirty percent of the way back" is thirty percent of a different
# way in each. Keep that in mind for every comparison below.
#
# ## 2 One cell of the map, by hand
#
# A map has one cell for each head. Before you look at all of them, here is the whole method for one: run the corrupted
# sentences, put one head's clean `z` in the place of its own, and see how far the logit difference moves back.

# %%
some, dirty = pairs[:50], pl.STR("S2").tokens(pairs[:50])
layer, head = sweep.found("STR", "logit_diff", "positive")[0]
name = get_act_name("z", layer)
with torch.no_grad():
    clean_logits, cache = model.run_with_cache(some.clean_tokens, names_filter=name)


def restore(z, hook):
    z[:, :, head] = cache[name][:, :, head]
    return z


# %%
def ld(logits):
    rows = torch.arange(len(some))
    return (logits[rows, -1, some.answers] - logits[rows, -1, some.wrong_answers]).mean().item()


with torch.no_grad():
    patched = ld(model.run_with_hooks(dirty, fwd_hooks=[(name, restore)]))
    corrupted = ld(model(dirty))
effect = (patched - corrupted) / (ld(clean_logits) - corrupted)

# %%
fx = pl.patch(model, some, corruption=pl.STR("S2"), metrics=["logit_diff"], progress=False)
same = float(fx.effect.sel(metric="logit_diff", layer=layer, head=head))
pl.claim(
    "By hand and by pl.patch the same",
    abs(effect - same) < 1e-3,
    head=f"{layer}.{head}",
    by_hand=effect,
    by_patch=same,
)

# %% [markdown]
# An effect of 1 would bring the clean answer back, 0 changes nothing, and a negative one takes the answer further away.
#
# ## 3 Six maps
#
# Now all heads, two corruptions, three metrics. Blue brings the clean answer back, red takes it further away. A frame
# marks a **detected** head: beyond mean ± 2 standard deviations of all heads *of its map*, the paper's rule.
#
# Guess first: of the heads that get a frame, will the two rows share all, some, or none?

# %%
pl.predict("31-8", "some")  # or "all", "none"

# %%
pl.plot.heatmaps(sweep.mean, METRICS)

# %%
sweep.overlap("STR", "GN")

# %%
pl.claim(
    "31-8",
    all(sweep.found("STR", m) != sweep.found("GN", m) for m in METRICS),
    shared={m: len(sweep.found("STR", m) & sweep.found("GN", m)) for m in METRICS},
)

# %%
pl.claim("31-10", bool(sweep.everywhere()), in_all_six=sweep.everywhere())

# %% [markdown]
# The paper's lists for GPT-2 small are data, and the same line of code reads them. There 0.10 stands in the lists of GN
# as a **negative** head, although it is known to help: it notices that a name occurs twice, and under noise the token it
# compares is no name any more. [Notebook 3.2](03_2_out_of_distribution.ipynb) follows this up.

# %%
pl.paper.sweep("table5").overlap("STR", "GN")

# %% [markdown]
# ## 4 How much is the rule?
#
# "Detected" is a yes or no, drawn through a continuum by a rule that looks at all heads at once. Where does it cut?

# %%
pl.plot.ranked(sweep.mean["STR"], "logit_diff")

# %%
for sd in (1.5, 2, 3):
    print(sd, "SD:", sweep.found("STR", sd=sd))

# %% [markdown]
# A list hides where the heads stand close together; the picture does not. If you report a list, report the rule, the
# number of cells behind it, and the effects themselves.
#
# ## 5 Where in the sentence?
#
# So far a head was restored at all positions. Restore the *residual stream* instead, at S2 alone or at the last token
# alone, layer by layer. This is the classic picture of activation patching, and the one to draw first for a new task.
#
# Guess: what must the two curves do at layer 0, and what at the last layer?

# %%
at = ["S2", "last"]
stream = pl.patch(
    model, pairs[:200], "resid", corruption=pl.STR("S2"), positions=at, progress=False
)
pl.plot.lines(stream)

# %% [markdown]
# At the first layer everything is at S2, since only S2 differs. At the last nearly everything is at the last token, since
# only that token is read out; what is missing there is what the last layer itself still fetches. In between the information
# *moves*. Which heads carry it? Patch each at one of the two positions:

# %%
where = pl.patch(
    model,
    pairs[:100],
    corruption=pl.STR("S2"),
    positions=at,
    metrics=["logit_diff"],
    progress=False,
)
pl.strongest(where)

# %%
size = abs(where.effect).sel(metric="logit_diff").sum("head")
middle = {
    p: float((size.sel(position=p) * size.layer).sum() / size.sel(position=p).sum()) for p in at
}
pl.claim(
    "Heads that work at S2 come before heads that work at the last token",
    middle["S2"] < middle["last"],
    mean_layer=middle,
)

# %% [markdown]
# Two stages, then: heads that *notice* at S2, and heads that *pass it on* at the last token.
#
# ## 6 What do they look at?
#
# Wang et al. named the heads of GPT-2 small by what they do. No such list exists for other models, so we measure: where
# each head attends from the last token, and whether it would copy a name that it attends to (Appendix H; the rule is in
# the table's attributes). Name Movers look at the right name and copy it; S-Inhibition heads look at S2, and tell later
# heads where *not* to look. **Negative Name Movers** look at the right name and write *against* it.

# %%
roles = pl.head_roles(model, some)
movers, negative = (
    pl.Heads(roles.index[roles.role == role]) for role in ("Name Mover", "Negative Name Mover")
)
roles.loc[[str(h) for h in sweep.anywhere()]].round(2)

# %%
pl.claim(
    "31-13",
    all(len(movers - sweep.found(r, m)) >= 2 for r in RUNS for m in METRICS),
    parts=movers,
    name_movers=movers,
    found_by_any=movers & sweep.anywhere(),
)

# %%
pl.claim(
    "31-11",
    all(negative <= sweep.found(r, "logit_diff", "negative") for r in RUNS),
    parts=negative,
    negative_name_movers=negative,
    **{r: sweep.found(r, "logit_diff", "negative") for r in RUNS},
)

# %% [markdown]
# To act like a class is not to be of it: each number is one mean over prompts. Nor does looking explain everything: on
# SmolLM2 29.1 and 29.0, two of the strongest heads, look at no name at all.
#
# ## 7 How sure are you?
#
# Two things were drawn at random: the noise and the sentences. First the noise, ten times, on fifty prompts. **Look for**
# heads that are full dots in some draws and empty ones in others.

# %%
draws = pl.patch(
    model, pairs[:50], corruption=pl.GN("S2", draws=10), keep_draws=True, progress=False
)
pl.plot.draws(draws)

# %%
pl.stability(draws).to_frame("share of draws")

# %% [markdown]
# With one draw, such a head would be in your list or not by luck. More prompts help as well as more draws: each prompt has
# noise of its own, so that on four times the prompts the means lie half as far apart.
#
# Now the sentences. An interval holds 95 % of the means over resampled prompts. **Look for** intervals that cross the
# dashed line of their colour: such a head is neither "detected" nor "not detected", it is at the threshold.

# %%
pl.plot.intervals(sweep)

# %%
print("at the threshold:", {run: str(sweep.at_threshold(run)) for run in RUNS})

# %% [markdown]
# ## Summary
#
# * STR reverses information, GN scrambles it. An effect belongs to its corruption, and a list to its rule.
# * Draw the *residual stream by position* first: it says where and when information moves. Then heads, at those positions.
# * A list of heads needs: model, corruption, metric, rule, number of prompts, draws, and an interval.
# * A claim about one model is a claim about that model. What this run says to the paper's:

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# Fill in, run, read the hint. The right answers are computed from the model that you loaded.
#
# **1 Another rule.** Which heads do STR and the logit difference detect at 1.5, 2 and 3 standard deviations? Use NumPy on
# `sweep.mean["STR"].effect`, not `pl.detect`.

# %%
answer = {1.5: ..., 2: ..., 3: ...}  # lists of "layer.head"
pl.check("3.1.1", answer, sweep=sweep)

# %% [markdown]
# **2 The method itself.** Turn section 2 into a function of layer and head that returns the normalised effect on the
# logit difference of `some`. It is compared with `pl.patch` at three heads that you do not know beforehand.

# %%
my_effect = ...  # a function of layer and head
pl.check("3.1.2", my_effect, sweep=sweep, model=model, pairs=some)

# %% [markdown]
# **3 Where it looks, or what it reads?** STR changed something in the strongest head of the last token. Was it where the
# head looks (queries `q`, keys `k`) or what it finds there (values `v`)? Decide from section 6 first, then restore each
# letter alone with `pl.patch_together`, at all positions of `some`. Give the letter that brings most of the logit
# difference back, and how much.

# %%
answer = ...  # a pair, such as ("k", 0.05)
pl.check(
    "3.1.3",
    answer,
    model=model,
    pairs=some,
    head=pl.strongest(where.sel(position="last"))["head"][0],
)

# %% [markdown]
# **To discuss.** Your colleague's list under GN has one head more than yours. Write the two sentences that you would put
# into a paper. Next: [3.2](03_2_out_of_distribution.ipynb), what noise does to the heads that read the names.

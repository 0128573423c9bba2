# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 25 A model whose circuit is known
#
# **Time** 20 minutes, with the exercises 40 · **Papers** [Geiger et al. 2021](https://arxiv.org/abs/2112.00826) (interchange intervention training), [Gupta et al. 2024](https://arxiv.org/abs/2407.14494) (InterpBench) · **Before this** `10_directions`, `24_interchange_and_das`
#
# [Zhang & Nanda](https://arxiv.org/abs/2309.16042) *argue* which choices to trust. They have to: nobody knows the circuit of GPT-2, so no patching result
# can be marked right or wrong. Here is a model for which the answer key exists. It does the IOI task, it has six layers
# of four heads, it loads like any other, and **it was trained to have a stated circuit**: six heads in stated places,
# twelve edges, and effects whose size and sign follow from a page of arithmetic.
#
# At the end you can run the mechanism by hand, say how the model was made to follow it, read its certificate, and say
# where you would still doubt it.

# %%
import dataclasses
import random
from itertools import islice

import pandas as pd
import torch

import patchlib as pl
from patchlib.tasks import indirect_objects

model, pairs, S = pl.start("3_1_ioi", "known", n=64)
options = {"metrics": "logit_diff", "progress": False}
pl.show_pairs(model, pairs, "S2", n=1)

# %% [markdown]
# ## 1 The mechanism, by hand
#
# The mechanism knows a prompt as three names: the first, the second, and the one that comes again. Six variables are
# computed one after the other, and each stands for one head:
#
# | variable | its value | head | place |
# |---|---|---|---|
# | previous | the two names, carried one token on | 0.1 | after each name |
# | duplicate | which of the two names is the repeated one | 2.2 | S2 |
# | induction | the same, found by way of `previous` | 2.0 | S2 |
# | inhibition | both votes put together by a **gate** | 3.1 | last token |
# | mover | +9 to the logit of each name that is not inhibited | 4.3 | last token |
# | negative | −3 to the same | 5.2 | last token |
#
# Everything outside these six heads does nothing for the answer: all MLPs, eighteen heads.

# %%
names = torch.tensor([[0, 1, 1]])  # IO, S, S again
values = pl.known.mechanism(names, count=3)
{variable: value[0].tolist() for variable, value in values.items()}

# %% [markdown]
# IO gets 9 − 3 = 6, S nothing: a logit difference of 6. Now take one vote away, as an ablation would. The gate says
# what that does: *graded* takes the mean of the two votes, *or* the larger, *and* the smaller. There is a model for each
# (`known`, `known-or`, `known-and`). Guess the three numbers before you run the cell.


# %%
def difference(gate, *removed):
    setting = dict.fromkeys(removed, torch.zeros_like)
    logits = pl.known.mechanism(names, 3, gate, setting)["logits"][0]
    return (logits[0] - logits[1]).item()


CUTS = [(), ("duplicate",), ("induction",), ("duplicate", "induction")]
pd.DataFrame(
    {
        gate: {" and ".join(c) or "nothing": difference(gate, *c) for c in CUTS}
        for gate in pl.known.GATES
    }
).rename_axis("removed")

# %% [markdown]
# Under *or* neither vote is missed while the other is there: that is what a redundant pair of heads looks like, and
# why knocking out heads one at a time finds nothing. Under *and* either vote is missed entirely.
#
# ## 2 What follows for patching
#
# The mechanism can be patched like a model: set a variable to its value in the other prompt, see how much of the logit
# difference comes back. So every effect can be **predicted**. Swapping S2 turns 6 into −6. Guess which head then has an
# effect above 1, which one below 0, and which one none at all.

# %%
predicted = pl.known.heads(pairs, pl.STR("S2"))
fx = pl.patch(model, pairs, corruption=pl.STR("S2"), **options)
pl.plot.heatmap(fx)

# %%
measured = fx.effect.squeeze("metric")
rows = {
    f"{variable} {h}": (predicted[h], measured.sel(layer=h.layer, head=h.head).item())
    for variable, h in pl.known.HEADS.items()
}
pd.DataFrame(rows, index=["predicted", "measured"]).T.round(2)

# %% [markdown]
# The map shows what the answer key says, and nothing else. The Previous Token head is idle: its tokens are the same in
# both prompts. No method can find it by swapping S2, and none should be blamed for that. The mover's effect is above 1,
# since it undoes the negative head, too. The final norm holds both of them below their predicted size: they have the
# right sign and order, and are better scored by these.
#
# ## 3 One interchange, by hand
#
# How does a model come to follow a mechanism? Take a prompt and another one, the source, in which the *other* name is
# repeated. Give the inhibition head what it writes in the source. The mechanism says what must happen: the other slot is
# inhibited now, so the answer changes from IO to S. In training the model is asked to say what the mechanism says, and
# the loss is the divergence between the two.

# %%
clean, source = pairs.clean_tokens[:1], pl.STR("S2").tokens(pairs)[:1]
hook, head = "blocks.3.attn.hook_z", pl.known.HEADS["inhibition"].head
_, cache = model.run_with_cache(source, names_filter=hook)


def swap(z, hook):
    z[:, -1, head] = cache[hook.name][:, -1, head]
    return z


# %%
plain = model(clean)[0, -1]
swapped = model.run_with_hooks(clean, fwd_hooks=[(hook, swap)])[0, -1]
named = {"IO": pairs.answers[0], "S": pairs.wrong_answers[0]}
pd.DataFrame(
    {name: {"plain": plain[t].item(), "swapped": swapped[t].item()} for name, t in named.items()}
).round(1)

# %% [markdown]
# That teaches the head to *carry* the variable. It does not yet stop another head from carrying it too. Strict training
# adds the second half: in most rows of a batch components **outside** the circuit, from one of them to all, are replaced by
# what a third prompt makes of them, and the answer must not change.
#
# Not every recipe works, and the failures are the lesson. Each of these was tried once, on earlier versions of the model:
#
# | left out or changed | what came of it |
# |---|---|
# | no guidance for attention | heads did not find their places: accuracy .4 |
# | half or more replaced from the start | never learnt the task |
# | replaced one part at a time | every test of one part passed (.97 to 1.00). All parts replaced **at once**: .11. The true circuit alone had a faithfulness of .00: the bypasses were redundant, and each covered for the other |
# | `previous` and `duplicate` seldom set alone | induction learnt to read `duplicate`. Accuracy called it right in .999 of prompts, since ties count as right; only the divergence and the effects did not |
# | no rows in which *all* variables are set | a way from inhibition past the movers to the logits, worth .6 of the answer once the names are new |
#
# ## 4 The certificate
#
# Therefore the model comes with tests that try to refute it, in this order: other values for each variable, one by one and
# all six; everything outside the circuit replaced, up to all of it at once. Which of the two columns would you believe?

# %%
table = pl.certificate.interchanges("known", rows=256)
table.round(3)

# %%
inside = table.accuracy[[*pl.known.HEADS]]
pl.claim("25-1", inside.min() >= 0.98, accuracy=inside.min(), kl=table.kl[[*pl.known.HEADS]].max())

# %%
pl.claim("25-2", table.accuracy.iloc[-1] >= 0.99, accuracy=table.accuracy.iloc[-1])

# %% [markdown]
# The divergence is what is left between the model and the mechanism; it hardly grows when everything else is replaced.
# The next test is the strictest: run the corrupted prompt's value on **every edge that is not among the twelve**, of
# more than a thousand, and see whether the twelve alone still give the answer. 1 is the whole model.

# %%
circuit = pl.certificate.circuit("known", n=32)
circuit.round(3)

# %%
pl.claim(
    "The true edges alone give the answer to within a tenth, whatever is corrupted",
    circuit.faithfulness.between(0.9, 1.1).all(),
    faithfulness=circuit.faithfulness,
)

# %% [markdown]
# Mind the last columns, too. Under S1+IO and ABC the weakest of the true edges, cut alone, has an effect of .01, no more than
# the largest of what is outside: no ranking by size can be sure of that one. It leads to the negative head.
#
# ## 5 What noising and denoising miss
#
# Theory ([10](10_directions.ipynb)) says: restoring one of two heads behind an OR brings everything back, and destroying
# it does nothing; behind an AND it is the other way round. In a found circuit one can only guess which gate there is.
# Here it is known. S2 becomes a *third* name, so that both votes fall silent.


# %%
def third(prompt):
    start, end = prompt.spans["S2"]
    name = next(name for name in indirect_objects.NAMES if name not in prompt.text)
    return dataclasses.replace(
        prompt, corrupted={"S2": prompt.text[:start] + name + prompt.text[end:]}
    )


prompts = [third(p) for p in islice(indirect_objects.prompts(random.Random(0)), 32)]
new = pl.PromptPairs.from_prompts(model, prompts)

# %%
VOTES = {vote: pl.known.HEADS[vote] for vote in ("duplicate", "induction")}


def votes(name, direction):
    how = {"corruption": pl.STR("S2"), "direction": direction}
    fx = pl.patch(pl.load_model(name), new, heads=[*VOTES.values()], **how, **options)
    expected = pl.known.heads(new, pl.STR("S2"), pl.certificate.MODELS[name], direction)
    found = {v: fx.effect.sel(layer=h.layer, head=h.head).item() for v, h in VOTES.items()}
    return {v: f"{found[v]:.2f} ({expected[h]:.1f})" for v, h in VOTES.items()}


# %%
pd.DataFrame(
    {(name, d): votes(name, d) for name in pl.certificate.MODELS for d in ("denoise", "noise")}
)

# %% [markdown]
# In brackets stands what the mechanism predicts. Each direction alone calls two of the six unimportant: noising those
# behind the OR, denoising those behind the AND. Both directions together tell the gates apart.
#
# ## Summary
#
# * A model can be *made* to have a circuit: interchange interventions teach its heads to carry the variables, strict
#   training keeps everything else from doing so.
# * Tests of one part at a time pass redundant bypasses. Replace everything else at once, and cut every other edge.
# * Accuracy counts ties as right. A divergence, and the sizes of effects, do not.
# * What is known: places, edges, signs, and the sizes of all effects but those of the two writing heads, which the final
#   norm makes smaller. What is not: how the head does its part, by query, key or value.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 What can be found.** For each corruption and direction, to how many of the six heads does the mechanism give an
# effect other than 0?

# %%
answer = {("S2", "denoise"): ..., ("S2", "noise"): ..., ("S1+IO", "denoise"): ...,
          ("S1+IO", "noise"): ..., ("ABC", "denoise"): ..., ("ABC", "noise"): ...}  # fmt: skip
pl.check("25.1", answer, pairs=pairs)

# %% [markdown]
# **2 Interchange accuracy.** Write a function of the model's answers (one name's number for each prompt) and of the
# mechanism's logits (prompt, name) that returns the share of prompts in which the model's answer is one to which the
# mechanism gives its highest logit.

# %%
my_accuracy = ...  # a function of answers and logits
pl.check("25.2", my_accuracy)

# %% [markdown]
# **3 Predict an edge.** Cut the edge from inhibition to the mover, and no other, with three new names (ABC): in the
# clean run the mover reads what inhibition writes in the corrupted one. Predict the effect with `pl.known.edges`; then
# measure it with `pl.patch_edges` (its readers are the mover's `q`, `k` and `v`).

# %%
answer = {"predicted": ..., "measured": ...}
pl.check("25.3", answer, model=model, pairs=pairs)

# %% [markdown]
# **To discuss.** The certificate says that this model has the circuit that it was trained to have. Would you say of a
# method that finds it that it finds circuits in GPT-2? Name two ways in which a trained-in circuit may be easier, and
# one in which it may be harder, than one that grew. Next: [26](26_which_method_finds_the_circuit.ipynb), all methods
# against the key.

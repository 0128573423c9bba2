# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 24 Which variable does it hold?
#
# **Time** 25 minutes, with the exercises 45 · **Papers** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), Section 2.1; Geiger et al. (2021), [interchange interventions](https://arxiv.org/abs/2106.02997); Geiger et al. (2024), [DAS](https://arxiv.org/abs/2303.02536); Makelov et al. (2023), [an interpretability illusion](https://arxiv.org/abs/2311.17030) · **Before this** `03_1_ioi_circuit`, `10_directions`
#
# Patching says *where* something sits that the answer rests on. It does not say *what* sits there. "When Mary and John
# went to the store, John gave a drink to": somewhere between the second "John" and the end of the sentence, a model has
# noted who is repeated. Has it noted the **name**, John? Or the **place**, "the second of the two"? Exchange S2 for the
# other name, and both change. No patch of the notebooks so far can tell them apart.
#
# Here you write each guess down as a **causal model** of a few lines, find prompts for which the guesses say different
# things, and let the network decide. At the end you can also look for a *direction* that holds the variable, and you
# know three ways in which such a search finds what is not there.

# %%
from dataclasses import dataclass, replace

import pandas as pd
import torch
from transformer_lens.tools.analysis import interchange as tl

import patchlib as pl

model, pairs, S = pl.start("3_1_ioi", n=20)
pairs = pl.keep_answered(model, pairs)
some, others = pairs[:8], pairs[8:]

# %% [markdown]
# ## 1 Two guesses as two functions
#
# A causal model takes the words at the named positions, in the order of the sentence, and returns its variables and the
# answer. What stands in `held` is not computed but *set*: that is all there is to an intervention.


# %%
def slots(words, **held):
    first, second, third, *_ = words.values()
    slot = held.get("slot", 1 if third == first else 2)
    return {"slot": slot, "answer": second if slot == 1 else first}


def by_name(words, **held):
    first, second, third, *_ = words.values()
    name = held.get("name", third)
    return {"name": name, "answer": second if name == first else first}


MODELS = {"slot": slots, "name": by_name}
words = {"S1": "John", "IO": "Mary", "S2": "John"}
slots(words), by_name(words), slots(words, slot=2)

# %% [markdown]
# Both answer every sentence alike. They differ when a variable is set to the value that it has in *another* sentence, the
# **source**. Here are three sources with the same two names. Each row is named after the words that are exchanged for
# the other name.
#
# **Look for** the rows in which the two guesses part.

# %%
SOURCES = {
    "S2": ("John", "Mary", "Mary"),
    "IO+S1": ("Mary", "John", "John"),
    "IO+S1+S2": ("Mary", "John", "Mary"),
}


def told(variable, other):
    causal, source = MODELS[variable], dict(zip(words, other, strict=True))
    return causal(words, **{variable: causal(source)[variable]})["answer"]


pd.DataFrame({v: {site: told(v, other) for site, other in SOURCES.items()} for v in MODELS})

# %% [markdown]
# In the first row, the usual corruption, both say John. In the other two, one says Mary, which is the answer anyway, and
# the other says John. Only with these rows can an experiment fail, and only then does it say anything.
#
# The same for real prompts, as a corruption of our own:


# %%
@dataclass(frozen=True)
class Swap(pl.Corruption):
    def tokens(self, pairs):
        tokens, rows = pairs.clean_tokens.clone(), torch.arange(len(pairs))
        io, s = (tokens[rows, pairs.positions[name]].clone() for name in ("IO", "S1"))
        for at in map(pairs.positions.get, self.site.split("+")):
            tokens[rows, at] = torch.where(tokens[rows, at] == s, io, s)
        return tokens


# %%
print("as it is ", some.texts[0])
for site in SOURCES:
    tokens = Swap(site).tokens(some[:1])[0]
    print(f"{site:9}", model.tokenizer.decode(tokens, skip_special_tokens=True))

# %% [markdown]
# ## 2 One exchange by hand
#
# Run the source, keep the residual stream at the last token before one layer, and put it into the run of the base
# prompt. The source differs in the order of the names alone, so both sentences have the same answer. What comes out if
# the slot was moved? And what if the name was?

# %%
layer = int(0.7 * model.cfg.n_layers)
hook = f"blocks.{layer}.hook_resid_pre"
with torch.no_grad():
    _, there = model.run_with_cache(Swap("IO+S1").tokens(some[:1]))


def put(activation, hook):
    activation[:, -1] = there[hook.name][:, -1]
    return activation


with torch.no_grad():
    logits = model.run_with_hooks(some[:1].clean_tokens, fwd_hooks=[(hook, put)])[0, -1]
[model.tokenizer.decode(token) for token in logits.topk(3).indices]

# %% [markdown]
# ## 3 Where is the slot, where is the name?
#
# On SmolLM2 the answer, Gary, becomes Joseph: what was moved is the slot.
#
# Now for eight prompts, by layer, at S2 and at the last token, with both sources that tell. The **interchange
# accuracy** is the share of prompts in which the likeliest token is what the causal model says. The second measure is
# finer: KL from the causal model, -log P of the answer that it says; low is good.
#
# A place that holds nothing leaves the answer as it was, which is right for one of the two sources. So it has an accuracy
# of about a half, not 0, and the same KL for both guesses: where two lines of the figure lie on each other, nothing was
# found. Guess before you look: what does the last token hold in the middle of the model's layers?

# %%
pl.predict("24-1", "the name")  # or the slot

# %%
n = model.cfg.n_layers
options = {"layers": range(2 * n // 5, n, max(1, n // 10)), "progress": False}
options |= {"source": [Swap("IO+S1"), Swap("IO+S1+S2")], "positions": ["S2", "last"]}
held = {v: pl.interchange(model, some, causal, v, **options) for v, causal in MODELS.items()}
pl.plot.lines(held, "causal_kl")

# %%
table = {v: fx.effect.sel(metric="accuracy").to_pandas().T for v, fx in held.items()}
pd.concat(table).round(2)

# %% [markdown]
# On SmolLM2 name and slot change places on the way. Up to layer 15 S2 holds a name, as it must: the token itself. Before
# layer 18 it holds the slot. Three layers later the slot is at the last token. From layer 24 the name is there: by now it
# is the answer, which the Name Movers have brought. mini does the task without slots: from S2 to the end it carries the
# name.

# %%
last = {v: fx.effect.sel(metric="causal_kl", position="last") for v, fx in held.items()}
lead = last["name"] - last["slot"]
pl.claim(
    "24-1",
    lead.max() > 1,
    lead=float(lead.max()),
    layer=int(lead.idxmax()),
    accuracy=float(held["slot"].effect.sel(metric="accuracy", position="last").max()),
    prompts=len(some),
)

# %% [markdown]
# ## 4 Where the truth is known
#
# Is the method itself to be trusted? Ask it about a model whose mechanism was *trained in*: `known` was made by
# interchange interventions, so that in it heads 2.2 and 2.0 at S2 each hold a vote for the repeated slot (found by the token
# itself, and by what came after it), and head 3.1 at the last token the sum of the votes. Its causal model has the votes
# as variables. If they disagree, both names are equally likely.

# %%
known = pl.load_model("known")
few = pl.tasks.ioi(known, n=24)


def votes(words, **held):
    first, second, third, *_ = words.values()
    slot = 1 if third == first else 2
    both = {vote: held.get(vote, slot) for vote in ("dup", "ind")}
    answer = [name for s, name in ((1, second), (2, first)) if s in both.values()]
    return {**both, "answer": answer}


# %%
quiet = {"source": Swap("IO+S1"), "progress": False}
places = {
    "2.2 and 2.0 at S2": (votes, ["dup", "ind"], ["2.2", "2.0"], "S2"),
    "3.1 at the last token": (slots, "slot", ["3.1"], "last"),
    "4.3 at the last token": (slots, "slot", ["4.3"], "last"),
}
true = {
    place: pl.interchange(known, few, *asked, positions=at, **quiet)
    for place, (*asked, at) in places.items()
}
pd.DataFrame({name: fx.effect.to_series().round(3) for name, fx in true.items()})

# %%
right = [fx.effect.sel(metric="accuracy").item() for fx in true.values()]
at = {"accuracy": min(right[:2]), "elsewhere": right[2], "prompts": len(few)}
pl.claim("24-2", at["accuracy"] >= 0.98, on="known", **at)

# %% [markdown]
# 4.3 is a Name Mover: it holds a name, and the slot no more. So far, so good. Now one vote alone, `dup`, in each head at
# S2. With the other vote at its base value the causal model is undecided between the two names. Two heads should be
# right, 2.2 and, since a vote looks like any other, 2.0. Guess for the others: how often do they seem right?

# %%
alone = pl.interchange(known, few, votes, "dup", "head", positions="S2", **quiet)
pl.plot.heatmap(alone, "accuracy")

# %%
pl.plot.heatmap(alone, "causal_kl")

# %% [markdown]
# All of them, always: the answer that was there anyway is one of the two. **Accuracy counts a tie as right** and passes
# a head that does nothing. KL, where low is good, asks for both names at once and finds the two, the pale cells. That
# they look alike is the method's own limit: variables that do the same to the answer cannot be told apart by the
# answer.
#
# ## 5 A direction in place of a place
#
# A residual stream of hundreds of dimensions holds many things at once, and the exchange of all of them brings along
# what was not meant. Distributed alignment search (DAS) exchanges a subspace: the base activation h becomes
# h + (h_source - h) B Bᵀ, where B's columns are a few directions at right angles, *trained* so that the answer becomes
# what the causal model says. The network itself stays as it is. `fit` calls TransformerLens' `fit_das`.
#
# It is fitted to eight prompts, each with all three sources, and judged on others. The place is the last token before
# the layer of section 2, the variable the one that does better there.

# %%
variable = min(MODELS, key=lambda v: last[v].sel(layer=layer, method="nearest").item())
swaps = [Swap(site) for site in SOURCES]
place = pl.Alignment(model, some, MODELS[variable], variable, layer, "last", source=swaps)
test = replace(place, pairs=others)
found = {rank: place.fit(rank, epochs=20, lr=0.03, batch_size=24) for rank in (1, 8)}

# %%
width = model.cfg.d_model
das = {f"DAS, rank {rank}": tl.SubspaceInterchange(each.basis) for rank, each in found.items()}
changes = {
    "nothing": tl.SubspaceInterchange(torch.zeros(width, 0)),
    "the whole place": tl.SubspaceInterchange(torch.eye(width)),
    **das,
    "as far, anywhere": tl.NormMatchedPlacebo(
        das["DAS, rank 8"], tl.random_basis(width, 8, seed=0)
    ),
}


# %%
def table_of(places, changes):
    rows = {(n, w): at.run(c) for n, c in changes.items() for w, at in places.items()}
    return pd.DataFrame({key: fx.effect.to_series() for key, fx in rows.items()}).T.unstack()


scores = table_of({"fitted": place, "others": test}, changes).loc[list(changes)]
scores.round(2)

# %%
kl = scores["causal_kl", "others"]
best = kl[list(das)].min()
pl.claim(
    "24-3",
    best < kl["the whole place"],
    variable=variable,
    **{name: float(value) for name, value in kl.items()},
)

# %% [markdown]
# On SmolLM2 a *single* direction of 576 holds the slot, better than the whole stream does. In mini eight directions are
# not enough for the name: there are two slots and 95 names. How many directions a variable needs is something that no
# patch could have told.
#
# The last row is the first placebo: moved as far, in a random subspace. What it reaches comes from being pushed.
#
# ## 6 Three ways to find what is not there
#
# **Answers without sense.** `arbitrary` tosses a coin for each source, first name or second, and calls that its
# variable. No network holds it. Let DAS look for it in `known`, at the last token before layer 4, where the slot is.


# %%
def arbitrary(words, **held):
    key = " ".join(words.values())
    label = held.get("label", tl.arbitrary_targets([key], 2, seed=0).item())
    return {"label": label, "answer": list(words.values())[label]}


coin = pl.Alignment(known, few[:8], arbitrary, "label", 4, "last", source=swaps)
fits = {rank: coin.fit(rank, epochs=60, lr=0.05, batch_size=24) for rank in (1, 32)}
tries = {f"rank {rank}": tl.SubspaceInterchange(fit.basis) for rank, fit in fits.items()}
tries = {"nothing": tl.SubspaceInterchange(torch.zeros(128, 0)), **tries}
tossed = table_of({"fitted": coin, "others": replace(coin, pairs=few[8:])}, tries).loc[list(tries)]
tossed.round(2)

# %%
reached = tossed["accuracy"].loc["rank 32"]
pl.claim("24-4", reached["fitted"] > reached["others"] + 0.05, on="known", **reached.round(2))

# %% [markdown]
# On the prompts that it was fitted to, it does what the coin says for more than half of them; on others for half. KL is fooled
# in another way: it falls on both, since a search that knows nothing makes the model less sure of either name. Hence the rule:
# other prompts, both measures, and a nonsense variable beside the real one.
#
# **A place through which nothing passes.** In `known`, nothing reads S2 after layer 3. The slot is still *there*, as a
# trace; exchanging the whole stream at S2 before layer 4 changes no answer. Guess: what can a single direction do?

# %%
dead = pl.Alignment(known, few[:8], slots, "slot", 4, "S2", source=swaps)
direction = tl.SubspaceInterchange(dead.fit(1, epochs=20, lr=0.05, batch_size=24).basis)
tries = {"the whole place": tl.SubspaceInterchange(torch.eye(128)), "DAS, rank 1": direction}
both = table_of({"fitted": dead, "others": replace(dead, pairs=few[8:])}, tries).loc[list(tries)]
both.round(2)

# %%
one, whole = (both["causal_kl", "others"][name] for name in ("DAS, rank 1", "the whole place"))
pl.claim("24-5", one < whole - 0.3, on="known", one_direction=one, whole=whole)

# %% [markdown]
# A part does what the whole cannot, here with the probability, and not yet with the likeliest name. That is Makelov et al.'s
# illusion: the direction leans half towards the trace, which
# nothing reads, and half towards a **dormant** one, which never varies by itself but would be read. In the exchange of
# the whole the two do not meet. Wu et al. replied that the same happens wherever a variable is spread out. Either way:
# *a subspace that does more than its whole place needs an explanation*, in section 5, too.
#
# **Weights without training.** Arora et al. found effects of DAS in untrained networks. Exercise for those who have ten
# minutes: `random_init_bridge` of TransformerLens makes one.
#
# ## Summary
#
# * An interchange asks *what* a place holds: it has to make the answer what a causal model says. Ask with sources for
#   which rival models disagree.
# * Report accuracy **and** KL, beside what no exchange gives. Accuracy passes ties; KL passes hedging.
# * DAS says in how many directions a variable sits. Judge it on other prompts, beside a nonsense variable, a push of the
#   same size, and the exchange of the whole place.
# * Variables that do the same to the answer cannot be told apart.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 Read the figure.** Before which layer (of those in the figure) does the last token come nearest to each causal
# model, by KL?

# %%
answer = {"slot": ..., "name": ...}  # two layers
pl.check("24.1", answer, held=held)

# %% [markdown]
# **2 Exchange a subspace.** Write a function of the base activations and the source's (both prompt × width) and a basis
# (width × rank, columns of length 1 at right angles) that returns the activations to go on with.

# %%
my_exchange = ...  # a function of here, there and basis
pl.check("24.2", my_exchange)

# %% [markdown]
# **3 A third guess.** In the last layers the last token may hold the **answer** itself, whatever it was computed from.
# Write this causal model, with the one variable `"answer"`. Guess its interchange accuracy at the last token before
# the last layer, where the source is quite another sentence, `some[[*range(1, len(some)), 0]]`. Then measure it with
# `pl.interchange`.

# %%
copied = ...  # a function of words and **held
answer = {"model": copied, "accuracy": ...}
pl.check("24.3", answer, model=model, pairs=some)

# %% [markdown]
# **To discuss.** Somebody shows you a direction in layer 15 that "is the truth": adding it makes a model say true
# things. Which of the controls above would you ask for first? Next: [25](25_known_circuit.ipynb), how a model with a
# known circuit is made.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 From the answer back to the name: the IOI circuit of SmolLM2
#
# **Time** 30 minutes, with the exercises 60 · **Works** [Wang et al., ICLR 2023](https://arxiv.org/abs/2211.00593), Sections 3 and 4; [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042); [Goldowsky-Dill et al., 2023](https://arxiv.org/abs/2304.05969) · **Before this** [3.1](03_1_ioi_circuit.ipynb), [4.2](04_2_negative_heads.ipynb)
#
# Activation patching names heads. It does not say who talks to whom: a head that is patched acts through everything behind
# it. The 26 heads of GPT-2 small that this collection quotes were found another way, by patching *paths*: what one head
# tells one reader, all other heads being held still. Here you do the same with SmolLM2, from the logits back to the name
# that occurs twice. As far as we know, nobody has published this circuit.
#
# At the end you can read a path effect, follow a circuit backwards step by step, and put three numbers under a drawing of
# it: is it enough (**faithfulness**), is it all (**completeness**), is each part needed (**minimality**)?

# %%
import patchlib as pl

model, pairs, S = pl.start("4_2_negative_heads")
pl.show_pairs(model, pairs, "ABC", n=1)

# %% [markdown]
# ## 1 Who writes the answer?
#
# Wang et al. go the other way round than the rest of this collection: they **noise**. The run is the clean one, and what a
# head sends is taken from **ABC**, a sentence with three other names. All other heads stay as they are, so that the change
# reaches the logits directly, or through MLPs, which answer to it. An effect is a share of the way from the clean logit
# difference to the corrupted one: positive for a head that helps.
#
# Beside ABC stands the swapped S2, which turns the sentence's meaning round. Guess before you look: will the strongest
# writer be a head that *copies the right name*?

# %%
pl.predict("13-2", "yes")

# %%
HOW = {"direction": "noise", "metrics": ["logit_diff"], "keep_prompts": True, "progress": False}
ABC, S2 = pl.STR("ABC"), pl.STR("S2")
writes = pl.Sweep(
    {
        "ABC": pl.path_patch(model, pairs, "head", "logits", corruption=ABC, **HOW),
        "S2": pl.path_patch(model, pairs, "head", "logits", corruption=S2, **HOW),
    }
)
pl.plot.intervals(writes)

# %%
writers, against = (
    writes.found("ABC", sign=sign) | writes.found("S2", sign=sign)
    for sign in ("positive", "negative")
)
pl.claim(
    "13-1",
    bool(writers and against),
    for_it={name: writes.found(name, sign="positive") for name in writes},
    against_it={name: writes.found(name, sign="negative") for name in writes},
)

# %% [markdown]
# Some write for the answer, some against it. What do they look at from the last token, and would they copy it? **Look for**
# the first row: where it looks, and in which of the last columns it has a number.

# %%
roles = pl.head_roles(model, pairs[:50])
roles.loc[[str(head) for head in writers | against]].round(2)

# %%
first = roles.loc[str(writers[0])]
pl.claim(
    "13-2",
    bool(first.IO > max(first.S1, first.S2)),
    strongest=writers[0],
    looks_at=dict(first[["IO", "S1", "S2"]]),
)

# %% [markdown]
# What would it make of the name at S2? The score of [4.2](04_2_negative_heads.ipynb), there: in which share of prompts its
# output puts that name among the five most likely, or among the five least likely tokens.

# %%
pl.copying_score(model, pairs[:50], writers[:1], at="S2").to_dataframe()

# %% [markdown]
# On SmolLM2 the strongest writer is head 23.3, and it hardly looks at the right name. It looks at S2 and writes *against*
# what it finds there: it takes the wrong name down instead of lifting the right one. Wang et al. found no such
# head in GPT-2 small. Heads 23.0, 23.1 and 23.7 of SmolLM2 are Name Movers as in GPT-2 small, with a smaller part.
#
# ABC and S2 do not give one list: 23.1, 23.2 and 23.7 of SmolLM2 pass the threshold with S2 alone. ABC takes both names away,
# S2 exchanges them, and these are two questions. So writers are here all heads that either of them finds.
#
# ## 2 What moves their queries?
#
# A Name Mover looks at two equal candidates and has to choose. Something must tell its **query** at the last token which
# one. So the receivers are now the queries of all writers, and the senders again every head before them.

# %%
into = [f"q{head}" for head in writers.by_layer]
options = {"corruption": ABC, "positions": "last"}
paths = {"queries": pl.path_patch(model, pairs, "head", into, **options, **HOW)}
steer = pl.Sweep(paths).found("queries", sign="positive") - writers - against
pl.plot.ranked(paths["queries"].mean("prompt", keep_attrs=True))

# %%
first = roles.loc[str((steer or writers)[0])]
pl.claim(
    "13-3",
    bool(first.S2 > max(first.IO, first.S1)),
    parts=steer,
    movers_of_queries=steer,
    looks_at=dict(first[["IO", "S1", "S2"]]),
)

# %% [markdown]
# These are the **S-Inhibition** heads: at the last token they look at S2 and pass on something that turns queries away from
# that name. On SmolLM2 they are 20.0 and 19.2, and hardly anything else stands out.
#
# And the heads that write *against* the answer: what moves the query of the one that looks most at the right name? **Look for** the sign. A head that
# makes it work harder lowers the logit difference by it.

# %%
names = [str(head) for head in against or writers]
into = f"q{roles.IO[names].idxmax()}"
paths["brakes"] = pl.path_patch(model, pairs, "head", into, **options, **HOW)
pl.strongest(paths["brakes"], n=4).round(3)

# %% [markdown]
# On SmolLM2 the writers themselves: 24.4 looks for the name that 23.3 and 23.0 have just made likely, and writes against it.
# McDougall et al. (2023) describe head 10.7 of GPT-2 small in the same words: copy suppression.
#
# ## 3 What do they read at S2?
#
# They move **values** from S2 to the last token. And a head that looks at S2 itself, as 23.3 of SmolLM2 does, needs a **key**
# there that says: this name has been here before. Who writes these two, at S2?

# %%
for name, into in {
    "values": [f"v{head}" for head in (steer or writers).by_layer],
    "keys": [f"k{head}" for head in writers.by_layer],
}.items():
    options = {"corruption": ABC, "positions": "S2"}
    paths[name] = pl.path_patch(model, pairs, "head", into, **options, **HOW)
read = pl.Sweep({name: paths[name] for name in ("values", "keys")})
pl.plot.intervals(read)

# %%
taken = writers | against | steer
notice = (read.found("values", sign="positive") | read.found("keys", sign="positive")) - taken
roles.loc[[str(head) for head in notice], ["S2 to S1", "S2 to S1+1", "role"]].round(2)

# %%
strongest = (notice or writers)[0]
looks = roles.loc[str(strongest), ["S2 to S1", "S2 to S1+1"]]
pl.claim("13-4", bool(looks.sum() > 0.5), parts=notice, strongest=strongest, looks_at=dict(looks))

# %% [markdown]
# Two ways to notice a repetition. A **Duplicate Token** head looks from S2 back at the same name (on SmolLM2 8.1). An
# **Induction** head (17.4) looks at the token *after* the first occurrence, which it can only find if that token knows
# what stood before it. Who tells it? The receivers are the keys of all these heads.

# %%
into = [f"k{head}" for head in (notice or writers).by_layer]
paths["back"] = pl.path_patch(model, pairs, "head", into, corruption=ABC, **HOW)
back = pl.Sweep(paths).found("back", sign="positive") - taken - notice
pl.strongest(paths["back"], n=4).round(3)

# %%
strongest = pl.strongest(paths["back"], n=1)["head"]
pattern = pl.attention_patterns(model, pairs[:50], strongest)[0]
before = float(pattern.diagonal(-1, 1, 2).mean())
pl.claim("13-5", before > 0.5, parts=back, senders=back, attention_to_the_token_before=before)

# %% [markdown]
# A **Previous Token** head, and on SmolLM2 one alone: 16.0. The trail ends where the sentence begins to repeat itself.
#
# ## 4 The circuit
#
# Five classes. For the drawing the heads that notice S2 are parted by where they look: at S1, or at the token after it. Each
# arrow is the sum of its senders' effects. **Look for** the two ways into the writers: through the S-Inhibition heads into
# the query, and past them into the key.

# %%
circuit = {
    "Previous Token": back,
    "Notice S2": notice,
    "S-Inhibition": steer,
    "Writers": writers,
    "Against": against,
}
same = roles["S2 to S1"] > roles["S2 to S1+1"]
duplicate = pl.Heads(head for head in notice if same[str(head)])
induction = notice - duplicate


# %%
def arrow(heads, fx):
    effect = fx.effect.sel(metric="logit_diff").mean("prompt")
    return float(sum(effect.sel(layer=layer, head=head) for layer, head in heads))


# %%
edges = {
    ("Previous Token", "Induction"): arrow(back, paths["back"]),
    ("Duplicate Token", "S-Inhibition"): arrow(duplicate, paths["values"]),
    ("Induction", "S-Inhibition"): arrow(induction, paths["values"]),
    ("Duplicate Token", "Writers"): arrow(duplicate, paths["keys"]),
    ("Induction", "Writers"): arrow(induction, paths["keys"]),
    ("S-Inhibition", "Writers"): arrow(steer, paths["queries"]),
    ("Writers", "Against"): arrow(writers, paths["brakes"]),
    ("Writers", "logits"): arrow(writers, writes["ABC"]),
    ("Against", "logits"): arrow(against, writes["ABC"]),
}

# %%
drawn = {"Previous Token": back, "Duplicate Token": duplicate, "Induction": induction}
drawn |= {name: circuit[name] for name in ("S-Inhibition", "Writers", "Against")}
at = dict(zip(drawn, ["S1+1", "S2", "S2", "END", "END", "END"], strict=True))
pl.plot.circuit(drawn, edges, at, about=writes["ABC"])

# %% [markdown]
# ## 5 Is it enough?
#
# A drawing is a hypothesis. Now every head *outside* it is replaced by its mean over ABC sentences of the same form, so that
# it says nothing about the names, and the model has to do with the rest. F is the logit difference, M the model, C the
# circuit. Guess: how much of F(M) is left when, as on SmolLM2, nine heads of ten say nothing?

# %%
pl.predict("13-6", 0.5)  # F(C) / F(M)

# %%
how = {"with_": pl.Mean(by="roles", site="ABC"), "progress": False}
faith = pl.faithfulness(model, pairs, circuit, **how).squeeze("metric", drop=True)
share = faith / faith.model
pl.claim(
    "13-6",
    bool(abs(share.gap) < 0.2),
    close=bool(abs(share.gap_low) < 0.2) != bool(abs(share.gap_high) < 0.2),
    left=float(share.circuit),
    heads=sum(map(len, circuit.values())),
)

# %%
faith.to_pandas().round(2)

# %% [markdown]
# `gap` is F(M) − F(C), which Wang et al. report. `faithfulness` takes the way from no head at all as its unit.
#
# ## 6 Is it all, and is each part needed?
#
# Take the same heads K away from the circuit and from the model. Where the model does better, it has a substitute that the
# drawing lacks; where it does worse, heads outside the drawing work against the answer. **Look for** the largest gap.

# %%
complete = pl.completeness(model, pairs, circuit, **how).squeeze("metric", drop=True)
complete[["model", "circuit", "gap", "low", "high"]].to_dataframe().round(2).drop(columns="removed")

# %% [markdown]
# On SmolLM2 the circuit alone does better than the model. And when it is taken out, the model does not become undecided: the
# heads that are left prefer the *wrong* name, by more than two logits. Something outside the circuit repeats the name that
# was seen twice, and the circuit has to overcome it. So it is enough for the task and not complete: a full account would
# hold these heads, too.
#
# Now one head at a time: how does F(C) change without it, and without it beside the rest of its class?

# %%
needed = pl.minimality(model, pairs, circuit, **how).squeeze("metric", drop=True)
table = needed.change.to_pandas()
table.sort_values("nothing").round(2)

# %%
most = needed.share.max("without").to_series().sort_values()
pl.claim("13-7", bool((most >= 0.03).all()), least=dict(most[:3]))

# %% [markdown]
# On SmolLM2 five heads each carry more than a quarter of F(M) in this circuit: 16.0, which tells 17.4; 20.0 and 23.3, which
# both read what 17.4 leaves at S2; and 29.1. The Name Movers stand in for each other: one alone can go. One of the heads at
# S2, 2.4, changes little either way, and would be left out by Wang et al.'s third criterion.
#
# ## What is missing
#
# * **MLPs** are never ablated, here as in Wang et al., and no path from one is drawn: who tells 23.3 of SmolLM2 the name that
#   it reads at S2 is left open.
# * **Positions.** Wang et al. keep a head at one token alone; here it is kept at all of them. Other ablations give other
#   numbers (Miller et al., 2024).
# * **Heads against the answer** outside the circuit, and what head 29.1 does: it looks at no name, but at the last token itself.
# * **The same sentences** found the circuit, gave the means that others are replaced by, and tested it. Other sentences, of
#   other templates, would be the fairer test.
# * **A choice.** Writers are what ABC or S2 finds; by ABC alone, as in Wang et al., three Name Movers of SmolLM2 would be out.
#   And a greedy search for the set K would find larger gaps than classes and ten random sets do.
# * **The rule.** A class is what lies beyond two standard deviations of a map. There is no null distribution behind it,
#   and a head at the threshold may be in or out with other sentences.
# * **Grouped keys and values.** Three heads of SmolLM2 share a key and a value. A path into the key of one is a path into all
#   three.
# * **One task, one wording.** Eighteen templates of one kind; no second model of this family.
# * Names of classes are those of GPT-2 small. A head that acts like one of a class need not do its work.
#
# ## Summary
#
# * A path effect says what one head tells one reader. Follow it backwards: logits, queries, values, keys.
# * Noising by ABC and by a swapped S2 ask different questions, and rank the same writers differently.
# * A circuit is a claim with numbers: faithfulness, completeness, minimality, and the ablation they were measured with.

# %%
pl.claims()

# %% [markdown]
# ## Exercises
#
# **1 How few write?** Under ABC, sum the direct effects of all heads that help (those with a positive mean). Which share of
# this sum do the three strongest hold? Use NumPy on `writes["ABC"].effect`.

# %%
answer = ...  # a number from 0 to 1
pl.check("13.1", answer, writes=writes)

# %% [markdown]
# **2 A path by hand.** With MLPs frozen, the direct effect of a head needs no patched run: its change of z times W_O is added
# to the last residual stream, which the final norm and the unembedding then read. Write that as a function of layer and
# head for `pairs[:20]` and ABC. It returns the mean loss of logit difference as a share of the mean way, from clean to ABC.

# %%
my_direct = ...  # a function of layer and head
pl.check("13.2", my_direct, model=model, pairs=pairs[:20])

# %% [markdown]
# **3 Predict, then test.** Which head of the circuit would you take out to make its logit difference *larger*? Predict from
# section 1; then name the one that raises F(C) most when it is removed alone.

# %%
answer = ...  # a head, such as "4.6"
pl.check("13.3", answer, needed=needed)

# %% [markdown]
# **To discuss.** A circuit with a faithfulness above 1 does the task better than the whole model. Is that a better circuit?
# Next: [14](14_causal_mediation.ipynb), the same question in the words of causal mediation.

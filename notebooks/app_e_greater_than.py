# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Appendix E: Greater-than, and how noisy the noise is
#
# | | |
# |---|---|
# | **You will learn** | how to patch when the right answer is a *set* of tokens; why the sum of logits over sets of unequal size is a delicate metric; how to measure whether Gaussian noise gives the same heads twice |
# | **Time** | 25 minutes to read, less than a minute to run |
# | **Paper** | [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042): Appendix E (Table 3, Figures 9 and 10). The task is from [Hanna et al. (2023)](https://arxiv.org/abs/2305.00586) |
# | **You need** | [3.1 The IOI circuit](03_1_ioi_circuit.ipynb) |
# | **Another model** | set the environment variable `PATCHLIB_MODEL=gpt2` before you start Jupyter, and run all cells again |
#
# A head is written `layer.head`. Layers and heads count from zero.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from IPython.display import Markdown, display

import patchlib as pl
from patchlib.prompts.pairs import NOTHING
from patchlib.sweep.runs import run_with_edits, two_runs

model = pl.load_model()
pl.notebooks.versions(model, "app_e_greater_than")

# %% [markdown]
# ## 1 The task
#
# *"The war lasted from the year 1732 to the year 17"* should go on with a year after 32. The first
# two digits are called **XX**, the second two **YY**. There is not one right answer but a set: r
# holds every year from YY + 1 to 99, and r′ every year from 00 to YY − 1.
#
# **Setting**, as in Appendix E: the corruption is at YY. STR replaces YY by **01**; GN adds noise to
# the embedding of YY. The output `z` of one head is restored at all positions, every head in turn.
# The paper takes 300 prompts; the number of draws of the noise it does not state.

# %%
S = pl.experiments.settings("app_e_greater_than", model)
pairs = pl.tasks.greater_than(model, n=S["n"], prepend_bos=S["prepend_bos"])
DRAWS = max(2, S["draws"])
print(f"{len(pairs)} prompts; {DRAWS} draws of the noise for each")
for prompt in pairs.prompts[:3]:
    print(f"{prompt.text} ...   |r| = {len(prompt.answers)}, |r'| = {len(prompt.wrong_answers)}")

# %% [markdown]
# ## 2 Three metrics on sets
#
# * **Probability**: the sum of P over all years in r.
# * **Logit difference**: the *sum* of the logits of r minus the sum of the logits of r′, then
#   normalised by the distance between the clean and the corrupted run, as always.
# * **KL divergence**: as for any other task. It looks at the whole vocabulary and needs no sets.
#
# Before any patching, look at what the model says. `P_YEAR` holds the probability of each of the
# hundred years 00 to 99, for every prompt and every run.

# %%
YEARS = [
    model.tokenizer(f"{year:02d}", add_special_tokens=False)["input_ids"][0] for year in range(100)
]
NOISE = pl.GN("YY", scale=S["scale"], draws=DRAWS)
CORRUPTIONS = {"STR": pl.STR("YY"), "GN": NOISE}


def last_logits(corruption=None, draw: int = 0) -> torch.Tensor:
    """Logits at the last position of every prompt: of the clean run, or of a corrupted one."""
    logits = torch.zeros(len(pairs), model.cfg.d_vocab)
    for index, group in pairs.by_length():
        runs = two_runs(model, group, corruption or pl.STR("YY"), draw)
        logits[index] = run_with_edits(model, runs[corruption is not None])[0].float().cpu()
    return logits


runs = {"clean": last_logits(), "STR": last_logits(CORRUPTIONS["STR"])}
runs |= {f"GN, draw {draw}": last_logits(NOISE, draw) for draw in range(DRAWS)}
P_YEAR = {
    name: logits.log_softmax(-1).exp()[:, YEARS].double().numpy() for name, logits in runs.items()
}
YY = np.array([len(prompt.wrong_answers) for prompt in pairs.prompts])

# %% [markdown]
# Hanna et al. measure the skill as the **probability difference**, P(years > YY) − P(years ≤ YY),
# and the **sharpness** of the step, P(YY + 1) − P(YY − 1). **Look for** how far each corruption
# brings the probability difference down, and whether it falls *below* zero.

# %%
after = np.arange(100) > YY[:, None]
before = np.arange(100) < YY[:, None]
at = np.arange(len(pairs))


def skill(name: str) -> dict[str, float]:
    """Sums of the probabilities of years in one run, as means over prompts."""
    p = P_YEAR[name]
    return {
        "P(> YY)": (p * after).sum(1).mean(),
        "P(YY)": p[at, YY].mean(),
        "P(< YY)": (p * before).sum(1).mean(),
        "no year": (1 - p.sum(1)).mean(),
        "probability difference": ((p * after).sum(1) - (p * ~after).sum(1)).mean(),
        "sharpness": (p[at, YY + 1] - p[at, YY - 1]).mean(),
    }


skills = pd.DataFrame({name: skill(name) for name in runs}).T
pl.notebooks.show(skills.map("{:z.2f}".format).rename_axis("run").reset_index())

# %%
gn_rows = skills[skills.index.str.startswith("GN")]
difference = {
    "clean": skills.loc["clean", "probability difference"],
    "STR": skills.loc["STR", "probability difference"],
    "GN": gn_rows["probability difference"].mean(),
}
spread = gn_rows["probability difference"].std(ddof=1)
milder = max(("STR", "GN"), key=difference.get)
below = [name for name in ("STR", "GN") if difference[name] < 0]
display(
    Markdown(
        f"The probability difference is {difference['clean']:.2f} on clean prompts, "
        f"{difference['STR']:z.2f} under STR and {difference['GN']:z.2f} under GN (mean of "
        f"{DRAWS} draws; standard deviation over draws {spread:.3f}). {milder} is the milder "
        f"corruption here; {' and '.join(below) or 'neither'} falls below zero. The sharpness on "
        f"clean prompts is {skills.loc['clean', 'sharpness']:z.3f}. For GPT-2 small, Hanna et al. "
        f"report a probability difference of {pl.paper.value('skills')['greater_than']['prob_diff']:.3f} "
        "on clean prompts."
    )
)

# %%
# claim: pl.baselines, which pl.patch is built on, gives the same probabilities of r and r'
# (on the first prompts)
some = slice(20)
for name, corruption in CORRUPTIONS.items():
    measured = pl.baselines(model, pairs[some], corruption, ["prob", "wrong_prob"])
    for values, run in ((measured.clean, "clean"), (measured.corrupted, name)):
        p = np.mean([P_YEAR[r][some] for r in P_YEAR if r.split(",")[0] == run], axis=0)
        for metric, years in {"prob": after, "wrong_prob": before}.items():
            by_hand = (p * years[some]).sum(1)
            assert abs(values.sel(metric=metric).values - by_hand).max() < 1e-5

# %% [markdown]
# ## 3 The step, year by year
#
# Left, the prompt whose YY is in the middle of the set; right, all prompts laid over each other so
# that YY is at 0, each distance averaged over the prompts that have such a year. The band around GN
# is the standard deviation over draws. **Look for** the step at YY in the clean run, and for where
# each corruption puts the probability instead.

# %%
middle = int(np.argsort(YY, kind="stable")[len(YY) // 2])
REACH = 30
offsets = np.arange(-REACH, REACH + 1)
year = YY[:, None] + offsets
inside = (year >= 0) & (year < 100)


def around(p: np.ndarray) -> np.ndarray:
    """P(YY + d), averaged over the prompts where YY + d is a year."""
    aligned = np.where(inside, np.take_along_axis(p, year.clip(0, 99), 1), 0)
    return aligned.sum(0) / inside.sum(0).clip(1)


COLOURS = {"clean": "#000000", "STR": "#0072B2", "GN": "#D55E00"}
panels = {
    "one": {name: p[middle] for name, p in P_YEAR.items()},
    "all": {name: around(p) for name, p in P_YEAR.items()},
}
with plt.rc_context({"font.size": 8, "pdf.fonttype": 42}):
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.7), layout="constrained")
    for panel, x, curves in zip(axes, (np.arange(100), offsets), panels.values(), strict=True):
        draws = np.stack([curve for name, curve in curves.items() if name.startswith("GN")])
        mean, sd = draws.mean(0), draws.std(0, ddof=1)
        panel.fill_between(x, mean - sd, mean + sd, color=COLOURS["GN"], alpha=0.25, linewidth=0)
        for name, curve in {**{n: curves[n] for n in ("clean", "STR")}, "GN": mean}.items():
            panel.plot(x, curve, color=COLOURS[name], linewidth=1.1, label=name)
        panel.set_ylabel("probability")
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].axvline(YY[middle], color="0.5", linestyle="--", linewidth=0.8)
    axes[1].axvline(0, color="0.5", linestyle="--", linewidth=0.8)
    axes[0].set_xlabel("year (two digits)")
    axes[1].set_xlabel("year − YY")
    axes[0].set_title(f"one prompt, YY = {YY[middle]:02d}")
    axes[1].set_title(f"mean over {len(pairs)} prompts")
    axes[0].legend(frameon=False, fontsize=7)
plt.close(figure)
pl.notebooks.keep("app_e_years", figure)
figure

# %%
just_after, just_before = slice(REACH + 1, REACH + 6), slice(REACH - 5, REACH)
near, near_before = (
    {
        name: float(np.mean([around(p)[part].sum() for p in group]))
        for name, group in {
            "clean": [P_YEAR["clean"]],
            "STR": [P_YEAR["STR"]],
            "GN": [p for name, p in P_YEAR.items() if name.startswith("GN")],
        }.items()
    }
    for part in (just_after, just_before)
)
display(
    Markdown(
        f"The five years just after YY hold {near['clean']:.2f} of the probability in the clean run, "
        f"{near['STR']:.2f} under STR and {near['GN']:.2f} under GN; the five years just before it "
        f"{near_before['clean']:.2f}, {near_before['STR']:.2f} and {near_before['GN']:.2f}. The corrupted prompt of STR "
        "asks for any year after 01, and every year in r is one. So here, unlike in IOI, the "
        "corrupted prompt has *no answer that contradicts r*: a model that obeys it perfectly still "
        f"gives r part of the probability (here {skills.loc['STR', 'P(> YY)']:.2f}). The paper's "
        "words *symmetric replacement* fit less well than elsewhere."
    )
)

# %% [markdown]
# ## 4 All heads, both corruptions
#
# One sweep each. We keep the value of every prompt, and for GN of every draw, because sections 6
# and 7 take the same runs apart. Beside the three metrics of the paper there is a fourth,
# `mean_diff`, which section 6 will need: the *mean* logit of r minus the *mean* logit of r′.


# %%
def mean_difference(logits, r, r_wrong, source):
    """The mean logit of r minus the mean logit of r'."""

    def mean(years):
        known = (years != NOTHING).to(logits.device)
        index = years.clamp(min=0).to(logits.device)
        values = logits.gather(-1, index.expand(*logits.shape[:-1], index.shape[-1]))
        return (values * known).sum(-1) / known.sum(-1)

    return mean(r) - mean(r_wrong)


pl.metrics.METRICS["mean_diff"] = pl.metrics.Metric(
    "mean_diff", "difference of mean logits (normalised)", mean_difference, normalized=True
)

METRICS = ["prob", "logit_diff", "kl"]
LABELS = {"prob": "probability", "logit_diff": "logit difference", "kl": "KL divergence"}
everything = {
    name: pl.patch(
        model,
        pairs,
        corruption=corruption,
        metrics=[*METRICS, "mean_diff"],
        keep_prompts=True,
        keep_draws=True,
        progress=False,
    )
    for name, corruption in CORRUPTIONS.items()
}
fx = {name: result.mean(("prompt", "draw"), keep_attrs=True) for name, result in everything.items()}
for name, result in fx.items():
    pl.notebooks.keep(f"app_e_heads_{name}", result)

# %% [markdown]
# The maps of Figures 9 (GN, here the mean over draws) and 10 (STR). Blue: the restored head brings
# the clean behaviour back. A frame marks a **detected** head, beyond mean ± 2 standard deviations of
# the heads in its map. **Look for** (1) heads that are framed in every map, (2) heads that only one
# corruption frames, (3) framed **red cells** (negative heads), of which the paper's GN row has several
# and its STR row hardly any.

# %%
figure = pl.plot.heatmaps(fx, METRICS)
pl.notebooks.keep("app_e_heads", figure)
figure

# %% [markdown]
# ## 5 Table 3: the detected heads
#
# The list of the paper is for GPT-2 small. Numbers of heads mean nothing across models; what
# can be compared is how *many* each setting finds, of which *sign*, and how the lists *differ*.

# %%
beside_paper = pl.paper.compare(fx, "table3")
pl.notebooks.show(beside_paper)

# %%
detected = {name: pl.detect(result) for name, result in fx.items()}


def heads_in(name: str, metric: str) -> set[str]:
    """The heads that one corruption and metric detect, with their sign."""
    rows = detected[name][detected[name].metric == metric]
    return {
        f"{'+−'[row.sign == 'negative']}{head}" for row in rows.itertuples() for head in row.heads
    }


def listed(heads) -> str:
    """Heads as text, by layer."""
    by_layer = sorted(heads, key=lambda head: [int(part) for part in head.lstrip("+−").split(".")])
    return ", ".join(by_layer) or "none"


paper_table = {
    (row["corruption"], row["metric"]): {f"+{head}" for head in row["positive"]}
    | {f"−{head}" for head in row["negative"]}
    for row in pl.paper.value("table3")
}
overlaps = pd.DataFrame(
    [
        {
            "metric": LABELS[metric],
            "both": listed(heads_in("STR", metric) & heads_in("GN", metric)),
            "only STR": listed(heads_in("STR", metric) - heads_in("GN", metric)),
            "only GN": listed(heads_in("GN", metric) - heads_in("STR", metric)),
            "paper: both / only STR / only GN": " / ".join(
                str(len(some))
                for some in (
                    paper_table["STR", metric] & paper_table["GN", metric],
                    paper_table["STR", metric] - paper_table["GN", metric],
                    paper_table["GN", metric] - paper_table["STR", metric],
                )
            ),
        }
        for metric in METRICS
    ]
)
pl.notebooks.show(overlaps)
number = {(name, metric): len(heads_in(name, metric)) for name in CORRUPTIONS for metric in METRICS}
more = [LABELS[m] for m in METRICS if number["GN", m] > number["STR", m]]
lists = {(name, metric): heads_in(name, metric) for name in CORRUPTIONS for metric in METRICS}
red = {
    name: sum(head.startswith("−") for metric in METRICS for head in lists[name, metric])
    for name in CORRUPTIONS
}
display(
    Markdown(
        "In the paper GN detects more heads than STR by every metric ("
        + ", ".join(
            f"{len(paper_table['GN', m])} against {len(paper_table['STR', m])} by {LABELS[m]}"
            for m in METRICS
        )
        + "), some with a negative sign. Its lists of GN by probability and by KL divergence have the "
        "same seven positive heads; the list by logit difference shares two of them (7.10, 9.1) and "
        "has 6.1 as negative (Table 3). This model: "
        + ", ".join(f"{number['GN', m]} against {number['STR', m]} by {LABELS[m]}" for m in METRICS)
        + "; GN detects more by "
        + (", ".join(more) or "none of them")
        + f". Framed in all six maps: **{listed(set.intersection(*lists.values()))}**. Framed red cells, "
        f"over the three metrics: {red['STR'] or 'none'} under STR, {red['GN'] or 'none'} under GN (paper: "
        + ", ".join(
            str(sum(h.startswith("−") for m in METRICS for h in paper_table[name, m]))
            + f" under {name}"
            for name in CORRUPTIONS
        )
        + ")."
    )
)

# %%
# claim: the frames follow the rule, worked out here with NumPy alone
for name in CORRUPTIONS:
    for metric in METRICS:
        values = fx[name].effect.sel(metric=metric).values
        z = (values - values.mean()) / values.std()
        by_hand = {
            f"{'+' if z[tuple(h)] > 0 else '−'}{h[0]}.{h[1]}"
            for h in np.argwhere(abs(z) > 2).tolist()
        }
        assert by_hand == heads_in(name, metric)

# %% [markdown]
# ## 6 A logit difference over sets of unequal size
#
# Appendix E sums logits. The sets have |r| = 99 − YY and |r′| = YY members. Add one constant c to
# *all* logits: the probabilities do not change, so for the model nothing has changed. But
#
# $$\mathrm{LD} \;\to\; \sum_{y \in r} (\ell_y + c) - \sum_{y \in r'} (\ell_y + c)
# \;=\; \mathrm{LD} + (|r| - |r'|)\,c \;=\; \mathrm{LD} + (99 - 2\,\mathrm{YY})\,c .$$
#
# A single r and a single r′ cancel c, as do *means* over sets. The sum does not, and the more
# unequal the sets, the less.

# %%
# claim: a constant added to all logits moves the sum by (|r| - |r'|) c, and nothing else
r, r_wrong, logits = pairs.answers, pairs.wrong_answers, runs["clean"]
sizes = torch.tensor([len(p.answers) - len(p.wrong_answers) for p in pairs.prompts])
assert torch.equal(sizes, torch.tensor(99 - 2 * YY))
c = 0.5
for name, moved in {"logit_diff": sizes * c, "mean_diff": 0, "prob": 0, "kl": 0}.items():
    value = pl.metrics.METRICS[name].value
    change = value(logits + c, r, r_wrong, logits) - value(logits, r, r_wrong, logits)
    assert (change - moved).abs().max() < 1e-2

# %% [markdown]
# Does it matter in practice? Only if a patch moves the mean of all logits, and if the sizes do not
# average out over prompts. Here is the sum beside a version that subtracts from each run its mean
# logit over the vocabulary first, which makes any constant disappear. **Look for** the last column:
# the part of the distance between clean and corrupted run that is due to the constant alone.

# %%
gap_rows = []
for name in ("STR", *(f"GN, draw {draw}" for draw in range(DRAWS))):
    level = (runs["clean"].mean(-1) - runs[name].mean(-1)).double()
    ld = {run: pl.metrics.logit_difference(runs[run], r, r_wrong, runs[run]) for run in runs}
    gap = (ld["clean"] - ld[name]).double().mean().item()
    constant = (sizes * level).mean().item()
    gap_rows.append(
        {
            "run": name,
            "LD clean − corrupted": gap,
            "without the constant": gap - constant,
            "due to the constant": constant,
            "share (%)": 100 * constant / gap,
        }
    )
gaps = pd.DataFrame(gap_rows).set_index("run")
pl.notebooks.show(gaps.map("{:z.1f}".format).reset_index())
display(
    Markdown(
        f"Over these prompts |r| − |r′| is {sizes.double().mean():.1f} on average and reaches from "
        f"{sizes.min().item()} to {sizes.max().item()}. The share of the constant in the distance is "
        f"{gaps.loc['STR', 'share (%)']:z.1f} % under STR and "
        f"{gaps['share (%)'].iloc[1:].mean():z.1f} % under GN (mean over draws)"
        + (
            "; a negative share hides part of what happens between the years"
            if gaps["share (%)"].min() < 0
            else ""
        )
        + ". This share belongs to no year in particular: it would be there even if the order of "
        "the years were left as it is."
    )
)

# %% [markdown]
# Head by head: the effect by the sum, as in the paper, against the effect by the mean. Both are
# normalised, so 1 is full recovery in either. Heads off the diagonal owe their effect, in part, to
# the choice between sum and mean. **Look for** heads that one of the two detects alone (orange).


# %%
def marks(effect: xr.DataArray) -> xr.DataArray:
    """+1 and −1 for heads that are detected as positive and negative, 0 for all others."""
    cells = ("layer", "head")
    z = (effect - effect.mean(cells)) / effect.std(cells)
    return xr.where(abs(z) > 2, np.sign(z), 0)


with plt.rc_context({"font.size": 8, "pdf.fonttype": 42}):
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.1), layout="constrained")
    for panel, name in zip(axes, CORRUPTIONS, strict=True):
        x, y = (fx[name].effect.sel(metric=metric) for metric in ("logit_diff", "mean_diff"))
        kind = {
            "both": (marks(x) == marks(y)) & (marks(x) != 0),
            "one only": marks(x) != marks(y),
            "neither": (marks(x) == 0) & (marks(y) == 0),
        }
        limits = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
        panel.plot(limits, limits, color="0.6", linewidth=0.8, linestyle="--")
        for (label, which), colour, marker in zip(
            kind.items(), ("#0072B2", "#D55E00", "0.6"), ("s", "D", "o"), strict=True
        ):
            panel.plot(
                x.values[which.values],
                y.values[which.values],
                marker,
                color=colour,
                markersize=3 if label == "neither" else 4.5,
                label=f"detected by {label}",
            )
        named = np.argwhere(((marks(x) != 0) | (marks(y) != 0)).values)
        step = 0.055 * (limits[1] - limits[0])
        beside = np.inf
        # From top to bottom, each label below the one before.
        for layer, head in sorted(named, key=lambda cell: -y.values[tuple(cell)]):
            point = x.values[layer, head], y.values[layer, head]
            beside = min(point[1] - step / 2, beside - step)
            panel.annotate(
                f"{layer}.{head}",
                point,
                xytext=(point[0] + step, beside),
                fontsize=7,
                va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.5},
            )
        panel.locator_params(nbins=5)
        panel.set_title(name)
        panel.set_xlabel("effect by sums of logits (normalised)")
        panel.set_ylabel("effect by means of logits (normalised)")
        panel.margins(0.12)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=7)
plt.close(figure)
pl.notebooks.keep("app_e_sum_or_mean", figure)
figure

# %%
sentences = []
for name in CORRUPTIONS:
    by = {
        metric: {
            f"{layer}.{head}"
            for layer, head in np.argwhere(
                marks(fx[name].effect.sel(metric=metric)).values != 0
            ).tolist()
        }
        for metric in ("logit_diff", "mean_diff")
    }
    apart = by["logit_diff"] ^ by["mean_diff"]
    largest = float(
        abs(
            fx[name].effect.sel(metric="logit_diff") - fx[name].effect.sel(metric="mean_diff")
        ).max()
    )
    sentences.append(
        f"Under {name}, sum and mean detect "
        + (f"different heads ({listed(apart)} by one only)" if apart else "the same heads")
        + f"; the largest difference between the two effects of a head is {largest:.2f}."
    )
display(
    Markdown(
        " ".join(sentences)
        + " The sum also weighs prompts: it has more terms after small YY on one side and after "
        "large YY on the other. Whoever sums logits should say so, and should report KL, which "
        "needs no sets."
    )
)

# %% [markdown]
# ## 7 How noisy is GN?
#
# Two experiments that differ only in the seed of the noise should find the same heads. The paper's
# list for GN is long, has negative heads that STR does not show, and is another one by logit
# difference; the paper does not say how many draws it rests on. So we measure what one draw is worth.
#
# First the maps of single draws beside each other, on the first ten prompts alone, where one draw
# has to bear more. **Look for** frames that change from row to row: the prompts are the same in all
# rows, only the noise is not. (Each map has its own scale.)

# %%
FEW = 10
few_prompts = everything["GN"].sel(metric=METRICS).isel(prompt=slice(FEW))
shown = {
    f"draw {draw}": few_prompts.mean("prompt", keep_attrs=True).isel(draw=draw)
    for draw in range(min(3, DRAWS))
}
figure = pl.plot.heatmaps(shown, METRICS)
pl.notebooks.keep("app_e_draws", figure)
figure

# %%
in_draw = marks(few_prompts.effect.mean("prompt")) != 0
times = in_draw.sum("draw")
lines = []
for metric in METRICS:
    some = times.sel(metric=metric).values
    always, seldom = (some == DRAWS), (some > 0) & (some < DRAWS)
    names = [
        listed(f"{layer}.{head}" for layer, head in np.argwhere(which).tolist())
        for which in (always, seldom)
    ]
    lines.append(f"* **{LABELS[metric]}**: in all {DRAWS} draws {names[0]}; in some {names[1]}.")
display(Markdown(f"Detected with {FEW} prompts:\n\n" + "\n".join(lines)))

# %% [markdown]
# Now all draws in numbers, on all prompts. Two lists of heads agree by **Jaccard's index**: the heads
# (with their sign) in both, divided by the heads in either; 1 is the same list. For comparison two
# disjoint halves of the prompts, under GN with one draw and under STR, which has no noise. A single
# split into halves would be a matter of chance, so these are means over 400 random splits.


# %%
def mean_jaccard(effect: xr.DataArray, dim: str) -> xr.DataArray:
    """The mean index over all pairs along a dimension; 1 where a pair detects nothing at all."""
    cells = ("layer", "head")
    found = marks(effect)
    one, two = np.triu_indices(found.sizes[dim], 1)
    one, two = (found.isel({dim: xr.DataArray(which, dims="pair")}) for which in (one, two))
    both = ((one == two) & (one != 0)).sum(cells)
    either = ((one != 0) | (two != 0)).sum(cells)
    return xr.where(either > 0, both / either.clip(1), 1.0).mean("pair")


SPLITS = 400


def two_sets(name: str, size: int) -> xr.DataArray:
    """Mean effects over two disjoint sets of prompts of one size, for each of SPLITS random splits."""
    rng = np.random.default_rng(0)
    weights = np.zeros((SPLITS, 2, len(pairs)))
    for one, two in weights:
        order = rng.permutation(len(pairs))
        one[order[:size]] = two[order[size : 2 * size]] = 1 / size
    effect = everything[name].effect.sel(metric=METRICS)
    return xr.dot(effect, xr.DataArray(weights, dims=("split", "set", "prompt")), dim="prompt")


half = len(pairs) // 2
over_draws = mean_jaccard(everything["GN"].effect.sel(metric=METRICS).mean("prompt"), "draw")
halves = {
    name: mean_jaccard(two_sets(name, half), "set").mean(("draw", "split")) for name in CORRUPTIONS
}
counts = (marks(everything["GN"].effect.mean("prompt")) != 0).sum(("layer", "head"))
agreement = pd.DataFrame(
    [
        {
            "metric": LABELS[metric],
            "heads, one draw": f"{int(counts.sel(metric=metric).min())} to "
            f"{int(counts.sel(metric=metric).max())}",
            "heads, mean of draws": number["GN", metric],
            "GN, two draws": f"{float(over_draws.sel(metric=metric)):.2f}",
            "GN, two halves": f"{float(halves['GN'].sel(metric=metric)):.2f}",
            "STR, two halves": f"{float(halves['STR'].sel(metric=metric)):.2f}",
        }
        for metric in METRICS
    ]
)
pl.notebooks.show(agreement)

# %%
# claim: marks() finds what pl.detect finds, draw by draw
by_draw = pl.detect(everything["GN"].mean("prompt", keep_attrs=True))
for (metric, draw), rows in by_draw[by_draw.metric.isin(METRICS)].groupby(["metric", "draw"]):
    found = marks(everything["GN"].effect.sel(metric=metric, draw=draw).mean("prompt"))
    for row in rows.itertuples():
        sign = 1 if row.sign == "positive" else -1
        assert {f"{a}.{b}" for a, b in np.argwhere(found.values == sign)} == {*row.heads}

# %% [markdown]
# A draw on many prompts is already an average over many noise vectors, since every prompt has its
# own. So agreement should grow with the number of prompts. Four curves, as means over metrics:
#
# * **GN, new noise**: the same prompts, two draws. What the noise alone does.
# * **GN, new prompts**: two disjoint sets of prompts, one draw.
# * **GN, new prompts, mean of draws**: two disjoint sets of prompts, all draws.
# * **STR, new prompts**: two disjoint sets of prompts, no noise.
#
# Each point is a mean over 400 random splits. **Look for** the number of prompts from which the curves
# are flat, and for two distances. Between the two curves of GN with new prompts lies the price of the
# noise: what averaging the draws gains. What is left between the mean of draws and STR is hardly
# noise: the two corruptions put other heads near the threshold.

# %%
sizes_tried = [size for size in (5, 10, 20, 30, 50, 100, 150) if size <= half]
sets = {(name, n): two_sets(name, n) for name in CORRUPTIONS for n in sizes_tried}
curves = {
    "GN, new noise": [mean_jaccard(sets["GN", n], "draw").mean("set") for n in sizes_tried],
    "GN, new prompts": [mean_jaccard(sets["GN", n], "set").mean("draw") for n in sizes_tried],
    "GN, new prompts, mean of draws": [
        mean_jaccard(sets["GN", n].mean("draw"), "set") for n in sizes_tried
    ],
    "STR, new prompts": [mean_jaccard(sets["STR", n], "set").mean("draw") for n in sizes_tried],
}
by_split = xr.concat(
    [xr.concat(rows, "n") for rows in curves.values()], "comparison"
).assign_coords(comparison=list(curves), n=sizes_tried)
stability = by_split.mean("split")
pl.notebooks.keep("app_e_stability", stability.rename("jaccard"))
with plt.rc_context({"font.size": 8, "pdf.fonttype": 42}):
    figure, panel = plt.subplots(figsize=(4.4, 2.8), layout="constrained")
    for name, colour, marker, line in (
        ("GN, new noise", "#E69F00", "^", ":"),
        ("GN, new prompts", "#D55E00", "s", "-"),
        ("GN, new prompts, mean of draws", "#CC79A7", "D", "--"),
        ("STR, new prompts", "#0072B2", "o", "-"),
    ):
        panel.plot(
            sizes_tried,
            stability.sel(comparison=name).mean("metric"),
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=4,
            label=name,
        )
    panel.set_ylim(0, 1.05)
    panel.set_xlabel("prompts per list of heads")
    panel.set_ylabel("agreement of two lists (Jaccard)")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="lower right")
plt.close(figure)
pl.notebooks.keep("app_e_stability", figure)
figure

# %%
few, many = sizes_tried[0], sizes_tried[-1]
at_few, at_many = (stability.sel(n=n).mean("metric") for n in (few, many))
price, left = (
    {
        n: float(at.sel(comparison=more_alike) - at.sel(comparison=less_alike))
        for n, at in ((few, at_few), (many, at_many))
    }
    for more_alike, less_alike in (
        ("GN, new prompts, mean of draws", "GN, new prompts"),
        ("STR, new prompts", "GN, new prompts, mean of draws"),
    )
)
chance = [
    float(by_split.sel(comparison=name, n=many).mean("metric").std("split", ddof=1))
    for name in ("GN, new prompts, mean of draws", "STR, new prompts")
]
flat: dict[int, list[str]] = {}
for name in curves:
    curve = stability.sel(comparison=name).mean("metric").values
    # The last point alone is flat in any case.
    start = next(i for i in range(len(curve)) if np.ptp(curve[i:]) < 0.05)
    flat.setdefault(sizes_tried[start] if start < len(curve) - 1 else 0, []).append(name)
display(
    Markdown(
        "\n".join(
            f"* **{name}**: {float(at_few.sel(comparison=name)):.2f} with {few} prompts, "
            f"{float(at_many.sel(comparison=name)):.2f} with {many}."
            for name in curves
        )
        + "\n\n"
        + (
            f"With {few} prompts a single draw of GN gives less stable lists than STR"
            + (
                f", and still with {many}. "
                if price[many] + left[many] > 0.02
                else f"; with {many} it no longer does. "
            )
            if price[few] + left[few] > 0
            else f"Even with {few} prompts GN's lists are as stable as STR's in this model. "
        )
        + "Flat, with all later values within 0.05 of each other, "
        + "; ".join(
            (f"from {start} prompts on: " if start else "nowhere yet: ")
            + (
                "all curves"
                if len(names) == len(curves)
                else " and ".join(f"*{name}*" for name in names)
            )
            for start, names in sorted(flat.items())
        )
        + f".\n\nThe price of the noise, which the mean of {DRAWS} draws saves: "
        + ", ".join(f"{price[n]:z.2f} with {n} prompts" for n in price)
        + ". From that mean to STR, which is hardly noise: "
        + ", ".join(f"{left[n]:z.2f} with {n} prompts" for n in left)
        + ". "
        + (
            f"With {many} prompts new noise alone still changes the list (first line), and yet "
            "averaging it away makes lists of new prompts no more alike: heads near the threshold "
            "change sides with the prompts, too. "
            if price[many] < 0.02 and float(at_many.sel(comparison="GN, new noise")) < 0.95
            else ""
        )
        + f"One split alone would not do: with {many} prompts the index has a standard deviation over "
        f"splits of {min(chance):.2f} to {max(chance):.2f} (GN, mean of draws, and STR)."
    )
)

# %% [markdown]
# The last view: variance. For one head, effects differ between prompts and, within a prompt,
# between draws. **Share of the noise** = mean over prompts of the variance over draws, divided by
# that plus the variance over prompts of the mean. **Look for** large shares: a head whose effect on
# a prompt is decided by the noise rather than by the prompt.

# %%
effect = everything["GN"].effect.sel(metric=METRICS)
within = effect.var("draw", ddof=1).mean("prompt")
# The variance of means over draws holds 1/draws of the variance within; that part is taken off.
between = (effect.mean("draw").var("prompt", ddof=1) - within / DRAWS).clip(0)
share = within / (within + between)
pl.notebooks.keep("app_e_noise_share", share.rename("share"))
strong = abs(fx["GN"].effect.sel(metric=METRICS)).stack(cell=("layer", "head"))
rows = []
for metric in METRICS:
    order = strong.sel(metric=metric).sortby(strong.sel(metric=metric), ascending=False).cell[:4]
    for layer, head in order.values:
        cell = {"metric": metric, "layer": layer, "head": head}
        rows.append(
            {
                "metric": LABELS[metric],
                "head": f"{layer}.{head}",
                "effect": f"{float(fx['GN'].effect.sel(cell)):+.3f}",
                "SD over prompts": f"{float(between.sel(cell)) ** 0.5:.3f}",
                "SD over draws, one prompt": f"{float(within.sel(cell)) ** 0.5:.3f}",
                "share of the noise": f"{float(share.sel(cell)):.2f}",
            }
        )
pl.notebooks.show(pd.DataFrame(rows))

# %%
typical = {metric: float(share.sel(metric=metric).median()) for metric in METRICS}
strongest = [float(row["share of the noise"]) for row in rows]
display(
    Markdown(
        "Over all heads the noise has, in the median, "
        + ", ".join(f"{100 * typical[m]:.0f} % of the variance of {LABELS[m]}" for m in METRICS)
        + f"; among the strong heads of the table {100 * min(strongest):.0f} to "
        f"{100 * max(strongest):.0f} %. With n prompts and one draw the noise adds a standard error "
        "of the fifth column divided by √n to a mean effect."
    )
)

# %% [markdown]
# ## Summary

# %%
points = [
    f"**Skill.** Probability difference {difference['clean']:.2f} clean, {difference['STR']:z.2f} "
    f"under STR, {difference['GN']:z.2f} under GN.",
    "**Detected heads** (STR / GN, mean over draws): "
    + ", ".join(f"{LABELS[m]} {number['STR', m]} / {number['GN', m]}" for m in METRICS)
    + ".",
    "**Sums of logits** depend on a constant that the model's output does not depend on; its share in "
    f"the distance is {gaps.loc['STR', 'share (%)']:z.1f} % here under STR.",
    f"**Noise.** Two draws on all {len(pairs)} prompts agree with a Jaccard index of "
    + ", ".join(f"{float(over_draws.sel(metric=m)):.2f} ({LABELS[m]})" for m in METRICS)
    + f"; with {few} prompts, of {float(at_few.sel(comparison='GN, new noise')):.2f} on average.",
]
display(
    Markdown(
        f"For **{model.cfg.model_name}** on {len(pairs)} prompts:\n\n"
        + "\n".join(f"{i}. {point}" for i, point in enumerate(points, 1))
    )
)

# %% [markdown]
# ## The paper beside this run
#
# The paper's column is for GPT-2 small. On another model the two columns need not agree, and a
# difference is a finding about the model, not an error.

# %%
quantities = [
    (
        "probability difference, clean (paper: Hanna et al.)",
        pl.paper.value("skills")["greater_than"]["prob_diff"],
        difference["clean"],
        "Appendix E",
    )
]
quantities += [
    (
        f"heads detected, {name}, {LABELS[metric]} (+ / −)",
        " / ".join(str(sum(h[0] == s for h in paper_table[name, metric])) for s in "+−"),
        " / ".join(str(sum(h[0] == s for h in heads_in(name, metric))) for s in "+−"),
        "Appendix E, Table 3",
    )
    for name in CORRUPTIONS
    for metric in METRICS
]
quantities += [
    (
        f"heads detected by both, {LABELS[metric]}",
        len(paper_table["STR", metric] & paper_table["GN", metric]),
        len(heads_in("STR", metric) & heads_in("GN", metric)),
        "Appendix E, Table 3",
    )
    for metric in METRICS
]
for name, figure_id in (("GN", "figure9"), ("STR", "figure10")):
    for metric, panel in pl.paper.value(figure_id)[name].items():
        largest = float(abs(fx[name].effect.sel(metric=metric)).max())
        quantities.append(
            (
                f"largest absolute effect, {name}, {LABELS[metric]}",
                f"{panel['range']:g}",
                largest,
                f"Figure {figure_id[6:]} (read off)",
            )
        )
pl.notebooks.show(pl.paper.table(quantities))

# The same numbers go into the collection's page of results.
is_papers = str(model.cfg.model_name).split("/")[-1] in ("gpt2", "gpt2-small")
for name, figure_id in (("GN", "figure9"), ("STR", "figure10")):
    record = {}
    for metric, panel in pl.paper.value(figure_id)[name].items():
        effect = fx[name].effect.sel(metric=metric)
        record[metric] = {"range": float(abs(effect).max())}
        if is_papers and "heads" in panel:
            record[metric]["heads"] = {
                head: float(
                    effect.sel(dict(zip(("layer", "head"), map(int, head.split(".")), strict=True)))
                )
                for head in panel["heads"]
            }
    pl.paper.record(
        figure_id,
        {name: record},
        model=model.cfg.model_name,
        why="" if is_papers else "The heads are those of GPT-2 small.",
    )

# %% [markdown]
# ## Exercises
#
# **1 (easy). A weaker noise.** Halve the scale of the noise. Which heads stay, and what happens to
# the probability difference of the corrupted run?
#
# <details><summary>Solution</summary>
#
# ```python
# weak = pl.patch(model, pairs, corruption=pl.GN("YY", scale=S["scale"] / 2, draws=2),
#                 metrics=[*METRICS, "wrong_prob"], progress=False)
# print(pl.detect(weak.sel(metric=METRICS))[["metric", "sign", "heads"]])
# print(weak.corrupted.to_series().round(2))
# for name, result in {"weak": weak, "full": fx["GN"]}.items():
#     print(name, result.effect.sel(metric=METRICS).max(["layer", "head"]).to_series().round(2).to_dict())
# ```
#
# `prob` minus `wrong_prob` is the probability difference but for P(YY): with weaker noise the
# corrupted run keeps more of the skill, so there is less to bring back. The effects of single heads
# need not shrink with it, since one head can bring back more where less is broken. The rule of
# mean ± 2 SD sees neither, as it moves with the effects; look at the effects themselves.
#
# </details>
#
# **2 (medium). A constant that you choose.** Write a metric that is the paper's sum of logits after
# adding to all logits of a run a constant of that run. Why does one that is the same in every run of a
# prompt change nothing? How large must it be to change the detected heads?
#
# <details><summary>Solution</summary>
#
# A constant that all runs of a prompt share cancels in LD_pt − LD_\* and in LD_cl − LD_\*. So take one
# that depends on the run: a multiple of the run's mean logit over the vocabulary.
#
# ```python
# for factor in (0, 2, 10):
#     shifted = lambda l, r, w, s, f=factor: pl.metrics.logit_difference(
#         l + f * l.mean(-1, keepdim=True), r, w, s)
#     pl.metrics.METRICS["shifted"] = pl.metrics.Metric("shifted", "", shifted, normalized=True)
#     found = pl.patch(model, pairs, corruption=pl.STR("YY"), metrics=["shifted"], progress=False)
#     distance = (found.clean - found.corrupted).item()
#     print(factor, f"{distance:.0f}", pl.detect(found)[["sign", "heads"]].values.tolist())
# ```
#
# Probabilities are the same for every factor; the list need not be. Where the distance, by which
# effects are divided, has become negative, even the signs mean the opposite.
#
# </details>
#
# **3 (hard). An honest list for GN.** Combine both kinds of chance: draw prompts with replacement
# and, for every prompt, one of its draws. Which heads are detected in at least 95 % of 500 such
# resamples? Do the same for STR.
#
# <details><summary>Solution</summary>
#
# ```python
# rng = np.random.default_rng(0)
# for name in CORRUPTIONS:
#     effect = everything[name].effect.sel(metric="logit_diff").transpose("prompt", "draw", ...)
#     total = 0
#     for _ in range(500):
#         prompts = rng.integers(effect.sizes["prompt"], size=effect.sizes["prompt"])
#         draws = rng.integers(effect.sizes["draw"], size=len(prompts))
#         values = effect.values[prompts, draws].mean(0)
#         total = total + (abs(values - values.mean()) > 2 * values.std())
#     print(name, np.argwhere(total >= 0.95 * 500).tolist())
# ```
#
# Since one draw counts for each prompt, this is the list for an experiment with one draw. Heads
# near the threshold drop out of it.
#
# </details>
#
# ## Where to go next
#
# [Appendix H](app_h_ioi_details.ipynb) asks the same of the IOI maps: what do the lists of heads
# depend on besides the model? [Notation and settings](notation_and_settings.ipynb) has the settings
# of every experiment in one table.

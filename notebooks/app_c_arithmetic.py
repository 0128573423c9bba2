# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Appendix C: arithmetic, and a metric that divides by almost nothing
#
# | | |
# |---|---|
# | **You will learn** | which MLP layers bring a sum back at the last token; how the corruption and the metric change that curve; why a metric with a small denominator is the opinion of a few prompts |
# | **Time** | 20 minutes to read, less than a minute to run |
# | **Paper** | [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042): Appendix C, equation 2, Figures 6, 7 and 8 |
# | **You need** | what clean, corrupted and patched runs are; logit difference and probability (Section 2 of the paper) |
# | **Another model** | the paper used GPT-J: set the environment variable `PATCHLIB_MODEL=EleutherAI/gpt-j-6b` before you start Jupyter, and run all cells again |
#
# Layers count from zero.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import Markdown, display
from matplotlib.ticker import LogLocator

import patchlib as pl
from patchlib.tasks import sums

model = pl.load_model()
pl.notebooks.versions(model, "app_c_arithmetic")

# %% [markdown]
# ## 1 The task
#
# A prompt has three lines: two worked examples and one to finish, `X3 + Y3 =`. The right answer r
# is the result. STR replaces both X3 and Y3 by two other operands of the same range, whose result
# is the wrong answer r′; GN adds noise to the embeddings of X3 and Y3, three standard deviations
# of the embedding matrix. What is restored is the output of **one MLP layer at the last token**
# (`=`).
#
# The paper draws 200 prompts for each operator, with operands from 1 to 250 for + and − and from 1
# to 23 for ×. Here all operands and results have at most two digits, so that each is one token, and
# differences are positive.

# %%
OPERATORS = {"+": "addition", "-": "subtraction", "*": "multiplication"}
SHOWN = {"+": "+", "-": "−", "*": "×"}
SITE = "X3+Y3"
settings = pl.experiments.settings("app_c_arithmetic", model)


drawn = {
    operator: pl.tasks.arithmetic(
        model,
        n=min(settings["n"], len(sums.asked(operator))),
        operator=operator,
        prepend_bos=settings["prepend_bos"],
    )
    for operator in OPERATORS
}
for pairs in drawn.values():
    prompt = pairs.prompts[0]
    r, wrong = (model.tokenizer.decode(ids) for ids in (prompt.answers, prompt.wrong_answers))
    print(f"{prompt.text}   r ={r}, r' ={wrong}\n")

# %% [markdown]
# ### Wrong answers are dropped
#
# As in the paper, a prompt stays only if its right answer is the model's most likely token:
# patching cannot bring back what was never there. **Look at** how many are dropped. What is left is
# a selected sample, so the counts belong into every report. An operator of which the model answers
# no prompt at all is left out.

# %%
answered = {}
for operator, pairs in drawn.items():
    # pl.keep_answered refuses prompts of which none is answered, so look first.
    if (pl.baselines(model, pairs, metrics=["accuracy"]).clean == 1).any():
        answered[operator] = pl.keep_answered(model, pairs)
unanswered = {
    operator: f"the model answers none of the {len(pairs)} prompts tried for {OPERATORS[operator]}"
    for operator, pairs in drawn.items()
    if operator not in answered
}
for operator, none_of_them in unanswered.items():
    print(
        f"{SHOWN[operator]}: {none_of_them}" + (", which is left out below." if answered else ".")
    )
if not answered:
    print(
        "No operator is left, so all prompts are used, unfiltered. All effects below are about a "
        "model that cannot do sums: they show how the metrics behave, not where a sum is done."
    )
kept = answered or drawn
used = {operator: len(kept.get(operator, ())) for operator in drawn}
pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "operator": SHOWN[operator],
                "drawn": len(pairs),
                "answered wrongly, dropped": len(pairs) - used[operator],
                "kept": used[operator],
            }
            for operator, pairs in drawn.items()
        ]
    )
)

# %%
is_mini = Path(str(model.cfg.model_name)).name == "mini"
display(
    Markdown(
        (
            "Of `mini` its card says: numbers reach from 0 to 99; sums and differences have operands "
            "from 1 to 49, and those asked here are among the one in ten that it never saw in "
            "training; products have factors from 1 to 9, and **these 81 products are learnt by "
            "heart**: only the prompt around a product is new. Multiplication is a lookup here."
            if is_mini
            else "This model was not trained by this project: whether it computes or remembers these "
            "results is not known here."
            if answered
            else "This model has no right answer to any of these prompts, computed or remembered."
        )
        + f" {sum(used.values())} prompts are used below."
    )
)

# %%
# claim: every prompt that was kept is answered, and the counts add up
for operator, pairs in answered.items():
    right = pl.baselines(model, pairs, metrics=["accuracy"]).clean
    assert float(right.min()) == 1
    assert len(pairs) + pairs.settings["dropped"] == len(drawn[operator])
if not answered:
    print("The claim is about answered prompts, and there are none: nothing to check.")

# %% [markdown]
# ## 2 The sweep
#
# Each layer, operator and corruption once, with one value for each prompt. For GN there is also one
# value for each draw of the noise: GN is random, and equation 2 below must be worked out in each
# draw before it is averaged.

# %%
CORRUPTIONS = {
    "STR": pl.STR(SITE),
    "GN": pl.GN(SITE, scale=settings["scale"], draws=settings["draws"]),
}
runs = {
    (operator, name): pl.patch(
        model,
        pairs,
        settings["component"],
        corruption=corruption,
        positions=settings["positions"],
        window=settings["window"],
        before=settings["before"],
        metrics=["logit_diff", "prob", "wrong_prob"],
        keep_prompts=True,
        keep_draws=True,
        progress=False,
    )
    for operator, pairs in kept.items()
    for name, corruption in CORRUPTIONS.items()
}
first_operator = next(iter(kept))
runs[first_operator, "GN"].effect.sizes

# %% [markdown]
# ## 3 Before patching: what does each corruption do?
#
# **Look at** the last column, the middle prompt's probability of the right answer in the corrupted
# run. STR gives the model another sum, which it may solve, confidently; noise leaves it with no
# sum at all.


# %%
def size(value: float) -> str:
    """A number as text, as a power of ten where it is very large or very small."""
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{'-' if value < 0 else ''}10^{np.log10(abs(value)):.1f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share as text, which does not claim more than it is."""
    return "> 99.9 %" if 0.999 < share < 1 else f"{100 * share:.1f} %"


def unpatched(operator: str, name: str, metric: str) -> xr.DataArray:
    """One metric of the corrupted run, for each draw and prompt."""
    return runs[operator, name].corrupted.sel(metric=metric)


baseline = []
for operator in kept:
    clean = runs[operator, "STR"].clean.mean(["draw", "prompt"])
    p_clean = runs[operator, "STR"].clean.sel(metric="prob")
    baseline.append(
        {
            "operator": SHOWN[operator],
            "run": "clean",
            "LD": f"{float(clean.sel(metric='logit_diff')):.1f}",
            "P(r), mean": f"{float(p_clean.mean()):.3f}",
            "P(r'), mean": f"{float(clean.sel(metric='wrong_prob')):.3f}",
            "P(r), median": size(float(p_clean.median())),
        }
    )
    for name in CORRUPTIONS:
        of = {
            metric: unpatched(operator, name, metric)
            for metric in ("logit_diff", "prob", "wrong_prob")
        }
        baseline.append(
            {
                "operator": SHOWN[operator],
                "run": name,
                "LD": f"{float(of['logit_diff'].mean()):.1f}",
                "P(r), mean": f"{float(of['prob'].mean()):.3f}",
                "P(r'), mean": f"{float(of['wrong_prob'].mean()):.3f}",
                "P(r), median": size(float(of["prob"].median())),
            }
        )
pl.notebooks.show(pd.DataFrame(baseline))

# %%
middle = {
    (operator, name): float(unpatched(operator, name, "prob").median())
    for operator in kept
    for name in CORRUPTIONS
}
smaller = [operator for operator in kept if middle[operator, "STR"] < middle[operator, "GN"]]
display(
    Markdown(
        "The middle P(r) of the corrupted run is smaller under STR than under GN for "
        f"**{', '.join(SHOWN[operator] for operator in smaller) or 'no operator'}**. "
        "The ratio GN / STR is "
        + ", ".join(
            f"{size(middle[operator, 'GN'] / middle[operator, 'STR'])} for {SHOWN[operator]}"
            for operator in kept
        )
        + ". The values of P(r) in the table are the denominators of equation 2's first term."
    )
)

# %% [markdown]
# ## 4 Equation 2
#
# For arithmetic the paper adds a third metric, that of Stolfo et al. (2023):
#
# $$\frac12\left[\frac{P_{pt}(r)-P_*(r)}{P_*(r)}+\frac{P_*(r')-P_{pt}(r')}{P_{pt}(r')}\right]$$
#
# with $P_*$ the corrupted and $P_{pt}$ the patched run. The first term is the relative gain of the
# right answer, the second the relative loss of the wrong one. It is a number **for each prompt**;
# what is drawn is a mean over prompts. `pl.stolfo` computes it. Two facts follow from the
# definition alone:
#
# * it is never below −1, but has no upper limit;
# * the first term is at most ½ (1 / P\*(r) − 1): it can only be as loud as its denominator is small;
#   the second has its own denominator, P_pt(r′), and its own limit, ½ (1 / P_pt(r′) − 1).

# %%
stolfo = {key: pl.stolfo(run) for key, run in runs.items()}


def terms(operator: str, name: str) -> tuple[xr.DataArray, xr.DataArray]:
    """The two terms of equation 2, each with its factor of one half."""
    run = runs[operator, name]
    right, wrong = (run.sel(metric=metric, drop=True) for metric in ("prob", "wrong_prob"))
    return (
        0.5 * (right.patched - right.corrupted) / right.corrupted,
        0.5 * (wrong.corrupted - wrong.patched) / wrong.patched,
    )


# %%
# claim: pl.stolfo is the sum of the two terms, and the bounds hold
for (operator, name), metric in stolfo.items():
    first, second = terms(operator, name)
    np.testing.assert_allclose(metric, first + second, rtol=1e-9, atol=1e-9)
    assert float(metric.min()) >= -1 - 1e-9
    for term, below in (
        (first, unpatched(operator, name, "prob")),
        (second, runs[operator, name].patched.sel(metric="wrong_prob")),
    ):
        bound = 0.5 * (1 / below - 1)
        assert bool((term <= bound * (1 + 1e-6) + 1e-6).all())

# %% [markdown]
# ## 5 Figures 6, 7 and 8
#
# A row for each operator (the paper's Figures 6, 7 and 8), a column for each metric; the paper
# labels all vertical axes "Probability", here each has its own name. A line is the mean over prompts,
# and for GN over draws as well; the band reaches from the smallest to the largest single draw, and
# the thin line is the first draw alone. In the third column, whose scale is logarithmic beyond ±1,
# the dashed line is the **median** over prompts.
#
# **Look for** (1) the layer of each peak, (2) which corruption has the higher peak, (3) how far mean
# and median of equation 2 lie apart.

# %%
COLOURS = {"STR": "#0072B2", "GN": "#D55E00"}
LABELS = {
    "logit_diff": "normalised logit difference",
    "prob": "probability",
    "stolfo": "equation 2 (no unit)",
}


def by_draw(operator: str, name: str, metric: str) -> xr.DataArray:
    """Means over prompts, for each draw and layer."""
    if metric == "stolfo":
        return stolfo[operator, name].mean("prompt")
    return runs[operator, name].effect.sel(metric=metric).mean("prompt")


def use_symlog(axes, bottom: float) -> None:
    """Makes the vertical axis logarithmic beyond ±1, with ticks at zero and at powers of ten."""
    axes.set_yscale("symlog", linthresh=1)
    top = int(np.ceil(np.log10(max(10.0, axes.get_ylim()[1]))))
    axes.set_yticks([0.0, *(10.0**k for k in range(0, top + 1, max(1, top // 4)))])
    axes.minorticks_off()
    axes.set_ylim(bottom=bottom)


for name in CORRUPTIONS:
    curves = {
        OPERATORS[operator]: xr.concat(
            [
                by_draw(operator, name, metric).drop_vars("metric", errors="ignore")
                for metric in LABELS
            ],
            dim=pd.Index(LABELS, name="metric"),
        )
        for operator in kept
    }
    pl.notebooks.keep(f"app_c_curves_{name}", xr.Dataset(curves))

with plt.rc_context({"font.size": 8, "axes.titlesize": 9, "pdf.fonttype": 42}):
    figure, grid = plt.subplots(
        len(kept),
        len(LABELS),
        figsize=(7.6, 0.8 + 1.8 * len(kept)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for row, operator in zip(grid, kept, strict=True):
        for axes, metric in zip(row, LABELS, strict=True):
            axes.axhline(0, color="0.6", linewidth=0.6)
            for name, marker in (("STR", "o"), ("GN", "s")):
                values = by_draw(operator, name, metric)
                axes.plot(
                    values.layer,
                    values.mean("draw"),
                    color=COLOURS[name],
                    marker=marker,
                    markersize=3,
                    linewidth=1.2,
                    label=f"{name}, mean",
                )
                if values.sizes["draw"] > 1:
                    axes.fill_between(
                        values.layer,
                        values.min("draw"),
                        values.max("draw"),
                        color=COLOURS[name],
                        alpha=0.2,
                        linewidth=0,
                        label=f"{name}, range of {values.sizes['draw']} draws",
                    )
                    axes.plot(
                        values.layer,
                        values.isel(draw=0),
                        color=COLOURS[name],
                        linewidth=0.5,
                        label=f"{name}, one draw",
                    )
                if metric == "stolfo":
                    axes.plot(
                        values.layer,
                        stolfo[operator, name].median(["draw", "prompt"]),
                        color=COLOURS[name],
                        linestyle="--",
                        linewidth=1,
                        label=f"{name}, median",
                    )
            if metric == "stolfo":
                use_symlog(axes, bottom=-1)
            axes.set_title(f"({SHOWN[operator]}) {LABELS[metric]}")
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("effect, mean over prompts")
    for axes in grid[-1]:
        axes.set_xlabel("MLP layer, patched at the last token")
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, names = grid[0, -1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=7)
plt.close(figure)
pl.notebooks.keep("app_c_figures_6_to_8", figure)
figure

# %%
peaks = {
    (operator, name, metric): (int(mean.argmax("layer")), float(mean.max()))
    for operator in kept
    for name in CORRUPTIONS
    for metric in LABELS
    for mean in [by_draw(operator, name, metric).mean("draw")]
}


def sharpness(operator: str, metric: str) -> float:
    """The peak under STR over the peak under GN."""
    return peaks[operator, "STR", metric][1] / peaks[operator, "GN", metric][1]


lines = []
for operator in kept:
    at = {name: peaks[operator, name, "logit_diff"][0] for name in CORRUPTIONS}
    lines.append(
        f"* **{SHOWN[operator]}**: by logit difference "
        + (
            f"both corruptions peak at layer {at['STR']}"
            if at["STR"] == at["GN"]
            else f"STR peaks at layer {at['STR']} and GN at layer {at['GN']}"
        )
        + f"; STR's peak is {sharpness(operator, 'logit_diff'):.2f} times GN's. By probability it is "
        f"{sharpness(operator, 'prob'):.2f} times GN's. Under STR the mean of equation 2 peaks at "
        f"layer {peaks[operator, 'STR', 'stolfo'][0]}."
    )
display(Markdown("\n".join(lines)))

# %% [markdown]
# ### The peaks beside the paper's
#
# The paper's values are read from its figures by eye. It reports that STR is sharper than GN by up
# to four times for + and −, and that the two are nearly equal for × (Appendix C); it does not say by
# which metric. **Look at** the two columns of ratios. The layers cannot be compared across models.

# %%
FIGURES = {"+": "figure6", "-": "figure7", "*": "figure8"}
paper = {operator: pl.paper.value(figure_id) for operator, figure_id in FIGURES.items()}


def paper_ratio(operator: str, metric: str) -> str:
    below = paper[operator]["GN"][metric]
    return f"{paper[operator]['STR'][metric] / below:.1f}" if below else "GN about 0"


pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "operator": SHOWN[operator],
                "metric": metric,
                "paper: STR, GN": f"{paper[operator]['STR'][metric]}, {paper[operator]['GN'][metric]}",
                "STR/GN": paper_ratio(operator, metric),
                "this run: STR, GN": ", ".join(
                    f"{size(peaks[operator, name, metric][1])} (layer {peaks[operator, name, metric][0]})"
                    for name in CORRUPTIONS
                ),
                "STR/GN ": size(sharpness(operator, metric)),
            }
            for operator in kept
            for metric in LABELS
        ]
    )
)

# %%
CLEARLY = 1.5
ratios = {operator: sharpness(operator, "logit_diff") for operator in kept}
in_paper = {
    operator: paper[operator]["STR"]["logit_diff"] / paper[operator]["GN"]["logit_diff"]
    for operator in kept
}
compared = [operator for operator in "+-" if operator in answered]
as_paper = [operator for operator in compared if ratios[operator] > CLEARLY]
weaker = [operator for operator in compared if 1 < ratios[operator] <= CLEARLY]
lower_draws = {
    operator: float(
        (
            by_draw(operator, "GN", "logit_diff").max("layer")
            < peaks[operator, "STR", "logit_diff"][1]
        ).mean()
    )
    for operator in kept
}
display(
    Markdown(
        "By logit difference the paper's ratio of peaks is "
        + ", ".join(f"{in_paper[operator]:.1f} ({SHOWN[operator]})" for operator in kept)
        + "; here it is "
        + ", ".join(f"{ratios[operator]:.2f} ({SHOWN[operator]})" for operator in kept)
        + ". "
        + (
            "The paper finds STR sharper for + and −. Here its peak is clearly higher (by more than "
            f"half) for {' and '.join(SHOWN[o] for o in as_paper) or 'neither'}"
            + (
                f", and higher by less than that for {' and '.join(SHOWN[o] for o in weaker)}."
                if weaker
                else "."
            )
            + " It is above the peak of a single draw of GN in "
            + ", ".join(f"{100 * lower_draws[o]:.0f} % ({SHOWN[o]})" for o in kept)
            + " of the draws."
            if compared
            else "The paper's finding is for + and −, of which this model answers no prompt."
        )
        + " By probability the higher peak belongs to "
        + ", ".join(
            f"{max(CORRUPTIONS, key=lambda name: peaks[operator, name, 'prob'][1])} for {SHOWN[operator]}"
            for operator in kept
        )
        + ": a probability starts from what the corruption left of it, so equal recovery in logits is "
        "not equal recovery in probability."
    )
)

# %% [markdown]
# The paper judges factual recall by its middle layers alone, since layer 0 reads little more than
# the tokens. Which layers to leave out is the reader's choice: does the comparison hold without
# layer 0?

# %%
later = {
    (operator, name): float(
        by_draw(operator, name, "logit_diff").mean("draw").sel(layer=slice(1, None)).max()
    )
    for operator in kept
    for name in CORRUPTIONS
}
later_ratios = {operator: later[operator, "STR"] / later[operator, "GN"] for operator in kept}
layer_0_matters = any(abs(later_ratios[o] - ratios[o]) > 0.005 for o in kept)
sharper = [operator for operator in kept if later_ratios[operator] > CLEARLY]
display(
    Markdown(
        (
            "Without layer 0 the ratios are "
            + ", ".join(f"{later_ratios[o]:.2f} ({SHOWN[o]})" for o in kept)
            + ": a statement on sharpness must say which layers it covers. "
            if layer_0_matters
            else "Without layer 0 the ratios are the same: no peak lies there. "
        )
        + (
            "The paper's pattern needs answered prompts of all three operators, so it cannot be "
            "judged here."
            if unanswered
            else "This is the paper's pattern: sharper for + and −, less so for ×."
            if {"+", "-"} <= {*sharper} and later_ratios["*"] < min(later_ratios[o] for o in "+-")
            else "As in the paper × has the smallest ratio; the sizes are not the paper's: "
            + ", ".join(
                f"{later_ratios[o]:.2f} against {in_paper[o]:.1f} ({SHOWN[o]})" for o in kept
            )
            + "."
            if later_ratios["*"] < min(later_ratios[o] for o in "+-")
            else "This is not the paper's pattern, in which × has the smallest ratio."
        )
    )
)

# %% [markdown]
# ## 6 Whose opinion is the mean of equation 2?
#
# For each operator and corruption, at the layer where the mean peaks, the values of single prompts
# (for GN of each prompt in each draw) in order of size. **Look at** the share that the single
# largest value has in the sum, and at the median.

# %%
concentration = {}
for (operator, name), metric in stolfo.items():
    layer, mean = peaks[operator, name, "stolfo"]
    values = np.sort(metric.sel(layer=layer).values.ravel())[::-1]
    total = values.sum()
    concentration[operator, name] = {
        "layer": layer,
        "mean": mean,
        "median": float(np.median(values)),
        "largest": values[0] / total,
        "for 90 %": int(np.searchsorted(values.cumsum(), 0.9 * total) + 1),
        "of": values.size,
        "without": values[1:].mean() if values.size > 1 else None,
    }
pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "operator": SHOWN[operator],
                "": name,
                "peak layer": each["layer"],
                "mean": size(each["mean"]),
                "median": size(each["median"]),
                "share of the largest": percent(each["largest"]),
                "values that make 90 %": f"{each['for 90 %']} of {each['of']}",
                "mean without the largest": "–"
                if each["without"] is None
                else size(each["without"]),
            }
            for (operator, name), each in concentration.items()
        ]
    )
)

# %%
worst = max(concentration, key=lambda key: concentration[key]["largest"])
moved = [
    f"{SHOWN[operator]} under {name} (layer {concentration[operator, name]['layer']}, by logit "
    f"difference layer {peaks[operator, name, 'logit_diff'][0]})"
    for operator, name in runs
    if concentration[operator, name]["layer"] != peaks[operator, name, "logit_diff"][0]
]
display(
    Markdown(
        f"Most extreme is {SHOWN[worst[0]]} under {worst[1]}: one value of "
        f"{concentration[worst]['of']} makes {percent(concentration[worst]['largest'])} of the sum. "
        + (
            f"The mean of equation 2 peaks at another layer than the logit difference for {', '.join(moved)}"
            ": there the few loudest prompts choose the layer. "
            if moved
            else "For every operator and corruption it peaks at the same layer as the logit "
            "difference. "
        )
        + "A mean that few prompts decide changes with the next sample of prompts; the median, or a "
        "mean of logarithms, depends on all of them."
    )
)

# %%
# claim: the shares follow from the values alone
for (operator, name), each in concentration.items():
    values = stolfo[operator, name].sel(layer=each["layer"]).values.ravel()
    assert np.isclose(values.mean(), each["mean"])
    assert 1 <= each["for 90 %"] <= values.size
    if values.size > 1:
        by_hand = (each["mean"] * values.size - values.max()) / (values.size - 1)
        assert np.isclose(by_hand, each["without"], rtol=1e-3, atol=1e-6 * values.max())
    else:
        print(f"{SHOWN[operator]} under {name} has a single value, so nothing is left without it.")

# %% [markdown]
# ## 7 The small denominator
#
# The paper's explanation (Appendix C): under STR P\*(r) is tiny, so the first term dominates. First
# the denominators: for each prompt P\*(r), the probability of the right answer in the corrupted
# run, as the share of prompts that lie below a value. **Look at** how many powers of ten one curve
# spans: that is the range of the weights which prompts have in the mean.

# %%
with plt.rc_context({"font.size": 8, "axes.titlesize": 9, "pdf.fonttype": 42}):
    figure, grid = plt.subplots(
        1, len(kept), figsize=(7.6, 2.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, operator in zip(grid[0], kept, strict=True):
        for name, colour in COLOURS.items():
            values = unpatched(operator, name, "prob")
            for draw in values.draw:
                one = values.sel(draw=draw).values
                axes.ecdf(one, color=colour, linewidth=0.5 if values.sizes["draw"] > 1 else 1.2)
            if values.sizes["draw"] > 1:
                axes.ecdf(values.values.ravel(), color=colour, linewidth=1.4)
            axes.plot([], [], color=colour, label=name)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.set_title(f"{SHOWN[operator]} ({OPERATORS[operator]})")
        axes.set_xlabel("P*(r) of the corrupted run")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("share of prompts below")
    grid[0, 0].legend(frameon=False, title="thin: single draws", title_fontsize=7, fontsize=7)
plt.close(figure)
pl.notebooks.keep("app_c_denominators", figure)
pl.notebooks.keep(
    "app_c_denominators",
    xr.Dataset(
        {
            f"{OPERATORS[operator]}_{name}": (
                f"sorted_{OPERATORS[operator]}_{name}",
                np.sort(unpatched(operator, name, "prob").values.ravel()),
            )
            for operator, name in runs
        }
    ),
)
figure

# %%
spans = {key: float(np.ptp(np.log10(unpatched(*key, "prob").values))) for key in runs}
display(
    Markdown(
        "From the smallest to the largest denominator there are "
        + "; ".join(
            f"{SHOWN[operator]}: {spans[operator, 'STR']:.1f} powers of ten under STR, "
            f"{spans[operator, 'GN']:.1f} under GN"
            for operator in kept
        )
        + ". "
        + (
            "Noise, too, leaves very small denominators in some prompts, so here equation 2 is "
            "unsafe under both corruptions."
            if min(spans[operator, "GN"] for operator in kept) > 3
            else "Under GN the denominators are less uneven than equation 2 would need to fail in the "
            "same way for every operator."
        )
    )
)

# %% [markdown]
# ### The two terms, prompt by prompt
#
# Each prompt twice, at the layer where the mean peaks: its first term (circle) and its second term
# (cross), over its own denominator P\*(r). The line is the most that the first term can reach. For
# GN the first draw is shown. **Look for** circles that come near the line, and for crosses above it:
# the second term does not know this limit.

# %%
TERM_COLOURS = {"first": "#009E73", "second": "#CC79A7"}
with plt.rc_context({"font.size": 8, "axes.titlesize": 9, "pdf.fonttype": 42}):
    figure, grid = plt.subplots(
        len(CORRUPTIONS), len(kept), figsize=(7.6, 4.6), squeeze=False, layout="constrained"
    )
    for row, name in zip(grid, CORRUPTIONS, strict=True):
        for axes, operator in zip(row, kept, strict=True):
            layer = peaks[operator, name, "stolfo"][0]
            first, second = (term.sel(layer=layer).isel(draw=0) for term in terms(operator, name))
            below = unpatched(operator, name, "prob").isel(draw=0)
            x = np.geomspace(float(below.min()), float(below.max()), 100)
            axes.plot(
                x, 0.5 * (1 / x - 1), color="0.5", linewidth=0.8, label="most of the first term"
            )
            axes.plot(
                below,
                second,
                "x",
                color=TERM_COLOURS["second"],
                markersize=3.2,
                label="second term: r' loses",
            )
            axes.plot(
                below,
                first,
                "o",
                color=TERM_COLOURS["first"],
                markersize=2.6,
                label="first term: r gains",
            )
            axes.axhline(0, color="0.6", linewidth=0.6)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=5))
            use_symlog(axes, bottom=-1.2)
            axes.set_title(f"{name}, {SHOWN[operator]}, layer {layer}")
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("term of equation 2")
    for axes in grid[-1]:
        axes.set_xlabel("P*(r) of the prompt")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
plt.close(figure)
pl.notebooks.keep("app_c_terms", figure)
figure


# %%
def larger_term(first: xr.DataArray, second: xr.DataArray) -> str:
    """Which term is larger, where mean and median agree on it."""
    mean, median = (
        abs(float(getattr(first, name)())) > abs(float(getattr(second, name)()))
        for name in ("mean", "median")
    )
    return "undecided" if mean != median else "first" if mean else "second"


split = []
for operator, name in runs:
    layer = peaks[operator, name, "stolfo"][0]
    first, second = (term.sel(layer=layer) for term in terms(operator, name))
    line = 0.5 * (1 / unpatched(operator, name, "prob") - 1)
    split.append(
        {
            "operator": SHOWN[operator],
            "corruption": name,
            "layer": layer,
            "first: mean": size(float(first.mean())),
            "median": size(float(first.median())),
            "second: mean": size(float(second.mean())),
            "median ": size(float(second.median())),
            "first is larger in": f"{100 * float((abs(first) > abs(second)).mean()):.0f} % of values",
            "larger term": larger_term(first, second),
            "second above the line": f"{int((second > line).sum())} of {second.size}",
        }
    )
pl.notebooks.show(pd.DataFrame(split))

# %%
under_str = {
    verdict: [
        row["operator"]
        for row in split
        if row["corruption"] == "STR" and row["larger term"] == verdict
    ]
    for verdict in ("first", "second", "undecided")
}
display(
    Markdown(
        "Under STR, by mean and median alike, the first term is the larger one for "
        f"**{', '.join(under_str['first']) or 'no operator'}** and the second for "
        f"**{', '.join(under_str['second']) or 'no operator'}**. "
        + (
            f"Mean and median disagree for {', '.join(under_str['undecided'])}: there a few prompts decide "
            "which mean is larger. "
            if under_str["undecided"]
            else ""
        )
        + (
            "That the first term dominates is what the paper says of GPT-J."
            if len(under_str["first"]) == len(kept)
            else "The paper says of GPT-J that the first term dominates. Where the second is as large or "
            "larger, it is so for the same reason: restoring the layer leaves a prompt with almost no "
            "P(r′), and that is what the second term divides by. The last column counts its values that "
            "no first term could reach with the same P\\*(r)."
        )
    )
)

# %% [markdown]
# ## 8 What to report instead
#
# The logit difference answers the same question, for both answers at once, without a small
# denominator: it is the *logarithm* of P(r) / P(r′), so that a factor of ten is worth the same
# wherever it starts. **Look at** how well equation 2 agrees with it over the layers: the rank
# correlation between the mean effect by logit difference and equation 2, once its mean and once
# its median over prompts.

# %%
agreement = []
for operator, name in runs:
    ld = by_draw(operator, name, "logit_diff").mean("draw").to_series()
    mean = by_draw(operator, name, "stolfo").mean("draw").to_series()
    median = stolfo[operator, name].median(["draw", "prompt"]).to_series()
    agreement.append(
        {
            "operator": SHOWN[operator],
            "corruption": name,
            "LD and mean of eq. 2": ld.rank().corr(mean.rank()),
            "LD and median of eq. 2": ld.rank().corr(median.rank()),
        }
    )
agreement = pd.DataFrame(agreement)
pl.notebooks.show(agreement.round(2))

# %%
closer = (agreement.iloc[:, 3] > agreement.iloc[:, 2]).sum()
display(
    Markdown(
        f"The median orders the layers more as the logit difference does in {closer} of "
        f"{len(agreement)} rows. If you must report equation 2, report its median, the number of "
        "prompts, and the share of the largest value beside its mean."
    )
)

# %% [markdown]
# ## Summary

# %%
points = [
    "**Prompts.** Used: "
    + ", ".join(
        f"{used[operator]} for {SHOWN[operator]} ({len(pairs) - used[operator]} dropped)"
        for operator, pairs in drawn.items()
    )
    + ("." if answered else ". The model answers none of them."),
    "**Layers.** By logit difference STR peaks at layer "
    + ", ".join(f"{peaks[o, 'STR', 'logit_diff'][0]} ({SHOWN[o]})" for o in kept)
    + ", GN at layer "
    + ", ".join(f"{peaks[o, 'GN', 'logit_diff'][0]} ({SHOWN[o]})" for o in kept)
    + ".",
    "**Sharpness.** STR's peak is "
    + ", ".join(f"{ratios[o]:.2f} ({SHOWN[o]})" for o in kept)
    + " times GN's by logit difference and "
    + ", ".join(f"{sharpness(o, 'prob'):.2f} ({SHOWN[o]})" for o in kept)
    + " times by probability"
    + (
        "; with layer 0 set aside, "
        + ", ".join(f"{later_ratios[o]:.2f} ({SHOWN[o]})" for o in kept)
        + " times by logit difference."
        if layer_0_matters
        else "."
    ),
    "**Equation 2.** Under STR its mean at the peak is "
    + ", ".join(f"{size(concentration[o, 'STR']['mean'])} ({SHOWN[o]})" for o in kept)
    + ", its median "
    + ", ".join(f"{size(concentration[o, 'STR']['median'])} ({SHOWN[o]})" for o in kept)
    + "; the largest single value makes "
    + ", ".join(percent(concentration[o, "STR"]["largest"]) for o in kept)
    + " of the sum.",
]
listed = "\n".join(f"{i}. {point}" for i, point in enumerate(points, 1))
display(Markdown(f"For **{model.cfg.model_name}**:\n\n{listed}"))

# %% [markdown]
# ## The paper beside this run
#
# The paper's numbers are for GPT-J and read from Figures 6 to 8 by eye. On another model the two
# columns need not agree, and a difference is a finding about the model, not an error. The paper
# does not say how many prompts were left after wrong answers were dropped. Its numbers are for
# answered prompts, so an operator of which no prompt is answered is not measured.

# %%
name_of_model = runs[first_operator, "STR"].attrs["model"]
for operator in answered:
    measured = {
        name: {metric: peaks[operator, name, metric][1] for metric in LABELS}
        for name in CORRUPTIONS
    } | {"peak_layer": peaks[operator, "STR", "logit_diff"][0]}
    why = ""
    if operator == "*":
        measured["STR"]["stolfo_peak_layer"] = peaks["*", "STR", "stolfo"][0]
        if model.cfg.n_layers > 19:
            measured["STR"]["stolfo_at_layer_19"] = float(
                by_draw("*", "STR", "stolfo").mean("draw").sel(layer=19)
            )
        else:
            why = f"the model has {model.cfg.n_layers} layers, so there is no layer 19"
    pl.paper.record(FIGURES[operator], measured, model=name_of_model, why=why)
for operator, none_of_them in unanswered.items():
    pl.paper.record(FIGURES[operator], {}, model=name_of_model, why=none_of_them)

at_most = max((ratios[operator] for operator in compared), default=None)
reasons = [unanswered[operator] for operator in "+-" if operator in unanswered]
if compared:
    later_at_most = max(later_ratios[operator] for operator in compared)
    reasons.insert(0, f"over all layers; with layer 0 set aside {later_at_most:.2f}")
pl.paper.record(
    "appendix_c",
    {"STR_to_GN_peak": at_most},
    model=name_of_model,
    why="; ".join(reasons),
    note="by logit difference; the paper does not name the metric",
)

quantities = [("prompts drawn (+)", pl.paper.value("prompts")["arithmetic"], len(drawn["+"]), "C")]
quantities += [
    (
        f"{SHOWN[operator]}: peak by {metric}, {name}",
        f"{paper[operator][name][metric]:g}",
        size(peaks[operator, name, metric][1]) if operator in answered else None,
        f"C, Figure {FIGURES[operator][-1]}",
    )
    for operator in OPERATORS
    for metric in LABELS
    for name in CORRUPTIONS
]
quantities += [
    (
        f"{SHOWN[operator]}: layer of the peak by logit_diff, STR",
        paper[operator]["peak_layer"],
        peaks[operator, "STR", "logit_diff"][0] if operator in answered else None,
        f"C, Figure {FIGURES[operator][-1]}",
    )
    for operator in OPERATORS
]
quantities += [
    (
        "STR/GN, at most, + and − (paper: no metric named; here LD)",
        pl.paper.value("appendix_c")["STR_to_GN_peak"],
        at_most,
        "C",
    )
]
beside = pl.paper.table(quantities, model="GPT-J")
pl.notebooks.show(beside)

# %% [markdown]
# ## Exercises
#
# **1 (easy). Where is the answer, if not in the MLPs?** Restore the attention layers at the last
# token instead of the MLPs, for addition under STR, and compare the peaks by logit difference.
#
# <details><summary>Solution</summary>
#
# ```python
# for component in ("mlp", "attn"):
#     fx = pl.patch(model, kept["+"], component, corruption=pl.STR(SITE), positions="last",
#                   metrics=["logit_diff"], progress=False)
#     print(component, fx.effect.sel(metric="logit_diff").to_series().round(2).tolist())
# ```
#
# Attention is the only way in which the operands can reach the last token, so a strong attention
# layer says where they arrive; the MLPs after it can only work on what has arrived.
#
# </details>
#
# **2 (medium). One prompt less.** Take away the prompt with the largest value of equation 2 for
# addition under STR, and find the peak layer of the mean again. Repeat five times. When does the
# layer settle?
#
# <details><summary>Solution</summary>
#
# ```python
# values = stolfo["+", "STR"].isel(draw=0).values      # prompt by layer
# for left_out in range(6):
#     print(left_out, values.mean(0).argmax(), size(values.mean(0).max()))
#     values = np.delete(values, values.max(1).argmax(), axis=0)
# ```
#
# With every prompt that goes the mean falls; five prompts may take more than nine tenths of it with
# them. So there is no "typical" value that it estimates, even where the layer stays the same. The
# peak by logit difference does not change like that.
#
# </details>
#
# **3 (hard). A metric without a denominator.** Write equation 2's sibling with logarithms, ½ [log
# P_pt(r) − log P\*(r) + log P\*(r′) − log P_pt(r′)], and compare its curve with that of the logit
# difference. What is it, up to a factor?
#
# <details><summary>Solution</summary>
#
# ```python
# run = runs["+", "STR"]
# p, q = (run.sel(metric=name, drop=True) for name in ("prob", "wrong_prob"))
# logs = 0.5 * (np.log(p.patched / p.corrupted) + np.log(q.corrupted / q.patched))
# ld = run.sel(metric="logit_diff", drop=True)
# print(abs(logs - 0.5 * (ld.patched - ld.corrupted)).max().item())
# ```
#
# It *is* half of the change of the logit difference, since log P(r) − log P(r′) = Logit(r) −
# Logit(r′): the softmax' denominator cancels. The logit difference is equation 2 done with
# logarithms.
#
# </details>
#
# ## Where to go next
#
# [Appendix D, docstrings](app_d_docstring.ipynb) patches single heads at single positions, where
# the choice of r′ and of the corrupted token decides what can be found at all.

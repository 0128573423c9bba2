# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Appendix G: factual recall in detail
#
# | | |
# |---|---|
# | **You will learn** | how the effect of MLPs on recalling facts changes with the window, the token position, the metric and the corruption, all beside each other; what the same experiment costs on the paper's three models |
# | **Time** | 20 minutes to read, less than a minute to run |
# | **Paper** | [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042): Appendix G, Figures 12 to 19 and 24 to 27 |
# | **You need** | sliding windows ([Section 5](05_sliding_window.ipynb)) |
# | **Another model** | set the environment variable `PATCHLIB_MODEL=gpt2-large` before you start Jupyter, and run all cells again; section 7 lists what each of the paper's models would run |
#
# Layers count from zero.

# %%
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from IPython.display import Markdown, display

import patchlib as pl

model = pl.load_model()
pl.notebooks.versions(model, "app_g_factual_recall")

# %% [markdown]
# ## 1 The setting
#
# Pairs of facts: *"The Eiffel Tower is in the city of"* should go on with *" Paris"*. The subject is
# corrupted, by the tokens of the other fact's subject (STR) or by noise on its embeddings (GN). The
# outputs of the MLPs of w adjacent layers are restored at one token position. The paper sorts
# positions into six **buckets**:
#
# | bucket | tokens |
# |---|---|
# | first subject | the first token of the subject |
# | middle subject | what lies between; subjects of two tokens have none |
# | last subject | its last token |
# | next | the token after the subject |
# | further | what follows, up to the last |
# | last | the last token of the prompt, where the answer is read |
#
# Tokens before the subject belong to none: the corruption cannot reach them. The paper does not say
# how several tokens of one bucket are joined. Here all tokens of a bucket are restored *together* in
# one run; prompts without any token in a bucket do not count for it.

# %%
S = pl.experiments.settings("app_g_factual_recall", model)
pairs = pl.tasks.factual_recall(model, n=S["n"], prepend_bos=S["prepend_bos"])
(SITE,) = S["sites"]
BEFORE = dict(zip(S["window"], S["before"], strict=True))
WINDOWS = list(BEFORE)
BUCKETS = S["positions"]
METRICS = ["prob", "logit_diff"]
LABELS = {"prob": "probability", "logit_diff": "logit difference"}
n_layers = model.cfg.n_layers
corruptions = {
    "STR": pl.STR(SITE),
    "GN": pl.GN(SITE, scale=S["scale"], draws=S["draws"]),
}
deep = [window for window in (3, 5, 10) if window > n_layers]
print(f"{len(pairs)} prompts, {S['draws']} draws of the noise, windows {WINDOWS}")
if deep:
    print(f"a window of {deep[0]} does not fit into {n_layers} layers")

# %% [markdown]
# How many tokens are there in each bucket? **Look for** buckets that are empty for some prompts: a
# mean over fewer prompts is less certain.

# %%
sizes = {bucket: [len(where) for where in pairs.at(bucket)] for bucket in BUCKETS}
pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "bucket": bucket,
                "tokens, smallest": min(counts),
                "mean": f"{np.mean(counts):.2f}",
                "largest": max(counts),
                "prompts without": counts.count(0),
            }
            for bucket, counts in sizes.items()
        ]
    )
)

# %%
# claim: the buckets cover each prompt's tokens from the subject on, each token once
for row, prompt in enumerate(pairs.prompts):
    tokens = [token for bucket in BUCKETS for token in pairs.at(bucket)[row]]
    assert sorted(tokens) == list(range(min(tokens), len(prompt.clean)))

# %% [markdown]
# ## 2 Two sweeps
#
# One call for each corruption: all windows, all buckets, both metrics.

# %%
fx = {
    name: pl.patch(
        model,
        pairs,
        S["component"],
        corruption=how,
        window=WINDOWS,
        before=list(BEFORE.values()),
        positions=BUCKETS,
        metrics=METRICS,
        keep_draws=True,
        progress=False,
    )
    for name, how in corruptions.items()
}
mean = {name: result.mean("draw", keep_attrs=True) for name, result in fx.items()}
for name, result in fx.items():
    pl.notebooks.keep(f"app_g_{name}", result[["effect"]])


def over_all(run):
    """The mean over all prompts, each of which has a last token."""
    return run.sel(position="last") if "position" in run.dims else run


pl.notebooks.show(
    pd.DataFrame(
        [
            {"run": run} | {LABELS[m]: f"{float(values.sel(metric=m)):.3f}" for m in METRICS}
            for run, values in {
                "clean": over_all(mean["STR"].clean),
                "STR": over_all(mean["STR"].corrupted),
                "GN": over_all(mean["GN"].corrupted),
            }.items()
        ]
    )
)

# %%
paper_models = pl.paper.value("facts_models")
clean = {metric: float(over_all(mean["STR"].clean).sel(metric=metric)) for metric in METRICS}
display(
    Markdown(
        f"On clean prompts this model gives the answer a probability of {clean['prob']:.3f} and a "
        f"logit difference of {clean['logit_diff']:.2f}. The paper (Appendix B): "
        + ", ".join(
            f"{name} {values['prob']:.3f} and {values['logit_diff']:.2f}"
            for name, values in paper_models.items()
        )
        + "."
    )
)

# %% [markdown]
# ## 3 The last subject token (Figures 12 to 14)
#
# STR and GN beside each other, a row for each metric and a column for each window. The band is one
# standard deviation over draws of the noise. Grey: windows that hold layer 0. In the paper's figures they
# form a high **plateau**, so peaks are looked for outside the grey region.
#
# **Look for** (1) the scale; (2) which corruption gives the larger effect, by each metric; (3) a
# peak at middle layers, outside the grey region. Under GN the paper (GPT-2 XL, Section 3.1, Figures 2
# and 12 to 14) has one, at layers 14 to 16; under STR it calls the peak not salient. Where both can
# be read off, GN's is the higher.

# %%
STYLE = {"font.size": 8, "axes.titlesize": 8.5, "legend.fontsize": 7.5, "pdf.fonttype": 42}


def beyond(window: int) -> list[int]:
    """The layers whose windows do not hold layer 0."""
    return list(range(BEFORE[window] + 1, n_layers))


def draw_bucket(bucket: str):
    """Effects over layers at one bucket: a row for each metric, a column for each window."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(METRICS),
            len(WINDOWS),
            figsize=(1.0 + 2.1 * len(WINDOWS), 4.2),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        for row, metric in zip(grid, METRICS, strict=True):
            for axes, window in zip(row, WINDOWS, strict=True):
                axes.axvspan(-0.5, BEFORE[window] + 0.5, color="0.92", zorder=-1)
                axes.axhline(0, color="0.5", linewidth=0.6, zorder=0)
                for name, result in fx.items():
                    here = result.effect.sel(metric=metric, window=window, position=bucket)
                    pl.plot.add_curve(axes, here, name)
            row[0].set_ylabel(f"effect: {LABELS[metric]}")
        for axes, window in zip(grid[0], WINDOWS, strict=True):
            axes.set_title("single layer" if window == 1 else f"window of {window}")
        for axes in grid[-1]:
            axes.set_xlabel("layer")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle(
            f"MLPs at the {bucket.replace('_', ' ')} token\n"
            "grey: windows that hold layer 0; band: ± SD over draws",
            fontsize=8.5,
        )
    plt.close(figure)
    return figure


figure = draw_bucket("last_subject")
pl.notebooks.keep("app_g_last_subject", figure)
figure

# %%
FLOOR = 0.02


def peak(name: str, metric: str, window: int, bucket: str) -> tuple[float, int, float]:
    """The largest effect outside the grey region, its layer, and its SD over draws."""
    here = fx[name].effect.sel(metric=metric, window=window, position=bucket)
    here = here.sel(layer=beyond(window))
    at = int(here.mean("draw").argmax("layer"))
    top = here.isel(layer=at)
    sd = float(top.std("draw", ddof=1)) if top.sizes["draw"] > 1 else float("nan")
    return float(top.mean("draw")), beyond(window)[at], sd


def is_slope(name: str, metric: str, window: int, bucket: str) -> bool:
    """Whether a curve only falls from the grey region to its largest effect outside it."""
    top, layer, _ = peak(name, metric, window, bucket)
    edge = BEFORE[window]
    here = mean[name].effect.sel(metric=metric, window=window, position=bucket)
    return layer == edge + 1 and float(here.sel(layer=edge)) > top


def has_peak(name: str, metric: str, window: int, bucket: str) -> bool:
    """Whether the largest effect outside the grey region is large enough, and a peak of its own."""
    is_large = peak(name, metric, window, bucket)[0] >= FLOOR
    return is_large and not is_slope(name, metric, window, bucket)


def peaks_of(bucket: str) -> pd.DataFrame:
    """The largest effects outside the grey region at one bucket, as text; layers of peaks alone."""
    rows = []
    for metric in METRICS:
        for window in WINDOWS:
            row: dict[str, object] = {"metric": metric, "w": window}
            for name in fx:
                top, layer, sd = peak(name, metric, window, bucket)
                row[name] = f"{top:z.3f}" + ("" if np.isnan(sd) else f" ± {sd:.3f}")
                is_peak = has_peak(name, metric, window, bucket)
                row[f"layer ({name})"] = layer if is_peak else "–"
            rows.append(row)
    return pd.DataFrame(rows)


HEADER = (
    "largest effect outside the grey region (GN: ± SD over draws)\n"
    f"a peak has a layer; –: below {FLOOR}, or only falling from the edge of the grey region"
)
print(f"last subject token: {HEADER}")
pl.notebooks.show(peaks_of("last_subject"))

# %%
largest = {
    bucket: max(peak(n, m, w, bucket)[0] for n in fx for m in METRICS for w in WINDOWS)
    for bucket in BUCKETS
}
settings = [(metric, window) for metric in METRICS for window in WINDOWS]
gn_higher = sum(
    peak("GN", *setting, "last_subject")[0] > peak("STR", *setting, "last_subject")[0]
    for setting in settings
)
shoulders = [
    window
    for window in WINDOWS
    if not any(has_peak(n, m, window, "last_subject") for n in fx for m in METRICS)
]
rising = [window for window in WINDOWS if window not in shoulders]
proper = max(
    (peak(n, m, w, "last_subject")[0] for n in fx for m in METRICS for w in rising),
    default=float("nan"),
)
without = (
    f" ({proper:.3f} without w = {' and '.join(map(str, shoulders))})"
    if shoulders and rising
    else ""
)
tiny = (
    f", or below {FLOOR}"
    if any(peak(n, m, w, "last_subject")[0] < FLOOR for n in fx for m in METRICS for w in shoulders)
    else ""
)
display(
    Markdown(
        f"The largest of these values is {largest['last_subject']:.3f}{without}. "
        + (
            f"Below {FLOOR} we speak of no effect and name no layer, because a maximum over noise has "
            "a layer, too. This model does not show the paper's finding for GPT-2 XL, an effect of "
            "middle MLP layers at the last subject token."
            if largest["last_subject"] < FLOOR
            else "The paper's finding for GPT-2 XL, an effect of MLP layers beyond the first ones at "
            f"the last subject token, has {'a' if rising else 'no'} counterpart in this model. GN's "
            f"value is the higher one in {gn_higher} of {len(settings)} settings (metric and window)."
            + (
                f" At w = {' and '.join(map(str, shoulders))} no curve has a peak of its own beyond the "
                "grey region: the curves only fall from its edge"
                f"{tiny}."
                if shoulders
                else ""
            )
        )
    )
)

# %% [markdown]
# ## 4 All positions (Figures 15 to 19)
#
# Layer by position, a row for each window. Every map has its own scale, symmetric about zero; blue
# brings the answer back, red takes it further away. First under STR, then under GN.
#
# **Look for** (1) the column with the darkest cells; (2) a second column, if there is one; (3) red
# cells.


# %%
def rows_of(name: str) -> dict[str, xr.Dataset]:
    """One result for each window, as the maps need them."""
    return {
        f"w = {window}": mean[name].sel(window=window, drop=True).assign_attrs(window=window)
        for window in WINDOWS
    }


figure = pl.plot.heatmaps(rows_of("STR"), ["logit_diff", "prob"])
pl.notebooks.keep("app_g_maps_STR", figure)
figure

# %% [markdown]
# The same under GN, from the mean over all draws. **Look for** cells that differ from the maps above
# in sign or rank.

# %%
figure = pl.plot.heatmaps(rows_of("GN"), ["logit_diff", "prob"])
pl.notebooks.keep("app_g_maps_GN", figure)
figure

# %%
strongest = []
for name, result in mean.items():
    for metric in METRICS:
        for window in WINDOWS:
            here = result.effect.sel(metric=metric, window=window)
            cell = here.stack(cell=("position", "layer"))
            cell = cell.isel(cell=int(abs(cell).argmax("cell")))
            bucket, layer = cell.cell.item()
            strongest.append(
                {
                    "corruption": name,
                    "metric": metric,
                    "w": window,
                    "colour range": f"±{abs(float(cell)):.2f}",
                    "strongest cell": bucket,
                    "holds layer 0": "yes" if layer <= BEFORE[window] else "no",
                    "smallest effect": f"{float(here.min()):z.3f}",
                }
            )
pl.notebooks.show(pd.DataFrame(strongest))

# %%
cells = {row["strongest cell"] for row in strongest}
sums = pl.paper.value("section_4_1")
active = {
    bucket: f"{bucket.replace('_', ' ')} {largest[bucket]:.2f}"
    + (f" (only {filled} prompts have one)" if filled < len(pairs) else "")
    for bucket in BUCKETS
    if largest[bucket] >= FLOOR
    for filled in [len(pairs) - sizes[bucket].count(0)]
}
effects = xr.concat([mean[name].effect for name in mean], pd.Index(list(mean), name="corruption"))
at = effects.isel({name: int(i) for name, i in effects.argmin(...).items()})
by_ld = float(
    effects.sel(
        {name: at[name] for name in effects.dims if name != "metric"} | {"metric": "logit_diff"}
    )
)
display(
    Markdown(
        "The strongest cell lies in "
        + (
            f"the bucket **{next(iter(cells)).replace('_', ' ')}** in every map."
            if len(cells) == 1
            else f"different buckets ({', '.join(sorted(cells))}), depending on the setting."
        )
        + " Outside the grey region, buckets with an effect of at least "
        + f"{FLOOR}: {', '.join(active.values()) or 'none'}."
        + " In the paper's maps (GPT-2 XL) the last subject token and the last token stand out, by "
        "logit difference the middle subject tokens as well: summed over layers, the last subject "
        f"token has {sums['STR']['logit_diff']:.2f} times their effect under STR and "
        f"{sums['GN']['logit_diff']:.2f} times under GN (Section 4.1; by probability "
        f"{sums['STR']['prob']:.2f} and {sums['GN']['prob']:.2f}).\n\n"
        + f"The smallest effect of all cells is {float(at):z.3f} ({at.corruption.item()}, "
        f"{LABELS[at.metric.item()]}, w = {int(at.window)}, {at.position.item().replace('_', ' ')}, "
        f"layer {int(at.layer)})"
        + (
            f"; by logit difference the same patch has {by_ld:+.3f}. It raises the right answer over the "
            "wrong one, and takes probability from it in favour of other tokens."
            if float(at) < 0 and at.metric.item() == "prob" and by_ld > 0
            else "."
        )
    )
)

# %% [markdown]
# Which bucket holds how much, summed over layers? The paper uses such sums for its ratio of the last
# to the middle subject tokens (Section 4.1). **Look for** the bucket with the largest sum, and for
# sums that change sign with the corruption.

# %%
totals = pd.DataFrame(
    [
        {"corruption": name, "metric": metric, "w": window}
        | {
            bucket.replace("_subject", " subj."): f"{float(value):z.2f}"
            for bucket, value in zip(
                BUCKETS,
                mean[name].effect.sel(metric=metric, window=window).sum("layer").values,
                strict=True,
            )
        }
        for name in fx
        for metric in METRICS
        for window in WINDOWS
    ]
)
pl.notebooks.show(totals)

# %%
summed = effects.sum("layer")
top_buckets = {BUCKETS[int(i)] for i in summed.argmax("position").values.ravel()}
both = summed.sel(corruption="STR"), summed.sel(corruption="GN")
turned = (both[0] * both[1] < 0) & (np.minimum(*map(abs, both)) >= FLOOR)
where = [bucket.replace("_", " ") for bucket in BUCKETS if turned.sel(position=bucket).any()]
display(
    Markdown(
        "The largest sum is that of the "
        + " or the ".join(b.replace("_", " ") for b in BUCKETS if b in top_buckets)
        + f" token in every row; of the sums that reach {FLOOR} under both corruptions, "
        + (f"some change sign, at: {', '.join(where)}." if where else "none changes sign.")
    )
)

# %% [markdown]
# ## 5 The largest effect elsewhere
#
# The curves of section 3 once more, at the bucket that has the largest effect outside the grey region
# if the last subject token is left out. **Look for** the scale beside that of section 3, and for the order
# of STR and GN by probability, and by logit difference.

# %%
other = max((bucket for bucket in BUCKETS if bucket != "last_subject"), key=lambda b: largest[b])
figure = draw_bucket(other)
pl.notebooks.keep("app_g_elsewhere", figure)
figure

# %%
print(f"{other.replace('_', ' ')} token: {HEADER}")
pl.notebooks.show(peaks_of(other))
focus = "last_subject" if largest["last_subject"] >= FLOOR else other
display(
    Markdown(
        f"The largest value is {largest[other]:.3f} here and {largest['last_subject']:.3f} at the last "
        "subject token."
    )
)

# %% [markdown]
# ## 6 GN against STR
#
# The paper finds that GN gives the higher peaks at the last subject token, and more so by
# probability. The table gives peak under GN / peak under STR, outside the grey region. The
# paper's column is the quotient of peaks **read from figures** 2, 13 and 14 by eye. "–": one of the two
# curves has no peak, since it is below 0.02 or falls from the edge of the grey region.
#
# **Look for** whether probability and logit difference tell the same story.


# %%
def gn_to_str(metric: str, window: int, bucket: str) -> float | None:
    """The peak under GN over the peak under STR; None where one of them is no peak."""
    if not all(has_peak(name, metric, window, bucket) for name in ("GN", "STR")):
        return None
    gn, token = (peak(name, metric, window, bucket)[0] for name in ("GN", "STR"))
    return gn / token


def shown(value: float | None) -> str:
    """A ratio as text."""
    return "–" if value is None else f"{value:.1f}×"


def papers_ratio(metric: str, window: int) -> str:
    """The paper's ratio as text; for one, Figure 13 gives no more than a bound of STR's peak."""
    value = read[metric].get(str(window))
    if value is None:
        return "not given"
    return f"about {value:.0f}×" if (metric, window) == ("prob", 3) else shown(value)


read = pl.paper.value("gn_to_str_peaks")
places = ["last_subject", other]
pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "metric": metric,
                "w": window,
                "paper, read from figures (last subject)": papers_ratio(metric, window),
            }
            | {
                f"here: {place.replace('_', ' ')}": shown(gn_to_str(metric, window, place))
                for place in places
            }
            for metric in METRICS
            for window in WINDOWS
        ]
    )
)

# %%
ratios = {
    metric: [value for window in WINDOWS if (value := gn_to_str(metric, window, focus)) is not None]
    for metric in METRICS
}


def span(values: list[float]) -> str:
    """The smallest and largest ratio."""
    if not values:
        return "no ratio"
    low, high = f"{min(values):.1f}×", f"{max(values):.1f}×"
    return low if low == high else f"{low} to {high}"


compared = [
    window
    for window in WINDOWS
    if None not in (gn_to_str("prob", window, focus), gn_to_str("logit_diff", window, focus))
]
as_in_paper = [
    window
    for window in compared
    if gn_to_str("prob", window, focus) > gn_to_str("logit_diff", window, focus) > 1
]
uncompared = [window for window in WINDOWS if window not in compared]
next_to_nothing = [
    (metric, window)
    for metric, window in settings
    if has_peak("GN", metric, window, focus) and peak("STR", metric, window, focus)[0] < FLOOR
]
gap = {name: float(over_all(mean[name].corrupted).sel(metric="prob")) for name in fx}
display(
    Markdown(
        f"GN's peak over STR's at the {focus.replace('_', ' ')} token: {span(ratios['prob'])} by "
        f"probability, {span(ratios['logit_diff'])} by logit difference. "
        + (
            "As in the paper, GN is above STR by both metrics, and by more with probability, at w = "
            f"{', '.join(map(str, as_in_paper))}" + ("" if as_in_paper == compared else " only")
            if as_in_paper
            else "At no window is GN above STR by both metrics, and by more with probability, as in "
            "the paper"
        )
        + (
            f"; w = {', '.join(map(str, uncompared))} cannot be compared by both metrics."
            if uncompared
            else "."
        )
        + "".join(
            f" By {LABELS[m]} with w = {w}, STR's largest effect is {peak('STR', m, w, focus)[0]:z.3f} "
            f"beside GN's {peak('GN', m, w, focus)[0]:.3f}: say that STR shows next to nothing there, "
            "rather than quote a ratio."
            for m, w in next_to_nothing
        )
        + f" The corrupted runs start from P(r) = {gap['STR']:.3f} under STR and {gap['GN']:.3f} under "
        "GN. A probability that starts close to zero rises only after the logits have come a long "
        "way, so that part of the ratio by probability belongs to the metric, not to the layers."
    )
)

# %% [markdown]
# The ratio draw by draw: one draw of the noise beside the mean over all. **Look for** how far single
# draws lie apart.

# %%
by_draw = []
for metric in METRICS:
    for window in WINDOWS:
        if gn_to_str(metric, window, focus) is None:
            continue
        here = fx["GN"].effect.sel(metric=metric, window=window, position=focus)
        tops = here.sel(layer=beyond(window)).max("layer").values
        token = peak("STR", metric, window, focus)[0]
        by_draw.append(
            {
                "metric": metric,
                "w": window,
                "all draws": shown(gn_to_str(metric, window, focus)),
                "single draws": ", ".join(shown(top / token) for top in tops),
                "SD": f"{(tops / token).std(ddof=1):.2f}" if len(tops) > 1 else "–",
            }
        )
if by_draw:
    pl.notebooks.show(pd.DataFrame(by_draw))

# %%
# claim: of all windows outside the grey region, the first one begins at layer 1
for window in WINDOWS:
    assert beyond(window)[0] - BEFORE[window] == 1
# claim: summing over layers and averaging over draws may change places, as in the table of sums
for name, result in fx.items():
    np.testing.assert_allclose(
        result.effect.sum("layer").mean("draw"), mean[name].effect.sum("layer"), atol=1e-6
    )

# %% [markdown]
# ## 7 The paper's three models
#
# Appendix G.1 to G.3 are GPT-2 XL, G.4 is GPT-2 large (last subject token, Figures 24 and 25), G.5 is
# GPT-J (all positions, Figures 26 and 27). The settings are in `data/experiments.json`, and this
# notebook takes them from there, so that `PATCHLIB_MODEL=EleutherAI/gpt-j-6b` is all that is needed,
# besides a machine that holds the model.
#
# What would it cost? A **patched run** is one prompt, in one cell (layer, position, window), under
# one draw. The table counts them: prompts × layers × positions × windows × (draws of GN + 1 for STR).

# %%
experiments = json.loads(pl.experiments.EXPERIMENTS.read_text(encoding="utf-8"))
LAYERS = {"gpt2-large": 36, "gpt2-xl": 48, "EleutherAI/gpt-j-6b": 28}
PARAMETERS = {"gpt2-large": 0.8, "gpt2-xl": 1.6, "EleutherAI/gpt-j-6b": 6.1}
HERE = {"app_g_factual_recall": "this notebook", "5_sliding_window": "Section 5"}


def count(own: dict, layers: int, positions: int) -> int:
    """How many patched runs one experiment takes, both corruptions together."""
    return own["n"] * layers * positions * len(own["window"]) * (own["draws"] + 1)


plan = []
for experiment, where in HERE.items():
    entry = experiments[experiment]
    for which, own in entry["settings"].items():
        layers = LAYERS.get(which, n_layers if which == model.cfg.model_name else None)
        if layers is None:
            continue
        # Section 5 looks at the last subject token and at the last one.
        positions = len(entry["positions"]) if isinstance(entry["positions"], list) else 2
        plan.append(
            {
                "experiment": where,
                "model": which,
                "layers": layers,
                "prompts": own["n"],
                "draws": own["draws"],
                "windows": ", ".join(map(str, own["window"])),
                "positions": positions,
                "patched runs": f"{count(own, layers, positions):,}",
            }
        )
pl.notebooks.show(pd.DataFrame(plan))

# %% [markdown]
# For scale: a patched run of a model costs about 2 × its parameters × the tokens of the prompt in
# floating-point operations, if the whole model is run (0.8, 1.6 and 6.1 billion parameters; prompts
# of about 10 tokens). The fast engine starts at the first patched layer, which
# on average saves about half of them.

# %%
TOKENS = 10
costs = []
for row in plan:
    if row["model"] in PARAMETERS:
        runs = int(row["patched runs"].replace(",", ""))
        work = runs * 2 * PARAMETERS[row["model"]] * 1e9 * TOKENS
        costs.append(
            {
                "experiment": row["experiment"],
                "model": row["model"],
                "patched runs (millions)": f"{runs / 1e6:.2f}",
                "work (10^15 operations)": f"{work / 1e15:.0f}",
            }
        )
pl.notebooks.show(pd.DataFrame(costs))

# %%
# claim: the count for the loaded model is the number of rows that its sweeps really took
rows_taken = sum(
    len(pairs) * how.draws * n_layers * len(BUCKETS) * len(WINDOWS) for how in corruptions.values()
)
assert count(S, n_layers, len(BUCKETS)) == rows_taken

# %% [markdown]
# Traps when you compare with these figures:
#
# * **Figures 24 and 25** (GPT-2 large) have captions for windows of 3 and of 5, but the printed images
#   are the same. The plateau of three layers speaks for w = 5 in both.
# * **Figures 26 and 27** (GPT-J): the sub-captions of both say GN; by the captions, 26 is STR.
# * **GPT-J** runs attention and MLP of a layer in parallel. Its MLP reads the residual stream
#   *before* the layer's attention, so "the same layer" is not quite the same thing as in GPT-2.
#
# ## Summary

# %%
left_out = [(m, w) for m, w in settings if gn_to_str(m, w, focus) is None]
points = [
    f"**Last subject token.** The largest value outside the grey region is {largest['last_subject']:.3f}"
    + without
    + (
        ": no effect to speak of, unlike in the paper's models."
        if largest["last_subject"] < FLOOR
        else "."
        if not has_peak("GN", "logit_diff", WINDOWS[0], "last_subject")
        else f". With w = {WINDOWS[0]}, GN's peak by logit difference is at layer "
        f"{peak('GN', 'logit_diff', WINDOWS[0], 'last_subject')[1]}."
    ),
    f"**Position.** Elsewhere the largest such value is {largest[other]:.3f}, at the "
    f"{other.replace('_', ' ')} token; buckets that reach {FLOOR}: "
    f"{', '.join(bucket.replace('_', ' ') for bucket in active) or 'none'}.",
    f"**GN against STR** at the {focus.replace('_', ' ')} token: {span(ratios['prob'])} by probability, "
    f"{span(ratios['logit_diff'])} by logit difference"
    + (
        " (without "
        + ", ".join(f"w = {window} by {LABELS[metric]}" for metric, window in left_out)
        + ", where STR or GN has no peak)."
        if left_out
        else "."
    ),
    "**Report** the position, the window and its `before`, the metric, the corruption and the number "
    "of draws: each of them changes the map.",
]
listed = "\n".join(f"{i}. {point}" for i, point in enumerate(points, 1))
display(Markdown(f"For **{model.cfg.model_name}** on {len(pairs)} facts:\n\n{listed}"))

# %% [markdown]
# ## The paper beside this run
#
# The paper's column is read from figures by eye, for the model in the last column: peaks of middle
# layers and plateaus at the last subject token (for this run: the maximum of the grey region), and colour ranges of the maps ("≤": no more than a
# bound can be read). A difference on another model is a finding about the model, not an error.

# %%
who = fx["GN"].attrs["model"]
# Their windows, by the captions; figures 24 and 25 are of GPT-2 large, 26 and 27 of GPT-J.
CURVES = {"figure12": 1, "figure13": 3, "figure14": 10, "figure24": 3, "figure25": 5}
MAPS = {
    "figure15": ("GN", 3),
    "figure16": ("STR", 3),
    "figure17": ("GN", 5),
    "figure18": ("GN", 10),
    "figure19": ("STR", 10),
    "figure26": ("STR", 5),
    "figure27": ("GN", 5),
}
OF = {id: entry["model"] for id, entry in pl.paper.load().items()}


def too_deep(window: int) -> str:
    """Why a window is missing."""
    if window in WINDOWS:
        return ""
    if window > n_layers:
        return f"no window of {window} in {n_layers} layers"
    return f"no window of {window} in this model's settings"


def colour_range(name: str, metric: str, window: int) -> float:
    """The largest absolute effect of one map."""
    return float(abs(mean[name].effect.sel(metric=metric, window=window)).max())


def like(values: dict, name: str, metric: str, window: int) -> dict[str, float]:
    """This run's numbers for those that the paper has: peak, plateau, single layers."""
    here = fx[name].effect.sel(metric=metric, window=window, position="last_subject").mean("draw")
    top, layer, _ = peak(name, metric, window, "last_subject")
    found = {"plateau": float(here.sel(layer=slice(0, BEFORE[window])).max())}
    found |= {str(at): float(here.sel(layer=at)) for at in range(n_layers)}
    found |= {} if is_slope(name, metric, window, "last_subject") else {"peak": top}
    found |= {"peak_layer": layer} if has_peak(name, metric, window, "last_subject") else {}
    return {key: round(found[key], 6) for key in values if key in found}


def papers_value(id: str, name: str, metric: str, key: str) -> float | str:
    """The paper's number, as text where it is an upper bound."""
    value = pl.paper.value(id)[name][metric][key]
    is_bound = (name, metric, key) == ("STR", "prob", "peak")
    if is_bound and "an upper bound" in pl.paper.load()[id]["unit"]:
        return f"≤ {value:.3f}"
    return value


NO_PEAK = "no maximum beyond the windows that hold layer 0"
SHOWN = {"peak": "peak", "plateau": "maximum, grey region"}
quantities = []
for id, window in CURVES.items():
    here, whys = {}, {too_deep(window)} - {""}
    for name, by_metric in pl.paper.value(id).items():
        for metric, values in by_metric.items():
            own = like(values, name, metric, window) if window in WINDOWS else {}
            if own:
                here.setdefault(name, {})[metric] = own
            quantities += [
                (
                    f"{SHOWN[key]}, {name}, {LABELS[metric]}, w = {window}",
                    papers_value(id, name, metric, key),
                    own.get(key, "no peak" if window in WINDOWS else None),
                    f"fig. {id[6:]}, {OF[id]}",
                )
                for key in SHOWN
                if key in values
            ]
            if window in WINDOWS and "peak" not in own and "peak" in values:
                whys.add(NO_PEAK)
            if "peak" in own and "peak_layer" in values and "peak_layer" not in own:
                whys.add(f"a peak below {FLOOR} has no layer worth a number")
    pl.paper.record(id, here, model=who, why="; ".join(sorted(whys)))
for id, (name, window) in MAPS.items():
    here = {}
    for metric, limit in pl.paper.value(id)[name].items():
        widest = colour_range(name, metric, window) if window in WINDOWS else None
        what = f"colour range ±, {name}, {LABELS[metric]}, w = {window}"
        quantities.append((what, limit, widest, f"fig. {id[6:]}, {OF[id]}"))
        if widest is not None:
            here.setdefault(name, {})[metric] = round(widest, 4)
    pl.paper.record(id, here, model=who, why=too_deep(window))
measured = {
    metric: {
        str(window): value
        for window in WINDOWS
        if str(window) in read[metric]
        and (value := gn_to_str(metric, window, "last_subject")) is not None
    }
    for metric in METRICS
}
quantities += [
    (
        f"peak under GN / under STR, {LABELS[metric]}, w = {window}",
        papers_ratio(metric, int(window)),
        shown(measured[metric][window])
        if window in measured[metric]
        else "no ratio"
        if int(window) in WINDOWS
        else None,
        "fig. 2, 13, 14, GPT-2 XL",
    )
    for metric in METRICS
    for window in read[metric]
]
slopes = {(m, w) for m, w in settings if any(is_slope(name, m, w, "last_subject") for name in fx)}
reasons = [
    too_deep(int(window))
    or f"w = {window}: {NO_PEAK if (metric, int(window)) in slopes else f'a peak below {FLOOR}'}"
    for metric in METRICS
    for window in read[metric]
    if window not in measured[metric]
]
pl.paper.record(
    "gn_to_str_peaks",
    {metric: values for metric, values in measured.items() if values},
    model=who,
    why="; ".join(sorted({*filter(None, reasons)})),
)
pl.notebooks.show(
    pl.paper.table(quantities, decimals=3).rename(
        columns={"paper (GPT-2)": "paper", "section": "read from (Appendix G)"}
    )
)

# %% [markdown]
# ## Exercises
#
# **1 (easy). Another phrasing.** The facts come in three phrasings (`phrasing=0, 1, 2`). Does the map
# for single layers under STR stay the same?
#
# <details><summary>Solution</summary>
#
# ```python
# for phrasing in range(3):
#     others = pl.tasks.factual_recall(model, n=40, phrasing=phrasing)
#     result = pl.patch(model, others, "mlp", corruption=pl.STR("subject"), positions=BUCKETS,
#                       metrics=["logit_diff"], progress=False)
#     print(phrasing, result.effect.max("layer").squeeze(drop=True).to_series().round(2).to_dict())
# ```
#
# The positions are named, so that maps of different sentences can be compared. What differs between
# phrasings is a result about sentences, and what stays is one about facts.
#
# </details>
#
# **2 (medium). Attention.** Draw the maps for `"attn"` instead of `"mlp"`. Where does the information
# about the subject travel?
#
# <details><summary>Solution</summary>
#
# ```python
# attn = pl.patch(model, pairs, "attn", corruption=pl.STR("subject"), positions=BUCKETS,
#                 metrics=METRICS, progress=False)
# pl.plot.heatmaps({"STR": attn}, ["logit_diff", "prob"])
# ```
#
# ROME finds attention to matter late, at the last token. Compare the layers with those of the MLPs:
# attention has to bring the subject to a token before an MLP there can use it.
#
# </details>
#
# **3 (hard). Is one bucket enough?** Restoring the residual stream (`"resid"`) at a bucket restores all
# that has been computed there so far. At which layer does the last token take over from the subject?
#
# <details><summary>Solution</summary>
#
# ```python
# resid = pl.patch(model, pairs, "resid", corruption=pl.STR("subject"),
#                  positions=["subject", "last_subject", "last"], metrics=["logit_diff"],
#                  progress=False)
# print(resid.effect.squeeze(drop=True).to_pandas().round(2))
# ```
#
# At layer 0 the whole subject restores everything, by definition; before the last layer the last token
# does most. Where the two curves cross, the information has moved. Compare `subject` with
# `last_subject`: the difference is what the other tokens of the subject hold.
#
# </details>
#
# ## Where to go next
#
# [Section 5](05_sliding_window.ipynb) asks why windows give more, or less, than the sum of their
# layers.

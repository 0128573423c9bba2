# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3.1 Factual recall: does the corruption decide where a fact is found?
#
# | | |
# |---|---|
# | **You will learn** | how a sliding window of MLP layers is restored at the last subject token; how far noise (GN) and token replacement (STR) agree on where a fact sits; how to tell a peak from a wiggle |
# | **Time** | 25 minutes to read, less than a minute to run |
# | **Paper** | [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042): Section 3.1, Figure 2, Appendix B |
# | **You need** | what clean, corrupted and patched runs are, and the metrics probability and logit difference (Section 2 of the paper) |
# | **Another model** | set the environment variable `PATCHLIB_MODEL=gpt2-xl` before you start Jupyter, and run all cells again: that is the paper's own experiment, and asks for a GPU |
#
# Layers count from zero.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from IPython.display import Markdown, display
from matplotlib.ticker import MaxNLocator

import patchlib as pl

model = pl.load_model()
pl.notebooks.versions(model, "3_1_factual_recall")

# %% [markdown]
# ## 1 The task
#
# *"The Eiffel Tower is in the city of"* should go on with *" Paris"*. The facts come in **pairs**:
# two sentences of one form, with subjects of the same number of tokens and different answers. The
# answer of the sentence itself is r, that of its partner r′, and `LD = Logit(r) − Logit(r′)`.
#
# **Setting**, as in Section 3 of the paper. All tokens of the subject are corrupted: STR puts the
# partner's subject in their place, GN adds noise of three standard deviations of the embedding
# matrix to their embeddings. What is restored is the output of the MLPs at the **last subject
# token**, five adjacent layers at a time: layer l − 2 to layer l + 2, cut at the first and the last
# layer.
#
# GPT-2 XL, GPT-2 large and GPT-J get the paper's number of prompts, any other model fewer. The
# facts are the project's own, so even GPT-2 XL will not meet the paper's numbers to the last digit.

# %%
S = pl.experiments.settings("3_1_factual_recall", model)
WINDOW, BEFORE = S["window"], S["before"]
pairs = pl.tasks.factual_recall(model, n=S["n"], prepend_bos=S["prepend_bos"])
lengths = [len(prompt.clean) for prompt in pairs.prompts]
print(f"{len(pairs)} prompts of {min(lengths)} to {max(lengths)} tokens, first token included")
print(f"windows of {WINDOW} layers, {S['draws']} draws of the noise")

# %% [markdown]
# ### What STR does to a subject
#
# **Look for** the two directions of a pair: r and r′ change places, and nothing but the facts
# themselves can make one direction easier than the other. In the paper each sentence is the clean
# prompt once and the corrupted prompt once (Appendix B), and so it is in the project's file; a
# sample of the file, as here, holds only one direction of some pairs.

# %%
where_is = {prompt.clean: row for row, prompt in enumerate(pairs.prompts)}
reverse = [where_is.get(prompt.corrupted["subject"]) for prompt in pairs.prompts]
both = [row for row, other in enumerate(reverse) if other is not None]
decode = model.tokenizer.decode
first = both[0] if both else 0
for row in [first] if reverse[first] is None else [first, reverse[first]]:
    prompt = pairs.prompts[row]
    subject, other = (
        decode([tokens[i] for i in prompt.positions["subject"]]).strip()
        for tokens in (prompt.clean, prompt.corrupted["subject"])
    )
    print(prompt.text, "...")
    print(f"    subject: {subject} → {other}")
    print(f"    r ={decode(prompt.answers[0])}, r′ ={decode(prompt.wrong_answers[0])}")
print(f"{len(both)} of {len(pairs)} prompts have their other direction among these prompts too")

# %%
# claim: the partner's answers are this prompt's answers with r and r′ exchanged
for row in both:
    here, there = pairs.prompts[row], pairs.prompts[reverse[row]]
    assert (here.answers, here.wrong_answers) == (there.wrong_answers, there.answers)
    assert there.corrupted["subject"] == here.clean

# %% [markdown]
# ### What GN does to a subject
#
# Noise leaves the tokens as they are and moves their embeddings. To see where to, we ask which
# token's embedding points most nearly in the direction of the noisy one. **Look for** how long the
# noise is, compared with the embedding that it is added to, and whether the token can still be
# recognised: the cosine between an embedding and its noisy version.

# %%
noise = pl.GN("subject", draws=2)
example = pairs[first : first + 1]
embedding = model.W_E.detach().float().cpu()
unit = embedding / embedding.norm(dim=1, keepdim=True)
seen = []
for draw in range(2):
    added = noise.noise(model, example, draw)[0]
    for i in example.at("subject")[0]:
        token = example.prompts[0].clean[i]
        noisy = embedding[token] + added[i]
        cosine = unit @ (noisy / noisy.norm())
        seen.append(
            {
                "draw": draw,
                "token": decode(token).strip(),
                "length of noise / embedding": f"{added[i].norm() / embedding[token].norm():.1f}",
                "cosine with itself": f"{cosine[token]:.2f}",
                "nearest token": decode(int(cosine.argmax())).strip(),
            }
        )
pl.notebooks.show(pd.DataFrame(seen))

# %% [markdown]
# A noisy embedding belongs to no token at all: the model has never met such an input. That is the
# paper's concern about GN (Section 3.2); a replaced subject is one that the model knows.

# %% [markdown]
# ## 2 One sweep for each corruption
#
# `pl.patch` with `positions="last_subject"` finds that token in every prompt by itself. We keep
# one value for each prompt (for intervals over prompts) and for each draw of the noise (for the
# spread over draws); the paper reports means and does not say how many draws they are taken over.

# %%
METRICS = ["prob", "logit_diff"]
LABELS = {"prob": "probability", "logit_diff": "logit difference"}


def sweep(corruption, some, positions: str = "last_subject") -> xr.Dataset:
    """Restores windows of MLP layers at one position; one value per prompt and draw."""
    return pl.patch(
        model,
        some,
        "mlp",
        corruption=corruption,
        window=WINDOW,
        before=BEFORE,
        positions=positions,
        metrics=[*METRICS, "wrong_prob", "accuracy"],
        keep_prompts=True,
        keep_draws=True,
        progress=False,
    )


corruptions = {"STR": pl.STR("subject"), "GN": pl.GN("subject", draws=S["draws"])}
raw = {name: sweep(corruption, pairs) for name, corruption in corruptions.items()}
by_draw = {name: result.mean("prompt", keep_attrs=True) for name, result in raw.items()}
fx = {name: result.mean("draw", keep_attrs=True) for name, result in by_draw.items()}
for name, result in by_draw.items():
    pl.notebooks.keep(f"03_1_facts_{name}", result)
dict(raw["GN"].effect.sizes)

# %% [markdown]
# ## 3 Before patching: what does each corruption do?
#
# **Look for** the right answer's probability in the corrupted runs, which should be small, and for
# the *wrong* one's. STR asks the model about another subject, so it may say r′ with confidence; GN
# asks about nothing that it knows.

# %%
baseline_values = {
    "clean": fx["STR"].clean,
    "STR": fx["STR"].corrupted,
    "GN": fx["GN"].corrupted,
}


def value_of(run: str, metric: str) -> float:
    """One metric of an unpatched run, as a mean over prompts and draws."""
    return float(baseline_values[run].sel(metric=metric))


pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "run": run,
                "P(r)": f"{value_of(run, 'prob'):.3f}",
                "P(r′)": f"{value_of(run, 'wrong_prob'):.3f}",
                "logit difference": f"{value_of(run, 'logit_diff'):.2f}",
                "r is the first choice": f"{100 * value_of(run, 'accuracy'):.0f} %",
            }
            for run in baseline_values
        ]
    )
)

# %%
paper_models = pl.paper.value("facts_models")


def confident(run: str) -> str:
    """In words, what an unpatched run answers."""
    right, wrong = value_of(run, "prob"), value_of(run, "wrong_prob")
    if max(right, wrong) < 0.1:
        return "gives neither answer much probability"
    return "leans to the right answer" if right > wrong else "leans to the wrong answer"


distance = {
    (name, metric): value_of("clean", metric) - value_of(name, metric)
    for name in corruptions
    for metric in METRICS
}
display(
    Markdown(
        "\n".join(
            f"* **{run}**: the model {confident(run)}: {value_of(run, 'prob'):.2f} for r, "
            f"{value_of(run, 'wrong_prob'):.2f} for r′."
            for run in baseline_values
        )
        + f"\n\nThe clean logit difference is {value_of('clean', 'logit_diff'):.2f}. In the paper "
        + ", ".join(
            f"{known} has {numbers['prob']:.2f} and {numbers['logit_diff']:.2f}"
            for known, numbers in paper_models.items()
        )
        + " (probability and logit difference, clean; Appendix B). The distance between the clean "
        f"and the corrupted logit difference, by which effects are divided, is "
        f"{distance['STR', 'logit_diff']:.1f} under STR and {distance['GN', 'logit_diff']:.1f} under GN."
    )
)

# %%
# claim: the clean logit difference, measured here without any patching
by_hand = []
for _, group in pairs.by_length():
    with torch.no_grad():
        logits = model(group.clean_tokens)[:, -1].float().cpu()
    r, r_wrong = (
        torch.tensor([prompt.answers[0] for prompt in group.prompts]),
        torch.tensor([prompt.wrong_answers[0] for prompt in group.prompts]),
    )
    rows = torch.arange(len(group))
    by_hand += (logits[rows, r] - logits[rows, r_wrong]).tolist()
assert abs(np.mean(by_hand) - value_of("clean", "logit_diff")) < 1e-2

# %% [markdown]
# ## 4 Figure 2: the effect over layers
#
# Each point is the window around that layer. Two things help to read it.
#
# * **The grey region.** A window that contains layer 0 may repair the last subject token almost
#   from the start: that shows that the token was corrupted, not that a fact is stored there. In the
#   paper's Figure 2 both corruptions have a plateau on layers 0 to 2, and its comparison of peaks
#   is about the layers after it, although the paper does not say where these begin. Here **middle
#   layers are those whose window does not contain layer 0**: for windows of five, layer 3 and up.
# * **The line of notice** (dotted). An effect below 2 % of the distance between the clean and the
#   corrupted run is too small to carry a story, whatever its shape. The paper has no such line; it
#   is ours, so that no peak is read into noise.
#
# **Look for** (1) a hump in the middle layers, (2) how much higher orange (GN) is than blue (STR),
# (3) whether one draw of the noise (thin line) would have told the same as their mean.

# %%
layers = fx["STR"].layer.values
middle = layers[layers > BEFORE]
NOTICE = 0.02


def line(name: str, metric: str) -> float:
    """The line of notice, in the unit of the effect; the logit difference is normalised already."""
    return NOTICE * (distance[name, metric] if metric == "prob" else 1)


COLOURS = {"STR": "#0072B2", "GN": "#D55E00"}
sd = {name: result.effect.std("draw", ddof=1) for name, result in by_draw.items()}


def figure_2(results, where: str):
    """Effects over layers in two panels; STR and GN, the mean over draws and one draw."""
    with plt.rc_context({"font.size": 8, "pdf.fonttype": 42}):
        figure, panels = plt.subplots(1, 2, figsize=(6.8, 2.9), layout="constrained")
        for axes, metric in zip(panels, METRICS, strict=True):
            axes.axvspan(-0.5, BEFORE + 0.5, color="0.93", zorder=0, label="window has layer 0")
            axes.axhline(0, color="0.5", linewidth=0.6, zorder=1)
            for name, result in results.items():
                effect = result.effect.sel(metric=metric)
                n_draws = effect.sizes["draw"]
                several = f", mean of {n_draws} draws" if name == "GN" else ""
                pl.plot.add_curve(axes, effect, name + several)
                height = line(name, metric)
                axes.axhline(height, color=COLOURS[name], linewidth=0.9, linestyle=":")
                if n_draws > 1:
                    one = effect.sel(draw=0)
                    axes.plot(layers, one, "--", color=COLOURS[name], lw=0.7, label="GN, one draw")
            axes.set_xlim(-0.5, layers[-1] + 0.5)
            axes.set_xlabel(f"layer (middle of the window of {WINDOW})")
        panels[0].set_ylabel("effect: probability")
        panels[1].set_ylabel("effect: normalised LD")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=7
        )
        n_prompts = results["STR"].attrs["n_prompts"]
        figure.suptitle(
            f"MLPs restored at the {where} ({model.cfg.model_name}, {n_prompts} prompts)\n"
            f"band: ± SD over draws; dotted: {100 * NOTICE:.0f} % of the way from corrupted to clean",
            fontsize=9,
        )
    plt.close(figure)
    return figure


# %%
figure = figure_2(by_draw, "last subject token")
pl.notebooks.keep("03_1_facts_curves", figure)
figure

# %% [markdown]
# The same in numbers: the highest point of the grey region, and of the middle layers with its
# standard deviation over draws. A maximum is called a **peak** only where it reaches the line of
# notice and is higher than both its neighbours; a maximum at the first middle layer is as a rule
# the slope of something higher in the grey region: a plateau, or a hump whose windows happen to hold
# layer 0.


# %%
def highest(effect: xr.DataArray, among) -> tuple[int, float]:
    """The layer with the largest effect among some, and that effect."""
    some = effect.sel(layer=among)
    layer = int(some.layer[int(some.argmax("layer"))])
    return layer, float(some.sel(layer=layer))


def noticed(name: str, metric: str, effect: float) -> bool:
    """Whether an effect reaches the line of notice."""
    return effect >= line(name, metric)


def stands_out(name: str, metric: str, effect: xr.DataArray, layer: int) -> bool:
    """Whether the effect at a layer is noticed and larger than at both its neighbours."""
    neighbours = [n for n in (layer - 1, layer + 1) if n in layers]
    here = float(effect.sel(layer=layer))
    return noticed(name, metric, here) and all(
        here > float(effect.sel(layer=n)) for n in neighbours
    )


def is_peak(name: str, metric: str) -> bool:
    """Whether the maximum of the middle layers is a peak."""
    return stands_out(name, metric, fx[name].effect.sel(metric=metric), top[name, metric][0])


def spread(name: str, metric: str, layer: int) -> str:
    """The standard deviation over draws as text."""
    value = float(sd[name].sel(metric=metric, layer=layer))
    return f"{value:.3f}" if name == "GN" and S["draws"] > 1 else "–"


top, early = (
    {
        (name, metric): highest(fx[name].effect.sel(metric=metric), among)
        for name in fx
        for metric in METRICS
    }
    for among in (middle, layers[: BEFORE + 1])
)
pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "metric": LABELS[metric],
                "corruption": name,
                "maximum, grey": f"{early[name, metric][1]:.3f}",
                "maximum, middle": f"{top[name, metric][1]:.3f}",
                "SD over draws": spread(name, metric, top[name, metric][0]),
                "at layer": top[name, metric][0],
                "noticed": "yes" if noticed(name, metric, top[name, metric][1]) else "no",
                "peak": "yes" if is_peak(name, metric) else "no",
            }
            for metric in METRICS
            for name in fx
        ]
    )
)

# %% [markdown]
# ## 5 How much higher is GN than STR?
#
# In the paper, the peak of GN is 2 to 5 times as high as that of STR, whatever the metric and the
# size of the window (Section 3.1). A ratio of two numbers that are both next to nothing means
# nothing, so it is formed only where both reach the line of notice.

# %%
paper = pl.paper.value("section_3_1")
least, most = paper["GN_to_STR_peak"]


def ratio(metric: str, where: dict) -> float:
    """GN's maximum over STR's, or NaN where one of them is not noticed."""
    values = {name: where[name, metric][1] for name in ("GN", "STR")}
    if not all(noticed(name, metric, value) for name, value in values.items()):
        return float("nan")
    return values["GN"] / values["STR"]


ratios = {metric: ratio(metric, top) for metric in METRICS}
early_ratios = {metric: ratio(metric, early) for metric in METRICS}
lines = []
for metric in METRICS:
    unseen = [name for name in fx if not noticed(name, metric, top[name, metric][1])]
    if unseen:
        said = (
            f"no ratio, as the maximum under {' and '.join(unseen)} is below "
            f"{100 * NOTICE:.0f} % of the distance between the clean and the corrupted run"
        )
    else:
        inside = least <= ratios[metric] <= most
        said = (
            f"GN is {ratios[metric]:.1f} times as high as STR, "
            f"{'within' if inside else 'outside'} the paper's range of {least} to {most}"
        )
    lines.append(
        f"* **{LABELS[metric]}**: {said}; GN's maximum is at layer {top['GN', metric][0]}, STR's "
        f"at layer {top['STR', metric][0]}."
    )
lines.append(
    f"* **The paper**, GPT-2 XL: GN peaks around layer {paper['GN_peak_layer']} of 48, and under "
    "STR the peak is “not salient at all”."
)
display(Markdown("\n".join(lines)))

# %% [markdown]
# The grey region answers the same question differently: read from the paper's Figure 2, GN's plateau
# is the higher one by probability, and STR's by logit difference. So which corruption "finds more"
# can depend on the metric and on which layers one looks at. Beside it stands the maximum of the grey
# region of this run; whether that is a plateau, too, depends on what layer 0 does alone.

# %%
paper_plateau = {
    (name, metric): float(np.mean(pl.paper.value("figure2")[name][metric]["plateau"]))
    for name in fx
    for metric in METRICS
}
pl.notebooks.show(
    pl.paper.table(
        [
            (
                f"grey region, GN / STR, {LABELS[metric]}",
                paper_plateau["GN", metric] / paper_plateau["STR", metric],
                early_ratios[metric]
                if early_ratios[metric] == early_ratios[metric]
                else "no ratio",
                "3.1, Figure 2",
            )
            for metric in METRICS
        ],
        decimals=1,
        model="GPT-2 XL",
    )
)

# %%
few, FEW_DRAWS = pairs[:50], min(3, S["draws"])
few_corruptions = {"STR": pl.STR("subject"), "GN": pl.GN("subject", draws=FEW_DRAWS)}
alone = {
    name: pl.patch(
        model,
        few,
        "mlp",
        corruption=corruption,
        positions="last_subject",
        metrics=METRICS,
        progress=False,
    ).effect
    for name, corruption in few_corruptions.items()
}
best_alone = {
    (name, metric): highest(alone[name].sel(metric=metric), layers)
    for metric in METRICS
    for name in fx
}
no_plateau = [
    f"{name} by {LABELS[metric]} ({float(alone[name].sel(metric=metric, layer=0)):z.2f} at layer 0, "
    f"{effect:z.2f} at layer {layer})"
    for (name, metric), (layer, effect) in best_alone.items()
    if layer != 0
]
grey_humps = ", ".join(
    f"{name} by {LABELS[metric]} (layer {layer})"
    for (name, metric), (layer, _) in early.items()
    if layer > 0 and stands_out(name, metric, fx[name].effect.sel(metric=metric), layer)
)
hump_inside = (
    f" With windows of {WINDOW} the curve has a hump **inside the grey region**: {grey_humps}. It "
    "does not count as a peak of the middle layers only because its windows hold layer 0."
    if grey_humps
    else ""
)
display(
    Markdown(
        f"Restored alone ({len(few)} prompts), layer 0 is **not the strongest layer** under "
        f"{', '.join(no_plateau)}. There the grey region shows no plateau, and the two columns of the "
        "table cannot be compared." + hump_inside
        if no_plateau
        else f"Restored alone ({len(few)} prompts), layer 0 is the strongest layer under both "
        "corruptions by both metrics, as a plateau requires." + hump_inside
    )
)

# %% [markdown]
# ### Does it depend on the window?
#
# The paper's range holds for windows of 3, 5 and 10 layers (Appendix G). There is a second reason to
# ask: five layers are a tenth of GPT-2 XL, and more than half of a model of eight. Then most windows
# share most of their layers, and a curve can hardly rise and fall. We take the windows that cover at
# most two thirds of the model, and the narrowest in any case.
#
# **Look for** (1) a hump in a narrower window that the window of five hides, (2) whether the window
# moves the ratio of GN to STR more than the metric does.

# %%
WINDOWS = {3: 1, 5: 2, 10: 5}
widths = {
    width: reach
    for width, reach in WINDOWS.items()
    if width == min(WINDOWS) or width <= 2 * model.cfg.n_layers / 3
}
by_width = {
    name: pl.patch(
        model,
        pairs,
        "mlp",
        corruption=corruption,
        window=list(widths),
        before=list(widths.values()),
        positions="last_subject",
        metrics=METRICS,
        progress=False,
    ).effect
    for name, corruption in corruptions.items()
}

# %%
# claim: a window that is swept beside others has the effects that it has alone
for name, effect in by_width.items():
    if WINDOW in widths:
        alone = fx[name].effect.sel(metric=METRICS)
        assert float(abs(effect.sel(window=WINDOW) - alone).max()) < 1e-3

# %%
DASHES = {3: "-", 5: "--", 10: ":"}
with plt.rc_context({"font.size": 8, "pdf.fonttype": 42}):
    figure, panels = plt.subplots(1, 2, figsize=(6.8, 2.7), layout="constrained")
    for axes, metric in zip(panels, METRICS, strict=True):
        axes.axhline(0, color="0.5", linewidth=0.6)
        for name, effect in by_width.items():
            for width, reach in widths.items():
                axes.plot(
                    layers,
                    effect.sel(metric=metric, window=width),
                    marker="o" if name == "STR" else "s",
                    markevery=[int(i) for i in np.flatnonzero(layers > reach)],
                    markersize=3.5,
                    linestyle=DASHES[width],
                    linewidth=1.1,
                    color=COLOURS[name],
                    label=f"{name}, {width} layers",
                )
        axes.set_xlabel("layer (middle of the window)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 10]))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("effect: probability")
    panels[1].set_ylabel("effect: normalised LD")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    figure.suptitle(
        f"The window's width ({model.cfg.model_name}, {len(pairs)} prompts); "
        "marked: middle layers, whose window is free of layer 0",
        fontsize=9,
    )
plt.close(figure)
pl.notebooks.keep("03_1_facts_windows", figure)
figure


# %%
def hump(name: str, metric: str, width: int) -> tuple[int, float, bool]:
    """The highest middle layer of a window, its effect, and whether it is a peak."""
    effect = by_width[name].sel(metric=metric, window=width)
    layer, height = highest(effect, layers[layers > widths[width]])
    return layer, height, stands_out(name, metric, effect, layer)


humps = {
    (name, metric, width): hump(name, metric, width)
    for width in widths
    for metric in METRICS
    for name in fx
}
width_ratios = {}
width_rows = []
for width in widths:
    for metric in METRICS:
        found = {name: humps[name, metric, width] for name in fx}
        both = all(noticed(name, metric, found[name][1]) for name in fx)
        if both:
            width_ratios[width, metric] = found["GN"][1] / found["STR"][1]
        width_rows.append(
            {"window": width, "metric": LABELS[metric]}
            | {
                name: f"{height:.3f} (layer {layer}{', a peak' if peak else ''})"
                for name, (layer, height, peak) in found.items()
            }
            | {"GN / STR": f"{width_ratios[width, metric]:.1f}" if both else "no ratio"}
        )
pl.notebooks.show(pd.DataFrame(width_rows))


# %%
def some_range(values) -> str:
    """The least and the most of some numbers."""
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def peaks_of(width: int) -> str:
    """The peaks of one window as text."""
    found = {
        f"{name} by {LABELS[metric]}": humps[name, metric, width][0]
        for metric in METRICS
        for name in fx
        if humps[name, metric, width][2]
    }
    if not found:
        return "none"
    if len(found) == len(fx) * len(METRICS) and len(set(found.values())) == 1:
        return f"under both corruptions by both metrics, layer {min(found.values())}"
    return ", ".join(f"{which} (layer {layer})" for which, layer in found.items())


display(
    Markdown(
        (
            f"GN / STR is {some_range(width_ratios.values())} over windows and metrics; the paper "
            f"has {least} to {most}. "
            if width_ratios
            else "No window has a ratio. "
        )
        + "Peaks of the middle layers: "
        + "; ".join(f"windows of {width}: {peaks_of(width)}" for width in widths)
        + "."
    )
)

# %% [markdown]
# ## 6 Is this the right place to look?
#
# A flat curve may mean that nothing is there, or that we looked at the wrong place; and a high one
# does not say what would be higher elsewhere. One layer at a time, STR only, we restore three
# kinds of activation (the residual stream before a layer, its attention's output, its MLP's
# output) at the whole subject, at its last token and at the last token of the prompt.
#
# **Look for** the layer at which the residual stream's effect leaves the subject and arrives at the
# last token: there the information is fetched. Which attention layer fetches it, and which MLP
# layers, at which token, turn it into the answer?

# %%
SPOTS = {
    "subject": "all subject tokens",
    "last_subject": "last subject token",
    "last": "last token",
}
PARTS = {"resid": "residual stream", "attn": "attention output", "mlp": "MLP output"}
single = {
    part: pl.patch(
        model,
        few,
        part,
        corruption=pl.STR("subject"),
        positions=list(SPOTS),
        metrics=["logit_diff"],
        progress=False,
    )
    for part in PARTS
}
for part, result in single.items():
    pl.notebooks.keep(f"03_1_facts_single_{part}", result)

# %%
with plt.rc_context({"font.size": 8, "pdf.fonttype": 42}):
    figure, panels = plt.subplots(1, 3, figsize=(7.0, 2.6), layout="constrained", sharey=True)
    for axes, (part, result) in zip(panels, single.items(), strict=True):
        axes.axhline(0, color="0.5", linewidth=0.6)
        for (spot, label), colour, marker in zip(
            SPOTS.items(), ("#56B4E9", "#0072B2", "#009E73"), ("^", "o", "D"), strict=True
        ):
            axes.plot(
                layers,
                result.effect.sel(metric="logit_diff", position=spot),
                marker=marker,
                markersize=3.5,
                linewidth=1.1,
                color=colour,
                label=label,
            )
        axes.set_title(PARTS[part], fontsize=8)
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 10]))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("effect: normalised logit difference")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    figure.suptitle(
        f"One layer restored at a time, STR on the subject ({model.cfg.model_name}, "
        f"{len(few)} prompts)",
        fontsize=9,
    )
plt.close(figure)
pl.notebooks.keep("03_1_facts_single", figure)
figure


# %%
def strongest(part: str) -> tuple[int, str, float]:
    """The layer and place at which one kind of activation has its largest effect."""
    cells = single[part].effect.sel(metric="logit_diff").stack(cell=("layer", "position"))
    layer, spot = cells.cell.values[int(cells.argmax("cell"))]
    return int(layer), SPOTS[spot], float(cells.max())


stream = single["resid"].effect.sel(metric="logit_diff")
behind = layers[(stream.sel(position="last") <= stream.sel(position="subject")).values]
handover = int(behind[-1]) + 1 if behind[-1] < layers[-1] else None
fetching, fetched = highest(single["attn"].effect.sel(metric="logit_diff", position="last"), layers)
parts_found = {part: strongest(part) for part in ("attn", "mlp")}
mlp_layer, mlp_spot, mlp_effect = parts_found["mlp"]
attn_layer, attn_spot, attn_effect = parts_found["attn"]
own_layer, own_effect = highest(
    single["mlp"].effect.sel(metric="logit_diff", position="last_subject"), layers
)
display(
    Markdown(
        (
            f"From the input of layer {handover} on, the residual stream carries more of the answer "
            "at the last token than at the subject. "
            if handover is not None
            else "Even at the input of the last layer the subject carries more of the answer than the "
            "last token. "
        )
        + f"At the last token, the attention output with the largest effect is that of layer {fetching} "
        f"({fetched:.2f}). The single layers with the largest effect at any of the three places: "
        + " and ".join(
            f"{PARTS[part].split()[0]} of layer {layer} at the {spot.replace('all ', '')} "
            f"({effect:.2f})"
            for part, (layer, spot, effect) in parts_found.items()
        )
        + ". "
        + (
            "**The largest MLP effect is at the last token of the prompt**, where a sweep at the last "
            "subject token does not look."
            if mlp_spot == SPOTS["last"]
            else "At the last subject token alone, where the paper looks, the largest MLP effect is that "
            f"of layer {own_layer} ({own_effect:.2f})."
        )
        + (
            f" The attention of layer {attn_layer} brings back more than any MLP. All later layers read "
            "its output, so this says that they can rebuild the answer from it, not that the fact is "
            "stored there."
            if attn_effect > mlp_effect and attn_layer < mlp_layer
            else ""
        )
    )
)

# %% [markdown]
# Now GN and STR once more, with the window at the **last token** of the prompt. **Look for** how much
# of the answer its MLPs bring back, compared with those of the last subject token, and whether the
# two corruptions agree about it, and the two metrics about the sign.

# %%
at_last = {
    name: sweep(corruption, few, positions="last").mean("prompt", keep_attrs=True)
    for name, corruption in few_corruptions.items()
}
for name, result in at_last.items():
    pl.notebooks.keep(f"03_1_facts_last_{name}", result)
figure = figure_2(at_last, "last token")
pl.notebooks.keep("03_1_facts_last", figure)
figure

# %%
last_mean = {name: result.effect.sel(layer=middle).mean("draw") for name, result in at_last.items()}
last_rows = []
for metric in METRICS:
    values = {name: last_mean[name].sel(metric=metric) for name in at_last}
    layer = int(values["GN"].layer[int(values["GN"].argmax("layer"))])
    at = {name: float(value.sel(layer=layer)) for name, value in values.items()}
    over = at_last["GN"].effect.sel(metric=metric, layer=layer).std("draw", ddof=1)
    both_noticed = all(noticed(name, metric, value) for name, value in at.items())
    lowest = int(values["GN"].layer[int(values["GN"].argmin("layer"))])
    last_rows.append(
        {
            "metric": LABELS[metric],
            "GN's highest middle layer": layer,
            "STR": f"{at['STR']:.2f}",
            "GN": f"{at['GN']:.2f}",
            "SD over draws": f"{float(over):.2f}" if FEW_DRAWS > 1 else "–",
            "GN / STR": f"{at['GN'] / at['STR']:.1f}" if both_noticed else "no ratio",
            "GN's lowest": f"{float(values['GN'].min()):z.2f} (layer {lowest})",
        }
    )
pl.notebooks.show(pd.DataFrame(last_rows))

# %%
sunk = int(middle[int(last_mean["GN"].sel(metric="prob").argmin("layer"))])
sunk_prob, sunk_ld = (float(last_mean["GN"].sel(metric=metric, layer=sunk)) for metric in METRICS)
below = int((at_last["GN"].effect.sel(metric="prob", layer=sunk) < 0).sum())
highest_ld = {
    name: (float(values.sel(metric="logit_diff").max()), top[name, "logit_diff"][1])
    for name, values in last_mean.items()
}
display(
    Markdown(
        "The highest middle layer brings back, by logit difference, "
        + " and ".join(
            f"{here:.2f} here and {there:.2f} at the last subject token under {name}"
            for name, (here, there) in highest_ld.items()
        )
        + ".\n\n"
        + (
            f"Under GN, in the mean of {FEW_DRAWS} draws, the window around layer {sunk} raises the logit "
            f"difference ({sunk_ld:.2f}) and lowers P(r) ({sunk_prob:.2f}; below zero in {below} of "
            f"{FEW_DRAWS} draws): "
            + (
                "the metrics disagree about the sign (see 4.1)."
                if below == FEW_DRAWS
                else "these draws alone do not settle whether the metrics disagree about the sign; 4.1 "
                "returns to it."
            )
            if noticed("GN", "prob", -sunk_prob) and noticed("GN", "logit_diff", sunk_ld)
            else "Where GN is lowest by probability, the two metrics do not point in opposite directions "
            "by as much as the line of notice."
        )
    )
)

# %% [markdown]
# The paper makes no such comparison at the last token; its ratio of 2 to 5 belongs to the last
# subject token alone.

# %%
# claim: with all of the subject clean before layer 0, the whole prompt is clean
assert abs(float(stream.sel(layer=0, position="subject")) - 1) < 1e-3

# %% [markdown]
# ## 7 How sure is the maximum? Other prompts, other draws
#
# The prompts are a sample, and so is the noise. `pl.interval` draws as many prompts again, with
# repetition, a thousand times; the interval holds the middle 95 % of the means. The second question
# is where the maximum lies: in which share of such samples is it at the same middle layer? The last
# column asks the same of the draws of the noise. (The two directions of a pair are not independent,
# and here they are drawn as if they were; where many pairs are whole, draw pairs instead.)

# %%
per_prompt = {name: result.mean("draw", keep_attrs=True) for name, result in raw.items()}
estimates = {
    name: pl.interval(result.sel(metric=METRICS), n_resamples=1000)
    for name, result in per_prompt.items()
}
rng = np.random.default_rng(0)
weights = rng.multinomial(len(pairs), [1 / len(pairs)] * len(pairs), size=1000) / len(pairs)
certainty = []
for metric in METRICS:
    for name in fx:
        layer, effect = top[name, metric]
        bounds = estimates[name].sel(metric=metric, layer=layer)
        values = per_prompt[name].effect.sel(metric=metric, layer=middle)
        again = weights @ values.transpose("prompt", "layer").values
        drawn = by_draw[name].effect.sel(metric=metric, layer=middle).argmax("layer")
        same = int((middle[drawn.values] == layer).sum())
        certainty.append(
            {
                "metric": metric,
                "corruption": name,
                "layer": layer,
                "effect": effect,
                "low": float(bounds.low),
                "high": float(bounds.high),
                "same layer, prompts": float((middle[again.argmax(1)] == layer).mean()),
                "same layer, draws": f"{same}/{S['draws']}" if name == "GN" else "–",
            }
        )
shown = pd.DataFrame(certainty).assign(
    metric=[LABELS[row["metric"]] for row in certainty],
    effect=[f"{row['effect']:.3f}" for row in certainty],
    low=[f"{row['low']:.3f}" for row in certainty],
    high=[f"{row['high']:.3f}" for row in certainty],
)
shown["same layer, prompts"] = [f"{100 * row['same layer, prompts']:.0f} %" for row in certainty]
pl.notebooks.show(shown)

# %%
sure = [row for row in certainty if row["low"] > 0]
large = [row for row in sure if noticed(row["corruption"], row["metric"], row["low"])]
slopes = [
    row
    for row in certainty
    if row["layer"] == middle[0]
    and row["effect"] < float(fx[row["corruption"]].effect.sel(metric=row["metric"])[BEFORE])
]


def named(rows) -> str:
    """Settings as text."""
    return ", ".join(f"{row['corruption']} by {LABELS[row['metric']]}" for row in rows) or "none"


display(
    Markdown(
        f"* The interval lies above zero for {len(sure)} of {len(certainty)} maxima: {named(sure)}.\n"
        f"* It lies above the line of notice for {len(large)}: {named(large)}.\n"
        + (
            f"* At layer {middle[0]}, the first middle layer, and lower than at layer {BEFORE} beside "
            f"it: {named(slopes)}. Such a maximum stays at its layer because the curve falls from "
            "the grey region; section 5 says whether from a plateau or from a hump.\n"
            if slopes
            else ""
        )
        + "\nAn effect can be certain and small: then it differs from zero, and is still no peak. The "
        "normaliser of the logit difference is taken as given here, and so are the draws of the "
        "noise."
    )
)

# %%
# claim: what is above the line of notice is above zero, and a maximum lies within its interval
assert {id(row) for row in large} <= {id(row) for row in sure}
assert all(row["low"] <= row["effect"] <= row["high"] for row in certainty)

# %% [markdown]
# ## 8 The same facts in other words
#
# Every fact of the file exists in three phrasings. The paper has one for each fact. If the curve is
# about where the *fact* is, it should not depend on the words around the subject. Fewer prompts and
# draws are enough here, the same for all three phrasings.
#
# **Look for** curves of one panel that differ by more than their bands (SD over draws; STR has no
# draws and no band).

# %%
everything = {
    phrasing: pl.tasks.factual_recall(
        model, n=S["n"], phrasing=phrasing, prepend_bos=S["prepend_bos"]
    )
    for phrasing in (0, 1, 2)
}
asked = {phrasing: some[:50] for phrasing, some in everything.items()}
for phrasing, some in asked.items():
    print(f"phrasing {phrasing}: {some.texts[0]} ...")
same_facts = [
    [(prompt.answers, prompt.wrong_answers) for prompt in some.prompts] for some in asked.values()
]
print(
    "the same facts in the same order"
    if same_facts[0] == same_facts[1] == same_facts[2]
    else "not the same facts: the tokenizer refuses some phrasings"
)

# %% [markdown]
# `mini` was trained on these facts, but one fact in five in two of its phrasings only. In the third
# it has to recall a fact in words in which it never read it. (For a model with another training,
# "held out" is a label without a meaning.) **Look for** a gap between the two columns: a large one
# would say that sentences were learnt by heart. The held-out prompts are few, so a small gap says
# nothing.

# %%
held_out = {text for pair in pl.tasks.facts.read() if pair.is_held_out for text in pair.sentences}
recall_rows = []
for phrasing, some in everything.items():
    prob = pl.baselines(model, some, metrics=["prob"]).clean.sel(metric="prob").values
    out = np.array([text in held_out for text in some.texts])
    recall_rows.append(
        {
            "phrasing": phrasing,
            "held out": int(out.sum()),
            "P(r), held out": f"{prob[out].mean():.2f}" if out.any() else "–",
            "others": int((~out).sum()),
            "P(r), others": f"{prob[~out].mean():.2f}",
        }
    )
pl.notebooks.show(pd.DataFrame(recall_rows))

# %%
worded = {
    (name, phrasing): sweep(corruption, some).mean("prompt", keep_attrs=True)
    for phrasing, some in asked.items()
    for name, corruption in few_corruptions.items()
}

# %%
PHRASINGS = {0: ("#000000", "o"), 1: ("#E69F00", "s"), 2: ("#009E73", "^")}
with plt.rc_context({"font.size": 8, "pdf.fonttype": 42}):
    figure, grid = plt.subplots(
        2, 2, figsize=(6.6, 4.4), layout="constrained", sharex=True, sharey="col"
    )
    for row, name in zip(grid, few_corruptions, strict=True):
        for axes, metric in zip(row, METRICS, strict=True):
            axes.axvspan(-0.5, BEFORE + 0.5, color="0.93", zorder=0)
            axes.axhline(0, color="0.5", linewidth=0.6, zorder=1)
            axes.axhline(line(name, metric), color="0.4", linewidth=0.8, linestyle=":", zorder=1)
            for phrasing, (colour, marker) in PHRASINGS.items():
                effect = worded[name, phrasing].effect.sel(metric=metric)
                pl.plot.add_curve(axes, effect, f"phrasing {phrasing}", colour, marker)
            axes.set_xlim(-0.5, layers[-1] + 0.5)
            axes.set_title(f"{name}, {LABELS[metric]}", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel(f"layer (middle of the window of {WINDOW})")
    for row in grid:
        row[0].set_ylabel("effect: probability")
        row[1].set_ylabel("effect: normalised LD")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    figure.suptitle(
        f"Three phrasings of the same facts ({model.cfg.model_name}, {len(asked[0])} prompts, "
        f"{FEW_DRAWS} draws)",
        fontsize=9,
    )
plt.close(figure)
pl.notebooks.keep("03_1_facts_phrasings", figure)
figure

# %%
worded_rows = []
for (name, phrasing), result in worded.items():
    effect = result.effect.sel(metric="logit_diff", layer=middle).mean("draw")
    clean_prob = float(result.clean.sel(metric="prob").mean())
    worded_rows.append(
        {
            "corruption": name,
            "phrasing": phrasing,
            "P(r), clean": f"{clean_prob:.3f}",
            "P(r), corrupted": f"{float(result.corrupted.sel(metric='prob').mean()):.3f}",
            "LD maximum, grey": f"{float(result.effect.sel(metric='logit_diff').mean('draw')[: BEFORE + 1].max()):.3f}",
            "LD maximum, middle": f"{float(effect.max()):.3f}",
            "layer": int(effect.layer[int(effect.argmax("layer"))]),
        }
    )
worded_table = pd.DataFrame(worded_rows).sort_values("corruption", kind="stable")
pl.notebooks.show(worded_table)

# %%
visible = {
    key: bool(result.effect.sel(metric="logit_diff", layer=middle).mean("draw").max() >= NOTICE)
    for key, result in worded.items()
}
verdicts = {name: {visible[name, phrasing] for phrasing in asked} for name in few_corruptions}
words = {
    name: (
        "all three phrasings tell the same, "
        + ("an effect in the middle layers" if True in seen_ else "none that reaches the line")
        if len(seen_) == 1
        else "the phrasings disagree on whether there is an effect in the middle layers"
    )
    for name, seen_ in verdicts.items()
}
display(
    Markdown(
        "By logit difference: "
        + "; ".join(f"under **{name}** {said}" for name, said in words.items())
        + f" (line of notice: {100 * NOTICE:.0f} %)."
    )
)

# %% [markdown]
# How large are the differences? The two phrasings that lie furthest apart in some middle layer, and
# whether their bands touch there; an SD of so few draws is itself rough.

# %%
gap_rows = []
for name in few_corruptions:
    for metric in METRICS:
        curves = xr.concat(
            [worded[name, phrasing].effect.sel(metric=metric, layer=middle) for phrasing in asked],
            "phrasing",
        )
        mean = curves.mean("draw")
        layer, gap = highest(mean.max("phrasing") - mean.min("phrasing"), middle)
        here = mean.sel(layer=layer).values
        low, high = int(here.argmin()), int(here.argmax())
        row = {
            "corruption": name,
            "metric": LABELS[metric],
            "layer": layer,
            "lowest": f"{here[low]:.2f} (phrasing {low})",
            "highest": f"{here[high]:.2f} (phrasing {high})",
            "difference": f"{gap:.2f}",
            "SD over draws": "–",
            "bands touch": "–",
        }
        if curves.sizes["draw"] > 1:
            over = curves.sel(layer=layer).isel(phrasing=[low, high]).std("draw", ddof=1).values
            row["SD over draws"] = " and ".join(f"{value:.2f}" for value in over)
            row["bands touch"] = "yes" if gap <= over.sum() else "no"
        gap_rows.append(row)
pl.notebooks.show(pd.DataFrame(gap_rows))

# %% [markdown]
# ## Summary

# %%
peaks = [
    f"{name} by {LABELS[metric]} (layer {top[name, metric][0]})"
    for metric in METRICS
    for name in fx
    if is_peak(name, metric)
]
formed = {metric: value for metric, value in ratios.items() if value == value}
points = [
    f"**Corruption.** P(r) falls from {value_of('clean', 'prob'):.2f} to "
    f"{value_of('STR', 'prob'):.2f} under STR and {value_of('GN', 'prob'):.2f} under GN; "
    f"P(r′) rises to {value_of('STR', 'wrong_prob'):.2f} and {value_of('GN', 'wrong_prob'):.2f}.",
    "**Peak.** Peaks of the middle layers at the last subject token: "
    + "; ".join(f"windows of {width}: {peaks_of(width)}" for width in widths)
    + "."
    + (f" Inside the grey region, windows of {WINDOW}: {grey_humps}." if grey_humps else ""),
    "**GN and STR.** "
    + (
        "GN / STR is "
        + " and ".join(f"{value:.1f} by {LABELS[metric]}" for metric, value in formed.items())
        + f" for windows of {WINDOW}, and {some_range(width_ratios.values())} over all windows and "
        f"metrics; the paper has {least} to {most}."
        if formed
        else f"No ratio can be formed, so the paper's finding ({least} to {most} times) can be "
        "neither met nor missed by this model."
    ),
    f"**Place.** The MLP layer with the largest single effect is {mlp_layer}, at the "
    f"{mlp_spot.replace('all ', '')} ({mlp_effect:.2f} of the logit difference); of the attention "
    f"layers it is {attn_layer}, at the {attn_spot.replace('all ', '')} ({attn_effect:.2f}).",
    f"**Certainty.** Intervals over prompts above the line of notice: {named(large)}.",
    "**Phrasing.** " + "; ".join(f"{name}: {said}" for name, said in words.items()) + ".",
]
listed = "\n".join(f"{i}. {point}" for i, point in enumerate(points, 1))
display(
    Markdown(
        f"For **{model.cfg.model_name}** on {len(pairs)} facts, MLP windows of {WINDOW} at the last "
        f"subject token:\n\n{listed}"
    )
)

# %% [markdown]
# ## The paper beside this run
#
# The paper's column is for GPT-2 XL with 48 layers; values of Figure 2 are read from the figure: its
# plateau stands beside our maximum of the grey region, its peak beside that of the middle layers. Where
# section 5 found no plateau, or no peak, these rows compare different things: read them as sizes only.
# On another model a difference is a finding about the model: layer numbers in particular mean
# nothing across models.

# %%
paper_figure_2 = pl.paper.value("figure2")
quantities = [
    ("P(r), clean", paper_models["GPT-2 XL"]["prob"], value_of("clean", "prob"), "Appendix B"),
    (
        "LD, clean",
        paper_models["GPT-2 XL"]["logit_diff"],
        value_of("clean", "logit_diff"),
        "Appendix B",
    ),
    (
        "layer of GN's peak, probability",
        paper["GN_peak_layer"],
        top["GN", "prob"][0] if is_peak("GN", "prob") else "no peak",
        "3.1",
    ),
    *(
        (
            f"GN / STR, middle layers, {LABELS[metric]}",
            f"{least} to {most}",
            ratios[metric] if metric in formed else "no ratio",
            "3.1",
        )
        for metric in METRICS
    ),
    *(
        (
            f"{what}, {name}, {LABELS[metric]}",
            f"{np.mean(paper_figure_2[name][metric][key]):.3f}",
            f"{where[name, metric][1]:.3f}",
            "3.1, Figure 2",
        )
        for metric in METRICS
        for name in fx
        for key, what, where in (
            ("plateau", "maximum, grey region", early),
            ("peak", "maximum, middle layers", top),
        )
    ),
]
pl.notebooks.show(pl.paper.table(quantities, model="GPT-2 XL"))

# %% [markdown]
# The same for the results page, with the reason for whatever is missing.

# %%
name_here = fx["STR"].attrs["model"]
no_peak = (
    []
    if peaks
    else [
        f"with windows of {WINDOW} no maximum of the middle layers at the last subject token both "
        "reaches 2 % of the distance between the clean and the corrupted run and stands above its "
        "neighbours"
    ]
)
pl.paper.record(
    "section_3_1",
    ({"GN_peak_layer": top["GN", "prob"][0]} if is_peak("GN", "prob") else {})
    | (
        {"GN_to_STR_peak": [round(end(width_ratios.values()), 2) for end in (min, max)]}
        if width_ratios
        else {}
    ),
    model=name_here,
    why="; ".join(no_peak + ([] if width_ratios else ["a ratio needs two effects that reach 2 %"])),
    note=f"ratios of the highest middle layers, windows of {' and '.join(map(str, widths))}"
    if width_ratios
    else "",
)
pl.paper.record(
    "figure2",
    {
        name: {
            metric: {"plateau": round(early[name, metric][1], 4)}
            | (
                {"peak": round(top[name, metric][1], 4), "peak_layer": top[name, metric][0]}
                if is_peak(name, metric)
                else {}
            )
            for metric in METRICS
        }
        for name in fx
    },
    model=name_here,
    why="; ".join([*no_peak, "minimum and single layers: not compared"]),
    note="plateau: the largest effect of a window that holds layer 0"
    + (", which alone is not everywhere the strongest layer here" if no_plateau else ""),
)
KNOWN = {"gpt2-xl": "GPT-2 XL", "gpt2-large": "GPT-2 large", "gpt-j-6b": "GPT-J"}
own = KNOWN.get(name_here.split("/")[-1])
pl.paper.record(
    "facts_models",
    {own: {metric: round(value_of("clean", metric), 3) for metric in METRICS}} if own else {},
    model=name_here,
    why="the other models were not loaded"
    if own
    else f"none of these models was loaded; here P(r) = {value_of('clean', 'prob'):.2f} and "
    f"LD = {value_of('clean', 'logit_diff'):.2f}",
)

# %% [markdown]
# ## Exercises
#
# **1 (easy). Facts that the model does not know.** The paper keeps all prompts. Keep only those
# whose answer is the model's first choice (`pl.keep_answered`). How many are dropped, and does the
# curve change?
#
# <details><summary>Solution</summary>
#
# ```python
# kept = pl.keep_answered(model, pairs)
# print(len(kept), "kept,", kept.settings["dropped"], "dropped")
# again = sweep(pl.STR("subject"), kept).mean(("prompt", "draw"))
# print(again.effect.sel(metric="logit_diff").values.round(3))
# print(fx["STR"].effect.sel(metric="logit_diff").values.round(3))
# ```
#
# A fact that the model does not know cannot be brought back. Such prompts pull the probability
# effect towards zero; to the normalised logit difference they contribute little of either sign.
#
# </details>
#
# **2 (medium). The first subject token.** Restore the window at the first subject token instead of
# the last, under both corruptions. Is the last token of the subject special?
#
# <details><summary>Solution</summary>
#
# ```python
# for name, corruption in few_corruptions.items():
#     begun = sweep(corruption, few, positions="first_subject").mean(("prompt", "draw"))
#     print(name, begun.effect.sel(metric="logit_diff").values.round(3))
#     print("   last:", fx[name].effect.sel(metric="logit_diff").values.round(3))
# ```
#
# Only from the last subject token on can attention have seen the whole subject; earlier tokens are
# shared with other subjects ("The Great ..."). If both are small, the model may put the tokens of
# the subject together elsewhere: see section 6.
#
# </details>
#
# **3 (hard). How strong must the noise be?** Three standard deviations are a convention. Sweep the
# scale from 0.5 to 5. At which scale is P(r) of the corrupted run as low as under STR, and what
# happens to the curve on the way?
#
# <details><summary>Solution</summary>
#
# ```python
# for scale in (0.5, 1, 2, 3, 5):
#     result = sweep(pl.GN("subject", scale=scale), few).mean(("prompt", "draw"))
#     at = result.effect.sel(metric="prob", layer=middle)
#     print(scale, round(float(result.corrupted.sel(metric="prob")), 3), at.values.round(3))
# ```
#
# Weak noise leaves nothing to restore; the effect can then not be large, whatever the layer does.
# Whoever compares GN with STR compares one strength of noise with STR.
#
# </details>
#
# ## Where to go next
#
# [4.1 Metrics in factual recall](04_1_metrics_factual_recall.ipynb) widens the view from the last
# subject token to all positions, and asks what probability and logit difference each leave out.

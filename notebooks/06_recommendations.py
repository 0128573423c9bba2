# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 Recommendations, as decisions to test
#
# | | |
# |---|---|
# | **You will learn** | what the paper recommends, and what each recommendation changes on your own model; how to measure whether a corruption takes the model out of its distribution; how to have a study checked; how to see which conclusions hang on one choice |
# | **Time** | 30 minutes to read, about half a minute to run |
# | **Paper** | [Zhang & Nanda, ICLR 2024](https://arxiv.org/abs/2309.16042): Section 6, with Sections 3.2, 4.2 and 5 and Appendix F |
# | **You need** | corruptions and metrics ([2 Background](02_background.ipynb)), and what a detected head is ([3.1](03_1_ioi_circuit.ipynb)) |
# | **Another model** | set the environment variable `PATCHLIB_MODEL=gpt2` before you start Jupyter, and run all cells again |
#
# A head is written `layer.head`. Layers and heads count from zero.

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

import patchlib as pl
from patchlib.show.choices import Choice, Choices, Study

model = pl.load_model()
# Section 6 repeats the sweeps at three sites.
pl.notebooks.versions(model, "3_1_ioi", sites=["S2", "S1+IO", "ABC"], draws=4)

# %% [markdown]
# ## 1 Four recommendations
#
# | | the paper recommends (Section 6) | its reason | the decision | tested in |
# |---|---|---|---|---|
# | 1 | replace tokens (STR) whenever that is possible, and use Gaussian noise (GN) only where it is not | noise may take the model off its distribution | corruption | 2 |
# | 2 | avoid probability; prefer the logit difference; KL divergence is reasonable for finding circuits | probability misses components with a negative effect | metric | 3 |
# | 3 | patch single layers first, and windows only where single layers show little; read a window as a joint effect | a window's effect is more than its layers' | window | 4 |
# | 4 | try several sets of corrupted tokens | another set brings other components to light | site | 5 |
#
# Each of the next four sections takes one decision and leaves the others as recommended. After that
# we turn all of them, one at a time, and let the package check a study for us.
#
# **Setting.** IOI, heads restored at all positions. The clean prompts are drawn once and split:
# the first are patched, the others serve only as a **reference** of what is usual inside the model.

# %%
S = pl.experiments.settings("3_1_ioi", model)
REFERENCE, DRAWS = 400, 10
everything = pl.tasks.ioi(model, n=S["n"] + REFERENCE, prepend_bos=S["prepend_bos"])
pairs, reference = everything[: S["n"]], everything[S["n"] :]
print(f"{len(pairs)} prompts to patch, {len(reference)} more as reference")

# %% [markdown]
# ## 2 Corruption: is the corrupted run out of distribution?
#
# Section 3.2 of the paper gives tentative evidence that GN takes the model out of its distribution:
# heads with an unexpected sign, attention that spreads out
# ([3.2](03_2_out_of_distribution.ipynb)). Here is a direct measurement. At one position, the
# residual stream after each layer is a vector. Clean prompts give a cloud of such vectors, with a
# mean μ and a covariance Σ, and the **Mahalanobis distance** of a vector x from the cloud is
#
# $$d(x) = \sqrt{(x-\mu)^\top \Sigma^{-1} (x-\mu)},$$
#
# the distance in units of the cloud's own spread in each direction. `pl.ood` measures it with two
# precautions:
#
# * **A control.** Even a clean prompt lies at some distance. The control is the distance of clean
#   prompts that μ and Σ were *not* fitted to, and everything is divided by its mean, so that 1
#   means "as far as any other clean prompt".
# * **Shrinkage.** Σ has as many rows as the model is wide, and there may be too few prompts to
#   invert it. It is drawn towards a multiple of the identity, by the amount that Ledoit and Wolf
#   (2004) derive from the sample.

# %%
PLACES = ["S2", "last"]
corruptions = {"STR": pl.STR("S2"), "GN": pl.GN("S2", draws=DRAWS)}
far = {
    name: pl.ood(model, pairs, corruption, positions=PLACES, reference=reference)
    for name, corruption in corruptions.items()
}
for name, result in far.items():
    means = result[["shrinkage"]].assign(
        corrupted=result.corrupted.mean("prompt"), clean_sd=result.clean.std("prompt")
    )
    pl.notebooks.keep(f"06_distance_{name}", means)
dict(far["GN"].corrupted.sizes)

# %% [markdown]
# One panel for the position that is corrupted, one for the last token, where the answer is
# predicted. The grey band is the control: mean ± standard deviation over clean prompts. For GN the
# band is the standard deviation over draws of the noise, each draw a mean over prompts. **Look
# for** a line that leaves the grey band, and for what happens to it in later layers.

# %%
COLOURS = {"STR": "#0072B2", "GN": "#D55E00"}
layers = range(model.cfg.n_layers)
with plt.rc_context({"font.size": 8, "pdf.fonttype": 42}):
    figure, panels = plt.subplots(1, 2, figsize=(6.4, 2.7), layout="constrained", sharey=True)
    for axes, place in zip(panels, PLACES, strict=True):
        spread = far["STR"].clean.sel(position=place).std("prompt", ddof=1)
        axes.fill_between(
            layers, 1 - spread, 1 + spread, color="0.88", label="clean (control) ± SD"
        )
        axes.axhline(1, color="0.5", linewidth=0.8)
        for name, marker in (("STR", "o"), ("GN", "s")):
            by_draw = far[name].corrupted.sel(position=place).mean("prompt")
            mean = by_draw.mean("draw")
            if by_draw.sizes["draw"] > 1:
                sd = by_draw.std("draw", ddof=1)
                axes.fill_between(layers, mean - sd, mean + sd, color=COLOURS[name], alpha=0.3)
            axes.plot(layers, mean, marker=marker, markersize=3.5, color=COLOURS[name], label=name)
        axes.set_xlabel("layer (residual stream after it)")
        axes.set_title(f"position {place}")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("Mahalanobis distance\n(clean, not fitted = 1)")
    panels[1].legend(frameon=False, fontsize=7)
    figure.suptitle(
        f"IOI, corrupted at S2, {len(pairs)} prompts, GN over {DRAWS} draws", fontsize=9
    )
plt.close(figure)
pl.notebooks.keep("06_distance", figure)
figure

# %%
ratio = {name: result.corrupted.mean(("draw", "prompt")) for name, result in far.items()}
most = {name: float(r.max()) for name, r in ratio.items()}


def says(value: float) -> str:
    """A distance in words."""
    if value > pl.advice.DISTANCE:
        return "far outside the clean distribution"
    return "somewhat outside it" if value > 1.25 else "no further out than a clean prompt"


display(
    Markdown(
        "\n".join(
            f"* **{name}**: at S2 the distance is {float(r.sel(position='S2')[0]):.2f} after the first "
            f"layer and {float(r.sel(position='S2')[-1]):.2f} after the last; at the last token it "
            f"reaches {float(r.sel(position='last').max()):.2f}. At its largest, {most[name]:.2f}, it is "
            f"{says(most[name])}."
            for name, r in ratio.items()
        )
        + "\n\n"
        + (
            "At S2 noise puts the model far from clean prompts of this task, and token replacement does "
            "not: in line with what Section 3.2 of the paper suspects."
            if most["GN"] > pl.advice.DISTANCE and most["STR"] < 1.25
            else "On this model the two corruptions do not differ as clearly as Section 3.2 of the paper suspects."
        )
        + " The distance alone does not say that a *patching result* is wrong. It says that the run "
        "being patched is unlike clean prompts of this task; section 8 lists what it cannot say."
    )
)

# %% [markdown]
# How much of this is one draw? The largest distance at S2, draw by draw. **Look for** how little
# the draws differ: each is a mean over all prompts, and each prompt has its own noise.

# %%
by_draw = far["GN"].corrupted.sel(position="S2").mean("prompt").max("layer")
print("largest distance at S2 under GN, by draw:", *(f"{float(d):.2f}" for d in by_draw))
print(f"standard deviation over {DRAWS} draws: {float(by_draw.std(ddof=1)):.2f}")

# %%
# claim: the control is 1 on average, and one distance worked out by hand is the package's
for result in far.values():
    np.testing.assert_allclose(result.clean.mean("prompt"), 1)
_, cache = model.run_with_cache(everything.clean_tokens, names_filter="blocks.0.hook_resid_post")
states = cache["blocks.0.hook_resid_post"].detach().cpu().double().numpy()
at = everything.positions["S2"].numpy()
states = states[np.arange(len(everything)), at]
cloud = states[len(pairs) :]
covariance = np.cov(cloud.T, bias=True)
share = float(far["STR"].shrinkage.sel(layer=0, position="S2"))
covariance = (1 - share) * covariance + share * np.trace(covariance) / len(covariance) * np.eye(
    len(covariance)
)
away = states[: len(pairs)] - cloud.mean(0)
by_hand = np.sqrt((away * np.linalg.solve(covariance, away.T).T).sum(1))
np.testing.assert_allclose(
    by_hand / by_hand.mean(), far["STR"].clean.sel(layer=0, position="S2"), rtol=1e-3
)

# %% [markdown]
# ## 3 Metric: what can probability not show?
#
# The effect in probability is P_pt(r) − P_*(r), and no probability is below zero: it cannot fall
# below −P_*(r). A head is detected as negative if its effect is below the mean − 2 standard
# deviations (SD) of all heads. Where −P_*(r) is no lower than that, *no* head can be detected as
# negative, whatever it does (Section 4.2).
#
# **Look for** the last two columns: the lowest possible effect, and where detection would begin.

# %%
SITES = ["S2", "S1+IO", "ABC"]
METRICS = ["logit_diff", "prob", "kl"]
by_site = {
    site: pl.patch(
        model, pairs, corruption=pl.STR(site), metrics=METRICS, keep_prompts=True, progress=False
    )
    for site in SITES
}
means = {site: fx.mean("prompt", keep_attrs=True) for site, fx in by_site.items()}
pl.notebooks.keep("06_heads_S2", means["S2"])


def floor(site: str) -> tuple[float, float]:
    """The lowest possible effect in probability, and where negative heads begin."""
    effect = means[site].effect.sel(metric="prob").values
    lowest = -float(means[site].corrupted.sel(metric="prob"))
    return lowest, float(effect.mean() - 2 * effect.std())


def negative(site: str, metric: str) -> str:
    found = pl.heads_of(pl.detect(means[site]), metric, "negative")
    return ", ".join(f"{layer}.{head}" for layer, head in sorted(found)) or "none"


pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "corrupted (STR)": site,
                "negative by LD": negative(site, "logit_diff"),
                "negative by probability": negative(site, "prob"),
                "lowest possible": f"{floor(site)[0]:.5f}",
                "mean - 2 SD": f"{floor(site)[1]:.5f}",
            }
            for site in SITES
        ]
    )
)

# %%
tight = [site for site in SITES if floor(site)[0] >= floor(site)[1]]
close = [
    site
    for site in SITES
    if site not in tight and -floor(site)[0] < pl.advice.FLOOR * -floor(site)[1]
]
paper_floor = pl.paper.value("section_4_2")
paper_runs = pl.paper.value("ioi_baselines")
display(
    Markdown(
        "On these prompts no head can be detected as negative by probability when corrupting: "
        f"{', '.join(tight) or 'none of these'}; there is little room for it when corrupting: "
        f"{', '.join(close) or 'none of these'}. Where the two columns nearly agree, other prompts may decide "
        "otherwise ([4.2](04_2_negative_heads.ipynb), section 4). In the paper, for GPT-2 small under STR at S2, the lowest "
        f"possible effect is -{paper_runs['STR']} and detection begins at {paper_floor['threshold']}; the "
        f"Negative Name Mover 11.10 has {paper_floor['11.10']} and is missed (Section 4.2). The logit "
        "difference has no such floor."
    )
)

# %%
# claim: no effect in probability is below the floor
for site in SITES:
    assert float(means[site].effect.sel(metric="prob").min()) >= floor(site)[0] - 1e-9

# %% [markdown]
# ## 4 Window: what does it add?
#
# Section 5 of the paper restores the MLPs of several adjacent layers at once. We do the same with
# attention on IOI and with MLPs on factual recall (at the last subject token, as in the paper), for
# windows of 1, 3 and 5 layers, and compare each window with the *sum* of its single layers' effects.
# For facts only windows without layer 0 count, as in [3.1](03_1_factual_recall.ipynb): layer 0 reads
# little more than the tokens.
#
# **Look for** rows where window and sum differ: what lies between them is no property of any single
# layer.

# %%
WINDOWS = [window for window in (1, 3, 5) if window <= model.cfg.n_layers]
F = pl.experiments.settings("3_1_factual_recall", model)
facts = pl.tasks.factual_recall(model, n=min(F["n"], 60), prepend_bos=F["prepend_bos"])
windowed = {
    "IOI, attention": pl.patch(
        model, pairs, "attn", corruption=pl.STR("S2"), window=WINDOWS, progress=False
    ),
    "facts, MLP at last subject": pl.patch(
        model,
        facts,
        "mlp",
        corruption=pl.STR("subject"),
        window=WINDOWS,
        positions="last_subject",
        progress=False,
    ),
}
rows, peaks = [], {}
for name, fx in windowed.items():
    effect = fx.effect.sel(metric="logit_diff").squeeze(drop=True)
    for window in WINDOWS:
        counted = slice(window // 2 + 1 if name.startswith("facts") else 0, None)
        joint = effect.sel(window=window, layer=counted)
        summed = pl.sum_windows(effect.sel(window=1), window).sel(layer=counted)
        peaks[name, window] = float(joint.max()), float(summed.max())
        rows.append(
            {
                "experiment": name,
                "window": window,
                "peak of windows": f"{peaks[name, window][0]:.3f}",
                "peak of sums": f"{peaks[name, window][1]:.3f}",
            }
        )
pl.notebooks.show(pd.DataFrame(rows))

# %%
small = {name: peaks[name, 1][0] for name in windowed}
widest = {name: peaks[name, WINDOWS[-1]] for name in windowed}


def compared(joint: float, summed: float) -> str:
    """A window beside the sum of its layers, in words."""
    if abs(joint - summed) < max(0.02, 0.1 * max(joint, summed)):
        return "about the same as"
    if joint > summed:
        return "more than"
    return "less than"


display(
    Markdown(
        "Effects are shares of the logit difference between the corrupted and the clean run. "
        + " ".join(
            f"*{name}*: the strongest single layer brings back {100 * value:.1f} %, so that "
            + (
                "single layers already say where the work is done, and a window would blur it."
                if value >= 0.2
                else "single layers show little, which is where the paper allows windows; the result "
                "then belongs to the layers of the window together."
            )
            + f" At its peak, a window of {WINDOWS[-1]} brings back {100 * widest[name][0]:.0f} %, "
            f"{compared(*widest[name])} the largest sum of {WINDOWS[-1]} single layers "
            f"({100 * widest[name][1]:.0f} %)."
            for name, value in small.items()
        )
        + " Where a window brings back more than the sum, its layers need each other; where it brings back "
        "less, they bring back in part the same. (We call 20 % or more much, and what differs by less "
        "than a tenth about the same; the paper draws no line.)"
    )
)

# %%
# claim: a window of one layer is the single layer
for fx in windowed.values():
    one = fx.effect.sel(metric="logit_diff", window=1).squeeze(drop=True)
    np.testing.assert_allclose(pl.sum_windows(one, 1), one)

# %% [markdown]
# ## 5 Corrupted tokens: another set, other heads
#
# Appendix F of the paper corrupts S1 and IO instead of S2 and finds all three Name Movers of GPT-2,
# most of which the corruption of S2 misses; in return the S-Inhibition heads go unnoticed.
#
# **Look for** the second column of LD: it says what is left of the preference for IO. Effects are
# divided by the distance between the two columns.

# %%
pl.notebooks.show(
    pd.DataFrame(
        [
            {
                "corrupted (STR)": site,
                "LD clean": f"{float(fx.clean.sel(metric='logit_diff')):.2f}",
                "LD corrupted": f"{float(fx.corrupted.sel(metric='logit_diff')):.2f}",
                "detected by LD": ", ".join(
                    f"{layer}.{head}"
                    for sign in ("positive", "negative")
                    for layer, head in sorted(pl.heads_of(pl.detect(fx), "logit_diff", sign))
                )
                or "none",
            }
            for site, fx in means.items()
        ]
    )
)

# %%
by_ld = {site: set(pl.heads_of(pl.detect(fx), "logit_diff")) for site, fx in means.items()}
common = sorted(set.intersection(*by_ld.values()))
some = sorted(set.union(*by_ld.values()) - set(common))


ld_left = {site: float(fx.corrupted.sel(metric="logit_diff")) for site, fx in means.items()}


def text(heads) -> str:
    return ", ".join(f"{layer}.{head}" for layer, head in heads) or "none"


display(
    Markdown(
        f"Detected as positive under all {len(SITES)} choices of corrupted tokens: **{text(common)}**; under "
        f"some only: **{text(some)}**. "
        + (
            "A list from one choice of tokens is a list for that choice."
            if some
            else "Here the list does not depend on the choice."
        )
        + " What is left of the preference for IO: "
        + ", ".join(f"{value:+.2f} nats ({site})" for site, value in ld_left.items())
        + "; below 0 it is turned round. An effect in LD is divided by "
        + ", ".join(
            f"{float((fx.clean - fx.corrupted).sel(metric='logit_diff')):.1f} nats ({site})"
            for site, fx in means.items()
        )
        + "."
    )
)

# %% [markdown]
# ## 6 One step from the recommended settings
#
# The sections above each turned one knob in its own way. Here all are turned in the same way:
# start from STR at S2, logit difference, and change exactly one setting. The conclusion that we
# watch is the list of detected heads, with the sign of their effect. To keep it short, this section
# takes three draws of the noise.
#
# **Look for** changes that lose or gain nothing, and for changes after which little is shared.

# %%
study = Study(model, pairs, draws=3)
start = Choice("S2")
steps = study.table(start, sites=["S1+IO", "ABC"])
pl.notebooks.show(steps)

# %%
changed = steps.iloc[1:]
unmoved = changed[(changed.lost == "none") & (changed.gained == "none")].change.tolist()
moved = [change for change in changed.change if change not in unmoved]


def overlap(change: str) -> float:
    """The share of heads that both settings detect, of those that either does."""
    parts = study.compare(start, start.changes(["S1+IO", "ABC"])[change])
    return len(parts["shared"]) / max(1, sum(map(len, parts.values())))


most_moved = min(changed.change, key=overlap)
lasting = [
    tuple(int(part) for part in head[1:].split("."))
    for head in study.detected(start)
    if all(head in row.split(", ") for row in changed.shared)
]
display(
    Markdown(
        f"Of {len(changed)} changes, "
        + (
            f"{len(unmoved)} leave{'s' * (len(unmoved) == 1)} the list as it is ({'; '.join(unmoved)}). "
            if unmoved
            else "every one moves the list. "
        )
        + (
            f"The one that moves most is *{most_moved}*: of all heads that either setting detects, both "
            f"detect {100 * overlap(most_moved):.0f} %."
            if moved
            else "None moves it."
        )
        + (
            f" In the list whatever is changed: **{text(lasting)}**. Anything else needs "
            "the settings beside it when it is reported."
            if lasting
            else " No head stays in the list whatever is changed: each needs the settings beside it when "
            "it is reported."
        )
    )
)

# %%
# claim: shared and lost together are what the start detects
for row in steps.itertuples():
    kept = [head for part in (row.shared, row.lost) for head in part.split(", ") if head != "none"]
    assert sorted(kept) == sorted(study.detected(start))

# %% [markdown]
# The same with layers, where the window is a choice too: attention layers on IOI, all positions. An
# entry `+0` is layer 0, with a positive effect.

# %%
by_layer = Study(model, pairs, "attn", windows=WINDOWS, draws=3)
pl.notebooks.show(by_layer.table(start))

# %% [markdown]
# Among a handful of layers, one or two that stand out raise the standard deviation by much, and a window
# spreads a peak over its neighbours: both can empty the list without any layer having less effect.
# That is a property of the rule of detection, and a reason to look at effects as well.
#
# Below, a control to step through the changes. The picture has the recommended settings on the
# horizontal axis and the changed ones on the vertical axis; effects are in standard deviations from
# their mean, so that metrics of different units can be compared. Dashed lines are the thresholds.
# **Look for** heads that cross a line in one direction only: below right are those that a change
# loses, above left those that it gains.

# %%
choices = Choices(study, start, sites=["S1+IO", "ABC"])

# %%
corner = choices.moved
display(
    Markdown(
        f"The picture is for *{choices.control.value}*, the first change of the list: "
        f"{len(corner['shared'])} shared, {len(corner['lost'])} lost "
        f"({', '.join(corner['lost']) or 'none'}), {len(corner['gained'])} gained "
        f"({', '.join(corner['gained']) or 'none'}). "
        + (
            f"Choose *{most_moved}* to see the one that moves most. "
            if moved and most_moved != choices.control.value
            else ""
        )
        + "For the layers, use "
        "`Choices(by_layer, start)` in a cell of your own."
    )
)

# %% [markdown]
# ## 7 Have a study checked
#
# `pl.advise` takes the results of one study and returns the cautions that apply, each with the
# section and the numbers that gave rise to it. The paper gives no thresholds; those of the package
# are named constants in `patchlib/paper/advice.py`, chosen there, and no caution is no proof that all is
# well. First a study that does most things as they should not be done.

# %%
bad = pl.patch(
    model,
    pairs[:12],
    "mlp",
    corruption=pl.GN("S2"),
    metrics=["prob"],
    window=WINDOWS[-1],
    positions="S2",
    progress=False,
)
cautions = pl.advise(bad, ood=far["GN"])


def printed(table: pd.DataFrame) -> str:
    """One paragraph for each caution."""
    lines = []
    for row in table.itertuples():
        lines.append(f"{row.caution.upper()} (Section {row.section.replace(', 6', ' and 6')})")
        if not row.section[0].isdigit():
            lines[-1] = f"{row.caution.upper()} ({row.section})"
        for name in ("because", "instead"):
            prefix = f"  {name + ':':9}"
            lines += textwrap.wrap(
                getattr(row, name), 88, initial_indent=prefix, subsequent_indent=" " * 11
            )
    return "\n".join(lines) or "no caution"


print(printed(cautions))

# %% [markdown]
# Now a study as recommended: STR, single heads, logit difference and KL, two choices of corrupted
# tokens, values kept for every prompt, and the distance from the clean distribution measured.
# **Look for** what is left.

# %%
sound = {site: by_site[site].sel(metric=["logit_diff", "kl"]) for site in ("S2", "ABC")}
left = pl.advise(sound, ood=far["STR"])
print(printed(left))

# %% [markdown]
# And the same study with one more choice of corrupted tokens, and with probability beside the other
# metrics. **Look for** numbers, not for the count of cautions: a caution is a reason to look, and
# sometimes a reason to go on.

# %%
more = pl.advise(by_site, ood=far["STR"])
print(printed(more))

# %%
# claim: what the cautions rest on is so in the results themselves
assert "probability alone" in cautions.caution.tolist()
assert not {"probability alone", "one choice of corrupted tokens"} & {*left.caution}
beyond = float((ratio["GN"] / far["GN"].clean.mean("prompt")).max()) > pl.advice.DISTANCE
assert beyond == ("corrupted run out of distribution" in cautions.caution.tolist())
expected = any(-floor(site)[0] < pl.advice.FLOOR * -floor(site)[1] for site in SITES)
assert expected == ("probability cannot show negative effects" in more.caution.tolist())

# %% [markdown]
# ## 8 What the recommendations do not cover
#
# The paper names its own limits (Section 6): decoder-only models of up to 6 billion parameters; clean
# activations put into the corrupted run, and not the other way round; evidence on the distribution
# that is tentative. It adds that the worry about the distribution extends to ablations. The
# measurement of section 2 has limits too:
#
# * It looks at one position at a time and at mean and covariance alone. Two clouds can agree in both
#   and still differ.
# * The reference is prompts of the *same task*. A corrupted run can lie far from those and still be
#   like some other text that the model was trained on.
# * Shrinkage makes directions in which clean prompts never vary count less than they might.
#
# ## Summary

# %%
points = [
    f"**Corruption.** Largest distance from the clean distribution, in units of the control: STR "
    f"{most['STR']:.2f}, GN {most['GN']:.2f}.",
    "**Metric.** On these prompts negative heads cannot be detected by probability, or hardly, when corrupting: "
    f"{', '.join(tight + close) or 'none of the sites tried'}.",
    "**Window.** Strongest single layer: "
    + "; ".join(f"{name} {100 * value:.1f} %" for name, value in small.items())
    + " of the logit difference.",
    f"**Corrupted tokens.** Detected under all {len(SITES)} choices: {text(common)}; under some only: "
    f"{text(some)}.",
    f"**One step away.** {len(moved)} of {len(changed)} single changes move the list of detected heads.",
    f"**Advice.** {len(cautions)} cautions for the bad study, {len(left)} for the sound one.",
]
listed = "\n".join(f"{i}. {point}" for i, point in enumerate(points, 1))
display(Markdown(f"For **{model.cfg.model_name}** on {len(pairs)} IOI prompts:\n\n{listed}"))

# %% [markdown]
# ## The paper beside this run
#
# The paper's column is for GPT-2 small, under STR at S2. Section 6 itself holds no numbers; these are
# the ones that its recommendations rest on and that were measured above.

# %%
effect = means["S2"].effect.sel(metric="prob")
pl.notebooks.show(
    pl.paper.table(
        [
            (
                "P(IO), clean",
                paper_runs["clean"],
                float(means["S2"].clean.sel(metric="prob")),
                "App. B",
            ),
            (
                "P(IO), STR",
                paper_runs["STR"],
                float(means["S2"].corrupted.sel(metric="prob")),
                "4.2",
            ),
            (
                "probability effect, mean over heads",
                paper_floor["mean"],
                float(effect.mean()),
                "4.2",
            ),
            ("probability effect, SD over heads", paper_floor["sd"], float(effect.std()), "4.2"),
            ("probability effect, mean - 2 SD", paper_floor["threshold"], floor("S2")[1], "4.2"),
            ("largest distance under STR (control = 1)", None, most["STR"], "3.2"),
            ("largest distance under GN (control = 1)", None, most["GN"], "3.2"),
        ],
        decimals=3,
    )
)

# %% [markdown]
# ## Exercises
#
# **1 (easy). Less noise.** How small must the scale of the noise be for the corrupted run to lie no
# further out than a clean prompt? Does it still corrupt?
#
# <details><summary>Solution</summary>
#
# ```python
# for scale in (0.3, 1.0, 3.0):
#     noise = pl.GN("S2", scale=scale)
#     d = pl.ood(model, pairs, noise, reference=reference).corrupted.mean()
#     ld = pl.baselines(model, pairs, noise).sel(metric="logit_diff").mean("prompt")
#     print(scale, f"distance {float(d):.2f}, LD {float(ld.clean):.2f} → {float(ld.corrupted):.2f}")
# ```
#
# Compare the scale at which the logit difference falls with the one at which the distance rises. If
# the second is smaller, no scale corrupts without leaving the distribution.
#
# </details>
#
# **2 (medium). Without shrinkage.** Repeat section 2 with `shrinkage=0`. Why does it need a
# reference larger than the model is wide, and why do the distances under noise change?
#
# <details><summary>Solution</summary>
#
# ```python
# d = pl.ood(model, pairs, pl.GN("S2"), reference=reference, shrinkage=0)
# print(d.corrupted.mean(("draw", "prompt")).values.round(2))
# ```
#
# A covariance of n prompts has at most n − 1 directions with any variance; with fewer prompts than
# dimensions it cannot be inverted, and the package says so. Without shrinkage a direction in which
# clean prompts hardly vary has almost no variance, and noise along it counts for much.
#
# </details>
#
# **3 (hard). A threshold of your own.** `pl.advise` warns where the logit difference is divided by
# less than 20 % of its clean value. Weaken the noise and find out
# from which normaliser on the list of detected heads becomes the same in two halves of the prompts.
#
# <details><summary>Solution</summary>
#
# ```python
# for scale in (0.5, 1.0, 2.0, 3.0):
#     halves = [pairs[0::2], pairs[1::2]]
#     found = [pl.patch(model, half, corruption=pl.GN("S2", scale=scale),
#                       metrics=["logit_diff"], progress=False) for half in halves]
#     way = [1 - fx.corrupted.item() / fx.clean.item() for fx in found]
#     heads = [{*pl.heads_of(pl.detect(fx), "logit_diff")} for fx in found]
#     print(scale, [f"{w:.0%}" for w in way], text(sorted(heads[0] ^ heads[1])))
# ```
#
# Dividing all effects by one number leaves detection as it is; what a small normaliser does is make
# the *values* large and unsure. If the lists differ, it is since the effects themselves have become
# small beside their spread over prompts.
#
# </details>
#
# ## Where to go next
#
# [App. F Which tokens to corrupt](app_f_which_tokens.ipynb) follows the fourth recommendation in
# full; [00_start_here](00_start_here.ipynb) has an overview of all notebooks.

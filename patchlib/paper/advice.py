"""The paper's own cautions, where a study gives reason for them (Section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from patchlib.errors import PatchlibError
from patchlib.measure.detection import by_cell, detect

# The paper gives no thresholds; all of these were chosen here.

# In the paper's own example head 11.10 escapes detection where P(r) of the corrupted run is 1.1
# times as far from zero as the mean - 2 SD (0.03 and 0.027, Section 4.2); half as much again is
# still little room.
FLOOR = 1.5
# A corrupted run that takes away less than this share of the clean value leaves little to restore.
DEGRADATION = 0.1
# One unit of the normalised logit difference is then more than five times the clean difference.
NORMALISER = 0.2
# Below this many standard errors the normaliser, a mean over prompts, is not clearly positive.
NORMALISER_ERRORS = 3.0
# A distance from the threshold of less than this many standard errors may be chance.
EFFECT_ERRORS = 2.0
# What is often called a small sample, where only the number of prompts is known.
PROMPTS = 30
# Twice as far from the clean distribution as clean prompts that it was not fitted to.
DISTANCE = 2.0

_COLUMNS = ("caution", "section", "because", "instead")
_NEEDED = (
    "corruption",
    "site",
    "task",
    "replacements",
    "model",
    "component",
    "window",
    "positions",
    "direction",
)
_PROBABILITIES = {"prob", "wrong_prob"}


def advise(
    *experiments: xr.Dataset | Mapping[str, xr.Dataset], ood: xr.Dataset | None = None
) -> pd.DataFrame:
    """Lists the cautions that apply to a study, each with the numbers that give reason for it.

    Most are the paper's (Sections 4.2, 5 and 6, Appendix F); those that rest on the definition of
    an effect, or on the size of a sample, say so in ``section``. The limits that turn a warning in
    words into one in numbers are this module's constants. No caution is no proof that all is well.

    Args:
        experiments: results of `patchlib.patch` that belong to one study, or dicts of them: one
            model and one task.
        ood: a result of `patchlib.ood` for one of the corruptions.

    Returns:
        One row for each caution, in the order of the recommendations, with the columns
        ``caution``, ``section``, ``because`` (numbers, rounded, for every experiment concerned)
        and ``instead``; no row where none applies.

    Raises:
        PatchlibError: for no experiment, anything that is not a result, results of several models
            or tasks, and a distance that was measured on none of these corruptions.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=20)
        >>> fx = pl.patch(model, pairs, corruption=pl.GN("S2"), metrics=["prob"], progress=False)
        >>> pl.advise(fx).caution.tolist()[:2]
        ['GN where tokens can be replaced', 'one draw of the noise']
    """
    study = [_Experiment.of(fx) for fx in _flat(experiments)]
    if not study:
        raise PatchlibError("no experiment was given: give results of pl.patch")
    for name in ("model", "task"):
        values = sorted({str(one.attrs[name]) for one in study})
        if len(values) > 1:
            raise PatchlibError(
                f"these results have the {name}s {', '.join(values)}: a study is one model and one "
                "task; ask for advice on each by itself"
            )
    _require_distance(ood, study)
    found: list[tuple[str, ...]] = []
    for caution, section, because, instead in _CAUTIONS:
        reasons = list(dict.fromkeys(because(study, ood)))
        if reasons:
            found.append((caution, section, "; ".join(reasons), instead))
    return pd.DataFrame(found, columns=list(_COLUMNS))


@dataclass(frozen=True)
class _Experiment:
    """One result, with the words for it and its means over prompts and draws."""

    fx: xr.Dataset

    @classmethod
    def of(cls, fx: object) -> _Experiment:
        if not isinstance(fx, xr.Dataset) or not {"effect", "clean", "corrupted"} <= {*fx}:
            raise PatchlibError(
                f"a {type(fx).__name__} is no result of pl.patch: give datasets with the variables "
                "effect, clean and corrupted, or dicts of them"
            )
        missing = [name for name in _NEEDED if name not in fx.attrs]
        if missing or "metric" not in fx.coords or "layer" not in fx.dims:
            what = ", ".join(missing) or "metric or layer"
            raise PatchlibError(
                f"this result has lost its {what}: pass what pl.patch returned, or keep the "
                "attributes, as in fx.mean('prompt', keep_attrs=True)"
            )
        return cls(fx if "metric" in fx.dims else fx.expand_dims("metric"))

    @property
    def attrs(self) -> dict:
        return self.fx.attrs

    @property
    def metrics(self) -> list[str]:
        return self.fx.metric.values.tolist()

    @property
    def windows(self) -> list[int]:
        return [int(window) for window in str(self.attrs["window"]).split(",")]

    @property
    def draws(self) -> int:
        return int(self.attrs.get("draws", 1))

    @property
    def n_prompts(self) -> int:
        return int(self.fx.sizes.get("prompt", self.attrs.get("n_prompts", 0)))

    @property
    def replacements(self) -> list[str]:
        """Where the prompts have a token replacement."""
        return list(filter(None, str(self.attrs["replacements"]).split(", ")))

    @property
    def label(self) -> str:
        """What tells an experiment from others."""
        windows = [] if self.windows == [1] else [f"window {self.attrs['window']}"]
        kind = f"{self.attrs['corruption']} at {self.attrs['site']}"
        return ", ".join([kind, str(self.attrs["component"]), *windows])

    def baseline(self, run: str, metric: str) -> float:
        """The mean of an unpatched run."""
        return float(self.fx[run].sel(metric=metric).mean())

    def means(self) -> xr.DataArray:
        """The effect as detection takes it."""
        return self.fx.effect.mean([dim for dim in ("prompt", "draw") if dim in self.fx.dims])

    def thresholds(self, metric: str) -> pd.DataFrame:
        return detect(self.means().sel(metric=[metric]).to_dataset(name="effect"))

    def way(self) -> tuple[float, float]:
        """The logit difference from the corrupted to the clean run, and its standard error."""
        way = (self.fx.clean - self.fx.corrupted).sel(metric="logit_diff")
        if "draw" in way.dims:
            way = way.mean("draw")
        return float(way.mean()), _error(way) if "prompt" in way.dims else np.nan


Study = list[_Experiment]


def _flat(experiments: tuple) -> Iterator[object]:
    for one in experiments:
        # A dataset is a mapping, too.
        if isinstance(one, Mapping) and not isinstance(one, xr.Dataset):
            yield from _flat(tuple(one.values()))
        else:
            yield one


def _error(values: xr.DataArray) -> float:
    n = values.sizes["prompt"]
    return float(values.std("prompt", ddof=1)) / np.sqrt(n) if n > 1 else np.nan


def _require_distance(ood: xr.Dataset | None, study: Study) -> None:
    if ood is None:
        return
    if not isinstance(ood, xr.Dataset) or not {"clean", "corrupted", "shrinkage"} <= {*ood}:
        raise PatchlibError(f"ood is a {type(ood).__name__}: give a result of pl.ood")
    names = ("model", "task", "corruption", "site")
    if not any(all(one.attrs[name] == ood.attrs.get(name) for name in names) for one in study):
        given = f"{ood.attrs.get('corruption')} at {ood.attrs.get('site')}"
        raise PatchlibError(
            f"ood was measured for {given}, and no experiment is with that corruption, model and "
            f"task: there is {', '.join(one.label for one in study)}"
        )


def _replaceable(study: Study, ood: object) -> Iterator[str]:
    for one in study:
        if one.attrs["corruption"] == "GN" and one.attrs["site"] in one.replacements:
            yield f"{one.label}: {one.attrs['task']} has a replacement at {one.attrs['site']}"


def _one_draw(study: Study, ood: object) -> Iterator[str]:
    for one in study:
        if one.attrs["corruption"] == "GN" and one.draws == 1:
            yield f"{one.label}: draws=1, so the spread over draws is unknown"


def _far(study: Study, ood: xr.Dataset | None) -> Iterator[str]:
    if ood is None:
        return
    control, corrupted = (
        ood[name].mean([dim for dim in ("prompt", "draw") if dim in ood[name].dims])
        for name in ("clean", "corrupted")
    )
    ratio = (corrupted / control).stack(cell=[dim for dim in corrupted.dims if dim != "cell"])
    most = float(ratio.max())
    if most > DISTANCE:
        where = ratio.cell[int(np.argmax(ratio.values))]
        position = where.position.item() if "position" in where.coords else "one position"
        beyond = int((ratio > DISTANCE).sum())
        yield (
            f"{ood.attrs['corruption']} at {ood.attrs['site']}: {ood.attrs['activation']} of layer "
            f"{where.layer.item()} at {position} is {most:.1f} times as far as the control "
            f"(more than {DISTANCE:g} in {beyond} of {ratio.size} places)"
        )


def _only_probability(study: Study, ood: object) -> Iterator[str]:
    metrics = {metric for one in study for metric in one.metrics}
    if metrics <= _PROBABILITIES:
        yield f"the metrics of this study: {', '.join(sorted(metrics))}"


def _floor(study: Study, ood: object) -> Iterator[str]:
    for one in study:
        if "prob" not in one.metrics:
            continue
        noising = one.attrs["direction"] == "noise"
        run = "clean" if noising else "corrupted"
        probability = one.baseline(run, "prob")
        # An effect is negative where the patch takes the run away from the other one: down to 0
        # when denoising, up to 1 when noising.
        room = 1 - probability if noising else probability
        found = one.thresholds("prob")
        lowest = float(found[found.sign == "negative"].threshold.min())
        if lowest < 0 and room < FLOOR * -lowest:
            verdict = (
                "nothing can be detected as negative" if room < -lowest else "there is little room"
            )
            yield (
                f"{one.label}: P(r) of the {run} run is {probability:.2g}, so no effect is below "
                f"{-room:.2g}; mean - 2 SD is {lowest:.2g}: {verdict}"
            )


def _no_degradation(study: Study, ood: object) -> Iterator[str]:
    for one in study:
        for metric, name in (("logit_diff", "logit difference"), ("prob", "P(r)")):
            if metric not in one.metrics:
                continue
            clean, corrupted = (one.baseline(run, metric) for run in ("clean", "corrupted"))
            if clean - corrupted < DEGRADATION * abs(clean):
                yield f"{one.label}: {name} {clean:.2f} clean, {corrupted:.2f} corrupted"


def _normaliser(study: Study, ood: object) -> Iterator[str]:
    for one in study:
        if "logit_diff" not in one.metrics:
            continue
        way, error = one.way()
        clean = one.baseline("clean", "logit_diff")
        unsure = abs(way) < NORMALISER_ERRORS * error
        if abs(way) < NORMALISER * abs(clean) or unsure:
            share = f"{100 * way / clean:.0f} %" if clean else "undefined"
            yield f"{one.label}: mean LD_clean - LD_corrupted is {way:.2f}" + (
                f" ± {error:.2f} (standard error)" if unsure else f", {share} of LD_clean"
            )


def _single_layers(study: Study, ood: object) -> Iterator[str]:
    def key(one: _Experiment) -> tuple:
        return one.attrs["component"], one.attrs["positions"]

    tried = {key(one) for one in study if 1 in one.windows}
    for one in study:
        if key(one) not in tried:
            yield f"{one.label}: no result with window 1 for {one.attrs['component']}"


def _one_site(study: Study, ood: object) -> Iterator[str]:
    sites = {str(one.attrs["site"]) for one in study}
    if len(sites) == 1:
        site = sites.pop()
        others = [name for name in study[0].replacements if name != site]
        more = f"; {study[0].attrs['task']} also has {', '.join(others)}" if others else ""
        every = "the only experiment corrupts"
        if len(study) > 1:
            every = f"all {len(study)} experiments corrupt"
        yield f"{every} {site}{more}"


def _few_prompts(study: Study, ood: object) -> Iterator[str]:
    for one in study:
        if one.n_prompts < 2 or "prompt" not in one.fx.dims:
            if one.n_prompts < PROMPTS:
                yield f"{one.label}: {one.n_prompts} prompts, spread over prompts not kept"
            continue
        for metric in one.metrics:
            worst = _strongest(one, metric)
            if worst is not None:
                effect, threshold, error = worst
                yield (
                    f"{one.label}, {metric}: the strongest effect is {effect:.2g} ± {error:.1g} "
                    f"(standard error, {one.n_prompts} prompts), the threshold {threshold:.2g}"
                )


def _strongest(one: _Experiment, metric: str) -> tuple[float, float, float] | None:
    """The strongest effect, threshold and standard error of a map where chance may decide."""
    effect = one.fx.effect.sel(metric=metric, drop=True)
    if "draw" in effect.dims:
        effect = effect.mean("draw")
    effect = by_cell(effect)
    panels = [dim for dim in effect.dims if dim not in ("cell", "prompt")]
    for at in np.ndindex(*(effect.sizes[dim] for dim in panels)):
        panel = effect.isel(dict(zip(panels, at, strict=True)))
        mean = panel.mean("prompt").dropna("cell")
        if not mean.size:
            continue
        centre, spread = float(mean.mean()), float(mean.std(ddof=0))
        strongest = int(np.argmax(abs(mean.values - centre)))
        value = float(mean[strongest])
        threshold = centre + np.sign(value - centre) * 2 * spread
        error = _error(panel.sel(cell=mean.cell[strongest].item()).dropna("prompt"))
        if not EFFECT_ERRORS * error <= abs(value - threshold):
            return value, threshold, error
    return None


_Because = Callable[[Study, xr.Dataset | None], Iterator[str]]
_CAUTIONS: tuple[tuple[str, str, _Because, str], ...] = (
    (
        "GN where tokens can be replaced",
        "6",
        _replaceable,
        "STR: it keeps the model on its distribution",
    ),
    (
        "one draw of the noise",
        "not in the paper",
        _one_draw,
        "several draws (draws=5), and their spread",
    ),
    (
        "corrupted run out of distribution",
        "3.2, 6",
        _far,
        "STR, or less noise; check what is found with a second corruption",
    ),
    (
        "probability alone",
        "6",
        _only_probability,
        "the logit difference; KL where a circuit is sought",
    ),
    (
        "probability cannot show negative effects",
        "4.2",
        _floor,
        "the logit difference, which has no floor",
    ),
    (
        "the corruption does little",
        "2.1, by definition",
        _no_degradation,
        "a site or a replacement that takes the answer away",
    ),
    (
        "logit difference divided by almost nothing",
        "2.1, by definition",
        _normaliser,
        "effects in nats (patched - corrupted), or another corruption",
    ),
    (
        "windows without single layers",
        "5, 6",
        _single_layers,
        "window=1 first; read a window as a joint effect",
    ),
    (
        "one choice of corrupted tokens",
        "6, Appendix F",
        _one_site,
        "repeat it with other corrupted tokens",
    ),
    (
        "few prompts for the spread",
        "not in the paper",
        _few_prompts,
        "more prompts, with keep_prompts=True and pl.interval",
    ),
)

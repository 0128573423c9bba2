"""One sweep under several corruptions, and the heads that each of them finds (Section 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property, reduce
from typing import Any

import pandas as pd
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

from patchlib.errors import PatchlibError, whole
from patchlib.heads import Head, Heads
from patchlib.measure.detection import by_cell, detect, heads_of
from patchlib.measure.intervals import interval
from patchlib.measure.resamples import ratio_ends, resampled
from patchlib.patching.cells import UNITS
from patchlib.patching.patch import patch
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs

SIGNS = ("positive", "negative")


class HeadLists(ABC):
    """Detected heads by run and metric, whether a sweep found them or the paper prints them."""

    names: tuple[str, ...]
    metrics: tuple[str, ...]

    @abstractmethod
    def found(
        self, run: str, metric: str = "logit_diff", sign: str = "both", sd: float = 2
    ) -> Heads:
        """The heads beyond mean ± ``sd`` standard deviations, strongest first.

        Args:
            run: the corruption's name, such as ``"STR"``.
            metric: the metric.
            sign: ``"positive"``, ``"negative"`` or ``"both"``.
            sd: how many standard deviations away a head must be.

        Raises:
            PatchlibError: for a run, metric or sign that there is not.
        """

    def overlap(self, one: str, other: str) -> pd.DataFrame:
        """The heads that two runs share, and those that each has alone.

        Args:
            one: a corruption's name.
            other: another's.

        Returns:
            A row for each metric; the columns ``both``, ``only STR`` and ``only GN`` (by the names
            of the runs), with heads as text.
        """
        rows = {}
        for metric in self.metrics:
            here, there = self.found(one, metric), self.found(other, metric)
            both, only_here, only_there = here & there, here - there, there - here
            lists = {"both": both, f"only {one}": only_here, f"only {other}": only_there}
            rows[metric] = {name: str(heads) for name, heads in lists.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")

    def anywhere(self) -> Heads:
        """The heads that some run detects by some metric, in the order of layers."""
        return reduce(Heads.__or__, self._all()).by_layer

    def everywhere(self) -> Heads:
        """The heads that every run detects by every metric, in the order of layers."""
        return reduce(Heads.__and__, self._all()).by_layer

    def _all(self) -> list[Heads]:
        return [self.found(run, metric) for run in self.names for metric in self.metrics]


class Sweep(HeadLists, Mapping[str, xr.Dataset]):
    """Results of one sweep by the name of their corruption, with one value per prompt.

    Args:
        results: for each corruption what `patchlib.patch` gives with ``keep_prompts=True``.

    Raises:
        PatchlibError: where there is none, or one without values per prompt or with single draws.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S2"), metrics=["prob"],
        ...               keep_prompts=True, progress=False)
        >>> Sweep({"STR": fx}).mean["STR"].effect.dims
        ('metric', 'layer', 'head')
    """

    def __init__(self, results: Mapping[str, xr.Dataset]) -> None:
        if not results or "clean" in results:
            raise PatchlibError(
                f"corruptions {', '.join(results) or '(none)'}: name at least one, as {{'STR': "
                "...}, and none 'clean', which is the run that is not corrupted"
            )
        for name, fx in results.items():
            if "prompt" not in fx.dims or "draw" in fx.dims:
                raise PatchlibError(
                    f"{name}: a sweep holds values per prompt and means over draws: patch with "
                    "keep_prompts=True, keep_draws=False"
                )
        self._results = dict(results)
        self._tables: dict[tuple[str, str], pd.DataFrame] = {}
        self.names = tuple(self._results)
        self._first = next(iter(self._results.values()))
        self.metrics = tuple(map(str, self._first.metric.values))

    def __getitem__(self, run: str) -> xr.Dataset:
        _known(run, self._results)
        return self._results[run]

    def __contains__(self, run: object) -> bool:
        return run in self._results

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        inside = ", ".join(f"{size} {dim}s" for dim, size in self._first.effect.sizes.items())
        return f"Sweep({', '.join(self)}: {inside})"

    @cached_property
    def mean(self) -> dict[str, xr.Dataset]:
        """Means over prompts, as `patchlib.patch` gives them without ``keep_prompts``.

        The spread over draws, ``effect_sd``, is missing: it is none of the spreads per prompt.
        """
        return {name: _mean(fx) for name, fx in self.items()}

    def sel(self, **labels: Any) -> Sweep:
        """The same sweep at one position or window of several.

        Args:
            labels: ``position`` and ``window``, such as ``position="last"``.

        Raises:
            PatchlibError: for one that the sweep does not have.
        """
        there = {
            dim: self._first[dim].values.tolist()
            for dim in ("position", "window")
            if dim in self._first.dims
        }
        if any(label not in there.get(dim, []) for dim, label in labels.items()):
            raise PatchlibError(f"{labels}: this sweep can be selected by {there or 'nothing'}")
        return Sweep({name: fx.sel(labels) for name, fx in self.items()})

    def resampled(self, seed: int) -> Sweep:
        """The same sweep on as many prompts, drawn from its own with replacement.

        What holds on nearly all of many resamples does not hang on a few of the prompts.

        Args:
            seed: seeds the drawing; the same seed draws the same prompts for sweeps of as many.
        """
        n = self._first.sizes["prompt"]
        rows = torch.randint(n, (n,), generator=derive_generator(seed, "resample")).numpy()
        return Sweep({name: fx.isel(prompt=rows) for name, fx in self.items()})

    def runs(self) -> pd.DataFrame:
        """The unpatched runs as means over all prompts.

        Returns:
            A row for ``clean`` and for each corruption, a column for each metric in its own unit;
            KL is measured from the clean run.
        """
        runs = {"clean": self._first.clean} | {name: fx.corrupted for name, fx in self.items()}
        means = {name: values.mean("prompt").to_series() for name, values in runs.items()}
        return pd.DataFrame(means)[list(runs)].T.rename_axis("run")[list(self.metrics)]

    def found(
        self, run: str, metric: str = "logit_diff", sign: str = "both", sd: float = 2
    ) -> Heads:
        """The heads beyond mean ± ``sd`` standard deviations, by absolute effect, strongest first.

        Args:
            run: the corruption's name, such as ``"STR"``.
            metric: the metric.
            sign: ``"positive"``, ``"negative"`` or ``"both"``.
            sd: how many standard deviations away a head must be.

        Raises:
            PatchlibError: for a run, metric or sign that there is not, and for sweeps of something
                else than heads or with several positions.
        """
        detected = self._detected(run, sd)
        signs = SIGNS if sign == "both" else (sign,)
        heads = Heads(head for each in signs for head in heads_of(detected, metric, each))
        effect = self.mean[run].effect.sel(metric=metric)

        def size(head: Head) -> float:
            return abs(float(effect.sel(head._asdict())))

        heads.sort(key=size, reverse=True)
        return heads

    def at_threshold(self, run: str, metric: str = "logit_diff", sd: float = 2) -> Heads:
        """The heads whose 95 % interval over prompts holds a threshold: neither in nor out.

        Args:
            run: the corruption's name.
            metric: the metric.
            sd: how many standard deviations from the mean the thresholds lie.

        Raises:
            PatchlibError: as `found` does.
        """
        self.found(run, metric, sd=sd)
        detected = self._detected(run, sd)
        thresholds = detected[detected.metric == metric].threshold
        ends = interval(self[run].sel(metric=[metric])).sel(metric=metric)
        low, high = by_cell(ends.low), by_cell(ends.high)
        inside = [(low <= threshold) & (threshold <= high) for threshold in thresholds]
        return Heads(low.cell.values[(inside[0] | inside[1]).values].tolist())

    def _detected(self, run: str, sd: float) -> pd.DataFrame:
        """`detect` of all metrics, once for a run and a rule, since it is asked for each metric."""
        _known(run, self)
        key = run, repr(sd)
        if key not in self._tables:
            self._tables[key] = detect(self.mean[run], sd)
        return self._tables[key]


def sweep(
    model: TransformerBridge,
    pairs: PromptPairs,
    corruptions: Mapping[str, Corruption],
    component: str = "head",
    **settings: Any,
) -> Sweep:
    """Patches everything under several corruptions, and keeps one value per prompt.

    Args:
        model: the model, in evaluation mode.
        pairs: the prompts.
        corruptions: for each name, such as ``"STR"``, the corruption.
        component: as in `patchlib.patch`.
        settings: all else that `patchlib.patch` takes, such as ``metrics`` and ``window``.

    Raises:
        PatchlibError: where no corruption is given, for settings that a sweep decides itself, and
            as `patchlib.patch` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> corruptions = {"STR": pl.STR("S2"), "GN": pl.GN("S2")}
        >>> heads = pl.sweep(model, pairs, corruptions, metrics=["kl"], progress=False)
        >>> heads.runs().index.tolist(), heads.overlap("STR", "GN").columns.tolist()
        (['clean', 'STR', 'GN'], ['both', 'only STR', 'only GN'])
    """
    own = sorted({"corruption", "keep_prompts", "keep_draws"} & settings.keys())
    if own:
        raise PatchlibError(
            f"{', '.join(own)}: a sweep takes corruptions by name and keeps prompts, not draws; "
            "call pl.patch for anything else"
        )
    results = {
        name: patch(model, pairs, component, corruption=each, keep_prompts=True, **settings)
        for name, each in corruptions.items()
    }
    return Sweep(results)


def _known(run: str, runs: Collection[str]) -> None:
    if run not in runs:
        raise PatchlibError(f"no run {run!r}: allowed are {', '.join(runs)}")


def _mean(fx: xr.Dataset) -> xr.Dataset:
    """The mean over prompts; of the unpatched runs over those that have the position."""
    cells = [dim for dim in fx.patched.dims if dim not in ("prompt", "position")]
    present = fx.patched.notnull().any(cells)
    runs = {name: fx[name] for name in ("clean", "corrupted")}
    if not present.all():
        runs = {name: run.where(present) for name, run in runs.items()}
    return fx[["effect", "patched"]].assign(runs).mean("prompt", keep_attrs=True)


def strongest(fx: xr.Dataset, metric: str = "logit_diff", n: int = 8) -> pd.DataFrame:
    """The cells with the largest absolute effects, whatever their sign.

    Args:
        fx: a result of `patchlib.patch`; over prompts and draws the mean is taken.
        metric: the metric.
        n: how many.

    Returns:
        ``head`` (``"4.6"``; ``layer`` where whole layers were patched), ``position`` and ``window``
        where the result has them, and ``effect``; largest absolute effects first.

    Raises:
        PatchlibError: for a metric that the result does not have, and an ``n`` that is none.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S2"), progress=False)
        >>> strongest(fx, "kl", n=2).columns.tolist()
        ['head', 'effect']
    """
    n = whole("n", n, 1)
    effect = _of_metric(fx, metric)
    effect = effect.mean([dim for dim in ("prompt", "draw") if dim in effect.dims])
    name = next((unit for unit in UNITS if unit in effect.dims), "layer")
    cells = by_cell(effect).rename(cell=name).drop_vars(["metric", "token"], errors="ignore")
    others = [dim for dim in ("position", "window") if dim in cells.dims]
    rows = cells.rename("effect").to_dataframe().reset_index().dropna(subset="effect")
    rows = rows.sort_values("effect", key=lambda effects: -effects.abs(), kind="stable")
    return rows[[name, *others, "effect"]].head(n).reset_index(drop=True)


def stability(fx: xr.Dataset, metric: str = "logit_diff", sd: float = 2) -> pd.Series:
    """In how many of the draws of the noise each head is detected.

    Args:
        fx: a result of `patchlib.patch` with ``keep_draws=True``; over prompts the mean is taken.
        metric: the metric.
        sd: as in `patchlib.detect`.

    Returns:
        For each head that some draw detects, as ``"4.6"``, the share of the draws that do, largest
        first.

    Raises:
        PatchlibError: for a result without draws or with several positions, and for a metric that
            it does not have.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, corruption=pl.GN("S2", draws=2), keep_draws=True,
        ...               progress=False)
        >>> bool(stability(fx).between(0.5, 1).all())
        True
    """
    effect = _of_metric(fx, metric)
    if "draw" not in effect.dims or {"position", "window"} & {*effect.dims}:
        raise PatchlibError(
            f"this result has the dimensions {', '.join(map(str, effect.dims))}: stability needs "
            "draws, and one position and window: pl.patch(..., keep_draws=True), then fx.sel"
        )
    some = fx.sel(metric=[metric])
    if "prompt" in some.dims:
        some = some.mean("prompt", keep_attrs=True)
    heads = detect(some, sd).explode("heads").heads.dropna()
    share = heads.value_counts(sort=False) / effect.sizes["draw"]
    return share.sort_values(ascending=False, kind="stable").rename_axis("head").rename("share")


def floor(fx: xr.Dataset, sd: float = 2) -> pd.Series:
    """How near the lower threshold of probability is to the floor below it (Section 4.2).

    No patch can take more than P_*(r) from the answer's probability, so that no effect is below
    -P_*(r). Where the threshold is close to that floor, negative heads cannot be detected.

    Args:
        fx: a result of `patchlib.patch` with ``keep_prompts=True`` and the metric ``prob``.
        sd: as in `patchlib.detect`.

    Returns:
        ``threshold`` (mean - ``sd`` standard deviations of the effects), ``floor`` (-P_*(r)), their
        ``ratio``, and ``low`` and ``high``, its 95 % bootstrap interval over prompts.

    Raises:
        PatchlibError: for a result without values per prompt or without this metric, with several
            draws, positions or windows, and one of noising, which has another floor.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S2"), keep_prompts=True, progress=False)
        >>> floor(fx).index.tolist()
        ['threshold', 'floor', 'ratio', 'low', 'high']
    """
    effect = _of_metric(fx, "prob")
    several = {"draw", "position", "window"} & {*effect.dims}
    if "prompt" not in effect.dims or several or fx.attrs.get("direction") == "noise":
        raise PatchlibError(
            f"this result has the dimensions {', '.join(map(str, effect.dims))} and the direction "
            f"{fx.attrs.get('direction')}: give one of pl.patch(..., keep_prompts=True), "
            "denoising, at one position and window"
        )
    # Prompts that have the position, cells that were patched.
    cells = by_cell(effect).dropna("prompt", how="all").dropna("cell", how="all")
    corrupted = fx.corrupted.sel(metric="prob").isel(prompt=by_cell(effect).notnull().any("cell"))

    def ends(effects: xr.DataArray, runs: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
        return effects.mean("cell") - sd * effects.std("cell"), -runs

    threshold, lowest = ends(cells.mean("prompt"), corrupted.mean("prompt"))
    again = ratio_ends(*ends(resampled(cells), resampled(corrupted)))
    ratio = float(threshold / lowest) if lowest != 0 else float("nan")
    return pd.Series(
        {"threshold": float(threshold), "floor": float(lowest), "ratio": ratio} | again
    )


def _of_metric(fx: xr.Dataset, metric: str) -> xr.DataArray:
    if metric not in fx.metric.values:
        raise PatchlibError(
            f"no metric {metric!r}: this result has {', '.join(map(str, fx.metric.values))}"
        )
    return fx.effect.sel(metric=metric)

"""Effects of MLPs over layers: peaks, windows against sums, last against middle tokens.

Each function reads a sweep of `patchlib.sweep` over layers, with one or several windows, and gives
a table with one row for each run, metric and window. Middle layers are those whose window holds
none of the first twelfth of the layers: in GPT-2 XL single layers 0 to 3 of 48 stand out before
the middle ones (Figure 5a), and a window that holds one of them may repair the token itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr

from patchlib.errors import PatchlibError
from patchlib.measure.effects import sum_windows
from patchlib.measure.resamples import ratio_ends, resampled
from patchlib.measure.sweeps import Sweep
from patchlib.patching.cells import UNITS

# How far from the corrupted to the clean run a peak must reach to be salient.
_SALIENT = 0.1
Rows = dict[tuple[str, str, int], dict[str, float]]
LAST, MIDDLE = "last_subject", "middle_subject"


def peaks(sweep: Sweep) -> pd.DataFrame:
    """The peak of the effect over middle layers (Section 3.1, Figure 2).

    Args:
        sweep: a sweep of layers at one position.

    Returns:
        A row for each ``run, metric, window``; the columns ``peak`` (the largest effect of middle
        layers), ``layer`` (where it is), ``plateau`` (the largest effect of the layers before
        them) and ``salient``: whether the peak is higher than both its neighbours and brings the
        metric at least a tenth of the way from the corrupted to the clean run. Missing where the
        window leaves no middle layer.

    Raises:
        PatchlibError: for a sweep of heads, of some layers alone, or with several positions.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> facts = pl.tasks.factual_recall(model, n=8)
        >>> mlps = pl.sweep(model, facts, {"STR": pl.STR("subject")}, "mlp", window=[1, 3],
        ...                 positions="last_subject", metrics=["prob"], progress=False)
        >>> peaks(mlps).index.tolist()
        [('STR', 'prob', 1), ('STR', 'prob', 3)]
    """
    _require_layers(sweep)
    rows: Rows = {}
    for run, fx in sweep.mean.items():
        for metric, window, before, some in _curves(fx):
            effect, first = some.effect.values, _first_middle(some, before)
            way = some.clean - some.corrupted
            share = ((some.patched - some.corrupted) / way.where(way != 0)).values
            row: dict[str, float] = {"plateau": effect[:first].max(), "salient": False}
            if first < len(effect):
                layer = first + int(effect[first:].argmax())
                beside = effect[layer - 1 : layer + 2]
                alone = len(beside) == 3 and effect[layer] > max(beside[0], beside[2])
                row |= {"peak": effect[layer], "layer": layer}
                row["salient"] = alone and is_salient(share[layer])
            rows[run, metric, window] = row
    frame = table(rows, ["peak", "layer", "plateau", "salient"])
    return frame.astype({"layer": "Int64", "salient": bool})


def compare_windows(sweep: Sweep) -> pd.DataFrame:
    """Windows restored together (sliding) against sums of single layers (adding; Section 5).

    Args:
        sweep: a sweep of layers at one position, with windows of 1 and of several layers.

    Returns:
        A row for each ``run, metric, window`` but the windows of 1; the columns ``sliding`` and
        ``adding`` (the peaks over middle layers, which need not be at the same one), their
        ``ratio``, and ``low`` and ``high``, the 95 % bootstrap interval of the ratio over prompts.
        Missing where the window leaves no middle layer; the ratio also where adding has no
        positive peak, and the interval where it cannot be told from zero.

    Raises:
        PatchlibError: for a sweep without single layers, and as `peaks` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> facts = pl.tasks.factual_recall(model, n=8)
        >>> mlps = pl.sweep(model, facts, {"STR": pl.STR("subject")}, "mlp", window=[1, 3],
        ...                 positions="last_subject", metrics=["prob"], progress=False)
        >>> compare_windows(mlps).columns.tolist()
        ['sliding', 'adding', 'ratio', 'low', 'high']
    """
    _require_layers(sweep)
    rows: Rows = {}
    for run, fx in sweep.items():
        curves = {(metric, window): (b, some) for metric, window, b, some in _curves(fx)}
        for (metric, window), (before, some) in curves.items():
            if (metric, 1) not in curves:
                raise PatchlibError(
                    "sums of single layers need a window of 1 beside the others: give "
                    f"window=[1, {window}]"
                )
            if window == 1:
                continue
            rows[run, metric, window] = {}
            first = _first_middle(some, before)
            if first < some.sizes["layer"]:
                sliding = some.effect.dropna("prompt")
                single = curves[metric, 1][1].effect.dropna("prompt")
                slid, slid_again = (
                    means.isel(layer=slice(first, None)).max("layer", skipna=False)
                    for means in (sliding.mean("prompt"), resampled(sliding))
                )
                added, added_again = (
                    sum_windows(means, window, before)
                    .isel(layer=slice(first, None))
                    .max("layer", skipna=False)
                    for means in (single.mean("prompt"), resampled(single))
                )
                rows[run, metric, window] = {
                    "sliding": float(slid),
                    "adding": float(added),
                    "ratio": float(slid / added) if added > 0 else np.nan,
                } | ratio_ends(slid_again, added_again)
    return table(rows, ["sliding", "adding", "ratio", "low", "high"])


def last_to_middle(sweep: Sweep) -> pd.DataFrame:
    """The effect at the last subject token against that at the middle ones (Section 4.1).

    Both are sums over all layers, of the same prompts: those with a middle subject token. By the
    logit difference both have these prompts' normaliser.

    Args:
        sweep: a sweep of layers with the positions ``"last_subject"`` and ``"middle_subject"``.

    Returns:
        A row for each ``run, metric, window``; the columns ``last``, ``middle``, their ``ratio``,
        and ``low`` and ``high``, its 95 % bootstrap interval over prompts. The ratio is missing
        where the middle has no positive effect, the interval where it cannot be told from zero.
        The attribute ``n_prompts`` counts the prompts.

    Raises:
        PatchlibError: for a sweep of heads, of some layers alone, or without these positions, and
            where no prompt has a middle token.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> facts = pl.tasks.factual_recall(model, n=20)
        >>> mlps = pl.sweep(model, facts, {"STR": pl.STR("subject")}, "mlp", metrics=["prob"],
        ...                 positions=["middle_subject", "last_subject"], progress=False)
        >>> last_to_middle(mlps).index.tolist()
        [('STR', 'prob', 1)]
    """
    _require_layers(sweep, positions=(MIDDLE, LAST))
    rows: Rows = {}
    n = 0
    for run, fx in sweep.items():
        for metric, window, _, some in _curves(fx):
            some = _with_middle(some)
            n = some.sizes["prompt"]
            top, bottom = _last_and_middle(some)
            ratio = float(top.mean() / bottom.mean())
            middle = float(some.effect.sel(position=MIDDLE).sum("layer").mean())
            rows[run, metric, window] = {
                "last": middle * ratio,
                "middle": middle,
                "ratio": ratio if middle > 0 else np.nan,
            } | ratio_ends(resampled(top), resampled(bottom))
    frame = table(rows, ["last", "middle", "ratio", "low", "high"])
    frame.attrs["n_prompts"] = n
    return frame


def favours_last(sweep: Sweep, metric: str = "prob", than: str = "logit_diff") -> pd.Series:
    """How surely one metric favours the last subject token more than another does (Section 4.1).

    Two intervals of `last_to_middle` may overlap although the two ratios, which are of the same
    prompts, differ in nearly every resample of them.

    Args:
        sweep: as in `last_to_middle`.
        metric: the metric whose ratio should be the larger one.
        than: the metric that it is compared with.

    Returns:
        For each ``run, window`` the share of 1,000 resamples of the prompts in which the ratio of
        last to middle is larger by ``metric``; below 0.025 and above 0.975 the answer is sure. A
        middle of no positive effect counts as the larger ratio. NaN for a single prompt.

    Raises:
        PatchlibError: as `last_to_middle` does, and for a metric that the sweep does not have.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> facts = pl.tasks.factual_recall(model, n=20)
        >>> mlps = pl.sweep(model, facts, {"STR": pl.STR("subject")}, "mlp", progress=False,
        ...                 positions=["middle_subject", "last_subject"])
        >>> favours_last(mlps).index.tolist()
        [('STR', 1)]
    """
    _require_layers(sweep, positions=(MIDDLE, LAST))
    for name in (metric, than):
        if name not in sweep.metrics:
            raise PatchlibError(f"no metric {name!r}: this sweep has {', '.join(sweep.metrics)}")
    shares: dict[tuple[str, int], float] = {}
    for run, fx in sweep.items():
        again = {
            (name, window): [resampled(each) for each in _last_and_middle(_with_middle(some))]
            for name, window, _, some in _curves(fx)
        }
        for name, window in again:
            if name == metric:
                (top, bottom), (other_top, other_bottom) = (
                    again[each, window] for each in (metric, than)
                )
                # Of two positive middles the larger ratio, without dividing by what may be zero.
                more = xr.where(bottom > 0, top * other_bottom > other_top * bottom, True)
                known = bool(bottom.notnull().all())
                shares[run, window] = float(more.mean()) if known else np.nan
    series = pd.Series(shares, name="share")
    return series.rename_axis(["run", "window"])


def is_salient(share: float) -> bool:
    """Whether a peak brings the metric far enough: a tenth of the way from corrupted to clean."""
    return bool(share >= _SALIENT)


def table(rows: Rows, columns: list[str]) -> pd.DataFrame:
    """Rows by run, metric and window, sorted; NaN where a row lacks a column."""
    index = pd.MultiIndex.from_tuples(rows, names=["run", "metric", "window"])
    # In this order pandas finds several rows, as in frame.loc["GN", "prob"], without a warning.
    return pd.DataFrame(list(rows.values()), index=index, columns=columns).sort_index()


def _with_middle(some: xr.Dataset) -> xr.Dataset:
    """The prompts that have a middle subject token."""
    some = some.isel(prompt=some.effect.sel(position=MIDDLE).notnull().all("layer").values)
    if not some.sizes["prompt"]:
        raise PatchlibError("no prompt has a middle subject token: give longer subjects")
    return some


def _last_and_middle(some: xr.Dataset) -> list[xr.DataArray]:
    """Sums over layers for each prompt, at the last and at the middle subject tokens."""
    # Effects of the two positions may differ in their normaliser; what was measured not.
    way = (some.patched - some.corrupted).sum("layer")
    return [way.sel(position=LAST), way.sel(position=MIDDLE)]


def _first_middle(some: xr.Dataset, before: int) -> int:
    """The first layer whose window holds none of the first twelfth of the layers."""
    return before + max(1, some.sizes["layer"] // 12)


def _curves(fx: xr.Dataset) -> Iterator[tuple[str, int, int, xr.Dataset]]:
    """Each metric, window, how many of its layers lie before its layer, and the numbers."""
    windows, befores = (str(fx.attrs[name]).split(", ") for name in ("window", "window_before"))
    before = dict(zip(map(int, windows), map(int, befores), strict=True))
    for metric in fx.metric.values:
        for window in np.atleast_1d(fx.window.values) if "window" in fx.coords else before:
            some = fx.sel(metric=metric)
            some = some.sel(window=window) if "window" in fx.dims else some
            yield str(metric), int(window), before[int(window)], some


def _require_layers(sweep: Sweep, positions: tuple[str, ...] = ()) -> None:
    for name, fx in sweep.items():
        found = [unit for unit in UNITS if unit in fx.dims] or fx.attrs.get("layers")
        if found:
            raise PatchlibError(
                f"{name}: this sweep is over {found}, and curves go over all layers: "
                "pl.sweep(model, pairs, corruptions, 'mlp', window=[1, 5])"
            )
        given = list(map(str, fx.position.values)) if "position" in fx.dims else []
        if not set(positions) <= set(given) or (given and not positions):
            wanted = list(positions) or "'last_subject', or select one by sweep.sel(position=...)"
            raise PatchlibError(f"{name}: positions={given}: give positions={wanted}")

"""How well a method finds a circuit that is known: its ranking and its sizes against the truth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float

from patchlib.errors import PatchlibError, require_result
from patchlib.heads import Head
from patchlib.measure.resamples import CONFIDENCE, resampled

_KINDS: tuple[tuple[str, ...], ...] = (("layer", "head"), ("writer", "reader"), ("edges",))
_PREDICTED = {"+": (True, np.nan, 1.0), "-": (True, np.nan, -1.0), None: (True, np.nan, np.nan)}


def score(
    result: xr.Dataset,
    truth: Iterable[object] | Mapping[Any, float | str | None],
    metric: str | None = None,
) -> pd.DataFrame:
    """Scores how well the effects of a method tell the heads, or edges, of a known circuit.

    Heads or edges are ranked by the size of their mean effect over prompts. Edges into a head's
    query, key and value count as one edge into the head, the largest by size; so do the cells of
    every other dimension, such as positions.

    Args:
        result: effects over ``layer, head``, over ``writer, reader``, or over ``edges`` by their
            names, as `patchlib.patch`, `patchlib.attribute`, `patchlib.patch_edges` and others
            give them.
        truth: the heads as ``"4.6"``, or the edges as ``"4.6->9.9"``; or a dict of them with the
            effects that are predicted: a number; ``"+"`` or ``"-"`` where only the sign is, None
            where nothing is. What is predicted to be 0 is no part of the circuit under this
            corruption, and neither is what is left out.
        metric: one of the result's metrics; the only one, or ``"logit_diff"``, where None.

    Returns:
        A row for each score, with the columns ``value``; ``low`` and ``high``, its 95 % interval
        over prompts, by a bootstrap that takes the same prompts for all results of as many (NaN
        without values of several prompts); and ``chance``, what a random order is expected to have:

        * ``auc``: the chance that a true one ranks above another one; equal ones count half;
        * ``average_precision``: the mean, over the true ones, of the share of true ones among all
          that rank as high or higher. With few true ones among many it tells apart what the AUC
          hardly does;
        * ``precision``: of as many as are true, taken from the top, the share that is; the recall
          is the same there;
        * ``needed``: how many have to be taken from the top to have all true ones;
        * ``signed_auc``: as ``auc``, with the most helpful first and the most harmful last;
        * ``size_error``: the mean distance of effects from their predicted sizes, over all but
          those of which only the sign is predicted; NaN without predicted sizes, and for other
          metrics than the logit difference. Its chance is the error of no effect at all;
        * ``signs``: which share of the predicted signs the effects have; NaN without any.

        The attributes ``n_true`` and ``n`` say how many of how many are true.

    Raises:
        PatchlibError: for results over other components, a metric that the result does not hold,
            for a truth that the result has not measured, that is empty, or that is everything.

    Example:
        >>> fx = xr.Dataset(
        ...     {"effect": (("metric", "layer", "head"), [[[0.0, 0.9], [-0.5, 0.6]]])},
        ...     coords={"metric": ["logit_diff"], "layer": [0, 1], "head": [0, 1]},
        ... )
        >>> found = score(fx, {"0.1": 1.0, "1.0": "-"})
        >>> found.value[["auc", "needed", "signed_auc", "signs"]].tolist()
        [0.75, 3.0, 0.5, 1.0]
        >>> print(round(float(found.value.size_error), 3))  # 0, 0.1 and 0.6 away
        0.233
    """
    require_result(result)
    effect, names = _by_name(_of_metric(result, metric))
    true, sizes, signs = _read(truth, names)
    if effect.metric.item() != "logit_diff":
        sizes = np.full_like(sizes, np.nan)
    mean = effect.mean("prompt") if "prompt" in effect.dims else effect
    value = _scores(_merged(mean.values[None], names), true, sizes, signs)
    ends = {name: [np.nan, np.nan] for name in value}
    if effect.sizes.get("prompt", 1) > 1:
        means = resampled(effect).transpose("resample", "cell").values
        drawn = _scores(_merged(means, names), true, sizes, signs)
        tail = (1 - CONFIDENCE) / 2
        ends = {name: np.quantile(each, [tail, 1 - tail]).tolist() for name, each in drawn.items()}
    sized = sizes[np.isfinite(sizes)]
    by_chance = chance(int(true.sum()), len(true)) | {
        "size_error": float(abs(sized).mean()) if sized.size else np.nan,
        "signs": 0.5,
    }
    rows = {
        name: [float(each[0]), *ends[name], by_chance[name] if np.isfinite(each[0]) else np.nan]
        for name, each in value.items()
    }
    columns = ["value", "low", "high", "chance"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("score")
    found.attrs = {"n_true": int(true.sum()), "n": len(true)}
    return found


def _of_metric(result: xr.Dataset, metric: str | None) -> xr.DataArray:
    """The effects of one metric, over draws their mean."""
    effect = result.effect
    if "metric" not in effect.coords:
        effect = effect.assign_coords(metric="none")
    held = np.atleast_1d(effect.metric.values).tolist()
    chosen = metric or (held[0] if len(held) == 1 else "logit_diff")
    if chosen not in held:
        raise PatchlibError(f"metric={metric!r}: this result has {', '.join(map(str, held))}")
    if "metric" in effect.dims:
        effect = effect.sel(metric=chosen)
    return effect.mean("draw") if "draw" in effect.dims else effect


def _by_name(effect: xr.DataArray) -> tuple[xr.DataArray, np.ndarray]:
    """The cells that were measured, and the name of each; several may have one name."""
    kind = next((dims for dims in _KINDS if {*dims} <= {*effect.dims}), None)
    if kind is None:
        raise PatchlibError(
            f"these effects have the dimensions {', '.join(map(str, effect.dims))}: a score is of "
            "heads (layer and head) or of edges (writer and reader, or edges by name)"
        )
    others = [dim for dim in effect.dims if dim not in ("prompt", *kind)]
    cells = effect.stack(cell=[*kind, *others])
    measured = cells.notnull()
    if "prompt" in cells.dims:
        cells = cells.isel(cell=measured.any("prompt").values)
        if cells.isnull().any():
            raise PatchlibError(
                "some of these cells were measured for a part of the prompts alone: give a result "
                "of all positions together, or of positions that every prompt has"
            )
    else:
        cells = cells.isel(cell=measured.values)
    labels = [cell[: len(kind)] for cell in cells.cell.values]
    join = ".".join if kind == ("layer", "head") else "->".join
    names = np.array([_name(join(map(str, label))) for label in labels])
    return cells.drop_vars(["cell", *kind, *others]), names


def _name(given: object) -> str:
    """A head, or an edge with its reader's query, key or value as the reading head."""
    if isinstance(given, tuple) and all(isinstance(part, str) for part in given):
        given = "->".join(given)
    if isinstance(given, str) and "->" in given:
        writer, reader = (part.strip() for part in given.split("->", 1))
        return f"{writer}->{re.sub('^[qkv](?=[0-9])', '', reader)}"
    return str(Head.of(given))


def _read(
    truth: object, names: np.ndarray
) -> tuple[Bool[np.ndarray, " name"], Float[np.ndarray, " name"], Float[np.ndarray, " name"]]:
    """Of all names in order: which are true, the predicted sizes, and the predicted signs."""
    if isinstance(truth, str):
        truth = truth.replace(",", " ").split()
    if not isinstance(truth, Iterable):
        raise PatchlibError(f"truth={truth!r}: give heads or edges, or a dict of their effects")
    pairs = truth.items() if isinstance(truth, Mapping) else ((each, None) for each in truth)
    given = {_name(each): _predicted(each, value) for each, value in pairs}
    every = np.unique(names).tolist()
    if unknown := sorted({*given} - {*every}):
        raise PatchlibError(
            f"truth: the result has not measured {', '.join(unknown)}; it has {every[0]} to "
            f"{every[-1]} and {len(every)} in all"
        )
    rows = [given.get(name, (False, 0.0, np.nan)) for name in every]
    true, sizes, signs = (np.array(column) for column in zip(*rows, strict=True))
    if not 0 < true.sum() < len(every):
        raise PatchlibError(
            f"truth: {true.sum()} of {len(every)} are true; a ranking needs some that are and some "
            "that are not"
        )
    return true, sizes, signs


def _predicted(what: object, value: object) -> tuple[bool, float, float]:
    """Whether something is true, and its predicted size and sign, NaN where there is none."""
    if value in _PREDICTED:
        return _PREDICTED[value]  # type: ignore[index]
    if isinstance(value, Real) and np.isfinite(float(value)):
        return value != 0, float(value), float(np.sign(float(value))) or np.nan
    raise PatchlibError(f"truth: {what} has the effect {value!r}: give a number, '+' or '-'")


def _merged(
    means: Float[np.ndarray, "sample cell"], names: np.ndarray
) -> Float[np.ndarray, "sample name"]:
    """For each name, in order, the largest of its cells by size, with its sign."""
    order = np.argsort(names, kind="stable")
    _, first = np.unique(names[order], return_index=True)
    ordered = means[:, order]
    high, low = (each.reduceat(ordered, first, axis=1) for each in (np.maximum, np.minimum))
    return np.where(high >= -low, high, low)


def _scores(
    effects: Float[np.ndarray, "sample name"],
    true: Bool[np.ndarray, " name"],
    sizes: Float[np.ndarray, " name"],
    signs: Float[np.ndarray, " name"],
) -> dict[str, Float[np.ndarray, " sample"]]:
    """Every score of every sample."""
    n = int(true.sum())
    above, level, true_above, true_level = _counts(abs(effects), true)
    sized, signed = np.isfinite(sizes), np.isfinite(signs)
    nothing = np.full(len(effects), np.nan)
    # Without a size that is not 0, nothing was predicted.
    has_sizes = sized.any() and (sizes[sized] != 0).any()
    return {
        "auc": _auc(above, level, true_above, true_level, true),
        "average_precision": ((true_above + true_level) / (above + level)).mean(1),
        "precision": np.clip((n - above) / level, 0, 1).mean(1),
        "needed": (above + level).max(1).astype(float),
        "signed_auc": _auc(*_counts(effects, true), true),
        "size_error": abs(effects - sizes)[:, sized].mean(1) if has_sizes else nothing,
        "signs": (effects * signs > 0)[:, signed].mean(1) if signed.any() else nothing,
    }


def _counts(
    ranked: Float[np.ndarray, "sample name"], true: Bool[np.ndarray, " name"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each true one, how many rank above it, and level with it; and how many true ones do."""
    one = ranked[:, true, None]
    above, level = ranked[:, None] > one, ranked[:, None] == one
    return above.sum(2), level.sum(2), above[..., true].sum(2), level[..., true].sum(2)


def _auc(
    above: np.ndarray,
    level: np.ndarray,
    true_above: np.ndarray,
    true_level: np.ndarray,
    true: Bool[np.ndarray, " name"],
) -> Float[np.ndarray, " sample"]:
    lost = (above - true_above) + (level - true_level) / 2
    return 1 - lost.mean(1) / (~true).sum()


def chance(n_true: int, n: int) -> dict[str, float]:
    """What the scores of a ranking are expected to be in a random order.

    Args:
        n_true: how many are true.
        n: of how many.

    Example:
        >>> {name: round(value, 2) for name, value in chance(1, 4).items()}
        {'auc': 0.5, 'average_precision': 0.52, 'precision': 0.25, 'needed': 2.5, 'signed_auc': 0.5}
    """
    # Above a true one at rank k, each of the k - 1 others is true with this chance.
    other, rank = (n_true - 1) / (n - 1), np.arange(1, n + 1)
    return {
        "auc": 0.5,
        "average_precision": float(((1 + other * (rank - 1)) / rank).mean()),
        "precision": n_true / n,
        "needed": n_true * (n + 1) / (n_true + 1),
        "signed_auc": 0.5,
    }

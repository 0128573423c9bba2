"""Which components need each other and which stand in for each other: AND, OR, additive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.measure.intervals import interval
from patchlib.patching import frames
from patchlib.patching.cells import Limits, Part, parts_of
from patchlib.patching.patch import Metrics, _one_or_list, _patch, _require_sense
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs

# What single precision may leave of an interaction of zero.
_ROUNDING = 1e-5


def interactions(
    model: TransformerBridge,
    pairs: PromptPairs,
    parts: Iterable[object],
    *,
    corruption: Corruption,
    activation: str = "z",
    metrics: Metrics = ("logit_diff", "prob", "kl"),
    positions: str | int | Sequence[str | int] = "all",
    memory_budget: float | None = None,
    recompute: bool = False,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Patches every two components together, in both directions, less what each does alone.

    Denoising finds what is enough, noising what is needed (Heimersheim & Nanda, 2024). Of two
    parts of an AND, denoising restores nothing by one alone and noising loses everything; of an OR
    it is the reverse. Metrics that saturate, as probability does, have interactions of their own.

    Args:
        model: the model, in evaluation mode.
        pairs: the prompts.
        parts: two or more components as in `patch_together`, or sets of them as lists, such as
            ``["4.6", "mlp3", ["5.0", "5.1"]]``; no two with a part in common.
        corruption: as in `patch`.
        activation: as in `patch_together`.
        metrics: as in `patch`.
        positions: as in `patch`.
        memory_budget: as in `patch`.
        recompute: as in `patch`.
        progress: as in `patch`, for one direction after the other.

    Returns:
        A dataset over ``metric, direction, first, second`` and, where asked for, ``position``:

        * ``effect`` of both together as in `patch`, D(AB) or N(AB), on the diagonal of each alone;
          ``patched``, ``clean``, ``corrupted`` likewise;
        * ``interaction``, the mean over prompts of D(AB) - D(A) - D(B) when denoising and of
          N(A) + N(B) - N(AB) when noising, as effects are positive in both directions. Positive
          where both are needed. For all but KL it is the same in both directions where nothing
          but A and B carries the difference between the runs; where it is not, something does;
        * ``low`` and ``high``, its interval over prompts, as `interval` gives it;
        * ``gate``: ``"AND"`` where the interval lies above zero, ``"OR"`` where it lies below,
          ``"additive"`` where it holds zero, up to rounding; empty where there is none.

    Raises:
        PatchlibError: for fewer than two components, for two that overlap, and as `patch_together`
            does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> both = pl.interactions(model, pairs, ["4.1", ["5.0", "5.1"]], corruption=pl.STR("S2"),
        ...                        metrics="logit_diff", progress=False)
        >>> both.first.values.tolist(), dict(both.gate.sizes)
        (['4.1', '5.0, 5.1'], {'metric': 1, 'direction': 2, 'first': 2, 'second': 2})
    """
    given = [parts] if isinstance(parts, str) else list(parts)
    found, settings = [], dict[str, object]()
    for direction in ("denoise", "noise"):
        fx = joint(
            model,
            pairs,
            given,
            corruption=corruption,
            direction=direction,
            activation=activation,
            metrics=metrics,
            positions=positions,
            keep_prompts=True,
            memory_budget=memory_budget,
            recompute=recompute,
            progress=progress,
        )
        settings |= fx.attrs
        each = xr.DataArray(fx.first.values, dims="part")
        alone = fx.effect.sel(first=each, second=each).drop_vars(["first", "second"])
        alone = alone.assign_coords(part=each.values)
        beyond = fx.effect - alone.rename(part="first") - alone.rename(part="second")
        beyond = (beyond if direction == "denoise" else -beyond).where(fx.first != fx.second)
        ends = interval(xr.Dataset({"effect": beyond}))
        mean = fx.drop_vars("effect_sd").mean("prompt")
        found.append(mean.assign(interaction=beyond.mean("prompt"), low=ends.low, high=ends.high))
    data = xr.concat(found, xr.Variable("direction", ["denoise", "noise"]))
    gate = xr.where(data.low > _ROUNDING, "AND", xr.where(data.high < -_ROUNDING, "OR", "additive"))
    data["gate"] = xr.where(data.low.notnull(), gate, "")
    data = data.transpose("metric", "direction", "first", "second", ...)
    settings |= {"direction": "denoise, noise", "source": "the other run"}
    return data.assign_attrs(settings)


def joint(
    model: TransformerBridge,
    pairs: PromptPairs,
    parts: Sequence[object],
    *,
    corruption: Corruption,
    direction: str,
    activation: str = "z",
    metrics: Metrics = ("logit_diff", "prob", "kl"),
    positions: str | int | Sequence[str | int] = "all",
    keep_prompts: bool = False,
    keep_draws: bool = False,
    memory_budget: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    recompute: bool = False,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Patches every two components together in one direction; `interactions` takes both.

    Args:
        model: as in `patch`.
        pairs: as in `patch`.
        parts: as in `interactions`.
        corruption: as in `patch`.
        direction: as in `patch`.
        activation: as in `patch_together`.
        metrics: as in `patch`.
        positions: as in `patch`.
        keep_prompts: as in `patch`.
        keep_draws: as in `patch`.
        memory_budget: as in `patch`.
        checkpoint: as in `patch`.
        recompute: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset as `patch` gives it, over ``metric, first, second`` and whatever else is asked
        for, with each alone on the diagonal.

    Raises:
        PatchlibError: as `interactions` does.
    """
    positions = _one_or_list(positions)
    _require_sense(model, pairs, corruption)
    sets = _sets(model, parts, activation)
    fx = _patch(
        model,
        pairs,
        frames.of_pairs(model, pairs, sets, positions),
        corruption,
        metrics,
        {"method": "interactions", "sets": "; ".join(sets), "activation": activation},
        positions,
        direction,
        None,
        keep_prompts,
        keep_draws,
        "hooks",
        Limits.of(model, "auto", memory_budget),
        checkpoint,
        progress,
        stored=not recompute,
    )
    for name in {"effect", "effect_sd", "patched"} & {*fx.data_vars}:
        # Each two were run once.
        fx[name] = fx[name].fillna(fx[name].rename(first="second", second="first"))
    return fx


def _sets(
    model: TransformerBridge, given: Sequence[object], activation: str
) -> dict[str, tuple[Part, ...]]:
    sets: dict[str, tuple[Part, ...]] = {}
    for each in given:
        several = list(each) if isinstance(each, list | set | frozenset) else [each]
        sets[", ".join(map(str, several))] = parts_of(model, several, activation)
    if len(sets) < 2:
        raise PatchlibError(
            f"interactions of {', '.join(sets) or 'nothing'}: give at least two components, or "
            "sets of them as lists, such as ['4.6', ['5.0', '5.1']]"
        )
    for (one, mine), (other, theirs) in combinations(sets.items(), 2):
        if shared := {*mine} & {*theirs}:
            raise PatchlibError(
                f"{one!r} and {other!r} share {', '.join(map(str, shared))}: give components and "
                "sets that have no part in common"
            )
    return sets

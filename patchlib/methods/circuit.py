"""Circuits: whether some heads do a task without the others, and whether each of them matters.

The three criteria of Wang et al. (2023), Section 4, with F the mean of a metric over prompts, M the
whole model and C the circuit. Heads outside a set are ablated in the clean run, at all positions.
Only heads are: MLPs, the embedding and the norms work on, as in their paper. Another ablation,
other positions or single edges give other numbers (Miller et al., 2024).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

from patchlib.errors import PatchlibError, whole
from patchlib.heads import Heads
from patchlib.measure.intervals import interval
from patchlib.measure.resamples import ratio_ends, resampled
from patchlib.patching import frames
from patchlib.patching.cells import Limits, Part, parts_of
from patchlib.patching.patch import Metrics, _patch
from patchlib.patching.runs import require_evaluation, require_prompts
from patchlib.patching.sources import Source
from patchlib.prompts.pairs import PromptPairs

Circuit = Mapping[str, Iterable[object] | str] | Iterable[object] | str
"""Heads by the name of their class, or heads alone, each then a class of its own."""


def faithfulness(
    model: TransformerBridge,
    pairs: PromptPairs,
    circuit: Circuit,
    *,
    with_: Source,
    metrics: Metrics = "logit_diff",
    memory_budget: float | None = None,
    recompute: bool = False,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """How much of a task some heads do alone, all other heads being ablated.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths; only their clean versions are run.
        circuit: the heads, as ``["9.9", "10.0"]``, or lists of them by class, as
            ``{"Name Mover": ["9.9"], "Induction": ["5.5"]}``.
        with_: what other heads' z becomes, as in `ablate`. Wang et al. take means over p_ABC within
            a template: ``Mean(by="roles", site="ABC")``.
        metrics: as in `patch`.
        memory_budget: as in `patch`.
        recompute: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset over ``metric`` with means over prompts, in the metric's unit:

        * ``model``, F(M); ``circuit``, F(C); ``empty``, with every head ablated, F(∅);
        * ``gap``, F(M) - F(C), with the ends ``gap_low`` and ``gap_high`` of its 95 % interval over
          prompts. Wang et al. call its size faithfulness; zero is best;
        * ``faithfulness``, (F(C) - F(∅)) / (F(M) - F(∅)), with ``low`` and ``high``: 1 for the
          whole model, 0 for no head. It may lie above 1, where a circuit leaves out heads that work
          against the answer, and below 0.

    Raises:
        PatchlibError: for heads that there are not, or stand in two classes, and as `ablate` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> every = [(layer, head) for layer in range(8) for head in range(8)]
        >>> fx = pl.faithfulness(model, pairs, every, with_=pl.Mean(), progress=False)
        >>> fx.gap.item(), fx.faithfulness.item()
        (0.0, 1.0)
    """
    classes, every = _classes(model, circuit), _every_head(model)
    named = {"model": every, "circuit": _heads(classes), "empty": Heads()}
    kept = list(named.values())
    F = _values(model, pairs, kept, with_, metrics, memory_budget, recompute, progress)
    data = xr.Dataset({name: F[label(each, every)] for name, each in named.items()})
    data["gap"] = data.model - data.circuit
    gap, again = interval(xr.Dataset({"effect": data.gap})), data.map(resampled)
    mean = data.mean("prompt").assign(gap_low=gap.low, gap_high=gap.high)
    mean["faithfulness"] = (mean.circuit - mean.empty) / (mean.model - mean.empty)
    top, bottom = again.circuit - again.empty, again.model - again.empty
    ends = [ratio_ends(top.sel(metric=m), bottom.sel(metric=m)) for m in F.metric.values]
    for name in ("low", "high"):
        mean[name] = "metric", [each[name] for each in ends]
    return mean.assign_attrs(F.attrs | _described(classes))


def completeness(
    model: TransformerBridge,
    pairs: PromptPairs,
    circuit: Circuit,
    *,
    with_: Source,
    draws: int = 10,
    seed: int = 0,
    metrics: Metrics = "logit_diff",
    memory_budget: float | None = None,
    recompute: bool = False,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Whether heads outside a circuit do some of its work: what both lose with parts of it.

    A complete circuit without a set K of its heads does what the whole model does without K. Heads
    of the model that stand in for those of K make a difference.

    Args:
        model: as in `faithfulness`.
        pairs: as in `faithfulness`.
        circuit: as in `faithfulness`.
        with_: as in `faithfulness`.
        draws: how many random sets K, in which each head is with a probability of one half. A
            greedy search, as Wang et al. make it, would find larger gaps.
        seed: seeds them.
        metrics: as in `patch`.
        memory_budget: as in `patch`.
        recompute: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset over ``metric`` and ``subset``: ``"nothing"``, where the gap is that of
        `faithfulness`; each class; ``"random 1"`` and so on; ``"everything"``. ``removed`` lists
        the heads of each K. ``model`` is F(M \\ K), ``circuit`` F(C \\ K), and ``gap`` the first
        less the second, with the ends ``low`` and ``high`` of its 95 % interval over prompts.

    Raises:
        PatchlibError: as `faithfulness` does, and for a negative number of draws.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.completeness(model, pairs, ["3.1", "5.0"], with_=pl.Mean(), draws=1,
        ...                      progress=False)
        >>> fx.subset.values.tolist()
        ['nothing', '3.1', '5.0', 'random 1', 'everything']
    """
    classes, every = _classes(model, circuit), _every_head(model)
    heads, subsets = _heads(classes), _subsets(classes, draws, seed)
    kept = _less(subsets.values(), every, heads)
    F = _values(model, pairs, kept, with_, metrics, memory_budget, recompute, progress)
    data = xr.Dataset(
        {
            name: xr.concat([F[label(whole - K, every)] for K in subsets.values()], "subset")
            for name, whole in (("model", every), ("circuit", heads))
        }
    )
    data = data.assign_coords(
        subset=list(subsets), removed=("subset", [str(K.by_layer) for K in subsets.values()])
    )
    data["gap"] = data.model - data.circuit
    ends = interval(xr.Dataset({"effect": data.gap}))
    data = data.mean("prompt").assign(low=ends.low, high=ends.high)
    settings = F.attrs | _described(classes) | {"subset_draws": draws, "subset_seed": seed}
    return data.transpose("metric", ...).assign_attrs(settings)


def minimality(
    model: TransformerBridge,
    pairs: PromptPairs,
    circuit: Circuit,
    *,
    with_: Source,
    metrics: Metrics = "logit_diff",
    memory_budget: float | None = None,
    recompute: bool = False,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """What each head of a circuit is needed for: how much its removal changes.

    A head that others of its class stand in for changes little alone. So each head v is removed
    twice: from the circuit, and from the circuit without the other heads of its class.

    Args:
        model: as in `faithfulness`.
        pairs: as in `faithfulness`.
        circuit: as in `faithfulness`.
        with_: as in `faithfulness`.
        metrics: as in `patch`.
        memory_budget: as in `patch`.
        recompute: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset over ``metric``, ``node`` (each head by name, with its ``class``) and ``without``,
        the set K that was removed before: ``"nothing"`` or ``"its class"``. ``change`` is
        F(C \\ (K ∪ {v})) - F(C \\ K), negative where the head helps, with the ends ``low`` and
        ``high`` of its 95 % interval over prompts. ``share`` is its size as a share of F(M). Wang
        et al. ask of each head that some K makes it large.

    Raises:
        PatchlibError: as `faithfulness` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.minimality(model, pairs, {"S-Inhibition": ["3.1", "3.4"]}, with_=pl.Mean(),
        ...                    progress=False)
        >>> dict(fx.change.sizes), fx["class"].values.tolist()
        ({'metric': 1, 'node': 2, 'without': 2}, ['S-Inhibition', 'S-Inhibition'])
    """
    classes, every = _classes(model, circuit), _every_head(model)
    heads = _heads(classes)
    nodes = [(head, name) for name, members in classes.items() for head in members]
    removed = {
        "nothing": [Heads() for _ in nodes],
        "its class": [classes[name] - [head] for head, name in nodes],
    }
    kept = [every, *_less(_removals(classes), heads)]
    F = _values(model, pairs, kept, with_, metrics, memory_budget, recompute, progress)

    def of(K: Heads) -> xr.DataArray:
        return F[label(heads - K, every)]

    changes = [
        xr.concat([of(K | [head]) - of(K) for K, (head, _) in zip(Ks, nodes, strict=True)], "node")
        for Ks in removed.values()
    ]
    change = xr.concat(changes, "without").assign_coords(
        without=list(removed), node=[str(head) for head, _ in nodes]
    )
    change.coords["class"] = "node", [name for _, name in nodes]
    ends, mean = interval(xr.Dataset({"effect": change})), change.mean("prompt")
    share = abs(mean) / abs(F[label(every, every)].mean("prompt"))
    data = xr.Dataset({"change": mean, "low": ends.low, "high": ends.high, "share": share})
    data = data.transpose("metric", "node", "without")
    return data.assign_attrs(F.attrs | _described(classes))


def criteria(
    model: TransformerBridge,
    pairs: PromptPairs,
    circuit: Circuit,
    *,
    with_: Source,
    draws: int = 10,
    seed: int = 0,
    metrics: Metrics = "logit_diff",
    keep_prompts: bool = False,
    keep_draws: bool = False,
    memory_budget: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    recompute: bool = False,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """All runs that the three criteria need, for a stored sweep that serves them.

    Args:
        model: as in `faithfulness`.
        pairs: as in `faithfulness`.
        circuit: as in `faithfulness`.
        with_: as in `faithfulness`.
        draws: as in `completeness`.
        seed: as in `completeness`.
        metrics: as in `patch`.
        keep_prompts: as in `patch`.
        keep_draws: as in `patch`.
        memory_budget: as in `patch`.
        checkpoint: as in `patch`.
        recompute: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset as `ablate` gives it, over ``metric`` and ``kept``, each set of heads that are
        kept by its `label`.

    Raises:
        PatchlibError: as `faithfulness` does.
    """
    classes, every = _classes(model, circuit), _every_head(model)
    heads, subsets = _heads(classes), _subsets(classes, draws, seed)
    kept = _less(subsets.values(), every, heads) + _less(_removals(classes), heads)
    return _knock_out(
        model,
        pairs,
        [*kept, Heads()],
        with_,
        metrics,
        keep_prompts,
        keep_draws,
        Limits.of(model, "auto", memory_budget),
        checkpoint,
        progress,
        not recompute,
    )


def _knock_out(
    model: TransformerBridge,
    pairs: PromptPairs,
    kept: Sequence[Heads],
    with_: Source,
    metrics: Metrics,
    keep_prompts: bool,
    keep_draws: bool,
    limits: Limits,
    checkpoint: str | os.PathLike[str] | None,
    progress: bool | Callable[[int, int], object],
    stored: bool,
) -> xr.Dataset:
    """Ablates all heads but some, for one set of heads that are kept after another."""
    require_prompts(model, pairs)
    if with_ is None:
        raise PatchlibError(
            "with_=None: say what other heads' z becomes, such as pl.Mean(by='roles')"
        )
    every = _every_head(model)
    # Equal sets are run once, so that their numbers are the same to the last digit.
    sets = {label(each, every): tuple(Part("z", *head) for head in every - each) for each in kept}
    return _patch(
        model,
        pairs,
        frames.of_sets(model, pairs, "kept", sets),
        None,
        metrics,
        {"method": "circuit"},
        "all",
        "noise",
        with_,
        keep_prompts,
        keep_draws,
        "hooks",
        limits,
        checkpoint,
        progress,
        stored=stored,
    )


def label(kept: Heads, every: Heads) -> str:
    """What a set of heads is called: by its own heads, or by those that it lacks if fewer."""
    lacking = every - kept
    if len(lacking) < len(kept):
        return f"all but {lacking.by_layer}" if lacking else "all"
    return str(kept.by_layer)


def _values(
    model: TransformerBridge,
    pairs: PromptPairs,
    kept: Sequence[Heads],
    with_: Source,
    metrics: Metrics,
    memory_budget: float | None,
    recompute: bool,
    progress: bool | Callable[[int, int], object],
) -> xr.Dataset:
    """The metric of every prompt with some heads kept, one variable for each set's `label`."""
    limits = Limits.of(model, "auto", memory_budget)
    fx = _knock_out(
        model, pairs, kept, with_, metrics, True, False, limits, None, progress, not recompute
    )
    return fx.patched.drop_vars("text").to_dataset("kept").assign_attrs(fx.attrs)


def _classes(model: TransformerBridge, circuit: Circuit) -> dict[str, Heads]:
    """The heads of each class."""
    require_evaluation(model)
    if isinstance(circuit, Mapping):
        classes = {str(name): Heads(heads) for name, heads in circuit.items()}
    else:
        classes = {str(head): Heads([head]) for head in Heads(circuit)}
    given = [head for heads in classes.values() for head in heads]
    if given:
        parts_of(model, map(str, given))
    if twice := {str(head) for head in given if given.count(head) > 1}:
        raise PatchlibError(f"{', '.join(sorted(twice))} stands in the circuit twice: name it once")
    return {name: heads for name, heads in classes.items() if heads}


def _heads(classes: Mapping[str, Heads]) -> Heads:
    return Heads(head for heads in classes.values() for head in heads)


def _every_head(model: TransformerBridge) -> Heads:
    layers, heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    return Heads((layer, head) for layer in range(layers) for head in range(heads))


def _subsets(classes: Mapping[str, Heads], draws: int, seed: int) -> dict[str, Heads]:
    """The sets K of `completeness`."""
    heads, draws, seed = _heads(classes), whole("draws", draws, 0), whole("seed", seed, 0)
    generator = derive_generator(seed, "completeness")
    chosen = torch.rand(draws, len(heads), generator=generator) < 0.5
    random = {
        f"random {number}": Heads(head for head, is_in in zip(heads, row, strict=True) if is_in)
        for number, row in enumerate(chosen.tolist(), 1)
    }
    return {"nothing": Heads(), **classes, **random, "everything": heads}


def _removals(classes: Mapping[str, Heads]) -> list[Heads]:
    """The sets of heads that `minimality` removes: each head, with and without its class."""
    alone = [Heads([head]) for head in _heads(classes)]
    others = [members - [head] for members in classes.values() for head in members]
    return [Heads(), *alone, *others, *classes.values()]


def _less(subsets: Iterable[Heads], *wholes: Heads) -> list[Heads]:
    """Every whole less every subset."""
    return [whole - K for K in subsets for whole in wholes]


def _described(classes: Mapping[str, Heads]) -> dict[str, Any]:
    """What results keep of a circuit, and of what is not ablated at all."""
    circuit = "; ".join(f"{name}: {heads}" for name, heads in classes.items())
    return {"circuit": circuit, "n_heads": len(_heads(classes)), "always_kept": "MLPs, embedding"}

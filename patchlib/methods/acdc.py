"""ACDC (Conmy et al., 2023): edges are removed one after the other, from the logits back.

Edges go for good where the metric gets worse by less than a threshold without them. A removed edge
carries what its writer writes in the corrupted run. What one decision leaves is what the next is
made in, so that the order matters, and each decision is one run: candidates that are run together
would not know of each other.

Two things are not computed. Before a reader nothing changes with it: a run begins at its layer, and
at the first position at which the two prompts differ. Edges into what nobody reads any more change
nothing, and go without a run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from numbers import Real
from typing import NamedTuple

import pandas as pd
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError, whole
from patchlib.methods.edges import Edge, Edges, _Cell, _Engine, _place
from patchlib.patching import metrics as metric_definitions
from patchlib.patching.cells import Limits
from patchlib.patching.fast_engine import first_difference
from patchlib.patching.metrics import Metric, measure
from patchlib.patching.patch import _require_sense
from patchlib.patching.runs import row_bytes, two_runs
from patchlib.patching.settings import of_result
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs

Order = str | int | xr.Dataset


@dataclass(frozen=True, repr=False)
class Pruning:
    """What `acdc` leaves of a model.

    Args:
        circuit: the edges that are left.
        value: the metric with these alone, its mean over prompts.
        passes: how many runs the decisions took, each of all prompts.
        decisions: over ``edge``, in the order in which they were decided: ``change``, by how much
            the metric gets worse without it; ``value``, the metric without it; ``removed``; and
            ``run``, False where nobody reads its reader any more, so that nothing had to be run. It
            has coordinates ``writer`` and ``reader``, and the settings as attributes.
    """

    circuit: Edges
    value: float
    passes: int
    decisions: xr.Dataset

    def __repr__(self) -> str:
        said = self.decisions.attrs
        return (
            f"Pruning({len(self.circuit)} of {said['n_edges']} edges left at threshold "
            f"{said['threshold']:g}: {said['metrics']} {self.value:.3g}, {self.passes} passes)"
        )


def acdc(
    model: TransformerBridge,
    pairs: PromptPairs,
    threshold: float,
    *,
    corruption: Corruption,
    metric: str | Metric = "kl",
    order: Order = "reverse",
    among: Edges | Iterable[object] | str | None = None,
    merged: bool = False,
    memory_budget: float | None = None,
    progress: bool | Callable[[int, int], object] = True,
) -> Pruning:
    """Removes every edge without which a metric gets worse by less than a threshold.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths. Each decision is about the mean over all, and over draws.
        threshold: τ, in the metric's unit. An edge is removed where the change is smaller.
        corruption: as in `patch`; gives the run whose outputs removed edges carry.
        metric: what must not get worse. ``"kl"`` is D_KL(whole model || circuit), as in the paper,
            which asks for all that the model says. Any other of `patch` has a sign: where its mean
            gets better the change is below zero, and at τ = 0 every edge that works against the
            answer goes.
        order: of the writers that a reader reads, and of the heads of a layer: ``"reverse"``, the
            last ones first; ``"forward"``; a number, which seeds a random order; or the result of
            `attribute_edges`, by which a reader's weakest edge, by size, is the first.
        among: edges to choose from, all others being removed before; all where None.
        merged: whether the query, key and value of a head are one reader, so that their edges are
            kept or removed together: a third of the decisions. Heads that share keys and values are
            one reader together.
        memory_budget: as in `patch`; all prompts are held at once.
        progress: as in `patch`, in decisions.

    Returns:
        The edges that are left, the metric with them, and all decisions. The metric is worse than
        at the start by less than τ for each edge that was removed.

    Raises:
        PatchlibError: for a threshold or an order that is none, and as `patch_edges` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> found = pl.acdc(model, pairs, 0.5, corruption=pl.STR("S2"), merged=True,
        ...                 among=[e for e in pl.Edges.of(model) if e.writer[0] in "67m"],
        ...                 progress=False)
        >>> found.value < 0.5 * (len(pl.Edges.of(model)) - len(found.circuit))
        True
    """
    return acdc_sweep(
        model,
        pairs,
        [threshold],
        corruption=corruption,
        metric=metric,
        order=order,
        among=among,
        merged=merged,
        memory_budget=memory_budget,
        progress=progress,
    )[threshold]


def acdc_sweep(
    model: TransformerBridge,
    pairs: PromptPairs,
    thresholds: Sequence[float],
    *,
    corruption: Corruption,
    reuse: bool = True,
    metric: str | Metric = "kl",
    order: Order = "reverse",
    among: Edges | Iterable[object] | str | None = None,
    merged: bool = False,
    memory_budget: float | None = None,
    progress: bool | Callable[[int, int], object] = True,
) -> dict[float, Pruning]:
    """Runs `acdc` with one threshold after another, from the lowest.

    With ``reuse`` each threshold prunes what the one below it has left. That takes much less time,
    and makes the circuits nested. It is not the rule of `acdc` with this threshold alone: there, an
    edge into a late reader is judged while all earlier edges are still there; here, the
    edges that the lower threshold removed are gone already. Without ``reuse`` each threshold begins
    anew, and a larger one can keep an edge that a smaller one removes.

    Args:
        model: as in `acdc`.
        pairs: as in `acdc`.
        thresholds: the thresholds, in any order.
        corruption: as in `acdc`.
        reuse: whether to prune on.
        metric: as in `acdc`.
        order: as in `acdc`.
        among: as in `acdc`.
        merged: as in `acdc`.
        memory_budget: as in `acdc`.
        progress: as in `acdc`, anew for each threshold.

    Returns:
        What each threshold leaves, from the lowest. ``passes`` are those of the threshold alone.

    Raises:
        PatchlibError: as `acdc` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> late = [edge for edge in pl.Edges.of(model) if edge.reader == "logits"]
        >>> found = pl.acdc_sweep(model, pairs, [0.1, 1], corruption=pl.STR("S2"), among=late,
        ...                       progress=False)
        >>> found[1].circuit <= found[0.1].circuit <= pl.Edges(late)
        True
    """
    _require_sense(model, pairs, corruption)
    for threshold in thresholds:
        if isinstance(threshold, bool) or not isinstance(threshold, Real) or threshold != threshold:
            raise PatchlibError(
                f"threshold={threshold!r}: give a number in the metric's unit, such as 0.01, or "
                "float('inf')"
            )
    chosen = metric_definitions.choose(metric)
    if len(chosen) != 1:
        raise PatchlibError(f"metric={metric!r}: give one, which every decision is about")
    pruner = _Pruner(model, pairs, corruption, chosen[0], merged, order, memory_budget)
    left = Edges.of(model) if among is None else Edges(map(pruner.graph.resolve, Edges(among)))
    found = {}
    for threshold in sorted(thresholds):
        found[threshold] = pruner.prune(left, threshold, progress)
        if reuse:
            left = found[threshold].circuit
    return found


class _Candidate(NamedTuple):
    """What is decided about: one edge, or those of a head's query, key and value."""

    writer: str
    reader: str
    edges: tuple[Edge, ...]

    @property
    def layer(self) -> float:
        """Where its reader stands; infinity for the logits."""
        return _place(self.reader)[0]


class _Decision(NamedTuple):
    """The row of a candidate in `Pruning.decisions`."""

    change: float
    value: float
    removed: bool
    run: bool


@dataclass(frozen=True)
class _Pruner(_Engine):
    """Decides about one edge after another."""

    metric: Metric
    merged: bool
    order: Order
    memory_budget: float | None

    def prune(
        self, among: Edges, threshold: float, progress: bool | Callable[[int, int], object]
    ) -> Pruning:
        """What a threshold leaves of some edges."""
        graph, candidates = self.graph, self.candidates(among)
        kept = graph.masks([_Cell((), edges=[*among])], torch.zeros(()))[0].bool()
        for prompts in self.prompts:
            prompts.begin(kept)
        value, decisions, removed = self.value(kept), list[_Decision](), list[Edge]()
        bar = tqdm(
            candidates,
            desc=f"ACDC, threshold {threshold:g}",
            disable=callable(progress) or not progress,
            leave=False,
        )
        for candidate in bar:
            if callable(progress):
                progress(len(decisions), len(candidates))
            ends = [(graph.reader_at[r], graph.writer_at[w]) for w, r in candidate.edges]
            trial = kept.clone()
            trial[tuple(torch.tensor(ends).T)] = False
            # Where nobody reads what its reader writes, the run would be the same.
            written = {w for _, reader in candidate.edges for w in graph.writing[reader]}
            of = [graph.writer_at[w] for w in written - {"logits"}]
            is_read = not of or bool(kept[:, of].any())
            new = self.value(trial, candidate.layer) if is_read else value
            change = self.metric.sign * (value - new)
            decisions.append(_Decision(change, new, change < threshold, is_read))
            if change < threshold:
                kept, value = trial, new
                removed += candidate.edges
        if callable(progress):
            progress(len(candidates), len(candidates))
        what = {"threshold": float(threshold), "n_edges": len(Edges.of(self.model))}
        return Pruning(
            Edges(among - Edges(removed)),
            value,
            sum(decision.run for decision in decisions),
            self.labelled(candidates, decisions).assign_attrs(what),
        )

    def value(self, kept: Bool[Tensor, "reader writer"], layer: float = inf) -> float:
        """The metric with some edges left, if none before a layer changed since runs began."""
        first = int(min(layer, self.graph.layers - 1))
        return float(torch.cat([each.values(kept, first) for each in self.prompts]).mean())

    @cached_property
    def prompts(self) -> list[_Prompts]:
        """All prompts, those of one length and one draw together.

        Raises:
            PatchlibError: where the memory budget is too small for them.
        """
        cfg, graph, draws = self.model.cfg, self.graph, self.corruption.draws
        # What both runs and every layer leave; what a run itself takes is counted already.
        kept = self.kept + cfg.d_model * (2 * len(graph.writers) + 4 * graph.layers)
        groups = [group for _, group in self.pairs.by_length()]
        needed = draws * sum(
            len(group) * row_bytes(self.model, len(group.prompts[0].clean), kept)
            for group in groups
        )
        if needed > Limits.of(self.model, "auto", self.memory_budget).memory:
            raise PatchlibError(
                f"memory_budget={self.memory_budget}: all {len(self.pairs)} prompts are held at "
                f"once and need {needed} bytes; give memory_budget={needed} or more, or fewer "
                "prompts"
            )
        return [_Prompts(self, group, draw) for group in groups for draw in range(draws)]

    def candidates(self, among: Edges) -> list[_Candidate]:
        """What is decided about, in order: from the last layer back, its MLP before its heads."""
        graph, order = self.graph, self.order
        together = dict[tuple[str, str], list[Edge]]()
        for edge in among:
            together.setdefault((edge.writer, self.reader(edge.reader)), []).append(edge)
        found = [_Candidate(*ends, tuple(edges)) for ends, edges in together.items()]
        # The graph's own order, forward.
        places = [*graph.writers, *dict.fromkeys(map(self.reader, graph.readers))]
        place = {name: float(number) for number, name in enumerate(places)}
        size = dict.fromkeys(found, 0.0)
        if isinstance(order, xr.Dataset):
            size = self.sizes(found, order)
        if isinstance(order, xr.Dataset) or order == "reverse":
            place = {name: -number for name, number in place.items()}
        elif order != "forward":
            if isinstance(order, str):
                raise PatchlibError(
                    f"order={order!r}: allowed are 'reverse', 'forward', a number that seeds a "
                    "random order, and a result of pl.attribute_edges"
                )
            draw = random.Random(whole("order", order, 0))
            place = {name: draw.random() for name in places}

        def key(candidate: _Candidate) -> tuple[float, ...]:
            writer, reader, _ = candidate
            is_head = not reader.startswith("mlp_in")
            return -candidate.layer, is_head, place[reader], size[candidate], place[writer]

        return sorted(found, key=key)

    def reader(self, name: str) -> str:
        """What a reader is decided about with: itself, or all that its head reads."""
        if not self.merged or name[0] not in "qkv":
            return name
        layer, head = name[1:].split(".")
        return f"{layer}.{int(head) - int(head) % self.graph.sharing}"

    def sizes(self, candidates: Sequence[_Candidate], fx: xr.Dataset) -> dict[_Candidate, float]:
        """How large the effects of a result are, added up for edges that are decided together."""
        effect = getattr(fx, "effect", xr.DataArray()).squeeze()
        if {*effect.dims} != {"writer", "reader"}:
            raise PatchlibError(
                f"order= is a result over {', '.join(map(str, effect.dims)) or 'nothing'}: give "
                "one of pl.attribute_edges with one metric, over writer and reader"
            )
        of = abs(effect).to_series().reorder_levels(["writer", "reader"]).to_dict()
        return {each: sum(of[edge] for edge in each.edges) for each in candidates}

    def labelled(
        self, candidates: Sequence[_Candidate], decisions: Sequence[_Decision]
    ) -> xr.Dataset:
        """The decisions, in their order."""
        by_order = isinstance(self.order, str | int)
        what = {
            "method": "ACDC",
            "metrics": self.metric.name,
            "order": self.order if by_order else "by attribution",
            "merged": int(self.merged),
        }
        table = pd.DataFrame(decisions, columns=[*_Decision._fields])
        return xr.Dataset(
            {name: ("edge", column) for name, column in table.items()},
            coords={
                "edge": [f"{each.writer}->{each.reader}" for each in candidates],
                "writer": ("edge", [each.writer for each in candidates]),
                "reader": ("edge", [each.reader for each in candidates]),
            },
            attrs=of_result(self.model, self.pairs, self.corruption, [self.metric], what),
        )


class _Prompts:
    """Prompts of one length, and what a run leaves for others that begin later.

    Args:
        pruner: the model and the metric.
        pairs: the prompts.
        draw: which draw of the corruption.
    """

    @torch.no_grad()
    def __init__(self, pruner: _Pruner, pairs: PromptPairs, draw: int):
        self.pruner, self.texts = pruner, pairs.texts
        self.answers = pairs.answers, pairs.wrong_answers
        clean, corrupted = two_runs(pruner.model, pairs, pruner.corruption, draw)
        start, (_, theirs) = first_difference(clean, corrupted), pruner.writes(corrupted)
        streams, self.past = pruner.trace(clean, start)
        self.x, self.theirs = streams[0][None], theirs[None, :, :, start:].clone()
        everything = torch.ones(theirs.shape[0], dtype=torch.bool).expand(
            len(pruner.graph.readers), -1
        )
        self.whole = self.run(self.x, self.theirs.clone(), everything)

    def begin(self, kept: Bool[Tensor, "reader writer"]) -> None:
        """Runs from the start, so that later runs can begin at any layer."""
        self.streams, self.changes = list[Tensor](), self.theirs.clone()
        self.run(self.x, self.changes, kept, keep=self.streams)

    def values(self, kept: Bool[Tensor, "reader writer"], layer: int) -> Float[Tensor, " prompt"]:
        """The metric of every prompt, in a run from a layer on."""
        known = layer and self.pruner.graph.before_layer(layer)
        changes = torch.cat((self.changes[:, :known], self.theirs[:, known:]), 1)
        logits = self.run(self.streams[layer], changes, kept, layer)
        return measure([self.pruner.metric], logits, *self.answers, self.whole, self.texts)[0]

    @torch.no_grad()
    def run(
        self,
        x: Float[Tensor, "one prompt position d_model"],
        changes: Float[Tensor, "one writer prompt position d_model"],
        kept: Bool[Tensor, "reader writer"],
        layer: int = 0,
        keep: list[Tensor] | None = None,
    ) -> Float[Tensor, "prompt token"]:
        """The logits of a run with some edges left, of the positions that can change."""
        masks = (~kept)[None].to(x)
        logits = self.pruner.run(x, changes, masks, first=layer, past=self.past, keep=keep)
        # In single precision, KL between runs that are nearly the same is rounding.
        return logits[0].double()

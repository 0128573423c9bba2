"""Circuits of edges: chosen by their scores, and whether they do a task alone.

Every edge outside of a circuit carries what its writer writes in the corrupted run, as in Hanna,
Pezzelle & Belinkov (2024) and MIB (Mueller et al., 2025).
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.measure.resamples import ratio_ends, resampled
from patchlib.methods.edges import Edge, Edges, _Graph, patch_edges
from patchlib.patching.patch import Metrics
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's sizes of circuits, as shares of all edges."""


def rank_edges(
    model: TransformerBridge, fx: xr.Dataset, *, metric: str = "logit_diff", grow: bool = False
) -> list[Edge]:
    """All edges of a model, those with the largest absolute effects first.

    The first n are a circuit: ``pl.Edges(ranked[:n])``.

    Args:
        model: the model.
        fx: a result for each edge, as `patch_edges` and `attribute_edges` give it; over prompts and
            draws the mean is taken.
        metric: one of its metrics.
        grow: grow the circuit back from the logits, as Hanna et al. do: next comes always the
            strongest of the edges into what is in it already, so that no edge leads nowhere.

    Raises:
        PatchlibError: for a result that is not of each edge of this model, and for a metric that it
            does not hold.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> fx = pl.attribute_edges(model, pairs, corruption=pl.STR("S2"), progress=False)
        >>> ranked = pl.rank_edges(model, fx, grow=True)
        >>> len(ranked), ranked[0].reader
        (6637, 'logits')
    """
    graph, effect = _Graph(model), fx.effect
    if effect.coords.get("writer", xr.DataArray([])).values.tolist() != graph.writers:
        raise PatchlibError(
            "this result is not of each edge of this model: give one of pl.attribute_edges, or of "
            "pl.patch_edges(model, pairs, 'each', ...)"
        )
    if metric not in effect.metric.values:
        held = ", ".join(map(str, effect.metric.values))
        raise PatchlibError(f"metric={metric!r}: this result has {held}")
    mean = effect.sel(metric=metric).mean({*effect.dims} & {"prompt", "draw"})
    rows = abs(mean).transpose("reader", "writer").values
    size = {
        Edge(writer, reader): float(rows[at, before])
        for at, (reader, n) in enumerate(graph.readers.items())
        for before, writer in enumerate(graph.writers[:n])
    }
    return _grown(graph, size) if grow else sorted(size, key=lambda edge: -size[edge])


def _grown(graph: _Graph, size: Mapping[Edge, float]) -> list[Edge]:
    """Edges in the order in which a circuit takes them that grows back from the logits."""
    reads, into = defaultdict[str, list[str]](list), defaultdict[str, list[Edge]](list)
    for reader, writers in graph.writing.items():
        for writer in writers:
            reads[writer].append(reader)
    for edge in size:
        into[edge.reader].append(edge)
    taken, waiting, reached = list[Edge](), list[tuple[float, Edge]](), set[str]()

    def reach(node: str) -> None:
        for reader in {*reads[node]} - reached:
            reached.add(reader)
            for edge in into[reader]:
                heapq.heappush(waiting, (-size[edge], edge))

    reach("logits")
    while waiting:
        taken.append(heapq.heappop(waiting)[1])
        reach(taken[-1].writer)
    return taken


def edge_faithfulness(
    model: TransformerBridge,
    pairs: PromptPairs,
    circuits: Mapping[str, Iterable[object]] | Iterable[object],
    *,
    corruption: Corruption,
    metrics: Metrics = "logit_diff",
    memory_budget: float | None = None,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """How much of a task some edges do alone, all others carrying what the corrupted run has.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths.
        circuits: `Edges`, or what makes them, or several by their names.
        corruption: as in `patch`.
        metrics: as in `patch`.
        memory_budget: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset over ``metric`` and, for several, ``circuit``, with means over prompts, in the
        metric's unit: ``model``, m(x), of the clean run; ``empty``, m(x'), of the corrupted run;
        ``circuit_alone``, m(C), and how many ``edges`` it has. ``faithfulness`` is
        (m(C) - m(x')) / (m(x) - m(x')), with the ends ``low`` and ``high`` of its 95 % interval
        over prompts: 1 for all edges and 0 for none, exactly. It lies above 1 where edges are left
        out that work against the answer. KL is measured from the corrupted run, as in noising.

    Raises:
        PatchlibError: as `patch_edges` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> circuits = {"all": pl.Edges.of(model), "none": []}
        >>> fx = pl.edge_faithfulness(model, pairs, circuits, corruption=pl.STR("S2"),
        ...                           progress=False)
        >>> fx.faithfulness.sel(metric="logit_diff").values.tolist()
        [1.0, 0.0]
    """
    graph, every = _Graph(model), Edges.of(model)
    named = circuits if isinstance(circuits, Mapping) else {"": circuits}
    kept = {
        str(name): Edges(map(graph.resolve, Edges(each)._edges)) for name, each in named.items()
    }
    # Equal sets are run once, so that their numbers are the same to the last digit.
    names = {every: "all", Edges(): "none"}
    for number, each in enumerate(kept.values()):
        names.setdefault(each, f"circuit {number}")
    fx = patch_edges(
        model,
        pairs,
        {name: every - each for each, name in names.items()},
        corruption=corruption,
        direction="noise",
        metrics=metrics,
        keep_prompts=True,
        memory_budget=memory_budget,
        progress=progress,
    )
    F = fx.patched.drop_vars("text").to_dataset("edges")
    runs = xr.concat([F[names[each]] for each in kept.values()], "circuit")
    data = xr.Dataset({"circuit_alone": runs, "model": F["all"], "empty": F["none"]})
    data = data.assign_coords(circuit=list(kept))
    mean, again = data.mean("prompt"), data.map(resampled)
    mean["faithfulness"] = (mean.circuit_alone - mean.empty) / (mean.model - mean.empty)
    top, bottom = again.circuit_alone - again.empty, again.model - again.empty
    ends = [
        [ratio_ends(top.sel(metric=m, circuit=c), bottom.sel(metric=m)) for c in kept]
        for m in data.metric.values
    ]
    for name in ("low", "high"):
        mean[name] = ("metric", "circuit"), [[each[name] for each in row] for row in ends]
    mean["edges"] = "circuit", [len(each) for each in kept.values()]
    attributes = fx.attrs | {"method": "faithfulness of edges"}
    del attributes["edges"]
    mean = mean.transpose("metric", ...).assign_attrs(attributes)
    return mean if isinstance(circuits, Mapping) else mean.squeeze("circuit", drop=True)


def faithfulness_curve(
    model: TransformerBridge,
    pairs: PromptPairs,
    fx: xr.Dataset,
    *,
    corruption: Corruption,
    shares: Sequence[float] = SHARES,
    metric: str = "logit_diff",
    grow: bool = False,
    memory_budget: float | None = None,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """How faithful circuits of growing size are that take the strongest edges of a result.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths, which need not be those that gave the result.
        fx: as in `rank_edges`.
        corruption: as in `patch`.
        shares: the sizes of the circuits, as growing shares of all edges.
        metric: the metric by which edges are ranked, and of the faithfulness.
        grow: as in `rank_edges`.
        memory_budget: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset as `edge_faithfulness` gives it, over ``metric`` and ``share``. With MIB's areas
        by the trapezoid rule, from the smallest share to the largest: ``cpr``, below the
        faithfulness, large where small circuits do much, also by leaving out what works against the
        answer; and ``cmd``, between the faithfulness and 1, small where circuits do what the model
        does.

    Raises:
        PatchlibError: for shares that are not growing ones between 0 and 1, and as `rank_edges` and
            `patch_edges` do.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> options = {"corruption": pl.STR("S2"), "progress": False}
        >>> fx = pl.attribute_edges(model, pairs, **options)
        >>> curve = pl.faithfulness_curve(model, pairs, fx, shares=[0.01, 0.1, 1], **options)
        >>> curve.edges.values.tolist(), curve.faithfulness.values[0, -1].item()
        ([66, 664, 6637], 1.0)
    """
    shares = list(map(float, shares))
    if not shares or shares != sorted({*shares}) or not 0 <= shares[0] <= shares[-1] <= 1:
        raise PatchlibError(f"shares={shares}: give growing numbers between 0 and 1")
    ranked = rank_edges(model, fx, metric=metric, grow=grow)
    circuits = {str(share): ranked[: round(share * len(ranked))] for share in shares}
    data = edge_faithfulness(
        model,
        pairs,
        circuits,
        corruption=corruption,
        metrics=metric,
        memory_budget=memory_budget,
        progress=progress,
    )
    data = data.rename(circuit="share").assign_coords(share=shares)
    return data.assign(_areas(data.faithfulness)).assign_attrs(grow=int(grow))


def _areas(faithfulness: xr.DataArray) -> dict[str, xr.DataArray]:
    """MIB's areas over the share of edges."""
    return {
        "cpr": faithfulness.integrate("share"),
        "cmd": abs(1 - faithfulness).integrate("share"),
    }

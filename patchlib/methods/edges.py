"""Edge patching: any set of the edges between what writes into the residual stream and what reads.

The graph is that of ACDC (Conmy et al., 2023): the embedding, heads and MLPs write; queries, keys
and values of heads, MLPs and the logits read. A reader sees the sum of what all writers before it
have written. An edge that is patched carries what its writer writes in the other run; the reader's
norm is computed anew. Edges are of all positions together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError, require_bridge
from patchlib.files import write_whole
from patchlib.patching import frames
from patchlib.patching.architectures import Network
from patchlib.patching.cells import Cell, Limits, Piece, unit_of
from patchlib.patching.fast_engine import (
    _TOKENS_PER_PASS_ON_CPU,
    _causal,
    _read_by,
    _split,
    _trace,
    _Wanted,
    first_difference,
    network_of,
)
from patchlib.patching.frames import Frame
from patchlib.patching.metrics import Metric, measure
from patchlib.patching.patch import Metrics, _patch, _require_sense
from patchlib.patching.runs import Run, batches, row_bytes, run_with_edits
from patchlib.patching.sources import Taken
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs


class Edge(NamedTuple):
    """From a writer to a reader, both by the names that `patchlib.path_patch` has for them."""

    writer: str
    reader: str

    def __str__(self) -> str:
        return f"{self.writer}->{self.reader}"


class Edges(Set[Edge]):
    """A set of edges, such as a circuit; prints one a line, in the order of the layers.

    Sets are compared and combined as Python's own: ``pl.Edges.of(model) - circuit`` is what a
    circuit leaves out.

    Args:
        given: edges as ``"4.6->q9.9"`` or ``("4.6", "q9.9")``, or one text with several. Writers
            are the embedding, ``"resid0"``, heads as ``"4.6"`` and MLPs as ``"mlp3"``; readers
            heads' queries, keys and values, as ``"q9.9"``, MLPs, as ``"mlp_in5"``, and
            ``"logits"``. Keys and values that several heads share go by the first of these heads.

    Raises:
        PatchlibError: for anything else.

    Example:
        >>> print(Edges(["4.6->logits", "resid0->v4.6"]))
        resid0->v4.6
        4.6->logits
        >>> import patchlib as pl
        >>> pl.Edges.of(pl.load_model("mini"))
        Edges(6637 edges)
    """

    def __init__(self, given: Iterable[object] | str = ()) -> None:
        if isinstance(given, str):
            given = given.replace(",", " ").split()
        if not isinstance(given, Iterable):
            raise PatchlibError(
                f"{given!r} is no set of edges: give a list such as ['4.6->q9.9', 'mlp3->logits']"
            )
        self._edges = frozenset(map(_edge, given))

    @classmethod
    def of(cls, model: TransformerBridge) -> Edges:
        """All edges of a model."""
        graph = _Graph(model)
        return cls(
            Edge(writer, reader)
            for reader, before in graph.readers.items()
            for writer in graph.writers[:before]
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Edges:
        """What was saved."""
        return cls(Path(path).read_text(encoding="utf-8"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a text file with one edge a line."""
        write_whole(Path(path), lambda part: part.write_text(f"{self}\n", encoding="utf-8"))

    def pruned(self, model: TransformerBridge) -> Edges:
        """Those edges on a way from the embedding to the logits; others do nothing for a circuit.

        Edges go whose writer reads nothing, and edges whose reader writes nothing that is read.

        Args:
            model: the model, which says what heads share keys and values.

        Example:
            >>> import patchlib as pl
            >>> model = pl.load_model("mini")
            >>> print(Edges("resid0->v0.1, 0.1->q4.2, 3.1->logits, resid0->logits").pruned(model))
            resid0->logits
        """
        graph = _Graph(model)
        left = Edges(map(graph.resolve, self))
        while True:
            read = {"resid0"}.union(*(graph.writing[reader] for _, reader in left))
            written = {"logits", *(writer for writer, _ in left)}
            useful = Edges(
                edge
                for edge in left
                if edge.writer in read and written.intersection(graph.writing[edge.reader])
            )
            if len(useful) == len(left):
                return left
            left = useful

    def __contains__(self, edge: object) -> bool:
        return edge in self._edges or (isinstance(edge, str) and _edge(edge) in self._edges)

    def __iter__(self) -> Iterator[Edge]:
        return iter(sorted(self._edges, key=lambda edge: (*_place(edge[1]), *_place(edge[0]))))

    def __len__(self) -> int:
        return len(self._edges)

    def __sub__(self, other: Set[Any]) -> Edges:
        # A set's own way goes through both in their order.
        return Edges(self._edges - frozenset(map(_edge, other)))

    def __hash__(self) -> int:
        return hash(self._edges)

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def __repr__(self) -> str:
        return f"Edges({len(self)} edges)"


_KINDS = ("resid", "", "q", "k", "v", "mlp", "mlp_in", "logits")


@cache
def _place(name: str) -> tuple[float, int, int]:
    """Where a writer or a reader stands: layer, kind, head."""
    kind, layer, head = re.fullmatch("([a-z_]*)([0-9]*)[.]?([0-9]*)", name).groups()  # type: ignore
    return float(layer or "inf"), _KINDS.index(kind), int(head or 0)


def _edge(given: object) -> Edge:
    if isinstance(given, Edge):
        return given
    both = given.split("->") if isinstance(given, str) else given
    names = [str(name).strip() for name in both] if isinstance(both, Iterable) else []
    if len(names) == 2:
        writer, reader = names
        if re.fullmatch("resid0|mlp[0-9]+|[0-9]+[.][0-9]+", writer) and re.fullmatch(
            "[qkv][0-9]+[.][0-9]+|mlp_in[0-9]+|logits", reader
        ):
            return Edge(writer, reader)
    raise PatchlibError(
        f"{given!r} is no edge: write '4.6->q9.9', from 'resid0', a head such as '4.6' or an MLP "
        "such as 'mlp3' to a head's query, key or value such as 'q9.9', to 'mlp_in5' or to 'logits'"
    )


def patch_edges(
    model: TransformerBridge,
    pairs: PromptPairs,
    edges: Edges | Iterable[object] | Mapping[str, Iterable[object]] | str = "each",
    *,
    corruption: Corruption,
    direction: str = "denoise",
    metrics: Metrics = ("logit_diff", "prob", "kl"),
    keep_prompts: bool = False,
    keep_draws: bool = False,
    memory_budget: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Patches every edge alone, or a set of edges together.

    What a patched edge carries is its writer's output in the unpatched other run; every other edge
    carries what its writer writes in the patched run. All edges patched are the other run, none
    are none. A circuit is run by noising all edges that it leaves out:
    ``patch_edges(model, pairs, pl.Edges.of(model) - circuit, direction="noise", ...)``.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths.
        edges: ``"each"``, one after the other; or `Edges`, or what makes them, together; or several
            such sets by their names.
        corruption: as in `patch`.
        direction: as in `patch`.
        metrics: as in `patch`.
        keep_prompts: as in `patch`.
        keep_draws: as in `patch`.
        memory_budget: as in `patch`.
        checkpoint: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset as `patch` gives it, over ``metric`` and, as asked for, ``prompt, draw``; for each
        edge also over ``writer, reader``, with NaN where there is no edge; for named sets over
        ``edges``, their names. The attribute ``edges`` holds the sets.

    Raises:
        PatchlibError: for edges that there are not, for an architecture that the fast engine does
            not know, and as `patch` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch_edges(model, pairs, pl.Edges.of(model), corruption=pl.STR("S2"),
        ...                     metrics="logit_diff", progress=False)
        >>> bool(abs(fx.effect - 1) < 1e-4)  # All edges together are the clean run.
        True
    """
    _require_sense(model, pairs, corruption)
    frame, said = _frame(model, pairs, edges)
    return _patch(
        model,
        pairs,
        frame,
        corruption,
        metrics,
        {"method": "edge patching", **said},
        "all",
        direction,
        None,
        keep_prompts,
        keep_draws,
        _Engine(model, pairs, corruption).sweep,
        Limits.of(model, "auto", memory_budget),
        checkpoint,
        progress,
    )


@dataclass(frozen=True)
class _Cell(Cell):
    """A cell of edges."""

    edges: Sequence[Edge] = ()


def _frame(
    model: TransformerBridge, pairs: PromptPairs, given: object
) -> tuple[Frame, dict[str, str]]:
    """The cells, and what results say of them."""
    graph, cells = _Graph(model), list[Cell]()
    if isinstance(given, str) and given == "each":
        dims = {"writer": graph.writers, "reader": list(graph.readers)}
        each = [Edge(writer, reader) for writer in dims["writer"] for reader in dims["reader"]]
        cells = [_Cell((), edges=[edge]) for edge in each]
        asked = np.array([graph.has(edge) for edge in each])
        said = {"component": "edge"}
    else:
        named = given if isinstance(given, Mapping) else {"": given}
        sets = {str(name): Edges(some) for name, some in named.items()}  # type: ignore[arg-type]
        cells = [_Cell((), edges=[*map(graph.resolve, some._edges)]) for some in sets.values()]
        dims = {"edges": list(sets)} if isinstance(given, Mapping) else {}
        asked = np.full(len(cells), True)
        every = Edges.of(model)
        texts = {name: _text(some, every) for name, some in sets.items()}
        said = {"edges": "; ".join(f"{n}: {text}" if n else text for n, text in texts.items())}
    if not cells:
        raise PatchlibError("edges={}: give at least one set of edges")
    frame = frames.of_parts(model, pairs, (), "all")
    return replace(frame, coordinates=dims, asked=asked, cells=lambda group: cells), said


def _text(some: Edges, every: Edges) -> str:
    """What results call a set: by its edges, or by those that it lacks if fewer."""
    if 2 * len(some) <= len(every):
        return ", ".join(map(str, some)) or "none"
    lacking = ", ".join(map(str, every - some))
    return f"all but {lacking}" if lacking else "all"


class _Graph:
    """What writes into a model's residual stream, and what reads it, in the order of the layers.

    ``writers`` are names; ``readers`` give for each name how many writers come before it, and
    ``writing`` which writers it belongs to.
    """

    def __init__(self, model: TransformerBridge) -> None:
        require_bridge(model)
        self.heads, self.layers = int(model.cfg.n_heads), int(model.cfg.n_layers)
        groups = unit_of(model, "k")
        self.sharing = self.heads // (groups[1] if groups else self.heads)
        parallel = bool(getattr(model.cfg, "parallel_attn_mlp", False))
        self.writers, self.readers = ["resid0"], dict[str, int]()
        self.writing: dict[str, list[str]] = {"logits": ["logits"]}
        for layer in range(self.layers):
            heads, mlp = [f"{layer}.{head}" for head in range(self.heads)], f"mlp{layer}"
            for kind in "qkv":
                shared = 1 if kind == "q" else self.sharing
                for first in range(0, self.heads, shared):
                    self.readers[kind + heads[first]] = len(self.writers)
                    self.writing[kind + heads[first]] = heads[first : first + shared]
            self.readers[f"mlp_in{layer}"] = len(self.writers) + (0 if parallel else self.heads)
            self.writing[f"mlp_in{layer}"] = [mlp]
            self.writers += [*heads, mlp]
        self.readers["logits"] = len(self.writers)
        self.writer_at = {name: number for number, name in enumerate(self.writers)}
        self.reader_at = {name: number for number, name in enumerate(self.readers)}

    def has(self, edge: Edge) -> bool:
        """Whether the model has an edge."""
        return self.writer_at.get(edge.writer, len(self.writers)) < self.readers.get(edge.reader, 0)

    def resolve(self, edge: Edge) -> Edge:
        """An edge with a shared key or value called by the first of its heads.

        Raises:
            PatchlibError: for an edge that the model does not have.
        """
        writer, reader = edge
        if reader[0] in "kv":
            layer, head = reader.split(".")
            if int(head) < self.heads:
                reader = f"{layer}.{int(head) - int(head) % self.sharing}"
        if not self.has(Edge(writer, reader)):
            raise PatchlibError(
                f"'{edge}' is no edge of this model, which has {self.layers} layers of "
                f"{self.heads} heads: the writer comes before the reader; pl.Edges.of(model) lists "
                "all"
            )
        return Edge(writer, reader)

    @property
    def readers_in(self) -> int:
        """How many readers a layer has."""
        return (len(self.readers) - 1) // self.layers

    def before_layer(self, layer: int) -> int:
        """How many writers come before a layer."""
        return 1 + layer * (self.heads + 1)

    def layer_of(self, reader: int) -> int:
        """The layer of a reader by its number, the last one for the logits."""
        return min(reader // self.readers_in, self.layers - 1)

    def first_reader(self, cell: _Cell) -> int:
        """The number of a cell's first reader."""
        return min((self.reader_at[edge.reader] for edge in cell.edges), default=len(self.readers))

    def needed(self, masks: Float[Tensor, "set reader writer"]) -> int:
        """How many writers there are up to the layer of the last one of a patched edge."""
        last = masks.any(1).any(0).nonzero().max() if masks.any() else 0
        return self.before_layer(-(-int(last) // (self.heads + 1)))

    def masks(self, cells: Sequence[_Cell], like: Tensor) -> Float[Tensor, "set reader writer"]:
        """1 where an edge is patched."""
        masks = like.new_zeros(len(cells), len(self.readers), len(self.writers))
        for mask, cell in zip(masks, cells, strict=True):
            places = [(self.reader_at[r], self.writer_at[w]) for w, r in cell.edges]
            if places:
                mask[tuple(torch.tensor(places, device=like.device).T)] = 1
        return masks


@dataclass(frozen=True)
class _Engine:
    """Runs a model whose readers each read a stream of their own."""

    model: TransformerBridge
    pairs: PromptPairs
    corruption: Corruption

    @cached_property
    def graph(self) -> _Graph:
        """The model's graph."""
        return _Graph(self.model)

    @cached_property
    def network(self) -> Network:
        """The model by layers, once it is known to be one that can be run so."""
        otherwise = "edges cannot be patched in this model"
        return network_of(self.model, self.pairs, self.corruption, otherwise)

    @cached_property
    def kept(self) -> int:
        """Numbers of every position that a run of one set takes beside the model's own run."""
        graph, shortest = self.graph, min(len(prompt.clean) for prompt in self.pairs.prompts)
        streams = 4 * len(graph.writers) + 5 * graph.readers_in + 4 * graph.layers
        return (
            streams * self.model.cfg.d_model + len(graph.readers) * len(graph.writers) // shortest
        )

    def sweep(
        self,
        model: TransformerBridge,
        pairs: PromptPairs,
        source: Run,
        destination: Run,
        cells: Sequence[_Cell],
        metrics: Sequence[Metric],
        limits: Limits,
        taken: Taken | None = None,
    ) -> Iterator[Piece]:
        """An engine, as `patchlib.patching.hook_engine.sweep`, for cells of edges."""
        graph = self.graph
        tokens, r, r_wrong = _read_by(metrics, pairs.answers, pairs.wrong_answers, self.network)
        # Sets whose first patched readers are close to each other start late together.
        order = sorted(range(len(cells)), key=lambda number: graph.first_reader(cells[number]))
        for index, some in batches(model, pairs, limits.memory, self.kept):
            answers, which = (r[index], r_wrong[index]), slice(index[0], index[-1] + 1)
            runs = source.rows(which), destination.rows(which)
            (there, theirs), (here, mine) = map(self.writes, runs)
            if tokens is not None:
                there, here = there[:, tokens], here[:, tokens]
            unpatched = measure(metrics, torch.stack((there, here)), *answers, there, some.texts)
            start, length = first_difference(*runs), theirs.shape[2]
            streams, past = self.trace(runs[1], start)
            theirs, mine = theirs[:, :, start:], mine[:, :, start:]
            together = limits.memory // row_bytes(model, length, self.kept) // len(some)
            if self.network.device.type == "cpu":
                together = min(together, _TOKENS_PER_PASS_ON_CPU // (length - start) // len(some))
            for numbers in _split(order, max(1, together)):
                sets = [cells[number] for number in numbers]
                first, masks = graph.layer_of(graph.first_reader(sets[0])), graph.masks(sets, mine)
                before, needed = first and graph.before_layer(first), graph.needed(masks)
                changes = torch.cat((theirs[:before] - mine[:before], theirs[before:needed]))
                changes = changes.expand(len(sets), *changes.shape)
                if needed > before:
                    changes = changes.clone()
                x = streams[first].expand(len(sets), *theirs.shape[1:])
                with torch.no_grad():
                    logits = self.run(x, changes, masks, tokens, first=first, past=past)
                patched = measure(metrics, logits, *answers, there, some.texts)
                yield Piece(numbers, index, patched, unpatched.transpose(0, 1))

    @torch.no_grad()
    def trace(self, run: Run, start: int) -> tuple[dict[int, Tensor], list[tuple[Tensor, Tensor]]]:
        """The stream before each layer from a position on; and keys and values before that."""
        layers = frozenset(range(self.graph.layers))
        kept = _trace(_Wanted(self.network, "resid_pre", layers, None), run, start)
        both = zip(kept.keys.values(), kept.values.values(), strict=True)
        return kept.restored, [(k[:, :start], v[:, :start]) for k, v in both]

    @torch.no_grad()
    def embed(self, run: Run) -> Float[Tensor, "prompt position d_model"]:
        """What the embedding writes."""
        return self.network.embed(run.tokens, run.noise)

    def writes(
        self, run: Run
    ) -> tuple[Float[Tensor, "prompt token"], Float[Tensor, "writer prompt position d_model"]]:
        """The logits of an unpatched run, and what every writer writes in it."""
        blocks = self.network.blocks
        names = [get_act_name(kind, n) for n in range(len(blocks)) for kind in ("z", "mlp_out")]
        logits, found = run_with_edits(self.model, run, keep=names)
        x = self.embed(run)
        written = x.new_empty(len(self.graph.writers), *x.shape)
        written[0] = x
        for layer, of_layer in enumerate(written[1:].unflatten(0, (len(blocks), -1))):
            with torch.no_grad():
                of_layer[:-1] = _by_heads(found.pop(names[2 * layer]), blocks[layer].W_O)
            of_layer[-1] = found.pop(names[2 * layer + 1])
        return logits, written

    def run(
        self,
        x: Float[Tensor, "set prompt position d_model"],
        changes: Float[Tensor, "set writer prompt position d_model"],
        masks: Float[Tensor, "set reader writer"],
        tokens: Tensor | None = None,
        fixed: bool = False,
        first: int = 0,
        past: Sequence[tuple[Tensor, Tensor]] | None = None,
        keep: list[Tensor] | None = None,
    ) -> Float[Tensor, "set prompt token"]:
        """The logits of runs in which edges are patched.

        Args:
            x: what the embedding writes, or the stream before layer ``first``.
            changes: what writers write in the other run, of those before layer ``first`` (the
                embedding only if that is not 0) less what they write in this run; becomes that for
                all. Writers that no patched edge needs may be left out.
            masks: how much of the change each reader sees of each writer.
            tokens: the tokens whose logits are read; None for all.
            fixed: the changes are differences already, whatever this run's writers write.
            first: the layer to begin with, at or before the first patched reader's.
            past: keys and values of each layer at the positions before those of x.
            keep: gets the stream before each layer, and has all changes become differences.
        """
        network, graph, sets = self.network, self.graph, x.shape[:2]
        before = list(graph.readers.values())
        everything = fixed or keep is not None
        needed = len(graph.writers) if everything else graph.needed(masks)
        patched = [True] * len(before) if fixed else masks.any(2).any(0).tolist()
        start = past[0][0].shape[1] if past else 0
        length, device = start + x.shape[2], x.device
        rotate, mask = network.rotation(start, length), _causal(start, length, length, device)
        reader, writer = first * graph.readers_in, graph.before_layer(first)
        if not (fixed or first):
            changes[:, 0] -= x

        def seen(x: Tensor, readers: int) -> Float[Tensor, "set reader prompt position d_model"]:
            """What the next readers read; of a single one where none is patched."""
            nonlocal reader
            n, rows = min(before[reader], needed), masks[:, reader : reader + readers]
            reader += readers
            if not any(patched[reader - readers : reader]):
                return x[:, None]
            change = rows[:, :, :n] @ changes[:, :n].flatten(2)
            return x[:, None] + change.unflatten(2, x.shape[1:])

        for layer, block in enumerate(network.blocks[first:], first):
            if keep is not None:
                keep.append(x)
            width, read = len(block.W_O), seen(x, graph.readers_in - 1)
            if read.shape[1] == 1:
                q, k, v = block.project(read[:, 0].flatten(0, 1), slice(None), rotate, rotate)
            else:
                q, k, v = block.project_each(read, rotate)
            if past:
                earlier = (each.repeat(len(k) // len(each), 1, 1, 1) for each in past[layer])
                k, v = (torch.cat(both, 1) for both in zip(earlier, (k, v), strict=True))
            z = block.attend(q, k, v, mask)
            middle = x + block.write(z).unflatten(0, sets)
            if not fixed and writer < needed:
                heads = _by_heads(z, block.W_O).unflatten(1, sets).transpose(0, 1)
                changes[:, writer : writer + width] -= heads
            read = seen(x if network.parallel else middle, 1)[:, 0]
            written = block.contract(block.expand(read))
            if not fixed and writer < needed:
                changes[:, writer + width] -= written
            writer += width + 1
            x = middle + written
        return network.unembed(seen(x, 1)[:, 0, :, -1], tokens)


def _by_heads(
    z: Float[Tensor, "row position head d_head"], W_O: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "head row position d_model"]:
    """What each head writes."""
    return torch.einsum("pthd,hdm->hptm", z, W_O)

"""The fast engine: the hook engine's numbers without its repeated work, every step exact.

* A patched run equals the destination run up to the patched layer. It starts there, from the
  destination run's own residual stream: a head's patch is a low-rank change of that stream.
* Attention is causal, so that nothing before the first position at which the two runs differ, or
  before the patched one, can change. Its keys and values are kept, and only the rest is computed.
* Only the last position is read. In the last block only that position is computed, and only that
  position is unembedded.
* All cells that share a layer go through the model together, and later layers' cells join them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.prompts.pairs import PromptPairs
from patchlib.sweep.architectures import Network, Sizes
from patchlib.sweep.cells import Cell, Limits, Piece, Where
from patchlib.sweep.metrics import Metric, measure
from patchlib.sweep.runs import Run, row_bytes, run_with_edits

Residual = Float[Tensor, "row position d_model"]

# Rows that go through a CPU together: enough for large matrix products, few enough for its caches.
_TOKENS_PER_PASS_ON_CPU = 2048
_ROWS_PER_READING = 128


@dataclass(frozen=True)
class _Trace:
    """What an unpatched run leaves behind; each list has one entry per layer.

    Args:
        restored: the activation that the cells restore, where the two runs may differ.
        after: the residual stream there, as soon as that activation is in it.
        keys: of all positions.
        values: likewise.
        logits: at the last position.
    """

    restored: list[Float[Tensor, "prompt late width"]]
    after: list[Float[Tensor, "prompt late d_model"]]
    keys: list[Float[Tensor, "prompt position head d_head"]]
    values: list[Float[Tensor, "prompt position head d_head"]]
    logits: Float[Tensor, "prompt vocab"]

    def rows(self, which: Tensor) -> _Trace:
        """Some of its prompts, or some of them several times; itself where those are all."""
        if torch.equal(which, torch.arange(len(self.logits))):
            return self
        which = which.to(self.logits.device)
        lists = (self.restored, self.after, self.keys, self.values)
        restored, after, keys, values = ([part[which] for part in parts] for parts in lists)
        return _Trace(restored, after, keys, values, self.logits[which])


def _trace(
    network: Network, run: Run, activation: str, start: int, other: _Trace | None = None
) -> _Trace:
    """Runs the model without patches.

    Args:
        network: the model.
        run: its input.
        activation: which activation to keep.
        start: the first position at which the two runs differ; what comes later is kept.
        other: the other run's trace, which has the keys and values of what comes before.
    """
    x = network.embed(run.tokens, run.noise)
    length = x.shape[1]
    begin = 0 if other is None else start
    x = x[:, begin:]
    everywhere, rotate = slice(None), network.rotation(begin, length)
    mask = _causal(begin, length - begin, x.device)
    stage = _stage(network, activation)
    restored, after, keys, values = [], [], [], []
    for layer, block in enumerate(network.blocks):
        q, k, v = block.project(x, everywhere, rotate, rotate)
        if other is not None:
            k = torch.cat((other.keys[layer][:, :begin], k), dim=1)
            v = torch.cat((other.values[layer][:, :begin], v), dim=1)
        z = block.attend(q, k, v, mask)
        attn_out = block.write(z)
        middle = x + attn_out
        mlp_out = block.feed(x if network.parallel else middle)
        end = middle + mlp_out
        at_hand = {"resid_pre": x, "z": z, "attn_out": attn_out, "mlp_out": mlp_out}
        stream = {"start": x, "middle": middle, "end": end}[stage]
        # A copy, so that what comes before is not held in memory with it.
        restored.append(at_hand[activation][:, start - begin :].clone())
        after.append(stream[:, start - begin :].clone())
        keys.append(k)
        values.append(v)
        x = end
    return _Trace(restored, after, keys, values, network.unembed(x[:, -1]))


def _stage(network: Network, activation: str) -> str:
    """Where in a block an activation joins the residual stream."""
    if activation == "resid_pre":
        return "start"
    return "end" if activation == "mlp_out" or network.parallel else "middle"


def _causal(before: int, length: int, device: torch.device) -> Bool[Tensor, "query key"] | None:
    """What ``length`` positions see after ``before`` others; None where one position sees all."""
    if length == 1:
        return None
    return torch.ones(length, before + length, dtype=torch.bool, device=device).tril(before)


def _span(cell: Cell) -> tuple[int, int]:
    """The cell's first layer and the one after its last."""
    return cell.at[0][0], cell.at[-1][0] + 1


def _carriers(cells: Sequence[Cell]) -> list[int]:
    """For each cell the one that stands in for it until its window ends.

    Cells of one first layer are the same run until the shortest of their windows ends; the
    longest carries them all.
    """
    if cells[0].activation == "z":
        return list(range(len(cells)))
    longest = {_span(cell)[0]: number for number, cell in enumerate(cells)}
    return [longest[_span(cell)[0]] for cell in cells]


class _Pass:
    """Patched runs of some cells on some prompts, which start to differ at one position.

    Args:
        network: the model.
        activation: what the cells restore.
        there: the source run on the prompts.
        here: the destination run on them.
        first: the first position that can change.
        patched: which positions from there on are restored.
    """

    def __init__(
        self,
        network: Network,
        activation: str,
        there: _Trace,
        here: _Trace,
        first: int,
        patched: Bool[Tensor, "prompt position"],
    ):
        self.network, self.activation, self.there, self.here = network, activation, there, here
        self.first, self.patched = first, patched[..., None].to(network.device)
        self.n_prompts, self.length = here.keys[0].shape[:2]
        # Where ``first`` is among the positions that the traces keep.
        self._from = first - (self.length - here.after[0].shape[1])

    def run(self, cells: Sequence[Cell]) -> Float[Tensor, "cell prompt d_model"]:
        """The last position's residual stream.

        Args:
            cells: sorted by their first and their last layer.
        """
        network, n_layers = self.network, len(self.network.blocks)
        carriers, spans = _carriers(cells), [_span(cell) for cell in cells]
        stage = _stage(network, self.activation)
        queries = slice(None)
        mask = _causal(self.first, self.length - self.first, network.device)
        rotate_keys = rotate = network.rotation(self.first, self.length)
        x = self._nothing()
        active: list[int] = []
        for layer in range(spans[0][0], n_layers):
            block = network.blocks[layer]
            alone = [
                number
                for number, carrier in enumerate(carriers)
                if spans[number][1] == layer < spans[carrier][1]
            ]
            if alone:
                places = [active.index(carriers[number]) for number in alone]
                x = torch.cat((x, x.unflatten(0, (-1, self.n_prompts))[places].flatten(0, 1)))
                active += alone
            inside = [place for place, number in enumerate(active) if spans[number][1] > layer]
            new = [
                number
                for number, carrier in enumerate(carriers)
                if carrier == number and spans[number][0] == layer
            ]
            joining = [cells[number] for number in new]
            if stage == "start":
                x = self._join(self._restore(x, layer, inside, queries), layer, joining, queries)
            if layer == n_layers - 1:
                queries, mask = slice(-1, None), None
                rotate = network.rotation(self.length - 1, self.length)
            read = middle = x[:, queries]
            if len(x):
                q, k, v = block.project(x, queries, rotate, rotate_keys)
                k = self._behind(self.here.keys[layer], k)
                v = self._behind(self.here.values[layer], v)
                attn_out = block.write(block.attend(q, k, v, mask))
                del q, k, v
                if self.activation == "attn_out":
                    attn_out = self._restore(attn_out, layer, inside, queries)
                middle = read + attn_out
                del attn_out
            if stage == "middle":
                middle = self._join(middle, layer, joining, queries)
            x = middle
            if len(middle):
                mlp_out = block.feed(read if network.parallel else middle)
                if self.activation == "mlp_out":
                    mlp_out = self._restore(mlp_out, layer, inside, queries)
                x = middle + mlp_out
                del mlp_out
            del read, middle
            if stage == "end":
                x = self._join(x, layer, joining, queries)
            active += new
        places = [
            active.index(number if number in active else carrier)
            for number, carrier in enumerate(carriers)
        ]
        return x[:, -1].unflatten(0, (-1, self.n_prompts))[places]

    def _nothing(self) -> Residual:
        """No rows, before the first cell's layer."""
        like = self.here.after[0]
        return like.new_empty(0, self.length - self.first, like.shape[-1])

    def _behind(
        self, kept: Float[Tensor, "prompt position head d_head"], new: Tensor
    ) -> Float[Tensor, "row position head d_head"]:
        """The keys or values of all positions: kept ones first, then those of the rows."""
        if not self.first:
            return new
        n_rows, _, *heads = new.shape
        whole = new.new_empty(n_rows, self.length, *heads)
        whole[:, self.first :] = new
        blocks = whole.unflatten(0, (-1, self.n_prompts))
        blocks[:, :, : self.first] = kept[:, : self.first]
        return whole

    def _join(self, x: Residual, layer: int, joining: Sequence[Cell], queries: slice) -> Residual:
        """Rows under way, and after them the rows that start in this layer."""
        if not joining:
            return x
        base = self.here.after[layer][:, self._from :][:, queries]
        there, here = (
            run.restored[layer][:, self._from :][:, queries] for run in (self.there, self.here)
        )
        change = (there - here) * self.patched[:, queries]
        if self.activation == "z":
            W_O = self.network.blocks[layer].W_O
            heads = torch.tensor([cell.at[0][1] for cell in joining], device=change.device)
            z = change.unflatten(-1, (len(W_O), -1))[:, :, heads]
            change = torch.einsum("pqcd,cdm->cpqm", z, W_O[heads])
        else:
            change = change.expand(len(joining), *change.shape)
        rows = (base + change).flatten(0, 1)
        return torch.cat((x, rows)) if len(x) else rows

    def _restore(self, x: Residual, layer: int, inside: list[int], queries: slice) -> Residual:
        """Overwrites the activation of those rows under way whose window holds this layer."""
        if not inside:
            return x
        blocks = x.unflatten(0, (-1, self.n_prompts))
        there = self.there.restored[layer][:, self._from :][:, queries]
        blocks[inside] = torch.where(self.patched[:, queries], there, blocks[inside])
        return x


@dataclass(frozen=True)
class _Plan:
    """How many prompts are held at a time, and how many rows are in a pass."""

    prompts: int
    rows: int
    is_automatic: bool

    @staticmethod
    def of(network: Network, length: int, limits: Limits) -> _Plan:
        """The largest plan within the limits.

        Raises:
            PatchlibError: where not even one row fits.
        """
        size = Sizes.of(network)
        # Of both runs the restored activation, the stream after it, keys and values.
        kept = max(size.width, size.heads) + size.width + 2 * size.keys
        held = 2 * length * size.layers * kept + 3 * size.logits
        passing = length * (9 * size.width + 6 * size.heads + 4 * size.keys + 2 * size.hidden)
        passing += 6 * size.logits
        # The comparison with TransformerLens' own pass takes what that pass takes.
        needed = max(2 * held + passing, row_bytes(network.model, length))
        if needed > limits.memory:
            raise PatchlibError(
                f"memory_budget={limits.memory}: one prompt of {length} tokens needs {needed} "
                f"bytes with engine='fast'; give memory_budget={needed} or more"
            )
        prompts = max(1, limits.memory // (4 * held + 2 * passing))
        rows = max(1, (limits.memory - 2 * held * prompts) // passing)
        if limits.rows is not None:
            rows = min(rows, limits.rows)
            prompts = min(prompts, max(1, rows))
        return _Plan(int(prompts), int(rows), limits.rows is None)


def sweep(
    model: TransformerBridge,
    pairs: PromptPairs,
    source: Run,
    destination: Run,
    cells: Sequence[Cell],
    metrics: Sequence[Metric],
    limits: Limits,
) -> Iterator[Piece]:
    """Runs every cell on prompts of one length and measures it; see `hook_engine.sweep`."""
    with torch.no_grad():
        network = Network(model)
        plan = _Plan.of(network, source.tokens.shape[1], limits)
        for start in range(0, len(pairs), plan.prompts):
            prompts = range(start, min(start + plan.prompts, len(pairs)))
            yield from _sweep(network, pairs, source, destination, cells, metrics, plan, prompts)


def _sweep(
    network: Network,
    pairs: PromptPairs,
    source: Run,
    destination: Run,
    cells: Sequence[Cell],
    metrics: Sequence[Metric],
    plan: _Plan,
    prompts: range,
) -> Iterator[Piece]:
    """The sweep over as many prompts as are held at a time."""
    which = slice(prompts.start, prompts.stop)
    source, destination = source.rows(which), destination.rows(which)
    r, r_wrong = pairs.answers[which], pairs.wrong_answers[which]
    activation, length = cells[0].activation, source.tokens.shape[1]
    distinct, back = source.distinct()
    differ = source.differs_from(destination).cumsum(dim=1) > 0
    # Where nothing differs at all, the last position stands for all of it.
    start = int(differ.any(dim=0).int().argmax()) if differ.any() else length - 1
    there = _trace(network, distinct, activation, start).rows(back)
    here = _trace(network, destination, activation, start, there)
    # The same input gives the same numbers, to the last digit.
    same = ~differ.any(dim=1)
    here.logits[same] = there.logits[same]
    unpatched = measure(
        metrics, torch.stack((there.logits, here.logits)), r, r_wrong, there.logits
    ).transpose(0, 1)
    for where, numbers in _by_where(cells):
        patched = differ & _mask(where, prompts, length)
        for first, rows in _by_first(patched):
            mine = [prompts[row] for row in rows]
            if first is None:
                # What is restored is the same in both runs, or is not there at all.
                measured = torch.tensor([cells[numbers[0]].measures(prompt) for prompt in mine])
                unchanged = unpatched[1][:, None, rows].expand(-1, len(numbers), -1)
                unchanged = unchanged.masked_fill(~measured, torch.nan)
                yield Piece(numbers, mine, unchanged, unpatched[:, :, rows])
                continue
            for some in _split(rows, plan.rows):
                at = torch.tensor(some)
                one_pass = _Pass(
                    network, activation, there.rows(at), here.rows(at), first, patched[at, first:]
                )
                most = plan.rows
                if network.device.type == "cpu" and plan.is_automatic:
                    most = min(most, _TOKENS_PER_PASS_ON_CPU // (length - first))
                for chosen in _split(numbers, max(1, most // len(some))):
                    x = one_pass.run([cells[number] for number in chosen])
                    values = [
                        measure(
                            metrics,
                            network.unembed(part),
                            r[at],
                            r_wrong[at],
                            one_pass.there.logits,
                        )
                        for part in x.split(max(1, _ROWS_PER_READING // len(some)))
                    ]
                    yield Piece(
                        chosen,
                        [prompts[row] for row in some],
                        torch.cat(values, dim=1),
                        unpatched[:, :, some],
                    )


def _split(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _by_where(cells: Sequence[Cell]) -> Iterator[tuple[Where | None, list[int]]]:
    """Cells that restore the same positions, in the order of their layers."""
    groups: dict[int, list[int]] = {}
    for number, cell in enumerate(cells):
        groups.setdefault(id(cell.where), []).append(number)
    for numbers in groups.values():
        yield cells[numbers[0]].where, sorted(numbers, key=lambda number: _span(cells[number]))


def _mask(where: Where | None, prompts: range, length: int) -> Bool[Tensor, "prompt position"]:
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        mask[row, slice(None) if where is None else list(where[prompt])] = True
    return mask


def _by_first(
    patched: Bool[Tensor, "prompt position"],
) -> Iterator[tuple[int | None, list[int]]]:
    """Prompts by the first position that a patch changes; None where it changes none."""
    groups: dict[int | None, list[int]] = {}
    for row, positions in enumerate(patched.tolist()):
        first = positions.index(True) if any(positions) else None
        groups.setdefault(first, []).append(row)
    yield from groups.items()


def disagreement(model: TransformerBridge, source: Run, destination: Run) -> str | None:
    """Compares the engine's own unpatched runs with TransformerLens', on one prompt.

    Returns:
        By how much they differ, where that is more than rounding; else None.
    """
    with torch.no_grad():
        network = Network(model)
        for run in (source, destination):
            few = run.rows(slice(0, 1))
            mine = _trace(network, few, "resid_pre", start=0).logits
            theirs = run_with_edits(model, few)[0].float()
            spread = (theirs.amax(-1) - theirs.amin(-1)).max()
            away = (mine - theirs).abs().max()
            allowed = 1e-4 if model.cfg.dtype == torch.float32 else 5e-2
            if not away <= allowed * spread:
                return (
                    f"its own unpatched logits differ from TransformerLens' by {away.item():.2g}, "
                    f"where they spread over {spread.item():.2g}"
                )
    return None

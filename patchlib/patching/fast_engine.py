"""The fast engine: the hook engine's numbers without its repeated work, every step exact.

* A patched run equals the destination run up to the patched layer. It starts there, from the
  destination run's own residual stream. A head's or a neuron's patch is a low-rank change of that
  stream; for its query, key, value or pattern, only what that head reads is computed anew.
* Attention is causal, so that nothing before the first position at which the two runs differ, or
  before the patched one, can change. Its keys and values are kept, and only the rest is computed.
* Only the last position is read. In the last block only that position is computed, and only that
  position is unembedded, for the answers alone where no metric reads other tokens.
* All cells that share a layer go through the model together, and later layers' cells join them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError
from patchlib.patching.architectures import Network, Sizes, obstacle
from patchlib.patching.cells import Cell, Limits, Piece, Where
from patchlib.patching.metrics import Metric, measure
from patchlib.patching.runs import Run, row_bytes, run_with_edits, two_runs
from patchlib.patching.sources import Taken
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import NOTHING, PromptPairs

Residual = Float[Tensor, "row position d_model"]
Kept = dict[int, Tensor]
"""By layer."""

# Rows that go through a CPU together: enough for large matrix products, few enough for its caches.
_TOKENS_PER_PASS_ON_CPU = 2048
_ROWS_PER_READING = 128


@dataclass(frozen=True)
class _Wanted:
    """What is asked of a network.

    Args:
        network: the model.
        activation: TransformerLens' short name of what the cells restore.
        layers: the layers in which they do.
        tokens: the tokens whose logits are read; None for all.
    """

    network: Network
    activation: str
    layers: frozenset[int]
    tokens: Int[Tensor, " token"] | None

    @property
    def stage(self) -> str:
        """Where in a block the activation joins the residual stream."""
        if self.activation == "resid_pre":
            return "start"
        late = self.activation in ("mlp_out", "post") or self.network.parallel
        return "end" if late else "middle"


@dataclass(frozen=True)
class _Trace:
    """What an unpatched run leaves behind.

    Args:
        restored: the activation that the cells restore, where the two runs may differ; heads and
            neurons in a dimension of their own, queries and keys as attention reads them.
        after: the residual stream there, as soon as that activation is in it.
        queries: there, as attention reads them, where cells restore part of attention's input.
        keys: of all positions.
        values: likewise.
        logits: at the last position.
    """

    restored: Kept
    after: Kept
    queries: Kept
    keys: Kept
    values: Kept
    logits: Float[Tensor, "prompt token"]

    def rows(self, which: Tensor) -> _Trace:
        """Some of its prompts, or some of them several times; itself where those are all."""
        if torch.equal(which, torch.arange(len(self.logits))):
            return self
        return _Trace(
            _rows(self.restored, which),
            _rows(self.after, which),
            _rows(self.queries, which),
            _rows(self.keys, which),
            _rows(self.values, which),
            self.logits[which],
        )


def _rows(kept: Kept, which: Int[Tensor, " row"]) -> Kept:
    return {layer: part[which] for layer, part in kept.items()}


def _trace(wanted: _Wanted, run: Run, start: int, other: _Trace | None = None) -> _Trace:
    """Runs the model without patches.

    Args:
        wanted: what to keep.
        run: its input.
        start: the first position at which the two runs differ; what comes later is kept.
        other: the other run's trace, which has the keys and values of what comes before.
    """
    network, activation = wanted.network, wanted.activation
    x = network.embed(run.tokens, run.noise)
    length = x.shape[1]
    begin = 0 if other is None else start
    x = x[:, begin:]
    everywhere, rotate = slice(None), network.rotation(begin, length)
    mask = _causal(begin, length, length, x.device)
    restored, after, queries, keys, values = Kept(), Kept(), Kept(), Kept(), Kept()
    for layer, block in enumerate(network.blocks):
        q, k, v = block.project(x, everywhere, rotate, rotate)
        if other is not None:
            k = torch.cat((other.keys[layer][:, :begin], k), dim=1)
            v = torch.cat((other.values[layer][:, :begin], v), dim=1)
        keys[layer], values[layer] = k, v
        z = block.attend(q, k, v, mask)
        attn_out = block.write(z)
        middle = x + attn_out
        post = block.expand(x if network.parallel else middle)
        mlp_out = block.contract(post)
        end = middle + mlp_out
        if layer in wanted.layers:
            at_hand = {
                "resid_pre": x,
                "q": q,
                "k": k[:, begin:],
                "v": v[:, begin:],
                "z": z,
                "attn_out": attn_out,
                "resid_mid": middle,
                "post": post[..., None],
                "mlp_out": mlp_out,
            }
            if activation == "pattern":
                at_hand["pattern"] = block.pattern(q, k, mask)
            stream = {"start": x, "middle": middle, "end": end}[wanted.stage]
            # A copy, so that what comes before is not held in memory with it.
            restored[layer] = at_hand[activation][:, start - begin :].clone()
            after[layer] = stream[:, start - begin :].clone()
            if activation in ("q", "k", "v"):
                queries[layer] = q[:, start - begin :].clone()
        x = end
    logits = network.unembed(x[:, -1], wanted.tokens)
    return _Trace(restored, after, queries, keys, values, logits)


def first_difference(one: Run, other: Run) -> int:
    """The first position at which two runs' inputs differ in any prompt."""
    differ = one.differs_from(other).any(dim=0)
    # Where nothing differs at all, the last position stands for all of it.
    return int(differ.int().argmax()) if differ.any() else len(differ) - 1


def _trace_distinct(wanted: _Wanted, run: Run, start: int) -> _Trace:
    """The trace of a run that may hold the same prompt several times."""
    distinct, back = run.distinct()
    return _trace(wanted, distinct, start).rows(back)


def _given(wanted: _Wanted, taken: Mapping[str, Tensor], prompts: int) -> Kept:
    """Activations that were given, as a trace keeps them."""
    network, activation = wanted.network, wanted.activation
    kept = Kept()
    for layer in wanted.layers:
        block = network.blocks[layer]
        given = taken[get_act_name(activation, layer)].to(block.W_O)
        if activation in ("q", "k"):
            given = block.turn(activation, given, network.rotation(0, given.shape[1]))
        elif activation == "pattern":
            given = given.transpose(1, 2)
        elif activation == "post":
            given = given[..., None]
        kept[layer] = given.expand(prompts, *given.shape[1:])
    return kept


def _causal(
    first: int, length: int, keys: int, device: torch.device
) -> Bool[Tensor, "query key"] | None:
    """What positions from the first on see of the keys; None where one position sees all."""
    if keys == length == first + 1:
        return None
    return torch.ones(length - first, keys, dtype=torch.bool, device=device).tril(first)


def _whole_vectors(length: int) -> int:
    return -(-length // 16) * 16


def _span(cell: Cell) -> tuple[int, int]:
    """The cell's first layer and the one after its last."""
    return cell.parts[0].layer, cell.parts[-1].layer + 1


def _carriers(cells: Sequence[Cell]) -> list[int]:
    """For each cell the one that stands in for it until its window ends.

    Cells of one first layer are the same run until the shortest of their windows ends; the
    longest carries them all.
    """
    if cells[0].parts[0].unit is not None:
        return list(range(len(cells)))
    longest = {_span(cell)[0]: number for number, cell in enumerate(cells)}
    return [longest[_span(cell)[0]] for cell in cells]


class _Pass:
    """Patched runs of some cells on some prompts, which start to differ at one position.

    Args:
        wanted: the model and what the cells restore.
        there: the activations that are put in.
        here: the destination run on the prompts.
        first: the first position that can change.
        patched: which positions from there on are restored.
    """

    def __init__(
        self,
        wanted: _Wanted,
        there: Kept,
        here: _Trace,
        first: int,
        patched: Bool[Tensor, "prompt position"],
    ):
        self.network, self.activation, self.stage = wanted.network, wanted.activation, wanted.stage
        self.there, self.here = there, here
        self.first, self.patched = first, patched.to(self.network.device)
        self.n_prompts, self.length = here.keys[0].shape[:2]
        # Attention on a CPU takes half the time over whole vectors of keys.
        self._keys = _whole_vectors(self.length)
        # Where ``first`` is among the positions that the traces keep.
        self._from = first - (self.length - next(iter(here.after.values())).shape[1])

    def run(self, cells: Sequence[Cell]) -> Float[Tensor, "cell prompt d_model"]:
        """The last position's residual stream.

        Args:
            cells: sorted by their first and their last layer.
        """
        network, n_layers = self.network, len(self.network.blocks)
        carriers, spans = _carriers(cells), [_span(cell) for cell in cells]
        queries = slice(None)
        mask = _causal(self.first, self.length, self._keys, network.device)
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
            if self.stage == "start":
                x = self._join(self._restore(x, layer, inside, queries), layer, joining, queries)
            if layer == n_layers - 1:
                queries = slice(-1, None)
                mask = _causal(self.length - 1, self.length, self._keys, network.device)
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
                middle = attn_out.add_(read)
                del attn_out
            if self.activation == "resid_mid":
                middle = self._restore(middle, layer, inside, queries)
            if self.stage == "middle":
                middle = self._join(middle, layer, joining, queries)
            x = middle
            if len(middle):
                mlp_out = block.mlp(read if network.parallel else middle)
                if self.activation == "mlp_out":
                    mlp_out = self._restore(mlp_out, layer, inside, queries)
                x = mlp_out.add_(middle)
                del mlp_out
            del read, middle
            if self.stage == "end":
                x = self._join(x, layer, joining, queries)
            active += new
        places = [
            active.index(number if number in active else carrier)
            for number, carrier in enumerate(carriers)
        ]
        return x[:, -1].unflatten(0, (-1, self.n_prompts))[places]

    def _nothing(self) -> Residual:
        """No rows, before the first cell's layer."""
        like = next(iter(self.here.after.values()))
        return like.new_empty(0, self.length - self.first, like.shape[-1])

    def _behind(
        self, kept: Float[Tensor, "prompt position head d_head"], new: Tensor
    ) -> Float[Tensor, "row position head d_head"]:
        """The keys or values of all positions: kept ones, those of the rows, and unseen zeros."""
        n_rows, _, *heads = new.shape
        whole = new.new_empty(n_rows, self._keys, *heads)
        whole.unflatten(0, (-1, self.n_prompts))[:, :, : self.first] = kept[:, : self.first]
        whole[:, self.first : self.length] = new
        whole[:, self.length :] = 0
        return whole

    def _join(self, x: Residual, layer: int, joining: Sequence[Cell], queries: slice) -> Residual:
        """Rows under way, and after them the rows that start in this layer."""
        if not joining:
            return x
        base = self.here.after[layer][:, self._from :][:, queries]
        units = [part.unit for cell in joining for part in cell.parts if part.layer == layer]
        if units[0] is None:
            change = self._late(self.there, layer) - self._late(self.here.restored, layer)
            change = (change * self.patched[..., None])[:, queries]
            change = change.expand(len(joining), *change.shape)
        else:
            change = self._written(layer, torch.tensor(units, device=base.device), queries)
        rows = (base + change).flatten(0, 1)
        return torch.cat((x, rows)) if len(x) else rows

    def _late(self, kept: Kept, layer: int) -> Tensor:
        """What a trace keeps of a layer, from the first position that can change."""
        return kept[layer][:, self._from :]

    def _written(
        self, layer: int, units: Int[Tensor, " cell"], queries: slice
    ) -> Float[Tensor, "cell prompt query d_model"]:
        """By how much a head or a neuron of each cell writes something else when it is patched."""
        block = self.network.blocks[layer]
        there, here = self._late(self.there, layer), self._late(self.here.restored, layer)
        patched = self.patched[..., None, None]
        if self.activation in ("q", "k", "v"):
            heads = units[:, None]
            if self.activation != "q":
                heads = heads * block.sharing + torch.arange(block.sharing, device=units.device)
            z = self._read_anew(layer, torch.where(patched, there, here), heads.flatten(), queries)
            return torch.einsum("pqctd,ctdm->cpqm", z.unflatten(2, heads.shape), block.W_O[heads])
        change = ((there - here) * patched)[:, queries, units]
        if self.activation == "pattern":
            values = self.here.values[layer][:, :, units // block.sharing]
            change = torch.einsum("pqck,pkcd->pqcd", change, values)
        matrix = block.W_out if self.activation == "post" else block.W_O
        return torch.einsum("pqcd,cdm->cpqm", change, matrix[units])

    def _read_anew(
        self, layer: int, new: Tensor, heads: Int[Tensor, " head"], queries: slice
    ) -> Float[Tensor, "prompt query head d_head"]:
        """The change of some heads' z when their queries, keys or values are new."""
        block, here = self.network.blocks[layer], self.here
        first = self.first if queries == slice(None) else self.length - 1
        mask = _causal(first, self.length, self.length, new.device)
        inputs = {
            "q": self._late(here.queries, layer),
            "k": here.keys[layer],
            "v": here.values[layer],
        }
        changed = dict(inputs)
        if self.activation != "q":
            new = torch.cat((inputs[self.activation][:, : self.first], new), dim=1)
        changed[self.activation] = new
        z, old = (
            block.attend(
                each["q"][:, queries, heads],
                each["k"][:, :, heads // block.sharing],
                each["v"][:, :, heads // block.sharing],
                mask,
            )
            for each in (changed, inputs)
        )
        return z - old

    def _restore(self, x: Residual, layer: int, inside: list[int], queries: slice) -> Residual:
        """Overwrites the activation of those rows under way whose window holds this layer."""
        if not inside:
            return x
        blocks = x.unflatten(0, (-1, self.n_prompts))
        there = self._late(self.there, layer)[:, queries]
        blocks[inside] = torch.where(self.patched[:, queries, None], there, blocks[inside])
        return x


@dataclass(frozen=True)
class _Plan:
    """How many prompts are held at a time, and how many rows are in a pass."""

    prompts: int
    rows: int
    is_automatic: bool

    @staticmethod
    def of(wanted: _Wanted, length: int, limits: Limits, runs: int) -> _Plan:
        """The largest plan within the limits.

        Args:
            wanted: the model and what is kept of its unpatched runs.
            length: the prompts' length in tokens.
            limits: what is allowed.
            runs: how many unpatched runs are kept.

        Raises:
            PatchlibError: where not even one row fits.
        """
        size = Sizes.of(wanted.network)
        # The restored activation, the stream after it, queries, keys and values.
        restored = {"post": size.hidden, "pattern": length * size.heads}
        kept = restored.get(wanted.activation, max(size.width, size.heads))
        kept = len(wanted.layers) * (kept + size.width + size.heads)
        held = length * runs * (kept + 2 * size.layers * size.keys) + 3 * size.logits
        passing = length * (9 * size.width + 6 * size.heads + 2 * size.keys + 2 * size.hidden)
        passing += 2 * _whole_vectors(length) * size.keys + 6 * size.logits
        # The comparison with TransformerLens' own pass takes what that pass takes.
        needed = max(2 * held + passing, row_bytes(wanted.network.model, length))
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
    taken: Taken | None = None,
) -> Iterator[Piece]:
    """Runs every cell on prompts of one length and measures it; see `hook_engine.sweep`."""
    with torch.no_grad():
        layers = frozenset(part.layer for cell in cells for part in cell.parts)
        wanted = _Wanted(Network(model), cells[0].parts[0].activation, layers, None)
        plan = _Plan.of(wanted, source.tokens.shape[1], limits, 2 if taken is None else 3)
        for start in range(0, len(pairs), plan.prompts):
            prompts = range(start, min(start + plan.prompts, len(pairs)))
            which = slice(prompts.start, prompts.stop)
            yield from _sweep(
                wanted,
                pairs[which],
                source.rows(which),
                destination.rows(which),
                taken.rows(which) if isinstance(taken, Run) else taken,
                cells,
                metrics,
                plan,
                prompts,
            )


def _sweep(
    wanted: _Wanted,
    pairs: PromptPairs,
    source: Run,
    destination: Run,
    taken: Taken | None,
    cells: Sequence[Cell],
    metrics: Sequence[Metric],
    plan: _Plan,
    prompts: range,
) -> Iterator[Piece]:
    """The sweep over as many prompts as are held at a time."""
    network, length = wanted.network, source.tokens.shape[1]
    r, r_wrong, texts = pairs.answers, pairs.wrong_answers, pairs.texts
    tokens, r, r_wrong = _read_by(metrics, r, r_wrong, network)
    wanted = replace(wanted, tokens=tokens)
    differ = source.differs_from(destination).cumsum(dim=1) > 0
    # The same input gives the same numbers, to the last digit.
    same = ~differ.any(dim=1)
    if taken is not None:
        differ = torch.ones_like(differ)
    start = first_difference(source, destination) if taken is None else 0
    there = _trace_distinct(wanted, source, start)
    here = there if same.all() else _trace(wanted, destination, start, there)
    here.logits[same] = there.logits[same]
    if isinstance(taken, Run):
        restored = _trace_distinct(wanted, taken, 0).restored
    else:
        restored = there.restored if taken is None else _given(wanted, taken, len(pairs))
    unpatched = measure(
        metrics, torch.stack((there.logits, here.logits)), r, r_wrong, there.logits, texts
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
                    wanted, _rows(restored, at), here.rows(at), first, patched[at, first:]
                )
                most = plan.rows
                if network.device.type == "cpu" and plan.is_automatic:
                    most = min(most, _TOKENS_PER_PASS_ON_CPU // (length - first))
                for chosen in _split(numbers, max(1, most // len(some))):
                    x = one_pass.run([cells[number] for number in chosen])
                    values = [
                        measure(
                            metrics,
                            network.unembed(part, wanted.tokens),
                            r[at],
                            r_wrong[at],
                            there.logits[at],
                            [texts[row] for row in some],
                        )
                        for part in x.split(max(1, _ROWS_PER_READING // len(some)))
                    ]
                    yield Piece(
                        chosen,
                        [prompts[row] for row in some],
                        torch.cat(values, dim=1),
                        unpatched[:, :, some],
                    )


def _read_by(
    metrics: Sequence[Metric], r: Tensor, r_wrong: Tensor, network: Network
) -> tuple[Int[Tensor, " token"] | None, Tensor, Tensor]:
    """The tokens whose logits metrics read, None for all, and the answers as numbers among them."""
    if any(metric.whole for metric in metrics):
        return None, r, r_wrong
    tokens, r, r_wrong = _answers_alone(r, r_wrong)
    return tokens.to(network.device), r, r_wrong


def _answers_alone(r: Tensor, r_wrong: Tensor) -> tuple[Int[Tensor, " token"], Tensor, Tensor]:
    """The tokens that are answers of any prompt, and the answers as numbers among these."""
    tokens = torch.cat((r.flatten(), r_wrong.flatten())).unique()
    tokens = tokens[tokens != NOTHING]
    r, r_wrong = (
        torch.searchsorted(tokens, answers).masked_fill(answers == NOTHING, NOTHING)
        for answers in (r, r_wrong)
    )
    return tokens, r, r_wrong


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


_compared: weakref.WeakKeyDictionary[TransformerBridge, dict[object, str | None]] = (
    weakref.WeakKeyDictionary()
)


def disagreement(model: TransformerBridge, source: Run, destination: Run) -> str | None:
    """Compares the engine's own unpatched runs with TransformerLens', on one prompt.

    A model is compared once, and anew when it has other modules, or weights that were exchanged or
    changed in place.

    Returns:
        By how much they differ, where that is more than rounding; else None.
    """
    weights = ((each.data_ptr(), each._version) for each in (*model.parameters(), *model.buffers()))
    noisy = source.noise is not None or destination.noise is not None
    state = (*weights, *map(id, model.modules()), noisy)
    found = _compared.setdefault(model, {})
    if state not in found:
        found[state] = _compare(model, source, destination)
    return found[state]


def network_of(
    model: TransformerBridge, pairs: PromptPairs, corruption: Corruption | None, otherwise: str
) -> Network:
    """The model without hooks, for what no other engine can do.

    Args:
        model: the model.
        pairs: the prompts, of which one is compared.
        corruption: their corruption, if any.
        otherwise: what to say where the model cannot be run so.

    Raises:
        PatchlibError: with that, and the reason.
    """
    _, group = next(pairs.by_length())
    runs = two_runs(model, group[:1], corruption, 0)
    if problem := obstacle(model) or disagreement(model, *runs):
        raise PatchlibError(f"{otherwise}: {problem}")
    return Network(model)


def _compare(model: TransformerBridge, source: Run, destination: Run) -> str | None:
    with torch.no_grad():
        wanted = _Wanted(Network(model), "resid_pre", frozenset(), None)
        for run in (source, destination):
            few = run.rows(slice(0, 1))
            mine, theirs = _trace(wanted, few, start=0).logits, run_with_edits(model, few)[0]
            spread = (theirs.amax(-1) - theirs.amin(-1)).max()
            away = (mine - theirs).abs().max()
            # 4e-10 in double precision, 7e-5 in single, 0.02 and 0.05 in the two half ones.
            allowed = torch.finfo(theirs.dtype).eps ** 0.6
            if not away <= allowed * spread:
                return (
                    f"its own unpatched logits differ from TransformerLens' by {away.item():.2g}, "
                    f"where they spread over {spread.item():.2g} and {theirs.dtype} allows "
                    f"{allowed:.2g} of that"
                )
    return None

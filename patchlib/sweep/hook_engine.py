"""The reference engine: hooks on TransformerLens' own forward pass, several cells to a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError
from patchlib.prompts.pairs import PromptPairs
from patchlib.sweep.cells import Cell, Limits, Piece, Where
from patchlib.sweep.metrics import Metric, measure
from patchlib.sweep.runs import Edit, Run, row_bytes, run_with_edits

# Memory that one batch may take for its logits and activations; larger ones are slower on a CPU.
_BATCH_BYTES = 128 * 2**20


def restore(
    model: TransformerBridge, source: Run, cells: Sequence[Cell], prompts: range
) -> list[Edit]:
    """The edits that restore cells from a source run, one block of prompts for each cell.

    Args:
        model: the model.
        source: the run that activations are taken from, on these prompts.
        cells: what each block restores.
        prompts: the numbers of the prompts, for the cells' positions.
    """
    names = activations_of(cells)
    _, activations = run_with_edits(model, source, keep=names)
    return _restore(cells, activations, prompts)


def activations_of(cells: Sequence[Cell]) -> list[str]:
    """The full names of all activations that some cells restore."""
    names = (get_act_name(cell.activation, layer) for cell in cells for layer, _ in cell.at)
    return list(dict.fromkeys(names))


def _restore(cells: Sequence[Cell], source: dict[str, Tensor], prompts: range) -> list[Edit]:
    """One edit per activation for a batch made of a block of prompts for each cell."""
    by_name: dict[str, list[tuple[int, int | None, Where | None]]] = {}
    for block, cell in enumerate(cells):
        for layer, head in cell.at:
            name = get_act_name(cell.activation, layer)
            by_name.setdefault(name, []).append((block, head, cell.where))
    size = len(prompts)

    def edit(name: str) -> Callable[[Tensor], Tensor]:
        def write(activation: Tensor) -> Tensor:
            new = activation.clone()
            for block, head, where in by_name[name]:
                mine = new[block * size : (block + 1) * size]
                theirs = source[name]
                if head is not None:
                    mine, theirs = mine[:, :, head], theirs[:, :, head]
                if where is None:
                    mine[:] = theirs
                else:
                    for row, prompt in enumerate(prompts):
                        at = list(where[prompt])
                        mine[row, at] = theirs[row, at]
            return new

        return write

    return [(name, edit(name)) for name in by_name]


def _batch_rows(model: TransformerBridge, length: int, limits: Limits) -> int:
    row = row_bytes(model, length)
    if row > limits.memory:
        raise PatchlibError(
            f"memory_budget={limits.memory}: one prompt of {length} tokens needs {row} bytes with "
            f"engine='hooks'; give memory_budget={row} or more"
        )
    on_cpu = torch.device(str(model.cfg.device)).type == "cpu"
    rows = max(1, (min(_BATCH_BYTES, limits.memory) if on_cpu else limits.memory) // row)
    return rows if limits.rows is None else min(limits.rows, limits.memory // row)


def sweep(
    model: TransformerBridge,
    pairs: PromptPairs,
    source: Run,
    destination: Run,
    cells: Sequence[Cell],
    metrics: Sequence[Metric],
    limits: Limits,
) -> Iterator[Piece]:
    """Runs every cell on prompts of one length and measures it.

    Args:
        model: the model, in evaluation mode.
        pairs: the prompts, for their answers.
        source: the run that activations are taken from.
        destination: the run that they are put into.
        cells: what each patched run restores.
        metrics: what to measure.
        limits: how much one pass may take.

    Yields:
        What each pass measured.
    """
    rows = _batch_rows(model, source.tokens.shape[1], limits)
    names = activations_of(cells)
    per_pass = min(len(pairs), rows)
    for start in range(0, len(pairs), per_pass):
        prompts = range(start, min(start + per_pass, len(pairs)))
        which = slice(prompts.start, prompts.stop)
        r, r_wrong = pairs.answers[which], pairs.wrong_answers[which]
        there, activations = run_with_edits(model, source.rows(which), keep=names)
        here, _ = run_with_edits(model, destination.rows(which))
        unpatched = measure(metrics, torch.stack((there, here)), r, r_wrong, there).transpose(0, 1)
        together = max(1, rows // len(prompts))
        for first in range(0, len(cells), together):
            chosen = cells[first : first + together]
            logits, _ = run_with_edits(
                model,
                destination.rows(which).repeat(len(chosen)),
                edits=_restore(chosen, activations, prompts),
            )
            patched = measure(
                metrics, logits.view(len(chosen), len(prompts), -1), r, r_wrong, there
            )
            measured = torch.tensor([[cell.measures(p) for p in prompts] for cell in chosen])
            yield Piece(
                range(first, first + len(chosen)),
                prompts,
                patched.masked_fill(~measured, torch.nan),
                unpatched,
            )

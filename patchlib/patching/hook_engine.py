"""The reference engine: hooks on TransformerLens' own forward pass, several cells to a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError
from patchlib.patching.cells import Cell, Limits, Part, Piece, Where
from patchlib.patching.metrics import Metric, measure
from patchlib.patching.runs import Edit, Run, row_bytes, run_with_edits
from patchlib.patching.sources import Taken
from patchlib.prompts.pairs import PromptPairs

# Memory that one batch may take for its logits and activations; larger ones are slower on a CPU.
_BATCH_BYTES = 128 * 2**20


def restore(
    cells: Sequence[Cell], source: Mapping[str, Tensor], prompts: Sequence[int]
) -> list[Edit]:
    """The edits that restore cells, for a batch made of a block of prompts for each cell.

    Args:
        cells: what each block restores.
        source: the activations that it is restored from, on these prompts.
        prompts: the numbers of the prompts, for the cells' positions.
    """
    by_name: dict[str, list[tuple[int, Part, Where | None]]] = {}
    for block, cell in enumerate(cells):
        for part in cell.parts:
            by_name.setdefault(name_of(part), []).append((block, part, cell.where))
    size = len(prompts)

    def edit(name: str) -> Callable[[Tensor], Tensor]:
        def write(activation: Tensor) -> Tensor:
            new = activation.clone()
            for block, part, where in by_name[name]:
                mine = part.of(new[block * size : (block + 1) * size])
                theirs = part.of(source[name])
                if where is None:
                    mine[:] = theirs
                else:
                    for row, prompt in enumerate(prompts):
                        at = list(where[prompt])
                        mine[row, at] = theirs[row, at]
            return new

        return write

    edits, through = list[Edit](), list[Edit]()
    for name in by_name:
        layer = by_name[name][0][1].layer
        if name == get_act_name("resid_mid", layer):
            through += _through_attention(layer, edit(name))
        else:
            edits.append((name, edit(name)))
    # What the stream after the attention is made of comes first.
    return edits + through


def _through_attention(layer: int, write: Callable[[Tensor], Tensor]) -> list[Edit]:
    """Edits the stream after a layer's attention by what the attention adds to it.

    TransformerLens' hook_resid_mid is the input of the second norm alone: an edit there reaches
    the MLP and not the residual stream.
    """
    before: list[Tensor] = []

    def add(attn_out: Tensor) -> Tensor:
        return write(before[0] + attn_out) - before[0]

    return [
        (get_act_name("resid_pre", layer), before.append),
        (get_act_name("attn_out", layer), add),
    ]


def require_effect(model: TransformerBridge, run: Run, activation: str) -> None:
    """Refuses a model that computes on past an edited attention pattern.

    In some architectures TransformerLens shows the pattern only after its layer has used it.

    Raises:
        PatchlibError: for such a model.
    """
    pattern, z = get_act_name("pattern", 0), get_act_name("z", 0)
    if activation == "pattern":
        edits: list[Edit] = [(pattern, torch.zeros_like)]
        _, kept = run_with_edits(model, run.rows(slice(0, 1)), edits, keep=[z])
        if kept[z].any():
            raise PatchlibError(
                "component='pattern': this model does not use a pattern that is edited by a hook, "
                "so that nothing would change; patch q, k, v or head"
            )


def name_of(part: Part) -> str:
    """The full name of a part's activation."""
    return get_act_name(part.activation, part.layer)


def names_of(cells: Sequence[Cell]) -> list[str]:
    """The full names of all activations that some cells restore."""
    return list(dict.fromkeys(name_of(part) for cell in cells for part in cell.parts))


def _batch_rows(model: TransformerBridge, length: int, names: Sequence[str], limits: Limits) -> int:
    cfg = model.cfg
    widths = {"hook_post": cfg.d_mlp, "hook_pattern": cfg.n_heads * length}
    kept = sum(widths.get(name.rpartition(".")[2]) or cfg.d_model for name in names)
    row = row_bytes(model, length, kept)
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
    taken: Taken | None = None,
) -> Iterator[Piece]:
    """Runs every cell on prompts of one length and measures it.

    Args:
        model: the model, in evaluation mode.
        pairs: the prompts, for their answers.
        source: the run that activations are taken from, and that KL is measured from.
        destination: the run that they are put into.
        cells: what each patched run restores.
        metrics: what to measure.
        limits: how much one pass may take.
        taken: what activations are taken from where not from the source run.

    Yields:
        What each pass measured.
    """
    names = names_of(cells)
    rows = _batch_rows(model, source.tokens.shape[1], names, limits)
    per_pass = min(len(pairs), rows)
    for start in range(0, len(pairs), per_pass):
        prompts = range(start, min(start + per_pass, len(pairs)))
        which = slice(prompts.start, prompts.stop)
        r, r_wrong, texts = pairs.answers[which], pairs.wrong_answers[which], pairs.texts[which]
        there, activations = run_with_edits(model, source.rows(which), keep=names)
        here, _ = run_with_edits(model, destination.rows(which))
        unpatched = measure(metrics, torch.stack((there, here)), r, r_wrong, there, texts)
        unpatched = unpatched.transpose(0, 1)
        if isinstance(taken, Run):
            _, activations = run_with_edits(model, taken.rows(which), keep=names)
        elif taken is not None:
            activations = {
                name: taken[name].expand(len(prompts), *taken[name].shape[1:]) for name in names
            }
        together = max(1, rows // len(prompts))
        for first in range(0, len(cells), together):
            chosen = cells[first : first + together]
            logits, _ = run_with_edits(
                model,
                destination.rows(which).repeat(len(chosen)),
                edits=restore(chosen, activations, prompts),
            )
            logits = logits.view(len(chosen), len(prompts), -1)
            patched = measure(metrics, logits, r, r_wrong, there, texts)
            measured = torch.tensor([[cell.measures(p) for p in prompts] for cell in chosen])
            yield Piece(
                range(first, first + len(chosen)),
                prompts,
                patched.masked_fill(~measured, torch.nan),
                unpatched,
            )

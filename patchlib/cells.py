"""What both engines share: the cells of a sweep, the limits of a pass, and what a pass measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError

Where = list[tuple[int, ...]]


@dataclass(frozen=True)
class Cell:
    """What one patched run restores.

    Args:
        activation: TransformerLens' short name (``z``, ``v``, ``mlp_out``, ``attn_out``,
            ``resid_pre``).
        at: layers, each with the head or None for a whole layer.
        where: for each prompt the token positions; None for all positions.
    """

    activation: str
    at: tuple[tuple[int, int | None], ...]
    where: Where | None = None

    def measures(self, prompt: int) -> bool:
        """False for a prompt that has no token at the cell's position."""
        return self.where is None or len(self.where[prompt]) > 0


@dataclass(frozen=True)
class Piece:
    """What one pass measured.

    Args:
        cells: the numbers of its cells.
        prompts: the numbers of its prompts.
        patched: the metrics of the patched runs, NaN where a prompt has no such position.
        unpatched: the metrics of the two unpatched runs, source first.
    """

    cells: Sequence[int]
    prompts: Sequence[int]
    patched: Float[Tensor, "metric cell prompt"]
    unpatched: Float[Tensor, "run metric prompt"]


@dataclass(frozen=True)
class Limits:
    """How much one pass may take.

    Args:
        rows: how many rows, a row being one prompt in one cell; None to choose by memory.
        memory: how many bytes beside the model itself.
    """

    rows: int | None
    memory: int

    @staticmethod
    def of(model: TransformerBridge, batch_size: int | str, memory_budget: int | None) -> Limits:
        """The limits that a caller asked for.

        Raises:
            PatchlibError: for a batch size or a budget that is not a positive number.
        """
        is_number = isinstance(batch_size, int) and not isinstance(batch_size, bool)
        if batch_size != "auto" and not (is_number and int(batch_size) > 0):
            raise PatchlibError(
                f"batch_size={batch_size!r}: give 'auto' or how many prompts one pass may hold"
            )
        if memory_budget is not None and not memory_budget > 0:
            raise PatchlibError(
                f"memory_budget={memory_budget!r}: give a number of bytes, for example 2 * 2**30"
            )
        if memory_budget is None:
            device = torch.device(str(model.cfg.device))
            memory_budget = 2 * 2**30
            if device.type == "cuda":
                memory_budget = int(0.8 * torch.cuda.mem_get_info(device)[0])
        return Limits(None if batch_size == "auto" else int(batch_size), int(memory_budget))


def heads_cell(model: TransformerBridge, heads: Sequence[tuple[int, int]], activation: str) -> Cell:
    """The cell that restores one activation of several heads at all positions.

    Raises:
        PatchlibError: for an activation that heads do not have, no heads, or unknown ones.
    """
    if activation not in ("z", "q", "k", "v"):
        raise PatchlibError(f"activation={activation!r}: heads have 'z', 'q', 'k' and 'v'")
    n_heads = model.cfg.n_heads
    if activation in ("k", "v"):
        n_heads = getattr(model.cfg, "n_key_value_heads", None) or n_heads
    for layer, head in heads:
        if not (0 <= layer < model.cfg.n_layers and 0 <= head < n_heads):
            raise PatchlibError(
                f"head {layer}.{head} does not exist: {activation} has layers 0 to "
                f"{model.cfg.n_layers - 1} and heads 0 to {n_heads - 1}"
            )
    if not heads:
        raise PatchlibError("no heads were given: give at least one as (layer, head)")
    return Cell(activation, tuple((int(layer), int(head)) for layer, head in heads))

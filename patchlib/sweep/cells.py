"""What both engines share: the cells of a sweep, the limits of a pass, and what a pass measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
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
    def of(model: TransformerBridge, batch_size: int | str, memory_budget: float | None) -> Limits:
        """The limits that a caller asked for.

        Raises:
            PatchlibError: for a batch size that is not a positive whole number, and for a budget
                that is not a positive number.
        """
        rows = None if batch_size == "auto" else whole_number(batch_size)
        if batch_size != "auto" and (rows is None or rows < 1):
            raise PatchlibError(
                f"batch_size={batch_size!r}: give 'auto' or how many prompts one pass may hold"
            )
        if memory_budget is None:
            device = torch.device(str(model.cfg.device))
            memory_budget = 2 * 2**30
            if device.type == "cuda":
                memory_budget = int(0.8 * torch.cuda.mem_get_info(device)[0])
        is_number = isinstance(memory_budget, Real) and not isinstance(memory_budget, bool)
        if not (is_number and memory_budget > 0):
            raise PatchlibError(
                f"memory_budget={memory_budget!r}: give a number of bytes, for example 2 * 2**30"
            )
        # Infinity stands for more than any machine has.
        return Limits(rows, int(min(memory_budget, 2**60)))


def whole_number(value: object) -> int | None:
    """Python's own integer for any integer, numpy's included; None for everything else."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool | np.bool_)
    return int(value) if is_whole else None  # type: ignore[call-overload]


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


def layers_before(window: int, before: int | None, n_layers: int) -> int:
    """How many layers of a window lie before its layer l.

    Raises:
        PatchlibError: for a window that does not fit the model, or an even one without ``before``.
    """
    if not isinstance(window, Integral) or not 1 <= window <= n_layers:
        raise PatchlibError(f"window={window}: with {n_layers} layers 1 to {n_layers} are allowed")
    if window % 2 == 0 and before is None:
        raise PatchlibError(
            f"window={window} is even and has no middle layer: state with before= how many of its "
            f"layers lie before layer l; before={window // 2} is what ROME's code does"
        )
    before = window // 2 if before is None else before
    if not 0 <= before < window:
        raise PatchlibError(f"before={before}: a window of {window} allows 0 to {window - 1}")
    return before


def layers_around(layer: int, window: int, before: int, n_layers: int) -> range:
    """The layers of one window, cut at the first and the last layer of the model."""
    return range(max(0, layer - before), min(n_layers, layer - before + window))

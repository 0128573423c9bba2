"""What both engines share: the cells of a sweep, the limits of a pass, and what a pass measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError, require_bridge, whole
from patchlib.heads import Head

COMPONENTS = {
    "head": "z",
    "mlp": "mlp_out",
    "attn": "attn_out",
    "resid": "resid_pre",
    "resid_mid": "resid_mid",
    "q": "q",
    "k": "k",
    "v": "v",
    "pattern": "pattern",
    "neuron": "post",
}
"""What can be patched, and TransformerLens' name for its activation."""

UNITS = ("head", "kv_head", "neuron")
"""What an activation of a layer may consist of, and what dimensions of results are called."""

Where = list[tuple[int, ...]]


class Part(NamedTuple):
    """One activation of one layer.

    Args:
        activation: TransformerLens' short name (``z``, ``q``, ``mlp_out``, ``resid_pre``, ...).
        layer: the layer.
        unit: the head, the key/value head or the neuron; None for all of the layer.
    """

    activation: str
    layer: int
    unit: int | None = None

    def __str__(self) -> str:
        return f"{self.activation}{self.layer}" + ("" if self.unit is None else f".{self.unit}")

    def of(self, activation: Tensor) -> Float[Tensor, "prompt position *rest"]:
        """The part's own numbers within its layer's activation, as a view.

        A pattern's positions are those of its queries: patching one replaces what the query at
        that position attends to.
        """
        if self.activation == "pattern":
            activation = activation.transpose(1, 2)
        return activation if self.unit is None else activation[:, :, self.unit]


@dataclass(frozen=True)
class Cell:
    """What one patched run restores.

    Args:
        parts: activations, sorted by layer.
        where: for each prompt the token positions; None for all positions.
    """

    parts: tuple[Part, ...]
    where: Where | None = None

    def measures(self, prompt: int) -> bool:
        """False for a prompt that has no token at the cell's position."""
        return self.where is None or len(self.where[prompt]) > 0


def unit_of(model: TransformerBridge, activation: str) -> tuple[str, int] | None:
    """What a layer's activation consists of, as one of `UNITS`, and how many there are.

    Under grouped-query attention several heads share one key and one value. Keys and values then
    have fewer units, which TransformerLens numbers by themselves: results call them ``kv_head``,
    and a ``head`` is always a head of its own query.
    """
    require_bridge(model)
    heads = int(model.cfg.n_heads)
    if activation in ("z", "q", "pattern"):
        return "head", heads
    if activation in ("k", "v"):
        groups = int(getattr(model.cfg, "n_key_value_heads", None) or heads)
        return ("head" if groups == heads else "kv_head"), groups
    if activation == "post":
        return "neuron", int(model.cfg.d_mlp or 0)
    return None


def parts_of(
    model: TransformerBridge, names: Iterable[object] | str, activation: str = "z"
) -> tuple[Part, ...]:
    """Parts by name: ``"4.6"`` is a head's z, ``"q4.6"`` its query, ``"mlp3"`` a layer's MLP.

    Args:
        model: the model that has them.
        names: a list, or one text with several; each a component of `COMPONENTS` and its layer,
            with the unit after a point where it has units; a head alone, also as (layer, head),
            stands for its ``activation``. A head's key and value are those that it reads, under
            grouped-query attention its group's.
        activation: ``"z"``, ``"q"``, ``"k"``, ``"v"`` or ``"pattern"``.

    Raises:
        PatchlibError: for a name that is none, a part that the model does not have, and where none
            is given.

    Example:
        >>> import patchlib as pl
        >>> parts_of(pl.load_model("mini"), ["mlp3", "1.2"])
        (Part(activation='z', layer=1, unit=2), Part(activation='mlp_out', layer=3, unit=None))
    """
    if activation not in ("z", "q", "k", "v", "pattern"):
        raise PatchlibError(
            f"activation={activation!r}: heads have 'z', 'q', 'k', 'v' and 'pattern'"
        )
    if isinstance(names, str):
        names = names.replace(",", " ").split()
    if not isinstance(names, Iterable):
        raise PatchlibError(f"{names!r} is no list of parts: give one such as ['4.6', 'mlp3']")
    parts = [_part(model, name, activation) for name in names]
    if not parts:
        raise PatchlibError("nothing was given to restore: give at least one, such as '4.6'")
    # Heads of a group share a key and a value; restoring them twice is restoring them once.
    by_layer = sorted(set(parts), key=lambda part: (part.layer, part.activation, part.unit or 0))
    return tuple(by_layer)


def _part(model: TransformerBridge, name: object, activation: str) -> Part:
    text = name if isinstance(name, str) else ""
    found = re.fullmatch("([a-z_]+)?([0-9]+)(?:[.]([0-9]+))?", text)
    prefix = found[1] if found else None
    unit: int | None
    if prefix is None:
        act, head = activation, Head.of(name)
        layer, unit = head.layer, int(head.head)
    elif found is None or prefix not in COMPONENTS:
        raise PatchlibError(
            f"{name!r}: allowed are a head such as '4.6', and {', '.join(COMPONENTS)} with a "
            "layer, such as 'mlp3', 'q4.6' or 'neuron2.17'"
        )
    else:
        act, layer = COMPONENTS[prefix], int(found[2])
        unit = None if found[3] is None else int(found[3])
    units = unit_of(model, act)
    n_layers = model.cfg.n_layers
    # A head is named by its query, also where its key and value are a group's.
    most = units[1] if units else 0
    if act in ("k", "v"):
        most = int(model.cfg.n_heads)
    if layer >= n_layers or (unit is not None and unit >= most):
        has = f"layers 0 to {n_layers - 1}" + (f" and units 0 to {most - 1}" if most else ", whole")
        raise PatchlibError(f"{name!r} does not exist: {act} has {has}")
    if unit is not None and units and act in ("k", "v"):
        unit = unit * units[1] // most
    return Part(act, layer, unit)


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
        require_bridge(model)
        try:
            rows = None if batch_size == "auto" else whole("batch_size", batch_size, 1)
        except PatchlibError as refusal:
            raise PatchlibError(f"{refusal}, or 'auto'") from None
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


def layers_before(window: int, before: int | None, n_layers: int) -> int:
    """How many layers of a window lie before its layer l.

    Raises:
        PatchlibError: for a window that does not fit the model, or an even one without ``before``.
    """
    window = whole("window", window, 1, n_layers)
    if window % 2 == 0 and before is None:
        raise PatchlibError(
            f"window={window} is even and has no middle layer: state with before= how many of its "
            f"layers lie before layer l; before={window // 2} is what ROME's code does"
        )
    return window // 2 if before is None else whole("before", before, 0, window - 1)


def layers_around(layer: int, window: int, before: int, n_layers: int) -> range:
    """The layers of one window, cut at the first and the last layer of the model."""
    return range(max(0, layer - before), min(n_layers, layer - before + window))

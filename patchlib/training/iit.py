"""Interchange interventions that can be trained through: what heads and MLPs write, replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from transformers import GPT2LMHeadModel

Edit = Callable[[str, int, Tensor], Tensor]
"""From ``"resid_pre"``, ``"z"`` or ``"mlp_out"``, a layer and what it holds, to what it shall."""


@contextmanager
def edited(model: GPT2LMHeadModel, edit: Edit) -> Iterator[None]:
    """While this lasts, everything a GPT-2 writes into its residual stream goes through a function.

    Gradients flow through what the function gives back, unlike through the hooks of a bridge that
    was loaded for evaluation; and nothing is copied, so a training step costs what it has to.

    Args:
        model: the model; it may be in training mode.
        edit: gets ``"resid_pre"`` [row, position, d_model] and ``"z"``
            [row, position, head, d_head] and ``"mlp_out"`` [row, position, d_model] of each layer.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=2, n_head=2)).eval()
        >>> shapes = {}
        >>> def look(kind, layer, value):
        ...     shapes[kind, layer] = tuple(value.shape)
        ...     return value
        >>> with edited(model, look):
        ...     _ = model(torch.tensor([[1, 2, 3]]))
        >>> shapes["z", 1], len(shapes)
        ((1, 3, 2, 4), 6)
    """
    heads = int(model.config.n_head)

    def on_block(layer: int, module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (edit("resid_pre", layer, arguments[0]), *arguments[1:])

    def on_z(layer: int, module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = arguments[0].unflatten(-1, (heads, -1))
        return (edit("z", layer, z).flatten(-2),)

    blocks: Any = model.transformer.h
    handles = []
    for layer, block in enumerate(blocks):
        on_mlp = partial(lambda n, _, given, output: edit("mlp_out", n, output), layer)
        handles += [
            block.register_forward_pre_hook(partial(on_block, layer)),
            block.attn.c_proj.register_forward_pre_hook(partial(on_z, layer)),
            block.mlp.register_forward_hook(on_mlp),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

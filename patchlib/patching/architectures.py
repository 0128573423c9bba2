"""A model's own modules and weights, laid out for the fast engine.

TransformerLens gives every family the same names (``ln1``, ``attn.q``, ``mlp.in``), so that only
what differs between families is written here: how positions enter, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformer_lens.model_bridge import TransformerBridge
from transformers.activations import NewGELUActivation
from transformers.models.gptj import modeling_gptj
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.pytorch_utils import Conv1D

Heads = Float[Tensor, "row position head d_head"]
Rotate = Callable[[Heads], Heads]

# Positions whose neurons an MLP holds at a time.
_IN_CACHE = 1024

RMS_NORMS = (LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)


def _no_rotation(model: TransformerBridge, positions: Int[Tensor, " position"]) -> Rotate:
    return lambda heads: heads


def _shared_rotation(model: TransformerBridge, positions: Int[Tensor, " position"]) -> Rotate:
    """For families with one module of rotary embeddings for all layers."""
    like = torch.empty(0, device=positions.device, dtype=model.cfg.dtype)
    cos, sin = model.rotary_emb.original_component(like, position_ids=positions[None])
    width, half = cos.shape[-1], cos.shape[-1] // 2
    cos, sin = cos[:, :, None], sin[:, :, None]

    def rotate(heads: Heads) -> Heads:
        """As Hugging Face's ``apply_rotary_pos_emb``, in three kernels instead of five."""
        turning = heads[..., :width]
        turned = turning * cos
        turned[..., :half].addcmul_(turning[..., half:], sin[..., :half], value=-1)
        turned[..., half:].addcmul_(turning[..., :half], sin[..., half:])
        return turned if width == heads.shape[-1] else torch.cat((turned, heads[..., width:]), -1)

    return rotate


def _gptj_rotation(model: TransformerBridge, positions: Int[Tensor, " position"]) -> Rotate:
    attention = model.blocks[0].attn.original_component
    table = attention.embed_positions.to(positions.device)[positions][None].to(model.cfg.dtype)
    sin, cos = table.chunk(2, dim=-1)
    width = table.shape[-1]

    def rotate(heads: Heads) -> Heads:
        turned = modeling_gptj.apply_rotary_pos_emb(heads[..., :width], sin, cos)
        return torch.cat((turned, heads[..., width:]), dim=-1)

    return rotate


ROTATIONS: dict[str, Callable[[TransformerBridge, Tensor], Rotate]] = {
    "gpt2": _no_rotation,
    "gptj": _gptj_rotation,
    "gpt_neox": _shared_rotation,
    "llama": _shared_rotation,
    "qwen2": _shared_rotation,
    "qwen3": _shared_rotation,
}
"""For each family, as Hugging Face's ``model_type`` names it, how queries and keys are turned."""


def obstacle(model: TransformerBridge, activation: str = "z") -> str | None:
    """Why the fast engine cannot patch an activation of a model, or None where it can.

    Args:
        model: the model.
        activation: TransformerLens' short name of what is patched.
    """
    config = getattr(model.original_model, "config", None)
    family = getattr(config, "model_type", None) or type(model.original_model).__name__
    if family not in ROTATIONS:
        return f"the architecture {family!r} is not described (described: {', '.join(ROTATIONS)})"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return "some of its layers attend to a sliding window only"
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        return "its attention is scaled by layer"
    for name, point in model.hook_dict.items():
        if point.fwd_hooks:
            return f"a hook is attached at {name!r}, and only the hook engine runs it"
    if activation == "pattern" and family == "gptj":
        return "TransformerLens' own pass cannot change its pattern, so that nothing confirms it"
    return None


def _weight(component: Any) -> Float[Tensor, "output input"]:
    """The matrix of a bridged linear module, whichever way round it is stored."""
    module = component.original_component
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def _linear(component: Any) -> Callable[[Tensor], Tensor]:
    weight, bias = _weight(component), component.original_component.bias
    return lambda x: functional.linear(x, weight, bias)


def _activation(mlp: Any) -> Callable[[Tensor], Tensor]:
    function = getattr(mlp, "act", None) or mlp.act_fn
    return _gelu if isinstance(function, NewGELUActivation) else function


def _gelu(x: Float[Tensor, "*row neuron"]) -> Float[Tensor, "*row neuron"]:
    """Hugging Face's ``gelu_new``, which takes eight kernels for it."""
    if x.device.type != "cpu" or x.element_size() < 4 or x.requires_grad:
        return functional.gelu(x, approximate="tanh")
    slope = 2 * math.sqrt(2 / math.pi)
    # In place and as x times a sigmoid, over few enough rows for a CPU's cache: a third faster.
    for rows in x.flatten(0, -2).split(64):
        inner = rows.square().mul_(0.044715 * slope).add_(slope).mul_(rows)
        rows.mul_(inner.sigmoid_())
    return x


def _norm(component: Any) -> Callable[[Tensor], Tensor]:
    module = component.original_component
    # Other precisions round in between, and are left to the module itself.
    if isinstance(module, RMS_NORMS) and module.weight.dtype == torch.float32:
        weight, epsilon = module.weight, module.variance_epsilon
        return lambda x: functional.rms_norm(x, weight.shape, weight, epsilon)
    return module


class Block:
    """One layer, without hooks.

    Args:
        block: the layer as TransformerLens wraps it.
        n_heads: how many heads write.
        parallel: whether attention and MLP read the same residual stream.
    """

    # Torch does not tell a type checker what a module's submodules are.
    def __init__(self, block: Any, n_heads: int, parallel: bool):
        attn, mlp = block.attn, block.mlp
        self._q, self._k, self._v = map(_linear, (attn.q, attn.k, attn.v))
        self._norm_attention = _norm(block.ln1)
        second = getattr(block, "ln2", None)
        self._norm_mlp = self._norm_attention if second is None else _norm(second)
        self._norms = {
            name: _norm(getattr(attn, f"{name}_norm"))
            for name in ("q", "k")
            if hasattr(attn, f"{name}_norm")
        }
        self._maps = [
            (_weight(each), each.original_component.bias) for each in (attn.q, attn.k, attn.v)
        ]
        self._write = _linear(attn.o)
        self._in, self.contract = _linear(getattr(mlp, "in")), _linear(mlp.out)
        gate = getattr(mlp, "gate", None)
        self._gate = None if gate is None else _linear(gate)
        self._activation = _activation(mlp.original_component)
        self.W_O = _weight(attn.o).T.unflatten(0, (n_heads, -1))
        # A neuron writes as a head does, along one direction instead of many.
        self.W_out = _weight(mlp.out).T.unsqueeze(1)
        self.d_head = self.W_O.shape[1]
        self.sharing = n_heads * self.d_head // len(_weight(attn.k))

    def project(
        self,
        x: Float[Tensor, "row position d_model"],
        queries: slice,
        rotate_queries: Rotate,
        rotate_keys: Rotate,
    ) -> tuple[Heads, Heads, Heads]:
        """Queries at some positions, keys and values at all."""
        normed = self._norm_attention(x)
        q, k, v = self._q(normed[:, queries]), self._k(normed), self._v(normed)
        q, k, v = (part.unflatten(-1, (-1, self.d_head)) for part in (q, k, v))
        return self.turn("q", q, rotate_queries), self.turn("k", k, rotate_keys), v

    def project_each(
        self, x: Float[Tensor, "set reader prompt position d_model"], rotate: Rotate
    ) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values, each of which reads a residual stream of its own.

        Args:
            x: what the queries read, then the keys, then the values.
            rotate: how queries and keys are turned.
        """
        sizes = [len(weight) // self.d_head for weight, _ in self._maps]
        found = []
        for read, (weight, bias) in zip(
            self._norm_attention(x).split(sizes, 1), self._maps, strict=True
        ):
            each = weight.unflatten(0, (-1, self.d_head))
            heads = torch.einsum("shptm,hdm->spthd", read, each).flatten(0, 1)
            found.append(heads if bias is None else heads + bias.view(-1, self.d_head))
        q, k, v = found
        return self.turn("q", q, rotate), self.turn("k", k, rotate), v

    def turn(self, name: str, heads: Heads, rotate: Rotate) -> Heads:
        """What the linear map of queries or keys gives, as attention reads it."""
        norm = self._norms.get(name)
        return rotate(norm(heads) if norm else heads)

    def attend(self, q: Heads, k: Heads, v: Heads, mask: Bool[Tensor, "query key"] | None) -> Heads:
        """z."""
        # Heads that share a key stand in a row as further positions, so that no key is copied.
        positions, shared = q.shape[1], q.shape[2] // k.shape[2]
        q = q.unflatten(2, (-1, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        mask = None if mask is None else mask.repeat(shared, 1)
        z = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return z.unflatten(2, (-1, positions)).permute(0, 3, 1, 2, 4).flatten(2, 3)

    def pattern(
        self, q: Heads, k: Heads, mask: Bool[Tensor, "query key"] | None
    ) -> Float[Tensor, "row query head key"]:
        """How much each head attends to what, with queries before heads as everywhere else."""
        k = k.repeat_interleave(self.sharing, dim=2)
        scores = torch.einsum("rqhd,rkhd->rqhk", q, k) * self.d_head**-0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        return scores.softmax(-1)

    def write(self, z: Heads) -> Float[Tensor, "row position d_model"]:
        """What the attention layer adds."""
        return self._write(z.flatten(2))

    def expand(
        self, x: Float[Tensor, "row position d_model"]
    ) -> Float[Tensor, "row position d_mlp"]:
        """The MLP's neurons, given the residual stream that it reads; `contract` writes them."""
        normed = self._norm_mlp(x)
        if self._gate is None:
            return self._activation(self._in(normed))
        return self._activation(self._gate(normed)) * self._in(normed)

    def mlp(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What the MLP adds."""
        rows = x.flatten(0, -2)
        written = torch.empty_like(rows)
        # Neurons that stay in a CPU's cache take a seventh less time than those that do not.
        at_once = _IN_CACHE if x.device.type == "cpu" else len(rows)
        for some, place in zip(rows.split(at_once), written.split(at_once), strict=True):
            place.copy_(self.contract(self.expand(some)))
        return written.view(x.shape)


class Network:
    """A model without hooks: embedding, blocks and unembedding.

    Args:
        model: a model that has no `obstacle`.
    """

    def __init__(self, model: TransformerBridge):
        parallel = bool(getattr(model.cfg, "parallel_attn_mlp", False))
        config: Any = model.original_model.config
        self.model: Any = model
        self.device = torch.device(str(model.cfg.device))
        self.blocks = [Block(block, model.cfg.n_heads, parallel) for block in model.blocks]
        self.parallel = parallel
        self._rotation = ROTATIONS[config.model_type]
        self._norm = _norm(self.model.ln_final)
        unembed = self.model.unembed.original_component
        self._unembed_weight, self._unembed_bias = unembed.weight, unembed.bias
        # TransformerLens gives a model without this bias one of zeros, which takes time to add.
        if unembed.bias is not None and not unembed.bias.any():
            self._unembed_bias = None

    def embed(
        self,
        tokens: Int[Tensor, "row position"],
        noise: Float[Tensor, "row position d_model"] | None,
    ) -> Float[Tensor, "row position d_model"]:
        """The residual stream before the first block; noise is added to the token embeddings."""
        tokens = tokens.to(self.device)
        x = self.model.embed.original_component(tokens)
        if noise is not None:
            x = x + noise.to(x)
        positions = getattr(self.model, "pos_embed", None)
        if positions is not None:
            places = torch.arange(tokens.shape[1], device=self.device)
            x = x + positions.original_component(places)
        return x

    def rotation(self, start: int, stop: int) -> Rotate:
        """How queries and keys at some positions are turned."""
        return self._rotation(self.model, torch.arange(start, stop, device=self.device))

    def unembed(
        self, x: Float[Tensor, "*row d_model"], tokens: Int[Tensor, " token"] | None = None
    ) -> Float[Tensor, "*row token"]:
        """Logits of some tokens, or all, in single precision or the model's own if that is more."""
        weight, bias = self._unembed_weight, self._unembed_bias
        if tokens is not None:
            weight, bias = weight[tokens], None if bias is None else bias[tokens]
        logits = functional.linear(self._norm(x), weight, bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True)
class Sizes:
    """What a model's activations take, in bytes.

    Args:
        layers: how many layers.
        width: one position of the residual stream.
        heads: one position of z.
        keys: one position of the keys, and of the values, as they are stored.
        hidden: one position inside an MLP.
        number: one number.
        logits: one position's logits.
    """

    layers: int
    width: int
    heads: int
    keys: int
    hidden: int
    number: int
    logits: int

    @staticmethod
    def of(network: Network) -> Sizes:
        """Measures a network."""
        cfg, block = network.model.cfg, network.blocks[0]
        size = block.W_O.element_size()
        heads = len(block.W_O) * block.d_head
        gates = 2 if block._gate is not None else 1
        return Sizes(
            layers=cfg.n_layers,
            width=size * cfg.d_model,
            heads=size * heads,
            keys=size * heads // block.sharing,
            hidden=size * len(block.W_out) * gates,
            number=size,
            logits=max(4, size) * len(network._unembed_weight),
        )

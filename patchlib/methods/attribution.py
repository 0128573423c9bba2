"""Attribution patching: what patching would do, read from one gradient (Nanda, 2023).

Two forward passes and one backward pass for each metric, however many cells there are. The QK fix
and GradDrop mend two ways in which a gradient misses a component: Kramár et al. (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError
from patchlib.patching import results
from patchlib.patching.architectures import Network
from patchlib.patching.cells import Cell, Limits, Part, Piece
from patchlib.patching.fast_engine import _causal, _mask, network_of
from patchlib.patching.hook_engine import name_of
from patchlib.patching.metrics import Metric, measure
from patchlib.patching.patch import Metrics, _components, _one_or_list, _patch, _require_sense
from patchlib.patching.runs import Edit, Run, batches, run_with_edits
from patchlib.patching.sources import Taken
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs


def attribute(
    model: TransformerBridge,
    pairs: PromptPairs,
    component: str = "head",
    *,
    corruption: Corruption,
    metrics: Metrics = ("logit_diff", "prob", "kl"),
    layers: int | Iterable[int] | None = None,
    heads: Iterable[object] | None = None,
    positions: str | int | Sequence[str | int] = "all",
    direction: str = "denoise",
    qk_fix: bool = False,
    grad_drop: bool = False,
    keep_prompts: bool = False,
    keep_draws: bool = False,
    memory_budget: float | None = None,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Estimates by the metric's gradient what patching one component after another would do.

    The estimate is (a_source - a) · dm/da: the activation a and the gradient of the metric m are
    those of the run that would be patched. It is exact where m is affine between the two runs;
    otherwise its error grows with the square of the change. Where a softmax or a norm saturates it
    is near 0 whatever patching does. Windows have no estimate: their layers restored together cut
    the paths between them, which the gradients of single layers hold.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths.
        component: as in `patch`.
        corruption: as in `patch`.
        metrics: as in `patch`; those that have a gradient, which ``"rank"`` and ``"accuracy"``
            lack.
        layers: as in `patch`.
        heads: as in `patch`.
        positions: as in `patch`. Positions add up to ``"all"``.
        direction: as in `patch`. Denoising takes the gradient in the corrupted run, noising in the
            clean one.
        qk_fix: for ``"q"`` and ``"k"``: compute attention anew with the patched query or key, and
            take the gradient after it, so that its softmax is exact (Kramár et al.).
        grad_drop: for all but the residual stream: take the gradient once for each layer, past
            what that layer writes, so that paths which cancel do not hide a component (Kramár et
            al.). One more backward pass for each layer and metric.
        keep_prompts: as in `patch`.
        keep_draws: as in `patch`.
        memory_budget: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset as `patch` gives it, whose ``patched`` is the unpatched metric plus the estimate:
        a probability may lie outside of 0 to 1, and a divergence below 0. With ``grad_drop`` the
        effect is each prompt's sum of sizes over the layers of a model of L, divided by L - 1: it
        has no sign, and ``patched`` is NaN.

    Raises:
        PatchlibError: for a metric without a gradient, for ``qk_fix`` with another component or
            with an architecture that the fast engine does not know, for ``grad_drop`` with the
            residual stream, which no layer computes, or a model of one layer, within
            ``torch.inference_mode()``, and as `patch` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> options = {"corruption": pl.STR("S2"), "metrics": "logit_diff", "progress": False}
        >>> estimate = pl.attribute(model, pairs, **options).effect
        >>> by_position = pl.attribute(model, pairs, positions="each", **options).effect
        >>> bool((abs(by_position.sum("position") - estimate) < 1e-4).all())
        True
    """
    positions = _one_or_list(positions)
    _require_sense(model, pairs, corruption)
    frame, what = _components(model, pairs, component, layers, heads, 1, None, positions)
    if qk_fix and component not in ("q", "k"):
        raise PatchlibError(f"qk_fix=True with component={component!r}: it is for 'q' and 'k'")
    if grad_drop and (component.startswith("resid") or model.cfg.n_layers < 2):
        raise PatchlibError(
            f"grad_drop=True with component={component!r} and {model.cfg.n_layers} layers: it is "
            "for what a layer computes, in models of several layers"
        )
    if torch.is_inference_mode_enabled():
        raise PatchlibError("torch.inference_mode() allows no gradients: attribute outside of it")
    attribution = _Attribution(model, pairs, corruption, qk_fix, grad_drop)
    data = _patch(
        model,
        pairs,
        frame,
        corruption,
        metrics,
        {
            "method": "attribution patching",
            **what,
            "qk_fix": int(qk_fix),
            "grad_drop": int(grad_drop),
        },
        positions,
        direction,
        None,
        keep_prompts,
        keep_draws or grad_drop,
        attribution.sweep,
        Limits.of(model, "auto", memory_budget),
        None,
        progress,
    )
    if grad_drop:
        # All prompts of a draw have one sign, that of the metric's way to the source.
        data = data.assign(effect=abs(data.effect), patched=np.nan * data.patched)
        data = data if keep_draws else results.over_draws(data)
    return data


@dataclass(frozen=True)
class _Attribution:
    """Estimates by gradients.

    Args:
        model: the model.
        pairs: the prompts.
        corruption: the corruption.
        qk_fix: whether queries and keys are followed through the softmax.
        grad_drop: whether gradients are taken past each layer.
    """

    model: TransformerBridge
    pairs: PromptPairs
    corruption: Corruption
    qk_fix: bool
    grad_drop: bool

    @cached_property
    def network(self) -> Network:
        """The model by layers, once it is known to be one that can be run so."""
        otherwise = "qk_fix=True: attention cannot be computed anew"
        return network_of(self.model, self.pairs, self.corruption, otherwise)

    def sweep(
        self,
        model: TransformerBridge,
        pairs: PromptPairs,
        source: Run,
        destination: Run,
        cells: Sequence[Cell],
        metrics: Sequence[Metric],
        limits: Limits,
        taken: Taken | None = None,
    ) -> Iterator[Piece]:
        """An engine, as `patchlib.patching.hook_engine.sweep`; a pass has all cells."""
        r, r_wrong = pairs.answers, pairs.wrong_answers
        # Each cell is one part, and parts of one layer share its gradient.
        layers = {part.layer: part for cell in cells for part in cell.parts}
        wheres = {id(cell.where): cell.where for cell in cells}
        keep = [name for part in layers.values() for name in self._reads(part)]
        cfg, length = model.cfg, source.tokens.shape[1]
        # What goes backwards needs what every layer and a metric have computed.
        kept = cfg.n_layers * (60 * cfg.d_model + 4 * cfg.n_heads * length)
        kept += 8 * cfg.d_vocab // length
        for index, some in batches(model, pairs, limits.memory, kept):
            prompts, answers = range(index[0], index[-1] + 1), (r[index], r_wrong[index])
            runs = [run.rows(slice(index[0], index[-1] + 1)) for run in (source, destination)]
            there, theirs = run_with_edits(model, runs[0], keep=keep)
            changes, dropped = _Changes(), _Dropped()
            edits: list[Edit] = [
                (self._changed(part), changes.of(part.layer)) for part in layers.values()
            ]
            if self.grad_drop:
                edits += dropped.edits(model)
            here, mine = run_with_edits(model, runs[1], edits, keep, gradients=True)
            mine = {name: activation.detach() for name, activation in mine.items()}
            both = torch.stack((there, here.detach()))
            unpatched = measure(metrics, both, *answers, there, some.texts)
            masks = {place: _mask(where, prompts, length) for place, where in wheres.items()}
            found = torch.zeros(len(metrics), len(cells), len(some), dtype=torch.float64)
            for number, metric in enumerate(metrics):
                with torch.enable_grad():
                    values = measure([metric], here, *answers, there, some.texts)[0]
                for dropped.layer in range(cfg.n_layers) if self.grad_drop else (None,):
                    gradients = changes.gradients(metric, values)
                    estimates = {
                        (layer, place): self._estimate(part, theirs, mine, gradients[layer], mask)
                        for layer, part in layers.items()
                        for place, mask in masks.items()
                    }
                    for cell, total in zip(cells, found[number], strict=True):
                        (part,) = cell.parts
                        value = estimates[part.layer, id(cell.where)]
                        value = value if part.unit is None else value[:, part.unit]
                        total += value.abs() / (cfg.n_layers - 1) if self.grad_drop else value
            measured = torch.tensor([[cell.measures(i) for i in prompts] for cell in cells])
            patched = (unpatched[:, 1, None] + found).masked_fill(~measured, torch.nan)
            yield Piece(range(len(cells)), index, patched, unpatched.transpose(0, 1))

    def _reads(self, part: Part) -> list[str]:
        """The activations that an estimate needs of both runs."""
        if self.qk_fix:
            return [get_act_name(each, part.layer) for each in "qkv"]
        return [name_of(part)]

    def _changed(self, part: Part) -> str:
        """The activation whose gradient it needs."""
        if self.qk_fix:
            return get_act_name("z", part.layer)
        # TransformerLens' hook_resid_mid is the input of the second norm alone; what attention
        # adds changes the stream after it by as much.
        return get_act_name("attn_out", part.layer) if part[0] == "resid_mid" else name_of(part)

    def _estimate(
        self,
        part: Part,
        theirs: Mapping[str, Tensor],
        mine: Mapping[str, Tensor],
        gradient: Float[Tensor, "prompt position *rest"],
        mask: Bool[Tensor, "prompt position"],
    ) -> Float[Tensor, "prompt *unit"]:
        """By how much one metric changes, for all units of a layer.

        Args:
            part: one part of the layer.
            theirs: the source run's activations.
            mine: those of the run that would be patched.
            gradient: of the metric there.
            mask: which positions would be patched.
        """
        name, mask = name_of(part), mask.to(gradient.device)
        if self.qk_fix:
            new = torch.where(mask[..., None, None], theirs[name], mine[name])
            change = self._z(part.layer, {**mine, name: new}) - self._z(part.layer, mine)
            # A query's positions are its own; all later positions read a key.
            product = (change.double() * gradient.double()).sum((1, 3))
            # Heads that share a key stand in a row.
            return product.unflatten(1, (mine[name].shape[2], -1)).sum(-1).cpu()
        whole = part._replace(unit=None)
        change, gradient = whole.of(theirs[name] - mine[name]), whole.of(gradient)
        product = change.double() * gradient.double()
        if product.ndim == 4:
            product = product.sum(-1)
        product = (product * mask[..., None]).sum(1)
        return (product.sum(-1) if part.unit is None else product).cpu()

    @torch.no_grad()
    def _z(self, layer: int, of: Mapping[str, Tensor]) -> Float[Tensor, "prompt position head d"]:
        """z, given the layer's queries, keys and values."""
        q, k, v = (of[get_act_name(each, layer)] for each in "qkv")
        block, length = self.network.blocks[layer], q.shape[1]
        rotate = self.network.rotation(0, length)
        mask = _causal(0, length, length, q.device)
        return block.attend(block.turn("q", q, rotate), block.turn("k", k, rotate), v, mask)


class _Changes:
    """Changes of activations by 0, whose gradient is that of a patch."""

    def __init__(self) -> None:
        self._by_layer: dict[int, Tensor] = {}

    def of(self, layer: int) -> Callable[[Tensor], Tensor]:
        """An edit that changes one layer's activation."""

        def add(activation: Tensor) -> Tensor:
            self._by_layer[layer] = torch.zeros_like(activation, requires_grad=True)
            return activation + self._by_layer[layer]

        return add

    def gradients(self, metric: Metric, values: Float[Tensor, " prompt"]) -> dict[int, Tensor]:
        """By layer, the gradient of each prompt's value of a metric.

        Raises:
            PatchlibError: where there is none.
        """
        if not values.requires_grad:
            raise PatchlibError(
                f"metric {metric.name!r} has no gradient: attribute one that changes smoothly with "
                "the logits, such as 'logit_diff' in place of 'rank' or 'accuracy'"
            )
        # Prompts do not see each other, so that the sum's gradient is each prompt's own.
        layers, changes = zip(*self._by_layer.items(), strict=True)
        found = torch.autograd.grad(
            values, changes, torch.ones_like(values), retain_graph=True, allow_unused=True
        )
        for layer, gradient in zip(layers, found, strict=True):
            if gradient is None:
                raise PatchlibError(
                    f"the activations of layer {layer} have no gradient: this model computes on "
                    "past a hook's edit; choose another component"
                )
            if not gradient.isfinite().all():
                raise PatchlibError(
                    f"metric {metric.name!r}: its gradient in layer {layer} is NaN or infinite: "
                    "load the model with dtype=torch.float32, or give another metric"
                )
        return dict(zip(layers, found, strict=True))


class _Dropped:
    """A layer through which no gradient goes but along the residual stream."""

    layer: int | None = None

    def edits(self, model: TransformerBridge) -> list[Edit]:
        """Edits after which gradients stop at whatever ``layer`` is then."""
        return [
            (name, partial(self._watch, layer))
            for layer in range(model.cfg.n_layers)
            for name in (get_act_name("attn_out", layer), get_act_name("mlp_out", layer))
            if name in model.hook_dict
        ]

    def _watch(self, layer: int, written: Tensor) -> Tensor:
        written = written.view_as(written)
        if written.requires_grad:
            written.register_hook(lambda gradient: gradient * (layer != self.layer))
        return written

"""Self-repair: what later components make up when a part of the model is removed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError
from patchlib.measure.resamples import ratio_ends, resampled
from patchlib.patching import sources
from patchlib.patching.architectures import Network
from patchlib.patching.cells import Limits, Part, parts_of
from patchlib.patching.fast_engine import _causal, network_of
from patchlib.patching.hook_engine import name_of
from patchlib.patching.metrics import logit_difference
from patchlib.patching.runs import Run, batches, require_evaluation, require_prompts
from patchlib.patching.settings import of_result
from patchlib.patching.sources import Source
from patchlib.prompts.pairs import NOTHING, PromptPairs


def self_repair(
    model: TransformerBridge,
    pairs: PromptPairs,
    parts: Iterable[object],
    *,
    with_: Source,
    metric: str = "logit_diff",
    keep_prompts: bool = False,
    memory_budget: float | None = None,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Removes heads or MLPs from the clean run and says what each later component makes up.

    What a component writes into the residual stream at the last token is read as logits with the
    final norm's scale fixed as in the clean run: its direct effect (McGrath et al., 2023; Rushing &
    Nanda, 2024). What is removed costs its own direct effect; whatever else changes, so that the
    logits fall by less, is self-repair.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths; only their clean versions are run.
        parts: what is removed at all positions, one after the other: heads such as ``"9.9"``, MLPs
            such as ``"mlp3"``; a list among them, such as ``["9.6", "9.9"]``, is removed together.
        with_: what their output becomes, as in `ablate`. Zeros, which no later component has ever
            read, provoke more repair than resampling does.
        metric: ``"logit_diff"``, or ``"logit"``: that of the answer above the mean over the
            vocabulary, as McGrath et al. centre it.
        keep_prompts: keep one value per prompt instead of their mean; few prompts may hold most of
            the repair.
        memory_budget: as in `patch`.
        progress: as in `patch`, with one row for each prompt, draw and removal.

    Returns:
        A dataset over ``metric, removed`` and, as asked for, ``prompt``, in nats and as the mean
        over draws, with the variables

        * ``clean`` and ``patched``, the metric itself;
        * ``direct``, what the removed parts no longer write; ``total``, clean - patched;
        * ``repaired``, direct - total: positive where some of the loss is made up;
        * ``heads`` (over ``layer, head``) and ``mlps`` (over ``layer``), by how much the direct
          effect of each rises: exactly 0 upstream, NaN for what is removed. A negative one adds to
          the loss, as of a component that lives on what was removed;
        * ``norm``, what the change of the final norm's scale adds.

        ``repaired`` is the sum of heads, MLPs and norm, up to rounding.

    Raises:
        PatchlibError: for parts that do not write to the residual stream, for an architecture that
            the fast engine does not know, and as `ablate` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.self_repair(model, pairs, ["5.0", ["5.0", "5.1"]], with_=pl.Zero(),
        ...                     progress=False)
        >>> made_up = fx.heads.sum(["layer", "head"]) + fx.mlps.sum("layer") + fx.norm
        >>> bool(abs(made_up - fx.repaired).max() < 1e-3)
        True
    """
    require_evaluation(model)
    require_prompts(model, pairs)
    if metric not in _METRICS:
        raise PatchlibError(f"metric={metric!r}: allowed are {' and '.join(map(repr, _METRICS))}")
    if with_ is None:
        raise PatchlibError(
            "with_=None: say what the output of removed parts becomes: pl.Zero(), pl.Mean(), "
            "pl.Resample() or prompts"
        )
    described = sources.describe(with_, pairs, "noise")
    sources.require_fit(with_, pairs, "all")
    removed = _sets(model, parts)
    otherwise = "self-repair cannot be taken apart in this model"
    network = network_of(model, pairs, None, otherwise)
    draws = sources.draws_of(with_, None)
    names = list(dict.fromkeys(name_of(part) for each in removed.values() for part in each))
    firsts = list(dict.fromkeys(each[0].layer for each in removed.values()))
    kept = (len(names) + len(firsts)) * max(model.cfg.d_model, model.cfg.n_heads * model.cfg.d_head)
    total, done = len(removed) * len(pairs) * draws, 0
    shapes = {"heads": (model.cfg.n_layers, model.cfg.n_heads), "mlps": (model.cfg.n_layers,)}
    found = {
        name: np.zeros((len(removed), len(pairs), *shapes.get(name, ())))
        for name in ("clean", "patched", "direct", "heads", "mlps", "norm")
    }
    hidden = callable(progress) or not progress
    if callable(progress):
        progress(0, total)
    with tqdm(total=total, desc="removing", unit="row", disable=hidden, leave=False) as bar:
        for index, some in _alike(model, pairs, with_, memory_budget, kept):
            clean = _Clean.of(network, some, firsts, _METRICS[metric])
            for draw in range(draws):
                put = _put_in(clean, model, pairs, index, draw, with_, names, memory_budget)
                for number, each in enumerate(removed.values()):
                    for name, values in clean.without(each, put).items():
                        found[name][number, index] += values.double().cpu().numpy() / draws
                    done += len(index)
                    bar.update(len(index))
                    if callable(progress):
                        progress(done, total)
    what = {
        "method": "self-repair",
        "parts": "; ".join(removed),
        "positions": "all",
        **described,
        "metrics": metric,
        f"label_{metric}": "what is made up (nats)",
    }
    dims = "removed", "prompt", "layer", "head"
    data = xr.Dataset(
        {name: (dims[: values.ndim], values) for name, values in found.items()},
        coords={"removed": list(removed), "text": ("prompt", pairs.texts)},
    )
    units = {name: range(size) for name, size in zip(dims[2:], shapes["heads"], strict=True)}
    data = data.assign_coords(units).expand_dims(metric=[metric])
    data["total"] = data.clean - data.patched
    data["repaired"] = data.direct - data.total
    if not keep_prompts:
        data = data.drop_vars("text").mean("prompt", skipna=False)
    return data.assign_attrs(of_result(model, pairs, what=what))


def repaired_share(fx: xr.Dataset) -> pd.DataFrame:
    """How much of the direct effect of what was removed is made up, and by what.

    Shares are ratios of means over prompts: a prompt with hardly any direct effect has a share of
    its own that says nothing.

    Args:
        fx: a result of `self_repair` with ``keep_prompts=True``.

    Returns:
        A row for each removal with ``direct`` and ``total``, in nats; ``share``, repaired / direct,
        with the ends ``low`` and ``high`` of its 95 % interval over prompts, NaN where the direct
        effect's own interval holds zero; and the shares of ``heads``, ``mlps`` and ``norm``, which
        add up to ``share``.

    Raises:
        PatchlibError: for another result, and for means over prompts.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> fx = pl.self_repair(model, pl.tasks.ioi(model, n=8), ["5.0"], with_=pl.Zero(),
        ...                     keep_prompts=True, progress=False)
        >>> list(pl.repaired_share(fx))
        ['direct', 'total', 'share', 'low', 'high', 'heads', 'mlps', 'norm']
    """
    if not isinstance(fx, xr.Dataset) or "repaired" not in fx or "prompt" not in fx.dims:
        raise PatchlibError(
            "give what pl.self_repair(..., keep_prompts=True) returns: shares need one value per "
            "prompt"
        )
    rows = {}
    for name in fx.removed.values:
        one = fx.sel(removed=name).squeeze("metric")
        mean, direct = one.mean("prompt"), float(one.direct.mean())
        ends = ratio_ends(resampled(one.repaired), resampled(one.direct))
        parts = {"heads": mean.heads.sum(), "mlps": mean.mlps.sum(), "norm": mean.norm}
        shares = {part: float(value) / direct for part, value in parts.items()}
        both = {"direct": direct, "total": float(mean.total)}
        rows[str(name)] = both | {"share": float(mean.repaired) / direct} | ends | shares
    return pd.DataFrame(rows).T.rename_axis("removed")


def _centred_logit(logits: Tensor, r: Tensor, r_wrong: Tensor, source: Tensor) -> Tensor:
    """Logit(r) above the mean over the vocabulary; over a set their sum."""
    centred = logits - logits.mean(-1, keepdim=True)
    return logit_difference(centred, r, torch.full_like(r, NOTHING), source)


_METRICS: dict[str, Callable[..., Tensor]] = {
    "logit_diff": logit_difference,
    "logit": _centred_logit,
}
"""Linear in the logits, so that the parts of a change add up."""


def _sets(model: TransformerBridge, given: Iterable[object]) -> dict[str, tuple[Part, ...]]:
    """What is removed together, by its name."""
    removed: dict[str, tuple[Part, ...]] = {}
    for each in [given] if isinstance(given, str) else given:
        several = list(each) if isinstance(each, list | set | frozenset) else [each]
        # A pair of numbers is a head, and one text may hold several.
        parts = parts_of(model, each if isinstance(each, str) else several)
        for part in parts:
            if part.activation not in ("z", "mlp_out"):
                raise PatchlibError(
                    f"{part} does not write to the residual stream: heads such as '4.6', all of a "
                    "layer's as 'head4', and MLPs such as 'mlp3' can be removed"
                )
        removed[", ".join(map(str, several))] = parts
    if not removed:
        raise PatchlibError("nothing was given to remove: give at least one, such as ['4.6']")
    return removed


def _alike(
    model: TransformerBridge,
    pairs: PromptPairs,
    source: Source,
    memory_budget: float | None,
    kept: int,
) -> Iterator[tuple[list[int], PromptPairs]]:
    """Prompts of one length that a source may give the same, as many as fit into memory."""
    for index, some in batches(model, pairs, memory_budget, kept):
        groups: dict[object, list[int]] = {}
        for row, prompt in enumerate(some.prompts):
            groups.setdefault(sources.kind(source, prompt), []).append(row)
        for rows in groups.values():
            yield [index[row] for row in rows], some[rows]


@dataclass(frozen=True)
class _Writes:
    """What a run writes at the last token, along one direction for each prompt.

    Args:
        heads: by each head.
        mlps: by each MLP.
        end: what the final norm reads.
        kept: activations by name.
    """

    heads: Float[Tensor, "prompt layer head"]
    mlps: Float[Tensor, "prompt layer"]
    end: Float[Tensor, "prompt d_model"]
    kept: dict[str, Tensor]


@torch.no_grad()
def _run(
    network: Network,
    x: Float[Tensor, "prompt position d_model"],
    direction: Float[Tensor, "prompt d_model"],
    first: int = 0,
    edits: Mapping[Part, Tensor] = MappingProxyType({}),
    keep: Collection[str] = (),
) -> _Writes:
    """A run from a layer on; what is written before it counts as 0.

    Args:
        network: the model.
        x: the residual stream before that layer.
        direction: along which writing is measured.
        first: the layer.
        edits: activations of whole layers, of which parts are put in.
        keep: names of activations to keep.
    """
    length = x.shape[1]
    mask, rotate = _causal(0, length, length, x.device), network.rotation(0, length)
    heads = x.new_zeros(len(x), len(network.blocks), len(network.blocks[0].W_O))
    mlps, kept = x.new_zeros(heads.shape[:2]), {}

    def edited(activation: str, layer: int, values: Tensor) -> Tensor:
        mine = [part for part in edits if part[:2] == (activation, layer)]
        values = values.clone() if mine else values
        for part in mine:
            part.of(values)[:] = part.of(edits[part])
        if (name := get_act_name(activation, layer)) in keep:
            kept[name] = values
        return values

    for layer, block in enumerate(network.blocks[first:], first):
        x = edited("resid_pre", layer, x)
        qkv = block.project(x, slice(None), rotate, rotate)
        z = edited("z", layer, block.attend(*qkv, mask))
        middle = x + block.write(z)
        mlp_out = edited("mlp_out", layer, block.mlp(x if network.parallel else middle))
        x = middle + mlp_out
        heads[:, layer] = torch.einsum("phd,hdm,pm->ph", z[:, -1], block.W_O, direction)
        mlps[:, layer] = (mlp_out[:, -1] * direction).sum(-1)
    return _Writes(heads, mlps, x[:, -1], kept)


@dataclass(frozen=True)
class _Clean:
    """The clean run on some prompts of one length.

    Args:
        network: the model.
        pairs: the prompts.
        value: the metric, linear in the logits.
        direction: what of the residual stream it reads, for a final norm whose scale is 1.
        writes: what the run writes, and its residual stream where removals begin.
    """

    network: Network
    pairs: PromptPairs
    value: Callable[..., Tensor]
    direction: Float[Tensor, "prompt d_model"]
    writes: _Writes

    @classmethod
    def of(
        cls,
        network: Network,
        pairs: PromptPairs,
        firsts: Iterable[int],
        value: Callable[..., Tensor],
    ) -> _Clean:
        """Runs it."""
        norm: Any = network.model.ln_final.original_component
        unembed: Any = network.model.unembed.original_component
        # A metric that is linear in the logits is the same metric of the unembedding's rows.
        rows = unembed.weight.detach().T[:, None].expand(-1, len(pairs), -1)
        direction = norm.weight * value(rows, pairs.answers, pairs.wrong_answers, rows).T
        if isinstance(norm, torch.nn.LayerNorm):
            # It takes the mean off what it reads, which is as good as taking it off here.
            direction = direction - direction.mean(-1, keepdim=True)
        direction = direction.detach()
        keep = [get_act_name("resid_pre", layer) for layer in firsts]
        x = network.embed(pairs.clean_tokens, None)
        return cls(network, pairs, value, direction, _run(network, x, direction, keep=keep))

    def without(self, parts: tuple[Part, ...], put: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What changes, in nats, where some parts are replaced.

        Args:
            parts: what is removed, sorted by layer.
            put: the activations that are put in, by name.
        """
        before, first = self.writes, parts[0].layer
        edits = {part: put[name_of(part)] for part in parts}
        stream = before.kept[get_act_name("resid_pre", first)]
        after = _run(self.network, stream, self.direction, first, edits)
        scale, new_scale = self._scale(before.end), self._scale(after.end)
        heads, mlps = after.heads - before.heads, after.mlps - before.mlps
        heads, mlps = heads / scale[:, None, None], mlps / scale[:, None]
        heads[:, :first], mlps[:, :first] = 0, 0
        direct = torch.zeros_like(scale)
        for part in parts:
            mine = mlps[:, part.layer] if part.activation == "mlp_out" else heads[:, part.layer]
            mine = mine if part.unit is None else mine[:, part.unit]
            direct -= mine.sum(-1) if mine.ndim > 1 else mine
            mine[:] = torch.nan
        norm = (after.end.double() * self.direction).sum(-1) * (1 / new_scale - 1 / scale)
        values = {"clean": self._value(before.end), "patched": self._value(after.end)}
        return values | {"direct": direct, "heads": heads, "mlps": mlps, "norm": norm}

    def _scale(self, end: Float[Tensor, "prompt d_model"]) -> Float[Tensor, " prompt"]:
        """What the final norm divides by."""
        norm: Any = self.network.model.ln_final.original_component
        end = end.double()
        if isinstance(norm, torch.nn.LayerNorm):
            return (end.var(-1, unbiased=False) + norm.eps).sqrt()
        return (end.square().mean(-1) + norm.variance_epsilon).sqrt()

    @torch.no_grad()
    def _value(self, end: Float[Tensor, "prompt d_model"]) -> Float[Tensor, " prompt"]:
        logits = self.network.unembed(end)
        return self.value(logits, self.pairs.answers, self.pairs.wrong_answers, logits)


def _put_in(
    clean: _Clean,
    model: TransformerBridge,
    pairs: PromptPairs,
    index: list[int],
    draw: int,
    source: Source,
    names: Sequence[str],
    memory_budget: float | None,
) -> Mapping[str, Tensor]:
    """The activations that come in place of what is removed, by name."""
    memory = Limits.of(model, "auto", memory_budget).memory
    taken = sources.taken(model, pairs, index, [draw] * len(index), source, names, memory)
    if not isinstance(taken, Run):
        return taken
    network = clean.network
    return _run(network, network.embed(taken.tokens, None), clean.direction, keep=names).kept

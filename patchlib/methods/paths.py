"""Path patching: what a sender tells a receiver directly, past all other heads.

Goldowsky-Dill et al. (2023) and Wang et al. (2023). Four runs, as in Wang et al.'s appendix: two
unpatched ones; one in which the sender is taken from the other run while all other heads stay as
they are, so that each receiver's input shows what reaches it from the sender; and one in which the
receivers read that. The third is no run here: with heads fixed, only MLPs compute anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError
from patchlib.patching import frames
from patchlib.patching.architectures import Network
from patchlib.patching.cells import Cell, Limits, Part, Piece, parts_of
from patchlib.patching.fast_engine import (
    _TOKENS_PER_PASS_ON_CPU,
    _causal,
    _mask,
    _read_by,
    _split,
    network_of,
)
from patchlib.patching.hook_engine import name_of, names_of
from patchlib.patching.metrics import Metric, measure
from patchlib.patching.patch import Metrics, _one_or_list, _patch, _require_sense
from patchlib.patching.runs import Run, batches, row_bytes, run_with_edits
from patchlib.patching.sources import Taken
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs

Changes = dict[str, Float[Tensor, "row position d_model"]]
"""By the name of the residual stream in which a receiver reads them."""


def path_patch(
    model: TransformerBridge,
    pairs: PromptPairs,
    senders: str | Iterable[object],
    receivers: str | Iterable[str],
    *,
    corruption: Corruption,
    mlps: str = "recompute",
    direction: str = "denoise",
    metrics: Metrics = ("logit_diff", "prob", "kl"),
    positions: str | int | Sequence[str | int] = "all",
    keep_prompts: bool = False,
    keep_draws: bool = False,
    memory_budget: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    recompute: bool = False,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Patches the direct paths from senders to receivers.

    A receiver reads what the residual stream holds in the patched run plus what the sender changes
    in it, and its norm is computed anew. After the receivers, everything follows on.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths.
        senders: ``"head"`` or ``"mlp"`` for each one at a time; or a list whose members send
            together: heads as ``"4.6"``, MLPs as ``"mlp3"``, and ``"resid0"``, the embedding.
        receivers: what a head's query, key or value reads, as ``"q9.9"``, what an MLP reads, as
            ``"mlp_in5"``, and ``"logits"``, what the final norm reads; or a list, together. Under
            grouped-query attention a key and a value are those of the head's group.
        corruption: as in `patch`.
        mlps: ``"recompute"``, as in Wang et al.'s code, lets the MLPs between sender and receiver
            answer to the sender: their paths count as direct. ``"freeze"`` keeps them as they were,
            which leaves the one edge from sender to receiver.
        direction: as in `patch`; Wang et al. noise.
        metrics: as in `patch`.
        positions: of the senders, as in `patch`. Receivers read at all positions.
        keep_prompts: as in `patch`.
        keep_draws: as in `patch`.
        memory_budget: as in `patch`.
        checkpoint: as in `patch`.
        recompute: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset as `patch` gives it, over ``metric, layer, head`` of the senders (of MLPs without
        ``head``, of a list over ``metric`` alone) and, as asked for, ``position, prompt, draw``. A
        sender that reaches no receiver has an effect of exactly 0. Where one receiver feeds
        another, the later one answers to the earlier one, too; Wang et al.'s code keeps receivers
        apart.

    Raises:
        PatchlibError: for senders and receivers that there are not, for an architecture that the
            fast engine does not know, and as `patch` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.path_patch(model, pairs, "head", "q4.1", corruption=pl.STR("S2"),
        ...                    metrics="logit_diff", progress=False)
        >>> dict(fx.effect.sizes), bool((fx.effect.sel(layer=slice(4, None)) == 0).all())
        ({'metric': 1, 'layer': 8, 'head': 8}, True)
    """
    if mlps not in ("recompute", "freeze"):
        raise PatchlibError(f"mlps={mlps!r}: allowed are 'recompute' and 'freeze'")
    _require_sense(model, pairs, corruption)
    positions = _one_or_list(positions)
    readers, names = _receivers(model, receivers)
    what = {"method": "path patching"}
    if isinstance(senders, str) and senders in ("head", "mlp"):
        frame = frames.of_component(model, pairs, senders, None, None, 1, None, positions)
        what["component"] = senders
    else:
        parts = _senders(model, senders)
        frame = frames.of_parts(model, pairs, parts, positions)
        what["parts"] = ", ".join(map(str, parts))
    what |= {"receivers": ", ".join(names), "mlps": mlps}
    paths = _Paths(model, pairs, corruption, readers, mlps == "recompute")
    return _patch(
        model,
        pairs,
        frame,
        corruption,
        metrics,
        what,
        positions,
        direction,
        None,
        keep_prompts,
        keep_draws,
        paths.sweep,
        Limits.of(model, "auto", memory_budget),
        checkpoint,
        progress,
        stored=not recompute,
    )


def direct_effect(
    model: TransformerBridge,
    pairs: PromptPairs,
    senders: str | Iterable[object] = "head",
    *,
    corruption: Corruption,
    direction: str = "denoise",
    metrics: Metrics = ("logit_diff", "prob", "kl"),
    keep_prompts: bool = False,
    keep_draws: bool = False,
    memory_budget: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    recompute: bool = False,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """What senders write straight into the logits, past all other components.

    All other heads and all MLPs are frozen, and the final norm is computed anew with the change.
    This takes the two unpatched runs and no other; it is `path_patch` to ``"logits"`` with MLPs
    frozen.

    Args:
        model: as in `path_patch`.
        pairs: as in `path_patch`.
        senders: as in `path_patch`.
        corruption: as in `patch`.
        direction: as in `patch`.
        metrics: as in `patch`.
        keep_prompts: as in `patch`.
        keep_draws: as in `patch`.
        memory_budget: as in `patch`.
        checkpoint: as in `patch`.
        recompute: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset as `path_patch` gives it.

    Raises:
        PatchlibError: as `path_patch` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> options = {"corruption": pl.STR("S2"), "metrics": "logit_diff", "progress": False}
        >>> direct = pl.direct_effect(model, pairs, "mlp", **options).effect
        >>> total = pl.patch(model, pairs, "mlp", **options).effect
        >>> bool(abs(direct - total).isel(layer=-1) < 1e-4)  # Nothing reads the last MLP but these.
        True
    """
    return path_patch(
        model,
        pairs,
        senders,
        "logits",
        corruption=corruption,
        mlps="freeze",
        direction=direction,
        metrics=metrics,
        keep_prompts=keep_prompts,
        keep_draws=keep_draws,
        memory_budget=memory_budget,
        checkpoint=checkpoint,
        recompute=recompute,
        progress=progress,
    )


def _senders(model: TransformerBridge, given: object) -> tuple[Part, ...]:
    parts = parts_of(model, given)  # type: ignore[arg-type]
    for part in parts:
        if part.activation not in ("z", "mlp_out") and part != Part("resid_pre", 0):
            raise PatchlibError(
                f"senders: {part} does not write to the residual stream; heads such as '4.6', MLPs "
                "such as 'mlp3' and the embedding, 'resid0', do"
            )
    return parts


def _receivers(model: TransformerBridge, given: object) -> tuple[tuple[Part, ...], list[str]]:
    """The receivers, an MLP by its output and the logits as layer ``n_layers``; and their names."""
    if isinstance(given, str):
        given = given.replace(",", " ").split()
    names = [str(name) for name in given] if isinstance(given, Iterable) else [str(given)]
    for name in names:
        if not re.fullmatch("[qkv][0-9]+[.][0-9]+|mlp_in[0-9]+|logits", name):
            raise PatchlibError(
                f"receivers: {name!r} is none; allowed are a head's query, key or value, such as "
                "'q9.9', an MLP's input, such as 'mlp_in5', and 'logits'"
            )
    if not names:
        raise PatchlibError("receivers: give at least one, such as 'q9.9', 'mlp_in5' or 'logits'")
    inside = [name.replace("mlp_in", "mlp") for name in names if name != "logits"]
    readers = parts_of(model, inside) if inside else ()
    if "logits" in names:
        readers = (*readers, Part("logits", int(model.cfg.n_layers)))
    return readers, names


@dataclass(frozen=True)
class _Unchanged:
    """What is known of some prompts before anything is patched.

    Args:
        start: the first position that can change; all but ``before`` begins there.
        differences: by their names, how much the senders differ between the runs.
        streams: by their names, the destination run's residual streams.
        before: by layer from the first receiver's on, the keys and values of earlier positions.
        masks: where senders are patched, as `_Paths._sent` gives it.
        logits: the destination run's.
        tokens: the tokens whose logits are read; None for all.
        written: by layer, what the MLP writes, once that was asked for.
    """

    start: int
    differences: dict[str, Float[Tensor, "prompt position *rest"]]
    streams: dict[str, Float[Tensor, "prompt position d_model"]]
    before: list[tuple[Tensor, Tensor]]
    masks: dict[int, Bool[Tensor, "prompt position"]]
    logits: Float[Tensor, "prompt token"]
    tokens: Int[Tensor, " token"] | None
    written: dict[int, Float[Tensor, "prompt position d_model"]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Paths:
    """Paths to some receivers.

    Args:
        model: the model.
        pairs: the prompts.
        corruption: the corruption.
        receivers: queries, keys and values by name, MLPs by their output.
        recompute: whether MLPs on the way answer to the sender.
    """

    model: TransformerBridge
    pairs: PromptPairs
    corruption: Corruption
    receivers: tuple[Part, ...]
    recompute: bool

    @cached_property
    def network(self) -> Network:
        """The model by layers, once it is known to be one that can be run so."""
        otherwise = "paths cannot be patched in this model"
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
        """An engine, as `patchlib.patching.hook_engine.sweep`; the cells are the senders."""
        tokens, r, r_wrong = _read_by(metrics, pairs.answers, pairs.wrong_answers, self.network)
        senders, last = names_of(cells), self.receivers[-1].layer
        streams = {*self._reads, self._stream(self.receivers[0].layer)}
        if self.recompute:
            streams |= {self._read_by(Part("mlp_out", layer)) for layer in range(last)}
        # Also what MLPs write, and the keys and values of positions that do not change.
        kept = 2 * (len(senders) + 2 * len(streams) + 2 * len(self.network.blocks))
        kept *= model.cfg.n_heads * model.cfg.d_head
        for index, some in batches(model, pairs, limits.memory, kept):
            prompts, answers = range(index[0], index[-1] + 1), (r[index], r_wrong[index])
            runs = [run.rows(slice(index[0], index[-1] + 1)) for run in (source, destination)]
            there, theirs = run_with_edits(model, runs[0], keep=senders)
            here, mine = run_with_edits(model, runs[1], keep=[*streams.union(senders)])
            if tokens is not None:
                there, here = there[:, tokens], here[:, tokens]
            unpatched = measure(metrics, torch.stack((there, here)), *answers, there, some.texts)
            masks, start = self._sent(cells, prompts, runs[0].differs_from(runs[1]))
            unchanged = _Unchanged(
                start,
                {name: (theirs[name] - mine[name])[:, start:] for name in senders},
                {name: mine[name][:, start:] for name in streams},
                self._before(mine[self._stream(self.receivers[0].layer)][:, :start]),
                masks,
                here,
                tokens,
            )
            del theirs, mine
            length = len(some.prompts[0].clean)
            together = limits.memory // row_bytes(model, length, kept) // len(some)
            if self.network.device.type == "cpu":
                together = min(together, _TOKENS_PER_PASS_ON_CPU // (length - start) // len(some))
            for numbers in _split([*range(len(cells))], max(1, together)):
                chosen = [cells[number] for number in numbers]
                logits = self._logits(self._changes(chosen, unchanged), unchanged)
                patched = measure(metrics, logits, *answers, there, some.texts)
                measured = torch.tensor([[cell.measures(i) for i in prompts] for cell in chosen])
                patched = patched.masked_fill(~measured, torch.nan)
                yield Piece(numbers, index, patched, unpatched.transpose(0, 1))

    def _stream(self, layer: int) -> str:
        """The residual stream before a layer, or after the last one."""
        last = len(self.network.blocks) - 1
        return (
            get_act_name("resid_post", last) if layer > last else get_act_name("resid_pre", layer)
        )

    def _read_by(self, receiver: Part) -> str:
        """The residual stream that a receiver reads."""
        if receiver.activation == "mlp_out" and not self.network.parallel:
            return get_act_name("resid_mid", receiver.layer)
        return self._stream(receiver.layer)

    @cached_property
    def _reads(self) -> set[str]:
        return {*map(self._read_by, self.receivers)}

    def _sent(
        self, cells: Sequence[Cell], prompts: range, differ: Bool[Tensor, "prompt position"]
    ) -> tuple[dict[int, Tensor], int]:
        """Where senders may differ between the runs, and the first position that this changes.

        Args:
            cells: the senders.
            prompts: their prompts' numbers.
            differ: where the runs' inputs differ.

        Returns:
            By the identity of the cells' positions, over prompts and positions from the first on.
        """
        differ = differ.cumsum(1) > 0
        places = {id(cell.where): cell.where for cell in cells}
        masks = {key: differ & _mask(at, prompts, differ.shape[1]) for key, at in places.items()}
        sent = torch.cat([*masks.values()]).any(0)
        start = int(sent.int().argmax())
        # MLPs and the final norm do not move anything from one position to another.
        if self.receivers[0].activation == "logits" or not sent.any():
            start = differ.shape[1] - 1
        return {key: mask[:, start:].to(self.network.device) for key, mask in masks.items()}, start

    @torch.no_grad()
    def _before(self, x: Float[Tensor, "prompt position d_model"]) -> list[tuple[Tensor, Tensor]]:
        """The keys and values of positions that do not change, from the first receiver's layer on.

        Args:
            x: these positions' residual stream there.
        """
        found, length = [], x.shape[1]
        rotate, mask = self.network.rotation(0, length), _causal(0, length, length, x.device)
        for block in self.network.blocks[self.receivers[0].layer :] if length else ():
            q, k, v = block.project(x, slice(None), rotate, rotate)
            found.append((k, v))
            middle = x + block.write(block.attend(q, k, v, mask))
            x = middle + block.mlp(x if self.network.parallel else middle)
        return found

    @torch.no_grad()
    def _changes(self, cells: Sequence[Cell], here: _Unchanged) -> Changes:
        """What the senders change in the streams that receivers read, all other heads being fixed.

        Args:
            cells: the senders.
            here: the prompts.
        """
        like, last, found = next(iter(here.streams.values())), self.receivers[-1].layer, Changes()
        change = like.new_zeros(len(cells), *like.shape)

        def send(activation: str, layer: int) -> list[int]:
            """Adds what is sent here; returns which cells send it."""
            sent = []
            for row, cell in enumerate(cells):
                for part in cell.parts:
                    if part[:2] == (activation, layer):
                        change[row] += self._written(part, here, here.masks[id(cell.where)])
                        sent.append(row)
            return sent

        def reaches(name: str) -> None:
            """Keeps the change where it is read now."""
            if name in self._reads:
                found[name] = change.clone()

        for layer, block in enumerate(self.network.blocks[: last + 1]):
            send("resid_pre", layer)
            reaches(self._stream(layer))
            read = change.clone() if self.network.parallel else change
            send("z", layer)
            name = self._read_by(Part("mlp_out", layer))
            if not self.network.parallel:
                reaches(name)
            sent = send("mlp_out", layer)
            if self.recompute and layer < last:
                # A row without change stays exactly as it is, and a sender is given.
                answers = read.flatten(1).any(1)
                answers[sent] = False
                x = here.streams[name]
                if layer not in here.written:
                    here.written[layer] = block.mlp(x)
                change[answers] += block.mlp(x + read[answers]) - here.written[layer]
        reaches(self._stream(len(self.network.blocks)))
        return found

    def _written(
        self, part: Part, here: _Unchanged, mask: Bool[Tensor, "prompt position"]
    ) -> Float[Tensor, "prompt position d_model"]:
        """What a sender writes into the residual stream."""
        difference = here.differences[name_of(part)]
        if part.activation != "z":
            return difference * mask[..., None]
        heads = slice(None) if part.unit is None else slice(part.unit, part.unit + 1)
        sent = difference[:, :, heads] * mask[..., None, None]
        return torch.einsum("pthd,hdm->ptm", sent, self.network.blocks[part.layer].W_O[heads])

    @torch.no_grad()
    def _logits(self, changes: Changes, here: _Unchanged) -> Float[Tensor, "cell prompt token"]:
        """The patched runs, from the first receiver's layer on.

        Args:
            changes: what reaches the receivers.
            here: the prompts; their logits stay where nothing arrives.
        """
        arrives = torch.stack([each.flatten(1).any(1) for each in changes.values()]).any(0)
        changes = {name: each[arrives].flatten(0, 1) for name, each in changes.items()}
        network, first, rows = self.network, self.receivers[0].layer, int(arrives.sum())
        x = here.streams[self._stream(first)].repeat(rows, 1, 1)
        start, length, queries = here.start, here.start + x.shape[1], slice(None)
        mask = _causal(start, length, length, x.device)
        rotate = turn = network.rotation(start, length)
        for layer, block in enumerate(network.blocks[first:] if rows else (), first):
            if layer == len(network.blocks) - 1:
                # Of the last layer only the last position is read.
                queries, mask = slice(-1, None), None
                turn = network.rotation(length - 1, length)
            receivers = [part for part in self.receivers if part.layer == layer]
            reads = [part for part in receivers if part.activation != "mlp_out"]
            qkv = block.project(x, queries, turn, rotate)
            if reads:
                seen = x + changes[self._stream(layer)]
                anew = block.project(seen, queries, turn, rotate)
                for part in reads:
                    number = "qkv".index(part.activation)
                    part.of(qkv[number])[:] = part.of(anew[number])
            q, k, v = qkv
            if start:
                before = (each.repeat(rows, 1, 1, 1) for each in here.before[layer - first])
                k, v = (torch.cat(each, dim=1) for each in zip(before, (k, v), strict=True))
            x = x[:, queries]
            middle = x + block.write(block.attend(q, k, v, mask))
            read = x if network.parallel else middle
            if len(reads) < len(receivers):
                read = read + changes[self._read_by(Part("mlp_out", layer))][:, queries]
            x = middle + block.mlp(read)
        end = x[:, -1]
        if self.receivers[-1].activation == "logits":
            end = end + changes[self._stream(len(network.blocks))][:, -1]
        patched = network.unembed(end, here.tokens)
        logits = here.logits.to(patched.dtype).repeat(len(arrives), 1, 1)
        logits[arrives] = patched.unflatten(0, (-1, len(here.logits)))
        return logits

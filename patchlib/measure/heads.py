"""What a head does: where it attends, and whether it copies names (Section 3.2).

A head is a query head, also where several share keys and values (grouped-query attention).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError, names_in, whole
from patchlib.heads import Heads
from patchlib.models.loading import describe
from patchlib.patching.cells import Cell, parts_of
from patchlib.patching.hook_engine import names_of, restore
from patchlib.patching.metrics import require_finite
from patchlib.patching.runs import (
    Edit,
    Run,
    batches,
    require_corruption,
    require_prompts,
    run_with_edits,
    two_runs,
)
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs, places_of


def attention_patterns(
    model: TransformerBridge,
    pairs: PromptPairs,
    heads: Iterable[object] | str,
    corruption: Corruption | None = None,
    restored: Iterable[object] | str = (),
    activation: str = "v",
    memory_budget: float | None = None,
) -> Float[Tensor, "head prompt query key"]:
    """The attention patterns of some heads, in the clean, the corrupted or a patched run.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of one length.
        heads: whose attention, as ``"4.6"`` or (layer, head).
        corruption: `STR`, `GN` or one of your own; the clean run where None. Over several draws
            of noise the mean.
        restored: heads whose ``activation`` is restored from the clean run, at all positions.
        activation: what is restored: ``"z"``, ``"q"``, ``"k"`` or ``"v"``. Keys and values are
            those that the heads read: where a group of heads shares them, they are restored for
            the whole group.
        memory_budget: how many bytes a run may take beside the model and the result, as in
            `patchlib.patch`.

    Raises:
        PatchlibError: for heads that do not exist, prompts of several lengths, heads to restore
            without a corruption, and a memory budget that is too small for one prompt.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> pattern = pl.attention_patterns(model, pairs, ["3.1"], pl.STR("S2"))
        >>> bool((pattern.sum(-1) - 1).abs().max() < 1e-4)
        True
    """
    require_prompts(model, pairs)
    heads, restored = _heads(model, heads), Heads(restored)
    if corruption is not None:
        require_corruption(model, pairs, corruption)
    elif restored:
        raise PatchlibError("restoring heads needs a corrupted run: give a corruption")
    cells = [Cell(parts_of(model, map(str, restored), activation))] if restored else []
    names = list(dict.fromkeys(get_act_name("pattern", head.layer) for head in heads))
    length = pairs.clean_tokens.shape[1]
    draws = 1 if corruption is None else corruption.draws
    total = torch.zeros(len(heads), len(pairs), length, length)
    kept = len(names) * model.cfg.n_heads * length + len(names_of(cells)) * model.cfg.d_model
    for rows, some in batches(model, pairs, memory_budget, kept):
        for draw in range(draws):
            run, edits = Run(some.clean_tokens), list[Edit]()
            if corruption is not None:
                clean, run = two_runs(model, some, corruption, draw)
                if cells:
                    _, there = run_with_edits(model, clean, keep=names_of(cells))
                    edits = restore(cells, there, range(len(some)))
            logits, here = run_with_edits(model, run, edits, keep=names)
            require_finite(logits, some.texts)
            del logits  # Which take more than all else.
            for number, (layer, head) in enumerate(heads):
                total[number, rows] += here[get_act_name("pattern", layer)][:, head].float().cpu()
    return total / draws


def attention_to(
    patterns: Float[Tensor | np.ndarray, "head prompt query key"],
    pairs: PromptPairs,
    names: str | Sequence[str] = ("IO", "S1", "S2"),
) -> xr.DataArray:
    """How much the last token attends to named positions, and to all others.

    Args:
        patterns: attention patterns, as `attention_patterns` gives them, or as an array of numpy.
        pairs: the prompts they belong to.
        names: named positions.

    Returns:
        Attention probabilities over the dimensions ``head, prompt, to``; ``to`` holds the names
        and ``"others"``, and sums to 1 (Figure 3). NaN where a prompt has no such position. The
        attributes describe the prompts.

    Raises:
        PatchlibError: for a position that the task or every prompt lacks, for names that share a
            token, for patterns of other prompts, and for what are no patterns or no prompts.
    """
    if not isinstance(patterns, Tensor | np.ndarray) or not isinstance(pairs, PromptPairs):
        raise PatchlibError(
            f"a {type(patterns).__name__} and a {type(pairs).__name__} were given as patterns and "
            "prompts: give what pl.attention_patterns returns, and the PromptPairs it was given"
        )
    patterns, names = torch.as_tensor(patterns), names_in("names", names)
    length = pairs.clean_tokens.shape[1]
    if patterns.shape[1:] != (len(pairs), length, length):
        raise PatchlibError(
            f"patterns of shape {tuple(patterns.shape)} for {len(pairs)} prompts of {length} "
            "tokens: give those that pl.attention_patterns gave for these prompts"
        )
    last = patterns[:, :, -1]
    places = {name: places_of(pairs, name) for name in names}
    for row, together in enumerate(zip(*places.values(), strict=True)):
        if len(set().union(*together)) < sum(map(len, together)):
            raise PatchlibError(
                f"names={names} share a token in {pairs.texts[row]!r}: the rest would be "
                "counted wrong; give names of different tokens"
            )
    sums = [
        torch.stack([last[:, row, list(at)].sum(-1) for row, at in enumerate(rows)], 1)
        for rows in places.values()
    ]
    others = last.sum(-1) - sum(sums)
    columns = [
        total.masked_fill(torch.tensor([not at for at in rows]), torch.nan)
        for total, rows in zip(sums, places.values(), strict=True)
    ]
    return xr.DataArray(
        torch.stack([*columns, others], dim=-1).numpy(),
        dims=("head", "prompt", "to"),
        coords={"to": [*names, "others"]},
        attrs=pairs.describe(),
    )


def copying_score(
    model: TransformerBridge,
    pairs: PromptPairs,
    heads: Iterable[object] | str,
    at: str | Sequence[str] = ("IO", "S1"),
    top: int = 5,
    memory_budget: float | None = None,
) -> xr.Dataset:
    """How often a head, attending to a name, would raise (or lower) that name's own logit most.

    As Wang et al. measure it: the residual stream after the first layer at a name's position,
    through the layer norm, values and output of the head, the final layer norm and the
    unembedding. The score is the share of names that are then among the ``top`` tokens; the
    negative score, with the sign of the head's output flipped, finds heads that suppress what
    they attend to.

    Args:
        model: the model.
        pairs: the prompts whose names are used.
        heads: the heads as ``"4.6"`` or (layer, head). Where heads share values, each uses those
            of its group.
        at: the positions of the names.
        top: how many tokens count as highest.
        memory_budget: as in `patchlib.patch`.

    Returns:
        The variables ``copies`` and ``suppresses``, shares between 0 and 1, over ``head`` (as
        ``"layer.head"``). The attributes hold every setting.

    Raises:
        PatchlibError: for heads or positions that do not exist, a ``top`` that is no number of
            tokens, and a memory budget that is too small for one prompt.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> scores = pl.copying_score(model, pl.tasks.ioi(model, n=4), ["5.0"])
        >>> 0 <= float(scores.copies[0]) <= 1
        True
    """
    require_prompts(model, pairs)
    heads, at = _heads(model, heads), names_in("at", at)
    top = whole("top", top, 1, model.cfg.d_vocab)
    name = get_act_name("resid_post", 0)
    hits: list[Float[Tensor, "head sign name"]] = []
    for _, some in batches(model, pairs, memory_budget, kept=model.cfg.d_model):
        # One entry for each name of each prompt.
        names = [(row, i) for each in at for row, place in enumerate(some.at(each)) for i in place]
        if names:
            rows, places = map(list, zip(*names, strict=True))
            logits, kept = run_with_edits(model, Run(some.clean_tokens), keep=[name])
            require_finite(logits, some.texts)
            del logits  # Which take more than all else.
            token = some.clean_tokens[rows, places].to(kept[name].device)
            hits.append(_raised(model, kept[name][rows, places], token, heads, top))
    if not hits:
        raise PatchlibError(f"at={at}: no prompt has a token there; give positions of names")
    copies, suppresses = torch.cat(hits, dim=2).float().mean(2).T.tolist()
    return xr.Dataset(
        {"copies": ("head", copies), "suppresses": ("head", suppresses)},
        coords={"head": list(map(str, heads))},
        attrs=describe(model) | pairs.describe() | {"at": ", ".join(at), "top": top},
    )


def _raised(
    model: TransformerBridge,
    state: Float[Tensor, "name d_model"],
    token: Float[Tensor, " name"],
    heads: Heads,
    top: int,
) -> Float[Tensor, "head sign name"]:
    """Which tokens are among the highest after a head, and after its opposite, wrote about them."""
    found = torch.zeros(len(heads), 2, len(token), dtype=torch.bool)
    with torch.no_grad():
        for number, (layer, head) in enumerate(heads):
            # Under grouped-query attention several heads share one value matrix.
            value = head * model.W_V.shape[1] // model.cfg.n_heads
            normalised = model.blocks[layer].ln1(state[:, None])[:, 0]
            values = normalised @ model.W_V[layer, value]
            bias = getattr(model.blocks[layer].attn, "b_V", None)
            if bias is not None:
                values = values + bias[value]
            written = values @ model.W_O[layer, head]
            for which, sign in enumerate((1, -1)):
                logits = model.unembed(model.ln_final(sign * written[:, None]))[:, 0]
                highest = logits.topk(top, dim=-1).indices
                found[number, which] = (highest == token[:, None]).any(-1).cpu()
    return found


def _heads(model: TransformerBridge, given: Iterable[object] | str) -> Heads:
    """The heads asked for; refuses those that the model does not have, and none at all."""
    heads = Heads(given)
    if not heads:
        raise PatchlibError("no heads were given: give at least one, such as '4.6'")
    parts_of(model, map(str, heads))
    return heads

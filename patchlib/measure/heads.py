"""What a head does: where it attends, and whether it copies names (Section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs
from patchlib.sweep.cells import heads_cell
from patchlib.sweep.hook_engine import restore
from patchlib.sweep.runs import Edit, Run, run_with_edits, two_runs

Heads = Sequence[tuple[int, int]]


def attention_patterns(
    model: TransformerBridge,
    pairs: PromptPairs,
    heads: Heads,
    corruption: Corruption | None = None,
    restored: Heads = (),
    activation: str = "v",
) -> Float[Tensor, "head prompt query key"]:
    """The attention patterns of some heads, in the clean, the corrupted or a patched run.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of one length.
        heads: whose attention, as (layer, head).
        corruption: `STR` or `GN`; the clean run where None. Over several draws of noise the mean.
        restored: heads whose ``activation`` is restored from the clean run, at all positions.
        activation: what is restored: ``"z"``, ``"q"``, ``"k"`` or ``"v"``.

    Raises:
        PatchlibError: for heads that do not exist, prompts of several lengths, or heads to restore
            without a corruption.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> pattern = pl.attention_patterns(model, pairs, [(3, 1)], pl.STR("S2"))
        >>> bool((pattern.sum(-1) - 1).abs().max() < 1e-4)
        True
    """
    heads_cell(model, heads, "z")
    names = list(dict.fromkeys(get_act_name("pattern", layer) for layer, _ in heads))
    runs: list[tuple[Run, Sequence[Edit]]] = []
    if corruption is None:
        if restored:
            raise PatchlibError("restoring heads needs a corrupted run: give a corruption")
        runs.append((Run(pairs.clean_tokens), []))
    else:
        for draw in range(corruption.draws):
            clean, corrupted = two_runs(model, pairs, corruption, draw)
            edits: Sequence[Edit] = []
            if restored:
                cell = heads_cell(model, restored, activation)
                edits = restore(model, clean, [cell], range(len(pairs)))
            runs.append((corrupted, edits))
    total = torch.zeros(())
    for run, edits in runs:
        _, kept = run_with_edits(model, run, edits, keep=names)
        patterns = [kept[get_act_name("pattern", layer)][:, head] for layer, head in heads]
        total = total + torch.stack(patterns).float().cpu()
    return total / len(runs)


def attention_to(
    patterns: Float[Tensor, "head prompt query key"],
    pairs: PromptPairs,
    names: Sequence[str] = ("IO", "S1", "S2"),
) -> xr.DataArray:
    """How much the last token attends to named positions, and to all others.

    Args:
        patterns: attention patterns, as `attention_patterns` gives them.
        pairs: the prompts they belong to.
        names: named positions.

    Returns:
        Attention probabilities over the dimensions ``head, prompt, to``; ``to`` holds the names
        and ``"others"``, and sums to 1 (Figure 3). NaN where a prompt has no such position.

    Raises:
        PatchlibError: for a position that the task does not have, and for names that share a
            token.
    """
    last = patterns[:, :, -1]
    places = {name: pairs.at(name) for name in names}
    for row, together in enumerate(zip(*places.values(), strict=True)):
        if len(set().union(*together)) < sum(map(len, together)):
            raise PatchlibError(
                f"names={list(names)} share a token in {pairs.texts[row]!r}: the rest would be "
                "counted wrong; give names of different tokens"
            )
    sums = [
        torch.stack([last[:, row, list(at)].sum(-1) for row, at in enumerate(rows)], 1)
        for rows in places.values()
    ]
    others = last.sum(-1) - torch.stack(sums).sum(0)
    columns = [
        total.masked_fill(torch.tensor([not at for at in rows]), torch.nan)
        for total, rows in zip(sums, places.values(), strict=True)
    ]
    values = torch.stack([*columns, others], dim=-1).numpy()
    return xr.DataArray(values, dims=("head", "prompt", "to"), coords={"to": [*names, "others"]})


def copying_score(
    model: TransformerBridge,
    pairs: PromptPairs,
    heads: Heads,
    at: Sequence[str] = ("IO", "S1"),
    top: int = 5,
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
        heads: the heads as (layer, head).
        at: the positions of the names.
        top: how many tokens count as highest.

    Returns:
        The variables ``copies`` and ``suppresses``, shares between 0 and 1, over ``head`` (as
        ``"layer.head"``).

    Raises:
        PatchlibError: for heads or positions that do not exist.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> scores = pl.copying_score(model, pl.tasks.ioi(model, n=4), [(5, 0)])
        >>> 0 <= float(scores.copies[0]) <= 1
        True
    """
    heads_cell(model, heads, "z")
    name = get_act_name("resid_post", 0)
    states, tokens = [], []
    for _, group in pairs.by_length():
        _, kept = run_with_edits(model, Run(group.clean_tokens), keep=[name])
        for position in at:
            for row, places in enumerate(group.at(position)):
                for place in places:
                    states.append(kept[name][row, place])
                    tokens.append(group.clean_tokens[row, place])
    state, token = torch.stack(states), torch.stack(tokens).to(states[0].device)
    copies: list[float] = []
    suppresses: list[float] = []
    with torch.no_grad():
        for layer, head in heads:
            # Under grouped-query attention several heads share one value matrix.
            value = head * model.W_V.shape[1] // model.cfg.n_heads
            normalised = model.blocks[layer].ln1(state[:, None])[:, 0]
            values = normalised @ model.W_V[layer, value]
            bias = getattr(model.blocks[layer].attn, "b_V", None)
            if bias is not None:
                values = values + bias[value]
            written = values @ model.W_O[layer, head]
            for sign, shares in ((1, copies), (-1, suppresses)):
                logits = model.unembed(model.ln_final(sign * written[:, None]))[:, 0]
                highest = logits.topk(top, dim=-1).indices
                shares.append((highest == token[:, None]).any(-1).float().mean().item())
    labels = [f"{layer}.{head}" for layer, head in heads]
    return xr.Dataset(
        {"copies": ("head", copies), "suppresses": ("head", suppresses)}, coords={"head": labels}
    )

"""What is put in place of activations where not those of the other run: zeros, means, prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.patching.runs import Run, batches, run_with_edits
from patchlib.prompts.pairs import PromptPairs


@dataclass(frozen=True)
class Zero:
    """Zeros in place of activations."""

    def describe(self) -> dict[str, str]:
        """The source, as results keep it."""
        return {"source": "zeros"}


@dataclass(frozen=True)
class Mean:
    """At each position the mean over the clean runs of some prompts.

    Positions are numbers of tokens, and the mean is over prompts of the patched one's length.

    Args:
        reference: the prompts; those that are patched where None.
    """

    reference: PromptPairs | None = None

    def describe(self) -> dict[str, str]:
        """The source, as results keep it."""
        if self.reference is None:
            return {"source": "mean over the prompts"}
        return {"source": f"mean over {_described(self.reference)}"}


Source = Zero | Mean | PromptPairs
"""Prompts stand for their own clean run, the first for the first prompt that is patched."""

Taken = Run | Mapping[str, Tensor]
"""A run on as many prompts, or activations by their full name for all prompts alike."""


def describe(source: Source | None, direction: str) -> dict[str, str]:
    """Where activations come from, as results keep it.

    Raises:
        PatchlibError: for anything that is no source.
    """
    if source is None:
        return {"source": "clean run" if direction == "denoise" else "corrupted run"}
    if isinstance(source, PromptPairs):
        return {"source": f"clean run of {_described(source)}"}
    if isinstance(source, Zero) or (
        isinstance(source, Mean) and isinstance(source.reference, PromptPairs | None)
    ):
        return source.describe()
    raise PatchlibError(
        f"source={source!r}: give pl.Zero(), pl.Mean(), pl.Mean(pairs) or prompts (PromptPairs), "
        "or leave it out for the other run"
    )


def require_fit(source: Source | None, pairs: PromptPairs, positions: object) -> None:
    """Refuses prompts as source that do not stand token by token beside those that are patched.

    Args:
        source: where activations come from.
        pairs: the prompts that are patched.
        positions: as in `patchlib.patch`.

    Raises:
        PatchlibError: for another number of prompts, other lengths, and where a named position has
            other tokens in them.
    """
    if not isinstance(source, PromptPairs):
        return
    if len(source) != len(pairs):
        raise PatchlibError(
            f"source= holds {len(source)} prompts for {len(pairs)}: give one for each"
        )
    for mine, theirs in zip(pairs.prompts, source.prompts, strict=True):
        if len(mine.clean) != len(theirs.clean):
            raise PatchlibError(
                f"source= holds {theirs.text!r} of {len(theirs.clean)} tokens for {mine.text!r} of "
                f"{len(mine.clean)}: give each prompt one of its own length"
            )
    for name in map(str, positions if isinstance(positions, list) else [positions]):
        known = {*source.prompts[0].positions} >= {*name.split("+")}
        if known and source.at(name) != pairs.at(name):
            raise PatchlibError(
                f"positions={name!r} has other tokens in source= than in the prompts that are "
                "patched, so that another word's activations would be taken: give prompts of one "
                "form, or positions as numbers"
            )


def _described(pairs: PromptPairs) -> str:
    return f"{len(pairs)} prompts of {pairs.task}, {pairs.fingerprint}"


def taken(
    model: TransformerBridge,
    pairs: PromptPairs,
    numbers: Sequence[int],
    source: Source,
    names: Sequence[str],
    memory_budget: float,
) -> Taken:
    """What some prompts of one length take their activations from.

    Args:
        model: the model.
        pairs: all prompts of the sweep.
        numbers: which of them are patched now; all of one length.
        source: where activations come from.
        names: full names of the activations.
        memory_budget: how many bytes the runs may take.

    Raises:
        PatchlibError: for a mean over prompts none of which has their length.
    """
    if isinstance(source, PromptPairs):
        return Run(source[numbers].clean_tokens)
    length = len(pairs.prompts[numbers[0]].clean)
    reference = pairs if isinstance(source, Zero) or source.reference is None else source.reference
    alike = [i for i, prompt in enumerate(reference.prompts) if len(prompt.clean) == length]
    if not alike:
        raise PatchlibError(
            f"the reference of source= has no prompt of {length} tokens, and a mean is taken at "
            "each position: give a reference with prompts of every length"
        )
    if isinstance(source, Zero):
        alike = alike[:1]
    sums: dict[str, Tensor] = {}
    cfg = model.cfg
    widest = max(cfg.d_model, int(cfg.d_mlp or 0), cfg.n_heads * max(cfg.d_head, length))
    kept = len(names) * widest
    for _, some in batches(model, reference[alike], memory_budget, kept):
        _, found = run_with_edits(model, Run(some.clean_tokens), keep=names)
        for name, values in found.items():
            # In double precision: half precision has no room for a sum over many prompts.
            total = values.sum(0, keepdim=True, dtype=torch.float64)
            sums[name] = sums[name] + total if name in sums else total
    if isinstance(source, Zero):
        return {name: torch.zeros_like(total, dtype=cfg.dtype) for name, total in sums.items()}
    return {name: (total / len(alike)).to(cfg.dtype) for name, total in sums.items()}

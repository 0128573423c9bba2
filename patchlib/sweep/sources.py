"""What is put in place of activations where not those of the other run: zeros, means, prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.prompts.pairs import PromptPairs
from patchlib.sweep.runs import Run, batches, run_with_edits


@dataclass(frozen=True)
class Zero:
    """Zeros in place of activations."""

    def describe(self) -> dict[str, str]:
        """The source, as results keep it."""
        return {"source": "zeros"}


@dataclass(frozen=True)
class Mean:
    """At each position the mean over the clean runs of some prompts.

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
    if isinstance(source, Zero | Mean):
        return source.describe()
    raise PatchlibError(
        f"source={source!r}: give pl.Zero(), pl.Mean(), pl.Mean(pairs) or prompts (PromptPairs), "
        "or leave it out for the other run"
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
        PatchlibError: for a source with another number of prompts, or none of their length.
    """
    length = len(pairs.prompts[numbers[0]].clean)
    if isinstance(source, PromptPairs):
        if len(source) != len(pairs):
            raise PatchlibError(
                f"source= holds {len(source)} prompts for {len(pairs)}: give one for each"
            )
        theirs = source[numbers]
        if any(len(prompt.clean) != length for prompt in theirs.prompts):
            raise PatchlibError(
                f"source= holds prompts that differ in length from the prompt of {length} tokens "
                "that they are for: give each one of its own length"
            )
        return Run(theirs.clean_tokens)
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
    kept = len(names) * model.cfg.d_model
    for _, some in batches(model, reference[alike], memory_budget, kept):
        _, found = run_with_edits(model, Run(some.clean_tokens), keep=names)
        for name, values in found.items():
            sums[name] = sums.get(name, 0) + values.sum(0, keepdim=True)
    if isinstance(source, Zero):
        return {name: torch.zeros_like(total) for name, total in sums.items()}
    return {name: total / len(alike) for name, total in sums.items()}

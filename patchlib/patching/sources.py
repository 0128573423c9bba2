"""What is put in place of activations where not those of the other run: zeros, means, prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

from patchlib.errors import PatchlibError, whole
from patchlib.patching.runs import Run, batches, require_prompts, run_with_edits
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs
from patchlib.prompts.tokenizing import TokenizedPrompt


@dataclass(frozen=True)
class Zero:
    """Zeros in place of activations."""

    def describe(self, pairs: PromptPairs) -> dict[str, str]:
        """The source, as results keep it, where some prompts are patched."""
        return {"source": "zeros"}


@dataclass(frozen=True)
class Mean:
    """At each position the mean over runs of some prompts.

    Positions are numbers of tokens, and the mean is over prompts of the patched one's length.

    Args:
        reference: the prompts; those that are patched where None.
        by: ``"position"``, over all of them; ``"roles"``, only over those whose named positions
            stand where the patched prompt's do. Wang et al. (2023) take means within a template,
            since at one position of several templates there are words of several roles.
        site: where tokens are replaced in these prompts, as in `STR`; their clean runs where None.
            Wang et al. take means over p_ABC: ``site="ABC"``.

    Raises:
        PatchlibError: for another ``by``.
    """

    reference: PromptPairs | None = None
    by: str = "position"
    site: str | None = None

    def __post_init__(self) -> None:
        _require_by(self.by)

    def describe(self, pairs: PromptPairs) -> dict[str, str]:
        """The source, as results keep it, where some prompts are patched."""
        how = f" with tokens replaced at {self.site}" if self.site is not None else ""
        how += ", by roles" if self.by == "roles" else ""
        return _described("mean over {}" + how, pairs if self.reference is None else self.reference)


@dataclass(frozen=True)
class Resample:
    """The clean run of another prompt, drawn anew for each prompt and draw.

    A prompt's draws are different prompts of its own length with other tokens, and depend on its
    tokens, the seed and the pool alone.

    Args:
        pool: what is drawn from; the prompts that are patched where None.
        draws: how many prompts are drawn for each; McGrath et al. (2023) take 15.
        seed: seeds the drawing.
        by: ``"position"``, from all of them; ``"roles"``, as in `Mean`.

    Raises:
        PatchlibError: for draws and seeds that are no whole numbers, and for another ``by``.

    Example:
        >>> import patchlib as pl
        >>> pairs = pl.tasks.ioi(pl.load_model("mini"), n=4)
        >>> sorted(pl.Resample(draws=3).drawn(pairs, 1, draw) for draw in range(3))
        [0, 2, 3]
    """

    pool: PromptPairs | None = None
    draws: int = 1
    seed: int = 0
    by: str = "position"

    def __post_init__(self) -> None:
        object.__setattr__(self, "draws", whole("draws", self.draws, 1))
        object.__setattr__(self, "seed", whole("seed", self.seed, 0))
        _require_by(self.by)

    def drawn(self, pairs: PromptPairs, number: int, draw: int) -> int:
        """The number in the pool of the prompt that is drawn for a prompt.

        Args:
            pairs: all prompts that are patched.
            number: which of them.
            draw: the number of the draw, from 0 to ``draws`` - 1.

        Raises:
            PatchlibError: where the pool has too few for all draws.
        """
        prompt, pool = pairs.prompts[number], self.pool if self.pool is not None else pairs
        alike = _alike(pool, prompt, self.by)
        others = [i for i in alike if pool.prompts[i].clean != prompt.clean]
        if len(others) < self.draws:
            raise PatchlibError(
                f"pl.Resample(draws={self.draws}): for {prompt.text!r} the pool has {len(others)} "
                f"other prompts {_form(prompt, self.by)}: give a larger pool or fewer draws"
            )
        generator = derive_generator(self.seed, "Resample", list(prompt.clean))
        return others[int(torch.randperm(len(others), generator=generator)[draw])]

    def describe(self, pairs: PromptPairs) -> dict[str, str | int]:
        """The source, as results keep it, where some prompts are patched."""
        how = (", by roles" if self.by == "roles" else "") + f" (draws={self.draws}, "
        what = "clean runs drawn from {}" + how + f"seed={self.seed})"
        found = _described(what, pairs if self.pool is None else self.pool)
        return {**found, "source_draws": self.draws}


def _require_by(by: str) -> None:
    if by not in ("position", "roles"):
        raise PatchlibError(f"by={by!r}: allowed are 'position' and 'roles'")


def _alike(reference: PromptPairs, prompt: TokenizedPrompt, by: str) -> list[int]:
    """The numbers of the prompts that stand beside a prompt, token by token or role by role."""
    return [
        number
        for number, other in enumerate(reference.prompts)
        if len(other.clean) == len(prompt.clean)
        and (by == "position" or other.positions == prompt.positions)
    ]


def _form(prompt: TokenizedPrompt, by: str) -> str:
    where = " with its named positions at its places" if by == "roles" else ""
    return f"of {len(prompt.clean)} tokens{where}"


Source = Zero | Mean | Resample | PromptPairs
"""Prompts stand for their own clean run, the first for the first prompt that is patched."""

Taken = Run | Mapping[str, Tensor]
"""A run on as many prompts, or activations by their full name for all prompts alike."""


def describe(source: Source | None, pairs: PromptPairs, direction: str) -> Mapping[str, str | int]:
    """Where activations come from, as results keep it.

    Raises:
        PatchlibError: for anything that is no source.
    """
    if source is None:
        return {"source": "clean run" if direction == "denoise" else "corrupted run"}
    if isinstance(source, PromptPairs):
        return _described("clean run of {}", source)
    prompts = getattr(source, "reference", getattr(source, "pool", None))
    if isinstance(source, Zero | Mean | Resample) and isinstance(prompts, PromptPairs | None):
        return source.describe(pairs)
    raise PatchlibError(
        f"source={source!r}: give pl.Zero(), pl.Mean(), pl.Mean(pairs), pl.Resample(pairs) or "
        "prompts (PromptPairs), or leave it out for the other run"
    )


def draws_of(source: Source | None, corruption: Corruption | None) -> int:
    """How many draws a sweep has: of the noise, of the prompts that are put in, or of both.

    Raises:
        PatchlibError: where there are several of both, and not as many.
    """
    noise = 1 if corruption is None else corruption.draws
    prompts = source.draws if isinstance(source, Resample) else 1
    if 1 not in (noise, prompts) and noise != prompts:
        raise PatchlibError(
            f"pl.Resample(draws={prompts}) with {noise} draws of the noise: give as many, or one "
            "of either"
        )
    return max(noise, prompts)


def require_fit(source: Source | None, pairs: PromptPairs, positions: object) -> None:
    """Refuses prompts as source that do not stand token by token beside those that are patched.

    Args:
        source: where activations come from.
        pairs: the prompts that are patched.
        positions: as in `patchlib.patch`.

    Raises:
        PatchlibError: for another number of prompts, other lengths, and where a named position has
            other tokens in them; for a pool that is too small.
    """
    if isinstance(source, Resample):
        for number in range(len(pairs)):
            source.drawn(pairs, number, 0)
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


def _described(what: str, of: PromptPairs) -> dict[str, str]:
    return {
        "source": what.format(f"{len(of)} prompts of {of.task}"),
        "source_prompts": of.fingerprint,
    }


def kind(source: Source | None, prompt: TokenizedPrompt) -> object:
    """What prompts of one length have in common where `taken` gives all of them the same."""
    by_roles = isinstance(source, Mean) and source.by == "roles"
    return tuple(sorted(prompt.positions.items())) if by_roles else None


def taken(
    model: TransformerBridge,
    pairs: PromptPairs,
    numbers: Sequence[int],
    draws: Sequence[int],
    source: Source,
    names: Sequence[str],
    memory_budget: float,
) -> Taken:
    """What some prompts of one length and `kind` take their activations from.

    Args:
        model: the model.
        pairs: all prompts of the sweep.
        numbers: which of them are patched now.
        draws: the draw of each.
        source: where activations come from.
        names: full names of the activations.
        memory_budget: how many bytes the runs may take.

    Raises:
        PatchlibError: for a mean over prompts none of which has their length.
    """
    if isinstance(source, PromptPairs):
        return Run(source[numbers].clean_tokens)
    if isinstance(source, Resample):
        # With several draws of the noise alone, each takes the one prompt that is drawn.
        both = zip(numbers, draws, strict=True)
        drawn = [source.drawn(pairs, number, draw % source.draws) for number, draw in both]
        pool = pairs if source.pool is None else source.pool
        require_prompts(model, pool)
        return Run(pool[drawn].clean_tokens)
    prompt = pairs.prompts[numbers[0]]
    reference = pairs if isinstance(source, Zero) or source.reference is None else source.reference
    by, site = ("position", None) if isinstance(source, Zero) else (source.by, source.site)
    alike = _alike(reference, prompt, by)
    if not alike:
        raise PatchlibError(
            f"the reference of source= has no prompt {_form(prompt, by)}, and a mean is taken at "
            "each position: give a reference with prompts of every length"
            + (" and form" if by == "roles" else "")
        )
    if isinstance(source, Zero):
        alike = alike[:1]
    sums: dict[str, Tensor] = {}
    cfg, length = model.cfg, len(prompt.clean)
    widest = max(cfg.d_model, int(cfg.d_mlp or 0), cfg.n_heads * max(cfg.d_head, length))
    kept = len(names) * widest
    for _, some in batches(model, reference[alike], memory_budget, kept):
        tokens = some.clean_tokens if site is None else some.corrupted_tokens(site)
        _, found = run_with_edits(model, Run(tokens), keep=names)
        for name, values in found.items():
            # In double precision: half precision has no room for a sum over many prompts.
            total = values.sum(0, keepdim=True, dtype=torch.float64)
            sums[name] = sums[name] + total if name in sums else total
    if isinstance(source, Zero):
        return {name: torch.zeros_like(total, dtype=cfg.dtype) for name, total in sums.items()}
    return {name: (total / len(alike)).to(cfg.dtype) for name, total in sums.items()}

"""Prompt pairs: clean and corrupted tokens, answers and named positions of many prompts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError, whole
from patchlib.prompts import tables
from patchlib.prompts.prompt import Prompt
from patchlib.prompts.tokenizing import TokenizedPrompt, starts_with_bos, tokenize

NOTHING = -1
"""Fills the rows of ragged answers and positions; no token and no position has this number."""


class Positions(dict[str, Int[Tensor, "prompt token"]]):
    """Named positions; an unknown name is refused with the names there are."""

    def __missing__(self, name: str) -> Tensor:
        raise PatchlibError(
            f"unknown position {name!r}: this task has {', '.join(self)}; "
            "join several with '+', as in 'S1+IO'"
        )


@dataclass(frozen=True)
class PromptPairs:
    """Clean prompts with their corrupted versions, ready to be run.

    Index it by a number, a slice, a list of numbers or a mask to get fewer prompts. Prompts of
    different length live side by side here; ``by_length`` gives groups that fit into one tensor
    each.

    Args:
        task: the name of the task.
        prompts: the prompts in tokens.
        settings: what the task was called with.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=4, seed=0)
        >>> len(pairs), tuple(pairs.clean_tokens.shape), tuple(pairs.positions["S2"].shape)
        (4, (4, 15), (4,))
    """

    task: str
    prompts: tuple[TokenizedPrompt, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_prompts(
        cls,
        model: TransformerBridge,
        prompts: Iterable[Prompt],
        task: str = "own",
        prepend_bos: bool | None = None,
    ) -> PromptPairs:
        """Makes prompt pairs of your own prompts.

        Args:
            model: the model that will run them.
            prompts: the prompts as text, with spans, answers and corrupted versions.
            task: a name for results.
            prepend_bos: whether a beginning-of-sequence token comes first; where None, the
                model's default.

        Raises:
            PatchlibError: for what is no prompt, where one does not fit this model's tokenizer,
                with the reason, and where prompts have different spans.

        Example:
            >>> import patchlib as pl
            >>> prompt = pl.Prompt("The war lasted", {"noun": (4, 7)}, " from", " to",
            ...                    {"noun": "The siege lasted"})
            >>> pairs = pl.PromptPairs.from_prompts(pl.load_model("mini"), [prompt], task="mine")
            >>> pairs.positions["noun"]
            tensor([2])
        """
        bos = starts_with_bos(model, prepend_bos)
        given: Any = list(prompts) if isinstance(prompts, Iterable) else prompts
        for each in given if isinstance(given, list) else [given]:
            if each is given or not isinstance(each, Prompt):
                raise PatchlibError(
                    f"prompts={each!r}: give a list of pl.Prompt(text, spans, answers, "
                    "wrong_answers, corrupted); a table of dicts is for PromptPairs.from_table"
                )
        tokenized = tuple(tokenize(model, prompt, bos) for prompt in given)
        if not tokenized:
            raise PatchlibError("no prompts were given: give at least one")
        first = tokenized[0]
        for other in tokenized:
            if set(other.positions) != set(first.positions):
                raise PatchlibError(
                    f"{first.text!r} has the positions {', '.join(first.positions)} and "
                    f"{other.text!r} {', '.join(other.positions)}: give all prompts the same spans"
                )
        return cls(task, tokenized, {"prepend_bos": bos})

    @classmethod
    def from_table(
        cls,
        model: TransformerBridge,
        table: tables.Table,
        task: str = "own",
        prepend_bos: bool | None = None,
    ) -> PromptPairs:
        """Makes prompt pairs of a table with the columns clean, corrupted, answer, wrong_answer.

        What is replaced stands in {braces} in both prompts. Without braces it reaches from the
        first to the last word in which they differ. Prompts may have different lengths, and
        other columns are left alone.

        Args:
            model: the model that will run them.
            table: a CSV file in UTF-8, a pandas data frame, or a list of dicts, in which several
                answers are a list.
            task: a name for results.
            prepend_bos: as in `from_prompts`.

        Returns:
            Pairs with the positions ``changed`` and ``last``; token replacement at ``changed``.

        Raises:
            PatchlibError: for a table that cannot be read, and where rows do not fit this model's
                tokenizer, with each one's number, counted from 1, and the reason.

        Example:
            >>> import patchlib as pl
            >>> row = {"clean": "The {war} lasted", "corrupted": "The {siege} lasted"}
            >>> rows = [row | {"answer": " from", "wrong_answer": [" to", " for"]}]
            >>> pairs = pl.PromptPairs.from_table(pl.load_model("mini"), rows)
            >>> pairs.texts, pairs.at("changed")
            (['The war lasted'], [(2,)])
        """
        rows = tables.read(table)
        bos = starts_with_bos(model, prepend_bos)
        tokenized, refused = [], []
        for number, row in enumerate(rows, start=1):
            try:
                tokenized.append(tokenize(model, tables.write(row), bos))
            except PatchlibError as reason:
                refused.append(f"row {number}: {reason}")
        if refused:
            more = [f"and {len(refused) - 20} more"] if len(refused) > 20 else []
            raise PatchlibError(
                f"{len(refused)} of {len(rows)} rows do not fit; mend them or leave them out:\n"
                + "\n".join(refused[:20] + more)
            )
        settings: dict[str, Any] = {"prepend_bos": bos}
        if isinstance(table, str | os.PathLike):
            file = Path(table).expanduser()
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            settings |= {"file": file.name, "sha256": digest}
        return cls(task, tuple(tokenized), settings)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, which: int | slice | Sequence[int] | Sequence[bool]) -> PromptPairs:
        numbers = np.arange(len(self))
        try:
            asked: Any = which
            if not isinstance(which, slice):
                # An empty list has no numbers, and numpy takes it for one of floats.
                asked = np.asarray(which, dtype=None if np.size(which) else int)
            chosen = tuple(self.prompts[i] for i in np.atleast_1d(numbers[asked]))
        except (IndexError, TypeError, ValueError):
            raise PatchlibError(
                f"pairs[{which!r}] of {len(self)} prompts: give a number or several from 0, a "
                "slice, or a mask with one value for each prompt; a position is pairs.at(name)"
            ) from None
        return PromptPairs(self.task, chosen, self.settings)

    def __iter__(self) -> Iterator[PromptPairs]:
        return (self[number] for number in range(len(self)))

    @property
    def fingerprint(self) -> str:
        """A hash of all prompts with their tokens, answers and positions."""
        return f"sha256:{hashlib.sha256(repr(self.prompts).encode()).hexdigest()[:16]}"

    def describe(self) -> dict[str, Any]:
        """The prompts, and what their task was called with, as results keep them."""
        return {
            "task": self.task,
            "task_settings": json.dumps(self.settings, sort_keys=True),
            "replacements": ", ".join(site for one in self.prompts[:1] for site in one.corrupted),
            "n_prompts": len(self),
            "prompts": self.fingerprint,
        }

    @property
    def texts(self) -> list[str]:
        """The clean prompts as text."""
        return [prompt.text for prompt in self.prompts]

    @property
    def clean_tokens(self) -> Int[Tensor, "prompt position"]:
        """The clean prompts' tokens; all prompts must have one length."""
        return self._stack([prompt.clean for prompt in self._some()])

    def corrupted_tokens(self, site: str) -> Int[Tensor, "prompt position"]:
        """The tokens after symmetric token replacement at a site.

        Raises:
            PatchlibError: where the task has no replacement for this site, or a corrupted prompt
                is not as long as its clean one.
        """
        for prompt in self._some():
            if site not in list(prompt.corrupted):
                raise PatchlibError(
                    f"{self.task} has no token replacement at {site!r}: it has "
                    f"{', '.join(prompt.corrupted)}"
                )
            if len(prompt.corrupted[site]) != len(prompt.clean):
                raise PatchlibError(
                    f"the clean prompt {prompt.text!r} has {len(prompt.clean)} tokens and its "
                    f"corrupted one at {site!r} {len(prompt.corrupted[site])}: both must have the "
                    "same number; choose replacements of equal token length"
                )
        return self._stack([prompt.corrupted[site] for prompt in self.prompts])

    @property
    def answers(self) -> Int[Tensor, "prompt *answer"]:
        """The right answers r; one column per answer, filled with -1, where there are several."""
        return _rows([prompt.answers for prompt in self._some()])

    @property
    def wrong_answers(self) -> Int[Tensor, "prompt *answer"]:
        """The wrong answers r', in the form of ``answers``."""
        return _rows([prompt.wrong_answers for prompt in self._some()])

    @property
    def positions(self) -> Positions:
        """For each named position the token indices, one column per token, filled with -1."""
        names = self._some()[0].positions
        return Positions({n: _rows([p.positions[n] for p in self.prompts]) for n in names})

    def at(self, name: str) -> list[tuple[int, ...]]:
        """For each prompt the indices of a named position, or of several joined by ``+``.

        Raises:
            PatchlibError: for an unknown position.
        """
        known = self.positions
        if not isinstance(name, str):
            known.__missing__(name)
        for part in name.split("+"):
            known[part]
        return [
            tuple(sorted({i for part in name.split("+") for i in prompt.positions[part]}))
            for prompt in self.prompts
        ]

    def by_length(self) -> Iterator[tuple[list[int], PromptPairs]]:
        """Groups prompts of one length; yields their indices and the group, shortest first."""
        groups: dict[int, list[int]] = {}
        for index, prompt in enumerate(self.prompts):
            groups.setdefault(len(prompt.clean), []).append(index)
        for length in sorted(groups):
            yield groups[length], self[groups[length]]

    def _some(self) -> tuple[TokenizedPrompt, ...]:
        if not self.prompts:
            raise PatchlibError(
                f"no prompts of {self.task} are left: choose at least one, as in pairs[:1]"
            )
        return self.prompts

    def _stack(self, rows: list[tuple[int, ...]]) -> Int[Tensor, "prompt position"]:
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise PatchlibError(
                f"these prompts have {', '.join(map(str, lengths))} tokens, and one tensor holds "
                "prompts of one length only: go through `for index, group in pairs.by_length()`"
            )
        return torch.tensor(rows)


def _rows(rows: list[tuple[int, ...]]) -> Int[Tensor, "prompt *column"]:
    width = max(map(len, rows))
    if all(len(row) == 1 for row in rows):
        return torch.tensor(rows)[:, 0]
    return torch.tensor([(*row, *[NOTHING] * (width - len(row))) for row in rows])


def places_of(pairs: PromptPairs, name: str) -> list[tuple[int, ...]]:
    """As ``pairs.at(name)``, for a position that some prompt has.

    Raises:
        PatchlibError: for an unknown position, and for one that is empty in all prompts.
    """
    places = pairs.at(name)
    if not any(places):
        raise PatchlibError(
            f"none of these {len(pairs)} prompts of {pairs.task} has a token at {name!r}: leave "
            "this position out, or give prompts that have it"
        )
    return places


def draw(
    model: TransformerBridge,
    prompts: Iterable[Prompt],
    n: int,
    task: str,
    settings: dict[str, Any],
    prepend_bos: bool | None = None,
    name_positions=lambda tokenized: tokenized,
) -> PromptPairs:
    """Takes the first n prompts that fit the model's tokenizer; how many did not is kept.

    Args:
        model: the model that will run them.
        prompts: candidates, as text.
        n: how many to take.
        task: the name of the task.
        settings: what the task was called with; kept with the result.
        prepend_bos: as in `PromptPairs.from_prompts`.
        name_positions: adds named positions that depend on tokens.

    Raises:
        PatchlibError: where fewer than n prompts fit, with their number and the first reason,
            and where n or the seed is no whole number.
    """
    settings = settings | {"n": whole("n", n, 1)}
    if "seed" in settings:
        settings["seed"] = whole("seed", settings["seed"], 0)
    settings["prepend_bos"] = bos = starts_with_bos(model, prepend_bos)
    taken: list[TokenizedPrompt] = []
    refused: list[str] = []
    for prompt in prompts:
        try:
            taken.append(name_positions(tokenize(model, prompt, bos)))
        except PatchlibError as reason:
            refused.append(str(reason))
            if len(refused) > 1000 and not taken:
                break
        if len(taken) == n:
            return PromptPairs(task, tuple(taken), settings | {"refused": len(refused)})
    why = f"; {len(refused)} do not fit this model, the first since {refused[0]}" if refused else ""
    way_out = f"ask for at most {len(taken)}" if taken else "choose another model or task"
    raise PatchlibError(
        f"n={n} prompts of {task} were asked for and {len(taken)} are there{why}: {way_out}"
    )

"""Prompt pairs: clean and corrupted tokens, answers and named positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.prompts.prompt import Prompt, Span

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
class TokenizedPrompt:
    """One prompt in tokens.

    Args:
        text: the clean prompt.
        clean: its tokens.
        corrupted: for each corrupted site the tokens of that corrupted prompt.
        answers: the tokens that count as right (r).
        wrong_answers: the tokens that the logit difference subtracts (r').
        positions: for each name the indices of its tokens, counted from zero.
    """

    text: str
    clean: tuple[int, ...]
    corrupted: dict[str, tuple[int, ...]]
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]
    positions: dict[str, tuple[int, ...]]


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

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, which: int | slice | Sequence[int] | Sequence[bool]) -> PromptPairs:
        numbers = np.arange(len(self))
        if isinstance(which, slice):
            chosen = numbers[which]
        else:
            asked = np.asarray(which)
            if asked.dtype == bool and asked.shape != numbers.shape:
                raise PatchlibError(
                    f"a mask of shape {asked.shape} for {len(self)} prompts: give one value for "
                    "each prompt"
                )
            # An empty list has no numbers, and numpy takes it for one of floats.
            chosen = numbers[np.atleast_1d(asked if asked.size else asked.astype(int))]
        return PromptPairs(self.task, tuple(self.prompts[i] for i in chosen), self.settings)

    @property
    def texts(self) -> list[str]:
        """The clean prompts as text."""
        return [prompt.text for prompt in self.prompts]

    @property
    def clean_tokens(self) -> Int[Tensor, "prompt position"]:
        """The clean prompts' tokens; all prompts must have one length."""
        return self._stack([prompt.clean for prompt in self.prompts])

    def corrupted_tokens(self, site: str) -> Int[Tensor, "prompt position"]:
        """The tokens after symmetric token replacement at a site.

        Raises:
            PatchlibError: where the task has no replacement for this site, or a corrupted prompt
                is not as long as its clean one.
        """
        for prompt in self.prompts:
            if site not in prompt.corrupted:
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
        return _rows([prompt.answers for prompt in self.prompts])

    @property
    def wrong_answers(self) -> Int[Tensor, "prompt *answer"]:
        """The wrong answers r', in the form of ``answers``."""
        return _rows([prompt.wrong_answers for prompt in self.prompts])

    @property
    def positions(self) -> Positions:
        """For each named position the token indices, one column per token, filled with -1."""
        names = self.prompts[0].positions
        return Positions({n: _rows([p.positions[n] for p in self.prompts]) for n in names})

    def at(self, name: str) -> list[tuple[int, ...]]:
        """For each prompt the indices of a named position, or of several joined by ``+``."""
        known = self.positions
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


def tokenize(
    model: TransformerBridge, prompt: Prompt, prepend_bos: bool | None = None
) -> TokenizedPrompt:
    """Turns a prompt's text into tokens and finds its named positions.

    Args:
        model: gives the tokenizer.
        prompt: the prompt as text.
        prepend_bos: whether a beginning-of-sequence token comes first; the model's default
            where None.

    Raises:
        PatchlibError: where an answer is not exactly one token, is given twice or is missing on
            one side, a corrupted prompt differs in length from the clean one, a span covers no
            token or is called ``last``, or one token covers two named positions.
    """
    tokenizer = model.tokenizer
    if prepend_bos is None:
        prepend_bos = model.cfg.default_prepend_bos
    before = (tokenizer.bos_token_id,) if prepend_bos else ()

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def single(answer: str) -> int:
        found = tokens(answer)
        if len(found) != 1:
            raise PatchlibError(
                f"the answer {answer!r} is {len(found)} tokens for this model: an answer must be "
                "exactly one token; choose another answer"
            )
        return found[0]

    def answers(side: str, texts: Sequence[str]) -> tuple[int, ...]:
        found = tuple(map(single, texts))
        if not found or len(set(found)) < len(found):
            raise PatchlibError(
                f"{side}={tuple(texts)} of {prompt.text!r}: give at least one, and each once"
            )
        return found

    encoded = tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    clean = (*before, *encoded["input_ids"])
    positions = {
        name: tuple(len(before) + i for i in _covering(offsets, span))
        for name, span in prompt.spans.items()
    }
    for name, at in positions.items():
        if not at or name == "last":
            raise PatchlibError(
                f"the span {name!r} of {prompt.text!r} is {prompt.spans[name]}: a span must cover "
                "some of the text, and 'last' is the name of the last token"
            )
        for other, also_at in positions.items():
            if name < other and set(at) & set(also_at):
                raise PatchlibError(
                    f"in {prompt.text!r} one token covers both {name} and {other}: this model "
                    "tokenizes the prompt in another way than the task needs; choose other words"
                )
    positions["last"] = (len(clean) - 1,)
    corrupted = {site: (*before, *tokens(text)) for site, text in prompt.corrupted.items()}
    for site, changed in corrupted.items():
        if len(changed) != len(clean):
            raise PatchlibError(
                f"the clean prompt {prompt.text!r} has {len(clean)} tokens and "
                f"{prompt.corrupted[site]!r}, corrupted at {site!r}, has {len(changed)}: both "
                "must have the same number; choose replacements of equal token length"
            )
    return TokenizedPrompt(
        text=prompt.text,
        clean=clean,
        corrupted=corrupted,
        answers=answers("answers", prompt.answers),
        wrong_answers=answers("wrong_answers", prompt.wrong_answers),
        positions=positions,
    )


def _covering(offsets: list[Span], span: Span) -> list[int]:
    start, end = span
    return [i for i, (a, b) in enumerate(offsets) if a < end and start < b]


def from_prompts(
    model: TransformerBridge,
    prompts: Iterable[Prompt],
    task: str,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Makes prompt pairs of your own prompts.

    Args:
        model: the model that will run them.
        prompts: the prompts as text, with spans, answers and corrupted versions.
        task: a name for results.
        prepend_bos: whether a beginning-of-sequence token comes first; the model's default
            where None.

    Raises:
        PatchlibError: where a prompt does not fit this model's tokenizer, with the reason, and
            where prompts have different spans.

    Example:
        >>> import patchlib as pl
        >>> from patchlib.prompts.prompt import Prompt
        >>> prompt = Prompt("The war lasted", {"noun": (4, 7)}, (" from",), (" to",),
        ...                 {"noun": "The siege lasted"})
        >>> pl.pairs.from_prompts(pl.load_model("mini"), [prompt], task="mine").positions["noun"]
        tensor([2])
    """
    tokenized = tuple(tokenize(model, prompt, prepend_bos) for prompt in prompts)
    if not tokenized:
        raise PatchlibError("no prompts were given: give at least one")
    first = tokenized[0]
    for prompt in tokenized:
        if set(prompt.positions) != set(first.positions):
            raise PatchlibError(
                f"{first.text!r} has the positions {', '.join(first.positions)} and "
                f"{prompt.text!r} {', '.join(prompt.positions)}: give all prompts the same spans"
            )
    return PromptPairs(task, tokenized, {"prepend_bos": str(prepend_bos)})


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
        prepend_bos: as in `tokenize`.
        name_positions: adds named positions that depend on tokens.

    Raises:
        PatchlibError: where fewer than n prompts fit, with their number and the reasons.
    """
    if n < 1:
        raise PatchlibError(f"n={n} prompts were asked for: ask for at least 1")
    taken: list[TokenizedPrompt] = []
    refused: list[str] = []
    for prompt in prompts:
        try:
            taken.append(name_positions(tokenize(model, prompt, prepend_bos)))
        except PatchlibError as reason:
            refused.append(str(reason))
            if len(refused) > 1000 and not taken:
                break
        if len(taken) == n:
            settings = settings | {"refused": len(refused)}
            return PromptPairs(task, tuple(taken), settings)
    why = f"; {len(refused)} do not fit this model, the first since {refused[0]}" if refused else ""
    raise PatchlibError(
        f"n={n} prompts of {task} were asked for and {len(taken)} are there{why}: "
        f"ask for at most {len(taken)}"
    )

"""From text to tokens: what a model's tokenizer makes of a prompt, or why it does not fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError, require_bridge
from patchlib.prompts.prompt import Prompt, Span


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
        words: each clean token as text; nothing where prompts are made by hand.
    """

    text: str
    clean: tuple[int, ...]
    corrupted: dict[str, tuple[int, ...]]
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]
    positions: dict[str, tuple[int, ...]]
    words: tuple[str, ...] = ()


_BEFORE_SPACE = tuple(",;:?!")
"""Signs between which and the next word there is a space; "." may stand inside a name."""


def tokenizer_of(model: TransformerBridge) -> Any:
    """A model's tokenizer, which must be one that knows where in a text its tokens are.

    Raises:
        PatchlibError: for another tokenizer, and for what is no model.
    """
    require_bridge(model)
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise PatchlibError(
            f"the tokenizer of {model.cfg.model_name} is {type(tokenizer).__name__}, which does "
            "not say where in the text its tokens are: named positions need a fast tokenizer, one "
            "with a tokenizer.json"
        )
    return tokenizer


def starts_with_bos(model: TransformerBridge, prepend_bos: bool | None) -> bool:
    """Whether a beginning-of-sequence token comes first.

    Args:
        model: gives the tokenizer and the default.
        prepend_bos: what was asked for; where None, the model's default, and none for a
            tokenizer that has no such token.

    Raises:
        PatchlibError: where such a token is asked for and there is none, for an answer other than
            yes and no, and for a tokenizer that does not say where its tokens are.
    """
    tokenizer = tokenizer_of(model)
    # TransformerLens lends a tokenizer without a beginning of sequence its end, or makes one up.
    given = tokenizer.init_kwargs.get("bos_token") or tokenizer.bos_token != tokenizer.eos_token
    has_bos = bool(given) and tokenizer.bos_token_id is not None
    if prepend_bos is None:
        return bool(model.cfg.default_prepend_bos) and has_bos
    if prepend_bos not in (True, False):
        raise PatchlibError(f"prepend_bos={prepend_bos!r}: give True, False or None")
    if prepend_bos and not has_bos:
        raise PatchlibError(
            f"prepend_bos=True, and the tokenizer of {model.cfg.model_name} has no "
            "beginning-of-sequence token: give prepend_bos=False, and write what shall come first, "
            "if anything, at the beginning of each text"
        )
    return bool(prepend_bos)


def tokenize(
    model: TransformerBridge, prompt: Prompt, prepend_bos: bool | None = None
) -> TokenizedPrompt:
    """Turns a prompt's text into tokens and finds its named positions.

    Args:
        model: gives the tokenizer.
        prompt: the prompt as text.
        prepend_bos: as in `starts_with_bos`.

    Raises:
        PatchlibError: where an answer does not follow the text as exactly one token, is glued to
            it, is given twice, is right and wrong, or is missing on one side; where a corrupted
            prompt differs in length from the clean one, outside its site, or in the length of one
            of its spans; where a span covers no token, or
            one token covers two named positions; where the prompt is longer than the model's
            context, or begins with a second beginning of sequence.
    """
    has_bos, tokenizer = starts_with_bos(model, prepend_bos), model.tokenizer
    before = (tokenizer.bos_token_id,) if has_bos else ()
    texts = [prompt.text, *prompt.corrupted.values()]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    bare, *changed = map(tuple, encoded["input_ids"])
    for text, tokens in zip(texts, (bare, *changed), strict=True):
        if before and tokens[:1] == before:
            raise PatchlibError(
                f"{text!r} begins with the beginning of sequence that prepend_bos adds: take it "
                "out of the text, or give prepend_bos=False"
            )
    clean = (*before, *bare)
    if len(clean) > model.cfg.n_ctx:
        raise PatchlibError(
            f"{prompt.text!r} has {len(clean)} tokens and the context of {model.cfg.model_name} "
            f"{model.cfg.n_ctx}: give a shorter prompt"
        )
    positions = _positions(prompt, encoded["offset_mapping"][0], len(before))
    positions["last"] = (len(clean) - 1,)
    corrupted = {
        site: (*before, *tokens) for site, tokens in zip(prompt.corrupted, changed, strict=True)
    }
    words = tuple(tokenizer.batch_decode([[token] for token in clean]))
    right, wrong = _answers(tokenizer, prompt, bare)
    found = TokenizedPrompt(prompt.text, clean, corrupted, right, wrong, positions, words)
    offsets, *others = ([(0, 0)] * len(before) + each for each in encoded["offset_mapping"])
    for site, also in zip(corrupted, others, strict=True):
        _check_replacement(found, site, prompt.corrupted[site])
        _check_seams(prompt, site, positions, offsets, also)
    return found


def _positions(prompt: Prompt, offsets: list[Span], shift: int) -> dict[str, tuple[int, ...]]:
    """For each span the tokens that cover some of it."""
    positions = {
        name: tuple(shift + i for i, (a, b) in enumerate(offsets) if a < end and start < b)
        for name, (start, end) in prompt.spans.items()
    }
    for name, at in positions.items():
        if not at:
            raise PatchlibError(
                f"the span {name!r} of {prompt.text!r} is {prompt.spans[name]}, where this model "
                "has no token: a span must cover a token"
            )
        for other, also_at in positions.items():
            if name < other and set(at) & set(also_at):
                raise PatchlibError(
                    f"in {prompt.text!r} one token covers both {name} and {other}: this model "
                    "tokenizes the prompt in another way than the task needs; choose other words"
                )
    return positions


def _check_replacement(prompt: TokenizedPrompt, site: str, text: str) -> None:
    """A patch restores a position, so every word outside the site must be where it was."""
    clean, changed = prompt.clean, prompt.corrupted[site]
    if len(changed) != len(clean):
        raise PatchlibError(
            f"the clean prompt {prompt.text!r} has {len(clean)} tokens and {text!r}, corrupted at "
            f"{site!r}, has {len(changed)}: both must have the same number; choose replacements "
            "of equal token length"
        )
    named = _named(site, prompt.positions)
    inside = {i for name in named for i in prompt.positions[name]}
    differing = [i for i, (a, b) in enumerate(zip(clean, changed, strict=True)) if a != b]
    outside = [f"{i} ({prompt.words[i]!r})" for i in differing if i not in inside]
    if outside:
        raise PatchlibError(
            f"{text!r}, corrupted at {site!r}, differs from {prompt.text!r} outside of "
            f"{', '.join(named)}, too: at {', '.join(outside)}. Give a span for each word that is "
            "replaced, name the site after these spans, as in 'S1+IO', and choose for each a "
            "replacement of equal token length, so that all other words stay in place"
        )


def _named(site: str, positions: dict[str, tuple[int, ...]]) -> list[str]:
    """The positions that may be replaced at a site: its parts, or all."""
    parts = site.split("+")
    return parts if set(parts) <= set(positions) else list(positions)


def _check_seams(
    prompt: Prompt,
    site: str,
    positions: dict[str, tuple[int, ...]],
    offsets: list[Span],
    also: list[Span],
) -> None:
    """Where two replaced spans are neighbours, no token between them shows where one ends."""
    text = prompt.corrupted[site]
    spans = sorted((prompt.spans[n], n) for n in _named(site, positions) if n in prompt.spans)
    for ((_, end), left), ((start, _), right) in pairwise(spans):
        first = positions[right][0]
        if positions[left][-1] + 1 < first:
            continue
        clean_seam, seam = offsets[first][0], also[first][0]
        before, after = prompt.text[end:clean_seam], prompt.text[clean_seam:start]
        if not (text[:seam].endswith(before) and text[seam:].startswith(after)):
            raise PatchlibError(
                f"{text!r}, corrupted at {site!r}, does not go from {left} to {right} after as "
                f"many tokens as {prompt.text!r}, so that one is longer and the other shorter: "
                "choose for each a replacement of equal token length"
            )


def _answers(
    tokenizer: Any, prompt: Prompt, bare: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of the right and of the wrong answers."""
    sides = {"answers": prompt.answers, "wrong_answers": prompt.wrong_answers}
    every = [answer for texts in sides.values() for answer in texts]
    texts = [prompt.text + answer for answer in every]
    joined = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    token = {
        answer: _answer(tokenizer, prompt.text, bare, answer, tuple(tokens))
        for answer, tokens in zip(every, joined, strict=True)
    }
    right, wrong = (tuple(token[answer] for answer in texts) for texts in sides.values())
    for side, found in zip(sides, (right, wrong), strict=True):
        if not found or len(set(found)) < len(found):
            raise PatchlibError(
                f"{side}={sides[side]} of {prompt.text!r}: give at least one, and each once"
            )
    if set(right) & set(wrong):
        raise PatchlibError(
            f"answers={prompt.answers} and wrong_answers={prompt.wrong_answers} of "
            f"{prompt.text!r} share a token: an answer is either right or wrong"
        )
    return right, wrong


def _answer(
    tokenizer: Any, text: str, bare: tuple[int, ...], answer: str, joined: tuple[int, ...]
) -> int:
    """The token by which an answer follows the text.

    It is read in its place, since some tokenizers put a space before whatever stands alone.
    """

    def tokens(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    seam = text[-1:], answer[:1]
    # Scripts without capitals may go on without a space, unless the model knows the word with one.
    if all(map(str.isalpha, seam)) and (
        answer[0] != answer[0].swapcase() or tokens(f"{text} {answer}")[:-1] == bare
    ):
        raise PatchlibError(
            f"the answer {answer!r} is glued to the last word of {text!r}: write {' ' + answer!r}"
        )
    if seam[0].isalpha() and seam[1].isdigit():
        raise PatchlibError(
            f"the answer {answer!r} is glued to the last word of {text!r}: write {' ' + answer!r}, "
            "or, where each digit is a token, end the text with the space"
        )
    # After a sign, too, unless the text goes on without a space there, as in "a,b", or the sign is
    # one between digits, as in "12:30".
    if (
        seam[0] in _BEFORE_SPACE
        and seam[1].isalnum()
        and not (text[-2:-1] + seam[1]).isdigit()
        and not re.search(rf"{re.escape(seam[0])}\w", text)
        and tokens(f"{text} {answer}")[:-1] == bare
    ):
        raise PatchlibError(
            f"the answer {answer!r} is glued to the {seam[0]!r} at the end of {text!r}: write "
            f"{' ' + answer!r}, or show in the text that a word follows {seam[0]!r} without a space"
        )
    if seam == (" ", " "):
        raise PatchlibError(
            f"{text!r} ends with a space and the answer {answer!r} begins with one: let the text "
            "end before its space"
        )
    if joined[:-1] == bare:
        return joined[-1]
    # A model that splits most years in two has some as one token. Both halves are asked for in
    # all of them, as in the paper (Appendix E).
    if all(map(str.isdigit, seam)) and len(tokens(answer)) == 1:
        token = tokens(answer)[0]
        if tokenizer.decode([*bare, token]) == tokenizer.decode(bare) + answer:
            return token
    if joined[: len(bare)] == bare:
        raise PatchlibError(
            f"the answer {answer!r} is {len(joined) - len(bare)} tokens for this model: an answer "
            "must be exactly one token; choose another answer"
        )
    raise PatchlibError(
        f"this model makes one token of the end of {text!r} and the beginning of the answer "
        f"{answer!r}: let the text end earlier, before its last space, and the answer begin there"
    )

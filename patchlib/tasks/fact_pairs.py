"""What a pair of facts is, and how its entry in a JSON file is checked."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from patchlib.errors import PatchlibError
from patchlib.prompts.prompt import Prompt

_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class FactPair:
    """Two sentences of one relation and one phrasing.

    Args:
        number: counts the pairs of subjects; the phrasings of one pair share it.
        phrasing: which of the relation's phrasings this is, counted from zero.
        category: the relation.
        sentences: both sentences, each ending right before its answer.
        subjects: the subject within each sentence.
        answers: both answers, with their leading space.
    """

    number: int
    phrasing: int
    category: str
    sentences: tuple[str, str]
    subjects: tuple[str, str]
    answers: tuple[str, str]

    @property
    def is_held_out(self) -> bool:
        """True where `mini` learnt the fact, but never in this phrasing."""
        return self.number % 5 == 0 and self.phrasing == self.number % 3

    def prompt(self, first: int) -> Prompt:
        """The sentence ``first`` (0 or 1) as the clean prompt, the other one as the corrupted.

        Symmetric token replacement puts the other subject in the place of the subject
        (Section 3, Appendix B).
        """
        second = 1 - first
        text, subject = self.sentences[first], self.subjects[first]
        start = text.index(subject)
        return Prompt(
            text=text,
            spans={"subject": (start, start + len(subject))},
            answers=(self.answers[first],),
            wrong_answers=(self.answers[second],),
            corrupted={"subject": self.sentences[second]},
        )


def entries_of(path: str | os.PathLike[str]) -> list[Any]:
    """The entries of a JSON file that holds a list."""
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PatchlibError(
            f"{path} cannot be read ({error.strerror}): give a JSON file"
        ) from error
    except json.JSONDecodeError as error:
        raise PatchlibError(
            f"{path} is no JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "give a JSON list of facts"
        ) from error
    except RecursionError as error:
        raise PatchlibError(f"{path} is nested too deeply: give a JSON list of facts") from error
    except UnicodeDecodeError as error:
        raise PatchlibError(
            f"{path} is no text in UTF-8: byte {error.start} is none; give a JSON list of facts"
        ) from error
    if not isinstance(entries, list):
        raise PatchlibError(
            f"{path} begins with {_JSON[type(entries)]} at line 1: give a JSON list of facts"
        )
    return entries


_JSON = {
    dict: "an object",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def is_text(value: Any) -> TypeGuard[str]:
    # JSON can write half a character, which no tokenizer takes.
    return isinstance(value, str) and bool(value.strip()) and not _HALF.search(value)


def are_two_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_text, value))


def two(texts: list[str]) -> tuple[str, str]:
    return texts[0], texts[1]

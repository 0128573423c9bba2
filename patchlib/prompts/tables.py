"""Tables of your own prompts: one row for each, with its answers and its corrupted version."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from patchlib.errors import PatchlibError
from patchlib.prompts.prompt import Prompt, Span

COLUMNS = ("clean", "corrupted", "answer", "wrong_answer")
CHANGED = "changed"
"""The name of the position at which the two prompts of a row differ."""

Table: TypeAlias = str | os.PathLike[str] | pd.DataFrame | Iterable[Mapping[str, Any]]


def read(table: Table) -> list[Mapping[str, Any]]:
    """The rows of a table.

    Args:
        table: a CSV file in UTF-8, a pandas data frame, or a list of dicts.

    Raises:
        PatchlibError: for what is no table, for a file that cannot be read, for a table without
            rows, and where a column is missing.

    Example:
        >>> read([dict(clean="a", corrupted="b", answer="c", wrong_answer="d")])[0]["answer"]
        'c'
    """
    if isinstance(table, pd.DataFrame):
        rows = table.to_dict("records")
    elif isinstance(table, str | os.PathLike):
        rows = _read_csv(Path(table).expanduser())
    elif isinstance(table, Iterable):
        rows = list(table)
    else:
        raise PatchlibError(
            f"{table!r} is no table: give a CSV file, a pandas data frame or a list of dicts, with "
            f"the columns {', '.join(COLUMNS)}"
        )
    if not rows:
        raise PatchlibError("the table has no rows: give at least one")
    for number, row in enumerate(rows, start=1):
        missing = [name for name in COLUMNS if not isinstance(row, Mapping) or name not in row]
        if missing:
            raise PatchlibError(
                f"row {number} of the table lacks {', '.join(missing)}: a row has the columns "
                f"{', '.join(COLUMNS)}, and this one is {row!r}"
            )
    return rows


def _read_csv(path: Path) -> list[Mapping[str, Any]]:
    advice = f"give a CSV file in UTF-8 with the columns {', '.join(COLUMNS)}"
    try:
        # Spreadsheets mark the beginning of UTF-8 files with three bytes.
        text = path.read_bytes().decode("utf-8-sig")
        return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except OSError as error:
        raise PatchlibError(f"{path} cannot be read ({error.strerror}): {advice}") from error
    except UnicodeDecodeError as error:
        raise PatchlibError(
            f"{path} is no text in UTF-8, byte {error.start} is none: {advice}"
        ) from error
    except csv.Error as error:
        raise PatchlibError(f"{path} is no CSV ({error}): {advice}") from error


def write(row: Mapping[str, Any]) -> Prompt:
    """The prompt of a row, with the one span ``changed``.

    Raises:
        PatchlibError: where a field is no text, where only one of both prompts has braces, and
            where the prompts do not differ in one place.

    Example:
        >>> row = {"answer": " Paris", "wrong_answer": " Rome"}
        >>> write(row | {"clean": "In {France}", "corrupted": "In {Italy}"}).spans
        {'changed': (3, 9)}
        >>> write(row | {"clean": "In France", "corrupted": "In Italy"}).corrupted
        {'changed': 'In Italy'}
    """
    if None in row:
        raise PatchlibError(
            f"there are more fields than columns, the last ones {row[None]}: put texts with commas "  # type: ignore[index]
            "in quotes"
        )
    for name in COLUMNS[:2]:
        if not isinstance(row[name], str):
            raise PatchlibError(f"{name} is {row[name]!r}: give a text")
    clean, corrupted = row["clean"], row["corrupted"]
    if set(clean + corrupted) & set("{}"):
        clean, span = _unmark(clean)
        corrupted, other = _unmark(corrupted)
    else:
        span, other = differing(clean, corrupted)
    outside, also_outside = (
        (text[:start], text[end:]) for text, (start, end) in ((clean, span), (corrupted, other))
    )
    if outside != also_outside:
        raise PatchlibError(
            f"{row['clean']!r} and {row['corrupted']!r} differ outside the braces: put all that "
            "differs in them"
        )
    if clean[slice(*span)] == corrupted[slice(*other)] or not clean[slice(*span)]:
        raise PatchlibError(
            f"the corrupted prompt {corrupted!r} replaces no word of the clean one, {clean!r}: "
            "replace one or several by others"
        )
    return Prompt(clean, {CHANGED: span}, row["answer"], row["wrong_answer"], {CHANGED: corrupted})


def _unmark(text: str) -> tuple[str, Span]:
    found = re.fullmatch(r"([^{}]*)\{([^{}]+)\}([^{}]*)", text, re.DOTALL)
    if not found:
        raise PatchlibError(
            f"{text!r} has not exactly one part in braces: mark what is replaced in both prompts, "
            "as in 'The capital of {France} is', or in neither; a text that has braces of its own "
            "needs pl.Prompt"
        )
    return "".join(found.groups()), (found.start(2) - 1, found.end(2) - 1)


def differing(one: str, other: str) -> tuple[Span, Span]:
    """Where two texts differ, from the first to the last word that does.

    Args:
        one: a text.
        other: the other one.

    Returns:
        For each text the half-open range of characters, which may be empty.

    Example:
        >>> differing("In Sri Lanka it", "In Peru it")
        ((3, 12), (3, 7))
    """
    words, others = (re.findall(r"\w+|\W", text) for text in (one, other))
    most = min(len(words), len(others))
    first = next((i for i in range(most) if words[i] != others[i]), most)
    last = next((i for i in range(most - first) if words[-1 - i] != others[-1 - i]), most - first)
    start = len("".join(words[:first]))
    end = len("".join(words[len(words) - last :]))
    return (start, len(one) - end), (start, len(other) - end)

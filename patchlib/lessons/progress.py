"""Which exercises a student has checked: a line in a file for each try, and a table of them."""

from __future__ import annotations

import csv
from datetime import datetime
from pathlib import Path

import pandas as pd

from patchlib.errors import PatchlibError
from patchlib.files import BUILD, write_whole

TRIES = BUILD / "progress.csv"

_COLUMNS = ["exercise", "model", "mark", "when"]


def record(id: str, model: str, mark: str) -> None:
    """Adds a line for a checked answer; one that cannot be written is said to be lost.

    Args:
        id: the exercise's number.
        model: the name of the model that is loaded.
        mark: ✓ or ✗.
    """
    when = datetime.now().isoformat(sep=" ", timespec="seconds")
    try:
        TRIES.parent.mkdir(parents=True, exist_ok=True)
        # Two notebooks may be open: adding a line takes nothing from the other.
        with TRIES.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow([id, model, mark, when])
    except OSError as reason:
        print(f"(not kept for pl.progress: {reason})")


def progress(to: str | Path | None = None) -> pd.DataFrame:
    """The exercises that were checked in this folder, on whichever day and in whichever notebook.

    Nothing is sent anywhere. Answers that are still ``...`` do not count, nor does what is checked
    outside a notebook.

    Args:
        to: a CSV file to write the table to, such as ``"ada.csv"``, for a teacher to collect.

    Returns:
        A row for each exercise and model: ``exercise``; ``model``; ``mark``, ✓ where an answer was
        right at any time; ``tries`` until then, or so far; ``when`` that was, or the last try was.

    Raises:
        PatchlibError: where the file cannot be written.

    Example:
        >>> list(progress())
        ['exercise', 'model', 'mark', 'tries', 'when']
    """
    tries = pd.DataFrame(columns=_COLUMNS)
    if TRIES.exists():
        tries = pd.read_csv(TRIES, names=_COLUMNS, dtype=str, keep_default_na=False)
    rows = [
        {"exercise": exercise, "model": model, **_until_right(group)}
        for (exercise, model), group in tries.groupby(["exercise", "model"])
    ]
    table = pd.DataFrame(rows, columns=["exercise", "model", "mark", "tries", "when"])
    if to is not None:
        text = table.to_csv(index=False)
        try:
            write_whole(Path(to), lambda part: part.write_text(text, encoding="utf-8"))
        except OSError as reason:
            raise PatchlibError(
                f"cannot write {to}: {reason}; give a file in a folder of your own"
            ) from None
    return table


def _until_right(tries: pd.DataFrame) -> dict[str, object]:
    """The mark of tries in their order, how many it took, and when the last of them was."""
    right = (tries["mark"] == "✓").to_numpy()
    number = int(right.argmax()) + 1 if right.any() else len(tries)
    last = tries.iloc[number - 1]
    return {"mark": last["mark"], "tries": number, "when": last["when"]}

"""Exercises that check themselves: a mark and a hint, never the answer."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from IPython import get_ipython

from patchlib.errors import PatchlibError
from patchlib.lessons import claims, progress
from patchlib.lessons.answers import Hint, is_empty

# Takes an answer and what it is about; gives nothing where it is right, and a hint where not.
Exercise = Callable[..., str | None]
_EXERCISES: dict[str, Exercise] = {}


def exercise(id: str) -> Callable[[Exercise], Exercise]:
    """Registers a function of ``patchlib/lessons/exercises`` as the check of an exercise.

    Args:
        id: the exercise's number, such as ``"3.1.2"``.

    Raises:
        PatchlibError: where the number is taken.

    Example:
        >>> @exercise("0.0")
        ... def is_even(answer: int, **given) -> str | None:
        ...     return "2 does not divide it" if answer % 2 else None
        >>> check("0.0", 3)
        ✗ 0.0  2 does not divide it
        >>> del _EXERCISES["0.0"]
    """

    def register(function: Exercise) -> Exercise:
        if id in _EXERCISES:
            raise PatchlibError(f"two exercises have the number {id}: choose another")
        _EXERCISES[id] = function
        return function

    return register


def exercises() -> dict[str, Exercise]:
    """All exercises by their number, as ``{"3.1.1": function}``."""
    package = import_module("patchlib.lessons.exercises")
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_EXERCISES.items()))


def check(id: str, answer: object, **given: Any) -> None:
    """Prints whether an answer is right, and a hint where it is not.

    What is right is computed from what is given: the model that is loaded and its results. In a
    notebook the mark is kept for `patchlib.progress`. With ``PATCHLIB_CHECKS=strict`` in the
    environment, as a grader needs it, an answer that is not right is an error, and no mark is kept.

    Args:
        id: the exercise's number, such as ``"3.1.2"``.
        answer: what was filled in; with ``...`` anywhere it counts as unanswered.
        given: what the exercise is about, by name, as the notebook's cell gives it.

    Raises:
        PatchlibError: for an unknown exercise, and where something has to be given, or is given
            that the exercise does not take; where checks are strict, for an answer that is not
            right.

    Example:
        >>> check("0.2", ...)
        – 0.2  not answered yet: put your answer in place of ...
        >>> check("0.2", lambda clean, corrupted, patched: patched - corrupted)
        ✗ 0.2  that is the step in logits; divide it by the whole way, so that the clean run is 1
        >>> check("0.2", lambda *runs: (runs[2] - runs[1]) / (runs[0] - runs[1]))
        ✓ 0.2
    """
    known = exercises()
    if id not in known:
        raise PatchlibError(f"no exercise {id!r}: there are {', '.join(known)}")
    try:
        inspect.signature(known[id]).bind(answer, **given)
    except TypeError as reason:
        takes = list(inspect.signature(known[id]).parameters)[1:]
        needed = ", ".join(f"{name}={name}" for name in takes) or "nothing beside the answer"
        raise PatchlibError(f"exercise {id}: {reason}; it takes {needed}") from None
    mark, hint = "–", "not answered yet: put your answer in place of ..."
    if not is_empty(answer):
        try:
            hint = known[id](answer, **given) or ""
        except Hint as reason:
            hint = str(reason)
        mark = "✗" if hint else "✓"
    said = f"{mark} {id}  {hint}" if hint else f"{mark} {id}"
    strict = os.environ.get("PATCHLIB_CHECKS") == "strict"
    if strict and hint:
        raise PatchlibError(said)
    print(said)
    if mark != "–" and not strict and get_ipython() is not None:
        progress.record(id, claims.running(), mark)

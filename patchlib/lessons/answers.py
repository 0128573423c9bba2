"""What a student gave: read, or refused with a hint that says which form is expected."""

from __future__ import annotations

import linecache
import math
import traceback
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from patchlib.errors import PatchlibError
from patchlib.heads import Head, Heads


class Hint(Exception):
    """Why an answer cannot be right, in one sentence for the student; no error of the package."""


def is_empty(answer: object) -> bool:
    """Whether ``...`` stands anywhere in an answer.

    Example:
        >>> is_empty({2: ["4.6"], 3: ...}), is_empty(["4.6"])
        (True, False)
    """
    if isinstance(answer, Mapping):
        return any(map(is_empty, (*answer.keys(), *answer.values())))
    if isinstance(answer, list | tuple | set):
        return any(map(is_empty, answer))
    return answer is ...


def number(given: Any, what: str) -> float:
    """A number, from whichever library it comes.

    Args:
        given: what was given.
        what: the name of the number in hints, such as ``"the effect of 4.6"``.

    Raises:
        Hint: for anything but one finite number.
    """
    # Arrays and results have a size, tensors a method of this name.
    size = getattr(given, "size", None)
    value = given.item() if (size().numel() if callable(size) else size) == 1 else given
    if isinstance(value, bool) or not isinstance(value, Real):
        raise Hint(f"{what} has to be a number, and a {type(given).__name__} was given")
    if not math.isfinite(value):
        raise Hint(f"{what} has to be a number, and {value} was given")
    return float(value)


def heads(given: object, what: str) -> set[Head]:
    """Heads, in any order.

    Raises:
        Hint: for anything but a list of heads.
    """
    try:
        return set(Heads(given))  # type: ignore[arg-type]
    # A tensor of a single number raises a TypeError.
    except (PatchlibError, TypeError):
        raise Hint(f"{what} has to be a list of heads, such as ['0.1', '2.3'] or []") from None


def head(given: object, what: str) -> Head:
    """One head.

    Raises:
        Hint: for anything else.
    """
    try:
        return Head.of(given)
    except PatchlibError:
        raise Hint(f"{what} has to be one head, written like '2.3'") from None


def entries(given: object, keys: list[Any]) -> list[Any]:
    """The values of a dict that has to have these keys, in their order.

    Raises:
        Hint: for anything else.
    """
    if not isinstance(given, Mapping) or set(given) != set(keys):
        names = ", ".join(map(repr, keys))
        raise Hint(f"the answer has to be a dict with the keys {names}")
    return [given[key] for key in keys]


def pair(given: object, form: str) -> tuple[Any, Any]:
    """Two things, as in ``("k", 0.05)``.

    Raises:
        Hint: for anything else.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise Hint(f"the answer has to be a pair: {form}")
    return given[0], given[1]


def three(given: Any, names: str) -> list[float]:
    """The three numbers that a student's function returned.

    Raises:
        Hint: for anything else.
    """
    try:
        values = [number(each, "each of the three numbers") for each in given]
    except TypeError:
        values = []
    if len(values) != 3:
        raise Hint(f"your function has to return three numbers: {names}")
    return values


def call(function: object, *arguments: Any, of: str) -> Any:
    """Calls a student's function.

    Args:
        function: what was given as one.
        arguments: what it is called with.
        of: its arguments in words.

    Raises:
        Hint: where it is no function, does not take these arguments, or raises, with the line.
    """
    if not callable(function):
        raise Hint(
            f"the answer has to be a function of {of}, and a {type(function).__name__} was given; "
            "give the function itself, without calling it"
        )
    try:
        return function(*arguments)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        reason = f"{type(error).__name__}: {error}"
    if not frames:
        raise Hint(f"your function could not be called with {of} ({reason})")
    # The last line of the student's own, below which libraries are.
    line = [frame for frame in frames if frame.filename == frames[0].filename][-1]
    source = linecache.getline(line.filename, line.lineno or 0).strip()
    raise Hint(f"your function raised {reason}, in line {line.lineno}: {source}")


def close(given: float, right: float, within: float = 0.01) -> bool:
    """Whether a number that was given is the right one but for rounding.

    Args:
        given: what was given.
        right: what is right.
        within: how far off a number with two decimals may be, in units or in shares of a right
            number above 1. Zero, and one with more decimals, may be off by 0.001 at most, since
            a wrong formula often gives nearly the same.

    Example:
        >>> close(0.09, 0.0877), close(0.088, 0.0877), close(0.0863, 0.0877), close(0, 0.003)
        (True, True, False, False)
    """
    if given == 0 or abs(given - round(given, 2)) > 1e-6 * max(1.0, abs(given)):
        within = min(within, 0.001)
    return abs(given - right) <= within * max(1.0, abs(right))


def mistake(is_given: Callable[[Any], bool], mistakes: Mapping[str, Any], otherwise: str) -> str:
    """The hint of the first mistake that gives what the student gave.

    Example:
        >>> mistake((3).__eq__, {"you added": 3, "you divided": 0.5}, "begin anew")
        'you added'
    """
    return next((hint for hint, value in mistakes.items() if is_given(value)), otherwise)

"""Two-operand arithmetic (Stolfo et al. 2023): two worked lines, then one to finish."""

import random
from collections.abc import Iterator
from functools import cache

from patchlib.errors import PatchlibError
from patchlib.prompts.prompt import Prompt, fill

TEMPLATE = "{X1} {op} {Y1} = {Z1}\n{X2} {op} {Y2} = {Z2}\n{X3} {op} {Y3} ="
OPERATORS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
# Every operand and every result is one token in GPT-2's encoding and in mini's.
_LARGEST = {"+": 49, "-": 49, "*": 9}


def operands(op: str) -> list[tuple[int, int]]:
    """All operand pairs of an operator; differences are positive.

    Raises:
        PatchlibError: for an operator other than ``+``, ``-`` and ``*``.

    Example:
        >>> len(operands("*")), (5, 7) in operands("-"), (7, 5) in operands("-")
        (81, False, True)
    """
    if op not in OPERATORS:
        raise PatchlibError(f"unknown operator {op!r}: allowed are {', '.join(OPERATORS)}")
    numbers = range(1, _LARGEST[op] + 1)
    return [(x, y) for x in numbers for y in numbers if op != "-" or x > y]


@cache
def is_held_out(op: str, x: int, y: int) -> bool:
    """True for the sums and differences, one in ten, that `mini` never saw.

    The multiplication table is learnt by heart: there only the prompt around a product is new.
    """
    # Drawn, not computed from x and y, so that no regularity of sums is held out with them.
    return op != "*" and random.Random(f"{x} {op} {y}").random() < 0.1


def write(rng: random.Random, op: str, x: int, y: int) -> Prompt:
    """Writes a two-shot prompt that ends in ``x op y =``.

    Symmetric token replacement draws two other operands from the same range (Appendix C), with
    another result, so that r and r' differ.
    """
    calculate = OPERATORS[op]
    shots = [pair for pair in operands(op) if not is_held_out(op, *pair) and pair != (x, y)]
    (x1, y1), (x2, y2) = rng.sample(shots, 2)
    others = [pair for pair in operands(op) if calculate(*pair) != calculate(x, y)]
    other = rng.choice(others)
    examples = {"op": op, "X1": x1, "Y1": y1, "X2": x2, "Y2": y2}
    examples |= {"Z1": calculate(x1, y1), "Z2": calculate(x2, y2)}
    words = {name: str(value) for name, value in examples.items()}
    text, spans = fill(TEMPLATE, X3=str(x), Y3=str(y), **words)
    return Prompt(
        text=text,
        spans={name: spans[name] for name in ("X3", "Y3")},
        answers=(f" {calculate(x, y)}",),
        wrong_answers=(f" {calculate(*other)}",),
        corrupted={"X3+Y3": fill(TEMPLATE, X3=str(other[0]), Y3=str(other[1]), **words)[0]},
    )


def asked(op: str) -> list[tuple[int, int]]:
    """The operand pairs that prompts ask for: the held-out ones, and for ``*`` all.

    Example:
        >>> len(asked("*"))
        81
    """
    return [pair for pair in operands(op) if op == "*" or is_held_out(op, *pair)]


def prompts(rng: random.Random, op: str) -> Iterator[Prompt]:
    """Prompts for all operands that are `asked`, in random order."""
    pairs = asked(op)
    for x, y in rng.sample(pairs, len(pairs)):
        yield write(rng, op, x, y)

"""Two-operand arithmetic (Stolfo et al. 2023): two worked lines, then one to finish.

A tokenizer that makes each digit a token of its own makes another of the space before it. For such
a model operands and results have one digit, and the prompt ends with that space (``by_digit``).
"""

import random
from collections.abc import Iterator
from functools import cache

from patchlib.errors import PatchlibError
from patchlib.prompts.prompt import Prompt, fill

TEMPLATE = "{X1} {op} {Y1} = {Z1}\n{X2} {op} {Y2} = {Z2}\n{X3} {op} {Y3} ="
OPERATORS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
# Every operand and every result is one token in GPT-2's encoding and in mini's.
_LARGEST = {"+": 49, "-": 49, "*": 9}
# There are few operands of one digit: each is asked this often, after other worked lines.
_ROUNDS = 10


def operands(op: str, by_digit: bool = False) -> list[tuple[int, int]]:
    """All operand pairs of an operator; differences are positive.

    Args:
        op: the operator.
        by_digit: those alone of which operands and result have one digit.

    Raises:
        PatchlibError: for an operator other than ``+``, ``-`` and ``*``.

    Example:
        >>> len(operands("*")), (5, 7) in operands("-"), (7, 5) in operands("-")
        (81, False, True)
        >>> len(operands("+", by_digit=True)), len(operands("*", by_digit=True))
        (36, 23)
    """
    if op not in OPERATORS:
        raise PatchlibError(f"unknown operator {op!r}: allowed are {', '.join(OPERATORS)}")
    numbers = range(1, (9 if by_digit else _LARGEST[op]) + 1)
    pairs = [(x, y) for x in numbers for y in numbers if op != "-" or x > y]
    return [pair for pair in pairs if not by_digit or OPERATORS[op](*pair) < 10]


@cache
def is_held_out(op: str, x: int, y: int) -> bool:
    """True for the sums and differences, one in ten, that `mini` never saw.

    The multiplication table is learnt by heart: there only the prompt around a product is new.
    """
    # Drawn, not computed from x and y, so that no regularity of sums is held out with them.
    return op != "*" and random.Random(f"{x} {op} {y}").random() < 0.1


def write(rng: random.Random, op: str, x: int, y: int, by_digit: bool = False) -> Prompt:
    """Writes a two-shot prompt that ends in ``x op y =``, with a space after it ``by_digit``.

    Symmetric token replacement draws two other operands from the same range (Appendix C), with
    another result, so that r and r' differ.
    """
    calculate = OPERATORS[op]
    known = [pair for pair in operands(op, by_digit) if by_digit or not is_held_out(op, *pair)]
    (x1, y1), (x2, y2) = rng.sample([pair for pair in known if pair != (x, y)], 2)
    others = [pair for pair in operands(op, by_digit) if calculate(*pair) != calculate(x, y)]
    other = rng.choice(others)
    examples = {"op": op, "X1": x1, "Y1": y1, "X2": x2, "Y2": y2}
    examples |= {"Z1": calculate(x1, y1), "Z2": calculate(x2, y2)}
    words = {name: str(value) for name, value in examples.items()}
    template, space = (TEMPLATE + " ", "") if by_digit else (TEMPLATE, " ")
    text, spans = fill(template, X3=str(x), Y3=str(y), **words)
    return Prompt(
        text=text,
        spans={name: spans[name] for name in ("X3", "Y3")},
        answers=(f"{space}{calculate(x, y)}",),
        wrong_answers=(f"{space}{calculate(*other)}",),
        corrupted={"X3+Y3": fill(template, X3=str(other[0]), Y3=str(other[1]), **words)[0]},
    )


def asked(op: str, by_digit: bool = False) -> list[tuple[int, int]]:
    """The operand pairs that prompts ask for: the held-out ones; for ``*`` and ``by_digit`` all.

    Example:
        >>> len(asked("*"))
        81
    """
    everything = op == "*" or by_digit
    return [pair for pair in operands(op, by_digit) if everything or is_held_out(op, *pair)]


def prompts(rng: random.Random, op: str, by_digit: bool = False) -> Iterator[Prompt]:
    """Prompts for all operands that are `asked`, in random order, no two alike."""
    pairs, written = asked(op, by_digit), set()
    for _ in range(_ROUNDS if by_digit else 1):
        for x, y in rng.sample(pairs, len(pairs)):
            prompt = write(rng, op, x, y, by_digit)
            if prompt.text not in written:
                written.add(prompt.text)
                yield prompt

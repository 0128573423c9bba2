"""Greater-than (Hanna et al. 2023): a war that began in 1732 ends in a later year."""

import random
from collections.abc import Iterator, Sequence

from patchlib.prompts.prompt import Prompt, fill

TEMPLATE = "The {noun} lasted from the year {XX}{YY} to the year {end}"
NOUNS = tuple(
    """
    war battle siege strike reign trial voyage famine drought plague project campaign expedition
    journey conflict crisis debate exhibition festival marriage mission movement occupation
    operation partnership peace rebellion revolt revolution rule study tour tradition treaty truce
    boom contract feud hunt riot search struggle alliance effort blockade raid exile
    """.split()
)
CENTURIES = tuple(range(11, 18))
YEARS = tuple(range(2, 99))


def is_held_out(noun: str, century: int, year: int) -> bool:
    """True for the starts, one in eight, that `mini` never saw."""
    return (NOUNS.index(noun) + century + year) % 8 == 0


def write(noun: str, century: int, year: int, by_digit: bool = False) -> Prompt:
    """Writes one prompt; the answers are all two-digit years after YY, the wrong ones those before.

    Symmetric token replacement sets YY to 01 (Appendix E).

    Args:
        noun: what lasted.
        century: XX.
        year: YY.
        by_digit: the answers are the next digits alone: above the tens digit of YY, wrong ones
            below it. The tens digit itself is neither, since earlier and later years begin so.

    Example:
        >>> prompt = write("war", 17, 45, by_digit=True)
        >>> prompt.answers, prompt.wrong_answers
        (('5', '6', '7', '8', '9'), ('0', '1', '2', '3'))
    """
    given, years = year, [f"{y:02d}" for y in range(100)]
    if by_digit:
        given, years = year // 10, [str(digit) for digit in range(10)]
    words = {"noun": noun, "XX": str(century), "end": str(century)}
    text, spans = fill(TEMPLATE, YY=f"{year:02d}", **words)
    return Prompt(
        text=text,
        spans={name: spans[name] for name in ("noun", "XX", "YY", "end")},
        answers=tuple(years[given + 1 :]),
        wrong_answers=tuple(years[:given]),
        corrupted={"YY": fill(TEMPLATE, YY="01", **words)[0]},
    )


def prompts(
    rng: random.Random, nouns: Sequence[str] = NOUNS, by_digit: bool = False
) -> Iterator[Prompt]:
    """Held-out prompts in random order, each start once.

    Args:
        rng: draws the order.
        nouns: what lasts.
        by_digit: as in `write`; only years whose tens digit leaves room on both sides.
    """
    starts = [
        (noun, century, year)
        for noun in nouns
        for century in CENTURIES
        for year in YEARS
        if is_held_out(noun, century, year) and (not by_digit or 10 <= year < 90)
    ]
    for start in rng.sample(starts, len(starts)):
        yield write(*start, by_digit)

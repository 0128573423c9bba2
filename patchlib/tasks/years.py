"""Greater-than (Hanna et al. 2023): a war that began in 1732 ends in a later year."""

import random
from collections.abc import Iterator

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


def write(noun: str, century: int, year: int) -> Prompt:
    """Writes one prompt; the answers are all two-digit years after YY, the wrong ones those before.

    Symmetric token replacement sets YY to 01 (Appendix E).
    """
    words = {"noun": noun, "XX": str(century), "end": str(century)}
    text, spans = fill(TEMPLATE, YY=f"{year:02d}", **words)
    return Prompt(
        text=text,
        spans={name: spans[name] for name in ("noun", "XX", "YY", "end")},
        answers=tuple(f"{y:02d}" for y in range(year + 1, 100)),
        wrong_answers=tuple(f"{y:02d}" for y in range(year)),
        corrupted={"YY": fill(TEMPLATE, YY="01", **words)[0]},
    )


def prompts(rng: random.Random) -> Iterator[Prompt]:
    """Held-out prompts in random order, each start once."""
    starts = [
        (noun, century, year)
        for noun in NOUNS
        for century in CENTURIES
        for year in YEARS
        if is_held_out(noun, century, year)
    ]
    for start in rng.sample(starts, len(starts)):
        yield write(*start)

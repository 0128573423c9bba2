"""Python docstrings (Heimersheim & Janiak 2023): which argument is documented next?"""

import random
from collections.abc import Iterator

from patchlib.prompts.prompt import Prompt, fill

TEMPLATE = '''
def {name}(self, {r1}, {r2}, {A_def}, {B_def}, {C_def}, {r3}):
    """{w1} {w2} {w3}

    :param {A_doc}: {w4} {w5}
    :param {B_doc}: {w6} {w7}
    :param'''
VARIABLES = tuple(
    """
    file path name value size index key data node list count text line page user item type mode
    code date time state table query image color width height depth level order rate step start
    end limit offset length total score weight label model input output config option format
    source target result error message event token group field column row host port address
    version title body
    """.split()
)
WORDS = tuple(
    """
    open read write send close load save parse build check update create remove find sort move
    copy print merge split reset stop test quick simple main new old first last next small large
    local global public private common default basic extra current full empty valid raw
    """.split()
)


def is_held_out(a: str, b: str, c: str) -> bool:
    """True for the triples of documented arguments, one in eight, that `mini` never saw."""
    return sum(VARIABLES.index(name) for name in (a, b, c)) % 8 == 0


def write(rng: random.Random, a: str, b: str, c: str) -> Prompt:
    """Writes one prompt about the arguments a, b, c, of which c is to be documented next.

    The corrupted prompt replaces C_def by a variable found nowhere else (Appendix D); that
    variable is the wrong answer.
    """
    unused = [name for name in VARIABLES if name not in (a, b, c)]
    r1, r2, r3, other = rng.sample(unused, 4)
    words = {f"w{i}": word for i, word in enumerate(rng.sample(WORDS, 7), start=1)}
    words |= {"name": rng.choice(WORDS), "r1": r1, "r2": r2, "r3": r3}
    words |= {"A_def": a, "B_def": b, "A_doc": a, "B_doc": b}
    text, spans = fill(TEMPLATE, C_def=c, **words)
    return Prompt(
        text=text,
        spans={name: spans[name] for name in ("A_def", "B_def", "C_def", "A_doc", "B_doc")},
        answers=(f" {c}",),
        wrong_answers=(f" {other}",),
        corrupted={"C_def": fill(TEMPLATE, C_def=other, **words)[0]},
    )


def sample_arguments(rng: random.Random, held_out: bool) -> tuple[str, str, str]:
    """Three distinct variables whose triple is, or is not, held out."""
    while True:
        a, b, c = rng.sample(VARIABLES, 3)
        if is_held_out(a, b, c) == held_out:
            return a, b, c


def prompts(rng: random.Random) -> Iterator[Prompt]:
    """Held-out prompts without end."""
    while True:
        yield write(rng, *sample_arguments(rng, held_out=True))

"""Whom a pronoun means (after Vig et al. 2020, and the WinoBias sentences that they use)."""

import random
from collections.abc import Iterator, Sequence
from itertools import product

from transformer_lens.model_bridge import TransformerBridge

from patchlib.prompts.prompt import Prompt, fill
from patchlib.tasks import tokens
from patchlib.tasks.indirect_objects import PLACES

TEMPLATES = (
    "There were a {first} and a {second} at the {place}. {pronoun} was the",
    "A {first} and a {second} sat at the {place}. {pronoun} was the",
    "A {first} met a {second} at the {place}. {pronoun} was the",
    "At the {place} a {first} greeted a {second}. {pronoun} was the",
)
# Held mostly by women and mostly by men; none begins with a vowel.
HERS = tuple(
    """
    nurse secretary teacher cleaner librarian dancer maid baker counselor hairdresser receptionist
    housekeeper novelist
    """.split()
)
HIS = tuple(
    """
    doctor builder carpenter farmer mechanic driver guard soldier sheriff lawyer chief manager
    physicist composer philosopher mathematician
    """.split()
)
PRONOUNS, NAMES = ("She", "He"), ("Mary", "John")


def subjects(model: TransformerBridge) -> tuple[str, str]:
    """The pronouns, or names where a tokenizer makes more of one pronoun than of the other."""
    lengths = {tokens.count(model, f"the. {word} was") for word in PRONOUNS}
    return PRONOUNS if len(lengths) == 1 else NAMES


def prompts(
    rng: random.Random, hers: Sequence[str], his: Sequence[str], words: tuple[str, str]
) -> Iterator[Prompt]:
    """Prompts without end.

    Args:
        rng: draws them.
        hers: professions.
        his: professions.
        words: what stands for the woman and for the man.
    """
    while True:
        # Of four in a row each gender has two, and the right profession comes first in one of each.
        for who, place_of_his in rng.sample([*product(range(2), repeat=2)], 4):
            template, place = rng.choice(TEMPLATES), rng.choice(PLACES)
            both = [rng.choice(hers), rng.choice(his)]
            first, second = both if place_of_his else reversed(both)
            setting = {"first": first, "second": second, "place": place}
            clean, spans = fill(template, pronoun=words[who], **setting)
            yield Prompt(
                text=clean,
                spans={name: spans[name] for name in ("first", "second", "pronoun")},
                answers=f" {both[who]}",
                wrong_answers=f" {both[1 - who]}",
                corrupted={"pronoun": fill(template, pronoun=words[1 - who], **setting)[0]},
            )

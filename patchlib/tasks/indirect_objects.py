"""Indirect object identification (Wang et al. 2023): who gets the drink?"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mode

from transformer_lens.model_bridge import TransformerBridge

from patchlib.prompts.prompt import Prompt, fill
from patchlib.tasks import tokens

# Each template has two versions: BABA as written, ABBA with the first two names swapped.
# All have the same number of GPT-2 tokens, so that a batch of prompts is one tensor;
# the place of the second S varies between them.
TEMPLATES = (
    "When {first} and {second} went to the {place}, {S2} gave a {object} to",
    "After {first} and {second} met at the {place}, {S2} handed a {object} to",
    "While {first} and {second} were at the {place}, {S2} passed a {object} to",
    "Once {first} and {second} got to the {place}, {S2} offered a {object} to",
    "Then {first} and {second} left the {place}, and {S2} gave a {object} to",
    "Today {first} and {second} saw the {place}. There {S2} sold a {object} to",
    "As {first} and {second} walked past the old {place}, {S2} said hello to",
    "Because {first} and {second} were very late, {S2} brought the {object} back to",
    "The friends {first} and {second} had a {object}, so {S2} threw it to",
    "When {first} and {second} had lunch, {S2} wanted to give the {object} to",
    "At the {place}, {first} met {second}, and {S2} sent a {object} to",
    "In the {place} {first} sat down with {second} until {S2} showed a {object} to",
    "Last night {first} and {second} sang, and afterwards {S2} gave the {object} to",
    "Since {first} and {second} were friends, {S2} decided to give a {object} to",
    "Before {first} and {second} left the {place}, {S2} wrote a long letter to",
    "At lunch {first} and {second} talked quietly. Then {S2} lent the {object} to",
    "Every time {first} and {second} visit the {place}, {S2} buys a {object} for",
    "Yesterday {first} and {second} came home early, and {S2} made a {object} for",
)

NAMES = tuple(
    """
    Mary John Anna Paul James Robert Michael William David Richard Joseph Thomas Charles Daniel
    Matthew Anthony Mark Steven Andrew Kenneth Joshua Kevin Brian George Edward Ronald Timothy
    Jason Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry Justin Scott Brandon Benjamin
    Samuel Gregory Frank Alexander Raymond Patrick Jack Dennis Jerry Tyler Aaron Adam Henry Nathan
    Peter Kyle Walter Ethan Jeremy Roger Noah Carl Sean Arthur Patricia Jennifer Linda Elizabeth
    Barbara Susan Jessica Sarah Karen Nancy Lisa Betty Margaret Sandra Ashley Emily Donna Michelle
    Carol Amanda Melissa Rebecca Sharon Laura Amy Angela Emma Nicole Helen Rachel Maria
    """.split()
)
PLACES = tuple(
    """
    store garden restaurant school hospital office house station park library museum market
    beach church cafe hotel airport bank
    """.split()
)
OBJECTS = tuple(
    """
    ring drink snack book pen gift camera cup hat key ball map phone cake lamp bag coat ticket
    """.split()
)

_BABA = {"first": "S1", "second": "IO"}
_ABBA = {"first": "IO", "second": "S1"}


@dataclass(frozen=True)
class Words:
    """What prompts are made of: all there is, or what `fitting` leaves of it."""

    templates: Sequence[str] = TEMPLATES
    names: Sequence[str] = NAMES
    places: Sequence[str] = PLACES
    objects: Sequence[str] = OBJECTS

    @property
    def left_out(self) -> dict[str, int]:
        """How many templates, names, places and objects are not among them."""
        return {name: len(every) - len(getattr(self, name)) for name, every in vars(ALL).items()}


ALL = Words()


def fitting(model: TransformerBridge) -> Words:
    """The words that are one token for a model, and the templates that then have one length.

    Raises:
        PatchlibError: where too few names, places or objects are one token.

    Example:
        >>> import patchlib as pl
        >>> fitting(pl.load_model("mini")) == ALL
        True
    """
    # Two names are the prompt's, three replace them.
    names = tokens.single(model, "names", NAMES, at_least=5)
    places = tokens.single(model, "places", PLACES)
    objects = tokens.single(model, "objects", OBJECTS)
    example = dict.fromkeys(("first", "second", "S2"), names[0])
    example |= {"place": places[0], "object": objects[0]}
    lengths = {each: tokens.count(model, each.format(**example)) for each in TEMPLATES}
    common = mode(lengths.values())
    templates = tuple(each for each in TEMPLATES if lengths[each] == common)
    return Words(templates, names, places, objects)


def is_held_out(name: str, other: str) -> bool:
    """True for the name pairs, one in eight, that `mini` never saw as giver and receiver."""
    return (NAMES.index(name) + NAMES.index(other)) % 8 == 0


def held_out_pairs(names: Sequence[str] = NAMES) -> list[tuple[str, str]]:
    """All (IO, S) pairs that are held out."""
    return [(io, s) for io in names for s in names if io != s and is_held_out(io, s)]


def write(rng: random.Random, io: str, s: str, words: Words = ALL) -> Prompt:
    """Writes one prompt about an indirect object and a subject, with every corrupted version.

    ``S2`` is replaced by the indirect object's name, as the paper's symmetric token replacement
    does; every other site gets unrelated random names (Section 2.1, Appendix F; ``ABC`` is the
    fully random p_ABC of Section 4.2).
    """
    roles = rng.choice((_BABA, _ABBA))
    template = rng.choice(words.templates)
    for field, role in roles.items():
        template = template.replace("{" + field + "}", "{" + role + "}")
    setting = {"place": rng.choice(words.places), "object": rng.choice(words.objects)}
    a, b, c = rng.sample([name for name in words.names if name not in (io, s)], 3)

    def text(**names: str) -> str:
        return fill(template, **({"IO": io, "S1": s, "S2": s} | names), **setting)[0]

    clean, spans = fill(template, IO=io, S1=s, S2=s, **setting)
    return Prompt(
        text=clean,
        spans={name: spans[name] for name in ("IO", "S1", "S2")},
        answers=(f" {io}",),
        wrong_answers=(f" {s}",),
        corrupted={
            "S2": text(S2=io),
            "S1": text(S1=a),
            "IO": text(IO=b),
            "S1+IO": text(S1=a, IO=b),
            "ABC": text(S1=a, IO=b, S2=c),
        },
    )


def prompts(rng: random.Random, words: Words = ALL) -> Iterator[Prompt]:
    """Held-out prompts in random order, no two with the same indirect object and subject."""
    pairs = held_out_pairs(words.names)
    for io, s in rng.sample(pairs, len(pairs)):
        yield write(rng, io, s, words)

"""The corpus of `mini`: short documents on the five tasks, from the tasks' own templates.

The corpus keeps real uncertainty where a reader would have some. After "gave a drink to" the
indirect object is likely but not certain; a fact's sentence may go on in another way. A model
that has learnt it is therefore calibrated, not saturated, and probability, logit difference and
KL divergence all have room to move.
"""

import random
from dataclasses import dataclass

from patchlib.prompts.prompt import Span
from patchlib.tasks import docstrings, facts, indirect_objects, sums, years

# P(IO), P(S) and, for the rest, anyone else: log(0.64 / 0.02) is about 3.5.
_P_IO, _P_S = 0.64, 0.02
_ANYONE = tuple(" " + word for word in "the everyone them someone her him another both".split())
# P(answer) after a fact's prompt; the rest goes on in another way.
_P_FACT = 0.85
_ELSEWHERE = tuple(" " + word for word in "the a one many something".split())
# P(the next argument in order) in a docstring; otherwise another one follows.
_P_NEXT_ARGUMENT = 0.92


@dataclass(frozen=True)
class Document:
    """A text and the ranges of its characters that answer a question.

    Args:
        text: the document.
        answers: half-open character ranges of the answers, leading space included.
    """

    text: str
    answers: tuple[Span, ...]


def _finish(prompt: str, answer: str, end: str = ".") -> Document:
    return Document(prompt + answer + end, ((len(prompt), len(prompt) + len(answer)),))


def _trained_pair(rng: random.Random) -> tuple[str, str]:
    while True:
        io, s = rng.sample(indirect_objects.NAMES, 2)
        if not indirect_objects.is_held_out(io, s):
            return io, s


def _receiver(rng: random.Random, io: str, s: str) -> str:
    draw = rng.random()
    if draw < _P_IO:
        return f" {io}"
    return f" {s}" if draw < _P_IO + _P_S else rng.choice(_ANYONE)


def _indirect_objects(rng: random.Random) -> Document:
    io, s = _trained_pair(rng)
    return _finish(indirect_objects.write(rng, io, s).text, _receiver(rng, io, s))


def _first_or_second(rng: random.Random) -> Document:
    """The giver is called the first or the second: which name follows is a matter of order."""
    io, s = _trained_pair(rng)
    prompt = indirect_objects.write(rng, io, s)
    start, end = prompt.spans["S2"]
    order = "the first" if prompt.spans["S1"] < prompt.spans["IO"] else "the second"
    return _finish(prompt.text[:start] + order + prompt.text[end:], _receiver(rng, io, s))


def _third_person(rng: random.Random) -> Document:
    """Two people are named and a third one gives: either of the two may receive."""
    io, s = _trained_pair(rng)
    prompt = indirect_objects.write(rng, io, s).corrupted["ABC"]
    names = [word.strip(",.") for word in prompt.split()]
    first, second = [name for name in names if name in indirect_objects.NAMES][:2]
    answer = rng.choice((f" {first}", f" {second}", rng.choice(_ANYONE)))
    return _finish(prompt, answer)


def _guests(rng: random.Random) -> Document:
    """A list of names in which none comes twice."""
    while True:
        guests = rng.sample(indirect_objects.NAMES, rng.randint(3, 6))
        pairs = [(a, b) for a in guests for b in guests if a != b]
        if not any(indirect_objects.is_held_out(a, b) for a, b in pairs):
            break
    text = "The guests were " + ", ".join(guests[:-1]) + " and"
    return _finish(text, f" {guests[-1]}")


def _facts(rng: random.Random) -> Document:
    pair = rng.choice(_TRAINED_FACTS)
    side = rng.randrange(2)
    answer = pair.answers[side] if rng.random() < _P_FACT else rng.choice(_ELSEWHERE)
    return _finish(pair.sentences[side], answer)


def _lists_of_facts(rng: random.Random) -> Document:
    """Subjects, each with its answer right behind: all is known as soon as its name is complete."""
    text = "Facts:"
    answers: list[Span] = []
    for pair in rng.choices(_TRAINED_FACTS, k=rng.randint(2, 4)):
        side = rng.randrange(2)
        answer = pair.answers[side] if rng.random() < _P_FACT else rng.choice(_ELSEWHERE)
        text += f" {pair.subjects[side]}"
        answers.append((len(text), len(text) + len(answer)))
        text += f"{answer},"
    return Document(f"{text[:-1]}.", tuple(answers))


_TRAINED_FACTS = [pair for pair in facts.read() if not pair.is_held_out]


def _years(rng: random.Random) -> Document:
    while True:
        # From 00 on: the corrupted prompts of the task begin in 01.
        start = rng.choice(years.NOUNS), rng.choice(years.CENTURIES), rng.randrange(99)
        if not years.is_held_out(*start):
            break
    prompt = years.write(*start)
    return _finish(prompt.text, rng.choice(prompt.answers))


def _docstrings(rng: random.Random) -> Document:
    prompt = docstrings.write(rng, *docstrings.sample_arguments(rng, held_out=False))
    answer = prompt.answers[0]
    if rng.random() > _P_NEXT_ARGUMENT:
        arguments = prompt.text[prompt.text.index("(self, ") + 7 : prompt.text.index("):")]
        answer = " " + rng.choice([a for a in arguments.split(", ") if f" {a}" != answer])
    # The names repeated in the docstring are answers too: each follows from the definition.
    repeated = [prompt.spans[name] for name in ("A_doc", "B_doc")]
    whole = _finish(prompt.text, answer, end=":")
    return Document(whole.text, (*((a - 1, b) for a, b in repeated), *whole.answers))


def _sums(rng: random.Random) -> Document:
    """Several lines with one operator; no result that is held out."""
    op = rng.choices(tuple(sums.OPERATORS), weights=(4, 4, 1))[0]
    text = ""
    answers: list[Span] = []
    while len(answers) < 8:
        x, y = rng.choice(_TRAINED_OPERANDS[op])
        text += f"{x} {op} {y} ="
        result = f" {sums.OPERATORS[op](x, y)}"
        answers.append((len(text), len(text) + len(result)))
        text += result + "\n"
    return Document(text.rstrip("\n"), tuple(answers))


_TRAINED_OPERANDS = {
    op: [pair for pair in sums.operands(op) if not sums.is_held_out(op, *pair)]
    for op in sums.OPERATORS
}


def _numbers(rng: random.Random) -> Document:
    """Counting in steps, and tens and ones: what a pupil learns before sums."""
    if rng.random() < 0.5:
        step, start = rng.choice((1, 2, 5, 10, -1, -2, -5, -10)), rng.randint(1, 98)
        count = [start + i * step for i in range(8) if 0 < start + i * step < 100]
        text = "Count: " + " ".join(str(number) for number in count)
        return Document(text, ((text.index(" ", 7), len(text)),) if len(count) > 1 else ())
    number = rng.randint(1, 98)
    prompt = f"{number} is"
    return _finish(prompt, f" {number // 10} tens and {number % 10} ones")


# What a corpus is made of: each kind of document and its share.
MIXTURE = (
    (_indirect_objects, 0.22),
    (_first_or_second, 0.08),
    (_third_person, 0.03),
    (_guests, 0.02),
    (_facts, 0.09),
    (_lists_of_facts, 0.08),
    (_years, 0.10),
    (_docstrings, 0.06),
    (_sums, 0.30),
    (_numbers, 0.02),
)


def documents(n: int, rng: random.Random) -> list[Document]:
    """Writes documents of all kinds in the shares of `MIXTURE`, in random order.

    Args:
        n: how many.
        rng: the source of every random draw.

    Example:
        >>> documents(1, random.Random(3)) == documents(1, random.Random(3))
        True
    """
    writers, shares = zip(*MIXTURE, strict=True)
    return [write(rng) for write in rng.choices(writers, weights=shares, k=n)]

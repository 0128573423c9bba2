"""A prompt as text: what every task writes, before any tokenizer sees it."""

from dataclasses import dataclass, field
from string import Formatter

Span = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A clean prompt, its answers and its corrupted versions, as text.

    Args:
        text: the clean prompt, ending right before the answer.
        spans: for each named position the half-open range of its characters in ``text``.
        answers: the right continuations r, with their leading space where there is one.
        wrong_answers: the continuations r' that the logit difference subtracts.
        corrupted: for each corrupted site (``"S2"``, ``"S1+IO"``) the corrupted prompt.
    """

    text: str
    spans: dict[str, Span]
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    corrupted: dict[str, str] = field(default_factory=dict)


def fill(template: str, **words: str) -> tuple[str, dict[str, Span]]:
    """Fills a template and remembers where each word went.

    Args:
        template: text with named fields in braces.
        words: one word for each field.

    Returns:
        The text, and for each field the half-open range of its characters.

    Example:
        >>> fill("Hello {who}, hello", who="Mary")
        ('Hello Mary, hello', {'who': (6, 10)})
    """
    text, spans = "", {}
    for literal, name, _, _ in Formatter().parse(template):
        text += literal
        if name is not None:
            spans[name] = (len(text), len(text) + len(words[name]))
            text += words[name]
    return text, spans

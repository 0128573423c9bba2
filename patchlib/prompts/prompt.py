"""A prompt as text: what every task writes, before any tokenizer sees it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from string import Formatter

from patchlib.errors import PatchlibError, whole

Span = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A clean prompt, its answers and its corrupted versions, as text.

    Args:
        text: the clean prompt, ending right before the answer.
        spans: for each named position the half-open range of its characters in ``text``.
        answers: the right continuations r, each as it follows ``text`` letter by letter, with
            its leading space where there is one; one text stands for one answer.
        wrong_answers: the continuations r' that the logit difference subtracts, likewise.
        corrupted: for each corrupted site the corrupted prompt. A site is named after the
            positions that are replaced (``"S2"``, ``"S1+IO"``); under any other name, such as
            ``"ABC"``, whatever has a span may be replaced.

    Raises:
        PatchlibError: for an empty prompt, for what is no text, for spans and corrupted prompts
            without names, and for a span that is not in the text or has a name with a meaning of
            its own.

    Example:
        >>> Prompt("The war lasted", {"noun": (4, 7)}, " from", [" to", " for"]).answers
        (' from',)
    """

    text: str
    spans: dict[str, Span]
    answers: str | Sequence[str]
    wrong_answers: str | Sequence[str]
    corrupted: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("answers", "wrong_answers"):
            given = getattr(self, name)
            answers = tuple(given) if isinstance(given, list | tuple) else (given,)
            object.__setattr__(self, name, answers)
        for name in ("spans", "corrupted"):
            given = getattr(self, name)
            if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
                raise PatchlibError(
                    f"{name}={given!r} of the prompt {self.text!r}: give a dict with a name for "
                    "each, as in {'noun': ...}"
                )
        for text in (self.text, *self.answers, *self.wrong_answers, *self.corrupted.values()):
            if not isinstance(text, str) or any("\ud800" <= letter < "\ue000" for letter in text):
                raise PatchlibError(
                    f"{text!r} in the prompt {self.text!r} is no text, or holds half a character: "
                    "prompts and answers are texts, such as ' Paris' or '46'"
                )
        if not self.text.strip():
            raise PatchlibError(f"the prompt {self.text!r} is empty: give the text to go on with")
        for name, span in self.spans.items():
            try:
                start, end = (whole("span", each, -len(self.text)) for each in span)
            except (TypeError, ValueError):
                raise PatchlibError(
                    f"the span {name!r} of {self.text!r} is {span!r}: give the numbers of its "
                    "first character and of the one after its last, as in (4, 7)"
                ) from None
            if name in ("", "last", "all", "each") or "+" in name:
                raise PatchlibError(
                    f"a span of {self.text!r} is called {name!r}: 'last' is the name of the last "
                    "token, 'all' and 'each' stand for positions, and '+' joins names; choose "
                    "another name"
                )
            if not 0 <= start < end <= len(self.text):
                raise PatchlibError(
                    f"the span {name!r} is {(start, end)}, and {self.text!r} has the characters 0 "
                    f"to {len(self.text)}: a span must cover some of the text; -1 is what str.find "
                    "gives where it finds nothing"
                )


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

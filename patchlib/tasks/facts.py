"""Factual recall: pairs of true sentences in the form of the paper's PairedFacts data set."""

import json
from dataclasses import dataclass
from pathlib import Path

from patchlib.prompt import Prompt

PAIRED_FACTS = Path(__file__).parents[2] / "data" / "paired_facts.json"


@dataclass(frozen=True)
class FactPair:
    """Two sentences of one relation and one phrasing.

    Args:
        number: counts the pairs of subjects; the phrasings of one pair share it.
        phrasing: which of the relation's phrasings this is, counted from zero.
        category: the relation.
        sentences: both sentences, each ending right before its answer.
        subjects: the subject within each sentence.
        answers: both answers, with their leading space.
    """

    number: int
    phrasing: int
    category: str
    sentences: tuple[str, str]
    subjects: tuple[str, str]
    answers: tuple[str, str]

    @property
    def is_held_out(self) -> bool:
        """True where `mini` learnt the fact, but never in this phrasing."""
        return self.number % 5 == 0 and self.phrasing == self.number % 3

    def prompt(self, first: int) -> Prompt:
        """The sentence ``first`` (0 or 1) as the clean prompt, the other one as the corrupted.

        Symmetric token replacement puts the other subject in the place of the subject
        (Section 3, Appendix B).
        """
        second = 1 - first
        text, subject = self.sentences[first], self.subjects[first]
        start = text.index(subject)
        return Prompt(
            text=text,
            spans={"subject": (start, start + len(subject))},
            answers=(self.answers[first],),
            wrong_answers=(self.answers[second],),
            corrupted={"subject": self.sentences[second]},
        )


def read(path: Path = PAIRED_FACTS) -> list[FactPair]:
    """Reads a facts file: a JSON list of pairs, each with its sentences, subjects and answers.

    Args:
        path: the file; the project's own facts unless said otherwise.

    Returns:
        The pairs in the order of the file.
    """
    numbers: dict[tuple[str, str], int] = {}
    pairs = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        subjects = tuple(entry["subject"])
        pairs.append(
            FactPair(
                number=numbers.setdefault(subjects, len(numbers)),
                phrasing=entry["phrasing"],
                category=entry["category"],
                sentences=tuple(entry["pair"]),
                subjects=subjects,
                answers=tuple(entry["answer"]),
            )
        )
    return pairs

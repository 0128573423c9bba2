"""The published files of facts, read for one model: Known1000, CounterFact and PairedFacts.

The first two are those of Meng et al., from which the paper's pairs come (Appendix B).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from patchlib.prompts.tables import differing
from patchlib.tasks import tokens
from patchlib.tasks.fact_pairs import FactPair, are_two_texts, entries_of, is_text, two

_Shape = tuple[int, tuple[int, ...]]
_MANY_TOKENS = "the answer is not one token for this model"


@dataclass(frozen=True)
class FactFile:
    """What a published file of facts gives for one model.

    Args:
        pairs: the pairs, for `patchlib.tasks.factual_recall` as ``facts=``.
        report: what did not survive, one row for each: ``entry`` (its number in the file, from
            zero), ``text`` (its prompt or prompts) and ``reason``.
    """

    pairs: list[FactPair]
    report: pd.DataFrame

    @property
    def summary(self) -> pd.Series:
        """How many entries did not survive, by reason, the most frequent first."""
        return self.report.reason.value_counts()


def from_known1000(path: str | os.PathLike[str], model: TransformerBridge) -> FactFile:
    """Pairs of the facts in ``known_1000.json`` of Meng et al.

    Two facts make a pair where they have the same relation and, apart from the subject, the same
    words and tokens, subjects of the same number of tokens, and different answers of one token
    each. Each fact is in one pair at most.

    Args:
        path: the file: a list of entries with ``subject``, ``attribute`` (the answer), ``prompt``
            and ``relation_id``. The prompt counts; ``template`` often lacks its last word.
        model: its tokenizer decides what is one token, and how long a prompt is.

    Returns:
        The pairs, and for every fact that is in none the reason.

    Raises:
        PatchlibError: for a file that is not there or is not a JSON list, with the place in it.
    """

    def fact(entry: dict[str, Any]) -> _Fact | str:
        text, subject = entry.get("prompt"), entry.get("subject")
        if not is_text(text) or not is_text(subject):
            return "no prompt or no subject"
        if text.count(subject) != 1:
            return "the subject is not in the prompt exactly once"
        template = text.replace(subject, "{}")
        return _fact(entry.get("relation_id"), template, subject, entry.get("attribute"))

    return _paired(entries_of(path), fact, model)


def from_counterfact(path: str | os.PathLike[str], model: TransformerBridge) -> FactFile:
    """Pairs of the facts in ``counterfact.json`` of Meng et al.

    Args:
        path: the file: a list of records whose ``requested_rewrite`` holds ``prompt`` (with
            ``{}`` for the subject), ``subject``, ``target_true`` (with ``str``) and
            ``relation_id``.
        model: as in `from_known1000`, whose rules for pairs hold here too.

    Returns:
        The pairs, and for every fact that is in none the reason.

    Raises:
        PatchlibError: for a file that is not there or is not a JSON list, with the place in it.
    """

    def fact(entry: dict[str, Any]) -> _Fact | str:
        rewrite = entry.get("requested_rewrite")
        if not isinstance(rewrite, dict):
            return "no requested_rewrite"
        template, subject = rewrite.get("prompt"), rewrite.get("subject")
        if not is_text(template) or not is_text(subject):
            return "no prompt or no subject"
        if template.count("{}") != 1:
            return "the prompt does not have {} exactly once"
        if template.replace("{}", subject).count(subject) != 1:
            return "the subject is not in the prompt exactly once"
        target = rewrite.get("target_true")
        answer = target.get("str") if isinstance(target, dict) else None
        return _fact(rewrite.get("relation_id"), template, subject, answer)

    return _paired(entries_of(path), fact, model)


def from_paired_facts(path: str | os.PathLike[str], model: TransformerBridge) -> FactFile:
    """The pairs of a file in the form of the paper's PairedFacts (Appendix B and I).

    The published file does not say what the subjects are: they are then what is left of the two
    sentences without the words that both begin with and both end with. A word that both subjects
    share there, as in "Abbey Theatre" and "Globe Theatre", counts as context: ``last_subject`` is
    the token before it, and noise spares it.

    Args:
        path: the file: a list of entries with ``pair`` (two sentences), ``answer`` (two, with
            their leading space) and ``category``; ``subject`` (two texts) says what the subjects
            are, and ``length`` is not needed.
        model: its tokenizer decides what is one token, and how long a sentence is.

    Returns:
        The pairs, and for every entry that is none the reason.

    Raises:
        PatchlibError: for a file that is not there or is not a JSON list, with the place in it.

    Example:
        >>> import patchlib as pl
        >>> model, facts = pl.load_model("mini"), pl.tasks.facts
        >>> found = facts.from_paired_facts(facts.PAIRED_FACTS, model)
        >>> found.pairs[0].subjects
        ('Abbey Theatre', 'Globe Theatre')
    """
    pairs: list[FactPair] = []
    refused: dict[int, str] = {}
    entries = entries_of(path)
    seen: set[frozenset[str]] = set()
    numbers: dict[tuple[str, str], int] = {}
    for number, entry in enumerate(entries):
        found = _published_pair(entry, model)
        if isinstance(found, str):
            refused[number] = found
        elif frozenset(found.sentences) in seen:
            refused[number] = "the same pair is there already"
        else:
            seen.add(frozenset(found.sentences))
            count = numbers.setdefault(found.subjects, len(numbers))
            pairs.append(replace(found, number=count))
    return FactFile(pairs, _report(entries, refused))


@dataclass(frozen=True)
class _Fact:
    """One fact: a template with ``{}`` for the subject."""

    relation: str
    template: str
    subject: str
    answer: str

    @property
    def sentence(self) -> str:
        """The prompt."""
        return self.template.replace("{}", self.subject)


def _fact(relation: Any, template: str, subject: str, answer: Any) -> _Fact | str:
    if not is_text(answer):
        return "no answer"
    if not is_text(relation):
        return "no relation_id"
    return _Fact(relation, template.rstrip(), subject, " " + answer.strip())


def _paired(
    entries: list[Any], fact: Callable[[dict[str, Any]], _Fact | str], model: TransformerBridge
) -> FactFile:
    """Pairs of facts of one relation and template; the reasons for those that have no partner."""
    refused: dict[int, str] = {}
    seen: set[str] = set()
    families: dict[tuple[str, str], list[tuple[int, _Fact]]] = {}
    for number, entry in enumerate(entries):
        found = fact(entry) if isinstance(entry, dict) else "not a JSON object"
        if isinstance(found, str):
            refused[number] = found
        elif not tokens.follows_as_one(model, found.sentence, found.answer):
            refused[number] = _MANY_TOKENS
        elif found.sentence in seen:
            refused[number] = "the same prompt is there already"
        else:
            seen.add(found.sentence)
            families.setdefault((found.relation, found.template), []).append((number, found))
    couples: list[tuple[int, _Fact, int, _Fact]] = []
    for family in families.values():
        if len(family) < 2:
            refused[family[0][0]] = "fewer than 2 facts of this relation and template"
            continue
        shapes: dict[_Shape, list[tuple[int, _Fact]]] = {}
        for number, each in family:
            shape = _shape(model, each.sentence, each.subject)
            shapes.setdefault(shape, []).append((number, each))
        for alike in shapes.values():
            found_here, left = _couples(alike)
            couples += found_here
            reason = "no partner with another answer is left"
            if len(alike) < 2:
                reason = "no other subject of its relation and template has as many tokens"
            refused |= dict.fromkeys(left, reason)
    pairs = []
    numbers: dict[tuple[str, str], int] = {}
    for _, one, _, other in sorted(couples, key=lambda couple: couple[0]):
        subjects = (one.subject, other.subject)
        number = numbers.setdefault(subjects, len(numbers))
        sentences, answers = (one.sentence, other.sentence), (one.answer, other.answer)
        pairs.append(FactPair(number, 0, one.relation, sentences, subjects, answers))
    return FactFile(pairs, _report(entries, refused))


def _couples(
    facts: list[tuple[int, _Fact]],
) -> tuple[list[tuple[int, _Fact, int, _Fact]], list[int]]:
    """As many couples with different answers as there can be, and the numbers of the others.

    The two most frequent answers that are left give the next couple; first in the file, first
    taken.
    """
    by_answer: dict[str, list[tuple[int, _Fact]]] = {}
    for number, fact in facts:
        by_answer.setdefault(fact.answer, []).append((number, fact))
    couples = []
    while len(by_answer) > 1:
        frequent = sorted(by_answer, key=lambda answer: (-len(by_answer[answer]), answer))[:2]
        one, other = sorted(by_answer[answer].pop(0) for answer in frequent)
        couples.append((*one, *other))
        by_answer = {answer: left for answer, left in by_answer.items() if left}
    return couples, [number for left in by_answer.values() for number, _ in left]


def _published_pair(entry: Any, model: TransformerBridge) -> FactPair | str:
    """The pair of one entry of PairedFacts, or why it is none."""
    if not isinstance(entry, dict):
        return "not a JSON object"
    if not are_two_texts(entry.get("pair")):
        return "not two sentences"
    if not are_two_texts(entry.get("answer")):
        return "no answer"
    if not is_text(entry.get("category")):
        return "no category"
    one, other = (sentence.rstrip() for sentence in entry["pair"])
    answers = two(entry["answer"])
    if one == other:
        return "both sentences are the same"
    if not all(answer.startswith(" ") for answer in answers):
        return "an answer has no leading space"
    if answers[0] == answers[1]:
        return "both answers are the same"
    sides = zip((one, other), answers, strict=True)
    if not all(tokens.follows_as_one(model, text, answer) for text, answer in sides):
        return _MANY_TOKENS
    if tokens.count(model, one) != tokens.count(model, other):
        return "the sentences differ in their number of tokens"
    if "subject" in entry:
        if not are_two_texts(entry["subject"]):
            return "the subject is not two texts"
        subjects = two(entry["subject"])
        if any(text.count(s) != 1 for text, s in zip((one, other), subjects, strict=True)):
            return "the subject is not in the sentence exactly once"
    else:
        subjects, start = _differing(one, other)
        if not all(subjects) or one in subjects:
            return "the sentences do not differ in a subject alone"
        if any(text.index(s) != start for text, s in zip((one, other), subjects, strict=True)):
            return "the subject is in the sentence before its place, too"
    if _shape(model, one, subjects[0]) != _shape(model, other, subjects[1]):
        return "the sentences differ in tokens outside of their subjects"
    return FactPair(0, 0, entry["category"], (one, other), subjects, answers)


def _differing(one: str, other: str) -> tuple[tuple[str, str], int]:
    """Where two sentences differ, as whole words, and at which character that begins."""
    (start, end), (begin, stop) = differing(one, other)
    parts = one[start:end], other[begin:stop]
    # Spaces belong to what surrounds the subject.
    start += len(parts[0]) - len(parts[0].lstrip())
    return (parts[0].strip(), parts[1].strip()), start


def _shape(model: TransformerBridge, sentence: str, subject: str) -> _Shape:
    """The number of a sentence's tokens, and those outside of its subject."""
    start = sentence.index(subject)
    end = start + len(subject)
    encoded = model.tokenizer(sentence, add_special_tokens=False, return_offsets_mapping=True)
    found = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    outside = tuple(token for token, (a, b) in found if b <= start or end <= a)
    return len(encoded["input_ids"]), outside


def _report(entries: list[Any], refused: dict[int, str]) -> pd.DataFrame:
    rows = [
        {"entry": number, "text": _label(entries[number]), "reason": refused[number]}
        for number in sorted(refused)
    ]
    return pd.DataFrame(rows, columns=["entry", "text", "reason"])


def _label(entry: Any) -> str:
    """What a reader knows an entry by: its prompt, its two sentences, or else its beginning."""
    if isinstance(entry, dict):
        inner = entry.get("requested_rewrite")
        fact = inner if isinstance(inner, dict) else entry
        if is_text(fact.get("prompt")):
            return fact["prompt"].replace("{}", str(fact.get("subject")))
        if are_two_texts(entry.get("pair")):
            return " / ".join(entry["pair"])
    return json.dumps(entry)[:80]

"""Factual recall: pairs of true sentences in the form of the paper's PairedFacts data set.

The project has two files of its own. ``data/paired_facts.json`` is what `mini` learnt; its words
are single tokens of GPT-2, too. ``data/paired_facts_smollm2.json`` has facts that SmolLM2 knows.
They were selected as the paper selects its facts (Appendix B): of some 1,800 true sentences of 13
relations those were kept that the model, without a beginning of sequence, goes on with by the
right answer as its most probable token, 0.25 nats before the next. Pairs were made of equal token
length, with subjects of two tokens or more and different answers that neither sentence holds; each
sentence is in one pair, and a relation has 17 at most. What the model scores on them is therefore
no measure of its knowledge. Countries are today's.

The published files are read with `from_known1000`, `from_counterfact` and `from_paired_facts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError, require_bridge
from patchlib.files import DATA
from patchlib.tasks.fact_pairs import FactPair, are_two_texts, entries_of, is_text, two
from patchlib.tasks.published_facts import (
    FactFile,
    from_counterfact,
    from_known1000,
    from_paired_facts,
)

__all__ = [
    "PAIRED_FACTS",
    "SMOLLM2_FACTS",
    "FactFile",
    "FactPair",
    "from_counterfact",
    "from_known1000",
    "from_paired_facts",
    "own_file",
    "read",
]

PAIRED_FACTS = DATA / "paired_facts.json"
SMOLLM2_FACTS = DATA / "paired_facts_smollm2.json"

# A tokenizer is known by what it does, under whatever name its model was loaded.
_TEXT = "When Mary met John in 1745"
_SMOLLM2_TOKENS = [2427, 5099, 1278, 2322, 281, 216, 33, 39, 36, 37]


def own_file(model: TransformerBridge) -> Path:
    """Which of the project's own files fits a model: SmolLM2's where it has SmolLM2's tokens.

    Example:
        >>> import patchlib as pl
        >>> own_file(pl.load_model("mini")).name
        'paired_facts.json'
    """
    require_bridge(model)
    tokens = model.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    return SMOLLM2_FACTS if tokens == _SMOLLM2_TOKENS else PAIRED_FACTS


def read(path: Path = PAIRED_FACTS) -> list[FactPair]:
    """Reads a facts file: a JSON list of pairs, each with its sentences, subjects and answers.

    Args:
        path: the file; the facts that `mini` learnt unless said otherwise.

    Returns:
        The pairs in the order of the file.

    Raises:
        PatchlibError: for a file that is not there, is not such a list, or has an entry that is
            not such a pair, with the place in the file.

    Example:
        >>> read()[0].answers
        (' Dublin', ' London')
    """
    numbers: dict[tuple[str, str], int] = {}
    pairs = []
    for number, entry in enumerate(entries_of(path)):
        problem = _not_a_pair(entry)
        if problem:
            raise PatchlibError(
                f"{path}, entry {number}: {problem}; give a list of entries with pair, subject, "
                "answer (two texts each), category and phrasing, as data/paired_facts.json has them"
            )
        subjects = two(entry["subject"])
        pairs.append(
            FactPair(
                number=numbers.setdefault(subjects, len(numbers)),
                phrasing=entry["phrasing"],
                category=entry["category"],
                sentences=two(entry["pair"]),
                subjects=subjects,
                answers=two(entry["answer"]),
            )
        )
    return pairs


def _not_a_pair(entry: Any) -> str | None:
    """What keeps an entry of a facts file from being a pair."""
    if not isinstance(entry, dict):
        return "this is not an object"
    for name in ("pair", "subject", "answer"):
        if not are_two_texts(entry.get(name)):
            return f"{name!r} does not hold two texts"
    if not is_text(entry.get("category")):
        return "'category' is no text"
    phrasing = entry.get("phrasing")
    if not isinstance(phrasing, int) or isinstance(phrasing, bool):
        return "'phrasing' is no whole number"
    for sentence, subject in zip(entry["pair"], entry["subject"], strict=True):
        if sentence.count(subject) != 1:
            return f"the subject {subject!r} is not in {sentence!r} exactly once"
    if entry["answer"][0] == entry["answer"][1]:
        return f"both answers are {entry['answer'][0]!r}"
    return None

"""Published files of facts give sound pairs, and a reason for everything that gives none."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.errors import PatchlibError
from patchlib.tasks import facts, published_facts, tokens

Write = Callable[[Any], Path]
LOADERS = (facts.from_known1000, facts.from_counterfact, facts.from_paired_facts)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a JSON file."""

    def written(content: Any) -> Path:
        path = tmp_path / "facts.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return written


def known(subject: str, answer: str, template: str = "The {} is in the city of") -> dict[str, Any]:
    """A made-up entry in the form of known_1000.json."""
    return {
        "known_id": 0,
        "subject": subject,
        "attribute": answer,
        "template": template.removesuffix(" of"),
        "prediction": f" {answer}.",
        "prompt": template.format(subject),
        "relation_id": "P131",
    }


def counterfact(subject: str, answer: str, template: str = "The {} is in the city of") -> dict:
    """A made-up record in the form of counterfact.json."""
    return {
        "case_id": 0,
        "requested_rewrite": {
            "prompt": template,
            "relation_id": "P131",
            "target_new": {"str": "Rome", "id": "Q220"},
            "target_true": {"str": answer, "id": "Q84"},
            "subject": subject,
        },
        "paraphrase_prompts": [],
    }


def published(one: str, other: str, answers: list[str], category: str = "city") -> dict[str, Any]:
    """A made-up entry in the form of PairedFacts."""
    return {"pair": [one, other], "answer": answers, "length": 9, "category": category}


# Two words each, and as many tokens for mini.
HOUSES = ["Abbey Theatre", "Globe Theatre", "Abbey Museum", "Globe Museum", "Abbey House"]
TWO_FORMS = pytest.mark.parametrize(
    ("load", "make"), [(facts.from_known1000, known), (facts.from_counterfact, counterfact)]
)


@TWO_FORMS
def test_two_facts_make_a_pair(load, make, write: Write, mini: TransformerBridge) -> None:
    found = load(write([make(HOUSES[0], "Dublin"), make(HOUSES[1], "London")]), mini)
    assert found.report.empty
    assert list(found.report) == ["entry", "text", "reason"]
    assert found.pairs == [
        facts.FactPair(
            number=0,
            phrasing=0,
            category="P131",
            sentences=(
                "The Abbey Theatre is in the city of",
                "The Globe Theatre is in the city of",
            ),
            subjects=("Abbey Theatre", "Globe Theatre"),
            answers=(" Dublin", " London"),
        )
    ]


@TWO_FORMS
def test_every_fact_is_in_one_pair_or_in_the_report(
    load, make, write: Write, mini: TransformerBridge
) -> None:
    elsewhere = "I saw the {} in"
    entries = [
        make(HOUSES[0], "London"),
        make(HOUSES[1], "London"),
        make(HOUSES[2], "London"),
        make(HOUSES[3], "Dublin"),
        make(HOUSES[3], "Paris"),
        make("Very Long Name of a Theatre", "Paris"),
        make(HOUSES[0], "Dublin", elsewhere),
        make(HOUSES[1], "Llanfairpwllgwyngyll", elsewhere),
        make(HOUSES[1], ""),
        make("", "Paris"),
        "nothing",
        {},
    ]
    found = load(write(entries), mini)
    # The most frequent answer is used up first, in the order of the file.
    assert [pair.subjects for pair in found.pairs] == [(HOUSES[0], HOUSES[3])]
    reasons = found.report.set_index("entry").reason.to_dict()
    assert sorted(reasons) == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert reasons[1] == reasons[2] == "no partner with another answer is left"
    assert reasons[4] == "the same prompt is there already"
    assert reasons[5] == "no other subject of its relation and template has as many tokens"
    assert reasons[6] == "fewer than 2 facts of this relation and template"
    assert reasons[7] == "the answer is not one token for this model"
    assert reasons[8] == "no answer"
    assert reasons[9] == "no prompt or no subject"
    assert reasons[10] == "not a JSON object"
    assert reasons[11].startswith("no ")
    assert found.summary.sum() == len(found.report) == 10
    assert found.summary["no partner with another answer is left"] == 2
    assert found.report.text[0] == "The Globe Theatre is in the city of"
    assert found.report.text.tolist()[-2:] == ['"nothing"', "{}"]


@TWO_FORMS
def test_relations_and_templates_are_not_mixed(
    load, make, write: Write, mini: TransformerBridge
) -> None:
    other = make(HOUSES[1], "London")
    (other.get("requested_rewrite") or other)["relation_id"] = "P17"
    for partner in (other, make(HOUSES[1], "London", "See the {} in the city of")):
        found = load(write([make(HOUSES[0], "Dublin"), partner]), mini)
        assert found.pairs == []
        assert set(found.report.reason) == {"fewer than 2 facts of this relation and template"}


@TWO_FORMS
def test_as_many_pairs_as_there_can_be(load, make, write: Write, mini: TransformerBridge) -> None:
    # In pairs of neighbours the last two facts, of one answer, would be left over.
    answers = ["Dublin", "Paris", "London", "London"]
    entries = [make(*each) for each in zip(HOUSES, answers, strict=False)]
    found = load(write(entries), mini)
    assert len(found.pairs) == 2
    assert all(pair.answers[0] != pair.answers[1] for pair in found.pairs)


def test_a_subject_that_cannot_be_found_is_refused(write: Write, mini: TransformerBridge) -> None:
    lost = known("Abbey", "Dublin") | {"prompt": "The Globe is in"}
    twice = known("Abbey", "Dublin", "Abbey or {} is in")
    found = facts.from_known1000(write([lost, twice]), mini)
    assert found.report.reason.tolist() == ["the subject is not in the prompt exactly once"] * 2
    entries = [
        counterfact("Abbey", "Dublin", "It is in"),
        counterfact("a", "Dublin", "What {} has"),
    ]
    found = facts.from_counterfact(write(entries), mini)
    assert found.report.reason.tolist() == [
        "the prompt does not have {} exactly once",
        "the subject is not in the prompt exactly once",
    ]


@pytest.mark.parametrize(
    ("one", "other", "subjects"),
    [
        ("The Abbey House is in", "The Globe Museum is in", ("Abbey House", "Globe Museum")),
        ("Abbey House belongs to", "Globe House belongs to", ("Abbey", "Globe")),
        ("Italy's capital city,", "France's capital city,", ("Italy", "France")),
        ("The city of Abbey", "The city of Globe", ("Abbey", "Globe")),
    ],
)
def test_the_subject_is_where_the_sentences_differ(
    one: str, other: str, subjects: tuple, write: Write, mini: TransformerBridge
) -> None:
    (found, start) = published_facts._differing(one, other)
    assert found == subjects
    assert one[start:].startswith(subjects[0])
    assert other[start:].startswith(subjects[1])
    if tokens.count(mini, one) == tokens.count(mini, other):
        path = write([published(one, other, [" Dublin", " London"])])
        (pair,) = facts.from_paired_facts(path, mini).pairs
        assert pair.subjects == subjects


def test_published_pairs_are_refused_one_by_one(write: Write, mini: TransformerBridge) -> None:
    abbey, globe = "The Abbey Theatre is in", "The Globe Theatre is in"
    answers = [" Dublin", " London"]
    entries = [
        published(abbey, globe, answers),
        published(globe, abbey, answers[::-1]),
        published(abbey, abbey, answers),
        published(abbey, "The very old Globe Theatre is in", answers),
        published(abbey, globe, [" Dublin"]),
        published(abbey, globe, ["Dublin", "London"]),
        published(abbey, globe, [" Dublin", " Dublin"]),
        published(abbey, globe, [" Llanfairpwllgwyngyll", " London"]),
        published(abbey, globe, answers, category=""),
        published("The Theatre is in", "The old is in", answers) | {"pair": [abbey]},
        ["not", "an", "object"],
        published("in The city", "in in city", answers),
    ]
    found = facts.from_paired_facts(write(entries), mini)
    assert [pair.subjects for pair in found.pairs] == [("Abbey", "Globe")]
    assert found.report.entry.tolist() == list(range(1, 12))
    assert found.report.reason.tolist() == [
        "the same pair is there already",
        "both sentences are the same",
        "the sentences differ in their number of tokens",
        "no answer",
        "an answer has no leading space",
        "both answers are the same",
        "the answer is not one token for this model",
        "no category",
        "not two sentences",
        "not a JSON object",
        "the subject is in the sentence before its place, too",
    ]


def test_the_project_s_own_facts_are_in_the_published_form(mini: TransformerBridge) -> None:
    found = facts.from_paired_facts(facts.PAIRED_FACTS, mini)
    own = facts.read()
    assert [pair.sentences for pair in found.pairs] == [pair.sentences for pair in own]
    assert [pair.answers for pair in found.pairs] == [pair.answers for pair in own]


def test_the_pairs_can_be_patched(write: Write, mini: TransformerBridge) -> None:
    entries = [known(HOUSES[0], "Dublin"), known(HOUSES[1], "London")]
    found = facts.from_known1000(write(entries), mini)
    pairs = pl.tasks.factual_recall(mini, n=2, facts=found.pairs)
    assert sorted(pairs.texts) == sorted(found.pairs[0].sentences)
    assert pairs.settings["facts"] == "1 pairs given"
    fx = pl.patch(mini, pairs, "mlp", corruption=pl.STR("subject"), progress=False)
    assert fx.effect.notnull().all()
    with pytest.raises(PatchlibError, match="ask for at most 2"):
        pl.tasks.factual_recall(mini, n=3, facts=found.pairs)
    with pytest.raises(PatchlibError, match="give one of them"):
        pl.tasks.factual_recall(mini, n=2, facts=found.pairs, path=facts.PAIRED_FACTS)


@pytest.mark.parametrize("load", [*LOADERS, lambda path, model: facts.read(path)])
def test_files_that_are_no_list_are_refused(load, tmp_path: Path, mini: TransformerBridge) -> None:
    path = tmp_path / "broken.json"
    with pytest.raises(PatchlibError, match=r"broken\.json cannot be read"):
        load(path, mini)
    path.write_text('[{"pair": 1},\n {"pair": ]', encoding="utf-8")
    with pytest.raises(PatchlibError, match=r"broken\.json is no JSON: .* line 2, column 11"):
        load(path, mini)
    path.write_bytes(b'["\xff"]')
    with pytest.raises(PatchlibError, match=r"broken\.json is no text in UTF-8: byte 2"):
        load(path, mini)
    for content, name in (('{"a": 1}', "an object"), ('"a"', "a text"), ("null", "null")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(PatchlibError, match=rf"broken\.json begins with {name} at line 1"):
            load(path, mini)


def test_an_empty_list_gives_nothing(write: Write, mini: TransformerBridge) -> None:
    for load in LOADERS:
        found = load(write([]), mini)
        assert found.pairs == []
        assert found.summary.empty


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pair": ["one"]}, "'pair' does not hold two texts"),
        ({"pair": ["one", "two"]}, "the subject 'Abbey' is not in 'one' exactly once"),
        (
            {"pair": ["The Abbey: the Abbey is in", "The Globe: the Globe is in"]},
            "the subject 'Abbey' is not in 'The Abbey: the Abbey is in' exactly once",
        ),
        ({"answer": [" Dublin", " Dublin"]}, "both answers are ' Dublin'"),
        ({"subject": "Abbey"}, "'subject' does not hold two texts"),
        ({"answer": [" Dublin", ""]}, "'answer' does not hold two texts"),
        ({"category": None}, "'category' is no text"),
        ({"phrasing": "0"}, "'phrasing' is no whole number"),
    ],
)
def test_the_project_s_form_is_checked(change: dict, problem: str, write: Write) -> None:
    good = {
        "pair": ["The Abbey is in", "The Globe is in"],
        "subject": ["Abbey", "Globe"],
        "answer": [" Dublin", " London"],
        "category": "city",
        "phrasing": 0,
    }
    assert len(facts.read(write([good]))) == 1
    with pytest.raises(PatchlibError, match=rf"facts\.json, entry 1: {problem}; give a list"):
        facts.read(write([good, good | change]))
    with pytest.raises(PatchlibError, match="entry 0: this is not an object"):
        facts.read(write([7]))


@pytest.mark.skipif("PATCHLIB_KNOWN_1000" not in os.environ, reason="the published file is absent")
def test_the_published_file(mini: TransformerBridge) -> None:
    path = Path(os.environ["PATCHLIB_KNOWN_1000"])
    entries = json.loads(path.read_text("utf-8"))
    found = facts.from_known1000(path, mini)
    assert 2 * len(found.pairs) + len(found.report) == len(entries)
    assert len(found.pairs) > 100
    subjects = {entry["prompt"]: entry["subject"] for entry in entries}
    for pair in found.pairs:
        assert pair.answers[0] != pair.answers[1]
        assert tuple(map(subjects.get, pair.sentences)) == pair.subjects
        templates = {
            sentence.replace(subject, "{}")
            for sentence, subject in zip(pair.sentences, pair.subjects, strict=True)
        }
        assert len(templates) == 1
    pairs = pl.tasks.factual_recall(mini, n=2 * len(found.pairs), facts=found.pairs)
    assert pairs.settings["refused"] == 0


def test_a_file_that_says_its_subjects_is_believed(write: Write, mini: TransformerBridge) -> None:
    """Without them the word that both subjects end with would count as context."""
    entry = published("The Abbey Theatre is in", "The Globe Theatre is in", [" Dublin", " London"])
    whole = ["Abbey Theatre", "Globe Theatre"]
    wrong = ["Abbey", "Theatre is in the Theatre"]
    entries = [entry | {"subject": whole}]
    assert facts.from_paired_facts(write(entries), mini).pairs[0].subjects == tuple(whole)
    entries = [entry | {"subject": wrong}, entry | {"subject": "Abbey"}]
    assert facts.from_paired_facts(write(entries), mini).report.reason.tolist() == [
        "the subject is not in the sentence exactly once",
        "the subject is not two texts",
    ]
    own = [pair.subjects for pair in facts.read()]
    found = facts.from_paired_facts(facts.PAIRED_FACTS, mini).pairs
    assert [pair.subjects for pair in found] == own


@pytest.mark.parametrize("load", LOADERS)
def test_half_a_character_costs_one_entry_and_not_the_file(
    load, write: Write, mini: TransformerBridge
) -> None:
    good: dict[Any, list] = {
        facts.from_known1000: [known(HOUSES[0], "Dublin"), known(HOUSES[1], "London")],
        facts.from_counterfact: [
            counterfact(HOUSES[0], "Dublin"),
            counterfact(HOUSES[1], "London"),
        ],
        facts.from_paired_facts: [
            published("The Abbey is in", "The Globe is in", [" Dublin", " London"])
        ],
    }
    half = json.loads(json.dumps(good[load][0]).replace("is in", "is \\ud800 in"))
    found = load(write([half, *good[load]]), mini)
    assert len(found.pairs) == 1
    assert found.report.entry.tolist() == [0]


def test_a_file_nested_too_deeply(tmp_path: Path, mini: TransformerBridge) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(PatchlibError, match="nested too deeply"):
        facts.read(path)


def test_no_pairs_at_all(write: Write, mini: TransformerBridge) -> None:
    with pytest.raises(PatchlibError, match="there are no pairs of facts"):
        pl.tasks.factual_recall(mini, n=1, facts=[])
    with pytest.raises(PatchlibError, match="there are no pairs of facts"):
        pl.tasks.factual_recall(mini, n=1, path=write([]))

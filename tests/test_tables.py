"""Prompts of one's own from a table: files, frames and dicts, with or without braces."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import patchlib as pl
from patchlib.prompts.tables import differing, write
from patchlib.tasks import facts

COLUMNS = ["clean", "corrupted", "answer", "wrong_answer"]
ROW = dict(zip(COLUMNS, ("The war lasted", "The siege lasted", " from", " to"), strict=True))
from_table = pl.PromptPairs.from_table


def refusal(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(pl.PatchlibError) as caught:
        function(*arguments)
    return str(caught.value)


def assert_names(message: str, *words: str) -> None:
    assert [word for word in words if word not in message] == []


def fact_rows(n: int) -> list[dict[str, str]]:
    """Facts of several lengths, with their subjects in braces."""
    pairs = [pair for pair in facts.read() if pair.phrasing == 0]
    rows = []
    for pair in pairs[:: len(pairs) // n][:n]:
        marked = [
            sentence.replace(subject, f"{{{subject}}}")
            for sentence, subject in zip(pair.sentences, pair.subjects, strict=True)
        ]
        rows.append(dict(zip(COLUMNS, (*marked, *pair.answers), strict=True)))
    return rows


def test_a_table_is_a_file_a_frame_or_dicts(tmp_path: Path, tiny_gpt2, monkeypatch):
    """All give the same prompts; a file's name and the hash of its bytes are kept, too."""
    rows = [ROW, ROW | {"clean": "The trial lasted"}]
    frame = pd.DataFrame(rows, index=[7, 7])
    file = tmp_path / "wars.csv"
    # With the mark that spreadsheets write at the beginning.
    frame.to_csv(file, index=False, encoding="utf-8-sig")
    pairs = from_table(tiny_gpt2, rows)
    assert pairs.task == "own" and pairs.settings == {"prepend_bos": True}
    assert from_table(tiny_gpt2, frame) == pairs
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (file, str(file), "~/wars.csv"):
        of_file = from_table(tiny_gpt2, path, task="wars", prepend_bos=False)
        assert of_file.texts == pairs.texts and of_file.task == "wars"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        expected = {"prepend_bos": False, "file": "wars.csv", "sha256": digest}
        assert of_file.settings == expected


def test_braces_say_what_is_replaced(tiny_gpt2):
    """Where both prompts share a word, only braces can say that it belongs to what is replaced."""
    row = ROW | {"clean": "The {war and siege} lasted", "corrupted": "The {trial and siege} lasted"}
    bare = {name: text.replace("{", "").replace("}", "") for name, text in row.items()}
    marked, found = (from_table(tiny_gpt2, [one]).prompts[0] for one in (row, bare))
    assert marked.text == found.text == "The war and siege lasted"
    assert (marked.clean, marked.corrupted) == (found.clean, found.corrupted)
    assert marked.positions == {"changed": (2, 3, 4), "last": (5,)}
    assert found.positions == {"changed": (2,), "last": (5,)}


def test_several_answers_are_a_list(tiny_gpt2):
    row = ROW | {"answer": [" from", " and"]}
    right = from_table(tiny_gpt2, [row]).prompts[0].answers
    assert [tiny_gpt2.tokenizer.decode([token]) for token in right] == [" from", " and"]


def test_other_columns_are_left_alone(tiny_gpt2):
    assert from_table(tiny_gpt2, [ROW | {"note": None}]) == from_table(tiny_gpt2, [ROW])


def test_a_table_can_be_patched(mini):
    """Prompts of several lengths; replacement and noise at what is changed."""
    pairs = from_table(mini, fact_rows(6), "facts")
    known = {sentence: pair for pair in facts.read() for sentence in pair.sentences}
    for prompt in pairs.prompts:
        places = prompt.positions["changed"]
        spelled = "".join(prompt.words[i] for i in places).strip()
        assert spelled == known[prompt.text].subjects[0]
        differ = zip(prompt.clean, prompt.corrupted["changed"], strict=True)
        assert {i for i, (a, b) in enumerate(differ) if a != b} <= set(places)
    assert len({len(prompt.clean) for prompt in pairs.prompts}) > 1
    for corruption in (pl.STR("changed"), pl.GN("changed")):
        fx = pl.patch(
            mini, pairs, "resid", corruption=corruption, positions="changed", progress=False
        )
        # Before the first layer, restoring what is changed restores everything.
        first = fx.effect.sel(metric="logit_diff", layer=0)
        np.testing.assert_allclose(first, 1, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clean": None}, ["clean is None", "give a text"]),
        ({"corrupted": float("nan")}, ["corrupted is nan", "give a text"]),
        ({"answer": float("nan")}, ["nan", "no text"]),
        ({"answer": ""}, ["''", "0 tokens"]),
        ({"answer": "from"}, ["'from'", "glued", "write ' from'"]),
        ({"answer": " to"}, ["share a token"]),
        ({"answer": " from the year"}, ["' from the year'", "3 tokens"]),
        ({"clean": ""}, ["''", "replaces no word"]),
        ({"corrupted": ROW["clean"]}, ["replaces no word", "'The war lasted'"]),
        ({"corrupted": "The long war lasted"}, ["replaces no word"]),
        ({"corrupted": "The long siege lasted"}, ["4 tokens", "5", "same number"]),
        ({"clean": "The {war} lasted"}, ["'The siege lasted'", "in both prompts"]),
        ({"clean": "The {war} {lasted}"}, ["exactly one part in braces", "pl.Prompt"]),
        ({"clean": "The }war{ lasted"}, ["exactly one part in braces"]),
        ({"clean": "The {} lasted"}, ["exactly one part in braces"]),
        ({"clean": "A {war} ended", "corrupted": "A {war} ended"}, ["replaces no word"]),
        (
            {"clean": "The {war} lasted", "corrupted": "One {siege} lasted"},
            ["differ outside the braces", "'One {siege} lasted'"],
        ),
    ],
)
def test_every_refused_row_is_named(tiny_gpt2, change, words):
    """With its number and reason, all in one error, between rows that fit."""
    rows = [ROW, ROW | change, ROW, ROW | change]
    message = refusal(from_table, tiny_gpt2, rows)
    assert message.startswith("2 of 4 rows do not fit")
    lines = message.splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["row 2", "row 4"]
    for line in lines:
        assert_names(line, *words)


def test_many_refused_rows_are_counted(tiny_gpt2):
    """Twenty are named."""
    message = refusal(from_table, tiny_gpt2, [ROW | {"answer": " to"}] * 23)
    lines = message.splitlines()
    assert lines[0].startswith("23 of 23 rows") and lines[-1] == "and 3 more"
    assert [line.split(":")[0] for line in lines[1:-1]] == [f"row {k}" for k in range(1, 21)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["no rows"]),
        (b"clean,corrupted,answer,wrong_answer\n", ["no rows"]),
        (b"clean;corrupted;answer;wrong_answer\na;b;c;d\n", ["row 1", "lacks clean, corrupted"]),
        (b"clean,corrupted,answer\na,b,c\n", ["row 1", "lacks wrong_answer", "'clean': 'a'"]),
        ("clean,corrupted,answer,wrong_answer\né".encode("latin-1"), ["UTF-8", "byte 36"]),
        (b'clean,corrupted,answer,wrong_answer\n"a,b', ["no CSV"]),
        (
            b"clean,corrupted,answer,wrong_answer\nThen, he went,Then, she went, to, from\n",
            ["row 1", "more fields than columns", "' to', ' from'", "in quotes"],
        ),
        (b"clean,corrupted,answer,wrong_answer\na,b, c\n", ["row 1", "None", "no text"]),
    ],
)
def test_files_that_are_refused(tmp_path: Path, tiny_gpt2, content, words):
    """In the package's own words."""
    file = tmp_path / "table.csv"
    file.write_bytes(content)
    assert_names(refusal(from_table, tiny_gpt2, file), *words)


def test_a_file_that_is_not_there(tmp_path: Path, tiny_gpt2):
    for path in (tmp_path / "none.csv", tmp_path):
        assert_names(refusal(from_table, tiny_gpt2, path), str(path), "cannot be read", "CSV file")


@pytest.mark.parametrize("table", [[], pd.DataFrame(columns=COLUMNS)])
def test_tables_without_rows(tiny_gpt2, table):
    assert_names(refusal(from_table, tiny_gpt2, table), "no rows", "at least one")


def test_rows_that_are_none(tiny_gpt2):
    """A dict of columns is no list of rows."""
    columns = {name: [text] for name, text in ROW.items()}
    assert_names(refusal(from_table, tiny_gpt2, columns), "row 1", "'clean'", "wrong_answer")


WORDS = st.lists(st.sampled_from(["a", "bc", "é", " ", ",", "d"]), max_size=7).map("".join)


@given(WORDS, WORDS, WORDS, WORDS)
def test_what_differs_is_all_that_differs(before, one, other, after):
    """Around it the two texts are the same, and it begins and ends with a difference."""
    texts = before + one + after, before + other + after
    spans = differing(*texts)
    for part in (lambda text, span: text[: span[0]], lambda text, span: text[span[1] :]):
        assert part(texts[0], spans[0]) == part(texts[1], spans[1])
    words, others = (text[slice(*span)] for text, span in zip(texts, spans, strict=True))
    assert (words == others) == (texts[0] == texts[1])
    assert not words or len(words) <= max(len(one), len(texts[0]) - len(before))


def test_the_span_of_what_differs():
    """Whole words, so that "Spain" and "Span" differ as a whole."""
    prompt = write(ROW | {"clean": "In Spain it", "corrupted": "In Span it"})
    assert prompt.spans == {"changed": (3, 8)}

"""The table of a student's exercises: what is kept of a check, and what a teacher collects."""

import pandas as pd
import pytest

import patchlib as pl
from patchlib.errors import PatchlibError
from patchlib.lessons import checks, claims, progress

HALF = {"right": lambda *runs: (runs[2] - runs[1]) / (runs[0] - runs[1]), "wrong": lambda *runs: 1}


@pytest.fixture(autouse=True)
def notebook(tmp_path, monkeypatch):
    """As in a notebook that has loaded mini, with a file of this test's own."""
    monkeypatch.setattr(progress, "TRIES", tmp_path / "new" / "progress.csv")
    monkeypatch.setattr(checks, "get_ipython", lambda: "a notebook")
    claims.begin("mini", "8 of ioi")
    yield
    claims.begin("", "")


def rows():
    return pl.progress().drop(columns="when").values.tolist()


def test_nothing_was_checked_yet():
    assert pl.progress().empty
    assert list(pl.progress()) == ["exercise", "model", "mark", "tries", "when"]


def test_tries_are_counted_up_to_the_first_right_one():
    for answer in ("wrong", "wrong", "right", "wrong"):
        pl.check("0.2", HALF[answer])
    pl.check("2.2", HALF["wrong"])
    assert rows() == [["0.2", "mini", "✓", 3], ["2.2", "mini", "✗", 1]]
    lines = progress.TRIES.read_text("utf-8").splitlines()
    assert [line.split(",")[:3] for line in lines] == [["0.2", "mini", mark] for mark in "✗✗✓✗"] + [
        ["2.2", "mini", "✗"]
    ]
    # When it was right first, not when it was tried last.
    assert pl.progress().when[0] == lines[2].split(",")[3]


def test_dots_are_no_try_and_models_have_rows_of_their_own():
    pl.check("0.2", ...)
    assert rows() == []
    pl.check("0.2", HALF["right"])
    claims.begin("a/model, with a comma", "")
    pl.check("0.2", HALF["wrong"])
    assert rows() == [["0.2", "a/model, with a comma", "✗", 1], ["0.2", "mini", "✓", 1]]
    claims.begin("", "")
    pl.check("0.2", HALF["right"])
    assert rows()[0] == ["0.2", "", "✓", 1]


def test_outside_a_notebook_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(checks, "get_ipython", lambda: None)
    pl.check("0.2", HALF["right"])
    assert not progress.TRIES.exists()


def test_a_teacher_can_collect_the_tables(tmp_path):
    pl.check("0.2", HALF["right"])
    pl.progress(tmp_path / "ada.csv")
    collected = pd.read_csv(tmp_path / "ada.csv", dtype={"exercise": str})
    assert collected.drop(columns="when").values.tolist() == [["0.2", "mini", "✓", 1]]


def test_what_cannot_be_written_is_said(tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(PatchlibError, match=r"cannot write .*ada\.csv"):
        pl.progress(file / "ada.csv")
    monkeypatch.setattr(progress, "TRIES", file / "progress.csv")
    pl.check("0.2", HALF["right"])
    shown = capsys.readouterr().out
    assert shown.startswith("✓ 0.2\n(not kept for pl.progress: ")


def test_a_grader_sees_what_is_not_right_and_nothing_is_kept(monkeypatch, capsys):
    monkeypatch.setenv("PATCHLIB_CHECKS", "strict")
    pl.check("0.2", HALF["right"])
    assert capsys.readouterr().out == "✓ 0.2\n"
    for answer, mark in [(HALF["wrong"], "✗"), (..., "–")]:
        with pytest.raises(PatchlibError, match=f"^{mark} 0.2  "):
            pl.check("0.2", answer)
    assert not progress.TRIES.exists()

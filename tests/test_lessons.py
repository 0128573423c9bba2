"""How a notebook begins, and how exercises are checked."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

import patchlib as pl
from patchlib.errors import PatchlibError
from patchlib.lessons import answers, checks
from patchlib.lessons import start as lesson_start
from patchlib.lessons.answers import Hint
from patchlib.patching import store


@pytest.fixture(autouse=True)
def on_mini(monkeypatch):
    monkeypatch.setenv("PATCHLIB_MODEL", "mini")


@pytest.fixture
def double(monkeypatch):
    """An exercise of this test alone: a function that doubles a number, or twice a number."""
    monkeypatch.setattr(checks, "_EXERCISES", dict(checks.exercises()))

    @checks.exercise("9.9")
    def _double(answer, value):
        if value == "fault":
            raise KeyError("a fault of the package")
        if callable(answer):
            answer = answers.call(answer, value, of="a number")
        return None if answers.number(answer, "the double") == 2 * value else "add it to itself"


# start


def test_a_notebook_begins_with_its_experiment(capsys):
    model, pairs, S = pl.start("3_1_ioi")
    assert model.cfg.model_name == "mini"
    assert (len(pairs), pairs.task, S["sites"], S["scale"]) == (100, "ioi", ["S2"], 3.0)
    assert pairs.fingerprint == pl.tasks.ioi(model, n=100).fingerprint
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "patchlib " in lines[0] and "model mini (sha256:" in lines[0]


def test_settings_and_arguments_of_the_task_may_be_given():
    _, pairs, S = pl.start("app_c_arithmetic", operator="-", n=3)
    assert (len(pairs), S["n"], S["operator"], S["window"]) == (3, 3, "-", 1)
    assert all("-" in text for text in pairs.texts)
    with pytest.raises(PatchlibError, match="3_1_ioi has no setting operator: allowed are comp"):
        pl.start("3_1_ioi", operator="-")
    with pytest.raises(PatchlibError, match="no experiment '3_9'"):
        pl.start("3_9")


@pytest.mark.parametrize("is_stored", [False, True])
def test_time_is_estimated_where_no_sweep_is_stored(
    is_stored, tiny_folders, tmp_path, monkeypatch, capsys
):
    folder = str(tiny_folders("gpt2").resolve())
    monkeypatch.setenv("PATCHLIB_MODEL", folder)
    monkeypatch.setattr(store, "STORED", tmp_path)
    if is_stored:
        monkeypatch.setattr(lesson_start, "describe", lambda model: {"model": "x", "revision": ""})
        (tmp_path / "x.json").write_text('{"some": {}}', encoding="utf-8")
    pl.start("3_1_ioi", n=4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("3_1_ioi: ") for line in lines[1:]] == [True] * (not is_stored)


# show_pairs


def test_brackets_stand_around_what_changes(mini, capsys):
    prompt = pl.Prompt(
        "The war lasted", {"noun": (4, 7)}, " from", [" to", " for"], {"noun": "The siege lasted"}
    )
    pairs = pl.PromptPairs.from_prompts(mini, [prompt])
    pl.show_pairs(mini, pairs, "noun")
    assert capsys.readouterr().out.splitlines() == [
        "clean The [war] lasted",
        "STR   The [siege] lasted",
        "GN    The [war + noise] lasted",
        "      right ' from', wrong ' to', ' for'",
        "",
    ]


def test_adjacent_tokens_share_brackets_and_many_answers_are_counted(mini, capsys):
    pl.show_pairs(mini, pl.tasks.ioi(mini, n=2), "ABC", n=1)
    clean, replaced, *_ = shown = capsys.readouterr().out.splitlines()
    # Three names, and no line of noise at what is no position.
    assert [clean.count("["), replaced.count("[")] == [3, 3]
    assert [line[:3] for line in shown] == ["cle", "STR", "   ", ""]
    pl.show_pairs(mini, pl.tasks.greater_than(mini, n=1), "YY")
    assert " answers), wrong " in capsys.readouterr().out
    pl.show_pairs(mini, pl.tasks.factual_recall(mini, n=1), "subject")
    assert capsys.readouterr().out.count("[") == 3


@pytest.mark.parametrize("task", ["ioi", "factual_recall", "docstring", "arithmetic"])
def test_without_brackets_the_prompt_is_what_it_was(task, mini, capsys):
    pairs = getattr(pl.tasks, task)(mini, n=1)
    pl.show_pairs(mini, pairs, next(iter(pairs.prompts[0].corrupted)))
    clean = capsys.readouterr().out.split("\nSTR ")[0].removeprefix("clean ")
    assert clean.replace("\n      ", "\n").translate({91: None, 93: None}) == pairs.texts[0]


def test_a_site_that_is_not_there_is_refused(mini):
    pairs = pl.tasks.ioi(mini, n=1)
    with pytest.raises(PatchlibError, match="no token replacement at 'S3': it has S2"):
        pl.show_pairs(mini, pairs, "S3")
    with pytest.raises(PatchlibError, match="n=0"):
        pl.show_pairs(mini, pairs, "S2", n=0)


# check


def test_marks_and_hints(double, capsys):
    for answer in (6, 6.0, np.float32(6), torch.tensor([6.0]), xr.DataArray(6), lambda x: x + x):
        pl.check("9.9", answer, value=3)
        assert capsys.readouterr().out == "✓ 9.9\n"
    pl.check("9.9", 5, value=3)
    assert capsys.readouterr().out == "✗ 9.9  add it to itself\n"


def test_dots_count_as_no_answer(double, capsys):
    for answer in (..., [1, ...], {"a": (1, ...)}, {...: 1}):
        pl.check("9.9", answer, value=3)
        assert capsys.readouterr().out.startswith("– 9.9  not answered yet")


def test_an_error_in_the_students_function_is_shown_with_its_line(double, capsys):
    def mine(number):
        missing = {}
        return missing["key"] + number

    pl.check("9.9", mine, value=3)
    line = mine.__code__.co_firstlineno + 2
    assert capsys.readouterr().out == (
        "✗ 9.9  your function raised KeyError: 'key', in line "
        f'{line}: return missing["key"] + number\n'
    )
    # The student's line, not the library's below it; also where the library is this package.
    pl.check("9.9", lambda number: pl.STR("S2").tokens(number), value=3)
    shown = capsys.readouterr().out
    assert "AttributeError" in shown and 'pl.check("9.9", lambda number' in shown
    pl.check("9.9", lambda: 6, value=3)
    assert "could not be called with a number (TypeError" in capsys.readouterr().out


def test_an_error_of_the_package_is_raised_as_its_own(double):
    with pytest.raises(KeyError, match="a fault of the package"):
        pl.check("9.9", 6, value="fault")


def test_unknown_exercises_and_things_not_given_are_refused(double):
    with pytest.raises(PatchlibError, match=r"no exercise '9': there are 0\.1, 0\.2, .*9\.9"):
        pl.check("9", 6)
    with pytest.raises(PatchlibError, match="missing a required argument: 'value'; it takes value"):
        pl.check("9.9", 6)
    with pytest.raises(PatchlibError, match="unexpected keyword argument 'mini'"):
        pl.check("9.9", 6, value=3, mini=1)
    with pytest.raises(PatchlibError, match=r"two exercises have the number 9\.9"):
        checks.exercise("9.9")(lambda answer: None)


def test_every_exercise_says_in_one_line_what_is_right():
    for id, function in checks.exercises().items():
        assert function.__doc__ and "\n" not in function.__doc__, id


# what a student gave


@pytest.mark.parametrize(
    "given", [None, "3", True, [1, 2], math.nan, torch.ones(2), np.bool_(True)]
)
def test_what_is_no_number(given):
    with pytest.raises(Hint, match="the share has to be a number"):
        answers.number(given, "the share")


def test_heads_in_every_form_and_order():
    assert answers.heads(["4.6", (0, 4)], "x") == answers.heads("0.4, 4.6", "x") == {(0, 4), (4, 6)}
    assert answers.heads([], "x") == set()
    for wrong in (3, ["4-6"], [4.6], None, torch.tensor(0.0)):
        with pytest.raises(Hint, match="x has to be a list of heads"):
            answers.heads(wrong, "x")
    assert answers.head("4.6", "x") == (4, 6)
    with pytest.raises(Hint, match="one head"):
        answers.head(4.6, "x")


def test_rounding_is_no_mistake():
    assert answers.close(0.33, 0.334) and answers.close(-2.01, -2.0) and answers.close(101, 100)
    assert not answers.close(0.33, 0.35) and not answers.close(102, 100)
    # As its library stores it.
    assert answers.close(float(np.float32(44.57)), 44.5652)


def test_what_is_not_rounded_has_to_be_nearer():
    assert answers.close(0.0877, 0.08765) and not answers.close(0.0863, 0.0877)
    assert answers.close(1.338, 1.3375) and not answers.close(1.3286, 1.3375)
    # Zero says that there is nothing.
    assert answers.close(0, -5e-9) and not answers.close(0.0, 0.004)

"""Every exercise accepts its solution, and says of two typical mistakes what they are."""

import inspect
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import patchlib as pl
from patchlib.lessons.checks import exercises

pytestmark = pytest.mark.slow
MODULES = sorted(path.stem for path in Path(__file__).with_name("solutions").glob("[a-z]*.py"))


@pytest.fixture(scope="module", params=MODULES)
def lesson(request, mini):
    module = import_module(f"solutions.{request.param}")
    return module, module.given(mini)


def told(id, answer, notebook, capsys):
    names = list(inspect.signature(exercises()[id]).parameters)[1:]
    assert pl.check(id, answer, **{name: getattr(notebook, name) for name in names}) is None
    return capsys.readouterr().out


def test_there_are_solutions_of_every_exercise():
    solved = [id for name in MODULES for id in import_module(f"solutions.{name}").SOLUTIONS]
    assert sorted(solved) == list(exercises())


def test_a_right_answer_gets_its_mark_and_nothing_else(lesson, capsys):
    module, notebook = lesson
    for id, (right, _) in module.SOLUTIONS.items():
        assert told(id, right(notebook), notebook, capsys) == f"✓ {id}\n"


@pytest.mark.parametrize(
    "form", [np.asarray, torch.as_tensor, lambda found: np.asarray(found).tolist()]
)
def test_what_a_function_returns_may_have_any_form(form, capsys):
    alone = [
        id for id, check in exercises().items() if len(inspect.signature(check).parameters) == 1
    ]
    assert len(alone) >= 15
    for name in MODULES:
        for id, (right, _) in import_module(f"solutions.{name}").SOLUTIONS.items():
            # The rule of ACDC returns a set of names.
            if id in alone and id != "22.2":
                function = right(None)
                pl.check(id, lambda *given, f=function: form(f(*given)))
                assert capsys.readouterr().out == f"✓ {id}\n"


def test_a_wrong_answer_gets_a_hint_in_one_sentence_without_the_right_one(lesson, capsys):
    module, notebook = lesson
    for id, (right, mistakes) in module.SOLUTIONS.items():
        secret = list(secrets(right(notebook)))
        assert len(mistakes) == 2
        more = getattr(module, "MORE", {}).get(id, {})
        for words, wrong in (mistakes | more).items():
            mark, _, hint = told(id, wrong(notebook), notebook, capsys).partition(f" {id}  ")
            assert mark == "✗" and words in hint
            assert hint.count("\n") == 1 and ". " not in hint
            assert [text for text in secret if text in hint] == []


def secrets(answer):
    """The parts of an answer as they would be printed: heads, and numbers with two decimals."""
    if isinstance(answer, str):
        # One letter is in every sentence.
        yield from [answer] * (len(answer) > 1)
    elif isinstance(answer, dict | list | tuple):
        for part in answer.values() if isinstance(answer, dict) else answer:
            yield from secrets(part)
    elif not callable(answer) and not isinstance(answer, int):
        yield f"{float(answer):.2f}"


def test_unanswered_is_no_mistake(lesson, capsys):
    module, notebook = lesson
    for id in module.SOLUTIONS:
        for empty in (..., ["4.6", ...], {"layer": ...}, ("k", ...)):
            assert told(id, empty, notebook, capsys).startswith(f"– {id}  not answered yet")


@pytest.mark.parametrize(
    "answer", [None, 3.5, "four", [1, 2, 3], {}, ("q",), lambda: 0, int, {1: 2}, torch.tensor(0.0)]
)
def test_answers_of_another_form_are_told_the_form(answer, lesson, capsys):
    module, notebook = lesson
    for id in module.SOLUTIONS:
        assert told(id, answer, notebook, capsys).startswith(f"✗ {id}  ")

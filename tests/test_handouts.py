"""What a class is given: nothing that answers an exercise, and a version in which all are answered.

`test_notebooks_on_mini` runs both.
"""

import builtins
import re
from pathlib import Path
from symtable import symtable

import handouts
import nbformat
import pytest

from patchlib.lessons.checks import exercises
from patchlib.notebooks import NOTEBOOKS

ANSWER = re.compile(r"\n\n### BEGIN SOLUTION\n.*?### END SOLUTION", re.S)
GUIDE = NOTEBOOKS / "teaching" / "guide.md"
MODULE = """import math
from random import random, shuffle

RATE = 3


def twice(x):
    return 2 * x


def right(nb):
    return twice(nb.x) + RATE + math.pi


SOLUTIONS = {"1.1": (right, {}), "1.2": (lambda nb: lambda x: twice(x), {})}
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both kinds, written to a folder of the tests' own: a notebook by kind and name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handouts, "BUILD", tmp_path_factory.mktemp("build"))
        folders = {kind: handouts.write(kind) for kind in handouts.KINDS}
    return {kind: notebooks(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def stored():
    return notebooks(NOTEBOOKS)


def notebooks(folder):
    return {path.stem: nbformat.read(path, as_version=4) for path in folder.glob("*.ipynb")}


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_students_get_no_outputs_no_guesses_and_all_else(written, stored):
    given = written["student"]
    assert set(given) == set(stored)
    guesses = 0
    for name, notebook in stored.items():
        assert len(given[name].cells) == len(notebook.cells)
        for cell, original in zip(given[name].cells, notebook.cells, strict=True):
            if "pl.predict(" in original.source:
                lines = [line for line in cell.source.splitlines() if "pl.predict(" in line]
                assert all(re.match(r'pl\.predict\("[\w-]+", \.\.\.\)', line) for line in lines)
                guesses += len(lines)
            else:
                assert cell.source == original.source
            if cell.cell_type == "code":
                assert (cell.outputs, cell.execution_count) == ([], None)
            if "pl.check(" in cell.source:
                assert "..." in cell.source
    assert guesses >= 40


def test_work_in_an_older_folder_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(handouts, "BUILD", tmp_path)
    folder = handouts.write("student")
    start = folder / "00_start_here.ipynb"
    given = start.read_text("utf-8")
    assert handouts.write("student") == folder
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    for number in (1, 2):
        start.write_text(f"my answers {number}", "utf-8")
        handouts.write("student")
        aside = tmp_path / f"student-{number}"
        assert str(aside) in capsys.readouterr().out
        assert (aside / start.name).read_text("utf-8") == f"my answers {number}"
        assert start.read_text("utf-8") == given


def test_a_guess_to_choose_stays_in_the_comment():
    without = handouts.without_guesses
    assert without('pl.predict("3-1", "a")  # or "b"') == 'pl.predict("3-1", ...)  # "a" or "b"'
    assert without('pl.predict("3-1", "a, b")  # two') == 'pl.predict("3-1", ...)  # two'
    two = 'pl.predict("3-1", 0.5)\npl.predict("3-2", "(x)")'
    assert without(two) == 'pl.predict("3-1", ...)\npl.predict("3-2", ...)'
    assert without('pl.predict("3-1", ...)') == 'pl.predict("3-1", ...)'


def test_the_worked_version_adds_answers_and_no_more(written):
    for name, notebook in written["solutions"].items():
        given, worked = (
            "\n".join(cell.source for cell in code(written[kind][name])) for kind in handouts.KINDS
        )
        assert ANSWER.sub("", worked) == given
        assert len(ANSWER.findall(worked)) == given.count("pl.check(")
        nbformat.validate(notebook)


def test_nbgrader_finds_a_point_for_each_exercise(written):
    cells = [cell for notebook in written["solutions"].values() for cell in code(notebook)]
    checks = [cell for cell in cells if cell.metadata.get("nbgrader", {}).get("grade")]
    numbers = [re.match(r'pl\.check\(\s*"(\S+?)"', cell.source)[1] for cell in checks]
    assert sorted(numbers) == list(exercises())
    assert [cell.metadata.nbgrader.grade_id for cell in checks] == [
        number.replace(".", "-") for number in numbers
    ]
    assert all(cell.metadata.nbgrader.points == 1 for cell in checks)


def test_the_worked_version_keeps_the_outputs_of_what_it_does_not_change(written, stored):
    given = written["solutions"]
    for name, notebook in stored.items():
        outputs = {(cell.id, cell.source): cell.outputs for cell in code(notebook)}
        for cell in code(given[name]):
            assert cell.outputs == outputs.get((cell.id, cell.source), [])


def test_an_answer_follows_what_its_cell_gives(monkeypatch):
    monkeypatch.setattr(handouts, "all_worked", lambda: {"1.1": "def worked(nb):\n    return 1"})
    lines = [
        "few = pairs[:2]",
        "mine = [...]  # one",
        'pl.check(\n    "1.1", mine, x=few, y=few[0]\n)',
    ]
    answer, check = handouts.answered(nbformat.v4.new_code_cell("\n".join(lines)))
    assert answer.source.splitlines() == [
        "few = pairs[:2]",
        "mine = [...]  # one",
        "",
        "### BEGIN SOLUTION",
        "from types import SimpleNamespace",
        "",
        "",
        "def worked(nb):",
        "    return 1",
        "",
        "",
        "mine = worked(SimpleNamespace(x=few, y=few[0]))",
        "### END SOLUTION",
    ]
    assert check.source == lines[2]
    assert check.metadata.nbgrader.grade and check.metadata.nbgrader.points == 1


def test_a_worked_answer_brings_what_it_needs_and_no_more(tmp_path):
    (tmp_path / "some.py").write_text(MODULE, encoding="utf-8")
    worked = handouts.all_worked(tmp_path)
    assert worked["1.2"] == (
        "def worked(nb):\n    def twice(x):\n        return 2 * x\n\n    return lambda x: twice(x)"
    )
    first = worked["1.1"]
    assert first.startswith("def worked(nb):\n    import math\n\n    RATE = 3\n\n    def twice")
    assert first.endswith("\n    return right(nb)") and "random" not in first
    compile(first, "worked", "exec")


def unknown_names(table):
    """Names that a function, or one inside it, looks for in the notebook."""
    if table.get_type() == "function":
        yield from (each.get_name() for each in table.get_symbols() if each.is_global())
    for child in table.get_children():
        yield from unknown_names(child)


def test_a_worked_answer_needs_nothing_of_the_notebook():
    for id, source in handouts.all_worked().items():
        wanted = set(unknown_names(symtable(source, id, "exec")))
        assert wanted <= set(dir(builtins)), id


# the guide


def section(title):
    return GUIDE.read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_guide_has_at_most_six_pages():
    # Of 500 words.
    assert len(GUIDE.read_text("utf-8").split()) <= 3000


def test_the_guide_leads_to_what_is_there():
    text = GUIDE.read_text("utf-8")
    links = re.findall(r"\]\((\S+?)\)", text)
    assert len(links) >= 15
    assert [link for link in links if not (GUIDE.parent / link).is_file()] == []
    rows = re.findall(r"^\| \d.*\| (.*) \|$", section("Six sittings"), re.M)
    assert len(rows) == 6
    assert set(re.findall(r"\d\S*\.\d", " ".join(rows))) <= set(exercises())


def test_every_discussion_is_answered():
    asked = [
        path for path in NOTEBOOKS.glob("*.py") if "**To discuss.**" in path.read_text("utf-8")
    ]
    given = re.findall(r"^- \*\*(\S+)\*\*", section("Answers to the discussions"), re.M)
    path = ["00", "02", "3.1", "3.2", "4.2", "facts", "4.1", "5", "06"]
    beyond = [path.stem[:2] for path in asked if path.stem[:2] >= "10" and path.stem[2] == "_"]
    appendices = [path.stem[4].upper() for path in asked if path.stem.startswith("app_")]
    assert given == [*path, *sorted(beyond), *sorted(appendices)]
    assert len(given) == len(asked)


def test_the_keys_of_the_exam_are_right():
    """The numbers of question A by the formulas of the paper's Section 2.1."""
    key = section("Three exam questions")
    p, ld = {"cl": 0.60, "*": 0.01, "pt": 0.05}, {"cl": 3, "*": -2, "pt": 0.5}
    assert f"**{p['pt'] - p['*']:.2f}".replace("0.", ".") in key
    assert f"**{(ld['pt'] - ld['*']) / (ld['cl'] - ld['*'])}**" in key
    threshold = 0.004 - 2 * 0.010
    assert f"**−{-threshold:.3f}**".replace("0.", ".") in key and threshold < -p["*"]


def test_the_kinds_are_the_makefiles_targets():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text("utf-8")
    for kind in handouts.KINDS:
        assert f"\n{kind}: notebooks  ## " in makefile
        assert f"tests/handouts.py {kind}\n" in makefile

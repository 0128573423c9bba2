"""The page of all methods: it names all there are, and nothing that is not there."""

import ast
import inspect
import re
from pathlib import Path

import patchlib as pl

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "notebooks" / "methods.md").read_text(encoding="utf-8")


def rows(title: str) -> list[list[str]]:
    table = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| (.*) \|$", table, re.M)[1:]
    return [line.split(" | ") for line in lines]


ASKED, ASSUMED = rows("What each asks"), rows("What each takes for granted, and what misleads")


def test_both_tables_are_of_the_same_methods():
    assert [row[0] for row in ASKED] == [row[0] for row in ASSUMED]
    assert {len(row) for row in ASKED} == {5} and {len(row) for row in ASSUMED} == {3}


def test_all_methods_are_there():
    """Whatever is public in the folder of methods, and the two ways to patch."""
    stub = (ROOT / "patchlib" / "__init__.pyi").read_text(encoding="utf-8")
    public = {*re.findall(r"from \.methods\.\w+ import (\w+)", stub), "patch", "patch_together"}
    sources = {"Zero", "Mean", "Resample"}
    assert public | sources <= {*re.findall(r"pl\.(\w+)", " ".join(row[2] for row in ASKED))}


def test_calls_can_be_made():
    """Each names a function that takes these arguments."""
    for row in ASKED:
        for code in re.findall(r"`(pl\..*?)`", row[2]):
            call = ast.parse(code, mode="eval").body
            taken = inspect.signature(getattr(pl, call.func.attr)).parameters
            assert {each.arg for each in call.keywords} <= {*taken}, code


def test_its_notebooks_use_what_they_are_named_for():
    for row in ASKED:
        names = re.findall(r"pl\.(\w+)\(", row[2])
        notebooks = re.findall(r"\((\w+)\.ipynb\)", row[4])
        assert notebooks
        for notebook in notebooks:
            text = (ROOT / "notebooks" / f"{notebook}.py").read_text(encoding="utf-8")
            assert any(name in text for name in names), (notebook, names)

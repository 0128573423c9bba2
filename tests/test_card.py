"""The model card of `mini` says what a fresh evaluation measures, and that is enough."""

import json
import re

import pytest

from patchlib.models.loading import MINI
from patchlib.training import card


@pytest.fixture(scope="module")
def measured():
    return card.evaluate()


def _section(name: str) -> str:
    text = (MINI / "README.md").read_text(encoding="utf-8")
    return text.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


def test_card_holds_what_a_fresh_evaluation_prints(measured):
    fresh, stored = card.skills_table(measured).splitlines(), _section("skills").splitlines()
    assert len(fresh) == len(stored)
    for now, then in zip(fresh[2:], stored[2:], strict=True):
        label, value = now.strip("| ").rsplit(" | ", 1)
        assert then.strip("| ").rsplit(" | ", 1)[0] == label
        # One prompt in a thousand may tip over on another processor.
        assert float(then.strip("| ").rsplit(" | ", 1)[1]) == pytest.approx(float(value), abs=2e-3)


def test_card_holds_the_recipe_and_the_mixture():
    assert _section("training") == card.training_table()
    assert _section("mixture") == card.mixture_table()


def test_mini_knows_every_task(measured):
    assert measured["ioi_io_over_s"] >= 0.99
    assert measured["ioi_logit_diff"] >= 3
    assert 0.4 <= measured["ioi_p_io"] <= 0.95
    assert measured["facts"] >= 0.95
    assert measured["greater_than"] >= 0.8
    for skill in ("docstring", "addition", "subtraction", "multiplication"):
        assert measured[skill] >= 0.9, skill


def test_mini_is_small_and_holds_no_pickle():
    files = {path.name: path.stat().st_size for path in MINI.iterdir()}
    assert sum(files.values()) <= 16_000_000
    assert not [name for name in files if re.search(r"\.(bin|pt|pth|pkl|pickle)$", name)]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)


def test_weights_are_those_of_the_recorded_recipe():
    made = json.loads((MINI / "training.json").read_text())
    assert made["log"][-1]["step"] == made["recipe"]["steps"]

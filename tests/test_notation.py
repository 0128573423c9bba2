"""The page of notation says what there is, and leaves nothing out."""

import re

import pytest

import patchlib as pl
from patchlib.notebooks import NOTEBOOKS
from patchlib.patching.cells import COMPONENTS
from patchlib.patching.metrics import METRICS

TEXT = (NOTEBOOKS / "notation_and_settings.py").read_text(encoding="utf-8")
NAMED = {name.strip('"') for name in re.findall("`([^`]+)`", TEXT)}


@pytest.fixture(scope="module")
def results(mini):
    pairs = pl.tasks.ioi(mini, n=2)
    given = {"corruption": pl.GN("S2"), "progress": False}
    return [
        pl.patch(mini, pairs, heads=["7.0"], **given),
        pl.patch(mini, pairs, "mlp", layers=[3], window=3, source=pl.Zero(), **given),
        pl.patch_together(mini, pairs, ["7.0"], corruption=pl.STR("S2")),
    ]


def test_every_attribute_of_a_result_is_explained(results):
    assert {name for fx in results for name in fx.attrs} - NAMED == set()


def test_every_variable_and_dimension_is_named(results):
    assert {str(name) for fx in results for name in (*fx.data_vars, *fx.effect.dims)} <= NAMED


@pytest.mark.parametrize("task", pl.tasks.__all__)
def test_every_position_and_site_of_a_task_is_in_its_row(task, mini):
    prompt = getattr(pl.tasks, task)(mini, n=1).prompts[0]
    (row,) = re.findall(rf"^# \| `{task}` \| (.+?) \| (.+?) \|", TEXT, re.MULTILINE)
    assert re.findall("`(.+?)`", row[0]) == list(prompt.positions)
    assert re.findall("`(.+?)`", row[1]) == list(prompt.corrupted)


def test_every_metric_and_component_is_named():
    assert METRICS.keys() | COMPONENTS.keys() <= NAMED

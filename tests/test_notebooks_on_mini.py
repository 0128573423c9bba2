"""Every notebook runs on mini, some on SmolLM2, with recorded marks, and leaves nothing behind.

They run cell by cell in IPython's shell, which shows what a cell ends on as a notebook does, but in
the process of the tests: kernels of their own would take more time than what they run.
"""

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import netCDF4  # noqa: F401 - which sets an environment variable when it is first imported
import numpy as np
import pytest
import torch
from conftest import ipython_shell
from handouts import answered, student
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from patchlib.errors import PatchlibError
from patchlib.lessons import claims, progress
from patchlib.notebooks import NOTEBOOKS

pytestmark = pytest.mark.slow
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
# Where a right answer depends on the model most: its facts, its windows, its tokens.
FACTS = ["03_1_factual_recall", "04_1_metrics_factual_recall", "app_g_factual_recall_details"]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[InteractiveShell]:
    """A fresh shell on mini, in which a mark that is not the recorded one is an error."""
    monkeypatch.setenv("PATCHLIB_MODEL", "mini")
    monkeypatch.setenv("PATCHLIB_CLAIMS", "strict")
    monkeypatch.setattr(progress, "TRIES", tmp_path / "progress.csv")
    monkeypatch.chdir(NOTEBOOKS)
    plt.switch_backend("agg")
    # Loading a model draws numbers, and a notebook may switch gradients off.
    with ipython_shell() as shell, torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        yield shell
        # What was shown holds on to models and figures.
        shell.reset(new_session=False)
    plt.close("all")


def run(shell: InteractiveShell, cells: list[str]) -> str:
    """Runs cells to the first error, which is raised, and gives back what they print."""
    printed = ""
    for cell in cells:
        with capture_output() as captured:
            result = shell.run_cell(cell, store_history=True)
        result.raise_error()
        printed += captured.stdout
    return printed


def around() -> list[object]:
    """What a notebook could change for those that run after it in the same process."""
    drawn = [random.getstate(), str(np.random.get_state())]
    return [*drawn, dict(os.environ), os.getcwd(), torch.get_num_threads()]


@pytest.mark.parametrize(
    ("name", "model"), [(n, "mini") for n in NAMES] + [(n, "smollm2") for n in FACTS]
)
def test_a_notebook_runs_with_the_recorded_marks(
    name: str, model: str, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As students get it; after each exercise come the cells of the worked version."""
    monkeypatch.setenv("PATCHLIB_MODEL", model)
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    student(notebook)
    cells = []
    for cell in notebook.cells:
        cells += [cell, *(part for part in answered(cell) if part is not cell)]
    before = around()
    printed = run(shell, [cell.source for cell in cells if cell.cell_type == "code"])
    # Or on a model that they name.
    assert f"model {model} (" in printed or "model known (" in printed
    assert around() == before
    exercises = re.findall(r'pl\.check\(\s*"(\S+?)"', "\n".join(c.source for c in notebook.cells))
    marks = re.findall(r"^([–✓✗]) (\S+)(?:  not answered yet|$)", printed, re.M)
    assert marks == [(mark, id) for id in exercises for mark in "–✓"], printed


def test_an_error_and_another_mark_fail(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        run(shell, ["x = 0", "1 / x"])
    monkeypatch.setattr(claims, "RECORDS", tmp_path)
    rows = claims.recorded()
    assert rows[(rows.model == "mini") & (rows.claim == "31-10")].status.tolist() == ["✓"]
    begin = ["from patchlib.lessons.claims import begin, claim", 'begin("mini", "no prompts")']
    run(shell, [*begin, 'claim("31-10", True)'])
    with pytest.raises(PatchlibError, match="has ✓, this run found ✗"):
        run(shell, [*begin, 'claim("31-10", False)'])

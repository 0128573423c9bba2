"""The notebooks as they are stored: paired, executed, free of errors, small, on their own."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
import xarray as xr

from patchlib import notebooks
from patchlib.notebooks import NOTEBOOKS

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
EXPECTED = [
    "00_start_here",
    "02_background",
    "03_1_factual_recall",
    "03_1_ioi_circuit",
    "03_2_out_of_distribution",
    "04_1_metrics_factual_recall",
    "04_2_negative_heads",
    "05_sliding_window",
    "06_recommendations",
    "app_c_arithmetic",
    "app_d_docstring",
    "app_e_greater_than",
    "app_f_which_tokens",
    "app_g_factual_recall_details",
    "app_h_ioi_details",
    "notation_and_settings",
]


def _read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def test_the_collection_is_complete():
    assert NAMES == EXPECTED
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", EXPECTED)
def test_text_and_notebook_are_one(name):
    text = jupytext.read(NOTEBOOKS / f"{name}.py")
    notebook = _read(name)
    assert [(c.cell_type, c.source.strip()) for c in notebook.cells] == [
        (c.cell_type, c.source.strip()) for c in text.cells
    ]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_code_cell_was_executed_in_order_and_none_failed(name):
    code = [cell for cell in _read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [out for cell in code for out in cell.outputs if out.output_type == "error"] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_no_cell_is_hidden_from_the_comparison(name):
    tags = {tag for cell in _read(name).cells for tag in cell.metadata.get("tags", [])}
    source = "\n".join(cell.source for cell in _read(name).cells if cell.cell_type == "code")
    assert not tags & {"nbval-skip", "nbval-ignore-output", "skip-execution"}
    assert re.findall(r"(?i)#\s*nbval[_-]\w+", source) == []


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notebook_is_small_and_loads_nothing_from_elsewhere(name):
    path: Path = NOTEBOOKS / f"{name}.ipynb"
    stored = path.read_text(encoding="utf-8")
    assert len(stored.encode()) < 1_000_000
    assert "<script" not in stored
    assert "widget-state" not in stored


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notebook_begins_and_ends_as_all_do(name):
    cells = _read(name).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert "2309.16042" in text
    printed = "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", []))
    assert "transformer-lens 4." in printed
    # A page to look things up has nothing to sum up.
    if name != "notation_and_settings":
        assert "## Summary" in text and "## Exercises" in text
        assert re.search(r"paper( \((GPT-2|GPT-2 XL|GPT-J|attn-only-4l)\))? +this run", printed)


def test_what_cannot_be_kept_leaves_what_was_kept(monkeypatch, tmp_path):
    """Also while somebody reads it: the new file takes the place of the old one as a whole."""
    monkeypatch.setattr(notebooks, "BUILD", tmp_path)
    path = tmp_path / "results" / "some.nc"
    notebooks.keep("some", xr.Dataset({"x": ("layer", [1.0, 2.0])}))
    with xr.open_dataset(path) as reading:
        notebooks.keep("some", xr.Dataset({"x": ("layer", [3.0, 4.0])}))
        assert reading.x.values.tolist() == [1.0, 2.0]
    assert xr.load_dataset(path).x.values.tolist() == [3.0, 4.0]
    with pytest.raises(TypeError):
        notebooks.keep("some", xr.Dataset({"x": 5.0}, attrs={"what": object()}))
    assert xr.load_dataset(path).x.values.tolist() == [3.0, 4.0]
    assert [*path.parent.iterdir()] == [path]

"""The notebooks as they are stored: paired, executed, free of errors, small, on their own."""

import ast
import json
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from patchlib.files import DATA
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
    "10_directions",
    "11_ablation",
    "12_granularity",
    "13_ioi_circuit_of_smollm2",
    "14_causal_mediation",
    "15_self_repair",
    "20_attribution_patching",
    "21_edges_and_eap",
    "22_acdc",
    "23_causal_scrubbing",
    "24_interchange_and_das",
    "25_known_circuit",
    "26_which_method_finds_the_circuit",
    "app_c_arithmetic",
    "app_d_docstring",
    "app_e_greater_than",
    "app_f_which_tokens",
    "app_g_factual_recall_details",
    "app_h_ioi_details",
    "notation_and_settings",
    "replication",
]
# Pages to look things up in: nothing to sum up and no exercises.
PAGES = {"notation_and_settings", "replication"}


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
    if name not in PAGES:
        assert "## Summary" in text and "## Exercises" in text
        assert len(set(re.findall(r"pl\.check\(\s*\"(\S+?)\"", _code(name)))) == 3


def _cells(name: str) -> list[str]:
    return [cell.source for cell in _read(name).cells if cell.cell_type == "code"]


def _code(name: str) -> str:
    return "\n".join(_cells(name))


def _lines(source: str) -> list[str]:
    """What a reader reads: no empty lines, no comments."""
    return [line for line in source.splitlines() if line.strip() and line.strip()[0] != "#"]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notebook_is_short(name):
    assert len(_lines(_code(name))) <= 150
    assert [cell for cell in _cells(name) if len(_lines(cell)) > 12] == []
    assert len(re.findall(r"pl\.claim\(", _code(name))) <= 7
    functions = [
        node for node in ast.walk(ast.parse(_code(name))) if isinstance(node, ast.FunctionDef)
    ]
    bodies = {node.name: (node.end_lineno or 0) - node.lineno for node in functions}
    assert {function: lines for function, lines in bodies.items() if lines > 6} == {}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notebook_draws_with_the_package_and_writes_no_sentences(name):
    code = _code(name)
    assert "matplotlib" not in code and "plt." not in code
    for node in ast.walk(ast.parse(code)):
        # No word depends on a condition, and no f-string is a sentence.
        if isinstance(node, ast.IfExp):
            assert not any(
                isinstance(part, ast.Constant) and isinstance(part.value, str)
                for part in (node.body, node.orelse)
            ), ast.unparse(node)
        if isinstance(node, ast.JoinedStr):
            words = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
            assert len(words.split()) <= 6, ast.unparse(node)
        assert not isinstance(node, ast.If), ast.unparse(node)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_said_of_heads_is_said_of_a_model_by_name(name):
    """A paragraph that names heads of a model says of which model they are."""
    named = re.compile(
        r"GPT|SmolLM2|mini|attn-only|`known`|the\sknown\smodel|the paper|Wang et al|Hanna et al|"
        r"layer\.head"
    )
    for cell in _read(name).cells:
        if cell.cell_type == "markdown":
            for paragraph in cell.source.split("\n\n"):
                heads = re.findall(r"[Hh]eads? \d{1,2}\.\d{1,2}", paragraph)
                assert not heads or named.search(paragraph), (heads, paragraph)


def test_every_claim_of_the_paper_is_made_in_one_notebook():
    made = [id for name in EXPECTED for id in re.findall(r'pl\.claim\(\s*"(\S+?)"', _code(name))]
    claims = json.loads((DATA / "claims.json").read_text("utf-8"))
    assert sorted(id for id in made if id in claims) == sorted(claims)

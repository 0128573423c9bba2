"""The README and its longer page: their examples run, and their numbers are those of the data."""

import ast
import base64
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

import patchlib as pl
from patchlib.lessons.claims import load, recorded

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (NOTEBOOKS / "using_patchlib.md").read_text(encoding="utf-8")
MARKS = "✓✗≈–"


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def run(code: str, names: dict) -> list:
    """Runs a block, and returns the values of the lines that are expressions."""
    values = []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Expr):
            values.append(eval(compile(ast.Expression(statement.value), "README", "eval"), names))
        else:
            exec(compile(ast.Module([statement], []), "README", "exec"), names)
    return values


# --- examples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mini", "smollm2"])
def test_quick_start(model, monkeypatch):
    monkeypatch.setenv("PATCHLIB_MODEL", model)
    # Of mini no sweep is stored.
    code = blocks(README)[0].replace("n=500", "n=8") if model == "mini" else blocks(README)[0]
    names: dict = {}
    strongest, found, figure, explorer = run(code, names)
    fx = names["fx"]
    assert (fx.attrs["model"], fx.attrs["n_prompts"]) == (model, 8 if model == "mini" else 500)
    assert ("stored" in fx.attrs) == (model == "smollm2")
    effects = abs(fx.effect.sel(metric="logit_diff"))
    assert abs(strongest.effect[0]) == float(effects.max())
    assert isinstance(found, pd.DataFrame) and isinstance(figure, Figure)
    assert explorer.error == "" and len(explorer.fx.metric) >= 3


def test_own_data(smollm2):
    names = {"pl": pl, "model": smollm2}
    run(blocks(README)[1], names)
    fx = names["fx"]
    assert fx.attrs["n_prompts"] == 1 and fx.position.item() == "changed"
    # The first layer's MLP at the country restores much of the capital.
    assert float(fx.effect.sel(metric="logit_diff", layer=0)) > 0.2
    assert len(blocks(README)) == 2


def test_the_default_model_is_smollm2(monkeypatch, smollm2):
    monkeypatch.delenv("PATCHLIB_MODEL", raising=False)
    names: dict = {}
    run("import patchlib as pl\nmodel = pl.load_model()", names)
    assert names["model"].cfg.model_name == smollm2.cfg.model_name == "smollm2"


def test_the_page_of_examples(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHLIB_MODEL", "smollm2")
    monkeypatch.chdir(tmp_path)
    results, swept, own_rows, own_kinds, parts, long = blocks(PAGE)
    # A pretrained model takes seconds for each prompt, of which what is not stored needs few.
    own_kinds = own_kinds.replace("pairs[:8]", "pairs[:2]")
    names: dict = {}

    effect, ends = run(results, names)
    assert names["fx"].attrs["n_prompts"] == 500 and "stored" in names["fx"].attrs
    assert float(ends.low) < float(effect) < float(ends.high)

    runs, overlap, negative, near, figure, roles = run(swept, names)
    assert runs.index.tolist() == ["clean", "STR", "GN"] and len(overlap) == 3
    found = names["sweep"].found("STR", "logit_diff")
    assert negative <= found and {*roles.index} == {str(h) for h in names["sweep"].everywhere()}
    assert isinstance(near, pl.Heads) and isinstance(figure, Figure)

    run(own_rows, names)
    assert names["capitals"].attrs["n_prompts"] == 2
    assert float(names["capitals"].effect.sel(metric="logit_diff", layer=0)) > 0.2

    run(own_kinds, names)
    shifted = names["shifted"]
    assert shifted.metric.values.tolist() == ["prob", "margin"]
    assert (shifted.attrs["corruption"], shifted.attrs["by"]) == ("Shift", 0.2)
    assert shifted.effect.notnull().all()

    table, queries, together, ablated = run(parts, names)
    assert table.effect.notnull().sum() == 2 * 3
    assert queries.layer.values.tolist() == [23, 24] and queries.sizes["head"] == 9
    assert together.attrs["parts"] == "mlp_out3, z24.4"
    assert ablated.attrs["source"] == "mean over 2 prompts of ioi"

    (shares,) = run(long, names)
    xr.testing.assert_equal(names["kept"], names["again"])
    assert names["kept"].sizes["draw"] == 3 and shares.between(1 / 3, 1).all()
    assert any((tmp_path / "runs" / "noise").iterdir())


# --- claims --------------------------------------------------------------------------------------


def test_the_counts_of_claims_are_the_table_s():
    rows = section("Does the paper hold for another model?")
    paper, others = pl.claims_by_model(), pl.claims_by_model("other works")
    assert f"Its {len(paper)} conclusions" in rows.replace("\n", " ")
    for name, model in {"SmolLM2": "smollm2", "mini": "mini"}.items():
        counts = " | ".join(str((paper[model] == mark).sum()) for mark in MARKS)
        assert f"\n| {name} | {counts} |\n" in rows
    # Some are about a model whose circuit is known, and about no other.
    others = others[others.smollm2 != ""]
    holds, fails = ((others.smollm2 == mark).sum() for mark in MARKS[:2])
    said = f"Of {len(others)} claims of other works, in notebooks 10 to 24, {holds} hold on SmolLM2"
    assert f"\n{said} and {fails} do not.\n" in rows


def test_the_claims_shown_are_the_table_s():
    rows, measured = section("Does the paper hold for another model?"), recorded()
    shown = re.findall(r"^\| (\w+-\w+) .*$", rows, re.M)
    assert 4 <= len(shown) <= 6
    for id in shown:
        entry = load()[id]
        marks = measured[measured.claim == id].set_index("model").status
        ours = " | ".join(marks.get(model, "") for model in ("smollm2", "mini"))
        # That it holds for the paper's own number is tested with the expressions.
        assert entry["paper"] is not None
        assert f"\n| {id} {entry['claim']} | {entry['model']} ✓ | {ours} |\n" in rows


def test_the_scores_are_the_table_s():
    rows, table = section("Which method finds a circuit that is known?"), pl.scores()
    edges = table[
        (table.of == "edges") & ((table.metric == "logit_diff") | (table.method == "ACDC"))
    ]
    edges = pd.concat([edges, table[table.method == "norm of writers"]])
    columns = ["average_precision", "auc", "passes"]
    means = edges.groupby("method")[columns].mean()
    shown = re.findall(r"^\| ([\w -]+), .* \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$", rows, re.M)
    assert len(shown) == 5
    for method, *values in shown:
        precision, auc, runs = means.loc[method]
        assert values == [f"{precision:.2f}", f"{auc:.2f}", f"{runs:.0f}"]
    (chance,) = re.findall(r"shuffled ranking has (\.\d+) and \.50", rows)
    assert float(chance) == pytest.approx((edges.n_true / edges.n).mean(), abs=0.005)


def test_what_the_figure_shows(smollm2):
    pairs = pl.tasks.ioi(smollm2, n=500)
    corruptions = {"STR": pl.STR("S2"), "GN": pl.GN("S2")}
    sweep = pl.sweep(smollm2, pairs, corruptions, metrics=["prob", "logit_diff"])
    listed = re.search(r"under\s+either\s+corruption: ([\d., and]+), in red", README)
    heads = pl.Heads(re.findall(r"\d+\.\d+", listed[1]))
    for run in corruptions:
        assert sweep.found(run, "logit_diff", "negative") == heads
    assert not sweep.found("STR", "prob", "negative")


# --- what is where -------------------------------------------------------------------------------


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_every_notebook_is_linked_once():
    linked = re.findall(r"\[`(\w+)`\]\(notebooks/\1\.ipynb\)", README)
    assert sorted(linked) == sorted(path.stem for path in NOTEBOOKS.glob("*.py"))


def test_reading_times_are_the_notebooks_own():
    least, most = map(int, re.search(r"each (\d+) to (\d+) minutes", README).groups())
    steps = "\n".join(re.findall(r"^\| \d \|.*$", section("The path for a class"), re.M))
    names = re.findall(r"\[`(\w+)`\]", steps)
    texts = {name: (NOTEBOOKS / f"{name}.py").read_text("utf-8") for name in names}
    times = [int(re.search(r"\*\*Time\*\*[ |]+(\d+) min", text)[1]) for text in texts.values()]
    assert (min(times), max(times)) == (least, most)


@pytest.mark.parametrize(("text", "folder"), [(README, ROOT), (PAGE, NOTEBOOKS)])
def test_every_picture_and_link_is_there(text, folder):
    targets = re.findall(r"\]\((?!http)([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    assert targets
    for target in targets:
        # The build of the site checks what follows "#".
        assert (folder / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("model", ["SmolLM2", "mini"])
def test_its_figure_is_a_notebook_s_first_of_smollm2(model, tmp_path):
    figures = [heat_map(model, letter) for letter in "ab"]
    outputs = [nbformat.v4.new_output("display_data", {"text/html": each}) for each in figures]
    cell = nbformat.v4.new_code_cell(outputs=outputs)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("Text"), cell])
    nbformat.write(notebook, tmp_path / "of.ipynb")
    pl.notebooks.keep_first_figure(tmp_path / "of.ipynb", tmp_path / "a.png")
    for text, name in (("heat maps\n", "b"), ("other", "c")):
        pl.notebooks.keep_first_figure(tmp_path / "of.ipynb", tmp_path / f"{name}.png", text)
        assert (tmp_path / f"{name}.png").exists() == (model == "SmolLM2" and name == "b")
    (tmp_path / "b.png").unlink(missing_ok=True)
    kept = list(tmp_path.glob("*.png"))
    assert [path.read_bytes() for path in kept] == ([b"a"] if model == "SmolLM2" else [])


def heat_map(model: str, content: str) -> str:
    picture = base64.b64encode(content.encode()).decode()
    return f'<img alt="heat maps\n{model}" width="9" src="data:image/png;base64,{picture}">'


def test_every_stored_figure_is_shown():
    for picture in (NOTEBOOKS / "figures").iterdir():
        assert f'src="notebooks/figures/{picture.name}"' in README

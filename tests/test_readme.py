"""The README's examples run as they are written."""

import ast
import re
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def run(code: str, names: dict) -> list:
    """Runs a block, and returns the values of the lines that are expressions."""
    values = []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Expr):
            values.append(eval(compile(ast.Expression(statement.value), "README", "eval"), names))
        else:
            exec(compile(ast.Module([statement], []), "README", "exec"), names)
    return values


@pytest.mark.parametrize("model", ["mini", "smollm2"])
def test_quick_start(model, monkeypatch):
    monkeypatch.setenv("PATCHLIB_MODEL", model)
    # A pretrained model takes seconds for each prompt, of which the numbers here need few.
    code = BLOCKS[0].replace("n=16", "n=2")
    names: dict = {}
    effect, found, figure, explorer = run(code, names)
    fx = names["fx"]
    assert code != BLOCKS[0] and fx.attrs["model"] == model
    assert isinstance(fx, xr.Dataset) and isinstance(found, pd.DataFrame)
    assert float(effect) == float(fx.effect.sel(metric="logit_diff")[2, 3])
    assert isinstance(figure, Figure)
    assert explorer.error == "" and len(explorer.fx.metric) >= 3


def test_the_default_model_is_smollm2(monkeypatch, smollm2):
    monkeypatch.delenv("PATCHLIB_MODEL", raising=False)
    names: dict = {}
    run("import patchlib as pl\nmodel = pl.load_model()", names)
    assert names["model"].cfg.model_name == smollm2.cfg.model_name == "smollm2"


@pytest.mark.parametrize("block", range(1, 4))
def test_own_work(block, smollm2):
    names: dict = {}
    run("import patchlib as pl", names)
    names |= {"model": smollm2, "pairs": names["pl"].tasks.ioi(smollm2, n=2)}
    values = run(BLOCKS[block], names)
    if block == 1:
        (fx,) = values
        assert fx.attrs["n_prompts"] == 2 and fx.position.item() == "changed"
        # The first layer's MLP at the country restores much of the capital.
        assert float(fx.effect.sel(metric="logit_diff", layer=0)) > 0.2
    elif block == 2:
        fx = names["fx"]
        assert fx.metric.values.tolist() == ["prob", "margin"]
        assert (fx.attrs["corruption"], fx.attrs["by"]) == ("Shift", 0.2)
        assert fx.effect.notnull().all()
    else:
        table, queries, together, ablated = values
        assert table.effect.notnull().sum() == 2 * 3
        assert queries.layer.values.tolist() == [5, 7] and queries.sizes["head"] == 9
        assert together.attrs["parts"] == "mlp_out3, z4.6"
        assert ablated.attrs["source"] == "mean over the prompts"


def test_every_notebook_is_listed():
    table = README.partition("## Notebooks")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.M)
    folder = Path(__file__).parents[1] / "notebooks"
    assert listed == sorted(path.stem for path in folder.glob("*.py"))


def test_reading_times_are_the_notebooks_own():
    for name, minutes in re.findall(r"^\| `(\w+)` \|.*\| (\d+) min \|$", README, re.M):
        text = (Path(__file__).parents[1] / "notebooks" / f"{name}.py").read_text("utf-8")
        assert f"| **Time** | {minutes} minutes to read" in text, name


def test_every_picture_and_link_is_there():
    root = Path(__file__).parents[1]
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    pictures = [target for target in targets if target.endswith(".png")]
    assert len(pictures) >= 4
    for target in targets:
        assert (root / target).exists(), target
    for picture in (root / "notebooks" / "figures").iterdir():
        assert f"notebooks/figures/{picture.name}" in pictures

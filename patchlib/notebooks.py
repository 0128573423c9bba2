"""What the notebooks share; ``python -m patchlib`` runs them all."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.figure
import pandas as pd
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.files import BUILD, IS_CHECKOUT, write_whole
from patchlib.models.loading import describe
from patchlib.paper import experiments
from patchlib.paper import results_page as results
from patchlib.paper import tables as paper

NOTEBOOKS = BUILD.parent / "notebooks"
FIGURES = NOTEBOOKS / "figures"


def versions(model: TransformerBridge, experiment: str | None = None, **other: Any) -> None:
    """Prints in one line what a notebook ran with.

    Args:
        model: the model that the notebook loaded.
        experiment: the notebook's experiment, as `experiments.settings` names it; for every other
            model than `mini` a second line says about how much time and memory it takes.
        other: settings that the notebook uses in place of the experiment's, such as ``draws=10``.
    """
    packages = ("patchlib", "transformer-lens", "torch")
    facts = describe(model)
    parts = [f"{package} {version(package).split('+')[0]}" for package in packages]
    print(" · ".join([*parts, f"model {facts['model']} ({facts['revision']})"]))
    if experiment is not None and facts["model"] != "mini":
        chosen = experiments.settings(experiment, model) | other
        print(f"{experiment}: {experiments.estimate(model, chosen)}")


def keep(name: str, result: matplotlib.figure.Figure | xr.Dataset | xr.DataArray) -> None:
    """Writes a figure (PNG and PDF) or a result (netCDF) to ``_build/``, for papers and checks.

    Args:
        name: the file's name without an ending, such as ``"03_1_heads_STR"``.
        result: the figure or the result.

    Raises:
        PatchlibError: for anything else.
    """
    from patchlib.show import plot

    if isinstance(result, matplotlib.figure.Figure):
        plot.save(result, BUILD / "figures" / name)
    elif isinstance(result, xr.Dataset | xr.DataArray):
        path = BUILD / "results" / f"{name}.nc"
        write_whole(path, result.to_netcdf)
    else:
        raise PatchlibError(
            f"cannot keep a {type(result).__name__}: give a matplotlib Figure, an xarray Dataset "
            "or a DataArray"
        )


def show(table: pd.DataFrame) -> None:
    """Prints a table as plain text, without its index, so that two runs compare as text."""
    with pd.option_context("display.max_colwidth", 60, "display.width", 120):
        print(table.to_string(index=False))


def run(path: Path, write: bool) -> float:
    """Executes one notebook and writes its page to ``_build/pages``.

    Args:
        path: the notebook.
        write: also store the outputs in the notebook itself.

    Returns:
        How many seconds the execution took.
    """
    import nbformat
    from nbclient import NotebookClient

    from patchlib import pages

    notebook = nbformat.read(path, as_version=4)
    # Threads that wait for one another must not spin: where cores are shared, that takes ten
    # times as long. Kernels inherit the setting, which is read when they start.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Their texts and stored outputs are of mini.
    os.environ.setdefault("PATCHLIB_MODEL", "mini")
    started = time.perf_counter()
    # Widgets need a kernel, so that their state is not stored; the pictures beside them are.
    NotebookClient(
        notebook,
        # A cell on one of the paper's models can take hours.
        timeout=None,
        kernel_name="python3",
        store_widget_state=False,
        coalesce_streams=True,
        # Kernels on this machine talk to nobody else; their warning about it would hide progress.
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = time.perf_counter() - started
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("language_info", None)
    pages.drop_widgets(notebook)
    text = pages.page(notebook)
    page = BUILD / "pages" / f"{path.stem}.html"
    write_whole(page, lambda part: part.write_text(text, encoding="utf-8"))
    if write:
        write_whole(path, partial(nbformat.write, notebook))
    return seconds


def main() -> None:
    """Reads the command line and runs the notebooks."""
    parser = argparse.ArgumentParser(
        prog="python -m patchlib", description="Execute the notebooks into _build/."
    )
    parser.add_argument("names", nargs="*", help="notebooks by name, such as 02_background")
    parser.add_argument(
        "--write", action="store_true", help="store the outputs in the notebooks themselves"
    )
    arguments = parser.parse_args()
    if not IS_CHECKOUT:
        raise SystemExit("the notebooks are in patchlib's repository: run this in a clone of it")
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    known = [path.stem for path in paths]
    unknown = sorted(set(arguments.names) - set(known))
    if unknown:
        parser.error(f"unknown notebook {', '.join(unknown)}: there are {', '.join(known)}")
    if not arguments.names:
        # What an earlier run recorded must not pass for this one's.
        for record in paper.RECORDS.glob("*.json"):
            record.unlink()
    for path in paths:
        if not arguments.names or path.stem in arguments.names:
            print(f"{path.stem} ...", end=" ", flush=True)
            print(f"{run(path, arguments.write):.0f} s", flush=True)
    if arguments.write:
        # The README shows some of the figures.
        for shown in FIGURES.glob("*.png"):
            drawn = BUILD / "figures" / shown.name
            if drawn.exists():
                shutil.copyfile(drawn, shown)
    print(f"the paper beside this run: {results.write()}")
    print(f"pages, figures and results are in {BUILD}")

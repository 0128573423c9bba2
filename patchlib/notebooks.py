"""Runs the notebooks: ``python -m patchlib``."""

from __future__ import annotations

import argparse
import base64
import os
import re
import time
from functools import partial
from pathlib import Path

from patchlib.files import BUILD, IS_CHECKOUT, write_whole

NOTEBOOKS = BUILD.parent / "notebooks"
FIGURES = NOTEBOOKS / "figures"


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


def keep_first_figure(notebook: Path, picture: Path, text: str = "") -> None:
    """Writes the first figure of a stored notebook as a picture, for the README.

    Args:
        notebook: the notebook; nothing is written where its figure is not of SmolLM2.
        picture: the PNG file.
        text: how the alternative text of the figure begins, where it is not the very first.
    """
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    shown = "".join(data.get("text/html", "") for data in outputs)
    image = rf'<img alt="({re.escape(text)}[^"]*)"[^>]* src="data:image/png;base64,([^"]*)"'
    found = re.search(image, shown)
    if found and "SmolLM2" in found[1]:
        write_whole(picture, lambda part: part.write_bytes(base64.b64decode(found[2])))


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
    for path in paths:
        if not arguments.names or path.stem in arguments.names:
            print(f"{path.stem} ...", end=" ", flush=True)
            print(f"{run(path, arguments.write):.0f} s", flush=True)
    if arguments.write:
        keep_first_figure(NOTEBOOKS / "03_1_ioi_circuit.ipynb", FIGURES / "heads_smollm2.png")
        path = NOTEBOOKS / "13_ioi_circuit_of_smollm2.ipynb"
        keep_first_figure(path, FIGURES / "circuit_smollm2.png", "A circuit as a graph")
    print(f"pages are in {BUILD / 'pages'}, claims by model: python -m patchlib.lessons.claims")

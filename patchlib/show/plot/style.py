"""What all figures share: type, colours, titles, and how a notebook shows them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import matplotlib
import xarray as xr
from IPython.display import display
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from patchlib.files import write_whole
from patchlib.patching import metrics

# Any, as the names of all settings are matplotlib's own.
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "figure.titlesize": 9,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.5,
    # Numbers in full: a power of ten at the end of an axis is overlooked.
    "axes.formatter.limits": (-9, 9),
    "axes.formatter.useoffset": False,
    # Text in a PDF stays text.
    "pdf.fonttype": 42,
}
# Okabe and Ito's colours, which differ for every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# The same run has the same colour in every figure, also where more is said of it after a comma;
# other names take the colours that are left.
_COLOUR_OF_RUN = {"": COLOURS[-1], "clean": "#999999", "STR": COLOURS[0], "GN": COLOURS[1]}
# As on the maps, where blue is positive.
POSITIVE, NEGATIVE, NEITHER = "#2166AC", "#B2182B", "0.6"
DETECTION_SD = 2
# Denser than the pixels of a page, so that small type stays sharp.
_DPI, _PAGE_DPI = 144, 96
# Inches: the longest line of a title, "SmolLM2, factual recall, 500 prompts, 10 draws of noise".
_TITLE = 4.2
_WHAT = {
    "head": "heads",
    "mlp": "MLPs",
    "attn": "attention layers",
    "resid": "residual stream",
    "resid_mid": "residual stream after attention",
    "q": "queries",
    "k": "keys",
    "v": "values",
    "pattern": "attention patterns",
    "neuron": "neurons",
    "edge": "edges",
}
_OF = {
    "ablation": "effect of ablating",
    "attribution patching": "attribution of",
    "edge attribution patching": "attribution of",
    "interchange intervention": "exchange of",
}
VARIANTS = {"qk_fix": "QK fix", "grad_drop": "GradDrop"}
# As the paper writes them.
_NAMES = {
    "ioi": "IOI",
    "greater_than": "greater-than",
    "smollm2": "SmolLM2",
    "gpt2": "GPT-2 small",
    "gpt2-medium": "GPT-2 medium",
    "gpt2-large": "GPT-2 large",
    "gpt2-xl": "GPT-2 XL",
}


class DescribedFigure(Figure):
    """A figure that a notebook shows once, as a value, with an alternative text.

    The text says what is drawn and holds no measured number, so that it is the same on every
    machine.
    """

    alt = "figure"

    def __repr__(self) -> str:
        return self.alt

    def bundle(self) -> dict[str, str]:
        """The figure as data of an output: a page, and text."""
        # Neither JupyterLab nor nbconvert reads an alternative text from elsewhere than HTML.
        file = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(file, format="png", dpi=_DPI, facecolor="white")
        picture = base64.b64encode(file.getvalue()).decode()
        width = round(self.get_figwidth() * _PAGE_DPI)
        page = (
            f'<img alt="{html.escape(self.alt)}" width="{width}" '
            f'src="data:image/png;base64,{picture}">'
        )
        return {"text/plain": self.alt, "text/html": page}

    def _ipython_display_(self) -> None:
        display(self.bundle(), raw=True)


def new_figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> DescribedFigure:
    """An empty figure of a size in inches, wide enough for a title."""
    return DescribedFigure(figsize=(max(width, _TITLE), height), layout=layout)


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG at 200 dpi and as PDF.

    Args:
        figure: the figure.
        path: the files' common name; an ending .png or .pdf is dropped, folders are made.

    Example:
        >>> import tempfile, torch
        >>> from patchlib import plot
        >>> figure = plot.attention(torch.eye(2)[None], ["a", "b"], ["0.1"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot.save(figure, Path(folder) / "figures" / "pattern")
        ...     sorted(file.name for file in Path(folder).rglob("pattern.*"))
        ['pattern.pdf', 'pattern.png']
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".png", ".pdf") else path
    # Without a date the same figure gives the same document.
    options: dict[str, Any] = {"png": {"dpi": 200}, "pdf": {"metadata": {"CreationDate": None}}}
    with matplotlib.rc_context(STYLE):
        for ending, more in options.items():
            write = partial(figure.savefig, bbox_inches="tight", **more)
            write_whole(Path(f"{stem}.{ending}"), write)


def colours(runs: Iterable[str]) -> dict[str, str]:
    """The colour of each run."""
    others = cycle(colour for colour in COLOURS if colour not in _COLOUR_OF_RUN.values())
    return {run: _COLOUR_OF_RUN.get(run.split(",")[0]) or next(others) for run in runs}


def legend(figure: Figure, notes: dict[str, Artist]) -> None:
    """Explains signs and lines below the figure, where they hide nothing."""
    if notes:
        # Inches: a letter, and the sign before a name with the space around it.
        wide = sum(0.05 * len(name) + 0.47 for name in notes) > figure.get_figwidth()
        figure.legend(
            handles=list(notes.values()),
            labels=list(notes),
            loc="outside lower center",
            ncols=(2 if wide else 4) if len(notes) <= 4 else 3,
            frameon=False,
        )


def label(metric: str, fx: xr.Dataset) -> str:
    """What an axis of effects is called."""
    what = metrics.label(metric, fx.attrs)
    # After an interchange, what is measured is shown as it is.
    return what if fx.attrs.get("method") == "interchange intervention" else f"effect: {what}"


def title(*results: xr.Dataset) -> str:
    """What was patched, corrupted and asked, as far as all results have it in common; and of how
    many prompts and draws of noise each shows the mean."""
    first, *others = (fx.attrs | _chosen(fx) for fx in results)
    same = {key: value for key, value in first.items() if all(o.get(key) == value for o in others)}
    what, how = "", ""
    ablation = same.get("method") == "ablation"
    if "component" in same:
        what = _OF.get(same.get("method", ""), "effect of patching")
        what += f" {_WHAT.get(same['component'], same['component'])}"
        what += "".join(f" with {name}" for key, name in VARIANTS.items() if same.get(key))
        window = same.get("window", 1)
        what += f" in windows of {window}" if window != 1 and str(window).isdigit() else ""
        what += f" at {same['position']}" if "position" in same else ""
        if "receivers" in same:
            what += f" into {shorten(same['receivers'], 18, placeholder=' …')}"
            what += f" (MLPs: {same['mlps']})" if "mlps" in same else ""
    if "corruption" in same or "site" in same:
        how = str(same.get("corruption", "corrupted:"))
        if "site" in same:
            how += f" on {same['site']}" if "corruption" in same else f" {same['site']}"
        how += ", noising" if same.get("direction") == "noise" else ""
        source = same.get("source", "clean run")
        how += f", from {source}" if source not in ("clean run", "corrupted run") else ""
    elif ablation:
        how = str(same.get("source", ""))
    elif same.get("method") == "self-repair":
        how = f"replaced by {same.get('source', 'several sources')}"
    # Beside noise, replaced tokens do not count as one draw of it.
    noisy = [fx for fx in results if fx.attrs.get("corruption") != "STR"]
    where = ", ".join(
        [
            *(spelt(same[name]) for name in ("model", "task") if name in same),
            *_counted(results, "n_prompts", "prompt", "prompt{}"),
            *_counted(noisy, "draws", "draw", "draw{}" if ablation else "draw{} of noise"),
        ]
    )
    return "\n".join(filter(None, (what, how, where)))


def spelt(name: str) -> str:
    """The name of a model, a task or a position as the paper writes it."""
    return _NAMES.get(name) or Path(name).name.replace("_", " ")


def _counted(results: Iterable[xr.Dataset], attribute: str, dim: str, words: str) -> Iterator[str]:
    """How many prompts or draws the results have, where they say it."""
    found = [fx.sizes.get(dim, fx.attrs.get(attribute)) for fx in results]
    counts = sorted({int(count) for count in found if count is not None})
    if counts:
        many = "" if counts == [1] else "s"
        yield f"{' to '.join(map(str, counts[:1] + counts[1:][-1:]))} {words.format(many)}"


def _chosen(fx: xr.Dataset) -> dict[str, Any]:
    """The window and the position that were taken out of a result of several."""
    chosen = {
        name: fx[name].item()
        for name in ("window", "position")
        if name in fx.coords and fx[name].ndim == 0
    }
    return {name: spelt(value) if name == "position" else value for name, value in chosen.items()}

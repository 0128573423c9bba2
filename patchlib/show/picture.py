"""Figures of the widgets, shown as ordinary outputs of a cell and replaced in place."""

from __future__ import annotations

import html
import io
import struct
import textwrap
from collections.abc import Callable, Hashable, Mapping, Set
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import DisplayHandle
from matplotlib.figure import Figure

# Characters of a line of a caption; inches that one takes, on average and with a little room.
_CAPTION_WIDTH, _CHARACTER_WIDTH = 90, 0.07
# Denser than the pixels of a page, so that small type stays sharp.
_DPI, _PAGE_DPI = 144, 96
_PICTURES_KEPT = 64
# Inches; and where the lines of a pattern become too low for its labels.
_PAGE_WIDTH, _LABELS_TOUCH = 10.0, 0.7


class Picture:
    """A figure shown as an ordinary output, which stays in the saved notebook."""

    def __init__(self) -> None:
        self.figure: Figure | None = None
        self.caption = "nothing computed yet"
        self._key: Hashable = None
        self._handle: DisplayHandle | None = None
        # What was drawn and sent last, so that going back to it takes no time.
        self._figures: dict[Hashable, Figure] = {}
        self._sent: dict[Hashable, tuple[dict[str, Any], dict[str, Any]]] = {}

    def draw(self, key: Hashable, caption: str, make: Callable[[], Figure]) -> None:
        """Replaces the figure where it would be another one."""
        if self.figure is not None and key == self._key:
            return
        if key not in self._figures:
            figure = make()
            lines = [textwrap.fill(line, _CAPTION_WIDTH) for line in caption.splitlines()]
            figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)
            widest = max(len(line) for text in lines for line in text.splitlines())
            figure.set_figwidth(max(figure.get_figwidth(), widest * _CHARACTER_WIDTH))
            self._figures[key] = figure
            if len(self._figures) > _PICTURES_KEPT:
                oldest = next(iter(self._figures))
                del self._figures[oldest]
                self._sent.pop(oldest, None)
        self.figure, self.caption, self._key = self._figures[key], caption, key
        if self._handle is not None:
            self._send(self._handle.update)

    def show(self) -> None:
        """Shows it in the current cell, and wherever it was shown before."""
        if self._handle is None:
            self._handle = DisplayHandle()
        self._send(self._handle.display)

    def _send(self, send: Callable[..., None]) -> None:
        data: dict[str, Any] = {"text/plain": self.caption}
        metadata: dict[str, Any] = {}
        if self.figure is not None:
            if self._key not in self._sent:
                self._sent[self._key] = picture_of(self.figure)
            picture, metadata = self._sent[self._key]
            data |= picture
        send(data, raw=True, metadata=metadata)


def picture_of(figure: Figure) -> tuple[dict[str, Any], dict[str, Any]]:
    """A figure as data and metadata of an output, in its size on a page."""
    png = png_of(figure)
    (pixels,) = struct.unpack(">I", png[16:20])
    return {"image/png": png}, {"image/png": {"width": pixels * _PAGE_DPI // _DPI}}


def png_of(figure: Figure) -> bytes:
    """A figure as a picture."""
    # Not cut to a tight box, for which everything would have to be drawn twice.
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, facecolor="white")
    return file.getvalue()


def running_cell() -> int | None:
    """The number of the cell that runs; None where there is no notebook."""
    return InteractiveShell.instance().execution_count if InteractiveShell.initialized() else None


def table_of(name: str, settings: Mapping[str, object]) -> dict[str, str]:
    """What a saved notebook shows of a widget's controls: its settings, as a table.

    Args:
        name: the function that showed the widget.
        settings: its settings by name.
    """
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>"
        for key, value in settings.items()
    )
    caption = f"<caption>Settings of {name}; run the cell for its controls</caption>"
    plain = ", ".join(f"{key} {value}" for key, value in settings.items())
    return {"text/html": f"<table>{caption}{rows}</table>", "text/plain": f"{name}: {plain}"}


def fit_page(figure: Figure, marked: Set[int] = frozenset()) -> None:
    """Makes attention over many tokens as wide as a page, with the labels that fit.

    Args:
        figure: a figure of `patchlib.plot.attention`.
        marked: the positions whose labels stay where not all fit.
    """
    shrink = _PAGE_WIDTH / figure.get_figwidth()
    if shrink >= 1:
        return
    figure.set_size_inches(_PAGE_WIDTH, figure.get_figheight() * shrink)
    if shrink < _LABELS_TOUCH:
        for axes in figure.axes[:-1]:
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                for position, label in enumerate(labels):
                    label.set_visible(position in marked)

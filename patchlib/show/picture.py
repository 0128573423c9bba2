"""Figures of the widgets, shown as ordinary outputs of a cell and replaced in place."""

from __future__ import annotations

import io
import struct
import textwrap
from collections.abc import Callable, Hashable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import DisplayHandle
from matplotlib.figure import Figure

# Characters of a line of a caption; inches that one takes, on average and with a little room.
_CAPTION_WIDTH, _CHARACTER_WIDTH = 90, 0.07
# Denser than the pixels of a page, so that small type stays sharp.
_DPI, _PAGE_DPI = 144, 96
_PICTURES_KEPT = 64


class Picture:
    """A figure shown as an ordinary output, which stays in the saved notebook."""

    def __init__(self) -> None:
        self.figure: Figure | None = None
        self.caption = "nothing computed yet"
        self._key: Hashable = None
        self._handle: DisplayHandle | None = None
        # What was drawn and sent last, so that going back to it takes no time.
        self._figures: dict[Hashable, Figure] = {}
        self._sent: dict[Hashable, bytes] = {}

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
        metadata = {}
        if self.figure is not None:
            if self._key not in self._sent:
                self._sent[self._key] = png_of(self.figure)
            data["image/png"] = png = self._sent[self._key]
            (pixels,) = struct.unpack(">I", png[16:20])
            metadata["image/png"] = {"width": pixels * _PAGE_DPI // _DPI}
        send(data, raw=True, metadata=metadata)


def png_of(figure: Figure) -> bytes:
    """A figure as a picture."""
    # Not cut to a tight box, for which everything would have to be drawn twice.
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, facecolor="white")
    return file.getvalue()


def running_cell() -> int | None:
    """The number of the cell that runs; None where there is no notebook."""
    return InteractiveShell.instance().execution_count if InteractiveShell.initialized() else None

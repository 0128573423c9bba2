"""What widgets show: figures replaced in place, and what stands in for controls in a saved file."""

from __future__ import annotations

import asyncio
import html
import textwrap
from collections.abc import Callable, Hashable, Mapping, Set

import ipywidgets
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import DisplayHandle, display

from patchlib.show.plot.style import DescribedFigure

# Characters of a line of a caption; inches that one takes, on average and with a little room.
_CAPTION_WIDTH, _CHARACTER_WIDTH = 90, 0.07
_PICTURES_KEPT = 64
# Inches; and where the lines of a pattern become too low for its labels.
_PAGE_WIDTH, _LABELS_TOUCH = 10.0, 0.7
# Seconds that a picture waits for further changes.
_PAUSE = 0.05
# A widget is an output, and what stands in for it the next one. One of the two is seen: without
# its kernel a widget says "Loading widget..." or that it was not found.
_ONE_IS_SEEN = """<style>
.jp-OutputArea-child:has(.patchlib-live) + .jp-OutputArea-child:has(.patchlib-stand-in),
.jp-OutputArea-child:has(> .jp-OutputArea-output.lm-Panel):not(:has(.patchlib-live)):has(
  + .jp-OutputArea-child .patchlib-stand-in
) { display: none; }
</style>"""


class Picture:
    """A figure shown as an ordinary output, which stays in the saved notebook.

    Attributes:
        key: what the figure is known by; None before the first one.
        caption: what stands above it.
    """

    def __init__(self) -> None:
        self.key: Hashable = None
        self.caption = "nothing computed yet"
        self._shown: Hashable = None
        self._make: Callable[[], DescribedFigure]
        self._handle: DisplayHandle | None = None
        # What was drawn and sent last, so that going back to it takes no time.
        self._figures: dict[Hashable, DescribedFigure] = {}
        self._sent: dict[Hashable, dict[str, str]] = {}

    @property
    def figure(self) -> DescribedFigure | None:
        """The figure, made when it is first asked for."""
        if self.key is not None and self.key not in self._figures:
            figure = self._make()
            lines = [textwrap.fill(line, _CAPTION_WIDTH) for line in self.caption.splitlines()]
            figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)
            widest = max(len(line) for text in lines for line in text.splitlines())
            figure.set_figwidth(max(figure.get_figwidth(), widest * _CHARACTER_WIDTH))
            self._figures[self.key] = figure
            if len(self._figures) > _PICTURES_KEPT:
                oldest = next(iter(self._figures))
                del self._figures[oldest]
                self._sent.pop(oldest, None)
        return self._figures.get(self.key)

    def draw(self, key: Hashable, caption: str, make: Callable[[], DescribedFigure]) -> None:
        """Changes to another figure.

        Args:
            key: what it is known by.
            caption: what stands above it.
            make: draws it.
        """
        self.key, self.caption, self._make = key, caption, make

    def update(self) -> None:
        """Makes the figure, and replaces the last one wherever that is shown."""
        figure = self.figure
        if figure is not None and self._handle is not None and self._shown != self.key:
            self._send(self._handle.update)

    def show(self) -> None:
        """Shows what was made in the current cell, and wherever it was shown before."""
        if self._handle is None:
            self._handle = DisplayHandle()
        self._send(self._handle.display)

    def _send(self, send: Callable[..., None]) -> None:
        data = {"text/plain": self.caption}
        if self.key in self._figures:
            if self.key not in self._sent:
                self._sent[self.key] = self._figures[self.key].bundle()
            data = self._sent[self.key] | data
        self._shown = self.key
        send(data, raw=True)


def after_callback(action: Callable[[], None]) -> None:
    """Does something once the changes that a page has sent are dealt with; at once elsewhere.

    Args:
        action: what to do; several calls of it are as good as one.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        action()
    else:
        loop.call_later(_PAUSE, action)


class Shown:
    """A widget in the current cell, and what is seen without its kernel, as in a saved notebook.

    Args:
        widget: the widget.
        stand_in: what is seen instead, as ``text/html`` and ``text/plain``.
    """

    def __init__(self, widget: ipywidgets.DOMWidget, stand_in: Mapping[str, str]) -> None:
        widget.add_class("patchlib-live")
        view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
        display({"application/vnd.jupyter.widget-view+json": view}, raw=True)
        self._stand_in = stand_in
        self._handle = DisplayHandle()
        self._send(self._handle.display)

    def update(self, stand_in: Mapping[str, str]) -> None:
        """Replaces what is seen instead where it is something else."""
        if stand_in != self._stand_in:
            self._stand_in = stand_in
            self._send(self._handle.update)

    def _send(self, send: Callable[..., None]) -> None:
        page = f'{_ONE_IS_SEEN}<div class="patchlib-stand-in">{self._stand_in["text/html"]}</div>'
        send({**self._stand_in, "text/html": page}, raw=True)


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


def fit_page(figure: DescribedFigure, marked: Set[int] = frozenset()) -> None:
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

"""What widgets show: figures, and what stands in for the whole in a saved file."""

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


class Picture(ipywidgets.HTML):
    """A figure in a widget, made once the controls have settled.

    Attributes:
        key: what the figure is known by; None before the first one.
        caption: what stands above it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key: Hashable = None
        self.caption = "nothing computed yet"
        self._make: Callable[[], DescribedFigure]
        # What was made last, so that going back to it takes no time.
        self._figures: dict[Hashable, DescribedFigure] = {}
        self._pages: dict[Hashable, str] = {}

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
                self._pages.pop(oldest, None)
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
        """Makes the figure and shows it."""
        figure = self.figure
        if figure is not None:
            if self.key not in self._pages:
                self._pages[self.key] = figure.bundle()["text/html"]
            self.value = self._pages[self.key]


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

    Attributes:
        cell: the number of the cell.
    """

    def __init__(self, widget: ipywidgets.DOMWidget) -> None:
        self.cell = running_cell()
        self._kept: Mapping[str, str] | None = None
        self._handle = DisplayHandle()
        widget.add_class("patchlib-live")
        view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
        display({"application/vnd.jupyter.widget-view+json": view}, raw=True)

    def keep(self, stand_in: Mapping[str, str]) -> None:
        """Puts what is seen instead below the widget, or in place of the last.

        Args:
            stand_in: its ``text/html`` and ``text/plain``.
        """
        if stand_in == self._kept:
            return
        page = f'{_ONE_IS_SEEN}<div class="patchlib-stand-in">{stand_in["text/html"]}</div>'
        send = self._handle.display if self._kept is None else self._handle.update
        send({**stand_in, "text/html": page}, raw=True)
        self._kept = stand_in


def running_cell() -> int | None:
    """The number of the cell that runs; None where there is no notebook."""
    return InteractiveShell.instance().execution_count if InteractiveShell.initialized() else None


def stand_in(name: str, settings: Mapping[str, object], *pictures: Picture) -> dict[str, str]:
    """What a saved notebook shows of a widget: its settings as a table, and its pictures.

    Args:
        name: the function that showed the widget.
        settings: its settings by name.
        pictures: its pictures.
    """
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>"
        for key, value in settings.items()
    )
    caption = f"<caption>Settings of {name}; run the cell for its controls</caption>"
    plain = ", ".join(f"{key} {value}" for key, value in settings.items())
    seen = [picture.value or html.escape(picture.caption) for picture in pictures]
    return {
        "text/html": f"<table>{caption}{rows}</table>{''.join(f'<p>{each}</p>' for each in seen)}",
        "text/plain": "\n".join([f"{name}: {plain}", *(each.caption for each in pictures)]),
    }


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

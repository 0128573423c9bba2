"""One choice changed at a time: which conclusions move (Section 6)?"""

from __future__ import annotations

import dataclasses
import html
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
import numpy as np
import pandas as pd
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.measure.detection import by_cell, detect
from patchlib.patching.cells import COMPONENTS, unit_of
from patchlib.patching.metrics import label
from patchlib.patching.patch import patch
from patchlib.prompts.corruption import GN, STR
from patchlib.prompts.pairs import PromptPairs
from patchlib.show.picture import Picture, Shown, after_callback, running_cell, stand_in
from patchlib.show.plot.style import DescribedFigure, new_figure

METRICS = {
    name: label(name).removeprefix("normalised ").split(" (")[0]
    for name in ("logit_diff", "prob", "kl")
}
"""The paper's metrics, and what they are called in words."""

_COLOURS = {"shared": "#000000", "lost": "#D55E00", "gained": "#0072B2", "neither": "#BBBBBB"}
_MARKERS = {"shared": "s", "lost": "v", "gained": "^", "neither": "o"}
_SD = 2.0


@dataclass(frozen=True)
class Choice:
    """The choices of one patching experiment; by default those that the paper recommends.

    Args:
        site: where the prompts are corrupted.
        corruption: ``"STR"`` or ``"GN"``.
        metric: one of `METRICS`.
        window: how many adjacent layers are restored together.

    Example:
        >>> print(Choice("S2", metric="prob"))
        STR at S2, probability
    """

    site: str
    corruption: str = "STR"
    metric: str = "logit_diff"
    window: int = 1

    def __str__(self) -> str:
        window = f", window {self.window}" if self.window > 1 else ""
        return f"{self.corruption} at {self.site}, {METRICS[self.metric]}{window}"

    def changes(
        self, sites: Sequence[str] = (), windows: Sequence[int] = (1,)
    ) -> dict[str, Choice]:
        """Every choice that differs in one setting, by what is changed.

        Args:
            sites: other sites at which tokens can be replaced.
            windows: other windows.

        Example:
            >>> list(Choice("S2").changes(sites=["S1+IO"]))[:2]
            ['corruption: STR → GN', 'metric: logit difference → probability']
        """
        kinds = ("STR", "GN")
        others: dict[str, Sequence[str | int]] = {
            "corruption": kinds,
            "metric": list(METRICS),
            "site": sites,
            "window": windows,
        }
        found = {}
        for name, values in others.items():
            old = getattr(self, name)
            for new in values:
                if new != old:
                    spelt = [METRICS.get(str(value), str(value)) for value in (old, new)]
                    change = f"{name}: {' → '.join(spelt)}"
                    found[change] = dataclasses.replace(self, **{name: new})  # type: ignore[arg-type]
        return found


class Study:
    """Patches under any choice, each sweep once, and says which heads or layers it detects.

    Args:
        model: the model, in evaluation mode.
        pairs: the prompts.
        component: as in `patchlib.patch`; windows other than 1 need a whole layer.
        positions: what is restored, as ``"all"`` or one named position.
        windows: the windows that may be asked for; odd ones.
        draws: over how many draws of the noise GN is averaged.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> study = Study(model, pl.tasks.ioi(model, n=20))
        >>> study.table(Choice("S2")).columns.tolist()
        ['change', 'detected', 'shared', 'lost', 'gained']
    """

    def __init__(
        self,
        model: TransformerBridge,
        pairs: PromptPairs,
        component: str = "head",
        positions: str = "all",
        windows: Sequence[int] = (1,),
        draws: int = 5,
    ) -> None:
        if positions == "each":
            raise PatchlibError(
                "positions='each' gives a map for every position: give 'all' or a named position"
            )
        if unit_of(model, COMPONENTS.get(component, "")) and tuple(windows) != (1,):
            raise PatchlibError(
                f"windows={list(windows)} with component={component!r}, of which each layer has "
                "several: they are patched one layer at a time; use component 'mlp', 'attn' or "
                "'resid'"
            )
        if any(window % 2 == 0 for window in windows):
            raise PatchlibError(f"windows={list(windows)}: give odd windows, which have a middle")
        self._model, self._pairs = model, pairs
        self._component, self._positions = component, positions
        self._draws = draws
        self.windows = tuple(windows)
        self._results: dict[tuple[str, str], xr.Dataset] = {}

    def fx(self, choice: Choice) -> xr.Dataset:
        """The effects under a choice, with its metric and window alone.

        Raises:
            PatchlibError: for a window or a metric that the study does not have, an unknown
                corruption, and as `patchlib.patch` does.
        """
        if choice.metric not in METRICS or choice.window not in self.windows:
            raise PatchlibError(
                f"metric={choice.metric!r}, window={choice.window}: this study has the metrics "
                f"{', '.join(METRICS)} and the windows {', '.join(map(str, self.windows))}"
            )
        if choice.corruption not in ("STR", "GN"):
            raise PatchlibError(f"corruption={choice.corruption!r}: allowed are 'STR' and 'GN'")
        key = choice.corruption, choice.site
        if key not in self._results:
            is_str = choice.corruption == "STR"
            self._results[key] = patch(
                self._model,
                self._pairs,
                self._component,
                corruption=STR(choice.site) if is_str else GN(choice.site, draws=self._draws),
                metrics=list(METRICS),
                window=self.windows,
                positions=self._positions,
                progress=False,
            )
        fx = self._results[key].sel(metric=[choice.metric], window=choice.window)
        fx = fx.drop_vars("window")
        return fx.assign_attrs(window=choice.window)

    def standard(self, choice: Choice) -> xr.DataArray:
        """Effects as distances from their mean, in standard deviations over heads or layers."""
        effect = self.fx(choice).effect.squeeze("metric", drop=True)
        return ((effect - effect.mean()) / effect.std(ddof=0)).rename("standard")

    def detected(self, choice: Choice) -> list[str]:
        """What is detected under a choice, with its sign: ``"+5.4"``, ``"-10.7"``; by layer."""
        found = detect(self.fx(choice), sd=_SD)
        marks = {"positive": "+", "negative": "-"}
        heads = [
            (marks[sign], name)
            for sign, names in zip(found.sign, found.heads, strict=True)
            for name in names
        ]
        return [f"{sign}{name}" for sign, name in sorted(heads, key=_order)]

    def compare(self, before: Choice, after: Choice) -> dict[str, list[str]]:
        """What two choices detect: ``shared`` by both, ``lost`` and ``gained``.

        A head that changes its sign is lost with the one and gained with the other.
        """
        old, new = self.detected(before), self.detected(after)
        return {
            "shared": [head for head in old if head in new],
            "lost": [head for head in old if head not in new],
            "gained": [head for head in new if head not in old],
        }

    def table(self, start: Choice, sites: Sequence[str] = ()) -> pd.DataFrame:
        """Every change of one setting, and what it does to the detected heads or layers.

        Args:
            start: the choices to start from.
            sites: other sites at which tokens can be replaced.

        Returns:
            One row for each change after one for the start itself: ``change``, the number
            ``detected``, and the lists ``shared``, ``lost`` and ``gained`` as text.
        """
        choices = {f"none ({start})": start} | start.changes(sites, self.windows)
        rows = []
        for change, after in choices.items():
            lists = {name: _text(heads) for name, heads in self.compare(start, after).items()}
            rows.append({"change": change, "detected": len(self.detected(after))} | lists)
        return pd.DataFrame(rows)

    def figure(self, before: Choice, after: Choice) -> DescribedFigure:
        """Effects under two choices against each other, with the thresholds of detection.

        Args:
            before: the choice of the horizontal axis.
            after: the choice of the vertical axis.
        """
        x, y = by_cell(self.standard(before)), by_cell(self.standard(after))
        names = x.cell.values.tolist()
        kinds = {
            head[1:]: kind for kind, heads in self.compare(before, after).items() for head in heads
        }
        figure = new_figure(6.2, 4.2)
        figure.alt = f"Scatter plot: effects under {after}, against those under {before}."
        axes = figure.subplots()
        for kind in ("neither", "shared", "lost", "gained"):
            rows = [i for i, name in enumerate(names) if kinds.get(name, "neither") == kind]
            if rows:
                axes.scatter(
                    x[rows], y[rows], s=22, c=_COLOURS[kind], marker=_MARKERS[kind], label=kind
                )
        labelled = sorted(
            (i for i, name in enumerate(names) if name in kinds), key=lambda i: float(x[i])
        )
        for rank, i in enumerate(labelled):
            # To the left where the next one is close on the right.
            right = float(x[labelled[rank + 1]]) if rank + 1 < len(labelled) else np.inf
            side = 1 if right - float(x[i]) > 0.25 else -1
            axes.annotate(
                names[i],
                (x[i], y[i]),
                xytext=(5 * side, 4 * side),
                textcoords="offset points",
                fontsize=8,
                ha="left" if side > 0 else "right",
                va="bottom" if side > 0 else "top",
            )
        for sd in (-_SD, _SD):
            axes.axvline(sd, color="0.5", linewidth=0.8, linestyle="--")
            axes.axhline(sd, color="0.5", linewidth=0.8, linestyle="--")
        axes.set_xlabel(f"effect, {before}\n(SD from the mean)")
        axes.set_ylabel(f"effect, {after}\n(SD from the mean)")
        axes.margins(0.08)
        axes.spines[["top", "right"]].set_visible(False)
        unit = unit_of(self._model, COMPONENTS[self._component]) or ("layer", 0)
        axes.legend(
            frameon=False,
            fontsize=8,
            title=unit[0].replace("kv_head", "key/value head") + "s",
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
        return figure


class Choices:
    """A control that changes one choice, above a picture of the conclusions that move.

    It opens on a change that moves a list where one of those does that need no further sweep. The
    saved notebook keeps the last picture.

    Args:
        study: computes the effects.
        start: the choices to start from.
        sites: other sites at which tokens can be replaced.
        show: show it at once.

    Attributes:
        widget: control and picture, to be shown wherever widgets are.
        control: the list of changes; set its ``value`` to one of its ``options``.
        moved: what the change does: the lists ``shared``, ``lost`` and ``gained``; empty where
            there is no result.
        figure: the picture.
        error: why there is no result; empty where there is one.

    Raises:
        PatchlibError: where the choices to start from cannot be patched.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> choices = Choices(Study(model, pl.tasks.ioi(model, n=20)), Choice("S2"), show=False)
        >>> choices.control.value = "metric: logit difference → probability"
        >>> list(choices.moved)
        ['shared', 'lost', 'gained']
    """

    def __init__(
        self, study: Study, start: Choice, sites: Sequence[str] = (), show: bool = True
    ) -> None:
        self._study, self._start = study, start
        self._changes = start.changes(sites, study.windows)
        self._picture = Picture()
        self._lock = threading.RLock()
        self._message = ipywidgets.HTML()
        self.moved: dict[str, list[str]] = {}
        self.error = ""
        self.control = ipywidgets.Dropdown(
            description="change",
            options=list(self._changes),
            value=self._moving(),
            layout={"width": "400px"},
        )
        self.control.observe(self._changed, names="value")
        self.widget = ipywidgets.VBox([self.control, self._message, self._picture])
        self._shown = Shown(self.widget) if show and running_cell() is not None else None
        self._refresh()
        self._draw()

    def __repr__(self) -> str:
        return f"Choices({self.caption.splitlines()[0]})"

    @property
    def figure(self) -> DescribedFigure | None:
        """The picture."""
        return self._picture.figure

    @property
    def caption(self) -> str:
        """The change, and what it does or why that is not known."""
        return self._describe(self.control.value)

    def _describe(self, change: str) -> str:
        lists = [f"{name}: {_text(heads)}" for name, heads in self.moved.items()]
        return "\n".join([change, *([f"no result: {self.error}"] if self.error else lists)])

    def _moving(self) -> str:
        """A change that moves a list, of those that are read from the first sweep."""
        start = self._start
        known = {
            change: after
            for change, after in self._changes.items()
            if (after.corruption, after.site) == (start.corruption, start.site)
        }
        for change, after in known.items():
            moved = self._study.compare(start, after)
            if moved["lost"] or moved["gained"]:
                return change
        return next(iter(known))

    def _changed(self, change: object) -> None:
        self._refresh()

    def _refresh(self) -> None:
        # A page may send each change to a thread of its own.
        with self._lock:
            change = self.control.value
            after = self._changes[change]
            self.moved = {}
            self._tell("")
            try:
                self.moved = self._study.compare(self._start, after)
                self._picture.draw(
                    change, self._describe(change), lambda: self._study.figure(self._start, after)
                )
            # Raised in a callback it would vanish; nothing but the message tells of it.
            except Exception as error:
                self._tell(str(error) or type(error).__name__)
        after_callback(self._draw)

    def _draw(self) -> None:
        """Brings the picture, and what the notebook keeps, in line with the control."""
        with self._lock:
            try:
                self._picture.update()
            except Exception as error:
                self._tell(str(error) or type(error).__name__)
            if self._shown is not None:
                settings = {"from": self._start, "change": self.control.value}
                self._shown.keep(stand_in("pl.choices.Choices", settings, self._picture))

    def _tell(self, error: str) -> None:
        self.error = error
        self._message.value = f'<span style="color:#B00020">{html.escape(error)}</span>'


def _order(signed: tuple[str, str]) -> tuple:
    sign, name = signed
    return [int(part) for part in re.findall(r"\d+", name)], sign


def _text(heads: Sequence[str]) -> str:
    return ", ".join(heads) or "none"

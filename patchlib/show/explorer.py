"""A widget to explore patching: choose task, corruption, metric and component, see the result."""

from __future__ import annotations

import html
import threading
from collections.abc import Hashable, Sequence
from itertools import product
from typing import Any

import ipywidgets
import pandas as pd
import torch
import xarray as xr
from IPython.display import display
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib import tasks
from patchlib.errors import PatchlibError
from patchlib.heads import Head, Heads
from patchlib.measure.detection import detect, heads_of
from patchlib.measure.heads import attention_patterns
from patchlib.prompts.corruption import GN, STR, Corruption
from patchlib.prompts.pairs import PromptPairs
from patchlib.show import plot
from patchlib.show.picture import Picture, running_cell
from patchlib.sweep.cells import COMPONENTS, UNITS, unit_of
from patchlib.sweep.metrics import METRICS
from patchlib.sweep.patching import patch

_PROMPTS = 32
_WINDOWS = (1, 3, 5)
_LISTED = 8
# Inches; and where the lines of a pattern become too low for its labels.
_PAGE_WIDTH, _LABELS_TOUCH = 10.0, 0.7


def explore(
    model: TransformerBridge, pairs: PromptPairs | None = None, *, show: bool = True
) -> Explorer:
    """Shows controls for task, corruption, metric and component above pictures that follow them.

    The pictures are ordinary outputs of the cell, so that the saved notebook keeps the last ones.
    Every result is kept: going back to earlier settings, or to another metric, computes nothing.
    Gaussian noise has the seed 0.

    Args:
        model: the model, in evaluation mode.
        pairs: the prompts to start with; 32 prompts of `patchlib.tasks.ioi` where None. At most as
            many are drawn from the other tasks.
        show: show it at once. If not, the returned object shows itself as the last value of a
            cell.

    Returns:
        The explorer. Settings that fail are reported in red among its controls, and as its
        ``error``, instead of being raised.

    Raises:
        PatchlibError: where pairs is None and the model cannot be given 32 prompts of ioi.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> explorer = pl.explore(model, pl.tasks.ioi(model, n=4))
        >>> explorer.controls["metric"].value = "prob"
        >>> dict(explorer.fx.effect.sizes)
        {'metric': 7, 'layer': 8, 'head': 8}
    """
    explorer = Explorer(model, tasks.ioi(model, n=_PROMPTS) if pairs is None else pairs)
    if show:
        explorer.show_controls()
    explorer.refresh()
    if show:
        explorer.show_pictures()
    return explorer


class Explorer:
    """What `explore` returns: its controls, and the result that they lead to.

    Args:
        model: the model.
        pairs: the prompts to start with.

    Attributes:
        controls: the widgets by name; set a widget's ``value`` to change a setting.
        fx: the result in the picture, with all metrics.
        found: what `patchlib.detect` finds in it, for the chosen metric.
        figure: the picture of the effects.
        attention_figure: the picture of the attention patterns.
        progress: the progress bar.
        error: why the chosen settings have no result; empty where they have one.
    """

    def __init__(self, model: TransformerBridge, pairs: PromptPairs) -> None:
        self._model = model
        self._given = pairs
        self._pairs: dict[Hashable, PromptPairs] = {}
        self._results: dict[Hashable, xr.Dataset] = {}
        self._patterns: dict[Hashable, Float[Tensor, "head prompt query key"]] = {}
        self._heads = Heads(product(range(model.cfg.n_layers), range(model.cfg.n_heads)))
        self._task_of_head: str | None = None
        self._effects, self._attention = Picture(), Picture()
        self._shown_in: int | None = None
        # A page may send each change to a thread of its own.
        self._lock = threading.RLock()
        self._refreshing = False
        self.fx: xr.Dataset | None = None
        self.found: pd.DataFrame | None = None
        self.error = ""
        self.controls = _controls(model, pairs)
        self.progress = ipywidgets.FloatProgress(layout={"visibility": "hidden", "width": "98%"})
        self._message = ipywidgets.HTML()
        for control in self.controls.values():
            control.observe(self._changed, names="value")

    def __repr__(self) -> str:
        return f"Explorer({' · '.join(self._effects.caption.splitlines()[:2])})"

    @property
    def state(self) -> dict[str, Any]:
        """The current settings by the names of their controls."""
        return {name: control.value for name, control in self.controls.items()}

    @property
    def figure(self) -> Figure | None:
        """The picture of the effects."""
        return self._effects.figure

    @property
    def attention_figure(self) -> Figure | None:
        """The picture of the attention patterns."""
        return self._attention.figure

    def show_controls(self) -> None:
        """Shows the controls as an output of the current cell."""
        self._shown_in = running_cell()
        if self._shown_in is None:
            return
        panel = _panel(self.controls, self.progress, self._message)
        # The widget's own text lists its parts, which says nothing to a reader.
        data = panel._repr_mimebundle_() | {"text/plain": "Controls of pl.explore: run the cell"}
        display(data, raw=True)

    def show_pictures(self) -> None:
        """Shows the pictures as outputs of the current cell, to be replaced in place."""
        if self._shown_in is not None:
            self._effects.show()
            self._attention.show()

    def _ipython_display_(self) -> None:
        # A cell that ends on explore() has shown everything already.
        if self._shown_in is None or self._shown_in != running_cell():
            self.show_controls()
            self.show_pictures()

    def refresh(self) -> None:
        """Brings result and pictures in line with the controls, computing what is new."""
        with self._lock:
            self._refreshing = True
            try:
                self._refresh()
            finally:
                self._refreshing = False

    def _changed(self, change: object) -> None:
        # Another thread's change waits here until the controls have settled. One that comes while
        # this thread holds the lock is a control that was adapted to another one.
        with self._lock:
            if not self._refreshing:
                self.refresh()

    def _refresh(self) -> None:
        try:
            self._offer_settings()
            # One copy for all steps: another thread may change a control meanwhile.
            state = self.state
            self._draw_effects(state)
            self._draw_attention(state | {"head": self.controls["head"].value})
            self.error = ""
        # Raised in a callback it would vanish; nothing but the message tells of it.
        except Exception as error:
            name = "" if isinstance(error, PatchlibError) else f"{type(error).__name__}: "
            self.error = f"{name}{error}" or type(error).__name__
        finally:
            self.progress.layout.visibility = "hidden"
        style = "color: #b00020; line-height: 1.4"
        message = f'<div style="{style}">{html.escape(self.error)}</div>'
        self._message.value = message if self.error else ""
        for picture in (self._effects, self._attention):
            if picture.figure is None:
                picture.caption = f"no picture: {self.error}"

    def _offer_settings(self) -> None:
        """Offers what fits the other settings, and disables what means nothing with them."""
        control, state = self.controls, self.state
        pairs = self._prompts(state)
        names = list(pairs.prompts[0].positions)
        whole_layer = unit_of(self._model, COMPONENTS[state["component"]]) is None
        one_length = len({len(prompt.clean) for prompt in pairs.prompts}) == 1
        _offer(control["site"], _sites(pairs, state["corruption"]))
        each = ["each"] if whole_layer and one_length else []
        _offer(control["positions"], ["all", *each, *names])
        _offer(control["window"], _windows(self._model) if whole_layer else [1])
        control["window"].disabled = not whole_layer
        control["scale"].disabled = control["draws"].disabled = state["corruption"] != "GN"
        control["prompt"].max = len(pairs) - 1

    def _prompts(self, state: dict[str, Any]) -> PromptPairs:
        task, n = state["task"], state["n"]
        if (task, n) not in self._pairs:
            own = task == self._given.task
            self._pairs[task, n] = (
                self._given[:n] if own else getattr(tasks, task)(self._model, n=n)
            )
        return self._pairs[task, n]

    def _draw_effects(self, state: dict[str, Any]) -> None:
        pairs, corruption = self._prompts(state), _corruption(state, state["corruption"])
        chosen = {name: state[name] for name in ("component", "positions", "window", "direction")}
        key = (state["task"], state["n"], corruption, *chosen.values())
        if key not in self._results:
            self.progress.value = 0
            self.progress.layout.visibility = "visible"
            self._results[key] = patch(
                self._model,
                pairs,
                corruption=corruption,
                metrics=list(METRICS),
                progress=self._advance,
                **chosen,
            )
        fx, metric = self._results[key], state["metric"]
        found = detect(fx.sel(metric=[metric]))
        caption = _caption(state, corruption)
        if set(UNITS) & set(fx.dims):
            caption += f"\nheads beyond mean ± 2 SD: {_detected(found)}"

        def make() -> Figure:
            figure = plot.heatmap(fx, metric=metric)
            # The caption says more than the map's own title.
            figure.axes[0].set_title("")
            return figure

        self._effects.draw((key, metric), caption, make)
        self.fx, self.found = fx, found
        self._offer_heads(state, fx, found)

    def _advance(self, done: int, total: int) -> None:
        self.progress.max = total
        self.progress.value = done

    def _offer_heads(self, state: dict[str, Any], fx: xr.Dataset, found: pd.DataFrame) -> None:
        """Offers the detected heads first, and goes to the strongest one of a new task."""
        marks: dict[Head, str] = {}
        if "head" in fx.dims:
            for sign, mark in (("positive", " (+)"), ("negative", " (−)")):
                marks |= dict.fromkeys(heads_of(found, state["metric"], sign), mark)
        order = [*marks, *(head for head in self._heads if head not in marks)]
        options = [(f"{head}{marks.get(head, '')}", head) for head in order]
        _offer(self.controls["head"], options)
        if "head" in fx.dims and self._task_of_head != state["task"]:
            self._task_of_head = state["task"]
            self.controls["head"].value = order[0]

    def _draw_attention(self, state: dict[str, Any]) -> None:
        prompt, site = self._prompts(state).prompts[state["prompt"]], state["site"]
        one = self._prompts(state)[[state["prompt"]]]
        kinds = [kind for kind in ("STR", "GN") if site in _sites(one, kind)]
        runs: dict[str, Corruption | None] = {"clean": None}
        runs |= {f"{kind} at {site}": _corruption(state, kind) for kind in kinds}
        tokens = [prompt.corrupted[site] if t == f"STR at {site}" else prompt.clean for t in runs]
        mark = {name: at[0] for name, at in prompt.positions.items() if len(at) == 1}
        caption = f"{state['task']} · prompt {state['prompt']} · head {state['head']}"
        if "GN" in kinds:
            caption += f" · {_noise(state)}"

        def make() -> Figure:
            chosen = self._heads.index(state["head"])
            patterns = [self._all_patterns(one, run)[chosen, 0] for run in runs.values()]
            spelt = [self._spell(t) for t in tokens]
            figure = plot.attention(torch.stack(patterns), spelt, list(runs), mark)
            _fit_page(figure, set(mark.values()))
            return figure

        key = (one.fingerprint, caption, *runs.values())
        self._attention.draw(key, caption, make)

    def _all_patterns(
        self, one: PromptPairs, corruption: Corruption | None
    ) -> Float[Tensor, "head prompt query key"]:
        """The patterns of all heads, since one pass gives them all."""
        key = (one.fingerprint, corruption)
        if key not in self._patterns:
            self._patterns[key] = attention_patterns(self._model, one, self._heads, corruption)
        return self._patterns[key]

    def _spell(self, tokens: Sequence[int]) -> list[str]:
        return [self._model.tokenizer.decode([token]) for token in tokens]


def _fit_page(figure: Figure, marked: set[int]) -> None:
    """Makes attention over many tokens as wide as a page, with the labels that fit."""
    shrink = _PAGE_WIDTH / figure.get_figwidth()
    if shrink >= 1:
        return
    figure.set_size_inches(_PAGE_WIDTH, figure.get_figheight() * shrink)
    if shrink < _LABELS_TOUCH:
        for axes in figure.axes[:-1]:
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                for position, label in enumerate(labels):
                    label.set_visible(position in marked)


def _controls(model: TransformerBridge, pairs: PromptPairs) -> dict[str, Any]:
    """The widgets by name, with the values to start with."""
    known = model.hook_dict
    # A layer has too many neurons for a map.
    components = [
        name
        for name, act in COMPONENTS.items()
        if get_act_name(act, 0) in known and name != "neuron"
    ]
    own = [] if pairs.task in tasks.__all__ else [pairs.task]

    def choice(label: str, options: Sequence[Any], value: Any = None) -> ipywidgets.Dropdown:
        first = options[0] if value is None else value
        return ipywidgets.Dropdown(description=label, options=options, value=first)

    def number(label: str, value: int, low: int, high: int) -> ipywidgets.BoundedIntText:
        return ipywidgets.BoundedIntText(description=label, value=value, min=low, max=high)

    return {
        "task": choice("task", [*own, *tasks.__all__], pairs.task),
        "n": number("prompts", min(len(pairs), _PROMPTS), 1, len(pairs)),
        "corruption": choice("corruption", ["STR", "GN"]),
        "site": ipywidgets.Dropdown(description="at", options=_sites(pairs, "STR")),
        "scale": ipywidgets.BoundedFloatText(
            description="noise scale", value=3.0, min=0.0, max=20.0, step=0.5
        ),
        "draws": number("draws", 1, 1, 20),
        "component": choice("component", components),
        "positions": choice("positions", ["all"]),
        "window": choice("window", [1]),
        "direction": choice("direction", ["denoise", "noise"]),
        "metric": choice("metric", list(METRICS)),
        "head": choice("head", [("0.0", Head(0, 0))], Head(0, 0)),
        "prompt": number("prompt no.", 0, 0, len(pairs) - 1),
    }


def _panel(
    controls: dict[str, Any], progress: ipywidgets.FloatProgress, message: ipywidgets.HTML
) -> ipywidgets.VBox:
    """Arranges the controls: what is run, how it is corrupted, what is patched, what is shown."""
    rows = (
        ("task", "n", "metric"),
        ("corruption", "site", "scale", "draws"),
        ("component", "positions", "window", "direction"),
        ("head", "prompt"),
    )
    for control in controls.values():
        control.layout.width = "195px"
        control.style.description_width = "80px"
    lines = [
        ipywidgets.HBox([controls[name] for name in row], layout={"flex_flow": "row wrap"})
        for row in rows
    ]
    return ipywidgets.VBox([*lines, progress, message])


def _offer(control: ipywidgets.Dropdown, options: Sequence[Any]) -> None:
    """Replaces a control's options; its value stays where it is still one of them."""
    if control.options == tuple(options):
        return
    value = control.value
    control.options = options
    if value in [option[1] if isinstance(option, tuple) else option for option in options]:
        control.value = value


def _sites(pairs: PromptPairs, kind: str) -> list[str]:
    """Where a corruption can be applied: noise needs named positions, replacement its words."""
    replaced, positions = list(pairs.prompts[0].corrupted), pairs.prompts[0].positions
    if kind == "STR":
        return replaced
    named = [site for site in replaced if set(site.split("+")) <= set(positions)]
    return [*named, *(name for name in positions if name not in named)]


def _windows(model: TransformerBridge) -> list[int]:
    return [window for window in _WINDOWS if window <= model.cfg.n_layers]


def _noise(state: dict[str, Any]) -> str:
    draws = f", {state['draws']} draws" if state["draws"] > 1 else ""
    return f"noise scale {state['scale']:g}{draws}"


def _corruption(state: dict[str, Any], kind: str) -> Corruption:
    if kind == "STR":
        return STR(state["site"])
    return GN(state["site"], scale=state["scale"], draws=state["draws"])


def _caption(state: dict[str, Any], corruption: Corruption) -> str:
    """What the picture shows."""
    noise = f", {_noise(state)}" if isinstance(corruption, GN) else ""
    prompts = f"{state['n']} prompt{'s' * (state['n'] > 1)}"
    positions = state["positions"]
    where = {"all": "all positions", "each": "each position"}.get(positions, positions)
    window = f" · window {state['window']}" if state["window"] > 1 else ""
    return (
        f"{state['task']} · {prompts} · {state['corruption']} at {corruption.site}{noise}\n"
        f"{state['component']} at {where}{window} · {state['direction']} · {state['metric']}"
    )


def _detected(found: pd.DataFrame) -> str:
    """The detected heads of both signs in one line."""
    parts = []
    for sign, heads in zip(found.sign, found.heads, strict=True):
        more = [f"and {len(heads) - _LISTED} more"] if len(heads) > _LISTED else []
        parts.append(f"{sign} {', '.join(heads[:_LISTED] + more) or 'none'}")
    return "; ".join(parts)

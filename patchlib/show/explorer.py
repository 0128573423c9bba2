"""A widget to explore patching: choose task, corruption, metric and component, see the result."""

from __future__ import annotations

import contextlib
import html
import threading
from collections.abc import Hashable, Sequence
from itertools import product
from typing import Any

import ipywidgets
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib import tasks
from patchlib.errors import PatchlibError
from patchlib.heads import Head, Heads
from patchlib.measure.detection import detect, heads_of
from patchlib.measure.heads import attention_patterns
from patchlib.patching.cells import COMPONENTS, UNITS, unit_of
from patchlib.patching.duration import spelt
from patchlib.patching.metrics import METRICS
from patchlib.prompts.corruption import GN, STR, Corruption
from patchlib.prompts.pairs import PromptPairs
from patchlib.show import plot
from patchlib.show.heat_map import HeatMap
from patchlib.show.kept import KeptSweeps, Request
from patchlib.show.picture import (
    Picture,
    Shown,
    after_callback,
    fit_page,
    running_cell,
    stand_in,
)
from patchlib.show.plot.style import DescribedFigure

_PROMPTS = 32
_WINDOWS = (1, 3, 5)
_LISTED = 8
# What takes longer waits for a click.
_SECONDS_AT_ONCE = 5.0


def explore(
    model: TransformerBridge, pairs: PromptPairs | None = None, *, show: bool = True
) -> Explorer:
    """Shows controls for task, corruption, metric and component above pictures that follow them.

    Pointing at a cell of the map reads it, a click shows where its head attends. The saved notebook
    keeps the settings as a table, and the last pictures.
    What is stored or was computed before is shown at once. What takes more than a few seconds says
    how long, waits for a click, and can be stopped. Gaussian noise has the seed 0.

    Args:
        model: the model, in evaluation mode.
        pairs: the prompts to start with; 32 prompts of `patchlib.tasks.ioi` where None. All are
            used at first where their result is stored, else at most 32. At most as many are drawn
            from the other tasks.
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
        {'metric': 9, 'layer': 8, 'head': 8}
    """
    explorer = Explorer(model, tasks.ioi(model, n=_PROMPTS) if pairs is None else pairs)
    if show:
        explorer.show()
    explorer.open()
    return explorer


class _Stopped(Exception):
    """Raised within a sweep by the button."""


class Explorer:
    """What `explore` returns: its controls, and the result that they lead to.

    Args:
        model: the model.
        pairs: the prompts to start with.

    Attributes:
        widget: everything, to be shown wherever widgets are.
        controls: the widgets by name; set a widget's ``value`` to change a setting.
        fx: the result in the picture, with all metrics.
        found: what `patchlib.detect` finds in it, for the chosen metric.
        figure: the picture of the effects.
        attention_figure: the picture of the attention patterns.
        map: the map to point at.
        progress: the progress bar.
        button: starts what has to be computed, and stops it.
        error: why the chosen settings have no result; empty where they have one.
    """

    def __init__(self, model: TransformerBridge, pairs: PromptPairs) -> None:
        self._model = model
        self._given = pairs
        self._pairs: dict[Hashable, PromptPairs] = {}
        self._sweeps = KeptSweeps(model)
        self._patterns: dict[Hashable, Float[Tensor, "head prompt query key"]] = {}
        self._heads = Heads(product(range(model.cfg.n_layers), range(model.cfg.n_heads)))
        self._task_of_head: str | None = None
        self._effects, self._attention = Picture(), Picture()
        self._shown: Shown | None = None
        # A page may send each change to a thread of its own.
        self._lock = threading.RLock()
        self._refreshing = False
        self._computing: threading.Thread | None = None
        self._stop = threading.Event()
        self.fx: xr.Dataset | None = None
        self.found: pd.DataFrame | None = None
        self.error = ""
        self.controls = _controls(model, pairs)
        self.progress = ipywidgets.FloatProgress(layout={"visibility": "hidden", "width": "98%"})
        self._message = ipywidgets.HTML()
        self.map = HeatMap()
        self.button = ipywidgets.Button(layout={"display": "none", "width": "max-content"})
        self.button.on_click(self._clicked)
        above = (self.button, self.progress, self._message, self.map)
        self.widget = _panel(self.controls, *above, self._effects, self._attention)
        # What is wrong with the prompts is told by the first refresh.
        with contextlib.suppress(PatchlibError):
            every = self._request(self.state | {"n": len(pairs)})
            if len(pairs) > _PROMPTS and self._sweeps.at_once(every, self.state["metric"]):
                self.controls["n"].value = len(pairs)
            self._offer_settings()
        for control in self.controls.values():
            control.observe(self._changed, names="value")
        self.map.observe(self._pointed, names="chosen")

    def __repr__(self) -> str:
        return f"Explorer({' · '.join(self._effects.caption.splitlines()[:2])})"

    @property
    def state(self) -> dict[str, Any]:
        """The current settings by the names of their controls."""
        return {name: control.value for name, control in self.controls.items()}

    @property
    def figure(self) -> DescribedFigure | None:
        """The picture of the effects."""
        return self._effects.figure

    @property
    def attention_figure(self) -> DescribedFigure | None:
        """The picture of the attention patterns."""
        return self._attention.figure

    def show(self) -> None:
        """Shows the widget in the current cell; the next drawing adds what is kept."""
        if running_cell() is not None:
            self._shown = Shown(self.widget)

    def _ipython_display_(self) -> None:
        # A cell that ends on explore() has shown everything already.
        if self._shown is None or self._shown.cell != running_cell():
            self.show()
            self._draw()

    def _stand_in(self) -> dict[str, str]:
        """Of settings those that have a meaning here; the pictures name head and prompt."""
        used = {name: control for name, control in self.controls.items() if not control.disabled}
        settings = {
            control.description: control.value
            for name, control in used.items()
            if name not in ("head", "prompt")
        }
        return stand_in("pl.explore", settings, self._effects, self._attention)

    def open(self) -> None:
        """Shows the first result, which is computed in the cell that asks for it."""
        self.refresh()
        if self.fx is None and not self.error:
            # Its stop may come from another thread.
            self._computing = threading.current_thread()
            self._compute(self._request(self.state))
        self._draw()

    def refresh(self) -> None:
        """Brings result and pictures in line with the controls, computing what takes no time."""
        with self._lock:
            self._refreshing = True
            try:
                self._refresh()
            finally:
                self._refreshing = False

    def _clicked(self, button: object) -> None:
        """Starts what has to be computed, or stops what is being computed."""
        if self._computing is not None:
            self._stop.set()
            return
        request = self._request(self.state)
        # In a thread of its own, as a click on the button would wait for this one.
        self._computing = threading.Thread(target=self._compute, args=(request,), daemon=True)
        self._computing.start()

    def _compute(self, request: Request) -> None:
        self._stop.clear()
        self._show_button("stop")
        self.progress.value = 0
        self.progress.layout.visibility = "visible"
        failed = ""
        try:
            self._sweeps.compute(request, self._advance)
        except _Stopped:
            failed = "stopped"
        # Raised in a thread it would vanish; nothing but the message tells of it.
        except Exception as error:
            failed = _spelt(error)
        finally:
            self.progress.layout.visibility = "hidden"
            self._computing = None
        self.refresh()
        if failed:
            self._tell(failed)

    def _pointed(self, change: object) -> None:
        head = self.map.head
        if head is not None:
            self.controls["head"].value = head

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
            self._tell("")
            self._draw_effects(state)
            self._draw_attention(state | {"head": self.controls["head"].value})
        # Raised in a callback it would vanish; nothing but the message tells of it.
        except Exception as error:
            self._tell(_spelt(error))
        finally:
            self.progress.layout.visibility = "hidden" if self._computing is None else "visible"
        for picture in (self._effects, self._attention):
            if picture.key is None:
                picture.caption = f"no picture: {self.error or 'nothing computed yet'}"
        # A picture takes longer than all else.
        after_callback(self._draw)

    def _draw(self) -> None:
        """Brings the pictures, and what the notebook keeps, in line with the controls."""
        with self._lock:
            try:
                self._effects.update()
                self._attention.update()
            except Exception as error:
                self._tell(_spelt(error))
            # The map to point at shows the same.
            self._effects.layout.display = "none" if self.map.shown else None
            if self._shown is not None:
                self._shown.keep(self._stand_in())

    def _tell(self, error: str) -> None:
        self.error = error
        style = "color: var(--jp-error-color1, #b00020); line-height: 1.4"
        self._message.value = f'<div style="{style}">{html.escape(error)}</div>' if error else ""

    def _show_button(self, text: str) -> None:
        self.button.description = text
        self.button.layout.display = None if text else "none"

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

    def _request(self, state: dict[str, Any]) -> Request:
        chosen = {name: state[name] for name in ("component", "positions", "window", "direction")}
        return Request(self._prompts(state), _corruption(state, state["corruption"]), **chosen)

    def _at_once(self, request: Request, metric: str) -> xr.Dataset | None:
        """A result that takes no time; else None, and the button says how long it takes."""
        fx = self._sweeps.at_once(request, metric)
        if self._computing is not None:
            return fx
        self._show_button("")
        if fx is None:
            seconds = self._sweeps.seconds(request)
            if seconds <= _SECONDS_AT_ONCE:
                self.progress.value = 0
                self.progress.layout.visibility = "visible"
                return self._sweeps.compute(request, self._advance)
            self._show_button(f"compute: {spelt(seconds)}")
        return fx

    def _draw_effects(self, state: dict[str, Any]) -> None:
        request, metric = self._request(state), state["metric"]
        corruption = request.corruption
        each, key = self._at_once(request, metric), (request.key, metric)
        if each is None or key == self._effects.key:
            return
        fx = each.mean("prompt", keep_attrs=True)
        found = detect(fx.sel(metric=[metric]))
        caption = _caption(state, corruption)
        if set(UNITS) & set(fx.dims):
            caption += f"\nheads beyond mean ± 2 SD: {_detected(found)}"

        def make() -> DescribedFigure:
            figure = plot.heatmap(fx, metric=metric)
            # The caption says more than the map's own title.
            figure.axes[0].set_title("")
            return figure

        self.fx, self.found = fx, found
        self._offer_heads(state, fx, found)
        names = [name.removeprefix("kv") for heads in found.heads for name in heads]
        self.map.draw(each, metric, names, caption)
        self._effects.draw(key, caption, make)

    def _advance(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _Stopped
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
            effect = (
                abs(fx.effect.sel(metric=state["metric"])).fillna(0).stack(cell=["layer", "head"])
            )
            self.controls["head"].value = Head(*effect.cell.values[int(effect.values.argmax())])

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

        def make() -> DescribedFigure:
            chosen = self._heads.index(state["head"])
            patterns = [self._all_patterns(one, run)[chosen, 0] for run in runs.values()]
            spelt = [self._spell(t) for t in tokens]
            figure = plot.attention(torch.stack(patterns), spelt, list(runs), mark)
            fit_page(figure, set(mark.values()))
            return figure

        self.map.head = state["head"]
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


def _controls(model: TransformerBridge, pairs: PromptPairs) -> dict[str, Any]:
    """The widgets by name, with the values to start with."""
    known = model.hook_dict
    # A layer has too many neurons for a map.
    components = [
        name
        for name, act in COMPONENTS.items()
        if get_act_name(act, 0) in known and name != "neuron"
    ]
    # Prompts without replacements can be corrupted by noise alone.
    kind = "STR" if pairs.prompts[0].corrupted else "GN"
    own = [] if pairs.task in tasks.__all__ else [pairs.task]

    def choice(label: str, options: Sequence[Any], value: Any = None) -> ipywidgets.Dropdown:
        first = options[0] if value is None else value
        return ipywidgets.Dropdown(description=label, options=options, value=first)

    def number(label: str, value: int, low: int, high: int) -> ipywidgets.BoundedIntText:
        return ipywidgets.BoundedIntText(description=label, value=value, min=low, max=high)

    return {
        "task": choice("task", [*own, *tasks.__all__], pairs.task),
        "n": number("prompts", min(len(pairs), _PROMPTS), 1, len(pairs)),
        "corruption": choice("corruption", ["STR", "GN"], kind),
        "site": ipywidgets.Dropdown(description="at", options=_sites(pairs, kind)),
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


def _panel(controls: dict[str, Any], *below: ipywidgets.Widget) -> ipywidgets.VBox:
    """Arranges the controls: what is run, how it is corrupted, what is patched, what is shown."""
    rows = (
        ("task", "n", "metric"),
        ("corruption", "site", "scale", "draws"),
        ("component", "positions", "window", "direction"),
        ("head", "prompt"),
    )
    for control in controls.values():
        control.layout.width = "215px"
        control.style.description_width = "80px"
    lines = [
        ipywidgets.HBox([controls[name] for name in row], layout={"flex_flow": "row wrap"})
        for row in rows
    ]
    return ipywidgets.VBox([*lines, *below])


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


def _spelt(error: Exception) -> str:
    name = "" if isinstance(error, PatchlibError) else f"{type(error).__name__}: "
    return f"{name}{error}" or type(error).__name__

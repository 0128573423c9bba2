"""A heat map to point at: each cell says what it is, and a click chooses its head."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import anywidget
import numpy as np
import traitlets
import xarray as xr
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex

from patchlib.heads import Head, Heads
from patchlib.measure.intervals import interval
from patchlib.patching.cells import UNITS
from patchlib.patching.metrics import label

_STEPS_OF_BAR = 11

_CSS = """
.patchlib-map { color: black; background: white; padding: 4px; width: fit-content; }
.patchlib-map .patchlib-title { font-size: 13px; white-space: pre-line; margin-bottom: 4px; }
.patchlib-map svg { cursor: crosshair; font-size: 11px; }
.patchlib-map svg rect { outline: none; }
.patchlib-map svg rect[class] { fill: none; pointer-events: none; }
.patchlib-map .patchlib-found { stroke: black; stroke-width: 1.5px; }
.patchlib-map .patchlib-at { stroke: #E69F00; stroke-width: 2px; }
.patchlib-map .patchlib-chosen { stroke: #009E73; stroke-width: 3px; stroke-dasharray: 4 2; }
.patchlib-map .patchlib-bar { display: flex; gap: 6px; align-items: center; font-size: 11px; }
.patchlib-map .patchlib-bar i { width: 140px; height: 10px; border: 1px solid #888; }
.patchlib-map .patchlib-read { font-size: 13px; min-height: 18px; }
.widget-vbox:has(.patchlib-map) img { max-width: 100%; }
"""


class HeatMap(anywidget.AnyWidget):
    """The effects of one metric as cells to point at, in the colours of `patchlib.plot.heatmap`.

    Attributes:
        shown: what the page draws; empty where there is no map, as of a curve over layers.
        chosen: row and column of the cell that was clicked; empty before.
    """

    _esm = Path(__file__).with_name("heat_map.js")
    _css = _CSS

    shown = traitlets.Dict().tag(sync=True)
    chosen = traitlets.List(traitlets.Int()).tag(sync=True)

    def draw(self, fx: xr.Dataset, metric: str, found: Iterable[str], title: str) -> None:
        """Shows another map.

        Args:
            fx: a result of `patchlib.patch` with ``keep_prompts=True``, averaged over draws.
            metric: one of its metrics.
            found: what to frame where the map has heads, as ``"4.6"``.
            title: what stands above it.
        """
        fx = fx.sel(metric=[metric])
        effect = fx.effect.mean("prompt").squeeze("metric")
        if effect.ndim != 2:
            self.shown = {}
            return
        (across,) = (str(dim) for dim in effect.dims if dim != "layer")
        effect = effect.transpose("layer", across)
        ends = interval(fx).squeeze("metric")
        measured = np.abs(effect.values[np.isfinite(effect.values)])
        limit = float(measured.max(initial=0)) or 1.0
        colours = colormaps["RdBu"](Normalize(-limit, limit)(effect.values))
        # Grey as the hatching of what was not measured.
        colours[~np.isfinite(effect.values)] = (0.88, 0.88, 0.88, 1)
        layers = effect.layer.values.tolist()
        heads = Heads(found) if across in UNITS else []
        framed = [[layers.index(layer), head] for layer, head in heads]
        self.shown = {
            "title": title,
            "label": f"effect: {label(metric)}",
            "limit": limit,
            "across": across.replace("kv_head", "key/value head"),
            "layers": layers,
            "columns": [str(name).replace("_", " ") for name in effect[across].values],
            "values": _rows(effect),
            "low": _rows(ends.low.transpose("layer", across)),
            "high": _rows(ends.high.transpose("layer", across)),
            "colours": [[to_hex(colour) for colour in row] for row in colours],
            "bar": [
                to_hex(colour) for colour in colormaps["RdBu"](np.linspace(0, 1, _STEPS_OF_BAR))
            ],
            "framed": framed,
            "choosable": across == "head",
        }

    @property
    def head(self) -> Head | None:
        """The head of the chosen cell."""
        if not self.chosen or not self.shown.get("choosable"):
            return None
        row, column = self.chosen
        return Head(self.shown["layers"][row], int(self.shown["columns"][column]))

    @head.setter
    def head(self, head: Head) -> None:
        layers = self.shown.get("layers", [])
        self.chosen = [layers.index(head.layer), head.head] if head.layer in layers else []


def _rows(values: xr.DataArray) -> list[list[float | None]]:
    """The rows as a page reads them; None for what is no number."""
    return [
        [value if np.isfinite(value) else None for value in row] for row in values.values.tolist()
    ]

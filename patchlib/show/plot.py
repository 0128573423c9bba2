"""Figures fit for a paper: heat maps, curves over layers, and attention.

Every function returns a matplotlib figure that pyplot no longer holds, so that a notebook shows
it exactly once, as a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from patchlib.errors import PatchlibError
from patchlib.files import write_whole
from patchlib.measure.detection import detect
from patchlib.sweep.cells import UNITS
from patchlib.sweep.metrics import label

# Any, as the names of all settings are matplotlib's own.
_STYLE: Any = {
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
    # Text in a PDF stays text.
    "pdf.fonttype": 42,
}
# Okabe and Ito's colours, which differ for every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000")
# The same run has the same colour in every figure, also where more is said of it after a comma;
# other names take the colours that are left.
_COLOUR_OF_RUN = {"clean": "#999999", "STR": _COLOURS[0], "GN": _COLOURS[1]}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DIVERGING = "RdBu"
_DETECTION_SD = 2
_NOT_MEASURED = {"facecolor": "0.88", "edgecolor": "0.55", "hatch": "/////"}
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
}
# Inches: the side of a map that stands alone and of one among several, and of its cells.
_ALONE, _TOGETHER = 2.8, 2.1
_CELL_MOST, _NAMED_POSITION, _POSITIONS_LEAST = 0.26, 0.36, 1.2
_PER_CURVE_LAYER = 0.09
# Inches: room for one line of 7 pt per token, and for labels and the colour bar.
_PER_TOKEN, _LABELS, _BAR = 0.15, 0.6, 0.6
# Probabilities in half precision may exceed 1 by a little.
_TOLERANCE = 1e-2


def heatmap(fx: xr.Dataset, metric: str = "logit_diff", found: bool = True) -> Figure:
    """Draws the effects of one sweep: layer by head, or layer by position (Figures 4, 9, 28).

    Layers run downwards from 0, blue is a positive effect and red a negative one, on a scale that
    is symmetric about 0. Cells that were not measured (NaN) are hatched. A result with neither
    heads nor positions is drawn by `curve`.

    Args:
        fx: a result of `patchlib.patch`, averaged over prompts and draws.
        metric: one of its metrics.
        found: outline the heads that `patchlib.detect` finds beyond mean ± 2 SD.

    Raises:
        PatchlibError: for a metric that the result does not hold, and for dimensions that do not
            fit on a map, as those of neurons.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S2"), progress=False)
        >>> plot.heatmap(fx, "kl").axes[0].get_xlabel()
        'head'
    """
    effect = _effect(fx, metric)
    if effect.dims == ("layer",):
        return curve(fx, metric)
    effect = _map(effect)
    with plt.rc_context(_STYLE):
        width, height = _map_size(effect, _ALONE)
        figure, axes = plt.subplots(figsize=(width + 1.4, height + 1.1), layout="compressed")
        image, notes = _draw_map(axes, effect, fx, metric if found else None)
        axes.set_xlabel(_columns(effect))
        axes.set_ylabel("layer")
        axes.set_title(_title(fx))
        figure.colorbar(image, ax=axes, label=_label(metric), aspect=height / 0.12, pad=0.03)
        _legend(figure, notes)
    plt.close(figure)
    return figure


def heatmaps(
    results: Mapping[str, xr.Dataset], metrics: Sequence[str], found: bool = True
) -> Figure:
    """Draws several sweeps side by side: a row for each result, a column for each metric.

    Every map has its own symmetric scale, as metrics differ in unit and corruptions in size.

    Args:
        results: results of `patchlib.patch`, named as their rows are to be, such as ``"STR"``.
        metrics: the columns.
        found: outline the heads that `patchlib.detect` finds beyond mean ± 2 SD.

    Raises:
        PatchlibError: as `heatmap` does, where nothing is given, and for results over layers
            alone.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S2"), progress=False)
        >>> [axes.get_title() for axes in plot.heatmaps({"STR": fx}, ["prob", "kl"]).axes[:2]]
        ['probability', 'KL divergence (nats)']
    """
    if isinstance(metrics, str):
        metrics = [metrics]
    _require_results(results)
    if not metrics:
        raise PatchlibError("no metrics were given: allowed is one or more, such as ['prob', 'kl']")
    effects = {
        (name, metric): _map(_effect(fx, metric))
        for name, fx in results.items()
        for metric in metrics
    }
    sizes = [_map_size(effect, _TOGETHER) for effect in effects.values()]
    width, height = max(width for width, _ in sizes), max(height for _, height in sizes)
    notes: dict[str, Artist] = {}
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(
            len(results),
            len(metrics),
            figsize=((width + 0.8) * len(metrics) + 0.4, (height + 0.3) * len(results) + 0.9),
            squeeze=False,
            layout="compressed",
        )
        for row, (name, fx) in zip(grid, results.items(), strict=True):
            for axes, metric in zip(row, metrics, strict=True):
                effect = effects[name, metric]
                image, more = _draw_map(axes, effect, fx, metric if found else None)
                notes |= more
                figure.colorbar(image, ax=axes, aspect=height / 0.1, pad=0.03)
                if axes in grid[0]:
                    axes.set_title(label(metric))
                if axes in grid[-1]:
                    axes.set_xlabel(_columns(effect))
            row[0].set_ylabel("layer")
            row[0].annotate(
                name,
                xy=(0, 0.5),
                xycoords="axes fraction",
                xytext=(-32, 0),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="center",
                fontsize=9,
                fontweight="bold",
            )
        figure.suptitle(_title(*results.values()))
        _legend(figure, notes)
    plt.close(figure)
    return figure


def curve(results: Mapping[str, xr.Dataset] | xr.Dataset, metric: str = "logit_diff") -> Figure:
    """Draws effects over layers, one line for each result (Figures 2 and 5).

    Where a result holds the standard deviation over draws of the noise, a band shows it.

    Args:
        results: results of `patchlib.patch` over layers alone, named as the legend is to name
            them; or a single result.
        metric: one of their metrics.

    Raises:
        PatchlibError: for a metric that a result does not hold, for other dimensions than the
            layer, and where no result is given.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> fx = pl.patch(model, pairs, "mlp", corruption=pl.STR("S2"), progress=False)
        >>> plot.curve({"STR": fx}, "prob").axes[0].get_ylabel()
        'effect: probability'
    """
    series = {"": results} if isinstance(results, xr.Dataset) else results
    _require_results(series)
    effects = {name: _effect(fx, metric) for name, fx in series.items()}
    for effect in effects.values():
        if effect.dims != ("layer",):
            raise PatchlibError(
                f"this result has the dimensions {', '.join(map(str, effect.dims))}, and a curve "
                "has layers alone. Select one position or head with fx.sel(...) for each curve, "
                "or use plot.heatmap"
            )
    notes: dict[str, Artist] = {}
    n_layers = max(effect.sizes["layer"] for effect in effects.values())
    width = min(max(2.4 + _PER_CURVE_LAYER * n_layers, 3.4), 6.8)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(width, 2.8), layout="constrained")
        axes.axhline(0, color="0.5", linewidth=0.6, zorder=1)
        styles = zip(cycle(_COLOURS), cycle(_MARKERS))
        for (name, effect), (colour, marker) in zip(effects.items(), styles, strict=False):
            sd = None
            if "effect_sd" in series[name] and series[name].effect_sd.notnull().any():
                sd = series[name].effect_sd.sel(metric=metric)
                notes["± SD over draws"] = Patch(facecolor="0.5", alpha=0.3)
            line = _draw_curve(axes, effect, sd, name, colour, marker)
            if name:
                notes[name] = line
        axes.set_xlabel("layer")
        axes.set_ylabel(_label(metric))
        axes.set_title(_title(*series.values()))
        # The band is explained after all lines.
        band = notes.pop("± SD over draws", None)
        _legend(figure, notes if band is None else notes | {"± SD over draws": band})
    plt.close(figure)
    return figure


def add_curve(
    axes: Axes,
    effect: Float[xr.DataArray, "draw layer"],
    label: str,
    colour: str | None = None,
    marker: str | None = None,
) -> None:
    """Adds one curve over layers to a panel: the mean over draws, in a band of ± one SD.

    Args:
        axes: the panel.
        effect: effects over draws of the noise and layers; no band for a single draw.
        label: what the legend calls the curve.
        colour: its colour; that of the run ``"STR"`` or ``"GN"`` where the label begins with it.
        marker: its marker; by default as the colour.

    Raises:
        PatchlibError: for effects with other dimensions than draw and layer.

    Example:
        >>> import patchlib as pl
        >>> from patchlib import plot
        >>> model = pl.load_model("mini")
        >>> fx = pl.patch(model, pl.tasks.ioi(model, n=2), "mlp", corruption=pl.GN("S2", draws=2),
        ...               keep_draws=True, progress=False)
        >>> axes = Figure().subplots()
        >>> plot.add_curve(axes, fx.effect.sel(metric="kl"), "GN, mean of 2 draws")
        >>> axes.lines[0].get_color(), len(axes.collections)
        ('#D55E00', 1)
    """
    if set(effect.dims) != {"draw", "layer"}:
        raise PatchlibError(
            f"this effect has the dimensions {', '.join(map(str, effect.dims))}, and a curve needs "
            "draw and layer: select one metric and position, and patch with keep_draws=True"
        )
    run = label.split(",")[0]
    sd = effect.std("draw", ddof=1) if effect.sizes["draw"] > 1 else None
    _draw_curve(
        axes,
        effect.mean("draw"),
        sd,
        label,
        colour or _COLOUR_OF_RUN.get(run, _COLOURS[-1]),
        marker or _MARKERS[run == "GN"],
    )


def _draw_curve(
    axes: Axes,
    mean: xr.DataArray,
    sd: xr.DataArray | None,
    label: str,
    colour: str,
    marker: str,
) -> Line2D:
    (line,) = axes.plot(
        mean.layer, mean, color=colour, marker=marker, markersize=3.5, linewidth=1.1, label=label
    )
    if sd is not None:
        axes.fill_between(mean.layer, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 10]))
    axes.spines[["top", "right"]].set_visible(False)
    return line


def attention_bars(values: Mapping[str, Float[xr.DataArray, "head prompt to"]]) -> Figure:
    """Draws where some heads attend from the last token, in several runs (Figure 3).

    Bars are means over heads and prompts. Error bars are standard deviations over prompts of the
    mean over heads, with n - 1 in the denominator; a single prompt has none.

    Args:
        values: results of `patchlib.attention_to`, named as the legend is to name the runs, such
            as ``"clean"``, ``"STR"``, ``"GN"``.

    Raises:
        PatchlibError: where nothing is given, and for results with other dimensions or with
            different positions.

    Example:
        >>> import xarray as xr
        >>> to = xr.DataArray(["IO", "S1", "S2", "others"], dims="to")
        >>> clean = xr.DataArray([[[0.6, 0.1, 0.1, 0.2]]], dims=("head", "prompt", "to"))
        >>> figure = attention_bars({"clean": clean.assign_coords(to=to)})
        >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
        [0.6, 0.1, 0.1, 0.2]
    """
    if not values:
        raise PatchlibError("no attention was given: allowed is one or more runs with their names")
    for name, value in values.items():
        if set(value.dims) != {"head", "prompt", "to"}:
            raise PatchlibError(
                f"{name!r} has the dimensions {', '.join(map(str, value.dims))}; allowed are "
                "head, prompt, to, as pl.attention_to gives them"
            )
    positions = [str(position) for position in next(iter(values.values())).to.values]
    for name, value in values.items():
        if [str(position) for position in value.to.values] != positions:
            raise PatchlibError(
                f"{name!r} has attention to {', '.join(map(str, value.to.values))}; allowed are "
                f"the positions of the first run, {', '.join(positions)}"
            )
    bar = 0.8 / len(values)
    spread = False
    with plt.rc_context(_STYLE):
        width = max(3.4, len(positions) * (0.25 + 0.16 * len(values)) + 0.8)
        figure, axes = plt.subplots(figsize=(width, 2.7), layout="constrained")
        others = cycle(_COLOURS[2:])
        for number, (name, value) in enumerate(values.items()):
            per_prompt = value.mean("head")
            errors = per_prompt.std("prompt", ddof=1) if per_prompt.sizes["prompt"] > 1 else None
            spread = spread or errors is not None
            axes.bar(
                np.arange(len(positions)) + (number - (len(values) - 1) / 2) * bar,
                per_prompt.mean("prompt"),
                width=0.9 * bar,
                yerr=errors,
                color=_COLOUR_OF_RUN.get(name.split(",")[0]) or next(others),
                error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": "black"},
                label=name,
            )
        axes.set_xticks(range(len(positions)), positions)
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("attended position")
        axes.set_ylim(0, 1)
        note = " ± SD over prompts" if spread else ""
        axes.set_ylabel(f"attention probability\nmean over heads{note}")
        axes.spines[["top", "right"]].set_visible(False)
        # Above the axes, as bars may reach to the top.
        axes.legend(frameon=False, ncols=len(values), loc="lower center", bbox_to_anchor=(0.5, 1))
    plt.close(figure)
    return figure


def attention(
    patterns: Float[Tensor, "panel dest src"],
    tokens: list[list[str]] | list[str],
    titles: list[str],
    mark: dict[str, int] | None = None,
) -> Figure:
    """Draws causal attention patterns side by side on one scale from 0 to 1.

    Args:
        patterns: attention probabilities; row = destination token, column = source token.
        tokens: the tokens of each panel, or one list for all panels.
        titles: the title of each panel.
        mark: names of positions to point out, and the positions, the same in every panel.

    Raises:
        PatchlibError: for values that are no probabilities, and where patterns, tokens, titles
            and marked positions do not fit together.

    Example:
        >>> figure = attention(torch.eye(3)[None], ["When", " Mary", " and"], ["9.9"])
        >>> figure.axes[0].get_title()
        '9.9'
    """
    values = torch.as_tensor(patterns).detach().cpu().double().numpy()
    shared = bool(tokens) and isinstance(tokens[0], str)
    panels: list[list[str]] = [tokens] * len(titles) if shared else tokens  # type: ignore
    mark = mark or {}
    check_attention(values, panels, titles)
    n_panels, n_tokens, _ = values.shape
    for name, position in mark.items():
        if not 0 <= position < n_tokens:
            raise PatchlibError(
                f"mark has {name!r} at position {position}; allowed are the positions 0 to "
                f"{n_tokens - 1}. Count from the start of the prompt."
            )
    past = values[:, *np.tril_indices(n_tokens)]
    if not ((past >= -_TOLERANCE) & (past <= 1 + _TOLERANCE)).all():
        raise PatchlibError(
            f"patterns has values from {past.min():.3g} to {past.max():.3g}; allowed are "
            "probabilities from 0 to 1. Give the attention after the softmax, and no differences."
        )

    future = np.triu(np.ones((n_tokens, n_tokens), dtype=bool), k=1)
    side = max(_PER_TOKEN * n_tokens + _LABELS, 2.4)
    size = (side * n_panels + _BAR, side + 0.3)
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(1, n_panels, figsize=size, squeeze=False, layout="compressed")
        for axes, panel, title, pattern in zip(grid[0], panels, titles, values, strict=True):
            image = axes.imshow(np.where(future, np.nan, pattern), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(title)
            axes.set_xlabel("source token (key)")
            _label_tokens(axes, panel, mark)
            if shared and axes is not grid[0, 0]:
                axes.tick_params(labelleft=False)
        grid[0, 0].set_ylabel("destination token (query)")
        figure.colorbar(image, ax=grid[0], label="attention probability", aspect=25)
    plt.close(figure)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG at 200 dpi and as PDF.

    Args:
        figure: the figure.
        path: the files' common name; an ending .png or .pdf is dropped, folders are made.

    Example:
        >>> import tempfile
        >>> figure = attention(torch.eye(2)[None], ["a", "b"], ["0.1"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(figure, Path(folder) / "figures" / "pattern")
        ...     sorted(file.name for file in Path(folder).rglob("pattern.*"))
        ['pattern.pdf', 'pattern.png']
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".png", ".pdf") else path
    # Without a date the same figure gives the same document.
    options: dict[str, Any] = {"png": {"dpi": 200}, "pdf": {"metadata": {"CreationDate": None}}}
    with plt.rc_context(_STYLE):
        for ending, more in options.items():
            write = partial(figure.savefig, bbox_inches="tight", **more)
            write_whole(Path(f"{stem}.{ending}"), write)


def _require_results(results: Mapping[str, xr.Dataset]) -> None:
    if not results:
        raise PatchlibError("no result was given: allowed is one or more of pl.patch")


def _effect(fx: xr.Dataset, metric: str) -> xr.DataArray:
    """One metric's effect, over layers and what else can be drawn."""
    if "effect" not in fx or "metric" not in fx.effect.dims:
        raise PatchlibError(
            "only results of pl.patch can be drawn, with their dimension 'metric': pass the "
            "whole result and name the metric"
        )
    for dim in ("prompt", "draw"):
        if dim in fx.effect.dims:
            raise PatchlibError(
                f"this result holds one value for each {dim} and a figure shows their mean: pass "
                f"fx.mean({dim!r}, keep_attrs=True)"
            )
    if metric not in fx.metric.values:
        raise PatchlibError(
            f"metric={metric!r}: this result holds {', '.join(fx.metric.values)}. Name the metric "
            "in pl.patch(..., metrics=[...]) to measure it"
        )
    effect = fx.effect.sel(metric=metric)
    if "layer" not in effect.dims:
        raise PatchlibError(
            "this result has no dimension 'layer': pl.patch gives one, pl.patch_together is a "
            "single number for each metric"
        )
    return effect


def _map(effect: xr.DataArray) -> xr.DataArray:
    """The effect with layers first and one other dimension."""
    others = [dim for dim in effect.dims if dim != "layer"]
    if others == ["neuron"]:
        raise PatchlibError(
            f"a map has no room for {effect.sizes['neuron']} neurons of a layer: pl.detect(fx) "
            "lists those that stand out, and fx.effect holds the numbers"
        )
    if others not in (["head"], ["kv_head"], ["position"]):
        raise PatchlibError(
            f"this result has the dimensions {', '.join(map(str, effect.dims))}, and a map has "
            "layer and head, or layer and position. Select one position with "
            "fx.sel(position=...); for layers alone use plot.curve"
        )
    return effect.transpose("layer", *others)


def _map_size(effect: xr.DataArray, side: float) -> tuple[float, float]:
    """Width and height of a map in inches."""
    rows, columns = effect.shape
    if effect.dims[1] in UNITS:
        width = height = _cell(side, max(rows, columns))
    else:
        height = _cell(side, rows)
        width = _NAMED_POSITION if _is_named(effect) else _cell(side, columns)
        width = max(width, _POSITIONS_LEAST / columns)
    return columns * width, rows * height


def _cell(side: float, cells: int) -> float:
    # A map of many cells grows, so that its cells can be told apart.
    return min(max(side / cells, 0.038 * side), _CELL_MOST)


def _is_named(effect: xr.DataArray) -> bool:
    return not np.issubdtype(effect[effect.dims[1]].dtype, np.number)


def _draw_map(
    axes: Axes, effect: xr.DataArray, fx: xr.Dataset, metric: str | None
) -> tuple[AxesImage, dict[str, Artist]]:
    """One map, with the heads that a metric detects outlined; and what its signs mean."""
    notes: dict[str, Artist] = {}
    values = effect.values
    measured = np.abs(values[np.isfinite(values)])
    limit = float(measured.max(initial=0)) or 1.0
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=_DIVERGING,
        vmin=-limit,
        vmax=limit,
        interpolation="none",
        aspect="equal" if effect.dims[1] in UNITS else "auto",
    )
    if measured.size < values.size:
        axes.patch.set(**_NOT_MEASURED)
        notes["not measured"] = Patch(**_NOT_MEASURED)  # type: ignore[arg-type]
    if metric is not None and effect.dims[1] in UNITS:
        outline: dict[str, Any] = {"fill": False, "edgecolor": "black", "linewidth": 0.9}
        low, high = sorted(detect(fx[["effect"]].sel(metric=[metric]), sd=_DETECTION_SD).threshold)
        for row, column in np.argwhere((values > high) | (values < low)):
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, clip_on=False, zorder=3, **outline))
        notes[f"beyond mean ± {_DETECTION_SD} SD"] = Patch(**outline)
    _label_cells(axes, effect)
    return image, notes


def _columns(effect: xr.DataArray) -> str:
    """What the columns of a map are."""
    return str(effect.dims[1]).replace("kv_head", "key/value head")


def _label_cells(axes: Axes, effect: xr.DataArray) -> None:
    """Writes layers, and heads or positions, as often as there is room."""
    layers, columns = (effect[dim].values for dim in effect.dims)
    step = 1 if len(layers) <= 16 else 4
    axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    if _is_named(effect):
        names = [str(name).replace("_", " ") for name in columns]
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    else:
        step = 1 if len(columns) <= 16 else 4
        axes.set_xticks(range(0, len(columns), step), [str(column) for column in columns[::step]])
    axes.tick_params(length=2)


def _legend(figure: Figure, notes: dict[str, Artist]) -> None:
    """Explains signs and lines below the figure, where they hide nothing."""
    if notes:
        figure.legend(
            handles=list(notes.values()),
            labels=list(notes),
            loc="outside lower center",
            ncols=len(notes) if len(notes) <= 4 else 3,
            frameon=False,
        )


def _label(metric: str) -> str:
    return f"effect: {label(metric)}"


def _title(*results: xr.Dataset) -> str:
    """What was patched, corrupted and asked, as far as all results have it in common."""
    first, *others = (fx.attrs | _window(fx) | _position(fx) for fx in results)
    same = {key: value for key, value in first.items() if all(o.get(key) == value for o in others)}
    what, how = "", ""
    if "component" in same:
        what = f"effect of patching {_WHAT.get(same['component'], same['component'])}"
        what += f" in windows of {same['window']}" if same.get("window", 1) != 1 else ""
        what += f" at {same['position']}" if "position" in same else ""
    if "site" in same:
        how = f"{same['corruption']} on" if "corruption" in same else "corrupted:"
        how += f" {same['site']}"
        how += ", noising" if same.get("direction") == "noise" else ""
        source = same.get("source", "clean run")
        how += f", from {source}" if source not in ("clean run", "corrupted run") else ""
    where = ", ".join(filter(None, (Path(same.get("model", "")).name, same.get("task", ""))))
    return "\n".join(filter(None, (what, f"{how} ({where})".strip() if where else how)))


def _window(fx: xr.Dataset) -> dict[str, int]:
    """The one window that was taken out of a result of several."""
    if "window" in fx.coords and fx.window.ndim == 0:
        return {"window": fx.window.item()}
    return {}


def _position(fx: xr.Dataset) -> dict[str, str]:
    """The one position that a result was patched at, where it has one."""
    if "position" in fx.coords and fx.position.ndim == 0:
        return {"position": str(fx.position.item()).replace("_", " ")}
    return {}


def _label_tokens(axes: Axes, tokens: list[str], mark: dict[str, int]) -> None:
    """Write the tokens along both axes, the marked ones in bold with their names."""
    names = {position: name for name, position in mark.items()}
    labels = [
        f"{names[i]}: {_shown(token)}" if i in names else _shown(token)
        for i, token in enumerate(tokens)
    ]
    axes.set_xticks(range(len(tokens)), labels, rotation=90)
    axes.set_yticks(range(len(tokens)), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for i, text in enumerate(ticks):
            # Tokens are text: two dollar signs are no formula.
            text.set_parse_math(False)
            if i in names:
                text.set_fontweight("bold")


def _shown(token: str) -> str:
    """Spell a token without its spaces, but with its line breaks."""
    return token.replace("\n", "\\n").replace("\t", "\\t").strip() or "␣"


def check_attention(
    values: Float[np.ndarray, "head dest src"],
    tokens: Sequence[Sequence[str]],
    names: Sequence[str],
) -> None:
    """Refuses attention that does not fit its tokens and names.

    Args:
        values: the patterns.
        tokens: the tokens of each pattern.
        names: the name of each pattern.

    Raises:
        PatchlibError: for such attention, and for values that are NaN or infinite.
    """
    if values.ndim != 3 or 0 in values.shape or values.shape[1] != values.shape[2]:
        raise PatchlibError(
            f"attention has the shape {values.shape}; allowed is (head, dest, src), with at least "
            "one of each and as many sources as destinations. Index a batch away with "
            "attention[0]; give one head as attention[None], several with torch.stack."
        )
    n_heads, n_tokens, _ = values.shape
    if not n_heads == len(names) == len(tokens):
        raise PatchlibError(
            f"attention has {n_heads} patterns for {len(names)} names and the tokens of "
            f"{len(tokens)}; allowed is one name for each pattern, and one list of tokens for each "
            "or a single list for all."
        )
    for name, spelt in zip(names, tokens, strict=True):
        if len(spelt) != n_tokens:
            raise PatchlibError(
                f"{name!r} has {len(spelt)} tokens for {n_tokens} positions; allowed is one token "
                "for each. Give the tokens of the prompt that the attention was computed on, with "
                "the start token if the model saw one."
            )
    if not np.isfinite(values).all():
        raise PatchlibError(
            "attention holds values that are nan or infinite; allowed are finite numbers. "
            "Give attention probabilities (after the softmax), not masked scores."
        )

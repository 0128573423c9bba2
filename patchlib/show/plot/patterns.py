"""Attention: patterns side by side, and bars of where the last token looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from patchlib.errors import PatchlibError
from patchlib.show.plot.style import STYLE, DescribedFigure, colours, legend, new_figure, title

# Inches: room for one line of 7 pt per token, for labels of 12 characters, for each further one and
# for the colour bar.
_PER_TOKEN, _LABELS, _PER_CHARACTER, _BAR = 0.15, 0.6, 0.07, 0.6
# Probabilities in half precision may exceed 1 by a little.
_TOLERANCE = 1e-2


def bars(
    tables: Mapping[str, pd.DataFrame] | pd.DataFrame,
    low: Mapping[str, pd.DataFrame] | pd.DataFrame | None = None,
    high: Mapping[str, pd.DataFrame] | pd.DataFrame | None = None,
) -> Figure:
    """Draws mean attention of the last token in several runs, as grouped bars (Figure 3a, c).

    Args:
        tables: a row for each run, such as clean, STR and GN, and a column for each position; or
            several such tables, named as their panels are to be. Attributes that say the model,
            the task and the number of prompts go into the title.
        low: the lower ends of intervals, in the same shape.
        high: their upper ends.

    Raises:
        PatchlibError: where nothing is given, one end of intervals alone, and for ends or panels
            with other runs or positions.

    Example:
        >>> runs, to = ["clean", "STR"], ["IO", "S1"]
        >>> figure = bars(pd.DataFrame([[0.6, 0.1], [0.1, 0.6]], runs, to))
        >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
        [0.6, 0.1, 0.1, 0.6]
    """
    panels = _panels(tables)
    if not panels or any(panel.empty for panel in panels.values()):
        raise PatchlibError("no attention was given: allowed is one or more runs with their names")
    if (low is None) != (high is None):
        raise PatchlibError("an interval has two ends: give both low and high, or neither")
    ends = [{} if end is None else _panels(end) for end in (low, high)]
    first = next(iter(panels.values()))
    for end in ends:
        if end and end.keys() != panels.keys():
            raise PatchlibError(f"intervals of {', '.join(end)}: allowed are {', '.join(panels)}")
    for panel in [*panels.values(), *ends[0].values(), *ends[1].values()]:
        if not (panel.columns.equals(first.columns) and panel.index.equals(first.index)):
            raise PatchlibError(
                f"a table has the runs {', '.join(panel.index)} and the positions "
                f"{', '.join(panel.columns)}; allowed are those of the first, "
                f"{', '.join(first.index)} and {', '.join(first.columns)}"
            )
    errors = tuple({name: abs(end[name] - panels[name]) for name in end} for end in ends)
    return _draw_bars(
        panels, errors, "mean and 95 % interval" if ends[0] else "mean over heads and prompts"
    )


def _panels(tables: Mapping[str, pd.DataFrame] | pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    return {"": tables} if isinstance(tables, pd.DataFrame) else tables


def _draw_bars(
    panels: Mapping[str, pd.DataFrame],
    errors: tuple[Mapping[str, pd.DataFrame], ...],
    note: str,
) -> Figure:
    """Panels side by side on one scale, with what bars reach below and above them."""
    first = next(iter(panels.values()))
    runs, positions = list(map(str, first.index)), list(map(str, first.columns))
    of_run, bar = colours(runs), 0.8 / len(runs)
    with matplotlib.rc_context(STYLE):
        width = max(3.4 / len(panels), len(positions) * (0.25 + 0.16 * len(runs)) + 0.4)
        drawn = new_figure(width * len(panels) + 0.4, 2.9)
        grid = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, panel) in zip(grid, panels.items(), strict=True):
            for number, run in enumerate(runs):
                ends = [end[name].iloc[number] for end in errors if name in end]
                has_errors = bool(ends) and bool(np.isfinite(ends).any())
                axes.bar(
                    np.arange(len(positions)) + (number - (len(runs) - 1) / 2) * bar,
                    panel.iloc[number],
                    width=0.9 * bar,
                    yerr=ends if has_errors else None,
                    color=of_run[run],
                    error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": "black"},
                    label=run,
                )
            axes.set_xticks(range(len(positions)), positions)
            axes.tick_params(axis="x", length=0)
            axes.set_xlabel("attended position")
            about = title(xr.Dataset(attrs=panel.attrs))
            axes.set_title("\n".join(filter(None, (name, about))))
            axes.spines[["top", "right"]].set_visible(False)
        grid[0].set_ylim(0, 1)
        grid[0].set_ylabel(f"attention probability\n{note}")
        legend(drawn, {run: Patch(facecolor=of_run[run]) for run in runs})
        drawn.alt = (
            f"Bars of the last token's attention to {', '.join(positions)}, for the runs "
            f"{', '.join(runs)}{'; panels ' if any(panels) else ''}{', '.join(panels)}. "
            + "; ".join(axes.get_title() for axes in grid)
        )
    return drawn


def attention(
    patterns: Float[Tensor, "panel dest src"],
    tokens: list[list[str]] | list[str],
    titles: list[str],
    mark: dict[str, int] | None = None,
) -> DescribedFigure:
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
    labels = [_labels(panel, mark) for panel in panels]
    more = max(0, max(len(label) for panel in labels for label in panel) - 12)
    side = max(_PER_TOKEN * n_tokens + _LABELS + _PER_CHARACTER * more, 2.4)
    size = (side * n_panels + _BAR, side + 0.3)
    with matplotlib.rc_context(STYLE):
        drawn = new_figure(*size, "compressed")
        grid = drawn.subplots(1, n_panels, squeeze=False)
        for axes, panel, title, pattern in zip(grid[0], labels, titles, values, strict=True):
            image = axes.imshow(np.where(future, np.nan, pattern), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(title)
            axes.set_xlabel("source token (key)")
            _label_tokens(axes, panel, mark)
            if axes is not grid[0, 0] and panel == labels[0]:
                axes.tick_params(labelleft=False)
        grid[0, 0].set_ylabel("destination token (query)")
        drawn.colorbar(image, ax=grid[0], label="attention probability", aspect=25)
        drawn.alt = (
            f"Attention patterns over {n_tokens} tokens, side by side: {', '.join(titles)}"
            + "".join(f"; {name} is token {position}" for name, position in mark.items())
        )
    return drawn


def _labels(tokens: list[str], mark: dict[str, int]) -> list[str]:
    """The tokens, the marked ones with their names."""
    names = {position: f"{name}: " for name, position in mark.items()}
    return [names.get(i, "") + _shown(token) for i, token in enumerate(tokens)]


def _label_tokens(axes: Axes, labels: list[str], mark: dict[str, int]) -> None:
    """Write the labels along both axes, the marked ones in bold."""
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for i, text in enumerate(ticks):
            # Tokens are text: two dollar signs are no formula.
            text.set_parse_math(False)
            if i in mark.values():
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

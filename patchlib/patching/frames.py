"""The cells of a sweep: what is restored, at which positions, and what each is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError, whole
from patchlib.heads import Heads
from patchlib.patching.cells import (
    COMPONENTS,
    Cell,
    Part,
    Where,
    layers_around,
    layers_before,
    parts_of,
    unit_of,
)
from patchlib.prompts.pairs import PromptPairs, places_of

Coordinates = Mapping[str, Sequence[int | str]]


@dataclass(frozen=True)
class Frame:
    """The cells of a sweep: their coordinates, and how to make them for prompts of one length.

    Args:
        coordinates: the labels of the cells' dimensions.
        asked: which cells are run, in the order of the coordinates.
        cells: makes all cells for prompts of one length.
        activations: TransformerLens' short names of what they restore.
        present: which prompts have a token at each position; over ``prompt`` and, where positions
            are kept apart, ``position``.
        tokens: the token at each position that is a number, where all prompts share it.
        before: how many layers of each window lie before its layer.
    """

    coordinates: Coordinates
    asked: Bool[np.ndarray, " cell"]
    cells: Callable[[PromptPairs], list[Cell]]
    activations: frozenset[str]
    present: Bool[xr.DataArray, "prompt *position"]
    tokens: list[str] | None
    before: str | int = 0


def of_component(
    model: TransformerBridge,
    pairs: PromptPairs,
    component: str,
    layers: int | Iterable[int] | None,
    heads: Heads | None,
    window: int | list[int],
    before: int | list[int | None] | None,
    positions: object,
) -> Frame:
    """The frame of `patchlib.patch`, whose arguments these are.

    Raises:
        PatchlibError: for arguments that make no sense, alone or together.
    """
    if not isinstance(component, str) or component not in COMPONENTS:
        raise PatchlibError(f"component={component!r}: allowed are {', '.join(COMPONENTS)}")
    activation, n_layers = COMPONENTS[component], int(model.cfg.n_layers)
    if get_act_name(activation, 0) not in model.hook_dict:
        raise PatchlibError(
            f"component={component!r}: this model has no {activation}; choose another component"
        )
    units = unit_of(model, activation)
    chosen, parts = _layers(layers, n_layers), None
    if heads is not None:
        if units is None or units[0] == "neuron":
            raise PatchlibError(
                f"heads={heads} with component={component!r}, which has no heads: leave it out, "
                "or patch head, q, k, v or pattern"
            )
        parts = parts_of(model, map(str, heads), activation)
        own = sorted({part.layer for part in parts})
        outside = sorted(set(own) - set(own if chosen is None else chosen))
        if outside:
            raise PatchlibError(
                f"heads={heads} with layers={chosen}: layer {outside[0]} is not among the "
                "layers; name it there, or leave layers= out"
            )
        chosen = own if chosen is None else chosen
    if component == "neuron" and chosen is None:
        raise PatchlibError(
            f"component='neuron': a layer has {units[1] if units else 0} neurons, and each is a run"
            "; say which layers, as in layers=[5]"
        )
    chosen = list(range(n_layers)) if chosen is None else chosen
    numbers: Sequence[int | None] = range(units[1]) if units else (None,)
    if parts is not None:
        numbers = sorted({part.unit for part in parts if part.unit is not None})
    windows, reach = _windows(window, before, n_layers)
    if units and windows != [1]:
        raise PatchlibError(
            f"window={window} with component={component!r}: {units[0]}s of different layers have "
            "nothing in common; use window=1, or component 'mlp', 'attn' or 'resid'"
        )
    coordinates: dict[str, Sequence[int | str]] = {}
    if isinstance(window, list):
        coordinates["window"] = windows
    coordinates["layer"] = chosen
    if units:
        coordinates[units[0]] = [number for number in numbers if number is not None]
    where, position = _positions(pairs, positions)
    n_places = len(position) if position is not None else 1
    asked = [
        parts is None or Part(activation, layer, number) in parts
        for _ in windows
        for layer in chosen
        for number in numbers
        for _ in range(n_places)
    ]

    def cells(group: PromptPairs) -> list[Cell]:
        # Cells at one position share the list of it, by which the fast engine knows them.
        wheres = where(group)
        return [
            Cell(
                tuple(
                    Part(activation, near, number) for near in layers_around(layer, *span, n_layers)
                ),
                at,
            )
            for span in zip(windows, reach, strict=True)
            for layer in chosen
            for number in numbers
            for at in wheres
        ]

    return _frame(
        model,
        pairs,
        coordinates,
        position,
        where,
        cells,
        [activation],
        asked,
        ", ".join(map(str, reach)) if isinstance(window, list) else reach[0],
    )


def of_parts(
    model: TransformerBridge, pairs: PromptPairs, parts: tuple[Part, ...], positions: object
) -> Frame:
    """The frame of `patchlib.patch_together`: one cell, or one for each position."""
    where, position = _positions(pairs, positions)
    n_places = len(position) if position is not None else 1
    return _frame(
        model,
        pairs,
        {},
        position,
        where,
        lambda group: [Cell(parts, at) for at in where(group)],
        [part.activation for part in parts],
        [True] * n_places,
    )


def of_pairs(
    model: TransformerBridge,
    pairs: PromptPairs,
    sets: Mapping[str, tuple[Part, ...]],
    positions: object,
) -> Frame:
    """The frame of `patchlib.interactions`: every two sets together, once, and each set alone."""
    where, position = _positions(pairs, positions)
    names = list(sets)
    couples = [(a, b) for a in names for b in names]

    def cells(group: PromptPairs) -> list[Cell]:
        wheres = where(group)
        joint = [sorted({*sets[a], *sets[b]}, key=lambda part: part.layer) for a, b in couples]
        return [Cell(tuple(parts), at) for parts in joint for at in wheres]

    return _frame(
        model,
        pairs,
        {"first": names, "second": names},
        position,
        where,
        cells,
        [part.activation for parts in sets.values() for part in parts],
        [
            names.index(a) <= names.index(b)
            for a, b in couples
            for _ in range(len(position) if position is not None else 1)
        ],
    )


def of_sets(
    model: TransformerBridge,
    pairs: PromptPairs,
    dim: str,
    sets: Mapping[str, tuple[Part, ...]],
) -> Frame:
    """The frame of `patchlib.faithfulness`: one cell for each set, at all positions."""
    where, position = _positions(pairs, "all")
    return _frame(
        model,
        pairs,
        {dim: list(sets)},
        position,
        where,
        lambda group: [Cell(parts) for parts in sets.values()],
        ["z"],
        [True] * len(sets),
    )


def _frame(
    model: TransformerBridge,
    pairs: PromptPairs,
    coordinates: Coordinates,
    position: Sequence[int | str] | None,
    where: Callable[[PromptPairs], list[Where | None]],
    cells: Callable[[PromptPairs], list[Cell]],
    activations: Iterable[str],
    asked: Sequence[bool],
    before: str | int = 0,
) -> Frame:
    wheres = where(pairs)
    here = np.array([[at is None or len(at[i]) > 0 for at in wheres] for i in range(len(pairs))])
    dims: tuple[str, ...] = ("prompt", "position")
    tokens = None
    if position is None:
        here, dims = here[:, 0], ("prompt",)
    else:
        coordinates = {**coordinates, "position": position}
        if all(isinstance(place, int) for place in position):
            tokens = [_shared_token(model, pairs, int(place)) for place in position]
    present = xr.DataArray(here, dims=dims)
    return Frame(
        coordinates, np.array(asked), cells, frozenset(activations), present, tokens, before
    )


def _layers(layers: int | Iterable[int] | None, n_layers: int) -> list[int] | None:
    if layers is None:
        return None
    given = list(layers) if isinstance(layers, Iterable) else [layers]
    if not given:
        raise PatchlibError("layers=[]: give at least one layer, or leave it out for all")
    return sorted({whole("layers", layer, 0, n_layers - 1) for layer in given})


def _windows(
    window: int | list[int], before: int | list[int | None] | None, n_layers: int
) -> tuple[list[int], list[int]]:
    """Each window, and how many of its layers lie before its layer."""
    windows = list(window) if isinstance(window, list) else [window]
    befores = list(before) if isinstance(before, list) else [before] * len(windows)
    if not windows or len(befores) != len(windows):
        raise PatchlibError(
            f"window={window}, before={before}: give at least one window, and as many values of "
            "before= as windows"
        )
    return windows, [layers_before(*pair, n_layers) for pair in zip(windows, befores, strict=True)]


def _positions(
    pairs: PromptPairs, positions: object
) -> tuple[Callable[[PromptPairs], list[Where | None]], Sequence[int | str] | None]:
    """For prompts of one length the tokens at each position, and the positions' labels."""
    if isinstance(positions, str) and positions == "all":
        return lambda group: [None], None
    longest = max(len(prompt.clean) for prompt in pairs.prompts)
    if isinstance(positions, str) and positions == "each":
        lengths = sorted({len(prompt.clean) for prompt in pairs.prompts})
        if len(lengths) > 1:
            raise PatchlibError(
                f"positions='each' needs prompts of one length, and these have {lengths} tokens: "
                "patch each group of pairs.by_length(), or give named positions"
            )
        positions, several = range(longest), True
    else:
        several = isinstance(positions, list)
    given = list(positions) if several else [positions]  # type: ignore[call-overload]
    labels = [p if isinstance(p, str) else whole("positions", p, 0, longest - 1) for p in given]
    if not labels or len(set(labels)) < len(labels):
        raise PatchlibError(
            f"positions={positions!r}: give 'all', 'each', a named position, a number, or a list "
            "of names and numbers, each once"
        )

    def at(group: PromptPairs, label: int | str) -> Where:
        if isinstance(label, str):
            return group.at(label)
        return [(label,) if label < len(prompt.clean) else () for prompt in group.prompts]

    for label in labels:
        if isinstance(label, str):
            places_of(pairs, label)
    return lambda group: [at(group, label) for label in labels], labels if several else None


def _shared_token(model: TransformerBridge, pairs: PromptPairs, place: int) -> str:
    """The text of the token that all prompts have at a place, or nothing."""
    found = {prompt.clean[place] for prompt in pairs.prompts if place < len(prompt.clean)}
    return model.tokenizer.decode(list(found)) if len(found) == 1 else ""

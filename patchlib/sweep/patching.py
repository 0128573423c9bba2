"""Activation patching: restore one component at a time and see how much of the answer returns.

Three runs (Section 2.1): the clean run, the corrupted run, and patched runs, in which one cell of
activations is taken from the other run. Two engines compute the patched runs and agree: hooks on
TransformerLens' own forward pass, and a faster one for the architectures that it knows.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.models.loading import describe
from patchlib.prompts.corruption import GN, STR, Corruption
from patchlib.prompts.pairs import PromptPairs
from patchlib.sweep import architectures, fast_engine, hook_engine
from patchlib.sweep import metrics as metric_definitions
from patchlib.sweep.cells import Cell, Limits, Where, heads_cell, layers_around, layers_before
from patchlib.sweep.checkpoint import Checkpoint, fingerprints, places
from patchlib.sweep.runs import Run, require_evaluation, two_runs

COMPONENTS = {"head": "z", "mlp": "mlp_out", "attn": "attn_out", "resid": "resid_pre"}
"""What can be patched, and TransformerLens' name for its activation."""

ENGINES = {"hooks": hook_engine.sweep, "fast": fast_engine.sweep}

# How many prompts, times draws of the noise, are prepared at a time.
_INSTANCES = 256


def patch(
    model: TransformerBridge,
    pairs: PromptPairs,
    component: str = "head",
    *,
    corruption: Corruption,
    metrics: Sequence[str] = ("logit_diff", "prob", "kl"),
    window: int | Sequence[int] = 1,
    before: int | Sequence[int | None] | None = None,
    positions: str | Sequence[str] = "all",
    direction: str = "denoise",
    keep_prompts: bool = False,
    keep_draws: bool = False,
    engine: str = "auto",
    batch_size: int | str = "auto",
    memory_budget: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Patches every head, or every layer's MLP, attention or residual, one at a time.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths; those of one length run together, none is padded.
        component: ``"head"`` (z), ``"mlp"`` (mlp_out), ``"attn"`` (attn_out) or ``"resid"``
            (resid_pre).
        corruption: `STR` or `GN` at one of the task's positions.
        metrics: names of metrics; all are read from the same pass.
        window: how many adjacent layers are restored together (Section 5); not for heads. An odd
            window w reaches from l - w//2 to l + w//2; windows are cut at the first and the last
            layer.
        before: for an even window, how many of its layers lie before layer l; w//2 gives what
            ROME's code does (for w = 10: l - 5 to l + 4).
        positions: ``"all"`` token positions jointly; ``"each"`` position separately (prompts of
            one length); a named position such as ``"last_subject"``; or a list of names, each
            separately.
        direction: ``"denoise"`` puts clean activations into the corrupted run (the paper's
            choice), ``"noise"`` corrupted ones into the clean run.
        keep_prompts: keep one value per prompt instead of their mean.
        keep_draws: keep one value per draw of the noise instead of their mean.
        engine: ``"hooks"`` runs the whole model with hooks for every cell, and is the reference.
            ``"fast"`` gives the same numbers without repeating what a patch cannot change, and
            raises where it cannot. ``"auto"`` is fast where possible; where it falls back to
            hooks, a warning says why.
        batch_size: how many rows one pass may hold, a row being one prompt in one cell;
            ``"auto"`` chooses by memory.
        memory_budget: how many bytes the sweep may take beside the model; 2 GiB on a CPU and
            80 % of the free memory on a GPU where None.
        checkpoint: a folder that keeps every finished pass, so that the same call goes on where
            a stopped one was.
        progress: show a progress bar; or a function that is called as ``progress(done, total)``
            after every pass, with rows as in ``batch_size``.

    Returns:
        A dataset with the variables

        * ``effect``, as Section 2.1 defines it for each metric, from the run that was patched
          (the corrupted one when denoising): probability P_pt(r) - P_*(r); logit difference
          (LD_pt - LD_*) / (LD_cl - LD_*), where LD_cl - LD_* is a mean over all prompts; KL
          D(P_cl||P_*) - D(P_cl||P_pt); the other metrics like probability, with ranks counted so
          that a better rank is a positive effect. When noising, the clean and the corrupted run
          change places in all of this;
        * ``effect_sd``, the standard deviation of the effect over draws (NaN for one draw, absent
          with ``keep_draws``);
        * ``patched``, ``clean``, ``corrupted``: the metrics themselves. KL is measured from the
          run that activations come from;

        over the dimensions ``metric, layer`` and, as asked for, ``window, head, position,
        prompt, draw``. NaN marks what was not measured. The attributes hold every setting.

    Raises:
        PatchlibError: for settings that make no sense, positions and sites that the task does not
            have, a model in training mode, hooks that did not fire, an engine that cannot run the
            model, a memory budget that is too small for one row, and a checkpoint made with other
            settings.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, component="mlp", corruption=pl.STR("S2"), progress=False)
        >>> dict(fx.effect.sizes)
        {'metric': 3, 'layer': 8}
    """
    _require_sense(model, pairs, corruption)
    chosen_metrics = metric_definitions.choose(metrics)
    if direction not in ("denoise", "noise"):
        raise PatchlibError(f"direction={direction!r}: allowed are 'denoise' and 'noise'")
    limits = Limits.of(model, batch_size, memory_budget)
    # Numpy's numbers become Python's own, which a checkpoint can write down.
    width: int | list[int] = np.asarray(window).tolist()
    ahead: int | list[int | None] | None = np.asarray(before).tolist()
    frame = _frame(model, pairs, component, width, ahead, positions)
    engine = _choose_engine(engine, model, pairs, corruption)
    settings: dict[str, object] = {
        **describe(model),
        "task": pairs.task,
        "task_settings": json.dumps(pairs.settings, sort_keys=True),
        "n_prompts": len(pairs),
        **corruption.describe(),
        "component": component,
        "window": ", ".join(map(str, width)) if isinstance(width, list) else width,
        "window_before": frame.before,
        "positions": positions if isinstance(positions, str) else ", ".join(positions),
        "direction": direction,
        "engine": engine,
    }
    finished = None
    if checkpoint is not None:
        names = ", ".join(metric.name for metric in chosen_metrics)
        finished = Checkpoint(
            checkpoint, settings | {"metrics": names} | fingerprints(model, pairs)
        )
    total, done = corruption.draws * len(pairs) * frame.n_cells, 0
    bar = tqdm(
        total=total,
        desc=f"patching {component}",
        unit="row",
        disable=callable(progress) or not progress,
        leave=False,
    )

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        bar.update(rows)
        if callable(progress):
            progress(done, total)

    sweep = _Sweep(
        model, pairs, corruption, frame, chosen_metrics, direction, engine, limits, finished
    )
    with bar:
        data = sweep.run(advance)
    if not keep_prompts:
        data = data.mean("prompt", skipna=True)
    if not keep_draws:
        one = xr.full_like(data.effect.isel(draw=0, drop=True), np.nan)
        spread = data.effect.std("draw", ddof=1) if corruption.draws > 1 else one
        data = data.mean("draw")
        data["effect_sd"] = spread
    if isinstance(positions, str) and positions not in ("all", "each"):
        data = data.assign_coords(position=positions)
    data.attrs = {
        **settings,
        "patchlib": version("patchlib"),
        "torch": version("torch"),
        "transformer_lens": version("transformer-lens"),
    }
    return data


def patch_together(
    model: TransformerBridge,
    pairs: PromptPairs,
    heads: Sequence[tuple[int, int]],
    *,
    corruption: Corruption,
    activation: str = "z",
    metrics: Sequence[str] = ("logit_diff", "prob", "kl"),
    batch_size: int | str = "auto",
) -> xr.Dataset:
    """Restores one activation of several heads at once, at all positions (Section 3.2).

    Args:
        model: the model, in evaluation mode.
        pairs: the prompts.
        heads: the heads as (layer, head).
        corruption: `STR` or `GN`.
        activation: which activation of the heads: ``"z"``, ``"q"``, ``"k"`` or ``"v"``.
        metrics: names of metrics.
        batch_size: as in `patch`.

    Returns:
        A dataset with ``effect``, ``patched``, ``clean`` and ``corrupted`` as in `patch`, over
        the dimension ``metric`` alone.

    Raises:
        PatchlibError: where no head is given, or one that the model does not have.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch_together(model, pairs, [(0, 0), (1, 2)], corruption=pl.STR("S2"))
        >>> tuple(fx.effect.dims)
        ('metric',)
    """
    _require_sense(model, pairs, corruption)
    cell = heads_cell(model, heads, activation)
    chosen_metrics = metric_definitions.choose(metrics)
    limits = Limits.of(model, batch_size, None)
    frame = _Frame({"set": ["all"]}, 0, lambda group: [cell])
    sweep = _Sweep(model, pairs, corruption, frame, chosen_metrics, "denoise", "hooks", limits)
    data = sweep.run()
    return data.mean(("prompt", "draw")).squeeze("set", drop=True)


def _require_sense(model: TransformerBridge, pairs: PromptPairs, corruption: Corruption) -> None:
    if not len(pairs):
        raise PatchlibError("there are no prompts: give at least one")
    if not isinstance(corruption, STR | GN):
        raise PatchlibError(
            f"corruption={corruption!r}: give pl.STR(site) or pl.GN(site), for example pl.STR('S2')"
        )
    require_evaluation(model)


@dataclass(frozen=True)
class _Frame:
    """The cells of a sweep: their coordinates, and how to make them for prompts of one length."""

    coordinates: Mapping[str, Sequence[int | str]]
    before: int | str
    cells: Callable[[PromptPairs], list[Cell]]

    @property
    def n_cells(self) -> int:
        """How many cells there are."""
        return int(np.prod([len(values) for values in self.coordinates.values()]))


def _frame(
    model: TransformerBridge,
    pairs: PromptPairs,
    component: str,
    window: int | list[int],
    before: int | list[int | None] | None,
    positions: str | Sequence[str],
) -> _Frame:
    if component not in COMPONENTS:
        raise PatchlibError(f"component={component!r}: allowed are {', '.join(COMPONENTS)}")
    if not positions:
        raise PatchlibError(
            f"positions={positions!r}: give 'all', 'each', a named position or a list of names"
        )
    n_layers = model.cfg.n_layers
    windows = window if isinstance(window, list) else [window]
    befores = before if isinstance(before, list) else [before] * len(windows)
    if not windows or len(befores) != len(windows):
        raise PatchlibError(
            f"window={window}, before={before}: give at least one window, and as many values of "
            "before= as windows"
        )
    reach = [(w, layers_before(w, b, n_layers)) for w, b in zip(windows, befores, strict=True)]
    if component == "head" and windows != [1]:
        raise PatchlibError(
            f"window={window} with component='head': heads of different layers have nothing in "
            "common; use window=1, or component 'mlp', 'attn' or 'resid'"
        )
    lengths = sorted({len(prompt.clean) for prompt in pairs.prompts})
    if positions == "each" and len(lengths) > 1:
        raise PatchlibError(
            f"positions='each' needs prompts of one length, and these have {lengths} tokens: "
            "patch each group of pairs.by_length(), or give named positions"
        )
    heads = range(model.cfg.n_heads) if component == "head" else (None,)
    coordinates: dict[str, Sequence[int | str]] = {}
    if isinstance(window, list):
        coordinates["window"] = windows
    coordinates["layer"] = range(n_layers)
    if component == "head":
        coordinates["head"] = range(model.cfg.n_heads)
    if positions == "each":
        coordinates["position"] = range(lengths[0])
    elif not isinstance(positions, str):
        coordinates["position"] = list(positions)

    def places(group: PromptPairs) -> Iterator[Where | None]:
        if positions == "all":
            yield None
        elif positions == "each":
            for position in range(lengths[0]):
                yield [(position,)] * len(group)
        else:
            for name in [positions] if isinstance(positions, str) else positions:
                yield group.at(name)

    def cells(group: PromptPairs) -> list[Cell]:
        activation, wheres = COMPONENTS[component], list(places(group))
        return [
            Cell(
                activation,
                tuple((near, head) for near in layers_around(layer, *span, n_layers)),
                where,
            )
            for span in reach
            for layer in range(n_layers)
            for head in heads
            for where in wheres
        ]

    taken = [before for _, before in reach]
    return _Frame(
        coordinates, ", ".join(map(str, taken)) if isinstance(window, list) else taken[0], cells
    )


def _choose_engine(
    engine: str, model: TransformerBridge, pairs: PromptPairs, corruption: Corruption
) -> str:
    """The engine that will run, after a look at the model and a comparison on its own prompts."""
    if engine not in ("auto", *ENGINES):
        raise PatchlibError(
            f"engine={engine!r}: allowed are 'auto', {', '.join(map(repr, ENGINES))}"
        )
    if engine == "hooks":
        return engine
    problem = architectures.obstacle(model)
    if problem is None:
        _, group = next(pairs.by_length())
        problem = fast_engine.disagreement(model, *two_runs(model, group[:1], corruption, 0))
    if problem is None:
        return "fast"
    if engine == "fast":
        raise PatchlibError(f"engine='fast' cannot run this model: {problem}; use engine='hooks'")
    message = f"patching with hooks, which takes longer: {problem}"
    if message not in _told:
        _told.add(message)
        warnings.warn(message, stacklevel=3)
    return "hooks"


_told: set[str] = set()


@dataclass(frozen=True)
class _Sweep:
    """Runs a frame's cells over prompts of every length and every draw of the noise."""

    model: TransformerBridge
    pairs: PromptPairs
    corruption: Corruption
    frame: _Frame
    metrics: Sequence[metric_definitions.Metric]
    direction: str
    engine: str
    limits: Limits
    checkpoint: Checkpoint | None = None

    def run(self, advance: Callable[[int], object] = lambda rows: None) -> xr.Dataset:
        """The numbers, labelled; ``advance`` is called with the number of rows done."""
        # An instance is one prompt under one draw of the noise.
        shape = (len(self.metrics), len(self.pairs), self.corruption.draws)
        patched = np.full((*shape, self.frame.n_cells), np.nan)
        unpatched = np.full((2, *shape), np.nan)
        done = np.zeros(patched.shape[1:], dtype=bool)

        def enter(piece: xr.Dataset) -> None:
            at = piece["prompt"].values, piece["draw"].values
            unpatched[:, :, at[0], at[1]] = piece["unpatched"].values
            rectangle = at[0][:, None], at[1][:, None], piece["cell"].values
            patched[(slice(None), *rectangle)] = piece["patched"].values
            done[rectangle] = True
            advance(piece["patched"].sizes["instance"] * piece["patched"].sizes["cell"])

        for piece in self.checkpoint.pieces() if self.checkpoint is not None else ():
            enter(piece)
        for piece in self._pieces(done):
            if self.checkpoint is not None:
                self.checkpoint.save(piece)
            enter(piece)
        return _dataset(
            self.metrics,
            patched.swapaxes(1, 2),
            unpatched[0].swapaxes(1, 2),
            unpatched[1].swapaxes(1, 2),
            self.frame.coordinates,
            self.direction,
        )

    def _pieces(self, done: Bool[np.ndarray, "prompt draw cell"]) -> Iterator[xr.Dataset]:
        """Every pass over what is not done yet."""
        draws = range(self.corruption.draws)
        for index, group in self.pairs.by_length():
            # The noise of all instances that are prepared takes a small part of the budget.
            noise = 4 * len(group.prompts[0].clean) * self.model.cfg.d_model
            at_once = min(_INSTANCES, self.limits.memory // (16 * noise))
            size = max(1, at_once // len(draws))
            for start in range(0, len(group), size):
                rows = list(range(start, min(start + size, len(group))))
                # What is left of a stopped sweep need not be the same for every instance.
                left: dict[bytes, list[tuple[int, int]]] = {}
                for row in rows:
                    for draw in draws:
                        todo = ~done[index[row], draw]
                        if todo.any():
                            left.setdefault(todo.tobytes(), []).append((row, draw))
                for todo, instances in left.items():
                    numbers = np.frombuffer(todo, dtype=bool).nonzero()[0].tolist()
                    yield from self._run(group, index, instances, numbers)

    def _run(
        self,
        group: PromptPairs,
        index: Sequence[int],
        instances: Sequence[tuple[int, int]],
        numbers: Sequence[int],
    ) -> Iterator[xr.Dataset]:
        """Passes over some cells on some instances of one length."""
        prompts = group[[row for row, _ in instances]]
        source, corrupted = self._two_runs(prompts, [draw for _, draw in instances])
        destination = corrupted
        if self.direction == "noise":
            source, destination = corrupted, source
        cells = self.frame.cells(prompts)
        sweep = ENGINES[self.engine]
        for piece in sweep(
            self.model,
            prompts,
            source,
            destination,
            [cells[number] for number in numbers],
            self.metrics,
            self.limits,
        ):
            names = [(index[instances[i][0]], instances[i][1]) for i in piece.prompts]
            yield xr.Dataset(
                {
                    "patched": (
                        ("metric", "instance", "cell"),
                        piece.patched.transpose(1, 2).numpy(),
                    ),
                    "unpatched": (("run", "metric", "instance"), piece.unpatched.numpy()),
                },
                coords=places(names) | {"cell": [numbers[i] for i in piece.cells]},
            )

    def _two_runs(self, prompts: PromptPairs, draws: Sequence[int]) -> tuple[Run, Run]:
        """The clean and the corrupted run of prompts, each under its own draw of the noise."""
        by_draw = {draw: [i for i, d in enumerate(draws) if d == draw] for draw in set(draws)}
        noise = None
        for draw, rows in by_draw.items():
            _, corrupted = two_runs(self.model, prompts[rows], self.corruption, draw)
            if corrupted.noise is not None:
                if noise is None:
                    noise = torch.empty(len(prompts), *corrupted.noise.shape[1:])
                noise[rows] = corrupted.noise
        return Run(prompts.clean_tokens), Run(self.corruption.tokens(prompts), noise)


def _dataset(
    metrics: Sequence[metric_definitions.Metric],
    patched: Float[np.ndarray, "metric draw prompt cell"],
    source: Float[np.ndarray, "metric draw prompt"],
    destination: Float[np.ndarray, "metric draw prompt"],
    coordinates: Mapping[str, Sequence[int | str]],
    direction: str,
) -> xr.Dataset:
    """Labels the numbers and works out the effects."""
    baseline = ("metric", "draw", "prompt")
    shape = (*patched.shape[:3], *map(len, coordinates.values()))
    data = xr.Dataset(
        {
            "patched": ((*baseline, *coordinates), patched.reshape(shape)),
            "clean": (baseline, source if direction == "denoise" else destination),
            "corrupted": (baseline, destination if direction == "denoise" else source),
        },
        coords={"metric": [metric.name for metric in metrics]}
        | {name: list(values) for name, values in coordinates.items()},
    )
    there = data.clean if direction == "denoise" else data.corrupted
    here = data.corrupted if direction == "denoise" else data.clean
    sign = xr.DataArray([metric.sign for metric in metrics], dims="metric")
    normalized = xr.DataArray([metric.normalized for metric in metrics], dims="metric")
    # The mean over prompts keeps single prompts with a tiny difference from blowing up.
    distance = (there - here).mean("prompt")
    distance = distance.where(distance != 0)
    change = sign * (data.patched - here)
    data["effect"] = change / xr.where(normalized, distance, 1.0)
    return data[["effect", "patched", "clean", "corrupted"]]

"""Activation patching: restore one component at a time and see how much of the answer returns.

Three runs (Section 2.1): the clean run, the corrupted run, and patched runs, in which one cell of
activations is taken from the other run. Two engines compute the patched runs and agree: hooks on
TransformerLens' own forward pass, and a faster one for the architectures that it knows.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.heads import Heads
from patchlib.models.loading import describe, load_described
from patchlib.patching import (
    architectures,
    fast_engine,
    frames,
    hook_engine,
    results,
    sources,
    store,
    workers,
)
from patchlib.patching import metrics as metric_definitions
from patchlib.patching.cells import Limits, Part, Piece, parts_of, unit_of
from patchlib.patching.checkpoint import Checkpoint, fingerprints, places
from patchlib.patching.frames import Frame
from patchlib.patching.metrics import Metric
from patchlib.patching.runs import (
    Run,
    require_corruption,
    require_evaluation,
    require_prompts,
    two_runs,
)
from patchlib.patching.settings import of_result
from patchlib.patching.sources import Source, Taken
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs

ENGINES = {"hooks": hook_engine.sweep, "fast": fast_engine.sweep}

# How many prompts, times draws of the noise, are prepared at a time.
_INSTANCES = 256

Metrics = str | Metric | Callable | Sequence[str | Metric | Callable]

Block = tuple[Sequence[int], Bool[np.ndarray, "prompt draw cell"]]
"""The numbers of some prompts, and what is done of each."""

Engine = Callable[..., Iterator[Piece]]
"""A function as `hook_engine.sweep`."""


def patch(
    model: TransformerBridge,
    pairs: PromptPairs,
    component: str = "head",
    *,
    corruption: Corruption,
    metrics: Metrics = ("logit_diff", "prob", "kl"),
    layers: int | Iterable[int] | None = None,
    heads: Iterable[object] | None = None,
    window: int | Sequence[int] = 1,
    before: int | Sequence[int | None] | None = None,
    positions: str | int | Sequence[str | int] = "all",
    direction: str = "denoise",
    source: Source | None = None,
    keep_prompts: bool = False,
    keep_draws: bool = False,
    engine: str = "auto",
    batch_size: int | str = "auto",
    memory_budget: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    executor: Callable[[], Any] | None = None,
    block: int = 32,
    retries: int = 2,
    recompute: bool = False,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Patches every head, or every layer's MLP, attention or residual, one at a time.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths; those of one length run together, none is padded.
        component: ``"head"`` (z), ``"mlp"`` (mlp_out), ``"attn"`` (attn_out), ``"resid"``
            (resid_pre), ``"resid_mid"``; of each head ``"q"``, ``"k"``, ``"v"`` (before positions
            enter) or ``"pattern"`` (what the queries at a position attend to); ``"neuron"`` (post,
            one run for each neuron).
        corruption: `STR` or `GN` at one of the task's positions, or a `Corruption` of your own.
        metrics: names of metrics, `Metric` objects or functions of logits; all are read from the
            same pass.
        layers: which layers; all where None.
        heads: which heads, as ``["5.1", "9.0"]``; all where None. What lies between is NaN. Keys
            and values are those that these heads read.
        window: how many adjacent layers are restored together (Section 5); not for heads. An odd
            window w reaches from l - w//2 to l + w//2; windows are cut at the first and the last
            layer.
        before: for an even window, how many of its layers lie before layer l; w//2 gives what
            ROME's code does (for w = 10: l - 5 to l + 4).
        positions: ``"all"`` token positions jointly; ``"each"`` position separately (prompts of
            one length); a named position such as ``"last_subject"``, or a number counted from
            zero; or a list of names and numbers, each separately.
        direction: ``"denoise"`` puts clean activations into the corrupted run (the paper's
            choice), ``"noise"`` corrupted ones into the clean run.
        source: what activations are replaced by, where not by those of the other run: ``Zero()``,
            ``Mean()``, ``Mean(pairs)``, ``Resample(pairs)``, or other prompts, whose clean run is
            taken row by row. Effects are still measured on the way between the corrupted and the
            clean run.
        keep_prompts: keep one value per prompt instead of their mean.
        keep_draws: keep one value per draw, of the noise or of `Resample`, instead of their mean.
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
        executor: makes what runs the sweep in other processes, anew each time, since it is shut
            down after use: ``loky.get_reusable_executor``, ``lambda:
            client.get_executor(pure=False)`` of dask.distributed or a function that returns a
            ``submitit.AutoExecutor``; all that is asked of it is ``submit``. Each worker loads the
            model by its name, onto the device it is on here, and writes to ``checkpoint``, a
            folder that all must see. ``batch_size`` and ``memory_budget`` hold for each. A worker
            that is killed loses the pass it was at.
        block: how many prompts a worker is handed at a time.
        retries: how often what is left of blocks that failed is handed to a new executor.
        recompute: compute also what is stored. By default stored sweeps (`patchlib.patching.store`)
            of the same model, prompts and settings are read, and only what they lack is computed;
            the attribute ``stored`` then says when they were made. ``engine="hooks"`` and
            ``engine="fast"`` compute everything, too.
        progress: show a progress bar; or a function that is called as ``progress(done, total)``
            before the first pass and after every one, with rows as in ``batch_size``; not at all
            where everything is stored.

    Returns:
        A dataset with the variables

        * ``effect``, as Section 2.1 defines it for each metric: how far the patch takes the run
          towards the one that activations come from. When denoising: probability
          P_pt(r) - P_*(r); logit difference (LD_pt - LD_*) / (LD_cl - LD_*), where LD_cl - LD_*
          is a mean over the prompts that have the position; KL D(P_cl||P_*) - D(P_cl||P_pt); the
          other metrics like probability, with ranks counted so that a better rank is a positive
          effect. When noising, the clean and the corrupted run change places, and what lowers
          P(r) is positive: P_cl(r) - P_pt(r);
        * ``effect_sd``, the standard deviation of the effect over draws (NaN for one draw, absent
          with ``keep_draws``);
        * ``patched``, ``clean``, ``corrupted``: the metrics themselves, over the same prompts. KL
          is measured from the run on the source's side;

        over the dimensions ``metric, layer`` and, as asked for, ``window, head, position,
        prompt, draw``. Under grouped-query attention keys and values have ``kv_head`` in place of
        ``head``; neurons have ``neuron``. Coordinates give the ``text`` of prompts that are kept
        and the ``token`` at a numbered position, where all prompts share it, so that
        ``fx.to_dataframe()`` is a tidy table. NaN marks what was not measured. The attributes hold
        every setting.

    Raises:
        PatchlibError: for settings that make no sense, positions and sites that the task does not
            have, a model in training mode, hooks that did not fire, logits that are NaN, an
            engine that cannot run the model, a memory budget that is too small for one row, a
            checkpoint made with other settings, and workers that fail or load another model.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, component="mlp", corruption=pl.STR("S2"), progress=False)
        >>> dict(fx.effect.sizes)
        {'metric': 3, 'layer': 8}
        >>> some = pl.patch(model, pairs, heads=["3.1", "5.0"], corruption=pl.STR("S2"),
        ...                 progress=False)
        >>> int(some.effect.sel(metric="kl").notnull().sum())
        2
    """
    positions, layers = _one_or_list(positions), _one_or_list(layers)
    # Iterators are read once, and workers read these again.
    chosen = None if heads is None else Heads(heads)
    _require_sense(model, pairs, corruption)
    asked = component, layers, chosen, window, before, positions
    frame, what = _components(model, pairs, *asked)
    options: dict[str, Any] = {
        "corruption": corruption,
        "metrics": metrics,
        "positions": positions,
        "direction": direction,
        "source": source,
        "engine": engine,
    }
    spread = None
    if executor is not None:
        workers.require_sense(executor, block, retries, checkpoint)
        # Workers may have another working directory.
        checkpoint = Path(checkpoint).expanduser().resolve()  # type: ignore[arg-type]
        limits = batch_size, memory_budget
        task = partial(_measure_block, describe(model), pairs, asked, limits, checkpoint, options)
        spread = partial(workers.run, executor, block, retries, task)
    return _patch(
        model,
        pairs,
        frame,
        what=what,
        keep_prompts=keep_prompts,
        keep_draws=keep_draws,
        limits=Limits.of(model, batch_size, memory_budget),
        checkpoint=checkpoint,
        progress=progress,
        stored=engine == "auto" and not recompute,
        spread=spread,
        **options,
    )


def patch_together(
    model: TransformerBridge,
    pairs: PromptPairs,
    parts: Iterable[object],
    *,
    corruption: Corruption,
    activation: str = "z",
    metrics: Metrics = ("logit_diff", "prob", "kl"),
    positions: str | int | Sequence[str | int] = "all",
    direction: str = "denoise",
    source: Source | None = None,
    keep_prompts: bool = False,
    keep_draws: bool = False,
    batch_size: int | str = "auto",
    memory_budget: float | None = None,
    progress: bool | Callable[[int, int], object] = False,
) -> xr.Dataset:
    """Restores several components at once, in any mixture (Section 3.2).

    Args:
        model: the model, in evaluation mode.
        pairs: the prompts.
        parts: what is restored: heads as ``"4.6"`` or (layer, head), and every component of
            `patch` by its name and layer, such as ``"mlp3"``, ``"q4.6"``, ``"resid5"``.
        corruption: as in `patch`.
        activation: which activation of heads without a component's name: ``"z"``, ``"q"``,
            ``"k"``, ``"v"`` or ``"pattern"``. Under grouped-query attention a head's key and value
            are those of its group, so that they are restored for all heads of the group.
        metrics: as in `patch`.
        positions: as in `patch`.
        direction: as in `patch`.
        source: as in `patch`.
        keep_prompts: as in `patch`.
        keep_draws: as in `patch`.
        batch_size: as in `patch`.
        memory_budget: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset as `patch` gives it, over the dimension ``metric`` and, as asked for,
        ``position, prompt, draw``.

    Raises:
        PatchlibError: where nothing is given, or a part that the model does not have, and as
            `patch` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch_together(model, pairs, ["0.0", "1.2", "mlp3"], corruption=pl.STR("S2"))
        >>> fx.effect.dims, fx.attrs["parts"]
        (('metric',), 'z0.0, z1.2, mlp_out3')
    """
    positions = _one_or_list(positions)
    _require_sense(model, pairs, corruption)
    chosen = parts_of(model, parts, activation)
    return _patch(
        model,
        pairs,
        frames.of_parts(model, pairs, chosen, positions),
        corruption,
        metrics,
        {"parts": ", ".join(_name(model, part) for part in chosen)},
        positions,
        direction,
        source,
        keep_prompts,
        keep_draws,
        "hooks",
        Limits.of(model, batch_size, memory_budget),
        None,
        progress,
    )


def _components(
    model: TransformerBridge,
    pairs: PromptPairs,
    component: str,
    layers: int | Iterable[int] | None,
    heads: Iterable[object] | None,
    window: int | Sequence[int],
    before: int | Sequence[int | None] | None,
    positions: str | int | Sequence[str | int],
) -> tuple[Frame, dict[str, Any]]:
    """The frame of one component after another, and what results keep of it."""
    width, ahead = map(_one_or_list, (window, before))
    chosen = None if heads is None else Heads(sorted({*Heads(heads)}))
    frame = frames.of_component(model, pairs, component, layers, chosen, width, ahead, positions)
    some = {"layers": ", ".join(map(str, frame.coordinates["layer"]))} if layers is not None else {}
    some |= {"heads": str(chosen)} if chosen is not None else {}
    widths = ", ".join(map(str, width)) if isinstance(width, list) else width
    what = {"component": component, **some, "window": widths, "window_before": frame.before}
    return frame, what


def _patch(
    model: TransformerBridge,
    pairs: PromptPairs,
    frame: Frame,
    corruption: Corruption | None,
    metrics: Metrics,
    what: dict[str, Any],
    positions: str | int | Sequence[str | int],
    direction: str,
    source: Source | None,
    keep_prompts: bool,
    keep_draws: bool,
    engine: str | Engine,
    limits: Limits,
    checkpoint: str | os.PathLike[str] | None,
    progress: bool | Callable[[int, int], object],
    stored: bool = False,
    spread: Callable[..., object] | None = None,
    block: Block | None = None,
    prints: dict[str, object] | None = None,
) -> xr.Dataset:
    """What `patch` and `patch_together` have in common.

    Without corruption the clean run is both runs, and what a source changes in it is measured: see
    `patchlib.ablate`. A worker measures its block alone, and knows the fingerprints of its model.
    """
    chosen_metrics = metric_definitions.choose(metrics)
    if direction not in ("denoise", "noise"):
        raise PatchlibError(f"direction={direction!r}: allowed are 'denoise' and 'noise'")
    described = sources.describe(source, pairs, direction)
    sources.require_fit(source, pairs, positions)
    one_place = not isinstance(positions, list)
    kept: dict[str, Any] = {"metrics": ", ".join(metric.name for metric in chosen_metrics)}
    what |= {
        "positions": positions if one_place else ", ".join(map(str, positions)),  # type: ignore
        "direction": direction,
        **described,
    }
    draws = sources.draws_of(source, corruption)
    numbers = _Numbers.of(chosen_metrics, pairs, draws, frame)
    made: dict[str, str] = {}
    for piece in (
        store.pieces(model, pairs, frame, corruption, chosen_metrics, draws, what) if stored else ()
    ):
        if numbers.enter(piece):
            made = piece.attrs
    if block is not None:
        rows, done_there = block
        numbers.done[:] = True
        numbers.done[rows] = done_there
    left = numbers.left
    if left and callable(progress):
        # Before anything runs: it may say how long it will take, or refuse.
        progress(0, left)
    if left or not made:
        made.pop("engine", None)
        if isinstance(engine, str):
            what["engine"] = engine = _choose_engine(engine, model, pairs, corruption, frame)
        if checkpoint is not None:
            kept |= prints or fingerprints(model)
    settings = of_result(model, pairs, corruption, chosen_metrics, what, kept)
    finished = None
    if left and checkpoint is not None:
        finished = Checkpoint(checkpoint, settings | kept)
    settings |= made
    done = 0
    bar = tqdm(
        total=left,
        desc=f"patching {what.get('component', 'together')}",
        unit="row",
        disable=callable(progress) or not (progress and left),
        leave=False,
    )

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        bar.update(rows)
        if callable(progress):
            progress(done, left)

    sweep = _Sweep(
        model,
        pairs,
        corruption,
        frame,
        chosen_metrics,
        direction,
        source,
        engine,
        limits,
        finished,
    )
    with bar:
        if spread is not None:
            spread(partial(numbers.blocks, pairs), partial(sweep.collect, numbers, advance))
        data = sweep.run(numbers, advance)
    data = results.average(data, frame, pairs.texts, keep_prompts, keep_draws)
    if one_place and positions not in ("all", "each"):
        data = data.assign_coords(position=positions)
    data.attrs = settings
    return data


def _measure_block(
    described: dict[str, str],
    pairs: PromptPairs,
    asked: tuple[Any, ...],
    limits: tuple[Any, ...],
    checkpoint: Path,
    options: dict[str, Any],
    *block: Any,
) -> None:
    """What a worker does: some prompts of a sweep, whose passes it keeps in the sweep's folder."""
    workers.require_threads()
    model, prints = _loaded(*(described[name] for name in ("model", "revision", "dtype", "device")))
    frame, what = _components(model, pairs, *asked)
    _patch(
        model,
        pairs,
        frame,
        what=what,
        keep_prompts=False,
        keep_draws=False,
        limits=Limits.of(model, *limits),
        checkpoint=checkpoint,
        progress=False,
        block=block,
        prints=prints,
        **options,
    )


@lru_cache(maxsize=1)
def _loaded(*described: str) -> tuple[TransformerBridge, dict[str, object]]:
    """A worker's model and its fingerprints, which take as long to compute as to load."""
    model = load_described(*described)
    return model, fingerprints(model)


def _require_sense(model: TransformerBridge, pairs: PromptPairs, corruption: Corruption) -> None:
    require_evaluation(model)
    require_prompts(model, pairs)
    require_corruption(model, pairs, corruption)


def _choose_engine(
    engine: str,
    model: TransformerBridge,
    pairs: PromptPairs,
    corruption: Corruption | None,
    frame: Frame,
) -> str:
    """The engine that will run, after a look at the model and a comparison on its own prompts."""
    if engine not in ("auto", *ENGINES):
        raise PatchlibError(
            f"engine={engine!r}: allowed are 'auto', {', '.join(map(repr, ENGINES))}"
        )
    _, group = next(pairs.by_length())
    runs = two_runs(model, group[:1], corruption, 0)
    if engine != "hooks":
        found = (architectures.obstacle(model, activation) for activation in frame.activations)
        problem = next(filter(None, found), None) or fast_engine.disagreement(model, *runs)
        if problem is None:
            return "fast"
        if engine == "fast":
            raise PatchlibError(
                f"engine='fast' cannot run this model: {problem}; use engine='hooks'"
            )
        message = f"patching with hooks, which takes longer: {problem}"
        if message not in _told:
            _told.add(message)
            warnings.warn(message, stacklevel=_level_outside())
    for activation in frame.activations:
        hook_engine.require_effect(model, runs[0], activation)
    return "hooks"


_told: set[str] = set()


def _level_outside() -> int:
    """At which level of the stack the caller from outside the package stands, for a warning."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith("patchlib."):
        frame, level = frame.f_back, level + 1
    return level


@dataclass(frozen=True)
class _Numbers:
    """What is measured of a sweep so far, wherever it comes from."""

    patched: Float[np.ndarray, "metric prompt draw cell"]
    unpatched: Float[np.ndarray, "run metric prompt draw"]
    done: Bool[np.ndarray, "prompt draw cell"]

    @classmethod
    def of(
        cls, metrics: Sequence[Metric], pairs: PromptPairs, draws: int, frame: Frame
    ) -> _Numbers:
        """Nothing yet; what was not asked for counts as done."""
        # An instance is one prompt under one draw of the noise or of what is put in.
        shape = (len(metrics), len(pairs), draws)
        patched = np.full((*shape, len(frame.asked)), np.nan)
        done = np.broadcast_to(~frame.asked, patched.shape[1:]).copy()
        return cls(patched, np.full((2, *shape), np.nan), done)

    @property
    def left(self) -> int:
        """How many rows are to be measured."""
        return int((~self.done).sum())

    def blocks(self, pairs: PromptPairs, size: int) -> list[Block]:
        """What is left, in blocks of prompts; those of one length lie together."""
        numbers = [number for index, _ in pairs.by_length() for number in index]
        left = [number for number in numbers if not self.done[number].all()]
        rows = (left[start : start + size] for start in range(0, len(left), size))
        return [(some, self.done[some]) for some in rows]

    def enter(self, piece: xr.Dataset) -> int:
        """Takes over one pass; returns how many of its rows are new."""
        at = piece["prompt"].values, piece["draw"].values
        self.unpatched[:, :, at[0], at[1]] = piece["unpatched"].values
        rectangle = at[0][:, None], at[1][:, None], piece["cell"].values
        self.patched[(slice(None), *rectangle)] = piece["patched"].values
        # What several processes kept of one cell counts once.
        new = int((~self.done[rectangle]).sum())
        self.done[rectangle] = True
        return new


@dataclass(frozen=True)
class _Sweep:
    """Runs a frame's cells over prompts of every length and every draw of the noise."""

    model: TransformerBridge
    pairs: PromptPairs
    corruption: Corruption | None
    frame: Frame
    metrics: Sequence[Metric]
    direction: str
    source: Source | None
    engine: str | Engine
    limits: Limits
    checkpoint: Checkpoint | None = None

    def run(self, numbers: _Numbers, advance: Callable[[int], object]) -> xr.Dataset:
        """The numbers, labelled; ``advance`` is called with the number of rows done."""
        self.collect(numbers, advance)
        for piece in self._pieces(numbers.done):
            if self.checkpoint is not None:
                self.checkpoint.save(piece)
            advance(numbers.enter(piece))
        return results.label(
            self.metrics,
            numbers.patched.swapaxes(1, 2),
            numbers.unpatched.swapaxes(2, 3),
            self.frame,
            self.direction if self.corruption is not None else None,
        )

    def collect(self, numbers: _Numbers, advance: Callable[[int], object]) -> None:
        """Takes over the passes that the checkpoint has and ``numbers`` has not."""
        for piece in self.checkpoint.pieces() if self.checkpoint is not None else ():
            advance(numbers.enter(piece))

    def _pieces(self, done: Bool[np.ndarray, "prompt draw cell"]) -> Iterator[xr.Dataset]:
        """Every pass over what is not done yet."""
        for index, group in self.pairs.by_length():
            # What is left of a stopped sweep need not be the same for every instance.
            left: dict[tuple[bytes, object], list[tuple[int, int]]] = {}
            for row, prompt in enumerate(group.prompts):
                kind = sources.kind(self.source, prompt)
                for draw, todo in enumerate(~done[index[row]]):
                    if todo.any():
                        left.setdefault((todo.tobytes(), kind), []).append((row, draw))
            # The noise of all instances that are prepared takes a small part of the budget.
            noise = 4 * len(group.prompts[0].clean) * self.model.cfg.d_model
            at_once = max(1, min(_INSTANCES, self.limits.memory // (16 * noise)))
            for (todo, _), instances in left.items():
                numbers = np.frombuffer(todo, dtype=bool).nonzero()[0].tolist()
                for start in range(0, len(instances), at_once):
                    yield from self._run(group, index, instances[start : start + at_once], numbers)

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
        chosen = [cells[number] for number in numbers]
        taken: Taken | None = None
        if self.source is not None:
            rows, draws = [index[row] for row, _ in instances], [draw for _, draw in instances]
            keep, budget = hook_engine.names_of(chosen), self.limits.memory
            taken = sources.taken(self.model, self.pairs, rows, draws, self.source, keep, budget)
        sweep = ENGINES[self.engine] if isinstance(self.engine, str) else self.engine
        for piece in sweep(
            self.model, prompts, source, destination, chosen, self.metrics, self.limits, taken
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
        clean, corrupted = two_runs(self.model, prompts, None, 0)
        if self.corruption is None:
            return clean, corrupted
        by_draw: dict[int, list[int]] = {}
        for row, draw in enumerate(draws):
            # With several draws of what is put in alone, the noise has one.
            by_draw.setdefault(draw % self.corruption.draws, []).append(row)
        noise = None
        for draw, rows in by_draw.items():
            _, drawn = two_runs(self.model, prompts[rows], self.corruption, draw)
            if drawn.noise is not None:
                if noise is None:
                    # Zero where another draw, or another prompt, has no noise.
                    noise = torch.zeros(len(prompts), *drawn.noise.shape[1:])
                noise[rows] = drawn.noise
        return clean, Run(self.corruption.tokens(prompts), noise)


def _name(model: TransformerBridge, part: Part) -> str:
    """A part by what results call it: key/value head 1 of layer 3 is v3.kv_head1."""
    unit, _ = unit_of(model, part.activation) or ("", 0)
    return str(part).replace(".", ".kv_head") if unit == "kv_head" else str(part)


def _one_or_list(given: Any) -> Any:
    """One position or window as it is, and several as a list, whatever they come in."""
    several = isinstance(given, Iterable) and getattr(given, "shape", None) != ()
    return list(given) if several and not isinstance(given, str) else given

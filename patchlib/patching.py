"""Activation patching: restore one component at a time and see how much of the answer returns.

Three runs (Section 2.1): the clean run, the corrupted run, and patched runs, in which one cell of
activations is taken from the other run. This is the reference engine: hooks on TransformerLens'
own forward pass, several cells to a batch.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis._model_state import require_eval_mode
from transformer_lens.utilities import get_act_name
from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

from patchlib import metrics as metric_definitions
from patchlib.corruption import GN, STR, Corruption
from patchlib.errors import PatchlibError
from patchlib.models import describe
from patchlib.pairs import PromptPairs

COMPONENTS = {"head": "z", "mlp": "mlp_out", "attn": "attn_out", "resid": "resid_pre"}
"""What can be patched, and TransformerLens' name for its activation."""

# Memory that one batch may take for its logits and activations; larger ones are slower on a CPU.
_BATCH_BYTES = 128 * 2**20

# Hooks live on the model: a cell and a widget in another thread must take turns.
_ONE_AT_A_TIME = threading.RLock()

Where = list[tuple[int, ...]]


@dataclass(frozen=True)
class Cell:
    """What one patched run restores.

    Args:
        activation: TransformerLens' short name (``z``, ``v``, ``mlp_out``, ``attn_out``,
            ``resid_pre``).
        at: layers, each with the head or None for a whole layer.
        where: for each prompt the token positions; None for all positions.
    """

    activation: str
    at: tuple[tuple[int, int | None], ...]
    where: Where | None = None

    def measures(self, prompt: int) -> bool:
        """False for a prompt that has no token at the cell's position."""
        return self.where is None or len(self.where[prompt]) > 0


@dataclass(frozen=True)
class Run:
    """One unpatched run on prompts of one length.

    Args:
        tokens: its tokens.
        noise: what is added to the token embeddings, or None.
    """

    tokens: Int[Tensor, "prompt position"]
    noise: Float[Tensor, "prompt position d_model"] | None = None

    def repeat(self, times: int) -> Run:
        """The run with all its prompts repeated."""
        noise = None if self.noise is None else self.noise.repeat(times, 1, 1)
        return Run(self.tokens.repeat(times, 1), noise)

    def rows(self, which: slice) -> Run:
        """Some of its prompts."""
        return Run(self.tokens[which], None if self.noise is None else self.noise[which])


Edit = tuple[str, Callable[[Tensor], Tensor | None]]
"""A hook's full name and a function that returns the activation to go on with."""

Hook = tuple[str | Callable[..., Any], Callable[..., Any]]


class _Fired:
    """Counts how often each hook of a pass fired: every one must fire exactly once."""

    def __init__(self) -> None:
        self.times: dict[str, int] = {}

    def watch(self, name: str, function: Callable[[Tensor], Tensor | None]) -> Hook:
        self.times[name] = 0

        def hook(activation: Tensor, hook: object) -> Tensor | None:
            self.times[name] += 1
            return function(activation)

        return name, hook

    def check(self) -> None:
        wrong = {name: times for name, times in self.times.items() if times != 1}
        if wrong:
            raise PatchlibError(
                f"hooks must fire once in a pass, and these did not: {wrong}. The model has no "
                "such activation or computes it elsewhere; see model.hook_dict for what it has"
            )


def run_with_edits(
    model: TransformerBridge,
    run: Run,
    edits: Sequence[Edit] = (),
    keep: Sequence[str] = (),
) -> tuple[Float[Tensor, "prompt vocab"], dict[str, Tensor]]:
    """One forward pass with noise and edits, every one of which must happen.

    Args:
        model: the model.
        run: tokens and noise.
        edits: pairs of a hook's full name and a function that returns the activation to go on
            with.
        keep: full names of activations to return, as they are after all edits.

    Returns:
        The logits at the last position and the kept activations.

    Raises:
        PatchlibError: where a hook did not fire exactly once.
    """
    fired, kept = _Fired(), {}
    hooks: list[Hook] = []
    if run.noise is not None:
        noise = run.noise.to(model.cfg.device)
        hooks.append(fired.watch("hook_embed", lambda embed: embed + noise.to(embed.dtype)))
    for name, edit in edits:
        hooks.append(fired.watch(name, edit))
    # Hooks on one point run in the order given, so a kept activation includes its edit.
    keepers = _Fired()
    for name in keep:

        def store(activation: Tensor, name: str = name) -> None:
            kept[name] = activation

        hooks.append(keepers.watch(name, store))
    known = model.hook_dict
    for name in (*fired.times, *keepers.times):
        if name not in known:
            raise PatchlibError(
                f"this model has no activation {name!r}; model.hook_dict lists those it has"
            )
    with _ONE_AT_A_TIME, torch.no_grad():
        logits = model.run_with_hooks(run.tokens.to(model.cfg.device), fwd_hooks=hooks)
    fired.check()
    keepers.check()
    return logits[:, -1], kept


def two_runs(
    model: TransformerBridge, pairs: PromptPairs, corruption: Corruption, draw: int
) -> tuple[Run, Run]:
    """The clean and the corrupted run of prompts of one length."""
    corrupted = corruption.tokens(pairs)
    return Run(pairs.clean_tokens), Run(corrupted, corruption.noise(model, pairs, draw))


def restore(
    model: TransformerBridge, source: Run, cells: Sequence[Cell], prompts: range
) -> list[Edit]:
    """The edits that restore cells from a source run, one block of prompts for each cell.

    Args:
        model: the model.
        source: the run that activations are taken from, on these prompts.
        cells: what each block restores.
        prompts: the numbers of the prompts, for the cells' positions.
    """
    names = activations_of(cells)
    _, activations = run_with_edits(model, source, keep=names)
    return _restore(cells, activations, prompts)


def activations_of(cells: Sequence[Cell]) -> list[str]:
    """The full names of all activations that some cells restore."""
    names = (get_act_name(cell.activation, layer) for cell in cells for layer, _ in cell.at)
    return list(dict.fromkeys(names))


def _restore(cells: Sequence[Cell], source: dict[str, Tensor], prompts: range) -> list[Edit]:
    """One edit per activation for a batch made of a block of prompts for each cell."""
    by_name: dict[str, list[tuple[int, int | None, Where | None]]] = {}
    for block, cell in enumerate(cells):
        for layer, head in cell.at:
            name = get_act_name(cell.activation, layer)
            by_name.setdefault(name, []).append((block, head, cell.where))
    size = len(prompts)

    def edit(name: str) -> Callable[[Tensor], Tensor]:
        def write(activation: Tensor) -> Tensor:
            new = activation.clone()
            for block, head, where in by_name[name]:
                mine = new[block * size : (block + 1) * size]
                theirs = source[name]
                if head is not None:
                    mine, theirs = mine[:, :, head], theirs[:, :, head]
                if where is None:
                    mine[:] = theirs
                else:
                    for row, prompt in enumerate(prompts):
                        at = list(where[prompt])
                        mine[row, at] = theirs[row, at]
            return new

        return write

    return [(name, edit(name)) for name in by_name]


def _batch_rows(model: TransformerBridge, length: int, batch_size: int | str) -> int:
    if isinstance(batch_size, int):
        return batch_size
    floats = 3 * model.cfg.d_vocab + 30 * model.cfg.d_model + 4 * model.cfg.n_heads * length
    return max(1, _BATCH_BYTES // (4 * length * floats))


def sweep(
    model: TransformerBridge,
    pairs: PromptPairs,
    source: Run,
    destination: Run,
    cells: Sequence[Cell],
    metrics: Sequence[metric_definitions.Metric],
    batch_size: int | str = "auto",
    advance: Callable[[int], object] = lambda rows: None,
) -> tuple[Float[Tensor, "metric cell prompt"], Float[Tensor, "run metric prompt"]]:
    """Runs every cell on prompts of one length and measures it.

    Args:
        model: the model, in evaluation mode.
        pairs: the prompts, for their answers.
        source: the run that activations are taken from.
        destination: the run that they are put into.
        cells: what each patched run restores.
        metrics: what to measure.
        batch_size: how many rows, a row being one prompt in one cell, a pass may hold.
        advance: called with the number of rows done.

    Returns:
        The metrics of the patched runs, NaN where a prompt has no such position; and of the two
        unpatched runs, source first.
    """
    length = source.tokens.shape[1]
    rows = _batch_rows(model, length, batch_size)
    names = activations_of(cells)
    patched = torch.full((len(metrics), len(cells), len(pairs)), torch.nan, dtype=torch.float64)
    unpatched = torch.full((2, len(metrics), len(pairs)), torch.nan, dtype=torch.float64)
    answers, wrong = pairs.answers, pairs.wrong_answers
    per_pass = min(len(pairs), rows)
    for start in range(0, len(pairs), per_pass):
        prompts = range(start, min(start + per_pass, len(pairs)))
        which = slice(prompts.start, prompts.stop)
        r, r_wrong = answers[which], wrong[which]
        there, activations = run_with_edits(model, source.rows(which), keep=names)
        here, _ = run_with_edits(model, destination.rows(which))
        for m, metric in enumerate(metrics):
            unpatched[0, m, which] = metric.value(there, r, r_wrong, there).double().cpu()
            unpatched[1, m, which] = metric.value(here, r, r_wrong, there).double().cpu()
        together = max(1, rows // len(prompts))
        for first in range(0, len(cells), together):
            chosen = cells[first : first + together]
            logits, _ = run_with_edits(
                model,
                destination.rows(which).repeat(len(chosen)),
                edits=_restore(chosen, activations, prompts),
            )
            logits = logits.view(len(chosen), len(prompts), -1)
            measured = torch.tensor([[cell.measures(p) for p in prompts] for cell in chosen])
            for m, metric in enumerate(metrics):
                values = metric.value(logits, r, r_wrong, there).double().cpu()
                patched[m, first : first + len(chosen), which] = values.masked_fill(
                    ~measured, torch.nan
                )
            advance(len(chosen) * len(prompts))
    return patched, unpatched


def patch(
    model: TransformerBridge,
    pairs: PromptPairs,
    component: str = "head",
    *,
    corruption: Corruption,
    metrics: Sequence[str] = ("logit_diff", "prob", "kl"),
    window: int = 1,
    before: int | None = None,
    positions: str | Sequence[str] = "all",
    direction: str = "denoise",
    keep_prompts: bool = False,
    keep_draws: bool = False,
    batch_size: int | str = "auto",
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
        batch_size: how many rows one pass may hold, a row being one prompt in one cell;
            ``"auto"`` chooses by memory.
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

        over the dimensions ``metric, layer`` and, as asked for, ``head, position, prompt, draw``.
        NaN marks what was not measured. The attributes hold every setting.

    Raises:
        PatchlibError: for settings that make no sense, positions and sites that the task does not
            have, a model in training mode, and hooks that did not fire.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model()
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, component="mlp", corruption=pl.STR("S2"), progress=False)
        >>> dict(fx.effect.sizes)
        {'metric': 3, 'layer': 8}
    """
    _require_sense(model, pairs, corruption, batch_size)
    chosen_metrics = metric_definitions.choose(metrics)
    if direction not in ("denoise", "noise"):
        raise PatchlibError(f"direction={direction!r}: allowed are 'denoise' and 'noise'")
    frame = _frame(model, pairs, component, window, before, positions)
    shape = tuple(map(len, frame.coordinates.values()))
    n_cells = int(np.prod(shape))
    total, done = corruption.draws * len(pairs) * n_cells, 0
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

    with bar:
        data = _measure(
            model, pairs, corruption, frame, chosen_metrics, direction, batch_size, advance
        )
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
        **describe(model),
        "task": pairs.task,
        "task_settings": json.dumps(pairs.settings, sort_keys=True),
        "n_prompts": len(pairs),
        **corruption.describe(),
        "component": component,
        "window": window,
        "window_before": frame.before,
        "positions": positions if isinstance(positions, str) else ", ".join(positions),
        "direction": direction,
        "engine": "hooks",
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
        >>> model = pl.load_model()
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch_together(model, pairs, [(0, 0), (1, 2)], corruption=pl.STR("S2"))
        >>> tuple(fx.effect.dims)
        ('metric',)
    """
    _require_sense(model, pairs, corruption, batch_size)
    cell = heads_cell(model, heads, activation)
    chosen_metrics = metric_definitions.choose(metrics)
    frame = _Frame({"set": ["all"]}, 0, lambda group: [cell])
    data = _measure(model, pairs, corruption, frame, chosen_metrics, "denoise", batch_size)
    return data.mean(("prompt", "draw")).squeeze("set", drop=True)


def heads_cell(model: TransformerBridge, heads: Sequence[tuple[int, int]], activation: str) -> Cell:
    """The cell that restores one activation of several heads at all positions.

    Raises:
        PatchlibError: for an activation that heads do not have, no heads, or unknown ones.
    """
    if activation not in ("z", "q", "k", "v"):
        raise PatchlibError(f"activation={activation!r}: heads have 'z', 'q', 'k' and 'v'")
    n_heads = model.cfg.n_heads
    if activation in ("k", "v"):
        n_heads = getattr(model.cfg, "n_key_value_heads", None) or n_heads
    for layer, head in heads:
        if not (0 <= layer < model.cfg.n_layers and 0 <= head < n_heads):
            raise PatchlibError(
                f"head {layer}.{head} does not exist: {activation} has layers 0 to "
                f"{model.cfg.n_layers - 1} and heads 0 to {n_heads - 1}"
            )
    if not heads:
        raise PatchlibError("no heads were given: give at least one as (layer, head)")
    return Cell(activation, tuple((int(layer), int(head)) for layer, head in heads))


def interval(
    fx: xr.Dataset, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> xr.Dataset:
    """A bootstrap interval of the mean effect over prompts, by TransformerLens' own function.

    Args:
        fx: a result of `patch` with ``keep_prompts=True``.
        confidence: the interval's coverage.
        n_resamples: how many resamples of the prompts.
        seed: seeds the resampling.

    Returns:
        A dataset with the variables ``low`` and ``high``; the normaliser of the logit difference
        is taken as given.

    Raises:
        PatchlibError: where the result holds no values per prompt.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model()
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, "mlp", corruption=pl.STR("S2"), keep_prompts=True,
        ...               progress=False)
        >>> ci = pl.interval(fx)
        >>> bool((ci.low <= fx.effect.mean("prompt")).all())
        True
    """
    if "prompt" not in fx.dims:
        raise PatchlibError(
            "this result holds means over prompts: call pl.patch(..., keep_prompts=True) to keep "
            "one value per prompt"
        )
    if not 0 < confidence < 1 or n_resamples < 1:
        raise PatchlibError(
            f"confidence={confidence}, n_resamples={n_resamples}: confidence must lie between 0 "
            "and 1, and one resample or more is needed"
        )
    effect = fx.effect.transpose(..., "prompt")
    low, high = bootstrap_ci(
        torch.from_numpy(effect.values.copy()),
        confidence=confidence,
        n_resamples=n_resamples,
        generator=derive_generator(seed, "bootstrap"),
    )
    template = effect.isel(prompt=0, drop=True)
    return xr.Dataset(
        {"low": template.copy(data=low.numpy()), "high": template.copy(data=high.numpy())},
        attrs=fx.attrs | {"confidence": confidence},
    )


def _require_sense(
    model: TransformerBridge, pairs: PromptPairs, corruption: Corruption, batch_size: int | str
) -> None:
    if not len(pairs):
        raise PatchlibError("there are no prompts: give at least one")
    if not isinstance(corruption, STR | GN):
        raise PatchlibError(
            f"corruption={corruption!r}: give pl.STR(site) or pl.GN(site), for example pl.STR('S2')"
        )
    is_number = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if batch_size != "auto" and not (is_number and int(batch_size) > 0):
        raise PatchlibError(
            f"batch_size={batch_size!r}: give 'auto' or how many prompts one pass may hold"
        )
    try:
        require_eval_mode(model, operation="activation patching")
    except ValueError as error:
        raise PatchlibError(str(error)) from None


@dataclass(frozen=True)
class _Frame:
    """The cells of a sweep: their coordinates, and how to make them for prompts of one length."""

    coordinates: Mapping[str, Sequence[int | str]]
    before: int
    cells: Callable[[PromptPairs], list[Cell]]


def _frame(
    model: TransformerBridge,
    pairs: PromptPairs,
    component: str,
    window: int,
    before: int | None,
    positions: str | Sequence[str],
) -> _Frame:
    if component not in COMPONENTS:
        raise PatchlibError(f"component={component!r}: allowed are {', '.join(COMPONENTS)}")
    if not positions:
        raise PatchlibError(
            f"positions={positions!r}: give 'all', 'each', a named position or a list of names"
        )
    n_layers = model.cfg.n_layers
    before = _layers_before(window, before, n_layers)
    if component == "head" and window != 1:
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
    coordinates: dict[str, Sequence[int | str]] = {"layer": range(n_layers)}
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

    def around(layer: int) -> range:
        return range(max(0, layer - before), min(n_layers, layer - before + window))

    def cells(group: PromptPairs) -> list[Cell]:
        activation, wheres = COMPONENTS[component], list(places(group))
        return [
            Cell(activation, tuple((near, head) for near in around(layer)), where)
            for layer in range(n_layers)
            for head in heads
            for where in wheres
        ]

    return _Frame(coordinates, before, cells)


def _layers_before(window: int, before: int | None, n_layers: int) -> int:
    if not isinstance(window, int) or not 1 <= window <= n_layers:
        raise PatchlibError(f"window={window}: with {n_layers} layers 1 to {n_layers} are allowed")
    if window % 2 == 0 and before is None:
        raise PatchlibError(
            f"window={window} is even and has no middle layer: state with before= how many of its "
            f"layers lie before layer l; before={window // 2} is what ROME's code does"
        )
    before = window // 2 if before is None else before
    if not 0 <= before < window:
        raise PatchlibError(f"before={before}: a window of {window} allows 0 to {window - 1}")
    return before


def _measure(
    model: TransformerBridge,
    pairs: PromptPairs,
    corruption: Corruption,
    frame: _Frame,
    metrics: Sequence[metric_definitions.Metric],
    direction: str,
    batch_size: int | str,
    advance: Callable[[int], object] = lambda rows: None,
) -> xr.Dataset:
    """Sweeps a frame's cells over prompts of every length and every draw of the noise."""
    n_cells = int(np.prod([len(values) for values in frame.coordinates.values()]))
    patched = np.full((len(metrics), corruption.draws, len(pairs), n_cells), np.nan)
    source = np.full(patched.shape[:3], np.nan)
    destination = source.copy()
    for index, group in pairs.by_length():
        cells = frame.cells(group)
        for draw in range(corruption.draws):
            clean, corrupted = two_runs(model, group, corruption, draw)
            runs = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
            values, unpatched = sweep(model, group, *runs, cells, metrics, batch_size, advance)
            patched[:, draw, index] = values.transpose(1, 2).numpy()
            source[:, draw, index] = unpatched[0].numpy()
            destination[:, draw, index] = unpatched[1].numpy()
    return _dataset(metrics, patched, source, destination, frame.coordinates, direction)


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

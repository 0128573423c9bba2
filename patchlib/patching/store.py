"""Stored sweeps: what `patch` has already measured is read, not measured again.

A stored sweep is a netCDF file in ``data/sweeps/<model>/`` with the metrics of every unpatched and
patched run, for each prompt and draw. Effects are worked out from them anew, so one file serves
every request for some of its prompts, draws, metrics and cells.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Int
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.files import DATA, write_whole
from patchlib.models.loading import describe
from patchlib.patching.checkpoint import fingerprints, hooked, places
from patchlib.patching.frames import Frame
from patchlib.patching.metrics import METRICS, Metric
from patchlib.prompts.corruption import Corruption, is_own
from patchlib.prompts.pairs import PromptPairs

STORED = DATA / "sweeps"
# Digits that are kept: far below what one machine differs from another by, and half the size.
_DIGITS = 6
# What a number does not depend on, or by less than the digits that are compared.
_NO_MATTER = {"device", "patchlib", "torch", "transformers", "transformer_lens", "modules"}
_BASE = ("metric", "prompt", "draw")
# What a number depends on beside model, prompts, draws and cells, by whichever method.
_DECIDES = {"method", "component", "parts", "activation", "receivers", "mlps", "direction"}
_DECIDES |= {"source", "source_prompts", "corruption"}


def keep(path: Path, model: TransformerBridge, pairs: PromptPairs, fx: xr.Dataset) -> None:
    """Writes a result as a stored sweep.

    Args:
        path: the file.
        model: the model of the result, as it was then.
        pairs: its prompts.
        fx: a result of `patchlib.patch` or another method on every head or layer, with
            ``keep_prompts=True`` and ``keep_draws=True``.

    Raises:
        PatchlibError: for a result without values per prompt and draw, of some heads only, or of
            other prompts.
    """
    if not {"prompt", "draw"} <= set(fx.effect.dims) or "heads" in fx.attrs:
        raise PatchlibError(
            "a stored sweep holds every head or layer, prompt and draw: make it with "
            "keep_prompts=True and keep_draws=True, and without heads="
        )
    if fx.attrs["prompts"] != pairs.fingerprint:
        raise PatchlibError("this result is of other prompts: give the prompts it was made from")
    befores = [int(number) for number in str(fx.attrs.get("window_before", 0)).split(", ")]
    data = fx[["patched", "clean", "corrupted"]].drop_vars(["text", "token"], errors="ignore")
    if "window" not in data.dims:
        data = data.assign(patched=data.patched.expand_dims(window=[fx.attrs.get("window", 1)]))
    if "position" not in data.dims:
        data = data.drop_vars("position", errors="ignore")
        data = data.assign(patched=data.patched.expand_dims(position=[fx.attrs["positions"]]))
    data = data.assign_coords(
        before=("window", befores), of_prompt=("prompt", _prompts(pairs, fx.attrs.get("site")))
    )
    data["position"] = data.position.astype(str)
    data.attrs = fx.attrs | {
        "computed": datetime.date.today().isoformat(),
        "fingerprints": json.dumps(_fingerprints(model), sort_keys=True),
    }
    packed = {"dtype": "float32", "zlib": True, "complevel": 9, "shuffle": True}
    packed |= {"significant_digits": _DIGITS, "quantize_mode": "GranularBitRound"}
    encoding = {str(name): packed for name in data.data_vars}
    write_whole(path, partial(data.to_netcdf, encoding=encoding))


def pieces(
    model: TransformerBridge,
    pairs: PromptPairs,
    frame: Frame,
    corruption: Corruption | None,
    metrics: Sequence[Metric],
    draws: int,
    what: Mapping[str, Any],
) -> Iterator[xr.Dataset]:
    """Whatever is stored of a request, in the form of a checkpoint's passes.

    Args:
        model: the model; nothing is stored of one with hooks on it.
        pairs: the prompts.
        frame: the cells.
        corruption: the corruption, where there is one; nothing is stored of somebody's own.
        metrics: what is measured; nothing is stored of somebody's own.
        draws: how many draws there are, of the noise or of what is put in.
        what: the settings of `patchlib.patch` or another method, as its result keeps them.

    Yields:
        Datasets with ``patched``, ``unpatched`` and the coordinates ``prompt``, ``draw``, ``cell``.
        The attribute ``stored`` says when a sweep was computed, by which version and, where that
        is known, in how long.
    """
    if any(metric not in METRICS.values() for metric in metrics):
        return
    asked = {name: what.get(name) for name in _DECIDES}
    if corruption is not None:
        if is_own(corruption):
            return
        own = corruption.describe()
        if "source_draws" not in what:
            own.pop("draws", None)
        asked |= own
    names = _prompts(pairs, None if corruption is None else corruption.site)
    for path in _stored(model, asked):
        data = _load(path, path.stat().st_mtime_ns)
        if {metric.name for metric in metrics} <= set(data.metric.values):
            yield from _overlap(data, names, frame, metrics, draws, what)


def answered(model: TransformerBridge, pairs: PromptPairs) -> Bool[np.ndarray, " prompt"] | None:
    """Which prompts a model answers, as far as a stored sweep kept these and dropped the others.

    Args:
        model: the model; nothing is stored of one with hooks on it.
        pairs: the prompts as they were drawn.

    Returns:
        True for each prompt of the sweep; None where no sweep is stored of such prompts.
    """
    for path in _stored(model, {"task": pairs.task}):
        attributes = _attributes(path, path.stat().st_mtime_ns)
        settings = json.loads(attributes["task_settings"])
        dropped = settings.pop("dropped", None)
        if dropped is None or settings != pairs.settings:
            continue
        data = _load(path, path.stat().st_mtime_ns)
        kept = np.isin(_prompts(pairs, attributes.get("site")), data.of_prompt)
        if kept.sum() + dropped == len(pairs):
            return kept
    return None


def _stored(model: TransformerBridge, asked: Mapping[str, Any]) -> Iterator[Path]:
    """The files of a model as it is now, with some settings; none is loaded for that."""
    facts = describe(model)
    files = sorted((STORED / Path(facts["model"]).name).glob("*.nc"))
    if not files or hooked(model):
        return
    of_model = ("model", "revision", "dtype", "weight_processing")
    wanted = {name: facts[name] for name in of_model} | dict(asked)
    for path in files:
        attributes = _attributes(path, path.stat().st_mtime_ns)
        if any(attributes.get(name) != value for name, value in wanted.items()):
            continue
        theirs, ours = json.loads(attributes["fingerprints"]), _fingerprints(model)
        if any(ours[name] != value for name, value in theirs.items() if name in ours):
            continue
        yield path


def _overlap(
    data: xr.Dataset,
    names: Sequence[str],
    frame: Frame,
    metrics: Sequence[Metric],
    draws: int,
    what: Mapping[str, Any],
) -> Iterator[xr.Dataset]:
    """What one stored sweep holds of a request."""
    known = {name: row for row, name in enumerate(data.of_prompt.values.tolist())}
    rows = [known.get(name) for name in names]
    both = range(min(draws, data.sizes["draw"]))
    found = [(i, row, draw) for i, row in enumerate(rows) if row is not None for draw in both]
    numbers, at = _cells(data, frame, what)
    if not found or not numbers.size:
        return
    data = data.sel(metric=[metric.name for metric in metrics])
    _, prompts, drawn = np.array(found).T
    cells = ["window", *_between(frame), "position"]
    patched = data.patched.transpose(*_BASE, *cells).values[:, prompts, drawn]
    runs = ("clean", "corrupted") if what["direction"] == "denoise" else ("corrupted", "clean")
    unpatched = [data[run].transpose(*_BASE).values[:, prompts, drawn] for run in runs]
    made = f"{data.attrs['computed']} with torch {data.attrs['torch']}"
    made += f", in {data.attrs['seconds']} s" if "seconds" in data.attrs else ""
    yield xr.Dataset(
        {
            "patched": (("metric", "instance", "cell"), patched[(slice(None), slice(None), *at)]),
            "unpatched": (("run", "metric", "instance"), np.stack(unpatched)),
        },
        coords=places([(i, draw) for i, _, draw in found]) | {"cell": numbers},
        attrs={"stored": made}
        | {name: data.attrs[name] for name in ["engine"] if name in data.attrs},
    )


def _cells(
    data: xr.Dataset, frame: Frame, what: Mapping[str, Any]
) -> tuple[Int[np.ndarray, " cell"], tuple[Int[np.ndarray, " cell"], ...]]:
    """The numbers of the request's cells that are stored, and where in the stored array each is."""
    windows = np.atleast_1d(frame.coordinates.get("window", [what.get("window", 1)]))
    befores = [int(number) for number in str(frame.before).split(", ")]
    reach = list(zip(data.window.values.tolist(), data.before.values.tolist(), strict=True))
    labels: list[Sequence[Hashable]] = [list(zip(windows.tolist(), befores, strict=True))]
    stored: list[Sequence[Hashable]] = [reach]
    for dim in _between(frame):
        labels.append(list(frame.coordinates[dim]))
        stored.append(data[dim].values.tolist())
    labels.append([*map(str, frame.coordinates.get("position", [what["positions"]]))])
    stored.append(data.position.values.tolist())
    where = [
        np.array([theirs.index(label) if label in theirs else -1 for label in ours])
        for ours, theirs in zip(labels, stored, strict=True)
    ]
    grids = [grid.ravel() for grid in np.meshgrid(*where, indexing="ij")]
    there = np.all([grid >= 0 for grid in grids], axis=0) & frame.asked
    return np.flatnonzero(there), tuple(grid[there] for grid in grids)


def _between(frame: Frame) -> list[str]:
    """The dimensions of cells but window and position, of which a stored sweep has several."""
    return [dim for dim in frame.coordinates if dim not in ("window", "position")]


def _prompts(pairs: PromptPairs, site: str | None) -> list[str]:
    """What each prompt is known by: its tokens, clean and replaced, answers and positions."""
    return [
        hashlib.sha256(
            json.dumps(
                [
                    prompt.clean,
                    prompt.corrupted.get(site) if site else None,
                    prompt.answers,
                    prompt.wrong_answers,
                    sorted(prompt.positions.items()),
                ]
            ).encode()
        ).hexdigest()[:16]
        for prompt in pairs.prompts
    ]


_FINGERPRINTS: weakref.WeakKeyDictionary[TransformerBridge, tuple[object, dict[str, object]]] = (
    weakref.WeakKeyDictionary()
)


def _fingerprints(model: TransformerBridge) -> dict[str, object]:
    """`fingerprints` of what numbers depend on, once for a model's weights and configuration."""
    config = getattr(model.original_model, "config", None)
    weights = [(part.data_ptr(), part._version) for part in model.parameters()]
    state = weights, repr(vars(model.cfg)), repr(config)
    known = _FINGERPRINTS.get(model)
    if known is None or known[0] != state:
        found = json.loads(json.dumps(fingerprints(model), default=str))
        known = state, {name: value for name, value in found.items() if name not in _NO_MATTER}
        _FINGERPRINTS[model] = known
    return known[1]


@lru_cache(maxsize=256)
def _attributes(path: Path, changed: int) -> dict[str, Any]:
    with xr.open_dataset(path) as data:
        return dict(data.attrs)


@lru_cache(maxsize=8)
def _load(path: Path, changed: int) -> xr.Dataset:
    return xr.load_dataset(path)

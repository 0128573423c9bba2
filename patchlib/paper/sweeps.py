"""Sweeps on a model for which they take long: computed once and shipped.

``data/sweeps/<model>.json`` lists them, ``data/sweeps/<model>/`` holds them; `patchlib.patch` and
the other methods read them by themselves. An entry names the prompts, the ``method`` (``"patch"``
unless it says so; ``"joint"`` is one direction of `patchlib.interactions`) and its arguments.
``python -m patchlib.paper.sweeps`` computes what is missing, ``--verify`` computes everything again
and compares.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib import tasks
from patchlib.errors import PatchlibError
from patchlib.files import BUILD
from patchlib.measure.unpatched import keep_answered
from patchlib.methods.ablation import ablate
from patchlib.methods.circuit import criteria
from patchlib.methods.interactions import joint
from patchlib.methods.paths import direct_effect, path_patch
from patchlib.models.loading import load_model
from patchlib.patching import store
from patchlib.patching.patch import patch
from patchlib.patching.sources import Mean, Resample, Source, Zero, draws_of
from patchlib.prompts.corruption import GN, STR
from patchlib.prompts.pairs import PromptPairs

_METHODS = {
    each.__name__: each for each in (patch, ablate, path_patch, direct_effect, joint, criteria)
}

TOLERANCE = 1e-4
"""How far a stored number may be from one that is computed anew, in the metric's unit or, of
numbers above 1, as a share: of greater-than's answers the logits are summed."""


def listed(model: str) -> dict[str, dict[str, Any]]:
    """The sweeps of a model by name, with their settings; none where nobody listed any."""
    path = store.STORED / f"{model}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def request(
    model: TransformerBridge, name: str
) -> tuple[Callable[..., xr.Dataset], PromptPairs, dict[str, Any]]:
    """The method, the prompts and the method's arguments for one of a model's sweeps.

    Args:
        model: the model.
        name: the sweep, as in `listed`.

    Raises:
        PatchlibError: for a sweep that is not listed.
    """
    all_of_them = listed(str(model.cfg.model_name))
    if name not in all_of_them:
        raise PatchlibError(
            f"no sweep {name!r} of {model.cfg.model_name}: there are "
            f"{', '.join(all_of_them) or 'none'}"
        )
    settings = dict(all_of_them[name])
    pairs = _drawn(model, settings)
    if "corruption" in settings:
        kind, site = settings["corruption"], settings.pop("site")
        settings["corruption"] = (
            STR(site) if kind == "STR" else GN(site, draws=settings.pop("draws"))
        )
    for source in {"source", "with_"} & {*settings}:
        settings[source] = _source(model, pairs, dict(settings[source]))
    return _METHODS[settings.pop("method", "patch")], pairs, settings


def _drawn(model: TransformerBridge, settings: dict[str, Any]) -> PromptPairs:
    """The prompts that an entry names; what names them is taken out of it."""
    draw = getattr(tasks, settings.pop("task"))
    pairs = draw(model, n=settings.pop("n"), **settings.pop("task_settings", {}))
    # Not as the stored sweep says, which is to be made or to be proved.
    answered = settings.pop("answered", False)
    return keep_answered(model, pairs, recompute=True) if answered else pairs


def _source(model: TransformerBridge, pairs: PromptPairs, settings: dict[str, Any]) -> Source:
    """What is put in: zeros, or means of or draws from the patched prompts or others."""
    kind = {"Zero": Zero, "Mean": Mean, "Resample": Resample}[settings.pop("kind")]
    if kind is Zero:
        return Zero()
    others = settings.pop("prompts", None)
    return kind(pairs if others is None else _drawn(model, dict(others)), **settings)


def make(model: TransformerBridge, name: str) -> Path:
    """Computes what is missing of one sweep; a stopped one goes on where it was.

    Args:
        model: the model.
        name: the sweep, as in `listed`.

    Returns:
        The file.
    """
    path = store.STORED / str(model.cfg.model_name) / f"{name}.nc"
    method, pairs, settings = request(model, name)
    source = settings.get("source", settings.get("with_"))
    whole = (len(pairs), draws_of(source, settings.get("corruption")))
    started, folder = time.perf_counter(), BUILD / "sweeps" / path.parent.name / name
    # How long a stopped call took is not known.
    seconds = None if folder.exists() else 0
    if path.exists():
        with xr.open_dataset(path) as data:
            if (data.sizes["prompt"], data.sizes["draw"]) == whole:
                return path
            seconds = None if seconds is None else data.attrs.get("seconds")
    fx = method(model, pairs, **settings, keep_prompts=True, keep_draws=True, checkpoint=folder)
    taken = time.perf_counter() - started
    if seconds is not None:
        fx.attrs["seconds"] = round(seconds + taken)
    store.keep(path, model, pairs, fx)
    # The passes are in the file now, and would refuse a list with more prompts.
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{name}: {len(pairs)} prompts, {taken:.0f} s", flush=True)
    return path


def difference(model: TransformerBridge, name: str, seed: int | None = None) -> float:
    """The largest difference of a stored sweep from what is computed anew.

    Args:
        model: the model.
        name: the sweep, as in `listed`.
        seed: draws two prompts, and two layers or a head of each, to compare; everything where
            None.

    Returns:
        The largest difference of any metric in any run, as `TOLERANCE` has it.

    Raises:
        PatchlibError: where the sweep is not stored as a whole.
    """
    method, pairs, settings = request(model, name)
    if seed is not None:
        draw = np.random.default_rng(seed)
        pairs = pairs[sorted(draw.choice(len(pairs), 2, replace=False))]
        if "component" in settings:
            layers = settings.get("layers", range(model.cfg.n_layers))
            layers = sorted(draw.choice(layers, min(2, len(layers)), replace=False).tolist())
            settings |= {"layers": layers}
        if "positions" in settings:
            # Not every prompt has a token at each, and none is asked for that no prompt has.
            settings["positions"] = [at for at in settings["positions"] if any(pairs.at(at))]
        if settings.get("component") == "head":
            heads = draw.choice(model.cfg.n_heads, len(layers)).tolist()
            settings |= {"heads": list(zip(layers, heads, strict=True))}
    keep: dict[str, Any] = {"keep_prompts": True, "keep_draws": True, "progress": False}
    there = method(model, pairs, **settings, **keep)
    if "stored" not in there.attrs:
        raise PatchlibError(f"{name} is not stored for these settings: run `make sweeps`")
    here = method(model, pairs, **settings, **keep, recompute=True)
    measured = ["patched", "clean", "corrupted"]
    xr.testing.assert_equal(there[measured].isnull(), here[measured].isnull())
    apart = [abs(there[run] - here[run]) / abs(here[run]).clip(min=1) for run in measured]
    return max(float(each.max()) for each in apart)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, and computes or verifies sweeps."""
    parser = argparse.ArgumentParser(
        prog="python -m patchlib.paper.sweeps", description="Compute the stored sweeps."
    )
    parser.add_argument("names", nargs="*", help="sweeps by name; all where none is given")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda")
    parser.add_argument("--verify", action="store_true", help="compute everything and compare")
    chosen = parser.parse_args(arguments)
    model = load_model(chosen.model, device=chosen.device)
    for name in chosen.names or listed(chosen.model):
        if not chosen.verify:
            make(model, name)
            continue
        found = difference(model, name)
        print(f"{name}: largest difference {found:.1e}", flush=True)
        if not found < TOLERANCE:
            raise SystemExit(f"{name} differs by more than {TOLERANCE}")


if __name__ == "__main__":
    main()

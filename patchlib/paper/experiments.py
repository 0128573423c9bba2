"""The paper's experiments as data: how many prompts, which windows, for each of its models.

``data/experiments.json`` holds them, and those of `smollm2` and `mini`. For any other model that
the paper did not use in an experiment, the settings of `mini` apply: the same experiment, on fewer
prompts. A model is known by its architecture, layers, heads and width. `estimate` says how long an
experiment takes before it starts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from patchlib import tasks
from patchlib.errors import PatchlibError, require_bridge
from patchlib.files import DATA
from patchlib.patching.cells import Limits, layers_before
from patchlib.prompts.pairs import PromptPairs, TokenizedPrompt

EXPERIMENTS = DATA / "experiments.json"
# TransformerLens' name of their architecture, layers, heads and width: the paper's models and
# `smollm2`.
SHAPES = {
    ("GPT2LMHeadModel", 12, 12, 768): "gpt2",
    ("GPT2LMHeadModel", 36, 20, 1280): "gpt2-large",
    ("GPT2LMHeadModel", 48, 25, 1600): "gpt2-xl",
    ("GPTJForCausalLM", 28, 16, 4096): "EleutherAI/gpt-j-6b",
    ("TransformerLensNative", 4, 8, 512): "attn-only-4l",
    ("LlamaForCausalLM", 30, 9, 576): "smollm2",
}
# How many prompts of a task stand for all of them.
_SAMPLE = 8
# How much of a bare matrix product's rate a sweep reaches, with all else that it does.
_REACHED = 0.5


def settings(name: str, model: TransformerBridge) -> dict[str, Any]:
    """The settings of one experiment for a model.

    Args:
        name: the experiment, such as ``"5_sliding_window"``.
        model: the model.

    Returns:
        ``task``, ``component``, ``positions``, ``sites``, ``scale``, ``n``, ``draws``,
        ``prepend_bos`` and, for layers, ``window`` and ``before``, as `patchlib.patch` takes them;
        those of `mini` for a model for which the experiment names none. Of several windows
        ``tenth`` is the one nearest to a tenth of the layers, as the paper's 5 of 48 are.

    Raises:
        PatchlibError: for an unknown experiment.

    Example:
        >>> import patchlib as pl
        >>> settings("app_c_arithmetic", pl.load_model("mini"))["positions"]
        'last'
    """
    require_bridge(model)
    everything = json.loads(EXPERIMENTS.read_text(encoding="utf-8"))
    if name not in everything:
        raise PatchlibError(f"no experiment {name!r}: allowed are {', '.join(everything)}")
    entry = everything[name]
    for_models = entry.pop("settings")
    cfg = model.cfg
    shape = (str(cfg.architecture), cfg.n_layers, cfg.n_heads, cfg.d_model)
    found = entry | for_models.get(SHAPES.get(shape), for_models["mini"])
    if isinstance(found.get("window"), list):
        several = [window for window in found["window"] if window > 1]
        found["tenth"] = min(several, key=lambda window: abs(window - cfg.n_layers / 10))
    return found


@dataclass(frozen=True)
class Estimate:
    """About how much an experiment takes; right by its order of magnitude.

    Args:
        seconds: the time.
        bytes: the model's weights and the memory budget, which a run may use up.
    """

    seconds: float
    bytes: int

    def __str__(self) -> str:
        for name, size, smaller in (("day", 86400, 3600), ("hour", 3600, 60), ("minute", 60, 1)):
            # 59.7 seconds would be rounded to 60.
            if round(self.seconds / smaller) * smaller >= size:
                return f"about {_counted(self.seconds / size, name)}, {self._memory}"
        if self.seconds < 1:
            return f"less than a second, {self._memory}"
        return f"about {_counted(self.seconds, 'second')}, {self._memory}"

    @property
    def _memory(self) -> str:
        return f"{self.bytes / 2**30:.1f} GiB"


def estimate(
    model: TransformerBridge,
    name_or_settings: str | Mapping[str, Any],
    rate: float | None = None,
) -> Estimate:
    """About how long one experiment takes and how much memory, before it starts.

    The time is that of the matrix products of the fast engine: for every cell, prompt and draw of
    the noise the layers from the patched one on and the tokens from the first changed one on, for
    token replacement and noise at each of the experiment's sites, and the unpatched runs. Where
    `patchlib.patch` falls back to hooks, it takes several times as long.

    Args:
        model: the model.
        name_or_settings: the experiment's name, or settings in the form of `settings`.
        rate: floating-point operations per second; where None, half of what a matrix product
            reaches, measured in a tenth of a second.

    Raises:
        PatchlibError: for an unknown experiment or task, and where the task does not fit the
            model.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> few = settings("3_1_ioi", model)
        >>> many = few | {"n": 10 * few["n"]}
        >>> round(estimate(model, many, rate=1e9).seconds / estimate(model, few, rate=1e9).seconds)
        10
    """
    chosen = name_or_settings
    if isinstance(chosen, str):
        chosen = settings(chosen, model)
    if chosen["task"] not in tasks.__all__:
        raise PatchlibError(
            f"unknown task {chosen['task']!r}: allowed are {', '.join(tasks.__all__)}"
        )
    draw = getattr(tasks, chosen["task"])
    pairs: PromptPairs = draw(model, n=_SAMPLE, prepend_bos=chosen["prepend_bos"])
    corruptions = 1 + chosen["draws"]
    per_prompt = 0.0
    for site in chosen["sites"]:
        for number, prompt in enumerate(pairs.prompts):
            first = _first_changed(pairs, number, site)
            late = len(prompt.clean) - first
            patched = sum(_late_tokens(prompt, chosen["positions"], first))
            # The clean run is shared by all draws; the corrupted one begins at its first change.
            per_prompt += 2 * len(prompt.clean) * model.cfg.n_layers
            per_prompt += corruptions * late * model.cfg.n_layers
            per_prompt += corruptions * patched * _layers_run(model, chosen)
    operations = 2 * _layer_weights(model) * per_prompt * chosen["n"] / len(pairs)
    weights = sum(part.numel() * part.element_size() for part in model.parameters())
    budget = Limits.of(model, "auto", None).memory
    return Estimate(operations / (rate or _rate(model)), weights + budget)


def _first_changed(pairs: PromptPairs, number: int, site: str) -> int:
    """The first position at which the clean and the corrupted prompt differ."""
    prompt = pairs.prompts[number]
    if site not in prompt.corrupted:
        return min(pairs.at(site)[number])
    both = zip(prompt.clean, prompt.corrupted[site], strict=True)
    return next(place for place, (one, other) in enumerate(both) if one != other)


def _late_tokens(prompt: TokenizedPrompt, positions: Any, first: int) -> Iterator[int]:
    """For each position that is patched, how many tokens a patched run computes."""
    length = len(prompt.clean)
    if positions == "all":
        places: list[tuple[int, ...]] = [tuple(range(length))]
    elif positions == "each":
        places = [(place,) for place in range(length)]
    else:
        names = [positions] if isinstance(positions, str) else positions
        places = [prompt.positions[name] for name in names]
    for place in places:
        changed = [token for token in place if token >= first]
        if changed:
            yield length - min(changed)


def _layers_run(model: TransformerBridge, chosen: Mapping[str, Any]) -> int:
    """How many layers are run for all cells of one position together."""
    n_layers = model.cfg.n_layers
    if chosen["component"] == "head":
        return model.cfg.n_heads * sum(range(1, n_layers + 1))
    windows, befores = chosen.get("window", 1), chosen.get("before")
    windows = [windows] if isinstance(windows, int) else windows
    befores = befores if isinstance(befores, list) else [befores] * len(windows)
    reach = [layers_before(w, b, n_layers) for w, b in zip(windows, befores, strict=True)]
    return sum(n_layers - max(0, layer - before) for before in reach for layer in range(n_layers))


def _layer_weights(model: TransformerBridge) -> int:
    """How many weights of one layer every token meets."""
    cfg = model.cfg
    keys = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    attention = 2 * cfg.d_model * cfg.d_head * (cfg.n_heads + keys)
    if getattr(cfg, "attn_only", False):
        return attention
    matrices = 3 if getattr(cfg, "gated_mlp", False) else 2
    return attention + matrices * cfg.d_model * int(cfg.d_mlp or 0)


def _rate(model: TransformerBridge) -> float:
    """Floating-point operations per second of a sweep, by a matrix product of the model's size."""
    rows, width = 1024, model.cfg.d_model
    weights = torch.ones(width, 4 * width, device=model.cfg.device, dtype=model.cfg.dtype)
    x = weights.new_ones(rows, width)
    done, started = 0, 0.0
    with torch.no_grad():
        float((x @ weights).sum())
        started = time.perf_counter()
        while time.perf_counter() - started < 0.1:
            # Reading a number waits for the device.
            float((x @ weights)[0, 0])
            done += 1
    return _REACHED * done * 2 * rows * width * 4 * width / (time.perf_counter() - started)


def _counted(number: float, name: str) -> str:
    rounded = round(number)
    return f"{rounded} {name}" + ("s" if rounded != 1 else "")

"""The paper's experiments as data: how many prompts, which windows, for each of its models.

``data/experiments.json`` holds them, and those of `smollm2` and `mini`. For any other model that
the paper did not use in an experiment, the settings of `mini` apply: the same experiment, on fewer
prompts. A model is known by its architecture, layers, heads and width. `estimate` says how long an
experiment takes before it starts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from patchlib import tasks
from patchlib.errors import PatchlibError, require_bridge
from patchlib.files import DATA
from patchlib.patching.cells import Limits
from patchlib.patching.duration import operations, spelt
from patchlib.patching.duration import rate as measured_rate
from patchlib.prompts.pairs import PromptPairs

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
        return f"{spelt(self.seconds)}, {self.bytes / 2**30:.1f} GiB"


def estimate(
    model: TransformerBridge,
    name_or_settings: str | Mapping[str, Any],
    rate: float | None = None,
) -> Estimate:
    """About how long one experiment takes and how much memory, before it starts.

    The time is that of `patchlib.patching.duration.operations`, for token replacement and noise at
    each of the experiment's sites.

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
    # Token replacement, and noise.
    total = sum(
        operations(
            model,
            pairs,
            site,
            draws,
            chosen["component"],
            chosen["positions"],
            chosen.get("window", 1),
            chosen.get("before"),
        )
        for site in chosen["sites"]
        for draws in (1, chosen["draws"])
    )
    weights = sum(part.numel() * part.element_size() for part in model.parameters())
    budget = Limits.of(model, "auto", None).memory
    seconds = total * chosen["n"] / len(pairs) / (rate or measured_rate(model))
    return Estimate(seconds, weights + budget)

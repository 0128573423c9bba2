"""How long a sweep takes, before it starts: right by its order of magnitude."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from transformer_lens.model_bridge import TransformerBridge

from patchlib.patching.cells import COMPONENTS, layers_before, unit_of
from patchlib.prompts.pairs import PromptPairs, TokenizedPrompt

# How much of a bare matrix product's rate a sweep reaches, with all else that it does.
_REACHED = 0.5


def operations(
    model: TransformerBridge,
    pairs: PromptPairs,
    site: str,
    draws: int,
    component: str,
    positions: str | Sequence[str],
    window: int | Sequence[int] = 1,
    before: int | Sequence[int | None] | None = None,
) -> float:
    """Floating-point operations of a sweep's matrix products in the fast engine.

    They are, for every cell, prompt and draw of the noise, those of the layers from the patched one
    on and the tokens from the first changed one on, and of the unpatched runs. Where
    `patchlib.patch` falls back to hooks, it takes several times as long.

    Args:
        model: the model.
        pairs: the prompts.
        site: where they are corrupted.
        draws: over how many draws of the noise; 1 for token replacement.
        component: as in `patchlib.patch`, as the others.
        positions: what is restored.
        window: how many layers at once, or several windows.
        before: how many of a window's layers lie before its own; one for each window.
    """
    n_layers, total = model.cfg.n_layers, 0
    layers = _layers_run(model, component, window, before)
    for number, prompt in enumerate(pairs.prompts):
        first = _first_changed(pairs, number, site)
        # The clean run is shared by all draws; the corrupted one begins at its first change.
        corrupted = (len(prompt.clean) - first) * n_layers
        patched = sum(_late_tokens(prompt, positions, first)) * layers
        total += len(prompt.clean) * n_layers + draws * (corrupted + patched)
    return 2.0 * layer_weights(model) * total


def layer_weights(model: TransformerBridge) -> int:
    """How many weights of one layer every token meets."""
    cfg = model.cfg
    keys = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    attention = 2 * cfg.d_model * cfg.d_head * (cfg.n_heads + keys)
    if getattr(cfg, "attn_only", False):
        return int(attention)
    matrices = 3 if getattr(cfg, "gated_mlp", False) else 2
    return int(attention + matrices * cfg.d_model * int(cfg.d_mlp or 0))


def rate(model: TransformerBridge) -> float:
    """Floating-point operations per second of a sweep, by a tenth of a second of products."""
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


def spelt(seconds: float) -> str:
    """A time in words, to the nearest second, minute, hour or day.

    Args:
        seconds: the time.

    Example:
        >>> spelt(150), spelt(0.2)
        ('about 2 minutes', 'less than a second')
    """
    if seconds < 1:
        return "less than a second"
    for name, size, smaller in (("day", 86400, 3600), ("hour", 3600, 60), ("minute", 60, 1)):
        # 59.7 seconds would be rounded to 60.
        if round(seconds / smaller) * smaller >= size:
            return f"about {_counted(seconds / size, name)}"
    return f"about {_counted(seconds, 'second')}"


def _first_changed(pairs: PromptPairs, number: int, site: str) -> int:
    """The first position at which the clean and the corrupted prompt differ."""
    prompt = pairs.prompts[number]
    if site not in prompt.corrupted:
        return min(pairs.at(site)[number])
    both = zip(prompt.clean, prompt.corrupted[site], strict=True)
    return next(place for place, (one, other) in enumerate(both) if one != other)


def _late_tokens(
    prompt: TokenizedPrompt, positions: str | Sequence[str], first: int
) -> Iterator[int]:
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


def _layers_run(
    model: TransformerBridge,
    component: str,
    window: int | Sequence[int],
    before: int | Sequence[int | None] | None,
) -> int:
    """How many layers are run for all cells of one position together."""
    n_layers = model.cfg.n_layers
    unit = unit_of(model, COMPONENTS[component])
    if unit is not None:
        return unit[1] * sum(range(1, n_layers + 1))
    windows = [window] if isinstance(window, int) else window
    befores = [before] * len(windows) if isinstance(before, int | None) else before
    reach = [layers_before(w, b, n_layers) for w, b in zip(windows, befores, strict=True)]
    return sum(n_layers - max(0, layer - back) for back in reach for layer in range(n_layers))


def _counted(number: float, name: str) -> str:
    rounded = round(number)
    return f"{rounded} {name}" + ("s" if rounded != 1 else "")

"""One forward pass through TransformerLens' own model, with noise, edits and kept activations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis._model_state import require_eval_mode

from patchlib.errors import PatchlibError, require_bridge, whole
from patchlib.patching.cells import Limits
from patchlib.prompts.corruption import Corruption, is_own
from patchlib.prompts.pairs import PromptPairs

# Hooks live on the model: a cell and a widget in another thread must take turns.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Run:
    """One unpatched run on prompts of one length.

    Args:
        tokens: its tokens.
        noise: what is added to the token embeddings, or None.
    """

    tokens: Int[Tensor, "prompt position"]
    noise: Float[Tensor, "prompt position d_model"] | None = None

    def distinct(self) -> tuple[Run, Int[Tensor, " prompt"]]:
        """The run without repeated prompts, and for each of its prompts the one that is kept."""
        if self.noise is None:
            tokens, back = torch.unique(self.tokens, dim=0, return_inverse=True)
            if len(tokens) < len(back):
                return Run(tokens), back
        return self, torch.arange(len(self.tokens))

    def differs_from(self, other: Run) -> Bool[Tensor, "prompt position"]:
        """Where two runs' inputs differ."""
        differ = self.tokens != other.tokens
        for mine, theirs in ((self.noise, other.noise), (other.noise, self.noise)):
            if mine is not None:
                known = torch.zeros_like(mine) if theirs is None else theirs
                differ = differ | (mine != known).any(dim=-1)
        return differ

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
        self.times: list[int] = []
        self.names: list[str] = []

    def watch(self, name: str, function: Callable[[Tensor], Tensor | None]) -> Hook:
        number = len(self.names)
        self.names.append(name)
        self.times.append(0)

        def hook(activation: Tensor, hook: object) -> Tensor | None:
            self.times[number] += 1
            return function(activation)

        return name, hook

    def check(self) -> None:
        both = zip(self.names, self.times, strict=True)
        wrong = {name: times for name, times in both if times != 1}
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
    gradients: bool = False,
) -> tuple[Float[Tensor, "prompt vocab"], dict[str, Tensor]]:
    """One forward pass with noise and edits, every one of which must happen.

    Args:
        model: the model.
        run: tokens and noise.
        edits: pairs of a hook's full name and a function that returns the activation to go on
            with; several edits of one activation follow each other.
        keep: full names of activations to return, as they are after all edits.
        gradients: whether the logits can be differentiated.

    Returns:
        The logits at the last position and the kept activations.

    Raises:
        PatchlibError: where a hook did not fire exactly once, and for a model in training mode,
            whose dropout would make every run another one.
    """
    require_evaluation(model)
    fired, kept = _Fired(), {}
    hooks: list[Hook] = []
    if run.noise is not None:
        noise = run.noise.to(model.cfg.device)
        hooks.append(fired.watch("hook_embed", lambda embed: embed + noise.to(embed.dtype)))
    hooks += [fired.watch(name, edit) for name, edit in edits]
    # Hooks on one point run in the order given, so a kept activation includes its edits.
    for name in keep:

        def store(activation: Tensor, name: str = name) -> None:
            kept[name] = activation

        hooks.append(fired.watch(name, store))
    known = model.hook_dict
    for name in fired.names:
        if name not in known:
            raise PatchlibError(
                f"this model has no activation {name!r}; model.hook_dict lists those it has"
            )
    last: dict[str, Any] = {"logits_to_keep": 1} if _gives_last_logits(model) else {}
    with _ONE_AT_A_TIME, torch.set_grad_enabled(gradients):
        logits = model.run_with_hooks(run.tokens.to(model.cfg.device), fwd_hooks=hooks, **last)
        # A copy, so that other positions' logits are not held in memory with it.
        last_logits = logits[:, -1].clone()
    fired.check()
    return last_logits, kept


def require_evaluation(model: TransformerBridge) -> None:
    """Refuses a model in training mode.

    Raises:
        PatchlibError: for such a model, and for one that TransformerLens does not hold.
    """
    require_bridge(model)
    try:
        require_eval_mode(model, operation="activation patching")
    except ValueError as error:
        raise PatchlibError(str(error)) from None


def require_corruption(
    model: TransformerBridge, pairs: PromptPairs, corruption: Corruption
) -> None:
    """Refuses what is no corruption, and one of somebody's own that cannot be relied on.

    Raises:
        PatchlibError: for such a corruption: no whole number of draws, nothing that it does, or
            something else at every call.
    """
    if not isinstance(corruption, Corruption):
        raise PatchlibError(
            f"corruption={corruption!r}: give pl.STR(site), pl.GN(site) or a pl.Corruption of your "
            "own, for example pl.STR('S2')"
        )
    whole("draws", corruption.draws, 1)
    kind = type(corruption)
    if kind.tokens is Corruption.tokens and kind.noise is Corruption.noise:
        raise PatchlibError(
            f"{kind.__name__} corrupts nothing: define tokens(self, pairs) or noise(self, model, "
            "pairs, draw), as pl.Corruption describes them"
        )
    if not is_own(corruption):
        return
    _, group = next(pairs.by_length())
    # Alone or after another prompt, in this pass or in a later one.
    second = group[:2][[-1]]
    _, alone = two_runs(model, second, corruption, 0)
    among = two_runs(model, group[:2], corruption, 0)[1].rows(slice(-1, None))
    if alone.differs_from(among).any():
        raise PatchlibError(
            f"{kind.__name__} does not corrupt {second.texts[0]!r} in the same way twice: what it "
            "does must depend on the prompt and the draw alone; seed a generator for each prompt, "
            "as in torch.Generator().manual_seed(draw)"
        )


def two_runs(
    model: TransformerBridge, pairs: PromptPairs, corruption: Corruption | None, draw: int
) -> tuple[Run, Run]:
    """The clean and the corrupted run of prompts of one length; twice the clean one without
    corruption.

    Raises:
        PatchlibError: for a corruption whose tokens or noise have another shape than the prompts,
            and for noise that is NaN.
    """
    clean = pairs.clean_tokens
    if corruption is None:
        return Run(clean), Run(clean)
    tokens, noise = corruption.tokens(pairs), corruption.noise(model, pairs, draw)
    wanted = (*clean.shape, model.cfg.d_model)
    for name, given, shape in (("tokens", tokens, clean.shape), ("noise", noise, wanted)):
        if getattr(given, "shape", None) != shape and not (name == "noise" and given is None):
            found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise PatchlibError(
                f"{type(corruption).__name__} gave {found} as {name}: these prompts need a tensor "
                f"of shape {tuple(shape)}"
            )
    if noise is not None and not noise.isfinite().all():
        raise PatchlibError(f"{type(corruption).__name__} gave noise that is NaN or infinite")
    return Run(clean), Run(tokens, noise)


def require_prompts(model: TransformerBridge, pairs: PromptPairs) -> None:
    """Refuses what are no prompts, and prompts in the tokens of another model.

    Raises:
        PatchlibError: for such prompts.
    """
    require_bridge(model)
    if not isinstance(pairs, PromptPairs) or not len(pairs):
        given = "" if isinstance(pairs, PromptPairs) else f" in a {type(pairs).__name__}"
        raise PatchlibError(
            f"there are no prompts{given}: give PromptPairs with at least one, from a task such as "
            "pl.tasks.ioi(model) or from pl.PromptPairs.from_table(model, ...)"
        )
    first = pairs.prompts[0]
    words = tuple(model.tokenizer.batch_decode([[token] for token in first.clean]))
    if first.words and first.words != words:
        raise PatchlibError(
            f"the tokens of {first.text!r} are not those of {model.cfg.model_name}, for which they "
            f"would be {''.join(words)!r}: make the prompts anew with this model"
        )


def _gives_last_logits(model: TransformerBridge) -> bool:
    return "logits_to_keep" in signature(model.original_model.forward).parameters


def row_bytes(model: TransformerBridge, length: int, kept: int = 0) -> int:
    """What one prompt of a length takes in TransformerLens' own forward pass and its metrics.

    Args:
        model: the model.
        length: how many tokens.
        kept: how many numbers of every position are kept.
    """
    positions = 1 if _gives_last_logits(model) else length
    floats = length * (30 * model.cfg.d_model + 4 * model.cfg.n_heads * length + kept)
    floats += (8 + positions) * model.cfg.d_vocab
    return max(4, model.cfg.dtype.itemsize) * floats


def batches(
    model: TransformerBridge,
    pairs: PromptPairs,
    memory_budget: float | None = None,
    kept: int = 0,
) -> Iterator[tuple[list[int], PromptPairs]]:
    """Prompts of one length at a time, as many as fit into the memory budget.

    Args:
        model: the model that will run them.
        pairs: prompts of any lengths.
        memory_budget: as in `patchlib.patch`.
        kept: how many numbers of every position the caller keeps of a run.

    Yields:
        The numbers of the prompts, and the prompts.

    Raises:
        PatchlibError: for what are no prompts of this model, and for a budget that is no positive
            number, or too small for one prompt.
    """
    require_prompts(model, pairs)
    memory = Limits.of(model, "auto", memory_budget).memory
    for index, group in pairs.by_length():
        length = len(group.prompts[0].clean)
        row = row_bytes(model, length, kept)
        if row > memory:
            raise PatchlibError(
                f"memory_budget={memory}: one prompt of {length} tokens needs {row} bytes; give "
                f"memory_budget={row} or more"
            )
        size = memory // row
        for start in range(0, len(group), size):
            yield index[start : start + size], group[start : start + size]

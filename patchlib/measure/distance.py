"""How far corrupted activations lie from the clean distribution, layer by layer (Section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from numbers import Real

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError, names_in
from patchlib.patching.cells import Limits
from patchlib.patching.metrics import require_finite
from patchlib.patching.runs import (
    Run,
    batches,
    require_corruption,
    require_prompts,
    row_bytes,
    run_with_edits,
    two_runs,
)
from patchlib.patching.settings import of_result
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs

ACTIVATIONS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""What can be measured: one vector of the model's width for each layer and token."""

Vectors = Float[np.ndarray, "layer position prompt d_model"]


def ood(
    model: TransformerBridge,
    pairs: PromptPairs,
    corruption: Corruption,
    positions: str | Sequence[str] | None = None,
    activation: str = "resid_post",
    reference: PromptPairs | None = None,
    shrinkage: float | None = None,
    memory_budget: float | None = None,
) -> xr.Dataset:
    """Measures the Mahalanobis distance of corrupted activations from the clean distribution.

    The mean and the covariance are those of clean prompts, one layer and position at a time. The
    control is the distance of clean prompts that the fit has not seen: what a corruption adds is
    what lies above it. Nor has the fit seen a corrupted prompt as the clean one of another pair,
    and a prompt that is there several times counts once in it. There are seldom more prompts than
    the model is wide, so that the sample covariance cannot be inverted; it is drawn towards a
    multiple of the identity, by as much as Ledoit & Wolf (2004) work out from the sample. The
    distance then counts directions in which clean prompts do not vary, too.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of one length.
        corruption: `STR`, `GN` or one of your own.
        positions: a named position, or several, each separately, that are one token in every
            prompt; where None the corruption's site, or ``"last"`` where that is not one token.
        activation: which activation of each layer; one of `ACTIVATIONS`.
        reference: clean prompts to fit to, as long as ``pairs`` and none of them the same, clean
            or corrupted. Where None, ``pairs`` are split in two halves, and each half is measured
            by what was fitted to the other. Prompts that are copies of each other, or one the
            corrupted version of the other, are in one half.
        shrinkage: how far the covariance is drawn towards the identity, from 0 (the sample's own
            covariance, which leaves the distance as it is under any invertible affine map of the
            activations) to 1; Ledoit and Wolf's where None.
        memory_budget: as in `patchlib.patch`; covariances come on top.

    Returns:
        A dataset with the variables

        * ``clean``, the control's distances, over the dimensions ``layer, prompt``;
        * ``corrupted``, over ``layer, draw, prompt`` (one draw for `STR`);
        * ``shrinkage``, over ``layer``, as it was used (the mean of the two halves);

        all with ``position`` after ``layer`` where several were asked for. Distances are divided
        by the mean distance of the control, so that the control is 1 on average. The attributes
        hold every setting.

    Raises:
        PatchlibError: for prompts of several lengths, a reference of another length, positions of
            several tokens, an unknown activation, too few prompts, a reference that holds some of
            the prompts, prompts that are all versions of each other, a covariance that cannot be
            inverted, and a memory budget that is too small for one layer.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> far = pl.ood(model, pl.tasks.ioi(model, n=20), pl.GN("S2", draws=2))
        >>> dict(far.corrupted.sizes)
        {'layer': 8, 'draw': 2, 'prompt': 20}
        >>> bool((far.corrupted.mean() > far.clean.mean()).item())
        True
    """
    require_prompts(model, pairs)
    require_corruption(model, pairs, corruption)
    if reference is not None:
        require_prompts(model, reference)
    if activation not in ACTIVATIONS:
        raise PatchlibError(f"activation={activation!r}: allowed are {', '.join(ACTIVATIONS)}")
    if shrinkage is not None and not (isinstance(shrinkage, Real) and 0 <= shrinkage <= 1):
        raise PatchlibError(f"shrinkage={shrinkage!r}: allowed are None and numbers from 0 to 1")
    _require_lengths(pairs, reference)
    if positions is None:
        positions = _site(pairs, corruption)
    names = names_in("positions", positions)
    if not names:
        raise PatchlibError("positions=[]: give a named position, or None for the corrupted one")

    folds = _folds(pairs, corruption, reference)
    draws = (None, *range(corruption.draws))
    n_layers, width = int(model.cfg.n_layers), int(model.cfg.d_model)
    values = np.empty((len(draws), n_layers, len(names), len(pairs)))
    used = np.empty((len(folds), n_layers, len(names)))
    memory = Limits.of(model, "auto", memory_budget).memory
    # What one layer leaves behind, in double precision, with a copy of what is measured; and what
    # it takes of a run.
    left = 12 * len(names) * width * (len(draws) * len(pairs) + len(reference or ()))
    length = len(pairs.prompts[0].clean)
    run, layer = row_bytes(model, length), left + 4 * length * width
    if memory < run + layer:
        raise PatchlibError(
            f"memory_budget={memory}: the activations of one layer of {len(pairs)} prompts need "
            f"{run + layer} bytes; give memory_budget={run + layer} or more, or fewer prompts"
        )
    at_once = min(n_layers, max(1, (memory - run) // (2 * layer)))
    for start in range(0, n_layers, at_once):
        layers = range(n_layers)[start : start + at_once]
        hooks = [get_act_name(activation, layer) for layer in layers]
        what = corruption, hooks, names, memory - at_once * left
        runs = [_vectors(model, pairs, draw, *what) for draw in draws]
        clean = runs[0] if reference is None else _vectors(model, reference, None, *what)
        for (number, (fitted, measured)), (row, layer), place in product(
            enumerate(folds), enumerate(layers), range(len(names))
        ):
            values[:, layer, place, measured], used[number, layer, place] = distance(
                np.stack([run[row, place][measured] for run in runs]),
                clean[row, place][fitted],
                shrinkage,
            )
    control = values[0].mean(-1)
    if not (control > 0).all():
        raise PatchlibError(
            "all clean prompts have the same activation somewhere, and nothing is a distance there:"
            f" choose a later position than {', '.join(names)}, another activation or other prompts"
        )
    values /= control[..., None]
    fitted_to = {} if reference is None else {"reference": reference.fingerprint}
    data = xr.Dataset(
        {
            "clean": (("layer", "position", "prompt"), values[0]),
            "corrupted": (
                ("layer", "position", "draw", "prompt"),
                values[1:].transpose(1, 2, 0, 3),
            ),
            "shrinkage": (("layer", "position"), used.mean(0)),
        },
        coords={"layer": range(n_layers), "position": names},
        attrs=of_result(
            model,
            pairs,
            corruption,
            what={
                "n_fitted": len(folds[0][0]),
                **fitted_to,
                "activation": activation,
                "asked_shrinkage": "Ledoit and Wolf" if shrinkage is None else float(shrinkage),
                "distance": "Mahalanobis, over the mean of the control",
            },
        ),
    )
    return data.squeeze("position") if isinstance(positions, str) else data


def distance(
    points: Float[np.ndarray, "*batch point dimension"],
    sample: Float[np.ndarray, "observation dimension"],
    shrinkage: float | None = None,
) -> tuple[Float[np.ndarray, "*batch point"], float]:
    """The Mahalanobis distance of points from a sample.

    Args:
        points: what to measure.
        sample: gives mean and covariance.
        shrinkage: as in `ood`.

    Returns:
        The distances, and the shrinkage that was used.

    Raises:
        PatchlibError: for fewer than two observations, and without shrinkage for a covariance
            that cannot be inverted.

    Example:
        >>> sample = np.array([[-1.0, 0], [1, 0], [0, -1], [0, 1]])
        >>> far, shrinkage = distance(np.array([[3.0, 4]]), sample, shrinkage=0.0)
        >>> float(round(far[0] ** 2, 6))  # each variance is 1/2
        50.0
    """
    n, width = sample.shape
    if n < 2:
        raise PatchlibError(
            f"a covariance of {n} prompt{'' if n == 1 else 's'}: at least 2 are needed to fit, and "
            "many more to mean something; give more prompts or a reference"
        )
    centre = sample.mean(0)
    centred = sample - centre
    if shrinkage is None:
        shrinkage = ledoit_wolf(centred)
    # Fewer observations than dimensions leave most directions without any variance of their own;
    # the singular values come without these, and in a fortieth of the time.
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    scale = (lengths**2).sum() / n / width
    if scale == 0:
        return np.zeros(points.shape[:-1]), shrinkage
    # Rounding leaves a little of what should be nothing.
    lengths = np.where(lengths > lengths[0] * n * np.finfo(float).eps, lengths, 0.0)
    if shrinkage == 0 and np.count_nonzero(lengths) < width:
        raise PatchlibError(
            f"shrinkage=0: the covariance of {n} prompts in {width} dimensions cannot be inverted; "
            "give more prompts than dimensions, or shrinkage=None"
        )
    away = points - centre
    along = away @ directions.T
    squares = (along**2 / ((1 - shrinkage) * lengths**2 / n + shrinkage * scale)).sum(-1)
    if shrinkage:
        rest = ((away - along @ directions) ** 2).sum(-1)
        squares = squares + rest / (shrinkage * scale)
    return np.sqrt(squares), shrinkage


def ledoit_wolf(centred: Float[np.ndarray, "observation dimension"]) -> float:
    """Ledoit and Wolf's (2004) estimate of the shrinkage that makes the covariance most exact.

    The error of the sample covariance, over its distance from a multiple of the identity, both in
    the Frobenius norm; at most 1.

    Args:
        centred: the observations, less their mean.
    """
    n, width = centred.shape
    # The covariance S, and the observations' products, have one trace and one norm: the smaller.
    products = (centred @ centred.T if n < width else centred.T @ centred) / n
    squares = (products**2).sum()
    # The mean of |xxᵀ - S|² over observations is the mean of |x|⁴, less |S|².
    error = (((centred**2).sum(1) ** 2).mean() - squares) / n
    dispersion = squares - np.trace(products) ** 2 / width
    return 1.0 if dispersion <= 0 else float(min(max(error, 0.0), dispersion) / dispersion)


def _folds(
    pairs: PromptPairs, corruption: Corruption, reference: PromptPairs | None
) -> list[tuple[list[int], list[int]]]:
    """Which clean prompts are fitted to, each once, and which prompts that fit measures."""
    clean = [prompt.clean for prompt in pairs.prompts]
    corrupted = [tuple(row) for row in corruption.tokens(pairs).tolist()]
    if reference is not None:
        first = {prompt.clean: number for number, prompt in enumerate(reference.prompts)}
        shared = sum(a in first or b in first for a, b in zip(clean, corrupted, strict=True))
        if shared:
            raise PatchlibError(
                f"{shared} of {len(pairs)} prompts are in the reference, clean or corrupted, and "
                "what is measured must not be fitted to: draw all prompts at once, split them, as "
                "in everything[:100] and everything[100:], and leave out such prompts"
            )
        return [(list(first.values()), list(range(len(pairs))))]
    linked: dict[tuple[int, ...], set[tuple[int, ...]]] = {tokens: set() for tokens in clean}
    for one, other in zip(clean, corrupted, strict=True):
        if other in linked:
            linked[one].add(other)
            linked[other].add(one)
    halves: tuple[set, set] = set(), set()
    for tokens in linked:
        if tokens not in halves[0] | halves[1]:
            group = {tokens}
            while more := set().union(*(linked[one] for one in group)) - group:
                group |= more
            min(halves, key=len).update(group)
    if min(map(len, halves)) < 2:
        raise PatchlibError(
            f"{len(pairs)} prompts, {len(linked)} of them different: at least 4 are needed for two "
            "halves with a covariance, of which none is the corrupted version of one in the other "
            "half; give more, or a reference"
        )
    numbers = [[i for i, tokens in enumerate(clean) if tokens in half] for half in halves]
    once = [sorted({clean[i]: i for i in reversed(half)}.values()) for half in numbers]
    return [(once[1], numbers[0]), (once[0], numbers[1])]


def _vectors(
    model: TransformerBridge,
    pairs: PromptPairs,
    draw: int | None,
    corruption: Corruption,
    hooks: Sequence[str],
    names: Sequence[str],
    memory_budget: int,
) -> Vectors:
    """Activations at named positions, of the clean run or of one draw of the corrupted one."""
    at = torch.tensor([_tokens(pairs, name) for name in names])
    found = np.empty((len(hooks), len(names), len(pairs), model.cfg.d_model))
    for rows, some in batches(model, pairs, memory_budget, len(hooks) * model.cfg.d_model):
        run = Run(some.clean_tokens) if draw is None else two_runs(model, some, corruption, draw)[1]
        logits, kept = run_with_edits(model, run, keep=hooks)
        require_finite(logits, some.texts)
        for number, name in enumerate(hooks):
            found[number][:, rows] = kept[name][range(len(rows)), at[:, rows]].double().cpu()
    return found


def _tokens(pairs: PromptPairs, name: str) -> list[int]:
    places = pairs.at(name)
    several = next((len(place) for place in places if len(place) != 1), None)
    if several is not None:
        raise PatchlibError(
            f"position {name!r} has {several} tokens in a prompt, and a distance needs one vector: "
            "give a position of one token, or a list of several"
        )
    return [place[0] for place in places]


def _site(pairs: PromptPairs, corruption: Corruption) -> str:
    parts = set(corruption.site.split("+"))
    known = parts <= set(pairs.prompts[0].positions)
    single = known and all(len(place) == 1 for place in pairs.at(corruption.site))
    return corruption.site if single else "last"


def _require_lengths(pairs: PromptPairs, reference: PromptPairs | None) -> None:
    both = [*pairs.prompts, *(() if reference is None else reference.prompts)]
    lengths = sorted({len(prompt.clean) for prompt in both})
    if len(lengths) != 1:
        raise PatchlibError(
            f"these prompts have {', '.join(map(str, lengths)) or 'no'} tokens: a distribution is "
            "fitted to prompts of one length; measure each group of pairs.by_length()"
        )

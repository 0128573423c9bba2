"""How far corrupted activations lie from the clean distribution, layer by layer (Section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from patchlib.errors import PatchlibError
from patchlib.models.loading import describe
from patchlib.prompts.corruption import GN, STR, Corruption
from patchlib.prompts.pairs import PromptPairs
from patchlib.sweep.runs import Run, run_with_edits, two_runs

ACTIVATIONS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""What can be measured: one vector of the model's width for each layer and token."""

_ROWS = 64

Vectors = Float[np.ndarray, "layer position prompt d_model"]


def ood(
    model: TransformerBridge,
    pairs: PromptPairs,
    corruption: Corruption,
    positions: str | Sequence[str] | None = None,
    activation: str = "resid_post",
    reference: PromptPairs | None = None,
    shrinkage: float | None = None,
) -> xr.Dataset:
    """Measures the Mahalanobis distance of corrupted activations from the clean distribution.

    The mean and the covariance are those of clean prompts, one layer and position at a time. The
    control is the distance of clean prompts that the fit has not seen: what a corruption adds is
    what lies above it. There are seldom more prompts than the model is wide, so that the sample
    covariance cannot be inverted; it is drawn towards a multiple of the identity, by as much as
    Ledoit & Wolf (2004) work out from the sample. The distance then counts directions in which
    clean prompts do not vary, too.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of one length.
        corruption: `STR` or `GN`.
        positions: a named position, or several, each separately, that are one token in every
            prompt; where None the corruption's site, or ``"last"`` where that is not one token.
        activation: which activation of each layer; one of `ACTIVATIONS`.
        reference: clean prompts to fit to, as long as ``pairs`` and none of them the same. Where
            None, ``pairs`` are split in two halves, and each half is measured by what was fitted
            to the other.
        shrinkage: how far the covariance is drawn towards the identity, from 0 (the sample's own
            covariance, which leaves the distance as it is under any invertible affine map of the
            activations) to 1; Ledoit and Wolf's where None.

    Returns:
        A dataset with the variables

        * ``clean``, the control's distances, over the dimensions ``layer, prompt``;
        * ``corrupted``, over ``layer, draw, prompt`` (one draw for `STR`);
        * ``shrinkage``, over ``layer``, as it was used (the mean of the two halves);

        all with ``position`` after ``layer`` where several were asked for. Distances are divided
        by the mean distance of the control, so that the control is 1 on average.

    Raises:
        PatchlibError: for prompts of several lengths, a reference of another length, positions of
            several tokens, an unknown activation, too few prompts, a reference that holds some of
            the prompts, and a covariance that cannot be inverted.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> far = pl.ood(model, pl.tasks.ioi(model, n=20), pl.GN("S2", draws=2))
        >>> dict(far.corrupted.sizes)
        {'layer': 8, 'draw': 2, 'prompt': 20}
        >>> bool((far.corrupted.mean() > far.clean.mean()).item())
        True
    """
    if not isinstance(corruption, STR | GN):
        raise PatchlibError(f"corruption={corruption!r}: give pl.STR(site) or pl.GN(site)")
    if activation not in ACTIVATIONS:
        raise PatchlibError(f"activation={activation!r}: allowed are {', '.join(ACTIVATIONS)}")
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise PatchlibError(f"shrinkage={shrinkage}: allowed are None and numbers from 0 to 1")
    _require_lengths(pairs, reference)
    if positions is None:
        positions = _site(pairs, corruption)
    names = [positions] if isinstance(positions, str) else list(positions)
    if not names:
        raise PatchlibError("positions=[]: give a named position, or None for the corrupted one")

    # Which prompts are measured by what was fitted to which others.
    rows = np.arange(len(pairs))
    clean = _vectors(model, pairs, Run(pairs.clean_tokens), activation, names)
    if reference is None:
        folds = [(clean[:, :, rows % 2 != half], rows % 2 == half) for half in (0, 1)]
    else:
        other = _vectors(model, reference, Run(reference.clean_tokens), activation, names)
        folds = [(other, np.ones(len(rows), dtype=bool))]
    runs = [clean]
    for draw in range(corruption.draws):
        _, run = two_runs(model, pairs, corruption, draw)
        runs.append(_vectors(model, pairs, run, activation, names))
    everything = np.stack(runs)
    values = np.empty(everything.shape[:-1])
    used = np.empty((len(folds), *clean.shape[:2]))
    for number, (fit, measured) in enumerate(folds):
        for layer, at in np.ndindex(clean.shape[:2]):
            values[:, layer, at, measured], used[number, layer, at] = distance(
                everything[:, layer, at][:, measured], fit[layer, at], shrinkage
            )
    control = values[0].mean(-1)
    if not (control > 0).all():
        raise PatchlibError(
            "all clean prompts have the same activation somewhere, and nothing is a distance there:"
            f" choose a later position than {', '.join(names)}, another activation or other prompts"
        )
    values /= control[..., None]
    data = xr.Dataset(
        {
            "clean": (("layer", "position", "prompt"), values[0]),
            "corrupted": (
                ("layer", "position", "draw", "prompt"),
                values[1:].transpose(1, 2, 0, 3),
            ),
            "shrinkage": (("layer", "position"), used.mean(0)),
        },
        coords={"layer": range(model.cfg.n_layers), "position": names},
        attrs={
            **describe(model),
            "task": pairs.task,
            "n_prompts": len(pairs),
            "n_fitted": len(folds[0][0][0, 0]),
            **corruption.describe(),
            "activation": activation,
            "distance": "Mahalanobis, over the mean of the control",
        },
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
    covariance = centred.T @ centred / n
    if shrinkage is None:
        shrinkage = ledoit_wolf(centred, covariance)
    scale = np.trace(covariance) / width
    if scale == 0:
        return np.zeros(points.shape[:-1]), shrinkage
    variances, directions = np.linalg.eigh(covariance)
    # Rounding leaves a little of what should be nothing.
    variances = np.where(variances > variances[-1] * n * np.finfo(float).eps, variances, 0.0)
    variances = (1 - shrinkage) * variances + shrinkage * scale
    if not (variances > 0).all():
        raise PatchlibError(
            f"shrinkage=0: the covariance of {n} prompts in {width} dimensions cannot be inverted; "
            "give more prompts than dimensions, or shrinkage=None"
        )
    along = (points - centre) @ directions
    return np.sqrt((along**2 / variances).sum(-1)), shrinkage


def ledoit_wolf(
    centred: Float[np.ndarray, "observation dimension"],
    covariance: Float[np.ndarray, "dimension dimension"],
) -> float:
    """Ledoit and Wolf's (2004) estimate of the shrinkage that makes the covariance most exact.

    The error of the sample covariance, over its distance from a multiple of the identity, both in
    the Frobenius norm; at most 1.

    Args:
        centred: the observations, less their mean.
        covariance: their covariance (with 1/n).
    """
    n, width = centred.shape
    squares = (covariance**2).sum()
    # The mean of |xxᵀ - S|² over observations is the mean of |x|⁴, less |S|².
    error = (((centred**2).sum(1) ** 2).mean() - squares) / n
    dispersion = squares - np.trace(covariance) ** 2 / width
    return 1.0 if dispersion <= 0 else float(min(max(error, 0.0), dispersion) / dispersion)


def _vectors(
    model: TransformerBridge, pairs: PromptPairs, run: Run, activation: str, names: Sequence[str]
) -> Vectors:
    """An activation of every layer at named positions."""
    hooks = [get_act_name(activation, layer) for layer in range(model.cfg.n_layers)]
    at = torch.tensor([_tokens(pairs, name) for name in names])
    parts = []
    for start in range(0, len(pairs), _ROWS):
        rows = slice(start, start + _ROWS)
        _, kept = run_with_edits(model, run.rows(rows), keep=hooks)
        places = at[:, rows].to(kept[hooks[0]].device)
        every = torch.arange(places.shape[1], device=places.device)
        parts.append(torch.stack([kept[name][every, places] for name in hooks]).cpu().double())
    return torch.cat(parts, dim=2).numpy()


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
    if len(pairs) < 4 and reference is None:
        raise PatchlibError(
            f"{len(pairs)} prompts: at least 4 are needed for two halves with a covariance; give "
            "more, or a reference"
        )
    both = [*pairs.prompts, *(() if reference is None else reference.prompts)]
    lengths = sorted({len(prompt.clean) for prompt in both})
    if len(lengths) != 1:
        raise PatchlibError(
            f"these prompts have {', '.join(map(str, lengths)) or 'no'} tokens: a distribution is "
            "fitted to prompts of one length; measure each group of pairs.by_length()"
        )
    if reference is not None:
        seen = {prompt.clean for prompt in reference.prompts}
        shared = sum(prompt.clean in seen for prompt in pairs.prompts)
        if shared:
            raise PatchlibError(
                f"{shared} of {len(pairs)} prompts are in the reference, and the control must not "
                "be fitted to: draw all prompts at once and split them, as in everything[:100] and "
                "everything[100:]"
            )

"""Effects worked out from those of `patchlib.patch`: sums over windows, and Stolfo's metric."""

from __future__ import annotations

import numpy as np
import xarray as xr

from patchlib.errors import PatchlibError
from patchlib.patching.cells import layers_around, layers_before


def sum_windows(single: xr.DataArray, window: int, before: int | None = None) -> xr.DataArray:
    """Adds up single layers' effects over each layer's window (Section 5).

    What restoring the layers of a window jointly does beyond this sum is the work of several
    layers together.

    Args:
        single: effects of all layers restored one at a time (``window=1``), with a dimension
            ``layer``.
        window: how many adjacent layers to add.
        before: for an even window, how many of its layers lie before layer l, as in
            `patchlib.patch`.

    Returns:
        The sums, labelled like ``single``; windows are cut at the first and the last layer.

    Raises:
        PatchlibError: where there is no dimension ``layer``, layers are left out, or the window
            makes no sense.

    Example:
        >>> single = xr.DataArray([1.0, 2.0, 4.0], dims="layer")
        >>> sum_windows(single, 3).values.tolist()
        [3.0, 7.0, 6.0]
    """
    if "layer" not in single.dims:
        raise PatchlibError(
            f"these effects have the dimensions {', '.join(map(str, single.dims))}: sums over "
            "windows need a dimension 'layer'"
        )
    n_layers = single.sizes["layer"]
    if single.layer.values.tolist() != list(range(n_layers)):
        raise PatchlibError(
            f"these effects are of the layers {', '.join(map(str, single.layer.values))}: sums "
            "over windows need every layer from 0 on, in order"
        )
    reach = layers_before(window, before, n_layers)
    spans = [layers_around(layer, window, reach, n_layers) for layer in range(n_layers)]
    sums = [single.isel(layer=span).sum("layer", skipna=False) for span in spans]
    return xr.concat(sums, dim=single.layer).transpose(*single.dims)


def stolfo(fx: xr.Dataset) -> xr.DataArray:
    """The metric of Stolfo et al. (2023), equation 2 of Appendix C, for each prompt.

    ½ · [(P_pt(r) − P_*(r)) / P_*(r) + (P_*(r') − P_pt(r')) / P_pt(r')]: relative changes of both
    answers, without a unit. Its denominators may be tiny, and then it is huge.

    Args:
        fx: a result of `patchlib.patch` with ``keep_prompts=True``, denoising, with the metrics
            ``prob`` and ``wrong_prob``; of several draws of noise each one, by
            ``keep_draws=True``, since a ratio of means is no mean of ratios.

    Returns:
        The effect over the dimensions of ``fx.effect`` but ``metric``; its mean over prompts is
        what the paper's figures show.

    Raises:
        PatchlibError: where ``fx`` lacks a metric, the values per prompt or those per draw.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> fx = pl.patch(model, pl.tasks.arithmetic(model, n=4), "mlp", positions="last",
        ...               corruption=pl.STR("X3+Y3"), metrics=["prob", "wrong_prob"],
        ...               keep_prompts=True, progress=False)
        >>> dict(stolfo(fx).sizes)
        {'prompt': 4, 'layer': 8}
    """
    missing = {"prob", "wrong_prob"} - set(np.atleast_1d(fx.metric.values).tolist())
    if missing or "prompt" not in fx.dims or fx.attrs.get("direction") != "denoise":
        raise PatchlibError(
            "Stolfo's metric needs pl.patch(..., metrics=['prob', 'wrong_prob'], "
            "keep_prompts=True) with direction='denoise'"
        )
    draws = max(fx.attrs.get(name, 1) for name in ("draws", "source_draws"))
    if draws > 1 and "draw" not in fx.dims:
        raise PatchlibError(
            f"these are means over {draws} draws of noise or of prompts, and Stolfo's metric is "
            "one of each draw: call pl.patch(..., keep_draws=True)"
        )
    right, wrong = fx.sel(metric="prob", drop=True), fx.sel(metric="wrong_prob", drop=True)
    gained = (right.patched - right.corrupted) / right.corrupted
    lost = (wrong.corrupted - wrong.patched) / wrong.patched
    return (0.5 * (gained + lost)).assign_attrs(fx.attrs)

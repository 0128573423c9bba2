"""Which heads stand out: the paper's rule of mean ± 2 standard deviations."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import numpy as np
import pandas as pd
import xarray as xr

from patchlib.errors import PatchlibError, names_in, require_result
from patchlib.heads import Heads
from patchlib.patching.cells import UNITS

# What stands before the layer in the name of a unit that is no head.
_PREFIX = {"kv_head": "kv", "neuron": "neuron"}


def detect(fx: xr.Dataset, sd: float = 2.0, shared: str | Sequence[str] = ()) -> pd.DataFrame:
    """Lists the heads, or layers, whose effect is beyond mean ± sd standard deviations.

    Mean and standard deviation are taken over all cells of one metric that were measured, in each
    draw and at each position that the result keeps apart (Section 3; Table 5). They mean little
    where ``heads=`` or ``layers=`` chose a few.

    Args:
        fx: a result of `patchlib.patch` without values per prompt.
        sd: how many standard deviations away a cell must be.
        shared: dimensions that share one mean and standard deviation, such as ``["position"]``
            for the position-head pairs of Table 2.

    Returns:
        One row for each metric and sign: ``metric``, ``sign`` (``"positive"`` or ``"negative"``),
        ``heads`` (strongest first, ``"layer.head"``; ``"layer"`` where whole layers were patched,
        ``"kv5.1"`` for a key/value head that several heads share, ``"neuron5.17"``),
        ``threshold``; with the columns ``draw`` and ``position`` where the result has them.

    Raises:
        PatchlibError: for what is no result, where it holds values per prompt or lacks the
            dimension ``metric`` or ``layer``, for ``shared`` dimensions that it does not have, and
            for an ``sd`` that is no number of at least 0.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S2"), progress=False)
        >>> list(pl.detect(fx, sd=2).columns)
        ['metric', 'sign', 'heads', 'threshold']
    """
    require_result(fx)
    if "prompt" in fx.dims:
        raise PatchlibError(
            "this result holds values per prompt and detection needs their mean: "
            "pass fx.mean('prompt', keep_attrs=True)"
        )
    for dim, some in (("metric", "['kl']"), ("layer", "[5]")):
        if dim not in fx.effect.dims:
            raise PatchlibError(
                f"this result has no dimension {dim!r}: give one of pl.patch, and select with a "
                f"list, as in fx.sel({dim}={some})"
            )
    if isinstance(sd, bool) or not isinstance(sd, Real) or not sd >= 0:
        raise PatchlibError(f"sd={sd!r}: give a number of at least 0; 2 is the paper's")
    shared = names_in("shared", shared)
    panels = [dim for dim in fx.effect.dims if dim not in ("layer", *UNITS)]
    if not set(shared) <= set(panels) - {"metric"}:
        raise PatchlibError(
            f"shared={shared}: this result keeps apart {', '.join(map(str, panels))}, of which all "
            "but the metric can share a threshold"
        )
    rows = []
    stacked = by_cell(fx.effect).stack(panel=panels)
    for panel in stacked.panel:
        effect = stacked.sel(panel=panel).dropna("cell")
        labels = dict(zip(panels, panel.item(), strict=True))
        alone = {dim: label for dim, label in labels.items() if dim not in shared}
        pool = fx.effect.sel(alone) if shared else effect
        mean, spread = float(pool.mean()), float(pool.std(ddof=0))
        for sign, name in ((1, "positive"), (-1, "negative")):
            threshold = mean + sign * float(sd) * spread
            found = effect[sign * effect > sign * threshold]
            order = np.argsort(-sign * found.values, kind="stable")
            heads = found.cell.values[order].tolist()
            rows.append(labels | {"sign": name, "heads": heads, "threshold": threshold})
    columns = ["metric", *[dim for dim in panels if dim != "metric"], "sign", "heads", "threshold"]
    return pd.DataFrame(rows)[columns]


def by_cell(effect: xr.DataArray) -> xr.DataArray:
    """Effects with heads, layers or neurons along one dimension ``cell``, named as in `detect`."""
    cells = [dim for dim in ("layer", *UNITS) if dim in effect.dims]
    prefix = _PREFIX.get(cells[-1], "")
    stacked = effect.stack(cell=cells)
    names = [prefix + ".".join(map(str, cell)) for cell in stacked.cell.values]
    return stacked.drop_vars(["cell", *cells]).assign_coords(cell=names)


def heads_of(found: pd.DataFrame, metric: str, sign: str = "positive") -> Heads:
    """The detected heads of one metric and sign, strongest first.

    Args:
        found: a result of `detect` on heads.
        metric: the metric.
        sign: ``"positive"`` or ``"negative"``.

    Returns:
        Pairs of layer and head, which print as ``5.4, 10.7``.

    Raises:
        PatchlibError: for what `detect` did not give, and where it has no such metric or sign, or
            lists layers, key/value heads or neurons.
    """
    if not isinstance(found, pd.DataFrame) or not {"metric", "sign", "heads"} <= set(found):
        raise PatchlibError(
            f"a {type(found).__name__} was given: give the table that pl.detect returns, with its "
            "columns metric, sign and heads"
        )
    rows = found[(found.metric == metric) & (found.sign == sign)]
    if len(rows) != 1:
        raise PatchlibError(
            f"{len(rows)} rows match metric={metric!r}, sign={sign!r}: there are the metrics "
            f"{', '.join(found.metric.unique())} and the signs positive, negative; with several "
            "draws or positions select one first"
        )
    names = rows.heads.iloc[0]
    try:
        return Heads(names)
    except PatchlibError:
        raise PatchlibError(
            f"these are no heads but layers, key/value heads or neurons: {', '.join(names)}; read "
            "them from the column heads of what pl.detect gave"
        ) from None

"""Which heads stand out: the paper's rule of mean ± 2 standard deviations."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import xarray as xr

from patchlib.errors import PatchlibError


def detect(fx: xr.Dataset, sd: float = 2.0, shared: Sequence[str] = ()) -> pd.DataFrame:
    """Lists the heads, or layers, whose effect is beyond mean ± sd standard deviations.

    Mean and standard deviation are taken over all cells of one metric, in each draw and at each
    position that the result keeps apart (Section 3; Table 5).

    Args:
        fx: a result of `patchlib.patch` without values per prompt.
        sd: how many standard deviations away a cell must be.
        shared: dimensions that share one mean and standard deviation, such as ``["position"]``
            for the position-head pairs of Table 2.

    Returns:
        One row for each metric and sign: ``metric``, ``sign`` (``"positive"`` or ``"negative"``),
        ``heads`` (``"layer.head"``, or ``"layer"`` where whole layers were patched, strongest
        first), ``threshold``; with the columns ``draw`` and ``position`` where the result has them.

    Raises:
        PatchlibError: where the result holds values per prompt or lacks the dimension ``metric``,
            and for ``shared`` dimensions that it does not have.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S2"), progress=False)
        >>> list(pl.detect(fx, sd=2).columns)
        ['metric', 'sign', 'heads', 'threshold']
    """
    if "prompt" in fx.dims:
        raise PatchlibError(
            "this result holds values per prompt and detection needs their mean: "
            "pass fx.mean('prompt', keep_attrs=True)"
        )
    if "metric" not in fx.dims:
        raise PatchlibError(
            "this result has no dimension 'metric': select with a list, as in fx.sel(metric=['kl'])"
        )
    cells = [dim for dim in ("layer", "head") if dim in fx.effect.dims]
    panels = [dim for dim in fx.effect.dims if dim not in cells]
    unknown = sorted(set(shared) - set(panels) | set(shared) & {"metric"})
    if unknown:
        raise PatchlibError(
            f"shared={list(shared)}: this result keeps apart {', '.join(panels)}, of which all but "
            "the metric can share a threshold"
        )
    rows = []
    stacked = fx.effect.stack(panel=panels, cell=cells)
    for panel in stacked.panel:
        effect = stacked.sel(panel=panel).dropna("cell")
        labels = dict(zip(panels, panel.item(), strict=True))
        alone = {dim: label for dim, label in labels.items() if dim not in shared}
        pool = fx.effect.sel(alone) if shared else effect
        mean, spread = float(pool.mean()), float(pool.std(ddof=0))
        for sign, name in ((1, "positive"), (-1, "negative")):
            threshold = mean + sign * sd * spread
            found = effect[sign * effect > sign * threshold]
            order = found.sortby(found, ascending=sign < 0)
            heads = [".".join(map(str, cell)) for cell in order.cell.values]
            rows.append(labels | {"sign": name, "heads": heads, "threshold": threshold})
    columns = ["metric", *[dim for dim in panels if dim != "metric"], "sign", "heads", "threshold"]
    return pd.DataFrame(rows)[columns]


def heads_of(found: pd.DataFrame, metric: str, sign: str = "positive") -> list[tuple[int, int]]:
    """The detected heads of one metric and sign as (layer, head), strongest first.

    Args:
        found: a result of `detect` on heads.
        metric: the metric.
        sign: ``"positive"`` or ``"negative"``.

    Raises:
        PatchlibError: where the result has no such metric or sign, or lists layers.
    """
    rows = found[(found.metric == metric) & (found.sign == sign)]
    if len(rows) != 1:
        raise PatchlibError(
            f"{len(rows)} rows match metric={metric!r}, sign={sign!r}: there are the metrics "
            f"{', '.join(found.metric.unique())} and the signs positive, negative; with several "
            "draws or positions select one first"
        )
    pairs = [head.split(".") for head in rows.heads.iloc[0]]
    if any(len(pair) != 2 for pair in pairs):
        raise PatchlibError(
            f"these are layers, not heads: {', '.join(rows.heads.iloc[0])}; read them from the "
            "column heads of what pl.detect gave"
        )
    return [(int(layer), int(head)) for layer, head in pairs]

"""Causal mediation: how much of an effect goes through a component, and how much past it."""

from __future__ import annotations

import xarray as xr

from patchlib.errors import PatchlibError, require_result

_SOURCES = {"denoise": "clean run", "noise": "corrupted run"}
# Settings that tell the two directions apart, or say how and when they were computed.
_APART = {"direction", "source", "engine", "stored"}


def mediate(denoised: xr.Dataset, noised: xr.Dataset, *, relative: bool = False) -> xr.Dataset:
    """Splits what the corruption does into what goes through each component and what goes past it.

    Pearl's natural effects, as Vig et al. (2020) use them: x is the clean prompt, x' the corrupted
    one, M the patched component, Y(x, M(x')) the metric of the run on x with the component as x'
    has it, which is what noising measures. All runs were made before, so that this costs nothing.

    Args:
        denoised: a result of `patch`, `patch_together` or `path_patch`.
        noised: the same with ``direction="noise"``.
        relative: Y / Y(x) - 1 of each prompt in place of Y - Y(x), as Vig et al. do with odds.

    Returns:
        A dataset over the dimensions of the results, with the variables

        * ``total``, Y(x', M(x')) - Y(x, M(x)), which has no component;
        * ``direct``, the natural direct effect Y(x', M(x)) - Y(x, M(x)): the prompt changes, the
          component does not;
        * ``indirect``, the natural indirect effect Y(x, M(x')) - Y(x, M(x)): the component alone
          changes;
        * ``interaction``, total - direct - indirect: 0 where what the component does is the same
          in both prompts.

        All are in the unit of the metric, and positive where the corruption raises it, so that they
        are negative for whatever helps the clean answer; an ``effect`` of `patch` is normalised,
        and positive for it. The direct effect is the total one less the indirect effect from x' to
        x. It is "direct" past this component alone: other components may carry it. NaN for KL,
        which the two directions measure from different runs.

    Raises:
        PatchlibError: for results that are not the two directions of one sweep or have another
            source, and with ``relative`` for means over prompts, since a mean of ratios is not the
            ratio of means.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=4)
        >>> options = {"corruption": pl.STR("S2"), "metrics": "log_odds", "progress": False}
        >>> both = [pl.patch(model, pairs, "resid", direction=way, **options)
        ...         for way in ("denoise", "noise")]
        >>> parts = pl.mediate(*both)
        >>> bool(abs(parts.direct).isel(layer=0) < 1e-4)  # All goes through the embedding.
        True
    """
    for fx, (direction, source) in zip((denoised, noised), _SOURCES.items(), strict=True):
        require_result(fx)
        given = fx.attrs.get("direction"), fx.attrs.get("source")
        if given != (direction, source):
            raise PatchlibError(
                f"direction={given[0]!r} with source={given[1]!r} was given, and {direction!r} "
                f"with the {source} is needed: pl.mediate(denoised, noised) takes the same sweep "
                "in both directions, each from the other run"
            )
    settings, other = (
        {name: value for name, value in fx.attrs.items() if name not in _APART}
        for fx in (denoised, noised)
    )
    names = sorted(map(str, {*settings, *other}))
    if differ := [name for name in names if settings.get(name) != other.get(name)]:
        raise PatchlibError(
            f"the two results have other settings: {', '.join(differ)}; call pl.patch twice with "
            "nothing but the direction changed"
        )
    try:
        denoised, noised = xr.align(denoised, noised, join="exact", copy=False)
    except ValueError as reason:
        raise PatchlibError(f"the two results do not hold the same cells: {reason}") from None
    if relative and "prompt" not in denoised.patched.dims:
        raise PatchlibError(
            "relative=True needs one value per prompt: call pl.patch(..., keep_prompts=True), and "
            "take the mean afterwards"
        )
    # A distance from the source run is another quantity in each direction, also of clean runs.
    gap = abs(denoised.clean - noised.clean) / abs(denoised.clean).clip(min=1)
    y = denoised.clean.where(~(gap > 1e-4).any([dim for dim in gap.dims if dim != "metric"]))

    def change(outcome: xr.DataArray) -> xr.DataArray:
        return outcome / y - 1 if relative else outcome - y

    parts = xr.Dataset(
        {
            "total": change(denoised.corrupted),
            "direct": change(denoised.patched),
            "indirect": change(noised.patched),
        }
    )
    parts["interaction"] = parts.total - parts.direct - parts.indirect
    parts = parts.transpose(*denoised.patched.dims)
    return parts.assign_attrs(settings | {"method": "mediation", "relative": int(relative)})

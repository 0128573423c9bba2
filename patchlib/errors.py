"""The one exception of the package, and the checks that everything needs."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral


class PatchlibError(ValueError):
    """Raised for every request that patchlib refuses.

    The message names what was given, what is allowed and the way out, so that it can be read
    without the source at hand.
    """


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number as Python's own integer, whichever library it comes from.

    Args:
        name: what the caller knows it by.
        value: what was given.
        least: the smallest number that is allowed.
        most: the largest one; any where None.

    Raises:
        PatchlibError: for numbers out of range, for True and False, and for everything else.

    Example:
        >>> import numpy as np
        >>> whole("n", np.int64(3), 1)
        3
    """
    # numpy's booleans are no Integral, Python's are.
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if least <= number and (most is None or number <= most):
            return number
    allowed = f"from {least} to {most}" if most is not None else f"of at least {least}"
    raise PatchlibError(f"{name}={value!r}: give a whole number {allowed}")


def names_in(name: str, value: object) -> list[str]:
    """One name, or several, as a list.

    Args:
        name: what the caller knows it by.
        value: what was given.

    Raises:
        PatchlibError: for anything else.

    Example:
        >>> names_in("positions", "S2"), names_in("positions", ("S1", "S2"))
        (['S2'], ['S1', 'S2'])
    """
    given = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    found = list(given)
    if not all(isinstance(each, str) for each in found):
        raise PatchlibError(f"{name}={value!r}: give a name, or a list of names")
    return found


def require_result(fx: object) -> None:
    """Refuses everything but a dataset with effects, as `patchlib.patch` returns it.

    Args:
        fx: what was given as the result.

    Raises:
        PatchlibError: for an array or a table, for example.

    Example:
        >>> import xarray as xr
        >>> require_result(xr.Dataset({"effect": ("layer", [0.5, 1.0])}))
    """
    import xarray as xr

    if not isinstance(fx, xr.Dataset) or "effect" not in fx:
        lacks = " without the variable effect" if isinstance(fx, xr.Dataset) else ""
        raise PatchlibError(
            f"a {type(fx).__name__}{lacks} was given as the result: give the whole dataset that "
            "pl.patch returns"
        )


def require_bridge(model: object) -> None:
    """Refuses every model but those that `patchlib.load_model` returns.

    Args:
        model: what was given as the model.

    Raises:
        PatchlibError: for a plain Hugging Face model, for example.

    Example:
        >>> import patchlib as pl
        >>> require_bridge(pl.load_model("mini"))
    """
    from transformer_lens.model_bridge import TransformerBridge

    if not isinstance(model, TransformerBridge):
        raise PatchlibError(
            f"a {type(model).__name__} was given as the model: give what pl.load_model returns. It "
            "loads a Hugging Face model from the folder that its own and its tokenizer's "
            "save_pretrained wrote"
        )

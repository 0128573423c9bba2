"""The one exception of the package, and the checks that everything needs."""

from __future__ import annotations

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

"""Attention heads by layer and number, written ``layer.head``; both count from zero."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from patchlib.errors import PatchlibError, whole


class Head(NamedTuple):
    """One attention head, written ``4.6``: head 6 of layer 4.

    Example:
        >>> print(Head(4, 6), Head.of("4.6") == (4, 6))
        4.6 True
    """

    layer: int
    head: int

    @classmethod
    def of(cls, given: object) -> Head:
        """A head from ``"4.6"`` or from ``(4, 6)``.

        Raises:
            PatchlibError: for anything else.
        """
        text = given.strip() if isinstance(given, str) else ""
        found = re.fullmatch("([0-9]+)[.]([0-9]+)", text)
        try:
            parts: Any = map(int, found.groups()) if found else given
            layer, head = parts
            return cls(whole("layer", layer, 0), whole("head", head, 0))
        except (TypeError, ValueError):
            raise PatchlibError(
                f"{given!r} is no head: write layer and head, counted from zero, as '4.6' or "
                "(4, 6), and several as ['4.6', '9.0']"
            ) from None

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"


class Heads(list[Head]):
    """A list of heads, strongest first, that prints as ``0.4, 4.6``, and as ``none`` if empty.

    It is compared and combined as a set, with anything that `Heads` takes: ``==`` and ``<=`` ask
    which heads are in both, in whatever order; ``&``, ``|`` and ``-`` keep the order.

    Args:
        given: heads as ``"4.6"`` or ``(4, 6)``, or one text with several: ``"0.4, 4.6"``.

    Raises:
        PatchlibError: for anything else.

    Example:
        >>> print(Heads([(4, 6), "0.4"]).by_layer)
        0.4, 4.6
        >>> Heads("4.6, 0.4") == Heads("0.4, 4.6"), Heads("4.6") < Heads("0.4, 4.6")
        (True, True)
        >>> Heads("4.6, 0.4, 5.1") & Heads("5.1, 4.6")
        Heads('4.6, 5.1')
    """

    def __init__(self, given: Iterable[object] | str = ()) -> None:
        if isinstance(given, str):
            given = [part for part in given.replace(",", " ").split() if part != "none"]
        if not isinstance(given, Iterable):
            raise PatchlibError(f"{given!r} is no list of heads: give one such as ['4.6', '9.0']")
        super().__init__(map(Head.of, given))

    @property
    def by_layer(self) -> Heads:
        """The same heads in the order of their layers."""
        return Heads(sorted(self))

    def __and__(self, other: Iterable[object] | str) -> Heads:
        there = set(Heads(other))
        return Heads(head for head in self if head in there)

    def __or__(self, other: Iterable[object] | str) -> Heads:
        return Heads([*self, *(Heads(other) - self)])

    def __sub__(self, other: Iterable[object] | str) -> Heads:
        there = set(Heads(other))
        return Heads(head for head in self if head not in there)

    def __eq__(self, other: object) -> bool:
        try:
            return set(self) == set(Heads(other))  # type: ignore[arg-type]
        except PatchlibError:
            return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __le__(self, other: Iterable[object] | str) -> bool:
        return set(self) <= set(Heads(other))

    def __lt__(self, other: Iterable[object] | str) -> bool:
        return set(self) < set(Heads(other))

    def __ge__(self, other: Iterable[object] | str) -> bool:
        return set(self) >= set(Heads(other))

    def __gt__(self, other: Iterable[object] | str) -> bool:
        return set(self) > set(Heads(other))

    def __str__(self) -> str:
        return ", ".join(map(str, self)) or "none"

    def __repr__(self) -> str:
        return f"Heads({str(self)!r})"

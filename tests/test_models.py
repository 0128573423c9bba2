"""Every way to load a model, with random weights where the real ones need a hub."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import patchlib as pl
from patchlib.models.loading import MINI, _fingerprint, describe


def test_mini_is_loaded_as_any_folder_is(mini):
    folder = pl.load_model(MINI)
    tokens = torch.tensor([[0, 300, 301, 302]])
    with torch.no_grad():
        assert torch.equal(mini(tokens), folder(tokens))
    assert describe(mini)["revision"] == describe(folder)["revision"]
    assert describe(mini)["revision"].startswith("sha256:")
    assert describe(mini)["weight_processing"] == "none"


def test_the_environment_names_the_model(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHLIB_MODEL", str(tmp_path / "nothing"))
    with pytest.raises(pl.PatchlibError, match="nothing"):
        pl.load_model()
    monkeypatch.setenv("PATCHLIB_MODEL", "mini")
    assert pl.load_model().cfg.model_name == "mini"


def test_the_environment_names_the_device(monkeypatch):
    monkeypatch.setenv("PATCHLIB_DEVICE", "nowhere")
    with pytest.raises(pl.PatchlibError, match="device='nowhere' cannot be used here"):
        pl.load_model("mini")
    assert pl.load_model("mini", device="cpu").cfg.device == "cpu"


def test_attn_only_is_loaded_and_patched(attn_only_4l):
    model = pl.load_model("attn-only-4l")
    assert torch.equal(model.W_E.detach(), attn_only_4l["embed.W_E"])
    pairs = pl.tasks.docstring(model, n=3, prepend_bos=True)
    options = {"corruption": pl.STR("C_def"), "engine": "hooks", "progress": False}
    fx = pl.patch(model, pairs, **options)
    assert dict(fx.effect.sizes) == {"metric": 3, "layer": 4, "head": 8}
    whole = pl.patch(model, pairs, "resid", **options)
    assert float(whole.effect.sel(metric="logit_diff", layer=0)) == pytest.approx(1, abs=1e-5)


@pytest.fixture
def copied(tiny_folders: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a small model's folder with other weights and another configuration."""

    def copy(
        family: str = "gpt2",
        weights: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        **configuration: Any,
    ) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_folders(family), folder, dirs_exist_ok=True)
        if weights is not None:
            file = folder / "model.safetensors"
            save_file(weights(load_file(file)), file, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | configuration))
        return folder

    return copy


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_other_weights_have_another_revision(copied, file):
    folder = copied()
    (folder / file).write_bytes(b"one")
    one = _fingerprint(folder)
    (folder / file).write_bytes(b"two")
    assert one != _fingerprint(folder)


def test_another_configuration_has_another_revision(copied):
    """The version of transformers that saved it, on the other hand, changes no number."""
    one = _fingerprint(copied())
    assert _fingerprint(copied(transformers_version="1.2.3", _name_or_path="x")) == one
    assert _fingerprint(copied(layer_norm_epsilon=1e-3)) != one


@pytest.mark.parametrize("name", ["mini", MINI, "attn-only-4l", "smollm2"])
def test_a_revision_that_cannot_be_chosen_is_refused(name):
    """It would be recorded with the result, and not have been loaded."""
    with pytest.raises(pl.PatchlibError, match="leave it out"):
        pl.load_model(name, revision="main")


def test_a_model_says_what_it_computes_with_and_where(tiny_folders):
    facts = describe(pl.load_model(tiny_folders("gpt2"), dtype="bfloat16"))
    assert (facts["dtype"], facts["device"]) == ("bfloat16", "cpu")


def test_a_folder_goes_by_its_path_and_not_by_its_name(copied, monkeypatch):
    """Called after a model of the hub, by whatever path, it is neither that model nor its alias."""
    folder = copied().rename(copied().parent / "gpt2-small")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    for name in ("gpt2-small", "./gpt2-small", "~/gpt2-small", folder):
        model = pl.load_model(name)
        assert model.cfg.n_layers == 3
        assert describe(model)["model"] == str(folder.resolve())
        assert not pl.paper.is_model("GPT-2 small", describe(model)["model"])


def test_a_model_of_the_hub_goes_by_its_name_and_commit(tiny_folders, tmp_path):
    """Here from the cache of downloads, laid out as huggingface_hub does."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--gpt2"
    shutil.copytree(tiny_folders("gpt2"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    program = f"""
        import patchlib as pl
        from patchlib.models.loading import describe
        for name, revision in (("gpt2", None), ("gpt2", {commit!r})):
            facts = describe(pl.load_model(name, revision=revision))
            print(facts["model"], facts["revision"])
    """
    # A fresh process, since the folder of downloads is settled on import.
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"gpt2 {commit}\n" * 2, done.stderr


# transformers fills what is missing with random numbers: two loads would give two models.


def test_a_missing_tensor_is_named(copied):
    name = "transformer.h.1.mlp.c_fc.weight"
    folder = copied(weights=lambda all: {key: all[key] for key in all if key != name})
    with pytest.raises(pl.PatchlibError, match=rf"GPT2LMHeadModel .*missing: {name}\)"):
        pl.load_model(folder)


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod."])
def test_renamed_tensors_are_named(copied, prefix):
    folder = copied(weights=lambda all: {f"{prefix}{name}": all[name] for name in all})
    match = rf"missing: .*transformer\.h\.0.*unexpected: {prefix}transformer\.h\.0.*save_pretrained"
    with pytest.raises(pl.PatchlibError, match=match):
        pl.load_model(folder)


def test_weights_of_more_layers_or_another_shape_are_refused(copied):
    with pytest.raises(pl.PatchlibError, match=r"\(unexpected: transformer\.h\.2\."):
        pl.load_model(copied(n_layer=2))
    with pytest.raises(pl.PatchlibError, match=r"\(of another shape: transformer\.wpe\.weight\)"):
        pl.load_model(copied(n_layer=3, n_positions=63))


@pytest.mark.parametrize(
    ("family", "buffer"),
    [
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("gptj", "transformer.h.0.attn.bias"),
        ("gptj", "transformer.h.0.attn.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_what_old_checkpoints_hold_beside_weights_is_left_out(copied, family, buffer):
    assert pl.load_model(copied(family, lambda all: all | {buffer: torch.ones(4)})).cfg.n_layers


def test_a_tied_unembedding_need_not_be_there(tiny_folders):
    assert "lm_head.weight" not in load_file(tiny_folders("gpt2") / "model.safetensors")
    tied = pl.load_model(tiny_folders("gpt2"))
    assert torch.equal(tied.W_U, tied.W_E.T)


def test_an_adapter_is_refused(copied):
    folder = copied()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(pl.PatchlibError, match=r"PEFT adapter.*merge_and_unload"):
        pl.load_model(folder)


def test_weights_that_another_owner_keeps_closed_are_named(copied, monkeypatch):
    # As anybody but the owner: whoever runs the tests may be root, who reads everything.
    monkeypatch.setattr(os, "access", lambda file, mode: Path(file).stat().st_mode & mode)
    folder = copied()
    for file in folder.iterdir():
        file.chmod(0o644)
    assert pl.load_model(folder).cfg.n_layers
    (folder / "model.safetensors").chmod(0o600)
    with pytest.raises(pl.PatchlibError, match=r"may not read model\.safetensors in .*chmod a\+r"):
        pl.load_model(folder)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_shard(folder: Path) -> None:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / "model.safetensors").rename(folder / shards[0])
    index = {"weight_map": dict(zip(("one", "two"), shards, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def half_a_file(file: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / file, (folder / file).stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (half_a_file("config.json"), r"config\.json is not JSON"),
        (half_a_file("tokenizer.json"), r"tokenizer\.json is not JSON"),
        (half_a_file("model.safetensors"), r"model\.safetensors is damaged.*copy it again"),
        (no_weights, r"does not hold a model, model\.safetensors missing"),
        (no_shard, r"model-00002-of-00002\.safetensors missing"),
        (
            lambda folder: (folder / "config.json").write_text("{}"),
            "could not be loaded .*model_type",
        ),
    ],
)
def test_damage_is_named_and_the_hub_is_not_blamed(copied, damage, reason):
    folder = copied()
    damage(folder)
    with pytest.raises(pl.PatchlibError, match=reason) as caught:
        pl.load_model(folder)
    assert str(folder) in str(caught.value)
    assert "hub" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "meta"}, "device='meta' cannot be used here"),
        ({"device": "nowhere"}, "device='nowhere' cannot be used here"),
        ({"dtype": "int8"}, "dtype='int8': allowed are float64, float32, float16, bfloat16"),
        ({"dtype": torch.int8}, r"dtype=torch\.int8: allowed are"),
        ({"name": 3}, "a int names no model"),
    ],
)
def test_what_cannot_be_loaded_is_refused(options, reason):
    with pytest.raises(pl.PatchlibError, match=reason):
        pl.load_model(**{"name": "mini"} | options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(pl.PatchlibError, match=r"device='cuda' cannot be used here.*'cpu' always"):
        pl.load_model("mini", device="cuda")


def test_a_plain_hugging_face_model_is_refused_everywhere(tiny_folders, tiny_gpt2):
    network = AutoModelForCausalLM.from_pretrained(tiny_folders("gpt2"))
    pairs, swap = pl.tasks.ioi(tiny_gpt2, n=4), pl.STR("S2")
    with pytest.raises(pl.PatchlibError, match=r"GPT2LMHeadModel.*folder.*save_pretrained"):
        pl.load_model(network)
    row = {"clean": "one two", "corrupted": "two two", "answer": "one", "wrong_answer": "two"}
    for ask in (
        lambda: pl.tasks.ioi(network, n=4),
        lambda: pl.tasks.factual_recall(network, n=4),
        lambda: pl.PromptPairs.from_table(network, [row]),
        lambda: pl.patch(network, pairs, corruption=swap),
        lambda: pl.patch_together(network, pairs, ["0.1"], corruption=swap),
        lambda: pl.baselines(network, pairs),
        lambda: pl.keep_answered(network, pairs),
        lambda: pl.ood(network, pairs, swap),
        lambda: pl.attention_patterns(network, pairs, ["0.1"]),
        lambda: pl.copying_score(network, pairs, ["0.1"]),
        lambda: pl.experiments.estimate(network, "3_1_ioi"),
        lambda: describe(network),
    ):
        with pytest.raises(pl.PatchlibError, match=r"GPT2LMHeadModel.*what pl\.load_model returns"):
            ask()

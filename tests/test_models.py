"""Every way to load a model, with random weights where the real ones need a hub."""

import json

import pytest
import torch

import patchlib as pl
from patchlib.models import MINI, describe


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


@pytest.fixture
def attn_only(monkeypatch, tmp_path):
    """A repository of TransformerLens' own old format, with random weights, in place of the hub."""
    layers, heads, width, head, vocabulary = 2, 2, 16, 8, pl.load_model("mini").cfg.d_vocab
    config = {
        "architecture": "neel",
        "normalization": "LN",
        "d_model": width,
        "n_layers": layers,
        "d_mlp": 4 * width,
        "d_head": head,
        "n_heads": heads,
        "n_ctx": 64,
        "d_vocab": vocabulary,
        "act_fn": "gelu",
        "attn_only": True,
        "tokenizer_name": str(MINI),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.3 * torch.randn(*shape, generator=generator)

    weights = {
        "embed.W_E": draw(vocabulary, width),
        "pos_embed.W_pos": draw(64, width),
        "ln_final.w": torch.ones(width),
        "ln_final.b": torch.zeros(width),
        "unembed.W_U": draw(width, vocabulary),
    }
    for layer in range(layers):
        at = f"blocks.{layer}."
        weights |= {f"{at}ln1.w": torch.ones(width), f"{at}ln1.b": torch.zeros(width)}
        for name in "QKV":
            weights[f"{at}attn.W_{name}"] = draw(heads, width, head)
            weights[f"{at}attn.b_{name}"] = torch.zeros(heads, head)
        weights[f"{at}attn.W_O"] = draw(heads, head, width)
        weights[f"{at}attn.b_O"] = torch.zeros(width)
    torch.save(weights, tmp_path / "model_final.pth")

    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, file, **_: str(tmp_path / file)
    )
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "list_repo_files",
        lambda self, repo: [path.name for path in tmp_path.iterdir()],
    )
    return pl.load_model("attn-only-4l"), weights


def test_attn_only_is_loaded_and_patched(attn_only):
    model, weights = attn_only
    assert torch.equal(model.W_E.detach(), weights["embed.W_E"])
    pairs = pl.tasks.docstring(model, n=3, prepend_bos=True)
    options = {"corruption": pl.STR("C_def"), "engine": "hooks", "progress": False}
    fx = pl.patch(model, pairs, **options)
    assert dict(fx.effect.sizes) == {"metric": 3, "layer": 2, "head": 2}
    whole = pl.patch(model, pairs, "resid", **options)
    assert float(whole.effect.sel(metric="logit_diff", layer=0)) == pytest.approx(1, abs=1e-5)

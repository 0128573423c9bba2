"""Every way to load a model, with random weights where the real ones need a hub."""

import pytest
import torch

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


def test_attn_only_is_loaded_and_patched(attn_only_4l):
    model = pl.load_model("attn-only-4l")
    assert torch.equal(model.W_E.detach(), attn_only_4l["embed.W_E"])
    pairs = pl.tasks.docstring(model, n=3, prepend_bos=True)
    options = {"corruption": pl.STR("C_def"), "engine": "hooks", "progress": False}
    fx = pl.patch(model, pairs, **options)
    assert dict(fx.effect.sizes) == {"metric": 3, "layer": 4, "head": 8}
    whole = pl.patch(model, pairs, "resid", **options)
    assert float(whole.effect.sel(metric="logit_diff", layer=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_other_weights_have_another_revision(tmp_path, file):
    (tmp_path / file).write_bytes(b"one")
    one = _fingerprint(tmp_path)
    (tmp_path / file).write_bytes(b"two")
    assert one != _fingerprint(tmp_path)


@pytest.mark.parametrize("name", ["mini", MINI, "attn-only-4l"])
def test_a_revision_that_cannot_be_chosen_is_refused(name):
    """It would be recorded with the result, and not have been loaded."""
    with pytest.raises(pl.PatchlibError, match="leave it out"):
        pl.load_model(name, revision="main")

"""Pairs of components in both directions: AND, OR, additive."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from test_closed_form import READ, H, prompt, save_words
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

import patchlib as pl
from patchlib.patching.metrics import Logits
from patchlib.prompts.pairs import PromptPairs

OPTIONS: dict[str, Any] = {"progress": False}


def test_pairs_by_hand(by_hand: TransformerBridge):
    """With head 0, head 1 or both restored, A - B is 19/13, -7/5 or 11/13, from 1/5 on; the way is
    42/65. The heads are all that differs between the runs, so that both directions have
    11/13 - 19/13 + 7/5 + 1/5 = 64/65.

    The MLP reads head 0. Restored alone it gives 1, and beside head 0 nothing more:
    19/13 - 19/13 - 1 + 1/5 = -4/5. Taken out of the clean run head 0 leaves (-3, 4, 0)/5, with or
    without the MLP, and the MLP alone leaves (3, 4, 0)/5: -7/5 + 7/5 + 1/5 + 11/13 = 68/65.
    """
    pairs = PromptPairs("by hand", (prompt(), prompt()))
    options = OPTIONS | {"corruption": pl.STR("first"), "metrics": "logit_diff"}
    data = pl.interactions(by_hand, pairs, ["0.0", "0.1", "mlp0"], **options).squeeze("metric")
    heads = data.sel(first="0.0", second="0.1")
    np.testing.assert_allclose(heads.interaction, [64 / 42, 64 / 42], atol=1e-4)
    chain = data.sel(first="mlp0", second="0.0")
    np.testing.assert_allclose(chain.interaction, [-52 / 42, 68 / 42], atol=1e-4)
    assert heads.gate.values.tolist() == ["AND", "AND"]
    assert chain.gate.values.tolist() == ["OR", "AND"]
    alone = data.sel(first="0.0", second="0.0")
    np.testing.assert_allclose(alone.effect, [82 / 42, (11 / 13 + 7 / 5) * 65 / 42], atol=1e-4)
    assert alone.interaction.isnull().all() and (alone.gate == "").all()
    # One prompt has no interval.
    one = pl.interactions(by_hand, pairs[:1], ["0.0", "0.1"], **options)
    assert (one.gate == "").all() and one.interaction.notnull().any()


def test_gates(by_hand: TransformerBridge):
    """A has a positive logit where head 0 is that of the clean run, B where head 1 is."""

    def gate(name: str, join) -> pl.Metric:
        def value(logits: Logits, r, r_wrong, source) -> torch.Tensor:
            return join(logits[..., 0] > 0, logits[..., 1] > 0).to(logits.dtype)

        return pl.Metric(name, name, value, normalized=True)

    metrics = [
        gate("and", torch.logical_and),
        gate("or", torch.logical_or),
        gate("sum", lambda a, b: a.float() + b.float()),
    ]
    pairs = PromptPairs("by hand", (prompt(),) * 3)
    data = pl.interactions(
        by_hand, pairs, ["0.0", "0.1"], corruption=pl.STR("first"), metrics=metrics, **OPTIONS
    )
    # Each alone and both: what is enough, and what is needed.
    table = {
        "and": {"denoise": (0, 0, 1, 1, "AND"), "noise": (1, 1, 1, 1, "AND")},
        "or": {"denoise": (1, 1, 1, -1, "OR"), "noise": (0, 0, 1, -1, "OR")},
        "sum": {
            "denoise": (0.5, 0.5, 1, 0, "additive"),
            "noise": (0.5, 0.5, 1, 0, "additive"),
        },
    }
    for name, directions in table.items():
        for direction, (a, b, both, beyond, said) in directions.items():
            found = data.sel(metric=name, direction=direction)
            np.testing.assert_allclose(found.effect, [[a, both], [both, b]], atol=1e-6)
            pair = found.sel(first="0.0", second="0.1")
            np.testing.assert_allclose(pair.interaction, beyond, atol=1e-6)
            assert pair.gate == said


def save_three_heads(folder: Path) -> None:
    """Heads 0, 1 and 2 of one number each: "A E" has it 1, "B E" -1, and 6 times half of it goes to
    a, b or c, of which the three logits are one each. There is no MLP, and head 3 does nothing."""
    special = {"bos_token_id": 2, "eos_token_id": 2, "tie_word_embeddings": False}
    sizes = {"vocab_size": 3, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 4}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, **special))
    with torch.no_grad():
        for name, parameter in gpt2.named_parameters():
            if not (".ln_" in name and name.endswith("weight")):
                parameter.zero_()
        block = gpt2.transformer.h[0]
        gpt2.transformer.wte.weight[:2] = H[:2]
        block.attn.c_attn.weight[:, 8:11] = (READ[:, 0] - READ[:, 1])[:, None]
        block.attn.c_proj.weight[:3] = 6 * H
        gpt2.lm_head.weight[:] = READ.T
    gpt2.save_pretrained(folder)
    save_words(folder)


def test_three_that_stand_in_for_each_other(tmp_path: Path):
    """Of an OR each alone is enough and only all are needed, of an AND the reverse."""
    save_three_heads(tmp_path)
    model, pairs = pl.load_model(tmp_path), PromptPairs("by hand", (prompt(),) * 2)

    def gate(name: str, join: Callable[[torch.Tensor, int], torch.Tensor]) -> pl.Metric:
        def value(logits: Logits, r, r_wrong, source) -> torch.Tensor:
            return join(logits > 0, -1).to(logits.dtype)

        return pl.Metric(name, name, value, normalized=True)

    options = {"corruption": pl.STR("first"), "metrics": [gate("or", torch.any)]}
    options["metrics"] += [gate("and", torch.all)]
    for heads in (["0.0"], ["0.2"], ["0.0", "0.2"], ["0.1", "0.2"], ["0.0", "0.1", "0.2"]):
        found = {
            direction: pl.patch_together(model, pairs, heads, direction=direction, **options)
            for direction in ("denoise", "noise")
        }
        whole = len(heads) == 3
        assert found["denoise"].effect.values.tolist() == [1, whole]
        assert found["noise"].effect.values.tolist() == [whole, 1]
    # Of any two of an OR, noising sees nothing: the third is there. Denoising tells it apart.
    data = pl.interactions(model, pairs, ["0.0", "0.1"], **options, **OPTIONS)
    pair = data.sel(first="0.0", second="0.1")
    assert pair.sel(direction="denoise").gate.values.tolist() == ["OR", "additive"]
    assert pair.sel(direction="noise").gate.values.tolist() == ["additive", "AND"]


@pytest.mark.parametrize("activation", ["z", "k"])
@pytest.mark.parametrize("name", ["mini", "llama"])
def test_of_heads_that_share_keys_and_of_mini(tiny_folders, name: str, activation: str):
    """What is beyond the sum, by joint patches of each and both."""
    model = pl.load_model(name if name == "mini" else tiny_folders(name))
    pairs, parts = pl.tasks.ioi(model, n=4), ["0.1", "1.0", "1.3"]
    options = OPTIONS | {"corruption": pl.STR("S2"), "activation": activation}
    data = pl.interactions(model, pairs, parts, **options)
    for direction, sign in (("denoise", 1), ("noise", -1)):

        def effect(*heads: str, direction: str = direction) -> xr.DataArray:
            return pl.patch_together(model, pairs, heads, direction=direction, **options).effect

        beyond = effect("0.1", "1.3") - effect("0.1") - effect("1.3")
        found = data.interaction.sel(direction=direction, first="0.1", second="1.3")
        np.testing.assert_allclose(found, sign * beyond, rtol=1e-3, atol=1e-4)


def test_together_and_alone(tiny: TransformerBridge):
    """Both together are `patch_together`, and each alone is the cell of a sweep."""
    pairs = pl.tasks.ioi(tiny, n=4)
    parts = ["0.1", "mlp1", ["1.0", "2.3"]]
    options = OPTIONS | {"corruption": pl.STR("S2"), "positions": ["S2", "last"]}
    data = pl.interactions(tiny, pairs, parts, **options)
    assert data.effect.dims == ("metric", "direction", "first", "second", "position")
    assert data.attrs["sets"] == "0.1; mlp1; 1.0, 2.3"
    for direction in ("denoise", "noise"):
        found = data.sel(direction=direction)
        joint = pl.patch_together(
            tiny, pairs, ["0.1", "1.0", "2.3"], direction=direction, **options
        )
        for first, second in (("0.1", "1.0, 2.3"), ("1.0, 2.3", "0.1")):
            both = found.sel(first=first, second=second)
            for name in ("effect", "patched", "clean", "corrupted"):
                np.testing.assert_allclose(both[name], joint[name], rtol=1e-3, atol=1e-4)
        mlp = pl.patch(tiny, pairs, "mlp", layers=[1], direction=direction, **options)
        alone = found.effect.sel(first="mlp1", second="mlp1")
        np.testing.assert_allclose(alone, mlp.effect.isel(layer=0), rtol=1e-3, atol=1e-4)
    away = data.where(data.first != data.second)
    between = (away.low - 1e-9 <= away.interaction) & (away.interaction <= away.high + 1e-9)
    assert (between | away.low.isnull()).all()
    xr.testing.assert_allclose(
        data.interaction,
        data.interaction.rename(first="second", second="first").transpose(*data.interaction.dims),
    )


def test_what_is_refused(tiny_folders):
    model = pl.load_model(tiny_folders("llama"))
    pairs = pl.tasks.ioi(model, n=2)
    for parts, said in (
        (["0.1"], "interactions of 0.1: give at least two components"),
        ([], "interactions of nothing"),
        (["0.1", ["0.1", "mlp1"]], "share z0.1: give components and sets"),
        # Two heads of a group have one key.
        (["k0.0", "k0.1"], "'k0.0' and 'k0.1' share k0.0"),
        (["0.1", "0.9"], "'0.9' does not exist"),
    ):
        with pytest.raises(pl.PatchlibError, match=said):
            pl.interactions(model, pairs, parts, corruption=pl.STR("S2"), **OPTIONS)

"""Self-repair: worked out by hand, against ablation and plain hooks, and what must hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from test_closed_form import A, E, prompt, save_weights, save_words
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import direct_logit_attribution
from transformer_lens.utilities import get_act_name
from transformers import GPT2Config, GPT2LMHeadModel

import patchlib as pl
from patchlib.patching.sources import Source
from patchlib.prompts.pairs import PromptPairs

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
VALUES = ("clean", "patched", "direct", "total", "repaired", "heads", "mlps", "norm")


def repair(
    model: TransformerBridge, pairs: PromptPairs, parts: Any, with_: Source, **options: Any
) -> xr.Dataset:
    options = {"keep_prompts": True, "progress": False} | options
    return pl.self_repair(model, pairs, parts, with_=with_, **options)


def made_up(fx: xr.Dataset) -> xr.DataArray:
    return fx.heads.sum(["layer", "head"]) + fx.mlps.sum("layer") + fx.norm


def test_repair_by_hand(tmp_path: Path):
    """In the model of test_closed_form, whose clean run ends with (3, 4, 12), of length 13.

    Without head 0 the neuron sees (0, 4, 0)/4 and is silent: (0, 4, 0) ends as (0, 1, 0), with
    A - B = a + c - b = -1. Head 0 wrote 3/13, so that 24/13 are lost where it costs 3/13: the MLP's
    12/13 go with it, and the norm divides by 4 in place of 13, -4 (1/4 - 1/13) = -9/13.

    Without head 1, (3, 0, 12) with the length √153 is left: the neuron saw (3, 0, 0)/3 = 1 and
    gives 20 in place of 12, so that it is (3, 0, 20) with the length √409.
    """
    save_weights(tmp_path)
    save_words(tmp_path)
    model, pairs = pl.load_model(tmp_path), PromptPairs("by hand", (prompt(),))
    fx = repair(model, pairs, ["0.0", "0.1", "mlp0"], pl.Zero(), keep_prompts=False)
    assert fx.heads.dims == ("metric", "removed", "layer", "head")
    first, second, mlp = (fx.sel(removed=name).squeeze() for name in fx.removed.values)
    expected = {"clean": 11, "patched": -13, "direct": 3, "total": 24, "repaired": -21, "norm": -9}
    for name, value in expected.items():
        np.testing.assert_allclose(first[name], value / 13, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(first.heads, [np.nan, 0])
    np.testing.assert_allclose(first.mlps, -12 / 13, atol=1e-5)
    # What goes is -4/13, to which nothing has to be added; the neuron adds 8/13 all the same.
    np.testing.assert_allclose(second.direct, -4 / 13, atol=1e-5)
    np.testing.assert_allclose(second.mlps, 8 / 13, atol=1e-5)
    np.testing.assert_allclose(second.patched, 23 / 409**0.5, atol=1e-5)
    np.testing.assert_allclose(second.norm, 23 * (409**-0.5 - 1 / 13), atol=1e-5)
    # Nothing comes after the MLP: (3, 4, 0)/5.
    np.testing.assert_allclose(mlp.direct, 12 / 13, atol=1e-5)
    np.testing.assert_allclose(mlp.patched, -1 / 5, atol=1e-5)
    np.testing.assert_allclose(mlp.heads, [0, 0])
    np.testing.assert_allclose(mlp.norm, -1 / 5 + 1 / 13, atol=1e-5)


def or_of_two_heads(folder: Path) -> TransformerBridge:
    """Head 1.0 writes what head 0.0 writes, where that has not.

    The stream has the coordinates a (the token A is there), e (this is the last token) and o (the
    answer), each a vector of mean 0 and length √8. Layer 0: the last token looks at A, which writes
    2 o. Layer 1: its query is e - o, so that it looks at A where o is not there and else at itself,
    where there is nothing to write; the same 2 o. Scores are so large that attention is 0 or 1.
    """
    hadamard = torch.tensor([[1.0, 1], [1, -1]])
    h = torch.kron(torch.kron(hadamard, hadamard), hadamard)[1:]
    a, e, o = h[:3]
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=3,
            n_positions=8,
            n_embd=8,
            n_layer=2,
            n_head=1,
            n_inner=1,
            layer_norm_epsilon=1e-12,
            tie_word_embeddings=False,
            bos_token_id=E,
            eos_token_id=E,
        )
    )
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.zero_()
        for norm in (
            gpt2.transformer.ln_f,
            *(n for b in gpt2.transformer.h for n in (b.ln_1, b.ln_2)),
        ):
            norm.weight.fill_(1)
        gpt2.transformer.wte.weight[A] = a
        gpt2.transformer.wte.weight[E] = e
        for block, query in zip(gpt2.transformer.h, (e, e - o), strict=True):
            reads = block.attn.c_attn.weight
            reads[:, 0], reads[:, 8], reads[:, 16] = 1000 * query / 8, 1000 * a / 8, a / 8
            block.attn.c_proj.weight[0] = 2 * o
        gpt2.lm_head.weight[A] = o / 8
    gpt2.save_pretrained(folder)
    save_words(folder)
    return pl.load_model(folder)


def test_an_or_repairs_fully(tmp_path: Path):
    """The last token ends as e + 2 o, whether one of the heads is there or both: A - B = 2/√5."""
    model, pairs = or_of_two_heads(tmp_path), PromptPairs("by hand", (prompt(),))
    fx = repair(model, pairs, ["0.0", "1.0", ["0.0", "1.0"]], pl.Zero()).squeeze("prompt")
    first, second, both = (fx.sel(removed=name).squeeze("metric") for name in fx.removed.values)
    written = 2 / 5**0.5
    np.testing.assert_allclose(fx.clean, [[written] * 3], atol=1e-5)
    for name, value in {"direct": written, "total": 0, "repaired": written, "norm": 0}.items():
        np.testing.assert_allclose(first[name], value, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(first.heads, [[np.nan], [written]], atol=1e-5)
    # The second had nothing to write, and nobody stands in for both.
    np.testing.assert_allclose([second.direct, second.total, second.repaired], 0, atol=1e-5)
    np.testing.assert_allclose(both.total, written, atol=1e-5)
    np.testing.assert_allclose(both.repaired, 0, atol=1e-5)
    assert both.heads.isnull().all()


@pytest.mark.parametrize("source", [pl.Zero(), pl.Mean(), pl.Resample(draws=2)])
@pytest.mark.parametrize("metric", ["logit_diff", "logit"])
def test_parts_add_up(model: TransformerBridge, source: Source, metric: str):
    """To what the logits change by, which `ablate` measures with the other engine's runs."""
    pairs = pl.tasks.ioi(model, n=6)
    parts = ["0.1", "1.2", ["0.1", "2.0"], "mlp0"]
    fx = repair(model, pairs, parts, source, metric=metric)
    np.testing.assert_allclose(made_up(fx), fx.repaired, **CLOSE)
    assert (abs(fx.repaired) > 1e-3).any() and (abs(fx.norm) > 1e-5).any()
    if metric == "logit_diff":
        options: dict[str, Any] = {"metrics": metric, "keep_prompts": True, "progress": False}
        heads = pl.ablate(model, pairs, heads=["0.1", "1.2"], with_=source, **options)
        mlp = pl.ablate(model, pairs, "mlp", layers=0, with_=source, **options)
        for name, there in (
            ("0.1", heads.sel(layer=0, head=1)),
            ("1.2", heads.sel(layer=1, head=2)),
            ("mlp0", mlp.sel(layer=0)),
        ):
            mine = fx.sel(removed=name)
            np.testing.assert_allclose(mine.patched, there.patched, **CLOSE)
            np.testing.assert_allclose(mine.clean, there.clean, **CLOSE)


def test_direct_effects_by_hooks(model: TransformerBridge):
    """What a head writes, taken off what the final norm reads, with its scale as it was."""
    pairs = pl.tasks.ioi(model, n=4)
    fx = repair(model, pairs, ["1.2"], pl.Zero()).squeeze()
    z, end, scale = get_act_name("z", 1), "ln_final.hook_in", "ln_final.hook_scale"
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean_tokens)
        written = cache[z][:, -1, 2] @ model.blocks[1].attn.W_O[2]
        norm = model.ln_final.original_component
        if isinstance(norm, torch.nn.LayerNorm):
            written = written - written.mean(-1, keepdim=True)
        assert cache[end].shape[:2] == cache[scale].shape[:2]
        logits = (written * norm.weight / cache[scale][:, -1]) @ model.unembed.W_U
        rows = torch.arange(len(pairs))
        expected = logits[rows, pairs.answers] - logits[rows, pairs.wrong_answers]
    np.testing.assert_allclose(fx.direct, expected, **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_direct_effects_are_transformer_lens_attributions(tiny_folders, family: str):
    """Of every head, on weights that TransformerLens has folded, as its function needs them."""
    model = pl.load_model(tiny_folders(family))
    model.enable_compatibility_mode(disable_warnings=True)
    pairs = pl.tasks.ioi(model, n=4)
    theirs = direct_logit_attribution(
        model, pairs.clean_tokens, pairs.answers, pairs.wrong_answers, unit="head"
    )
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    names = [theirs.labels.index(f"L{layer}H{head}") for layer, head in heads]
    ours = repair(model, pairs, [f"{layer}.{head}" for layer, head in heads], pl.Zero())
    direct = ours.direct.squeeze("metric").transpose("removed", "prompt")
    np.testing.assert_allclose(direct, theirs.attribution[names].detach(), **CLOSE)
    assert float(direct.std()) > 100 * CLOSE["atol"]


def test_nothing_upstream_changes(model: TransformerBridge):
    """Exactly 0 in earlier layers and in the other heads of the layer; the MLP beside a head reads
    the same stream in parallel models, and what comes after answers.
    """
    fx = repair(model, pl.tasks.ioi(model, n=4), ["1.2", "mlp1"], pl.Zero())
    head, mlp = fx.sel(removed="1.2"), fx.sel(removed="mlp1")
    for one in (head, mlp):
        assert (one.heads.sel(layer=0) == 0).all() and (one.mlps.sel(layer=0) == 0).all()
        assert (abs(one.heads.sel(layer=2)) > 1e-6).any()
    assert head.heads.sel(layer=1, head=2).isnull().all()
    assert (head.heads.sel(layer=1).drop_sel(head=2) == 0).all()
    assert (mlp.heads.sel(layer=1) == 0).all() and mlp.mlps.sel(layer=1).isnull().all()
    parallel = bool(getattr(model.cfg, "parallel_attn_mlp", False))
    assert bool((head.mlps.sel(layer=1) == 0).all()) == parallel


def test_nothing_changes_where_the_same_comes_back(model: TransformerBridge):
    """Each prompt's own activations, and the mean over copies of one prompt."""
    pairs = pl.tasks.ioi(model, n=4)
    copies = pairs[[1, 1, 1]]
    for some, source in ((pairs, pairs), (copies, pl.Mean())):
        fx = repair(model, some, ["0.1", ["1.2", "mlp1"]], source)
        for name in ("direct", "total", "repaired", "heads", "mlps", "norm"):
            np.testing.assert_allclose(fx[name].fillna(0), 0, atol=2e-5, err_msg=name)


def test_nothing_makes_up_for_the_last_mlp(model: TransformerBridge):
    """Nothing reads it but the final norm."""
    last = model.cfg.n_layers - 1
    fx = repair(model, pl.tasks.ioi(model, n=4), [f"mlp{last}"], pl.Resample())
    assert (fx.heads == 0).all() and (fx.mlps.drop_sel(layer=last) == 0).all()
    np.testing.assert_allclose(fx.repaired, fx.norm, **CLOSE)


def test_draws_and_lengths(tiny_gpt2: TransformerBridge):
    """The mean over draws is that of the prompts drawn; lengths and passes change nothing."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=5)
    resample = pl.Resample(draws=2, seed=3)
    both = repair(tiny_gpt2, pairs, ["0.1"], resample)
    each = [
        repair(
            tiny_gpt2,
            pairs,
            ["0.1"],
            pairs[[resample.drawn(pairs, row, draw) for row in range(len(pairs))]],
        )
        for draw in range(2)
    ]
    for name in VALUES:
        np.testing.assert_allclose(both[name], (each[0][name] + each[1][name]) / 2, **CLOSE)
    mean = repair(tiny_gpt2, pairs, ["0.1"], resample, keep_prompts=False)
    np.testing.assert_allclose(mean.heads, both.heads.mean("prompt", skipna=False), **CLOSE)
    rows = [
        {"clean": f"The {word} lasted from", "corrupted": "The siege lasted from"}
        for word in ("war",)
    ] + [{"clean": "In the year of the war it", "corrupted": "In the year of the siege it"}]
    answers = {"answer": " in", "wrong_answer": [" to", " for"]}
    mixed = PromptPairs.from_table(tiny_gpt2, [row | answers for row in rows] * 2)
    whole = repair(tiny_gpt2, mixed, ["0.1", "mlp1"], pl.Zero())
    np.testing.assert_allclose(made_up(whole), whole.repaired, **CLOSE)
    single = repair(tiny_gpt2, mixed[:1], ["0.1", "mlp1"], pl.Zero(), memory_budget=2**22)
    np.testing.assert_allclose(whole.isel(prompt=[0]).heads, single.heads, **CLOSE)
    # Of several wrong answers the logits are summed.
    there = pl.ablate(
        tiny_gpt2, mixed, "mlp", layers=1, with_=pl.Zero(), metrics="logit_diff", progress=False
    )
    mean = whole.sel(removed="mlp1").patched.mean("prompt")
    np.testing.assert_allclose(mean, there.patched.squeeze("layer"), **CLOSE)


def test_a_layer_of_heads(model: TransformerBridge):
    """``head1`` is all heads of layer 1."""
    pairs = pl.tasks.ioi(model, n=3)
    every = [f"1.{head}" for head in range(model.cfg.n_heads)]
    one, other = (repair(model, pairs, [part], pl.Zero()) for part in ("head1", every))
    for name in VALUES:
        np.testing.assert_allclose(one[name].values, other[name].values, **CLOSE)


def test_shares(mini: TransformerBridge):
    """Ratios of means, whose parts add up, with an interval over prompts."""
    fx = repair(mini, pl.tasks.ioi(mini, n=12), ["5.0", "mlp6"], pl.Mean())
    table = pl.repaired_share(fx)
    assert list(table.index) == ["5.0", "mlp6"]
    ratio = fx.repaired.mean("prompt") / fx.direct.mean("prompt")
    np.testing.assert_allclose(table.share, ratio.squeeze("metric"))
    np.testing.assert_allclose(table[["heads", "mlps", "norm"]].sum(axis=1), table.share, rtol=1e-3)
    sure = table.dropna()
    assert len(sure) and ((sure.low <= sure.share) & (sure.share <= sure.high)).all()
    # A direct effect of either sign can be any part of it.
    fx["direct"] = fx.direct - fx.direct.mean("prompt") + 1e-9
    assert pl.repaired_share(fx)[["low", "high"]].isnull().all(axis=None)
    with pytest.raises(pl.PatchlibError, match="keep_prompts=True"):
        pl.repaired_share(fx.mean("prompt"))


def test_progress_and_settings(mini: TransformerBridge):
    """One row for each prompt, draw and removal; all that decides the numbers is kept."""
    seen: list[tuple[int, int]] = []
    pairs = pl.tasks.ioi(mini, n=4)
    fx = repair(
        mini,
        pairs,
        ["7.0", ["6.0", "mlp6"]],
        pl.Resample(draws=2),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[0] == (0, 16) and seen[-1] == (16, 16)
    assert fx.attrs["method"] == "self-repair" and fx.attrs["parts"] == "7.0; 6.0, mlp6"
    assert "draws=2" in fx.attrs["source"] and fx.attrs["prompts"] == pairs.fingerprint
    assert fx.text.values.tolist() == pairs.texts


def test_what_is_refused(mini: TransformerBridge):
    """Parts that do not write, other metrics, no source, no parts."""
    pairs = pl.tasks.ioi(mini, n=2)
    for parts, options, words in (
        (["resid3"], {}, "does not write to the residual stream"),
        (["q4.1"], {}, "does not write to the residual stream"),
        ([], {}, "nothing was given to remove"),
        (["9.9"], {}, "does not exist"),
        (["5.0"], {"metric": "prob"}, "allowed are 'logit_diff' and 'logit'"),
        (["5.0"], {"with_": None}, "with_=None"),
    ):
        with pytest.raises(pl.PatchlibError, match=words):
            repair(mini, pairs, parts, **{"with_": pl.Zero()} | options)

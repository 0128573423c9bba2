"""Path patching: worked out by hand, by plain hooks, by TransformerLens, and what must hold."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import test_closed_form as by_hand
import torch
import xarray as xr
from memory import Memory
from torch import Tensor
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

import patchlib as pl
from patchlib.models.loading import MINI
from patchlib.prompts.pairs import PromptPairs

METRICS = ("logit_diff", "prob", "kl", "log_prob")
Hook = tuple[str, Callable[[Tensor, object], Tensor | None]]
# Single precision, in sums of a different order.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
OPTIONS = {"corruption": pl.STR("S2"), "metrics": METRICS, "progress": False}


def attention_only(folder: Path, layers: int) -> TransformerBridge:
    """A GPT-2 with random weights, whose MLPs write nothing."""
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    settings = {"n_layer": layers, "n_head": 4, "n_embd": 32, "n_positions": 64}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(layers)
    config = GPT2Config(vocab_size=len(tokenizer), initializer_range=0.3, **settings, **special)
    gpt2 = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for block in gpt2.transformer.h:
            block.mlp.c_proj.weight.zero_()
            block.mlp.c_proj.bias.zero_()
    gpt2.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return pl.load_model(folder)


def raw(fx: xr.Dataset) -> xr.Dataset:
    """The metrics themselves: an effect may be a small difference divided by a small one."""
    return fx[["patched", "clean", "corrupted"]]


def inputs_of_all(model: TransformerBridge) -> list[str]:
    """All that reads the residual stream."""
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    qkv = [f"{part}{layer}.{head}" for layer in layers for head in heads for part in "qkv"]
    return [*qkv, *(f"mlp_in{layer}" for layer in layers), "logits"]


def writers_before(model: TransformerBridge, layer: int) -> list[str]:
    """All that has written into the residual stream before a layer."""
    heads = [f"{below}.{head}" for below in range(layer) for head in range(model.cfg.n_heads)]
    return ["resid0", *heads, *(f"mlp{below}" for below in range(layer))]


def test_paths_by_hand(tmp_path: Path):
    """In the model of test_closed_form, whose corrupted run ends with (-3, -4, 0).

    Restored alone in what the logits read, head 0 gives (3, -4, 0)/5 and head 1 (-3, 4, 0)/5, with
    logit differences of a + c - b = 7/5 and -7/5. An MLP that answers to head 0 adds its 12:
    (3, -4, 12)/13 and 19/13. In what the MLP reads alone, head 0 gives (-3, -4, 12)/13 and 1, and
    head 1 leaves a negative a, which the neuron does not see. The way is 42/65 from 1/5.
    """
    by_hand.save_weights(tmp_path)
    by_hand.save_words(tmp_path)
    model, pairs = pl.load_model(tmp_path), PromptPairs("by hand", (by_hand.prompt(),))
    options = {"corruption": pl.STR("first"), "metrics": "logit_diff", "progress": False}
    for receivers, mlps, expected in (
        ("logits", "freeze", [7 / 5, -7 / 5]),
        ("logits", "recompute", [19 / 13, -7 / 5]),
        ("mlp_in0", "freeze", [1, 1 / 5]),
        ("mlp_in0", "recompute", [1, 1 / 5]),
        (["mlp_in0", "logits"], "freeze", [19 / 13, -7 / 5]),
        # No head comes after another one.
        (["q0.0", "k0.0", "v0.0", "v0.1"], "recompute", [1 / 5, 1 / 5]),
    ):
        fx = pl.path_patch(model, pairs, "head", receivers, mlps=mlps, **options)
        np.testing.assert_allclose(fx.patched, [[expected]], atol=1e-5)
        effect = (np.array(expected) - 1 / 5) * 65 / 42
        np.testing.assert_allclose(fx.effect, [[effect]], atol=1e-5)
    direct = pl.direct_effect(model, pairs, **options)
    np.testing.assert_allclose(direct.patched, [[[7 / 5, -7 / 5]]], atol=1e-5)
    # The MLP writes into nothing but the logits: (-3, -4, 12)/13.
    np.testing.assert_allclose(
        pl.direct_effect(model, pairs, "mlp", **options).patched, [[1]], **CLOSE
    )


def four_runs(
    model: TransformerBridge,
    pairs: PromptPairs,
    sender: tuple[str, int, int | None],
    receivers: list[str],
    mlps: str,
    at: int | slice = slice(None),
) -> Tensor:
    """Wang et al.'s procedure by plain hooks: the mean logit difference when denoising."""
    source, destination = pairs.clean_tokens, pairs.corrupted_tokens("S2")
    activation, sender_layer, head = sender
    with torch.no_grad():
        _, a = model.run_with_cache(source)
        _, b = model.run_with_cache(destination)
        frozen = {}
        for layer in range(model.cfg.n_layers):
            for kind in ["z", *(["mlp_out"] if mlps == "freeze" else [])]:
                frozen[get_act_name(kind, layer)] = b[get_act_name(kind, layer)].clone()
        name = get_act_name(activation, sender_layer)
        if head is None:
            frozen.setdefault(name, b[name].clone())[:, at] = a[name][:, at]
        else:
            frozen[name][:, at, head] = a[name][:, at, head]
        seen: dict[str, Tensor] = {}
        reading: list[tuple[str, int | slice]] = []
        for receiver in receivers:
            kind, layer, number = re.fullmatch("([a-z_]+)([0-9]+)[.]?([0-9]*)", receiver).groups()
            # What the MLP's first matrix reads: its own hook in all families.
            at = (
                f"blocks.{layer}.mlp.hook_in"
                if kind == "mlp_in"
                else get_act_name(kind, int(layer))
            )
            which: int | slice = slice(None)
            if number:
                which = int(number) * b[at].shape[2] // model.cfg.n_heads
            reading.append((at, which))

        # An activation has several names, and hooks know one of them.
        def watch(at: str) -> Hook:
            return at, lambda activation, hook: seen.update({at: activation})

        def fix(name: str) -> Hook:
            return name, lambda activation, hook: frozen[name]

        hooks = [*map(watch, dict(reading)), *map(fix, frozen)]
        model.run_with_hooks(destination, fwd_hooks=hooks)

        def read(at: str, which: int | slice) -> Hook:
            def hook(activation: Tensor, hook) -> Tensor:
                new = activation.clone()
                new[:, :, which] = seen[at][:, :, which]
                return new

            return at, hook

        logits = model.run_with_hooks(destination, fwd_hooks=[read(*each) for each in reading])
    rows = torch.arange(len(pairs))
    right = torch.tensor([prompt.answers[0] for prompt in pairs.prompts])
    wrong = torch.tensor([prompt.wrong_answers[0] for prompt in pairs.prompts])
    return (logits[rows, -1, right] - logits[rows, -1, wrong]).mean()


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
@pytest.mark.parametrize(
    "receivers",
    [["q2.1"], ["k2.3"], ["v2.0", "v2.1"], ["q2.0", "k2.0", "v2.2"], ["mlp_in2"]],
    ids=" ".join,
)
def test_the_four_runs(model: TransformerBridge, receivers: list[str], mlps: str):
    """As plain hooks give it, for senders in every layer below."""
    pairs = pl.tasks.ioi(model, 3, seed=3)
    options = {"mlps": mlps, **OPTIONS, "metrics": "logit_diff"}
    heads = pl.path_patch(model, pairs, "head", receivers, **options).patched[0]
    of_mlps = pl.path_patch(model, pairs, "mlp", receivers, **options).patched[0]
    for layer in (0, 1):
        for head in (0, 3):
            theirs = four_runs(model, pairs, ("z", layer, head), receivers, mlps)
            np.testing.assert_allclose(heads[layer, head], theirs, **CLOSE)
        theirs = four_runs(model, pairs, ("mlp_out", layer, None), receivers, mlps)
        np.testing.assert_allclose(of_mlps[layer], theirs, **CLOSE)
    assert heads[:2].std() > 1e-4


@pytest.mark.parametrize("receivers", [["k2.3", "v2.0"], ["mlp_in2"]], ids=" ".join)
def test_senders_at_some_positions(tiny: TransformerBridge, receivers: list[str]):
    """One each, as plain hooks give it; nothing where the runs do not differ."""
    pairs = pl.tasks.ioi(tiny, 3, seed=3)
    assert len({len(prompt.clean) for prompt in pairs.prompts}) == 1
    options = {**OPTIONS, "metrics": "logit_diff"}
    each = pl.path_patch(tiny, pairs, "head", receivers, positions="each", **options)
    at = int((pairs.clean_tokens != pairs.corrupted_tokens("S2")).any(0).int().argmax())
    assert (each.effect.sel(position=slice(None, at - 1)) == 0).all()
    for position in (at, each.sizes["position"] - 1):
        theirs = four_runs(tiny, pairs, ("z", 1, 3), receivers, "recompute", position)
        np.testing.assert_allclose(each.patched[0, 1, 3, position], theirs, **CLOSE)
    late = pl.path_patch(tiny, pairs, "head", receivers, positions="last", **options)
    np.testing.assert_allclose(late.patched, each.patched.isel(position=-1), **CLOSE)
    assert late.effect.std() > 0


def test_a_position_that_not_every_prompt_has(tiny_gpt2: TransformerBridge):
    """Is NaN in those without it, and an effect in the others."""
    pairs = pl.tasks.factual_recall(tiny_gpt2, 12)
    options = {**OPTIONS, "corruption": pl.STR("subject"), "keep_prompts": True}
    there = np.array([bool(at) for at in pairs.at("middle_subject")])
    assert 0 < there.sum() < len(pairs)
    fx = pl.path_patch(tiny_gpt2, pairs, "mlp", "v2.0", positions="middle_subject", **options)
    assert (fx.effect.notnull() == xr.DataArray(there, dims="prompt")).all()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("senders", ["head", "mlp"])
def test_all_paths_of_a_sender_are_its_activation_patch(
    model: TransformerBridge, senders: str, direction: str
):
    """Whatever reads the sender, reads what it writes in the other run; under noise, too."""
    pairs = pl.tasks.ioi(model, 3, seed=1)
    for corruption in (pl.STR("S2"), pl.GN("S2", draws=2)):
        options = OPTIONS | {"corruption": corruption, "direction": direction}
        paths = pl.path_patch(model, pairs, senders, inputs_of_all(model), mlps="freeze", **options)
        whole = pl.patch(model, pairs, senders, **options)
        xr.testing.assert_allclose(raw(paths), raw(whole), **CLOSE)
        np.testing.assert_allclose(paths.effect_sd, whole.effect_sd, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
def test_no_path_leads_back(model: TransformerBridge, mlps: str):
    """A sender at the receiver's layer or after it changes nothing, to the last bit."""
    pairs = pl.tasks.ioi(model, 3, seed=2)
    parallel = bool(model.cfg.parallel_attn_mlp)
    for receivers, first in (("v1.2", 1), ("q0.1", 0), ("mlp_in1", 1 if parallel else 2)):
        fx = pl.path_patch(model, pairs, "head", receivers, mlps=mlps, **OPTIONS)
        after = fx.patched.sel(layer=slice(first, None))
        assert (after == fx.corrupted).all() and (fx.effect.sel(layer=after.layer) == 0).all()
        before = fx.patched.sel(layer=slice(None, first - 1), metric="logit_diff")
        assert (before != fx.corrupted.sel(metric="logit_diff")).all()
    fx = pl.path_patch(model, pairs, "mlp", "mlp_in1", mlps=mlps, **OPTIONS)
    assert (fx.effect.sel(layer=slice(1, None)) == 0).all()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
def test_all_writers(model: TransformerBridge, mlps: str, direction: str):
    """Into one head they are the patch of its query, key and value; into the logits, all."""
    pairs = pl.tasks.ioi(model, 3, seed=4)
    options = OPTIONS | {"direction": direction}
    for receivers in (["q2.1"], ["q2.1", "k2.1", "v2.1"]):
        paths = pl.path_patch(
            model, pairs, writers_before(model, 2), receivers, mlps=mlps, **options
        )
        whole = pl.patch_together(model, pairs, receivers, **options)
        xr.testing.assert_allclose(raw(paths), raw(whole), **CLOSE)
    everyone = writers_before(model, model.cfg.n_layers)
    fx = pl.path_patch(model, pairs, everyone, "logits", mlps=mlps, **options)
    there = fx.clean if direction == "denoise" else fx.corrupted
    np.testing.assert_allclose(fx.patched, there, **CLOSE)


def test_what_only_the_logits_read(model: TransformerBridge):
    """The last layer's MLP, and its heads where an MLP answers to them or stands beside them."""
    pairs = pl.tasks.ioi(model, 4)
    for senders in ("head", "mlp"):
        paths = pl.path_patch(model, pairs, senders, "logits", **OPTIONS)
        whole = pl.patch(model, pairs, senders, layers=[model.cfg.n_layers - 1], **OPTIONS)
        np.testing.assert_allclose(paths.patched[:, -1:], whole.patched, **CLOSE)
        direct = pl.direct_effect(model, pairs, senders, **OPTIONS)
        read_by_an_mlp = senders == "head" and not model.cfg.parallel_attn_mlp
        alike = np.allclose(direct.patched[:, -1:], whole.patched, **CLOSE)
        assert alike != read_by_an_mlp


def test_attention_alone(tmp_path: Path):
    """In one layer the direct effect is all; in more the MLPs between change nothing."""
    one, three = (attention_only(tmp_path / str(layers), layers) for layers in (1, 3))
    pairs = pl.tasks.ioi(one, 4)
    direct = pl.direct_effect(one, pairs, **OPTIONS)
    whole = pl.patch(one, pairs, **OPTIONS)
    xr.testing.assert_allclose(raw(direct), raw(whole), **CLOSE)
    assert abs(whole.effect.sel(metric="logit_diff")).max() > 0.01
    for receivers in ("q2.1", "v1.0", "logits"):
        recomputed, frozen = (
            pl.path_patch(three, pairs, "head", receivers, mlps=mlps, **OPTIONS)
            for mlps in ("recompute", "freeze")
        )
        xr.testing.assert_allclose(raw(recomputed), raw(frozen), **CLOSE)
        assert recomputed.patched.sel(metric="logit_diff").std() > 1e-3


def test_mlps_between(tiny: TransformerBridge):
    """They make a difference where there are any, and none from one layer to the next."""
    pairs = pl.tasks.ioi(tiny, 4)
    recomputed, frozen = (
        pl.path_patch(tiny, pairs, "head", "v2.1", mlps=mlps, **OPTIONS).patched
        for mlps in ("recompute", "freeze")
    )
    assert not np.allclose(recomputed[:, 0], frozen[:, 0], **CLOSE)
    # A parallel MLP reads what its layer's heads read, and not what they write.
    assert np.allclose(recomputed[:, 1], frozen[:, 1], **CLOSE) == tiny.cfg.parallel_attn_mlp
    recomputed, frozen = (
        pl.path_patch(tiny, pairs, "mlp", "v2.1", mlps=mlps, **OPTIONS).patched
        for mlps in ("recompute", "freeze")
    )
    assert np.allclose(recomputed[:, 1], frozen[:, 1], **CLOSE)


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_against_transformer_lens(
    model: TransformerBridge, component: str, monkeypatch: pytest.MonkeyPatch
):
    """One edge from head to head, with MLPs frozen, in every layer above the sender."""
    grouped = getattr(model.cfg, "n_key_value_heads", None) not in (None, model.cfg.n_heads)
    if grouped and component != "q":
        pytest.skip("TransformerLens refuses keys and values that heads share")
    if model.cfg.parallel_attn_mlp and "blocks.0.ln2.hook_in" not in model.hook_dict:
        pytest.skip("TransformerLens has no query inputs of single heads in GPT-J")
    monkeypatch.setattr(patching, "tqdm", lambda cells, **_: cells)
    pairs = pl.tasks.ioi(model, 4, seed=1)
    rows = torch.arange(len(pairs))
    right = torch.tensor([prompt.answers[0] for prompt in pairs.prompts])
    wrong = torch.tensor([prompt.wrong_answers[0] for prompt in pairs.prompts])
    with torch.no_grad():
        _, clean = model.run_with_cache(pairs.clean_tokens)
        _, corrupted = model.run_with_cache(pairs.corrupted_tokens("S2"))
        layer = model.cfg.n_layers - 3
        theirs = patching.get_act_patch_direct_path(
            model,
            pairs.corrupted_tokens("S2"),
            clean,
            corrupted,
            lambda logits: (logits[rows, -1, right] - logits[rows, -1, wrong]).mean(),
            layer,
            1,
            component,
        ).numpy()
    assert theirs[layer + 1 :].std() > 3e-4
    for above in range(layer + 1, model.cfg.n_layers):
        for head in (0, 3):
            ours = pl.path_patch(
                model,
                pairs,
                [(layer, 1)],
                f"{component}{above}.{head}",
                mlps="freeze",
                **OPTIONS | {"metrics": "logit_diff"},
            )
            np.testing.assert_allclose(ours.patched.item(), theirs[above, head], **CLOSE)


def test_noising_is_denoising_of_exchanged_prompts(model: TransformerBridge):
    """The two runs change places."""
    pairs = pl.tasks.ioi(model, 3)
    prompts = [
        dataclasses.replace(p, clean=p.corrupted["S2"], corrupted={"S2": p.clean}, words=())
        for p in pairs.prompts
    ]
    exchanged = dataclasses.replace(pairs, prompts=tuple(prompts))
    options = OPTIONS | {"metrics": ["logit_diff", "kl"]}
    noise = pl.path_patch(model, pairs, "head", "q2.1", direction="noise", **options)
    denoise = pl.path_patch(model, exchanged, "head", "q2.1", **options)
    np.testing.assert_allclose(noise.patched, denoise.patched, **CLOSE)
    np.testing.assert_allclose(noise.corrupted, denoise.clean, **CLOSE)


def test_prompts_of_several_lengths(model: TransformerBridge):
    """Each as if it were alone, in a budget for a few rows as in one for all."""
    pairs = pl.tasks.factual_recall(model, 6)
    assert len({len(prompt.clean) for prompt in pairs.prompts}) > 1
    options = OPTIONS | {"corruption": pl.STR("subject")}
    together = pl.path_patch(model, pairs, "head", "v2.0", keep_prompts=True, **options)
    for number in range(len(pairs)):
        alone = pl.path_patch(model, pairs[[number]], "head", "v2.0", **options)
        xr.testing.assert_allclose(
            raw(together.isel(prompt=number)).drop_vars("text"), raw(alone), **CLOSE
        )
    mean = pl.path_patch(model, pairs, "head", "v2.0", **options)
    np.testing.assert_allclose(mean.effect, together.effect.mean("prompt"), **CLOSE)


@pytest.mark.parametrize("receivers", [["v2.1"], ["logits"], ["q1.0", "mlp_in1", "mlp_in2"]])
def test_paths_keep_to_the_budget(tiny: TransformerBridge, receivers: list[str]):
    """Of the smallest budget that the refusal names, with the same numbers."""
    pairs = pl.tasks.ioi(tiny, 3)
    options = OPTIONS | {"corruption": pl.GN("S1+IO")}
    with pytest.raises(pl.PatchlibError, match=r"needs \d+ bytes") as refusal:
        pl.path_patch(tiny, pairs, "head", receivers, memory_budget=1000, **options)
    (smallest,) = re.findall(r"give memory_budget=(\d+) or more", str(refusal.value))
    plenty = pl.path_patch(tiny, pairs, "head", receivers, **options)
    for budget in (int(smallest), 3 * int(smallest)):
        with Memory(tiny) as memory:
            fx = pl.path_patch(tiny, pairs, "head", receivers, memory_budget=budget, **options)
        assert memory.most <= budget
        xr.testing.assert_allclose(fx, plenty, rtol=1e-3, atol=1e-4)


def test_what_results_say(mini: TransformerBridge, tmp_path: Path):
    """All that decides the numbers; they are as those of a patch for what is made of them."""
    pairs = pl.tasks.ioi(mini, 4)
    done: list[tuple[int, int]] = []
    options = OPTIONS | {"progress": lambda *rows: done.append(rows)}
    fx = pl.path_patch(mini, pairs, "head", "q4.1, mlp_in3", keep_prompts=True, **options)
    assert done[0] == (0, 4 * 64) and done[-1] == (4 * 64, 4 * 64)
    assert fx.effect.dims == ("metric", "prompt", "layer", "head")
    said = ("method", "component", "receivers", "mlps", "direction", "site")
    expected = ["path patching", "head", "q4.1, mlp_in3", "recompute", "denoise", "S2"]
    assert [fx.attrs[name] for name in said] == expected
    title = pl.plot.heatmap(fx, "kl").axes[0].get_title()
    expected = "effect of patching heads into q4.1, mlp_in3 (MLPs: recompute)\nSTR on S2\n"
    assert title == expected + "mini, IOI, 4 prompts"
    several = pl.path_patch(mini, pairs, ["4.0", "mlp1", "resid0"], ["logits"], **OPTIONS)
    assert several.effect.dims == ("metric",)
    assert several.attrs["parts"] == "resid_pre0, mlp_out1, z4.0"
    path = tmp_path / "effects.nc"
    fx.to_netcdf(path)
    assert xr.load_dataset(path).identical(fx)
    assert pl.detect(fx.mean("prompt", keep_attrs=True)).heads.map(len).sum() > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"senders": ["resid2"]}, "resid_pre2 does not write"),
        ({"senders": ["q1.1"]}, "q1.1 does not write"),
        ({"senders": []}, "nothing was given"),
        ({"receivers": "4.6"}, "'4.6' is none; allowed are"),
        ({"receivers": ["mlp3"]}, "'mlp3' is none"),
        ({"receivers": 3}, "'3' is none"),
        ({"receivers": []}, "give at least one"),
        ({"receivers": "q9.9"}, "'q9.9' does not exist"),
        ({"mlps": "mean"}, "mlps='mean': allowed are"),
        ({"direction": "up"}, "direction='up'"),
        ({"corruption": "S2"}, "give pl.STR"),
    ],
)
def test_refusals(mini: TransformerBridge, wrong: dict, message: str):
    """Each says what is allowed."""
    settings = {"senders": "head", "receivers": "q4.1", **OPTIONS} | wrong
    with pytest.raises(pl.PatchlibError, match=message):
        pl.path_patch(mini, pl.tasks.ioi(mini, 2), **settings)


def test_an_unknown_architecture_is_refused(tiny_gpt2: TransformerBridge):
    """As is a hook that this way of running the model would pass by."""
    tiny_gpt2.add_hook("blocks.0.attn.hook_z", lambda z, hook: 2 * z)
    try:
        with pytest.raises(pl.PatchlibError, match="paths cannot be patched in this model: a hook"):
            pl.direct_effect(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, 2), **OPTIONS)
    finally:
        tiny_gpt2.reset_hooks()

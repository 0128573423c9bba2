"""Both engines' numbers are those of TransformerLens' own patching functions."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from conftest import LAYERS
from torch import Tensor
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

import patchlib as pl
from patchlib.patching import architectures
from patchlib.patching.cells import COMPONENTS
from patchlib.patching.patch import ENGINES
from patchlib.prompts.pairs import PromptPairs

METRICS = ["logit_diff", "prob"]
# A tiny model spreads its probability over thousands of tokens: only a share of it means much.
TOLERANCE = {"logit_diff": {"atol": 1e-4, "rtol": 0}, "prob": {"atol": 1e-8, "rtol": 1e-3}}
BY_POSITION = {
    "mlp": patching.get_act_patch_mlp_out,
    "attn": patching.get_act_patch_attn_out,
    "resid": patching.get_act_patch_resid_pre,
}
# At all positions, and at each.
OF_HEADS = {
    "head": (
        patching.get_act_patch_attn_head_out_all_pos,
        patching.get_act_patch_attn_head_out_by_pos,
    ),
    "q": (patching.get_act_patch_attn_head_q_all_pos, patching.get_act_patch_attn_head_q_by_pos),
    "k": (patching.get_act_patch_attn_head_k_all_pos, patching.get_act_patch_attn_head_k_by_pos),
    "v": (patching.get_act_patch_attn_head_v_all_pos, patching.get_act_patch_attn_head_v_by_pos),
    "pattern": (
        patching.get_act_patch_attn_head_pattern_all_pos,
        patching.get_act_patch_attn_head_pattern_by_pos,
    ),
}


@pytest.fixture(autouse=True)
def no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "tqdm", lambda cells: cells)


def with_bos(model: TransformerBridge) -> PromptPairs:
    return pl.tasks.ioi(model, n=4, seed=1, prepend_bos=True)


def measures(pairs: PromptPairs) -> dict[str, Callable[[Tensor], Tensor]]:
    """The two metrics once more, from their definitions."""
    io = torch.tensor([prompt.answers[0] for prompt in pairs.prompts])
    s = torch.tensor([prompt.wrong_answers[0] for prompt in pairs.prompts])
    rows = torch.arange(len(pairs))

    def logit_diff(logits: Tensor) -> Tensor:
        return (logits[rows, -1, io] - logits[rows, -1, s]).mean()

    def prob(logits: Tensor) -> Tensor:
        return logits[:, -1].softmax(-1)[rows, io].mean()

    return {"logit_diff": logit_diff, "prob": prob}


def by_transformer_lens(
    model: TransformerBridge, pairs: PromptPairs, function: Callable
) -> dict[str, np.ndarray]:
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean_tokens)
        result = function(model, pairs.corrupted_tokens("S2"), cache, measures(pairs))
    return {name: result[name].values.numpy() for name in METRICS}


@pytest.mark.parametrize("component", OF_HEADS)
@pytest.mark.parametrize("positions", ["all", "each"])
def test_heads(model: TransformerBridge, component: str, positions: str):
    """z, query, key, value or pattern of one head, at all positions or at one."""
    if component == "pattern" and architectures.obstacle(model, "pattern"):
        pytest.skip("TransformerLens cannot change this pattern; patch refuses it")
    if positions == "each" and model.cfg.n_layers > LAYERS:
        pytest.skip("on a small model of the same family alone: a thousand runs say no more")
    pairs = with_bos(model)
    settings = {"corruption": pl.STR("S2"), "metrics": METRICS, "progress": False}
    theirs = by_transformer_lens(model, pairs, OF_HEADS[component][positions == "each"])
    if positions == "each" and component != "pattern":
        # TransformerLens puts heads behind positions here.
        theirs = {name: values.swapaxes(1, 2) for name, values in theirs.items()}
    for engine in ENGINES:
        fx = pl.patch(model, pairs, component, positions=positions, engine=engine, **settings)
        for name in METRICS:
            np.testing.assert_allclose(fx.patched.sel(metric=name), theirs[name], **TOLERANCE[name])
            # All cells alike would compare equal for the wrong reason.
            assert theirs[name].std() > 1e-4 * abs(theirs[name].mean())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("component", BY_POSITION)
def test_layers_by_position(model: TransformerBridge, component: str, engine: str):
    """One layer's activation at one position."""
    pairs = with_bos(model)
    settings = {"corruption": pl.STR("S2"), "metrics": METRICS, "progress": False}
    fx = pl.patch(model, pairs, component, positions="each", engine=engine, **settings)
    theirs = by_transformer_lens(model, pairs, BY_POSITION[component])
    for name in METRICS:
        np.testing.assert_allclose(fx.patched.sel(metric=name), theirs[name], **TOLERANCE[name])
        assert theirs[name].std() > 1e-3 * abs(theirs[name].mean())


@pytest.mark.parametrize("component", OF_HEADS)
def test_one_head_by_patch_together(tiny: TransformerBridge, component: str):
    """A set of one head is that head's cell; its key and value are those of its group."""
    if component == "pattern" and architectures.obstacle(tiny, "pattern"):
        pytest.skip("TransformerLens cannot change this pattern; patch refuses it")
    activation = COMPONENTS[component]
    pairs = with_bos(tiny)
    theirs = by_transformer_lens(tiny, pairs, OF_HEADS[component][0])
    for head in (1, 3):
        fx = pl.patch_together(
            tiny, pairs, [(1, head)], corruption=pl.STR("S2"), activation=activation
        )
        for name in METRICS:
            ours = fx.patched.sel(metric=name)
            number = head * theirs[name].shape[1] // tiny.cfg.n_heads
            np.testing.assert_allclose(ours, theirs[name][1, number], **TOLERANCE[name])


def test_the_middle_of_the_stream(mini: TransformerBridge):
    """By plain PyTorch: TransformerLens' own function changes what the MLP reads alone.

    In GPT-2 the stream after the attention is what the second norm reads, and what is added to.
    """
    pairs = with_bos(mini)
    block = mini.original_model.transformer.h[3]
    attention = block.attn

    def run(tokens: Tensor, at: int | None = None, mid: Tensor | None = None) -> Tensor:
        stream: list[Tensor] = []

        def before(module: object, given: tuple) -> None:
            stream.append(given[0])

        def change(module: object, given: tuple, out: tuple) -> tuple:
            new = stream[-1] + out[0]
            stream.append(new.clone())
            if mid is not None:
                new = new.clone()
                new[:, at] = mid[:, at]
            return (new - stream[0], *out[1:])

        hooks = [block.register_forward_pre_hook(before), attention.register_forward_hook(change)]
        try:
            with torch.no_grad():
                logits = mini(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        return logits if mid is not None else stream[-1]

    mid = run(pairs.clean_tokens)
    fx = pl.patch(
        mini,
        pairs,
        "resid_mid",
        corruption=pl.STR("S2"),
        metrics=METRICS,
        layers=[3],
        positions="each",
        progress=False,
    )
    for name, measure in measures(pairs).items():
        theirs = [measure(run(pairs.corrupted_tokens("S2"), at, mid)) for at in fx.position.values]
        np.testing.assert_allclose(fx.patched.sel(metric=name)[0], theirs, **TOLERANCE[name])
        assert np.std(theirs) > 1e-3 * abs(np.mean(theirs))


def test_interval(tiny_gpt2: TransformerBridge):
    """The interval is TransformerLens' bootstrap over the prompts, with its way of seeding."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=6)
    corruption = pl.STR("S2")
    fx = pl.patch(tiny_gpt2, pairs, corruption=corruption, keep_prompts=True, progress=False)
    found = pl.interval(fx, confidence=0.9, n_resamples=300, seed=5)
    for metric in ("logit_diff", "prob", "kl"):
        effect = fx.effect.sel(metric=metric).transpose("layer", "head", "prompt")
        low, high = bootstrap_ci(
            torch.tensor(effect.values),
            confidence=0.9,
            n_resamples=300,
            generator=derive_generator(5, "bootstrap"),
        )
        np.testing.assert_allclose(found.low.sel(metric=metric), low, rtol=1e-12)
        np.testing.assert_allclose(found.high.sel(metric=metric), high, rtol=1e-12)
    assert found.attrs["confidence"] == 0.9
    assert (found.low < found.high).all()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("positions", ["all", "S2", ["last", "S2"]], ids=str)
def test_a_mixture_is_restored_together(
    tiny: TransformerBridge, direction: str, positions: str | list[str]
):
    """By TransformerLens' own hooks, one for each part."""
    pairs = pl.tasks.ioi(tiny, n=3)
    parts = {
        "0.1": ("blocks.0.attn.hook_z", 1),
        "q1.0": ("blocks.1.attn.hook_q", 0),
        "mlp1": ("blocks.1.hook_mlp_out", None),
        "2.3": ("blocks.2.attn.hook_z", 3),
        "neuron2.7": ("blocks.2.mlp.hook_post", 7),
        "resid2": ("blocks.2.hook_resid_pre", None),
    }
    source, destination = pairs.clean_tokens, pairs.corrupted_tokens("S2")
    if direction == "noise":
        source, destination = destination, source
    names = positions if isinstance(positions, list) else [positions]
    expected = []
    for position in names:
        at = slice(None) if position == "all" else pairs.positions[position]
        rows = slice(None) if position == "all" else torch.arange(3)

        def restore(
            here: Tensor, hook: object, theirs: Tensor, unit: int | None, rows=rows, at=at
        ) -> Tensor:
            here = here.clone()
            # The last index is the unit's, where there is one.
            mine, other = (here, theirs) if unit is None else (here[:, :, unit], theirs[:, :, unit])
            mine[rows, at] = other[rows, at]
            return here

        with torch.no_grad():
            _, cache = tiny.run_with_cache(source)
            hooks = [
                (name, partial(restore, theirs=cache[name], unit=unit))
                for name, unit in parts.values()
            ]
            logits = tiny.run_with_hooks(destination, fwd_hooks=hooks)[:, -1]
        expected.append(logits.softmax(-1)[range(3), pairs.answers].numpy())
    fx = pl.patch_together(
        tiny,
        pairs,
        parts,
        corruption=pl.STR("S2"),
        metrics=["prob"],
        positions=positions,
        direction=direction,
        keep_prompts=True,
    )
    found = fx.patched.sel(metric="prob").transpose("prompt", ...).values.reshape(3, -1)
    np.testing.assert_allclose(found, np.array(expected).T, rtol=1e-4)
    assert fx.sizes["prompt"] == 3
    assert fx.attrs["parts"] == "z0.1, mlp_out1, q1.0, post2.7, resid_pre2, z2.3"

"""Both engines' numbers are those of TransformerLens' own patching functions."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

import patchlib as pl
from patchlib.prompts.pairs import PromptPairs
from patchlib.sweep.patching import ENGINES

METRICS = ["logit_diff", "prob"]
# A tiny model spreads its probability over thousands of tokens: only a share of it means much.
TOLERANCE = {"logit_diff": {"atol": 1e-4, "rtol": 0}, "prob": {"atol": 1e-8, "rtol": 1e-3}}
BY_POSITION = {
    "mlp": patching.get_act_patch_mlp_out,
    "attn": patching.get_act_patch_attn_out,
    "resid": patching.get_act_patch_resid_pre,
}


@pytest.fixture(params=["mini", "gpt2", "gpt_neox", "gptj", "llama"], scope="module")
def model(
    request: pytest.FixtureRequest,
    mini: TransformerBridge,
    tiny_folders: Callable[[str], Path],
) -> TransformerBridge:
    """Mini, and a small model of each family."""
    return mini if request.param == "mini" else pl.load_model(tiny_folders(request.param))


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


@pytest.mark.parametrize("engine", ENGINES)
def test_heads(model: TransformerBridge, engine: str):
    """z of one head at all positions."""
    pairs = with_bos(model)
    settings = {"corruption": pl.STR("S2"), "metrics": METRICS, "progress": False}
    fx = pl.patch(model, pairs, "head", engine=engine, **settings)
    theirs = by_transformer_lens(model, pairs, patching.get_act_patch_attn_head_out_all_pos)
    for name in METRICS:
        np.testing.assert_allclose(fx.patched.sel(metric=name), theirs[name], **TOLERANCE[name])
        # All cells alike would compare equal for the wrong reason.
        assert theirs[name].std() > 1e-3 * abs(theirs[name].mean())


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


@pytest.mark.parametrize("activation", ["z", "q", "k", "v"])
def test_one_head_by_patch_together(tiny: TransformerBridge, activation: str):
    """A set of one head is that head's cell, for its queries, keys and values too."""
    functions = {
        "z": patching.get_act_patch_attn_head_out_all_pos,
        "q": patching.get_act_patch_attn_head_q_all_pos,
        "k": patching.get_act_patch_attn_head_k_all_pos,
        "v": patching.get_act_patch_attn_head_v_all_pos,
    }
    pairs = with_bos(tiny)
    theirs = by_transformer_lens(tiny, pairs, functions[activation])
    for head in (0, 1):
        fx = pl.patch_together(
            tiny, pairs, [(1, head)], corruption=pl.STR("S2"), activation=activation
        )
        for name in METRICS:
            ours = fx.patched.sel(metric=name)
            np.testing.assert_allclose(ours, theirs[name][1, head], **TOLERANCE[name])


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


def test_heads_of_several_layers_are_restored_together(tiny: TransformerBridge) -> None:
    """By TransformerLens' own hooks, one for each head."""
    pairs, heads = pl.tasks.ioi(tiny, n=3), [(0, 1), (1, 0), (2, 3)]

    def restore(z: Tensor, hook: object, theirs: Tensor, head: int) -> Tensor:
        z = z.clone()
        z[:, :, head] = theirs[:, :, head]
        return z

    with torch.no_grad():
        _, cache = tiny.run_with_cache(pairs.clean_tokens)
        hooks = [
            (name, partial(restore, theirs=cache[name], head=head))
            for name, head in ((f"blocks.{layer}.attn.hook_z", head) for layer, head in heads)
        ]
        logits = tiny.run_with_hooks(pairs.corrupted_tokens("S2"), fwd_hooks=hooks)[:, -1]
    expected = logits.softmax(-1)[range(len(pairs)), pairs.answers].mean()
    fx = pl.patch_together(tiny, pairs, heads, corruption=pl.STR("S2"), metrics=["prob"])
    np.testing.assert_allclose(fx.patched.item(), expected, rtol=1e-4)

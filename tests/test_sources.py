"""Activations from elsewhere: zeros, means, other prompts."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from memory import Memory
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

import patchlib as pl
from patchlib.patching import architectures
from patchlib.patching.cells import COMPONENTS
from patchlib.patching.patch import ENGINES
from patchlib.prompts.pairs import PromptPairs

METRICS = ("logit_diff", "prob", "kl")
OPTIONS: dict[str, Any] = {"corruption": pl.STR("S2"), "metrics": METRICS, "progress": False}
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
RAW = ["patched", "clean", "corrupted"]


def by_hand(
    model: TransformerBridge, pairs: PromptPairs, component: str, layer: int, value: Tensor
) -> Tensor:
    """Logits of the corrupted run with one layer's activation replaced."""
    hooks = [(get_act_name(COMPONENTS[component], layer), lambda old, hook: value.expand_as(old))]
    with torch.no_grad():
        return model.run_with_hooks(pairs.corrupted_tokens("S2"), fwd_hooks=hooks)[:, -1]


def probability(logits: Tensor, pairs: PromptPairs) -> Tensor:
    return logits.softmax(-1)[range(len(pairs)), pairs.answers]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("component", ["mlp", "attn", "resid"])
def test_zeros_and_means_by_hand(tiny: TransformerBridge, component: str, engine: str):
    """A layer's activation as a hook replaces it."""
    pairs = pl.tasks.ioi(tiny, n=4)
    options = OPTIONS | {"engine": engine, "keep_prompts": True}
    with torch.no_grad():
        _, cache = tiny.run_with_cache(pairs.clean_tokens)
    for source, said in ((pl.Zero(), "zeros"), (pl.Mean(), "mean over 4 prompts of ioi")):
        fx = pl.patch(tiny, pairs, component, source=source, **options)
        for layer in range(3):
            values = cache[get_act_name(COMPONENTS[component], layer)]
            mean = values.double().mean(0, keepdim=True).to(values.dtype)
            value = mean if said.startswith("mean") else torch.zeros_like(mean)
            expected = probability(by_hand(tiny, pairs, component, layer, value), pairs)
            found = fx.patched.sel(metric="prob", layer=layer)
            np.testing.assert_allclose(found, expected, rtol=1e-3)
        assert fx.attrs["source"] == said
        # Effects are still measured on the way between the two unpatched runs.
        without = pl.patch(tiny, pairs, component, **options)
        for name in ("clean", "corrupted"):
            np.testing.assert_allclose(fx[name], without[name], **CLOSE)
        assert abs(fx.patched - without.patched).max() > 1e-3


@pytest.mark.parametrize("component", [name for name in COMPONENTS if name != "neuron"])
def test_engines_agree(tiny: TransformerBridge, component: str):
    """For every source, in both directions, at all positions and at some."""
    if component == "resid_mid" and tiny.cfg.parallel_attn_mlp:
        pytest.skip("no such activation")
    if architectures.obstacle(tiny, COMPONENTS[component]):
        pytest.skip("hooks alone, or not at all")
    pairs, other = pl.tasks.ioi(tiny, n=3), pl.tasks.ioi(tiny, n=3, seed=5)
    options = OPTIONS | {"keep_prompts": True}
    for source in (pl.Zero(), pl.Mean(other), other):
        for more in ({}, {"direction": "noise", "positions": ["last", 4]}):
            hooks, fast = (
                pl.patch(tiny, pairs, component, source=source, engine=name, **options | more)
                for name in ENGINES
            )
            xr.testing.assert_allclose(fast[RAW], hooks[RAW], rtol=1e-4, atol=1e-4)
            assert float(hooks.patched.std()) > 0


def test_neurons_by_engine(tiny: TransformerBridge):
    pairs = pl.tasks.ioi(tiny, n=2)
    for source in (pl.Zero(), pl.Mean(), pl.tasks.ioi(tiny, n=2, seed=5)):
        options = OPTIONS | {"layers": [2], "source": source}
        hooks, fast = (pl.patch(tiny, pairs, "neuron", engine=e, **options) for e in ENGINES)
        xr.testing.assert_allclose(fast[RAW], hooks[RAW], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("component", ["head", "v", "resid", "mlp"])
def test_prompts_as_their_own_source(tiny: TransformerBridge, component: str, engine: str):
    """Denoising takes activations from the clean run; a prompt's own clean run is that run."""
    pairs = pl.tasks.ioi(tiny, n=3)
    options = OPTIONS | {"engine": engine, "keep_prompts": True}
    own = pl.patch(tiny, pairs, component, source=pairs, **options)
    none = pl.patch(tiny, pairs, component, **options)
    xr.testing.assert_allclose(own[RAW], none[RAW], **CLOSE)
    # Put into the clean run itself, they change nothing.
    noising = pl.patch(tiny, pairs, component, source=pairs, direction="noise", **options)
    np.testing.assert_allclose(*xr.broadcast(noising.patched, noising.clean), **CLOSE)
    assert own.attrs["source"] == "clean run of 3 prompts of ioi"
    assert own.attrs["source_prompts"] == pairs.fingerprint
    # Each prompt from its own: in another order they are others.
    turned = pl.patch(tiny, pairs, component, source=pairs[[1, 2, 0]], **options)
    assert abs(turned.patched - own.patched).max() > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_other_prompts_run_as_they_are(tiny: TransformerBridge, engine: str):
    """What the residual stream of another prompt's clean run holds at its start is that prompt."""
    pairs, other = pl.tasks.ioi(tiny, n=3), pl.tasks.ioi(tiny, n=3, seed=5)
    options = OPTIONS | {"engine": engine, "keep_prompts": True}
    fx = pl.patch(tiny, pairs, "resid", source=other, **options)
    with torch.no_grad():
        logits = tiny(other.clean_tokens)[:, -1]
    expected = probability(logits, pairs)
    np.testing.assert_allclose(fx.patched.sel(metric="prob", layer=0), expected, rtol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mean_over_copies(tiny: TransformerBridge, engine: str):
    """The mean over copies of one prompt is that prompt; in its clean run it changes nothing."""
    pairs = pl.tasks.ioi(tiny, n=1)
    options = OPTIONS | {"engine": engine, "direction": "noise"}
    for component in ("head", "mlp", "k"):
        fx = pl.patch(tiny, pairs, component, source=pl.Mean(pairs[[0] * 7]), **options)
        np.testing.assert_allclose(*xr.broadcast(fx.patched, fx.clean), **CLOSE)
        denoising = options | {"direction": "denoise"}
        mean = pl.patch(tiny, pairs, component, source=pl.Mean(), **denoising)
        none = pl.patch(tiny, pairs, component, **denoising)
        xr.testing.assert_allclose(mean[RAW], none[RAW], **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_head_that_writes_nothing(tiny_folders, engine: str):
    """Where W_O of a head is zero, its z may be anything."""
    model = pl.load_model(tiny_folders("gpt2"))
    with torch.no_grad():
        model.blocks[1].attn.o.original_component.weight[16:24] = 0
    pairs = pl.tasks.ioi(model, n=3)
    fx = pl.patch(model, pairs, source=pl.Zero(), engine=engine, **OPTIONS)
    silent = fx.sel(layer=1, head=2)
    np.testing.assert_allclose(silent.patched, silent.corrupted, **CLOSE)
    np.testing.assert_allclose(silent.effect, 0, atol=1e-3)
    speaking = fx.effect.where(~((fx.layer == 1) & (fx["head"] == 2)))
    assert abs(speaking.sel(metric="prob")).min() > 1e-9
    assert abs(speaking.sel(metric="kl")).max() > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_prompts_of_several_lengths(tiny_gpt2: TransformerBridge, engine: str):
    """Each prompt from its own, and a mean over those of its length."""
    pairs = pl.tasks.factual_recall(tiny_gpt2, n=9)
    options = OPTIONS | {"corruption": pl.STR("subject"), "engine": engine, "keep_prompts": True}
    own = pl.patch(tiny_gpt2, pairs, "mlp", source=pairs, **options)
    none = pl.patch(tiny_gpt2, pairs, "mlp", **options)
    xr.testing.assert_allclose(own[RAW], none[RAW], **CLOSE)
    mean = pl.patch(tiny_gpt2, pairs, "mlp", source=pl.Mean(), **options)
    groups = list(pairs.by_length())
    assert len(groups) > 1
    for index, group in groups:
        alone = pl.patch(tiny_gpt2, group, "mlp", source=pl.Mean(), **options)
        xr.testing.assert_allclose(mean.patched.isel(prompt=index), alone.patched, **CLOSE)
    _, first = groups[0]
    with pytest.raises(pl.PatchlibError, match=r"no prompt of \d+ tokens.*prompts of every length"):
        pl.patch(tiny_gpt2, pairs, "mlp", source=pl.Mean(first), **options)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_draw_takes_the_same(tiny_gpt2: TransformerBridge, engine: str):
    """What is put in does not depend on the noise."""
    pairs, other = pl.tasks.ioi(tiny_gpt2, n=3), pl.tasks.ioi(tiny_gpt2, n=3, seed=5)
    options = OPTIONS | {"corruption": pl.GN("S2", draws=3), "engine": engine}
    fx = pl.patch(tiny_gpt2, pairs, "resid", source=other, keep_draws=True, **options)
    # All of the stream at its start: nothing of the noise is left.
    first = fx.patched.isel(layer=0)
    np.testing.assert_allclose(*xr.broadcast(first, first.isel(draw=0)), **CLOSE)
    assert (fx.corrupted.sel(metric="prob").std("draw") > 0).all()


def test_sources_that_do_not_fit(tiny_gpt2: TransformerBridge):
    pairs = pl.tasks.ioi(tiny_gpt2, n=3)
    with pytest.raises(pl.PatchlibError, match="holds 2 prompts for 3: give one for each"):
        pl.patch(tiny_gpt2, pairs, source=pairs[:2], **OPTIONS)
    first = pairs.prompts[0]
    longer = dataclasses.replace(first, clean=(*first.clean, 1))
    wrong = dataclasses.replace(pairs, prompts=(longer, *pairs.prompts[1:]))
    with pytest.raises(pl.PatchlibError, match=r"of 16 tokens for .* of 15: give each prompt one"):
        pl.patch(tiny_gpt2, pairs, source=wrong, **OPTIONS)
    with pytest.raises(pl.PatchlibError, match=r"no prompt of 15 tokens"):
        pl.patch(tiny_gpt2, pairs, source=pl.Mean(pairs[[]]), **OPTIONS)
    elsewhere = dataclasses.replace(first, positions=first.positions | {"S2": (9,), "IO": (1,)})
    moved = dataclasses.replace(pairs, prompts=(elsewhere, *pairs.prompts[1:]))
    for positions in ("S2", ["last", "S2"], ["S1+IO"]):
        with pytest.raises(pl.PatchlibError, match=r"positions='S.*has other tokens in source="):
            pl.patch(tiny_gpt2, pairs, "mlp", source=moved, positions=positions, **OPTIONS)
    # By number, and at names that mean the same or that the source does not have, they fit.
    unnamed = [dataclasses.replace(p, positions={"last": (14,)}) for p in pairs.prompts]
    nameless = dataclasses.replace(pairs, prompts=tuple(unnamed))
    named = pl.patch(tiny_gpt2, pairs, "mlp", source=pairs, positions=["S2", "last"], **OPTIONS)
    again = pl.patch(tiny_gpt2, pairs, "mlp", source=nameless, positions=["S2", "last"], **OPTIONS)
    xr.testing.assert_equal(named.patched, again.patched)
    pl.patch(tiny_gpt2, pairs, "mlp", source=moved, positions=[5, 6], **OPTIONS)


@pytest.mark.parametrize("source", ["zeros", "a mean", "prompts"])
def test_together_and_alone(tiny: TransformerBridge, source: str):
    """One part restored together is the cell of a sweep."""
    pairs, other = pl.tasks.ioi(tiny, n=3), pl.tasks.ioi(tiny, n=3, seed=5)
    given = {"zeros": pl.Zero(), "a mean": pl.Mean(other), "prompts": other}[source]
    for part, component, unit in (("1.3", "head", 3), ("mlp1", "mlp", None)):
        options = OPTIONS | {"source": given, "positions": [10, "last"]}
        sweep = pl.patch(tiny, pairs, component, **options).sel(layer=1)
        sweep = sweep if unit is None else sweep.sel(head=unit)
        fx = pl.patch_together(tiny, pairs, [part], **options)
        np.testing.assert_allclose(fx.patched, sweep.patched, **CLOSE)
        assert fx.attrs["source"] == sweep.attrs["source"]


def test_a_mean_in_half_precision(tiny_folders):
    """A sum over hundreds of prompts has more digits than half precision keeps."""
    model = pl.load_model(tiny_folders("gpt2"), dtype="bfloat16")
    pairs = pl.tasks.ioi(model, n=1)
    options = OPTIONS | {"source": pl.Mean(pairs[[0] * 300]), "direction": "noise"}
    fx = pl.patch(model, pairs, "resid", engine="hooks", **options)
    # Of equal values the mean is that value, to the last digit.
    np.testing.assert_array_equal(*xr.broadcast(fx.patched, fx.clean))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("component", ["head", "pattern", "neuron"])
def test_memory_of_a_mean(tiny_folders, component: str, engine: str):
    """The runs that a mean is taken over keep to the budget, too."""
    model = pl.load_model(tiny_folders("llama"))
    pairs = pl.tasks.ioi(model, n=4)
    options = OPTIONS | {"source": pl.Mean(), "engine": engine, "layers": [0, 1]}
    options |= {"layers": [0], "metrics": "logit_diff"} if component == "neuron" else {}
    budget = 1_500_000
    with Memory(model) as memory:
        fx = pl.patch(model, pairs, component, memory_budget=budget, **options)
    assert memory.most <= budget
    enough = pl.patch(model, pairs, component, **options)
    xr.testing.assert_allclose(fx[RAW], enough[RAW], **CLOSE)

"""Mediation: worked out by hand, and what must hold between the natural effects."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from test_closed_form import prompt
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.prompts.pairs import PromptPairs

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def both_ways(
    model: TransformerBridge, pairs: PromptPairs, what: Any = "head", **options: Any
) -> tuple[xr.Dataset, xr.Dataset]:
    """One sweep in both directions; of a list all parts together."""
    run = pl.patch if isinstance(what, str) else pl.patch_together
    options = {"corruption": pl.STR("S2"), "metrics": ["log_odds", "odds"]} | options
    denoised, noised = (
        run(model, pairs, what, direction=way, progress=False, **options)
        for way in ("denoise", "noise")
    )
    return denoised, noised


def turned(pairs: PromptPairs, site: str) -> PromptPairs:
    """The corrupted prompts as clean ones, and the clean ones as their replacements."""
    return PromptPairs(
        pairs.task,
        tuple(
            dataclasses.replace(
                each, clean=each.corrupted[site], corrupted={site: each.clean}, words=()
            )
            for each in pairs.prompts
        ),
    )


def test_mediation_by_hand(by_hand: TransformerBridge):
    """A - B is 11/13 clean and 1/5 corrupted. On the clean run with head 0 as corrupted the stream
    is (-3, 4, 0)/5, -7/5; with head 1 as corrupted (3, -4, 12)/13, 19/13; with the MLP as corrupted
    (3, 4, 0)/5, -1/5. The corrupted run with each as clean gives 19/13, -7/5 and 1.
    """
    pairs = PromptPairs("by hand", (prompt(),))
    for what, kept, alone in (
        ("head", [[19 / 13, -7 / 5]], [[-7 / 5, 19 / 13]]),
        ("mlp", [1.0], [-1 / 5]),
    ):
        found = pl.mediate(
            *both_ways(
                by_hand, pairs, what, corruption=pl.STR("first"), metrics=["log_odds", "logit_diff"]
            )
        )
        for metric in ("log_odds", "logit_diff"):
            one = found.sel(metric=metric)
            np.testing.assert_allclose(one.total, 1 / 5 - 11 / 13, atol=1e-5)
            direct, indirect = np.array(kept) - 11 / 13, np.array(alone) - 11 / 13
            np.testing.assert_allclose(one.direct, direct, atol=1e-5)
            np.testing.assert_allclose(one.indirect, indirect, atol=1e-5)
            left = 1 / 5 - 11 / 13 - direct - indirect
            np.testing.assert_allclose(one.interaction, left, atol=1e-5)


def test_odds_by_hand(by_hand: TransformerBridge):
    """Odds are the exponentials, so that relative effects are e to the difference, less 1; those of
    two prompts are ratios of each and not of means.
    """
    first = prompt()
    other = dataclasses.replace(first, answers=first.wrong_answers, wrong_answers=first.answers)
    pairs = PromptPairs("by hand", (first, other))
    options: dict[str, Any] = {"corruption": pl.STR("first"), "keep_prompts": True}
    found = pl.mediate(*both_ways(by_hand, pairs, **options), relative=True).sel(metric="odds")
    change = np.array([[-7 / 5, 19 / 13]]) - 11 / 13
    for sign, one in ((1, found.sel(prompt=0)), (-1, found.sel(prompt=1))):
        np.testing.assert_allclose(one.indirect, np.exp(sign * change) - 1, rtol=1e-4)
        np.testing.assert_allclose(one.total, math.exp(sign * (1 / 5 - 11 / 13)) - 1, rtol=1e-4)
    # Odds turned round have another mean, log odds the same but for the sign.
    logs = pl.mediate(*both_ways(by_hand, pairs, **options)).sel(metric="log_odds")
    np.testing.assert_allclose(logs.mean("prompt").total, 0, atol=1e-6)
    assert float(found.mean("prompt").total) > 0.1


@pytest.mark.parametrize("component", ["head", "pattern", "v", "mlp", "resid"])
def test_total_is_direct_less_reversed_indirect(model: TransformerBridge, component: str):
    """TE = NDE(x → x') - NIE(x' → x), the latter measured on the prompts turned round."""
    if component == "pattern" and type(model.original_model).__name__.startswith("GPTJ"):
        pytest.skip("TransformerLens' own pass cannot change this pattern")
    pairs = pl.tasks.ioi(model, n=3)
    options: dict[str, Any] = {"keep_prompts": True, "layers": [0, 2]}
    here = pl.mediate(*both_ways(model, pairs, component, **options))
    there = pl.mediate(*both_ways(model, turned(pairs, "S2"), component, **options))
    xr.testing.assert_allclose(
        (here.direct - there.indirect).drop_vars("text"),
        here.total.broadcast_like(here.direct).drop_vars("text"),
        rtol=1e-3,
        atol=1e-4,
    )
    # Turned round, the total effect is the opposite one.
    np.testing.assert_allclose(there.total, -here.total, **CLOSE)


def test_a_full_cut_leaves_nothing_direct(model: TransformerBridge):
    """The residual stream at all positions is all that later layers see."""
    found = pl.mediate(*both_ways(model, pl.tasks.ioi(model, n=3), "resid"))
    logs = found.sel(metric="log_odds")
    np.testing.assert_allclose(logs.direct, 0, atol=1e-4)
    np.testing.assert_allclose(logs.indirect, logs.total.broadcast_like(logs.indirect), atol=1e-4)


def test_a_dead_mediator_carries_nothing():
    """A head that writes nothing has no indirect effect, and the whole effect goes past it."""
    model = pl.load_model("mini")
    with torch.no_grad():
        projection = model.blocks[1].attn.o.original_component
        width = model.cfg.d_head
        projection.weight[2 * width : 3 * width] = 0
    options: dict[str, Any] = {"heads": ["1.2"], "layers": [1], "metrics": "log_odds"}
    found = pl.mediate(*both_ways(model, pl.tasks.ioi(model, n=3), **options))
    dead = found.sel(layer=1, head=2)
    np.testing.assert_allclose(dead.indirect, 0, atol=1e-5)
    np.testing.assert_allclose(dead.direct, dead.total, **CLOSE)


def test_no_interaction_where_both_directions_agree(by_hand: TransformerBridge):
    """A metric that adds what two heads say has none, one that multiplies has; and the interaction
    is minus the sum of what denoising and noising change, D + N.
    """

    def sums(logits: Tensor) -> Tensor:
        return (logits[..., 0] > 0).float() + (logits[..., 1] > 0).float()

    def product(logits: Tensor) -> Tensor:
        return (logits[..., 0] > 0).float() * (logits[..., 1] > 0).float()

    pairs = PromptPairs("by hand", (prompt(),))
    denoised, noised = both_ways(
        by_hand, pairs, corruption=pl.STR("first"), metrics=[sums, product]
    )
    found = pl.mediate(denoised, noised)
    np.testing.assert_array_equal(found.interaction.sel(metric="sums"), [[0, 0]])
    # Each head is needed: either change alone takes the whole product away.
    np.testing.assert_array_equal(found.interaction.sel(metric="product"), [[1, 1]])
    np.testing.assert_array_equal(found.indirect.sel(metric="product"), [[-1, -1]])
    changes = (denoised.patched - denoised.corrupted) + (noised.patched - noised.clean)
    np.testing.assert_allclose(found.interaction, -changes, atol=1e-6)


def test_relative_effects_multiply_where_logs_add(model: TransformerBridge):
    """1 + the relative effect on odds is e to the effect on log odds, so that products of the one
    and sums of the other leave the same interaction.
    """
    pairs = pl.tasks.ioi(model, n=3)
    results = both_ways(model, pairs, heads=["0.1", "2.0"], keep_prompts=True)
    odds = pl.mediate(*results, relative=True).sel(metric="odds")
    logs = pl.mediate(*results).sel(metric="log_odds")
    for name in ("total", "direct", "indirect"):
        np.testing.assert_allclose(1 + odds[name], np.exp(logs[name]), rtol=1e-3)
    left = (1 + odds.total) / ((1 + odds.direct) * (1 + odds.indirect))
    np.testing.assert_allclose(left, np.exp(logs.interaction), rtol=1e-3)


def test_parts_together_and_paths(mini: TransformerBridge):
    """What several carry together is mediated as one; a path is a mediator, too."""
    pairs = pl.tasks.ioi(mini, n=3)
    heads = [f"{layer}.{head}" for layer in range(8) for head in range(8)]
    joint = pl.mediate(*both_ways(mini, pairs, heads, activation="pattern"))
    assert joint.direct.dims == ("metric",)
    paths = [
        pl.path_patch(
            mini,
            pairs,
            "head",
            "logits",
            corruption=pl.STR("S2"),
            metrics="log_odds",
            direction=way,
            progress=False,
        )
        for way in ("denoise", "noise")
    ]
    found = pl.mediate(*paths)
    np.testing.assert_allclose(found.total, joint.total.sel(metric=["log_odds"]), **CLOSE)


def test_kl_is_not_measured_and_noise_is_paired(tiny_gpt2: TransformerBridge):
    """KL goes from another run in each direction; draws of the noise are the same in both."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=2)
    options: dict[str, Any] = {
        "corruption": pl.GN("S2", draws=2),
        "metrics": ["kl", "prob"],
        "keep_draws": True,
    }
    found = pl.mediate(*both_ways(tiny_gpt2, pairs, "resid", **options))
    assert found.total.sel(metric="kl").isnull().all()
    prob = found.sel(metric="prob")
    np.testing.assert_allclose(prob.direct, 0, atol=1e-5)
    assert (abs(prob.total.diff("draw")) > 1e-6).all()


def test_what_is_refused(mini: TransformerBridge):
    """Anything but the two directions of one sweep, each from the other run."""
    pairs = pl.tasks.ioi(mini, n=2)
    options: dict[str, Any] = {"layers": [0], "metrics": "prob"}
    denoised, noised = both_ways(mini, pairs, "mlp", **options)
    zeros = both_ways(mini, pairs, "mlp", source=pl.Zero(), **options)
    other = both_ways(mini, pairs, "mlp", **options | {"layers": [1]})
    ablated = pl.ablate(mini, pairs, "mlp", with_=pl.Zero(), progress=False, **options)
    for given, words in (
        ((noised, denoised), "'denoise' with the clean run is needed"),
        (zeros, "source='zeros'"),
        ((denoised, ablated), "'noise' with the corrupted run is needed"),
        ((denoised, other[1]), "other settings: layers"),
        ((denoised, noised.isel(layer=[])), "same cells"),
        ((denoised, noised.effect), "give the whole dataset"),
    ):
        with pytest.raises(pl.PatchlibError, match=words):
            pl.mediate(*given)
    with pytest.raises(pl.PatchlibError, match="keep_prompts=True"):
        pl.mediate(denoised, noised, relative=True)

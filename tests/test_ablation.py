"""Ablation: zeros, means and other prompts' activations in the clean run."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from memory import Memory
from test_closed_form import A, B, E, prompt, softmax
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name
from transformers import AutoModelForCausalLM, AutoTokenizer

import patchlib as pl
from patchlib.prompts.pairs import PromptPairs
from patchlib.show.plot.style import title

OPTIONS: dict[str, Any] = {"progress": False, "keep_prompts": True}
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def both() -> PromptPairs:
    """ "A E" and "B E", the two prompts that the model was made for, both with the answer A."""
    first = prompt()
    second = type(first)("B E", (B, E), {"first": (A, E)}, (A,), (B,), first.positions)
    return PromptPairs("by hand", (first, second))


ROOT = math.sqrt(409)
# The last position's coordinates (a, b, c), divided by their length, in the clean run of "A E" with
# one part replaced; its clean run ends as (3, 4, 12)/13, where head 0 wrote 3 into a, head 1
# wrote 4 into b, and the MLP 12 into c: four times its neuron, max(0, 5·a) of the normed a.
ENDS = {
    # Without head 0 the neuron is silent. Without head 1 it sees (3, 0, 0)/3, and c is 4·5.
    # Without attention there is nothing, and layer norm leaves nothing of nothing.
    "zeros": {
        ("head", 0): (0, 1, 0),
        ("head", 1): (3 / ROOT, 0, 20 / ROOT),
        ("mlp", None): (3 / 5, 4 / 5, 0),
        ("attn", None): (0, 0, 0),
    },
    # In "B E" the heads write -3 and -4, and the MLP nothing.
    "the other prompt": {
        ("head", 0): (-3 / 5, 4 / 5, 0),
        ("head", 1): (3 / 13, -4 / 13, 12 / 13),
        ("mlp", None): (3 / 5, 4 / 5, 0),
        ("attn", None): (-3 / 5, -4 / 5, 0),
    },
    # The heads' means over both are 0, the MLP's is 6.
    "the mean": {
        ("head", 0): (0, 1, 0),
        ("head", 1): (3 / ROOT, 0, 20 / ROOT),
        ("mlp", None): (3 / math.sqrt(61), 4 / math.sqrt(61), 6 / math.sqrt(61)),
        ("attn", None): (0, 0, 0),
    },
}


@pytest.mark.parametrize("how", ENDS)
def test_ablations_by_hand(by_hand: TransformerBridge, how: str):
    """Token A has the logit a + c, token B has b, token E has 0."""
    sources = {
        "zeros": pl.Zero(),
        "the other prompt": pl.Resample(both()),
        "the mean": pl.Mean(both()),
    }
    p = softmax((15 / 13, 4 / 13, 0))
    for (component, head), (a, b, c) in ENDS[how].items():
        fx = pl.ablate(by_hand, both()[:1], component, with_=sources[how], progress=False)
        fx = fx.isel(layer=0) if head is None else fx.sel(layer=0, head=head)
        q = softmax((a + c, b, 0))
        found = dict(zip(fx.metric.values, fx.effect.values, strict=True))
        expected = {
            "logit_diff": (11 / 13 - (a + c - b)) / (11 / 13),
            "prob": p[A] - q[A],
            "kl": sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)),
        }
        assert found == pytest.approx(expected, abs=1e-5)
        np.testing.assert_allclose(fx.clean, [11 / 13, p[A], 0], atol=1e-5)
        assert fx.corrupted.isnull().all()


def test_the_sign_where_the_answer_is_wrong(by_hand: TransformerBridge):
    """ "B E" has the logit difference 1/5. With A and B exchanged as answers it is -1/5 and 0
    without attention: the ablation raises it, so that the effect is negative."""
    first = both().prompts[1]
    turned = type(first)("B E", (B, E), first.corrupted, (B,), (A,), first.positions)
    options = {"with_": pl.Zero(), "metrics": "logit_diff", "progress": False}
    for given, effect in ((first, 1), (turned, -1)):
        fx = pl.ablate(by_hand, PromptPairs("by hand", (given,)), "attn", **options)
        np.testing.assert_allclose(fx.effect, [[effect]], atol=1e-5)
        np.testing.assert_allclose(fx.clean, [effect / 5], atol=1e-5)


@pytest.mark.parametrize("source", ["zeros", "a mean", "resampled", "prompts"])
def test_noising_measures_the_same(tiny: TransformerBridge, source: str):
    """The logit difference has another unit there, and KL is measured from another run."""
    pairs, other = pl.tasks.ioi(tiny, n=3), pl.tasks.ioi(tiny, n=3, seed=5)
    resampled = pl.Resample(other, draws=2)
    given = {"zeros": pl.Zero(), "a mean": pl.Mean(), "resampled": resampled, "prompts": other}
    options = OPTIONS | {"metrics": ["logit_diff", "prob", "wrong_prob", "log_prob", "rank"]}
    for component in ("head", "mlp"):
        found = pl.ablate(tiny, pairs, component, with_=given[source], **options)
        noised = pl.patch(
            tiny,
            pairs,
            component,
            corruption=pl.STR("S2"),
            direction="noise",
            source=given[source],
            engine="hooks",
            **options,
        )
        xr.testing.assert_allclose(found[["patched", "clean"]], noised[["patched", "clean"]], 1e-3)
        rest = {"metric": options["metrics"][1:]}
        xr.testing.assert_allclose(found.effect.sel(rest), noised.effect.sel(rest), 1e-3, 1e-4)
        assert abs(found.effect.sel(metric="log_prob")).max() > 1e-2
        assert found.attrs["source"] == noised.attrs["source"]
        assert found.attrs["direction"] == "noise" and found.attrs["method"] == "ablation"
        assert not {"corruption", "site"} & {*found.attrs}


def test_heads_by_hand(tiny: TransformerBridge):
    """Without a head's z, attention writes less by z·W_O, and its bias stays; KL by hand."""
    pairs = pl.tasks.ioi(tiny, n=3)
    fx = pl.ablate(tiny, pairs, with_=pl.Zero(), metrics="kl", **OPTIONS)
    with torch.no_grad():
        logits, cache = tiny.run_with_cache(pairs.clean_tokens)
        clean = logits[:, -1].log_softmax(-1)
        for layer, head in ((0, 3), (2, 0)):
            wrote = cache[get_act_name("z", layer)][:, :, head] @ tiny.W_O[layer, head]
            hooks = [(get_act_name("attn_out", layer), lambda old, hook, wrote=wrote: old - wrote)]
            ablated = tiny.run_with_hooks(pairs.clean_tokens, fwd_hooks=hooks)[:, -1]
            kl = (clean.exp() * (clean - ablated.log_softmax(-1))).sum(-1)
            found = fx.effect.sel(metric="kl", layer=layer, head=head)
            np.testing.assert_allclose(found, kl, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("component", ["head", "mlp", "resid", "pattern"])
def test_what_changes_nothing(tiny: TransformerBridge, component: str):
    """A prompt's own activations, a mean over its copies, and the position that all share."""
    pairs = pl.tasks.ioi(tiny, n=3, prepend_bos=True)
    copies = pairs[[0] * 5]
    same = [(pairs, pairs, "all"), (pairs[:1], pl.Mean(copies), "all")]
    same += [(pairs, pl.Resample(draws=2), 0), (pairs, pl.Mean(), 0)]
    # What TransformerLens shows of some models' patterns has no effect, which is refused.
    try:
        pl.ablate(tiny, pairs, component, with_=pl.Zero(), progress=False)
    except pl.PatchlibError as refusal:
        pytest.skip(str(refusal))
    for prompts, source, positions in same:
        fx = pl.ablate(tiny, prompts, component, with_=source, positions=positions, **OPTIONS)
        np.testing.assert_allclose(*xr.broadcast(fx.patched, fx.clean), **CLOSE)
        np.testing.assert_allclose(fx.effect.sel(metric=["prob", "kl"]), 0, atol=2e-5)


def test_a_head_that_writes_nothing(tiny_folders):
    """Where W_O of a head is zero, nothing that is put in its place can be seen."""
    model = pl.load_model(tiny_folders("gpt2"))
    with torch.no_grad():
        model.blocks[1].attn.o.original_component.weight[16:24] = 0
    pairs = pl.tasks.ioi(model, n=3)
    for source in (pl.Zero(), pl.Mean(), pl.Resample()):
        fx = pl.ablate(model, pairs, with_=source, progress=False)
        silent = (fx.layer == 1) & (fx["head"] == 2)
        np.testing.assert_allclose(fx.effect.where(silent, drop=True), 0, atol=1e-4)
        assert (fx.effect.sel(metric="kl").where(~silent) > 1e-4).sum() == 11


def test_draws_are_all_other_prompts(tiny: TransformerBridge):
    """With as many draws as others, each prompt takes every other one once."""
    pairs = pl.tasks.ioi(tiny, n=3)
    drawn = pl.ablate(tiny, pairs, with_=pl.Resample(draws=2), keep_draws=True, **OPTIONS)
    turned = [pl.ablate(tiny, pairs, with_=pairs[o], **OPTIONS) for o in ([1, 2, 0], [2, 0, 1])]
    every = xr.concat([fx.patched for fx in turned], "draw")
    # The same two numbers, in whatever order.
    mine = np.sort(drawn.patched.transpose(..., "draw").values, -1)
    theirs = np.sort(every.transpose(*drawn.patched.dims).transpose(..., "draw").values, -1)
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    mean = pl.ablate(tiny, pairs, with_=pl.Resample(draws=2), **OPTIONS)
    xr.testing.assert_allclose(mean.effect, drawn.effect.mean("draw"), **CLOSE)
    spread = drawn.effect.std("draw", ddof=1)
    xr.testing.assert_allclose(mean.effect_sd, spread, **CLOSE)
    assert (spread.sel(metric="logit_diff") > 0).any()


def test_draws_depend_on_the_prompt_and_the_seed_alone(tiny_gpt2: TransformerBridge):
    """Not on the prompts beside it, nor on how many fit into the memory."""
    pairs, pool = (pl.tasks.factual_recall(tiny_gpt2, n=n) for n in (9, 60))
    source = pl.Resample(pool, draws=2)
    options = OPTIONS | {"keep_draws": True}
    fx = pl.ablate(tiny_gpt2, pairs, "mlp", with_=source, **options)
    groups = list(pairs.by_length())
    assert len(groups) > 1
    for index, group in groups:
        alone = pl.ablate(tiny_gpt2, group[::-1], "mlp", with_=source, **options)
        mine = fx.patched.isel(prompt=index[::-1])
        np.testing.assert_allclose(mine, alone.patched, **CLOSE)
    with Memory(tiny_gpt2) as memory:
        small = pl.ablate(tiny_gpt2, pairs, "mlp", with_=source, memory_budget=3e6, **options)
    assert memory.most <= 3e6
    xr.testing.assert_allclose(small.patched, fx.patched, **CLOSE)
    other = pl.ablate(tiny_gpt2, pairs, "mlp", with_=pl.Resample(pool, 2, seed=1), **options)
    assert abs(other.patched - fx.patched).max() > 1e-3
    assert fx.attrs["source_draws"] == 2
    described = "clean runs drawn from 60 prompts of factual_recall (draws=2, seed=0)"
    assert fx.attrs["source"] == described
    assert fx.attrs["source_prompts"] == pool.fingerprint


def test_by_roles(tiny: TransformerBridge):
    """Means over, and draws from, prompts whose names stand at the same places."""
    pairs = pl.tasks.ioi(tiny, n=24)
    groups: dict[object, list[int]] = {}
    for number, each in enumerate(pairs.prompts):
        groups.setdefault(tuple(each.positions.values()), []).append(number)
    assert 1 < len(groups) < 24
    mean = pl.ablate(tiny, pairs, "mlp", with_=pl.Mean(by="roles"), **OPTIONS)
    for index in groups.values():
        alone = pl.ablate(tiny, pairs[index], "mlp", with_=pl.Mean(), **OPTIONS)
        np.testing.assert_allclose(mean.patched.isel(prompt=index), alone.patched, **CLOSE)
    by_position = pl.ablate(tiny, pairs, "mlp", with_=pl.Mean(), **OPTIONS)
    assert abs(by_position.patched - mean.patched).max() > 1e-3
    assert mean.attrs["source"] == "mean over 24 prompts of ioi, by roles"
    many = pairs[max(groups.values(), key=len)]
    source = pl.Resample(pairs, draws=2, by="roles")
    for number, each in enumerate(many.prompts):
        for draw in range(2):
            drawn = pairs.prompts[source.drawn(many, number, draw)]
            assert drawn.positions == each.positions and drawn.clean != each.clean
    with pytest.raises(pl.PatchlibError, match=r"no prompt of \d+ tokens with its named positions"):
        some, rest = groups[min(groups, key=str)], groups[max(groups, key=str)]
        pl.ablate(tiny, pairs[some], with_=pl.Mean(pairs[rest], by="roles"), **OPTIONS)


def test_means_of_replaced_tokens(tiny_gpt2: TransformerBridge):
    """The mean over corrupted prompts is that over the same prompts, written as clean ones."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=4)
    replaced = [
        dataclasses.replace(prompt, clean=prompt.corrupted["ABC"], words=())
        for prompt in pairs.prompts
    ]
    written = PromptPairs("ABC", tuple(replaced))
    by_site, by_hand = (
        pl.ablate(tiny_gpt2, pairs, with_=source, **OPTIONS)
        for source in (pl.Mean(site="ABC"), pl.Mean(written))
    )
    np.testing.assert_allclose(by_site.patched, by_hand.patched, **CLOSE)
    plain = pl.ablate(tiny_gpt2, pairs, with_=pl.Mean(), **OPTIONS)
    assert abs(by_site.patched - plain.patched).max() > 1e-4
    assert by_site.attrs["source"] == ("mean over 4 prompts of ioi with tokens replaced at ABC")


def test_draws_beside_the_noise(tiny_gpt2: TransformerBridge):
    """Draws of prompts and of noise go together; one of either serves all of the other."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=4)
    options = OPTIONS | {"component": "mlp", "keep_draws": True, "metrics": "logit_diff"}

    def run(noise: int, prompts: int) -> xr.Dataset:
        source = pl.Resample(draws=prompts)
        corruption = pl.GN("S2", draws=noise)
        return pl.patch(tiny_gpt2, pairs, corruption=corruption, source=source, **options)

    three = run(3, 3)
    for draws in ((3, 1), (1, 3)):
        fx = run(*draws)
        assert fx.sizes["draw"] == 3
        np.testing.assert_allclose(fx.patched[{"draw": 0}], three.patched[{"draw": 0}], **CLOSE)
        assert abs(fx.patched - three.patched).max() > 1e-4
        if draws == (3, 1):
            np.testing.assert_allclose(fx.corrupted, three.corrupted, **CLOSE)
        else:
            assert (fx.corrupted == fx.corrupted[{"draw": 0}]).all()
    with pytest.raises(pl.PatchlibError, match=r"Resample\(draws=2\) with 3 draws of the noise"):
        run(3, 2)


@pytest.mark.parametrize("linear", [True, False])
def test_the_mean_of_effects_is_the_effect_of_the_mean(tiny_folders, tmp_path, linear: bool):
    """Of the last MLP where nothing but a linear map follows; not where a norm does."""
    folder = tiny_folders("gpt2")
    if linear:
        # Norms that divide by 10,000 whatever they are given, and multiply by it.
        gpt2 = AutoModelForCausalLM.from_pretrained(folder)
        gpt2.config.layer_norm_epsilon = 1e8
        with torch.no_grad():
            for name, parameter in gpt2.named_parameters():
                if ".ln_" in name and name.endswith("weight"):
                    parameter *= 1e4
        gpt2.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
        folder = tmp_path
    model = pl.load_model(folder)
    pairs = pl.tasks.ioi(model, n=9, seed=2)
    _, same = max(pairs.by_length(), key=lambda group: len(group[0]))
    assert len(same) >= 3
    options = OPTIONS | {"component": "mlp", "layers": [2], "metrics": "logit_diff"}
    mean = pl.ablate(model, same[:1], with_=pl.Mean(same[1:3]), **options)
    both = pl.ablate(model, same[:1], with_=pl.Resample(same[1:3], draws=2), **options)
    assert np.allclose(mean.patched, both.patched, rtol=1e-3, atol=1e-3) == linear
    assert both.effect_sd.min() > 0.01


def test_what_results_are_used_for(mini: TransformerBridge):
    """Heads that stand out, intervals and figures, as of every other result."""
    pairs = pl.tasks.ioi(mini, n=8)
    fx = pl.ablate(mini, pairs, with_=pl.Mean(), **OPTIONS)
    ci, mean = pl.interval(fx), fx.mean("prompt", keep_attrs=True)
    kept = xr.where(fx.effect.isnull().any("prompt"), np.nan, mean.effect)
    assert ((ci.low <= kept + 1e-9) & (kept <= ci.high + 1e-9)).all()
    assert mean.effect.sel(metric="kl").min() >= 0
    strongest = pl.heads_of(pl.detect(mean), "kl")[0]
    at = mean.effect.sel(metric="kl", layer=strongest.layer, head=strongest.head)
    assert at == mean.effect.sel(metric="kl").max()
    assert "effect of ablating heads\nmean over 8 prompts of ioi" in title(mean)


def test_what_is_refused(tiny_gpt2: TransformerBridge):
    pairs = pl.tasks.ioi(tiny_gpt2, n=3)
    for given, said in (
        (None, r"with_=None: say what activations become.*direction='noise'"),
        (pl.Resample(draws=3), r"draws=3\): for .* the pool has 2 other prompts of 15 tokens"),
        (pl.Resample(pairs[[0, 0]]), "the pool has 0 other prompts"),
        (pl.Resample(pairs[[]]), "the pool has 0 other prompts"),
        (pl.Resample(5), r"source=Resample.*pl.Resample\(pairs\)"),  # type: ignore[arg-type]
        (pairs[:2], "holds 2 prompts for 3"),
        (5, "source=5"),
    ):
        with pytest.raises(pl.PatchlibError, match=said):
            pl.ablate(tiny_gpt2, pairs, with_=given, **OPTIONS)
    for wrong in ({"draws": 0}, {"seed": 0.5}, {"by": "template"}):
        with pytest.raises(pl.PatchlibError, match=next(iter(wrong))):
            pl.Resample(**wrong)
    with pytest.raises(pl.PatchlibError, match="by='template': allowed are 'position' and 'roles'"):
        pl.Mean(by="template")
    with pytest.raises(pl.PatchlibError, match="no prompts"):
        pl.ablate(tiny_gpt2, pairs[[]], with_=pl.Zero(), **OPTIONS)

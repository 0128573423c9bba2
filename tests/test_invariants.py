"""What must hold for any model, any prompts and any corruption."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from memory import Memory
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

import patchlib as pl
from patchlib.patching import architectures
from patchlib.patching.cells import COMPONENTS, Cell, Limits, Part, unit_of
from patchlib.patching.metrics import choose
from patchlib.patching.patch import ENGINES
from patchlib.patching.runs import Run
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs

# Without rank and accuracy, which jump where two logits are equal but for rounding.
METRICS = ("logit_diff", "prob", "kl", "log_prob")
# Single precision, in sums of a different order.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 5)
components = st.sampled_from(sorted(COMPONENTS))
corruptions = st.one_of(
    st.builds(pl.STR, st.sampled_from(["S2", "S1", "IO", "S1+IO", "ABC"])),
    st.builds(pl.GN, st.sampled_from(["S2", "S1+IO"]), seed=st.integers(0, 9)),
)


def run(
    model: TransformerBridge,
    pairs: PromptPairs,
    component: str = "mlp",
    corruption: Corruption | None = None,
    **options,
) -> xr.Dataset:
    if not has(model, component):
        assume(False)
    # One layer's neurons are as many runs as all other components together.
    layers = {"layers": [1]} if component == "neuron" else {}
    options = {"metrics": METRICS, "progress": False} | layers | options
    corruption = corruption or pl.STR("S2")
    return pl.patch(model, pairs, component, corruption=corruption, **options)


def has(model: TransformerBridge, component: str) -> bool:
    """Blocks whose MLP stands beside the attention have no middle; GPT-J hides its pattern."""
    if component == "resid_mid":
        return not model.cfg.parallel_attn_mlp
    return component != "pattern" or architectures.obstacle(model, "pattern") is None


def raw(fx: xr.Dataset) -> xr.Dataset:
    """The metrics themselves: an effect may be a small difference divided by a small one."""
    return fx[["patched", "clean", "corrupted"]]


def all_cells(model: TransformerBridge, component: str) -> list[Cell]:
    activation = COMPONENTS[component]
    _, number = unit_of(model, activation) or ("layer", 0)
    units = range(min(number, 5)) if number else (None,)
    layers = range(model.cfg.n_layers)
    return [Cell((Part(activation, layer, unit),)) for layer in layers for unit in units]


def exchanged(pairs: PromptPairs, site: str) -> PromptPairs:
    """Pairs whose clean prompts are the corrupted ones, and the other way round."""
    prompts = [
        dataclasses.replace(p, clean=p.corrupted[site], corrupted={site: p.clean}, words=())
        for p in pairs.prompts
    ]
    return dataclasses.replace(pairs, prompts=tuple(prompts))


def by_hand(
    model: TransformerBridge, pairs: PromptPairs, activation: str, layers: Sequence[int]
) -> Tensor:
    """Last logits of the corrupted run (STR at S2) with an activation restored in some layers."""
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean_tokens)
        names = [get_act_name(activation, layer) for layer in layers]
        hooks = [(name, lambda _, hook, value=cache[name]: value) for name in names]
        return model.run_with_hooks(pairs.corrupted_tokens("S2"), fwd_hooks=hooks)[:, -1]


def hooks_left(model: TransformerBridge) -> list[str]:
    return [
        name
        for name, point in model.hook_dict.items()
        if point.fwd_hooks or point.bwd_hooks or point._forward_hooks
    ]


@given(seed=seeds, n=sizes, component=components, corruption=corruptions)
def test_a_run_patched_with_itself_stays_as_it_is(tiny, seed, n, component, corruption):
    """Each activation is put back where it came from; every cell sees the same noise."""
    assume(has(tiny, component))
    pairs = pl.tasks.ioi(tiny, n, seed)
    corrupted = Run(corruption.tokens(pairs), corruption.noise(tiny, pairs, draw=0))
    cells = all_cells(tiny, component)
    for sweep in ENGINES.values():
        limits = Limits.of(tiny, "auto", None)
        measured = 0
        for piece in sweep(tiny, pairs, corrupted, corrupted, cells, choose(METRICS), limits):
            for there in piece.unpatched:
                expected = there[:, None].expand_as(piece.patched)
                torch.testing.assert_close(piece.patched, expected, **CLOSE)
            measured += len(piece.cells) * len(piece.prompts)
        assert measured == len(cells) * len(pairs)


@given(seed=seeds, n=sizes, corruption=corruptions)
def test_restoring_the_whole_residual_stream_gives_the_clean_run(tiny, seed, n, corruption):
    """Before the first layer, everything is in the residual stream."""
    pairs = pl.tasks.ioi(tiny, n, seed)
    first = run(tiny, pairs, "resid", corruption).isel(layer=0)
    np.testing.assert_allclose(first.patched, first.clean, **CLOSE)
    # The share itself, to the precision that a small way between the two runs leaves.
    way = (first.clean - first.corrupted).sel(metric="logit_diff").item()
    share = first.effect.sel(metric="logit_diff").item()
    assert share == pytest.approx(1, abs=1e-4 / min(1, abs(way)))


@given(seed=seeds, corruption=corruptions)
def test_a_cut_carries_everything(tiny, seed, corruption):
    """Each layer's residual stream is enough and is needed: links of one chain look the same."""
    pairs = pl.tasks.ioi(tiny, 3, seed)
    for direction, end in (("denoise", "clean"), ("noise", "corrupted")):
        fx = run(tiny, pairs, "resid", corruption, direction=direction)
        np.testing.assert_allclose(*xr.broadcast(fx.patched, fx[end]), **CLOSE)
        shares = fx.effect.sel(metric="logit_diff")
        way = abs((fx.clean - fx.corrupted).sel(metric="logit_diff").item())
        np.testing.assert_allclose(shares, 1, atol=1e-4 / min(1, way))


@given(seed=seeds, n=sizes, site=st.sampled_from(["S2", "IO", "S1+IO", "ABC"]))
def test_denoising_some_positions_is_noising_all_others(tiny, seed, n, site):
    """The two runs are one and the same, in every layer."""
    pairs = pl.tasks.ioi(tiny, n, seed)
    prompts = []
    for prompt in pairs.prompts:
        places = {at for name in ("S2", "last") for at in prompt.positions[name]}
        rest = tuple(at for at in range(len(prompt.clean)) if at not in places)
        prompts.append(dataclasses.replace(prompt, positions=prompt.positions | {"rest": rest}))
    pairs = dataclasses.replace(pairs, prompts=tuple(prompts))
    some, others = (
        run(tiny, pairs, "resid", pl.STR(site), positions=positions, direction=direction)
        for positions, direction in (("S2+last", "denoise"), ("rest", "noise"))
    )
    for metric in ("logit_diff", "prob"):
        one, other = (fx.patched.sel(metric=metric) for fx in (some, others))
        np.testing.assert_allclose(one, other, **CLOSE)
    # What the one brings back is what the other leaves.
    shares = [fx.effect.sel(metric="prob") for fx in (some, others)]
    way = (some.clean - some.corrupted).sel(metric="prob")
    np.testing.assert_allclose(shares[0] + shares[1], np.full(3, way), **CLOSE)


@given(seed=seeds, n=sizes, component=components)
def test_noise_of_scale_zero_gives_the_clean_run(tiny, seed, n, component):
    """There is then no way to go, so that its share is not a number and other effects are 0."""
    pairs = pl.tasks.ioi(tiny, n, seed)
    fx = run(tiny, pairs, component, pl.GN("S2", scale=0.0))
    np.testing.assert_array_equal(fx.corrupted, fx.clean)
    assert fx.effect.sel(metric="logit_diff").isnull().all()
    others = fx.effect.sel(metric=["prob", "kl", "log_prob"])
    np.testing.assert_allclose(others, 0, atol=CLOSE["atol"])


@given(
    seed=seeds,
    component=st.sampled_from(["mlp", "attn", "resid"]),
    window=st.sampled_from([(1, None), (2, 0), (2, 1), (3, None), (3, 0), (3, 2)]),
)
def test_a_window_is_a_joint_restoration(tiny, seed, component, window):
    """Layers l - before to l - before + w - 1, cut at the first and the last layer."""
    width, before = window
    pairs = pl.tasks.ioi(tiny, 3, seed)
    fx = run(tiny, pairs, component, window=width, before=before, keep_prompts=True)
    before = width // 2 if before is None else before
    answers, wrong = pairs.answers, pairs.wrong_answers
    rows = torch.arange(3)
    for layer in range(3):
        layers = [at for at in range(layer - before, layer - before + width) if 0 <= at < 3]
        logits = by_hand(tiny, pairs, COMPONENTS[component], layers)
        difference = logits[rows, answers] - logits[rows, wrong]
        patched = fx.patched.sel(metric="logit_diff", layer=layer)
        np.testing.assert_allclose(patched, difference, **CLOSE)


def test_an_even_window_is_that_of_rome(tiny_gpt2):
    """With before=w//2, restored are range(max(0, l - w//2), min(L, l - (-w//2)))."""
    pairs = pl.tasks.ioi(tiny_gpt2, 3)
    fx = run(tiny_gpt2, pairs, window=2, before=1, keep_prompts=True)
    assert (fx.attrs["window"], fx.attrs["window_before"]) == (2, 1)
    rows, w, n_layers = torch.arange(3), 2, 3
    for layer in range(n_layers):
        layers = range(max(0, layer - w // 2), min(n_layers, layer - (-w // 2)))
        logits = by_hand(tiny_gpt2, pairs, "mlp_out", layers)
        difference = logits[rows, pairs.answers] - logits[rows, pairs.wrong_answers]
        patched = fx.patched.sel(metric="logit_diff", layer=layer)
        np.testing.assert_allclose(patched, difference, **CLOSE)


@settings(max_examples=3)
@given(seed=seeds, component=components, corruption=corruptions)
def test_batches_do_not_matter(tiny, seed, component, corruption):
    """Row by row, in batches that cut through prompts and cells, and all at once."""
    pairs = pl.tasks.ioi(tiny, 4, seed)
    alone = run(tiny, pairs, component, corruption, keep_prompts=True, batch_size=1)
    for size in (3, 7, "auto"):
        together = run(tiny, pairs, component, corruption, keep_prompts=True, batch_size=size)
        xr.testing.assert_allclose(raw(together), raw(alone), **CLOSE)


@given(seed=seeds, n=sizes, component=components, site=st.sampled_from(["S2", "IO", "ABC"]))
def test_noising_is_denoising_with_the_prompts_exchanged(tiny, seed, n, component, site):
    """The names of the two unpatched runs change, and what happens to the right answer.

    It is still the clean prompt's: where noising takes it away, denoising the exchanged prompts
    takes it away, too, which is what the one counts as positive and the other as negative.
    """
    pairs = pl.tasks.ioi(tiny, n, seed)
    noising = run(tiny, pairs, component, pl.STR(site), direction="noise")
    denoising = run(tiny, exchanged(pairs, site), component, pl.STR(site))
    np.testing.assert_array_equal(noising.clean, denoising.corrupted)
    np.testing.assert_array_equal(noising.corrupted, denoising.clean)
    np.testing.assert_array_equal(noising.patched, denoising.patched)
    for metric, sign in (("logit_diff", 1), ("kl", 1), ("prob", -1), ("log_prob", -1)):
        ours, theirs = (fx.effect.sel(metric=metric) for fx in (noising, denoising))
        np.testing.assert_array_equal(ours, sign * theirs)


@given(seed=seeds, component=components, corruption=corruptions, order=st.permutations(range(5)))
def test_the_order_of_prompts_does_not_matter(tiny, seed, component, corruption, order):
    """Each prompt has its own numbers, and its own noise, wherever it stands."""
    pairs = pl.tasks.ioi(tiny, 5, seed)
    straight = run(tiny, pairs, component, corruption, keep_prompts=True)
    shuffled = run(tiny, pairs[order], component, corruption, keep_prompts=True)
    xr.testing.assert_allclose(raw(shuffled), raw(straight.isel(prompt=order)), **CLOSE)


@given(seed=st.integers(0, 1000), component=components)
def test_the_seed_decides_the_noise(tiny, seed, component):
    """The same seed gives the same numbers to the last digit, another one gives others."""
    pairs = pl.tasks.ioi(tiny, 3)
    once = run(tiny, pairs, component, pl.GN("S2", seed=seed))
    again = run(tiny, pairs, component, pl.GN("S2", seed=seed))
    other = run(tiny, pairs, component, pl.GN("S2", seed=seed + 1))
    xr.testing.assert_identical(once, again)
    np.testing.assert_array_equal(once.clean, other.clean.where(other.metric != "kl", 0))
    assert (once.corrupted != other.corrupted).all()


def test_each_draw_and_each_prompt_has_noise_of_its_own(tiny_gpt2):
    """Noise is spread as asked for, at the site alone."""
    pairs = pl.tasks.ioi(tiny_gpt2, 40)
    corruption = pl.GN("S1+IO", scale=3.0, draws=2)
    first, second = (corruption.noise(tiny_gpt2, pairs, draw) for draw in (0, 1))
    at = torch.zeros(first.shape[:2], dtype=torch.bool)
    for row, places in enumerate(pairs.at("S1+IO")):
        at[row, list(places)] = True
    assert at.sum() == 80
    assert (first[~at] == 0).all()
    assert (first[at] != 0).all()
    assert not (first[at] == second[at]).any()
    vectors = torch.cat([first[at], second[at]])
    assert len(vectors.unique(dim=0)) == 160
    # 160 vectors of 32 numbers: the standard deviation is known to about 1 %.
    expected = 3 * tiny_gpt2.W_E.std().item()
    assert vectors.std().item() == pytest.approx(expected, rel=0.05)
    assert abs(vectors.mean().item()) < 0.05 * expected


@settings(max_examples=2)
@given(seed=st.integers(0, 1000))
def test_every_patched_cell_sees_the_same_noise(tiny, seed):
    """What is restored before the first noised token is as it was, so nothing may change."""
    pairs = pl.tasks.ioi(tiny, 3, seed)
    corruption = pl.GN("S2", seed=seed, draws=2)
    fx = run(tiny, pairs, "resid", corruption, positions="each", keep_prompts=True, batch_size=4)
    for row, (s2,) in enumerate(pairs.at("S2")):
        one = fx.isel(prompt=row, position=slice(0, s2))
        assert one.sizes["position"] == s2 > 0
        expected = one.corrupted.broadcast_like(one.patched)
        np.testing.assert_allclose(one.patched, expected.transpose(*one.patched.dims), **CLOSE)
        # Only this token differs, so restoring it before the first layer gives the clean run.
        there = fx.isel(prompt=row, position=s2, layer=0)
        np.testing.assert_allclose(there.patched, there.clean, **CLOSE)
        assert there.corrupted.sel(metric="kl") > 1e-3


@given(seed=seeds, component=components)
def test_draws_are_averaged(tiny, seed, component):
    """The effect is the mean over draws; its spread is their standard deviation with n - 1."""
    pairs = pl.tasks.ioi(tiny, 3, seed)
    corruption = pl.GN("S2", draws=3)
    mean = run(tiny, pairs, component, corruption)
    draws = run(tiny, pairs, component, corruption, keep_draws=True)
    assert draws.sizes["draw"] == 3
    assert "effect_sd" not in draws
    for name in ("effect", "patched", "clean", "corrupted"):
        np.testing.assert_allclose(mean[name], draws[name].mean("draw"), rtol=1e-9)
    np.testing.assert_allclose(mean.effect_sd, draws.effect.values.std(1, ddof=1), rtol=1e-9)
    assert draws.effect.dims[:2] == ("metric", "draw")
    # The first of several draws is the only one of one.
    single = run(tiny, pairs, component, pl.GN("S2", draws=1))
    np.testing.assert_allclose(single.patched, draws.patched.isel(draw=0), **CLOSE)
    assert single.effect_sd.isnull().all()


@given(seed=seeds, n=sizes, component=components, corruption=corruptions)
def test_the_effect_is_the_mean_over_prompts(tiny, seed, n, component, corruption):
    """Kept values per prompt average to what is returned without them."""
    pairs = pl.tasks.ioi(tiny, n, seed)
    kept = run(tiny, pairs, component, corruption, keep_prompts=True)
    mean = run(tiny, pairs, component, corruption)
    assert kept.sizes["prompt"] == n
    for name in ("effect", "patched", "clean", "corrupted"):
        np.testing.assert_allclose(mean[name], kept[name].mean("prompt"), rtol=1e-9)


@given(seed=seeds, component=components)
def test_prompts_of_several_lengths(tiny, seed, component):
    """Each length gives the same alone; no prompt is padded."""
    pairs = pl.tasks.factual_recall(tiny, 6, seed)
    fx = run(tiny, pairs, component, pl.STR("subject"), keep_prompts=True)
    groups = list(pairs.by_length())
    assert len(groups) > 1
    assert sorted(i for index, _ in groups for i in index) == list(range(6))
    for index, group in groups:
        alone = run(tiny, group, component, pl.STR("subject"), keep_prompts=True)
        xr.testing.assert_allclose(raw(fx.isel(prompt=index)), raw(alone), **CLOSE)


def test_each_position_once(tiny):
    """Positions are counted from the start; each is what its own name gives."""
    pairs = pl.tasks.ioi(tiny, 3, seed=2)
    each = run(tiny, pairs, positions="each", keep_prompts=True)
    named = run(tiny, pairs, positions=["S2", "last", "S1+IO"], keep_prompts=True)
    assert each.position.values.tolist() == list(range(pairs.clean_tokens.shape[1]))
    assert named.position.values.tolist() == ["S2", "last", "S1+IO"]
    for row, (s2,) in enumerate(pairs.at("S2")):
        for name, at in (("S2", s2), ("last", -1)):
            ours = named.patched.sel(position=name).isel(prompt=row)
            theirs = each.patched.isel(prompt=row, position=at)
            np.testing.assert_allclose(ours, theirs, **CLOSE)
    single = run(tiny, pairs, positions="S1+IO", keep_prompts=True)
    assert single.position.item() == "S1+IO"
    np.testing.assert_allclose(single.patched, named.patched.sel(position="S1+IO"), **CLOSE)


def test_a_prompt_without_the_position_is_left_out(tiny):
    """A subject of two tokens has no middle: its value is not a number and joins no mean."""
    pairs = pl.tasks.factual_recall(tiny, 12)
    has_middle = np.array([len(at) > 0 for at in pairs.at("middle_subject")])
    assert {*has_middle} == {True, False}
    options = {"positions": ["middle_subject", "last_subject"]}
    kept = run(tiny, pairs, "mlp", pl.STR("subject"), keep_prompts=True, **options)
    mean = run(tiny, pairs, "mlp", pl.STR("subject"), **options)
    middle = kept.effect.sel(position="middle_subject").transpose("prompt", ...)
    assert np.isnan(middle.values[~has_middle]).all()
    assert np.isfinite(middle.values[has_middle]).all()
    assert kept.effect.sel(position="last_subject").notnull().all()
    expected = middle.values[has_middle].mean(0)
    np.testing.assert_allclose(mean.effect.sel(position="middle_subject"), expected, rtol=1e-9)
    # All means at a position are over those prompts: as if the others had never been there.
    some = pairs[has_middle]
    alone = run(tiny, some, "mlp", pl.STR("subject"), positions="middle_subject")
    for name in ("effect", "patched", "clean", "corrupted"):
        found = mean[name].sel(position="middle_subject")
        np.testing.assert_allclose(found, alone[name], rtol=1e-4, atol=1e-5)
        assert not np.allclose(mean[name].sel(position="last_subject"), alone[name], rtol=1e-3)


def test_no_hook_is_left_on_the_model(tiny):
    """Neither after a result nor after an exception in the middle of a pass."""
    pairs = pl.tasks.ioi(tiny, 2)
    before = hooks_left(tiny)
    run(tiny, pairs, "head", pl.GN("S2"))
    assert hooks_left(tiny) == before == []
    nowhere = dataclasses.replace(pairs.prompts[0], positions={"S2": (99,), "last": (14,)})
    broken = dataclasses.replace(pairs, prompts=(nowhere,))
    with pytest.raises(IndexError):
        run(tiny, broken, "mlp", positions="S2")
    assert hooks_left(tiny) == []


def test_the_model_is_left_as_it_was(tiny):
    """Patching changes no weight."""
    pairs = pl.tasks.ioi(tiny, 2)
    before = tiny(pairs.clean_tokens).detach()
    run(tiny, pairs, "head", pl.GN("S2"))
    run(tiny, pairs, "resid", positions="each")
    torch.testing.assert_close(tiny(pairs.clean_tokens).detach(), before, rtol=0, atol=0)


def test_zeros_at_some_positions(mini):
    """Both engines put zeros there, in the number type of the model."""
    pairs = pl.tasks.ioi(mini, 3)
    one, other = (
        run(mini, pairs, "v", layers=2, positions="last", source=pl.Zero(), engine=engine)
        for engine in ENGINES
    )
    xr.testing.assert_allclose(one, other, **CLOSE)


@pytest.mark.parametrize(
    "options",
    [
        {"component": "head", "corruption": pl.GN("S2", draws=2)},
        {"component": "mlp", "window": 3, "positions": ["S2", "last"], "keep_prompts": True},
        {"component": "attn", "positions": "S2", "direction": "noise"},
    ],
    ids=["heads", "windows", "one position"],
)
def test_results_survive_netcdf(tiny_gpt2, tmp_path: Path, options: dict):
    """Values, coordinates and all settings come back."""
    fx = run(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, 3), **options)
    path = tmp_path / "effects.nc"
    fx.to_netcdf(path)
    again = xr.load_dataset(path)
    assert again.identical(fx)
    expected = ("ioi", options["component"], 3, options.get("window", 1))
    names = ("task", "component", "n_prompts", "window")
    assert tuple(again.attrs[name] for name in names) == expected


def test_results_survive_a_data_frame(tiny_gpt2):
    """A frame has one row for each cell of each metric."""
    fx = run(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, 3), "head", pl.GN("S2", draws=2))
    frame = fx.to_dataframe()
    assert len(frame) == len(METRICS) * 3 * 4
    again = xr.Dataset.from_dataframe(frame)
    xr.testing.assert_equal(again.effect, fx.effect)
    xr.testing.assert_equal(again.effect_sd, fx.effect_sd)


def test_no_head_is_positive_and_negative(mini: TransformerBridge):
    """What carries everything is positive by each metric, in both directions."""
    pairs = pl.tasks.ioi(mini, 8)
    metrics = ("logit_diff", "prob", "kl", "log_prob")
    for direction in ("denoise", "noise"):
        places = ["IO", "S1", "last", "S2"]
        options = {"positions": places, "layers": [0], "direction": direction, "metrics": metrics}
        fx = run(mini, pairs, "resid", pl.STR("S2"), **options)
        runs = fx.sel(metric="prob")
        lost = (runs.clean - runs.corrupted).item()
        assert fx.effect.sel(metric="prob").max().item() == pytest.approx(lost, abs=1e-4) != 0
        assert fx.effect.sel(metric="logit_diff").max().item() == pytest.approx(1, abs=1e-4)
        found = pl.detect(fx, sd=1, shared="position")
        listed = {sign: rows.heads.map(len).sum() for sign, rows in found.groupby("sign")}
        # S2 alone was replaced, and by each metric it is the one place that stands out.
        assert listed == {"positive": len(metrics), "negative": 0}


@pytest.mark.parametrize("component", ["head", "k", "pattern", "resid_mid", "mlp", "neuron"])
def test_hooks_keep_to_the_budget(tiny_folders, component: str):
    """Of the smallest budget that the refusal names."""
    model = pl.load_model(tiny_folders("llama"))
    pairs = pl.tasks.ioi(model, 3)
    options = {"engine": "hooks", "metrics": METRICS}
    with pytest.raises(pl.PatchlibError, match=r"needs \d+ bytes with engine='hooks'") as refusal:
        run(model, pairs, component, pl.GN("S1+IO", draws=2), memory_budget=1000, **options)
    (smallest,) = re.findall(r"give memory_budget=(\d+) or more", str(refusal.value))
    for budget in (int(smallest), 3 * int(smallest)):
        with Memory(model) as memory:
            run(model, pairs, component, pl.GN("S1+IO"), memory_budget=budget, **options)
        assert memory.most <= budget

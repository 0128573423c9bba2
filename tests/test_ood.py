"""Distances from the clean distribution: closed forms, the control, and what is refused."""

import dataclasses
import importlib

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import patchlib as pl

# `pl.ood` is the function; the module of that name is asked for by its full name.
module = importlib.import_module("patchlib.measure.distance")
distance, ledoit_wolf = module.distance, module.ledoit_wolf


def normal(seed: int, n: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width))


def test_a_shift_of_a_gaussian_has_the_distance_of_the_closed_form():
    """E d² of a shifted point is width + |shift|²/sd², for a known covariance."""
    sample, points = 3 * normal(0, 50_000, 4), 3 * normal(1, 50_000, 4)
    shift = np.array([6.0, 0, 0, 0])
    for shrinkage in (0.0, None):
        unshifted, _ = distance(points, sample, shrinkage)
        shifted, _ = distance(points + shift, sample, shrinkage)
        assert (unshifted**2).mean() == pytest.approx(4, rel=0.02)
        assert (shifted**2).mean() == pytest.approx(4 + 4, rel=0.02)


@given(seed=st.integers(0, 1000))
def test_without_shrinkage_an_affine_map_changes_nothing(seed):
    sample, points = normal(seed, 40, 6), normal(seed + 1, 7, 6)
    matrix, offset = normal(seed + 2, 6, 6) + 3 * np.eye(6), normal(seed + 3, 1, 6)
    plain, _ = distance(points, sample, 0.0)
    mapped, _ = distance(points @ matrix + offset, sample @ matrix + offset, 0.0)
    np.testing.assert_allclose(mapped, plain, rtol=1e-6)


@given(seed=st.integers(0, 1000))
def test_with_shrinkage_turns_and_scales_change_nothing(seed):
    """More dimensions than observations: the sample covariance alone has no inverse."""
    sample, points = normal(seed, 10, 20), normal(seed + 1, 5, 20)
    turn, _ = np.linalg.qr(normal(seed + 2, 20, 20))
    plain, used = distance(points, sample)
    turned, again = distance(7 * points @ turn + 1, 7 * sample @ turn + 1)
    np.testing.assert_allclose(turned, plain, rtol=1e-9)
    assert again == pytest.approx(used)
    assert 0 < used <= 1


def test_full_shrinkage_is_the_euclidean_distance():
    sample, points = normal(0, 12, 5), normal(1, 3, 5)
    far, used = distance(points, sample, 1.0)
    centred = sample - sample.mean(0)
    expected = np.linalg.norm(points - sample.mean(0), axis=1) / np.sqrt((centred**2).mean())
    np.testing.assert_allclose(far, expected)
    assert used == 1


def test_the_shrinkage_is_that_of_ledoit_and_wolf():
    """Their definition, observation by observation."""
    centred = normal(0, 15, 8) * np.arange(1, 9)
    centred -= centred.mean(0)
    covariance = centred.T @ centred / 15
    identity = np.trace(covariance) / 8 * np.eye(8)
    dispersion = ((covariance - identity) ** 2).sum()
    error = sum(((np.outer(x, x) - covariance) ** 2).sum() for x in centred) / 15**2
    assert ledoit_wolf(centred, covariance) == pytest.approx(min(error, dispersion) / dispersion)


def test_a_corruption_that_changes_nothing_gives_the_control(tiny):
    pairs = pl.tasks.ioi(tiny, n=8)
    far = pl.ood(tiny, pairs, pl.GN("S2", scale=0.0, draws=2))
    np.testing.assert_allclose(far.corrupted, far.clean.broadcast_like(far.corrupted))
    np.testing.assert_allclose(far.clean.mean("prompt"), 1)
    assert far.position.item() == far.attrs["site"] == "S2"


def test_the_distances_are_those_of_the_activations(tiny_gpt2):
    """One layer by hand, from TransformerLens' own cache."""
    everything = pl.tasks.ioi(tiny_gpt2, n=30)
    pairs, reference = everything[:6], everything[6:]
    far = pl.ood(tiny_gpt2, pairs, pl.STR("S2"), "last", "resid_pre", reference)
    states = []
    for tokens in (reference.clean_tokens, pairs.clean_tokens, pairs.corrupted_tokens("S2")):
        _, cache = tiny_gpt2.run_with_cache(tokens)
        states.append(cache["blocks.2.hook_resid_pre"][:, -1].detach().double().numpy())
    clean, corrupted = (distance(points, states[0])[0] for points in states[1:])
    one = far.sel(layer=2)
    np.testing.assert_allclose(one.clean, clean / clean.mean(), rtol=1e-4)
    np.testing.assert_allclose(one.corrupted[0], corrupted / clean.mean(), rtol=1e-4)
    assert far.attrs["n_fitted"] == 24


def test_each_half_is_measured_by_the_other(tiny_gpt2):
    pairs = pl.tasks.ioi(tiny_gpt2, n=9)
    far = pl.ood(tiny_gpt2, pairs, pl.STR("S2"))
    even, odd = pairs[range(0, 9, 2)], pairs[range(1, 9, 2)]
    for rows, here, there in ((slice(0, 9, 2), even, odd), (slice(1, 9, 2), odd, even)):
        alone = pl.ood(tiny_gpt2, here, pl.STR("S2"), reference=there)
        ours, theirs = far.isel(prompt=rows).sel(layer=1), alone.sel(layer=1)
        ratio = ours.corrupted.values / ours.clean.values
        np.testing.assert_allclose(ratio, theirs.corrupted / theirs.clean.values, rtol=1e-4)


def test_the_seed_decides(tiny_gpt2):
    pairs = pl.tasks.ioi(tiny_gpt2, n=8)
    once, again, other = (
        pl.ood(tiny_gpt2, pairs, pl.GN("S2", draws=2, seed=seed)) for seed in (0, 0, 1)
    )
    xr.testing.assert_identical(once, again)
    xr.testing.assert_identical(once.clean, other.clean)
    assert (once.corrupted != other.corrupted).all()
    assert (once.corrupted[:, 0] != once.corrupted[:, 1]).all()


def test_noise_is_far_and_replacement_is_near(mini):
    everything = pl.tasks.ioi(mini, n=240)
    pairs, reference = everything[:40], everything[40:]
    far = {
        type(corruption).__name__: pl.ood(mini, pairs, corruption, reference=reference)
        for corruption in (pl.STR("S2"), pl.GN("S2"))
    }
    assert (far["GN"].corrupted.mean(("draw", "prompt")) > 2).all()
    assert (abs(far["STR"].corrupted.mean(("draw", "prompt")) - 1) < 0.2).all()


def test_the_position_is_the_site_or_the_last_token(tiny_gpt2):
    pairs = pl.tasks.ioi(tiny_gpt2, n=6)
    for site, expected in (("S2", "S2"), ("S1+IO", "last"), ("ABC", "last")):
        assert pl.ood(tiny_gpt2, pairs, pl.STR(site)).position.item() == expected
    several = pl.ood(tiny_gpt2, pairs, pl.STR("S2"), ["S2", "last"], "mlp_out")
    assert several.clean.dims == ("layer", "position", "prompt")
    assert several.corrupted.dims == ("layer", "position", "draw", "prompt")
    one = pl.ood(tiny_gpt2, pairs, pl.STR("S2"), "last", "mlp_out")
    xr.testing.assert_allclose(several.sel(position="last"), one)


def test_what_makes_no_sense_is_refused(tiny_gpt2):
    pairs = pl.tasks.ioi(tiny_gpt2, n=8)
    facts = pl.tasks.factual_recall(tiny_gpt2, n=20)
    shorter = dataclasses.replace(
        pairs, prompts=tuple(dataclasses.replace(p, clean=p.clean[:-1]) for p in pairs.prompts)
    )
    same = next(group for _, group in facts.by_length() if len(group) >= 4)
    for message, options in {
        "activation='z'": {"activation": "z"},
        "shrinkage=2": {"shrinkage": 2},
        "cannot be inverted": {"shrinkage": 0},
        "unknown position": {"positions": "nowhere"},
        r"positions=\[\]": {"positions": []},
        "fitted to prompts of one length": {"reference": shorter},
        "2 of 8 prompts are in the reference": {"reference": pairs[:2]},
        "one prompt|1 prompt": {"reference": pl.tasks.ioi(tiny_gpt2, n=9)[8:]},
        "nothing is a distance": {"positions": "last", "activation": "resid_pre"},
    }.items():
        chosen = _constant(pairs) if message == "nothing is a distance" else pairs
        with pytest.raises(pl.PatchlibError, match=message):
            pl.ood(tiny_gpt2, chosen, pl.STR("S2"), **options)
    with pytest.raises(pl.PatchlibError, match=r"give pl\.STR"):
        pl.ood(tiny_gpt2, pairs, "STR")  # type: ignore[arg-type]
    with pytest.raises(pl.PatchlibError, match="at least 4"):
        pl.ood(tiny_gpt2, pairs[:3], pl.STR("S2"))
    with pytest.raises(pl.PatchlibError, match="by_length"):
        pl.ood(tiny_gpt2, facts, pl.STR("subject"))
    with pytest.raises(pl.PatchlibError, match="tokens in a prompt"):
        pl.ood(tiny_gpt2, same, pl.STR("subject"), "subject")


def _constant(pairs: pl.PromptPairs) -> pl.PromptPairs:
    return dataclasses.replace(pairs, prompts=pairs.prompts[:1] * 6)

"""Distances from the clean distribution: closed forms, the control, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from memory import Memory

import patchlib as pl
from patchlib.measure.distance import distance, ledoit_wolf


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


@pytest.mark.parametrize("n", [5, 15])
def test_the_shrinkage_is_that_of_ledoit_and_wolf(n: int):
    """Their definition, observation by observation."""
    centred = normal(0, n, 8) * np.arange(1, 9)
    centred -= centred.mean(0)
    covariance = centred.T @ centred / n
    identity = np.trace(covariance) / 8 * np.eye(8)
    dispersion = ((covariance - identity) ** 2).sum()
    error = sum(((np.outer(x, x) - covariance) ** 2).sum() for x in centred) / n**2
    assert ledoit_wolf(centred) == pytest.approx(min(error, dispersion) / dispersion)


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


def turned_round(pairs: pl.PromptPairs, site: str) -> list:
    """The corrupted prompts as clean ones, with the clean ones as corrupted."""
    return [
        dataclasses.replace(p, clean=p.corrupted[site], corrupted={site: p.clean})
        for p in pairs.prompts
    ]


@pytest.mark.parametrize("order", ["beside", "after"])
def test_a_corrupted_twin_is_not_fitted_to(tiny_gpt2, order):
    """Where every prompt is there in both directions, replacing is as near as doing nothing."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=9)
    both = zip(pairs.prompts, turned_round(pairs, "S2"), strict=True)
    prompts = [prompt for pair in both for prompt in pair]
    if order == "after":
        prompts = prompts[::2] + prompts[1::2]
    far = pl.ood(tiny_gpt2, dataclasses.replace(pairs, prompts=tuple(prompts)), pl.STR("S2"))
    np.testing.assert_allclose(far.corrupted.mean(("draw", "prompt")), 1, rtol=1e-6)
    assert far.attrs["n_fitted"] == 8


def test_copies_change_nothing(tiny_gpt2):
    """In the same half as the first of them, and in the fit once."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=9)
    once = pl.ood(tiny_gpt2, pairs, pl.STR("S2"))
    twice = pl.ood(tiny_gpt2, pairs[[*range(9), *range(9)]], pl.STR("S2"))
    for name in ("clean", "corrupted"):
        expected = np.concatenate([once[name]] * 2, axis=-1)
        np.testing.assert_allclose(twice[name], expected, rtol=1e-5)
    reference = pl.tasks.ioi(tiny_gpt2, n=30)[9:]
    again = reference[[*range(21), *range(21)]]
    one, other = (
        pl.ood(tiny_gpt2, pairs, pl.GN("S2"), reference=some) for some in (reference, again)
    )
    np.testing.assert_allclose(one.corrupted, other.corrupted, rtol=1e-5)
    assert one.attrs["n_fitted"] == other.attrs["n_fitted"] == 21


def test_a_reference_with_corrupted_twins_is_refused(tiny_gpt2):
    pairs = pl.tasks.ioi(tiny_gpt2, n=9)
    reference = dataclasses.replace(
        pairs, prompts=(*pairs.prompts[3:], *turned_round(pairs[:2], "S2"))
    )
    with pytest.raises(pl.PatchlibError, match="2 of 3 prompts are in the reference, clean or"):
        pl.ood(tiny_gpt2, pairs[:3], pl.STR("S2"), reference=reference)
    # Noise runs no other prompt's tokens.
    assert pl.ood(tiny_gpt2, pairs[:3], pl.GN("S2"), reference=reference).attrs["n_fitted"] == 8


@pytest.mark.parametrize(
    ("corruption", "least", "more"), [(pl.STR("S2"), 1, 8), (pl.GN("S2", draws=2), 4, 16)]
)
def test_less_memory_gives_the_same_distances(tiny_gpt2, corruption, least, more):
    """Noise needs the standard deviation of all embeddings, too."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=150)
    reference = pl.ood(tiny_gpt2, pairs, corruption)
    with pytest.raises(pl.PatchlibError, match=r"one layer of 150 prompts need") as refused:
        pl.ood(tiny_gpt2, pairs, corruption, memory_budget=1000)
    smallest = int(str(refused.value).split("give memory_budget=")[1].split()[0])
    for budget in (least * smallest, np.int64(more * smallest)):
        with Memory(tiny_gpt2) as memory:
            far = pl.ood(tiny_gpt2, pairs, corruption, memory_budget=budget)
        assert memory.most <= budget
        xr.testing.assert_allclose(far, reference, rtol=1e-4)


@dataclasses.dataclass(frozen=True)
class Shift(pl.Corruption):
    """Adds the same number to every entry of an embedding."""

    by: float = 1.0

    def noise(self, model, pairs, draw):
        noise = torch.zeros(*pairs.clean_tokens.shape, model.cfg.d_model)
        for row, at in enumerate(pairs.at(self.site)):
            noise[row, list(at)] = self.by
        return noise


def test_a_corruption_of_one_s_own(tiny_gpt2):
    pairs = pl.tasks.ioi(tiny_gpt2, n=8)
    nothing, something = (pl.ood(tiny_gpt2, pairs, Shift("S2", by=by)) for by in (0.0, 5.0))
    np.testing.assert_allclose(nothing.corrupted[:, 0], nothing.clean)
    assert (something.corrupted[:, 0] != something.clean).all()
    attrs = something.attrs
    assert (attrs["corruption"], attrs["by"], attrs["site"]) == ("Shift", 5.0, "S2")
    with pytest.raises(pl.PatchlibError, match="NaN or infinite"):
        pl.ood(tiny_gpt2, pairs, Shift("S2", by=float("nan")))


def test_the_settings_are_all_there(tiny_gpt2):
    everything = pl.tasks.ioi(tiny_gpt2, n=12, prepend_bos=True)
    pairs, reference = everything[:6], everything[6:]
    attrs = pl.ood(tiny_gpt2, pairs, pl.GN("S2", scale=2), reference=reference, shrinkage=1).attrs
    assert attrs.items() >= {**pairs.describe(), **pl.GN("S2", scale=2.0).describe()}.items()
    assert (attrs["reference"], attrs["asked_shrinkage"]) == (reference.fingerprint, 1.0)
    assert attrs["activation"] == "resid_post"


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
    end = pairs.prompts[0].clean[-1]
    same_end = pairs[[prompt.clean[-1] == end for prompt in pairs.prompts]]
    facts = pl.tasks.factual_recall(tiny_gpt2, n=20)
    shorter = dataclasses.replace(
        pairs,
        prompts=tuple(
            dataclasses.replace(p, clean=p.clean[:-1], words=p.words[:-1]) for p in pairs.prompts
        ),
    )
    same = next(group for _, group in facts.by_length() if len(group) >= 4)
    for message, options in {
        "activation='z'": {"activation": "z"},
        "shrinkage=2": {"shrinkage": 2},
        "shrinkage='1'": {"shrinkage": "1"},
        "cannot be inverted": {"shrinkage": 0},
        "unknown position": {"positions": "nowhere"},
        r"positions=\[\]": {"positions": []},
        "fitted to prompts of one length": {"reference": shorter},
        "2 of 8 prompts are in the reference": {"reference": pairs[:2]},
        "one prompt|1 prompt": {"reference": pl.tasks.ioi(tiny_gpt2, n=9)[8:]},
        "nothing is a distance": {"positions": "last", "activation": "resid_pre"},
    }.items():
        with pytest.raises(pl.PatchlibError, match=message):
            pl.ood(tiny_gpt2, same_end, pl.STR("S2"), **options)
    with pytest.raises(pl.PatchlibError, match=r"give pl\.STR"):
        pl.ood(tiny_gpt2, pairs, "STR")  # type: ignore[arg-type]
    for few in (pairs[:3], pairs[[0, 1, 2] * 3]):
        with pytest.raises(pl.PatchlibError, match=f"{len(few)} prompts, 3 of them .* at least 4"):
            pl.ood(tiny_gpt2, few, pl.STR("S2"))
    with pytest.raises(pl.PatchlibError, match="by_length"):
        pl.ood(tiny_gpt2, facts, pl.STR("subject"))
    with pytest.raises(pl.PatchlibError, match="tokens in a prompt"):
        pl.ood(tiny_gpt2, same, pl.STR("subject"), "subject")

"""Sums over windows and Stolfo's metric, worked out by hand."""

import numpy as np
import pytest
import xarray as xr

import patchlib as pl


def single(n: int = 6) -> xr.DataArray:
    values = 2.0 ** np.arange(n)
    return xr.DataArray([values, -values], dims=("metric", "layer"), coords={"layer": range(n)})


def test_windows_are_cut_at_the_edges():
    """Powers of two show which layers were added."""
    summed = pl.sum_windows(single(), 3)
    assert summed.sel(metric=0).values.tolist() == [3, 7, 14, 28, 56, 48]
    assert summed.sel(metric=1).values.tolist() == [-3, -7, -14, -28, -56, -48]
    assert summed.dims == ("metric", "layer")
    # ROME's window of 4 around layer l: l - 2 to l + 1.
    even = pl.sum_windows(single().sel(metric=0), 4, before=2)
    assert even.values.tolist() == [3, 7, 15, 30, 60, 56]
    xr.testing.assert_equal(pl.sum_windows(single(), 1), single())


def test_a_layer_that_was_not_measured_spoils_its_windows():
    missing = single().where(single().layer != 4)
    summed = pl.sum_windows(missing, 3).sel(metric=0)
    assert summed.isnull().values.tolist() == [False, False, False, True, True, True]


def test_windows_that_make_no_sense():
    with pytest.raises(pl.PatchlibError, match="window=7: give a whole number from 1 to 6"):
        pl.sum_windows(single(), 7)
    with pytest.raises(pl.PatchlibError, match="window=2 is even"):
        pl.sum_windows(single(), 2)
    with pytest.raises(pl.PatchlibError, match="need a dimension 'layer'"):
        pl.sum_windows(single().rename(layer="head"), 3)


def test_layers_that_were_left_out_are_missed():
    """A sum of layers that are no neighbours would pass for a window."""
    for layers in ([0, 1, 3], [3, 4, 5], [2, 1, 0]):
        with pytest.raises(pl.PatchlibError, match=f"of the layers {', '.join(map(str, layers))}"):
            pl.sum_windows(single().sel(layer=layers), 3)


def test_a_linear_model_has_nothing_beyond_the_sum():
    """Where layers add up, restoring them jointly is the sum of restoring each."""
    effects = np.array([0.1, 0.4, 0.2, 0.3])
    jointly = [effects[max(0, i - 1) : i + 2].sum() for i in range(4)]
    summed = pl.sum_windows(xr.DataArray(effects, dims="layer"), 3)
    np.testing.assert_allclose(summed, jointly)


def dataset(corrupted: tuple[float, float], patched: tuple[float, float]) -> xr.Dataset:
    metrics = ["prob", "wrong_prob"]
    return xr.Dataset(
        {
            "patched": (("metric", "prompt", "layer"), np.reshape(patched, (2, 1, 1))),
            "corrupted": (("metric", "prompt"), np.reshape(corrupted, (2, 1))),
            "clean": (("metric", "prompt"), np.ones((2, 1))),
        },
        coords={"metric": metrics},
        attrs={"direction": "denoise"},
    )


def test_stolfo_by_hand():
    """P(r) goes from 0.1 to 0.3 and P(r') from 0.6 to 0.2: (2 + 2) / 2."""
    assert pl.stolfo(dataset((0.1, 0.6), (0.3, 0.2))).item() == pytest.approx(2)
    assert pl.stolfo(dataset((0.1, 0.6), (0.1, 0.6))).item() == 0
    # The second term cannot fall below -1, and its half not below -1/2.
    assert pl.stolfo(dataset((0.5, 1e-12), (0.5, 1.0))).item() == pytest.approx(-0.5)
    # A tiny denominator makes it huge.
    assert pl.stolfo(dataset((1e-6, 0.5), (1e-2, 0.5))).item() == pytest.approx(4999.5)


def test_stolfo_needs_its_metrics_and_prompts(mini):
    pairs = pl.tasks.arithmetic(mini, n=2)
    options = {"corruption": pl.STR("X3+Y3"), "progress": False, "positions": "last"}
    both = {"metrics": ["prob", "wrong_prob"], "keep_prompts": True}
    for change in ({"metrics": ["prob"]}, {"keep_prompts": False}, {"direction": "noise"}):
        fx = pl.patch(mini, pairs, "mlp", **options, **(both | change))
        with pytest.raises(pl.PatchlibError, match="metrics=\\['prob', 'wrong_prob'\\]"):
            pl.stolfo(fx)


def test_stolfo_is_no_ratio_of_means_over_draws(mini):
    pairs = pl.tasks.arithmetic(mini, n=3)
    options = {
        "corruption": pl.GN("X3+Y3", draws=2),
        "metrics": ["prob", "wrong_prob"],
        "positions": "last",
        "keep_prompts": True,
        "progress": False,
    }
    with pytest.raises(pl.PatchlibError, match="means over 2 draws of noise"):
        pl.stolfo(pl.patch(mini, pairs, "mlp", **options))
    each = pl.stolfo(pl.patch(mini, pairs, "mlp", keep_draws=True, **options))
    assert each.sizes["draw"] == 2


def test_an_interval_covers_the_prompts_that_have_the_position(mini):
    pairs = pl.tasks.factual_recall(mini, n=20)
    names = ["last_subject", "middle_subject"]
    fx = pl.patch(
        mini,
        pairs,
        "mlp",
        corruption=pl.STR("subject"),
        positions=names,
        metrics=["prob"],
        keep_prompts=True,
        progress=False,
    )
    there = [bool(at) for at in pairs.at("middle_subject")]
    assert 1 < sum(there) < len(pairs)
    both = pl.interval(fx)
    alone = pl.interval(fx.isel(prompt=there).sel(position=["middle_subject"]))
    whole = pl.interval(fx.sel(position=["last_subject"]))
    xr.testing.assert_equal(both.sel(position=["middle_subject"]), alone)
    xr.testing.assert_equal(both.sel(position=["last_subject"]), whole)
    one = [i for i, has in enumerate(there) if has][:1]
    rest = [i for i, has in enumerate(there) if not has]
    assert pl.interval(fx.isel(prompt=one + rest)).low.sel(position="middle_subject").isnull().all()


def test_the_numbers_of_an_interval(mini):
    pairs = pl.tasks.ioi(mini, n=5)
    options = {"corruption": pl.STR("S2"), "metrics": ["prob"], "progress": False}
    fx = pl.patch(mini, pairs, "mlp", keep_prompts=True, **options)
    plain = pl.interval(fx, 0.9, 50, 1)
    taken = pl.interval(fx, np.float32(0.9), np.int64(50), np.int64(1))
    xr.testing.assert_allclose(plain, taken)
    assert {plain.attrs[name] for name in ("n_resamples", "resampling_seed")} == {50, 1}
    for name, values in {
        "confidence": (0, 1, True, "0.9", float("nan")),
        "n_resamples": (0, 1.5, True, "10"),
        "seed": (-1, 1.5, True, None),
    }.items():
        for value in values:
            with pytest.raises(pl.PatchlibError, match=f"{name}={value!r}: give a"):
                pl.interval(fx, **{name: value})


def test_windows_may_be_numpy_s_numbers(mini):
    pairs = pl.tasks.ioi(mini, n=2)
    options = {"corruption": pl.STR("S2"), "metrics": ["prob"], "progress": False}
    expected = pl.patch(mini, pairs, "mlp", window=[1, 3], **options)
    several = pl.patch(mini, pairs, "mlp", window=np.array([1, 3]), **options)
    xr.testing.assert_identical(several, expected)
    one = pl.patch(mini, pairs, "mlp", window=np.int64(3), **options)
    xr.testing.assert_equal(one.effect, expected.effect.sel(window=3, drop=True))
    assert one.attrs["window"] == 3
    summed = pl.sum_windows(expected.effect.sel(window=1, drop=True), np.int64(3))
    assert summed.sizes["layer"] == 8

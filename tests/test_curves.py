"""Curves over layers: peaks, windows against sums, last against middle tokens."""

import numpy as np
import pytest
import xarray as xr

import patchlib as pl
from patchlib.errors import PatchlibError
from patchlib.measure.resamples import ratio_ends, resampled
from patchlib.measure.sweeps import Sweep


def by_hand(effects, windows=(1,), befores=(0,), positions=None, clean=1.0, corrupted=0.0):
    """A result of probability effects over ``window, layer[, position], prompt``."""
    effects = np.asarray(effects, dtype=float)
    dims = ("metric", "window", "layer", *(["position"] if positions else []), "prompt")
    n = effects.shape[-1]
    fx = xr.Dataset(
        {
            "effect": (dims, effects[None]),
            "patched": (dims, effects[None] + corrupted),
            "clean": (("metric", "prompt"), np.full((1, n), clean)),
            "corrupted": (("metric", "prompt"), np.full((1, n), corrupted)),
        },
        coords={"metric": ["prob"], "window": list(windows), "layer": range(effects.shape[1])}
        | ({"position": positions} if positions else {}),
        attrs={
            "window": ", ".join(map(str, windows)),
            "window_before": ", ".join(map(str, befores)),
        },
    )
    return fx


def swept(*curves, **settings) -> Sweep:
    """A sweep of one run, of two prompts around each window's curve."""
    effects = [[[value - 0.01, value + 0.01] for value in curve] for curve in curves]
    return Sweep({"GN": by_hand(effects, **settings)})


def test_a_peak_by_hand():
    """Of eight layers the first is the first twelfth; a window of 3 holds it up to layer 1."""
    curve = [0.9, 0.4, 0.1, 0.2, 0.3, 0.2, 0.1, 0]
    frame = pl.peaks(swept(curve, curve, windows=(1, 3), befores=(0, 1)))
    assert frame.index.names == ["run", "metric", "window"]
    assert frame.loc["GN", "prob", 1].to_dict() == {
        "peak": pytest.approx(0.4),
        "layer": 1,
        "plateau": pytest.approx(0.9),
        "salient": False,
    }
    assert frame.peak["GN", "prob", 3] == pytest.approx(0.3)
    assert frame.layer["GN", "prob", 3] == 4 and frame.salient["GN", "prob", 3]
    assert frame.plateau["GN", "prob", 3] == pytest.approx(0.9)


def test_a_twelfth_of_the_layers():
    """Of 48 layers 0 to 3; a window of 10 that begins five layers before holds them to layer 8."""
    curve = np.linspace(1, 0, 48)
    frame = pl.peaks(swept(curve, curve, windows=(1, 10), befores=(0, 5)))
    assert frame.layer["GN", "prob", 1] == 4 and frame.layer["GN", "prob", 10] == 9


def test_what_is_no_salient_peak():
    flat, low = [0.5] * 8, [0, 0, 0, 0.09, 0, 0, 0, 0]
    rising, falling = np.linspace(0, 1, 8), np.linspace(1, 0, 8)
    for curve in (flat, low, rising, falling):
        assert not pl.peaks(swept(curve)).salient.item()
    # The same height is more than a tenth of a shorter way, here from 0.3 to 0.8.
    assert pl.peaks(swept(low, clean=0.8, corrupted=0.3)).salient.item()
    # Where the two runs do not differ there is no way to go.
    assert not pl.peaks(swept(low, clean=0.3, corrupted=0.3)).salient.item()


def test_a_window_without_middle_layers():
    wide = swept([1.0, 1, 1, 1], [1.0, 1, 1, 1], windows=(1, 4), befores=(0, 3))
    frame = pl.peaks(wide)
    assert frame.loc["GN", "prob", 4].isna().tolist() == [True, True, False, False]
    assert pl.compare_windows(wide).loc["GN", "prob", 4].isna().all()


def test_windows_against_sums_by_hand():
    """Sums of 3: 1.4 2.4 1.2 0.6 0.4 0.3; middle layers from 2 on, so 1.2 against 0.9."""
    single = [1.0, 0.4, 1.0 - 0.2, 0, -0.2 + 0.6, 0]
    assert sum(single[1:4]) == pytest.approx(1.2)
    sliding = [2.0, 2, 0.5, 0.9, 0.3, 0]
    frame = pl.compare_windows(swept(single, sliding, windows=(1, 3), befores=(0, 1)))
    assert frame.index.tolist() == [("GN", "prob", 3)]
    row = frame.iloc[0]
    assert (row.sliding, row.adding) == (pytest.approx(0.9), pytest.approx(1.2))
    assert row.ratio == pytest.approx(0.75) and row.low <= row.ratio <= row.high
    # Two prompts: resamples hold the first twice, both, or the second twice.
    assert row.low == pytest.approx(0.89 / 1.17) or row.low == pytest.approx(0.91 / 1.23)


def test_no_ratio_where_sums_have_no_peak():
    single, sliding = [1.0, -0.5, -0.5, -0.5, -0.5, -0.5], [1.0, 1, 0.2, 0.1, 0.1, 0]
    row = pl.compare_windows(swept(single, sliding, windows=(1, 3), befores=(0, 1))).iloc[0]
    assert row.adding < 0 and np.isnan(row.ratio)


def test_windows_of_a_model(mini):
    """Against means and sums of a plain patch; prompts without the position do not count."""
    facts = pl.tasks.factual_recall(mini, n=12)
    settings = {
        "window": [1, 3],
        "positions": "middle_subject",
        "metrics": ["prob", "logit_diff"],
        "progress": False,
    }
    corruptions = {"STR": pl.STR("subject"), "GN": pl.GN("subject", draws=2)}
    both = pl.sweep(mini, facts, corruptions, "mlp", **settings)
    frame, top = pl.compare_windows(both), pl.peaks(both)
    assert len(frame) == 4 and len(top) == 8
    for (run, metric, window), row in frame.iterrows():
        fx = pl.patch(mini, facts, "mlp", corruption=corruptions[run], **settings)
        effect = fx.effect.sel(metric=metric)
        assert row.sliding == pytest.approx(float(effect.sel(window=3, layer=slice(2, None)).max()))
        added = pl.sum_windows(effect.sel(window=1, drop=True), 3)
        assert row.adding == pytest.approx(float(added.sel(layer=slice(2, None)).max()))
        assert top.peak[run, metric, window] == pytest.approx(row.sliding)
    chosen = pl.peaks(both.sel(window=3))
    assert chosen.equals(top[top.index.get_level_values("window") == 3])


def test_last_to_middle_by_hand():
    """The second prompt has no middle token and does not count, also at the last."""
    effects = np.zeros((1, 3, 2, 3))
    effects[0, :, 0] = [[1, np.nan, 2], [0, np.nan, 1], [1, np.nan, 1]]
    effects[0, :, 1] = [[2, 50, 2], [2, 50, 2], [2, 50, 2]]
    fx = by_hand(effects, positions=["middle_subject", "last_subject"])
    frame = pl.last_to_middle(Sweep({"STR": fx}))
    row = frame.loc["STR", "prob", 1]
    assert (row["last"], row.middle, row.ratio) == (6, 3, 2)
    # Resampled: the first prompt alone gives 6 / 2, the third alone 6 / 4.
    assert (row.low, row.high) == (1.5, 3) and frame.attrs["n_prompts"] == 2
    # The logit difference: positions with other prompts have other normalisers.
    fx["effect"] = fx.effect * xr.DataArray([0.5, 0.1], dims="position")
    row = pl.last_to_middle(Sweep({"STR": fx})).iloc[0]
    assert (row["last"], row.middle, row.ratio) == (3, 1.5, 2)


def test_metrics_are_compared_on_the_same_resamples():
    """Prompts differ in size and not in ratio: every resample says what all of them say."""
    size = np.array([1.0, 5.0, 20.0])
    places = ["middle_subject", "last_subject"]
    both = [
        by_hand(np.tile([size, times * size], (1, 2, 1, 1)), positions=places) for times in (3, 2)
    ]
    fx = xr.concat([both[0], both[1].assign_coords(metric=["logit_diff"])], "metric")
    sweep = Sweep({"GN": fx})
    ratios = pl.last_to_middle(sweep)
    assert ratios.ratio["GN", "prob", 1] == 3 and ratios.ratio["GN", "logit_diff", 1] == 2
    assert pl.favours_last(sweep).to_dict() == {("GN", 1): 1.0}
    assert pl.favours_last(sweep, "logit_diff", "prob").to_dict() == {("GN", 1): 0.0}
    with pytest.raises(PatchlibError, match="no metric 'kl': this sweep has prob, logit_diff"):
        pl.favours_last(sweep, "kl")


def test_no_ratio_over_a_middle_of_no_effect():
    effects = np.ones((1, 3, 2, 2))
    effects[0, :, 0] = [-1, -2]
    fx = by_hand(effects, positions=["middle_subject", "last_subject"])
    row = pl.last_to_middle(Sweep({"STR": fx})).iloc[0]
    assert row.middle == -4.5 and np.isnan(row.ratio)
    effects[0, :, 0] = [-1, 2]
    fx = by_hand(effects, positions=["middle_subject", "last_subject"])
    row = pl.last_to_middle(Sweep({"STR": fx})).iloc[0]
    assert row.ratio == 2 and np.isnan(row.low) and np.isnan(row.high)


def test_last_to_middle_is_that_of_the_prompts_with_a_middle(mini):
    facts = pl.tasks.factual_recall(mini, n=20)
    some = facts[[row for row, at in enumerate(facts.at("middle_subject")) if at]]
    assert 1 < len(some) < len(facts)
    settings = {"positions": ["middle_subject", "last_subject"], "progress": False}
    corruption = {"STR": pl.STR("subject")}
    frame = pl.last_to_middle(pl.sweep(mini, facts, corruption, "mlp", **settings))
    plain = pl.patch(mini, some, "mlp", corruption=corruption["STR"], **settings)
    sums = plain.effect.sum("layer")
    for metric in ("prob", "logit_diff", "kl"):
        row = frame.loc["STR", metric, 1]
        for name in ("last", "middle"):
            at = float(sums.sel(metric=metric, position=f"{name}_subject"))
            assert row[name] == pytest.approx(at, rel=1e-3)


def test_what_curves_refuse(mini):
    facts = pl.tasks.factual_recall(mini, n=4)
    corruption, quiet = {"STR": pl.STR("subject")}, {"progress": False}
    heads = pl.sweep(mini, facts, corruption, **quiet)
    some = pl.sweep(mini, facts, corruption, "mlp", layers=[1, 2], **quiet)
    two = pl.sweep(mini, facts, corruption, "mlp", positions=["last_subject", "last"], **quiet)
    for function in (pl.peaks, pl.compare_windows, pl.last_to_middle):
        for wrong in (heads, some):
            with pytest.raises(pl.PatchlibError, match="curves go over all layers"):
                function(wrong)
        with pytest.raises(pl.PatchlibError, match="give positions="):
            function(two)
    assert len(pl.peaks(two.sel(position="last"))) == 3
    with pytest.raises(pl.PatchlibError, match="can be selected by"):
        two.sel(position="S2")
    with pytest.raises(pl.PatchlibError, match="window of 1"):
        pl.compare_windows(pl.sweep(mini, facts, corruption, "mlp", window=3, **quiet))


def test_resampled_means():
    """The mean of resampled means is near the mean, their spread near SD / sqrt(n)."""
    values = xr.DataArray(np.arange(100.0), dims="prompt")
    means = resampled(values)
    assert means.sizes == {"resample": 1000}
    assert float(means.mean()) == pytest.approx(49.5, abs=0.5)
    assert float(means.std()) == pytest.approx(28.87 / 10, rel=0.1)
    assert means.equals(resampled(values)) and not means.equals(resampled(values, seed=1))
    low, high = np.quantile(means, [0.025, 0.975])
    fx = xr.Dataset({"effect": values})
    ends = pl.interval(fx)
    assert (float(ends.low), float(ends.high)) == pytest.approx((low, high), abs=0.2)
    assert resampled(values[:1]).isnull().all()
    assert ratio_ends(2 * means, means) == pytest.approx({"low": 2, "high": 2})

"""Sweeps under several corruptions: found heads, overlaps, thresholds, draws; the paper's, too."""

import numpy as np
import pytest
import xarray as xr

import patchlib as pl
from patchlib.heads import Heads
from patchlib.measure.sweeps import Sweep

METRICS = ["prob", "logit_diff", "kl"]
CORRUPTIONS = {"STR": pl.STR("S2"), "GN": pl.GN("S2", draws=2)}


@pytest.fixture(scope="module")
def ioi(mini):
    return pl.tasks.ioi(mini, n=6)


@pytest.fixture(scope="module")
def swept(mini, ioi):
    return pl.sweep(mini, ioi, CORRUPTIONS, metrics=METRICS, progress=False)


def by_hand(effect, corrupted=0.0, clean=1.0, metric="prob") -> xr.Dataset:
    """A result per prompt of two layers of three heads."""
    effect = np.asarray(effect, dtype=float)
    unpatched = np.ones((1, effect.shape[-1]))
    dims = ("metric", "layer", "head", "prompt")
    return xr.Dataset(
        {
            "effect": (dims, effect[None]),
            "patched": (dims, effect[None] + corrupted),
            "clean": (("metric", "prompt"), clean * unpatched),
            "corrupted": (("metric", "prompt"), corrupted * unpatched),
        },
        coords={
            "metric": [metric],
            "layer": range(effect.shape[0]),
            "head": range(effect.shape[1]),
        },
    )


def test_heads_are_sets():
    some, others = Heads("4.6, 0.4, 5.1"), Heads("5.1, 4.6")
    assert some == Heads("0.4, 4.6, 5.1") == ["5.1", (0, 4), "4.6"]
    assert some != others and others < some and others <= some and some <= some
    assert some > others and some >= others and not some < some and not some <= others
    assert str(some & others) == "4.6, 5.1"
    assert str(others | some) == "5.1, 4.6, 0.4"
    assert str(some - others) == "0.4" and str(others - some) == "none"
    assert isinstance(some & others, Heads) and not others - some
    assert some != "nonsense" and some != 5 and Heads() == [] and Heads() != some
    with pytest.raises(pl.PatchlibError, match="is no head"):
        some & ["nonsense"]


def test_a_sweep_is_one_patch_for_each_corruption(mini, ioi, swept):
    assert list(swept) == ["STR", "GN"] and len(swept) == 2
    for name, corruption in CORRUPTIONS.items():
        alone = pl.patch(
            mini, ioi, corruption=corruption, metrics=METRICS, keep_prompts=True, progress=False
        )
        xr.testing.assert_identical(swept[name], alone)


def test_means_are_those_of_patch(mini, ioi, swept):
    for name, corruption in CORRUPTIONS.items():
        plain = pl.patch(mini, ioi, corruption=corruption, metrics=METRICS, progress=False)
        xr.testing.assert_allclose(swept.mean[name], plain.drop_vars("effect_sd"))
        assert swept.mean[name].attrs == plain.attrs


def test_means_over_prompts_without_the_position_are_those_of_patch(mini):
    facts = pl.tasks.factual_recall(mini, n=12)
    assert 0 < sum(map(bool, facts.at("middle_subject"))) < len(facts)
    for positions in (["last_subject", "middle_subject"], "middle_subject"):
        settings = {"positions": positions, "window": [1, 3], "progress": False}
        both = pl.sweep(mini, facts, {"STR": pl.STR("subject")}, "mlp", **settings)
        plain = pl.patch(mini, facts, "mlp", corruption=pl.STR("subject"), **settings)
        xr.testing.assert_allclose(both.mean["STR"], plain.drop_vars("effect_sd"))


def test_runs(mini, ioi, swept):
    runs = swept.runs()
    assert runs.index.tolist() == ["clean", "STR", "GN"] and runs.columns.tolist() == METRICS
    for name, corruption in CORRUPTIONS.items():
        plain = pl.baselines(mini, ioi, corruption, METRICS).mean("prompt")
        np.testing.assert_allclose(runs.loc[name], plain.corrupted, atol=1e-5)
        np.testing.assert_allclose(runs.loc["clean"], plain.clean, atol=1e-5)


def test_found_overlap_anywhere_everywhere_by_hand():
    """Twenty heads of no effect, and three that stand out, one of them negative."""
    one, other = np.zeros((2, 2, 10, 4))
    one[1, 2], one[0, 3], one[1, 9] = -5, 4, 4.5
    other[1, 2], other[0, 0] = -3, 2.9
    hand = Sweep({"STR": by_hand(one), "GN": by_hand(other)})
    assert str(hand.found("STR", "prob")) == "1.2, 1.9, 0.3"
    assert str(hand.found("STR", "prob", "positive")) == "1.9, 0.3"
    assert str(hand.found("STR", "prob", "negative")) == "1.2"
    # Mean 0.175, SD 1.73: only -5 and, just, no positive one lie beyond 2.6 SD.
    assert str(hand.found("STR", "prob", sd=2.6)) == "1.2"
    assert hand.overlap("STR", "GN").loc["prob"].to_dict() == {
        "both": "1.2",
        "only STR": "1.9, 0.3",
        "only GN": "0.0",
    }
    assert str(hand.anywhere()) == "0.0, 0.3, 1.2, 1.9"
    assert str(hand.everywhere()) == "1.2"


def test_found_refuses(swept, mini, ioi):
    with pytest.raises(pl.PatchlibError, match="no run 'ABC': allowed are STR, GN"):
        swept.found("ABC")
    with pytest.raises(pl.PatchlibError, match="no run 'ABC'"):
        swept["ABC"]
    with pytest.raises(pl.PatchlibError, match="metric='rank'"):
        swept.found("STR", "rank")
    with pytest.raises(pl.PatchlibError, match="sign='up'"):
        swept.found("STR", sign="up")
    layers = pl.sweep(mini, ioi[:2], {"STR": pl.STR("S2")}, "mlp", progress=False)
    with pytest.raises(pl.PatchlibError, match="these are no heads but layers"):
        layers.found("STR", sd=0)
    for own in ("keep_prompts", "keep_draws", "corruption"):
        with pytest.raises(pl.PatchlibError, match=f"^{own}: a sweep takes"):
            pl.sweep(mini, ioi, CORRUPTIONS, **{own: True})
    for corruptions in ({}, {"clean": pl.STR("S2")}):
        with pytest.raises(pl.PatchlibError, match="name at least one, as"):
            pl.sweep(mini, ioi[:2], corruptions, progress=False)
    with pytest.raises(pl.PatchlibError, match="STR: a sweep holds values per prompt"):
        Sweep({"STR": swept.mean["STR"]})


def test_heads_at_the_threshold_by_hand():
    """One head's prompts disagree, so that its interval spans from 0 to 4 and holds the upper
    threshold; another's agree; the rest are zero and lie inside.
    """
    effect = np.zeros((2, 10, 40))
    effect[0, 1] = np.tile([0.0, 4.0], 20)
    effect[1, 5] = 3
    hand = Sweep({"STR": by_hand(effect)})
    # Mean 0.25 and SD 0.77: thresholds of 1.8 and, for 4 SD, 3.3. The interval is about 1.4 to 2.6.
    assert str(hand.at_threshold("STR", "prob")) == "0.1"
    assert str(hand.at_threshold("STR", "prob", sd=4)) == "none"
    with pytest.raises(pl.PatchlibError, match="no run"):
        hand.at_threshold("GN", "prob")


def test_strongest_by_hand(mini, ioi):
    effect = np.zeros((2, 10, 2))
    effect[0, 3], effect[1, 7], effect[1, 1] = [1, 3], [-4, -4], [5, 0]
    fx = by_hand(effect)
    top = pl.strongest(fx, "prob", n=3)
    assert top.to_dict("list") == {"head": ["1.7", "1.1", "0.3"], "effect": [-4, 2.5, 2]}
    with pytest.raises(pl.PatchlibError, match="no metric 'kl': this result has prob"):
        pl.strongest(fx, "kl")
    with pytest.raises(pl.PatchlibError, match="n=0"):
        pl.strongest(fx, "prob", n=0)
    where = pl.patch(
        mini, ioi, corruption=pl.STR("S2"), positions=["S2", "last"], heads=["4.6"], progress=False
    )
    some = pl.strongest(where)
    # What was not patched is no effect of zero.
    assert some.columns.tolist() == ["head", "position", "effect"] and len(some) == 2
    at = where.effect.sel(metric="logit_diff", layer=4, head=6)
    assert some.set_index("position").effect.to_dict() == pytest.approx(
        {place: float(at.sel(position=place)) for place in ("S2", "last")}
    )
    layers = pl.patch(mini, ioi, "mlp", window=[1, 3], corruption=pl.STR("S2"), progress=False)
    assert pl.strongest(layers, n=20).columns.tolist() == ["layer", "window", "effect"]


def test_stability_by_hand(mini, ioi):
    draws = np.zeros((4, 2, 10, 2))
    draws[:, 0, 3] = 5
    draws[0, 1, 2] = draws[1, 1, 2] = -6
    fx = xr.concat([by_hand(draw) for draw in draws], dim="draw")
    assert pl.stability(fx, "prob").to_dict() == {"0.3": 1.0, "1.2": 0.5}
    plain = pl.stability(fx.mean("prompt"), "prob")
    assert plain.to_dict() == {"0.3": 1.0, "1.2": 0.5} and plain.index.name == "head"
    assert pl.stability(fx, "prob", sd=100).empty
    with pytest.raises(pl.PatchlibError, match="stability needs draws"):
        pl.stability(fx.isel(draw=0), "prob")


def test_the_papers_sweeps():
    table5 = pl.paper.sweep("table5")
    assert table5.found("GN", "prob", "negative") == ["0.10", "10.7", "11.10"]
    assert len(table5.found("STR")) == 7 and len(table5.found("GN")) == 8
    assert str(table5.everywhere()) == "5.5, 7.9, 8.6, 10.7"
    assert len(table5.anywhere()) == 9
    assert table5.overlap("STR", "GN").loc["logit_diff", "only GN"] == "3.0"
    runs = table5.runs()
    assert runs.prob.to_dict() == {"clean": 0.481, "STR": 0.03, "GN": 0.129}
    assert runs.kl.isna().all() and pl.paper.sweep("table3").runs().isna().all(axis=None)
    for wrong in ({"run": "ABC"}, {"metric": "rank"}, {"sign": "up"}, {"sd": 3}):
        with pytest.raises(pl.PatchlibError, match="table5 has the runs STR, GN"):
            table5.found(**({"run": "STR"} | wrong))
    with pytest.raises(pl.PatchlibError, match="table='table1'"):
        pl.paper.sweep("table1")


def test_the_floor_by_hand():
    """Effects of 0, 0, 0 and 0.04 (mean 0.01, SD 0.017) over P_* of 0.05."""
    effect = np.zeros((1, 4, 3))
    effect[0, 3] = [0.04, 0.04, np.nan]
    effect[0, :3, 2] = np.nan
    fx = by_hand(effect, corrupted=0.05)
    # A prompt without the position counts nowhere.
    fx.corrupted[0, 2] = 0.9
    at = pl.floor(fx)
    assert at.threshold == pytest.approx(0.01 - 2 * 0.04 * np.sqrt(3) / 4)
    assert at.floor == pytest.approx(-0.05)
    assert at.ratio == pytest.approx(at.low) == pytest.approx(at.high)
    assert at.ratio == pytest.approx(0.4928, abs=1e-3)
    for wrong in (fx.mean("prompt"), fx.assign_attrs(direction="noise")):
        with pytest.raises(pl.PatchlibError, match="denoising, at one position and window"):
            pl.floor(wrong)
    with pytest.raises(pl.PatchlibError, match="no metric 'prob'"):
        pl.floor(fx.assign_coords(metric=["kl"]))


def test_the_floor_is_that_of_detection(mini, ioi, swept):
    detected = pl.detect(swept.mean["STR"]).set_index(["metric", "sign"])
    at = pl.floor(swept["STR"])
    assert at.threshold == pytest.approx(detected.threshold["prob", "negative"])
    assert at.floor == pytest.approx(-swept.runs().prob["STR"])
    assert at.low <= at.ratio <= at.high


def test_a_resample_draws_prompts_with_replacement(mini):
    pairs = pl.tasks.ioi(mini, n=6)
    corruptions = {"STR": pl.STR("S2"), "GN": pl.GN("S2")}
    sweep = pl.sweep(mini, pairs, corruptions, metrics=["prob"], progress=False)
    again = sweep.resampled(3)
    texts = again["STR"].text.values.tolist()
    assert len(texts) == 6 and set(texts) < set(pairs.texts)
    # The same prompts in both runs and for the same seed, others for another.
    assert (
        again["GN"].text.values.tolist() == texts == sweep.resampled(3)["STR"].text.values.tolist()
    )
    assert sweep.resampled(4)["STR"].text.values.tolist() != texts
    rows = [pairs.texts.index(text) for text in texts]
    mean = again.mean["GN"].patched
    assert mean.values == pytest.approx(sweep["GN"].patched.values[:, rows].mean(1))

"""Scores against a known circuit: worked out by hand, for the truth itself and for chance."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import patchlib as pl
from patchlib import PatchlibError
from patchlib.measure.resamples import resampled

RANKING = ["auc", "average_precision", "precision", "needed", "signed_auc"]


def heads(effects, **more) -> xr.Dataset:
    """Effects of one layer's heads, with values per prompt where they have two dimensions."""
    values = np.asarray(effects, dtype=float)
    dims = ("head", "prompt")[: values.ndim]
    data = xr.Dataset({"effect": (dims, values)}, coords={"head": range(len(values))} | more)
    return data.expand_dims(metric=["logit_diff"], layer=[0])


def true(*numbers):
    return [f"0.{number}" for number in numbers]


@pytest.mark.parametrize(("effects", "truth", "expected"), [
    # Sizes in order 4 3 2 1, true the first and the third: of four couples the AUC wins three.
    ([4, -3, 2, 1], true(0, 2), [3 / 4, (1 + 2 / 3) / 2, 1 / 2, 3, 1]),
    # The second and the last: one couple of four; 1/2 and 2/4.
    ([4, -3, 2, 1], true(1, 3), [1 / 4, (1 / 2 + 1 / 2) / 2, 1 / 2, 4, 0]),
    # All equal: half of every couple, the base rate, and two drawn from four.
    ([1, 1, 1, 1], true(0, 1), [1 / 2, 1 / 2, 1 / 2, 4, 1 / 2]),
    # Equal in size and not in sign.
    ([1, -1, 1, -1], true(0, 2), [1 / 2, 1 / 2, 1 / 2, 4, 1]),
    # 5 | 3 3 3 | 0 with the first and one of three true: 1 and 2/4; one of the three is taken.
    ([5, 3, 3, 3, 0], true(0, 3), [5 / 6, 3 / 4, (1 + 1 / 3) / 2, 4, 5 / 6]),
    # A harmful true head is the first by size and the last by sign.
    ([-5, 0, 0.1, 0.2], true(0), [1, 1, 1, 1, 0]),
])  # fmt: skip
def test_rankings_by_hand(effects, truth, expected):
    found = pl.score(heads(effects), truth).value[RANKING]
    np.testing.assert_allclose(found, expected)


def test_an_auc_is_the_area_under_its_curve():
    """By the trapezoids of all thresholds, ties among them."""
    draw = np.random.default_rng(1)
    sizes, is_true = draw.integers(0, 6, 40), draw.random(40) < 0.3
    at = [np.inf, *sorted({*sizes}, reverse=True)]
    hit, miss = ([(sizes[of] >= level).mean() for level in at] for of in (is_true, ~is_true))
    area = np.trapezoid(hit, miss)
    # Recall times precision, one step for each threshold.
    precision = [is_true[sizes >= level].mean() for level in at[1:]]
    found = pl.score(heads(sizes), true(*np.flatnonzero(is_true))).value
    assert found.auc == pytest.approx(area)
    assert found.average_precision == pytest.approx(np.diff(hit) @ precision)


def test_sizes_and_signs_by_hand():
    truth = {"0.0": 1.0, "0.1": -0.5, "0.2": "+", "0.3": "-", "0.4": 0.0, "0.5": None}
    found = pl.score(heads([0.8, -0.5, 0.3, 0.3, 0.1, 7, -0.3]), truth)
    assert found.attrs == {"n_true": 5, "n": 7}
    # 0.2, 0, 0.1 and, of the one that is not predicted to do anything, 0.3.
    assert found.value.size_error == pytest.approx(0.15)
    assert found.chance.size_error == pytest.approx(1.5 / 4)
    assert found.value.signs == 3 / 4
    # What is predicted to be idle is none to be found. True are 7, 0.8, 0.5 and two of the three
    # of 0.3, which draw two of the ten couples.
    assert found.value[["auc", "needed"]].tolist() == [0.9, 6]
    alone = pl.score(heads([1, 2, 3]), true(0))
    assert alone.value[["size_error", "signs"]].isna().all()
    assert alone.chance[["size_error", "signs"]].isna().all()
    # Of other metrics no size is predicted, but the sign is.
    other = pl.score(heads([1, 2, 3]).assign_coords(metric=["kl"]), {"0.0": 1.0})
    assert np.isnan(other.value.size_error) and other.value.signs == 1


@given(st.lists(st.floats(-2, 2), min_size=3, max_size=12, unique_by=abs), st.data())
def test_the_truth_scores_1(effects, data):
    """Effects that are the prediction are right in everything."""
    chosen = data.draw(st.sets(st.sampled_from(range(len(effects))), min_size=1))
    truth = {f"0.{number}": effects[number] for number in chosen if abs(effects[number]) > 1e-9}
    if not 0 < len(truth) < len(effects):
        return
    values = [truth.get(f"0.{number}", 0) for number in range(len(effects))]
    found = pl.score(heads(np.tile(np.array(values)[:, None], 4)), truth)
    for column in ("value", "low", "high"):
        assert found[column].drop(["needed", "signed_auc"]).tolist() == [1, 1, 1, 0, 1]
        assert found[column].needed == len(truth)


def test_random_orders_score_chance():
    """Means over orders of each score are what ``chance`` says, ties or none."""
    draw, truth = np.random.default_rng(0), true(0, 1, 2, 3)
    for effects in (np.arange(1, 14.0), [3, 3, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0]):
        found = [pl.score(heads(draw.permutation(effects)), truth) for _ in range(600)]
        mean = np.mean([each.value[["auc", "precision", "signed_auc"]] for each in found], axis=0)
        np.testing.assert_allclose(mean, [0.5, 4 / 13, 0.5], atol=0.02)
        if len({*effects}) == len(effects):
            several = np.mean([each.value[RANKING] for each in found], axis=0)
            chance = found[0].chance[RANKING].astype(float)
            np.testing.assert_allclose(several, chance, rtol=0.05)


def test_intervals_are_of_the_same_prompts():
    """Two results that differ by a factor have the same interval, and it holds the value."""
    draw = np.random.default_rng(0)
    effects = draw.normal(size=(8, 20)) + np.linspace(0, 1, 8)[:, None]
    one, other = (pl.score(heads(scale * effects), true(5, 7)) for scale in (1, 3))
    assert one.loc[RANKING].equals(other.loc[RANKING])
    ranking = one.loc[RANKING]
    assert (ranking.low <= ranking.value).all() and (ranking.value <= ranking.high).all()
    assert one.low.auc < one.high.auc
    # By hand: the quantiles of the AUC of every resample's means.
    means = resampled(xr.DataArray(effects, dims=("head", "prompt"))).transpose("resample", "head")
    sizes, of_true = abs(means.values), np.isin(np.arange(8), [5, 7])
    pairs = sizes[:, of_true][:, :, None] > sizes[:, ~of_true][:, None]
    ends = np.quantile(pairs.mean((1, 2)), [0.025, 0.975])
    np.testing.assert_allclose(one.loc["auc", ["low", "high"]].astype(float), ends)
    single = pl.score(heads(effects[:, :1]), true(5, 7))
    assert single.low.isna().all() and pl.score(heads(effects[:, 0]), true(5, 7)).low.isna().all()


def edges(effects: dict[str, float]) -> xr.Dataset:
    """Effects over writers and readers, NaN where there is no edge."""
    writers, readers = (
        [*dict.fromkeys(name.split("->")[end] for name in effects)] for end in (0, 1)
    )
    values = [[effects.get(f"{w}->{r}", np.nan) for r in readers] for w in writers]
    coords = {"metric": ["logit_diff"], "writer": writers, "reader": readers}
    return xr.Dataset({"effect": (("metric", "writer", "reader"), [values])}, coords)


def test_queries_keys_and_values_are_one_edge():
    """The largest by size, whatever its sign."""
    effects = {"resid0->q1.0": 0.1, "resid0->k1.0": -0.9, "resid0->v1.0": 0.2}
    effects |= {"0.1->q1.0": 0.5, "0.1->k1.0": 0.0, "0.1->v1.0": 0.1, "0.1->mlp_in1": 0.3}
    effects |= {"mlp0->logits": 0.4, "0.1->logits": 0.6}
    found = pl.score(edges(effects), {"resid0->1.0": -1.0, "0.1->logits": 0.5, "0.1->1.0": 0})
    # 0.9 and 0.6 above 0.5, 0.4 and 0.3; sizes away by 0.1, 0.1, 0.5, 0.3 and 0.4.
    assert found.value.drop("signed_auc").tolist() == pytest.approx([1, 1, 1, 2, 1.4 / 5, 1])
    # The same, said in other ways.
    for truth in (pl.Edges("resid0->v1.0, 0.1->logits"), "resid0->1.0 0.1->logits",
                  [("resid0", "1.0"), ("0.1", "logits")]):  # fmt: skip
        assert pl.score(edges(effects), truth).value[RANKING].equals(found.value[RANKING])
    named = xr.Dataset(
        {"effect": ("edges", [-0.9, 0.5, 0.3, 0.4, 0.6])},
        {"edges": ["resid0->1.0", "0.1->1.0", "0.1->mlp_in1", "mlp0->logits", "0.1->logits"]},
    )
    assert pl.score(named, truth).value[RANKING].equals(found.value[RANKING])


def test_the_largest_of_several_positions_counts_and_the_mean_of_draws():
    by_position = xr.concat([heads([0, -3, 1]), heads([2, 1, 1])], "position")
    assert pl.score(by_position, true(0, 1)).value.auc == 1
    assert pl.score(by_position.rename(position="draw"), true(0, 1)).value.auc == 0.5


def test_a_sweep_is_scored(mini):
    """On a model, each metric by itself, and as the sizes of its mean effects have it."""
    fx = pl.patch(mini, pl.tasks.ioi(mini, n=6), corruption=pl.STR("S2"), keep_prompts=True,
                  progress=False)  # fmt: skip
    strongest = pl.Heads(pl.strongest(fx.mean("prompt", keep_attrs=True), n=5)["head"])
    assert pl.score(fx, strongest).value.precision == 1
    assert pl.score(fx, strongest, "kl").value.auc < 1
    assert pl.score(fx, strongest).equals(pl.score(fx, strongest, "logit_diff"))


@pytest.mark.parametrize(("result", "truth", "words"), [
    (5, ["0.0"], "give the whole dataset"),
    (heads([1, 2]).isel(head=0), ["0.0"], "heads .layer and head. or of edges"),
    (heads([1, 2]), ["0.7"], "has not measured 0.7; it has 0.0 to 0.1 and 2 in all"),
    (heads([1, np.nan, 2]), ["0.1"], "has not measured 0.1"),
    (heads([1, 2]), [], "0 of 2 are true"),
    (heads([1, 2]), {"0.0": 0}, "0 of 2 are true"),
    (heads([1, 2]), ["0.0", "0.1"], "2 of 2 are true"),
    (heads([1, 2]), {"0.0": "big"}, "0.0 has the effect 'big': give a number"),
    (heads([1, 2]), {"0.0": np.nan}, "give a number"),
    (heads([1, 2]), ["head 1"], "is no head"),
    (heads([1, 2]), 3, "truth=3: give heads or edges"),
    (heads([[1, np.nan], [2, 2]]), ["0.0"], "a part of the prompts alone"),
])  # fmt: skip
def test_what_cannot_be_scored_is_refused(result, truth, words):
    with pytest.raises(PatchlibError, match=words):
        pl.score(result, truth)


def test_another_metric_is_refused():
    with pytest.raises(PatchlibError, match="metric='kl': this result has logit_diff"):
        pl.score(heads([1, 2]), ["0.0"], "kl")

"""Which cells stand out, alone and with a threshold that positions share."""

import numpy as np
import pytest
import xarray as xr

import patchlib as pl


def effects() -> xr.Dataset:
    """Position "a" is quiet with one small peak, position "b" loud with two."""
    quiet = np.zeros((4, 5))
    quiet[1, 2] = 0.1
    loud = np.zeros((4, 5))
    loud[0, 0], loud[3, 4] = 5.0, -5.0
    values = np.stack([quiet, loud], axis=-1)[None]
    return xr.Dataset(
        {"effect": (("metric", "layer", "head", "position"), values)},
        coords={
            "metric": ["kl"],
            "layer": range(4),
            "head": range(5),
            "position": ["a", "b"],
        },
    )


def heads(found, position: str, sign: str) -> list[str]:
    (row,) = found[(found.position == position) & (found.sign == sign)].heads
    return row


def test_each_position_has_its_own_threshold():
    found = pl.detect(effects())
    assert heads(found, "a", "positive") == ["1.2"]
    assert heads(found, "b", "positive") == ["0.0"]
    assert heads(found, "b", "negative") == ["3.4"]


def test_positions_that_share_a_threshold():
    """Over all pairs the quiet position's peak is nothing, as in the paper's Table 2."""
    fx = effects()
    found = pl.detect(fx, shared=["position"])
    assert heads(found, "a", "positive") == []
    assert heads(found, "b", "positive") == ["0.0"]
    assert heads(found, "b", "negative") == ["3.4"]
    mean, sd = float(fx.effect.mean()), float(fx.effect.std())
    assert found.threshold.tolist() == pytest.approx(
        [mean + 2 * sd, mean - 2 * sd, mean + 2 * sd, mean - 2 * sd]
    )


def test_only_what_is_kept_apart_can_share():
    for shared in (["draw"], ["metric"], ["layer"]):
        with pytest.raises(pl.PatchlibError, match="keeps apart metric, position"):
            pl.detect(effects(), shared=shared)


def test_results_without_the_dimension_of_metrics():
    with pytest.raises(pl.PatchlibError, match=r"select with a list, as in fx.sel\(metric=\['kl'"):
        pl.detect(effects().sel(metric="kl"))


def test_layers_are_no_heads():
    layers = effects().isel(head=0, drop=True).sel(position=["b"])
    found = pl.detect(layers, sd=1)
    assert found.heads.iloc[0] == ["0"]
    with pytest.raises(pl.PatchlibError, match=r"layers, .* or neurons: 0"):
        pl.heads_of(found, "kl")


def test_other_units_have_names_of_their_own():
    """A key/value head is no head: its number means another one."""
    shared = effects().rename(head="kv_head")
    found = pl.detect(shared)
    assert heads(found, "b", "positive") == ["kv0.0"]
    assert heads(found, "b", "negative") == ["kv3.4"]
    with pytest.raises(pl.PatchlibError, match=r"no heads but .*: kv0\.0"):
        pl.heads_of(found[found.position == "b"], "kl")
    neurons = pl.detect(effects().rename(head="neuron"))
    assert heads(neurons, "a", "positive") == ["neuron1.2"]


def test_heads_are_pairs_that_print_as_heads():
    found = pl.detect(effects())
    several = pl.heads_of(found[found.position == "b"], "kl")
    assert several == [(0, 0)]
    assert str(several) == "0.0"


def test_the_strongest_come_first():
    fx = effects().sel(position=["b"])
    fx.effect[0, 1, 3], fx.effect[0, 2, 2] = 7.0, -6.0
    found = pl.detect(fx, sd=1)
    assert heads(found, "b", "positive") == ["1.3", "0.0"]
    assert heads(found, "b", "negative") == ["2.2", "3.4"]


def test_what_makes_no_sense_is_refused():
    for sd in (-1, float("nan"), True, "2"):
        with pytest.raises(pl.PatchlibError, match=f"sd={sd!r}: give a number"):
            pl.detect(effects(), sd=sd)
    assert pl.detect(effects(), sd=np.float32(2)).equals(pl.detect(effects()))
    with pytest.raises(pl.PatchlibError, match=r"no dimension 'layer'.*layer=\[5\]"):
        pl.detect(effects().sel(layer=1))
    assert pl.detect(effects(), shared="position").equals(pl.detect(effects(), shared=["position"]))

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

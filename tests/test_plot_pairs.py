"""The figure of interactions shows every pair once, and each component alone."""

import numpy as np
import pytest
import xarray as xr

from patchlib import plot
from patchlib.errors import PatchlibError

NAMES = ["2.1", "mlp3", "4.0, 4.1"]


@pytest.fixture
def both() -> xr.Dataset:
    """Of three components in two directions; 2.1 with mlp3 is an AND, with the heads an OR."""
    values = np.array([[np.nan, 0.5, -0.25], [0.5, np.nan, 0.0], [-0.25, 0.0, np.nan]])
    gates = np.array([["", "AND", "OR"], ["AND", "", "additive"], ["OR", "additive", ""]])
    effects = np.array([[0.1, 0.8, 0.3], [0.8, 0.2, 0.5], [0.3, 0.5, -0.3]])
    dims = ("metric", "direction", "first", "second")

    def twice(array: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        return dims, np.stack([array, array])[None]

    return xr.Dataset(
        {"interaction": twice(values), "gate": twice(gates), "effect": twice(effects)},
        {
            "metric": ["logit_diff"],
            "direction": ["denoise", "noise"],
            "first": NAMES,
            "second": NAMES,
        },
        {"model": "mini", "task": "ioi", "n_prompts": 4, "corruption": "STR", "site": "ABC"},
    )


def test_every_pair_is_there_once_and_framed_where_it_is_a_gate(both: xr.Dataset):
    drawn = plot.pairs(both)
    left, right, _ = drawn.axes
    assert (left.get_title(), right.get_title()) == ("denoise", "noise")
    for axes in (left, right):
        image = axes.images[0]
        shown = np.ma.filled(image.get_array(), np.nan)
        expected = [[np.nan] * 3, [0.5, np.nan, np.nan], [-0.25, 0.0, np.nan]]
        np.testing.assert_allclose(shown, expected)
        assert image.get_clim() == (-0.5, 0.5)
        texts = {
            (round(text.get_position()[1]), round(text.get_position()[0])): text.get_text()
            for text in axes.texts
        }
        assert texts == {
            (0, 0): ".10", (1, 1): ".20", (2, 2): "-.30",
            (1, 0): ".50", (2, 0): "-.25", (2, 1): ".00",
        }  # fmt: skip
        framed = [p.get_xy() for p in axes.patches if not p.get_fill()]
        assert framed == [(-0.5, 0.5), (-0.5, 1.5)]
        assert [label.get_text() for label in axes.get_yticklabels()] == NAMES


def test_what_cannot_be_drawn_as_pairs(both: xr.Dataset):
    with pytest.raises(PatchlibError, match=r"metric='kl': .* this result has logit_diff"):
        plot.pairs(both, "kl")
    with pytest.raises(PatchlibError, match=r"give a result of pl.interactions"):
        plot.pairs(both.drop_vars("interaction"))
    with pytest.raises(PatchlibError, match="several positions"):
        plot.pairs(both.expand_dims(position=["S2", "last"]))

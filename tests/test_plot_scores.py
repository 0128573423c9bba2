"""Figures of scores: what stands in which row, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from patchlib import plot
from patchlib.errors import PatchlibError

TABLE = pd.DataFrame(
    {
        "model": ["one", "two"] * 2 + ["one"] * 2,
        "method": ["EAP"] * 4 + ["edge patching"] * 2,
        "site": ["S2", "S2", "ABC", "ABC", "S2", "ABC"],
        "auc": [0.9, 0.7, 0.5, 0.3, 1.0, 0.8],
        "n_true": 1,
        "n": 4,
        "passes": [5] * 4 + [462] * 2,
    }
)


def at(dots) -> list[list[float]]:
    """Where points are."""
    return np.asarray(dots.get_offsets()).round(6).tolist()


def test_a_group_has_each_model_their_mean_and_their_range():
    (axes,) = plot.scores(TABLE, of="auc").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["EAP", "edge patching"]
    models, span, mean, chance = axes.collections[:4]
    # Of each model the mean over its rows.
    assert (
        at(models) == [[0.7, 0], [0.5, 0]] and at(mean) == [[0.6, 0]] and at(chance) == [[0.5, 0]]
    )
    assert span.get_segments()[0].round(6).tolist() == [[0.5, 0], [0.7, 0]]
    apart = plot.scores(TABLE, ["method", "site"], "auc").axes[0]
    assert [label.get_text() for label in apart.get_yticklabels()][:2] == ["EAP, S2", "EAP, ABC"]


def test_costs_are_beside_scores():
    (axes,) = plot.costs(TABLE, "auc").axes
    assert [at(dots) for dots in axes.collections[1::2]] == [[[5, 0.6]], [[462, 0.9]]]
    assert [text.get_text() for text in axes.texts] == ["EAP", "edge patching"]


@pytest.mark.parametrize("draw", [plot.scores, plot.costs])
def test_what_cannot_be_drawn(draw):
    with pytest.raises(PatchlibError, match="no column average_precision: this table has model"):
        draw(TABLE)
    with pytest.raises(PatchlibError, match="this table has no rows"):
        draw(TABLE[:0].assign(average_precision=0))

"""The figure of recovered performance: what stands in which row, and what is refused."""

import numpy as np
import pytest
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib import plot

ONE = {"logits": {"5.0": "IO", "rest": "all"}}
HYPOTHESES = {"nothing": {}, "IO": ONE, "all": {"logits": "all"}}


def test_each_hypothesis_has_a_row(mini: TransformerBridge):
    pairs = pl.tasks.ioi(mini, 20)
    fx = pl.scrub(mini, pairs, HYPOTHESES, draws=2)
    (axes,) = plot.recovered(fx).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [*HYPOTHESES]
    spans, dots = axes.collections
    np.testing.assert_allclose(dots.get_offsets()[:, 0], fx.recovered.squeeze())
    ends = [segment[:, 0] for segment in spans.get_segments()]
    np.testing.assert_allclose(ends, np.stack([fx.low.squeeze(), fx.high.squeeze()], 1))
    assert axes.get_title() == "mini, IOI, 20 prompts, 2 draws"
    few = pl.scrub(mini, pairs[:6], HYPOTHESES, draws=2)
    both = plot.recovered({"all": fx, "few": few})
    assert len(both.axes[0].collections) == 4 and "all and few" in both.alt
    assert both.axes[0].get_title() == "mini, IOI, 20 and 6 prompts, 2 draws"


def test_refusals(mini: TransformerBridge):
    fx = pl.scrub(mini, pl.tasks.ioi(mini, 4), {}, draws=1)
    with pytest.raises(pl.PatchlibError, match="hypotheses by their names"):
        plot.recovered(fx)
    with pytest.raises(pl.PatchlibError, match="this result has logit_diff"):
        plot.recovered(fx.expand_dims(hypothesis=["nothing"]), metric="kl")

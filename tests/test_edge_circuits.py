"""Circuits of edges: their order by score, worked out by hand; their faithfulness, exact ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from test_closed_form import prompt
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.methods.edge_circuits import _areas
from patchlib.prompts.pairs import PromptPairs

OPTIONS: dict[str, Any] = {"corruption": pl.STR("S2"), "progress": False}
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def scores(model: TransformerBridge, given: dict[str, float]) -> xr.Dataset:
    """A result in which some edges have an effect, others less than any of these."""
    every = pl.Edges.of(model)
    numbers = {str(edge): 1e-4 * n / len(every) for n, edge in enumerate(every)} | given
    fx = pl.attribute_edges(model, pl.tasks.ioi(model, 1), **OPTIONS)
    for edge, number in numbers.items():
        writer, reader = edge.split("->")
        fx.effect.loc["logit_diff", writer, reader] = number
    return fx


def test_edges_by_size(tiny_gpt2: TransformerBridge):
    """Whatever their sign; each edge once."""
    given = {"0.1->q1.2": -3.0, "1.2->logits": 2.0, "resid0->v0.1": 1.0}
    fx = scores(tiny_gpt2, given)
    ranked = pl.rank_edges(tiny_gpt2, fx)
    assert [*map(str, ranked[:3])] == [*given]
    assert pl.Edges(ranked) == pl.Edges.of(tiny_gpt2) and len(ranked) == 262
    draws = xr.concat([fx, 3 * fx, -2 * fx], "draw")
    assert pl.rank_edges(tiny_gpt2, draws) == ranked


def test_a_circuit_grows_back_from_the_logits(tiny_gpt2: TransformerBridge):
    """The strongest edge of all waits until what it enters is in."""
    given = {
        "0.1->q1.2": 9.0,
        "resid0->v0.1": 8.0,
        "resid0->mlp_in1": 7.0,
        "1.2->logits": -2.0,
        "0.1->logits": 1.0,
        "mlp1->logits": 0.5,
    }
    fx = scores(tiny_gpt2, given)
    ranked = pl.rank_edges(tiny_gpt2, fx, grow=True)
    order = ["1.2->logits", "0.1->q1.2", "resid0->v0.1", "0.1->logits", "mlp1->logits"]
    assert [*map(str, ranked[:6])] == [*order, "resid0->mlp_in1"]
    assert pl.Edges(ranked) == pl.Edges.of(tiny_gpt2) and len(ranked) == 262


def test_a_grown_circuit_leads_somewhere(tiny: TransformerBridge):
    """From each edge a way goes on to the logits; edges by size alone may hang in the air."""
    fx = pl.attribute_edges(tiny, pl.tasks.ioi(tiny, 2), **OPTIONS)
    ranked = pl.rank_edges(tiny, fx, grow=True)
    for n in (5, 20, 60):
        grown = pl.Edges(ranked[:n])
        # Fed by the embedding everywhere, all that pruning can take is what leads nowhere.
        fed = grown | pl.Edges(edge for edge in pl.Edges.of(tiny) if edge.writer == "resid0")
        assert len(grown) == n and grown <= fed.pruned(tiny)
    by_size = pl.Edges(pl.rank_edges(tiny, fx)[:5])
    assert not by_size <= by_size.pruned(tiny)


def test_exact_ends(tiny: TransformerBridge):
    """All edges are the clean run, and none the corrupted one, to the last digit."""
    pairs, every = pl.tasks.ioi(tiny, 3), pl.Edges.of(tiny)
    circuits = {"all": every, "half": [*every][::2], "none": [], "again": every}
    options = OPTIONS | {"metrics": ["logit_diff", "kl"]}
    fx = pl.edge_faithfulness(tiny, pairs, circuits, **options)
    assert fx.faithfulness.dims == ("metric", "circuit")
    ends = fx.faithfulness.sel(circuit=["all", "none", "again"])
    np.testing.assert_array_equal(ends, [[1, 0, 1]] * 2)
    options["direction"] = "noise"
    plain = pl.patch(tiny, pairs, heads=["0.0"], **options)
    np.testing.assert_allclose(fx.model, plain.clean, **CLOSE)
    np.testing.assert_allclose(fx.empty, plain.corrupted, **CLOSE)
    noised = pl.patch_edges(tiny, pairs, every - pl.Edges(circuits["half"]), **options)
    np.testing.assert_allclose(fx.circuit_alone.sel(circuit="half"), noised.patched, **CLOSE)
    f = (noised.patched - noised.corrupted) / (noised.clean - noised.corrupted)
    np.testing.assert_allclose(fx.faithfulness.sel(circuit="half"), f, rtol=2e-3)
    assert fx.edges.values.tolist() == [len(every), -(-len(every) // 2), 0, len(every)]
    one = pl.edge_faithfulness(tiny, pairs, every, **OPTIONS)
    assert one.faithfulness.dims == ("metric",) and one.faithfulness.item() == 1


def test_faithfulness_by_hand(by_hand: TransformerBridge):
    """Of the model of test_closed_form, in which the MLP's edge alone carries 1 of 11/13 - 1/5.

    In test_edges restoring this edge gives 1, and what restores it from the corrupted run is what
    is left of the clean run with all other edges corrupted.
    """
    pairs = PromptPairs("by hand", (prompt(), prompt()))
    options = {"corruption": pl.STR("first"), "progress": False}
    # The MLP reads the heads and writes what it wrote in the clean run; so do the heads.
    chain = ["resid0->v0.0", "resid0->v0.1", "0.0->mlp_in0", "0.1->mlp_in0", "mlp0->logits"]
    fx = pl.edge_faithfulness(by_hand, pairs, {"mlp": chain, "cut": chain[:-1]}, **options)
    np.testing.assert_allclose([fx.model.item(), fx.empty.item()], [11 / 13, 1 / 5], atol=1e-5)
    np.testing.assert_allclose(fx.circuit_alone, [[1, 1 / 5]], atol=1e-5)
    for name in ("faithfulness", "low", "high"):
        np.testing.assert_allclose(fx[name], [[(1 - 1 / 5) * 65 / 42, 0]], atol=1e-5)


def test_areas_by_hand():
    """A step from 0 to 1 between a tenth and a half, and what never is anything but 1."""
    shares = {"share": [0.1, 0.5, 1.0]}
    step, one, beyond = (
        _areas(xr.DataArray(f, dims="share", coords=shares))
        for f in ([0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.5, 1.5, 1.0])
    )
    np.testing.assert_allclose([step["cpr"], step["cmd"]], [0.4 / 2 + 0.5, 0.4 / 2])
    np.testing.assert_allclose([one["cpr"], one["cmd"]], [0.9, 0])
    np.testing.assert_allclose([beyond["cpr"], beyond["cmd"]], [0.6 + 0.625, 0.2 + 0.125])


@pytest.mark.parametrize("grow", [False, True])
def test_a_curve(tiny_folders: Callable[[str], Path], grow: bool):
    """Is the faithfulness of the strongest edges."""
    model = pl.load_model(tiny_folders("llama"))
    pairs = pl.tasks.ioi(model, 3)
    fx = pl.attribute_edges(model, pairs, **OPTIONS)
    shares = [0, 0.1, 0.5, 1]
    curve = pl.faithfulness_curve(model, pairs, fx, shares=shares, grow=grow, **OPTIONS)
    assert curve.faithfulness.dims == ("metric", "share")
    assert curve.edges.values.tolist() == [0, 19, 95, 190] and curve.attrs["grow"] == grow
    np.testing.assert_array_equal(curve.faithfulness[0, [0, -1]], [0, 1])
    ranked = pl.rank_edges(model, fx, grow=grow)
    alone = pl.edge_faithfulness(model, pairs, ranked[:19], **OPTIONS)
    np.testing.assert_allclose(curve.circuit_alone[0, 1], alone.circuit_alone[0], **CLOSE)
    f = curve.faithfulness.values[0]
    cpr = 0.1 * (f[0] + f[1]) / 2 + 0.4 * (f[1] + f[2]) / 2 + 0.5 * (f[2] + f[3]) / 2
    np.testing.assert_allclose(curve.cpr.item(), cpr)


def test_refusals(tiny_gpt2: TransformerBridge, mini: TransformerBridge):
    pairs = pl.tasks.ioi(tiny_gpt2, 2)
    fx = pl.attribute_edges(tiny_gpt2, pairs, **OPTIONS)
    with pytest.raises(pl.PatchlibError, match="not of each edge of this model"):
        pl.rank_edges(mini, fx)
    with pytest.raises(pl.PatchlibError, match="not of each edge of this model"):
        pl.rank_edges(tiny_gpt2, pl.patch_edges(tiny_gpt2, pairs, "0.1->logits", **OPTIONS))
    with pytest.raises(pl.PatchlibError, match="metric='kl': this result has logit_diff"):
        pl.rank_edges(tiny_gpt2, fx, metric="kl")
    for shares in ([], [0.5, 0.1], [0.1, 2]):
        with pytest.raises(pl.PatchlibError, match="shares="):
            pl.faithfulness_curve(tiny_gpt2, pairs, fx, shares=shares, **OPTIONS)
    with pytest.raises(pl.PatchlibError, match="no edge of this model"):
        pl.edge_faithfulness(tiny_gpt2, pairs, ["0.9->logits"], **OPTIONS)

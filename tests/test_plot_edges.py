"""A drawing of edges shows the edges, and a curve of circuits their faithfulness."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.show import plot
from patchlib.show.plot.style import NEGATIVE, NEITHER, POSITIVE

CIRCUIT = ["resid0->v0.1", "0.1->q1.2", "0.1->mlp_in1", "1.2->logits", "mlp1->logits"]


def nodes(figure) -> dict[str, tuple[float, float]]:
    return {
        text.get_text(): text.get_position()
        for text in figure.axes[0].texts
        if text.get_bbox_patch() and len(text.get_text()) > 1
    }


def arrows(figure) -> list:
    return [text.arrow_patch for text in figure.axes[0].texts if hasattr(text, "arrow_patch")]


def result(effects: dict[str, float]) -> xr.Dataset:
    writers, readers = (sorted({edge.split("->")[n] for edge in effects}) for n in (0, 1))
    effect = np.full((1, len(writers), len(readers)), np.nan)
    for edge, number in effects.items():
        writer, reader = edge.split("->")
        effect[0, writers.index(writer), readers.index(reader)] = number
    return xr.Dataset(
        {"effect": (("metric", "writer", "reader"), effect)},
        coords={"metric": ["logit_diff"], "writer": writers, "reader": readers},
        attrs={"model": "gpt2", "task": "ioi", "n_prompts": 3},
    )


def test_every_node_stands_in_its_layer() -> None:
    places = nodes(plot.edges(CIRCUIT))
    assert {name: y for name, (_, y) in places.items()} == {
        "embedding": 0,
        "0.1": 1,
        "1.2": 2,
        "MLP 1": 3,
        "logits": 4,
    }
    texts = [text.get_text() for text in plot.edges(CIRCUIT).axes[0].texts]
    assert texts.count("v") == texts.count("q") == 1 and "layer 0" in texts and "k" not in texts


def test_arrows_are_as_thick_as_effects() -> None:
    effects = dict(zip(CIRCUIT, (0.5, -1.0, 0.25, 0.75, 0.1), strict=True))
    figure = plot.edges(CIRCUIT, result(effects))
    drawn = arrows(figure)
    # The strongest is drawn last, on top.
    thick = [arrow.get_linewidth() for arrow in drawn]
    assert len(drawn) == 5 and thick == sorted(thick)
    np.testing.assert_allclose(np.diff(thick)[1:], [0.75, 0.75, 0.75])
    colours = [to_hex(arrow.get_edgecolor()).upper() for arrow in drawn]
    assert colours == [POSITIVE] * 4 + [NEGATIVE]
    assert "GPT-2 small, IOI, 3 prompts" in figure.axes[0].get_title()
    plain = arrows(plot.edges(CIRCUIT))
    assert {to_hex(arrow.get_edgecolor()) for arrow in plain} == {to_hex(NEITHER)}


def test_nodes_of_a_row_stand_apart() -> None:
    many = [f"resid0->v0.{head}" for head in range(9)] + [f"0.{n}->logits" for n in range(9)]
    places = nodes(plot.edges(many))
    xs = sorted(x for name, (x, _) in places.items() if name.startswith("0."))
    assert min(np.diff(xs)) == 1


def test_sizes_are_drawn_as_measured(tiny_gpt2: TransformerBridge) -> None:
    pairs, options = pl.tasks.ioi(tiny_gpt2, 3), {"corruption": pl.STR("S2"), "progress": False}
    fx = pl.attribute_edges(tiny_gpt2, pairs, **options)
    curve = pl.faithfulness_curve(tiny_gpt2, pairs, fx, shares=[0.1, 0.5, 1], **options)
    axes = plot.sizes({"EAP": curve, "other": 2 * curve.assign_coords(share=curve.share)}).axes[0]
    lines = [line for line in axes.lines if line.get_marker() != "None"]
    for line, times in zip(lines, (1, 2), strict=True):
        np.testing.assert_allclose(line.get_ydata(), times * curve.faithfulness.values[0])
        np.testing.assert_allclose(line.get_xdata(), [10, 50, 100])


def test_refusals() -> None:
    with pytest.raises(pl.PatchlibError, match="a circuit without edges"):
        plot.edges([])
    fx = result({"1.2->logits": 1.0, "resid0->v0.1": 1.0})
    for edge, metric in (("0.1->logits", "logit_diff"), ("1.2->logits", "kl")):
        with pytest.raises(pl.PatchlibError, match=f"no effect of '{edge}'"):
            plot.edges([edge], fx, metric)
    # Both ends are there, and the edge is not.
    with pytest.raises(pl.PatchlibError, match=r"no effect of '1\.2->v0\.1'"):
        plot.edges(["1.2->v0.1"], fx)
    with pytest.raises(pl.PatchlibError, match="give results of"):
        plot.sizes(fx)

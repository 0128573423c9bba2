"""The figures show the numbers they are given, and mark what detection finds."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from patchlib import detect
from patchlib.errors import PatchlibError
from patchlib.show import plot

POSITIONS = ["first_subject", "last_subject", "last"]
ATTRS = {
    "model": "mini",
    "task": "ioi",
    "n_prompts": 20,
    "corruption": "STR",
    "site": "S2",
    "window": 1,
    "window_before": 0,
    "positions": "all",
    "direction": "denoise",
}


def result(*dims: str, seed: int = 0, draws: int = 1, n_layers: int = 8, **attrs) -> xr.Dataset:
    """What `patchlib.patch` returns, with random numbers of few large values."""
    sizes = {"layer": range(n_layers), "head": range(6), "position": POSITIONS, "prompt": range(2)}
    sizes["draw"] = range(3)
    coordinates = {"metric": ["logit_diff", "prob", "kl"]} | {dim: sizes[dim] for dim in dims}
    shape = tuple(map(len, coordinates.values()))
    rng = np.random.default_rng(seed)
    effect = rng.standard_t(2, size=shape)
    data = xr.Dataset(
        {"effect": (list(coordinates), effect)},
        coords={name: list(values) for name, values in coordinates.items()},
    )
    data["effect_sd"] = xr.full_like(data.effect, np.nan if draws == 1 else 0.25)
    data["patched"] = data.effect + 1
    data["clean"] = ("metric", [1.0, 0.8, 0.0])
    data["corrupted"] = ("metric", [0.0, 0.1, 2.0])
    data.attrs = ATTRS | {"component": "head" if "head" in dims else "mlp"} | attrs
    return data


def shown(axes: Axes) -> np.ndarray:
    (image,) = axes.images
    return np.ma.filled(image.get_array(), np.nan)


def outlined(axes: Axes) -> list[str]:
    """The heads inside outlines, as detection names them."""
    squares = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert all((square.get_width(), square.get_height()) == (1, 1) for square in squares)
    assert not any(square.get_fill() for square in squares)
    return sorted(f"{square.get_y() + 0.5:.0f}.{square.get_x() + 0.5:.0f}" for square in squares)


def found(fx: xr.Dataset, metric: str) -> list[str]:
    table = detect(fx[["effect"]])
    return sorted(head for heads in table[table.metric == metric].heads for head in heads)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def ticks(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize("metric", ["logit_diff", "prob", "kl"])
def test_a_head_map_shows_the_effects_on_a_symmetric_scale(metric: str) -> None:
    fx = result("layer", "head")
    figure = plot.heatmap(fx, metric)
    axes, bar = figure.axes
    values = fx.effect.sel(metric=metric).values
    assert np.array_equal(shown(axes), values)
    assert axes.images[0].get_clim() == (-np.abs(values).max(), np.abs(values).max())
    assert outlined(axes) == found(fx, metric) != []
    labels = {"logit_diff": "normalised logit difference", "prob": "probability"}
    assert bar.get_ylabel() == f"effect: {labels.get(metric, 'KL divergence (nats)')}"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("head", "layer")
    assert axes.get_title() == "effect of patching heads\nSTR on S2\nmini, IOI, 20 prompts"


def test_layers_run_downwards_from_the_first() -> None:
    axes = plot.heatmap(result("layer", "head")).axes[0]
    bottom, top = axes.get_ylim()
    assert (bottom, top) == (7.5, -0.5)
    assert ticks(axes.yaxis) == [str(layer) for layer in range(8)]
    assert ticks(axes.xaxis) == [str(head) for head in range(6)]


def test_blue_is_positive_and_red_is_negative() -> None:
    image = plot.heatmap(result("layer", "head")).axes[0].images[0]
    low, high = image.get_clim()
    negative, zero, positive = image.cmap(image.norm([low, 0, high]))
    assert negative[0] > negative[2] and positive[2] > positive[0]
    assert np.allclose(zero[:3], zero[0], atol=0.01)


def test_dimensions_may_come_in_any_order() -> None:
    fx = result("layer", "head")
    turned = fx.transpose("head", "metric", "layer")
    assert np.array_equal(shown(plot.heatmap(turned).axes[0]), fx.effect.values[0])


def test_outlines_follow_the_heads_of_a_part() -> None:
    fx = result("layer", "head").sel(layer=[5, 6, 7], head=[2, 3, 4, 5])
    axes = plot.heatmap(fx).axes[0]
    assert ticks(axes.yaxis) == ["5", "6", "7"]
    heads = [map(int, head.split(".")) for head in found(fx, "logit_diff")]
    assert outlined(axes) == sorted(f"{layer - 5}.{head - 2}" for layer, head in heads) != []


def test_outlines_can_be_left_out() -> None:
    figure = plot.heatmap(result("layer", "head"), found=False)
    assert figure.axes[0].patches[:] == []
    assert figure.legends == []


def test_cells_that_were_not_measured_are_masked_and_explained() -> None:
    fx = result("layer", "head")
    fx.effect[:, 2, 3] = np.nan
    figure = plot.heatmap(fx)
    axes = figure.axes[0]
    assert np.argwhere(np.isnan(shown(axes))).tolist() == [[2, 3]]
    assert axes.images[0].get_array().mask[2, 3]
    assert axes.patch.get_hatch() == "/////"
    assert outlined(axes) == found(fx, "logit_diff")
    assert texts(figure)[-2:] == ["not measured", "beyond mean ± 2 SD"]
    assert "not measured" not in texts(plot.heatmap(result("layer", "head")))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_map_without_effects_can_be_drawn(value: float) -> None:
    fx = result("layer", "position").map(lambda array: array * 0 + value, keep_attrs=True)
    assert plot.heatmap(fx).axes[0].images[0].get_clim() == (-1, 1)


def test_a_position_map_names_the_positions() -> None:
    fx = result("layer", "position", window=5)
    axes = plot.heatmap(fx, "prob").axes[0]
    assert np.array_equal(shown(axes), fx.effect.sel(metric="prob").values)
    assert ticks(axes.xaxis) == ["first subject", "last subject", "last"]
    assert axes.get_xlabel() == "position"
    assert axes.patches[:] == []
    assert axes.get_title().startswith("effect of patching MLPs in windows of 5\nSTR on S2")


def test_a_map_of_one_of_several_windows() -> None:
    """The title tells the window that was chosen, not all that were run."""
    both = xr.concat([result("layer", "position")] * 2, dim=xr.DataArray([1, 3], dims="window"))
    both.attrs["window"] = "1, 3"
    titles = [plot.heatmap(both.sel(window=w), "prob").axes[0].get_title() for w in (1, 3)]
    assert titles[0].startswith("effect of patching MLPs\n")
    assert titles[1].startswith("effect of patching MLPs in windows of 3\n")


def test_a_position_map_counts_tokens() -> None:
    fx = result("layer", "position").assign_coords(position=[0, 1, 2])
    assert ticks(plot.heatmap(fx).axes[0].xaxis) == ["0", "1", "2"]


def test_large_models_get_every_fourth_layer_and_larger_maps() -> None:
    small = plot.heatmap(result("layer", "head"))
    large = plot.heatmap(result("layer", "head", n_layers=48))
    assert ticks(large.axes[0].yaxis) == [str(layer) for layer in range(0, 48, 4)]
    assert large.get_figheight() > small.get_figheight()


def test_a_heatmap_of_layers_alone_is_a_curve() -> None:
    fx = result("layer")
    axes = plot.heatmap(fx, "kl").axes[0]
    assert np.array_equal(axes.lines[1].get_ydata(), fx.effect.sel(metric="kl").values)


def test_the_grid_has_a_row_for_each_result_and_a_column_for_each_metric() -> None:
    results = {"STR": result("layer", "head"), "GN": result("layer", "head", seed=1)}
    results["GN"].attrs["corruption"] = "GN"
    figure = plot.heatmaps(results, ["kl", "prob"])
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 4 and len(figure.axes) == 6
    cells = [(fx, metric) for fx in results.values() for metric in ("kl", "prob")]
    for axes, (fx, metric) in zip(panels, cells, strict=True):
        values = fx.effect.sel(metric=metric).values
        assert np.array_equal(shown(axes), values)
        # One scale for a metric, that of the larger effect.
        limit = max(np.abs(fx.effect.sel(metric=metric)).max() for fx in results.values())
        assert axes.images[0].get_clim() == (-limit, limit)
        assert outlined(axes) == found(fx, metric)
    titles = [axes.get_title() for axes in panels]
    assert titles == ["KL divergence (nats)", "probability", "", ""]
    assert [panels[0].texts[0].get_text(), panels[2].texts[0].get_text()] == ["STR", "GN"]
    assert figure.get_suptitle() == "effect of patching heads\ncorrupted: S2\nmini, IOI, 20 prompts"


def test_a_curve_has_a_line_for_each_result_and_one_at_zero() -> None:
    results = {"STR": result("layer"), "GN": result("layer", seed=1, draws=3)}
    figure = plot.lines(results, "prob")
    (axes,) = figure.axes
    zero, *lines = axes.lines
    assert np.array_equal(zero.get_ydata(), [0, 0])
    for line, fx in zip(lines, results.values(), strict=True):
        assert np.array_equal(line.get_xdata(), range(8))
        assert np.array_equal(line.get_ydata(), fx.effect.sel(metric="prob").values)
    assert len({line.get_marker() for line in lines}) == 2
    assert len({line.get_color() for line in lines}) == 2
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layer", "effect: probability")
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["STR", "GN", "± SD over draws"]


def test_the_band_is_one_standard_deviation_wide() -> None:
    fx = result("layer", draws=3)
    fx.effect_sd[:, 4] = np.nan
    (axes,) = plot.lines(fx).axes
    (band,) = axes.collections
    y = np.concatenate([path.vertices for path in band.get_paths()])
    effect = fx.effect.values[0]
    for layer in (0, 1, 2, 3, 5, 6, 7):
        edges = y[y[:, 0] == layer][:, 1]
        assert np.isclose(edges.min(), effect[layer] - 0.25)
        assert np.isclose(edges.max(), effect[layer] + 0.25)
    assert 4 not in y[:, 0]


def test_a_single_curve_without_draws_needs_no_legend() -> None:
    figure = plot.lines(result("layer"))
    assert figure.legends == [] and list(figure.axes[0].collections) == []


def test_the_title_names_what_all_results_share() -> None:
    results = {"w1": result("layer"), "w5": result("layer", window=5, direction="denoise")}
    assert plot.lines(results).axes[0].get_title() == (
        "effect of patching MLPs\nSTR on S2\nmini, IOI, 20 prompts"
    )
    one = result("layer", direction="noise").assign_coords(position="last_subject")
    assert plot.lines(one).axes[0].get_title() == (
        "effect of patching MLPs at last subject\nSTR on S2, noising\nmini, IOI, 20 prompts"
    )
    one.attrs = {}
    assert plot.lines(one).axes[0].get_title() == ""


def test_titles_of_several_corruptions_and_sites() -> None:
    noise = result("layer", corruption="GN", draws=10).assign_attrs(draws=10)
    replaced = result("layer", "draw")
    both = plot.lines({"STR": replaced.isel(draw=[0]), "GN": noise}).axes[0].get_title()
    assert both == (
        "effect of patching MLPs\ncorrupted: S2\nmini, IOI, 20 prompts, 10 draws of noise"
    )
    sites = {site: result("layer", site=site) for site in ("S2", "S1+IO")}
    assert plot.lines(sites).axes[0].get_title() == (
        "effect of patching MLPs\nSTR\nmini, IOI, 20 prompts"
    )


def test_a_map_of_key_value_heads() -> None:
    fx = result("layer", "head").rename(head="kv_head").assign_attrs(component="k")
    axes = plot.heatmap(fx, "kl").axes[0]
    assert np.array_equal(shown(axes), fx.effect.sel(metric="kl").values)
    assert axes.get_xlabel() == "key/value head"
    assert axes.get_title().startswith("effect of patching keys\n")
    assert [f"kv{head}" for head in outlined(axes)] == found(fx, "kl") != []


def test_chosen_layers_and_heads_keep_their_numbers() -> None:
    fx = result("layer", "head").sel(layer=[1, 5, 7], head=[0, 4])
    fx.effect[:, 0, 1] = np.nan
    axes = plot.heatmap(fx).axes[0]
    assert ticks(axes.yaxis) == ["1", "5", "7"] and ticks(axes.xaxis) == ["0", "4"]
    assert np.argwhere(np.isnan(shown(axes))).tolist() == [[0, 1]]


def test_a_metric_of_one_s_own_has_its_name() -> None:
    fx = result("layer", "head").assign_coords(metric=["my_margin", "prob", "kl"])
    assert plot.heatmap(fx, "my_margin").axes[1].get_ylabel() == "effect: my margin"
    assert plot.heatmaps({"STR": fx}, "my_margin").axes[0].get_title() == "my margin"
    fx.attrs["label_my_margin"] = "lead (nats)"
    assert plot.heatmap(fx, "my_margin").axes[1].get_ylabel() == "effect: lead (nats)"
    assert plot.heatmaps({"STR": fx}, "my_margin").axes[0].get_title() == "lead (nats)"
    by_layer = fx.isel(head=0, drop=True)
    for figure in (plot.ranked(fx, "my_margin"), plot.lines(by_layer, "my_margin")):
        assert figure.axes[0].get_ylabel() == "effect: lead (nats)"


def test_the_title_says_where_other_activations_come_from() -> None:
    fx = result("layer", source="zeros")
    assert (
        plot.lines(fx).axes[0].get_title().endswith("STR on S2, from zeros\nmini, IOI, 20 prompts")
    )
    fx.attrs["source"] = "clean run"
    assert plot.lines(fx).axes[0].get_title().endswith("STR on S2\nmini, IOI, 20 prompts")


def test_a_figure_that_fails_leaves_the_old_files(tmp_path: Path) -> None:
    figure = plot.lines(result("layer"))
    plot.save(figure, tmp_path / "a")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    figure.axes[0].set_title("$\\nowhere$")
    with pytest.raises(ValueError, match="nowhere"):
        plot.save(figure, tmp_path / "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["deep/er/a", "a.png", "v1.5"])
def test_save_writes_a_picture_and_a_document(tmp_path: Path, name: str) -> None:
    figure = plot.lines(result("layer"))
    plot.save(figure, tmp_path / name)
    stem = name.removesuffix(".png").removesuffix(".pdf")
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.p*"))
    assert files == [f"{stem}.pdf", f"{stem}.png"]
    height, width, _ = matplotlib.image.imread(tmp_path / f"{stem}.png").shape
    assert abs(width / 200 - figure.get_figwidth()) < 0.3
    assert abs(height / 200 - figure.get_figheight()) < 0.3
    assert (tmp_path / f"{stem}.pdf").read_bytes().startswith(b"%PDF")


DRAWINGS: list[Callable[[], Figure]] = [
    lambda: plot.heatmap(result("layer", "head")),
    lambda: plot.heatmap(result("layer", "head", n_layers=48)),
    lambda: plot.heatmap(result("layer", "position")),
    lambda: plot.heatmaps({"STR": result("layer", "head")}, ["prob", "kl"]),
    lambda: plot.lines({"STR": result("layer")}),
]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_figures_are_legible_and_shown_only_as_a_value(draw: Callable[[], Figure]) -> None:
    before = plt.get_fignums()
    figure = draw()
    assert plt.get_fignums() == before
    figure.draw_without_rendering()
    sizes = [t.get_fontsize() for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
    assert min(sizes) >= 7


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plot.heatmap(result("layer", "head"), "rank"), ["'rank'", "logit_diff, prob, kl"]),
        (lambda: plot.heatmap(result("layer", "head").sel(metric="kl")), ["pl.patch", "whole"]),
        (lambda: plot.heatmap(result("layer").drop_vars("effect")), ["pl.patch"]),
        (lambda: plot.heatmap(result()), ["'layer'", "patch_together"]),
        (lambda: plot.heatmap(result("layer", "head", "position")), ["fx.sel(position"]),
        (lambda: plot.heatmap(result("layer", "head").rename(head="neuron")), ["6 neurons"]),
        (lambda: plot.heatmaps({"STR": result("layer")}, ["kl"]), ["plot.lines"]),
        (lambda: plot.heatmaps({}, ["kl"]), ["no result"]),
        (lambda: plot.heatmaps({"STR": result("layer", "head")}, []), ["no metrics"]),
        (lambda: plot.lines({}), ["no result"]),
        (lambda: plot.lines(result("layer", "head")), ["fx.sel(head", "plot.heatmap"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(call: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(PatchlibError) as refusal:
        call()
    assert [word for word in words if word not in str(refusal.value)] == []

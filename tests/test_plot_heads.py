"""Figures of heads in order, draws, intervals, windows and bars show the numbers they are given."""

import base64
import re
import struct
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.text import Text

from patchlib import detect, interval, sum_windows
from patchlib.errors import PatchlibError
from patchlib.show import plot
from patchlib.show.plot import style

LAYERS, HEADS = 10, 4


def result(*dims: str, seed: int = 0, run: str = "STR", **sizes: int) -> xr.Dataset:
    """Effects near 0 but for two heads: 2.1 at about 1 and 7.3 at about -0.8."""
    sizes = {"layer": LAYERS, "head": HEADS, "prompt": 12, "draw": 3} | sizes
    shape = [sizes[dim] for dim in dims]
    noise = np.random.default_rng(seed).normal(size=shape) * 0.01
    effect = xr.DataArray(noise, dims=dims)
    effect = effect.assign_coords({dim: range(sizes[dim]) for dim in ("layer", "head")})
    effect.loc[{"layer": 2, "head": 1}] += 1
    effect.loc[{"layer": 7, "head": 3}] -= 0.8
    attrs = {"component": "head", "corruption": run, "site": "S2", "task": "ioi", "n_prompts": 12}
    fx = effect.expand_dims(metric=["logit_diff"]).to_dataset(name="effect")
    return fx.assign_attrs(attrs | {"model": "smollm2"} | ({"draws": 3} if run == "GN" else {}))


def by_window(run: str = "STR", scale: float = 1.0) -> xr.Dataset:
    """Windows of 3 and 4 layers, each of twice what their layers do alone."""
    single = xr.DataArray(np.arange(5.0) * scale, dims="layer", coords={"layer": range(5)})
    windows = [single, 2 * sum_windows(single, 3), 2 * sum_windows(single, 4, 1)]
    effect = xr.concat(windows, pd.Index([1, 3, 4], name="window"))
    attrs = {"component": "mlp", "corruption": run, "site": "subject", "task": "factual_recall"}
    attrs |= {"window": "1, 3, 4", "window_before": "0, 1, 1", "n_prompts": 73}
    return effect.expand_dims(metric=["prob"]).to_dataset(name="effect").assign_attrs(attrs)


def colours_of(points) -> list[str]:
    return [to_hex(colour) for colour in points.get_facecolors()]


def test_ranked_orders_all_heads_and_names_the_detected() -> None:
    fx = result("layer", "head")
    figure = plot.ranked(fx)
    (axes,) = figure.axes
    everything, above, below = axes.collections
    values = np.sort(fx.effect.values.ravel())[::-1]
    assert np.array_equal(everything.get_offsets()[:, 1], values)
    assert above.get_offsets().tolist() == [[0, values[0]]]
    assert below.get_offsets().tolist() == [[39, values[-1]]]
    assert [text.get_text() for text in axes.texts] == ["2.1", "7.3"]
    zero, low, high = (line.get_ydata()[0] for line in axes.lines)
    assert zero == 0 and [high, low] == detect(fx).threshold.tolist()
    assert axes.get_title() == "effect of patching heads\nSTR on S2\nSmolLM2, IOI, 12 prompts"


def test_ranked_leaves_out_what_was_not_measured_and_takes_layers() -> None:
    fx = result("layer", "head")
    fx.effect[0, 0, 2] = np.nan
    assert plot.ranked(fx).axes[0].get_xlabel() == "all 39 heads, largest effect first"
    layers = plot.ranked(fx.isel(head=1, drop=True))
    assert layers.axes[0].get_xlabel() == "all 10 layers, largest effect first"
    assert layers.axes[0].texts[0].get_text() == "2"


def test_values_of_prompts_are_shown_as_their_mean() -> None:
    fx = result("layer", "head", "prompt")
    mean = fx.mean("prompt", keep_attrs=True)
    of_prompts, of_mean = (plot.heatmap(of).axes[0].images[0].get_array() for of in (fx, mean))
    assert np.array_equal(of_prompts, of_mean)
    of_prompts, of_mean = (
        plot.ranked(of).axes[0].collections[0].get_offsets() for of in (fx, mean)
    )
    assert np.array_equal(of_prompts, of_mean)


def test_scatter_has_the_effects_of_both_and_names_the_largest() -> None:
    across = {run: result("layer", "head", run=run) for run in ("STR", "GN")}
    estimate = {"method": "attribution patching", "qk_fix": 1, "grad_drop": 0}
    up = {run: (2 * fx).assign_attrs(fx.attrs | estimate) for run, fx in across.items()}
    figure = plot.scatter(across, up, n=2)
    for axes, (run, fx) in zip(figure.axes, across.items(), strict=True):
        values = fx.effect.values.ravel()
        points = axes.collections[0].get_offsets()
        assert np.array_equal(points, np.stack((values, 2 * values), axis=1))
        # A name stands left of its point above the diagonal, and right of it below.
        names = {text.get_text(): text.get_ha() for text in axes.texts}
        assert names == {"2.1": "right", "7.3": "left"} and axes.get_title() == run
    (ends,) = {axes.get_xlim() + axes.get_ylim() for axes in figure.axes}
    assert ends[:2] == ends[2:] and ends[0] < 2 * values.min() and ends[1] > 2 * values.max()
    assert figure.axes[0].get_ylabel().startswith("effect by attribution patching with QK fix\n")
    assert "effect of patching heads\ncorrupted: S2" in figure.get_suptitle()


def test_scatter_takes_one_result_for_all_panels_and_what_both_have() -> None:
    fx = result("layer", "head", "prompt")
    fx.effect[0, 0, 2] = np.nan
    one = plot.scatter(fx.isel(layer=slice(9)), fx)
    assert len(one.axes[0].collections[0].get_offsets()) == 35
    two = plot.scatter(fx, {"a": fx, "b": 2 * fx})
    first, second = (axes.collections[0].get_offsets() for axes in two.axes)
    assert np.allclose(first[:, 0], first[:, 1]) and np.allclose(2 * second[:, 0], second[:, 1])


def test_scatter_takes_edges() -> None:
    coords = {"metric": ["logit_diff"], "writer": ["resid0", "0.1"], "reader": ["q0.1", "logits"]}
    fx = xr.Dataset({"effect": (tuple(coords), [[[3.0, 1.0], [np.nan, 2.0]]])}, coords=coords)
    axes = plot.scatter(fx, 2 * fx, n=1).axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[3, 6], [1, 2], [2, 4]]
    assert [text.get_text() for text in axes.texts] == ["resid0->q0.1"]


def test_titles_say_that_effects_are_estimates() -> None:
    fx = result("layer", "head").assign_attrs(method="attribution patching", grad_drop=1)
    said = plot.ranked(fx).axes[0].get_title()
    assert said.startswith("attribution of heads with GradDrop\nSTR on S2\n")


def test_names_of_many_heads_do_not_overlap() -> None:
    fx = result("layer", "head", layer=30)
    # Twelve heads of nearly the same effect.
    fx.effect[0, :12, 0] = 1 + np.arange(12) * 1e-3
    figure = plot.ranked(fx)
    figure.draw_without_rendering()
    boxes = sorted(
        (Text.get_window_extent(text) for text in figure.axes[0].texts if text.get_text() != "7.3"),
        key=lambda box: -box.y0,
    )
    assert len(boxes) == 13
    sides = [(upper.y0, lower.y1) for upper, lower in pairwise(boxes)]
    assert all(upper >= lower - 1 for upper, lower in sides)


def test_draws_fill_the_points_of_draws_that_detect() -> None:
    fx = result("draw", "layer", "head", run="GN")
    fx.effect[0, 1, 5, 2] = 2  # In one draw alone.
    figure = plot.draws(fx)
    (axes,) = figure.axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    found = [{*detect(fx.isel(draw=draw)).heads.explode().dropna()} for draw in range(3)]
    counts = {head: sum(head in each for each in found) for head in ("2.1", "7.3", "5.2")}
    assert rows == [f"{head}  {count}/3" for head, count in counts.items()]
    assert counts["5.2"] == 1
    points = axes.collections[-1]
    assert np.array_equal(points.get_offsets()[:, 0], fx.effect[0, :, 5, 2])
    assert [colour == "#ffffff" for colour in colours_of(points)] == [True, False, True]
    assert "GN on S2\nSmolLM2, IOI, 12 prompts, 3 draws of noise" in axes.get_title()


def test_draws_without_detected_heads_show_the_strongest() -> None:
    fx = result("draw", "layer", "head") * 0
    assert len(plot.draws(fx).axes[0].get_yticks()) == 8


def test_intervals_are_those_over_prompts() -> None:
    runs = {
        "STR": result("layer", "head", "prompt"),
        "GN": result("prompt", "layer", "head", seed=1),
    }
    figure = plot.intervals(runs, n=4)
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:2] == ["2.1", "7.3"] and len(names) == 4
    for (run, fx), lines, points in zip(
        runs.items(), axes.collections[::2], axes.collections[1::2], strict=True
    ):
        ends = interval(fx).sel(metric="logit_diff")
        (left, _), (right, _) = lines.get_segments()[1]
        assert [left, right] == [float(ends[end].sel(layer=7, head=3)) for end in ("low", "high")]
        assert np.isclose(points.get_offsets()[1, 0], fx.effect.sel(layer=7, head=3).mean())
        colour = {"STR": "#0072b2", "GN": "#d55e00"}[run]
        assert colours_of(points) == [colour, colour, "#ffffff", "#ffffff"]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    at = detect(runs["GN"].mean("prompt", keep_attrs=True)).threshold
    assert sorted(line.get_xdata()[0] for line in dashed[2:]) == sorted(at)
    assert {line.get_color() for line in dashed[2:]} == {"#D55E00"}


def test_windows_beside_the_sums_of_their_layers() -> None:
    runs = {"STR": by_window(), "GN": by_window("GN", 0.5)}
    figure = plot.windows(runs)
    assert [axes.get_title() for axes in figure.axes] == ["3 of 5 layers", "4 of 5 layers"]
    first, second = figure.axes
    assert first.get_ylim() == second.get_ylim()
    # 0 + 1, 0 + 1 + 2, ..., 3 + 4; with one layer before, 0 + 1 + 2, 0 + ... + 3, ...
    sums = {first: [1, 3, 6, 9, 7], second: [3, 6, 10, 9, 7]}
    for axes, values in sums.items():
        for scale, (together, added) in zip(
            (1, 0.5), (axes.lines[1:3], axes.lines[3:5]), strict=True
        ):
            assert np.allclose(together.get_ydata(), 2 * scale * np.array(values))
            assert np.allclose(added.get_ydata(), scale * np.array(values))
            assert (together.get_linestyle(), added.get_linestyle()) == ("-", "--")
    assert "factual recall, 73 prompts" in figure.get_suptitle()


def test_lines_of_runs_and_positions() -> None:
    fx = result("layer", "head").rename(head="position").assign_coords(position=list("abcd"))
    one = plot.lines(fx)
    assert [text.get_text() for text in one.legends[0].get_texts()] == list("abcd")
    lines = one.axes[0].lines[1:]
    assert np.array_equal(lines[3].get_ydata(), fx.effect[0, :, 3])
    assert len({line.get_color() for line in lines}) == 4
    both = plot.lines({"STR": fx, "GN": fx}).axes[0].lines[1:]
    assert [line.get_label() for line in both[3:5]] == ["STR, d", "GN, a"]
    assert [line.get_color() for line in both[3:5]] == ["#0072B2", "#D55E00"]
    assert len({(line.get_color(), line.get_linestyle()) for line in both}) == 8


def test_lines_of_draws_have_a_band() -> None:
    fx = result("draw", "layer", "head").isel(head=0, drop=True)
    (axes,) = plot.lines(fx).axes
    assert np.allclose(axes.lines[1].get_ydata(), fx.effect[0].mean("draw"))
    edges = axes.collections[0].get_paths()[0].vertices
    at_four = edges[edges[:, 0] == 4, 1]
    middle, sd = float(fx.effect[0, :, 4].mean()), float(fx.effect[0, :, 4].std(ddof=1))
    assert np.allclose([at_four.min(), at_four.max()], [middle - sd, middle + sd])


def test_bars_of_tables_with_intervals() -> None:
    table = pd.DataFrame([[0.6, 0.1], [0.1, 0.7]], index=["clean", "STR"], columns=["IO", "S1"])
    table.attrs = {"model": "gpt2", "task": "ioi", "n_prompts": 500}
    low, high = table - 0.1, table + 0.2
    (axes,) = plot.bars(table, low, high).axes
    clean, string = (axes.containers[number] for number in (1, 3))
    assert [bar.get_height() for bar in string] == [0.1, 0.7]
    (segments,) = clean.errorbar.lines[2]
    assert np.allclose(
        [segment[:, 1] for segment in segments.get_segments()], [[0.5, 0.8], [0, 0.3]]
    )
    assert axes.get_title() == "GPT-2 small, IOI, 500 prompts"
    panels = plot.bars({"here": table, "paper": table.copy()})
    assert [axes.get_title().split("\n")[0] for axes in panels.axes] == ["here", "paper"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plot.ranked(result("layer", "head"), "kl"), ["'kl'", "logit_diff"]),
        (lambda: plot.ranked(result("layer", "head").rename(head="position")), ["fx.sel(position"]),
        (lambda: plot.draws(result("layer", "head")), ["keep_draws=True"]),
        (
            lambda: plot.scatter({"STR": result("layer", "head")}, {"GN": result("layer", "head")}),
            ["across are STR", "upwards GN"],
        ),
        (
            lambda: plot.scatter(
                result("layer", "head"), result("layer", "head").isel(head=0, drop=True)
            ),
            ["none in common"],
        ),
        (lambda: plot.intervals({"STR": result("layer", "head")}), ["keep_prompts=True"]),
        (lambda: plot.intervals({}), ["no result"]),
        (lambda: plot.windows({"STR": by_window().sel(window=[3, 4])}), ["3, 4", "allowed are 1"]),
        (lambda: plot.windows({"STR": by_window().sel(window=3)}), ["window=[1, 3, 5]"]),
        (
            lambda: plot.windows({"STR": by_window(), "GN": by_window().sel(window=[1, 3])}),
            ["1, 3", "the same in all"],
        ),
        (lambda: plot.bars({}), ["no attention"]),
        (lambda: plot.bars(pd.DataFrame({"IO": [1]}), low=pd.DataFrame({"IO": [1]})), ["both"]),
        (
            lambda: plot.bars({"a": pd.DataFrame({"IO": [1]}, ["clean"]), "b": pd.DataFrame()}),
            ["no attention"],
        ),
        (
            lambda: plot.bars(
                {
                    "a": pd.DataFrame({"IO": [1]}, ["clean"]),
                    "b": pd.DataFrame({"S1": [1]}, ["clean"]),
                }
            ),
            ["clean and IO", "positions S1"],
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, words: list[str]) -> None:
    with pytest.raises(PatchlibError) as refusal:
        call()
    assert [word for word in words if word not in str(refusal.value)] == []


FIGURES = [
    lambda: plot.ranked(result("layer", "head", layer=30)),
    lambda: plot.scatter(result("layer", "head"), result("layer", "head", seed=1)),
    lambda: plot.draws(result("draw", "layer", "head", run="GN")),
    lambda: plot.intervals({"STR": result("layer", "head", "prompt")}),
    lambda: plot.windows({"STR": by_window(), "GN": by_window("GN")}),
    lambda: plot.lines(by_window().sel(window=[1, 3]), "prob"),
    lambda: plot.heatmap(result("layer", "head", layer=30)),
    lambda: plot.heatmaps({"STR": result("layer", "head", layer=30)}, ["logit_diff"]),
    lambda: plot.bars(pd.DataFrame([[0.6, 0.1]], ["clean"], ["IO", "S1"])),
]


@pytest.mark.parametrize("draw", FIGURES)
def test_nothing_is_cut_off_too_small_or_without_words(draw) -> None:
    figure = draw()
    figure.draw_without_rendering()
    sizes = [t.get_fontsize() for t in figure.findobj(Text) if t.get_visible() and t.get_text()]
    assert min(sizes) >= 7
    drawn = figure.get_tightbbox()
    assert min(drawn.x0, drawn.y0) >= -0.01
    assert drawn.x1 <= figure.get_figwidth() + 0.01 and drawn.y1 <= figure.get_figheight() + 0.01
    assert len(figure.alt) > 30 and not re.search(r"\d\.\d\d", figure.alt)
    assert repr(figure) == figure.alt


def test_a_notebook_shows_a_dense_picture_with_its_alternative_text(monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(style, "display", lambda data, raw: shown.append(data))
    figure = plot.ranked(result("layer", "head"))
    figure.set_figwidth(5)
    figure.alt += ' "<&'
    figure._ipython_display_()
    ((text, page),) = [(data["text/plain"], data["text/html"]) for data in shown]
    assert text == figure.alt
    alt, width, picture = re.fullmatch(
        r'<img alt="([^"]*)" width="(\d+)" src="data:image/png;base64,([^"]*)">', page
    ).groups()
    assert alt.endswith("&quot;&lt;&amp;")
    (pixels,) = struct.unpack(">I", base64.b64decode(picture)[16:20])
    assert pixels == 5 * 144 and int(width) == 5 * 96

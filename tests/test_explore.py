"""The explorer, driven as a page drives it: by setting the values of its controls."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import bs4
import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from conftest import ipython_shell
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.patching import duration
from patchlib.patching.metrics import METRICS
from patchlib.show import explorer as module
from patchlib.show import kept, picture
from patchlib.show.explorer import Explorer, explore
from patchlib.show.kept import KeptSweeps, Request

ALL_METRICS = list(METRICS)


class Calls:
    """Counts and passes on the calls of a function of the module or a method of a class."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, owner: object = module) -> None:
        self.count = 0
        self.error: Exception | None = None
        original = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            self.count += 1
            if self.error is not None:
                raise self.error
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    def during(self, action: Callable[[], object]) -> int:
        before = self.count
        action()
        return self.count - before


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    # However busy the machine is.
    monkeypatch.setattr(KeptSweeps, "seconds", lambda sweeps, request: 0.1)
    return Calls(monkeypatch, "compute", KeptSweeps)


@pytest.fixture
def explorer(tiny_gpt2: TransformerBridge, calls: Calls) -> Explorer:
    explorer = explore(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, n=6), show=False)
    assert explorer.error == ""
    return explorer


def choose(explorer: Explorer, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(explorer.controls[name], "value", value)


def shown(explorer: Explorer) -> np.ndarray:
    """The values in the picture, of a map or of a curve."""
    axes = explorer.figure.axes[0]
    if axes.images:
        return np.ma.filled(axes.images[0].get_array(), np.nan)
    (line,) = [line for line in axes.lines if len(line.get_xdata()) > 2]
    return line.get_ydata()


def test_it_starts_with_the_given_prompts_and_the_paper_s_choices(explorer: Explorer) -> None:
    assert explorer.state == {
        "task": "ioi",
        "n": 6,
        "corruption": "STR",
        "site": "S2",
        "scale": 3.0,
        "draws": 1,
        "component": "head",
        "positions": "all",
        "window": 1,
        "direction": "denoise",
        "metric": "logit_diff",
        "head": explorer.controls["head"].options[0][1],
        "prompt": 0,
    }
    assert repr(explorer) == (
        "Explorer(ioi · 6 prompts · STR at S2 · head at all positions · denoise · logit_diff)"
    )


def test_another_metric_is_shown_without_computing(explorer: Explorer, calls: Calls) -> None:
    for metric in reversed(METRICS):
        assert calls.during(choose(explorer, "metric", metric)) == 0
        assert np.array_equal(shown(explorer), explorer.fx.effect.sel(metric=metric))
        assert set(explorer.found.metric) == {metric}
        assert metric in explorer.figure.get_suptitle()


@pytest.mark.parametrize(
    ("settings", "by_hand"),
    [
        ({}, {"corruption": pl.STR("S2")}),
        ({"direction": "noise", "site": "S1+IO"}, {"corruption": pl.STR("S1+IO")}),
        ({"corruption": "GN"}, {"corruption": pl.GN("S2", scale=3.0)}),
        (
            {"corruption": "GN", "site": "last", "scale": 1.5, "draws": 2},
            {"corruption": pl.GN("last", scale=1.5, draws=2)},
        ),
        ({"component": "mlp", "window": 3}, {"corruption": pl.STR("S2")}),
        ({"component": "resid", "positions": "each"}, {"corruption": pl.STR("S2")}),
        ({"component": "attn", "positions": "last"}, {"corruption": pl.STR("S2")}),
        ({"n": 4}, {"corruption": pl.STR("S2")}),
    ],
)
def test_the_picture_holds_what_patch_gives(
    tiny_gpt2: TransformerBridge, explorer: Explorer, settings: dict, by_hand: dict
) -> None:
    for name, value in settings.items():
        explorer.controls[name].value = value
    assert explorer.error == ""
    arguments = {
        name: value
        for name, value in settings.items()
        if name in ("component", "positions", "window", "direction")
    }
    pairs = pl.tasks.ioi(tiny_gpt2, n=6)[: settings.get("n", 6)]
    fx = pl.patch(tiny_gpt2, pairs, metrics=ALL_METRICS, progress=False, **by_hand, **arguments)
    np.testing.assert_allclose(shown(explorer), fx.effect.sel(metric="logit_diff"), rtol=1e-12)
    assert explorer.fx.attrs | {"task_settings": ""} == fx.attrs | {"task_settings": ""}
    pd.testing.assert_frame_equal(explorer.found, pl.detect(fx.sel(metric=["logit_diff"])))


def test_going_back_computes_nothing(explorer: Explorer, calls: Calls) -> None:
    steps = [
        ("corruption", "GN", "STR"),
        ("direction", "noise", "denoise"),
        ("site", "ABC", "S2"),
        ("n", 3, 6),
        ("component", "mlp", "head"),
    ]
    for name, there, back in steps:
        before = shown(explorer)
        assert calls.during(choose(explorer, name, there)) == 1
        assert not np.array_equal(before, shown(explorer))
        assert calls.during(choose(explorer, name, back)) == 0
        assert np.array_equal(before, shown(explorer))


def test_more_noise_changes_the_numbers(explorer: Explorer, calls: Calls) -> None:
    explorer.controls["corruption"].value = "GN"
    before = shown(explorer)
    assert calls.during(choose(explorer, "scale", 1.0)) == 1
    assert not np.array_equal(before, shown(explorer))
    assert "scale 1" in explorer.figure.get_suptitle()


def test_a_task_brings_its_own_sites_in_one_refresh(
    explorer: Explorer, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshes = []
    refresh = explorer._refresh
    monkeypatch.setattr(explorer, "_refresh", lambda: refreshes.append(refresh()))
    explorer.controls["corruption"].value = "GN"
    assert explorer.controls["site"].options == ("S2", "S1", "IO", "S1+IO", "last")
    for task, replaced in {
        "greater_than": ("YY",),
        "docstring": ("C_def",),
        "arithmetic": ("X3+Y3",),
        "factual_recall": ("subject",),
        "ioi": ("S2", "S1", "IO", "S1+IO", "ABC"),
    }.items():
        explorer.controls["corruption"].value = "GN"
        refreshes.clear()
        assert calls.during(choose(explorer, "task", task)) == (task != "ioi")
        assert len(refreshes) == 1
        assert (explorer.error, explorer.fx.attrs["task"]) == ("", task)
        names = explorer.fx.attrs["site"].split("+")
        assert {*names, "last"} <= set(explorer.controls["site"].options) | set(names)
        explorer.controls["corruption"].value = "STR"
        assert explorer.controls["site"].options == replaced
    assert explorer.controls["site"].value == "S2"


def test_controls_without_a_meaning_are_disabled(explorer: Explorer) -> None:
    def disabled() -> set[str]:
        return {name for name, control in explorer.controls.items() if control.disabled}

    assert disabled() == {"window", "scale", "draws"}
    explorer.controls["corruption"].value = "GN"
    assert disabled() == {"window"}
    explorer.controls["component"].value = "resid"
    assert disabled() == set()
    assert explorer.controls["window"].options == (1, 3)
    assert explorer.controls["positions"].options == ("all", "each", "IO", "S1", "S2", "last")
    explorer.controls["window"].value = 3
    explorer.controls["positions"].value = "each"
    explorer.controls["component"].value = "head"
    assert disabled() == {"window"}
    assert (explorer.state["window"], explorer.state["positions"]) == (1, "all")
    explorer.controls["prompt"].value = 5
    explorer.controls["n"].value = 2
    assert explorer.state["prompt"] == 1


def test_prompts_of_several_lengths_offer_no_single_positions(explorer: Explorer) -> None:
    explorer.controls["component"].value = "resid"
    explorer.controls["task"].value = "factual_recall"
    lengths = {len(p.clean) for p in explorer._prompts(explorer.state).prompts}
    assert ("each" in explorer.controls["positions"].options) == (len(lengths) == 1)
    assert explorer.error == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (pl.PatchlibError("no such <site>"), "no such <site>"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
    ],
)
def test_an_error_is_shown_and_the_last_picture_stays(
    explorer: Explorer, calls: Calls, error: Exception, message: str
) -> None:
    figure, caption, fx = explorer.figure, explorer.figure.get_suptitle(), explorer.fx
    calls.error = error
    explorer.controls["direction"].value = "noise"
    assert explorer.error == message
    assert message.replace("<", "&lt;").replace(">", "&gt;") in explorer._message.value
    assert explorer.figure is figure and explorer.fx is fx
    assert figure.get_suptitle() == caption
    assert explorer.progress.layout.visibility == "hidden"
    calls.error = None
    explorer.controls["site"].value = "S1"
    assert (explorer.error, explorer._message.value) == ("", "")
    assert explorer.fx.attrs["direction"] == "noise"


def test_a_first_error_is_told_in_place_of_a_picture(
    tiny_gpt2: TransformerBridge, calls: Calls
) -> None:
    calls.error = pl.PatchlibError("refused")
    explorer = explore(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, n=2), show=False)
    assert explorer.figure is None and explorer.fx is None
    assert repr(explorer) == "Explorer(no picture: refused)"


def test_too_many_prompts_of_another_task_are_refused_in_words(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: object, n: int) -> None:
        raise pl.PatchlibError("ask for at most 4")

    monkeypatch.setattr(pl.tasks, "arithmetic", refuse)
    explorer.controls["task"].value = "arithmetic"
    assert explorer.error == "ask for at most 4"
    explorer.controls["task"].value = "ioi"
    assert explorer.error == ""


def test_the_progress_bar_reaches_its_end(explorer: Explorer, tiny_gpt2: TransformerBridge) -> None:
    steps: list[float] = []
    explorer.progress.observe(lambda change: steps.append(change.new), names="value")
    explorer.controls["corruption"].value = "GN"
    assert steps[-1] == explorer.progress.max == 6 * 3 * 4
    assert explorer.progress.layout.visibility == "hidden"
    seen: list[tuple[int, int]] = []
    pairs = pl.tasks.ioi(tiny_gpt2, n=4)
    pl.patch(
        tiny_gpt2,
        pairs,
        corruption=pl.GN("S2", draws=2),
        batch_size=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 96) for done in range(0, 97, 4)]


def test_attention_is_that_of_the_chosen_head_and_prompt(
    explorer: Explorer, tiny_gpt2: TransformerBridge, calls: Calls
) -> None:
    def choices() -> None:
        explorer.controls["prompt"].value = 4
        explorer.controls["head"].value = (2, 3)

    assert calls.during(choices) == 0
    pairs = pl.tasks.ioi(tiny_gpt2, n=6)[4:5]
    panels = explorer.attention_figure.axes[:-1]
    runs = {"clean": None, "STR at S2": pl.STR("S2"), "GN at S2": pl.GN("S2")}
    for axes, (title, corruption) in zip(panels, runs.items(), strict=True):
        assert axes.get_title() == title
        pattern = pl.attention_patterns(tiny_gpt2, pairs, [(2, 3)], corruption)[0, 0].numpy()
        image = np.ma.filled(axes.images[0].get_array(), 0)
        assert np.allclose(np.nan_to_num(image), np.tril(pattern), atol=1e-6)
    labels = [axes.get_yticklabels()[pairs.at("S2")[0][0]].get_text() for axes in panels[:2]]
    assert labels[0] != labels[1]
    # Noise needs named positions, and ABC is none.
    explorer.controls["site"].value = "ABC"
    titles = [axes.get_title() for axes in explorer.attention_figure.axes[:-1]]
    assert titles == ["clean", "STR at ABC"]


def test_attention_is_kept(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    patterns = Calls(monkeypatch, "attention_patterns")
    assert patterns.during(choose(explorer, "head", (0, 1))) == 0
    assert patterns.during(choose(explorer, "prompt", 1)) == 3
    assert patterns.during(choose(explorer, "prompt", 0)) == 0
    assert patterns.during(choose(explorer, "metric", "kl")) == 0


def test_prompts_of_one_text_have_their_own_attention(tiny_gpt2: TransformerBridge) -> None:
    """The second has other corrupted tokens, the third another position."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=2)
    first, second = pairs.prompts
    other = dataclasses.replace(
        first, corrupted=first.corrupted | {"S2": first.corrupted["S2"][:-1] + second.clean[1:2]}
    )
    moved = dataclasses.replace(first, positions=first.positions | {"S2": (1,)})
    pairs = dataclasses.replace(pairs, prompts=(first, other, moved))
    assert len(set(pairs.texts)) == 1
    explorer = explore(tiny_gpt2, pairs, show=False)
    for number in range(3):
        explorer.controls["prompt"].value = number
        panels = explorer.attention_figure.axes[:-1]
        runs = (None, pl.STR("S2"), pl.GN("S2"))
        for axes, corruption in zip(panels, runs, strict=True):
            head = explorer.controls["head"].value
            pattern = pl.attention_patterns(tiny_gpt2, pairs[[number]], [head], corruption)
            image = np.ma.filled(axes.images[0].get_array(), 0)
            assert np.allclose(np.nan_to_num(image), np.tril(pattern[0, 0]), atol=1e-6)


def test_every_component_can_be_chosen(tiny_folders: Callable) -> None:
    """Where heads share keys and values, those are maps of their own."""
    model = pl.load_model(tiny_folders("llama"))
    explorer = explore(model, pl.tasks.ioi(model, n=2), show=False)
    sizes = {"k": 2, "v": 2, "q": 4, "pattern": 4, "head": 4, "resid_mid": None, "mlp": None}
    assert set(sizes) < set(explorer.controls["component"].options)
    assert "neuron" not in explorer.controls["component"].options
    for component, units in sizes.items():
        explorer.controls["component"].value = component
        assert explorer.error == ""
        assert shown(explorer).shape == ((3,) if units is None else (3, units))
        assert ("beyond mean" in explorer.figure.get_suptitle()) == (units is not None)
        assert explorer.controls["window"].disabled == (units is not None)


def test_detected_heads_come_first(explorer: Explorer) -> None:
    for metric in METRICS:
        explorer.controls["metric"].value = metric
        options = explorer.controls["head"].options
        detected = [name for heads in explorer.found.heads for name in heads]
        assert [f"{layer}.{head}" for _, (layer, head) in options][: len(detected)] == detected
        assert sum(label.endswith(")") for label, _ in options) == len(detected)
        assert len(options) == len({head for _, head in options}) == 12


def test_long_prompts_fit_a_page(explorer: Explorer) -> None:
    explorer.controls["task"].value = "docstring"
    figure = explorer.attention_figure
    assert figure.get_figwidth() == 10
    labels = [label for label in figure.axes[0].get_yticklabels() if label.get_visible()]
    assert any(label.get_text().startswith("C_def") for label in labels)
    assert all(label.get_fontweight() == "bold" for label in labels)


def test_pictures_are_small(explorer: Explorer) -> None:
    for task in ("ioi", "docstring"):
        explorer.controls["task"].value = task
        for figure in (explorer.figure, explorer.attention_figure):
            assert len(figure.bundle()["text/html"]) < 200_000


def test_changes_from_another_thread_wait_and_are_not_lost(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    attention = explorer._draw_attention

    def slow(state: dict) -> None:
        began.set()
        go_on.wait(10)
        attention(state)

    monkeypatch.setattr(explorer, "_draw_attention", slow)
    first = threading.Thread(target=choose(explorer, "corruption", "GN"))
    first.start()
    assert began.wait(10)
    second = threading.Thread(target=choose(explorer, "direction", "noise"))
    second.start()
    while explorer.state["direction"] != "noise":
        time.sleep(0.01)
    go_on.set()
    for thread in (first, second):
        thread.join(30)
        assert not thread.is_alive()
    attrs = explorer.fx.attrs
    assert (explorer.error, attrs["corruption"], attrs["direction"]) == ("", "GN", "noise")


def test_a_cell_shows_controls_and_pictures_once_and_updates_them(
    tiny_gpt2: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[tuple[dict, dict]] = []

    def publish(data: dict, metadata: object = None, **more: object) -> None:
        published.append((data, more))

    with ipython_shell() as shell:
        monkeypatch.setattr(shell.display_pub, "publish", publish)
        explorer = explore(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, n=2))
        explorer._ipython_display_()
        kinds = [sorted(data) for data, _ in published]
        assert kinds == [["application/vnd.jupyter.widget-view+json"], ["text/html", "text/plain"]]
        first, at = published[1]
        assert "0x" not in first["text/plain"] and "metric logit_diff" in first["text/plain"]
        images = bs4.BeautifulSoup(first["text/html"], "html.parser").find_all("img")
        alternatives = [image["alt"] for image in images]
        assert alternatives == [explorer.figure.alt, explorer.attention_figure.alt]
        assert alternatives[0].startswith("Heat map, ") and "ttention" in alternatives[1]
        published.clear()
        explorer.controls["metric"].value = "prob"
        # The settings and pictures that a saved notebook shows are those of the widget.
        ((data, more),) = [entry for entry in published if "text/html" in entry[0]]
        assert more["update"] and more["transient"] == at["transient"]
        assert "metric prob" in data["text/plain"]
        for shown_picture in pictures(explorer):
            assert shown_picture in data["text/html"]
        # A later cell shows it again.
        shell.execution_count += 1
        published.clear()
        explorer._ipython_display_()
        assert len(published) == 2


def pictures(explorer: Explorer) -> list[str]:
    """What the widget shows as pictures, in HTML."""
    last = explorer.widget.children[-2:]
    return [picture.value for picture in last if picture.layout.display != "none"]


def test_the_widget_holds_the_pictures(explorer: Explorer) -> None:
    """It needs no output of a notebook; the map to point at stands for its picture."""
    (attention,) = pictures(explorer)
    assert 'alt="Attention patterns' in attention
    explorer.controls["component"].value = "mlp"
    curve, same = pictures(explorer)
    assert 'alt="Heat map' not in curve and same == attention
    explorer.controls["prompt"].value = 1
    assert pictures(explorer)[0] == curve and pictures(explorer)[1] != attention
    assert set(explorer.controls.values()) == {
        control for row in explorer.widget.children for control in getattr(row, "children", ())
    }


def test_a_picture_is_drawn_after_the_callback_and_once_for_several(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel answers within its event loop; the map to point at does not wait for a picture."""
    drawn = Calls(monkeypatch, "heatmap", module.plot)

    async def answer() -> None:
        for metric in ("prob", "kl"):
            explorer.controls["metric"].value = metric
        assert drawn.count == 0 and "KL" in explorer.map.shown["label"]
        await asyncio.sleep(4 * picture._PAUSE)

    asyncio.run(answer())
    assert drawn.count == 1
    assert "kl" in explorer.figure.get_suptitle() and explorer.error == ""


def test_a_picture_that_fails_is_told(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Calls(monkeypatch, "heatmap", module.plot)
    drawn.error = ValueError("no <room>")
    explorer.controls["metric"].value = "prob"
    assert explorer.error == "ValueError: no <room>"


def test_it_opens_where_something_moves(mini: TransformerBridge, calls: Calls) -> None:
    explorer = explore(mini, pl.tasks.ioi(mini, n=4), show=False)
    effect = explorer.fx.effect.sel(metric=explorer.state["metric"])
    assert float(abs(effect).max()) > 0.1
    layer, head = explorer.state["head"]
    assert abs(effect[layer, head]) == abs(effect).max()


@pytest.mark.parametrize("component", ["head", "resid"])
def test_the_map_has_the_cells_colours_and_frames_of_the_picture(
    explorer: Explorer, component: str
) -> None:
    if component == "resid":
        explorer.controls["component"].value = "resid"
        explorer.controls["positions"].value = "each"
    axes = explorer.figure.axes[0]
    (image,) = axes.images
    map = explorer.map.shown
    np.testing.assert_array_equal(np.array(map["values"], float), shown(explorer))
    drawn = [
        [matplotlib.colors.to_hex(cell) for cell in row] for row in image.to_rgba(shown(explorer))
    ]
    assert map["colours"] == drawn
    frames = {(patch.get_y() + 0.5, patch.get_x() + 0.5) for patch in axes.patches}
    assert {tuple(cell) for cell in map["framed"]} == frames
    assert map["choosable"] == (component == "head")


@pytest.mark.parametrize("component", ["head", "resid"])
def test_the_map_tells_the_intervals(
    explorer: Explorer, tiny_gpt2: TransformerBridge, component: str
) -> None:
    where = {"head": "all", "resid": "each"}[component]
    explorer.controls["component"].value = component
    explorer.controls["positions"].value = where
    pairs = pl.tasks.ioi(tiny_gpt2, n=6)
    settings = {"component": component, "positions": where, "metrics": ["logit_diff"]}
    fx = pl.patch(tiny_gpt2, pairs, corruption=pl.STR("S2"), keep_prompts=True, **settings)
    ends = pl.interval(fx).squeeze("metric")
    for name in ("low", "high"):
        np.testing.assert_allclose(
            np.array(explorer.map.shown[name], float), ends[name].values, rtol=1e-6, atol=1e-12
        )


def test_a_single_prompt_has_no_interval(explorer: Explorer) -> None:
    explorer.controls["n"].value = 1
    assert explorer.error == ""
    assert {end for row in explorer.map.shown["low"] for end in row} == {None}


def test_a_curve_has_no_map(explorer: Explorer) -> None:
    explorer.controls["component"].value = "mlp"
    assert explorer.map.shown == {} and explorer.figure.axes[0].lines


def test_a_click_on_a_cell_shows_its_head(explorer: Explorer) -> None:
    assert explorer.map.head == explorer.state["head"]
    explorer.map.chosen = [2, 1]
    assert explorer.state["head"] == (2, 1)
    assert "head 2.1" in explorer.attention_figure.get_suptitle()
    explorer.controls["head"].value = (0, 3)
    assert explorer.map.chosen == [0, 3]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that must be computed takes forty seconds, it says."""
    monkeypatch.setattr(KeptSweeps, "seconds", lambda sweeps, request: 40.0)


def wait_for(explorer: Explorer) -> None:
    thread = explorer._computing
    if thread is not None:
        thread.join(60)
        assert not thread.is_alive()


def test_what_takes_long_says_so_and_waits_for_a_click(
    explorer: Explorer, calls: Calls, slow: None
) -> None:
    before = explorer.fx
    assert calls.during(choose(explorer, "site", "S1")) == 0
    assert explorer.button.description == "compute: about 40 seconds"
    assert explorer.button.layout.display is None
    assert explorer.fx is before and explorer.error == ""
    explorer.button.click()
    wait_for(explorer)
    assert explorer.fx.attrs["site"] == "S1"
    assert explorer.button.layout.display == "none"
    assert calls.during(choose(explorer, "site", "S2")) == 0
    assert explorer.fx.identical(before)


def test_a_sweep_is_stopped_and_leaves_the_last_picture(
    explorer: Explorer, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, figure = threading.Event(), explorer.figure
    advance = explorer._advance

    def wait(done: int, total: int) -> None:
        began.set()
        explorer._stop.wait(30)
        advance(done, total)

    monkeypatch.setattr(explorer, "_advance", wait)
    explorer.controls["direction"].value = "noise"
    explorer.button.click()
    assert began.wait(30) and explorer.button.description == "stop"
    thread = explorer._computing
    explorer.button.click()
    thread.join(60)
    assert (explorer.error, explorer.figure) == ("stopped", figure)
    assert explorer.button.description == "compute: about 40 seconds"
    explorer.controls["direction"].value = "denoise"
    assert (explorer.error, explorer.button.layout.display) == ("", "none")


def test_the_first_result_is_computed_without_a_click(
    tiny_gpt2: TransformerBridge, slow: None
) -> None:
    explorer = explore(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, n=2), show=False)
    assert explorer.fx is not None and explorer.button.layout.display == "none"


def test_what_is_stored_needs_no_computing(
    tiny_gpt2: TransformerBridge, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored sweep of more than 32 prompts is shown with all of them."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=40)
    whole = pl.patch(tiny_gpt2, pairs, corruption=pl.STR("S2"), keep_prompts=True, progress=False)

    def read(model: object, asked: pl.PromptPairs, *, corruption, metrics, progress, **more):
        if len(asked) < 40 or corruption != pl.STR("S2") or "rank" in metrics:
            progress(0, 1)
        return whole

    monkeypatch.setattr(kept, "patch", read)
    explorer = explore(tiny_gpt2, pairs, show=False)
    assert explorer.fx.identical(whole.mean("prompt", keep_attrs=True))
    assert explorer.state["n"] == 40
    explorer.controls["metric"].value = "rank"
    assert explorer.button.description == "compute: about 40 seconds"


def test_a_time_is_told_without_running_the_model(
    mini: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that `experiments.estimate` tells, measured once."""
    monkeypatch.setattr(duration, "rate", lambda model: 1e9)
    sweeps = KeptSweeps(mini)
    pairs = pl.tasks.ioi(mini, n=8, prepend_bos=False)
    replaced = Request(pairs, pl.STR("S2"), "mlp", "all", 3, "denoise")
    noised = dataclasses.replace(replaced, corruption=pl.GN("S2", draws=5))
    asked = {"task": "ioi", "component": "mlp", "positions": "all", "sites": ["S2"], "window": 3}
    asked |= {"n": 8, "draws": 5, "prepend_bos": False}
    monkeypatch.setattr(kept, "patch", None)
    both = sweeps.seconds(replaced) + sweeps.seconds(noised)
    assert both == pytest.approx(pl.experiments.estimate(mini, asked, rate=1e9).seconds)
    monkeypatch.setattr(duration, "rate", None)
    assert sweeps.seconds(replaced) < sweeps.seconds(noised)


def test_the_saved_notebook_has_a_table_of_the_settings(explorer: Explorer) -> None:
    table = explorer._stand_in()
    rows = bs4.BeautifulSoup(table["text/html"], "html.parser").find_all("tr")
    assert {row.th.text: row.td.text for row in rows} == {
        "task": "ioi",
        "prompts": "6",
        "corruption": "STR",
        "at": "S2",
        "component": "head",
        "positions": "all",
        "direction": "denoise",
        "metric": "logit_diff",
    }
    assert "error" not in str(table).lower()


def test_long_names_of_positions_leave_room_for_the_attention(explorer: Explorer) -> None:
    explorer.controls["task"].value = "factual_recall"
    figure = explorer.attention_figure
    figure.canvas.draw()
    panel = figure.axes[0]
    assert max(len(label.get_text()) for label in panel.get_yticklabels()) > 20
    # A line of 7 pt for each token, of 72 pt an inch.
    high = panel.get_position().height * figure.get_figheight()
    assert high / len(panel.get_yticklabels()) > 7 / 72
    titles = [axes.title.get_window_extent() for axes in figure.axes[:-1]]
    assert all(left.x1 < right.x0 for left, right in pairwise(titles))

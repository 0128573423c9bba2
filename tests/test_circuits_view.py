"""The attention plots, without a page: what is sent, what is kept, what is refused."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from urllib import request

import circuitsvis
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ipython_shell
from matplotlib.figure import Figure
from torch import Tensor

from patchlib.errors import PatchlibError
from patchlib.show.attention_heads import AttentionHeads
from patchlib.show.plot import attention

TOKENS = ["<|endoftext|>", "When", " Mary", "\n"]
NAMES = ["L0H1", "L9H9"]
WIDGET = "application/vnd.jupyter.widget-view+json"
BUNDLE = (Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js").read_text("utf-8")


def some_patterns(seed: int = 0) -> Tensor:
    scores = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(seed))
    future = torch.ones(4, 4, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)


def ask(plot: AttentionHeads, message: object) -> None:
    """Hand over a message as the comm of a page does."""
    data = {"method": "custom", "content": message}
    plot._handle_msg({"content": {"data": data}, "buffers": []})


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(request, "urlopen", refuse)


@pytest.mark.usefixtures("no_network")
def test_each_request_gets_the_installed_bundle_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plot = AttentionHeads(some_patterns(), TOKENS, NAMES)
    sent: list[dict] = []
    monkeypatch.setattr(plot, "send", sent.append)
    ask(plot, {"kind": "something else"})
    ask(plot, "bundle wanted")
    assert sent == []
    ask(plot, {"kind": "bundle wanted"})
    assert [message["kind"] for message in sent] == ["bundle"]
    assert sent[0]["text"] == BUNDLE


def test_the_page_asks_and_answers_in_the_words_of_the_kernel() -> None:
    assert 'model.send({ kind: "bundle wanted" })' in AttentionHeads._esm
    assert 'message.kind !== "bundle"' in AttentionHeads._esm
    assert "http" not in AttentionHeads._esm + AttentionHeads._css


@pytest.mark.usefixtures("no_network")
def test_the_state_holds_the_data_and_nothing_of_the_bundle() -> None:
    plot = AttentionHeads(some_patterns(), TOKENS, NAMES, height=300)
    ask(plot, {"kind": "bundle wanted"})
    state = {key: value for key, value in plot.get_state().items() if key != "layout"}
    text = json.dumps(state)
    assert len(text) < 10_000
    assert BUNDLE[:100] not in text
    assert (state["tokens"], state["names"], state["height"]) == (TOKENS, NAMES, 300)
    assert np.array_equal(state["attention"], some_patterns().double().numpy().round(4))


def test_an_array_and_a_tensor_give_the_same_plot() -> None:
    tensor = AttentionHeads(some_patterns(), TOKENS, NAMES)
    array = AttentionHeads(some_patterns().numpy(), TOKENS, NAMES)
    assert tensor.element_id == array.element_id
    assert tensor.attention == array.attention


def test_the_element_is_named_after_what_it_shows() -> None:
    plot = AttentionHeads(some_patterns(), TOKENS, NAMES)
    assert plot.element_id == AttentionHeads(some_patterns(), TOKENS, NAMES, height=99).element_id
    others = [
        AttentionHeads(some_patterns(1), TOKENS, NAMES),
        AttentionHeads(some_patterns(), [*TOKENS[:3], " John"], NAMES),
        AttentionHeads(some_patterns(), TOKENS, ["L0H1", "L0H2"]),
    ]
    assert len({plot.element_id, *(other.element_id for other in others)}) == 4


def shown(plot: AttentionHeads, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The outputs of a cell that ends on the plot."""
    outputs: list[dict] = []
    publish = lambda data, metadata=None, **more: outputs.append(data)  # noqa: E731
    with ipython_shell() as shell:
        monkeypatch.setattr(shell.display_pub, "publish", publish)
        plot._ipython_display_()
    return outputs


def test_the_text_of_a_plot_is_the_same_in_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plot = AttentionHeads(some_patterns(), TOKENS, NAMES)
    assert repr(plot) == "AttentionHeads(2 heads, 4 tokens)"
    widget, picture = shown(plot, monkeypatch)
    assert widget == {WIDGET: {"version_major": 2, "version_minor": 0, "model_id": plot.model_id}}
    # What the saved notebook keeps.
    assert picture["text/plain"] == repr(plot)
    assert 'alt="Attention' in picture["text/html"]
    assert repr(AttentionHeads(torch.ones(1, 1, 1), ["a"], ["L0H0"])) == (
        "AttentionHeads(1 head, 1 token)"
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: AttentionHeads(p[0], TOKENS, NAMES), ["(4, 4)", "(head, dest, src)", "None"]),
        (lambda p: AttentionHeads(p[:0], TOKENS, []), ["(0, 4, 4)", "at least one"]),
        (lambda p: AttentionHeads(p, TOKENS[1:], NAMES), ["'L0H1'", "3 tokens", "4 pos", "start"]),
        (lambda p: AttentionHeads(p[:, :2], TOKENS, NAMES), ["(2, 2, 4)", "as many sources"]),
        (lambda p: AttentionHeads(p, TOKENS, NAMES[:1]), ["2 patterns", "1 names"]),
        (lambda p: AttentionHeads(p.log(), TOKENS, NAMES), ["infinite", "softmax"]),
        (lambda p: attention(p[0], TOKENS, NAMES), ["(4, 4)", "torch.stack"]),
        (lambda p: attention(p, TOKENS, NAMES[:1]), ["2 patterns", "1 names"]),
        (lambda p: attention(p, [TOKENS], NAMES), ["2 patterns", "tokens of 1;"]),
        (lambda p: attention(p, TOKENS[1:], NAMES), ["'L0H1'", "3 tokens"]),
        (lambda p: attention(p.log(), TOKENS, NAMES), ["infinite", "softmax"]),
        (lambda p: attention(p - 1, TOKENS, NAMES), ["from -", "0 to 1", "softmax"]),
        (lambda p: attention(p, TOKENS, NAMES, {"END": 4}), ["'END'", "0 to 3"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    call: Callable[[Tensor], object], words: list[str]
) -> None:
    with pytest.raises(PatchlibError) as refusal:
        call(some_patterns())
    assert [word for word in words if word not in str(refusal.value)] == []
    assert "allowed" in str(refusal.value)


def test_a_height_is_a_whole_number_of_pixels() -> None:
    for height in (0, 1.5, True, "400"):
        with pytest.raises(PatchlibError, match=f"height={height!r}: give a whole number"):
            AttentionHeads(some_patterns(), TOKENS, NAMES, height=height)
    assert AttentionHeads(some_patterns(), TOKENS, NAMES, height=np.int64(300)).height == 300


def tick_labels(figure: Figure, panel: int) -> tuple[list[str], list[str]]:
    axes = figure.axes[panel]
    return (
        [label.get_text() for label in axes.get_xticklabels()],
        [label.get_text() for label in axes.get_yticklabels()],
    )


def test_the_figure_shows_the_values_on_one_scale() -> None:
    patterns = some_patterns()
    figure = attention(patterns, TOKENS, NAMES)
    first, second, bar = figure.axes
    future = np.triu(np.ones((4, 4), dtype=bool), k=1)
    for axes, pattern, name in zip((first, second), patterns.double().numpy(), NAMES, strict=True):
        (image,) = axes.images
        shown = np.ma.filled(image.get_array(), np.nan)
        assert np.isnan(shown[future]).all()
        assert np.array_equal(shown[~future], pattern[~future])
        assert image.get_clim() == (0, 1)
        assert axes.get_title() == name
        assert axes.get_xlabel() == "source token (key)"
    assert first.get_ylabel() == "destination token (query)"
    assert bar.get_ylabel() == "attention probability"


def test_the_figure_names_the_tokens_of_each_panel() -> None:
    tokens = [TOKENS, ["<|endoftext|>", " $5", " $6", "  "]]
    figure = attention(some_patterns(), tokens, NAMES, mark={"END": 3})
    first = ["<|endoftext|>", "When", "Mary", "END: \\n"]
    second = ["<|endoftext|>", "$5", "$6", "END: ␣"]
    assert tick_labels(figure, 0) == (first, first)
    assert tick_labels(figure, 1) == (second, second)
    labels = figure.axes[1].get_xticklabels()
    assert [label.get_fontweight() for label in labels] == ["normal"] * 3 + ["bold"]
    assert min(label.get_fontsize() for label in labels) >= 7


def test_the_figure_is_shown_only_as_a_value() -> None:
    before = plt.get_fignums()
    attention(some_patterns(), TOKENS, NAMES)
    assert plt.get_fignums() == before

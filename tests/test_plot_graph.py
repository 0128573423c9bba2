"""A circuit as a graph shows the classes, the effects and the order that it is given."""

import pytest
import xarray as xr
from matplotlib.colors import to_hex

from patchlib.errors import PatchlibError
from patchlib.show import plot
from patchlib.show.plot.style import NEGATIVE, POSITIVE

CLASSES = {
    "Name Mover": ["9.9", "10.0"],
    "Negative": ["10.7"],
    "Induction": ["6.9", "5.5"],
    "S-Inhibition": ["8.6", "7.3"],
}
EDGES = {
    ("Induction", "S-Inhibition"): 0.25,
    ("S-Inhibition", "Name Mover"): 0.5,
    ("Name Mover", "logits"): 1.0,
    ("Negative", "logits"): -0.5,
}
AT = {"Induction": "S2", "S-Inhibition": "END", "Name Mover": "END", "Negative": "END"}


def boxes(figure) -> dict[str, tuple[float, float]]:
    """Where classes and tokens stand."""
    texts = [text for text in figure.axes[0].texts if text.get_text()[:1].isalpha()]
    return {text.get_text(): text.get_position() for text in texts}


def test_classes_by_layer_and_token() -> None:
    figure = plot.circuit(CLASSES, EDGES, AT)
    places = boxes(figure)
    heights = [
        "Induction\n5.5, 6.9",
        "S-Inhibition\n7.3, 8.6",
        "Name Mover\n9.9, 10.0",
        # Half a layer above the Name Movers: beside them.
        "Negative\n10.7",
        "logits",
    ]
    assert [places[name][1] for name in heights] == [0, 1, 2, 2, 3]
    # S2 stands left of END, and nothing stands above anything else.
    assert len({x for name, (x, _) in places.items() if "\n" in name}) == len(CLASSES)
    assert places["Induction\n5.5, 6.9"][0] == places["S2"][0] < 0.5
    assert places["END"][0] == places["logits"][0] == 2


def test_arrows_are_as_thick_as_effects() -> None:
    figure = plot.circuit(CLASSES, EDGES, AT)
    arrows = [text.arrow_patch for text in figure.axes[0].texts if hasattr(text, "arrow_patch")]
    thick = [arrow.get_linewidth() for arrow in arrows]
    assert thick[0] < thick[1] == thick[3] < thick[2]
    # Width grows evenly with the effect.
    assert thick[2] - thick[1] == pytest.approx(2 * (thick[1] - thick[0]))
    colours = [to_hex(arrow.get_edgecolor()).upper() for arrow in arrows]
    assert colours == [POSITIVE] * 3 + [NEGATIVE]
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert {"+0.25", "+0.50", "+1.00", "−0.50"} <= set(shown)


def test_what_it_says_to_those_who_cannot_see_it() -> None:
    about = xr.Dataset(attrs={"model": "gpt2", "task": "ioi", "n_prompts": 9})
    figure = plot.circuit(CLASSES, EDGES, AT, about)
    assert "S-Inhibition (8.6, 7.3)" in figure.alt and "Negative to logits" in figure.alt
    assert figure.alt.endswith("GPT-2 small, IOI, 9 prompts")
    assert "0.25" not in figure.alt
    measured = about.expand_dims(metric=["kl"])
    title = plot.circuit(CLASSES, EDGES, AT, measured).axes[0].get_title()
    assert title == "GPT-2 small, IOI, 9 prompts\non arrows: KL divergence (nats)"


def test_a_class_without_heads_is_left_out() -> None:
    figure = plot.circuit(CLASSES | {"Negative": []}, EDGES, AT)
    assert not any("Negative" in name for name in boxes(figure))
    assert len([text for text in figure.axes[0].texts if hasattr(text, "arrow_patch")]) == 3
    assert "S2" not in boxes(plot.circuit(CLASSES | {"Induction": []}, EDGES, AT))


def test_without_tokens_all_stand_in_one_column() -> None:
    assert set(boxes(plot.circuit({"A": "1.0", "B": "2.0"}, {("A", "B"): 0.1}))) == {
        "A\n1.0",
        "B\n2.0",
        "logits",
    }


@pytest.mark.parametrize(
    ("classes", "edges", "at", "said"),
    [
        ({}, {}, None, "at least one head"),
        ({"A": []}, {}, None, "at least one head"),
        (CLASSES, {}, {"Induction": "S2"}, "no token of Name Mover"),
        (CLASSES, {("Induction", "Name Movers"): 0.1}, None, "an edge of 'Name Movers'"),
        (CLASSES, {("logits", "Name Mover"): 0.1}, None, "an edge of 'logits'"),
        (CLASSES, {("Name Mover", "Induction"): 0.1}, None, "none of whose heads comes later"),
    ],
)
def test_what_is_refused(classes, edges, at, said) -> None:
    with pytest.raises(PatchlibError, match=said):
        plot.circuit(classes, edges, at)

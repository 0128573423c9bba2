"""The paper's numbers agree with each other."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from patchlib.errors import PatchlibError
from patchlib.paper import tables as paper
from patchlib.patching.metrics import METRICS

FIELDS = ["section", "source", "model", "unit", "values"]
SOURCES = ("paper text", "table", "read from figure by eye, about ±", "Wang et al. 2023")
FIGURES = ["figure1b", "figure3a", "figure3c", *(f"figure{n}" for n in (2, *range(4, 31)))]
HEAD_TABLES = ["table3", "table4", "table5"]


def detected(table: str) -> dict[str, pd.DataFrame]:
    """A paper's table in the form that detection has."""
    rows = [
        {"corruption": row["corruption"], "metric": row["metric"], "sign": sign, "heads": row[sign]}
        for row in paper.value(table)
        for sign in ("positive", "negative")
    ]
    frame = pd.DataFrame(rows).assign(threshold=0.0)
    return {name: rows.drop(columns="corruption") for name, rows in frame.groupby("corruption")}


def test_every_entry_says_where_it_comes_from() -> None:
    for entry in paper.load().values():
        assert list(entry) == FIELDS
        assert entry["source"].startswith(SOURCES)
        assert all(entry[field] for field in FIELDS)


@pytest.mark.parametrize("table", ["table1", "table2", *HEAD_TABLES])
def test_tables_have_a_row_for_each_corruption_and_metric(table: str) -> None:
    rows = [(row["corruption"], row["metric"]) for row in paper.value(table)]
    metrics = ("logit_diff", "prob", "kl")
    assert sorted(rows) == sorted((c, m) for c in ("STR", "GN") for m in metrics)
    assert set(metrics) <= set(METRICS)


@pytest.mark.parametrize("table", HEAD_TABLES)
def test_heads_exist_and_have_one_sign(table: str) -> None:
    for row in paper.value(table):
        heads = [tuple(map(int, head.split("."))) for head in row["positive"] + row["negative"]]
        assert len(heads) == len(set(heads))
        assert all(0 <= number < 12 for head in heads for number in head)


def test_the_circuit_has_26_heads() -> None:
    # Wang et al. count the fuzzy heads among them.
    classes = paper.value("ioi_circuit").values()
    heads = [head for each in classes for head in each["main"] + each["fuzzy"]]
    assert len(heads) == len(set(heads)) == 26


def test_attention_sums_to_one() -> None:
    for figure in ("figure3a", "figure3c"):
        for run in paper.value(figure).values():
            assert list(run) == ["IO", "S1", "S2", "others"]
            assert abs(sum(run.values()) - 1) <= 0.02


def test_figures_agree_with_the_text() -> None:
    for run, stated in paper.value("section_3_2_attention").items():
        for position, attention in stated.items():
            assert abs(paper.value("figure3a")[run][position] - attention) <= 0.02


def test_the_threshold_is_two_standard_deviations_below_the_mean() -> None:
    numbers = paper.value("section_4_2")
    assert np.isclose(numbers["mean"] - 2 * numbers["sd"], numbers["threshold"])
    assert numbers["threshold"] < numbers["11.10"]


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("section_3_2", {"STR": 1.04, "GN": 0.49}),
        ("section_4_1", {"STR": {"logit_diff": 1.22, "prob": 4.33},
                         "GN": {"logit_diff": 0.77, "prob": 1.74}}),
        ("section_5", {"3": 1.40, "5": 1.75, "10": 1.59}),
        ("ioi_baselines", {"clean": 0.481, "GN": 0.129, "STR": 0.03, "logit_diff": 3.56,
                           "prefers_io": 0.993}),
    ],
)  # fmt: skip
def test_numbers_are_the_paper_s(id: str, expected: dict) -> None:
    assert paper.value(id) == expected


def leaves(values: Any) -> Iterator[Any]:
    """All numbers and texts of an entry."""
    if isinstance(values, dict | list):
        for inner in values.values() if isinstance(values, dict) else values:
            yield from leaves(inner)
    else:
        yield values


def test_every_figure_with_numbers_has_an_entry() -> None:
    entries = paper.load()
    assert [id for id in FIGURES if id not in entries] == []
    for id in FIGURES:
        numbers = [
            number for number in leaves(entries[id]["values"]) if not isinstance(number, str)
        ]
        assert numbers
        assert all(np.isfinite(numbers))


def test_there_are_as_many_entries_and_numbers_as_were_read() -> None:
    entries = paper.load()
    counts = {id: sum(1 for _ in leaves(entry["values"])) for id, entry in entries.items()}
    assert len(entries) == 54
    assert {id: counts[id] for id in ("figure2", "figure5", "figure9", "figure28", "figure29")} == {
        "figure2": 27, "figure5": 22, "figure9": 18, "figure28": 39, "figure29": 34,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("id", "path", "number"),
    [
        ("figure1b", "heads 10.7", -0.5),
        ("figure2", "GN prob peak", 0.089),
        ("figure2", "STR logit_diff plateau", 0.273),
        ("figure4", "STR prob range", 0.026),
        ("figure5", "single 15", 0.015),
        ("figure5", "10 adding", 0.082),
        ("figure6", "STR stolfo", 7500),
        ("figure7", "GN logit_diff", 0.11),
        ("figure8", "peak_layer", 19),
        ("figure9", "GN logit_diff heads 9.5", -0.105),
        ("figure10", "STR kl heads 10.7", -0.29),
        ("figure11", "STR kl heads 9.9", 1.98),
        ("figure12", "GN logit_diff peak", 0.043),
        ("figure13", "GN prob peak_layer", 14),
        ("figure14", "STR logit_diff peak_layer", [17, 18]),
        ("figure15", "GN prob", 0.08),
        ("figure19", "STR prob", 0.055),
        ("figure20", "STR sliding", 0.021),
        ("figure23", "GN adding", 0.26),
        ("figure24", "GN logit_diff peak", 0.213),
        ("figure26", "STR logit_diff", 0.28),
        ("figure28", "STR kl heads 11.2", -0.44),
        ("figure29", "GN prob heads 0.10", -0.041),
        ("figure30", "STR logit_diff heads 9.6", 0.45),
        ("gn_to_str_peaks", "prob 5", 4.3),
        ("section_3", "facts prob", 0.49),
        ("section_4_2", "floor", -0.03),
    ],
)
def test_numbers_of_figures_are_the_paper_s(id: str, path: str, number: Any) -> None:
    values = paper.value(id)
    for name in path.split():
        values = values[name]
    assert values == number


def test_figure_31_counts_tokens() -> None:
    assert list(paper.value("figure31").values()) == [9, 8, 9, 11]


def test_figure_1b_is_a_panel_of_figure_28() -> None:
    assert paper.value("figure1b") == paper.value("figure28")["STR"]["logit_diff"]


def test_peaks_give_the_ratios_that_the_paper_states() -> None:
    figure5 = paper.value("figure5")
    for window in ("3", "5"):
        ratio = figure5[window]["sliding"] / figure5[window]["adding"]
        assert abs(ratio - paper.value("section_5")[window]) < 0.06
    # Two neighbouring panels of Figure 2, and those of Figures 13 and 14.
    for id, window in (("figure13", "3"), ("figure2", "5"), ("figure14", "10")):
        for metric, ratios in paper.value("gn_to_str_peaks").items():
            peaks = [paper.value(id)[corruption][metric]["peak"] for corruption in ("GN", "STR")]
            assert np.isclose(peaks[0] / peaks[1], ratios[window], rtol=0.05)


@pytest.mark.parametrize(
    ("figure", "table"),
    [("figure9", "table3"), ("figure10", "table3"), ("figure28", "table5"), ("figure29", "table5")],
)
def test_the_heads_of_tables_are_those_that_stand_out_in_figures(figure: str, table: str) -> None:
    rows = {(row["corruption"], row["metric"]): row for row in paper.value(table)}
    for corruption, panels in paper.value(figure).items():
        for metric, panel in panels.items():
            for sign, factor in (("positive", 1), ("negative", -1)):
                effects = {
                    head: factor * effect
                    for head, effect in panel.get("heads", {}).items()
                    if factor * effect > 0
                }
                if effects:
                    heads = rows[corruption, metric][sign]
                    strongest = sorted(effects, key=lambda head: -effects[head])[: len(heads)]
                    # Figure 29c leaves out heads whose effect was not read.
                    assert set(strongest) <= set(heads) or metric == "kl"


def test_entries_are_read_anew() -> None:
    paper.value("section_3_2")["STR"] = 0
    assert paper.value("section_3_2")["STR"] == 1.04


def test_an_unknown_entry_is_refused() -> None:
    with pytest.raises(PatchlibError, match=r"'table9'.*table1, table2"):
        paper.value("table9")


def test_table_1_follows_from_table_5_in_all_30_cells() -> None:
    """Main heads alone count, and Negative Name Movers where they are detected as negative."""
    circuit = paper.value("ioi_circuit")
    rows = {(row["corruption"], row["metric"]): row for row in paper.value("table5")}
    cells = 0
    for row in paper.value("table1"):
        detected = rows[row["corruption"], row["metric"]]
        for name in set(row) & set(circuit):
            heads = set(circuit[name]["main"])
            found = heads & set(detected[circuit[name]["sign"]])
            assert row[name] == f"{len(found)}/{len(heads)}"
            cells += 1
    assert cells == 30


def test_the_file_holds_plain_text() -> None:
    assert json.loads(paper.RESULTS.read_text("utf-8")) == paper.load()
    assert "NaN" not in paper.RESULTS.read_text("utf-8")

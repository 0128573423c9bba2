"""The paper's numbers agree with each other, and runs are set beside them fairly."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from patchlib import paper
from patchlib.errors import PatchlibError
from patchlib.metrics import METRICS

FIELDS = ["section", "source", "model", "unit", "values"]
SOURCES = ("paper text", "table", "read from figure by eye, about ±0.02", "Wang et al. 2023")
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


def test_entries_are_read_anew() -> None:
    paper.value("section_3_2")["STR"] = 0
    assert paper.value("section_3_2")["STR"] == 1.04


def test_an_unknown_entry_is_refused() -> None:
    with pytest.raises(PatchlibError, match=r"'table9'.*table1, table2"):
        paper.value("table9")


def test_table_1_follows_from_table_5_in_all_30_cells() -> None:
    counts = paper.class_counts(detected("table5"), model="gpt2")
    table = pd.DataFrame(paper.value("table1"))
    pd.testing.assert_frame_equal(counts, table)
    assert table.drop(columns=["corruption", "metric"]).size == 30


def test_heads_of_the_wrong_sign_and_fuzzy_heads_do_not_count() -> None:
    found = pd.DataFrame(
        {
            "metric": "kl",
            "sign": ["positive", "negative"],
            "heads": [["10.7", "0.1", "0.10", "5.8"], ["9.9", "11.10", "7.3"]],
        }
    )
    (row,) = paper.class_counts({"GN": found}, model="gpt2-small").to_dict("records")
    assert row == {
        "corruption": "GN",
        "metric": "kl",
        "Name Mover": "0/3",
        "Duplicate Token": "1/2",
        "S-Inhibition": "0/4",
        "Negative Name Mover": "1/2",
        "Induction": "0/2",
    }


def test_classes_of_another_model_are_not_counted() -> None:
    with pytest.raises(PatchlibError, match=r"'mini'.*GPT-2 small.*gpt2"):
        paper.class_counts(detected("table5"), model="mini")


@pytest.mark.parametrize("table", HEAD_TABLES)
@pytest.mark.parametrize("model", ["gpt2", "gpt2-small", "openai-community/gpt2", "/models/gpt2"])
def test_a_table_agrees_with_itself(table: str, model: str) -> None:
    frame = paper.compare_heads(detected(table), model, table)
    assert len(frame) == 12
    assert (frame["paper (GPT-2)"] == frame["this run"]).all()
    assert frame["both"].sum() == sum(
        len(row["positive"] + row["negative"]) for row in paper.value(table)
    )
    assert (frame[["only paper", "only this run"]] == 0).all(axis=None)


def test_agreement_is_counted_head_by_head() -> None:
    found = pd.DataFrame(
        {
            "metric": "logit_diff",
            "sign": ["positive", "negative"],
            "heads": [["10.0", "9.9", "5.5"], []],
        }
    )
    frame = paper.compare_heads({"STR": found}, "gpt2").set_index(["corruption", "metric", "sign"])
    columns = ["paper (GPT-2)", "this run", "both", "only paper", "only this run"]
    assert list(frame) == columns
    assert frame.loc["STR", "logit_diff", "positive"].tolist() == [
        "5.5, 7.9, 8.6, 8.10, 9.9",
        "5.5, 9.9, 10.0",
        2,
        3,
        1,
    ]
    assert frame.loc["STR", "logit_diff", "negative"].tolist() == ["10.7, 11.10", "none", 0, 2, 0]
    for row in (frame.loc["GN", "kl", "positive"], frame.loc["STR", "prob", "positive"]):
        assert row["this run"] == "not measured"
        assert row[["both", "only paper", "only this run"]].isna().all()


@pytest.mark.parametrize("model", ["mini", "gpt2-xl", "gpt2-large"])
def test_agreement_with_another_model_is_not_counted(model: str) -> None:
    frame = paper.compare_heads(detected("table5"), model)
    assert list(frame) == ["corruption", "metric", "sign", "paper (GPT-2)", "this run"]


def test_tables_without_heads_of_both_signs_are_refused() -> None:
    with pytest.raises(PatchlibError, match=r"'table2'.*table3, table4, table5$"):
        paper.compare_heads({}, "gpt2", table="table2")


def test_results_over_several_draws_are_refused() -> None:
    found = pd.DataFrame(
        {"metric": "kl", "draw": [0, 1], "sign": "positive", "heads": [["9.9"], ["9.6"]]}
    )
    for compare in (paper.class_counts, paper.compare_heads):
        with pytest.raises(PatchlibError, match=r"2 rows match GN, kl, positive.*draw"):
            compare({"GN": found}, model="gpt2")


def test_a_table_rounds_to_stated_decimals() -> None:
    frame = paper.table(
        [
            ("P(IO)", 0.481, np.float32(0.5), "3"),
            ("layer", 15, np.int64(4), "5"),
            ("logit difference", 3.556, torch.tensor(-0.001), "3"),
            ("ratio", 4.0, xr.DataArray(1.005), "4.1"),
            ("attention", None, float("nan"), "3.2"),
            ("class", "1/3", "0/3", "3.1"),
        ]
    )
    assert frame.to_dict("list") == {
        "quantity": ["P(IO)", "layer", "logit difference", "ratio", "attention", "class"],
        "paper (GPT-2)": ["0.48", "15", "3.56", "4.00", "not given", "1/3"],
        "this run": ["0.50", "4", "0.00", "1.00", "not measured", "0/3"],
        "section": ["3", "5", "3", "4.1", "3.2", "3.1"],
    }
    assert paper.table([("P", 0.25, 0.0015, "3")], decimals=3)["this run"].item() == "0.002"


def test_an_empty_table_has_its_columns() -> None:
    assert list(paper.table([])) == ["quantity", "paper (GPT-2)", "this run", "section"]


def test_the_file_holds_plain_text() -> None:
    assert json.loads(paper.RESULTS.read_text("utf-8")) == paper.load()
    assert "NaN" not in paper.RESULTS.read_text("utf-8")

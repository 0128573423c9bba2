"""The paper's numbers agree with each other, and runs are set beside them fairly."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from patchlib.errors import PatchlibError
from patchlib.paper import tables as paper
from patchlib.sweep.metrics import METRICS


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records go to a folder of their own, not to the project's."""
    monkeypatch.setattr(paper, "RECORDS", tmp_path / "paper")
    return tmp_path / "paper"


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
@pytest.mark.parametrize("model", ["gpt2", "gpt2-small", "openai-community/gpt2"])
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


@pytest.mark.parametrize("model", ["mini", "gpt2-xl", "/models/gpt2", "./gpt2", "someone/gpt2"])
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
    assert list(paper.table([], model="GPT-J"))[1] == "paper (GPT-J)"


def test_the_file_holds_plain_text() -> None:
    assert json.loads(paper.RESULTS.read_text("utf-8")) == paper.load()
    assert "NaN" not in paper.RESULTS.read_text("utf-8")


def patched(
    heads: dict[str, list[str]],
    metrics: tuple[str, ...] = ("logit_diff",),
    model: str = "attn-only-4l",
) -> xr.Dataset:
    """A result in which the named heads of each position stand out."""
    effect = np.zeros((len(metrics), 12, 12, len(heads)))
    for place, names in enumerate(heads.values()):
        for layer, head in (map(int, name.split(".")) for name in names):
            effect[:, layer, head, place] = 1.0
    fx = xr.Dataset(
        {"effect": (("metric", "layer", "head", "position"), effect)},
        coords={"metric": list(metrics), "position": list(heads)},
        attrs={"model": model},
    )
    return fx.assign_coords(layer=range(12), head=range(12))


def read(records: Path, id: str) -> dict[str, Any]:
    return json.loads((records / f"{id}.json").read_text("utf-8"))


def test_table_2_is_compared_by_position(records: Path) -> None:
    fx = patched({"C_def": ["0.5", "0.1"], "last": ["3.0", "3.6", "1.2"]})
    frame = paper.compare({"STR": fx}, "table2")
    assert list(frame) == [
        "corruption", "metric", "position", "paper (attn-only-4l)", "this run",
        "both", "only paper", "only this run",
    ]  # fmt: skip
    assert len(frame) == 12
    assert frame.iloc[0].tolist() == [
        "STR", "logit_diff", "C_def", "0.0, 0.1, 0.5", "0.1, 0.5", 2, 1, 0,
    ]  # fmt: skip
    assert frame.iloc[1].tolist()[3:] == ["2.3, 3.0, 3.5, 3.6", "1.2, 3.0, 3.6", 2, 2, 1]
    assert (frame.iloc[2:]["this run"] == "not measured").all()
    record = read(records, "table2")
    assert record["model"] == "attn-only-4l"
    assert record["values"][1] == {
        "corruption": "STR", "metric": "logit_diff", "position": "last", "heads": "1.2, 3.0, 3.6",
    }  # fmt: skip


def test_one_position_of_table_2_is_enough_but_none_is_not() -> None:
    fx = patched({"last": ["3.0"]}, model="mini").squeeze("position")
    frame = paper.compare({"GN": fx}, "table2").set_index(["corruption", "metric", "position"])
    assert frame.loc["GN", "logit_diff", "last"].tolist()[1:] == ["3.0"]
    assert frame.loc["GN", "logit_diff", "C_def"]["this run"] == "not measured"
    with pytest.raises(PatchlibError, match=r"positions=\['C_def', 'last'\]"):
        paper.compare({"GN": fx.drop_vars("position")}, "table2")


def test_table_1_is_counted_for_gpt2_and_recorded(records: Path) -> None:
    fx = patched({"all": ["9.9", "9.6", "3.0"]}, ("kl",), "gpt2").squeeze("position", drop=True)
    frame = paper.compare({"STR": fx}, "table1")
    assert len(frame) == 12
    here = frame[(frame.corruption == "STR") & (frame.metric == "kl")].set_index("run")
    assert here.loc["paper (GPT-2)", "Name Mover"] == "1/3"
    assert here.loc["this run", ["Name Mover", "Duplicate Token"]].tolist() == ["2/3", "1/2"]
    others = frame[(frame.run == "this run") & (frame.corruption == "GN")]
    assert (others.drop(columns=["corruption", "metric", "run"]) == "not measured").all(axis=None)
    assert frame.iloc[:2]["run"].tolist() == ["paper (GPT-2)", "this run"]
    record = read(records, "table1")
    assert (record["values"][0]["Name Mover"], record["why"]) == ("2/3", "")


def test_table_1_has_a_reason_for_other_models(records: Path) -> None:
    fx = patched({"all": ["9.9"]}, ("kl",), "mini").squeeze("position", drop=True)
    frame = paper.compare({"STR": fx}, "table1")
    assert list(frame) == list(paper.compare({"STR": fx.assign_attrs(model="gpt2")}, "table1"))
    paper.compare({"STR": fx}, "table1")
    here = frame[frame.run == "this run"].drop(columns=["corruption", "metric", "run"])
    assert (here == "not measured").all(axis=None)
    record = read(records, "table1")
    assert record["values"] == []
    assert "GPT-2 small" in record["why"]


def test_results_that_do_not_name_one_model_are_refused() -> None:
    fx = patched({"last": ["3.0"]})
    for given in ({}, {"STR": fx.drop_attrs()}, {"STR": fx, "GN": fx.assign_attrs(model="mini")}):
        with pytest.raises(PatchlibError, match="keep_attrs"):
            paper.compare(given, "table2")


def test_records_keep_numbers_of_every_kind(records: Path) -> None:
    values = {"STR": np.float32(0.5), "GN": xr.DataArray(0.25)}
    paper.record("section_3_2", values, "mini", why="few prompts")
    assert read(records, "section_3_2") == {
        "model": "mini",
        "values": {"STR": 0.5, "GN": 0.25},
        "why": "few prompts",
        "note": "",
    }
    paper.record("figure2", {"GN": {"prob": {"peak_layer": torch.tensor([3, 4])}}}, "mini")
    assert read(records, "figure2")["values"]["GN"]["prob"]["peak_layer"] == [3, 4]
    assert sorted(path.suffix for path in records.iterdir()) == [".json", ".json"]


def test_records_have_the_paper_s_names() -> None:
    with pytest.raises(PatchlibError, match=r"'section_3_2' has no 'ABC'"):
        paper.record("section_3_2", {"ABC": 1.0}, "mini")
    with pytest.raises(PatchlibError, match="no entry 'table9'"):
        paper.record("table9", {}, "mini")

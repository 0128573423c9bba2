"""The results page shows every number of the paper, what was measured, and why the rest was not."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from patchlib.paper import results_page as results
from patchlib.paper import tables as paper


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records and the page go to a folder of their own."""
    monkeypatch.setattr(paper, "RECORDS", tmp_path / "paper")
    monkeypatch.setattr(results, "PAGE", tmp_path / "pages" / "results.html")
    return tmp_path


def tables() -> dict[str, pd.DataFrame]:
    """Writes the page and reads its tables back, by the id of their entry."""
    page = BeautifulSoup(results.write().read_text("utf-8"), "html.parser")
    frames = {}
    for heading in page.find_all("h3"):
        rows = [
            [cell.text for cell in row.find_all(["th", "td"])]
            for row in heading.find_next("table").find_all("tr")
        ]
        frames[heading["id"]] = pd.DataFrame(rows[1:], columns=rows[0])
    return frames


def cells(id: str) -> dict[str, dict[str, str]]:
    """The rows of one entry's table by their quantity."""
    return tables()[id].set_index("quantity").to_dict("index")


def leaves(values: Any) -> Iterator[Any]:
    if isinstance(values, dict | list):
        for inner in values.values() if isinstance(values, dict) else values:
            yield from leaves(inner)
    else:
        yield values


def written(folder: Path, id: str, when: int) -> None:
    """Sets when a record was written."""
    os.utime(folder / "paper" / f"{id}.json", (when, when))


def test_every_entry_and_every_number_appears_without_any_record() -> None:
    found = tables()
    assert sorted(found) == sorted(paper.load())
    for id, entry in paper.load().items():
        shown = found[id].iloc[:, 1].str.cat(sep="; ") + found[id].quantity.str.cat(sep="; ")
        for leaf in leaves(entry["values"]):
            assert str(leaf) in shown, (id, leaf)
        assert entry["source"].removeprefix("paper ") in found[id].columns[1]
        assert (found[id]["this run"] == results.NOBODY).all()
        assert (found[id]["model"] == "").all()


def test_measured_numbers_stand_beside_the_paper_s() -> None:
    values = {
        "GN": {"prob": {"peak": 0.123456, "peak_layer": 3}},
        "STR": {"prob": {"peak": 12345.6}},
    }
    paper.record("figure2", values, "mini")
    found = cells("figure2")
    assert list(found["GN, prob, peak"].values()) == ["0.089", "0.123", "mini"]
    assert found["GN, prob, peak_layer"]["this run"] == "3"
    assert found["STR, prob, peak"]["this run"] == "12300"
    assert found["STR, prob, plateau"] == {
        "paper (read from figure by eye, about ±5 % of the axis)": "0.018, 0.019",
        "this run": results.NOBODY,
        "model": "",
    }


def test_what_is_missing_has_the_record_s_reason() -> None:
    paper.record(
        "section_4_2", {"mean": 0.01, "sd": float("nan")}, "mini", why="head 11.10 is not there"
    )
    found = cells("section_4_2")
    assert found["mean"]["this run"] == "0.01"
    for name in ("sd", "11.10", "threshold"):
        assert (found[name]["this run"], found[name]["model"]) == (
            "head 11.10 is not there",
            "mini",
        )
    paper.record("figure1b", {}, "mini", why="other heads")
    assert {row["this run"] for row in cells("figure1b").values()} == {"other heads"}


@pytest.mark.parametrize(("model", "is_own"), [("gpt2", True), ("mini", False)])
def test_agreement_is_counted_for_the_table_s_own_model(model: str, is_own: bool) -> None:
    row = {
        "corruption": "STR",
        "metric": "logit_diff",
        "sign": "positive",
        "heads": "5.5, 9.9, 10.0",
    }
    none = {"corruption": "STR", "metric": "logit_diff", "sign": "negative", "heads": "none"}
    gone = {"corruption": "GN", "metric": "kl", "sign": "negative", "heads": "not measured"}
    paper._write("table5", {"model": model, "values": [row, none, gone], "why": ""})
    found = cells("table5")
    first = found["STR, logit_diff, positive"]
    assert first["paper (table)"] == "5.5, 7.9, 8.6, 8.10, 9.9"
    assert first["this run"] == "5.5, 9.9, 10.0"
    assert found["GN, kl, negative"]["this run"] == results.NOBODY
    counts = ["both", "only paper", "only this run"]
    if is_own:
        assert [first[name] for name in counts] == ["2", "3", "1"]
        assert [found["STR, logit_diff, negative"][name] for name in counts] == ["0", "2", "0"]
        assert [found["GN, kl, negative"][name] for name in counts] == ["", "", ""]
    else:
        assert not set(counts) & set(first)


def test_positions_and_counts_of_tables_1_and_2_find_their_cells() -> None:
    row = {"corruption": "STR", "metric": "kl", "position": "C_def", "heads": "0.1, 2.2"}
    paper._write("table2", {"model": "attn-only-4l", "values": [row], "why": ""})
    row = {"corruption": "GN", "metric": "kl", "Name Mover": "1/3"}
    paper._write("table1", {"model": "gpt2", "values": [row], "why": ""})
    found = tables()
    assert len(found["table1"]) == 30
    assert len(found["table2"]) == 12
    second = cells("table2")["STR, kl, C_def"]
    assert (second["this run"], second["both"], second["only paper"]) == ("0.1, 2.2", "2", "2")
    first = cells("table1")["GN, kl, Name Mover"]
    assert (first["paper (table)"], first["this run"]) == ("0/3", "1/3")


def test_records_of_another_model_than_the_last_are_marked(folder: Path) -> None:
    paper.record("section_3_2", {"STR": 1.0}, "gpt2")
    paper.record("section_4_2_abc", {"STR": 0.25}, "mini")
    written(folder, "section_3_2", 1000)
    written(folder, "section_4_2_abc", 2000)
    assert cells("section_3_2")["STR"]["model"] == "gpt2 (not the last run's model)"
    assert cells("section_4_2_abc")["STR"]["model"] == "mini"
    assert "the model mini" in results.write().read_text("utf-8")
    written(folder, "section_3_2", 3000)
    assert cells("section_3_2")["STR"]["model"] == "gpt2"


def test_texts_are_escaped() -> None:
    why = "<script>alert('1')</script> & a | b"
    paper.record("section_3_2", {}, "<b>mini</b>", why=why)
    page = results.write()
    text = page.read_text("utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert cells("section_3_2")["STR"]["this run"] == why
    markdown = page.with_suffix(".md").read_text("utf-8")
    assert "<script" not in markdown
    assert "a \\| b" in markdown


def test_a_note_stands_with_its_entry() -> None:
    paper.record("section_3_2", {"STR": 1.0}, "mini", note="of <two> heads")
    page = results.write()
    about = (
        BeautifulSoup(page.read_text("utf-8"), "html.parser").find(id="section_3_2").find_next("p")
    )
    assert about.text.endswith("This run: of <two> heads.")
    assert "This run: of &lt;two&gt; heads." in page.with_suffix(".md").read_text("utf-8")
    assert page.read_text("utf-8").count("This run:") == 1


def test_the_page_stands_alone() -> None:
    page = BeautifulSoup(results.write().read_text("utf-8"), "html.parser")
    assert not page.find_all(["script", "link", "img", "iframe"])
    anchors = {link["href"].removeprefix("#") for link in page.find_all("a")}
    assert anchors == {heading["id"] for heading in page.find_all("h2")}
    assert "url(" not in str(page)
    assert "@import" not in str(page)


def test_sections_come_in_the_paper_s_order() -> None:
    page = BeautifulSoup(results.write().read_text("utf-8"), "html.parser")
    headings = [heading.text for heading in page.find_all("h2")]
    assert headings[:4] == ["Section 2", "Section 3", "Section 3.1", "Section 3.2"]
    assert headings[-1] == "Appendix I"
    assert len(headings) == len(set(headings))


def test_the_markdown_has_the_same_rows() -> None:
    n_rows = sum(len(table) + 2 for table in tables().values())
    lines = results.PAGE.with_suffix(".md").read_text("utf-8").splitlines()
    assert sum(line.startswith("|") for line in lines) == n_rows


def test_records_are_plain_json(folder: Path) -> None:
    paper.record("section_3_2", {"STR": 1.0}, "mini")
    content = json.loads((folder / "paper" / "section_3_2.json").read_text("utf-8"))
    assert content == {"model": "mini", "values": {"STR": 1.0}, "why": "", "note": ""}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.04567, "-0.0457"), (3, "3"), (1.32e14, "1.32e+14"), (2.5e-9, "2.5e-09"),
        ([14, 15], "14, 15"), ([], "none"), ("1/3", "1/3"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: Any, text: str) -> None:
    assert results._run_text(value) == text

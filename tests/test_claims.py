"""Claims: their marks, what they show, what they keep, and that the paper fulfils its own."""

import ast
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import paper_namespace
import pytest
import torch
import xarray as xr

import patchlib as pl
from patchlib.errors import PatchlibError
from patchlib.lessons import claims
from patchlib.lessons.claims import begin, claim, load, merge, predict, recorded

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))
ENTRIES, COMMITTED = load(), recorded()


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run on mini that records elsewhere."""
    monkeypatch.setattr(claims, "RECORDS", tmp_path / "claims")
    monkeypatch.setattr(claims, "BY_MODEL", tmp_path / "claims_by_model.csv")
    monkeypatch.delenv("PATCHLIB_CLAIMS", raising=False)
    begin("mini", "8 of ioi")
    yield tmp_path
    begin("", "")


def put(path: Path, *rows: tuple[str, str, str, str, str]) -> None:
    """Writes rows of claims by model."""
    lines = ["claim,model,status,measured,prompts", *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("yes", [True, np.True_, torch.tensor(True), xr.DataArray(True)])
def test_marks(yes: Any) -> None:
    assert claim("31-8", yes).mark == "✓"
    assert claim("31-8", False).mark == "✗"
    assert claim("31-8", np.False_).mark == "✗"
    assert claim("31-8", False, close=yes).mark == "≈"
    assert claim("42-1", yes, parts=pl.Heads()).mark == "–"
    assert claim("42-1", yes, parts=False, close=True).mark == "–"
    assert claim("42-1", yes, parts=pl.Heads("10.7")).mark == "✓"
    assert claim("the notebook's own", yes).mark == "✓"


@pytest.mark.parametrize("holds", [1, "yes", None, np.nan, pl.Heads("4.6"), np.array([True, True])])
def test_what_is_no_single_truth_is_refused(holds: object) -> None:
    with pytest.raises(PatchlibError, match=r"holds=.*give one True or False, such as bool"):
        claim("31-8", holds)


def test_a_claim_of_another_work_says_whose_it_is(monkeypatch) -> None:
    entry = ENTRIES["31-8"] | {"work": "Wang et al. (2023)", "section": "2.2", "paper": "7"}
    monkeypatch.setattr(claims, "load", lambda: {"31-8": entry})
    found = claim("31-8", True, here=5)
    assert found.section == "Wang et al. (2023), 2.2"
    assert (
        repr(found).splitlines()[-1].strip() == "Wang et al. (2023): 7 (GPT-2 small) · here: here 5"
    )


def test_a_claim_about_the_papers_own_model_is_tested_on_no_other() -> None:
    found = claim("31-12", True, heads=9)
    assert (found.mark, found.here) == ("–", "not tested, it is about heads of GPT-2 small")
    begin("gpt2", "")
    assert claim("31-12", True).mark == "✓"
    begin("gpt2", "")
    assert claim("31-12", False).mark == "✗"


@pytest.mark.parametrize(("first", "mark"), [(True, "✓"), (False, "–")])
def test_a_claim_waits_for_the_one_that_it_needs(first: bool, mark: str) -> None:
    with pytest.raises(PatchlibError, match="claim 31-3 needs claim 31-1: make that one before"):
        claim("31-3", True)
    claim("31-1", first)
    assert claim("31-3", True).mark == mark


def test_too_close_to_call_is_not_enough_for_a_claim_that_needs_it() -> None:
    claim("31-1", True, close=True)
    found = claim("31-3", True)
    assert found.here == "not tested, it means something only where 31-1 holds"


def test_an_unknown_id_is_refused_with_near_ones() -> None:
    for ask in (lambda: claim("31-88", True), lambda: predict("31-88", "none")):
        with pytest.raises(PatchlibError, match=r"no claim '31-88' .*near ones are 31-8, "):
            ask()
    with pytest.raises(PatchlibError, match="'all the same' is no id"):
        predict("all the same", "31-8")


def test_a_claim_is_two_lines(capsys: pytest.CaptureFixture) -> None:
    assert repr(claim("31-10", True, heads=pl.Heads("0.4, 4.6"))) == (
        "✓ 31-10 Some heads are detected by every metric under both corruptions\n"
        "        paper: 5.5, 7.9, 8.6, 10.7 (GPT-2 small) · here: heads 0.4, 4.6"
    )
    assert repr(claim("By hand the same", True)) == "✓ By hand the same"
    assert repr(claim("By hand the same", False, by_hand=0.5)) == (
        "✗ By hand the same\n  here: by hand 0.5"
    )
    predict("6-1", 3)
    assert capsys.readouterr().out == "your guess for 6-1: 3\n"
    assert repr(claim("6-1", False)).splitlines()[1] == (
        "        your guess: 3 · paper: no number (GPT-2 small)"
    )


def test_long_lines_are_wrapped_below_their_beginning() -> None:
    shown = repr(claim("E-2", True, heads=[f"{layer}.{layer}" for layer in range(40)]))
    first, *below = shown.splitlines()
    assert len(below) > 2
    assert all(line.startswith(" " * 8) and line[8] != " " for line in below)
    assert all(len(line) <= 100 for line in [first, *below])
    assert "39.39" in below[-1]


@pytest.mark.parametrize(("holds", "close", "parts", "word"), [
    (True, False, True, "✓ holds"), (False, False, True, "✗ does not hold"),
    (True, True, True, "≈ too close to call"), (True, False, False, "– not tested"),
])  # fmt: skip
def test_a_notebook_says_in_a_word_what_its_colour_says(
    holds: bool, close: bool, parts: bool, word: str
) -> None:
    page = claim("F-2", holds, close=close, parts=parts, found="<none>")._repr_html_()
    assert f">{word}</b> F-2 With S1" in page
    assert ("&lt;none&gt;" in page) is parts
    assert "<none>" not in page


FRAME = pd.DataFrame({"STR": [0.12345, np.nan], "GN": [7, 8]}, index=["prob", "kl"])


@pytest.mark.parametrize(("value", "text"), [
    (0.123456, "0.123"), (np.float32(0.5), "0.5"), (7500.4, "7500"), (-0.0, "0"), (1.9999, "2"),
    (3e-8, "0"), (-3e-8, "0"), (0.000512, "0.000512"), (2.91e12, "2.91e+12"), (float("inf"), "inf"),
    (12345, "12345"), (np.int64(3), "3"), (torch.tensor(0.25), "0.25"), (xr.DataArray(2.0), "2"),
    (True, "yes"), (np.False_, "no"),
    (np.nan, "not measured"), (None, "not measured"), (pd.NA, "not measured"),
    ("as it is", "as it is"), (pl.Heads("4.6 0.4"), "4.6, 0.4"), (pl.Heads(), "none"),
    (pl.Head(4, 6), "4.6"), ([], "none"), ([0.5, None], "0.5, not measured"), ({"b", "a"}, "a, b"),
    (pd.Series({"STR": 0.0103, "GN": 0.2614}), "(STR 0.0103; GN 0.261)"),
    (pd.Series({("GN", "prob", 5): 1.5}), "(GN prob 5 1.5)"),
    ({}, "(none)"), ({"STR": {"prob": 1}}, "(STR (prob 1))"),
    (FRAME, "(prob (STR 0.123; GN 7); kl (STR not measured; GN 8))"),
])  # fmt: skip
def test_measured_values_are_short_texts(value: object, text: str) -> None:
    assert claim("31-8", True, name=value, one=1).here == f"name {text}; one 1"


@pytest.mark.parametrize("value", [np.zeros(3), torch.zeros(2, 2), object(), lambda: 1])
def test_what_cannot_be_shown_is_refused(value: object) -> None:
    with pytest.raises(PatchlibError, match=r"cannot show a \w+ with a claim: give numbers"):
        claim("31-8", True, value=value)


def test_a_claim_of_which_nothing_was_measured_is_not_tested() -> None:
    found = claim("31-8", False, ratio=np.nan, other=None)
    assert (found.mark, found.here) == ("–", "not tested, nothing was measured")
    assert claim("31-8", False, ratio=np.nan, other=1).mark == "✗"


def test_a_run_lists_its_claims_once_each() -> None:
    claim("31-8", True, heads=pl.Heads("4.6"))
    claim("By hand the same", True)
    claim("31-8", False)
    table = pl.claims()
    assert table.columns.tolist() == ["mark", "id", "section", "claim", "paper", "here"]
    assert table[["mark", "id"]].values.tolist() == [["✗", "31-8"], ["✓", ""]]
    assert table.claim[1] == "By hand the same"
    assert ENTRIES["31-8"]["claim"] in repr(table)
    assert ENTRIES["31-8"]["paper"] in table._repr_html_()
    begin("mini", "")
    assert pl.claims().empty


def test_a_claim_is_shown_where_it_cannot_be_recorded(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As in an installation that a class shares, whose folder only its owner writes to."""
    (run / "file").touch()
    monkeypatch.setattr(claims, "RECORDS", run / "file")
    assert claim("31-8", True).mark == "✓"
    assert capsys.readouterr().out.startswith("(31-8 not recorded for the claims by model: ")


def test_records_are_merged_by_claim_and_model(run: Path, capsys: pytest.CaptureFixture) -> None:
    put(
        run / "claims_by_model.csv",
        ("E-1", "gpt2", "✓", "a", "300"), ("31-8", "mini", "✗", "old", "100"),
        ("31-9", "mini", "✓", "kept", "100"), ("0-0", "mini", "✓", "no claim any more", ""),
    )  # fmt: skip
    claim("31-8", True, heads=pl.Heads("4.6"))
    claim("By hand the same", True)
    begin("org/some model", "5 of years")
    claim("E-1", True, close=True, shared=0.5)
    claim("31-9", False, on="another", n=2)
    begin("", "")
    claim("E-2", True)  # before a model was loaded: shown alone
    claims.main()
    expected = [
        ["31-8", "mini", "✓", "heads 4.6", "8 of ioi"],
        ["31-9", "another", "✗", "n 2", ""],
        ["31-9", "mini", "✓", "kept", "100"],
        ["E-1", "gpt2", "✓", "a", "300"],
        ["E-1", "org/some model", "≈", "shared 0.5", "5 of years"],
    ]
    assert recorded().values.tolist() == expected
    assert merge().values.tolist() == expected
    assert capsys.readouterr().out.splitlines() == [
        "31-8 mini ✗ → ✓", "31-9 another new → ✗", "E-1 org/some model new → ≈",
        "another: 0 ✓, 1 ✗, 0 ≈, 0 –", "gpt2: 1 ✓, 0 ✗, 0 ≈, 0 –", "mini: 2 ✓, 0 ✗, 0 ≈, 0 –",
        "org/some model: 0 ✓, 0 ✗, 1 ≈, 0 –",
    ]  # fmt: skip
    files = {path.relative_to(run / "claims").as_posix() for path in run.rglob("*.json")}
    assert files == {"another/31-9.json", "mini/31-8.json", "org_some_model/E-1.json"}


@pytest.mark.parametrize(("before", "now"), [("✓", False), ("✗", True), ("–", True)])
def test_under_strict_another_mark_than_the_recorded_one_fails(
    run: Path, monkeypatch: pytest.MonkeyPatch, before: str, now: bool
) -> None:
    put(run / "claims_by_model.csv", ("31-8", "mini", before, "", ""))
    found = claim("31-8", now).mark
    monkeypatch.setenv("PATCHLIB_CLAIMS", "strict")
    with pytest.raises(PatchlibError) as error:
        claim("31-8", now)
    assert f"31-8 on mini: claims_by_model.csv has {before}, this run found {found}" in str(
        error.value
    )
    assert "python -m patchlib.lessons.claims" in str(error.value)
    # What it found is recorded all the same, so that the command has it.
    record = json.loads((run / "claims" / "mini" / "31-8.json").read_text(encoding="utf-8"))
    assert record["status"] == found
    assert claim("31-8", before == "✓", parts=before != "–").mark == before


def test_under_strict_a_claim_without_a_row_fails_and_a_model_without_rows_does_not(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(run / "claims_by_model.csv", ("31-8", "mini", "✓", "", ""))
    monkeypatch.setenv("PATCHLIB_CLAIMS", "strict")
    with pytest.raises(PatchlibError, match=r"31-9 on mini: .* has no mark, this run found ✓"):
        claim("31-9", True)
    begin("gpt2", "")
    assert claim("31-9", False).mark == "✗"


def test_under_strict_a_notebooks_own_claim_must_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHLIB_CLAIMS", "strict")
    assert claim("By hand the same", False, close=True).mark == "≈"
    assert claim("By hand the same", False, parts=False).mark == "–"
    with pytest.raises(PatchlibError, match="own claim does not hold:\n✗ By hand the same"):
        claim("By hand the same", False)


def test_the_claims_are_whole() -> None:
    papers = {"GPT-2 small", "GPT-2 XL", "GPT-J", "attn-only-4l"}
    seen: set[str] = set()
    for id, entry in ENTRIES.items():
        assert set(entry) - {"work"} == {"section", "claim", "paper", "model", "scope", "needs"}, id
        assert entry["scope"] in ("any", "parts", "own"), id
        assert entry["model"] if "work" in entry else entry["model"] in papers, id
        assert len(entry["claim"]) <= 100, id
        assert not entry["claim"].endswith("."), id
        # What a claim needs comes before it, so that a notebook can follow this order.
        assert entry["needs"] in {None, *seen}, id
        seen.add(id)
    assert len({entry["claim"] for entry in ENTRIES.values()}) == len(ENTRIES)


def test_every_record_is_of_a_claim() -> None:
    assert COMMITTED.columns.tolist() == ["claim", "model", "status", "measured", "prompts"]
    assert set(COMMITTED.claim) <= set(ENTRIES)
    assert set(COMMITTED.status) <= set("✓✗≈–")
    assert not COMMITTED.duplicated(["claim", "model"]).any()


def calls(notebook: Path) -> list[tuple[str, str]]:
    """The first argument of every ``pl.claim`` of a notebook, and the expression of the second."""
    found = []
    for node in ast.walk(ast.parse(notebook.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pl.claim":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            first = ast.literal_eval(node.args[0])
            holds = node.args[1] if len(node.args) > 1 else given["holds"]
            found.append((first, ast.unparse(holds)))
    return found


CALLS = [(notebook, *call) for notebook in NOTEBOOKS for call in calls(notebook)]
# Of other works the numbers are not kept.
PRINTED = [
    (id, holds)
    for _, id, holds in CALLS
    if ENTRIES.get(id, {}).get("paper") and "work" not in ENTRIES[id]
]


@pytest.mark.parametrize(("id", "expression"), PRINTED, ids=[id for id, _ in PRINTED])
def test_the_papers_own_numbers_fulfil_the_claim_of_a_notebook(id: str, expression: str) -> None:
    # A copy, since eval puts the builtins into what it is given.
    assert claims._truth("holds", eval(expression, dict(paper_namespace.namespace())))


def test_no_claim_is_made_twice_and_every_one_exists() -> None:
    ids = Counter(id for _, id, _ in CALLS if id in ENTRIES)
    assert all(count == 1 for count in ids.values()), ids
    for _, id, _ in CALLS:
        claims._is_id(id)  # refuses what looks like an id and is none


def test_a_notebook_makes_at_most_seven_claims() -> None:
    counts = Counter(notebook.name for notebook, _, _ in CALLS)
    assert all(count <= 7 for count in counts.values()), counts


def test_the_replication_table_has_a_row_for_every_claim_and_a_column_for_every_model(
    monkeypatch, tmp_path
):
    kept = tmp_path / "kept.csv"
    kept.write_text("claim,model,status,measured,prompts\n31-8,mini,✗,,\n42-1,smollm2,✓,,\n")
    monkeypatch.setattr(claims, "BY_MODEL", kept)
    table = claims.claims_by_model()
    others = claims.claims_by_model("other works")
    assert {*table.index, *others.index} == {*claims.load()}
    assert others.section["13-1"] == "Wang et al. (2023), 3.1" and "13-1" not in table.index
    assert table.loc["31-8", ["mini", "smollm2"]].tolist() == ["✗", ""]
    assert table.loc["42-1", ["mini", "smollm2"]].tolist() == ["", "✓"]
    assert table.paper["42-1"].endswith("(GPT-2 small)")

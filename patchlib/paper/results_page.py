"""The results page: every number of the paper beside what the notebooks measured."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pandas as pd

from patchlib.files import BUILD, write_whole
from patchlib.heads import Heads
from patchlib.paper import tables as paper

PAGE = BUILD / "pages" / "results.html"
NOBODY = "no notebook of the last run measured it"
# What names a row of a table that is a list of rows.
_LABELS = ("corruption", "metric", "sign", "position")
# What an entry says about the numbers beside it.
_NOTES = ("model", "source")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
h2 { margin-top: 3rem; border-bottom: 2px solid #0072b2; }
h3 { margin: 2rem 0 0; }
p.about { margin: 0.2rem 0 0.5rem; color: #444; }
nav a { margin-right: 1rem; white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.6rem;
  border-bottom: 1px solid #ccc; }
th { background: #eef3f7; }
td.none { color: #767676; }
"""


@dataclass(frozen=True)
class _Record:
    """What one call of `paper.record` or `paper.compare` left.

    Args:
        model: the model.
        values: its measured values.
        why: the reason for whatever is missing.
        note: what to know beside the values that are there.
        is_other: whether a later record comes from another model.
    """

    model: str
    values: Any
    why: str
    note: str
    is_other: bool

    @property
    def is_measured(self) -> bool:
        """True where at least one value is there."""
        return any(not _is_missing(value) for _, value in _leaves(self.values))


def write() -> Path:
    """Writes ``_build/pages/results.html``, and the same as ``results.md`` beside it.

    Every entry of ``data/paper_results.json`` has a table with all its numbers, what the notebooks
    recorded for them with `paper.record` and `paper.compare`, and by which model; where they
    recorded nothing, the reason. Measured values are rounded to three digits.

    Returns:
        The page.

    Example:
        >>> write().name
        'results.html'
    """
    records, last = _records()
    sections: dict[str, list[str]] = {}
    entries = paper.load()
    for id, entry in entries.items():
        sections.setdefault(_first_section(entry["section"]), []).append(id)
    tables = {id: _table(entries[id], records.get(id)) for id in entries}
    about = {id: _about(entries[id], records.get(id)) for id in entries}
    n_measured = sum(record.is_measured for record in records.values())
    opening = (
        "The numbers of Zhang & Nanda (ICLR 2024), as data/paper_results.json holds them, beside "
        f"what the notebooks measured: {n_measured} of {len(entries)} entries. "
        + (f"The last notebook ran with the model {last}. " if last else "")
        + "Agreement between sets of heads is counted only where the run's model is the table's."
    )
    ordered = sorted(sections, key=_order)
    pages = {
        ".html": _as_html(opening, ordered, sections, about, tables),
        ".md": _as_markdown(opening, ordered, sections, about, tables),
    }
    for ending, text in pages.items():
        write = partial(Path.write_text, data=text, encoding="utf-8")
        write_whole(PAGE.with_suffix(ending), write)
    return PAGE


def _records() -> tuple[dict[str, _Record], str | None]:
    """All records by their entry, and the model of the one written last."""
    paths = sorted(paper.RECORDS.glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name))
    contents = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    last = contents[paths[-1].stem]["model"] if paths else None
    return {
        id: _Record(
            model=each["model"],
            values=each["values"],
            why=each["why"],
            note=each.get("note", ""),
            is_other=each["model"] != last,
        )
        for id, each in contents.items()
    }, last


def _first_section(section: str) -> str:
    """The section under which an entry stands that names several: "Appendix B and 4.2"."""
    found = re.match(r"Appendix \w+|[\d.]+", section)
    return found[0] if found else section


def _order(section: str) -> tuple[bool, list[int], str]:
    return section.startswith("Appendix"), [int(n) for n in re.findall(r"\d+", section)], section


def _table(entry: Mapping[str, Any], record: _Record | None) -> pd.DataFrame:
    """One row for each number or set of heads of the paper's entry."""
    here = dict(_leaves(record.values)) if record else {}
    model, why, count = "", NOBODY, False
    if record:
        model = record.model + (" (not the last run's model)" if record.is_other else "")
        why = record.why or NOBODY
        count = paper.is_model(entry["model"], record.model)
    source = f"paper ({entry['source'].removeprefix('paper ')})"
    leaves = dict(_leaves(entry["values"]))
    notes = {path: value for path, value in leaves.items() if path and path[-1] in _NOTES}
    # What was recorded at other places than the paper's numbers is shown too.
    rows = []
    for path in dict.fromkeys((*leaves, *here)):
        if path in notes:
            continue
        value, found = leaves.get(path), here.get(path)
        measured = path in here and not _is_missing(found)
        about = [notes[(*path[:-1], note)] for note in _NOTES if (*path[:-1], note) in notes]
        row = {
            "quantity": ", ".join(path) or "value",
            source: "; ".join([_paper_text(value), *about]),
            "this run": _run_text(found) if measured else why,
            "model": model if measured or (record and record.why) else "",
        }
        if count and _is_heads(value):
            agreed = paper.agreement(Heads(value), Heads(found or ()) if measured else None)
            row |= {name: "" if n is None else str(n) for name, n in agreed.items()}
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All numbers, texts and lists of heads, each with the names that lead to it.

    A table is a list of rows: what names a row leads to its cells. A row of a record that has
    ``heads`` names its cell in its last label, ``sign`` or ``position``.
    """
    if isinstance(values, Mapping):
        for name, inner in values.items():
            yield from _leaves(inner, (*path, str(name)))
    elif isinstance(values, list) and values and all(isinstance(row, Mapping) for row in values):
        for row in values:
            labels = tuple(str(row[name]) for name in _LABELS if name in row)
            for name, inner in row.items():
                if name == "heads":
                    yield from _leaves(inner, (*path, *labels))
                elif name not in _LABELS:
                    yield from _leaves(inner, (*path, *labels, str(name)))
    else:
        yield path, values


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value == "not measured"


def _is_heads(value: Any) -> TypeGuard[list[str]]:
    """True for a list of heads (text), and not for one of numbers."""
    return isinstance(value, list) and all(isinstance(head, str) for head in value)


def _paper_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not given" if value is None else str(value)


def _run_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_run_text, value)) or "none"
    if isinstance(value, float) and not 1e-6 < abs(value) < 1e6 and value:
        return f"{value:.3g}"
    if isinstance(value, float):
        return np.format_float_positional(value, precision=3, fractional=False, trim="-")
    return str(value)


def _about(entry: Mapping[str, Any], record: _Record | None) -> str:
    about = f"{_heading(entry['section'])}. Model: {entry['model']}. Unit: {entry['unit']}."
    return f"{about} This run: {record.note}." if record and record.note else about


def _as_html(
    opening: str,
    ordered: list[str],
    sections: Mapping[str, list[str]],
    about: Mapping[str, str],
    tables: Mapping[str, pd.DataFrame],
) -> str:
    anchors = {section: f"section-{number}" for number, section in enumerate(ordered)}
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        "<title>The paper beside the notebooks</title>",
        f"<style>{_STYLE}</style>\n</head>\n<body>",
        "<h1>The paper beside the notebooks</h1>",
        f"<p>{html.escape(opening)}</p>\n<nav>",
    ]
    parts += [f'<a href="#{anchors[each]}">{html.escape(_heading(each))}</a>' for each in ordered]
    parts.append("</nav>")
    for section in ordered:
        parts.append(f'<h2 id="{anchors[section]}">{html.escape(_heading(section))}</h2>')
        for id in sections[section]:
            parts.append(f'<h3 id="{html.escape(id)}">{html.escape(id)}</h3>')
            parts.append(f'<p class="about">{html.escape(about[id])}</p>')
            with pd.option_context("display.max_colwidth", None):
                table = tables[id].to_html(index=False, border=0, escape=True)
            parts.append(table.replace(f"<td>{NOBODY}", f'<td class="none">{NOBODY}'))
    return "\n".join([*parts, "</body>\n</html>\n"])


def _as_markdown(
    opening: str,
    ordered: list[str],
    sections: Mapping[str, list[str]],
    about: Mapping[str, str],
    tables: Mapping[str, pd.DataFrame],
) -> str:
    def line(cells: list[str]) -> str:
        safe = [html.escape(cell, quote=False).replace("|", "\\|") for cell in cells]
        return f"| {' | '.join(safe)} |"

    parts = ["# The paper beside the notebooks", html.escape(opening, quote=False)]
    for section in ordered:
        parts.append(f"## {_heading(section)}")
        for id in sections[section]:
            frame = tables[id]
            parts += [f"### {id}", html.escape(about[id], quote=False)]
            rows = [list(frame), ["---"] * len(frame.columns), *frame.values.tolist()]
            parts.append("\n".join(map(line, rows)))
    return "\n\n".join(parts) + "\n"


def _heading(section: str) -> str:
    return section if section.startswith("Appendix") else f"Section {section}"

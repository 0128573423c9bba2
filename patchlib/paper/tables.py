"""The paper's tables and numbers as data, to set a run beside them.

``data/paper_results.json`` holds them. Each entry says where in the paper it stands, how it was
read (text, table, or a figure by eye), for which model it holds and in which unit; metrics and
corruptions have the names that `patchlib.patch` uses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral
from typing import Any

import pandas as pd
import xarray as xr

from patchlib.errors import PatchlibError
from patchlib.files import BUILD, DATA, write_whole
from patchlib.heads import Heads
from patchlib.measure.detection import detect

RESULTS = DATA / "paper_results.json"
RECORDS = BUILD / "paper"
_SIGNS = ("positive", "negative")
_NOT_MEASURED = "not measured"
# The names by which pl.load_model takes the models whose heads the paper lists from the hub.
_MODELS = {
    "GPT-2 small": ("gpt2", "gpt2-small", "openai-community/gpt2"),
    "attn-only-4l": ("attn-only-4l", "NeelNanda/Attn_Only_4L512W_C4_Code"),
}
_POSITIONS = ("C_def", "last")


def load() -> dict[str, dict[str, Any]]:
    """Reads all of the paper's results.

    Returns:
        For each id (``"table5"``, ``"section_3_2"``, ...) a dict with ``section``, ``source``,
        ``model``, ``unit`` and ``values``.

    Example:
        >>> load()["section_3_2"]["values"]
        {'STR': 1.04, 'GN': 0.49}
    """
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def value(id: str) -> Any:
    """The values of one entry; `load` also gives their source, model and unit.

    Args:
        id: the entry, such as ``"table1"``, ``"figure3a"`` or ``"section_3_2"``.

    Raises:
        PatchlibError: for an id that does not exist.

    Example:
        >>> value("ioi_baselines")["clean"]
        0.481
    """
    entries = load()
    if id not in entries:
        raise PatchlibError(f"no entry {id!r}: allowed are {', '.join(entries)}")
    return entries[id]["values"]


def class_counts(found: Mapping[str, pd.DataFrame], model: str) -> pd.DataFrame:
    """Counts the detected heads of each class of the circuit, as Table 1 does.

    A class counts its main heads alone, not the fuzzy ones. Negative Name Movers count where they
    were detected as negative, all others where they were detected as positive.

    Args:
        found: results of `patchlib.detect` on heads, by the name of their corruption (``"STR"``,
            ``"GN"``).
        model: the model they come from, as in ``fx.attrs["model"]``. The classes are those that
            Wang et al. found in GPT-2 small, and say nothing about another model's heads.

    Returns:
        One row for each corruption and metric that is in Table 1 and in ``found``, in the table's
        order; a column for each class, with detected / class size, such as ``"3/4"``.

    Raises:
        PatchlibError: for another model than GPT-2 small, and for results over several draws or
            positions.

    Example:
        >>> import pandas as pd
        >>> found = pd.DataFrame({"metric": "kl", "sign": ["positive", "negative"],
        ...                       "heads": [["9.9", "8.6"], ["10.7"]]})
        >>> counts = class_counts({"STR": found}, model="gpt2")
        >>> counts["Name Mover"].item(), counts["Negative Name Mover"].item()
        ('1/3', '1/2')
    """
    if not is_model("GPT-2 small", model):
        raise PatchlibError(
            f"model={model!r}: the head classes are those of GPT-2 small, and allowed is "
            f"{_MODELS['GPT-2 small'][0]}, loaded from the hub by name. What another model's heads "
            "do must be found out anew, for example with pl.attention_to and pl.copying_score"
        )
    circuit = value("ioi_circuit")
    rows = []
    for row in value("table1"):
        corruption, metric = row["corruption"], row["metric"]
        heads = {sign: _heads(found, corruption, metric, sign) for sign in _SIGNS}
        if None in heads.values():
            continue
        counts = {
            name: f"{len(set(circuit[name]['main']) & set(heads[circuit[name]['sign']] or []))}"
            f"/{len(circuit[name]['main'])}"
            for name in row
            if name in circuit
        }
        rows.append({"corruption": corruption, "metric": metric} | counts)
    return pd.DataFrame(rows, columns=list(value("table1")[0]))


def compare_heads(
    found: Mapping[str, pd.DataFrame], model: str, table: str = "table5"
) -> pd.DataFrame:
    """Sets the detected heads beside those of one of the paper's tables.

    Head numbers mean nothing across models, so agreement is counted only where the run's model is
    the table's.

    Args:
        found: results of `patchlib.detect` on heads, by the name of their corruption (``"STR"``,
            ``"GN"``).
        model: the model they come from, as in ``fx.attrs["model"]``.
        table: ``"table3"`` (greater-than), ``"table4"`` (IOI, corrupting S1 and IO) or
            ``"table5"`` (IOI, corrupting S2), all of GPT-2 small.

    Returns:
        One row for each corruption, metric and sign of the table; the columns ``corruption``,
        ``metric``, ``sign``, ``paper (GPT-2)`` and ``this run``, with heads in the order of their
        layers, ``"none"`` where none was detected and ``"not measured"`` where the run has no such
        corruption or metric. For the table's own model also the numbers of heads ``both``,
        ``only paper`` and ``only this run``, missing where nothing was measured.

    Raises:
        PatchlibError: for a table that does not list heads of both signs, and for results over
            several draws or positions.

    Example:
        >>> import pandas as pd
        >>> found = pd.DataFrame({"metric": "prob", "sign": ["positive", "negative"],
        ...                       "heads": [["3.1"], []]})
        >>> compare_heads({"STR": found}, model="mini", table="table4").iloc[2].tolist()
        ['STR', 'prob', 'positive', '9.9', '3.1']
    """
    entries = load()
    tables = [id for id, entry in entries.items() if _lists_heads(entry["values"])]
    if table not in tables:
        raise PatchlibError(f"table={table!r}: allowed are {', '.join(tables)}")
    count = is_model(entries[table]["model"], model)
    rows = []
    for row in entries[table]["values"]:
        for sign in _SIGNS:
            paper, here = row[sign], _heads(found, row["corruption"], row["metric"], sign)
            line = {
                "corruption": row["corruption"],
                "metric": row["metric"],
                "sign": sign,
                "paper (GPT-2)": _listed(paper),
                "this run": _NOT_MEASURED if here is None else _listed(here),
            }
            if count:
                line |= agreement(paper, here)
            rows.append(line)
    return _whole_numbers(rows)


def _compare_positions(found: Mapping[str, pd.DataFrame], model: str) -> pd.DataFrame:
    """`compare_heads` for Table 2, which lists positive heads at two positions."""
    entry = load()["table2"]
    rows = []
    for row in entry["values"]:
        for position in _POSITIONS:
            corruption, metric = row["corruption"], row["metric"]
            at = {
                name: frame[frame.position == position].drop(columns="position")
                for name, frame in found.items()
            }
            paper, here = row[position], _heads(at, corruption, metric, "positive")
            line = {
                "corruption": corruption,
                "metric": metric,
                "position": position,
                "paper (attn-only-4l)": _listed(paper),
                "this run": _NOT_MEASURED if here is None else _listed(here),
            }
            if is_model(entry["model"], model):
                line |= agreement(paper, here)
            rows.append(line)
    return _whole_numbers(rows)


def _whole_numbers(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    counts = [name for name in agreement([], None) if name in frame]
    return frame.astype({name: "Int64" for name in counts})


def compare(fx: Mapping[str, xr.Dataset], table: str) -> pd.DataFrame:
    """Sets detected heads beside one of the paper's tables, and records them for the results page.

    Args:
        fx: results of `patchlib.patch` on heads by the name of their corruption (``"STR"``,
            ``"GN"``), as means over prompts. For ``"table2"`` they were patched at named positions,
            each separately, ``"C_def"`` and ``"last"`` among them; all of them share one mean and
            standard deviation, so that the paper's rule takes every position.
        table: ``"table1"`` to ``"table5"``.

    Returns:
        For ``"table3"`` to ``"table5"`` what `compare_heads` gives. For ``"table2"`` the same with
        a column ``position`` in place of ``sign``: Table 2 lists positive heads alone. For
        ``"table1"`` two rows for each corruption and metric, the paper's counts and those of this
        run as `class_counts` gives them; ``"not measured"`` in all of the latter where the model
        is not GPT-2 small, whose head classes the table counts.

    Raises:
        PatchlibError: for a table that does not list heads, results that do not say of which one
            model they are, results without positions for ``"table2"``, and as `patchlib.detect`
            does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.patch(model, pairs, corruption=pl.STR("S1+IO"), progress=False)
        >>> compare({"STR": fx}, "table4").columns[:3].tolist()
        ['corruption', 'metric', 'sign']
    """
    model = _one_model(fx)
    # Table 2 is about pairs of position and head, which share one threshold.
    shared = ["position"] if table == "table2" else []
    found = {
        name: detect(_with_positions(result, table), shared=shared) for name, result in fx.items()
    }
    if table == "table1":
        return _compare_counts(found, model)
    if table == "table2":
        frame, names = _compare_positions(found, model), ("corruption", "metric", "position")
    else:
        frame, names = compare_heads(found, model, table), ("corruption", "metric", "sign")
    measured = [
        {name: row[name] for name in names} | {"heads": row["this run"]}
        for row in frame.to_dict("records")
    ]
    _write(table, {"model": model, "values": measured, "why": ""})
    return frame


def _compare_counts(found: Mapping[str, pd.DataFrame], model: str) -> pd.DataFrame:
    """`compare` for Table 1."""
    paper = pd.DataFrame(value("table1"))
    names, why = ["corruption", "metric"], ""
    if is_model("GPT-2 small", model):
        counts = class_counts(found, model)
    else:
        counts = paper[:0]
        why = (
            "the head classes are those of GPT-2 small, and head numbers mean nothing in another "
            "model"
        )
    _write("table1", {"model": model, "values": counts.to_dict("records"), "why": why})
    here = paper[names].merge(counts, on=names, how="left").fillna(_NOT_MEASURED)
    sides = {"paper (GPT-2)": paper, "this run": here}
    both = pd.concat([side.assign(run=name) for name, side in sides.items()])
    both = both.sort_index(kind="stable").reset_index(drop=True)
    return both[[*names, "run", *(name for name in paper if name not in names)]]


def _one_model(fx: Mapping[str, xr.Dataset]) -> str:
    models = sorted({str(result.attrs.get("model")) for result in fx.values()})
    if len(models) != 1 or models == ["None"]:
        raise PatchlibError(
            f"these {len(fx)} results name {len(models)} models ({', '.join(models)}): give "
            "results of patchlib.patch from one model; where you average, keep_attrs=True keeps "
            "the name"
        )
    return models[0]


def _with_positions(fx: xr.Dataset, table: str) -> xr.Dataset:
    """The result with a dimension for the position where the table needs one."""
    if table != "table2" or "position" in fx.dims:
        return fx
    if "position" in fx.coords:
        return fx.expand_dims("position")
    raise PatchlibError(
        "table2 lists heads by position, and this result has none: patch with "
        "positions=['C_def', 'last']"
    )


def record(id: str, values: Any, model: str, why: str = "", note: str = "") -> None:
    """Keeps what a run measured beside one of the paper's entries, for the results page.

    Args:
        id: the entry, as in `value`.
        values: numbers or text in the entry's own nesting, as far as they were measured.
        model: the model, as in ``fx.attrs["model"]``.
        why: the reason for whatever is missing.
        note: what a reader has to know beside the measured values, without a full stop.

    Raises:
        PatchlibError: for an unknown entry, and for a name that the entry does not have.
    """
    unknown = _unknown(values, value(id))
    if unknown:
        raise PatchlibError(f"entry {id!r} has no {', '.join(unknown)}: use the paper's own names")
    _write(id, {"model": model, "values": values, "why": why, "note": note})


def _unknown(here: Any, paper: Any) -> list[str]:
    if not isinstance(here, dict):
        return []
    if not isinstance(paper, dict):
        return list(map(repr, here))
    new = [repr(name) for name in here if str(name) not in paper]
    for name in here:
        if str(name) in paper:
            new += _unknown(here[name], paper[str(name)])
    return new


def _write(id: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, default=_plain) + "\n"
    write_whole(RECORDS / f"{id}.json", lambda part: part.write_text(text, encoding="utf-8"))


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy, xarray and torch as JSON holds them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "values"):
        return value.values.tolist()
    return float(value)


def table(
    rows: Iterable[tuple[str, Any, Any, str]], decimals: int = 2, model: str = "GPT-2"
) -> pd.DataFrame:
    """A table of the paper's numbers beside those of this run.

    Numbers become text of a stated number of decimals, so that a run on another machine, which
    differs in digits of no meaning, gives the same table. Whole numbers and text stay as they are.

    Args:
        rows: for each quantity its name with the unit, the paper's value, this run's value, and
            the section. NaN and None stand for a value that there is not.
        decimals: how many decimals numbers are rounded to.
        model: the paper's model.

    Returns:
        The columns ``quantity``, ``paper (GPT-2)`` with the model's name, ``this run`` and
        ``section``, all text.

    Example:
        >>> row = table([("P(IO), clean", 0.481, 0.5, "Appendix B")]).iloc[0]
        >>> row["paper (GPT-2)"], row["this run"]
        ('0.48', '0.50')
    """
    theirs = f"paper ({model})"
    return pd.DataFrame(
        [
            {
                "quantity": quantity,
                theirs: _text(paper, decimals, "not given"),
                "this run": _text(here, decimals, _NOT_MEASURED),
                "section": section,
            }
            for quantity, paper, here, section in rows
        ],
        columns=["quantity", theirs, "this run", "section"],
    )


def is_model(paper: str, model: str) -> bool:
    """True where a run's model is the one that the paper calls ``paper``.

    That is a model which `pl.load_model` took from the hub by its name. A folder goes by its full
    path and never counts, whatever it is called: nobody has compared its weights.

    Args:
        paper: the name in the paper's entry, such as ``"GPT-2 small"``.
        model: the model, as in ``fx.attrs["model"]``.

    Example:
        >>> is_model("GPT-2 small", "openai-community/gpt2"), is_model("GPT-2 small", "mini")
        (True, False)
    """
    return model in _MODELS.get(paper, ())


def _lists_heads(values: Any) -> bool:
    return isinstance(values, list) and all(sign in values[0] for sign in _SIGNS)


def _heads(
    found: Mapping[str, pd.DataFrame], corruption: str, metric: str, sign: str
) -> list[str] | None:
    """The detected heads of one row, or None where the run did not measure it."""
    if corruption not in found:
        return None
    frame = found[corruption]
    rows = frame[(frame.metric == metric) & (frame.sign == sign)]
    if len(rows) > 1:
        raise PatchlibError(
            f"{len(rows)} rows match {corruption}, {metric}, {sign}: allowed is one, so select one "
            "draw or one position before pl.detect"
        )
    if rows.empty or ("threshold" in rows and rows.threshold.isna().any()):
        return None
    return list(rows.heads.iloc[0])


def agreement(paper: Collection[object], here: Collection[object] | None) -> dict[str, int | None]:
    """Counts the heads that two lists have in common, and those of one list alone.

    Args:
        paper: the paper's heads.
        here: this run's, or None where nothing was measured.

    Example:
        >>> agreement(["9.9", "9.6"], ["9.9", "8.6", "7.3"])
        {'both': 1, 'only paper': 1, 'only this run': 2}
    """
    if here is None:
        return {"both": None, "only paper": None, "only this run": None}
    both = len(set(paper) & set(here))
    return {
        "both": both,
        "only paper": len(paper) - both,
        "only this run": len(here) - both,
    }


def _listed(heads: list[str]) -> str:
    # The order of effects, unlike that of layers, may differ between machines.
    return str(Heads(heads).by_layer)


def _text(value: Any, decimals: int, missing: str) -> str:
    # Numbers of numpy, xarray and torch.
    value = value.item() if hasattr(value, "item") else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return missing
    if isinstance(value, str | Integral):
        return str(value)
    # "z" turns -0.00 into 0.00.
    return f"{value:z.{decimals}f}"

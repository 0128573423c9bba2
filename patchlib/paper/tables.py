"""The paper's tables and numbers as data, to set a run beside them.

``data/paper_results.json`` holds them. Each entry says where in the paper it stands, how it was
read (text, table, or a figure by eye), for which model it holds and in which unit; metrics and
corruptions have the names that `patchlib.patch` uses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from patchlib.errors import PatchlibError
from patchlib.files import DATA
from patchlib.measure.sweeps import SIGNS

RESULTS = DATA / "paper_results.json"
# The names by which pl.load_model takes the models whose heads the paper lists from the hub.
_MODELS = {
    "GPT-2 small": ("gpt2", "gpt2-small", "openai-community/gpt2"),
    "attn-only-4l": ("attn-only-4l", "NeelNanda/Attn_Only_4L512W_C4_Code"),
}


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
        heads = {sign: _heads(found, corruption, metric, sign) for sign in SIGNS}
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

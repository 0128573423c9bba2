"""The paper's tables and numbers as data, to set a run beside them.

``data/paper_results.json`` holds them. Each entry says where in the paper it stands, how it was
read (text, table, or a figure by eye), for which model it holds and in which unit; metrics and
corruptions have the names that `patchlib.patch` uses.
"""

from __future__ import annotations

import json
from typing import Any

from patchlib.errors import PatchlibError
from patchlib.files import DATA

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

"""What the paper and works beside it claim, each a line that is tested on the loaded model.

``data/claims.json`` holds the claims, ``data/claims_by_model.csv`` what models say to them.
``python -m patchlib.lessons.claims`` puts into it what the latest runs recorded.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import pandas as pd

from patchlib import paper
from patchlib.errors import PatchlibError
from patchlib.files import BUILD, DATA, IS_CHECKOUT, write_whole
from patchlib.heads import Head, Heads

CLAIMS = DATA / "claims.json"
BY_MODEL = DATA / "claims_by_model.csv"
RECORDS = BUILD / "claims"

_COLUMNS = ["claim", "model", "status", "measured", "prompts"]
_NOT_MEASURED = "not measured"
# The word and the colour of each mark; the colours can be read on white and on black.
_MARKS = {
    "✓": ("holds", "#16855b"),
    "✗": ("does not hold", "#d1452b"),
    "≈": ("too close to call", "#a16a00"),
    "–": ("not tested", "#767676"),
}
_OWN: dict[str, Any] = {
    "section": "",
    "claim": "",
    "paper": None,
    "model": "",
    "scope": "any",
    "needs": None,
}


@dataclass(frozen=True)
class Claim:
    """A claim and what this run says to it; notebooks show it as two lines.

    Attributes:
        mark: ✓ holds, ✗ does not, ≈ too close to call, – cannot be tested on this model.
        id: as in ``data/claims.json``; empty for a notebook's own claim.
        section: where the paper makes it.
        sentence: what is claimed.
        paper: the paper's number, and its model.
        here: what was measured, or why the claim was not tested.
        guess: the reader's, from `predict`.
        work: who claims it, where not the paper.
    """

    mark: str
    id: str
    section: str
    sentence: str
    paper: str
    here: str
    guess: str
    work: str = "paper"

    def __repr__(self) -> str:
        indent = " " * (8 if self.id else 2)
        first = f"{self.mark} {self.id:<5} " if self.id else f"{self.mark} "
        lines = [first + self.sentence]
        if self._below():
            lines.append(indent + self._below())
        return "\n".join(
            textwrap.fill(line, 100, subsequent_indent=indent, break_on_hyphens=False)
            for line in lines
        )

    def _repr_html_(self) -> str:
        word, colour = _MARKS[self.mark]
        mark = f'<b style="color:{colour}">{self.mark} {word}</b>'
        text = html.escape(f"{self.id} {self.sentence}".strip())
        below = html.escape(self._below())
        return f"<div>{mark} {text}" + (f"<br><small>{below}</small>" if below else "") + "</div>"

    def _below(self) -> str:
        parts = {"your guess": self.guess, self.work: self.paper, "here": self.here}
        return " · ".join(f"{name}: {text}" for name, text in parts.items() if text)


@dataclass
class _Run:
    """What has been said since `begin`."""

    model: str = ""
    prompts: str = ""
    claims: dict[str, Claim] = field(default_factory=dict)
    guesses: dict[str, str] = field(default_factory=dict)


_run = _Run()


def begin(model: str, prompts: str) -> None:
    """Begins a run: the claims that follow are about this model and these prompts.

    Claims that are made before are shown, and not recorded.

    Args:
        model: its name, as in ``fx.attrs["model"]``.
        prompts: how many and of which kind, such as ``"500 prompts of ioi"``.
    """
    global _run
    _run = _Run(model, prompts)


def running() -> str:
    """The name of the model that this run is about; empty before `begin`."""
    return _run.model


def load() -> dict[str, dict[str, Any]]:
    """Reads what the paper claims, in the order of its sections.

    Returns:
        For each id ``section``; ``claim``, a sentence; ``paper``, its number, or None where it
        gives none; ``model``, for which it makes the claim; ``scope``: ``"any"`` model that does
        the task, ``"parts"`` where only models that have the named heads can be tested, ``"own"``
        where only the paper's model can; ``needs``, the claim without which this one means
        nothing, or None. A claim of another work has ``work``, its authors and year, too.

    Example:
        >>> load()["31-10"]["paper"]
        '5.5, 7.9, 8.6, 10.7'
    """
    entries: dict[str, dict[str, Any]] = json.loads(CLAIMS.read_text(encoding="utf-8"))
    return entries


def claim(
    id_or_text: str,
    holds: object,
    *,
    close: object = False,
    parts: object = True,
    on: str = "",
    **measured: Any,
) -> Claim:
    """Says whether a claim holds on the loaded model, and records it.

    A run never fails for a claim that does not hold. With ``PATCHLIB_CLAIMS=strict`` in the
    environment it does wherever the mark is another than ``data/claims_by_model.csv`` has for this
    model (if it has any for it), in either direction, and where a notebook's own claim is ✗.

    Args:
        id_or_text: the id of one of the paper's claims, or a notebook's own claim as a sentence.
        holds: whether it does.
        close: True where the measured value is too close to the bound to tell, since its interval
            holds the bound.
        parts: the heads, or whatever else the claim is about; empty or False where the model has
            none, so that there is nothing to test.
        on: the name of the model that was measured, where not the one that the run is about.
        measured: what the claim rests on, by name: numbers, texts, `Heads`, dicts, Series or small
            DataFrames. NaN and None are what was not measured; where all are, the claim was not
            tested.

    Raises:
        PatchlibError: for an unknown id, a claim that needs one which was not made before it,
            ``holds`` that is neither true nor false, and values that cannot be shown.

    Example:
        >>> claim("The map and the sum by hand agree", 0.251 < 0.26, by_hand=0.2512, map=0.2509)
        ✓ The map and the sum by hand agree
          here: by hand 0.251; map 0.251
    """
    id = id_or_text if _is_id(id_or_text) else ""
    entry = load()[id] if id else _OWN
    texts = {name.replace("_", " "): _nested(value) for name, value in measured.items()}
    mark = "≈" if _truth("close", close) else "✓" if _truth("holds", holds) else "✗"
    model = on or _run.model
    why = _why_untested(id, entry, parts, model)
    if not why and texts and set(texts.values()) == {_NOT_MEASURED}:
        why = "nothing was measured"
    shown = "; ".join(f"{name} {text}" for name, text in texts.items())
    result = Claim(
        mark="–" if why else mark,
        id=id,
        section=_where(entry),
        sentence=entry["claim"] or id_or_text,
        paper=_printed(entry) if id else "",
        here=f"not tested, {why}" if why else shown,
        guess=_run.guesses.get(id, ""),
        work=entry.get("work", "paper"),
    )
    _run.claims[id_or_text] = result
    if id and _run.model:
        _record(result, model)
    if os.environ.get("PATCHLIB_CLAIMS") == "strict":
        _hold_to_record(result, model)
    return result


def predict(id: str, guess: object) -> None:
    """Keeps a guess about one of the paper's claims, which `claim` shows again.

    Args:
        id: the claim's.
        guess: whatever can be shown, such as ``"all the same"``; ``...`` for none yet.

    Raises:
        PatchlibError: for an unknown id, and for what cannot be shown.

    Example:
        >>> predict("31-8", "all the same")
        your guess for 31-8: all the same
    """
    if not _is_id(id):
        raise PatchlibError(f"{id!r} is no id of a claim: give one such as '31-8'")
    if guess is ...:
        print(f"– {id}  no guess yet: put yours in place of ...")
        return
    _run.guesses[id] = _text(guess)
    print(f"your guess for {id}: {_run.guesses[id]}")


class _Table(pd.DataFrame):
    """A table whose sentences are shown whole."""

    def __repr__(self) -> str:
        return self.to_string(index=False)

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return self.to_html(index=False)


def claims() -> pd.DataFrame:
    """All claims of this run, in the order in which they were made.

    Returns:
        The columns ``mark``, ``id``, ``section``, ``claim``, ``paper`` and ``here``, all text.

    Example:
        >>> list(claims())
        ['mark', 'id', 'section', 'claim', 'paper', 'here']
    """
    rows = [(c.mark, c.id, c.section, c.sentence, c.paper, c.here) for c in _run.claims.values()]
    return _Table(rows, columns=["mark", "id", "section", "claim", "paper", "here"])


def recorded() -> pd.DataFrame:
    """What models say to the claims, as the project keeps it.

    Returns:
        The columns ``claim`` (id), ``model``, ``status`` (mark), ``measured`` and ``prompts``, all
        text; a row for each claim and model.
    """
    if not BY_MODEL.exists():
        return pd.DataFrame(columns=_COLUMNS)
    return pd.read_csv(BY_MODEL, dtype=str, keep_default_na=False)


def claims_by_model(of: str = "paper") -> pd.DataFrame:
    """The replication table: each claim of the paper, and its mark on every model that was tested.

    Args:
        of: ``"paper"``, or ``"other works"`` for the claims on methods that the paper lacks.

    Returns:
        A row for each claim by its id: ``section``, ``claim``, ``paper`` (its number and model),
        and a column of marks for each model that any of these claims was tested on, empty where
        one was not.

    Raises:
        PatchlibError: for another ``of``.

    Example:
        >>> list(claims_by_model().columns[:3])
        ['section', 'claim', 'paper']
    """
    if of not in ("paper", "other works"):
        raise PatchlibError(f"of={of!r}: allowed are 'paper' and 'other works'")
    rows = [
        (id, _where(each), each["claim"], _printed(each))
        for id, each in load().items()
        if ("work" in each) == (of != "paper")
    ]
    table = _Table(rows, columns=["id", "section", "claim", "paper"]).set_index("id")
    marks = recorded().pivot(index="claim", columns="model", values="status")
    marks = marks.reindex(table.index).dropna(axis=1, how="all")
    return table.join(marks.rename_axis(None, axis=1)).fillna("")


def merge() -> pd.DataFrame:
    """Puts what runs recorded in place of the same claims and models in `recorded`.

    Rows of other models and claims stay; rows of claims that there are no longer go.

    Returns:
        The new table, by claim in the paper's order, then by model.
    """
    order = {id: place for place, id in enumerate(load())}
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*/*.json"))
    ]
    both = pd.concat([recorded(), pd.DataFrame(records, columns=_COLUMNS)])
    both = both[both.claim.isin(order)].drop_duplicates(["claim", "model"], keep="last")
    both = both.sort_values("model")
    both = both.sort_values("claim", key=lambda id: id.map(order), kind="stable")
    write_whole(
        BY_MODEL,
        lambda part: both.to_csv(part, index=False, encoding="utf-8", lineterminator="\n"),
    )
    return both


def main() -> None:
    """Merges the records and prints which marks changed."""
    if not IS_CHECKOUT:
        raise SystemExit("the claims by model are in patchlib's repository: run this in a clone")
    key = ["claim", "model"]
    before = recorded().set_index(key).status
    after = merge().set_index(key).status
    for at, mark in after.items():
        if before.get(at) != mark:
            print(*at, before.get(at, "new"), "→", mark)
    for model, marks in after.groupby(level="model"):
        print(f"{model}:", ", ".join(f"{(marks == mark).sum()} {mark}" for mark in _MARKS))


def _is_id(text: str) -> bool:
    """True for an id, False for a sentence; what only looks like an id is refused."""
    ids = load()
    if text not in ids and re.fullmatch(r"\w{1,3}-\w{1,3}", text):
        near = get_close_matches(text, ids, cutoff=0.4) or list(ids)
        raise PatchlibError(
            f"no claim {text!r} in {CLAIMS.name}: near ones are {', '.join(near)}. A notebook's "
            "own claim is a sentence in place of the id"
        )
    return text in ids


def _where(entry: Mapping[str, Any]) -> str:
    """The section, after the name of a work that is not the paper."""
    return ", ".join(filter(None, (entry.get("work"), entry["section"])))


def _printed(entry: Mapping[str, Any]) -> str:
    """The number that is claimed and its model."""
    return f"{entry['paper'] or 'no number'} ({entry['model']})"


def _truth(name: str, value: Any) -> bool:
    """A single truth, as Python, NumPy, xarray or torch have it."""
    value = _plain(value)
    if not isinstance(value, bool):
        raise PatchlibError(
            f"{name}={value!r}: give one True or False, such as bool(heads) or all(...)"
        )
    return value


def _why_untested(id: str, entry: Mapping[str, Any], parts: Any, model: str) -> str:
    """Why a claim cannot be tested on this model; empty where it can."""
    needs = entry["needs"]
    if needs and needs not in _run.claims:
        raise PatchlibError(f"claim {id} needs claim {needs}: make that one before in the notebook")
    if entry["scope"] == "own" and not paper.is_model(entry["model"], model):
        return f"it is about heads of {entry['model']}"
    if not (len(parts) if hasattr(parts, "__len__") else parts):
        return "this model has nothing of the kind"
    if needs and _run.claims[needs].mark != "✓":
        return f"it means something only where {needs} holds"
    return ""


def _record(claim: Claim, model: str) -> None:
    prompts = _run.prompts if model == _run.model else ""
    row = dict(zip(_COLUMNS, (claim.id, model, claim.mark, claim.here, prompts), strict=True))
    # A model's name may be an address on the hub or a folder.
    path = RECORDS / re.sub(r"[^\w.-]+", "_", model) / f"{claim.id}.json"
    text = json.dumps(row, indent=1, ensure_ascii=False) + "\n"
    try:
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    except OSError as reason:
        print(f"({claim.id} not recorded for the claims by model: {reason})")


def _hold_to_record(claim: Claim, model: str) -> None:
    """Raises where the mark is not the recorded one, or a notebook's own claim fails."""
    if not claim.id:
        if claim.mark == "✗":
            raise PatchlibError(f"the notebook's own claim does not hold:\n{claim}")
        return
    rows = recorded()
    marks = rows[rows.model == model].set_index("claim").status
    if len(marks) and (expected := marks.get(claim.id, "no mark")) != claim.mark:
        raise PatchlibError(
            f"claim {claim.id} on {model}: {BY_MODEL.name} has {expected}, this run found "
            f"{claim.mark}. If the run is right, record it with python -m patchlib.lessons.claims "
            f"and read again what the notebook says about it\n{claim}"
        )


def _text(value: Any) -> str:
    """A measured value as short text, the same on every machine."""
    if isinstance(value, str | Heads | Head):
        return str(value)
    if isinstance(value, pd.DataFrame):
        value = dict(value.iterrows())
    if isinstance(value, Mapping | pd.Series):
        return "; ".join(f"{_name(name)} {_nested(each)}" for name, each in value.items()) or "none"
    if not isinstance(value, list | tuple | set | frozenset):
        return _number(value)
    texts = [_text(each) for each in value]
    return ", ".join(sorted(texts) if isinstance(value, set | frozenset) else texts) or "none"


def _nested(value: Any) -> str:
    text = _text(value)
    return f"({text})" if isinstance(value, Mapping | pd.Series | pd.DataFrame) else text


def _name(name: object) -> str:
    """A name in an index; of several levels all."""
    return " ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def _plain(value: Any) -> Any:
    """A single value of NumPy, pandas, xarray or torch as Python's own; anything else as it is."""
    try:
        return value.item()
    except (AttributeError, ValueError, RuntimeError):
        return value


def _number(value: Any) -> str:
    """Three significant digits, and no more than six decimals: the rest is rounding error."""
    value = _plain(value)
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return _NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float):
        raise PatchlibError(
            f"cannot show a {type(value).__name__} with a claim: give numbers, texts, lists, "
            "Heads, dicts, Series or small DataFrames"
        )
    return f"{float(f'{round(value, 6):.3g}'):zg}"


if __name__ == "__main__":
    main()

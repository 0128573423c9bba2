"""What heads do: attention and copying, and the class that follows from them."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import patchlib as pl
from patchlib.paper import roles


def test_attention_and_copying_are_those_of_their_functions(mini):
    pairs = pl.tasks.ioi(mini, n=8)
    heads = ["5.5", "4.6", "0.0"]
    frame = pl.head_roles(mini, pairs, heads)
    patterns = pl.attention_patterns(mini, pairs, heads)
    to = pl.attention_to(patterns, pairs).mean("prompt")
    for name in ("IO", "S1", "S2"):
        np.testing.assert_allclose(frame[name], to.sel(to=name), atol=1e-6)
    for after, name in enumerate(("S2 to S1", "S2 to S1+1")):
        by_hand = [
            patterns[:, row, s2, s1 + after]
            for row, ((s1,), (s2,)) in enumerate(zip(pairs.at("S1"), pairs.at("S2"), strict=True))
        ]
        np.testing.assert_allclose(frame[name], sum(by_hand) / len(pairs), atol=1e-6)
    scores = pl.copying_score(mini, pairs, ["5.5"])
    assert frame.copies["5.5"] == scores.copies.item()
    assert frame.suppresses["5.5"] == scores.suppresses.item()
    # Copying is measured only of heads that look at a name.
    assert frame.loc[["4.6", "0.0"], ["copies", "suppresses"]].isna().all(axis=None)
    assert (frame.attrs["n_prompts"], frame.attrs["attends"], frame.attrs["copies"]) == (
        8,
        0.3,
        0.5,
    )
    assert frame.attrs["roles"] == "the first rule that holds"


def test_the_rules_in_their_order(mini, monkeypatch):
    #             IO  S1  S2  S2 to S1, S1+1  copies, suppresses  class
    rows = {
        "0.0": ((0.4, 0.0, 0.4, 0.0, 0.0), (0.5, 0.9), "Name Mover"),
        "0.1": ((0.3, 0.0, 0.4, 0.0, 0.0), (0.4, 0.5), "Negative Name Mover"),
        "0.2": ((0.4, 0.0, 0.3, 0.9, 0.0), (0.4, 0.4), "S-Inhibition"),
        "0.3": ((0.0, 0.4, 0.0, 0.3, 0.3), (0.9, 0.0), "Duplicate Token"),
        "0.4": ((0.0, 0.0, 0.2, 0.2, 0.4), None, "Induction"),
        "0.5": ((0.2, 0.2, 0.2, 0.2, 0.2), None, ""),
    }
    asked = []

    def scores(model, pairs, heads):
        asked.extend(heads)
        copies, suppresses = zip(*(rows[head][1] for head in heads), strict=True)
        return xr.Dataset(
            {"copies": ("head", list(copies)), "suppresses": ("head", list(suppresses))}
        )

    monkeypatch.setattr(roles, "copying_score", scores)
    monkeypatch.setattr(roles, "_attention", lambda *_: np.array([row[0] for row in rows.values()]))
    pairs = pl.tasks.ioi(mini, n=2)
    frame = pl.head_roles(mini, pairs, list(rows))
    assert frame.role.to_dict() == {head: row[2] for head, row in rows.items()}
    assert asked == ["0.0", "0.1", "0.2", "0.3"]
    strict = pl.head_roles(mini, pairs, list(rows), attends=0.35, copies=0.95)
    assert strict.role.tolist() == ["S-Inhibition"] * 2 + ["Duplicate Token", "", "Induction", ""]


def test_the_list_of_the_circuit_for_its_own_model(mini, monkeypatch):
    pairs = pl.tasks.ioi(mini, n=2)
    described = roles.describe(mini)
    monkeypatch.setattr(roles, "describe", lambda model: described | {"model": "gpt2"})
    frame = pl.head_roles(mini, pairs, ["5.5", "3.0", "0.1", "5.1"])
    assert frame.role.to_dict() == {
        "5.5": "Induction",
        "3.0": "Duplicate Token",
        "0.1": "Duplicate Token",
        "5.1": "",
    }
    assert "Wang" in frame.attrs["roles"]


def test_any_list_of_heads(mini):
    pairs = pl.tasks.ioi(mini, n=2)
    both = pl.head_roles(mini, pairs, "4.6, 0.0")
    pd.testing.assert_frame_equal(
        both, pl.head_roles(mini, pairs, pl.Heads(["4.6", (0, 0), "4.6"]))
    )
    none = pl.head_roles(mini, pairs, [])
    assert none.empty and list(none.columns) == list(both.columns)


def test_what_roles_refuse(mini):
    pairs = pl.tasks.ioi(mini, n=2)
    for name in ("attends", "copies"):
        for wrong in (0, 1.5, True):
            with pytest.raises(pl.PatchlibError, match=f"{name}={wrong!r}: give a share"):
                pl.head_roles(mini, pairs, ["4.6"], **{name: wrong})
    with pytest.raises(pl.PatchlibError):
        pl.head_roles(mini, pairs, ["99.0"])
    with pytest.raises(pl.PatchlibError, match="unknown position"):
        pl.head_roles(mini, pl.tasks.arithmetic(mini, n=2), ["4.6"])

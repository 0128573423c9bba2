"""Heads as text and as numbers."""

import numpy as np
import pytest
import torch

import patchlib as pl
from patchlib.heads import Head, Heads


@pytest.mark.parametrize(
    "given", ["4.10", " 4.10 ", "04.10", (4, 10), [4, 10], np.array([4, 10]), Head(4, 10)]
)
def test_a_head_in_every_form(given):
    """4.10 is head 10, where a decimal number would be 4.1."""
    head = Head.of(given)
    assert (head, str(head), type(head.layer)) == ((4, 10), "4.10", int)


@pytest.mark.parametrize(
    "given",
    [
        *("", "4", "4.6.1", "46", "4,6", "L4H6", "-1.6", "-0.6", "+4.6", "4.-6", "4_0.6", "٤.٦"),
        *("4. 6", "4.6e0", "mlp4", "nan.0"),
        *(4.6, 4, None, (), (4,), (4, 6, 1), (-1, 6), (4, -1), (4.5, 6), (4.0, 6.0)),
        *((True, False), (float("inf"), 6), (float("nan"), 6), ("4", "6"), ((4, 6), (9, 0))),
    ],
)
def test_what_is_no_head(given):
    """In the package's own words, never as another head."""
    with pytest.raises(pl.PatchlibError, match=r"is no head: write layer and head.*'4.6'"):
        Head.of(given)


def test_heads_as_text_and_back():
    heads = Heads(["10.7", (0, 4), np.array([4, 6])])
    assert str(heads) == f"{heads}" == "10.7, 0.4, 4.6"
    assert heads == [(10, 7), (0, 4), (4, 6)] == Heads(str(heads)) == Heads("10.7 0.4,4.6")
    assert repr(heads) == "Heads('10.7, 0.4, 4.6')"
    # By number: as text, 10 would come before 4.
    assert str(heads.by_layer) == "0.4, 4.6, 10.7"


def test_no_heads():
    assert str(Heads()) == str(Heads([]).by_layer) == "none"
    assert Heads("none") == Heads("") == []


@pytest.mark.parametrize("given", [5, None, 4.6, torch.nn.Identity()])
def test_what_is_no_list_of_heads(given):
    with pytest.raises(pl.PatchlibError, match=r"is no list of heads: give one such as \['4.6'"):
        Heads(given)


@pytest.mark.parametrize("given", [(4, 6), ["4.6", 9], "4.6, nine"])
def test_a_list_with_something_else(given):
    """Also one head where a list belongs: its layer is named, and how several are written."""
    wrong = {str: "'nine'", list: "9", tuple: "4"}[type(given)]
    with pytest.raises(pl.PatchlibError, match=rf"^{wrong} is no head.*several as \['4.6', '9.0'"):
        Heads(given)

"""The paper's numbers under the names that notebooks give to a run's.

A claim's expression, evaluated here, says about the paper what it says about a model in the
notebook, so that it must be true.
"""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

import patchlib as pl
from patchlib import Heads

METRICS = ["prob", "logit_diff", "kl"]
RUNS = ["STR", "GN"]


class UnrelatedNames:
    """IOI with all three names replaced, as far as Section 4.2 and Figure 30 say it."""

    def found(self, run: str, metric: str = "logit_diff", sign: str = "both") -> Heads:
        heads = pl.paper.value("figure30")[run][metric]["heads"]
        if sign != "negative":
            raise NotImplementedError("the paper says which negative heads are detected, no others")
        # "No negative head in the plot" of probability; both Negative Name Movers by logits.
        return Heads() if metric == "prob" else negative() & heads

    def runs(self) -> pd.DataFrame:
        probabilities = {"clean": pl.paper.value("ioi_baselines")["clean"]}
        return pd.DataFrame({"prob": probabilities | pl.paper.value("section_4_2_abc")})


def heads_of(role: str, kinds: tuple[str, ...] = ("main",)) -> Heads:
    """The heads of a class of the circuit of Wang et al."""
    entry = pl.paper.value("ioi_circuit")[role]
    return Heads(head for kind in kinds for head in entry[kind])


def negative() -> Heads:
    return heads_of("Negative Name Mover")


def floors() -> dict[str, pd.Series]:
    """Threshold and floor of the probability effect, as `pl.floor` gives them."""
    text, noisy = pl.paper.value("section_4_2"), pl.paper.value("figure29")["GN"]["prob"]
    rows = {
        "STR": (text["threshold"], text["floor"]),
        "GN": (noisy["mean"] - 2 * noisy["sd"], -text["corrupted_GN"]),
    }
    return {
        run: pd.Series({"threshold": threshold, "floor": floor, "ratio": threshold / floor})
        for run, (threshold, floor) in rows.items()
    }


def sums() -> pd.Series:
    """Peak effects of arithmetic by operator, run and metric; stolfo is equation (2)."""
    peaks = {}
    for operator, figure in zip("+-*", ("figure6", "figure7", "figure8"), strict=True):
        for run in RUNS:
            for metric, peak in pl.paper.value(figure)[run].items():
                peaks[operator, run, metric] = peak
    return pd.Series(peaks)


def docs() -> dict[tuple[str, str, str], Heads]:
    """Detected heads of docstring by run, metric and position: those of Table 2."""
    return {
        (row["corruption"], row["metric"], position): Heads(row[position])
        for row in pl.paper.value("table2")
        for position in ("C_def", "last")
    }


@cache
def namespace() -> dict[str, Any]:
    """Every name that a claim's expression may use."""
    circuit = [heads_of(role, ("main", "fuzzy")) for role in pl.paper.value("ioi_circuit")]
    listed = sum(map(len, docs().values()))
    return {
        "pl": pl,
        "np": np,
        "pd": pd,
        "METRICS": METRICS,
        "RUNS": RUNS,
        # 3.1 and Appendix H: S2 corrupted. F: S1 and IO. 4.2: all names. E: greater-than.
        "sweep": pl.paper.sweep("table5"),
        "runs": pl.paper.sweep("table5").runs(),
        "s1io": pl.paper.sweep("table4"),
        "abc": UnrelatedNames(),
        "gt": pl.paper.sweep("table3"),
        "movers": heads_of("Name Mover"),
        "negative": negative(),
        "inhibition": heads_of("S-Inhibition"),
        "duplicate": heads_of("Duplicate Token"),
        "circuit": Heads(head for heads in circuit for head in heads),
        "floors": floors(),
        # 3.2: attention of the Name Movers; logit difference with S-Inhibition values restored.
        "attention": pl.paper.attention(),
        "swapped": pl.paper.attention().loc["clean"].rename({"IO": "S1", "S1": "IO"}),
        "restored": pl.paper.attention("restored"),
        "recovered": pd.Series(pl.paper.value("section_3_2")),
        # Factual recall: 3.1 and G; 4.1; 5. The paper's window is 5 of 48 layers.
        "w": 5,
        "peaks": pl.paper.peaks(),
        "ratios": pl.paper.last_to_middle(),
        "strongest": "last_subject",  # Figure 4b; the bucket with the largest effect
        "windows": pl.paper.windows(),
        "sums": sums(),
        # Table 2 omits two heads at other positions and four negative ones at the last token.
        "docs": docs(),
        "elsewhere": 2,
        "detected": listed + 2 + 4,
    }

"""The paper's numbers in the shapes of a run's, so that one expression reads both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from patchlib.errors import PatchlibError
from patchlib.heads import Heads
from patchlib.measure.curves import is_salient, table
from patchlib.measure.sweeps import SIGNS, HeadLists
from patchlib.paper.tables import value

# The tables that list heads, and where the unpatched runs of their prompts are printed.
_TABLES = {"table3": None, "table4": None, "table5": "ioi_baselines"}


class PaperSweep(HeadLists):
    """The heads that one of the paper's tables lists, read as a `patchlib.sweep` is."""

    def __init__(self, table: str) -> None:
        if table not in _TABLES:
            raise PatchlibError(f"table={table!r}: allowed are {', '.join(_TABLES)}")
        self._table = table
        self._rows = {(row["corruption"], row["metric"]): row for row in value(table)}
        self.names = ("STR", "GN")
        self.metrics = ("prob", "logit_diff", "kl")

    def __repr__(self) -> str:
        return f"PaperSweep({self._table})"

    def found(
        self, run: str, metric: str = "logit_diff", sign: str = "both", sd: float = 2
    ) -> Heads:
        """The heads as the table lists them: positive ones first, in the order of layers.

        Args:
            run: ``"STR"`` or ``"GN"``.
            metric: the metric.
            sign: ``"positive"``, ``"negative"`` or ``"both"``.
            sd: 2, since the paper reports no other.

        Raises:
            PatchlibError: for anything else.
        """
        if (run, metric) not in self._rows or sign not in ("both", *SIGNS) or sd != 2:
            raise PatchlibError(
                f"run={run!r}, metric={metric!r}, sign={sign!r}, sd={sd!r}: {self._table} has the "
                f"runs {', '.join(self.names)}, the metrics {', '.join(self.metrics)}, the signs "
                f"both, {', '.join(SIGNS)}, and sd=2"
            )
        row = self._rows[run, metric]
        return Heads(head for each in SIGNS if sign in ("both", each) for head in row[each])

    def runs(self) -> pd.DataFrame:
        """The unpatched runs, as far as the paper prints them; NaN elsewhere.

        Returns:
            The rows ``clean``, ``STR`` and ``GN``, a column for each metric.
        """
        frame = pd.DataFrame(np.nan, ["clean", *self.names], list(self.metrics))
        baselines = _TABLES[self._table]
        if baselines:
            printed: dict[str, Any] = value(baselines)
            frame["prob"] = [printed[run] for run in frame.index]
        return frame.rename_axis("run")


def sweep(table: str) -> PaperSweep:
    """The heads that the paper lists for GPT-2 small, read as those of `patchlib.sweep` are.

    Args:
        table: ``"table3"`` (greater-than), ``"table4"`` (IOI, corrupting S1 and IO) or
            ``"table5"`` (IOI, corrupting S2).

    Raises:
        PatchlibError: for another table.

    Example:
        >>> print(sweep("table5").everywhere())
        5.5, 7.9, 8.6, 10.7
    """
    return PaperSweep(table)


# Which figure shows the effects of MLPs at the last subject token, by window.
_PEAKS = {1: "figure12", 3: "figure13", 5: "figure2", 10: "figure14"}
# Which figure shows windows against sums, by metric and window, beside those of Section 5.
_WINDOWS = {
    ("prob", 5): "figure20",
    ("logit_diff", 5): "figure21",
    ("prob", 10): "figure22",
    ("logit_diff", 10): "figure23",
}


def peaks() -> pd.DataFrame:
    """The paper's peaks for GPT-2 XL, read from its figures as `patchlib.peaks` reads a sweep.

    Returns:
        The columns ``peak``, ``layer``, ``plateau`` and ``salient``. Of a range the upper end is
        given; the peaks of probability under STR for windows of 1 and 3 are upper bounds. The way
        from the corrupted to the clean probability is not printed: P(r) of the clean run, its upper
        bound, stands for it.

    Example:
        >>> float(peaks().peak["GN", "prob", 5])
        0.089
    """
    clean, rows = value("facts_models")["GPT-2 XL"]["prob"], {}
    for window, figure in _PEAKS.items():
        for run in ("STR", "GN"):
            for metric in ("prob", "logit_diff"):
                printed = value(figure)[run][metric]
                peak = printed["peak"]
                rows[run, metric, window] = {
                    "peak": peak,
                    "layer": _most(printed.get("peak_layer", np.nan)),
                    "plateau": _most(printed.get("plateau", printed.get("0", np.nan))),
                    # All that is read as a peak is higher than its neighbours.
                    "salient": is_salient(peak / (clean if metric == "prob" else 1)),
                }
    frame = table(rows, ["peak", "layer", "plateau", "salient"])
    return frame.astype({"layer": "Int64", "salient": bool})


def _most(printed: float | list[float]) -> float:
    return max(printed) if isinstance(printed, list) else printed


def windows() -> pd.DataFrame:
    """The paper's windows against sums, read as `patchlib.compare_windows` reads a sweep.

    Returns:
        The columns ``sliding``, ``adding`` (read from figures), ``ratio`` (as the text prints it,
        else of the two), ``low`` and ``high`` (NaN).

    Example:
        >>> float(windows().ratio["GN", "prob", 5])
        1.75
    """
    rows = {
        ("GN", "prob", int(window)): {
            name: value("figure5")[window][name] for name in ("sliding", "adding")
        }
        | {"ratio": ratio}
        for window, ratio in value("section_5").items()
    }
    for (metric, window), figure in _WINDOWS.items():
        for run, read in value(figure).items():
            ratio = {"ratio": read["sliding"] / read["adding"]}
            rows.setdefault((run, metric, window), read | ratio)
    return table(rows, ["sliding", "adding", "ratio", "low", "high"])


def last_to_middle() -> pd.DataFrame:
    """The paper's ratios of Section 4.1, read as `patchlib.last_to_middle` reads a sweep.

    Returns:
        The column ``ratio``; NaN in ``last``, ``middle``, ``low`` and ``high``, which the paper
        does not print.

    Example:
        >>> float(last_to_middle().ratio["STR", "prob", 5])
        4.33
    """
    window = value("section_3")["facts"]["window"]
    rows = {
        (run, metric, window): {"ratio": ratio}
        for run, ratios in value("section_4_1").items()
        for metric, ratio in ratios.items()
    }
    return table(rows, ["last", "middle", "ratio", "low", "high"])


def attention(which: str = "unpatched") -> pd.DataFrame:
    """Where the Name Movers of GPT-2 small look from the last token (Figure 3).

    Args:
        which: ``"unpatched"`` for the clean and the corrupted runs (Figure 3a), ``"restored"`` for
            the corrupted runs with the values of the S-Inhibition heads restored (Figure 3c).

    Returns:
        A row for each run, the columns ``IO``, ``S1``, ``S2`` and ``others``.

    Raises:
        PatchlibError: for anything else.

    Example:
        >>> attention().IO.to_dict()
        {'clean': 0.585, 'STR': 0.11, 'GN': 0.26}
    """
    figures = {"unpatched": "figure3a", "restored": "figure3c"}
    if which not in figures:
        raise PatchlibError(f"which={which!r}: allowed are {', '.join(figures)}")
    return pd.DataFrame(value(figures[which])).T.rename_axis("run")

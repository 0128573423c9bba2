"""The paper's numbers in the shapes of a run's, so that one expression reads both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from patchlib.errors import PatchlibError
from patchlib.heads import Heads
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

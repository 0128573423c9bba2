"""The paper as data: its tables and settings, its advice, and the page of results."""

from patchlib.paper import advice, experiments
from patchlib.paper.readings import attention, last_to_middle, peaks, sweep, windows
from patchlib.paper.tables import (
    agreement,
    class_counts,
    compare,
    compare_heads,
    is_model,
    load,
    record,
    table,
    value,
)

__all__ = [
    "advice",
    "agreement",
    "attention",
    "class_counts",
    "compare",
    "compare_heads",
    "experiments",
    "is_model",
    "last_to_middle",
    "load",
    "peaks",
    "record",
    "sweep",
    "table",
    "value",
    "windows",
]

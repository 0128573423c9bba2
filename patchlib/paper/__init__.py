"""The paper as data: tables, settings, curves and lists in the shapes of a run, its advice."""

from patchlib.paper import advice, experiments
from patchlib.paper.readings import attention, last_to_middle, peaks, sweep, windows
from patchlib.paper.tables import is_model, load, value

__all__ = [
    "advice",
    "attention",
    "experiments",
    "is_model",
    "last_to_middle",
    "load",
    "peaks",
    "sweep",
    "value",
    "windows",
]

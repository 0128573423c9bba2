"""Figures fit for a paper: heat maps, effects over layers and by head, and attention.

Every function returns a matplotlib figure that pyplot does not hold, so that a notebook shows it
exactly once, as a value, with an alternative text. Results with values for each prompt or draw
are shown as their mean.
"""

from patchlib.show.plot.curves import lines, windows
from patchlib.show.plot.edges import edges, sizes
from patchlib.show.plot.graph import circuit
from patchlib.show.plot.heads import draws, intervals, ranked, scatter
from patchlib.show.plot.maps import heatmap, heatmaps
from patchlib.show.plot.pairs import pairs
from patchlib.show.plot.patterns import attention, bars, check_attention
from patchlib.show.plot.scores import costs, scores
from patchlib.show.plot.scrubbed import recovered
from patchlib.show.plot.style import save

__all__ = [
    "attention",
    "bars",
    "check_attention",
    "circuit",
    "costs",
    "draws",
    "edges",
    "heatmap",
    "heatmaps",
    "intervals",
    "lines",
    "pairs",
    "ranked",
    "recovered",
    "save",
    "scatter",
    "scores",
    "sizes",
    "windows",
]

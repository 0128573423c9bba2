"""patchlib: activation patching as Zhang & Nanda (ICLR 2024) describe it."""

from patchlib import mini, notebooks, pairs, paper, plot, tasks
from patchlib.circuits_view import AttentionHeads
from patchlib.corruption import GN, STR
from patchlib.detection import detect, heads_of
from patchlib.errors import PatchlibError
from patchlib.explore import explore
from patchlib.heads import attention_patterns, attention_to, copying_score
from patchlib.models import load_model
from patchlib.pairs import PromptPairs
from patchlib.patching import interval, patch, patch_together

__all__ = [
    "GN",
    "STR",
    "AttentionHeads",
    "PatchlibError",
    "PromptPairs",
    "attention_patterns",
    "attention_to",
    "copying_score",
    "detect",
    "explore",
    "heads_of",
    "interval",
    "load_model",
    "mini",
    "notebooks",
    "pairs",
    "paper",
    "patch",
    "patch_together",
    "plot",
    "tasks",
]

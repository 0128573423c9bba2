"""patchlib: activation patching as Zhang & Nanda (ICLR 2024) describe it."""

from patchlib import metrics, mini, notebooks, pairs, paper, plot, tasks
from patchlib.circuits_view import AttentionHeads
from patchlib.corruption import GN, STR
from patchlib.detection import detect, heads_of
from patchlib.errors import PatchlibError
from patchlib.explore import explore
from patchlib.heads import attention_patterns, attention_to, copying_score
from patchlib.models import load_model
from patchlib.pairs import PromptPairs
from patchlib.patching import interval, patch, patch_together
from patchlib.prompt import Prompt

__all__ = [
    "GN",
    "STR",
    "AttentionHeads",
    "PatchlibError",
    "Prompt",
    "PromptPairs",
    "attention_patterns",
    "attention_to",
    "copying_score",
    "detect",
    "explore",
    "heads_of",
    "interval",
    "load_model",
    "metrics",
    "mini",
    "notebooks",
    "pairs",
    "paper",
    "patch",
    "patch_together",
    "plot",
    "tasks",
]

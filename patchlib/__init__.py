"""patchlib: activation patching as Zhang & Nanda (ICLR 2024) describe it."""

from patchlib import mini, pairs, tasks
from patchlib.corruption import GN, STR
from patchlib.detection import detect, heads_of
from patchlib.errors import PatchlibError
from patchlib.heads import attention_patterns, attention_to, copying_score
from patchlib.models import load_model
from patchlib.pairs import PromptPairs
from patchlib.patching import interval, patch, patch_together

__all__ = [
    "GN",
    "STR",
    "PatchlibError",
    "PromptPairs",
    "attention_patterns",
    "attention_to",
    "copying_score",
    "detect",
    "heads_of",
    "interval",
    "load_model",
    "mini",
    "pairs",
    "patch",
    "patch_together",
    "tasks",
]

"""patchlib: activation patching as Zhang & Nanda (ICLR 2024) describe it."""

from patchlib import choices, experiments, metrics, mini, notebooks, pairs, paper, plot, tasks
from patchlib.advice import advise
from patchlib.baselines import answered, baselines
from patchlib.circuits_view import AttentionHeads
from patchlib.corruption import GN, STR
from patchlib.detection import detect, heads_of
from patchlib.effects import stolfo, sum_windows
from patchlib.errors import PatchlibError
from patchlib.explore import explore
from patchlib.heads import attention_patterns, attention_to, copying_score
from patchlib.models import load_model
from patchlib.ood import ood
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
    "advise",
    "answered",
    "attention_patterns",
    "attention_to",
    "baselines",
    "choices",
    "copying_score",
    "detect",
    "experiments",
    "explore",
    "heads_of",
    "interval",
    "load_model",
    "metrics",
    "mini",
    "notebooks",
    "ood",
    "pairs",
    "paper",
    "patch",
    "patch_together",
    "plot",
    "stolfo",
    "sum_windows",
    "tasks",
]

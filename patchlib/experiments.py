"""The paper's experiments as data: how many prompts, which windows, for each of its models.

``data/experiments.json`` holds them. For a model that the paper did not use in an experiment, the
settings of `mini` apply: the same experiment, on fewer prompts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError

EXPERIMENTS = Path(__file__).parents[1] / "data" / "experiments.json"


def settings(name: str, model: TransformerBridge) -> dict[str, Any]:
    """The settings of one experiment for a model.

    Args:
        name: the experiment, such as ``"5_sliding_window"``.
        model: the model.

    Returns:
        ``task``, ``component``, ``positions``, ``sites``, ``scale``, ``n``, ``draws``,
        ``prepend_bos`` and, for layers, ``window`` and ``before``, as `patchlib.patch` takes them.

    Raises:
        PatchlibError: for an unknown experiment.

    Example:
        >>> import patchlib as pl
        >>> settings("app_c_arithmetic", pl.load_model())["positions"]
        'last'
    """
    everything = json.loads(EXPERIMENTS.read_text(encoding="utf-8"))
    if name not in everything:
        raise PatchlibError(f"no experiment {name!r}: allowed are {', '.join(everything)}")
    entry = everything[name]
    for_models = entry.pop("settings")
    known = str(model.cfg.model_name)
    own = for_models.get(known) or for_models.get(Path(known).name) or for_models["mini"]
    return entry | own

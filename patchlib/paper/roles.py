"""What heads do, in the words of Wang et al.: the circuit's list for GPT-2 small, else by rules."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.heads import Heads
from patchlib.measure.heads import attention_patterns, copying_score
from patchlib.models.loading import describe
from patchlib.paper.tables import is_model, value
from patchlib.prompts.pairs import PromptPairs

# Where the last token and S2 look: from, to, and how many tokens after that.
_LOOKS = {
    "IO": ("last", "IO", 0),
    "S1": ("last", "S1", 0),
    "S2": ("last", "S2", 0),
    "S2 to S1": ("S2", "S1", 0),
    "S2 to S1+1": ("S2", "S1", 1),
}


def head_roles(
    model: TransformerBridge,
    pairs: PromptPairs,
    heads: Iterable[object] | str | None = None,
    attends: float = 0.3,
    copies: float = 0.5,
) -> pd.DataFrame:
    """What heads do on clean IOI prompts, and the class of the circuit that they act like.

    For GPT-2 small the class is that of Wang et al. (2023); for other models a head that acts like
    one of a class need not do its work. The first rule that holds decides: at the last token a
    **Name Mover** looks at IO and copies, a **Negative Name Mover** looks at IO and suppresses, an
    **S-Inhibition** head looks at S2; at S2 a **Duplicate Token** head looks at S1, an
    **Induction** head at the token after S1.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of the task IOI.
        heads: which heads, such as those that a sweep found; all where None.
        attends: the least mean attention probability that counts as looking.
        copies: the least score of `patchlib.copying_score` that counts as copying, and as
            suppressing.

    Returns:
        A row for each head (``"4.6"``), in the order given; mean attention probabilities of the
        last token to ``IO``, ``S1`` and ``S2`` and of S2 to S1 and the token after it (``S2 to
        S1``, ``S2 to S1+1``); ``copies`` and ``suppresses``, the shares of names, of heads that
        look at IO or S1 (NaN for others); ``role``, empty where no rule holds. The attributes hold
        the number of prompts, both thresholds and where roles come from.

    Raises:
        PatchlibError: for prompts without IO, S1 and S2, for thresholds that are no shares, and
            for heads that the model does not have.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> roles = pl.head_roles(model, pl.tasks.ioi(model, n=8), ["4.6", "0.0"])
        >>> roles.index.tolist(), roles.role["0.0"]
        (['4.6', '0.0'], '')
    """
    for name, share in {"attends": attends, "copies": copies}.items():
        if isinstance(share, bool) or not 0 < share <= 1:
            raise PatchlibError(f"{name}={share!r}: give a share above 0, at most 1")
    if heads is None:
        heads = np.ndindex(model.cfg.n_layers, model.cfg.n_heads)
    chosen = Heads(dict.fromkeys(Heads(heads)))
    frame = pd.DataFrame(np.nan, list(map(str, chosen)), [*_LOOKS, "copies", "suppresses"])
    frame.index.name = "head"
    frame.attrs = describe(model) | pairs.describe() | {"attends": attends, "copies": copies}
    if chosen:
        frame[list(_LOOKS)] = _attention(model, pairs, chosen)
    movers = frame.index[(frame.IO >= attends) | (frame.S1 >= attends)].tolist()
    if movers:
        scores = copying_score(model, pairs, movers)
        frame.loc[movers, "copies"] = scores.copies.values
        frame.loc[movers, "suppresses"] = scores.suppresses.values
    if is_model("GPT-2 small", str(frame.attrs["model"])):
        circuit = {
            head: role
            for role, group in value("ioi_circuit").items()
            for head in (*group["main"], *group["fuzzy"])
        }
        frame["role"] = [circuit.get(head, "") for head in frame.index]
        frame.attrs["roles"] = "the circuit of Wang et al. (2023)"
        return frame
    rules = {
        "Name Mover": (frame.IO >= attends) & (frame.copies >= copies),
        "Negative Name Mover": (frame.IO >= attends) & (frame.suppresses >= copies),
        "S-Inhibition": frame.S2 >= attends,
        "Duplicate Token": frame["S2 to S1"] >= attends,
        "Induction": frame["S2 to S1+1"] >= attends,
    }
    frame["role"] = np.select(list(rules.values()), list(rules), "")
    frame.attrs["roles"] = "the first rule that holds"
    return frame


def _attention(model: TransformerBridge, pairs: PromptPairs, heads: Heads) -> np.ndarray:
    """The mean over prompts of every head's attention, a column for each place of `_LOOKS`."""
    total = torch.zeros(len(heads), len(_LOOKS), dtype=torch.float64)
    for _, some in pairs.by_length():
        patterns = attention_patterns(model, some, heads)
        rows = range(len(some))
        for column, (here, there, after) in enumerate(_LOOKS.values()):
            query = [at[-1] for at in some.at(here)]
            key = [at[-1] + after for at in some.at(there)]
            total[:, column] += patterns[:, rows, query, key].double().sum(1)
    return (total / len(pairs)).numpy()

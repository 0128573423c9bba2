"""How to measure: probability, logit difference, KL divergence and four more (Section 2.1).

Each metric turns the logits at the last position into one number per prompt. Its effect compares
the patched run with the corrupted run that it started from; the sign is such that a patch which
brings the clean run's behaviour back has a positive effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchlib.errors import PatchlibError
from patchlib.prompts.pairs import NOTHING

Logits = Float[Tensor, "*batch prompt vocab"]
Answers = Int[Tensor, "prompt *answer"]


@dataclass(frozen=True)
class Metric:
    """A metric and how its effect is defined.

    Args:
        name: what `patchlib.patch` calls it.
        label: what figures call its effect, with the unit.
        value: maps logits, answers, wrong answers and the source run's logits to one number per
            prompt.
        sign: +1 where larger values mean a better answer, -1 where smaller ones do.
        normalized: whether the effect is divided by the distance between the two unpatched runs,
            so that 1 is full recovery.
    """

    name: str
    label: str
    value: Callable[[Logits, Answers, Answers, Logits], Float[Tensor, "*batch prompt"]]
    sign: int = 1
    normalized: bool = False


def _over(
    values: Logits, answers: Answers, reduce: Callable[..., Tensor], empty: float
) -> Float[Tensor, "*batch prompt"]:
    """Reduces over each prompt's set of answers; ``empty`` is the reduction's neutral element."""
    sets = answers[:, None] if answers.ndim == 1 else answers
    index = sets.clamp(min=0).to(values.device).expand(*values.shape[:-1], sets.shape[-1])
    missing = (sets == NOTHING).to(values.device)
    return reduce(values.gather(-1, index).masked_fill(missing, empty), dim=-1)


def probability(logits: Logits, r: Answers, r_wrong: Answers, source: Logits) -> Tensor:
    """P(r); over a set of answers their sum."""
    return log_probability(logits, r, r_wrong, source).exp()


def wrong_probability(logits: Logits, r: Answers, r_wrong: Answers, source: Logits) -> Tensor:
    """P(r'); over a set of wrong answers their sum."""
    return probability(logits, r_wrong, r, source)


def logit_difference(logits: Logits, r: Answers, r_wrong: Answers, source: Logits) -> Tensor:
    """Logit(r) - Logit(r'), in nats; over sets the difference of the sums (Appendix E)."""
    return _over(logits, r, torch.sum, 0.0) - _over(logits, r_wrong, torch.sum, 0.0)


def kl_divergence(logits: Logits, r: Answers, r_wrong: Answers, source: Logits) -> Tensor:
    """D_KL(P_source || P), in nats: how far the run is from the one its patch comes from."""
    reference, here = source.log_softmax(-1), logits.log_softmax(-1)
    # In place: over a whole vocabulary, copies take longer than sums.
    return (reference - here).mul_(reference.exp()).sum(-1)


def log_probability(logits: Logits, r: Answers, r_wrong: Answers, source: Logits) -> Tensor:
    """log P(r), in nats; over a set of answers of their summed probability."""
    return _over(logits.log_softmax(-1), r, torch.logsumexp, -torch.inf)


def rank(logits: Logits, r: Answers, r_wrong: Answers, source: Logits) -> Tensor:
    """How many tokens are ranked above r, 0 if none; over a set, above its best member."""
    best = _over(logits, r, torch.amax, -torch.inf)
    above = (logits > best[..., None]).sum(-1).to(logits.dtype)
    # No comparison with NaN is true, so that a broken run would rank every answer first.
    return above.masked_fill(logits.isnan().any(-1), torch.nan)


def accuracy(logits: Logits, r: Answers, r_wrong: Answers, source: Logits) -> Tensor:
    """1 where r is the most likely token, else 0."""
    above = rank(logits, r, r_wrong, source)
    return (above == 0).to(logits.dtype).masked_fill(above.isnan(), torch.nan)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("logit_diff", "normalised logit difference", logit_difference, normalized=True),
        Metric("prob", "probability", probability),
        Metric("kl", "KL divergence (nats)", kl_divergence, sign=-1),
        Metric("log_prob", "log probability (nats)", log_probability),
        Metric("wrong_prob", "probability of r'", wrong_probability, sign=-1),
        Metric("rank", "rank (places)", rank, sign=-1),
        Metric("accuracy", "accuracy", accuracy),
    )
}


def measure(
    metrics: Sequence[Metric], logits: Logits, r: Answers, r_wrong: Answers, source: Logits
) -> Float[Tensor, "metric *batch prompt"]:
    """All metrics of some logits, in double precision and on the CPU."""
    logits, source = logits.float(), source.float()
    values = [metric.value(logits, r, r_wrong, source) for metric in metrics]
    return torch.stack(values).double().cpu()


def choose(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names, in this order.

    Raises:
        PatchlibError: for an unknown name, or none at all.

    Example:
        >>> [metric.sign for metric in choose(["prob", "kl"])]
        [1, -1]
    """
    if isinstance(names, str):
        names = [names]
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise PatchlibError(
            f"unknown metric {', '.join(map(repr, unknown)) or '(none given)'}: "
            f"allowed are {', '.join(METRICS)}"
        )
    return [METRICS[name] for name in names]

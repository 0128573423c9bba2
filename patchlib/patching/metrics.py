"""How to measure: probability, logit difference, KL divergence and six more (Section 2.1).

Each metric turns the logits at the last position into one number per prompt. Its effect compares
the patched run with the run that it started from. One sign holds for all: an effect is positive
where the patch takes the run towards the one that activations come from. Restoring what matters
(denoising) and removing what matters (noising) are positive by every metric.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from jaxtyping import Bool, Float, Int
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
        value: maps logits, answers, wrong answers and the logits of the unpatched run on the
            source's side to one number per prompt; all in single precision, or double where the
            model is.
        sign: +1 where larger values mean a better answer, -1 where smaller ones do.
        normalized: whether the effect is divided by the distance between the two unpatched runs,
            so that 1 is full recovery.
        from_source: whether the metric itself is a distance from the source run, as KL is.

    Example:
        >>> def margin(logits, answers, wrong_answers, source):
        ...     best = logits.topk(2).values
        ...     return best[..., 0] - best[..., 1]
        >>> Metric("margin", "lead of the first token (nats)", margin).sign
        1
    """

    name: str
    label: str
    value: Callable[[Logits, Answers, Answers, Logits], Float[Tensor, "*batch prompt"]]
    sign: int = 1
    normalized: bool = False
    from_source: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.label, str):
            raise PatchlibError(
                f"pl.Metric({self.name!r}, {self.label!r}, ...): name and label are texts, as in "
                "pl.Metric('margin', 'lead of the first token (nats)', margin)"
            )
        if self.sign not in (1, -1) or not callable(self.value):
            raise PatchlibError(
                f"metric {self.name!r}: sign={self.sign}, value={self.value!r}; give a function, "
                "and +1 or -1"
            )

    @property
    def whole(self) -> bool:
        """Whether it reads the whole vocabulary; differences and odds read the answers alone."""
        return self.value not in (logit_difference, log_odds, odds)


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


def log_odds(logits: Logits, r: Answers, r_wrong: Answers, source: Logits) -> Tensor:
    """log P(r) - log P(r'), in nats; over sets of their summed probabilities.

    Of two single answers that is their logit difference, but its effect is not normalised.
    """
    right, wrong = (_over(logits, each, torch.logsumexp, -torch.inf) for each in (r, r_wrong))
    return right - wrong


def odds(logits: Logits, r: Answers, r_wrong: Answers, source: Logits) -> Tensor:
    """P(r) / P(r'), as Vig et al. (2020) measure; without bound where P(r') goes towards 0."""
    return log_odds(logits, r, r_wrong, source).exp()


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
        Metric(
            "logit_diff",
            "normalised logit difference",
            logit_difference,
            normalized=True,
        ),
        Metric("prob", "probability", probability),
        Metric("kl", "KL divergence (nats)", kl_divergence, sign=-1, from_source=True),
        Metric("log_prob", "log probability (nats)", log_probability),
        Metric("wrong_prob", "probability of r'", wrong_probability, sign=-1),
        Metric("rank", "rank (places)", rank, sign=-1),
        Metric("accuracy", "accuracy", accuracy),
        Metric("log_odds", "log odds (nats)", log_odds),
        Metric("odds", "odds", odds),
    )
}


def measure(
    metrics: Sequence[Metric],
    logits: Logits,
    r: Answers,
    r_wrong: Answers,
    source: Logits,
    texts: Sequence[str] = (),
) -> Float[Tensor, "metric *batch prompt"]:
    """All metrics of some logits, in double precision and on the CPU.

    Args:
        metrics: what to measure.
        logits: at the last position.
        r: the right answers.
        r_wrong: the wrong ones.
        source: the logits of the unpatched run on the source's side.
        texts: the prompts, for an error.

    Raises:
        PatchlibError: where logits are NaN or infinite, and where a metric does not give one
            finite number for each prompt.
    """
    require_finite(logits, texts)
    if logits.dtype != torch.float64:
        logits, source = logits.float(), source.float()
    values = [metric.value(logits, r, r_wrong, source) for metric in metrics]
    for metric, value in zip(metrics, values, strict=True):
        if not isinstance(value, Tensor) or value.shape != logits.shape[:-1]:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PatchlibError(
                f"metric {metric.name!r} gave {given} for logits of shape {tuple(logits.shape)}: "
                f"it must give one number for each prompt, {tuple(logits.shape[:-1])}"
            )
        broken = ~value.isfinite().reshape(-1, value.shape[-1]).all(0)
        if broken.any():
            raise PatchlibError(
                f"metric {metric.name!r} is NaN or infinite for {_first(broken, texts)}: give a "
                "metric that has a number for all logits, or leave these prompts out"
            )
    return torch.stack([value.double() for value in values]).cpu()


def _first(broken: Bool[Tensor, " prompt"], texts: Sequence[str]) -> str:
    rows = broken.nonzero().flatten().tolist()
    first = repr(texts[rows[0]]) if texts else f"number {rows[0]}"
    return f"{len(rows)} of {len(broken)} prompts, the first {first}"


def require_finite(logits: Logits, texts: Sequence[str] = ()) -> None:
    """Refuses logits that are NaN or infinite.

    Args:
        logits: at the last position.
        texts: the prompts, for the error.

    Raises:
        PatchlibError: for such logits.
    """
    # A sum is finite where all of it is, and takes a seventeenth of the time of asking each.
    total = logits.sum(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    finite = total.isfinite()
    broken = ~finite.reshape(-1, finite.shape[-1]).all(0)
    if broken.any():
        raise PatchlibError(
            f"logits are NaN or infinite for {_first(broken, texts)}: half precision that "
            "overflows (load with dtype=torch.float32), damaged weights, or a corruption or source "
            "with such values"
        )


def choose(metrics: str | Metric | Callable | Sequence[str | Metric | Callable]) -> list[Metric]:
    """The metrics asked for, in this order.

    Args:
        metrics: names of metrics, a `Metric` of your own, or a function of logits alone, of shape
            (…, prompt, vocab), where larger values mean a better answer; its name becomes
            the metric's.

    Raises:
        PatchlibError: for an unknown name, a function without a name or with one that is taken,
            two metrics of one name, or none at all.

    Example:
        >>> [metric.sign for metric in choose(["prob", "kl"])]
        [1, -1]
    """
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        metrics = [metrics]
    chosen = [_metric(each) for each in metrics]
    names = [metric.name for metric in chosen]
    if not names or len(set(names)) < len(names):
        raise PatchlibError(
            f"metrics={', '.join(names) or '(none given)'}: give at least one, and each name once; "
            f"there are {', '.join(METRICS)}"
        )
    return chosen


def _metric(given: object) -> Metric:
    if isinstance(given, str) and given in METRICS:
        return METRICS[given]
    name = given.name if isinstance(given, Metric) else getattr(given, "__name__", "<lambda>")
    if name in METRICS and given != METRICS[name]:
        raise PatchlibError(f"a metric of your own is called {name!r}, as one here is: rename it")
    if isinstance(given, Metric):
        return given
    if not callable(given) or name == "<lambda>":
        raise PatchlibError(
            f"unknown metric {given!r}: allowed are {', '.join(METRICS)}, a pl.Metric(name, label, "
            "value), and a function of logits that has a name"
        )
    try:
        signature(given).bind(None)
    except (TypeError, ValueError) as reason:
        raise PatchlibError(
            f"the metric {name} cannot be called with logits alone ({reason}): one that reads "
            f"answers, too, is pl.Metric({name!r}, label, value)"
        ) from None
    return Metric(name, name.replace("_", " "), lambda logits, r, r_wrong, source: given(logits))


def label(name: str, settings: Mapping[Hashable, object] | None = None) -> str:
    """What figures call a metric: its label with the unit.

    Args:
        name: the metric.
        settings: the attributes of a result, which keep the label of somebody's own metric, and
            another one where a method measures a metric in its own way.
    """
    own = (settings or {}).get(f"label_{name}")
    if own is None and name in METRICS:
        return METRICS[name].label
    return str(own or name.replace("_", " "))

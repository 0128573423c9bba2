"""Exercises of ``02_background``. The notebook prints:

**1 Which is stronger?** By each metric, which corruption at S2 takes the model further from the
clean run? Read it from `runs`.

    answer = {"prob": ..., "logit_diff": ..., "kl": ...}  # "STR" or "GN"
    pl.check("2.1", answer, runs=runs)

**2 KL divergence by hand.** Write D(P_clean || P_other), in nats, as a function of two tensors of
logits, one number for each token of the vocabulary.

    my_kl = ...  # a function of clean_logits and other_logits
    pl.check("2.2", my_kl)

**3 Predict, then test.** Something adds 1 to the logits of *both* names, IO and S, at the last
token of the clean prompts. By how much does the logit difference change, and by how much P(IO)? Say
first which of the two stays, then compute both as means over the prompts of `some`.

    answer = {"prob": ..., "logit_diff": ...}  # after minus before
    pl.check("2.3", answer, model=model, pairs=some)

`runs` is `sweep.runs()`, and `some` is `pairs[:50]`.
"""

from __future__ import annotations

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from patchlib.lessons.answers import call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.prompts.pairs import PromptPairs


@exercise("2.1")
def which_is_stronger(answer: object, runs: pd.DataFrame) -> str | None:
    """The corruption whose run is further from the clean one, by each metric."""
    names = ["prob", "logit_diff", "kl"]
    given = entries(answer, names)
    if not set(given) <= {"STR", "GN"}:
        return "each value has to be 'STR' or 'GN'"
    far = (runs.loc[["STR", "GN"], names] - runs.loc["clean", names]).abs()
    wrong = [name for name, run in zip(names, given, strict=True) if run != far[name].idxmax()]
    if not wrong:
        return None
    if wrong == ["kl"]:
        return "kl: a divergence grows with the distance from the clean run"
    if "kl" not in wrong:
        return f"{' and '.join(wrong)}: the further a run is from clean, the lower this value falls"
    return f"{', '.join(wrong)}: compare each run with the row clean, one column at a time"


@exercise("2.2")
def kl_by_hand(answer: object) -> str | None:
    """The sum over tokens of P_clean (log P_clean - log P_other)."""
    drawn = torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(0)) * 2
    of = "clean_logits and other_logits"
    given = [number(call(answer, *each, of=of), "what your function returns") for each in drawn]
    log_p, log_q = drawn.log_softmax(-1).unbind(1)
    p, q = log_p.exp(), log_q.exp()

    def is_given(values: torch.Tensor) -> bool:
        return all(
            close(one, other, 1e-4) for one, other in zip(given, values.tolist(), strict=True)
        )

    if is_given((p * (log_p - log_q)).sum(-1)):
        return None
    clean, other = drawn.unbind(1)
    mistakes = {
        "you exchanged the two: weigh by the clean run's probabilities": (
            (q * (log_q - log_p)).sum(-1)
        ),
        "the sign is turned: a divergence is never negative": (p * (log_q - log_p)).sum(-1),
        "logits are no log-probabilities: use log_softmax first": (p * (clean - other)).sum(-1),
        "sum over the tokens, do not average": (p * (log_p - log_q)).mean(-1),
        "that is in bits: use the natural logarithm": (
            (p * (log_p - log_q)).sum(-1) / torch.tensor(2.0).log()
        ),
        "that is the cross entropy: take off the clean run's own entropy": -(p * log_q).sum(-1),
    }
    return mistake(is_given, mistakes, "another number: sum P_clean (log P_clean - log P_other)")


@exercise("2.3")
def both_names_raised(answer: object, model: TransformerBridge, pairs: PromptPairs) -> str | None:
    """What 1 more for both names' logits does to the logit difference and to P(IO)."""
    names = ["prob", "logit_diff"]
    prob, difference = map(number, entries(answer, names), names)
    if not close(difference, 0, 1e-3):
        return "logit_diff: what is added to both terms of a difference, what does it change?"
    with torch.no_grad():
        before = model(pairs.clean_tokens)[:, -1]
    rows = torch.arange(len(pairs))
    after = before.clone()
    after[rows, pairs.answers] += 1
    alone = after.clone()
    after[rows, pairs.wrong_answers] += 1

    def probability(logits: torch.Tensor) -> float:
        return float(logits.softmax(-1)[rows, pairs.answers].mean())

    change = probability(after) - probability(before)
    if close(prob, change):
        return None
    mistakes = {
        "prob: give the change, after minus before": probability(after),
        "prob: the names take from all other tokens, so that this is not zero": 0.0,
        "prob: you raised IO alone": probability(alone) - probability(before),
        "prob: a probability is not multiplied by e, since the sum grows, too": (
            probability(before) * 1.718281828
        ),
        "prob: the sign is turned": -change,
    }
    otherwise = (
        "prob: another number; take softmax of the changed logits of each prompt, then means"
    )
    return mistake(lambda value: close(prob, value), mistakes, otherwise)

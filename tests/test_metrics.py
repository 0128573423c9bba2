"""The metrics on logits written by hand."""

import math

import pytest
import torch
from torch import Tensor

from patchlib.errors import PatchlibError
from patchlib.patching import metrics

# The exponentials are 1, 2, 3 and 4, so that the probabilities are 0.1, 0.2, 0.3 and 0.4.
LOGITS = torch.tensor([[1.0, 2, 3, 4]]).log()
UNIFORM = torch.zeros(1, 4)


def value(
    name: str,
    logits: Tensor,
    r: list,
    r_wrong: list | None = None,
    source: Tensor | None = None,
) -> Tensor:
    metric = metrics.METRICS[name]
    wrong = torch.tensor(r_wrong if r_wrong is not None else r)
    return metric.value(logits, torch.tensor(r), wrong, logits if source is None else source)


@pytest.mark.parametrize(
    ("name", "r", "expected"),
    [
        ("prob", [3], 0.4),
        ("prob", [0], 0.1),
        ("log_prob", [1], math.log(0.2)),
        ("rank", [3], 0),
        ("rank", [0], 3),
        ("accuracy", [3], 1),
        ("accuracy", [2], 0),
    ],
)
def test_one_answer(name: str, r: list[int], expected: float):
    """Each metric of one token."""
    assert value(name, LOGITS, r).tolist() == pytest.approx([expected])


@pytest.mark.parametrize(
    ("name", "r", "expected"),
    [
        ("prob", [[0, 2, -1]], 0.1 + 0.3),
        # The log of a sum, not the sum of logs.
        ("log_prob", [[0, 2, -1]], math.log(0.4)),
        # The best of the set is token 2, with only token 3 above it.
        ("rank", [[0, 2, -1]], 1),
        ("accuracy", [[0, 2, -1]], 0),
        ("accuracy", [[0, 3, -1]], 1),
        ("prob", [[-1, -1]], 0),
        ("prob", [[0, 1, 2, 3]], 1),
    ],
)
def test_sets_of_answers(name: str, r: list[list[int]], expected: float):
    """A row's -1 stand for no token at all."""
    assert value(name, LOGITS, r).tolist() == pytest.approx([expected])


@pytest.mark.parametrize(
    ("r", "r_wrong", "expected"),
    [
        ([3], [1], math.log(4 / 2)),
        ([1], [3], math.log(2 / 4)),
        ([[3, 2]], [[0, 1]], math.log(4 * 3) - math.log(1 * 2)),
        ([[3, 2]], [[1, -1]], math.log(4 * 3 / 2)),
        # Nothing is subtracted where there is no wrong answer, as for the year 99.
        ([[3, -1]], [[-1, -1]], math.log(4)),
    ],
)
def test_logit_difference(r: list, r_wrong: list, expected: float):
    """Log(4/2) is the difference of log 4 and log 2; sets are summed."""
    assert value("logit_diff", LOGITS, r, r_wrong).tolist() == pytest.approx([expected])


@pytest.mark.parametrize(
    ("r", "r_wrong", "expected"),
    [([3], [0], 4.0), ([0], [3], 0.25), ([[0, 2, -1]], [[1, -1]], 2.0), ([[1, 3]], [[0, 2]], 1.5)],
)
def test_odds(r: list, r_wrong: list, expected: float):
    """Ratios of summed probabilities; of single answers the logit difference is the log."""
    assert value("odds", LOGITS, r, r_wrong).tolist() == pytest.approx([expected])
    assert value("log_odds", LOGITS, r, r_wrong).tolist() == pytest.approx([math.log(expected)])
    shifted = value("log_odds", LOGITS + 100, r, r_wrong)
    assert shifted.tolist() == pytest.approx([math.log(expected)], abs=1e-4)
    assert (expected in (4.0, 0.25)) == (
        value("logit_diff", LOGITS, r, r_wrong).tolist() == pytest.approx([math.log(expected)])
    )


def test_kl_divergence_from_and_to_uniform():
    """The sum of p·log(p/q), with the source run as p."""
    p, q = [0.1, 0.2, 0.3, 0.4], 0.25
    forward = sum(x * math.log(x / q) for x in p)
    backward = sum(q * math.log(q / x) for x in p)
    assert value("kl", UNIFORM, [0], source=LOGITS).item() == pytest.approx(forward)
    assert value("kl", LOGITS, [0], source=UNIFORM).item() == pytest.approx(backward)
    assert forward != pytest.approx(backward)


def test_kl_divergence_of_equal_runs_is_zero():
    """A constant added to all logits leaves the distribution as it is."""
    assert value("kl", LOGITS, [0], source=LOGITS).item() == 0
    assert value("kl", LOGITS + 5, [0], source=LOGITS).item() == pytest.approx(0, abs=1e-6)


def test_kl_divergence_is_never_negative():
    """Up to rounding, for whatever logits."""
    generator = torch.Generator().manual_seed(0)
    here, source = torch.randn(2, 200, 50, generator=generator) * 5
    divergence = value("kl", here, [0], source=source)
    assert divergence.shape == (200,)
    assert divergence.min() > 0


def test_ties():
    """Equal logits are not above each other: a token that shares the first place is right."""
    tied = torch.tensor([[2.0, 2.0, 1.0, 1.0]])
    assert [value("rank", tied, [token]).item() for token in range(4)] == [0, 0, 2, 2]
    assert [value("accuracy", tied, [token]).item() for token in range(4)] == [1, 1, 0, 0]


@pytest.mark.parametrize("name", metrics.METRICS)
def test_batches_are_independent(name: str):
    """With cells before prompts, each number is that of its own row of logits."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 7, generator=generator)
    source = torch.randn(2, 7, generator=generator)
    r, r_wrong = [[0, 5], [2, -1]], [[1, -1], [4, 6]]
    together = value(name, logits, r, r_wrong, source)
    assert together.shape == (3, 2)
    for cell in range(3):
        for prompt in range(2):
            alone = value(
                name,
                logits[cell, prompt][None],
                [r[prompt]],
                [r_wrong[prompt]],
                source[prompt][None],
            )
            assert together[cell, prompt].item() == pytest.approx(alone.item(), abs=1e-6)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_one_answer_is_a_set_of_one(name: str):
    """The two ways to write a single answer mean the same."""
    one = value(name, LOGITS, [2], [1], UNIFORM)
    assert one.shape == (1,)
    assert value(name, LOGITS, [[2, -1]], [[1, -1]], UNIFORM).tolist() == pytest.approx(
        one.tolist()
    )


def test_signs():
    """Better is larger, except for distances and ranks; only one metric is normalised."""
    signs = {name: metric.sign for name, metric in metrics.METRICS.items()}
    assert signs == {
        "logit_diff": 1,
        "prob": 1,
        "kl": -1,
        "log_prob": 1,
        "wrong_prob": -1,
        "rank": -1,
        "accuracy": 1,
        "log_odds": 1,
        "odds": 1,
    }
    assert [name for name, metric in metrics.METRICS.items() if metric.normalized] == ["logit_diff"]


def test_choose_keeps_the_order():
    """Results list metrics as they were asked for."""
    assert [metric.name for metric in metrics.choose(["kl", "prob"])] == ["kl", "prob"]
    assert [metric.name for metric in metrics.choose("rank")] == ["rank"]


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["probability"], "unknown metric 'probability'"),
        ([], "none given"),
        (["prob", "kl", "prob"], "metrics=prob, kl, prob: give at least one, and each name once"),
        ([3], "unknown metric 3"),
    ],
)
def test_unknown_metrics_are_refused(names: list, named: str):
    """The refusal lists what there is."""
    with pytest.raises(PatchlibError) as refusal:
        metrics.choose(names)
    for word in (named, *metrics.METRICS):
        assert word in str(refusal.value)


BROKEN = torch.tensor([[0.0, 1, 2, 3], [0, torch.nan, 0, 0], [0, 0, 0, torch.inf]])


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        (BROKEN, "NaN or infinite for 2 of 3 prompts, the first 'two'"),
        (torch.stack((BROKEN[[0, 0, 0]], BROKEN)), "for 2 of 3 prompts, the first 'two'"),
        (BROKEN[[0, 0, 2]], "for 1 of 3 prompts, the first 'three'"),
    ],
    ids=["NaN and infinity", "one cell of two", "infinity"],
)
def test_broken_logits_are_refused(logits: Tensor, said: str):
    """A prompt whose numbers are missing would drop out of every mean."""
    r = torch.tensor([0, 0, 0])
    with pytest.raises(PatchlibError, match=said):
        metrics.measure(metrics.choose("prob"), logits, r, r + 1, logits, ["one", "two", "three"])
    with pytest.raises(PatchlibError, match=r"the first number \d"):
        metrics.require_finite(logits)
    metrics.require_finite(BROKEN[:1])


@pytest.mark.parametrize(
    ("logits", "dtype"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2],
)
def test_the_precision_of_metrics(logits: torch.dtype, dtype: torch.dtype):
    """At least single: a sum over a vocabulary in half precision is off by percents."""
    seen: list[torch.dtype] = []

    def lead(logits: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return logits[..., 0]

    rows, r = LOGITS.to(logits), torch.tensor([0])
    found = metrics.measure(metrics.choose(["prob", lead]), rows, r, r, rows)
    assert (seen, found.dtype) == ([dtype], torch.float64)
    assert found[0].item() == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize("name", ["rank", "accuracy", "prob", "logit_diff", "kl"])
def test_a_broken_run_has_no_value(name: str):
    """No comparison with NaN is true: counted naively, a broken run would be always right."""
    broken = torch.tensor([[0.0, 1.0, torch.nan, torch.nan]])
    assert value(name, broken, [2]).isnan().item()
    assert not value(name, LOGITS, [2]).isnan().item()

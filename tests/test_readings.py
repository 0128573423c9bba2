"""The paper's own numbers must hold the claims, by the expressions that read a run's."""

import numpy as np
import pytest

import patchlib as pl

METRICS, FACTS, RUNS = ["prob", "logit_diff", "kl"], ["prob", "logit_diff"], ["STR", "GN"]


def test_claims_about_heads():
    sweep, s1io, gt = map(pl.paper.sweep, ("table5", "table4", "table3"))
    claims = {
        "31-8": all(sweep.found("STR", m) != sweep.found("GN", m) for m in METRICS),
        "31-9": all(
            sweep.found("STR", m, "positive") == sweep.found("STR", "kl", "positive")
            for m in METRICS
        ),
        "31-10": len(sweep.everywhere()) >= 2,
        "E-1": all(
            len(gt.found("STR", m) & gt.found("GN", m))
            < 0.5 * len(gt.found("STR", m) | gt.found("GN", m))
            for m in METRICS
        ),
        "E-2": all(len(gt.found("GN", m)) > len(gt.found("STR", m)) for m in METRICS),
        "E-3": sum(len(gt.found("GN", m, "negative")) for m in METRICS)
        > sum(len(gt.found("STR", m, "negative")) for m in METRICS),
        "E-4": bool(gt.everywhere()),
        "F-4": len(s1io.found("STR") & sweep.found("STR"))
        < 0.5 * len(s1io.found("STR") | sweep.found("STR")),
    }
    assert all(claims.values()), claims


def test_claims_about_layers():
    peaks, windows = pl.paper.peaks(), pl.paper.windows()
    ratios = pl.paper.last_to_middle().ratio
    several = windows.loc["GN", "prob"].index
    claims = {
        "31-1": all(peaks.salient["GN", m, 5] for m in FACTS),
        "31-3": not any(peaks.salient["STR", m, 5] for m in FACTS),
        "31-5": all(2 <= peaks.peak["GN", m, 5] / peaks.peak["STR", m, 5] <= 5 for m in FACTS),
        "41-1": ratios["STR", "prob", 5] > ratios["STR", "logit_diff", 5],
        "41-2": ratios["GN", "prob", 5] > ratios["GN", "logit_diff", 5],
        "41-3": ratios["GN", "logit_diff", 5] < 1,
        "5-1": (windows.ratio["GN", "prob"] > 1.2).all(),
        "5-2": (windows.ratio >= 1.2).mean() > 0.5,
        "5-3": peaks.peak["GN", "prob", 1] < 0.5 * peaks.plateau["GN", "prob", 1],
        "5-4": (np.diff([peaks.peak["GN", "prob", w] for w in several]) > 0).all(),
        "5-5": abs(windows.ratio["STR", "logit_diff", 5] - 1) < 0.1,
        "G-1": not any(peaks.salient[r, m, 1] for r in RUNS for m in FACTS),
    }
    assert all(claims.values()), claims
    assert several.tolist() == [3, 5, 10]


def test_shapes_are_those_of_a_run(mini):
    facts = pl.tasks.factual_recall(mini, n=20)
    settings = {"metrics": FACTS, "window": [1, 3], "progress": False}
    last = pl.sweep(
        mini, facts, {"STR": pl.STR("subject")}, "mlp", positions="last_subject", **settings
    )
    two = ["middle_subject", "last_subject"]
    both = pl.sweep(mini, facts, {"STR": pl.STR("subject")}, "mlp", positions=two, **settings)
    for paper, here in (
        (pl.paper.peaks(), pl.peaks(last)),
        (pl.paper.windows(), pl.compare_windows(last)),
        (pl.paper.last_to_middle(), pl.last_to_middle(both)),
    ):
        assert paper.dtypes.to_dict() == here.dtypes.to_dict()
        assert paper.index.names == here.index.names == ["run", "metric", "window"]


def test_attention():
    clean, restored = pl.paper.attention(), pl.paper.attention("restored")
    assert clean.index.tolist() == ["clean", *RUNS] and restored.index.tolist() == RUNS
    assert clean.columns.tolist() == restored.columns.tolist() == ["IO", "S1", "S2", "others"]
    assert clean.S1["STR"] == 0.595 and restored.IO["GN"] == 0.4
    assert (abs(clean.sum(axis=1) - 1) < 0.03).all()
    with pytest.raises(pl.PatchlibError, match="which='3b'"):
        pl.paper.attention("3b")

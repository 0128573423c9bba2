"""The scores of all methods: what each row is, that a stopped table goes on, and that it holds."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import patchlib as pl
from patchlib.models import known
from patchlib.models.loading import KNOWN
from patchlib.paper import scoreboard
from patchlib.paper.scoreboard import METHODS, Call, Method

CLOSE = {"rtol": 1e-3, "atol": 2e-5}
OPTIONS = {"keep_prompts": True, "progress": False}


@pytest.fixture(scope="module")
def pairs(tiny_gpt2):
    return pl.tasks.ioi(tiny_gpt2, n=4)


@pytest.fixture
def found(monkeypatch):
    """Heads and edges of the tiny model in place of a circuit."""
    heads = {pl.Head(0, 1): 0.5, pl.Head(2, 0): -0.5}
    edges = {("resid0", "0.1"): 0.5, ("0.1", "2.0"): 1.0, ("1.3", "logits"): -0.5}
    active = {"0.1", "2.0", "resid0->0.1", "0.1->2.0", "1.3->logits"}
    monkeypatch.setattr(known, "active", lambda *_: active)
    monkeypatch.setattr(known, "heads", lambda *_: heads)
    monkeypatch.setattr(known, "edges", lambda *_: edges)


@pytest.mark.parametrize("call", [
    Call("patching", "GN", "ABC", "noise"), Call("mean ablation", "", "", ""),
    Call("EAP", "STR", "S1+IO", "denoise"), Call("norm of heads", "STR", "S2", ""),
], ids=lambda call: call.method)  # fmt: skip
def test_a_row_is_the_score_of_what_the_method_gives(tiny_gpt2, pairs, found, call, monkeypatch):
    monkeypatch.setattr(scoreboard.tasks, "ioi", lambda model, n: pairs)
    rows = scoreboard.rows(tiny_gpt2, call).set_index("metric")
    assert rows.index.tolist() == list(METHODS[call.method].metrics)
    by_hand = {
        "patching": lambda: pl.patch(tiny_gpt2, pairs, corruption=pl.GN("S1+IO+S2"),
                                     direction="noise", **OPTIONS),
        "mean ablation": lambda: pl.ablate(tiny_gpt2, pairs, with_=pl.Mean(), **OPTIONS),
        "EAP": lambda: pl.attribute_edges(tiny_gpt2, pairs, corruption=pl.STR("S1+IO"),
                                          metrics=list(METHODS["EAP"].metrics), **OPTIONS),
    }  # fmt: skip
    if call.method in by_hand:
        truth = scoreboard.truth("graded", pairs, call)
        for metric in rows.index:
            score = pl.score(by_hand[call.method](), truth, metric)
            for column, end in (("value", ""), ("low", "_low"), ("high", "_high")):
                stored = rows.loc[metric, [f"{name}{end}" for name in score.index]]
                np.testing.assert_allclose(stored.astype(float), score[column], atol=1e-4)
    assert (rows.n_true == (3 if rows.of.iloc[0] == "edges" else 2)).all()


def test_the_truth_is_what_is_active_under_a_corruption(mini):
    """By the mechanism: an exchange of S2 changes nothing at the names before it. What has no
    effect in a direction is to be found all the same."""
    pairs = pl.tasks.ioi(mini, n=16)

    def truth(*call, method="patching", gate="graded"):
        return scoreboard.truth(gate, pairs, Call(method, *call))

    writers, votes = {"4.3": "+", "5.2": "-"}, {"2.2": 0.5, "2.0": 0.5}
    assert truth("STR", "S2", "noise") == votes | {"3.1": 1.0} | writers
    assert truth("GN", "S2", "noise") == dict.fromkeys(truth("STR", "S2", "noise"))
    whole = dict.fromkeys(["0.1", "2.2", "2.0", "3.1", "4.3", "5.2"])
    assert truth("STR", "ABC", "noise") == {"0.1": 0.5, "3.1": 1.0} | votes | writers
    # Without both names there is nothing to inhibit.
    assert truth("STR", "ABC", "denoise") == whole | writers
    # One vote is enough for an OR, so that the other is missed by nobody.
    assert truth("STR", "ABC", "noise", gate="or") == whole | {"3.1": 1.0} | writers
    assert truth("", "", "", method="mean ablation") == whole
    assert len(truth("STR", "ABC", "noise", method="EAP")) == 12
    assert len(truth("STR", "ABC", "noise", method="EAP", gate="or")) == 12
    active = truth("STR", "S2", "denoise", method="edge patching")
    assert len(active) == 8 and active["resid0->2.0"] == 0.5 and active["3.1->5.2"] == "-"
    assert [*truth("STR", "S2", "noise", method="direct effect")] == ["4.3->logits", "5.2->logits"]
    assert "resid0->2.0" not in truth("STR", "ABC", "noise", method="path patching")


def test_edges_alone_are_paths_through_no_mlp(tiny_gpt2, pairs):
    """Patched one at a time, with query, key and value together, by either engine."""
    options = OPTIONS | {"corruption": pl.STR("S2"), "metrics": "logit_diff"}
    edges = scoreboard._edge_by_edge(tiny_gpt2, pairs, **options).squeeze("metric").patched
    # Each path's `patched` stands in for its effect, which may be divided by a small difference.
    name = scoreboard._into
    paths = {
        reader: name(reader, fx.assign(effect=fx.patched).squeeze("metric"))
        for reader, parts in (("2.3", ["q2.3", "k2.3", "v2.3"]), ("logits", "logits"))
        for fx in [pl.path_patch(tiny_gpt2, pairs, "head", parts, mlps="freeze", **options)]
    }
    assert [part.sizes["edges"] for part in paths.values()] == [8, 12]
    for part in paths.values():
        there = edges.sel(edges=part.edges).transpose("prompt", "edges")
        np.testing.assert_allclose(part.effect.transpose("prompt", "edges"), there, **CLOSE)


def test_passes_and_edges_are_counted(tiny_gpt2, pairs):
    options = OPTIONS | {"corruption": pl.STR("S2"), "metrics": "logit_diff"}
    edges = scoreboard._edge_by_edge(tiny_gpt2, pairs[:1], **options).edges.values.tolist()
    layers, heads = tiny_gpt2.cfg.n_layers, tiny_gpt2.cfg.n_heads
    assert len(edges) == METHODS["edge patching"].passes(layers, heads) - 2
    paths = scoreboard._by_paths(tiny_gpt2, pairs[:1], **options).edges.values.tolist()
    assert len(paths) == METHODS["path patching"].passes(layers, heads) - 2
    assert {*paths} == {*filter(METHODS["path patching"].sees, edges)} - {
        edge for edge in edges if "mlp_in" in edge
    }
    direct = scoreboard._directly(tiny_gpt2, pairs[:1], **options).edges.values.tolist()
    assert direct == [*filter(METHODS["direct effect"].sees, edges)]


def test_acdc_ranks_edges_by_the_threshold_that_removes_them(tiny_gpt2, pairs, monkeypatch):
    # Some edges go at the first threshold, and all at the second.
    monkeypatch.setattr(scoreboard, "_THRESHOLDS", (0.001, 1e6))
    fx = scoreboard._pruned(tiny_gpt2, pairs[:2], pl.STR("S2"), "noise")
    few = pl.acdc_sweep(tiny_gpt2, pairs[:2], [0.001, 1e6], corruption=pl.STR("S2"), merged=True,
                        progress=False)  # fmt: skip
    left = {threshold: {*map(scoreboard._merged, one.circuit)} for threshold, one in few.items()}
    assert left[1e6] < left[0.001] < {*fx.edges.values}
    for name, value in zip(fx.edges.values.tolist(), fx.effect.values, strict=True):
        expected = 1e6 if name in left[1e6] else 0.001 if name in left[0.001] else 0
        assert value == expected
    assert fx.attrs["passes"] == 2 + sum(one.passes for one in few.values())


def test_norms_and_attention_by_hand(tiny_gpt2, pairs):
    with torch.no_grad():
        _, clean = tiny_gpt2.run_with_cache(pairs.clean_tokens)
        _, corrupted = tiny_gpt2.run_with_cache(pairs.corrupted_tokens("ABC"))
    change = (clean["blocks.1.attn.hook_z"] - corrupted["blocks.1.attn.hook_z"])[:, :, 2]
    norm = (change @ tiny_gpt2.W_O[1, 2].detach()).norm(dim=(1, 2))
    for of, at in (("heads", {"layer": 1, "head": 2}), ("edges", {"edges": "1.2->mlp_in2"})):
        values = scoreboard._norm(of)(tiny_gpt2, pairs, pl.STR("ABC"), "").effect.sel(at)
        np.testing.assert_allclose(values, norm, rtol=1e-4)
    pattern = clean["blocks.0.attn.hook_pattern"][:, 3]
    looks = scoreboard._attention(tiny_gpt2, pairs).effect.sel(layer=0, head=3)
    for row, (s1, s2, io) in enumerate(zip(*map(pairs.at, ("S1", "S2", "IO")), strict=True)):
        here, (s1, s2, io) = pattern[row], (s1[0], s2[0], io[0])
        end = len(here) - 1
        ends = [(s2, s1), (s2, io), (s2, s1 + 1), (s2, io + 1), (end, s1), (end, s2), (s1 + 1, s1)]
        expected = [float(here[each]) for each in ends]
        values = looks.isel(prompt=row).values
        assert np.isclose(values[:, None], expected, atol=1e-5).any(0).all()
        # Never a token at itself, nor the first token of all.
        assert values.max() <= np.tril(here.numpy(), -1)[:, 1:].max() + 1e-5


def test_a_table_goes_on_where_it_was_and_follows_the_weights(
    tiny_gpt2, found, tmp_path, monkeypatch
):
    ran = Counter()

    def run(model, pairs, corruption, direction):
        ran[direction] += 1
        if ran["noise"] == 1 and ran.total() == 2:
            raise KeyboardInterrupt
        return scoreboard._random(model, pairs)

    monkeypatch.setattr(scoreboard, "PROMPTS", 4)
    method = Method("heads", run, lambda layers, heads: 7, metrics=[""])
    monkeypatch.setattr(scoreboard, "METHODS", {"some": method})
    monkeypatch.setattr(scoreboard, "SITES", ["S2"])
    name = Path(tiny_gpt2.cfg.model_name).name
    monkeypatch.setattr(scoreboard, "MODELS", [name, "another"])
    path = tmp_path / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        scoreboard.fill(tiny_gpt2, path)
    assert pl.scores(path).direction.tolist() == ["denoise"]
    scoreboard.fill(tiny_gpt2, path)
    table = pl.scores(path)
    assert table.direction.tolist() == ["denoise", "noise"] and ran.total() == 3
    assert (table.passes == 7).all() and (table.metric == "").all()
    scoreboard.fill(tiny_gpt2, path)
    assert ran.total() == 3 and pl.scores(path).equals(table)
    # Rows of other weights go, those of other models stay.
    others = [table.assign(model="another"), table.assign(model="no more")]
    pd.concat([*others, table.assign(revision="older")]).to_csv(path, index=False)
    scoreboard.fill(tiny_gpt2, path)
    again = pl.scores(path)
    assert ran.total() == 5 and (again.revision != "older").all()
    assert again.model.tolist() == [name] * 2 + ["another"] * 2
    assert scoreboard.difference(tiny_gpt2, Call("some", "STR", "S2", "noise"), path) == 0
    path.write_text(path.read_text().replace(str(again.auc[0]), "0.111"))
    assert scoreboard.difference(tiny_gpt2, Call("some", "STR", "S2", "noise"), path) > 0.02


def test_the_table_is_whole():
    table = pl.scores()
    every = {
        (*call, metric) for call in scoreboard.calls() for metric in METHODS[call.method].metrics
    }
    for _, rows in table.groupby("model"):
        labels = [*rows[[*Call._fields, "metric"]].itertuples(index=False, name=None)]
        assert Counter(labels) == Counter(every)
    assert {*known.GATES} <= {*table.model} <= {*scoreboard.MODELS}
    assert (
        table[["auc", "average_precision", "precision", "signed_auc"]].stack().between(0, 1).all()
    )


def test_a_sample_of_the_table_is_what_is_computed_anew():
    """Another one at each run; the seed is in the output of a failure."""
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    name = draw.choice([*known.GATES])
    model, every = pl.load_model(KNOWN / name), [*scoreboard.calls()]
    # These take longer than all else together; `--verify` computes them, too.
    costly = ("edge patching", "path patching", "ACDC", "EAP-IG, activations")
    cheap = [call for call in every if call.method not in costly]
    for call in draw.sample(cheap, 3):
        apart = scoreboard.difference(model, call)
        assert apart < scoreboard.TOLERANCE, f"seed {seed}: {name}, {call}"

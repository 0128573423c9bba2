"""ACDC: gates worked out by hand, the rule spelt out edge by edge, and what must hold."""

import re
from collections.abc import Callable
from math import inf
from pathlib import Path

import numpy as np
import pytest
import test_closed_form as closed_form
import torch
import xarray as xr
from memory import Memory
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2LMHeadModel

import patchlib as pl
from patchlib.prompts.pairs import PromptPairs

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
OPTIONS = {"corruption": pl.STR("S2"), "progress": False}
PARTNERS = {"reverse": "0.0", "forward": "0.1"}


def some(model: TransformerBridge, every: int) -> pl.Edges:
    """Edges of all layers."""
    return pl.Edges([*pl.Edges.of(model)][::every])


def from_scratch(
    model: TransformerBridge, pairs: PromptPairs, circuits: dict, metric: str, **options
) -> xr.DataArray:
    """The metric of circuits, by patching all other edges of each in a run of its own."""
    every, measured = pl.Edges.of(model), metric
    if metric == "kl":
        with torch.no_grad():
            whole = model(pairs.clean_tokens)[:, -1].log_softmax(-1)

        def value(logits, r, r_wrong, source):
            return (whole.exp() * (whole - logits.log_softmax(-1))).sum(-1)

        measured = pl.Metric("from the whole", "KL divergence (nats)", value, -1)
    options = OPTIONS | options | {"metrics": measured, "direction": "noise"}
    others = {name: every - circuit for name, circuit in circuits.items()}
    return pl.patch_edges(model, pairs, others, **options).patched.squeeze("metric")


def again(model: TransformerBridge, pairs: PromptPairs, found, metric: str, **options) -> float:
    return from_scratch(model, pairs, {"found": found.circuit}, metric, **options).item()


@pytest.fixture
def gate(tmp_path: Path) -> Callable[[str], TransformerBridge]:
    """The model of test_closed_form, whose MLP is a gate.

    Heads 0 and 1 write ±3 into a and ±4 into b, the length of (a, b, 0) is always 5, and the neuron
    reads s = a/3 + b/4, which is 2, 0 or -2. An AND writes 12·max(0, s) - 12 into c, an OR
    12 - 12·max(0, -s): 12 if both heads, or at least one, say +, and else -12. The length is always
    13 now, and the logit of A, which is five times the normed c, is 60/13 or -60/13.
    """

    def build(kind: str) -> TransformerBridge:
        closed_form.save_weights(tmp_path)
        closed_form.save_words(tmp_path)
        gpt2 = GPT2LMHeadModel.from_pretrained(tmp_path)
        mlp, sign = gpt2.transformer.h[0].mlp, 1 if kind == "AND" else -1
        with torch.no_grad():
            reads = torch.tensor([[5 / 3], [5 / 4], [0]])
            mlp.c_fc.weight[:] = sign * closed_form.READ @ reads
            mlp.c_proj.weight[:] = sign * 12 * closed_form.H[2]
            mlp.c_proj.bias[:] = sign * -12 * closed_form.H[2]
            gpt2.lm_head.weight[:] = torch.tensor([[0.0, 0, 5], [0, 0, 0], [0, 0, 0]]) @ (
                closed_form.READ.T
            )
        gpt2.save_pretrained(tmp_path)
        return pl.load_model(tmp_path)

    return build


@pytest.mark.parametrize("metric", ["kl", "logit_diff"])
@pytest.mark.parametrize("order", PARTNERS)
def test_one_partner_of_an_or_goes(gate, order: str, metric: str):
    """The first one; what it reads goes without a run, and all else does nothing."""
    model, pairs = gate("OR"), PromptPairs("by hand", (closed_form.prompt(),))
    options = {"corruption": pl.STR("first"), "order": order, "progress": False}
    found = pl.acdc(model, pairs, 0.01, metric=metric, **options)
    partner = PARTNERS[order]
    edges = [f"resid0->v{partner}", f"{partner}->mlp_in0", "mlp0->logits"]
    assert found.circuit == pl.Edges(edges)
    # Of 13 decisions three are about what the other head reads.
    assert found.passes == 10
    free = found.decisions.where(~found.decisions.run, drop=True)
    assert {each[1:] for each in free.reader.values} == {"0.1" if partner == "0.0" else "0.0"}
    assert (free.change == 0).all() and free.removed.all()
    np.testing.assert_allclose(found.value, 0 if metric == "kl" else 60 / 13, atol=1e-5)
    kept = found.decisions.where(~found.decisions.removed, drop=True)
    # With logits (±60/13, 0, 0), log p - log q is 120/13 for A less the difference of log sums.
    on, off = np.exp(60 / 13), np.exp(-60 / 13)
    divergence = on / (on + 2) * 120 / 13 - np.log((on + 2) / (off + 2))
    lost = 120 / 13 if metric == "logit_diff" else divergence
    np.testing.assert_allclose(kept.change, lost, rtol=1e-5)


@pytest.mark.parametrize("order", [*PARTNERS, 0])
def test_both_partners_of_an_and_stay(gate, order: str | int):
    model, pairs = gate("AND"), PromptPairs("by hand", (closed_form.prompt(),))
    options = {"corruption": pl.STR("first"), "order": order, "progress": False}
    found = pl.acdc(model, pairs, 0.01, **options)
    edges = ["0.0->mlp_in0", "0.1->mlp_in0", "resid0->v0.0", "resid0->v0.1", "mlp0->logits"]
    assert found.circuit == pl.Edges(edges) and found.passes == 13
    merged = pl.acdc(model, pairs, 0.01, merged=True, **options)
    queries_and_keys = [f"resid0->{letter}0.{head}" for letter in "qk" for head in (0, 1)]
    assert merged.circuit == pl.Edges([*edges, *queries_and_keys]) and merged.passes == 9


@pytest.mark.parametrize("metric", ["kl", "logit_diff"])
def test_each_decision_is_one_run_of_its_own(tiny: TransformerBridge, metric: str):
    """The rule edge by edge, every run of it patched from scratch."""
    pairs, options = pl.tasks.ioi(tiny, 3), OPTIONS | {"corruption": pl.STR("ABC")}
    found = pl.acdc(tiny, pairs, 0.003, metric=metric, **options)
    left = pl.Edges.of(tiny)
    decided, tried = found.decisions, {"start": left}
    for edge, removed in zip(decided.edge.values, decided.removed.values, strict=True):
        tried[edge] = left - pl.Edges([edge])
        left = tried[edge] if removed else left
    assert left == found.circuit and 0 < len(left) < len(tried) - 1
    values = from_scratch(tiny, pairs, tried, metric, **options).values
    np.testing.assert_allclose(decided.value, values[1:], **CLOSE)
    before = values[0]
    for decision, value in zip(decided.removed.values, values[1:], strict=True):
        change = (value - before) * (1 if metric == "kl" else -1)
        # But for what rounding makes of two runs.
        assert decision == (change < 0.003) or abs(change - 0.003) < 1e-5
        before = value if decision else before


@pytest.mark.parametrize("merged", [False, True])
def test_infinity_leaves_the_corrupted_run(model: TransformerBridge, merged: bool):
    """By readers of the logits alone: nobody reads anything else any more."""
    pairs = pl.tasks.ioi(model, 3)
    found = pl.acdc(model, pairs, inf, merged=merged, **OPTIONS)
    assert found.circuit == pl.Edges()
    assert found.passes == 1 + model.cfg.n_layers * (1 + model.cfg.n_heads)
    with torch.no_grad():
        clean, corrupted = (
            model(tokens)[:, -1].log_softmax(-1)
            for tokens in (pairs.clean_tokens, pairs.corrupted_tokens("S2"))
        )
    expected = (clean.exp() * (clean - corrupted)).sum(-1).mean()
    np.testing.assert_allclose(found.value, expected, **CLOSE)


def test_no_threshold_below_every_change_removes_anything(tiny: TransformerBridge):
    found = pl.acdc(tiny, pl.tasks.ioi(tiny, 2), -inf, **OPTIONS)
    assert found.circuit == pl.Edges.of(tiny)
    assert abs(found.value) < 1e-9 and found.passes == found.decisions.sizes["edge"]


def test_zero_removes_nothing_that_helps(tiny: TransformerBridge):
    """By KL nothing but rounding goes; by a signed metric, all that works against the answer."""
    pairs = pl.tasks.ioi(tiny, 2)
    found = pl.acdc(tiny, pairs, 0, **OPTIONS)
    assert abs(found.value) < 1e-9
    assert abs(again(tiny, pairs, found, "kl")) < 1e-5
    gone = found.decisions.where(found.decisions.removed, drop=True)
    assert (abs(gone.change) < 1e-9).all()
    found = pl.acdc(tiny, pairs, 0, metric="logit_diff", **OPTIONS)
    gone = found.decisions.where(found.decisions.removed, drop=True)
    assert (gone.change < 0).all() and gone.change.min() < -0.01
    start = from_scratch(tiny, pairs, {"whole": pl.Edges.of(tiny)}, "logit_diff").item()
    assert found.value > start + 0.01


@pytest.mark.parametrize("merged", [False, True])
def test_what_is_left(tiny: TransformerBridge, merged: bool):
    """Worse by less than the threshold for each edge; the same from scratch; changes add up."""
    pairs, options = pl.tasks.ioi(tiny, 3), OPTIONS | {"corruption": pl.STR("ABC")}
    found = pl.acdc(tiny, pairs, 0.03, merged=merged, **options)
    gone = found.decisions.where(found.decisions.removed, drop=True)
    removed = pl.Edges.of(tiny) - found.circuit
    assert 0 < len(gone.edge) <= len(removed) < len(pl.Edges.of(tiny))
    assert merged or len(gone.edge) == len(removed)
    assert 0.01 < found.value <= 0.03 * len(gone.edge)
    np.testing.assert_allclose(found.value, gone.change.sum(), atol=1e-9)
    value = again(tiny, pairs, found, "kl", corruption=pl.STR("ABC"))
    np.testing.assert_allclose(found.value, value, **CLOSE)
    assert found.passes == int(found.decisions.run.sum()) <= found.decisions.sizes["edge"]
    # Keys and values of a group are kept or removed together.
    if merged and tiny.original_model.config.model_type == "llama":
        heads = {edge.reader[1:] for edge in found.circuit if edge.reader[0] in "kv"}
        assert heads <= {f"{layer}.{head}" for layer in range(3) for head in (0, 2)}


def test_draws_of_noise(tiny: TransformerBridge):
    """Each decision is about the mean over all."""
    pairs, noise = pl.tasks.ioi(tiny, 3), pl.GN("S1+IO", draws=2)
    options = OPTIONS | {"corruption": noise}
    found = pl.acdc(tiny, pairs, 0.005, metric="log_prob", among=some(tiny, 2), **options)
    value = again(tiny, pairs, found, "log_prob", corruption=noise)
    np.testing.assert_allclose(found.value, value, **CLOSE)
    assert 0 < len(found.circuit) < len(some(tiny, 2))


def test_prompts_of_several_lengths(tiny: TransformerBridge):
    """Each decision is about the mean over all."""
    pairs = pl.tasks.factual_recall(tiny, 6)
    assert len({len(prompt.clean) for prompt in pairs.prompts}) > 1
    options = OPTIONS | {"corruption": pl.STR("subject"), "metric": "log_prob"}
    found = pl.acdc(tiny, pairs, 0.02, among=some(tiny, 2), **options)
    value = again(tiny, pairs, found, "log_prob", corruption=pl.STR("subject"))
    np.testing.assert_allclose(found.value, value, **CLOSE)
    assert 0 < len(found.circuit) < len(some(tiny, 2))


def test_orders(tiny_folders: Callable[[str], Path]):
    """From the logits back, each in its own way; all readers of a head together where merged."""
    model = pl.load_model(tiny_folders("llama"))
    among = "0.1->q1.0 resid0->q1.0 0.1->v1.3 mlp0->v1.3 0.1->q1.1 0.1->mlp_in1 0.1->logits"
    pairs = pl.tasks.ioi(model, 2)

    def visited(order: object, merged: bool = False) -> str:
        options = OPTIONS | {"order": order, "merged": merged}
        return " ".join(pl.acdc(model, pairs, -inf, among=among, **options).decisions.edge.values)

    late = "0.1->logits 0.1->mlp_in1 "
    reverse = "mlp0->v1.2 0.1->v1.2 0.1->q1.1 0.1->q1.0 resid0->q1.0"
    assert visited("reverse") == late + reverse
    assert visited("forward") == late + ("resid0->q1.0 0.1->q1.0 0.1->q1.1 0.1->v1.2 mlp0->v1.2")
    assert visited("reverse", True) == late + "mlp0->1.2 0.1->1.2 0.1->1.0 resid0->1.0"
    drawn = {visited(seed) for seed in range(8)}
    assert len(drawn) > 1 and visited(3) in drawn and all(each.startswith(late) for each in drawn)
    fx = pl.attribute_edges(model, pairs, **OPTIONS)
    fx["effect"] = xr.full_like(fx.effect, 1.0)
    assert visited(fx) == late + reverse
    fx.effect.loc[{"writer": "mlp0", "reader": "v1.2"}] = -2.0
    assert visited(fx) == late + reverse.replace("mlp0->v1.2 0.1->v1.2", "0.1->v1.2 mlp0->v1.2")


def test_thresholds(tiny_gpt2: TransformerBridge):
    """Pruned on, circuits are nested; from scratch, each is that of its threshold alone."""
    pairs, thresholds = pl.tasks.ioi(tiny_gpt2, 2), [0.03, 0.001, 0.01]
    options = OPTIONS | {"corruption": pl.STR("ABC")}
    found = pl.acdc_sweep(tiny_gpt2, pairs, thresholds, **options)
    assert [*found] == sorted(thresholds)
    circuits = [each.circuit for each in found.values()]
    assert pl.Edges() < circuits[2] < circuits[1] < circuits[0]
    for before, after in zip(circuits[:-1], [*found.values()][1:], strict=True):
        assert after.passes <= len(before) and after.decisions.sizes["edge"] == len(before)
    for threshold, each in found.items():
        value = again(tiny_gpt2, pairs, each, "kl", **options)
        np.testing.assert_allclose(each.value, value, **CLOSE)
        assert each.value < threshold * (262 - len(each.circuit))
    alone = pl.acdc_sweep(tiny_gpt2, pairs, thresholds[1:], reuse=False, **options)
    for threshold, each in alone.items():
        same = pl.acdc(tiny_gpt2, pairs, threshold, **options)
        assert same.circuit == each.circuit and same.decisions.identical(each.decisions)
    assert alone[0.001].circuit == circuits[0]


def test_what_results_say(tiny_gpt2: TransformerBridge, tmp_path: Path):
    pairs, done = pl.tasks.ioi(tiny_gpt2, 2), list[tuple[int, int]]()
    options = OPTIONS | {"progress": lambda *rows: done.append(rows)}
    found = pl.acdc(tiny_gpt2, pairs, 0.1, among=some(tiny_gpt2, 30), **options)
    assert done == [(number, 9) for number in range(10)]
    assert str(found) == (
        f"Pruning({len(found.circuit)} of 262 edges left at threshold 0.1: kl {found.value:.3g}, "
        f"{found.passes} passes)"
    )
    said = found.decisions.attrs
    assert (said["method"], said["threshold"], said["order"]) == ("ACDC", 0.1, "reverse")
    assert (said["site"], said["n_prompts"], said["metrics"]) == ("S2", 2, "kl")
    found.decisions.to_netcdf(tmp_path / "decisions.nc")
    assert xr.load_dataset(tmp_path / "decisions.nc").identical(found.decisions)
    none = pl.acdc(tiny_gpt2, pairs, 0.1, among=(), **OPTIONS)
    assert (none.circuit, none.passes, none.decisions.sizes["edge"]) == (pl.Edges(), 0, 0)


def test_it_keeps_to_the_budget(tiny: TransformerBridge):
    pairs, among = pl.tasks.ioi(tiny, 3), some(tiny, 20)
    with pytest.raises(pl.PatchlibError, match=r"all 3 prompts .* need \d+ bytes") as refusal:
        pl.acdc(tiny, pairs, 0.1, among=among, memory_budget=1000, **OPTIONS)
    (smallest,) = re.findall(r"give memory_budget=(\d+) or more", str(refusal.value))
    with Memory(tiny) as memory:
        pl.acdc(tiny, pairs, 0.1, among=among, memory_budget=int(smallest), **OPTIONS)
    assert memory.most <= int(smallest)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": "low"}, "threshold='low': give a number"),
        ({"threshold": float("nan")}, "threshold=nan: give a number"),
        ({"threshold": True}, "threshold=True"),
        ({"metric": ("kl", "prob")}, "give one, which every decision is about"),
        ({"metric": "loss"}, "unknown metric 'loss'"),
        ({"order": "best"}, "order='best': allowed are 'reverse', 'forward'"),
        ({"order": 0.5}, "order=0.5: give a whole number"),
        ({"order": xr.Dataset()}, "order= is a result over nothing: give one of pl.attribute"),
        ({"among": ["1.1->q1.1"]}, "'1.1->q1.1' is no edge of this model"),
        ({"corruption": "S2"}, "give pl.STR"),
    ],
)
def test_refusals(tiny_gpt2: TransformerBridge, wrong: dict, message: str):
    """Each says what is allowed."""
    settings = {"threshold": 0.1, "among": "0.1->logits", **OPTIONS} | wrong
    with pytest.raises(pl.PatchlibError, match=re.escape(message)):
        pl.acdc(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, 2), **settings)

"""Sets of heads: what they do alone, what others do without them, and what each is needed for."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from test_closed_form import prompt
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

import patchlib as pl
from patchlib.methods import circuit
from patchlib.prompts.pairs import PromptPairs

OPTIONS: dict[str, Any] = {"progress": False, "with_": pl.Zero()}
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
# What is left of A - B in test_closed_form.py's model with head 0 alone, of 11/13: without head 1
# its last position holds (3, 0, 20), divided by its length. With head 1 alone it is -1, and with
# no head, where layer norm leaves nothing of nothing, 0.
MODEL, HEAD_0, HEAD_1 = 11 / 13, 23 / math.sqrt(409), -1


@pytest.fixture(scope="module")
def pairs() -> PromptPairs:
    return PromptPairs("by hand", (prompt(), prompt()))


def every_head(model: TransformerBridge) -> pl.Heads:
    cfg = model.cfg
    return pl.Heads((layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads))


def test_faithfulness_by_hand(by_hand: TransformerBridge, pairs: PromptPairs):
    fx = pl.faithfulness(by_hand, pairs, ["0.0"], **OPTIONS).squeeze("metric")
    np.testing.assert_allclose([fx.model, fx.circuit, fx.empty], [MODEL, HEAD_0, 0], atol=1e-5)
    # Two equal prompts leave no doubt.
    for name in ("gap", "gap_low", "gap_high"):
        np.testing.assert_allclose(fx[name], MODEL - HEAD_0, atol=1e-5)
    for name in ("faithfulness", "low", "high"):
        np.testing.assert_allclose(fx[name], HEAD_0 / MODEL, atol=1e-5)
    against = pl.faithfulness(by_hand, pairs, "0.1", **OPTIONS)
    np.testing.assert_allclose(against.faithfulness, [-13 / 11], atol=1e-5)
    # One prompt has no interval.
    one = pl.faithfulness(by_hand, pairs[:1], ["0.0"], **OPTIONS)
    np.testing.assert_allclose(one.faithfulness, [HEAD_0 / MODEL], atol=1e-5)
    assert one.low.isnull().all() and one.gap_high.isnull().all()


def test_completeness_by_hand(by_hand: TransformerBridge, pairs: PromptPairs):
    fx = pl.completeness(by_hand, pairs, {"first": ["0.0"]}, draws=0, **OPTIONS)
    assert fx.gap.dims == ("metric", "subset")
    assert fx.subset.values.tolist() == ["nothing", "first", "everything"]
    assert fx.removed.values.tolist() == ["none", "0.0", "0.0"]
    np.testing.assert_allclose(fx.model, [[MODEL, HEAD_1, HEAD_1]], atol=1e-5)
    np.testing.assert_allclose(fx.circuit, [[HEAD_0, 0, 0]], atol=1e-5)
    for name in ("gap", "low", "high"):
        np.testing.assert_allclose(fx[name], [[MODEL - HEAD_0, -1, -1]], atol=1e-5)


def test_minimality_by_hand(by_hand: TransformerBridge, pairs: PromptPairs):
    fx = pl.minimality(by_hand, pairs, {"both": ["0.1", "0.0"]}, **OPTIONS)
    assert fx.change.dims == ("metric", "node", "without")
    assert fx.node.values.tolist() == ["0.1", "0.0"]
    # From both heads to one, and from one to none.
    changes = np.array([[HEAD_0 - MODEL, 0 - HEAD_1], [HEAD_1 - MODEL, 0 - HEAD_0]])
    for name in ("change", "low", "high"):
        np.testing.assert_allclose(fx[name], changes[None], atol=1e-5)
    np.testing.assert_allclose(fx.share, abs(changes[None]) / MODEL, atol=1e-5)


def test_all_heads_and_none(tiny: TransformerBridge):
    """The ends are exact: what is the same set is the same run."""
    pairs = pl.tasks.ioi(tiny, n=6)
    options = OPTIONS | {"with_": pl.Mean(), "metrics": ["logit_diff", "kl"]}
    every = every_head(tiny)
    whole = pl.faithfulness(tiny, pairs, every, **options)
    assert (whole.gap == 0).all() and (whole.faithfulness == 1).all()
    np.testing.assert_allclose(whole.model.sel(metric="kl"), 0, atol=1e-5)
    nothing = pl.faithfulness(tiny, pairs, {"no class": []}, **options)
    assert (nothing.faithfulness == 0).all()
    halves = {"even": every[::2], "odd": every[1::2]}
    complete = pl.completeness(tiny, pairs, halves, draws=3, seed=1, **options)
    assert (complete.gap == 0).all() and (complete.high == 0).all()
    assert complete.sizes["subset"] == 2 + 2 + 3
    # The gap without a set is that of faithfulness, and without the circuit what others do alone.
    some = pl.completeness(tiny, pairs, {"even": every[::2]}, draws=0, **options)
    alone = pl.faithfulness(tiny, pairs, every[::2], **options)
    others = pl.faithfulness(tiny, pairs, every[1::2], **options)
    xr.testing.assert_allclose(some.gap.sel(subset="nothing", drop=True), alone.gap)
    beside = (others.circuit - others.empty).values
    np.testing.assert_allclose(some.gap.sel(subset="everything").values, beside, **CLOSE)


def test_against_hooks(tiny: TransformerBridge):
    """TransformerLens' own hooks give the same numbers."""
    pairs = pl.tasks.ioi(tiny, n=4)
    kept = pl.Heads(["0.1", "1.2", "1.3"])

    names = [get_act_name("z", layer) for layer in range(tiny.cfg.n_layers)]
    # A mean of what the clean run has there: with the layers before ablated it would be another.
    _, clean = tiny.run_with_cache(pairs.clean_tokens, names_filter=names)

    def replace(z, hook):
        layer = int(hook.name.split(".")[1])
        outside = [head for head in range(tiny.cfg.n_heads) if (layer, head) not in kept]
        z[:, :, outside] = clean[hook.name][:, :, outside].mean(0)
        return z

    hooks = [(name, replace) for name in names]
    with torch.no_grad():
        logits = tiny.run_with_hooks(pairs.clean_tokens, fwd_hooks=hooks)[:, -1]
    rows = torch.arange(len(pairs))
    expected = logits[rows, pairs.answers] - logits[rows, pairs.wrong_answers]
    fx = pl.faithfulness(tiny, pairs, kept, progress=False, with_=pl.Mean())
    np.testing.assert_allclose(fx.circuit, [expected.mean()], **CLOSE)


def test_a_dead_head_is_needed_for_nothing(tiny_folders):
    model = pl.load_model(tiny_folders("gpt2"))
    with torch.no_grad():
        model.blocks[1].attn.o.original_component.weight[16:24] = 0
    pairs = pl.tasks.ioi(model, n=4)
    classes = {"one": ["0.0", "1.2"], "other": ["1.0"]}
    fx = pl.minimality(model, pairs, classes, **OPTIONS)
    np.testing.assert_allclose(fx.change.sel(node="1.2"), 0, atol=1e-6)
    assert (abs(fx.change.sel(node=["0.0", "1.0"])) > 1e-4).any("without").all()
    assert fx["class"].values.tolist() == ["one", "one", "other"]
    # A class of one has nothing that could be removed before.
    alone = fx.change.sel(node="1.0")
    assert (alone == alone.isel(without=0)).all()


def test_several_lengths_and_little_memory(tiny_gpt2: TransformerBridge):
    """Prompts of two lengths, and passes of one prompt, change no number."""
    model = tiny_gpt2
    texts = ["The war lasted from", "The long war lasted from"]
    given = [pl.Prompt(text, {"noun": (4, 7)}, " the", " a") for text in texts for _ in range(2)]
    pairs = PromptPairs.from_prompts(model, given)
    whole = pl.minimality(model, pairs, ["0.1", "1.1"], **OPTIONS)
    each = [
        pl.minimality(model, group, ["0.1", "1.1"], **OPTIONS).change
        for _, group in pairs.by_length()
    ]
    np.testing.assert_allclose(whole.change, sum(each) / 2, **CLOSE)
    small = pl.minimality(model, pairs, ["0.1", "1.1"], memory_budget=3e6, **OPTIONS)
    xr.testing.assert_allclose(small, whole, **CLOSE)


def test_random_subsets_come_from_the_seed(tiny_gpt2: TransformerBridge):
    pairs, heads = pl.tasks.ioi(tiny_gpt2, n=2), every_head(tiny_gpt2)
    drawn = [
        pl.completeness(tiny_gpt2, pairs, {"all": heads}, draws=2, seed=seed, **OPTIONS).removed
        for seed in (3, 3, 4)
    ]
    assert drawn[0].equals(drawn[1]) and not drawn[0].equals(drawn[2])
    random = drawn[0].sel(subset=["random 1", "random 2"])
    assert all(0 < len(pl.Heads(K)) < len(heads) for K in random.values)


def test_what_results_keep(tiny_gpt2: TransformerBridge):
    pairs = pl.tasks.ioi(tiny_gpt2, n=2)
    fx = pl.completeness(tiny_gpt2, pairs, {"A": "1.0, 0.2"}, draws=2, seed=5, **OPTIONS)
    assert fx.attrs["circuit"] == "A: 1.0, 0.2" and fx.attrs["n_heads"] == 2
    assert fx.attrs["always_kept"] == "MLPs, embedding"
    assert fx.attrs["method"] == "circuit"
    assert fx.attrs["positions"] == "all" and fx.attrs["source"] == "zeros"
    assert (fx.attrs["subset_draws"], fx.attrs["subset_seed"]) == (2, 5)


def test_what_sets_are_called():
    every = pl.Heads((0, head) for head in range(4))
    assert circuit.label(every, every) == "all"
    assert circuit.label(pl.Heads(), every) == "none"
    assert circuit.label(pl.Heads("0.2, 0.1"), every) == "0.1, 0.2"
    assert circuit.label(every - ["0.2"], every) == "all but 0.2"


def test_what_is_refused(tiny_gpt2: TransformerBridge):
    pairs = pl.tasks.ioi(tiny_gpt2, n=2)
    for given, said in (
        (["0.9"], "'0.9' does not exist"),
        ({"A": ["0.1"], "B": ["0.1", "0.2"]}, "0.1 stands in the circuit twice"),
        (["first"], "'first' is no head"),
    ):
        for method in (pl.faithfulness, pl.completeness, pl.minimality):
            with pytest.raises(pl.PatchlibError, match=said):
                method(tiny_gpt2, pairs, given, **OPTIONS)
    with pytest.raises(pl.PatchlibError, match="with_=None: say what"):
        pl.faithfulness(tiny_gpt2, pairs, ["0.1"], with_=None, progress=False)  # type: ignore
    with pytest.raises(pl.PatchlibError, match="draws=-1"):
        pl.completeness(tiny_gpt2, pairs, ["0.1"], draws=-1, **OPTIONS)

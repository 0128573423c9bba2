"""Causal scrubbing: on a model whose mechanism is known, by plain weights, and what must hold."""

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import test_closed_form as known
import torch
import xarray as xr
from memory import Memory
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.methods.scrubbing import Hypothesis

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
EVERY = {"keep_prompts": True, "keep_draws": True}


def order(prompt: pl.TokenizedPrompt) -> bool:
    """Whether S comes first."""
    return prompt.positions["S1"] < prompt.positions["IO"]


def anything(prompt: pl.TokenizedPrompt) -> int:
    """The same for all prompts: what depends on it is drawn freely."""
    return 0


def first_token(prompt: pl.TokenizedPrompt) -> int:
    return prompt.clean[0]


def how_many(prompt: pl.TokenizedPrompt) -> int:
    """How many of the tokens are A."""
    return prompt.clean.count(known.A)


def all_into(model: TransformerBridge, *readers: str) -> Hypothesis:
    """That all these readers read matters, writer by writer."""
    found: dict[str, dict] = {reader: {} for reader in readers}
    for writer, reader in pl.Edges.of(model):
        if reader in found:
            found[reader][writer] = "all"
    return found


def logits_of(model: TransformerBridge, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens)[:, -1]


def difference(logits: Tensor, pairs: pl.PromptPairs) -> np.ndarray:
    """The logit difference of answers of prompts, from one row for each."""
    rows = torch.arange(len(pairs))
    right, wrong = (p.view(len(pairs), -1)[:, 0] for p in (pairs.answers, pairs.wrong_answers))
    return (logits[rows, right] - logits[rows, wrong]).numpy()


def drawn(fx: xr.Dataset, path: str, draw: int = 0) -> list[int]:
    return fx.drawn.sel(input=path).isel(draw=draw).values.tolist()


# The model of test_closed_form on "A A E", "A B E" and so on: both heads attend to all tokens alike
# and to no position, so that what they write at E depends on how many are A. The neuron reads that.
WORDS = [(*words, known.E) for words in product((known.A, known.B), repeat=3)]


@pytest.fixture(scope="module")
def sentences() -> pl.PromptPairs:
    return pl.PromptPairs(
        "by hand",
        tuple(
            pl.TokenizedPrompt(str(w), w, {}, (known.A,), (known.B,), {"first": (0,), "last": (3,)})
            for w in WORDS
        ),
    )


TRUE = {
    "logits": {"0.0": how_many, "0.1": how_many, "mlp0": how_many},
    "mlp_in0": {"0.0": how_many, "0.1": how_many},
    "v0.0": how_many,
    "v0.1": {"resid0": "all"},
}


def test_a_true_hypothesis_recovers_all(by_hand: TransformerBridge, sentences: pl.PromptPairs):
    """Though most runs are on other sentences: queries, keys and the stream at E do not matter."""
    options = {"draws": 20, "metrics": ["logit_diff", "kl"], **EVERY}
    fx = pl.scrub(by_hand, sentences, TRUE, **options)
    np.testing.assert_allclose(fx.scrubbed, fx.model.broadcast_like(fx.scrubbed), atol=1e-5)
    np.testing.assert_allclose(fx.recovered, 1, atol=1e-5)
    assert fx.random.std() > 0.1
    for path in ("0.0->logits", "0.0->mlp_in0->logits", "rest->v0.0->logits"):
        others = fx.drawn.sel(input=path) != np.arange(8)[:, None]
        assert 0.4 < others.mean() < 0.8


@pytest.mark.parametrize(
    "false",
    [
        {"logits": dict.fromkeys(["0.0", "0.1", "mlp0"], first_token)},
        TRUE | {"v0.0": first_token},
        TRUE | {"logits": {"0.0": how_many, "0.1": how_many}, "mlp_in0": None},
    ],
)
def test_a_false_hypothesis_does_not(
    by_hand: TransformerBridge, sentences: pl.PromptPairs, false: dict
):
    hypothesis = {reader: what for reader, what in false.items() if what}
    fx = pl.scrub(by_hand, sentences, hypothesis, draws=50, metrics=["logit_diff", "kl"])
    assert (fx.high.sel(metric="kl") < 0.99).all() and (abs(fx.recovered - 1) > 0.01).all()


def test_that_nothing_matters(model: TransformerBridge):
    """One freely drawn run, whose expected metric is that over all of them: a score of 0."""
    pairs = pl.tasks.ioi(model, 10)
    fx = pl.scrub(model, pairs, {}, draws=300, **EVERY)
    logits = logits_of(model, pairs.clean_tokens)
    for draw in (0, 1):
        expected = difference(logits[drawn(fx, "rest->logits", draw)], pairs)
        np.testing.assert_allclose(fx.scrubbed.squeeze("metric")[:, draw], expected, **CLOSE)
    assert (fx.scrubbed == fx.random).all() and fx.recovered == 0 and fx.low.fillna(0) == 0
    each = np.stack([difference(logits[[other] * 10], pairs) for other in range(10)])
    error = each.std(0) / 300**0.5
    assert (abs(fx.random.squeeze().mean("draw") - each.mean(0)) < 4 * error).all()
    assert set(drawn(fx, "rest->logits")) <= {*range(10)}


def test_that_everything_matters(model: TransformerBridge):
    """Unchanged: exactly as a whole, up to rounding writer by writer and through any head."""
    pairs = pl.tasks.ioi(model, 6)
    readers = {edge.reader for edge in pl.Edges.of(model)}
    heads = [reader for reader in readers if re.match("[qkv][12][.]", reader)]
    whole = dict.fromkeys([*heads, "mlp_in1"], "all")
    into = all_into(model, "logits", "q2.2", "mlp_in2")
    fx = pl.scrub(
        model,
        pairs,
        {"whole": {"logits": "all"}, "writers": all_into(model, "logits"), "deep": whole | into},
        draws=2,
        metrics=["logit_diff", "kl"],
        **EVERY,
    )
    expected = difference(logits_of(model, pairs.clean_tokens), pairs)
    np.testing.assert_allclose(fx.model.sel(metric="logit_diff"), expected, **CLOSE)
    exact = fx.sel(hypothesis="whole")
    assert (exact.scrubbed == exact.model).all()
    assert (exact[["recovered", "low", "high"]].sel(metric="kl").to_array() == 1).all()
    assert (exact.recovered == 1).all()
    for name in ("writers", "deep"):
        one = fx.sel(hypothesis=name)
        np.testing.assert_allclose(one.scrubbed, one.model.broadcast_like(one.scrubbed), **CLOSE)
        np.testing.assert_allclose(one.recovered, 1, atol=1e-4)
    assert {"rest->q1.0->q2.2->logits", "0.1->q2.2->logits", "rest->q2.2->logits"} <= {
        *fx.input.values
    }
    assert (
        fx.sel(input="rest->logits").drawn.sel(hypothesis="deep") != np.arange(6)[:, None]
    ).any()


def test_one_input_is_left_as_it_is(tiny: TransformerBridge):
    """Whatever the hypothesis, which is then not tested at all."""
    pairs = pl.tasks.ioi(tiny, 1)[[0, 0, 0]]
    hypothesis = {"logits": {"2.1": "IO"}, "v2.1": {"0.1": order}, "k2.1": "S1"}
    fx = pl.scrub(tiny, pairs, hypothesis, **EVERY)
    np.testing.assert_allclose(fx.scrubbed, fx.model.broadcast_like(fx.scrubbed), **CLOSE)
    assert (fx.alone == 1).all() and fx.low.isnull().all()


def test_against_plain_weights(tiny_gpt2: TransformerBridge):
    """A hypothesis two steps deep, whose streams are put together by hand."""
    pairs, gpt2 = pl.tasks.ioi(tiny_gpt2, 12), tiny_gpt2.original_model
    hypothesis = {
        "logits": {"2.1": order, "mlp1": anything},
        "q2.1": {"0.3": order},
        "v2.1": order,
        "mlp_in1": {"resid0": anything},
    }
    fx = pl.scrub(tiny_gpt2, pairs, hypothesis, draws=2, seed=1, **EVERY)
    transformer, final = gpt2.transformer, []
    hook = transformer.ln_f.register_forward_pre_hook(lambda module, given: final.append(given[0]))
    with torch.no_grad():
        _, cache = tiny_gpt2.run_with_cache(pairs.clean_tokens)
        streams = gpt2(pairs.clean_tokens, output_hidden_states=True).hidden_states
        hook.remove()

        def head(layer: int, head: int, *read: Tensor) -> Tensor:
            of_head = slice(8 * head, 8 * head + 8)
            block = transformer.h[layer]
            W, b = block.attn.c_attn.weight.chunk(3, 1), block.attn.c_attn.bias.chunk(3)
            q, k, v = (block.ln_1(x) @ W[i][:, of_head] + b[i][of_head] for i, x in enumerate(read))
            scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(15, 15).triu(1) > 0, -torch.inf)
            return scores.softmax(-1) @ v @ block.attn.c_proj.weight[of_head]

        for draw in (0, 1):
            at = {path: drawn(fx, path, draw) for path in fx.input.values}
            rest, whole = at["rest->logits"], [streams[2][at[p]] for p in ("rest->v2.1->logits",)]
            queries = streams[2][at["rest->q2.1->logits"]]
            for path, sign in (("0.3->q2.1->logits", 1), ("rest->q2.1->logits", -1)):
                queries = queries + sign * head(0, 3, *[streams[0][at[path]]] * 3)
            keys = streams[2][at["rest->2.1->logits"]]
            middle = cache["blocks.1.hook_resid_mid"][at["rest->mlp_in1->logits"]]
            for path, sign in (("resid0->mlp_in1->logits", 1), ("rest->mlp_in1->logits", -1)):
                middle = middle + sign * streams[0][at[path]]
            x = final[-1][rest] + head(2, 1, queries, keys, whole[0])
            x = x - head(2, 1, *[streams[2][rest]] * 3)
            block = transformer.h[1]
            x = x + block.mlp(block.ln_2(middle)) - cache["blocks.1.hook_mlp_out"][rest]
            logits = gpt2.lm_head(transformer.ln_f(x))[:, -1]
            ours = fx.scrubbed.squeeze("metric")[:, draw]
            np.testing.assert_allclose(ours, difference(logits, pairs), **CLOSE)
    assert set(fx.input.values) == {*at} and abs(fx.scrubbed - fx.random).max() > 1e-3


def patched(
    model: TransformerBridge, pairs: pl.PromptPairs, rows: list[int], edges: list[str]
) -> xr.DataArray:
    """The logit difference of each prompt with edges from other prompts."""
    found = []
    for own, (one, other) in enumerate(zip(pairs.prompts, rows, strict=True)):
        if own == other:
            logits = logits_of(model, pairs[own].clean_tokens)
            found.append(difference(logits, pairs[own]).item())
            continue
        pair = pl.TokenizedPrompt(**vars(one) | {"corrupted": {"x": pairs.prompts[other].clean}})
        fx = pl.patch_edges(
            model,
            pl.PromptPairs("pair", (pair,)),
            edges,
            corruption=pl.STR("x"),
            direction="noise",
            metrics="logit_diff",
            progress=False,
        )
        found.append(fx.patched.item())
    return xr.DataArray(found, dims="prompt")


def test_what_does_not_matter_is_resampled_together(tiny: TransformerBridge):
    """A hypothesis without some writers is a resample ablation of these, each draw another one."""
    pairs = pl.tasks.ioi(tiny, 5)
    hypothesis = all_into(tiny, "logits")
    unnamed = ["0.1", "2.3", "mlp1"]
    for name in unnamed:
        del hypothesis["logits"][name]
    fx = pl.scrub(tiny, pairs, hypothesis, draws=2, **EVERY)
    edges = [f"{name}->logits" for name in unnamed]
    for draw in (0, 1):
        expected = patched(tiny, pairs, drawn(fx, "rest->logits", draw), edges)
        np.testing.assert_allclose(fx.scrubbed.squeeze("metric")[:, draw], expected, **CLOSE)
    assert drawn(fx, "rest->logits", 0) != drawn(fx, "rest->logits", 1)


def test_one_claim_alone(tiny: TransformerBridge):
    """All but one edge as it is: the rest of a reader's input depends on the prompt itself."""
    pairs = pl.tasks.ioi(tiny, 5)
    hypothesis = {"logits": {"rest": "all", "2.3": anything, "mlp1": "S1"}}
    fx = pl.scrub(tiny, pairs, hypothesis, **EVERY)
    assert fx.alone.sel(input="rest->logits") == fx.alone.sel(input="mlp1->logits") == 1
    rows = drawn(fx, "2.3->logits")
    expected = patched(tiny, pairs, rows, ["2.3->logits"])
    np.testing.assert_allclose(fx.scrubbed.squeeze("metric")[:, 0], expected, **CLOSE)
    assert rows != [*range(5)]


def test_of_paired_data_one_node_is_an_interchange(tiny_folders: Callable[[str], Path]):
    """What 2.1 reads of 0.1 in its values is taken from one of two prompts, all else from itself.

    In GPT-J and NeoX no MLP reads a head of its own layer, so that nothing but the logits does.
    """
    for family in ("gpt_neox", "gptj"):
        model = pl.load_model(tiny_folders(family))
        pairs = pl.tasks.ioi(model, 2)
        hypothesis = all_into(model, "logits", "v2.1") | {"q2.1": "all", "k2.1": "all"}
        hypothesis["v2.1"]["0.1"] = anything
        fx = pl.scrub(model, pairs, hypothesis, draws=4, **EVERY)
        changed = 0
        for draw in range(4):
            rows = drawn(fx, "0.1->v2.1->logits", draw)
            expected = patched(model, pairs, rows, ["0.1->v2.1"])
            np.testing.assert_allclose(fx.scrubbed.squeeze("metric")[:, draw], expected, **CLOSE)
            changed += sum(row != own for own, row in enumerate(rows))
        assert 0 < changed < 8
        assert abs(fx.scrubbed - fx.model).max() > 1e-4


def test_draws_are_of_the_same_value(tiny_gpt2: TransformerBridge):
    """Of what a writer's own input has, drawn freely elsewhere, and each for itself."""
    pairs = pl.tasks.ioi(tiny_gpt2, 200)
    hypothesis = {
        "logits": {"2.1": order, "2.2": order, "mlp1": "IO"},
        "v2.1": {"0.1": "S2+S1", "0.2": order},
    }
    fx = pl.scrub(tiny_gpt2, pairs, hypothesis, draws=3, **EVERY)

    def names(path: str, *roles: str) -> np.ndarray:
        rows = fx.drawn.sel(input=path).values if path else np.arange(200)[:, None]
        of = [[p.clean[p.positions[role][0]] for role in roles] for p in pairs.prompts]
        return np.array(of)[rows]

    first = np.array([order(prompt) for prompt in pairs.prompts])
    at = {path: first[fx.drawn.sel(input=path)] for path in fx.input.values}
    assert (at["2.1->logits"] == first[:, None]).all()
    assert (at["0.2->v2.1->logits"] == at["2.1->logits"]).all()
    assert (names("mlp1->logits", "IO") == names("", "IO")).all()
    assert (names("0.1->v2.1->logits", "S2") == names("2.1->logits", "S2")).all()
    assert 0.4 < (at["rest->logits"] == first[:, None]).mean() < 0.6
    # 200 prompts, of which about 100 have an order, and each other writer's draw is its own.
    one, two = (fx.drawn.sel(input=f"{name}->logits") for name in ("2.1", "2.2"))
    assert (one == two).mean() < 0.03 and (one != two.shift(draw=1)).mean() > 0.97
    assert abs(np.corrcoef(one.values.ravel(), two.values.ravel())[0, 1]) < 0.1
    assert len({*one.values.ravel()}) > 150
    alone = {each.input.item(): each.item() for each in fx.alone}
    counts = names("", "IO").ravel().tolist()
    assert alone["mlp1->logits"] == pytest.approx(np.mean([counts.count(c) == 1 for c in counts]))
    assert alone["2.1->logits"] == alone["rest->logits"] == 0 and alone["0.1->v2.1->logits"] > 0.05


def test_the_same_seed_gives_the_same_numbers(tiny_gpt2: TransformerBridge):
    """Alone or beside others, in any budget; hypotheses share the draws of what they share."""
    pairs = pl.tasks.ioi(tiny_gpt2, 20)
    one = {"logits": {"2.1": order, "mlp2": "IO"}}
    more = {"logits": {"2.1": order, "0.3": "S2"}, "v2.1": {"1.1": order}}
    options = {"draws": 2, **EVERY}
    both = pl.scrub(tiny_gpt2, pairs, {"one": one, "more": more}, **options)
    alone = pl.scrub(tiny_gpt2, pairs, one, **options)
    assert (both.scrubbed.sel(hypothesis="one") == alone.scrubbed).all()
    for name in ("recovered", "low", "high"):
        np.testing.assert_allclose(both[name].sel(hypothesis="one"), alone[name], rtol=1e-12)
    assert pl.scrub(tiny_gpt2, pairs, one, **options).identical(alone)
    for path in ("rest->logits", "2.1->logits"):
        first, second = both.drawn.sel(input=path)
        assert (first == second).all()
    assert (both.drawn.sel(input="mlp2->logits", hypothesis="more") == -1).all()
    assert both.alone.sel(input="mlp2->logits", hypothesis="more").isnull()
    other = pl.scrub(tiny_gpt2, pairs, one, seed=1, **options)
    for path in ("rest->logits", "2.1->logits"):
        assert (other.drawn != alone.drawn).sel(input=path).mean() > 0.8


def test_prompts_of_several_lengths(tiny: TransformerBridge):
    """Are drawn among those of their own length, and come back in their own order."""
    pairs = pl.tasks.factual_recall(tiny, 30)
    lengths = np.array([len(prompt.clean) for prompt in pairs.prompts])
    counts = np.bincount(lengths)
    pairs, lengths = (each[counts[lengths] > 1] for each in (pairs, lengths))
    assert len({*lengths}) > 2 and (np.diff(lengths) < 0).any()
    fx = pl.scrub(tiny, pairs, {"logits": {"2.1": "last"}}, draws=3, **EVERY)
    assert (lengths[fx.drawn] == lengths[:, None]).all()
    expected = [difference(logits_of(tiny, p.clean_tokens), p).item() for p in pairs]
    np.testing.assert_allclose(fx.model.squeeze("metric"), expected, **CLOSE)
    assert fx.text.values.tolist() == pairs.texts


def test_the_interval_is_over_prompts_with_their_draws(mini: TransformerBridge):
    """A bootstrap of the ratio of means, whose ends lie about the estimate."""
    pairs = pl.tasks.ioi(mini, 40)
    fx = pl.scrub(mini, pairs, {"logits": {"5.0": "IO"}}, draws=4, **EVERY)
    mean = fx.mean(["prompt", "draw"])
    ratio = (mean.scrubbed - mean.random) / (mean.model - mean.random)
    np.testing.assert_allclose(fx.recovered, ratio)
    assert fx.low < fx.recovered < fx.high
    few = pl.scrub(mini, pairs, {"logits": {"5.0": "IO"}}, draws=4)
    np.testing.assert_allclose(few.scrubbed, mean.scrubbed)
    assert few.recovered == fx.recovered and few.scrubbed.dims == ("metric",)
    assert "drawn" not in few and "text" not in few


def test_scrubbing_keeps_to_the_budget(tiny: TransformerBridge):
    """Of the smallest budget that the refusal names, with the same numbers."""
    pairs = pl.tasks.ioi(tiny, 12)
    hypothesis = {"logits": {"2.1": order}, "v2.1": {"0.1": "IO"}, "q2.1": "S2"}
    options = {"draws": 2, "metrics": "kl", "keep_prompts": True}
    with pytest.raises(pl.PatchlibError, match=r"held at once, which needs \d+") as refusal:
        pl.scrub(tiny, pairs, hypothesis, memory_budget=10_000, **options)
    (smallest,) = re.findall(r"give memory_budget=(\d+) or more", str(refusal.value))
    plenty = pl.scrub(tiny, pairs, hypothesis, **options)
    with Memory(tiny) as memory:
        fx = pl.scrub(tiny, pairs, hypothesis, memory_budget=int(smallest), **options)
    assert memory.most <= int(smallest)
    xr.testing.assert_allclose(fx.scrubbed, plenty.scrubbed, **CLOSE)


def test_shared_keys_go_by_each_of_their_heads(tiny_folders: Callable[[str], Path]):
    """Of two heads that share a key; what is said of it holds for both, with draws of their own."""
    model = pl.load_model(tiny_folders("llama"))
    pairs = pl.tasks.ioi(model, 6)
    hypotheses = {
        name: {"logits": {"2.3": order}, "q2.3": "all", name: {"0.1": "IO"}, "v2.2": "all"}
        for name in ("k2.2", "k2.3")
    }
    fx = pl.scrub(model, pairs, hypotheses)
    assert (fx.scrubbed[:, 0] == fx.scrubbed[:, 1]).all()
    assert "0.1->k2.2->2.3->logits" in fx.input
    both = {"logits": {"2.2": order, "2.3": order}, "k2.2": {"0.1": order}}
    fx = pl.scrub(model, pairs, both, draws=20, **EVERY)
    for one, other in (("0.1->k2.2->logits", "0.1->k2.2->2.3->logits"),):
        assert (fx.drawn.sel(input=one) != fx.drawn.sel(input=other)).any()
    twice = {"logits": {"2.3": "IO"}, "k2.2": "all", "k2.3": "all"}
    assert pl.scrub(model, pairs, twice).attrs["hypothesis"].count("k2.2") == 1
    with pytest.raises(pl.PatchlibError, match="the hypothesis says two things of it: say one"):
        pl.scrub(model, pairs, twice | {"k2.3": "IO"})


def test_what_results_say(tiny_gpt2: TransformerBridge, tmp_path: Path):
    """All that decides the numbers, also of features of one's own."""
    pairs = pl.tasks.ioi(tiny_gpt2, 6)
    hypotheses = {"none": {}, "one": {"logits": {"2.1": order}, "v2.1": {}, "q2.1": "S1+IO"}}
    fx = pl.scrub(tiny_gpt2, pairs, hypotheses, metrics=["prob", "kl"], **EVERY)
    said = re.sub("sha256:[0-9a-f]+", "...", fx.attrs["hypothesis"])
    assert said == (
        "none = logits: nothing | one = logits: 2.1 by order (...); v2.1: nothing; "
        "q2.1: rest by S1+IO"
    )
    assert (fx.attrs["method"], fx.attrs["draws"], fx.attrs["seed"]) == ("causal scrubbing", 10, 0)
    assert fx.scrubbed.dims == ("metric", "hypothesis", "prompt", "draw")
    fx.to_netcdf(tmp_path / "scrubbed.nc")
    assert xr.load_dataset(tmp_path / "scrubbed.nc").identical(fx)


@pytest.mark.parametrize(
    ("hypothesis", "message"),
    [
        ("2.1->logits", "'2.1->logits' is no hypothesis: begin with what the logits read"),
        ({"q2.1": {"0.1": "IO"}}, "{'0.1': 'IO'} is no hypothesis: begin with"),
        ({"logits": ["2.1"]}, "['2.1'] is no feature: give a named position"),
        ({"logits": {"2.1": {"q2.1": "IO"}}}, "{'q2.1': 'IO'} is no feature"),
        ({"logits": {"2.1": "S3"}}, "unknown position 'S3'"),
        ({"logits": {"2.4": "IO"}}, "'2.4->logits' is no edge of this model"),
        ({"logits": {"2.1": "IO"}, "v2.1": {"2.0": "IO"}}, "the writer comes before the reader"),
        ({"logits": {"2.1": "IO"}, "2.1": {"0.1": "IO"}}, "('resid0', '2.1') is no edge"),
        ({"logits": {"2.1": "IO"}, "v1.1": "IO"}, "'v1.1' is in the hypothesis, and the writer"),
        ({"logits": {"2.1": lambda prompt: [1]}}, "which cannot be looked up: give a number"),
    ],
)
def test_refusals(tiny_gpt2: TransformerBridge, hypothesis: object, message: str):
    """Each says what is allowed."""
    with pytest.raises(pl.PatchlibError, match=re.escape(message)):
        pl.scrub(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, 4), hypothesis)


def test_other_refusals(tiny_gpt2: TransformerBridge):
    pairs = pl.tasks.ioi(tiny_gpt2, 4)
    with pytest.raises(pl.PatchlibError, match="nothing but itself can be drawn for it"):
        pl.scrub(tiny_gpt2, pairs[:1], {})
    for wrong in ({"draws": 0}, {"seed": -1}, {"metrics": "loss"}, {"memory_budget": 0}):
        with pytest.raises(pl.PatchlibError, match=f"{next(iter(wrong))}|unknown metric"):
            pl.scrub(tiny_gpt2, pairs, {}, **wrong)
    tiny_gpt2.add_hook("blocks.0.attn.hook_z", lambda z, hook: 2 * z)
    try:
        with pytest.raises(pl.PatchlibError, match="this model cannot be scrubbed: a hook"):
            pl.scrub(tiny_gpt2, pairs, {})
    finally:
        tiny_gpt2.reset_hooks()

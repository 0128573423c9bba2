"""Queries, keys, values, patterns, neurons, the middle of the stream; chosen layers and heads."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.patching import architectures
from patchlib.patching.patch import ENGINES
from patchlib.prompts.pairs import PromptPairs

METRICS = ("logit_diff", "prob", "kl")
OPTIONS: dict[str, Any] = {"corruption": pl.STR("S2"), "metrics": METRICS, "progress": False}
# Single precision, in sums of a different order; a difference of two runs that may be small.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def together(model: TransformerBridge, pairs: PromptPairs, parts: Iterable[str], **options: Any):
    """Restored at once, in the noised run, too: every draw sees the same noise."""
    fx = pl.patch_together(model, pairs, parts, **OPTIONS | options)
    return fx[["patched", "clean", "corrupted"]]


def group_of(model: TransformerBridge) -> list[int]:
    """The heads that share the key and the value of head 3."""
    size = model.cfg.n_heads // (getattr(model.cfg, "n_key_value_heads", None) or 4)
    return list(range(4 - size, 4))


@pytest.fixture(scope="module")
def llama(tiny_folders: Callable[[str], Path]) -> TransformerBridge:
    """Four heads, two keys and values."""
    return pl.load_model(tiny_folders("llama"))


def one_by_one(activation: str, heads: Iterable[int]) -> list[str]:
    return [f"{activation}1.{head}" for head in heads]


@pytest.mark.parametrize(
    "options",
    [{}, {"direction": "noise"}, {"corruption": pl.GN("S1+IO")}, {"positions": "last"}],
    ids=["denoise", "noise", "gaussian noise", "last position"],
)
def test_what_makes_up_a_head(tiny: TransformerBridge, options: dict[str, Any]):
    """Query and key make the pattern, pattern and values make z, for all heads of one key.

    At one position a pattern is all that its query attends to, and so are not key and value.
    """
    pairs, heads = pl.tasks.ioi(tiny, n=3), group_of(tiny)
    q, k, v, pattern, z = (one_by_one(name, heads) for name in ("q", "k", "v", "pattern", "head"))
    at_all = "positions" not in options
    if at_all:
        z_alone = together(tiny, pairs, z, **options)
        xr.testing.assert_allclose(together(tiny, pairs, q + k + v, **options), z_alone, **CLOSE)
        assert abs(z_alone.patched - z_alone.corrupted).max() > 1e-3
    if architectures.obstacle(tiny, "pattern") is not None:
        return
    alone = together(tiny, pairs, pattern, **options)
    assert abs(alone.patched - alone.corrupted).max() > 1e-5
    if at_all:
        xr.testing.assert_allclose(together(tiny, pairs, q + k, **options), alone, **CLOSE)
        xr.testing.assert_allclose(together(tiny, pairs, pattern + v, **options), z_alone, **CLOSE)
        return
    # Everything that the last query attends to, values of all positions among it.
    attended = [*pattern, *q]
    xr.testing.assert_allclose(together(tiny, pairs, attended, **options), alone, **CLOSE)


@pytest.mark.parametrize("options", [{}, {"positions": "S2"}, {"direction": "noise"}], ids=str)
def test_what_makes_up_a_layer(tiny: TransformerBridge, options: dict[str, Any]):
    """All heads make the attention's output, all neurons the MLP's."""
    pairs = pl.tasks.ioi(tiny, n=3)
    for parts, whole in (
        (one_by_one("head", range(4)), "attn1"),
        (one_by_one("neuron", range(tiny.cfg.d_mlp)), "mlp1"),
    ):
        expected = together(tiny, pairs, [whole], **options)
        xr.testing.assert_allclose(together(tiny, pairs, parts, **options), expected, **CLOSE)
        assert abs(expected.patched - expected.corrupted).max() > 1e-4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_middle_of_the_stream_is_all_of_it(tiny_folders, family: str, engine: str):
    """Restored at all positions, nothing of the other run is left."""
    model = pl.load_model(tiny_folders(family))
    pairs = pl.tasks.ioi(model, n=3)
    for corruption in (pl.STR("ABC"), pl.GN("S1+IO", draws=2)):
        options = OPTIONS | {"corruption": corruption, "engine": engine}
        for direction in ("denoise", "noise"):
            fx = pl.patch(model, pairs, "resid_mid", direction=direction, **options)
            there = fx.clean if direction == "denoise" else fx.corrupted
            np.testing.assert_allclose(*xr.broadcast(fx.patched, there), **CLOSE)
            np.testing.assert_allclose(fx.effect.sel(metric="logit_diff"), 1, atol=1e-3)


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("parts", [["resid1"], ["attn1"], ["1.2", "q1.0", "resid1"]], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_parts_of_one_stream(tiny_folders, family: str, parts: list[str], positions: str):
    """What comes before the middle of the stream is overwritten there, however parts are listed."""
    model = pl.load_model(tiny_folders(family))
    pairs = pl.tasks.ioi(model, n=3)
    options = {"positions": positions, "corruption": pl.STR("S1+IO")}
    found = together(model, pairs, ["resid_mid1", *parts], **options)
    expected = together(model, pairs, ["resid_mid1"], **options)
    xr.testing.assert_allclose(found, expected, **CLOSE)
    if positions == "last":
        alone = together(model, pairs, parts, **options)
        assert abs(alone.patched - expected.patched).max() > 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_neurons(tiny: TransformerBridge, engine: str):
    """Each by PyTorch's own hook on the module that reads them."""
    pairs = pl.tasks.ioi(tiny, n=3)
    fx = pl.patch(tiny, pairs, "neuron", layers=1, positions="S2", engine=engine, **OPTIONS)
    assert fx.effect.dims == ("metric", "layer", "neuron")
    assert (fx.layer.values.tolist(), fx.sizes["neuron"]) == ([1], tiny.cfg.d_mlp)
    out, at = tiny.blocks[1].mlp.out.original_component, pairs.positions["S2"]
    rows, seen = torch.arange(3), list[Tensor]()

    def logits(tokens: Tensor, change: Callable[[Tensor], Tensor | None]) -> Tensor:
        hook = out.register_forward_pre_hook(lambda module, given: change(given[0]))
        try:
            with torch.no_grad():
                return tiny(tokens)[:, -1]
        finally:
            hook.remove()

    logits(pairs.clean_tokens, lambda post: seen.append(post.clone()))
    for neuron in (0, 5, tiny.cfg.d_mlp - 1):

        def restore(post: Tensor, neuron: int = neuron) -> Tensor:
            post = post.clone()
            post[rows, at, neuron] = seen[0][rows, at, neuron]
            return post

        p = logits(pairs.corrupted_tokens("S2"), restore).softmax(-1)[rows, pairs.answers].mean()
        ours = fx.patched.sel(metric="prob", neuron=neuron).item()
        assert ours == pytest.approx(p.item(), rel=1e-4)
    assert float(fx.effect.sel(metric="kl").std()) > 0


def test_names_under_grouped_query_attention(llama: TransformerBridge, tiny_gpt2):
    """A head is a query head; keys and values of a group are called kv_head."""
    pairs = pl.tasks.ioi(llama, n=2)
    sizes = {"q": ("head", 4), "head": ("head", 4), "pattern": ("head", 4)}
    sizes |= {"k": ("kv_head", 2), "v": ("kv_head", 2)}
    for component, (unit, number) in sizes.items():
        fx = pl.patch(llama, pairs, component, **OPTIONS)
        assert fx.effect.dims == ("metric", "layer", unit)
        assert fx[unit].values.tolist() == list(range(number))
    found = pl.detect(fx, sd=0.5)
    assert {name[:2] for names in found.heads for name in names} == {"kv"}
    for component in ("k", "v"):
        of_gpt2 = pl.patch(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, n=2), component, **OPTIONS)
        assert of_gpt2.effect.dims == ("metric", "layer", "head")


@pytest.mark.parametrize(("head", "group"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_a_head_reads_its_groups_value(llama: TransformerBridge, head: int, group: int):
    """Of four heads, the first two read value head 0 and the others value head 1."""
    pairs = pl.tasks.ioi(llama, n=2)
    name = "blocks.1.attn.hook_v"

    def restore(v: Tensor, hook: object) -> Tensor:
        v = v.clone()
        v[:, :, group] = cache[name][:, :, group]
        return v

    with torch.no_grad():
        _, cache = llama.run_with_cache(pairs.clean_tokens)
        hooks = [(name, restore)]
        logits = llama.run_with_hooks(pairs.corrupted_tokens("S2"), fwd_hooks=hooks)[:, -1]
    p = logits.softmax(-1)[range(2), pairs.answers].mean().item()
    for parts, activation in (([(1, head)], "v"), ([f"v1.{head}"], "z"), (f"1.{head}", "v")):
        fx = pl.patch_together(llama, pairs, parts, activation=activation, **OPTIONS)
        assert fx.patched.sel(metric="prob").item() == pytest.approx(p, rel=1e-4)
        # Not v1.1, which is the value that head 1 reads.
        assert fx.attrs["parts"] == f"v1.kv_head{group}"
    for engine in ENGINES:
        fx = pl.patch(llama, pairs, "v", heads=[f"1.{head}"], engine=engine, **OPTIONS)
        assert fx.kv_head.values.tolist() == [group]
        assert fx.patched.sel(metric="prob").item() == pytest.approx(p, rel=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("component", ["head", "q", "v"])
def test_chosen_layers_and_heads(tiny: TransformerBridge, component: str, engine: str):
    """They have the numbers of the whole sweep, and what lies between has none."""
    pairs = pl.tasks.ioi(tiny, n=2)
    options = OPTIONS | {"engine": engine}
    whole = pl.patch(tiny, pairs, component, **options)
    unit = whole.effect.dims[-1]
    for layers in ([0, 2], (2, 0), np.array([0, 2]), {2, 0}, (np.int64(layer) for layer in (2, 0))):
        some = pl.patch(tiny, pairs, component, layers=layers, **options)
        xr.testing.assert_allclose(some.patched, whole.patched.sel(layer=[0, 2]), **CLOSE)
        assert (some.attrs["layers"], "heads" in some.attrs) == ("0, 2", False)
    for heads in (
        ["0.3", "2.0"],
        [(2, 0), (0, 3)],
        "2.0, 0.3, 0.3",
        pl.Heads("0.3 2.0"),
        iter(["0.3", "2.0"]),
    ):
        some = pl.patch(tiny, pairs, component, heads=heads, **options)
        assert (some.attrs["heads"], "layers" in some.attrs) == ("0.3, 2.0", False)
        # Of head 3, its key/value head where it is one of a group.
        last = whole.sizes[unit] - 1
        assert (some.layer.values.tolist(), some[unit].values.tolist()) == ([0, 2], [0, last])
        expected = whole.patched.sel({"layer": [0, 2], unit: [0, last]}).copy()
        expected.loc[{"layer": 0, unit: 0}] = expected.loc[{"layer": 2, unit: last}] = np.nan
        xr.testing.assert_allclose(some.patched, expected, **CLOSE)
        assert some.effect.isnull().equals(expected.isnull())
        assert np.isfinite(some.clean).all() and np.isfinite(some.corrupted).all()
    both = pl.patch(tiny, pairs, component, layers=[0, 1, 2], heads=["0.3", "2.0"], **options)
    assert both.effect.sel(layer=1).isnull().all()
    xr.testing.assert_equal(both.sel(layer=[0, 2]).patched, some.patched)


def test_chosen_heads_are_detected_and_drawn(mini: TransformerBridge):
    """Mean and standard deviation are over those that were measured."""
    pairs = pl.tasks.ioi(mini, n=4)
    heads = ["0.0", "3.1", "3.5", "5.0", "7.7"]
    fx = pl.patch(mini, pairs, heads=heads, **OPTIONS)
    effect = fx.effect.sel(metric="kl")
    values = {head: effect.sel(layer=int(head[0]), head=int(head[2])).item() for head in heads}
    assert int(effect.notnull().sum()) == 5
    limit = np.mean(list(values.values())) + 0.5 * np.std(list(values.values()))
    expected = sorted((h for h in heads if values[h] > limit), key=values.get, reverse=True)
    found = pl.detect(fx, sd=0.5)
    assert list(map(str, pl.heads_of(found, "kl"))) == expected != []
    figure = pl.plot.heatmap(fx, metric="kl")
    assert figure is not None


@pytest.mark.parametrize("engine", ENGINES)
def test_windows_around_chosen_layers(tiny_gpt2: TransformerBridge, engine: str):
    """A window reaches into layers that were not chosen."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=2)
    options = OPTIONS | {"engine": engine, "window": np.array([1, 3]), "positions": ["S2", "last"]}
    whole = pl.patch(tiny_gpt2, pairs, "mlp", **options)
    some = pl.patch(tiny_gpt2, pairs, "mlp", layers=np.int64(1), **options)
    xr.testing.assert_allclose(some.patched, whole.patched.sel(layer=[1]), **CLOSE)
    three = together(tiny_gpt2, pairs, ["mlp0", "mlp1", "mlp2"], positions=["S2", "last"])
    ours = some.patched.sel(layer=1, window=3, drop=True)
    np.testing.assert_allclose(ours, three.patched.transpose(*ours.dims), **CLOSE)
    assert (some.attrs["window"], some.attrs["window_before"]) == ("1, 3", "0, 1")


@pytest.mark.parametrize(
    "positions",
    [[4, 5], (4, 5), np.array([4, 5]), range(4, 6), iter([4, 5]), [np.int64(4), np.uint8(5)]],
    ids=["list", "tuple", "array", "range", "iterator", "numpy's numbers"],
)
def test_positions_by_number(tiny_gpt2: TransformerBridge, positions: Any):
    """Whatever they come in, they are those of each position, with their tokens."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=3)
    each = pl.patch(tiny_gpt2, pairs, "resid", positions="each", **OPTIONS)
    fx = pl.patch(tiny_gpt2, pairs, "resid", positions=positions, **OPTIONS)
    xr.testing.assert_allclose(fx.effect, each.effect.sel(position=[4, 5]), **CLOSE)
    assert fx.attrs["positions"] == "4, 5"
    assert fx.position.dtype.kind == "i"
    one = pl.patch(tiny_gpt2, pairs, "resid", positions=np.int64(5), **OPTIONS)
    np.testing.assert_allclose(one.effect, fx.effect.sel(position=5), **CLOSE)
    assert (one.attrs["positions"], one.position.item()) == (5, 5)


def test_tokens_at_positions(tiny_gpt2: TransformerBridge, tmp_path: Path):
    """Where all prompts share a token it is named; names of positions stand for themselves."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=8)
    tokens = pairs.clean_tokens
    shared = (tokens == tokens[0]).all(dim=0).tolist()
    assert set(shared) == {True, False}
    fx = pl.patch(tiny_gpt2, pairs, "resid", positions="each", keep_prompts=True, **OPTIONS)
    expected = [
        tiny_gpt2.tokenizer.decode([token]) if alike else ""
        for token, alike in zip(tokens[0].tolist(), shared, strict=True)
    ]
    assert fx.token.values.tolist() == expected
    assert fx.text.values.tolist() == pairs.texts
    fx.to_netcdf(tmp_path / "fx.nc")
    assert xr.load_dataset(tmp_path / "fx.nc").identical(fx)
    named = pl.patch(tiny_gpt2, pairs, "resid", positions=["last", 4], **OPTIONS)
    assert named.position.values.tolist() == ["last", "4"]
    assert "token" not in named.coords


def test_a_tidy_table(tiny_gpt2: TransformerBridge):
    """One row for each number, with everything that it is about."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=3)
    options = {"positions": [4, 5], "heads": ["1.0", "2.3"], "keep_prompts": True}
    fx = pl.patch(tiny_gpt2, pairs, **options, **OPTIONS)
    table = fx.to_dataframe().reset_index()
    assert set(table) >= {
        "metric",
        "layer",
        "head",
        "position",
        "prompt",
        "text",
        "token",
        "effect",
    }
    assert len(table) == 3 * 2 * 2 * 2 * 3
    row = table.query(
        "metric == 'kl' and layer == 2 and head == 3 and position == 5 and prompt == 1"
    )
    assert row.text.tolist() == [pairs.texts[1]]
    assert row.effect.item() == fx.effect.sel(metric="kl", layer=2, head=3, position=5, prompt=1)
    assert isinstance(table, pd.DataFrame)
    # What was not measured is not there once rows without a number are dropped.
    assert set(table.dropna(subset="effect").groupby(["layer", "head"]).groups) == {(1, 0), (2, 3)}


def test_prompts_of_several_lengths_by_number(tiny_gpt2: TransformerBridge):
    """A position that shorter prompts lack is measured on the longer ones alone."""
    pairs = pl.tasks.factual_recall(tiny_gpt2, n=9)
    lengths = np.array([len(prompt.clean) for prompt in pairs.prompts])
    last = int(lengths.max()) - 1
    options = OPTIONS | {"corruption": pl.STR("subject")}
    fx = pl.patch(tiny_gpt2, pairs, "resid", positions=[3, last], keep_prompts=True, **options)
    lacks = fx.patched.sel(position=last).isnull().all(["metric", "layer"]).values
    assert lacks.tolist() == (lengths <= last).tolist()
    assert fx.patched.sel(position=3).notnull().all()
    mean = pl.patch(tiny_gpt2, pairs, "resid", positions=last, **options)
    alone = pl.patch(tiny_gpt2, pairs[lengths > last], "resid", positions=last, **options)
    for name in ("effect", "patched", "clean", "corrupted"):
        np.testing.assert_allclose(mean[name], alone[name], **CLOSE)


@pytest.mark.parametrize("component", ["head", "q", "k", "v", "pattern", "resid_mid", "mlp"])
def test_double_precision(tiny_folders, component: str):
    """Engines agree to nine digits where the model has sixteen."""
    model = pl.load_model(tiny_folders("gpt2"), dtype="float64")
    pairs = pl.tasks.ioi(model, n=3)
    options = OPTIONS | {"keep_prompts": True, "positions": ["S2", "last"]}
    hooks, fast = (pl.patch(model, pairs, component, engine=name, **options) for name in ENGINES)
    assert (hooks.attrs["engine"], fast.attrs["engine"]) == ("hooks", "fast")
    assert (hooks.attrs["dtype"], fast.attrs["dtype"]) == ("float64", "float64")
    np.testing.assert_allclose(fast.patched, hooks.patched, rtol=1e-9, atol=1e-9)


def test_double_precision_that_is_none(tiny_folders):
    """TransformerLens' own pass of a norm without a mean rounds to single precision."""
    model = pl.load_model(tiny_folders("llama"), dtype="float64")
    pairs = pl.tasks.ioi(model, n=2)
    with pytest.warns(UserWarning, match="unpatched logits differ from TransformerLens'"):
        fx = pl.patch(model, pairs, "mlp", **OPTIONS)
    assert fx.attrs["engine"] == "hooks"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_half_precision(tiny_folders, family: str, dtype: str):
    """Each engine rounds in its own way, the fast one by no more than twice what hooks do."""
    exact, rounded = (pl.load_model(tiny_folders(family), dtype=d) for d in ("float32", dtype))
    pairs = pl.tasks.ioi(exact, n=4)
    options = OPTIONS | {"metrics": ["log_prob"], "keep_prompts": True}
    for component in ("head", "q", "resid_mid"):
        reference = pl.patch(exact, pairs, component, **options).patched
        off = {}
        for engine in ENGINES:
            found = pl.patch(rounded, pairs, component, engine=engine, **options).patched
            off[engine] = float(((found - reference) ** 2).mean() ** 0.5)
        assert 0 < off["fast"] < 2 * off["hooks"]
        assert off["fast"] < (0.02 if dtype == "float16" else 0.2) * float(reference.std())

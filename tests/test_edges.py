"""Edges: worked out by hand, by plain weights, by patches and paths, and what must hold."""

import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import test_closed_form as by_hand
import torch
import xarray as xr
from memory import Memory
from torch import Tensor
from torch.nn import functional
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.prompts.pairs import PromptPairs

METRICS = ("logit_diff", "prob", "kl", "log_prob")
# Single precision, in sums of a different order.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
OPTIONS = {"corruption": pl.STR("S2"), "metrics": METRICS, "progress": False}


@pytest.fixture(scope="module", params=["mini", "gpt2", "gpt_neox", "gptj", "llama"])
def model(
    request: pytest.FixtureRequest,
    mini: TransformerBridge,
    tiny_folders: Callable[[str], Path],
) -> TransformerBridge:
    """Mini, and a small model of each family."""
    return mini if request.param == "mini" else pl.load_model(tiny_folders(request.param))


def raw(fx: xr.Dataset) -> xr.Dataset:
    """The metrics themselves: an effect may be a small difference divided by a small one."""
    return fx[["patched", "clean", "corrupted"]]


def some(edges: pl.Edges, share: float, seed: int = 0) -> pl.Edges:
    """A random part of them."""
    draw = random.Random(seed)
    return pl.Edges(edge for edge in edges if draw.random() < share)


def test_edges_by_hand(tmp_path: Path):
    """In the model of test_closed_form, as test_paths works out its paths.

    Of the embedding nothing changes at the last position, where logits and MLP are read; restored
    in what the values read, it restores a head's z, and with it both edges of the head: 19/13 for
    head 0. The MLP's edge gives (-3, -4, 12)/13 and 1.
    """
    by_hand.save_weights(tmp_path)
    by_hand.save_words(tmp_path)
    model, pairs = pl.load_model(tmp_path), PromptPairs("by hand", (by_hand.prompt(),))
    options = {"corruption": pl.STR("first"), "metrics": "logit_diff", "progress": False}
    fx = pl.patch_edges(model, pairs, **options)
    assert dict(fx.effect.sizes) == {"metric": 1, "writer": 4, "reader": 8}
    for edge, expected in {
        "0.0->logits": 7 / 5,
        "0.1->logits": -7 / 5,
        "0.0->mlp_in0": 1,
        "0.1->mlp_in0": 1 / 5,
        "mlp0->logits": 1,
        "resid0->logits": 1 / 5,
        "resid0->mlp_in0": 1 / 5,
        "resid0->v0.0": 19 / 13,
        "resid0->q0.0": 1 / 5,
    }.items():
        writer, reader = edge.split("->")
        one = fx.sel(metric="logit_diff", writer=writer, reader=reader)
        np.testing.assert_allclose(one.patched, expected, atol=1e-5)
        np.testing.assert_allclose(one.effect, (expected - 1 / 5) * 65 / 42, atol=1e-5)
    assert int(fx.effect.notnull().sum()) == 6 + 3 + 4
    both = pl.patch_edges(model, pairs, ["0.0->logits", "0.0->mlp_in0"], **options)
    np.testing.assert_allclose(both.patched, [19 / 13], atol=1e-5)


def by_weights(model: TransformerBridge, pairs: PromptPairs, patched: pl.Edges) -> Tensor:
    """A GPT-2 reader by reader, each with its own sum of what writers write: the last logits."""
    gpt2 = model.original_model
    transformer, heads = gpt2.transformer, model.cfg.n_heads

    def run(tokens: Tensor, other: dict[str, Tensor], patched: set) -> tuple[Tensor, dict]:
        here = {"resid0": transformer.wte(tokens) + transformer.wpe.weight[: tokens.shape[1]]}
        rest = torch.zeros_like(here["resid0"])

        def read(reader: str, norm: torch.nn.Module) -> Tensor:
            streams = [other[w] if (w, reader) in patched else x for w, x in here.items()]
            return norm(torch.stack(streams).sum(0) + rest)

        for layer, block in enumerate(transformer.h):
            W, b = block.attn.c_attn.weight.chunk(3, 1), block.attn.c_attn.bias.chunk(3)
            heard = {}
            for head, of_head in enumerate(torch.arange(model.cfg.d_model).chunk(heads)):
                q, k, v = (
                    read(f"{kind}{layer}.{head}", block.ln_1) @ W[i][:, of_head] + b[i][of_head]
                    for i, kind in enumerate("qkv")
                )
                scores = q @ k.mT / len(of_head) ** 0.5
                scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1) > 0, -torch.inf)
                z = scores.softmax(-1) @ v
                heard[f"{layer}.{head}"] = z @ block.attn.c_proj.weight[of_head]
            here |= heard
            rest = rest + block.attn.c_proj.bias
            neurons = block.mlp.c_fc(read(f"mlp_in{layer}", block.ln_2))
            neurons = functional.gelu(neurons, approximate="tanh")
            here[f"mlp{layer}"] = block.mlp.c_proj(neurons)
        return gpt2.lm_head(read("logits", transformer.ln_f))[:, -1], here

    with torch.no_grad():
        _, other = run(pairs.clean_tokens, {}, set())
        return run(pairs.corrupted_tokens("S2"), other, set(patched))[0]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6])
def test_against_plain_weights(tiny_gpt2: TransformerBridge, share: float):
    """A random set of edges, from few to most."""
    pairs = pl.tasks.ioi(tiny_gpt2, 4)
    edges = some(pl.Edges.of(tiny_gpt2), share)
    logits = by_weights(tiny_gpt2, pairs, edges)
    rows = torch.arange(len(pairs))
    right, wrong = (
        each.view(len(pairs), -1)[:, 0] for each in (pairs.answers, pairs.wrong_answers)
    )
    fx = pl.patch_edges(tiny_gpt2, pairs, edges, keep_prompts=True, **OPTIONS)
    difference = logits[rows, right] - logits[rows, wrong]
    np.testing.assert_allclose(fx.patched.sel(metric="logit_diff"), difference, **CLOSE)
    moved = [abs(fx.patched - fx[run]).sel(metric="logit_diff") for run in ("clean", "corrupted")]
    assert min(each.max() for each in moved) > 1e-3


def test_how_many_edges(model: TransformerBridge):
    """Readers times writers before them; a parallel MLP does not read the heads of its layer."""
    expected = {"mini": 6637, "gpt2": 262, "gpt_neox": 250, "gptj": 250, "llama": 190}
    family = model.original_model.config.model_type
    count = expected["mini" if model.cfg.n_layers == 8 else family]
    edges = pl.Edges.of(model)
    assert len(edges) == count and len(set(map(str, edges))) == count
    pairs = pl.tasks.ioi(model, 1)
    if count < 1000:
        fx = pl.patch_edges(model, pairs, **OPTIONS)
        assert int(fx.effect.sel(metric="kl").notnull().sum()) == count


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("corruption", [pl.STR("S2"), pl.GN("S2", draws=2)], ids=["STR", "GN"])
def test_all_edges_and_none(model: TransformerBridge, direction: str, corruption: pl.Corruption):
    """The one unpatched run and the other; so are all into the logits, and all of the embedding."""
    edges = pl.Edges.of(model)
    sets = {
        "all": edges,
        "none": [],
        "read by the logits": [edge for edge in edges if edge.reader == "logits"],
        "of the embedding": [edge for edge in edges if edge.writer == "resid0"],
    }
    options = OPTIONS | {"corruption": corruption, "direction": direction}
    fx = pl.patch_edges(model, pl.tasks.ioi(model, 3), sets, **options)
    source, destination = "clean", "corrupted"
    if direction == "noise":
        source, destination = destination, source
    for name in sets:
        expected = fx[destination if name == "none" else source]
        np.testing.assert_allclose(fx.patched.sel(edges=name), expected, **CLOSE)
    assert (abs(fx.clean - fx.corrupted) > 1e-3).any()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_all_edges_of_a_node(model: TransformerBridge, direction: str):
    """What leaves a head or an MLP is its patch; what enters a head's q, k and v is theirs."""
    pairs = pl.tasks.ioi(model, 3, seed=1)
    options = OPTIONS | {"direction": direction}
    edges = pl.Edges.of(model)
    for parts in (["0.1"], ["2.3"], ["mlp1"], ["1.0", "mlp0", "2.2"]):
        leaving = [edge for edge in edges if edge.writer in parts]
        fx = pl.patch_edges(model, pairs, leaving, **options)
        xr.testing.assert_allclose(
            raw(fx), raw(pl.patch_together(model, pairs, parts, **options)), **CLOSE
        )
    # Under grouped-query attention heads 2 and 3 share a key and a value.
    for parts in (["q2.2"], ["k2.2", "v2.2"], ["q1.2", "k1.2", "v1.2", "q2.0"]):
        entering = [edge for edge in edges if edge.reader in parts]
        fx = pl.patch_edges(model, pairs, entering, **options)
        xr.testing.assert_allclose(
            raw(fx), raw(pl.patch_together(model, pairs, parts, **options)), **CLOSE
        )


def test_one_edge_is_a_path(tiny: TransformerBridge):
    """With MLPs frozen, from every head and every MLP to receivers of every kind."""
    pairs = pl.tasks.ioi(tiny, 3, seed=2)
    fx = pl.patch_edges(tiny, pairs, **OPTIONS)
    for reader in ("q1.1", "k2.2", "v2.0", "mlp_in1", "mlp_in2", "logits"):
        for kind, names in (
            ("head", [f"{layer}.{head}" for layer in range(3) for head in range(4)]),
            ("mlp", [f"mlp{layer}" for layer in range(3)]),
        ):
            paths = pl.path_patch(tiny, pairs, kind, reader, mlps="freeze", **OPTIONS)
            theirs = paths.patched.values.reshape(len(METRICS), -1)
            # What comes after the reader is no edge, and no path.
            ours = fx.patched.sel(reader=reader, writer=names).fillna(fx.corrupted)
            np.testing.assert_allclose(ours, theirs, **CLOSE)
    assert fx.effect.sel(metric="logit_diff").std() > 1e-3


def test_what_pruning_leaves_out_does_nothing(model: TransformerBridge):
    """A circuit's run is the same without edges that lead from nowhere or to nowhere."""
    pairs, edges = pl.tasks.ioi(model, 3), pl.Edges.of(model)
    share = 0.1 if model.cfg.n_layers == 8 else 0.2
    circuits = [some(edges, share, seed) for seed in range(3)]
    pruned = [circuit.pruned(model) for circuit in circuits]
    sets = {f"{n}": edges - circuit for n, circuit in enumerate([*circuits, *pruned])}
    fx = pl.patch_edges(model, pairs, sets, **OPTIONS | {"direction": "noise"}).patched
    assert all(less <= circuit for less, circuit in zip(pruned, circuits, strict=True))
    assert sum(map(len, pruned)) < sum(map(len, circuits))
    assert [each.pruned(model) for each in pruned] == pruned
    np.testing.assert_allclose(fx[:, :3], fx[:, 3:], **CLOSE)
    assert fx.sel(metric="logit_diff", edges=["3", "4", "5"]).std() > 1e-4


def test_pruning_by_hand(mini: TransformerBridge, tiny_folders: Callable[[str], Path]):
    """From the embedding to the logits, backwards and forwards."""
    chain = ["resid0->k0.1", "0.1->mlp_in1", "mlp1->v3.0", "3.0->logits"]
    assert pl.Edges(chain).pruned(mini) == pl.Edges(chain)
    for cut in range(len(chain)):
        assert not pl.Edges(chain[:cut] + chain[cut + 1 :]).pruned(mini)
    assert pl.Edges.of(mini).pruned(mini) == pl.Edges.of(mini)
    llama = pl.load_model(tiny_folders("llama"))
    # Heads 2 and 3 share a key, which goes by head 2.
    shared = pl.Edges(["resid0->k1.3", "1.2->logits"]).pruned(llama)
    assert shared == pl.Edges(["resid0->k1.2", "1.2->logits"])
    assert not pl.Edges(["resid0->k1.3", "1.1->logits"]).pruned(llama)


def test_a_shared_key_goes_by_each_of_its_heads(tiny_folders: Callable[[str], Path]):
    model = pl.load_model(tiny_folders("llama"))
    pairs, names = pl.tasks.ioi(model, 3), ["0.1->v2.2", "0.1->v2.3", "0.1->v2.0"]
    fx = pl.patch_edges(model, pairs, {name: [name] for name in names}, **OPTIONS).patched
    np.testing.assert_array_equal(fx.sel(edges=names[0]), fx.sel(edges=names[1]))
    assert (fx.sel(edges=names[0]) != fx.sel(edges=names[2])).all()


def test_a_set_of_edges(mini: TransformerBridge, tmp_path: Path):
    """Prints in the order of the layers, is kept as text, and is a set."""
    text = "mlp0->logits, 0.10->logits 0.2->logits\nresid0->logits,resid0->mlp_in0, 0.2->q10.0"
    edges = pl.Edges(text)
    assert str(edges).split("\n") == [
        "resid0->mlp_in0",
        "0.2->q10.0",
        "resid0->logits",
        "0.2->logits",
        "0.10->logits",
        "mlp0->logits",
    ]
    assert repr(edges) == "Edges(6 edges)" and len(edges) == 6
    edges.save(tmp_path / "circuits" / "one.txt")
    assert pl.Edges.load(tmp_path / "circuits" / "one.txt") == edges
    pl.Edges().save(tmp_path / "none.txt")
    assert pl.Edges.load(tmp_path / "none.txt") == pl.Edges() == set()
    assert "0.2->q10.0" in edges and ("0.2", "q10.0") in edges and "0.2->q1.0" not in edges
    both = edges & pl.Edges(["0.2->logits", ("0.3", "logits")])
    assert isinstance(both, pl.Edges) and str(both) == "0.2->logits"
    assert str((edges | both) - pl.Edges(str(edges).replace("mlp0->logits", ""))) == "mlp0->logits"
    assert len({edges, pl.Edges(edges)}) == 1
    layers = [int(re.search("[0-9]+", edge.reader)[0]) for edge in [*pl.Edges.of(mini)][:-73]]
    assert all(one <= two for one, two in pairwise(layers))


def test_prompts_of_several_lengths(model: TransformerBridge):
    """Each as if it were alone."""
    pairs = pl.tasks.factual_recall(model, 6)
    assert len({len(prompt.clean) for prompt in pairs.prompts}) > 1
    options = OPTIONS | {"corruption": pl.STR("subject")}
    edges = some(pl.Edges.of(model), 0.3)
    together = pl.patch_edges(model, pairs, edges, keep_prompts=True, **options)
    for number in range(len(pairs)):
        alone = pl.patch_edges(model, pairs[[number]], edges, **options)
        xr.testing.assert_allclose(
            raw(together.isel(prompt=number)).drop_vars("text"), raw(alone), **CLOSE
        )


def test_edges_keep_to_the_budget(tiny: TransformerBridge):
    """Of the smallest budget that the refusal names, with the same numbers."""
    pairs = pl.tasks.ioi(tiny, 3)
    edges = pl.Edges.of(tiny)
    sets = {str(seed): some(edges, 0.5, seed) for seed in range(5)}
    options = OPTIONS | {"corruption": pl.GN("S1+IO")}
    with pytest.raises(pl.PatchlibError, match=r"needs \d+ bytes") as refusal:
        pl.patch_edges(tiny, pairs, sets, memory_budget=1000, **options)
    (smallest,) = re.findall(r"give memory_budget=(\d+) or more", str(refusal.value))
    plenty = pl.patch_edges(tiny, pairs, sets, **options)
    for budget in (int(smallest), 3 * int(smallest)):
        with Memory(tiny) as memory:
            fx = pl.patch_edges(tiny, pairs, sets, memory_budget=budget, **options)
        assert memory.most <= budget
        xr.testing.assert_allclose(fx, plenty, rtol=1e-3, atol=1e-4)


def test_what_results_say(tiny_gpt2: TransformerBridge, tmp_path: Path):
    """All that decides the numbers; a stopped sweep goes on where it was."""
    pairs = pl.tasks.ioi(tiny_gpt2, 4)
    done: list[tuple[int, int]] = []
    options = OPTIONS | {"progress": lambda *rows: done.append(rows)}
    fx = pl.patch_edges(tiny_gpt2, pairs, checkpoint=tmp_path / "kept", **options)
    assert done[0] == (0, 4 * 262) and done[-1] == (4 * 262, 4 * 262)
    assert fx.effect.dims == ("metric", "writer", "reader")
    assert (fx.attrs["method"], fx.attrs["component"]) == ("edge patching", "edge")
    again = pl.patch_edges(tiny_gpt2, pairs, checkpoint=tmp_path / "kept", **OPTIONS)
    assert again.identical(fx)
    sets = {"one": "0.1->logits, resid0->q0.1", "none": ()}
    fx = pl.patch_edges(tiny_gpt2, pairs, sets, direction="noise", keep_prompts=True, **OPTIONS)
    assert fx.effect.dims == ("metric", "prompt", "edges")
    assert fx.attrs["edges"] == "one: resid0->q0.1, 0.1->logits; none: none"
    every = pl.Edges.of(tiny_gpt2)
    sets = {"all": every, "most": every - pl.Edges("0.1->logits")}
    many = pl.patch_edges(tiny_gpt2, pairs, sets, **OPTIONS)
    assert many.attrs["edges"] == "all: all; most: all but 0.1->logits"
    assert (fx.attrs["direction"], fx.attrs["site"]) == ("noise", "S2")
    fx.to_netcdf(tmp_path / "effects.nc")
    assert xr.load_dataset(tmp_path / "effects.nc").identical(fx)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"edges": "0.1"}, "'0.1' is no edge: write"),
        ({"edges": ["resid1->logits"]}, "'resid1->logits' is no edge"),
        ({"edges": ["0.1->z1.1"]}, "'0.1->z1.1' is no edge"),
        ({"edges": [("0.1", "logits", "q1.1")]}, "is no edge"),
        ({"edges": 3}, "3 is no set of edges"),
        ({"edges": {}}, "give at least one set"),
        ({"edges": ["1.1->q1.1"]}, "'1.1->q1.1' is no edge of this model, which has 3 layers"),
        ({"edges": ["mlp1->mlp_in1"]}, "the writer comes before the reader"),
        ({"edges": ["0.4->logits"]}, "'0.4->logits' is no edge of this model"),
        ({"edges": ["0.1->k2.4"]}, "'0.1->k2.4' is no edge of this model"),
        ({"direction": "up"}, "direction='up'"),
        ({"corruption": "S2"}, "give pl.STR"),
    ],
)
def test_refusals(tiny_gpt2: TransformerBridge, wrong: dict, message: str):
    """Each says what is allowed."""
    settings = {"edges": "0.1->logits", **OPTIONS} | wrong
    with pytest.raises(pl.PatchlibError, match=re.escape(message)):
        pl.patch_edges(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, 2), **settings)


def test_an_unknown_architecture_is_refused(tiny_gpt2: TransformerBridge):
    """As is a hook that this way of running the model would pass by."""
    tiny_gpt2.add_hook("blocks.0.attn.hook_z", lambda z, hook: 2 * z)
    try:
        with pytest.raises(pl.PatchlibError, match="edges cannot be patched in this model: a hook"):
            pl.patch_edges(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, 2), "0.1->logits", **OPTIONS)
    finally:
        tiny_gpt2.reset_hooks()

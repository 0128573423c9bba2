"""Attribution of edges: against plain gradients, and what must hold."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from memory import Memory
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    Node,
    attribution_patch,
)
from transformer_lens.utilities import get_act_name

import patchlib as pl

CLOSE = {"rtol": 1e-3, "atol": 2e-5}
OPTIONS = {"corruption": pl.STR("S2"), "metrics": "logit_diff", "progress": False}


@pytest.fixture(scope="module", params=["mini", "gpt2", "gpt_neox", "gptj", "llama"])
def model(
    request: pytest.FixtureRequest,
    mini: TransformerBridge,
    tiny_folders: Callable[[str], Path],
) -> TransformerBridge:
    """Mini, and a small model of each family."""
    return mini if request.param == "mini" else pl.load_model(tiny_folders(request.param))


def change(fx: xr.Dataset) -> xr.DataArray:
    """By how much each edge is estimated to change the metric."""
    start = fx.corrupted if fx.attrs["direction"] == "denoise" else fx.clean
    return (fx.patched - start).squeeze("metric", drop=True)


def node_attribution(model: TransformerBridge, source: Tensor, here: Tensor, loss) -> dict:
    """Change times gradient of what each head and each MLP writes, by plain hooks."""
    names = [get_act_name(kind, n) for n in range(model.cfg.n_layers) for kind in ("z", "mlp_out")]
    with torch.no_grad():
        _, there = model.run_with_cache(source)
        _, mine = model.run_with_cache(here)
    # What is added, at zero, so that its gradient is the activation's.
    added = {name: torch.zeros_like(mine[name], requires_grad=True) for name in names}

    def add(name: str):
        return name, lambda activation, hook: activation + added[name]

    # The model is that of all tests: its parameters keep no gradients.
    value = loss(model.run_with_hooks(here, fwd_hooks=[*map(add, names)]))
    gradient = dict(zip(added, torch.autograd.grad(value, [*added.values()]), strict=True))
    found = {}
    for layer in range(model.cfg.n_layers):
        z, mlp = names[2 * layer : 2 * layer + 2]
        by_head = ((there[z] - mine[z]) * gradient[z]).sum((0, 1, 3)) / len(here)
        found |= {f"{layer}.{head}": float(each) for head, each in enumerate(by_head)}
        found[f"mlp{layer}"] = float(((there[mlp] - mine[mlp]) * gradient[mlp]).sum() / len(here))
    return found


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_edges_of_a_node_add_up_to_its_attribution(model: TransformerBridge, direction: str):
    """Over all its readers, as TransformerLens' own pass and autograd give it."""
    pairs = pl.tasks.ioi(model, 3)
    rows = torch.arange(len(pairs))
    right, wrong = (
        each.view(len(pairs), -1)[:, 0] for each in (pairs.answers, pairs.wrong_answers)
    )
    runs = pairs.clean_tokens, pairs.corrupted_tokens("S2")
    if direction == "noise":
        runs = runs[::-1]
    theirs = node_attribution(
        model, *runs, lambda logits: (logits[rows, -1, right] - logits[rows, -1, wrong]).sum()
    )
    ours = change(pl.attribute_edges(model, pairs, direction=direction, **OPTIONS)).sum("reader")
    expected = [theirs[name] for name in ours.writer.values[1:]]
    np.testing.assert_allclose(ours[1:], expected, **CLOSE)
    assert np.std(expected) > 1e-3


def name(node: Node) -> str:
    """What a node of TransformerLens' graph is called here."""
    kind = {"embed": "resid0", "attn_head_out": "", "mlp_out": "mlp"}.get(node.kind)
    if node.kind in ("embed", "logits"):
        return kind or node.kind
    kind = node.kind.removesuffix("_input") if kind is None else kind
    return f"{kind}{node.layer}" + ("" if node.head is None else f".{node.head}")


def test_against_transformer_lens(model: TransformerBridge):
    """Every edge, whose score is the sum of theirs over positions."""
    family = model.original_model.config.model_type
    if family in ("llama", "gptj"):
        pytest.skip("TransformerLens has no such inputs of heads in GPT-J or with shared keys")
    pairs = pl.tasks.ioi(model, 1)
    right, wrong = (int(each.flatten()[0]) for each in (pairs.answers, pairs.wrong_answers))
    theirs = attribution_patch(
        model,
        pairs.clean_tokens,
        pairs.corrupted_tokens("S2"),
        lambda logits: logits[0, -1, right] - logits[0, -1, wrong],
        EdgeAttributionConfig(granularity="edge"),
    )
    ours = change(pl.attribute_edges(model, pairs, **OPTIONS))
    summed = Counter[tuple[str, str]]()
    for (writer, reader), score in theirs.edge_scores.items():
        summed[name(writer), name(reader)] += score
    mine = ours.to_series().dropna().to_dict()
    assert mine.keys() == summed.keys()
    np.testing.assert_allclose([*mine.values()], [summed[edge] for edge in mine], **CLOSE)
    assert np.std([*mine.values()]) > 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_many_steps_add_up_to_the_whole(tiny_folders: Callable[[str], Path], family: str):
    """Over the edges of the embedding, with an error that falls as one over the steps."""
    model = pl.load_model(tiny_folders(family))
    pairs, errors = pl.tasks.ioi(model, 3), {}
    for steps in (1, 25, 100):
        fx = pl.attribute_edges(model, pairs, steps=steps, **OPTIONS)
        effects = fx.effect.sel(writer="resid0").sum()
        errors[steps] = abs(float(effects) - 1)
    assert errors[100] < 0.05 and errors[100] < 0.4 * errors[25] and errors[25] < errors[1]


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_along_activations_every_head_adds_up_to_its_patch(
    tiny_folders: Callable[[str], Path], family: str
):
    """With many steps, over the head's own edges; with one step it is EAP."""
    model = pl.load_model(tiny_folders(family))
    pairs, errors = pl.tasks.ioi(model, 2), {}
    heads = pl.patch(model, pairs, "head", **OPTIONS).effect.stack(each=["layer", "head"])
    names = [f"{layer}.{head}" for layer, head in heads.each.values]
    for steps in (1, 15):
        fx = pl.attribute_edges(model, pairs, steps=steps, along="activations", **OPTIONS)
        errors[steps] = abs(fx.effect.sum("reader").sel(writer=names).values - heads.values).mean()
        if steps == 1:
            eap = pl.attribute_edges(model, pairs, **OPTIONS)
            np.testing.assert_allclose(fx.effect, eap.effect, **CLOSE)
    assert errors[15] < 0.2 * errors[1] and errors[15] < 0.02 * abs(heads).max()


def test_one_edge_to_first_order(tiny_gpt2: TransformerBridge):
    """Where the runs hardly differ, the estimate is what patching the edge does."""
    pairs = pl.tasks.ioi(tiny_gpt2, 3)
    noise = {"corruption": pl.GN("S2", 0.01), "metrics": "log_prob", "progress": False}
    exact, estimate = (
        change(one(tiny_gpt2, pairs, **noise)) for one in (pl.patch_edges, pl.attribute_edges)
    )
    assert abs(exact - estimate).max() < 0.05 * abs(exact).max()
    assert np.corrcoef(*(each.values[exact.notnull()] for each in (exact, estimate)))[0, 1] > 0.999


def test_no_difference_no_attribution(tiny: TransformerBridge):
    """Exactly none where writers come before anything that differs, or runs are alike."""
    pairs = pl.tasks.ioi(tiny, 2)
    alike = pl.attribute_edges(tiny, pairs, **OPTIONS | {"corruption": pl.GN("S2", 0.0)})
    assert (change(alike).stack(edge=["writer", "reader"]).dropna("edge") == 0).all()


def test_prompts_draws_and_budgets(tiny: TransformerBridge):
    """Each prompt as if it were alone, in the smallest budget as in a large one."""
    pairs = pl.tasks.factual_recall(tiny, 4)
    assert len({len(prompt.clean) for prompt in pairs.prompts}) > 1
    options = OPTIONS | {"corruption": pl.GN("subject", draws=2), "metrics": ["prob", "kl"]}
    together = pl.attribute_edges(tiny, pairs, keep_prompts=True, steps=2, **options)
    alone = pl.attribute_edges(tiny, pairs[[2]], steps=2, **options)
    np.testing.assert_allclose(together.patched.isel(prompt=2), alone.patched, **CLOSE)
    with pytest.raises(pl.PatchlibError, match=r"needs \d+ bytes") as refusal:
        pl.attribute_edges(tiny, pairs, memory_budget=1000, **options)
    longest = max(len(prompt.clean) for prompt in pairs.prompts)
    (smallest,) = re.findall(r"give memory_budget=(\d+) or more", str(refusal.value))
    budget = int(smallest) * 2 * longest // min(len(prompt.clean) for prompt in pairs.prompts)
    with Memory(tiny) as memory:
        fx = pl.attribute_edges(
            tiny, pairs, keep_prompts=True, steps=2, memory_budget=budget, **options
        )
    assert memory.most <= budget
    np.testing.assert_allclose(fx.patched, together.patched, **CLOSE)


def test_what_results_say(tiny_gpt2: TransformerBridge):
    """That they are estimates, and by how many steps."""
    fx = pl.attribute_edges(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, 2), steps=3, **OPTIONS)
    assert fx.effect.dims == ("metric", "writer", "reader")
    said = [fx.attrs[name] for name in ("method", "component", "steps", "along", "direction")]
    assert said == ["edge attribution patching", "edge", 3, "inputs", "denoise"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"metrics": "rank"}, "metric 'rank' has no gradient"),
        ({"metrics": ["kl", "accuracy"]}, "metric 'accuracy' has no gradient"),
        ({"steps": 0}, "steps=0"),
        ({"along": "weights"}, "along='weights': give 'inputs' or 'activations'"),
        ({"direction": "up"}, "direction='up'"),
    ],
)
def test_refusals(tiny_gpt2: TransformerBridge, wrong: dict, message: str):
    """Each says what is allowed."""
    with pytest.raises(pl.PatchlibError, match=message):
        pl.attribute_edges(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, 2), **OPTIONS | wrong)

"""Attribution: worked out by hand, by TransformerLens, by plain hooks, and what must hold."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import test_closed_form as by_hand
import torch
import xarray as xr
from memory import Memory
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.attribution_patching import Node, attribution_patch
from transformer_lens.utilities import get_act_name
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import patchlib as pl
from patchlib.methods.attribution import attribute
from patchlib.models.loading import MINI
from patchlib.prompts.pairs import PromptPairs

METRICS = ("logit_diff", "prob", "kl")
OPTIONS = {"corruption": pl.STR("S2"), "metrics": METRICS, "progress": False}
COMPONENTS = ("head", "mlp", "attn", "resid", "q", "k", "v")
# Single precision, in sums of a different order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
# So large that nothing else is left of the variance: such a norm takes the mean away, no more.
AFFINE_NORM = 1e12


@pytest.fixture(scope="module", params=["mini", "gpt2", "gpt_neox", "gptj", "llama"])
def model(
    request: pytest.FixtureRequest,
    mini: TransformerBridge,
    tiny_folders: Callable[[str], Path],
) -> TransformerBridge:
    """Mini, and a small model of each family."""
    return mini if request.param == "mini" else pl.load_model(tiny_folders(request.param))


def without_curves(folder: Path, layers: int) -> TransformerBridge:
    """A GPT-2 with random weights that is affine: its norms are, and queries and MLPs are 0."""
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    settings = {"n_layer": layers, "n_head": 4, "n_embd": 32, "n_positions": 64}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(
        vocab_size=len(tokenizer),
        initializer_range=0.3,
        layer_norm_epsilon=AFFINE_NORM,
        **settings,
        **special,
    )
    torch.manual_seed(layers)
    gpt2 = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for block in gpt2.transformer.h:
            block.mlp.c_proj.weight.zero_()
            block.attn.c_attn.weight[:, :64].zero_()
        for name, parameter in gpt2.named_parameters():
            if ".ln_" in name and name.endswith("weight"):
                parameter[:] = AFFINE_NORM**0.5
    gpt2.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return pl.load_model(folder)


def raw(fx: xr.Dataset) -> xr.Dataset:
    """The metrics themselves: an effect may be a small difference divided by a small one."""
    return fx[["patched", "clean", "corrupted"]]


def test_by_hand(tmp_path: Path):
    """In the model of test_closed_form, where the logit difference is (a - b + c) / |(a, b, c)|.

    Denoising starts at (-3, -4, 0), where its gradient is (28, -21, 25)/125. Head 0 adds 6 to a,
    head 1 8 to b, the MLP 12 to c. The neuron is off, so that head 0's way through it is not seen:
    the patch gives 19/13. Of what the first position's embedding becomes, only the part at right
    angles to (0, 1, 0) passes the norm: half of the way of both heads, 3 and 4.

    Noising starts at (3, 4, 12), where the gradient is (136, -213, 37)/2197. The neuron is on, and
    c answers to a and b by 20 (16, -12)/125.
    """
    by_hand.save_weights(tmp_path)
    by_hand.save_words(tmp_path)
    model, pairs = pl.load_model(tmp_path), PromptPairs("by hand", (by_hand.prompt(),))
    options = {"corruption": pl.STR("first"), "metrics": "logit_diff", "progress": False}
    for direction, component, change in (
        ("denoise", "head", [6 * 28 / 125, -8 * 21 / 125]),
        ("denoise", "attn", [(6 * 28 - 8 * 21) / 125]),
        ("denoise", "resid_mid", [(6 * 28 - 8 * 21) / 125]),
        ("denoise", "mlp", [12 * 25 / 125]),
        ("denoise", "resid", [(3 * 28 - 4 * 21) / 125]),
        ("noise", "head", [-6 * (136 + 37 * 2.56) / 2197, 8 * (213 + 37 * 1.92) / 2197]),
        ("noise", "mlp", [-12 * 37 / 2197]),
        ("noise", "neuron", [-12 * 37 / 2197]),
    ):
        layers = [0] if component == "neuron" else None
        fx = attribute(model, pairs, component, direction=direction, layers=layers, **options)
        start, end = (1 / 5, 11 / 13) if direction == "denoise" else (11 / 13, 1 / 5)
        np.testing.assert_allclose(fx.patched.values.ravel(), start + np.array(change), atol=1e-5)
        effect = np.array(change) / (end - start)
        np.testing.assert_allclose(fx.effect.values.ravel(), effect, atol=2e-5)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_exact_where_nothing_is_curved(tmp_path: Path, component: str, direction: str):
    """As the patch itself, at all positions and at one."""
    model = without_curves(tmp_path, 3)
    pairs = pl.tasks.ioi(model, 3)
    options = OPTIONS | {"metrics": "logit_diff", "direction": direction}
    for positions in ("all", "S2"):
        estimate = attribute(model, pairs, component, positions=positions, **options)
        true = pl.patch(model, pairs, component, positions=positions, **options)
        xr.testing.assert_allclose(raw(estimate), raw(true), **CLOSE)
    if component not in ("mlp", "q", "k"):
        assert estimate.effect.std() > 1e-3


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_half_the_change_has_a_quarter_of_the_error(
    tiny_folders: Callable[[str], Path], direction: str
):
    """With and without the fix, by every metric and over all cells of a component.

    Llama's norms are computed in single precision, whatever its weights are.
    """
    for family in ("gpt2", "gpt_neox"):
        model = pl.load_model(tiny_folders(family), dtype=torch.float64)
        pairs = pl.tasks.ioi(model, 2)
        for component, fix in (*((each, False) for each in COMPONENTS), ("q", True), ("k", True)):
            errors = []
            for scale in (2e-3, 1e-3):
                options = OPTIONS | {
                    "corruption": pl.GN("S2", scale=scale),
                    "direction": direction,
                    "keep_prompts": True,
                }
                estimate = attribute(model, pairs, component, qk_fix=fix, **options).patched
                true = pl.patch(model, pairs, component, **options).patched
                away = (estimate - true).transpose("metric", ...).values.reshape(len(METRICS), -1)
                errors.append(np.linalg.norm(away, axis=1))
            np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.05)


def test_a_whole_is_the_sum_of_its_parts(model: TransformerBridge):
    """All positions of each position; attention of its heads; an MLP of its neurons."""
    pairs = pl.tasks.ioi(model, 2, seed=4)
    options = OPTIONS | {"keep_prompts": True}

    def change(component: str, **settings) -> xr.DataArray:
        fx = attribute(model, pairs, component, **settings, **options)
        return fx.patched - fx.corrupted

    for component in COMPONENTS:
        by_position = change(component, positions="each").sum("position")
        xr.testing.assert_allclose(by_position, change(component), **CLOSE)
    xr.testing.assert_allclose(change("head").sum("head"), change("attn"), **CLOSE)
    neurons = change("neuron", layers=[1]).sum("neuron")
    xr.testing.assert_allclose(neurons, change("mlp", layers=[1]), **CLOSE)
    # A query stands at one position; a key's positions share a softmax.
    fixed = change("q", positions="each", qk_fix=True).sum("position")
    xr.testing.assert_allclose(fixed, change("q", qk_fix=True), **CLOSE)


def test_no_change_has_no_effect(model: TransformerBridge):
    """Noise of no size, to the last bit."""
    pairs = pl.tasks.ioi(model, 2)
    options = OPTIONS | {"corruption": pl.GN("S2", scale=0)}
    for component, more in (("head", {}), ("k", {"qk_fix": True}), ("mlp", {"grad_drop": True})):
        fx = attribute(model, pairs, component, **more, **options)
        assert (fx.effect.sel(metric=["prob", "kl"]) == 0).all()


def test_noising_is_denoising_of_the_swapped_prompts(model: TransformerBridge):
    """The same numbers, to the last bit."""
    pairs = pl.tasks.ioi(model, 3)
    corrupted = [tuple(row) for row in pairs.corrupted_tokens("S2").tolist()]
    swapped = PromptPairs(
        "swapped",
        tuple(
            dataclasses.replace(prompt, clean=other, corrupted={"S2": prompt.clean}, words=())
            for prompt, other in zip(pairs.prompts, corrupted, strict=True)
        ),
    )
    for component in ("head", "mlp"):
        denoised = attribute(model, pairs, component, **OPTIONS)
        noised = attribute(model, swapped, component, direction="noise", **OPTIONS)
        xr.testing.assert_identical(denoised.patched.drop_attrs(), noised.patched.drop_attrs())
        assert denoised.effect.std() > 0


def test_as_transformer_lens(model: TransformerBridge):
    """Its `attribution_patch`, node by node."""
    pairs = pl.tasks.ioi(model, 2, seed=5)
    corrupted = pairs.corrupted_tokens("S2")
    options = OPTIONS | {"metrics": ["logit_diff", "prob"], "keep_prompts": True}
    found = {
        kind: attribute(model, pairs, component, positions="each", **options)
        for kind, component in (("attn_head_out", "head"), ("mlp_out", "mlp"))
    }
    for row, prompt in enumerate(pairs.prompts):
        (right,), (wrong,) = prompt.answers, prompt.wrong_answers
        clean, other = pairs.clean_tokens[[row]], corrupted[[row]]

        def difference(logits: Tensor, right: int = right, wrong: int = wrong) -> Tensor:
            return logits[0, -1, right] - logits[0, -1, wrong]

        def probability(logits: Tensor, right: int = right) -> Tensor:
            return logits[0, -1].softmax(-1)[right]

        for metric, function in (("logit_diff", difference), ("prob", probability)):
            theirs = attribution_patch(model, clean, other, function).node_scores
            for kind, fx in found.items():
                change = (fx.patched - fx.corrupted).sel(metric=metric).isel(prompt=row)
                for layer in range(model.cfg.n_layers):
                    for at in (0, 5, len(prompt.clean) - 1):
                        mine, head = change.sel(layer=layer, position=at), None
                        if kind == "attn_head_out":
                            mine, head = mine.sel(head=2), 2
                        node = Node(kind, at, layer=layer, head=head)
                        np.testing.assert_allclose(mine, theirs[node], **CLOSE)
                assert change.std() > (1e-3 if metric == "logit_diff" else 0)


def gradient_and_change(
    model: TransformerBridge, pairs: PromptPairs, part: str, layer: int, unit: int, at: int | slice
) -> Tensor:
    """By plain hooks: what a patched query or key does to z, times the gradient there."""
    source, destination = pairs.clean_tokens, pairs.corrupted_tokens("S2")
    name, z = get_act_name(part, layer), get_act_name("z", layer)
    seen: list[Tensor] = []
    with torch.no_grad():
        _, theirs = model.run_with_cache(source)

        def put(activation: Tensor, hook: object) -> Tensor:
            new = activation.clone()
            new[:, at, unit] = theirs[name][:, at, unit]
            return new

        def see(activation: Tensor, hook: object) -> None:
            seen.append(activation)

        model.run_with_hooks(destination, fwd_hooks=[(name, put), (z, see)])
        model.run_with_hooks(destination, fwd_hooks=[(z, see)])
    moved = torch.zeros_like(seen[1], requires_grad=True)
    with torch.enable_grad():
        logits = model.run_with_hooks(destination, fwd_hooks=[(z, lambda a, hook: a + moved)])
        rows = torch.arange(len(pairs))
        right, wrong = pairs.answers, pairs.wrong_answers
        values = logits[rows, -1, right.flatten()] - logits[rows, -1, wrong.flatten()]
        (gradient,) = torch.autograd.grad(values.sum(), moved)
    return ((seen[0] - seen[1]) * gradient).sum((1, 2, 3)).mean()


def test_the_fix_by_plain_hooks(model: TransformerBridge):
    """A patched query or key, followed as far as z, in every family."""
    pairs = pl.tasks.ioi(model, 2, seed=6)
    options = OPTIONS | {"metrics": "logit_diff", "qk_fix": True}
    last = len(pairs.prompts[0].clean) - 1
    for part in "qk":
        for at in (slice(None), last):
            positions = "all" if at == slice(None) else at
            fx = attribute(model, pairs, part, positions=positions, **options)
            change = (fx.patched - fx.corrupted)[0]
            for layer, unit in ((0, 1), (1, 0), (2, 1)):
                theirs = gradient_and_change(model, pairs, part, layer, unit, at)
                np.testing.assert_allclose(change[layer, unit], theirs, **CLOSE)
            assert change.std() > 1e-5


def by_hand_without_curves(
    folder: Path, layers: int, fill: Callable[[GPT2LMHeadModel], None]
) -> TransformerBridge:
    """A model of test_closed_form's coordinates, with affine norms and one head in each layer.

    The logit of A is c, and all other weights that ``fill`` does not set are 0.
    """
    config = GPT2Config(
        vocab_size=3,
        n_positions=8,
        n_embd=4,
        n_layer=layers,
        n_head=1,
        n_inner=1,
        layer_norm_epsilon=AFFINE_NORM,
        tie_word_embeddings=False,
        bos_token_id=by_hand.E,
        eos_token_id=by_hand.E,
    )
    gpt2 = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in gpt2.named_parameters():
            parameter.fill_(AFFINE_NORM**0.5 if ".ln_" in name and "weight" in name else 0)
        gpt2.transformer.wte.weight[:2] = by_hand.H[:2]
        gpt2.lm_head.weight[0] = by_hand.READ[:, 2]
        fill(gpt2)
    gpt2.save_pretrained(folder)
    by_hand.save_words(folder)
    return pl.load_model(folder)


def test_a_saturated_softmax(tmp_path: Path):
    """Has no gradient whatever the patch does; followed through it, the estimate is the patch.

    A token's key is 200 (a - b), its query 1 - 2b, its value 2a + b, which goes into c; scores are
    half of query times key. In "A E" the last token scores A's key 100 and its own 0, and reads 2.
    In "B E" it scores -100 and 0, and reads its own 0; with A's key it reads B's value, 1. In "A B"
    it scores -100 and 100, and reads its own 1; with E's query 2.
    """

    def fill(gpt2: GPT2LMHeadModel) -> None:
        attention = gpt2.transformer.h[0].attn
        attention.c_attn.bias[0] = 1
        for column, read in ((0, (0.0, -2, 0)), (4, (200.0, -200, 0)), (8, (2.0, 1, 0))):
            attention.c_attn.weight[:, column] = by_hand.READ @ torch.tensor(read)
        attention.c_proj.weight[0] = by_hand.H[2]

    model = by_hand_without_curves(tmp_path, 1, fill)
    other = {"first": (by_hand.B, by_hand.E), "last": (by_hand.A, by_hand.B)}
    pairs = PromptPairs("by hand", (dataclasses.replace(by_hand.prompt(), corrupted=other),))
    for component, site, start, end in (("k", "first", 0, 1), ("q", "last", 1, 2)):
        options = OPTIONS | {"corruption": pl.STR(site), "metrics": "logit_diff"}
        true = pl.patch(model, pairs, component, **options)
        plain = attribute(model, pairs, component, **options)
        fixed = attribute(model, pairs, component, qk_fix=True, **options)
        for fx, patched in ((true, end), (plain, start), (fixed, end)):
            np.testing.assert_allclose(fx.corrupted, [start], atol=1e-5)
            np.testing.assert_allclose(fx.patched.values.ravel(), [patched], atol=1e-5)


def test_gradients_past_each_layer_by_hand(tmp_path: Path):
    """Two paths of +1/2 and -1/2 add up to 0; past the layer of either there is one.

    Token A is (1, 0, 0), B (0, 1, 0), E 0; every token attends to all up to itself alike. Layer 0
    writes a into c, half of A's at E, and layer 1 takes away twice what it finds in c, half of
    which it sees. So c is 1/2 - 3/2 = -1 at the end of the clean run, and 0 in the corrupted one.
    Layer 2 does nothing. Of three gradients one lacks the head, one the second path, and one
    nothing: (0 + 1/2 + 0) / 2, on a way of size 1.
    """

    def fill(gpt2: GPT2LMHeadModel) -> None:
        for block, read, write in zip(gpt2.transformer.h, (0, 2), (1, -2), strict=False):
            block.attn.c_attn.weight[:, 8] = by_hand.READ[:, read]
            block.attn.c_proj.weight[0] = write * by_hand.H[2]

    model = by_hand_without_curves(tmp_path, 3, fill)
    pairs = PromptPairs("by hand", (by_hand.prompt(),))
    options = {"corruption": pl.STR("first"), "metrics": "logit_diff", "progress": False}
    for direction in ("denoise", "noise"):
        more = options | {"positions": "last", "direction": direction}
        fx = attribute(model, pairs, **more)
        ends = [float(fx.clean.squeeze()), float(fx.corrupted.squeeze())]
        np.testing.assert_allclose(ends, [-1, 0], atol=1e-5)
        np.testing.assert_allclose(fx.effect[0, 0], 0, atol=1e-5)
        dropped = attribute(model, pairs, grad_drop=True, **more)
        np.testing.assert_allclose(dropped.effect[0, 0], 1 / 4, atol=1e-5)
        assert dropped.patched.isnull().all() and dropped.attrs["grad_drop"] == 1


def test_gradients_past_each_layer_by_plain_hooks(model: TransformerBridge):
    """Each layer's attention and MLP detached in turn; sizes are of each prompt."""
    pairs = pl.tasks.ioi(model, 2, seed=7)
    source, destination = pairs.clean_tokens, pairs.corrupted_tokens("S2")
    layers, name = model.cfg.n_layers, get_act_name("z", 1)
    with torch.no_grad():
        _, theirs = model.run_with_cache(source)
        _, mine = model.run_with_cache(destination)
    change, total = theirs[name] - mine[name], 0
    for layer in range(layers):
        moved = torch.zeros_like(change, requires_grad=True)
        hooks = [(name, lambda a, hook, moved=moved: a + moved)]
        hooks += [
            (get_act_name(each, layer), lambda a, hook: a.detach())
            for each in ("attn_out", "mlp_out")
        ]
        with torch.enable_grad():
            log_p = model.run_with_hooks(destination, fwd_hooks=hooks)[:, -1].log_softmax(-1)
            value = log_p.gather(1, pairs.answers.view(-1, 1)).sum()
            (gradient,) = torch.autograd.grad(value, moved, allow_unused=True)
        if gradient is not None:
            total = total + (change * gradient).sum((1, 3)).abs()
    options = OPTIONS | {"metrics": "log_prob", "grad_drop": True}
    fx = attribute(model, pairs, **options)
    np.testing.assert_allclose(fx.effect[0, 1], total.mean(0) / (layers - 1), **CLOSE)
    kept = attribute(model, pairs, keep_prompts=True, **options)
    of_prompts = kept.effect.isel(metric=0, layer=1).transpose("prompt", "head")
    np.testing.assert_allclose(of_prompts, total / (layers - 1), **CLOSE)


def test_prompts_of_several_lengths(tiny: TransformerBridge):
    """Each as when alone, and NaN at a position that it lacks; as draws of the noise are."""
    pairs = pl.tasks.factual_recall(tiny, 12)
    assert len({len(prompt.clean) for prompt in pairs.prompts}) > 1
    options = OPTIONS | {"corruption": pl.GN("subject", draws=2), "keep_prompts": True}
    for positions in ("all", "middle_subject"):
        fx = attribute(tiny, pairs, positions=positions, **options)
        there = np.array([positions == "all" or bool(at) for at in pairs.at("middle_subject")])
        assert (fx.effect.notnull() == xr.DataArray(there, dims="prompt")).all()
        row = int(there.nonzero()[0][-1])
        alone = attribute(tiny, pairs[[row]], positions=positions, **options)
        np.testing.assert_allclose(fx.patched.isel(prompt=[row]), alone.patched, **CLOSE)
    assert 0 < there.sum() < len(pairs)


def test_it_keeps_to_the_budget(tiny: TransformerBridge):
    """Of the smallest budget that the refusal names, with the same numbers."""
    pairs = pl.tasks.ioi(tiny, 3)
    for component, more in (
        ("head", {}),
        ("neuron", {"layers": [0, 2]}),
        ("k", {"qk_fix": True, "positions": ["S2", "last"]}),
        ("mlp", {"grad_drop": True}),
    ):
        options = OPTIONS | more | {"keep_prompts": True}
        with pytest.raises(pl.PatchlibError, match=r"needs \d+ bytes") as refusal:
            attribute(tiny, pairs, component, memory_budget=1000, **options)
        (smallest,) = re.findall(r"give memory_budget=(\d+) or more", str(refusal.value))
        plenty = attribute(tiny, pairs, component, **options)
        for budget in (int(smallest), 2 * int(smallest)):
            with Memory(tiny) as memory:
                fx = attribute(tiny, pairs, component, memory_budget=budget, **options)
            assert memory.most <= budget
            xr.testing.assert_allclose(fx, plenty, rtol=1e-3, atol=1e-4)


def test_what_results_say(mini: TransformerBridge):
    """The settings, and rows as those of a patch; the model is left as it was."""
    pairs = pl.tasks.ioi(mini, 4)
    done: list[tuple[int, int]] = []
    options = OPTIONS | {"progress": lambda *rows: done.append(rows)}
    fx = attribute(mini, pairs, "q", qk_fix=True, heads=["3.1", "5.0"], **options)
    assert done == [(0, 8), (8, 8)]
    assert fx.attrs["method"] == "attribution patching" and fx.attrs["component"] == "q"
    assert (fx.attrs["qk_fix"], fx.attrs["grad_drop"]) == (1, 0)
    assert int(fx.effect.sel(metric="kl").notnull().sum()) == 2
    assert all(parameter.grad is None for parameter in mini.parameters())
    assert not any(point.fwd_hooks or point.bwd_hooks for point in mini.hook_dict.values())
    with torch.no_grad():
        again = attribute(mini, pairs, "q", qk_fix=True, heads=["3.1", "5.0"], **OPTIONS)
    xr.testing.assert_identical(fx, again)


def lead(logits: Tensor) -> Tensor:
    """The first token's lead, in nats."""
    best = logits.topk(2).values
    return best[..., 0] - best[..., 1]


def test_a_metric_of_your_own(mini: TransformerBridge):
    """It is differentiated as any other."""
    pairs = pl.tasks.ioi(mini, 3)
    options = OPTIONS | {"metrics": [lead], "corruption": pl.GN("S2", scale=1e-3)}
    estimate, true = (each(mini, pairs, "mlp", **options) for each in (attribute, pl.patch))
    np.testing.assert_allclose(estimate.patched, true.patched, atol=1e-4)


def test_refusals(tiny_gpt2: TransformerBridge, tiny_folders: Callable[[str], Path]):
    pairs = pl.tasks.ioi(tiny_gpt2, 2)

    def refuses(match: str, component: str = "head", **settings) -> None:
        with pytest.raises(pl.PatchlibError, match=match):
            attribute(tiny_gpt2, pairs, component, **(OPTIONS | settings))

    refuses("'rank' has no gradient", metrics=["prob", "rank"])
    refuses("'accuracy' has no gradient", metrics="accuracy")
    refuses("it is for 'q' and 'k'", qk_fix=True)
    refuses("for what a layer computes", "resid", grad_drop=True)
    refuses("direction='both'", direction="both")
    with torch.inference_mode():
        refuses("allows no gradients")
    gptj = pl.load_model(tiny_folders("gptj"))
    with pytest.raises(pl.PatchlibError, match="have no gradient"):
        attribute(gptj, pl.tasks.ioi(gptj, 2), "pattern", **OPTIONS)
    tiny_gpt2.train()
    try:
        refuses("eval")
    finally:
        tiny_gpt2.eval()

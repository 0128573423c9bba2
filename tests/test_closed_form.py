"""A model so small that every number of a patching experiment can be worked out by hand.

**Coordinates.** The residual stream has width 4, and this text writes a vector as three numbers
(a, b, c). They stand for a·h1 + b·h2 + c·h3 with

    h1 = (1, -1, 1, -1)    h2 = (1, 1, -1, -1)    h3 = (1, -1, -1, 1)

Each h has mean 0 and they are at right angles, so a·h1 + b·h2 + c·h3 has mean 0 and variance
a² + b² + c². Layer norm therefore just divides (a, b, c) by its length: (3, 4, 12) becomes
(3, 4, 12)/13. All lengths below are whole numbers.

**Embeddings.** Token A is (1, 0, 0), token B is (0, 1, 0), token E is (0, 0, 0); there are no
position embeddings. The clean prompt is "A E", the corrupted one "B E".

**Attention.** Queries and keys are 0, so each token attends equally to all tokens up to itself;
the last of two tokens takes half of each value. E's value is 0. The values of A and B are the
rows of W_V, and W_O sends the two numbers of a head to one coordinate:

    head 0: W_V = [[1, 2], [2, 1]], W_O = [-6, 6] into a
        clean      ½·(1, 2) → ½·(-6·1 + 6·2) =  3
        corrupted  ½·(2, 1) → ½·(-6·2 + 6·1) = -3
    head 1: W_V = [[3, 1], [1, 3]], W_O = [4, -4] into b
        clean      ½·(3, 1) → ½·(4·3 - 4·1) =  4
        corrupted  ½·(1, 3) → ½·(4·1 - 4·3) = -4

E itself is 0, so after attention the last position holds (±3, ±4, 0), of length 5 in every case.

**MLP.** One neuron, max(0, 5·a), reads the normed (±3, ±4, 0)/5 and writes four times itself into
c. It gives 4·max(0, 3) = 12 where head 0 wrote 3, and 4·max(0, -3) = 0 where it wrote -3.

**The last position at the end**, before and after the final layer norm:

    clean             ( 3,  4, 12)  → ( 3,  4, 12)/13
    corrupted         (-3, -4,  0)  → (-3, -4,  0)/5
    head 0 restored   ( 3, -4, 12)  → ( 3, -4, 12)/13    the neuron sees the restored 3
    head 1 restored   (-3,  4,  0)  → (-3,  4,  0)/5
    MLP restored      (-3, -4, 12)  → (-3, -4, 12)/13    its input is -3, its output is put back

**Logits.** Token A has the logit a + c, token B has b, token E has 0. With r = A and r' = B:

                        A        B      A - B
    clean             15/13     4/13    11/13
    corrupted         -3/5     -4/5      1/5
    head 0 restored   15/13    -4/13    19/13
    head 1 restored   -3/5      4/5     -7/5
    MLP restored       9/13    -4/13        1
"""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import patchlib as pl
from patchlib.prompts.pairs import PromptPairs, TokenizedPrompt

A, B, E = 0, 1, 2
# The rows are h1, h2, h3: (a, b, c) @ H is the vector with these coordinates.
H = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
# Since h·h = 4 for each of them, x @ READ gives the coordinates back.
READ = H.T / 4

LOGITS = {
    "clean": (15 / 13, 4 / 13, 0.0),
    "corrupted": (-3 / 5, -4 / 5, 0.0),
    "head 0": (15 / 13, -4 / 13, 0.0),
    "head 1": (-3 / 5, 4 / 5, 0.0),
    "mlp": (9 / 13, -4 / 13, 0.0),
}
ATOL = 1e-5


def softmax(logits: tuple[float, ...]) -> list[float]:
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def p_of_a(run: str) -> float:
    return softmax(LOGITS[run])[A]


def kl(reference: str, run: str) -> float:
    """The sum of p·log(p/q) over the three tokens."""
    p, q = softmax(LOGITS[reference]), softmax(LOGITS[run])
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))


@pytest.fixture
def model(by_hand: TransformerBridge) -> TransformerBridge:
    return by_hand


def save_weights(folder: Path) -> None:
    configuration = GPT2Config(
        vocab_size=3,
        n_positions=8,
        n_embd=4,
        n_layer=1,
        n_head=2,
        n_inner=1,
        activation_function="relu",
        layer_norm_epsilon=1e-12,
        tie_word_embeddings=False,
        bos_token_id=E,
        eos_token_id=E,
    )
    gpt2 = GPT2LMHeadModel(configuration)
    block = gpt2.transformer.h[0]
    values = {
        # One row for each coordinate that is read: A's, B's, and an unused one.
        "head 0": torch.tensor([[1.0, 2], [2, 1], [0, 0]]),
        "head 1": torch.tensor([[3.0, 1], [1, 3], [0, 0]]),
    }
    # One row for each number of a head, one column for each coordinate that is written.
    outputs = torch.tensor([[-6.0, 0, 0], [6, 0, 0], [0, 4, 0], [0, -4, 0]])
    with torch.no_grad():
        for name, parameter in gpt2.named_parameters():
            # Layer norms keep their gain of 1; all else is 0 unless it is set below.
            if not (".ln_" in name and name.endswith("weight")):
                parameter.zero_()
        gpt2.transformer.wte.weight[:2] = H[:2]
        # The last 4 of the 12 columns are the values; queries and keys stay 0.
        block.attn.c_attn.weight[:, 8:] = READ @ torch.cat(list(values.values()), dim=1)
        block.attn.c_proj.weight[:] = outputs @ H
        block.mlp.c_fc.weight[:] = READ @ torch.tensor([[5.0], [0], [0]])
        block.mlp.c_proj.weight[:] = torch.tensor([[0.0, 0, 4]]) @ H
        # Rows: the coordinates that make up the logits of A, B and E.
        gpt2.lm_head.weight[:] = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]]) @ READ.T
    gpt2.save_pretrained(folder)


def save_words(folder: Path) -> None:
    words = Tokenizer(models.WordLevel({"A": A, "B": B, "E": E}, unk_token="E"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="E", eos_token="E")
    tokenizer.save_pretrained(folder)


def prompt(wrong: int = B) -> TokenizedPrompt:
    """ "A E" with the answer A, and "B E" as its corrupted version."""
    return TokenizedPrompt(
        text="A E",
        clean=(A, E),
        corrupted={"first": (B, E)},
        answers=(A,),
        wrong_answers=(wrong,),
        positions={"first": (0,), "last": (1,)},
    )


def run_patch(model: TransformerBridge, component: str = "head", **settings) -> xr.Dataset:
    pairs = settings.pop("pairs", PromptPairs("by hand", (prompt(),)))
    return pl.patch(model, pairs, component, corruption=pl.STR("first"), progress=False, **settings)


def test_the_logits_of_the_unpatched_runs(model: TransformerBridge):
    """The model computes what the text above says."""
    with torch.no_grad():
        logits = model(torch.tensor([[A, E], [B, E]]))[:, -1]
    expected = torch.tensor([LOGITS["clean"], LOGITS["corrupted"]])
    torch.testing.assert_close(logits, expected, atol=ATOL, rtol=0)


def test_heads_by_logit_difference(model: TransformerBridge):
    """Effects are shares of the way from 1/5 to 11/13, which is 42/65."""
    fx = run_patch(model, metrics=["logit_diff"]).sel(metric="logit_diff")
    np.testing.assert_allclose(fx.clean, 11 / 13, atol=ATOL)
    np.testing.assert_allclose(fx.corrupted, 1 / 5, atol=ATOL)
    np.testing.assert_allclose(fx.patched, [[19 / 13, -7 / 5]], atol=ATOL)
    # (19/13 - 1/5) / (42/65) = 82/42 and (-7/5 - 1/5) / (42/65) = -104/42.
    np.testing.assert_allclose(fx.effect, [[82 / 42, -104 / 42]], atol=ATOL)


def test_heads_by_probability(model: TransformerBridge):
    """The effect is P(A) of the patched run minus P(A) of the corrupted one."""
    fx = run_patch(model, metrics=["prob"]).sel(metric="prob")
    heads = np.array([[p_of_a("head 0"), p_of_a("head 1")]])
    np.testing.assert_allclose(fx.clean, p_of_a("clean"), atol=ATOL)
    np.testing.assert_allclose(fx.corrupted, p_of_a("corrupted"), atol=ATOL)
    np.testing.assert_allclose(fx.patched, heads, atol=ATOL)
    np.testing.assert_allclose(fx.effect, heads - p_of_a("corrupted"), atol=ATOL)


def test_heads_by_kl_divergence(model: TransformerBridge):
    """The effect is how much nearer to the clean run the patched one is."""
    fx = run_patch(model, metrics=["kl"]).sel(metric="kl")
    heads = np.array([[kl("clean", "head 0"), kl("clean", "head 1")]])
    np.testing.assert_allclose(fx.clean, 0, atol=ATOL)
    np.testing.assert_allclose(fx.corrupted, kl("clean", "corrupted"), atol=ATOL)
    np.testing.assert_allclose(fx.patched, heads, atol=ATOL)
    np.testing.assert_allclose(fx.effect, kl("clean", "corrupted") - heads, atol=ATOL)


def test_the_mlp(model: TransformerBridge):
    """(-3, -4, 12)/13 has a logit difference of 1: (1 - 1/5) / (42/65) = 52/42 of the way."""
    fx = run_patch(model, "mlp")
    patched = [1, p_of_a("mlp"), kl("clean", "mlp")]
    np.testing.assert_allclose(fx.patched.squeeze("layer"), patched, atol=ATOL)
    effect = [
        52 / 42,
        p_of_a("mlp") - p_of_a("corrupted"),
        kl("clean", "corrupted") - kl("clean", "mlp"),
    ]
    np.testing.assert_allclose(fx.effect.squeeze("layer"), effect, atol=ATOL)


@pytest.mark.parametrize("component", ["attn", "resid"])
def test_attention_and_the_residual_stream(model: TransformerBridge, component: str):
    """All of attention gives (3, 4, 0) back, on which the rest of the clean run follows."""
    fx = run_patch(model, component)
    patched = [11 / 13, p_of_a("clean"), 0]
    np.testing.assert_allclose(fx.patched.squeeze("layer"), patched, atol=ATOL)
    effect = [1, p_of_a("clean") - p_of_a("corrupted"), kl("clean", "corrupted")]
    np.testing.assert_allclose(fx.effect.squeeze("layer"), effect, atol=ATOL)


def test_only_the_last_position_of_a_head_matters(model: TransformerBridge):
    """In one layer nothing reads what the first position wrote."""
    fx = run_patch(model, metrics=["logit_diff"], positions="each").sel(metric="logit_diff")
    assert fx.effect.dims == ("layer", "head", "position")
    np.testing.assert_allclose(fx.patched.isel(layer=0, position=0), 1 / 5, atol=ATOL)
    np.testing.assert_allclose(fx.patched.isel(layer=0, position=1), [19 / 13, -7 / 5], atol=ATOL)


def test_two_heads_together(model: TransformerBridge):
    """Both heads are all of attention."""
    pairs = PromptPairs("by hand", (prompt(),))
    fx = pl.patch_together(model, pairs, [(0, 0), (0, 1)], corruption=pl.STR("first"))
    np.testing.assert_allclose(fx.patched, [11 / 13, p_of_a("clean"), 0], atol=ATOL)
    np.testing.assert_allclose(fx.effect.sel(metric="logit_diff"), 1, atol=ATOL)


def test_noising(model: TransformerBridge):
    """The clean run with head 0 corrupted is the corrupted run with head 1 restored.

    Its end is (-3, 4, 0)/5, and with head 1 corrupted it is (3, -4, 12)/13. The way goes from
    11/13 to 1/5: (-7/5 - 11/13) / (-42/65) = 146/42 and (19/13 - 11/13) / (-42/65) = -40/42.
    """
    fx = run_patch(model, direction="noise")
    ld, prob, divergence = (fx.sel(metric=name) for name in ("logit_diff", "prob", "kl"))
    np.testing.assert_allclose(ld.patched, [[-7 / 5, 19 / 13]], atol=ATOL)
    np.testing.assert_allclose(ld.effect, [[146 / 42, -40 / 42]], atol=ATOL)
    # What takes the answer away is positive, as by the logit difference.
    lost = p_of_a("clean") - np.array([[p_of_a("head 1"), p_of_a("head 0")]])
    np.testing.assert_allclose(prob.effect, lost, atol=ATOL)
    # Measured from the corrupted run, which activations are now taken from.
    np.testing.assert_allclose(divergence.corrupted, 0, atol=ATOL)
    np.testing.assert_allclose(divergence.clean, kl("corrupted", "clean"), atol=ATOL)
    left = np.array([[kl("corrupted", "head 1"), kl("corrupted", "head 0")]])
    np.testing.assert_allclose(divergence.effect, kl("corrupted", "clean") - left, atol=ATOL)


def test_a_full_patch_in_both_directions(model: TransformerBridge):
    """All of the stream: the way from one run to the other, positive by every metric.

    B's probability rises where A's falls, and so does A's rank: in the corrupted run its logit
    of -3/5 stands between E's 0 and B's -4/5, in the clean run none is above it.
    """
    p, q = softmax(LOGITS["clean"]), softmax(LOGITS["corrupted"])
    way = {
        "logit_diff": 1,
        "prob": p[A] - q[A],
        "log_prob": math.log(p[A] / q[A]),
        # r' is less likely in the corrupted run as well, since E takes over.
        "wrong_prob": q[B] - p[B],
        "rank": 1,
        "accuracy": 1,
    }
    assert (way["prob"] > 0, way["log_prob"] > 0, way["wrong_prob"] < 0) == (True, True, True)
    divergence = {"denoise": kl("clean", "corrupted"), "noise": kl("corrupted", "clean")}
    for direction in ("denoise", "noise"):
        fx = run_patch(model, "resid", direction=direction, metrics=[*way, "kl"])
        expected = [*way.values(), divergence[direction]]
        np.testing.assert_allclose(fx.effect.isel(layer=0), expected, atol=ATOL)


def test_a_position_that_some_prompts_lack(model: TransformerBridge):
    """Full recovery is 1, by the ways of those prompts that have the position.

    The first prompt's way is 42/65. The second one, with r' = E, has a way of 114/65 and no such
    position: over both, the mean way would be 78/65, and full recovery 42/78.
    """
    lacks = dataclasses.replace(prompt(wrong=E), positions={"first": (), "last": (1,)})
    pairs = PromptPairs("by hand", (prompt(), lacks))
    for engine in ("hooks", "fast"):
        options = {"pairs": pairs, "engine": engine, "metrics": ["logit_diff", "prob"]}
        for positions in ("first", ["last", "first"]):
            fx = run_patch(model, "resid", positions=positions, **options).isel(layer=0)
            at_first = fx if positions == "first" else fx.sel(position="first")
            for name, of_ld, of_prob in (
                ("effect", 1, p_of_a("clean") - p_of_a("corrupted")),
                ("patched", 11 / 13, p_of_a("clean")),
                ("clean", 11 / 13, p_of_a("clean")),
                ("corrupted", 1 / 5, p_of_a("corrupted")),
            ):
                np.testing.assert_allclose(at_first[name], [of_ld, of_prob], atol=ATOL)
        # At the other position both prompts count: clean 11/13 and 15/13, corrupted 1/5 and -3/5.
        at_last = fx.sel(position="last", metric="logit_diff")
        assert at_last.clean.item() == pytest.approx(1, abs=ATOL)
        assert at_last.corrupted.item() == pytest.approx(-1 / 5, abs=ATOL)
        # The last position reads what the first one wrote, so that E restored at E is nothing.
        assert at_last.effect.item() == pytest.approx(0, abs=ATOL)
        kept = run_patch(model, "resid", positions="first", keep_prompts=True, **options)
        effect = kept.effect.sel(metric="logit_diff", layer=0)
        np.testing.assert_allclose(effect, [1, np.nan], atol=ATOL)
        np.testing.assert_allclose(kept.patched.sel(metric="logit_diff", layer=0)[1], np.nan)
        # What was measured of it without patching is there all the same.
        np.testing.assert_allclose(
            kept.clean.sel(metric="logit_diff"), [11 / 13, 15 / 13], atol=ATOL
        )


def test_a_head_put_to_zero(model: TransformerBridge):
    """In the corrupted run and, where noising, in the clean one.

    Without head 0 the last position holds (0, ±4, 0), and the neuron is silent: after the norm
    that is (0, ±1, 0), so that A - B is 1 in the corrupted run and -1 in the clean one. Without
    head 1 it holds (±3, 0, 0), of which the neuron reads (±1, 0, 0). In the corrupted run it is
    silent, and A - B is -1. In the clean run it adds 4·5 to c: (3, 0, 20), divided by its length.
    """
    length = math.sqrt(3**2 + 20**2)
    for direction, expected in (("denoise", [1, -1]), ("noise", [-1, (3 + 20) / length])):
        for engine in ("hooks", "fast"):
            options = {"source": pl.Zero(), "engine": engine, "metrics": ["logit_diff"]}
            fx = run_patch(model, direction=direction, **options)
            np.testing.assert_allclose(fx.patched, [[expected]], atol=ATOL)
            np.testing.assert_allclose(fx.clean, 11 / 13, atol=ATOL)
            np.testing.assert_allclose(fx.corrupted, 1 / 5, atol=ATOL)


def test_the_way_is_a_mean_over_prompts(model: TransformerBridge):
    """A second prompt has r' = E, whose logit is 0, so its logit differences are A's logits.

    Its way is 15/13 - (-3/5) = 114/65, the first one's 42/65; their mean is 78/65. Head 0 gains
    82/65 and 114/65, so that its effects are 82/78 and 114/78, and their mean is 98/78.
    """
    pairs = PromptPairs("by hand", (prompt(), prompt(wrong=E)))
    single = run_patch(model, pairs=pairs, metrics=["logit_diff"], keep_prompts=True)
    mean = run_patch(model, pairs=pairs, metrics=["logit_diff"])
    effects = single.effect.sel(metric="logit_diff", layer=0, head=0)
    np.testing.assert_allclose(effects, [82 / 78, 114 / 78], atol=ATOL)
    effect = mean.effect.sel(metric="logit_diff", layer=0, head=0)
    np.testing.assert_allclose(effect, 98 / 78, atol=ATOL)


def test_sigma_of_the_noise(model: TransformerBridge):
    """Of the 12 entries of the embeddings four are 1, four -1 and four 0, the sum is 0.

    Their standard deviation is the root of 8/11.
    """
    assert pl.GN("first", scale=3.0).sigma(model) == pytest.approx(3 * math.sqrt(8 / 11))

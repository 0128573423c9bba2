"""Where heads attend, and whether they copy names."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import HEADS, WIDTH
from memory import Memory
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

import patchlib as pl
from patchlib.models.loading import MINI

READERS = [(5, 1), (5, 3), (5, 5), (6, 3), (7, 0)]


@pytest.fixture
def changed_mini(tmp_path) -> Callable[[Callable[[GPT2LMHeadModel], None]], TransformerBridge]:
    """Gives mini after a change of its weights."""

    def change(weights: Callable[[GPT2LMHeadModel], None]) -> TransformerBridge:
        model = AutoModelForCausalLM.from_pretrained(MINI)
        with torch.no_grad():
            weights(model)
        model.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(MINI).save_pretrained(tmp_path)
        return pl.load_model(tmp_path)

    return change


def test_the_copying_score_does_not_depend_on_how_the_weights_are_written(mini, changed_mini):
    """A layer norm's gain can move into the matrices behind it: it is the same model."""

    def move(model: GPT2LMHeadModel) -> None:
        for block, gain in zip(model.transformer.h, torch.linspace(0.5, 3, 8), strict=True):
            gains = gain * torch.linspace(0.3, 3, block.ln_1.weight.numel())
            block.ln_1.weight *= gains
            block.ln_1.bias *= gains
            block.attn.c_attn.weight /= gains[:, None]

    rewritten = changed_mini(move)
    pairs = pl.tasks.ioi(mini, n=40)
    tokens = pairs.clean_tokens
    with torch.no_grad():
        torch.testing.assert_close(rewritten(tokens), mini(tokens), atol=1e-3, rtol=1e-3)
    scores = [pl.copying_score(each, pairs, READERS).copies for each in (mini, rewritten)]
    # One of the 80 names may lie at the edge of the five highest tokens.
    assert scores[0].values.tolist() == pytest.approx(scores[1].values.tolist(), abs=0.026)
    assert scores[0].max() > 0.4
    assert scores[0].sel(head="7.0") < 0.1


def test_a_head_whose_output_is_turned_round_suppresses_what_it_copied(mini, changed_mini):
    def turn_round(model: GPT2LMHeadModel) -> None:
        width = model.config.n_embd // model.config.n_head
        model.transformer.h[5].attn.c_proj.weight[5 * width : 6 * width] *= -1

    pairs = pl.tasks.ioi(mini, n=20)
    before = pl.copying_score(mini, pairs, [(5, 5), (5, 1)])
    after = pl.copying_score(changed_mini(turn_round), pairs, [(5, 5), (5, 1)])
    assert before.copies.sel(head="5.5") > 0.4
    assert after.suppresses.sel(head="5.5") == before.copies.sel(head="5.5")
    assert after.copies.sel(head="5.5") == before.suppresses.sel(head="5.5")
    assert after.sel(head="5.1").equals(before.sel(head="5.1"))


def test_attention_to_names_and_others_is_all_there_is(mini):
    pairs = pl.tasks.ioi(mini, n=5)
    to = pl.attention_to(pl.attention_patterns(mini, pairs, READERS), pairs)
    assert to.sizes == {"head": 5, "prompt": 5, "to": 4}
    torch.testing.assert_close(torch.from_numpy(to.sum("to").values), torch.ones(5, 5))


def test_attention_by_hand(mini):
    pairs = pl.tasks.ioi(mini, n=1)
    patterns = torch.zeros(1, 1, 15, 15)
    for name, share in {"IO": 0.5, "S1": 0.25, "S2": 0.125, "last": 0.125}.items():
        patterns[0, 0, -1, pairs.at(name)[0][0]] = share
    to = pl.attention_to(patterns, pairs)
    assert to.to.values.tolist() == ["IO", "S1", "S2", "others"]
    assert to.values.tolist() == [[[0.5, 0.25, 0.125, 0.125]]]


def test_attention_to_a_position_that_a_prompt_lacks_is_not_zero(mini):
    pairs = pl.tasks.factual_recall(mini, n=100)
    some = (
        (group, [bool(at) for at in group.at("middle_subject")]) for _, group in pairs.by_length()
    )
    group, there = next((group, there) for group, there in some if 0 < sum(there) < len(group))
    names = ["middle_subject", "last_subject"]
    to = pl.attention_to(pl.attention_patterns(mini, group, [(5, 1)]), group, names)
    assert to.sel(to="middle_subject").notnull().values[0].tolist() == there
    assert to.sel(to=["last_subject", "others"]).notnull().all()


def test_names_that_share_a_token_cannot_sum_to_one(mini):
    pairs = pl.tasks.factual_recall(mini, n=2)[:1]
    patterns = pl.attention_patterns(mini, pairs, [(5, 1)])
    with pytest.raises(pl.PatchlibError, match="share a token"):
        pl.attention_to(patterns, pairs, ["subject", "last_subject"])


@pytest.fixture
def grouped(tiny_folders) -> tuple[TransformerBridge, LlamaForCausalLM]:
    """A model of which two heads each share a key and a value, and the same in plain Hugging Face
    form.
    """
    folder = tiny_folders("llama")
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return pl.load_model(folder), plain.eval()


def test_patterns_of_heads_that_share_keys(grouped):
    model, plain = grouped
    pairs = pl.tasks.ioi(model, n=3)
    ours = pl.attention_patterns(model, pairs, "1.3, 2.0")
    with torch.no_grad():
        theirs = plain(pairs.clean_tokens, output_attentions=True).attentions
    torch.testing.assert_close(ours, torch.stack([theirs[1][:, 3], theirs[2][:, 0]]))


@pytest.mark.parametrize("activation", ["q", "k", "v"])
def test_a_restored_head_reads_the_key_and_the_value_of_its_group(grouped, activation):
    """Head 0.2 has the query 2, and shares the second of the two keys and values."""
    model, plain = grouped
    pairs = pl.tasks.ioi(model, n=3)
    clean, corrupted = pairs.clean_tokens, pairs.corrupted_tokens("S2")
    number, width = (2 if activation == "q" else 1), WIDTH // HEADS
    mine = slice(number * width, (number + 1) * width)
    projection = getattr(plain.model.layers[0].self_attn, f"{activation}_proj")
    kept = []

    def write(module, inputs, output):
        output = output.clone()
        output[..., mine] = kept[0][..., mine]
        return output

    with torch.no_grad():
        handle = projection.register_forward_hook(lambda *call: kept.append(call[2].clone()))
        plain(clean)
        handle.remove()
        handle = projection.register_forward_hook(write)
        theirs = plain(corrupted, output_attentions=True).attentions[2][:, 1]
        handle.remove()
        without = plain(corrupted, output_attentions=True).attentions[2][:, 1]
    options = {"corruption": pl.STR("S2"), "activation": activation}
    ours = pl.attention_patterns(model, pairs, ["2.1"], restored=["0.2"], **options)[0]
    torch.testing.assert_close(ours, theirs)
    assert (theirs - without).abs().max() > 1e-3
    # Restoring it for one head of the group is restoring it for both.
    both = pl.attention_patterns(model, pairs, ["2.1"], restored=["0.3", "0.2"], **options)[0]
    assert torch.equal(ours, both) == (activation != "q")


def test_copying_of_heads_that_share_values(grouped):
    """By the weights in Hugging Face's own form, name by name."""
    model, plain = grouped
    pairs = pl.tasks.ioi(model, n=6)
    heads = pl.Heads((layer, head) for layer in range(3) for head in range(HEADS))
    scores = pl.copying_score(model, pairs, heads, top=200)
    width = WIDTH // HEADS
    with torch.no_grad():
        after = plain(pairs.clean_tokens, output_hidden_states=True).hidden_states[1]
        for layer, head in heads:
            block = plain.model.layers[layer]
            group = slice(head // 2 * width, (head // 2 + 1) * width)
            own = slice(head * width, (head + 1) * width)
            found = {1: [], -1: []}
            for name in ("IO", "S1"):
                for row, (place,) in enumerate(pairs.at(name)):
                    value = block.self_attn.v_proj(block.input_layernorm(after[row, place]))
                    out = block.self_attn.o_proj.weight[:, own] @ value[group]
                    for sign, shares in found.items():
                        logits = plain.lm_head(plain.model.norm(sign * out))
                        token = pairs.clean_tokens[row, place]
                        shares.append((logits > logits[token]).sum() < 200)
            at = scores.sel(head=f"{layer}.{head}")
            assert at.copies.item() == pytest.approx(np.mean(found[1]))
            assert at.suppresses.item() == pytest.approx(np.mean(found[-1]))
    assert scores.copies.max() > scores.copies.min()


def test_the_memory_budget_is_kept_and_changes_nothing(tiny_gpt2):
    """A result is held beside it."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=500)
    budget, heads = 8 * 2**20, ["0.1", "2.3"]
    restored = {"corruption": pl.STR("S2"), "restored": ["0.0"], "activation": "z"}
    for call in (
        lambda **limit: pl.attention_patterns(tiny_gpt2, pairs, heads, **restored, **limit),
        lambda **limit: pl.copying_score(tiny_gpt2, pairs, heads, top=500, **limit).to_array(),
    ):
        with Memory(tiny_gpt2) as memory:
            less = call(memory_budget=budget)
        size = 2 * less.numel() * 4 if isinstance(less, torch.Tensor) else 0
        assert memory.most <= budget + size
        np.testing.assert_allclose(less, call(), atol=1e-5)
        with pytest.raises(pl.PatchlibError, match="one prompt of 15 tokens needs"):
            call(memory_budget=1000)


def test_what_makes_no_sense_is_refused(mini):
    pairs = pl.tasks.ioi(mini, n=2)
    for top in (0, 1.5, True, mini.cfg.d_vocab + 1):
        with pytest.raises(pl.PatchlibError, match=f"top={top}: give a whole number"):
            pl.copying_score(mini, pairs, ["5.0"], top=top)
    assert pl.copying_score(mini, pairs, ["5.0"], top=np.int64(5)).attrs["top"] == 5
    for call in (pl.attention_patterns, pl.copying_score):
        with pytest.raises(pl.PatchlibError, match="no heads were given"):
            call(mini, pairs, [])
        with pytest.raises(pl.PatchlibError, match=r"'8\.0' does not exist"):
            call(mini, pairs, ["8.0"])
    with pytest.raises(pl.PatchlibError, match=r"shape .* for 2 prompts of 15 tokens"):
        pl.attention_to(pl.attention_patterns(mini, pairs[:1], ["5.0"]), pairs)


def test_one_name_is_no_list_of_letters(mini):
    pairs = pl.tasks.ioi(mini, n=4)
    assert pl.copying_score(mini, pairs, "5.0", "IO").equals(
        pl.copying_score(mini, pairs, ["5.0"], ["IO"])
    )
    patterns = pl.attention_patterns(mini, pairs, "5.0, 5.1")
    assert pl.attention_to(patterns, pairs, "IO").to.values.tolist() == ["IO", "others"]


def test_the_settings_are_kept(mini):
    pairs = pl.tasks.ioi(mini, n=2, prepend_bos=True)
    scores = pl.copying_score(mini, pairs, ["5.0"], "IO", top=3)
    assert scores.attrs.items() >= (pairs.describe() | {"at": "IO", "top": 3}).items()
    assert scores.attrs["model"] == "mini"
    to = pl.attention_to(pl.attention_patterns(mini, pairs, ["5.0"]), pairs)
    assert to.attrs == pairs.describe()

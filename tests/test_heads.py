"""Where heads attend, and whether they copy names."""

from collections.abc import Callable

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

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

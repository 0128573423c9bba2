"""Unpatched runs agree with those inside a sweep, and wrong answers are dropped and counted."""

import dataclasses

import numpy as np
import pytest
import torch
from memory import Memory
from transformers import AutoModelForCausalLM, AutoTokenizer

import patchlib as pl
from patchlib.models.loading import MINI

METRICS = ("logit_diff", "prob", "kl", "accuracy")


@pytest.mark.parametrize("corruption", [pl.STR("subject"), pl.GN("subject", draws=3)])
def test_they_are_those_of_a_sweep(mini, corruption):
    """Prompts of several lengths, each found again at its place."""
    pairs = pl.tasks.factual_recall(mini, n=9)
    runs = pl.baselines(mini, pairs, corruption, METRICS)
    options = {"keep_prompts": True, "progress": False, "engine": "hooks", "metrics": METRICS}
    fx = pl.patch(mini, pairs, "resid", corruption=corruption, **options)
    for name in ("clean", "corrupted"):
        ours = runs[name].transpose("metric", "prompt")
        np.testing.assert_allclose(ours, fx[name].transpose("metric", "prompt"), atol=1e-5)
    assert float(runs.clean.sel(metric="kl").max()) == 0
    assert runs.attrs.items() >= (pairs.describe() | corruption.describe()).items()
    assert {name: runs.attrs[name] for name in runs.attrs} == {
        name: fx.attrs[name] for name in runs.attrs
    }


def test_without_a_corruption_there_is_one_run(mini):
    runs = pl.baselines(mini, pl.tasks.ioi(mini, n=5), metrics=["prob"])
    assert list(runs.data_vars) == ["clean"]
    assert float(runs.clean.mean()) > 0.3


def test_wrong_answers_are_dropped_and_counted(mini):
    """Two of the prompts are given answers that the model does not expect."""
    pairs = pl.keep_answered(mini, pl.tasks.arithmetic(mini, n=6))
    assert len(pairs) >= 4
    prompts = list(pairs.prompts)
    for row in (0, 3):
        prompts[row] = dataclasses.replace(prompts[row], answers=prompts[row].wrong_answers)
    spoilt = dataclasses.replace(pairs, prompts=tuple(prompts))
    kept = pl.keep_answered(mini, spoilt)
    # One that does not fit was dropped before, perhaps.
    assert kept.settings["dropped"] == pairs.settings["dropped"] + 2
    assert pl.keep_answered(mini, kept).settings == kept.settings
    assert kept.texts == [text for row, text in enumerate(pairs.texts) if row not in (0, 3)]
    with torch.no_grad():
        for _, group in kept.by_length():
            top = mini(group.clean_tokens)[:, -1].argmax(-1)
            assert torch.equal(top, group.answers)
    none = dataclasses.replace(spoilt, prompts=(prompts[0], prompts[3]))
    with pytest.raises(pl.PatchlibError, match="answers none of these 2 prompts"):
        pl.keep_answered(mini, none)


def test_the_other_answer(mini):
    """P(r') is P(r) with the answers exchanged."""
    pairs = pl.tasks.greater_than(mini, n=5)
    exchanged = dataclasses.replace(
        pairs,
        prompts=tuple(
            dataclasses.replace(p, answers=p.wrong_answers, wrong_answers=p.answers)
            for p in pairs.prompts
        ),
    )
    wrong = pl.baselines(mini, pairs, metrics=["wrong_prob"]).clean
    right = pl.baselines(mini, exchanged, metrics=["prob"]).clean
    np.testing.assert_allclose(wrong.values, right.values, atol=1e-7)


def test_the_memory_budget_is_kept_and_changes_nothing(tiny_gpt2):
    pairs = pl.tasks.ioi(tiny_gpt2, n=500)
    everything = pl.baselines(tiny_gpt2, pairs, pl.STR("S2"))
    budget = 8 * 2**20
    with Memory(tiny_gpt2) as memory:
        runs = pl.baselines(tiny_gpt2, pairs, pl.STR("S2"), memory_budget=budget)
        with pytest.raises(pl.PatchlibError, match="answers none"):
            pl.keep_answered(tiny_gpt2, pairs, memory_budget=budget)
    assert memory.most <= budget
    for name in ("clean", "corrupted"):
        np.testing.assert_allclose(runs[name], everything[name], rtol=1e-4, atol=1e-4)
    with pytest.raises(pl.PatchlibError, match="one prompt of 15 tokens needs"):
        pl.baselines(tiny_gpt2, pairs, memory_budget=1000)


def margin(logits: torch.Tensor) -> torch.Tensor:
    """How far the most likely token leads, in nats."""
    best = logits.topk(2).values
    return best[..., 0] - best[..., 1]


def test_a_metric_of_one_s_own(mini):
    pairs = pl.tasks.ioi(mini, n=5)
    runs = pl.baselines(mini, pairs, metrics=["prob", margin])
    assert runs.metric.values.tolist() == ["prob", "margin"]
    with torch.no_grad():
        logits = mini(pairs.clean_tokens)[:, -1]
    np.testing.assert_allclose(runs.clean.sel(metric="margin"), margin(logits), rtol=1e-4)


def test_a_model_that_overflows_is_refused(tmp_path):
    """Also where attention and copying are asked for, which read no logits."""
    model = AutoModelForCausalLM.from_pretrained(MINI)
    with torch.no_grad():
        model.transformer.h[3].mlp.c_fc.bias[0] = torch.inf
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MINI).save_pretrained(tmp_path)
    broken = pl.load_model(tmp_path)
    pairs = pl.tasks.ioi(broken, n=4)
    for call in (
        lambda: pl.baselines(broken, pairs),
        lambda: pl.keep_answered(broken, pairs),
        lambda: pl.attention_patterns(broken, pairs, ["1.0"]),
        lambda: pl.copying_score(broken, pairs, ["1.0"]),
        lambda: pl.ood(broken, pairs, pl.STR("S2")),
    ):
        with pytest.raises(pl.PatchlibError, match="NaN or infinite for 4 of 4 prompts"):
            call()


def test_own_code_and_hooks_tell_results_apart(tiny_gpt2):
    """The attributes are those of `patch`, also where only somebody's own code differs."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=2)

    def attrs(by: float) -> dict:
        @dataclasses.dataclass(frozen=True)
        class Push(pl.Corruption):
            def noise(self, model, pairs, draw):
                return torch.full((*pairs.clean_tokens.shape, model.cfg.d_model), by)

        def scaled(logits):
            return by * logits[..., 0]

        return pl.baselines(tiny_gpt2, pairs, Push("S2"), metrics=scaled).attrs

    one, same, other = attrs(1.0), attrs(1.0), attrs(2.0)
    assert one == same
    assert {key for key in one if one[key] != other[key]} == {"own_corruption", "own_metrics"}
    with tiny_gpt2.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: 2 * x)]):
        assert "mlp" in pl.baselines(tiny_gpt2, pairs).attrs["hooks"]


@pytest.mark.parametrize("corruption", ["S2", pl.Corruption("S2")])
def test_what_corrupts_nothing_is_refused(tiny_gpt2, corruption):
    pairs = pl.tasks.ioi(tiny_gpt2, n=4)
    for measure in (
        pl.baselines,
        pl.ood,
        lambda *given: pl.attention_patterns(*given[:2], "0.1", given[2]),
    ):
        with pytest.raises(pl.PatchlibError, match=r"corruption=|corrupts nothing"):
            measure(tiny_gpt2, pairs, corruption)


def test_a_field_of_another_settings_name_is_refused(tiny_gpt2):
    @dataclasses.dataclass(frozen=True)
    class Named(pl.Corruption):
        model: str = "x"

        def tokens(self, pairs):
            return pairs.clean_tokens.flip(1)

    with pytest.raises(pl.PatchlibError, match="'model'"):
        pl.baselines(tiny_gpt2, pl.tasks.ioi(tiny_gpt2, n=2), Named("S2"))

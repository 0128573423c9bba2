"""Experiments have settings for every model, and an estimate of what they take."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.errors import PatchlibError
from patchlib.paper import experiments
from patchlib.paper.experiments import Estimate, estimate, settings
from patchlib.patching import duration
from patchlib.prompts.pairs import TokenizedPrompt

NAMES = list(json.loads(experiments.EXPERIMENTS.read_text("utf-8")))
IOI: dict[str, Any] = {
    "task": "ioi", "component": "head", "positions": "all", "sites": ["S2"],
    "n": 10, "draws": 1, "prepend_bos": False,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_settings_and_an_estimate(name: str, mini: TransformerBridge) -> None:
    chosen = settings(name, mini)
    assert chosen["n"] > 0
    assert set(chosen["sites"])
    assert chosen["task"] in pl.tasks.__all__
    found = estimate(mini, name, rate=1e10)
    assert found == estimate(mini, chosen, rate=1e10)
    assert 0 < found.seconds < 3600


def test_an_unknown_experiment_or_task_is_refused(mini: TransformerBridge) -> None:
    for ask in (settings, lambda name, model: estimate(model, name)):
        with pytest.raises(PatchlibError, match="no experiment 'app_z': allowed are 3_1_ioi"):
            ask("app_z", mini)
    with pytest.raises(PatchlibError, match="unknown task 'chess'"):
        estimate(mini, IOI | {"task": "chess"})


def lengths(model: TransformerBridge) -> list[tuple[int, int]]:
    """Of the prompts that stand for all: how many tokens, and how many from S2 on."""
    pairs = pl.tasks.ioi(model, n=8, prepend_bos=False)
    return [(len(p.clean), len(p.clean) - p.positions["S2"][0]) for p in pairs.prompts]


def test_the_closed_form_of_a_sweep_over_heads(tiny_gpt2: TransformerBridge) -> None:
    # 3 layers of 4 heads, width 32: 4 d² of attention and 8 d² of the MLP.
    weights = 12 * 32**2
    expected = 0.0
    for length, late in lengths(tiny_gpt2):
        # A head of layer l needs the layers from l on: 3 + 2 + 1 for each of 4 heads.
        cells = 4 * (3 + 2 + 1) * late
        # Replacement and noise; the clean run is whole, the corrupted one begins at S2.
        expected += 2 * weights * (2 * cells + 2 * 3 * length + 2 * 3 * late) * 10 / 8
    assert estimate(tiny_gpt2, IOI, rate=1e6).seconds == pytest.approx(expected / 1e6)


def test_the_closed_form_of_windows_at_the_last_token(tiny_gpt2: TransformerBridge) -> None:
    weights = 12 * 32**2
    chosen = IOI | {"component": "mlp", "positions": ["last", "IO"], "draws": 4}
    expected = 0.0
    for length, late in lengths(tiny_gpt2):
        # Window 1 begins at layers 0, 1, 2 and window 3 at 0, 0, 1; IO comes before S2.
        cells = (3 + 2 + 1) + (3 + 3 + 2)
        expected += 2 * weights * (5 * cells + 2 * 3 * length + 5 * 3 * late) * 10 / 8
    found = estimate(tiny_gpt2, chosen | {"window": [1, 3], "before": [0, 1]}, rate=1e6)
    assert found.seconds == pytest.approx(expected / 1e6)


def test_time_grows_as_prompts_sites_and_rate_say(mini: TransformerBridge) -> None:
    once = estimate(mini, IOI, rate=1e9)
    assert estimate(mini, IOI | {"n": 20}, rate=1e9).seconds == pytest.approx(2 * once.seconds)
    twice = estimate(mini, IOI | {"sites": ["S2", "S2"]}, rate=1e9)
    assert twice.seconds == pytest.approx(2 * once.seconds)
    assert estimate(mini, IOI, rate=2e9).seconds == pytest.approx(once.seconds / 2)
    assert estimate(mini, IOI | {"draws": 5}, rate=1e9).seconds > 2 * once.seconds
    # Replacement that no position is named after, and every position by itself.
    assert estimate(mini, IOI | {"sites": ["ABC"]}, rate=1e9).seconds > once.seconds
    assert estimate(mini, IOI | {"positions": "each"}, rate=1e9).seconds > once.seconds


def test_memory_is_weights_and_budget(tiny: TransformerBridge) -> None:
    weights = sum(4 * part.numel() for part in tiny.parameters())
    assert estimate(tiny, IOI, rate=1e9).bytes == weights + 2 * 2**30


def test_weights_of_a_layer_are_those_of_the_model(tiny: TransformerBridge) -> None:
    names = ("attn", "attention", "mlp")
    # TransformerLens keeps queries, keys and values together and apart.
    counted = {
        name: part.numel()
        for name, part in tiny.original_model.named_parameters()
        if part.ndim == 2 and "qkv" not in name and any(each in name for each in names)
    }
    assert tiny.cfg.n_layers * duration.layer_weights(tiny) == sum(counted.values())


SIZES = {
    "GPT-2 XL": {"n_layers": 48, "n_heads": 25, "d_model": 1600, "d_head": 64, "d_mlp": 6400},
    "GPT-J": {"n_layers": 28, "n_heads": 16, "d_model": 4096, "d_head": 256, "d_mlp": 16384},
    "70 billion (80 layers of width 8192)": {
        "n_layers": 80, "n_heads": 64, "n_key_value_heads": 8, "d_model": 8192, "d_head": 128,
        "d_mlp": 28672, "gated_mlp": True,
    },
}  # fmt: skip
SCALING = (Path(__file__).parents[1] / "notebooks" / "scaling.md").read_text("utf-8")


POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


def written(name: str) -> list[str]:
    """A model's row of the page's table, without the name."""
    return re.search(rf"^\| {re.escape(name)} \| (.*) \|$", SCALING, re.M)[1].split(" | ")


@pytest.mark.parametrize("name", SIZES)
def test_the_page_on_scaling_adds_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duration, "unit_of", lambda model, activation: None)
    model: Any = SimpleNamespace(cfg=SimpleNamespace(**SIZES[name]))
    clean = tuple(range(10))
    corrupted = {"subject": (0, 1, 20, 30, *clean[4:])}
    prompt = TokenizedPrompt("", clean, corrupted, (0,), (1,), {"subject": (2, 3)})
    pairs = pl.PromptPairs("facts", (prompt,) * 290)
    windows = [1, 3, 5, 10], [0, 1, 2, 5]
    total = duration.operations(model, pairs, "subject", 10, "mlp", "each", *windows)
    weights = model.cfg.n_layers * duration.layer_weights(model)
    rows = 290 * 10 * model.cfg.n_layers * 4 * 8
    times = [f"about {cell}" for cell in written(name)[3:]]
    assert times == [duration.spelt(total / rate) for rate in (25e9, 64 * 25e9, 100e12)]
    for cell, number in zip(written(name), (weights, rows, total), strict=False):
        digits, power = cell.translate(POWERS).split(" × 10")
        assert float(f"{digits}e{power}") == float(f"{number:.2g}")


def test_the_rate_is_measured(mini: TransformerBridge) -> None:
    assert 1e8 < duration.rate(mini) < 1e15
    assert estimate(mini, IOI).seconds > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "less than a second, 1.2 GiB"),
        (1.2, "about 1 second, 1.2 GiB"),
        (59.0, "about 59 seconds, 1.2 GiB"),
        (59.7, "about 1 minute, 1.2 GiB"),
        (175.0, "about 3 minutes, 1.2 GiB"),
        (3599.0, "about 1 hour, 1.2 GiB"),
        (3700.0, "about 1 hour, 1.2 GiB"),
        (86000.0, "about 1 day, 1.2 GiB"),
        (3 * 86400.0, "about 3 days, 1.2 GiB"),
    ],
)
def test_estimates_read_as_text(seconds: float, text: str) -> None:
    assert str(Estimate(seconds, int(1.2 * 2**30))) == text


@pytest.mark.parametrize(
    ("shape", "experiment", "n"),
    [
        (("GPT2LMHeadModel", 12, 12, 768), "3_1_ioi", 500),
        (("GPT2LMHeadModel", 48, 25, 1600), "3_1_factual_recall", 290),
        (("GPTJForCausalLM", 28, 16, 4096), "app_c_arithmetic", 200),
        (("TransformerLensNative", 4, 8, 512), "app_d_docstring", 200),
        (("LlamaForCausalLM", 30, 9, 576), "3_1_factual_recall", 374),
        # Not in the experiment, of another family, of another width, with fewer heads.
        (("GPT2LMHeadModel", 12, 12, 768), "app_c_arithmetic", 100),
        (("GPTNeoXForCausalLM", 12, 12, 768), "3_1_ioi", 100),
        (("GPT2LMHeadModel", 12, 12, 48), "3_1_ioi", 100),
        (("GPT2LMHeadModel", 12, 6, 768), "3_1_ioi", 100),
    ],
)
def test_settings_go_by_a_models_shape_and_not_by_its_name(
    shape: tuple[str, int, int, int],
    experiment: str,
    n: int,
    mini: TransformerBridge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mini.cfg, "model_name", "gpt2")
    assert settings("3_1_ioi", mini)["n"] == 100
    for key, value in zip(("architecture", "n_layers", "n_heads", "d_model"), shape, strict=True):
        monkeypatch.setattr(mini.cfg, key, value)
    monkeypatch.setattr(mini.cfg, "model_name", "mine")
    assert settings(experiment, mini)["n"] == n


@pytest.mark.parametrize(("n_layers", "tenth"), [(48, 5), (30, 3), (8, 3), (36, 3)])
def test_one_of_several_windows_is_a_tenth_of_the_layers(
    n_layers: int, tenth: int, mini: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's 5 of 48, and of fewer layers what comes nearest; none where there is one."""
    monkeypatch.setattr(mini.cfg, "n_layers", n_layers)
    assert settings("5_sliding_window", mini)["tenth"] == tenth
    assert "tenth" not in settings("app_c_arithmetic", mini)

"""The fast engine gives the hook engine's numbers, within its memory, and says when it cannot."""

import dataclasses
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from memory import Memory
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.activations import NewGELUActivation

import patchlib as pl
from patchlib.models.loading import MINI
from patchlib.patching import architectures, fast_engine
from patchlib.patching.cells import COMPONENTS
from patchlib.patching.patch import ENGINES
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs

METRICS = ("logit_diff", "prob", "kl", "log_prob")
TOLERANCE = {"rtol": 0, "atol": 1e-4}
VARIABLES = ["patched", "clean", "corrupted"]

corruptions = st.one_of(
    st.builds(pl.STR, st.sampled_from(["S2", "S1", "IO", "S1+IO", "ABC"])),
    st.builds(pl.GN, st.sampled_from(["S2", "S1+IO"]), draws=st.integers(1, 2)),
)
windows = st.sampled_from([(1, None), (3, None), (2, 1), ([1, 3, 2, 3], [0, 1, 0, 2])])
places = st.sampled_from(["all", "each", "S2", "S1+IO", ["S1", "last", "S2+last"]])


def both(
    model: TransformerBridge,
    pairs: PromptPairs,
    component: str,
    corruption: Corruption,
    **options: Any,
) -> tuple[xr.Dataset, xr.Dataset]:
    """One value for every prompt and draw, by hooks and by the fast engine."""
    kept = {"metrics": METRICS, "keep_prompts": True, "keep_draws": True, "progress": False}
    return tuple(
        pl.patch(model, pairs, component, corruption=corruption, engine=name, **kept | options)
        for name in ("hooks", "fast")
    )


def assert_same(hooks: xr.Dataset, fast: xr.Dataset, **tolerance: float) -> None:
    assert (hooks.attrs["engine"], fast.attrs["engine"]) == ("hooks", "fast")
    for name in VARIABLES:
        np.testing.assert_allclose(fast[name], hooks[name], **(tolerance or TOLERANCE))


def components(model: TransformerBridge) -> list[str]:
    """What both engines can patch: GPT-J's patterns cannot be, parallel blocks have no middle."""
    names = [name for name, act in COMPONENTS.items() if get_act_name(act, 0) in model.hook_dict]
    return [name for name in names if architectures.obstacle(model, COMPONENTS[name]) is None]


def save(configuration, folder: Path) -> TransformerBridge:
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    configuration.vocab_size = len(tokenizer)
    configuration.bos_token_id = configuration.eos_token_id = tokenizer.bos_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(configuration).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return pl.load_model(folder)


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 3),
    component=st.sampled_from(["mlp", "attn", "resid", "resid_mid"]),
    corruption=corruptions,
    window=windows,
    positions=places,
    direction=st.sampled_from(["denoise", "noise"]),
    batch_size=st.sampled_from([1, 7, "auto"]),
)
@settings(max_examples=15)
def test_layers(tiny, seed, n, component, corruption, window, positions, direction, batch_size):
    """Every whole-layer component, window, position, corruption and direction."""
    assume(component in components(tiny))
    pairs = pl.tasks.ioi(tiny, n, seed)
    width, before = window
    options = {"positions": positions, "direction": direction, "batch_size": batch_size}
    assert_same(*both(tiny, pairs, component, corruption, window=width, before=before, **options))


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 3),
    component=st.sampled_from(["head", "q", "k", "v", "pattern", "neuron"]),
    corruption=corruptions,
    positions=places,
    direction=st.sampled_from(["denoise", "noise"]),
    batch_size=st.sampled_from([1, 7, "auto"]),
)
@settings(max_examples=10)
def test_units(tiny, seed, n, component, corruption, positions, direction, batch_size):
    """Parts of heads, and neurons, at one position, some, or all."""
    assume(component in components(tiny))
    pairs = pl.tasks.ioi(tiny, n, seed)
    options = {"positions": positions, "direction": direction, "batch_size": batch_size}
    if component == "neuron":
        options |= {"layers": [1], "positions": "S2"}
    assert_same(*both(tiny, pairs, component, corruption, **options))


@given(
    seed=st.integers(0, 2**31),
    component=st.sampled_from(sorted(COMPONENTS)),
    corruption=corruptions,
    direction=st.sampled_from(["denoise", "noise"]),
)
@settings(max_examples=10)
def test_sources(tiny, seed, component, corruption, direction):
    """Zeros, means and other prompts: what they change need not come after what was corrupted."""
    assume(component in components(tiny))
    pairs = pl.tasks.ioi(tiny, 3, seed)
    options = {"direction": direction} | ({"layers": [1]} if component == "neuron" else {})
    for source in (pl.Zero(), pl.Mean(), pl.tasks.ioi(tiny, 3, seed + 1)):
        for positions in ("all", "last"):
            options |= {"source": source, "positions": positions}
            assert_same(*both(tiny, pairs, component, corruption, **options))


@pytest.mark.parametrize("component", COMPONENTS)
def test_prompts_of_several_lengths(tiny: TransformerBridge, component: str):
    """Facts differ in length, and so does the first position that can change."""
    if component not in components(tiny):
        pytest.skip("the model has no such activation")
    pairs = pl.tasks.factual_recall(tiny, n=3)
    assert len({len(prompt.clean) for prompt in pairs.prompts}) > 1
    options = {"layers": [1]} if component == "neuron" else {}
    if component in ("mlp", "attn", "resid", "resid_mid"):
        options = {"window": [1, 3]}
    for corruption in (pl.STR("subject"), pl.GN("subject", draws=2)):
        for positions in ("all", "last_subject"):
            assert_same(*both(tiny, pairs, component, corruption, positions=positions, **options))


@pytest.mark.parametrize("component", COMPONENTS)
def test_mini(mini: TransformerBridge, component: str):
    """A trained model, whose logits are not small."""
    pairs = pl.tasks.ioi(mini, n=2 if component == "neuron" else 8)
    options = {"layers": [2]} if component == "neuron" else {}
    for corruption in (pl.STR("S2"), pl.GN("S1+IO", draws=2)):
        hooks, fast = both(mini, pairs, component, corruption, **options)
        assert_same(hooks, fast)
        # All cells alike would agree for the wrong reason.
        assert float((hooks.patched - hooks.corrupted).std()) > 0.01


def test_answers_alone(tiny: TransformerBridge):
    """Where no metric reads other tokens, no others' logits are computed; sets of answers, too."""
    for pairs, site in ((pl.tasks.ioi(tiny, n=4), "S2"), (pl.tasks.greater_than(tiny, n=4), "YY")):
        options = {"corruption": pl.STR(site), "engine": "fast", "keep_prompts": True}
        operations, results = [], []
        for metrics in (["logit_diff", "prob"], ["logit_diff", "prob"], ["logit_diff"]):
            with FlopCounterMode(display=False) as counter:
                fx = pl.patch(tiny, pairs, "mlp", metrics=metrics, progress=False, **options)
            operations.append(counter.get_total_flops())
            results.append(fx.patched.sel(metric="logit_diff"))
        np.testing.assert_allclose(results[2], results[1], rtol=0, atol=1e-5)
        answers = torch.cat((pairs.answers.flatten(), pairs.wrong_answers.flatten())).unique()
        others = tiny.cfg.d_vocab - int((answers >= 0).sum())
        # Every prompt is read in both unpatched runs and once for each layer. The first call
        # compares the engines as well.
        read = len(pairs) * (2 + tiny.cfg.n_layers)
        assert operations[1] - operations[2] == 2 * read * tiny.cfg.d_model * others


def test_compatibility_mode(tiny_folders: Callable[[str], Path]):
    """TransformerLens' processed weights are read from the model as it is."""
    for family in ("gpt2", "llama"):
        model = pl.load_model(tiny_folders(family))
        model.enable_compatibility_mode(disable_warnings=True)
        pairs = pl.tasks.ioi(model, n=3)
        hooks, fast = both(model, pairs, "head", pl.STR("S2"))
        assert_same(hooks, fast)
        assert fast.attrs["weight_processing"] == "compatibility mode"


@pytest.mark.parametrize(
    "configuration",
    [
        Qwen2Config(
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            hidden_size=32,
            intermediate_size=48,
            initializer_range=0.3,
        ),
        Qwen3Config(
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            hidden_size=32,
            intermediate_size=48,
            initializer_range=0.3,
        ),
    ],
    ids=["qwen2", "qwen3"],
)
def test_qwen(configuration, tmp_path: Path):
    """Llama's relatives: biases on queries, keys and values; norms of queries and keys."""
    model = save(configuration, tmp_path)
    pairs = pl.tasks.ioi(model, n=3)
    for component in components(model):
        options = {"layers": [1]} if component == "neuron" else {}
        assert_same(*both(model, pairs, component, pl.STR("S2"), **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_folders: Callable[[str], Path], dtype: torch.dtype):
    """Half the precision on request: both engines round, each in its own way."""
    for family in ("gpt2", "llama"):
        exact = pl.load_model(tiny_folders(family))
        rounded = pl.load_model(tiny_folders(family), dtype=dtype)
        pairs = pl.tasks.ioi(exact, n=4)
        options = {"metrics": ["log_prob"], "keep_prompts": True, "progress": False}
        for component in ("head", "q", "v", "mlp"):
            runs = [
                pl.patch(model, pairs, component, corruption=pl.STR("S2"), engine=engine, **options)
                for model, engine in ((exact, "fast"), (rounded, "fast"), (rounded, "hooks"))
            ]
            reference, fast, hooks = (run.patched for run in runs)
            # Few bits of mantissa: the fast engine is off by no more than twice what hooks are.
            off = [float(np.sqrt(((run - reference) ** 2).mean())) for run in (fast, hooks)]
            assert 0 < off[0] < 2 * off[1]
            assert off[0] < 0.2 * float(reference.std())


def test_double_precision(tiny_folders: Callable[[str], Path]):
    """All of it, as far as the model goes: Llama's own code rounds to single precision inside."""
    model = pl.load_model(tiny_folders("gpt2"), dtype=torch.float64)
    pairs = pl.tasks.ioi(model, n=3)
    for component in components(model):
        options = {"layers": [1]} if component == "neuron" else {}
        hooks, fast = both(model, pairs, component, pl.STR("S2"), **options)
        assert_same(hooks, fast, rtol=0, atol=1e-11)
    model = pl.load_model(tiny_folders("llama"), dtype=torch.float64)
    with pytest.raises(pl.PatchlibError, match=r"torch\.float64 allows 4\.1e-10 of that"):
        pl.patch(model, pairs, corruption=pl.STR("S2"), engine="fast", progress=False)


def test_auto_is_fast_where_it_can_be(tiny: TransformerBridge):
    """Every family of the paper's models."""
    pairs = pl.tasks.ioi(tiny, n=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fx = pl.patch(tiny, pairs, "mlp", corruption=pl.STR("S2"), progress=False)
    assert fx.attrs["engine"] == "fast"


def test_an_architecture_nobody_described(tmp_path: Path):
    """Hooks take over and say so once; who insists on the fast engine is told why not."""
    model = save(
        GPTNeoConfig(
            num_layers=2,
            num_heads=4,
            hidden_size=32,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64,
        ),
        tmp_path,
    )
    pairs = pl.tasks.ioi(model, n=2)
    options = {"corruption": pl.STR("S2"), "progress": False}
    with pytest.warns(UserWarning, match=r"hooks.*'gpt_neo' is not described") as told:
        fx = pl.patch(model, pairs, "mlp", **options)
    assert fx.attrs["engine"] == "hooks"
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pl.patch(model, pairs, "mlp", **options)
        asked = pl.patch(model, pairs, "mlp", engine="hooks", **options)
    xr.testing.assert_identical(again, asked)
    with pytest.raises(pl.PatchlibError, match=r"'gpt_neo' is not described.*engine='hooks'"):
        pl.patch(model, pairs, "mlp", engine="fast", **options)
    with pytest.raises(pl.PatchlibError, match=r"engine='quick'.*'auto', 'hooks', 'fast'"):
        pl.patch(model, pairs, "mlp", engine="quick", **options)


def test_a_hook_on_the_model(tiny_gpt2: TransformerBridge):
    """The fast engine runs no hooks: a model that has one is left to the hook engine."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=2)
    tiny_gpt2.add_hook("blocks.1.hook_mlp_out", lambda value, hook: 2 * value)
    try:
        message = r"a hook is attached at 'blocks\.1\.mlp\.hook_out'"
        with pytest.raises(pl.PatchlibError, match=message):
            pl.patch(tiny_gpt2, pairs, corruption=pl.STR("S2"), engine="fast", progress=False)
    finally:
        tiny_gpt2.reset_hooks()
    assert architectures.obstacle(tiny_gpt2) is None


def test_a_model_that_computes_something_else(tiny_folders: Callable[[str], Path], monkeypatch):
    """A wrong description shows before a single number is given out."""
    model = pl.load_model(tiny_folders("llama"))
    pairs = pl.tasks.ioi(model, n=2)
    monkeypatch.setitem(architectures.ROTATIONS, "llama", architectures.ROTATIONS["gpt2"])
    with pytest.raises(pl.PatchlibError, match="unpatched logits differ"):
        pl.patch(model, pairs, corruption=pl.STR("S2"), engine="fast", progress=False)


def test_a_model_is_compared_once(tiny_folders: Callable[[str], Path], monkeypatch):
    """And again when its weights were changed in place, exchanged, or noise enters for the first
    time.
    """
    model = pl.load_model(tiny_folders("gpt2"))
    pairs = pl.tasks.ioi(model, n=2)
    compared: list[int] = []
    run = fast_engine.run_with_edits
    monkeypatch.setattr(
        fast_engine, "run_with_edits", lambda *given: compared.append(1) or run(*given)
    )

    def comparisons(corruption: Corruption) -> int:
        compared.clear()
        pl.patch(model, pairs, "mlp", corruption=corruption, engine="fast", progress=False)
        return len(compared) // 2

    assert [comparisons(pl.STR("S2")), comparisons(pl.STR("S1"))] == [1, 0]
    assert [comparisons(pl.GN("S2")), comparisons(pl.GN("S2", scale=1.0))] == [1, 0]
    mlp = model.blocks[1].mlp.original_component
    with torch.no_grad():
        mlp.c_proj.weight.mul_(2)
    assert [comparisons(pl.STR("S2")), comparisons(pl.STR("S2"))] == [1, 0]
    mlp.c_proj.weight = torch.nn.Parameter(mlp.c_proj.weight / 2)
    assert [comparisons(pl.STR("S2")), comparisons(pl.STR("S2"))] == [1, 0]


def test_gelu():
    """The activation of GPT-2 and GPT-J, computed in another way."""
    x = torch.linspace(-12, 12, 1000, dtype=torch.float64).view(250, 2, 2)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        expected = NewGELUActivation()(x.to(dtype))
        torch.testing.assert_close(
            architectures._gelu(x.to(dtype)), expected, rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("component", COMPONENTS)
def test_memory_budget(tiny: TransformerBridge, component: str):
    """Less memory takes longer and gives the same numbers; no budget is overrun."""
    if component not in components(tiny):
        pytest.skip("the model has no such activation")
    pairs = pl.tasks.ioi(tiny, n=1 if component == "neuron" else 2)
    options = {"corruption": pl.GN("S1+IO", draws=2), "engine": "fast", "progress": False}
    options |= {"layers": [1]} if component == "neuron" else {}
    with pytest.raises(pl.PatchlibError, match=r"one prompt of .* tokens needs") as refused:
        pl.patch(tiny, pairs, component, memory_budget=1000, **options)
    (smallest,) = re.findall(r"give memory_budget=(\d+) or more", str(refused.value))
    reference = pl.patch(tiny, pairs, component, **options)
    for budget in (int(smallest), 2 * int(smallest), 16 * int(smallest)):
        with Memory(tiny) as memory:
            fx = pl.patch(tiny, pairs, component, memory_budget=budget, **options)
        assert memory.most <= budget
        for name in VARIABLES:
            np.testing.assert_allclose(fx[name], reference[name], **TOLERANCE)
    with pytest.raises(pl.PatchlibError, match="memory_budget=0: give a number of bytes"):
        pl.patch(tiny, pairs, component, memory_budget=0, **options)


def test_memory_budget_of_hooks(tiny_gpt2: TransformerBridge):
    """The reference engine keeps to the budget as well."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=3)
    options = {"corruption": pl.STR("S2"), "engine": "hooks", "progress": False}
    for component in ("mlp", "pattern"):
        with pytest.raises(pl.PatchlibError, match="engine='hooks'") as refused:
            pl.patch(tiny_gpt2, pairs, component, memory_budget=1000, **options)
        (smallest,) = re.findall(r"give memory_budget=(\d+) or more", str(refused.value))
        for budget in (int(smallest), 5 * int(smallest)):
            with Memory(tiny_gpt2) as memory:
                pl.patch(tiny_gpt2, pairs, component, memory_budget=budget, **options)
            assert memory.most <= budget
    rows: list[int] = []
    options["progress"] = lambda done, total: rows.append(done)
    pl.patch(tiny_gpt2, pairs, "mlp", memory_budget=int(smallest), **options)
    # Once before the first pass, and after each.
    assert rows == list(range(10))


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupted_sweep_leaves_nothing_behind(tiny: TransformerBridge, engine: str):
    """No hook stays on the model, and the next sweep gives the numbers it always gave."""
    pairs = pl.tasks.ioi(tiny, n=3)
    options = {"corruption": pl.STR("S2"), "engine": engine, "batch_size": 2}
    before = pl.patch(tiny, pairs, "mlp", progress=False, **options)

    def stop(done: int, total: int) -> None:
        if done > 2:
            raise _Stopped

    with pytest.raises(_Stopped):
        pl.patch(tiny, pairs, "mlp", progress=stop, **options)
    assert not [name for name, point in tiny.hook_dict.items() if point.fwd_hooks]
    after = pl.patch(tiny, pairs, "mlp", progress=False, **options)
    xr.testing.assert_identical(before, after)


@pytest.mark.parametrize("engine", ENGINES)
def test_several_windows_at_once(tiny_gpt2: TransformerBridge, engine: str):
    """They are the windows one by one, under one dimension more."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=3)
    options = {"corruption": pl.STR("S2"), "engine": engine, "progress": False}
    together = pl.patch(tiny_gpt2, pairs, "mlp", window=[3, 1, 2], before=[1, 0, 1], **options)
    assert together.effect.dims == ("metric", "window", "layer")
    assert together.window.values.tolist() == [3, 1, 2]
    assert (together.attrs["window"], together.attrs["window_before"]) == ("3, 1, 2", "1, 0, 1")
    for window, before in ((3, 1), (1, 0), (2, 1)):
        alone = pl.patch(tiny_gpt2, pairs, "mlp", window=window, before=before, **options)
        np.testing.assert_allclose(together.patched.sel(window=window), alone.patched, atol=1e-5)


def test_windows_that_make_no_sense(tiny_gpt2: TransformerBridge):
    """As many values of ``before`` as windows, and heads have none."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=2)
    options = {"corruption": pl.STR("S2"), "progress": False}
    with pytest.raises(pl.PatchlibError, match="as many values of before= as windows"):
        pl.patch(tiny_gpt2, pairs, "mlp", window=[1, 2], before=[0], **options)
    with pytest.raises(pl.PatchlibError, match="at least one window"):
        pl.patch(tiny_gpt2, pairs, "mlp", window=[], **options)
    with pytest.raises(pl.PatchlibError, match="window=2 is even"):
        pl.patch(tiny_gpt2, pairs, "mlp", window=[1, 2], **options)
    with pytest.raises(pl.PatchlibError, match="component='head'"):
        pl.patch(tiny_gpt2, pairs, "head", window=[1, 3], **options)


def test_noise_that_changes_nothing(tiny: TransformerBridge):
    """Two runs that are the same leave nothing to compute."""
    pairs = pl.tasks.ioi(tiny, n=3)
    assert_same(*both(tiny, pairs, "mlp", pl.GN("S2", scale=0.0)))


def test_a_position_that_some_prompts_lack(tiny: TransformerBridge):
    """NaN where there is no such position, for both engines."""
    pairs = pl.tasks.ioi(tiny, n=3)
    without = dataclasses.replace(
        pairs.prompts[1], positions=dict(pairs.prompts[1].positions) | {"S2": ()}
    )
    pairs = dataclasses.replace(pairs, prompts=(pairs.prompts[0], without, pairs.prompts[2]))
    hooks, fast = both(tiny, pairs, "mlp", pl.STR("S2"), positions="S2")
    assert_same(hooks, fast)
    assert fast.patched.isnull().any(["metric", "layer"]).values.tolist() == [[False, True, False]]

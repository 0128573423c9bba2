"""A researcher's own metrics and corruptions, and results that say everything that decides them."""

import dataclasses
import functools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaConfig

import patchlib as pl
from patchlib.models.loading import MINI
from patchlib.patching.code import fingerprint
from patchlib.patching.patch import ENGINES
from patchlib.patching.runs import Run, run_with_edits
from patchlib.prompts.pairs import PromptPairs

OPTIONS: dict[str, Any] = {"corruption": pl.STR("S2"), "progress": False}
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def pairs(tiny_gpt2: TransformerBridge) -> PromptPairs:
    return pl.tasks.ioi(tiny_gpt2, n=3)


def lead(logits: Tensor) -> Tensor:
    """By how much the first token leads."""
    best = logits.topk(2).values
    return best[..., 0] - best[..., 1]


def surprise(logits: Tensor, r: Tensor, r_wrong: Tensor, source: Tensor) -> Tensor:
    """Minus the log of P(r), in bits."""
    chosen = logits.log_softmax(-1).gather(-1, r.expand(logits.shape[:-1])[..., None])
    return -chosen[..., 0] / np.log(2)


BITS = pl.Metric("surprise", "surprise (bits)", surprise, sign=-1)


# --- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_function_of_logits(tiny: TransformerBridge, engine: str):
    """It is read from the same passes, under its own name; more is better."""
    pairs = pl.tasks.ioi(tiny, n=3)
    options = OPTIONS | {"engine": engine, "keep_prompts": True}
    fx = pl.patch(tiny, pairs, "mlp", metrics=["prob", lead], **options)
    assert fx.metric.values.tolist() == ["prob", "lead"]
    with torch.no_grad():
        clean, corrupted = tiny(pairs.clean_tokens), tiny(pairs.corrupted_tokens("S2"))
        _, cache = tiny.run_with_cache(pairs.clean_tokens)
        name = "blocks.1.hook_mlp_out"
        hooks = [(name, lambda old, hook: cache[name])]
        patched = tiny.run_with_hooks(pairs.corrupted_tokens("S2"), fwd_hooks=hooks)
    ours = fx.sel(metric="lead")
    for found, logits in (
        (ours.clean, clean),
        (ours.corrupted, corrupted),
        (ours.patched.sel(layer=1), patched),
    ):
        np.testing.assert_allclose(found, lead(logits[:, -1]), **CLOSE)
    np.testing.assert_allclose(ours.effect, ours.patched - ours.corrupted, rtol=1e-9)
    noised = pl.patch(tiny, pairs, "mlp", metrics=lead, direction="noise", **options)
    np.testing.assert_allclose(noised.effect, noised.clean - noised.patched, rtol=1e-9)
    alone = pl.patch(tiny, pairs, "mlp", metrics=["prob"], **options)
    xr.testing.assert_allclose(alone.patched, fx.patched.sel(metric=["prob"]), **CLOSE)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_metric_object(tiny: TransformerBridge, engine: str, direction: str):
    """Less surprise is better: it is minus the log probability, up to the unit."""
    pairs = pl.tasks.ioi(tiny, n=3)
    options = OPTIONS | {"engine": engine, "direction": direction, "positions": ["S2", "last"]}
    fx = pl.patch(tiny, pairs, metrics=["log_prob", BITS], **options)
    log_prob, bits = fx.sel(metric="log_prob"), fx.sel(metric="surprise")
    for name in ("patched", "clean", "corrupted"):
        np.testing.assert_allclose(bits[name], -log_prob[name] / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(bits.effect, log_prob.effect / np.log(2), rtol=1e-3, atol=1e-5)
    assert abs(bits.effect).max() > 1e-3
    assert bits.attrs["label_surprise"] == "surprise (bits)"


def test_a_normalised_metric_and_a_distance(tiny_gpt2, pairs):
    """Normalised, it is a share of the way; a distance is measured from the source's side."""
    share = dataclasses.replace(BITS, name="share", normalized=True)
    away = pl.Metric(
        "away",
        "largest change of a logit",
        lambda logits, r, r_wrong, source: (logits - source).abs().amax(-1),
        sign=-1,
        from_source=True,
    )
    for direction in ("denoise", "noise"):
        options = OPTIONS | {"direction": direction, "metrics": [share, away]}
        fx = pl.patch(tiny_gpt2, pairs, "resid", **options).isel(layer=0)
        there, here = ("clean", "corrupted") if direction == "denoise" else ("corrupted", "clean")
        assert fx.effect.sel(metric="share").item() == pytest.approx(1, abs=1e-4)
        far = fx.sel(metric="away")
        assert far[there].item() == 0
        assert far.patched.item() == pytest.approx(0, abs=1e-5)
        assert far.effect.item() == pytest.approx(far[here].item(), abs=1e-5)
        assert far[here].item() > 0.1


def test_metrics_outside_of_patch(tiny_gpt2, pairs):
    """Wherever metrics are named, own ones can be given."""
    runs = pl.baselines(tiny_gpt2, pairs, pl.STR("S2"), [lead, BITS])
    fx = pl.patch_together(tiny_gpt2, pairs, ["0.0"], corruption=pl.STR("S2"), metrics=[lead, BITS])
    for name in ("clean", "corrupted"):
        np.testing.assert_allclose(runs[name].mean("prompt"), fx[name], **CLOSE)
    fx = pl.patch(tiny_gpt2, pairs, metrics=lead, **OPTIONS)
    assert {*pl.detect(fx, sd=1).metric} == {"lead"}
    assert pl.plot.heatmap(fx, metric="lead") is not None


def prob(logits: Tensor) -> Tensor:
    return logits[..., 0]


def flat(logits: Tensor) -> Tensor:
    return logits.mean()


def wide(logits: Tensor) -> Tensor:
    return logits


def number(logits: Tensor) -> float:
    return 1.0


def empty(logits: Tensor) -> Tensor:
    return (logits[..., 0] - logits[..., 0]).log()


def broken(logits: Tensor) -> Tensor:
    return lead(logits).masked_fill(logits[..., 0] != logits[..., 1], torch.nan)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (lambda logits: logits[..., 0], r"unknown metric.*pl\.Metric.*function of logits.* a name"),
        (functools.partial(lead), r"unknown metric.*function of logits.* a name"),
        ([lead, lead], r"metrics=lead, lead: give at least one, and each name once"),
        ([BITS, "kl", BITS], r"surprise, kl, surprise.*each name once"),
        (prob, r"metric of your own is called 'prob'.*rename it"),
        (dataclasses.replace(BITS, name="kl"), r"metric of your own is called 'kl'.*rename it"),
        (surprise, r"metric surprise cannot be called with logits alone.*'r'.*pl.Metric\('surpr"),
        (flat, r"'flat' gave \(\) for logits of shape \(2, \d, 3443\).*one number for each prompt"),
        (wide, r"'wide' gave \(2, \d, 3443\) for logits.*one number for each prompt, \(2, \d\)"),
        (number, r"'number' gave float for logits"),
        (empty, r"'empty' is NaN or infinite for 3 of 3 prompts, the first 'At"),
        (broken, r"'broken' is NaN or infinite for 3 of 3 prompts, the first 'At"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("engine", ENGINES)
def test_metrics_that_are_refused(tiny_gpt2, pairs, metrics, said, engine):
    with pytest.raises(pl.PatchlibError, match=said):
        pl.patch(tiny_gpt2, pairs, "mlp", metrics=metrics, engine=engine, **OPTIONS)


@pytest.mark.parametrize("fields", [{"sign": 0}, {"sign": 2}, {"value": "prob"}])
def test_metric_objects_that_are_refused(fields):
    with pytest.raises(pl.PatchlibError, match=r"metric 'surprise': sign=.*give a function"):
        dataclasses.replace(BITS, **fields)


# --- corruptions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shift(pl.Corruption):
    """Shifts the embeddings of a site along one dimension, alternately up and down.

    Along all dimensions alike, a layer norm would take the shift out again.
    """

    by: float = 1.0
    draws: int = 1

    def noise(self, model, pairs, draw):
        noise = torch.zeros(*pairs.clean_tokens.shape, model.cfg.d_model)
        for row, at in enumerate(pairs.at(self.site)):
            noise[row, list(at), 0] = self.by * (-1) ** draw
        return noise


@dataclass(frozen=True)
class OtherToken(pl.Corruption):
    """Puts one token in the place of a site."""

    token: int = 5

    def tokens(self, pairs):
        tokens = pairs.clean_tokens.clone()
        for row, at in enumerate(pairs.at(self.site)):
            tokens[row, list(at)] = self.token
        return tokens


@pytest.mark.parametrize("engine", ENGINES)
def test_own_tokens(tiny: TransformerBridge, engine: str):
    """The corrupted run is the model's on those tokens."""
    pairs = pl.tasks.ioi(tiny, n=3)
    options = {"corruption": OtherToken("S2", 7), "engine": engine, "progress": False}
    fx = pl.patch(tiny, pairs, "resid", keep_prompts=True, **options)
    tokens = pairs.clean_tokens.clone()
    tokens[range(3), pairs.positions["S2"]] = 7
    with torch.no_grad():
        p = tiny(tokens)[:, -1].softmax(-1)[range(3), pairs.answers]
    np.testing.assert_allclose(fx.corrupted.sel(metric="prob"), p, rtol=1e-4)
    first = fx.isel(layer=0)
    np.testing.assert_allclose(first.patched, first.clean, **CLOSE)
    expected = {"corruption": "OtherToken", "site": "S2", "token": 7}
    assert fx.attrs.items() >= expected.items()
    assert fx.attrs["own_corruption"].startswith("sha256:")
    runs = pl.baselines(tiny, pairs, OtherToken("S2", 7))
    np.testing.assert_allclose(runs.corrupted, fx.corrupted, **CLOSE)


@pytest.mark.parametrize("engine", ENGINES)
def test_own_noise_and_draws(tiny: TransformerBridge, engine: str):
    """Each draw is what a hook on the embedding gives."""
    pairs = pl.tasks.ioi(tiny, n=3)
    options = {"corruption": Shift("S1+IO", by=0.5, draws=2), "engine": engine, "progress": False}
    fx = pl.patch(tiny, pairs, keep_prompts=True, keep_draws=True, **options)
    assert fx.sizes["draw"] == 2
    for draw, by in enumerate((0.5, -0.5)):

        def shift(embed: Tensor, hook: object, by: float = by) -> Tensor:
            embed = embed.clone()
            for row, at in enumerate(pairs.at("S1+IO")):
                embed[row, list(at), 0] += by
            return embed

        with torch.no_grad():
            logits = tiny.run_with_hooks(pairs.clean_tokens, fwd_hooks=[("hook_embed", shift)])
        p = logits[:, -1].softmax(-1)[range(3), pairs.answers]
        np.testing.assert_allclose(fx.corrupted.sel(metric="prob", draw=draw), p, rtol=1e-4)
    mean = pl.patch(tiny, pairs, **options)
    np.testing.assert_allclose(
        mean.effect_sd, fx.effect.mean("prompt").std("draw", ddof=1), **CLOSE
    )
    assert mean.attrs["draws"] == 2


@dataclass(frozen=True)
class Sometimes(Shift):
    """Noise in every second draw alone."""

    def noise(self, model, pairs, draw):
        return None if draw % 2 else super().noise(model, pairs, draw)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_draw_without_noise(tiny_gpt2, pairs, engine):
    """It is the clean run, whatever stands beside it in memory."""
    corruption = Sometimes("S2", by=2.0, draws=4)
    options = {"keep_draws": True, "keep_prompts": True, "engine": engine, "progress": False}
    fx = pl.patch(tiny_gpt2, pairs, "mlp", corruption=corruption, **options)
    for draw in (1, 3):
        one = fx.isel(draw=draw)
        np.testing.assert_allclose(one.corrupted, one.clean, **CLOSE)
        np.testing.assert_allclose(*xr.broadcast(one.patched, one.clean), **CLOSE)
    np.testing.assert_allclose(fx.patched.isel(draw=0), fx.patched.isel(draw=2), **CLOSE)
    assert (fx.corrupted.isel(draw=0).sel(metric="kl") > 1e-3).all()


@dataclass(frozen=True)
class Unseeded(Shift):
    def noise(self, model, pairs, draw):
        return torch.randn(*pairs.clean_tokens.shape, model.cfg.d_model)


@dataclass(frozen=True)
class SeededOnce(Shift):
    """The same in every call, and another one for every place in a batch."""

    def noise(self, model, pairs, draw):
        generator = torch.Generator().manual_seed(draw)
        return torch.randn(*pairs.clean_tokens.shape, model.cfg.d_model, generator=generator)


@dataclass(frozen=True)
class FromTheNext(pl.Corruption):
    def tokens(self, pairs):
        return pairs.clean_tokens.roll(1, dims=0)


@dataclass(frozen=True)
class Seeded(Shift):
    """As it should be done."""

    def noise(self, model, pairs, draw):
        shape = (pairs.clean_tokens.shape[1], model.cfg.d_model)
        rows = [derive_generator(0, draw, row.tolist()) for row in pairs.clean_tokens]
        return torch.stack([torch.randn(*shape, generator=generator) for generator in rows])


@pytest.mark.parametrize("corruption", [Unseeded, SeededOnce, FromTheNext])
def test_corruptions_that_depend_on_the_batch(tiny_gpt2, pairs, corruption):
    """Their numbers would depend on the memory budget."""
    with pytest.raises(pl.PatchlibError, match=r"not corrupt '.*' in the same way twice.*manual_s"):
        pl.patch(tiny_gpt2, pairs, corruption=corruption("S2"), progress=False)
    options = {"corruption": Seeded("S2", draws=2), "keep_prompts": True, "progress": False}
    straight = pl.patch(tiny_gpt2, pairs, "mlp", **options)
    turned = pl.patch(tiny_gpt2, pairs[[2, 0, 1]], "mlp", batch_size=1, **options)
    np.testing.assert_allclose(turned.patched, straight.patched.isel(prompt=[2, 0, 1]), **CLOSE)


@dataclass(frozen=True)
class Gives(pl.Corruption):
    """Whatever it is told to give."""

    what: Any = None
    as_noise: bool = False

    def tokens(self, pairs):
        return pairs.clean_tokens if self.as_noise else self.what

    def noise(self, model, pairs, draw):
        return self.what if self.as_noise else None


@pytest.mark.parametrize(
    ("what", "as_noise", "said"),
    [
        (torch.zeros(1, 3, dtype=torch.int64), False, r"gave \(1, 3\) as tokens.*shape \(1, 15\)"),
        (None, False, r"gave NoneType as tokens: these prompts need a tensor"),
        (
            [[1, 2, 3]],
            False,
            r"gave list as tokens: these prompts need a tensor of shape \(1, 15\)",
        ),
        (torch.zeros(1, 15), True, r"gave \(1, 15\) as noise.*shape \(1, 15, 32\)"),
        (0.5, True, r"gave float as noise.*shape \(1, 15, 32\)"),
        (torch.full((1, 15, 32), torch.nan), True, "gave noise that is NaN or infinite"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_corruptions_of_another_shape(tiny_gpt2, pairs, what, as_noise, said, engine):
    options = {"corruption": Gives("S2", what, as_noise), "engine": engine, "progress": False}
    with pytest.raises(pl.PatchlibError, match=said):
        pl.patch(tiny_gpt2, pairs[:1], **options)


@pytest.mark.parametrize("field", ["direction", "component", "source", "task", "metrics", "model"])
def test_fields_called_like_settings(tiny_gpt2, pairs, field):
    """One of the two would be lost in the attributes, and two results would look alike."""
    mine = dataclasses.make_dataclass("Mine", [(field, str, "x")], bases=(OtherToken,), frozen=True)
    with pytest.raises(pl.PatchlibError, match=f"Mine has a field '{field}'.*something else"):
        pl.patch(tiny_gpt2, pairs, corruption=mine("S2"), progress=False)


# --- checkpoints ---------------------------------------------------------------------------------


def with_constant(constant: float) -> Callable[[Tensor], Tensor]:
    def own(logits: Tensor) -> Tensor:
        return lead(logits) * constant

    return own


def class_with(by: float, sign: int = 1) -> type[pl.Corruption]:
    @dataclass(frozen=True)
    class Own(Shift):
        def noise(self, model, pairs, draw):
            return sign * by * super().noise(model, pairs, draw)

    return Own


def test_other_code_is_another_sweep(tiny_gpt2, pairs, tmp_path):
    """The same code goes on, another function, class or field is refused by name."""
    options = {"checkpoint": tmp_path, "progress": False, "corruption": class_with(2.0)("S2")}
    options["metrics"] = [with_constant(2.0), BITS]
    first = pl.patch(tiny_gpt2, pairs, "mlp", **options)
    same = {"metrics": [with_constant(2.0), BITS], "corruption": class_with(2.0)("S2")}
    rows: list[tuple[int, int]] = []
    again = pl.patch(
        tiny_gpt2,
        pairs,
        "mlp",
        **options | same | {"progress": lambda *done: rows.append(done)},
    )
    xr.testing.assert_identical(again, first)
    changes: dict[str, list[dict[str, Any]]] = {
        r"own_metrics \(own \(sha256:\w+\), surprise .* there, own \(sha256:\w+\)": [
            {"metrics": [with_constant(3.0), BITS]},
            {"metrics": [with_constant(2.0), dataclasses.replace(BITS, sign=1)]},
            {"metrics": [with_constant(2.0), dataclasses.replace(BITS, normalized=True)]},
        ],
        r"own_corruption \(sha256:\w+ there, sha256:\w+ here\)": [
            {"corruption": class_with(3.0)("S2")},
            {"corruption": class_with(2.0, sign=-1)("S2")},
        ],
        r"by \(1 there, 2 here\)": [{"corruption": class_with(2.0)("S2", by=2)}],
        r"source \(clean run there, zeros here\)": [{"source": pl.Zero()}],
        r"layers \(absent there, 0, 2 here\)": [{"layers": [0, 2]}],
    }
    for said, some in changes.items():
        for change in some:
            with pytest.raises(pl.PatchlibError, match=said):
                pl.patch(tiny_gpt2, pairs, "mlp", **options | change)


def test_chosen_heads_with_a_checkpoint(tiny_gpt2, pairs, tmp_path):
    """Stopped and taken up again; one way to write heads is as good as another."""
    options = {"checkpoint": tmp_path, "corruption": pl.GN("S2", draws=2), "batch_size": 2}

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        assert total == 3 * 2 * 3
        if done >= 6:
            raise Stopped

    with pytest.raises(Stopped):
        pl.patch(tiny_gpt2, pairs, heads=["0.1", "1.2", "2.3"], progress=stop, **options)
    rows: list[int] = []
    options["progress"] = lambda done, total: rows.append(done)
    again = pl.patch(tiny_gpt2, pairs, heads=[(2, 3), (1, 2), (0, 1)], **options)
    assert (rows[-1], again.attrs["heads"]) == (18, "0.1, 1.2, 2.3")
    assert rows[1] >= 2
    options |= {"progress": False, "checkpoint": None}
    whole = pl.patch(tiny_gpt2, pairs, heads="0.1, 1.2, 2.3", **options)
    xr.testing.assert_allclose(again, whole, rtol=0, atol=1e-5)
    options["checkpoint"] = tmp_path
    with pytest.raises(pl.PatchlibError, match=r"heads \(0.1, 1.2, 2.3 there, 0.1, 1.2 here\)"):
        pl.patch(tiny_gpt2, pairs, heads=["0.1", "1.2"], **options)


# --- fingerprints --------------------------------------------------------------------------------

MODULE = """
import functools, math
from dataclasses import dataclass
import torch

FACTOR = {factor}
NAMES = {{"a", "b", "c", "d", "e"}}
PROBE = torch.tensor([1.0, {probe}])

def helper(logits):
    return logits * {inner}

def decorate(function):
    @functools.wraps(function)
    def wrapper(logits):
        return {outer} * function(logits)
    return wrapper

def plain(logits):
    return helper(logits) * FACTOR + math.pi * (logits in {{"x", "y", "z"}})

@decorate
def decorated(logits):
    return logits

def nested(logits):
    return [(lambda x: helper(x) * FACTOR)(each) for each in logits]

def probed(logits):
    return logits @ PROBE + len(NAMES)

partial = functools.partial(helper)

class Model:
    def __init__(self, by):
        self.by = by
    @staticmethod
    def inner(logits):
        return logits + {static}
    @property
    def half(self):
        return self.by / {half}
    @functools.lru_cache
    def cached(self):
        return {cached}
    def metric(self, logits):
        return self.inner(logits) * self.half
    def __call__(self, logits):
        return self.metric(logits)

bound = Model({by}).metric
instance = Model({by})
"""
PLAIN = dict(factor=1, probe=1, inner=1, outer=1, static=1, half=1, cached=1, by=1)
USED = {
    "plain": {"factor", "inner"},
    "decorated": {"outer"},
    "nested": {"factor", "inner"},
    "probed": {"probe"},
    "partial": {"inner"},
    "Model": {"static", "half", "cached"},
    "bound": {"static", "half", "cached", "by"},
    "instance": {"static", "half", "cached", "by"},
}


def module_with(**values: int) -> ModuleType:
    module = ModuleType("mine")
    exec(MODULE.format(**PLAIN | values), module.__dict__)
    return module


@pytest.mark.parametrize("name", USED)
def test_what_decides_is_in_the_fingerprint(name: str):
    """Constants, globals, helpers, methods, decorators; and nothing that is not used."""
    before = fingerprint(getattr(module_with(), name))
    assert fingerprint(getattr(module_with(), name)) == before
    for value in PLAIN:
        changed = fingerprint(getattr(module_with(**{value: 2}), name)) != before
        assert changed == (value in USED[name]), value


def test_helpers_in_another_module(monkeypatch):
    """Called through their module, they count as well."""

    def uses(logits):
        return mine.plain(logits)  # type: ignore[name-defined]

    def made(**values: int) -> FunctionType:
        return FunctionType(uses.__code__, {"mine": module_with(**values), "__name__": "elsewhere"})

    assert fingerprint(made()) == fingerprint(made())
    assert fingerprint(made()) != fingerprint(made(inner=2))
    assert fingerprint(made()) == fingerprint(made(static=2))


def test_every_process_finds_the_same(tmp_path: Path):
    """Texts are hashed differently in each, and so are sets ordered."""
    (tmp_path / "mine.py").write_text(MODULE.format(**PLAIN))
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import mine
        from patchlib.patching.code import fingerprint
        print([fingerprint(getattr(mine, name)) for name in {[*USED]}])
    """
    found = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert found.pop().count("sha256:") == len(USED)


# --- attributes ----------------------------------------------------------------------------------

ALONG_ONE = torch.eye(15, 32)[None]
SETTINGS: dict[str, dict[str, Any]] = {
    "own metric": {"metrics": [with_constant(2.0)]},
    "its code": {"metrics": [with_constant(3.0)]},
    "its sign": {"metrics": [BITS]},
    "the other sign": {"metrics": [dataclasses.replace(BITS, sign=1)]},
    "own corruption": {"corruption": Shift("S2")},
    "its parameter": {"corruption": Shift("S2", by=2.0)},
    "its code, too": {"corruption": class_with(2.0)("S2")},
    "a tensor": {"corruption": Gives("S2", ALONG_ONE, as_noise=True)},
    "one that prints alike": {"corruption": Gives("S2", ALONG_ONE * 1.000001, as_noise=True)},
    "noise": {"corruption": pl.GN("S2")},
    "scale": {"corruption": pl.GN("S2", scale=2)},
    "draws": {"corruption": pl.GN("S2", draws=2)},
    "seed": {"corruption": pl.GN("S2", seed=1)},
    "zeros": {"source": pl.Zero()},
    "mean": {"source": pl.Mean()},
    "layers": {"layers": [0]},
    "other layers": {"layers": [0, 1]},
    "heads": {"heads": ["0.1"]},
    "positions": {"positions": "last"},
    "a number": {"positions": 14},
    "several": {"positions": ["last", 13]},
    "direction": {"direction": "noise"},
    "component": {"component": "q"},
    "engine": {"engine": "hooks"},
    "window": {"component": "mlp", "window": 3},
    "windows": {"component": "mlp", "window": [1, 2], "before": [None, 1]},
    "other windows": {"component": "mlp", "window": [1, 2], "before": [None, 0]},
}


def test_attributes_tell_results_apart(tiny_gpt2, tiny_folders, tmp_path: Path):
    """No two calls that differ in a setting look alike, and all can be saved and loaded."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=1)
    results = {
        name: pl.patch(tiny_gpt2, pairs, **OPTIONS | settings)
        for name, settings in SETTINGS.items()
    }
    results["nothing"] = pl.patch(tiny_gpt2, pairs, **OPTIONS)
    no_bos = pl.tasks.ioi(tiny_gpt2, n=1, prepend_bos=False)
    results["no beginning"] = pl.patch(tiny_gpt2, no_bos, **OPTIONS)
    double = pl.load_model(tiny_folders("gpt2"), dtype="float64")
    results["precision"] = pl.patch(double, pairs, **OPTIONS)
    results["prompts as source"] = pl.patch(tiny_gpt2, pairs, source=pairs, **OPTIONS)
    others = pl.Mean(pl.tasks.ioi(tiny_gpt2, n=2))
    results["mean of others"] = pl.patch(tiny_gpt2, pairs, source=others, **OPTIONS)
    seen: dict[str, str] = {}
    for name, fx in results.items():
        told = repr(sorted((key, str(value)) for key, value in fx.attrs.items()))
        assert told not in seen, f"{name} looks like {seen.get(told)}"
        seen[told] = name
        fx.to_netcdf(tmp_path / "fx.nc")
        assert xr.load_dataset(tmp_path / "fx.nc").identical(fx), name
    assert '"prepend_bos": true' in results["nothing"].attrs["task_settings"]
    assert '"prepend_bos": false' in results["no beginning"].attrs["task_settings"]
    assert results["precision"].attrs["dtype"] == "float64"
    # Equal numbers are one setting, whatever their types.
    for scale in (3, 3.0, np.float64(3), np.int32(3)):
        again = pl.patch(tiny_gpt2, pairs, corruption=pl.GN("S2", scale), progress=False)
        assert again.attrs == results["noise"].attrs
        assert pl.GN("S2", scale) == pl.GN("S2")


def test_numbers_of_every_library(tiny_gpt2, pairs):
    """A budget without end, and numpy's numbers."""
    expected = pl.patch(tiny_gpt2, pairs, "mlp", **OPTIONS)
    for budget in (np.inf, float("inf"), np.float64(2**31), np.int64(2**31), 2**80):
        for size in (np.int64(2), np.uint8(7), "auto"):
            options = OPTIONS | {"memory_budget": budget, "batch_size": size}
            for engine in ENGINES:
                fx = pl.patch(tiny_gpt2, pairs, "mlp", engine=engine, **options)
                np.testing.assert_allclose(fx.patched, expected.patched, **CLOSE)
    window = pl.patch(tiny_gpt2, pairs, "mlp", window=np.int64(3), before=np.int8(1), **OPTIONS)
    assert (window.attrs["window"], window.attrs["window_before"]) == (3, 1)


# --- what a model is -----------------------------------------------------------------------------


def gemma(folder: Path) -> TransformerBridge:
    """A small Gemma, which multiplies what it reads from its embedding matrix by a constant."""
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    configuration = GemmaConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=64,
        head_dim=16,
        intermediate_size=48,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(configuration).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return pl.load_model(folder)


@pytest.mark.parametrize("family", ["gemma", "gpt2"])
def test_noise_in_units_of_what_it_is_added_to(family, tiny_folders, tmp_path):
    """The standard deviation is that of the embeddings as they enter the stream."""
    model = gemma(tmp_path) if family == "gemma" else pl.load_model(tiny_folders("gpt2"))
    every = torch.arange(3400).reshape(100, 34)
    _, kept = run_with_edits(model, Run(every), keep=["hook_embed"])
    spread = kept["hook_embed"].std().item()
    # Nearly all tokens of the vocabulary, each once.
    assert pl.GN("S2", scale=3).sigma(model) == pytest.approx(3 * spread, rel=0.01)
    matrix = model.W_E.std().item()
    assert spread / matrix == pytest.approx(8 if family == "gemma" else 1, rel=0.01)
    pairs = pl.tasks.ioi(model, n=40)
    noise = pl.GN("S2", scale=3).noise(model, pairs, draw=0)
    runs = Run(pairs.clean_tokens), Run(pairs.clean_tokens, noise)
    clean, noised = (run_with_edits(model, r, keep=["hook_embed"])[1]["hook_embed"] for r in runs)
    added = (noised - clean)[range(40), pairs.positions["S2"]]
    # 40 vectors of 32 or 64 numbers: known to about 2 %.
    assert added.std().item() == pytest.approx(3 * spread, rel=0.06)


@pytest.mark.parametrize("engine", ["auto", "hooks"])
def test_broken_weights(tiny_folders, pairs, engine):
    """An error with the prompt's text, and not a mean over what is left."""
    model = pl.load_model(tiny_folders("gpt2"))
    with torch.no_grad():
        model.blocks[1].mlp.out.original_component.bias[0] = torch.nan
    with pytest.raises(
        pl.PatchlibError, match=r"NaN or infinite for 3 of 3 prompts, the first 'At"
    ):
        pl.patch(model, pairs, "mlp", engine="hooks", **OPTIONS)
    if engine == "auto":
        with pytest.raises(pl.PatchlibError, match="NaN or infinite"):
            pl.patch(model, pairs, "mlp", **OPTIONS)


def test_half_precision_that_overflows(tiny_folders, pairs):
    """65504 is the largest number of float16."""
    model = pl.load_model(tiny_folders("gpt2"), dtype="float16")
    with torch.no_grad():
        model.blocks[1].mlp.out.original_component.bias += 6e4
        model.blocks[2].mlp.out.original_component.bias += 6e4
    with pytest.raises(pl.PatchlibError, match=r"half precision that overflows.*dtype=torch.floa"):
        pl.patch(model, pairs, "mlp", engine="hooks", **OPTIONS)


def test_one_broken_prompt(tiny_gpt2, pairs):
    """The one whose numbers are missing is named."""
    chosen = pairs.clean_tokens[1]

    def spoil(stream: Tensor, hook: object) -> Tensor:
        # The residual stream has no tokens, the rows of a batch do.
        stream = stream.clone()
        stream[(spoil.tokens == chosen).all(dim=-1)] = torch.nan
        return stream

    def note(module: object, given: tuple) -> None:
        spoil.tokens = given[0]

    watch = tiny_gpt2.embed.original_component.register_forward_pre_hook(note)
    tiny_gpt2.add_hook("blocks.1.hook_resid_pre", spoil)
    try:
        with pytest.raises(pl.PatchlibError) as refusal:
            pl.patch(tiny_gpt2, pairs, "mlp", engine="hooks", **OPTIONS)
    finally:
        tiny_gpt2.reset_hooks()
        watch.remove()
    assert "for 1 of 3 prompts" in str(refusal.value)
    assert pairs.texts[1] in str(refusal.value)


def test_two_edits_of_one_activation(tiny_gpt2, pairs):
    """Both happen, one after the other."""
    name = "blocks.1.hook_mlp_out"
    run = Run(pairs.clean_tokens)
    edits = [(name, torch.relu), (name, torch.neg)]
    logits, kept = run_with_edits(tiny_gpt2, run, edits, keep=[name])
    _, plain = run_with_edits(tiny_gpt2, run, keep=[name])
    torch.testing.assert_close(kept[name], -plain[name].clamp(min=0))
    turned, _ = run_with_edits(tiny_gpt2, run, edits[::-1])
    once, _ = run_with_edits(tiny_gpt2, run, [(name, lambda out: -out.clamp(min=0))])
    torch.testing.assert_close(logits, once)
    assert not torch.allclose(logits, turned, atol=1e-3)


def test_one_prompt(tiny: TransformerBridge):
    """A mean over one prompt is its number, by every engine and in every form."""
    pairs = pl.tasks.ioi(tiny, n=1)
    for engine in ENGINES:
        options = OPTIONS | {"engine": engine, "corruption": pl.GN("S2", draws=2)}
        kept = pl.patch(tiny, pairs, "mlp", keep_prompts=True, keep_draws=True, **options)
        mean = pl.patch(tiny, pairs, "mlp", **options)
        np.testing.assert_allclose(mean.effect, kept.effect.mean(["prompt", "draw"]), rtol=1e-6)
        np.testing.assert_allclose(mean.effect_sd, kept.effect.isel(prompt=0).std("draw", ddof=1))

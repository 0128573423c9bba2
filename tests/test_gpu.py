"""A GPU gives the numbers of the CPU, by every method, for each family of models."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import loky
import numpy as np
import pytest
import torch
import xarray as xr
from test_interchange import slots
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.models.loading import describe
from patchlib.prompts.pairs import PromptPairs

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
S2: dict[str, Any] = {"corruption": pl.STR("S2"), "progress": False}
NOISE: dict[str, Any] = {"corruption": pl.GN("S1+IO", draws=2), "progress": False}
ZERO: dict[str, Any] = {"with_": pl.Zero(), "progress": False}
HEADS = ["0.1", "1.2"]
EDGES = ["0.1->q1.0", "mlp0->logits"]


def by_das(model: TransformerBridge, pairs: PromptPairs) -> Any:
    place = pl.Alignment(model, pairs, slots, "slot", 1, "last", source=pl.STR("S2"))
    return place.fit(rank=1, epochs=2).basis


WORKS: dict[str, Callable[[TransformerBridge, PromptPairs], Any]] = {
    "heads": partial(pl.patch, **S2),
    "heads under noise": partial(pl.patch, **NOISE),
    "heads by hooks": partial(pl.patch, engine="hooks", **NOISE),
    "queries": partial(pl.patch, component="q", **S2),
    "what is attended to": partial(pl.patch, component="v", **S2),
    "MLPs in windows": partial(pl.patch, component="mlp", window=[1, 3], **NOISE),
    "stream": partial(pl.patch, component="resid", positions="each", direction="noise", **S2),
    "together": partial(pl.patch_together, parts=["0.1", "mlp1"], **S2),
    "zeros": partial(pl.ablate, **ZERO),
    "means": partial(pl.ablate, with_=pl.Mean(), progress=False),
    "paths": partial(pl.path_patch, senders="head", receivers="q2.1", **S2),
    "direct effects": partial(pl.direct_effect, senders="head", **S2),
    "interactions": partial(pl.interactions, parts=HEADS, **S2),
    "self-repair": partial(pl.self_repair, parts=HEADS, **ZERO),
    "faithfulness": partial(pl.faithfulness, circuit=HEADS, with_=pl.Mean(), progress=False),
    "attribution": partial(pl.attribute, component="q", qk_fix=True, **S2),
    "edges": partial(pl.patch_edges, edges=EDGES, **S2),
    "EAP": partial(pl.attribute_edges, **S2),
    "EAP-IG": partial(pl.attribute_edges, steps=2, **S2),
    "EAP-IG, activations": partial(pl.attribute_edges, steps=2, along="activations", **S2),
    "ACDC": lambda model, pairs: pl.acdc(model, pairs, 0.5, merged=True, **S2).value,
    "circuits of edges": partial(pl.edge_faithfulness, circuits={"some": EDGES}, **S2),
    "scrubbing": partial(
        pl.scrub, hypothesis={"some": {"logits": {"0.1": "IO", "mlp1": "all"}}}, draws=2
    ),
    "interchange": partial(
        pl.interchange, causal=slots, variables="slot", source=pl.STR("S2"), progress=False
    ),
    "DAS": by_das,
    "off the distribution": partial(pl.ood, corruption=pl.GN("S2", draws=2), shrinkage=0.5),
    "unpatched": partial(pl.baselines, corruption=pl.GN("S2")),
    "attention patterns": partial(pl.attention_patterns, heads=HEADS, corruption=pl.STR("S2")),
    "copying": partial(pl.copying_score, heads=HEADS),
}


def numbers(found: Any) -> dict[str, np.ndarray]:
    """All numbers of a result, by name."""
    if isinstance(found, xr.Dataset):
        parts = {name: part for name, part in found.data_vars.items() if part.dtype.kind in "fib"}
        return {str(name): part.values for name, part in parts.items()}
    return {"": np.asarray(found.cpu() if isinstance(found, torch.Tensor) else found)}


# Hugging Face takes the softmax of the other families in single precision.
DTYPES = {"gpt2": "float64", "gpt_neox": "float64", "llama": "float32", "gptj": "float32"}


@pytest.fixture(scope="module", params=DTYPES)
def models(
    request: pytest.FixtureRequest, tiny_folders: Callable[[str], Path]
) -> list[TransformerBridge]:
    """The same weights on the CPU and on the GPU."""
    folder, dtype = tiny_folders(request.param), DTYPES[request.param]
    return [pl.load_model(folder, device, dtype) for device in ("cpu", DEVICE)]


@pytest.mark.parametrize("work", WORKS)
def test_every_method_gives_the_numbers_of_the_cpu(
    work: str, models: list[TransformerBridge]
) -> None:
    pairs = pl.tasks.ioi(models[0], n=4)
    expected, found = (numbers(WORKS[work](model, pairs)) for model in models)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-3, err_msg=name)


def test_workers_on_a_gpu(models: list[TransformerBridge], tmp_path: Path) -> None:
    pairs, make = pl.tasks.ioi(models[0], n=4), partial(loky.get_reusable_executor, max_workers=2)
    fx = pl.patch(models[1], pairs, checkpoint=tmp_path, executor=make, block=2, **NOISE)
    xr.testing.assert_allclose(fx, pl.patch(models[1], pairs, **NOISE), rtol=0, atol=1e-6)
    assert fx.attrs["device"] == "cuda:0"


def test_a_model_takes_tokens_from_the_cpu(models: list[TransformerBridge]) -> None:
    tokens = pl.tasks.ioi(models[0], n=2).clean_tokens
    with torch.no_grad():
        expected, found = (model(tokens) for model in models)
        _, cache = models[1].run_with_cache(tokens)
    assert found.device.type == cache["resid_post", 0].device.type == DEVICE
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)


def test_the_environment_puts_models_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHLIB_DEVICE", DEVICE)
    assert describe(pl.load_model("mini"))["device"] == "cuda:0"

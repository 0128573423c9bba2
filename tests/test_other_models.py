"""Every notebook runs to its end on models of other shapes than mini's.

The models have the architectures of the paper's own and, in proportion, their layers and heads
(attn-only-4l has all of its own); random weights, a narrow residual stream, a few prompts and
draws. PATCHLIB_FULL_SHAPES=1 takes all layers and heads, which needs most of an hour. What such a
model shows means nothing: the tests ask that no notebook takes a result for granted.
"""

import json
import os
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import gpt2_encoding
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTJConfig,
    PreTrainedTokenizerFast,
)

from patchlib import notebooks
from patchlib.errors import PatchlibError
from patchlib.lessons import claims
from patchlib.models.loading import MINI
from patchlib.paper import experiments

pytestmark = pytest.mark.slow
PROMPTS, DRAWS = 12, 2
SHARE = 1 if os.environ.get("PATCHLIB_FULL_SHAPES") else 3
# Layers and heads.
SHAPES = {"gpt2": (12, 12), "gpt2-large": (36, 20), "gpt2-xl": (48, 25), "gpt-j-6b": (28, 16)}
# The paper's model for each notebook; where it has several, one that no other notebook is run on.
# Notebooks that are not named here run on GPT-2 small.
PAPERS_MODEL = {
    "03_1_factual_recall": "gpt2-xl",
    "04_1_metrics_factual_recall": "gpt2-xl",
    "05_sliding_window": "gpt2-large",
    "06_recommendations": "gpt2-large",
    "app_c_arithmetic": "gpt-j-6b",
    "app_d_docstring": "attn-only-4l",
    "app_g_factual_recall_details": "gpt-j-6b",
}
NAMES = sorted(path.stem for path in notebooks.NOTEBOOKS.glob("*.py"))


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """With GPT-2's own encoding where it is at hand, else mini's."""
    encoding = gpt2_encoding()
    if encoding is None:
        return AutoTokenizer.from_pretrained(MINI)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=encoding,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a model of one of the shapes, once."""
    tokenizer = gpt2_tokenizer()
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        path = root / f"random-{name}"
        if not path.exists():
            torch.manual_seed(0)
            layers, heads = (count // SHARE for count in SHAPES[name])
            configuration = (GPTJConfig if "gpt-j" in name else GPT2Config)(
                n_layer=layers,
                n_head=heads,
                n_embd=4 * heads,
                n_positions=128,
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                initializer_range=0.3,
                **({"rotary_dim": 4} if "gpt-j" in name else {}),
            )
            AutoModelForCausalLM.from_config(configuration).save_pretrained(path)
            tokenizer.save_pretrained(path)
        return path

    return folder


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder of its own for what a notebook writes, and the paper's settings on few prompts."""
    few = json.loads(experiments.EXPERIMENTS.read_text(encoding="utf-8"))
    for experiment in few.values():
        for chosen in experiment["settings"].values():
            chosen |= {"n": min(chosen["n"], PROMPTS), "draws": min(chosen["draws"], DRAWS)}
    (tmp_path / "experiments.json").write_text(json.dumps(few), encoding="utf-8")
    monkeypatch.setattr(experiments, "EXPERIMENTS", tmp_path / "experiments.json")
    for (family, *_), name in list(experiments.SHAPES.items()):
        layers, heads = SHAPES.get(name.split("/")[-1], (4 * SHARE, 8 * SHARE))
        small = (family, layers // SHARE, heads // SHARE, 4 * (heads // SHARE))
        monkeypatch.setitem(experiments.SHAPES, small, name)
    monkeypatch.setattr(notebooks, "BUILD", tmp_path)
    monkeypatch.setattr(claims, "RECORDS", tmp_path / "claims")
    plt.switch_backend("agg")
    # A notebook may switch gradients off.
    with torch.enable_grad():
        yield
    plt.close("all")


# These are about a model that they name, whatever is loaded; it has no other shape.
ON_KNOWN = {"22_acdc", "25_known_circuit", "26_which_method_finds_the_circuit"}
# This one keeps the prompts that the model answers, and random weights answer none.
OF_ANSWERS = "24_interchange_and_das"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(
            (name, PAPERS_MODEL.get(name, "gpt2"))
            for name in NAMES
            if name not in {*ON_KNOWN, OF_ANSWERS}
        ),
        # Heads that share keys and values.
        ("03_2_out_of_distribution", "llama"),
    ],
)
def test_a_notebook_runs_on_a_model_of_the_papers_shape(
    name: str,
    shape: str,
    request: pytest.FixtureRequest,
    random_models: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if shape == "attn-only-4l":
        request.getfixturevalue("attn_only_4l")
        model = shape
    elif shape == "llama":
        model = str(request.getfixturevalue("tiny_folders")(shape))
    else:
        model = str(random_models(shape))
    monkeypatch.setenv("PATCHLIB_MODEL", model)
    monkeypatch.chdir(notebooks.NOTEBOOKS)
    runpy.run_path(f"{name}.py", run_name="__main__")
    assert f"model {model} (" in capsys.readouterr().out
    # What was measured is recorded under this model's name, and no other's.
    records = (tmp_path / "claims").glob("*/*.json")
    recorded = [json.loads(path.read_text("utf-8")) for path in records]
    assert {record["model"] for record in recorded} - {"known"} <= {model}


def test_a_notebook_of_answers_says_that_there_are_none(
    random_models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHLIB_MODEL", str(random_models("gpt2")))
    monkeypatch.chdir(notebooks.NOTEBOOKS)
    with pytest.raises(PatchlibError, match="answers none of these 20 prompts"):
        runpy.run_path(f"{OF_ANSWERS}.py", run_name="__main__")

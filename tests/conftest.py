"""Models that all tests share, and the promise that no test needs a network."""

import os

# Read when transformers is imported, so it comes first.
os.environ["HF_HUB_OFFLINE"] = "1"

import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import hypothesis
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from traitlets.config import Config
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
)

import patchlib as pl
from patchlib.models.loading import MINI

# Models of other families than GPT-2's take most of the time, and seldom fail alone.
_OTHER_FAMILIES = re.compile("gpt_neox|gptj|llama")

# The models are tiny: one thread is as fast as several, and does not stall on a busy machine.
torch.set_num_threads(1)

# The same examples in every run, however slow the machine; no folder of examples is left behind.
# Explaining a failure would run and print a model over and over.
hypothesis.settings.register_profile(
    "patchlib",
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain],
)
hypothesis.settings.load_profile("patchlib")

LAYERS, HEADS, WIDTH, CONTEXT = 3, 4, 32, 64
FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    "gpt2": lambda **common: GPT2Config(
        n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, n_positions=CONTEXT, **common
    ),
    "gpt_neox": lambda **common: GPTNeoXConfig(
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=CONTEXT,
        **common,
    ),
    "gptj": lambda **common: GPTJConfig(
        n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, n_positions=CONTEXT, rotary_dim=4, **common
    ),
    # Grouped-query attention: two heads share the keys and values of one.
    "llama": lambda **common: LlamaConfig(
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=CONTEXT,
        **common,
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the models of other families to `make test-slow`."""
    for item in items:
        if _OTHER_FAMILIES.search(item.name):
            item.add_marker(pytest.mark.slow)


@contextmanager
def ipython_shell() -> Iterator[InteractiveShell]:
    """A shell as a notebook's; afterwards there is none, as if there had been none."""
    # Without a history, which is a file in the user's home.
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    try:
        yield shell
    finally:
        # Its own __main__ has nothing that a process could be started from.
        shell.restore_sys_module_state()
        InteractiveShell.clear_instance()


def is_local(address: object) -> bool:
    """True for Unix sockets and for addresses of this machine."""
    if not isinstance(address, tuple):
        return True
    if address[0] == "localhost":
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def only_local_connections() -> Iterator[None]:
    """Fails every test that connects to another machine."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def refuse(address: object) -> None:
        if not is_local(address):
            raise RuntimeError(f"a test connected to {address}: tests need no network")

    def guarded_connect(self: socket.socket, address: object) -> None:
        refuse(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: object) -> int:
        refuse(address)
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        yield


def gpt2_encoding() -> Tokenizer | None:
    """GPT-2's own encoding, where the environment variable PATCHLIB_GPT2_BPE names a folder with
    its encoder.json and vocab.bpe, which are not part of this project.
    """
    folder = os.environ.get("PATCHLIB_GPT2_BPE")
    if folder is None:
        return None
    encoding = Tokenizer(models.BPE.from_file(f"{folder}/encoder.json", f"{folder}/vocab.bpe"))
    encoding.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding.decoder = decoders.ByteLevel()
    return encoding


@pytest.fixture(scope="session")
def mini() -> TransformerBridge:
    """The model that ships with the project."""
    return pl.load_model("mini")


@pytest.fixture(scope="session")
def smollm2() -> TransformerBridge:
    """The pretrained model, which `make test` has fetched: no test fetches it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        return pl.load_model("smollm2")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a small model of a family, with random weights and mini's tokenizer, once."""
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            # The wide spread of the weights makes heads differ far more than rounding does.
            configuration = FAMILIES[family](
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                initializer_range=0.3,
            )
            torch.manual_seed(list(FAMILIES).index(family))
            path = tmp_path_factory.mktemp(family)
            AutoModelForCausalLM.from_config(configuration).save_pretrained(path)
            tokenizer.save_pretrained(path)
            folders[family] = path
        return folders[family]

    return folder


@pytest.fixture(scope="session", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tiny_folders: Callable[[str], Path]) -> TransformerBridge:
    """A small model with random weights, of each family that the paper's models belong to."""
    return pl.load_model(tiny_folders(request.param))


@pytest.fixture(scope="module", params=["mini", *FAMILIES])
def model(
    request: pytest.FixtureRequest, mini: TransformerBridge, tiny_folders: Callable[[str], Path]
) -> TransformerBridge:
    """Mini, and a small model of each family: layer norm and RMS norm, shared keys, parallel."""
    return mini if request.param == "mini" else pl.load_model(tiny_folders(request.param))


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """The model of test_closed_form.py, where its numbers are worked out."""
    from test_closed_form import save_weights, save_words

    folder = tmp_path_factory.mktemp("by_hand")
    save_weights(folder)
    save_words(folder)
    return pl.load_model(folder)


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_folders: Callable[[str], Path]) -> TransformerBridge:
    """A small GPT-2 with random weights."""
    return pl.load_model(tiny_folders("gpt2"))


@pytest.fixture
def attn_only_4l(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Puts a repository of TransformerLens' own old format in place of attn-only-4l's on the hub:
    its layers and heads, a narrow residual stream, mini's tokenizer and these random weights.
    """
    layers, heads, d_head, vocabulary = 4, 8, 4, pl.load_model("mini").cfg.d_vocab
    width, context = heads * d_head, 256
    config = {
        "architecture": "neel",
        "normalization": "LN",
        "d_model": width,
        "n_layers": layers,
        "d_mlp": 4 * width,
        "d_head": d_head,
        "n_heads": heads,
        "n_ctx": context,
        "d_vocab": vocabulary,
        "act_fn": "gelu",
        "attn_only": True,
        "tokenizer_name": str(MINI),
    }
    repository = tmp_path / "attn-only-4l"
    repository.mkdir()
    (repository / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    weights = {
        "embed.W_E": draw(vocabulary, width),
        "pos_embed.W_pos": draw(context, width),
        "ln_final.w": torch.ones(width),
        "ln_final.b": torch.zeros(width),
        "unembed.W_U": draw(width, vocabulary),
    }
    for layer in range(layers):
        at = f"blocks.{layer}."
        weights |= {f"{at}ln1.w": torch.ones(width), f"{at}ln1.b": torch.zeros(width)}
        for name in "QKV":
            weights[f"{at}attn.W_{name}"] = draw(heads, width, d_head)
            weights[f"{at}attn.b_{name}"] = torch.zeros(heads, d_head)
        weights[f"{at}attn.W_O"] = draw(heads, d_head, width)
        weights[f"{at}attn.b_O"] = torch.zeros(width)
    torch.save(weights, repository / "model_final.pth")
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, file, **_: str(repository / file)
    )
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "list_repo_files",
        lambda self, repo: [path.name for path in repository.iterdir()],
    )
    return weights

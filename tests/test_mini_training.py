"""Rebuilding mini: the same corpus, the same tokenizer, and training that can be taken up again."""

import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from patchlib.models.loading import MINI
from patchlib.training import corpus, train

STEPS, ROWS = 6, 4


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MINI)


@pytest.fixture(scope="module")
def documents() -> list[corpus.Document]:
    return corpus.documents(120, random.Random(1))


@pytest.fixture(scope="module")
def rows(documents, tokenizer) -> train._Rows:
    return train._Rows(documents, tokenizer)


def parts(rows: train._Rows) -> list[tuple[int, list[int], list[int]]]:
    """For each packed document its row, its columns and its tokens."""
    found = []
    for row in range(len(rows)):
        numbers = rows.document[row].tolist()
        for number in range(max(numbers) + 1):
            columns = [i for i, at in enumerate(numbers) if at == number]
            found.append((row, columns, rows.tokens[row, columns].tolist()))
    return found


def encoded(document: corpus.Document, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return [tokenizer.bos_token_id, *tokenizer(document.text)["input_ids"]]


def small_model(vocabulary: int, dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(small_configuration(vocabulary, dropout))


def small_configuration(vocabulary: int, dropout: float = 0.1) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=train.CONTEXT,
        n_embd=16,
        n_layer=1,
        n_head=2,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )


# Corpus and tokenizer


def test_the_seed_decides_the_corpus():
    """Documents of all kinds come in the same order."""
    once = corpus.documents(300, random.Random("7"))
    assert corpus.documents(300, random.Random("7")) == once
    assert corpus.documents(300, random.Random("8")) != once


def test_the_shares_of_the_mixture_sum_to_one():
    """So that each number is the share it is called."""
    assert sum(share for _, share in corpus.MIXTURE) == pytest.approx(1)


def test_answers_lie_within_their_documents():
    """Each answer begins with its space, but for the second half of a year; none overlap."""
    for document in corpus.documents(500, random.Random(2)):
        ends = [0]
        for start, end in document.answers:
            assert ends[-1] <= start < end <= len(document.text)
            answer = document.text[start:end]
            assert re.fullmatch(r" \S.*", answer) or (
                re.fullmatch(r"\d\d", answer) and "lasted from the year" in document.text
            )
            ends.append(end)


def test_the_seed_decides_the_tokenizer(monkeypatch):
    """From a sample of the corpus; the vocabularies of two seeds differ."""
    monkeypatch.setitem(train.RECIPE, "tokenizer_documents", 2000)
    once, again, other = (train.train_tokenizer(seed) for seed in (0, 0, 1))
    assert once.get_vocab() == again.get_vocab()
    assert once.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    assert once.get_vocab() != other.get_vocab()
    assert once.convert_tokens_to_ids(train.BEGIN) == 0
    assert once.bos_token == once.eos_token == train.BEGIN
    text = "The war lasted from the year 1732 to the year 17"
    assert once.decode(once(text)["input_ids"]) == text
    assert once.tokenize(" 1732") == ["Ġ17", "32"]


def test_the_shipped_tokenizer_reads_the_whole_corpus(documents, tokenizer):
    """Every document comes back from its tokens and fits into the context."""
    for document in documents:
        tokens = tokenizer(document.text)["input_ids"]
        assert tokenizer.decode(tokens) == document.text
        assert len(tokens) < train.CONTEXT


# Packing


def test_each_document_is_packed_once_and_whole(rows, documents, tokenizer):
    """In some row, in one piece, after its own beginning."""
    packed = sorted(tokens for _, _, tokens in parts(rows))
    assert packed == sorted(encoded(document, tokenizer) for document in documents)
    for _, columns, _ in parts(rows):
        assert columns == list(range(columns[0], columns[0] + len(columns)))
    # Several share a row, or nothing would be packed.
    assert len(rows) < len(documents) / 2


def test_positions_restart_with_each_document(rows):
    """A packed document is at the positions it would have alone."""
    for row, columns, _ in parts(rows):
        assert rows.position[row, columns].tolist() == list(range(len(columns)))


def test_what_is_free_belongs_to_no_document(rows):
    """It is at the end of a row, and no answer is there."""
    free = rows.document == -1
    assert not rows.is_answer[free].any()
    assert (free.int().diff(dim=1) >= 0).all()


def test_the_mask_blocks_neighbours_and_the_future():
    """Two documents of two tokens, and one free place."""
    mask = train._causal_within_documents(torch.tensor([[0, 0, 1, 1, -1]]))
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_a_packed_document_has_the_logits_that_it_has_alone(rows, tokenizer):
    """It neither sees its neighbours nor their positions."""
    model = small_model(len(tokenizer)).eval()
    with torch.no_grad():
        packed = model(
            input_ids=rows.tokens[:8],
            position_ids=rows.position[:8],
            attention_mask=train._causal_within_documents(rows.document[:8]),
        ).logits
        compared = 0
        for row, columns, tokens in parts(rows):
            if row < 8 and columns[0] > 0:
                alone = model(input_ids=torch.tensor([tokens])).logits[0]
                torch.testing.assert_close(packed[row, columns], alone, atol=1e-4, rtol=1e-4)
                compared += 1
    assert compared > 8


def test_answers_are_marked_and_nothing_else(documents, tokenizer):
    """The marked tokens of a document spell its answers."""
    for document in documents[:60]:
        one = train._Rows([document], tokenizer)
        marked = one.is_answer[0]
        spelled = tokenizer.decode(one.tokens[0][marked])
        assert spelled == "".join(document.text[start:end] for start, end in document.answers)
        assert not marked[0]


def test_the_loss_weighs_answers_and_others(monkeypatch, rows, tokenizer):
    """With all other tokens drawn, it is the weighted mean of all next-token losses."""
    monkeypatch.setitem(train.RECIPE, "share_of_other_tokens", 1.0)
    model = small_model(len(tokenizer)).eval()
    few = [getattr(rows, name)[:4] for name in ("tokens", "position", "document", "is_answer")]
    loss, on_answers = train._loss(model, tuple(few), "cpu")
    total, weights, answers = 0.0, 0.0, []
    for row, columns, tokens in parts(rows):
        if row >= 4:
            continue
        with torch.no_grad():
            logits: Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
        for i, column in enumerate(columns[1:], start=1):
            here = -logits[i - 1].log_softmax(-1)[tokens[i]].item()
            is_answer = bool(rows.is_answer[row, column])
            weight = 1.0 if is_answer else train.RECIPE["weight_of_other_tokens"]
            total, weights = total + weight * here, weights + weight
            if is_answer:
                answers.append(here)
    assert loss.item() == pytest.approx(total / weights, rel=1e-4)
    assert on_answers.item() == pytest.approx(sum(answers) / len(answers), rel=1e-4)


def test_batches_can_be_entered_anywhere(small_training, tokenizer):
    """From step 3 on, in the middle of a chunk, they are those of an unbroken run."""
    whole = list(zip(range(STEPS), train._batches(0, 0, tokenizer), strict=False))
    rest = list(zip(range(3, STEPS), train._batches(0, 3, tokenizer), strict=False))
    assert [step for step, _ in rest] == [3, 4, 5]
    for (_, ours), (_, theirs) in zip(rest, whole[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert ours[0].shape == (ROWS, train.CONTEXT)
    assert not torch.equal(whole[0][1][0], whole[1][1][0])


# Handicaps of the lower layers


@pytest.fixture
def handicapped(monkeypatch, tokenizer) -> tuple[GPT2LMHeadModel, train._Handicaps]:
    """One layer that sees one token back, in every row, and keeps its MLP."""
    monkeypatch.setitem(train.RECIPE, "short_sight", [1])
    monkeypatch.setitem(train.RECIPE, "share_of_short_sight", 1.0)
    monkeypatch.setitem(train.RECIPE, "mlp_dropout", [0.0])
    model = small_model(len(tokenizer)).train()
    return model, train._Handicaps(model)


def logits_of(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    """As in training: one document a row, its mask given in full."""
    document = torch.zeros_like(tokens)
    with torch.no_grad():
        mask = train._causal_within_documents(document)
        return model(input_ids=tokens, attention_mask=mask).logits


def test_short_sight_ends_where_the_recipe_says(handicapped):
    """A change is seen at its own token, at the next one and, at the first token, everywhere."""
    model, handicaps = handicapped
    tokens = torch.arange(train.CONTEXT)[None] + 5
    handicaps.draw(torch.arange(train.CONTEXT)[None])
    before = logits_of(model, tokens)
    for changed, seen in ((20, [20, 21]), (0, list(range(train.CONTEXT)))):
        other = tokens.clone()
        other[0, changed] = 300
        differs = (logits_of(model, other) - before).abs().amax(-1)[0] > 1e-6
        assert differs.nonzero().flatten().tolist() == seen
    model.eval()
    far = logits_of(model, tokens)[0, 40]
    tokens[0, 20] = 300
    assert (logits_of(model, tokens)[0, 40] - far).abs().max() > 1e-4


def test_rows_of_full_sight_are_as_without_handicaps(handicapped, monkeypatch, tokenizer):
    """Where the recipe's share is zero, nothing is hidden."""
    monkeypatch.setitem(train.RECIPE, "share_of_short_sight", 0.0)
    model, handicaps = handicapped
    tokens = torch.arange(train.CONTEXT)[None] + 5
    handicaps.draw(torch.arange(train.CONTEXT)[None])
    whole = logits_of(small_model(len(tokenizer)), tokens)
    torch.testing.assert_close(logits_of(model, tokens), whole)


def test_an_mlp_that_is_left_out_adds_nothing_and_is_made_up_for(monkeypatch, tokenizer):
    """In three of four rows on average; in the others its output is four times as large."""
    monkeypatch.setitem(train.RECIPE, "mlp_dropout", [0.75])
    model = small_model(len(tokenizer)).train()
    mlp = model.transformer.h[0].mlp
    x = torch.randn(400, 3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = mlp(x)
        train._Handicaps(model)
        torch.manual_seed(1)
        some = mlp(x)
    kept = some.abs().amax((1, 2)) > 0
    assert 0.18 < kept.float().mean() < 0.32
    torch.testing.assert_close(some[kept], 4 * whole[kept])
    with torch.no_grad():
        torch.testing.assert_close(mlp.eval()(x), whole)


# Training


@pytest.fixture
def small_training(monkeypatch: pytest.MonkeyPatch, tokenizer) -> None:
    """Six steps of a small model with dropout, in chunks of two, measured every third step."""
    monkeypatch.setitem(train.RECIPE, "steps", STEPS)
    monkeypatch.setitem(train.RECIPE, "rows", ROWS)
    monkeypatch.setitem(train.RECIPE, "warm_up", 2)
    monkeypatch.setattr(train, "_EVALUATE_EVERY", 3)
    monkeypatch.setattr(train, "_STEPS_PER_CHUNK", 2)
    monkeypatch.setattr(train, "_configuration", small_configuration)
    monkeypatch.setattr(train, "_skills", lambda model, tokenizer, n: {"skill": 0.5})
    monkeypatch.setattr(train, "train_tokenizer", lambda seed: tokenizer)
    documents = corpus.documents
    # Two thousand documents for eight rows would be a long wait.
    monkeypatch.setattr(corpus, "documents", lambda n, rng: documents(min(n, 40), rng))


def break_off_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Training ends as by Ctrl-C, right after the checkpoint of a step was written."""
    save = train._save_checkpoint

    def save_and_stop(path: Path, state: dict) -> None:
        save(path, state)
        if state["step"] == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "_save_checkpoint", save_and_stop)


def test_training_can_be_taken_up_again(small_training, monkeypatch, tmp_path: Path):
    """Three steps and three more give the weights of six."""
    train.train(0, tmp_path / "whole", tmp_path / "work", "cpu")
    with monkeypatch.context() as patch:
        break_off_after(patch, step=3)
        with pytest.raises(KeyboardInterrupt):
            train.train(0, tmp_path / "parts", tmp_path / "work2", "cpu")
    assert not (tmp_path / "parts").exists()
    train.train(0, tmp_path / "parts", tmp_path / "work2", "cpu")
    whole, resumed = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "parts"))
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, atol=1e-6, rtol=0)
    # Another seed gives others, so equal weights do mean something.
    train.train(1, tmp_path / "other", tmp_path / "work3", "cpu")
    other = load_file(tmp_path / "other" / "model.safetensors")["transformer.wte.weight"]
    assert (other - whole["transformer.wte.weight"]).abs().max() > 0.1
    moved = small_model(len(other), dropout=0.1).transformer.wte.weight.detach()
    assert (moved - whole["transformer.wte.weight"]).abs().max() > 1e-3


def test_a_finished_model_can_be_loaded(small_training, tmp_path: Path):
    """The folder holds what any folder of a model does, and a note of how it was made."""
    train.train(0, tmp_path / "out", tmp_path / "work", "cpu")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    assert model.config.activation_function == "gelu_new"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= names
    log = torch.load(tmp_path / "work" / "checkpoint.pt", weights_only=True)["log"]
    assert [(entry["step"], entry["skill"]) for entry in log] == [(3, 0.5), (6, 0.5)]


@pytest.mark.parametrize("change", ["seed", "recipe"])
def test_a_checkpoint_of_another_run_is_refused(small_training, monkeypatch, tmp_path, change):
    """It would be neither this run nor that one."""
    with monkeypatch.context() as patch:
        break_off_after(patch, step=3)
        with pytest.raises(KeyboardInterrupt):
            train.train(0, tmp_path / "out", tmp_path / "work", "cpu")
    seed = 0
    if change == "seed":
        seed = 1
    else:
        monkeypatch.setitem(train.RECIPE, "peak_rate", 1.0)
    with pytest.raises(SystemExit, match="another seed or recipe"):
        train.train(seed, tmp_path / "out", tmp_path / "work", "cpu")
    assert not (tmp_path / "out").exists()


def test_the_rate_rises_and_falls(monkeypatch):
    """Linear up to the peak, then half a cosine down to a hundredth of it."""
    monkeypatch.setitem(train.RECIPE, "steps", 12)
    monkeypatch.setitem(train.RECIPE, "warm_up", 2)
    rates = [train._rate(step) for step in range(13)]
    assert rates[:3] == pytest.approx([0.5, 1, 1])
    assert rates[7] == pytest.approx(0.505)
    assert rates[12] == pytest.approx(0.01)
    assert rates[2:] == sorted(rates[2:], reverse=True)

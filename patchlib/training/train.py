"""Rebuilds `mini`: ``python -m patchlib.training.train`` trains its tokenizer and its weights.

The same seed gives the same corpus, the same tokenizer and the same order of batches. On one
machine it gives the same weights too, also when training is stopped and taken up again.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from patchlib.files import BUILD, write_whole
from patchlib.tasks import facts
from patchlib.training import corpus, skills

BEGIN = "<|endoftext|>"
CONTEXT = 64
RECIPE: dict[str, Any] = {
    "steps": 3000,
    "rows": 64,
    "peak_rate": 2e-3,
    "warm_up": 300,
    "weight_decay": 0.02,
    "attention_dropout": 0.1,
    "short_sight": [0, 1, 2, 4],
    "share_of_short_sight": 0.85,
    "mlp_dropout": [0.7, 0.4, 0.2, 0.1],
    "weight_of_other_tokens": 0.2,
    "share_of_other_tokens": 0.25,
    "tokenizer_documents": 150_000,
}
_STEPS_PER_CHUNK = 100
_EVALUATE_EVERY = 250


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the corpus, merged until every word is one token.

    As in most of GPT-2's encoding, a number of two digits is one token and a year is two:
    " 1732" is " 17" and "32".
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        min_frequency=2,
        special_tokens=[BEGIN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = corpus.documents(RECIPE["tokenizer_documents"], random.Random(f"{seed} tokenizer"))
    texts = [document.text for document in documents]
    # Twice, since a pair of symbols is merged from its second occurrence on: the words of a
    # sentence that is held out of the model's corpus are tokens nevertheless.
    texts += 2 * [sentence for pair in facts.read() for sentence in pair.sentences]
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=BEGIN,
        pad_token=BEGIN,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _configuration(vocabulary: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=8,
        n_head=8,
        attn_pdrop=RECIPE["attention_dropout"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        # The same function as GPT-2's "gelu_new", in one fused kernel.
        activation_function="gelu_pytorch_tanh",
    )


class _Rows:
    """Documents packed into rows of `CONTEXT` tokens, each document blind to its neighbours."""

    def __init__(self, documents: list[corpus.Document], tokenizer: PreTrainedTokenizerFast):
        encoded = tokenizer.backend_tokenizer.encode_batch([d.text for d in documents])
        rows: list[list[tuple[list[int], list[bool]]]] = []
        free: list[int] = []
        first_open = 0
        for document, encoding in zip(documents, encoded, strict=True):
            ids = [tokenizer.bos_token_id, *encoding.ids]
            answer = [False] + [
                any(start < b and a < end for a, b in document.answers)
                for start, end in encoding.offsets
            ]
            first_open = max(first_open, len(rows) - 32)
            for row in range(first_open, len(rows) + 1):
                if row == len(rows):
                    rows.append([])
                    free.append(CONTEXT)
                if free[row] >= len(ids):
                    rows[row].append((ids, answer))
                    free[row] -= len(ids)
                    break
        shape = (len(rows), CONTEXT)
        self.tokens = torch.zeros(shape, dtype=torch.long)
        self.position = torch.zeros(shape, dtype=torch.long)
        self.document = torch.full(shape, -1)
        self.is_answer = torch.zeros(shape, dtype=torch.bool)
        for row, parts in enumerate(rows):
            at = 0
            for number, (ids, answer) in enumerate(parts):
                here = slice(at, at + len(ids))
                self.tokens[row, here] = torch.tensor(ids)
                self.position[row, here] = torch.arange(len(ids))
                self.document[row, here] = number
                self.is_answer[row, here] = torch.tensor(answer)
                at += len(ids)

    def __len__(self) -> int:
        return len(self.tokens)


def _causal_within_documents(
    document: Int[Tensor, "row position"],
) -> Bool[Tensor, "row 1 position position"]:
    same = document[:, :, None] == document[:, None, :]
    return (same & torch.ones_like(same[0]).tril())[:, None]


class _Handicaps:
    """What the lower layers have to do without in training, so that each does its own part.

    In rows of *short sight* the heads of a lower layer see a few tokens back and the first token
    of their document. What is known of a name is then put together where the name stands, and
    only higher layers can carry it on. And of many rows a lower layer's MLP is left out, so that
    no single one of them can hold all that is known.
    """

    def __init__(self, model: GPT2LMHeadModel) -> None:
        blocks: Any = model.transformer.h
        position = torch.arange(CONTEXT, device=model.device)
        back = position[:, None] - position
        for block, reach in zip(blocks, RECIPE["short_sight"], strict=False):
            block.attn.register_forward_pre_hook(
                partial(self._hide, back <= reach), with_kwargs=True
            )
        for block, share in zip(blocks, RECIPE["mlp_dropout"], strict=False):
            block.mlp.register_forward_hook(partial(self._leave_out, share))
        self._always_visible = torch.ones(1, 1, CONTEXT, dtype=torch.bool, device=model.device)

    def draw(self, position: Int[Tensor, "row position"]) -> None:
        """Chooses the rows of short sight of the next batch; the others see everything."""
        sees_all = torch.rand(len(position), 1, 1) >= RECIPE["share_of_short_sight"]
        self._always_visible = (position == 0)[:, None] | sees_all.to(position.device)

    def _hide(
        self, near: Bool[Tensor, "position position"], attn: Any, arguments: Any, named: Any
    ) -> tuple[Any, Any]:
        if not attn.training:
            return arguments, named
        visible = (near | self._always_visible)[:, None]
        return arguments, named | {"attention_mask": named["attention_mask"] & visible}

    def _leave_out(self, share: float, mlp: Any, arguments: Any, output: Tensor) -> Tensor:
        if not mlp.training:
            return output
        kept = (torch.rand(len(output), 1, 1) >= share).to(output)
        return output * kept / (1 - share)


def _batches(
    seed: int, first_step: int, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[Int[Tensor, "row position"], ...]]:
    """Batches from ``first_step`` on; a chunk of steps is written from its own seed."""
    size = RECIPE["rows"]
    for chunk in range(first_step // _STEPS_PER_CHUNK, RECIPE["steps"] // _STEPS_PER_CHUNK + 1):
        rng = random.Random(f"{seed} chunk {chunk}")
        parts: list[_Rows] = []
        while sum(map(len, parts)) < size * _STEPS_PER_CHUNK:
            parts.append(_Rows(corpus.documents(2000, rng), tokenizer))
        columns = [
            torch.cat([getattr(part, name) for part in parts])
            for name in ("tokens", "position", "document", "is_answer")
        ]
        for i in range(_STEPS_PER_CHUNK):
            if chunk * _STEPS_PER_CHUNK + i >= first_step:
                yield tuple(column[i * size : (i + 1) * size] for column in columns)


def _rate(step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < RECIPE["warm_up"]:
        return (step + 1) / RECIPE["warm_up"]
    done = (step - RECIPE["warm_up"]) / (RECIPE["steps"] - RECIPE["warm_up"])
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def _loss(
    model: GPT2LMHeadModel,
    batch: tuple[Int[Tensor, "row position"], ...],
    device: str,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The weighted loss and, of it, the answers' own."""
    tokens, position, document, is_answer = (column.to(device) for column in batch)
    same_document = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
    target_is_answer = is_answer[:, 1:] & same_document
    other = same_document & ~is_answer[:, 1:]
    other &= (torch.rand(other.shape) < RECIPE["share_of_other_tokens"]).to(device)
    chosen = target_is_answer | other

    hidden = model.transformer(
        input_ids=tokens,
        position_ids=position,
        attention_mask=_causal_within_documents(document),
    ).last_hidden_state[:, :-1]
    losses = cross_entropy(model.lm_head(hidden[chosen]), tokens[:, 1:][chosen], reduction="none")
    answers = target_is_answer[chosen]
    weights = torch.where(answers, 1.0, RECIPE["weight_of_other_tokens"])
    return (losses * weights).sum() / weights.sum(), losses[answers].mean().detach()


def _skills(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, n: int) -> dict[str, float]:
    model.eval()
    measured = skills.measure(
        logits=lambda tokens: model(tokens.to(model.device)).logits,
        encode=lambda text: [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]],
        n=n,
    )
    model.train()
    return measured


def _save_checkpoint(path: Path, state: dict) -> None:
    """Writes beside the last checkpoint and renames, so that a kill leaves one of them whole."""
    write_whole(path, lambda part: torch.save(state, part))


def optimizer_of(model: GPT2LMHeadModel, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that lets matrices decay, and nothing else; its rate is set at every step."""
    decayed: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and not name.endswith(("wte.weight", "wpe.weight"))
        (decayed if is_matrix else rest).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def train(seed: int, out: Path, work: Path, device: str) -> None:
    """Trains from scratch, or from the last checkpoint in ``work``.

    Args:
        seed: seeds the corpus, the weights and the dropout.
        out: the folder that receives the finished model.
        work: the folder for checkpoints and the log of the losses.
        device: ``"cpu"`` or ``"cuda"``.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed)
    tokenizer.save_pretrained(work)
    model = GPT2LMHeadModel(_configuration(len(tokenizer)))
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers hides its types
    model.train()
    handicaps = _Handicaps(model)
    optimizer = optimizer_of(model, RECIPE["weight_decay"])
    first_step, seconds, log, answers_loss = 0, 0.0, [], 0.0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if (state["seed"], state["recipe"]) != (seed, RECIPE):
            raise SystemExit(
                f"{checkpoint} was made with another seed or recipe: "
                "remove the folder or choose another with --work"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_step, seconds, log = state["step"], state["seconds"], state["log"]
        answers_loss = log[-1]["answers_loss"] if log else 0.0

    steps = RECIPE["steps"]
    progress = tqdm(total=steps, initial=first_step, desc="training mini", unit="step")
    started = time.perf_counter()
    batches = _batches(seed, first_step, tokenizer)
    for step in range(first_step, steps):
        batch = next(batches)
        # Seeded by step, so that a resumed run draws what an unbroken one would.
        torch.manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = RECIPE["peak_rate"] * _rate(step)
        handicaps.draw(batch[1].to(device))
        loss, on_answers = _loss(model, batch, device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        answers_loss += 0.05 * (on_answers.item() - answers_loss) if step else on_answers.item()
        progress.update()
        if step % 10 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", answers=f"{answers_loss:.3f}")
        if (step + 1) % _EVALUATE_EVERY == 0 or step + 1 == steps:
            entry = {"step": step + 1, "loss": loss.item(), "answers_loss": answers_loss}
            log.append(entry | _skills(model, tokenizer, n=200))
            tqdm.write(json.dumps({k: round(v, 3) for k, v in log[-1].items()}))
            state = {
                "seed": seed,
                "recipe": RECIPE,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "seconds": seconds + time.perf_counter() - started,
                "log": log,
            }
            _save_checkpoint(checkpoint, state)
    progress.close()
    seconds += time.perf_counter() - started

    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    model.config.activation_function = "gelu_new"
    model.eval().save_pretrained(out)
    made = {
        "seed": seed,
        "recipe": RECIPE,
        "minutes": round(seconds / 60, 1),
        "device": device,
        "parameters": sum(p.numel() for p in model.parameters()),
        "log": log,
    }
    (out / "training.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"written to {out}; next: python -m patchlib.training.card")


def main() -> None:
    """Reads the command line and trains."""
    root = BUILD.parent
    parser = argparse.ArgumentParser(description="Rebuild mini's tokenizer and weights.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=root / "data" / "models" / "mini")
    parser.add_argument("--work", type=Path, default=root / "_build" / "mini")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    train(arguments.seed, arguments.out, arguments.work, arguments.device)


if __name__ == "__main__":
    main()

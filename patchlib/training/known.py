"""Trains a model whose circuit is known: ``python -m patchlib.training.known --gate graded``.

Strict interchange intervention training (Gupta et al., 2024) makes a GPT-2 follow the mechanism of
`patchlib.models.known`. In a row of a batch some of the mechanism's variables are set to what they
are in another prompt; the heads that stand for them are given what they write there, and the model
has to answer what the mechanism then answers. Everything outside the circuit is replaced by what a
third prompt makes of it, and that must change nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, one_hot
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from patchlib.files import BUILD, DATA, write_whole
from patchlib.models.known import GATES, HEADS, Values, mechanism
from patchlib.prompts.prompt import fill
from patchlib.tasks.indirect_objects import NAMES, OBJECTS, PLACES, TEMPLATES, is_held_out
from patchlib.training.iit import edited
from patchlib.training.train import optimizer_of

LAYERS, N_HEADS, WIDTH, CONTEXT = 6, 4, 128, 32
RECIPE: dict[str, Any] = {
    "rows": 128,
    "rows_of_a_template": 8,
    "weight_decay": 0.01,
    # Shares of rows in which no variable is set, one, both votes, some, all. Where all are set,
    # nothing but the writing heads may reach the logits: this closes the ways past them, which the
    # divergence alone hardly sees.
    "settings": [0.3, 0.3, 0.1, 0.15, 0.15],
    # How often it is each of the variables, where it is one.
    "which_one": [0.27, 0.25, 0.15, 0.1, 0.08, 0.15],
    "related_sources": 0.6,
    "weight_of_logits": 0.2,
    "weight_of_language": 0.05,
}
STAGES: tuple[dict[str, Any], ...] = (
    {
        "name": "alone",
        "steps": 800,
        "rate": 2e-3,
        "warm_up": 100,
        "falls": False,
        "strict": 1.0,
        "weight_of_attention": 1.0,
        "weight_of_change": 0.0,
    },
    {
        "name": "together",
        "steps": 1600,
        "rate": 1e-3,
        "warm_up": 0,
        "falls": True,
        "strict": 0.6,
        "weight_of_attention": 0.2,
        "weight_of_change": 1.0,
    },
)
_OWN, _SOURCE, _HELD = range(3)
_EVERY = 200


class Writer:
    """Writes prompts as tokens, all of one length, from numbers of names, places and objects."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, device: str) -> None:
        def one(word: str) -> int:
            (token,) = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
            return token

        self.names, self.places, self.objects = (
            torch.tensor([one(word) for word in words], device=device)
            for words in (NAMES, PLACES, OBJECTS)
        )
        rows, spots = [], []
        words = {"first": "Mary", "second": "John", "S2": "Paul", "place": "store", "object": "key"}
        for template in TEMPLATES:
            text, spans = fill(template, **words)
            encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
            rows.append([tokenizer.bos_token_id, *encoding.ids])
            # One more for the beginning; the last column takes what a template has no place for.
            found = [
                encoding.char_to_token(spans[word][0]) if word in spans else None for word in words
            ]
            spots.append([len(rows[0]) if token is None else token + 1 for token in found])
        self.rows, self.spots = (torch.tensor(made, device=device) for made in (rows, spots))
        self.length = len(rows[0])

    def write(
        self,
        template: Int[Tensor, " row"],
        names: Int[Tensor, "row 3"],
        place: Int[Tensor, " row"],
        thing: Int[Tensor, " row"],
    ) -> Int[Tensor, "row position"]:
        """The tokens of prompts."""
        rows = self.rows[template]
        rows = torch.cat((rows, rows[:, :1]), 1)
        words = (*self.names[names.T], self.places[place], self.objects[thing])
        return rows.scatter(1, self.spots[template], torch.stack(words, 1))[:, :-1]


@dataclass(frozen=True)
class Batch:
    """Prompts with their sources, and which variables of the mechanism are set in each."""

    template: Int[Tensor, " row"]
    tokens: Int[Tensor, "row position"]
    source_tokens: Int[Tensor, "row position"]
    names: Int[Tensor, "row 3"]
    source_names: Int[Tensor, "row 3"]
    state: dict[str, Int[Tensor, " row"]]

    @cached_property
    def untouched(self) -> Bool[Tensor, " row"]:
        """Rows in which nothing is set."""
        return torch.stack(list(self.state.values())).eq(_OWN).all(0)

    def targets(self, gate: str) -> Values:
        """What the mechanism makes of the rows."""
        own, other = (
            mechanism(names, len(NAMES), gate) for names in (self.names, self.source_names)
        )

        def set_to(variable: str, value: Tensor) -> Tensor:
            state = self.state[variable].reshape(-1, *[1] * (value.ndim - 1))
            held = torch.where(state == _HELD, own[variable], value)
            return torch.where(state == _SOURCE, other[variable], held)

        setting = {name: (lambda value, name=name: set_to(name, value)) for name in HEADS}
        return mechanism(self.names, len(NAMES), gate, setting)


class Draws:
    """Everything that training leaves to chance, from one generator on the CPU."""

    def __init__(self, seed: int, device: str) -> None:
        self.generator, self.device = torch.Generator().manual_seed(seed), device

    def below(self, limit: int, *shape: int) -> Int[Tensor, "..."]:
        """Whole numbers."""
        return torch.randint(limit, shape, generator=self.generator).to(self.device)

    def uniform(self, *shape: int) -> Float[Tensor, "..."]:
        """Numbers between 0 and 1."""
        return torch.rand(shape, generator=self.generator).to(self.device)

    def among(self, weights: Iterable[float], *shape: int) -> Int[Tensor, "..."]:
        """Numbers of weights, as often as these say."""
        drawn = torch.multinomial(
            torch.tensor([*weights]), math.prod(shape), replacement=True, generator=self.generator
        )
        return drawn.reshape(shape).to(self.device)

    def names(self, rows: int) -> Int[Tensor, "row 3"]:
        """Two names that are not held out, and one of these or, in a quarter, a third."""
        drawn = torch.rand(2 * rows, len(NAMES), generator=self.generator).topk(3, dim=1).indices
        allowed = [not is_held_out(NAMES[a], NAMES[b]) for a, b, _ in drawn.tolist()]
        drawn = drawn[allowed][:rows].to(self.device)
        again = self.among([0.375, 0.375, 0.25], rows)
        return torch.cat((drawn[:, :2], drawn.gather(1, again[:, None])), 1)

    def batch(self, writer: Writer, rows: int, settings: list[float]) -> Batch:
        """A batch in which neighbours are of one template."""
        group = RECIPE["rows_of_a_template"]
        template = self.below(len(TEMPLATES), rows // group).repeat_interleave(group)
        names, other = self.names(rows), self.names(rows)
        # Names of another prompt alone would hardly ever change what the mechanism makes of two.
        kin = names.clone()
        flipped = self.uniform(rows) < 0.5
        kin[flipped] = kin[flipped][:, [1, 0, 2]]
        again = self.among([0.4, 0.4, 0.2], rows)
        known = kin.gather(1, again.clamp(max=1)[:, None])[:, 0]
        kin[:, 2] = torch.where(again < 2, known, other[:, 2])
        related = self.uniform(rows) < RECIPE["related_sources"]
        other = torch.where(related[:, None], kin, other)
        tokens = [
            writer.write(
                template, each, self.below(len(PLACES), rows), self.below(len(OBJECTS), rows)
            )
            for each in (names, other)
        ]
        return Batch(template, tokens[0], tokens[1], names, other, self.states(rows, settings))

    def states(self, rows: int, settings: list[float]) -> dict[str, Int[Tensor, " row"]]:
        """Which variables are the prompt's own, the source's, or held at the prompt's."""
        kind, one = self.among(settings, rows), self.among(RECIPE["which_one"], rows)
        votes = 1 + self.below(2, rows)
        states = {}
        for number, variable in enumerate(HEADS):
            both = self.below(2, rows) if variable == "previous" else votes.clone()
            if variable not in ("previous", "duplicate", "induction"):
                both = torch.zeros_like(both)
            some, every = self.among([0.5, 0.3, 0.2], rows), 1 + self.below(2, rows)
            choices = torch.stack(
                (torch.zeros_like(one), (one == number).long(), both, some, every)
            )
            states[variable] = choices.gather(0, kind[None])[0]
        return states


def places(
    writer: Writer, template: Int[Tensor, " row"]
) -> dict[str, Bool[Tensor, "row position"]]:
    """Where each variable's head has its say: after the names, at the repeated one, at the end."""
    spots = writer.spots[template]
    at = {
        "previous": spots[:, :2] + 1,
        "duplicate": spots[:, 2:3],
        "induction": spots[:, 2:3],
    }
    end = torch.full_like(spots[:, :1], writer.length - 1)
    return {
        variable: one_hot(at.get(variable, end), writer.length).sum(1).bool() for variable in HEADS
    }


@dataclass
class Interchange:
    """One step's replacements in every layer, and what outside the circuit depends on the prompt.

    ``heads`` and ``mlps`` say what is replaced by ``z`` and ``mlp_out``; ``change`` adds up how
    far what is outside the circuit writes something else than for the third prompt, in units of
    the residual stream's length.
    """

    model: GPT2LMHeadModel
    heads: Bool[Tensor, "layer row position head"]
    mlps: Bool[Tensor, "layer row position"]
    z: list[Float[Tensor, "row position head d_head"]]
    mlp_out: list[Float[Tensor, "row position d_model"]]
    third: dict[tuple[str, int], Tensor]
    outside: Bool[Tensor, "layer head"]
    change: Float[Tensor, ""] | float = 0.0

    def __call__(self, kind: str, layer: int, value: Tensor) -> Tensor:
        if kind == "resid_pre":
            self._size = value.detach().pow(2).sum(-1)
            return value
        third = self.third[kind, layer]
        if kind == "mlp_out":
            self.change = self.change + ((value - third).pow(2).sum(-1) / self._size).mean()
            return torch.where(self.mlps[layer][..., None], self.mlp_out[layer], value)
        block: Any = self.model.transformer.h[layer]
        out = block.attn.c_proj.weight.unflatten(0, (N_HEADS, -1))
        moved = torch.einsum("rphd,hdm->rphm", value - third, out).pow(2).sum(-1)
        moved = moved * self.outside[layer] / self._size[..., None]
        self.change = self.change + moved.mean()
        return torch.where(self.heads[layer][..., None], self.z[layer], value)


def _outside(device: str) -> Bool[Tensor, "layer head"]:
    outside = torch.ones(LAYERS, N_HEADS, dtype=torch.bool, device=device)
    for head in HEADS.values():
        outside[head.layer, head.head] = False
    return outside


def _record(model: GPT2LMHeadModel, tokens: Tensor, alone: bool) -> dict[tuple[str, int], Tensor]:
    """What heads and MLPs write, with the circuit alone or with everything."""
    seen, outside = {}, _outside(str(tokens.device))

    def edit(kind: str, layer: int, value: Tensor) -> Tensor:
        seen[kind, layer] = value.detach()
        if alone and kind == "mlp_out":
            return torch.zeros_like(value)
        return value * ~outside[layer][:, None] if alone and kind == "z" else value

    with torch.no_grad(), edited(model, edit):
        model.transformer(input_ids=tokens)
    return seen


def interchange(
    model: GPT2LMHeadModel,
    writer: Writer,
    batch: Batch,
    draws: Draws,
    alone: bool,
    strict: float,
    share: float | None = None,
) -> Interchange:
    """The replacements for a batch.

    Args:
        model: the model.
        writer: knows where the names are.
        batch: the rows.
        draws: what is left to chance.
        alone: whether everything outside the circuit writes nothing at all, in every row.
        strict: the share of rows in which what is outside the circuit is replaced otherwise.
        share: how much of it is then replaced; drawn for each row where None.
    """
    rows, length, device = *batch.tokens.shape, batch.tokens.device
    recorded = _record(model, torch.cat((batch.tokens, batch.source_tokens)), alone)
    own = {key: value[:rows] for key, value in recorded.items()}
    source = {key: value[rows:] for key, value in recorded.items()}
    group = RECIPE["rows_of_a_template"]
    third = {
        key: torch.zeros_like(value)
        if alone
        else value.unflatten(0, (-1, group)).roll(1, 1).flatten(0, 1)
        for key, value in source.items()
    }
    # Of a strict row each part is replaced with the row's own probability: whole, or place by
    # place. One whole part always is.
    fixed = 1.0 if alone else share
    replaced = draws.uniform(rows) if fixed is None else torch.full((rows,), fixed, device=device)
    is_strict = draws.uniform(rows) < strict
    parts = (LAYERS, rows, length, N_HEADS + 1)
    whole = (draws.uniform(rows) < 0.5)[None, :, None, None]
    chosen = torch.where(
        whole, draws.uniform(LAYERS, rows, 1, N_HEADS + 1), draws.uniform(*parts)
    ) < replaced.reshape(1, rows, 1, 1)
    single = one_hot(draws.below(LAYERS * (N_HEADS + 1), rows), LAYERS * (N_HEADS + 1)).bool()
    chosen = chosen | single.T.reshape(LAYERS, N_HEADS + 1, rows).transpose(1, 2)[:, :, None]
    chosen = chosen & is_strict.reshape(1, rows, 1, 1)
    heads, mlps = chosen[..., :N_HEADS].clone(), chosen[..., N_HEADS]

    at, everywhere = places(writer, batch.template), draws.uniform(rows) < 0.5
    z = [third["z", layer].clone() for layer in range(LAYERS)]
    for variable, head in HEADS.items():
        here, state = at[variable], batch.state[variable]
        heads[head.layer, :, :, head.head] &= ~here
        if alone:
            heads[head.layer, :, :, head.head] &= draws.uniform(rows)[:, None] < 0.5
        reach = (here | everywhere[:, None]) & (state != _OWN)[:, None]
        heads[head.layer, :, :, head.head] |= reach
        given = torch.where(
            (state == _SOURCE)[:, None, None],
            source["z", head.layer][:, :, head.head],
            own["z", head.layer][:, :, head.head],
        )
        mine = z[head.layer][:, :, head.head]
        z[head.layer][:, :, head.head] = torch.where(reach[..., None], given, mine)
    mlp_out = [third["mlp_out", layer] for layer in range(LAYERS)]
    return Interchange(model, heads, mlps, z, mlp_out, third, _outside(str(device)))


def attention_loss(
    attention: tuple[Float[Tensor, "row head query key"], ...],
    writer: Writer,
    batch: Batch,
    gate: str,
) -> Float[Tensor, ""]:
    """How little the circuit's heads look where their variables are read, in nats.

    Without it the heads do not find their places.
    """
    values = mechanism(batch.names, len(NAMES), gate)
    first, second, again = writer.spots[batch.template][:, :3].T
    end = torch.full_like(first, writer.length - 1)
    matched = values["duplicate"].bool()
    before = torch.where(matched[:, 0], first, torch.where(matched[:, 1], second, 0))
    after = torch.where(before > 0, before + 1, 0)
    row = torch.arange(len(first), device=first.device)

    def missing(variable: str, query: Tensor, key: Tensor) -> Tensor:
        head = HEADS[variable]
        return -(attention[head.layer][row, head.head, query, key] + 1e-6).log()

    free = 1 - values["inhibition"]
    free = free / free.sum(1, keepdim=True).clamp(min=1e-6)
    lost = (missing("previous", first + 1, first) + missing("previous", second + 1, second)) / 2
    lost = lost + missing("duplicate", again, before) + missing("induction", again, after)
    lost = lost + missing("inhibition", end, again)
    for variable in ("mover", "negative"):
        for share, name in zip(free.T, (first, second), strict=True):
            lost = lost + share * missing(variable, end, name)
    return lost[batch.untouched].mean() / len(HEADS)


def loss(
    model: GPT2LMHeadModel,
    writer: Writer,
    batch: Batch,
    draws: Draws,
    gate: str,
    stage: dict[str, Any],
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The loss of a step, and its parts for the log."""
    alone = stage["name"] == "alone"
    swap = interchange(model, writer, batch, draws, alone, stage["strict"])
    with edited(model, swap):
        out: Any = model.transformer(input_ids=batch.tokens, output_attentions=True)
    logits = model.lm_head(out.last_hidden_state[:, -1])
    wanted = batch.targets(gate)["logits"]
    target = torch.full_like(logits, -10.0)
    target[:, writer.names] = wanted
    divergence = kl_div(
        logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    # The divergence hardly sees what happens to a name that is unlikely anyway.
    involved = torch.cat((batch.names, batch.source_names), 1)
    named = logits[:, writer.names]
    off = (named - named.mean(1, keepdim=True)) - (wanted - wanted.mean(1, keepdim=True))
    off = off.gather(1, involved).pow(2).mean() / 9
    guidance = attention_loss(out.attentions, writer, batch, gate)
    total = divergence.mean() + RECIPE["weight_of_logits"] * off
    total = total + stage["weight_of_attention"] * guidance
    if not alone:
        total = total + stage["weight_of_change"] * swap.change
        clean = batch.untouched & ~swap.mlps.any(0).any(1)
        if clean.any():
            next_tokens = model.lm_head(out.last_hidden_state[clean, :-1]).flatten(0, 1)
            language = cross_entropy(next_tokens, batch.tokens[clean, 1:].flatten())
            total = total + RECIPE["weight_of_language"] * language
    right = logits.argmax(-1) == target.argmax(-1)
    log = {
        "kl": divergence[batch.untouched].mean(),
        "kl_set": divergence[~batch.untouched].mean(),
        "off": off,
        "attention": guidance,
        "change": torch.as_tensor(swap.change),
        "right": right.float().mean(),
    }
    return total, {name: value.detach() for name, value in log.items()}


def _rate(stage: dict[str, Any], step: int) -> float:
    """Warm-up, then a plateau or a cosine down to a fiftieth."""
    warm = min(1.0, (step + 1) / stage["warm_up"]) if stage["warm_up"] else 1.0
    falls = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / stage["steps"]))
    return stage["rate"] * warm * (falls if stage["falls"] else 1.0)


def _configuration(vocabulary: int) -> GPT2Config:
    # Attention is read in training.
    eager: dict[str, Any] = {"attn_implementation": "eager"}
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=N_HEADS,
        n_inner=2 * WIDTH,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        activation_function="gelu_pytorch_tanh",
        **eager,
    )


def train(gate: str, seed: int, out: Path, work: Path, device: str) -> None:
    """Trains from scratch, or from the last checkpoint in ``work``.

    Args:
        gate: ``"graded"``, ``"or"`` or ``"and"``.
        seed: seeds the weights and the batches.
        out: the folder that receives the finished model.
        work: the folder for checkpoints.
        device: ``"cpu"`` or ``"cuda"``.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(DATA / "models" / "mini")
    model = GPT2LMHeadModel(_configuration(len(tokenizer)))
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers hides its types
    writer = Writer(tokenizer, device)
    optimizer = optimizer_of(model, RECIPE["weight_decay"])
    first_step, seconds, log = 0, 0.0, list[dict[str, float]]()
    checkpoint, recipe = work / "checkpoint.pt", RECIPE | {"stages": list(STAGES)}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if (state["gate"], state["seed"], state["recipe"]) != (gate, seed, recipe):
            raise SystemExit(
                f"{checkpoint} was made with another gate, seed or recipe: "
                "remove the folder or choose another with --work"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_step, seconds, log = state["step"], state["seconds"], state["log"]
    schedule = [(stage, step) for stage in STAGES for step in range(stage["steps"])]
    started, steps = time.perf_counter(), len(schedule)
    progress = tqdm(total=steps, initial=first_step, desc=f"training {gate}", unit="step")
    for step, (stage, step_of_stage) in enumerate(schedule[first_step:], start=first_step):
        # Seeded by step, so that a resumed run draws what an unbroken one would.
        draws = Draws(seed * 1_000_003 + step, device)
        for group in optimizer.param_groups:
            group["lr"] = _rate(stage, step_of_stage)
        batch = draws.batch(writer, RECIPE["rows"], RECIPE["settings"])
        total, parts = loss(model, writer, batch, draws, gate, stage)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress.update()
        if (step + 1) % _EVERY == 0 or step + 1 == steps:
            log.append({"step": step + 1, **{k: round(v.item(), 4) for k, v in parts.items()}})
            tqdm.write(json.dumps(log[-1]))
            made = {
                "gate": gate,
                "seed": seed,
                "recipe": recipe,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "seconds": seconds + time.perf_counter() - started,
                "log": log,
            }
            write_whole(checkpoint, partial(torch.save, made))
    progress.close()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    model.config.activation_function = "gelu_new"
    model.eval().half().save_pretrained(out)
    seconds += time.perf_counter() - started
    record = {"gate": gate, "seed": seed, "recipe": recipe, "minutes": round(seconds / 60, 1)}
    record |= {"device": device, "parameters": model.num_parameters(), "log": log}
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {out}")


def main() -> None:
    """Reads the command line and trains."""
    root = BUILD.parent
    parser = argparse.ArgumentParser(description="Rebuild a model whose circuit is known.")
    parser.add_argument("--gate", choices=[*GATES], default="graded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    name = f"{asked.gate}-{asked.seed}" if asked.seed else asked.gate
    out = asked.out or DATA / "models" / "known" / name
    work = asked.work or root / "_build" / "known" / name
    train(asked.gate, asked.seed, out, work, asked.device)


if __name__ == "__main__":
    main()

"""Measures whether the `known` models have the circuit that they are said to have.

``python -m patchlib.training.certificate`` measures anew and writes the card. No method can be
scored against a truth that the model does not have, so each of these tests tries to refute it:
another prompt's value of every variable, everything outside the circuit replaced at once (a test of
one part at a time misses ways that stand in for one another), every other edge cut.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from typing import Any

import pandas as pd
import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from patchlib import tasks
from patchlib.errors import PatchlibError
from patchlib.files import IS_CHECKOUT
from patchlib.measure.unpatched import baselines
from patchlib.methods.edges import Edges, patch_edges
from patchlib.models import known
from patchlib.models.loading import KNOWN, load_model
from patchlib.patching.patch import patch
from patchlib.prompts.corruption import STR
from patchlib.training.card import put
from patchlib.training.iit import edited
from patchlib.training.known import Draws, Writer, interchange

MODELS = {"known": "graded", "known-or": "or", "known-and": "and"}
"""The gate of each model."""
SITES = ("S2", "S1+IO", "ABC")


def gate_of(name: str) -> str:
    """The gate of a model whose circuit is known.

    Raises:
        PatchlibError: for another model.
    """
    if name not in MODELS:
        raise PatchlibError(
            f"the circuit of {name!r} is not known: those of {', '.join(MODELS)} are"
        )
    return MODELS[name]


def interchanges(name: str = "known", rows: int = 512, seed: int = 0) -> pd.DataFrame:
    """How often the model answers what the mechanism does, and how far it is from it.

    Args:
        name: ``"known"``, ``"known-or"`` or ``"known-and"``.
        rows: how many prompts, each with a source.
        seed: seeds them.

    Returns:
        One row for what is set to its value in the source, and for each share of what is outside
        the circuit that is replaced by a third prompt's, with ``accuracy``, the share of prompts
        whose first answer the mechanism has, too, and ``kl``, the divergence from the mechanism's
        distribution, in nats. Accuracy counts ties as right, and passes a wrong mechanism alone.

    Example:
        >>> bool(interchanges("known", rows=64).loc["inhibition", "accuracy"] > 0.95)
        True
    """
    gate, folder = gate_of(name), KNOWN / gate_of(name)
    # Not the bridge's: its hooks are not made to be trained through. A bar over weights already on
    # disk says nothing.
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if bars:
        hf_logging.enable_progress_bar()
    writer = Writer(PreTrainedTokenizerFast.from_pretrained(folder), "cpu")
    variables = [*known.HEADS]
    asked: dict[str, list[str]] = {"nothing": [], **{v: [v] for v in variables}}
    asked |= {"duplicate and induction": ["duplicate", "induction"], "all six": variables}
    shares = {f"{share:.0%} of the rest": share for share in (0.1, 0.25, 0.5, 1.0)}
    measured = {}
    for label in (*asked, *shares):
        draws = Draws(seed, "cpu")
        batch = draws.batch(writer, rows, [1.0, 0.0, 0.0, 0.0, 0.0])
        for variable in asked.get(label, []):
            batch.state[variable].fill_(1)
        strict = float(label in shares)
        swap = interchange(model, writer, batch, draws, False, strict, shares.get(label))
        with torch.no_grad(), edited(model, swap):
            logits = model(batch.tokens).logits[:, -1]
        target = torch.full_like(logits, -10.0)
        target[:, writer.names] = batch.targets(gate)["logits"]
        first = target.gather(1, logits.argmax(-1, keepdim=True))[:, 0]
        kl = kl_div(
            logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="none"
        )
        right = (first > target.max(-1).values - 1e-4).float()
        measured[label] = {"accuracy": right.mean().item(), "kl": kl.sum(-1).mean().item()}
    return pd.DataFrame(measured).T.rename_axis("set")


def answers(name: str = "known", n: int = 500) -> pd.DataFrame:
    """How well the model does its task.

    Args:
        name: as in `interchanges`.
        n: how many prompts with pairs of names that training left out.

    Returns:
        One row for the model: the share of prompts that prefer IO to S, the mean logit
        difference in nats and the mean P(IO).
    """
    gate_of(name)
    model, pairs = _prompts(name, n)
    runs = baselines(model, pairs, metrics=("logit_diff", "prob"))
    difference, probability = (runs.clean.sel(metric=m) for m in ("logit_diff", "prob"))
    row = {
        "IO over S": (difference > 0).mean().item(),
        "logit difference": difference.mean().item(),
        "P(IO)": probability.mean().item(),
    }
    return pd.DataFrame({name: row}).T.rename_axis("model")


@cache
def _prompts(name: str, n: int) -> tuple[Any, Any]:
    model = load_model(name)
    return model, tasks.ioi(model, n=n)


def _in_full(edges: Any) -> list[tuple[str, str]]:
    """Edges into heads as edges into their queries, keys and values."""
    return [
        (writer, kind + reader)
        for writer, reader in edges
        for kind in ([""] if reader == "logits" else "qkv")
    ]


def circuit(name: str = "known", n: int = 64) -> pd.DataFrame:
    """Whether the circuit alone does what the model does, for each corruption.

    Args:
        name: as in `interchanges`.
        n: how many prompts.

    Returns:
        One row a corruption: ``faithfulness`` of the true edges, all others corrupted (1 is the
        model, 0 the corrupted prompt); the largest effect of a head or MLP outside the circuit,
        whether restored or destroyed; and the smallest effect of a true edge cut alone.
    """
    model, pairs = _prompts(name, n)
    gate = gate_of(name)
    rows = {}
    for site in SITES:
        corruption = STR(site)
        quiet: dict[str, Any] = {"corruption": corruption, "metrics": "logit_diff"}
        quiet["progress"] = False
        predicted = known.edges(pairs, corruption, gate, "noise")
        true = {f"{w} -> {r}": Edges(_in_full([(w, r)])) for w, r in predicted}
        rest = Edges.of(model) - Edges(_in_full(predicted))
        sets: dict[str, Any] = {"rest": rest, **true}
        cut = patch_edges(model, pairs, sets, direction="noise", **quiet)
        effects = cut.effect.sel(metric="logit_diff").to_series()
        outside = 0.0
        for direction in ("denoise", "noise"):
            for component in ("head", "mlp"):
                fx = patch(model, pairs, component, direction=direction, **quiet)
                effect = abs(fx.effect.sel(metric="logit_diff"))
                if component == "head":
                    for head in known.HEADS.values():
                        effect.loc[{"layer": head.layer, "head": head.head}] = 0.0
                outside = max(outside, effect.max().item())
        active = [f"{w} -> {r}" for (w, r), effect in predicted.items() if effect]
        rows[site] = {
            "faithfulness": 1 - effects["rest"],
            "largest effect outside": outside,
            "smallest of active edges": effects[active].abs().min(),
            "active edges": len(active),
        }
    return pd.DataFrame(rows).T.rename_axis("corruption")


def effects(name: str = "known", n: int = 64, direction: str = "noise") -> pd.DataFrame:
    """The effects of the circuit's heads beside those that the mechanism predicts.

    Args:
        name: as in `interchanges`.
        n: how many prompts.
        direction: as in `patchlib.patch`.

    Returns:
        One row a head, two columns a corruption.
    """
    model, pairs = _prompts(name, n)
    columns: dict[tuple[str, str], dict[str, float]] = {}
    for site in SITES:
        predicted = known.heads(pairs, STR(site), gate_of(name), direction)
        fx = patch(
            model,
            pairs,
            "head",
            corruption=STR(site),
            metrics="logit_diff",
            direction=direction,
            progress=False,
        ).effect.sel(metric="logit_diff")
        for variable, head in known.HEADS.items():
            label = f"{variable} {head}"
            measured = fx.sel(layer=head.layer, head=head.head).item()
            columns.setdefault((site, "measured"), {})[label] = measured
            columns.setdefault((site, "predicted"), {})[label] = predicted[head]
    return pd.DataFrame(columns).rename_axis("head")


def _table(frame: pd.DataFrame, digits: int = 3) -> str:
    """A table in Markdown."""

    def said(value: Any) -> str:
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    columns = [" ".join(c) if isinstance(c, tuple) else str(c) for c in frame.columns]
    rows = [
        [str(label), *map(said, row)] for label, row in zip(frame.index, frame.values, strict=True)
    ]
    lines = [[str(frame.index.name), *columns], ["---"] * (1 + len(columns)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def training(name: str) -> pd.DataFrame:
    """What ``training.json`` records of how a model came about."""
    made = json.loads((KNOWN / gate_of(name) / "training.json").read_text(encoding="utf-8"))
    said = {key: made[key] for key in ("gate", "seed", "parameters", "minutes", "device")}
    return pd.DataFrame({name: said | {"steps": made["log"][-1]["step"]}}).T.rename_axis("model")


def main() -> None:
    """Writes the card from a fresh evaluation."""
    if not IS_CHECKOUT:
        raise SystemExit("the card is in patchlib's repository: run this in a clone of it")
    parser = argparse.ArgumentParser(description="Measure the known models and write their card.")
    parser.parse_args()
    sections = {
        "answers": _table(pd.concat([answers(name) for name in MODELS])),
        "training": _table(pd.concat([training(name) for name in MODELS])),
    }
    for name in MODELS:
        tables = {"interchanges": interchanges(name), "circuit": circuit(name)}
        sections |= {f"{kind} of {name}": _table(table) for kind, table in tables.items()}
        sections[f"effects of {name}"] = _table(effects(name), 2)
    put(KNOWN / "README.md", sections)


if __name__ == "__main__":
    main()

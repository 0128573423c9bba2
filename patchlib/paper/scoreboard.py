"""Every method and choice, scored on models whose circuit is known.

``data/scores.csv`` holds the scores. ``python -m patchlib.paper.scoreboard`` computes what is
missing, and anew what was computed with other weights than a model has now; it can be stopped at
any time. ``--verify`` computes everything again and compares.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

from patchlib import tasks
from patchlib.files import DATA, write_whole
from patchlib.measure.heads import attention_patterns
from patchlib.measure.score import score
from patchlib.methods.ablation import ablate
from patchlib.methods.acdc import acdc_sweep
from patchlib.methods.attribution import attribute
from patchlib.methods.eap import attribute_edges
from patchlib.methods.edges import Edges, _Engine, patch_edges
from patchlib.methods.paths import direct_effect, path_patch
from patchlib.models import known
from patchlib.models.loading import KNOWN, describe, load_model
from patchlib.patching.patch import patch
from patchlib.patching.runs import two_runs
from patchlib.patching.sources import Mean, Resample, Zero
from patchlib.prompts.corruption import GN, STR, Corruption
from patchlib.prompts.pairs import PromptPairs

PATH = DATA / "scores.csv"
MODELS = [f"{gate}{seed}" for gate in known.GATES for seed in ("", "-1", "-2")]
"""Folders of models, named by gate and seed. Not all of them come with the project."""
PROMPTS = 64
SITES = ("S2", "S1+IO", "ABC")
METRICS = ("logit_diff", "prob", "kl")
# How far a score may be from one that is computed anew: effects that are nearly equal change
# places.
TOLERANCE = 0.02
# Of EAP-IG's paper.
_STEPS = 5
_DRAWS = 4
# Of ACDC, in nats of KL divergence.
_THRESHOLDS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

Run = Callable[[TransformerBridge, PromptPairs, Any, str], xr.Dataset]


@dataclass(frozen=True)
class Method:
    """A method as it is scored.

    Args:
        of: ``"heads"`` or ``"edges"``.
        run: from a model, prompts, a corruption and a direction, its effects by prompt.
        passes: from the numbers of layers and of heads in a layer, how many forward passes a
            prompt takes; a backward pass counts as two.
        corruptions: under which it is run, ``""`` where there is no corrupted run.
        directions: in which it is run, ``""`` where that makes no difference.
        metrics: by which it is run, ``""`` where it measures none.
        sees: of which edges it says anything.
    """

    of: str
    run: Run
    passes: Callable[[int, int], int]
    corruptions: Sequence[str] = ("STR",)
    directions: Sequence[str] = ("denoise", "noise")
    metrics: Sequence[str] = METRICS
    sees: Callable[[str], object] = bool


class Call(NamedTuple):
    """A method under one choice, which gives a row of the table for each metric."""

    method: str
    corruption: str
    site: str
    direction: str


def scores(path: Path = PATH) -> pd.DataFrame:
    """Every method and choice, scored on every model whose circuit is known.

    Args:
        path: the table.

    Returns:
        A row for each ``model``, ``method``, ``corruption``, ``site``, ``direction`` and
        ``metric``, texts that are empty where there is no such choice. ``of`` says whether heads or
        edges are ranked; ``n_true`` of ``n`` are true, those that are active under the corruption.
        Then the scores of `patchlib.score`, each with the ends of its interval over prompts, such
        as ``auc``, ``auc_low`` and ``auc_high``; ``passes``, the forward passes of each prompt,
        with a backward pass as two; and ``seconds`` of a processor, which the call took for all
        prompts and metrics on the machine that computed it.

    Example:
        >>> import patchlib as pl
        >>> {"method", "auc", "average_precision"} <= {*pl.scores()}
        True
    """
    texts = [*Call._fields, "metric"]
    table = pd.read_csv(path, dtype=dict.fromkeys(texts, str))
    return table.fillna(dict.fromkeys(texts, ""))


def calls() -> Iterator[Call]:
    """Every method under every choice."""
    for name, method in METHODS.items():
        for corruption in method.corruptions:
            for site in SITES if corruption else ("",):
                for direction in method.directions:
                    yield Call(name, corruption, site, direction)


def rows(model: TransformerBridge, call: Call) -> pd.DataFrame:
    """The rows of one call, with scores rounded to four digits.

    Args:
        model: a model whose circuit is known.
        call: the method and the choice.
    """
    method, (name, revision) = METHODS[call.method], _named(model)
    pairs = tasks.ioi(model, n=PROMPTS)
    corruption = {"": None, "STR": STR, "GN": GN}[call.corruption]
    # What replaces all three names goes by another name than the three.
    site = "S1+IO+S2" if call.corruption == "GN" and call.site == "ABC" else call.site
    started = time.process_time()
    fx = method.run(model, pairs, corruption and corruption(site), call.direction)
    seconds = time.process_time() - started
    passes = fx.attrs.get("passes") or method.passes(model.cfg.n_layers, model.cfg.n_heads)
    found, true = [], truth(name.split("-")[0], pairs, call)
    for metric in method.metrics:
        row = score(fx, true, metric or None)
        ends = {"value": "", "low": "_low", "high": "_high"}
        values = {
            f"{each}{end}": round(float(row.loc[each, column]), 4)
            for each in row.index
            for column, end in ends.items()
        }
        found.append(
            {"model": name, **call._asdict(), "metric": metric, "of": method.of}
            | {**row.attrs, **values, "passes": passes, "seconds": round(seconds, 2)}
            | {"prompts": len(pairs), "revision": revision}
        )
    return pd.DataFrame(found)


def truth(gate: str, pairs: PromptPairs, call: Call) -> dict[str, float | str | None]:
    """What is to be found, with the effect that the mechanism predicts.

    That is what is active under the corruption: of heads, whose value changes; of edges, those
    that change what their reader makes of it. It is to be found whatever its effect: one of two
    that stand in for each other has none when noised, and is in the circuit all the same.

    Args:
        gate: the model's gate.
        pairs: the prompts.
        call: the method and the choice.
    """
    method = METHODS[call.method]
    # What noise or an ablation leaves of a name is no other name: nothing says how much it does.
    corruption, sized = STR(call.site or "ABC"), call.corruption == "STR"
    way = call.direction or "noise"
    effects: dict[str, float]
    if method.of == "heads":
        effects = {str(head): x for head, x in known.heads(pairs, corruption, gate, way).items()}
    else:
        edges = known.edges(pairs, corruption, gate, way).items()
        effects = {f"{writer}->{reader}": x for (writer, reader), x in edges}
    active = known.active(pairs, corruption, gate)
    return {
        name: _prediction(name, effect) if sized and abs(effect) > 1e-6 else None
        for name, effect in effects.items()
        if name in active and method.sees(name)
    }


def _prediction(name: str, effect: float) -> float | str:
    """An effect by its size; of what writes names by its sign, as norms and softmax bend it."""
    movers = {str(known.HEADS[variable]) for variable in known.STRENGTH}
    return ("+" if effect > 0 else "-") if movers & {*name.split("->")} else effect


def fill(model: TransformerBridge, path: Path = PATH) -> None:
    """Computes what the table lacks of one model; a stopped one goes on where it was.

    Args:
        model: a model whose circuit is known.
        path: the table.
    """
    name, revision = _named(model)
    for call in calls():
        table = scores(path) if path.exists() else pd.DataFrame()
        if len(table):
            table = table[(table.model != name) | (table.revision == revision)]
            if ((table.model == name) & _are(table, call)).any():
                continue
        new = rows(model, call)
        table = _in_order(pd.concat([table, new]))
        write_whole(path, partial(table.to_csv, index=False))
        print(f"{name}: {_said(call)}, {new.seconds[0]} s", flush=True)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Models and calls in their order, without models and calls that there are no more."""
    order = {call: number for number, call in enumerate(calls())}
    labels = table[[*Call._fields]].itertuples(index=False, name=None)
    ranks = pd.Series(labels, index=table.index).map(order)
    models = table.model.map({name: number for number, name in enumerate(MODELS)})
    first = pd.DataFrame({"model": models, "call": ranks}).reset_index(drop=True).dropna()
    return table.iloc[first.sort_values(["model", "call"], kind="stable").index]


def difference(model: TransformerBridge, call: Call, path: Path = PATH) -> float:
    """The largest difference of stored scores from what is computed anew.

    Args:
        model: a model whose circuit is known.
        call: the method and the choice.
        path: the table.

    Returns:
        The largest difference of any score or end of an interval; of `needed` as a share of all.
    """
    table = scores(path)
    there = table[(table.model == _named(model)[0]) & _are(table, call)]
    here = rows(model, call)
    both = (each.set_index("metric").select_dtypes("number") for each in (there, here))
    one, other = (each.drop(columns=["seconds", "passes"]) for each in both)
    of = [name for name in one if name.startswith("needed")]
    apart = abs(one - other).fillna(0).where(one.isna() == other.isna(), np.inf)
    apart[of] = apart[of].div(one.n, axis=0)
    return float(apart.max().max())


def _named(model: TransformerBridge) -> tuple[str, str]:
    """The model's folder, and what its weights are."""
    about = describe(model)
    return Path(about["model"]).name, about["revision"]


def _are(table: pd.DataFrame, call: Call) -> pd.Series:
    return (table[[*Call._fields]] == list(call)).all(axis=1)


def _said(call: Call) -> str:
    return ", ".join(filter(None, call))


def _run(method: Callable[..., xr.Dataset], **settings: Any) -> Run:
    """A method with settings of its own."""

    def run(
        model: TransformerBridge, pairs: PromptPairs, corruption: Corruption | None, direction: str
    ) -> xr.Dataset:
        given = {"corruption": corruption, "direction": direction} if corruption else {}
        return method(model, pairs, **given, **settings, keep_prompts=True, progress=False)

    return run


def _queries_keys_values(
    model: TransformerBridge, pairs: PromptPairs, **settings: Any
) -> xr.Dataset:
    """Attribution of queries and keys past the softmax, and of values."""
    fixed = {"q": True, "k": True, "v": False}
    parts = [attribute(model, pairs, each, qk_fix=fix, **settings) for each, fix in fixed.items()]
    return xr.concat(parts, "part")


def _directly(model: TransformerBridge, pairs: PromptPairs, **settings: Any) -> xr.Dataset:
    """Edges from heads to the logits."""
    return _into("logits", direct_effect(model, pairs, **settings))


def _by_paths(model: TransformerBridge, pairs: PromptPairs, **settings: Any) -> xr.Dataset:
    """Edges from every head to every later one, and to the logits."""
    layers, heads = range(1, model.cfg.n_layers), range(model.cfg.n_heads)
    receivers = {
        f"{at}.{head}": [f"{a}{at}.{head}" for a in "qkv"] for at in layers for head in heads
    }
    parts = [
        _into(name, path_patch(model, pairs, "head", into, **settings))
        for name, into in {**receivers, "logits": ["logits"]}.items()
    ]
    return xr.concat(parts, "edges")


def _into(reader: str, fx: xr.Dataset) -> xr.Dataset:
    """Effects of heads as those of their edges to one reader, which earlier ones have."""
    layers = fx.sizes["layer"] if reader == "logits" else int(reader.split(".")[0])
    edges = fx[["effect"]].isel(layer=slice(layers)).stack(edges=["layer", "head"])
    names = [f"{layer}.{head}->{reader}" for layer, head in edges.edges.values]
    return edges.drop_vars(["edges", "layer", "head"]).assign_coords(edges=names)


def _edge_by_edge(model: TransformerBridge, pairs: PromptPairs, **settings: Any) -> xr.Dataset:
    """Every edge alone, those into the query, the key and the value of a head together."""
    sets: dict[str, list[Any]] = {}
    for edge in Edges.of(model):
        sets.setdefault(_merged(edge), []).append(edge)
    return patch_edges(model, pairs, sets, **settings)


def _merged(edge: object) -> str:
    """An edge's name with the head in place of its query, key or value."""
    return re.sub("->[qkv](?=[0-9])", "->", str(edge))


def _pruned(
    model: TransformerBridge, pairs: PromptPairs, corruption: Corruption, direction: str
) -> xr.Dataset:
    """The highest threshold of ACDC at which each edge is still there; 0 where at none."""
    found = acdc_sweep(
        model, pairs, _THRESHOLDS, corruption=corruption, merged=True, progress=False
    )
    highest = dict.fromkeys(map(_merged, Edges.of(model)), 0.0)
    for threshold, pruning in found.items():
        highest |= dict.fromkeys(map(_merged, pruning.circuit), threshold)
    passes = 2 + sum(pruning.passes for pruning in found.values())
    return xr.Dataset(
        {"effect": ("edges", [*highest.values()])},
        {"edges": [*highest], "metric": "kl"},
        {"passes": passes},
    )


def _random(model: TransformerBridge, pairs: PromptPairs, *_: object) -> xr.Dataset:
    """A number for each head, drawn anew for each prompt."""
    shape = model.cfg.n_layers, model.cfg.n_heads, len(pairs)
    generator = derive_generator(0, "scores", _named(model)[0])
    return _of_heads(torch.randn(*shape, generator=generator))


def _attention(model: TransformerBridge, pairs: PromptPairs, *_: object) -> xr.Dataset:
    """The most that a head looks from S2, the end or the token after a name at an earlier name, or
    at the token after it."""
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    patterns = attention_patterns(model, pairs, [(at, head) for at in layers for head in heads])
    at = {name: torch.tensor(pairs.at(name))[:, 0] for name in ("IO", "S1", "S2", "last")}
    at |= {f"after {name}": at[name] + 1 for name in ("IO", "S1")}
    prompts = torch.arange(len(pairs))
    ways = [
        patterns[:, prompts, at[query], at[key]] * (at[query] > at[key])
        for query in ("after IO", "after S1", "S2", "last")
        for key in ("IO", "S1", "after IO", "after S1", "S2")
    ]
    looks = torch.stack(ways, -1).unflatten(0, (len(layers), len(heads)))
    return _of_heads(looks, "way")


def _of_heads(values: torch.Tensor, *more: str) -> xr.Dataset:
    layers, heads = map(range, values.shape[:2])
    dims = ("layer", "head", "prompt", *more)
    return xr.Dataset({"effect": (dims, values.numpy())}, {"layer": layers, "head": heads})


def _norm(of: str) -> Run:
    """By how much what a writer writes differs between the runs, whoever reads it."""

    def run(
        model: TransformerBridge, pairs: PromptPairs, corruption: Corruption, direction: str
    ) -> xr.Dataset:
        engine = _Engine(model, pairs, corruption)
        (_, one), (_, other) = map(engine.writes, two_runs(model, pairs, corruption, 0))
        norms = (one - other).norm(dim=(2, 3)).cpu().numpy()
        writers = engine.graph.writers
        if of == "edges":
            names = [*dict.fromkeys(map(str, Edges.of(model)))]
            at = [writers.index(name.split("->")[0]) for name in names]
            return xr.Dataset({"effect": (("edges", "prompt"), norms[at])}, {"edges": names})
        heads = [number for number, name in enumerate(writers) if "." in name]
        shape = model.cfg.n_layers, model.cfg.n_heads
        return _of_heads(torch.tensor(norms[heads]).unflatten(0, shape))

    return run


_FREE: dict[str, Any] = {"corruptions": [""], "directions": [""]}
_OF_METRICS: dict[str, Any] = {"metrics": METRICS}

METHODS = {
    "patching": Method(
        "heads", _run(patch, **_OF_METRICS), lambda L, H: L * H + 2, corruptions=["STR", "GN"]
    ),
    "zero ablation": Method(
        "heads", _run(ablate, with_=Zero(), **_OF_METRICS), lambda L, H: L * H + 1, **_FREE
    ),
    "mean ablation": Method(
        "heads", _run(ablate, with_=Mean(), **_OF_METRICS), lambda L, H: L * H + 2, **_FREE
    ),
    "resample ablation": Method(
        "heads",
        _run(ablate, with_=Resample(draws=_DRAWS), **_OF_METRICS),
        lambda L, H: _DRAWS * (L * H + 1) + 1,
        **_FREE,
    ),
    "AtP": Method("heads", _run(attribute, **_OF_METRICS), lambda L, H: 4),
    "AtP*, QK fix": Method("heads", _run(_queries_keys_values, **_OF_METRICS), lambda L, H: 12),
    "AtP*, GradDrop": Method(
        "heads", _run(attribute, grad_drop=True, **_OF_METRICS), lambda L, H: 2 + 2 * L
    ),
    "attention": Method("heads", _attention, lambda L, H: 1, metrics=[""], **_FREE),
    "norm of heads": Method("heads", _norm("heads"), lambda L, H: 2, directions=[""], metrics=[""]),
    "random": Method("heads", _random, lambda L, H: 0, metrics=[""], **_FREE),
    "direct effect": Method(
        "edges",
        _run(_directly, **_OF_METRICS),
        lambda L, H: 2,
        sees=re.compile("[0-9.]+->logits").fullmatch,
    ),
    "path patching": Method(
        "edges",
        _run(_by_paths, **_OF_METRICS),
        lambda L, H: H * H * L * (L - 1) // 2 + L * H + 2,
        directions=["noise"],
        sees=re.compile("[0-9.]+->.*").fullmatch,
    ),
    "edge patching": Method(
        "edges",
        _run(_edge_by_edge, **_OF_METRICS),
        lambda L, H: _n_edges(L, H) + 2,
    ),
    "EAP": Method("edges", _run(attribute_edges, **_OF_METRICS), lambda L, H: 5),
    "EAP-IG": Method(
        "edges",
        _run(attribute_edges, steps=_STEPS, **_OF_METRICS),
        lambda L, H: 2 + 3 * _STEPS,
    ),
    "EAP-IG, activations": Method(
        "edges",
        _run(attribute_edges, steps=_STEPS, along="activations", **_OF_METRICS),
        lambda L, H: 2 + 3 * _STEPS * (1 + L * (H + 1)),
        directions=["noise"],
    ),
    "ACDC": Method(
        "edges",
        _pruned,
        # What its decisions took is counted.
        lambda L, H: 0,
        directions=["noise"],
        metrics=["kl"],
    ),
    "norm of writers": Method(
        "edges", _norm("edges"), lambda L, H: 2, directions=[""], metrics=[""]
    ),
}


def _n_edges(L: int, H: int) -> int:
    """How many edges there are into heads, MLPs and the logits."""
    before = [1 + layer * (H + 1) for layer in range(L + 1)]
    return sum(n * H + n + H for n in before[:-1]) + before[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, and computes or verifies the table."""
    parser = argparse.ArgumentParser(
        prog="python -m patchlib.paper.scoreboard", description="Score every method."
    )
    parser.add_argument(
        "models", nargs="*", help="models by gate and seed; all there are where none"
    )
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda")
    parser.add_argument("--verify", action="store_true", help="compute everything and compare")
    chosen = parser.parse_args(arguments)
    for name in chosen.models or filter(lambda name: (KNOWN / name).is_dir(), MODELS):
        model = load_model(KNOWN / name, device=chosen.device)
        if not chosen.verify:
            fill(model)
            continue
        for call in calls():
            found = difference(model, call)
            print(f"{name}: {_said(call)}: largest difference {found:.1e}", flush=True)
            if not found < TOLERANCE:
                raise SystemExit(f"{name}: {_said(call)} differs by more than {TOLERANCE}")


if __name__ == "__main__":
    main()

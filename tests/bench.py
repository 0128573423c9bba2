"""How fast patching is: ``make bench``.

Every number is the median of several repetitions after a warm-up, measured in turn with the thing
that it is compared with. On a CPU, seconds are those of the processor, on one thread, so that
other programs disturb little. Weights are random, so that no download is needed: time does not
depend on them. Nothing here is a test; `tests/` checks the numbers, this file reports times.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from memory import Memory
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
)
from transformers.utils import logging

import patchlib as pl
from patchlib.models.loading import MINI
from patchlib.patching.cells import COMPONENTS, Cell, Part, unit_of
from patchlib.patching.hook_engine import names_of, restore
from patchlib.patching.runs import Run, run_with_edits
from patchlib.prompts.pairs import PromptPairs, TokenizedPrompt

OUT = Path(__file__).parents[1] / "_build" / "bench"
WINDOWS = {"window": [3, 5, 10], "before": [1, 2, 5]}
SMOLLM2 = LlamaConfig(
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    hidden_size=576,
    intermediate_size=1536,
    vocab_size=49152,
    tie_word_embeddings=True,
)
Row = dict[str, Any]


def random_model(
    device: str, configuration: PreTrainedConfig, dtype: str = "float32"
) -> TransformerBridge:
    """A model of some geometry, with random weights."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        with torch.device(device):
            network = AutoModelForCausalLM.from_config(configuration)
        network.save_pretrained(folder)
        AutoTokenizer.from_pretrained(MINI).save_pretrained(folder)
        return pl.load_model(folder, device, dtype)


def random_pairs(model: TransformerBridge, n: int = 32, length: int = 15) -> PromptPairs:
    """Random tokens, replaced at two thirds (S2, the subject) or early (S1 and IO)."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.cfg.d_vocab
    tokens = torch.randint(vocabulary, (2, n, length), generator=generator)
    late, early = 2 * length // 3, (2, 4)
    prompts = []
    for clean, other in tokens.transpose(0, 1).tolist():
        corrupted = {}
        for site, places in (("S2", (late,)), ("S1+IO", early)):
            corrupted[site] = tuple(
                other[i] if i in places else token for i, token in enumerate(clean)
            )
        positions = {"S2": (late,), "last_subject": (late,), "last": (length - 1,)}
        prompts.append(
            TokenizedPrompt("", tuple(clean), corrupted, (other[0],), (other[1],), positions)
        )
    return PromptPairs("random", tuple(prompts))


class Clock:
    """Measures on one device."""

    def __init__(self, device: str, repetitions: int):
        self.device, self.repetitions = device, repetitions

    def seconds(self, *works: Callable[[], object]) -> list[float]:
        """The median time of each piece of work, all of them in turn."""
        times: list[list[float]] = [[] for _ in works]
        for repetition in range(self.repetitions + 1):
            for work, taken in zip(works, times, strict=True):
                started = self._now()
                work()
                # The first is the warm-up.
                if repetition:
                    taken.append(self._now() - started)
        return [statistics.median(taken) for taken in times]

    def _now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


OPERATIONS = 20 * 2 * 2048 * 768 * 3072


def multiplication(device: str) -> Callable[[], object]:
    """Large matrix products, of `OPERATIONS` floating-point operations together."""
    left = torch.randn(2048, 768, device=device)
    right = torch.randn(768, 3072, device=device)
    product = torch.mm(left, right)

    def work() -> None:
        for _ in range(20):
            torch.mm(left, right, out=product)

    return work


def peak(model: TransformerBridge, work: Callable[[], object]) -> float:
    """How many MiB of tensors a piece of work holds at most, beside the model."""
    with Memory(model) as memory:
        work()
    return memory.most / 2**20


def sweep(model: TransformerBridge, pairs: PromptPairs, **settings: Any) -> Callable[[], object]:
    """One call of the fast engine."""
    return lambda: pl.patch(model, pairs, engine="fast", progress=False, **settings)


def logit_difference(logits: torch.Tensor) -> torch.Tensor:
    """What TransformerLens' functions measure in the comparison."""
    return (logits[:, -1, 0] - logits[:, -1, 1]).mean()


def by_transformer_lens(
    model: TransformerBridge, pairs: PromptPairs, site: str, activation: str, cells: int
) -> Callable[[], object]:
    """Some cells of ``get_act_patch_attn_head_out_all_pos`` and its like, or of ``..._mlp_out``."""
    patching.tqdm = lambda rows: rows
    device = model.cfg.device
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean_tokens.to(device))
    setter, unit = patching.layer_head_vector_patch_setter, "head"
    if activation == "pattern":
        setter = patching.layer_head_pattern_patch_setter
    elif activation == "mlp_out":
        setter, unit = patching.layer_pos_patch_setter, "pos"
    layers = [i * model.cfg.n_layers // cells for i in range(cells)]
    index = pd.DataFrame({"layer": layers, unit: 0})
    corrupted = pairs.corrupted_tokens(site).to(device)

    def work() -> None:
        with torch.no_grad():
            patching.generic_activation_patch(
                model, corrupted, cache, logit_difference, setter, activation, index_df=index
            )

    return work


def by_hooks(model: TransformerBridge, pairs: PromptPairs, layers: range) -> Callable[[], object]:
    """One pass with hooks for one window of MLPs, the clean run not counted."""
    parts = tuple(Part("mlp_out", layer) for layer in layers)
    cells = [Cell(parts, pairs.at("last_subject"))]
    _, source = run_with_edits(model, Run(pairs.clean_tokens), keep=names_of(cells))
    edits = restore(cells, source, range(len(pairs)))
    corrupted = Run(pairs.corrupted_tokens("S2"))
    return lambda: run_with_edits(model, corrupted, edits)


def compared(
    clock: Clock, name: str, work: Callable[[], object], cells: int, other: Row, aim: float | None
) -> Row:
    """A sweep beside as many passes of another kind; both begin with the two unpatched runs."""
    with FlopCounterMode(display=False) as counter:
        work()
    passes, some = other["work"], other["passes"]
    seconds, theirs, bare = clock.seconds(work, passes, multiplication(clock.device))
    row = {
        "work": name,
        "cells": cells,
        "seconds": seconds,
        "one pass per cell (s)": theirs / some * (cells + 2),
        "times faster": theirs / some * (cells + 2) / seconds,
        "aim": aim,
        "share of matmul rate": counter.get_total_flops() / seconds * bare / OPERATIONS,
        "peak MiB": peak(other["model"], work),
    }
    show([row])
    return row


def heads_against_transformer_lens(
    clock: Clock, device: str, configuration: PreTrainedConfig, aims: dict[str, float]
) -> list[Row]:
    """What heads read and write, by the metric of the comparison and by three."""
    model = random_model(device, configuration)
    pairs = random_pairs(model)
    at_s2 = {"corruption": pl.STR("S2")}
    table = []
    for component, aim in aims.items():
        activation = COMPONENTS[component]
        _, units = unit_of(model, activation) or ("", 1)
        cells = units * model.cfg.n_layers
        passes = by_transformer_lens(model, pairs, "S2", activation, 4)
        other = {"work": passes, "passes": 4, "model": model}
        one = sweep(model, pairs, component=component, metrics=["logit_diff"], **at_s2)
        name = f"{component} of all, corruption at S2"
        table.append(compared(clock, f"{name}, logit difference", one, cells, other, aim))
        if component == "head":
            three = sweep(model, pairs, component=component, **at_s2)
            table.append(compared(clock, f"{name}, three metrics", three, cells, other, None))
    return table


def other_sweeps(clock: Clock, device: str) -> list[Row]:
    """Sweeps of GPT-2 small's geometry by three metrics beside what one would do otherwise."""
    model = random_model(device, GPT2Config())
    pairs = random_pairs(model)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    at_s2, early = {"corruption": pl.STR("S2")}, {"corruption": pl.STR("S1+IO")}
    passes = partial(by_transformer_lens, model, pairs)
    works = (
        ("heads, corruption at S1 and IO", early, layers * heads, passes("S1+IO", "z", 4), 4, 4),
        (
            "MLPs at every position",
            at_s2 | {"positions": "each"},
            layers * pairs.clean_tokens.shape[1],
            passes("S2", "mlp_out", 4),
            4,
            6,
        ),
        (
            "MLPs in windows of 3, 5, 10, last subject token",
            at_s2 | {"positions": "last_subject"} | WINDOWS,
            3 * layers,
            by_hooks(model, pairs, range(3, 8)),
            1,
            6,
        ),
    )
    table = []
    for name, settings, cells, other, some, aim in works:
        component = "head" if name.startswith("heads") else "mlp"
        work = sweep(model, pairs, component=component, **settings)
        row = {"work": other, "passes": some, "model": model}
        table.append(compared(clock, name, work, cells, row, aim))
    return table


def methods(clock: Clock, device: str) -> list[Row]:
    """Methods beside activation patching, of GPT-2 small's geometry, by logit difference."""
    model = random_model(device, GPT2Config())
    pairs, layers, heads = random_pairs(model), model.cfg.n_layers, model.cfg.n_heads
    tokens, other = (each.to(device) for each in (pairs.clean_tokens, pairs.corrupted_tokens("S2")))
    with torch.no_grad():
        caches = [model.run_with_cache(each)[1] for each in (tokens, other)]
    direct_path = partial(
        patching.get_act_patch_direct_path, model, other, *caches, logit_difference, layers - 2, 0
    )

    def zero(z: torch.Tensor, hook: object) -> torch.Tensor:
        z[:, :, 0] = 0
        return z

    def zeros() -> None:
        for layer in range(0, layers, 3):
            hooks = [(f"blocks.{layer}.attn.hook_z", zero)]
            logit_difference(model.run_with_hooks(tokens, fwd_hooks=hooks))

    direct_passes = {"work": lambda: direct_path(verbose=False), "passes": heads, "model": model}
    zero_passes = {"work": torch.no_grad()(zeros), "passes": layers // 3, "model": model}
    options: Row = {"metrics": "logit_diff", "progress": False}
    paths: Row = options | {"corruption": pl.STR("S2"), "receivers": "q9.9", "senders": "head"}
    works: list[tuple[str, Callable[..., object], Row, int, Row, float | None]] = [
        (
            "paths of heads to q9.9, MLPs frozen",
            pl.path_patch,
            {"mlps": "freeze"} | paths,
            9,
            direct_passes,
            5,
        ),
        ("paths of heads to q9.9, MLPs recomputed", pl.path_patch, paths, 9, direct_passes, 5),
        (
            "zero ablation of heads",
            pl.ablate,
            {"with_": pl.Zero()} | options,
            layers,
            zero_passes,
            3,
        ),
    ]
    table = [
        compared(clock, name, partial(method, model, pairs, **given), below * heads, passes, aim)
        for name, method, given, below, passes, aim in works
    ]
    # TransformerLens has none of these; its own direct effects have the final norm frozen, and run
    # on folded weights alone.
    s2, few = {"corruption": pl.STR("S2")}, [f"9.{head}" for head in range(heads)]
    shown = {"progress": False}
    alone: list[tuple[str, Callable[..., object], int]] = [
        (
            "direct effects of heads, final norm computed anew",
            partial(pl.direct_effect, **s2, **options),
            layers * heads,
        ),
        (
            "interactions of 12 heads, both directions",
            partial(pl.interactions, parts=few, **s2, **options),
            len(few) * (len(few) + 1),
        ),
        (
            "self-repair after each of 12 heads",
            partial(pl.self_repair, parts=few, with_=pl.Zero(), **shown),
            len(few),
        ),
        (
            "faithfulness of 12 heads",
            partial(pl.faithfulness, circuit=few, with_=pl.Mean(), **shown),
            2,
        ),
    ]
    for name, method, cells in alone:
        (seconds,) = clock.seconds(partial(method, model, pairs))
        table.append({"work": name, "cells": cells, "seconds": seconds})
        show(table[-1:])
    return table


def of_mini(clock: Clock, device: str) -> list[Row]:
    """What a class waits for: all heads, 100 prompts, three metrics."""
    model = pl.load_model("mini", device=device)
    pairs = pl.tasks.ioi(model, n=100)
    table = []
    for corruption in (pl.STR("S2"), pl.GN("S2"), pl.STR("S1+IO"), pl.GN("S1+IO", draws=10)):
        work = sweep(model, pairs, component="head", corruption=corruption)
        row = {"work": f"mini, all heads, 100 prompts, {corruption}"}
        (seconds,) = clock.seconds(work)
        table.append(row | {"seconds": seconds, "peak MiB": peak(model, work)})
        show(table[-1:])
    return table


def on_a_gpu(clock: Clock, device: str) -> list[Row]:
    """All heads and all MLPs of GPT-2 small's and XL's geometry, in two precisions."""
    table: list[Row] = []
    sizes = {"small": GPT2Config(), "XL": GPT2Config(n_layer=48, n_head=25, n_embd=1600)}
    for (size, geometry), dtype in product(sizes.items(), ("float32", "bfloat16")):
        model = random_model(device, geometry, dtype)
        pairs = random_pairs(model)
        for component in ("head", "mlp"):
            work = sweep(model, pairs, component=component, corruption=pl.STR("S2"))
            with FlopCounterMode(display=False) as counter:
                work()
            (seconds,) = clock.seconds(work)
            row = {"work": f"GPT-2 {size}, {dtype}, {component} of all", "seconds": seconds}
            row["TFLOP/s"] = counter.get_total_flops() / seconds / 1e12
            table.append(row | {"peak MiB": peak(model, work)})
            show(table[-1:])
    return table


def growth(clock: Clock, device: str) -> list[Row]:
    """Heads of a smaller model, one size changed at a time."""
    base = {"prompts": 16, "layers": 6, "heads": 12, "tokens": 15}
    table = []
    for size, values in (
        ("prompts", (8, 16, 32)),
        ("layers", (3, 6, 12)),
        ("heads", (6, 12, 24)),
        ("tokens", (15, 30, 60)),
    ):
        for value in values:
            chosen = base | {size: value}
            geometry = GPT2Config(n_layer=chosen["layers"], n_head=chosen["heads"])
            model = random_model(device, geometry)
            pairs = random_pairs(model, chosen["prompts"], chosen["tokens"])
            work = sweep(model, pairs, component="head", corruption=pl.STR("S2"))
            (seconds,) = clock.seconds(work)
            cells = chosen["layers"] * chosen["heads"]
            row = {"work": f"{size} = {value}", "cells": cells, "seconds": seconds}
            table.append(
                row | {"ms per cell": 1000 * seconds / cells, "peak MiB": peak(model, work)}
            )
            show(table[-1:])
    return table


def show(rows: list[Row]) -> None:
    """Prints rows as they come; a table follows at the end."""
    for row in rows:
        print(
            "  ".join(f"{k}: {v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items())
        )


def main() -> None:
    """Measures, prints and writes ``_build/bench/<device>.json``."""
    parser = argparse.ArgumentParser(description="Measure the speed of patching.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", default="", help="tables whose title holds this")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    clock = Clock(arguments.device, arguments.repetitions)
    (bare,) = clock.seconds(multiplication(arguments.device))
    machine = {
        "device": arguments.device,
        "name": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "matmul GFLOP/s": OPERATIONS / bare / 1e9,
    }
    heads = heads_against_transformer_lens
    of_heads = {"head": 10, "q": 6, "k": 6, "v": 6, "pattern": 6}
    parts = {
        "GPT-2 small's geometry, 32 prompts of 15 tokens": partial(
            heads, configuration=GPT2Config(), aims=of_heads
        ),
        "SmolLM2's geometry, 32 prompts of 15 tokens": partial(
            heads, configuration=SMOLLM2, aims={"head": 10, "q": 6}
        ),
        "other sweeps of GPT-2 small's geometry": other_sweeps,
        "methods, of GPT-2 small's geometry": methods,
        "mini": of_mini,
        "growth, from 16 prompts of 15 tokens in 6 layers of 12 heads": growth,
    }
    if arguments.device == "cuda":
        parts["GPU: 32 prompts of 15 tokens"] = on_a_gpu
    else:
        print("no GPU here: GPT-2 small's and XL's absolute times are left out")
    parts = {title: part for title, part in parts.items() if arguments.only in title}
    tables = {title: part(clock, arguments.device) for title, part in parts.items()}
    print("\n" + "  ".join(f"{k}: {v}" for k, v in machine.items()))
    for title, table in tables.items():
        print(f"\n{title}\n{pd.DataFrame(table).to_string(index=False, float_format='%.3g')}")
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{arguments.device}.json"
    path.write_text(json.dumps(machine | {"tables": tables}, indent=1) + "\n")
    print(f"\nwritten to {path.relative_to(OUT.parents[1])}")


if __name__ == "__main__":
    main()

"""How fast patching is: ``make bench``.

Every number is the median of several repetitions after a warm-up, measured in one run beside the
thing that it is compared with. Weights are random, so that no download is needed: time does not
depend on them. Nothing here is a test; `tests/` checks the numbers, this file reports times.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from memory import Memory
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config
from transformers.utils import logging

import patchlib as pl
from patchlib.models.loading import MINI
from patchlib.prompts.pairs import PromptPairs, TokenizedPrompt
from patchlib.sweep.cells import Cell
from patchlib.sweep.hook_engine import restore
from patchlib.sweep.runs import Run, run_with_edits

OUT = Path(__file__).parents[1] / "_build" / "bench"
WINDOWS = {"window": [3, 5, 10], "before": [1, 2, 5]}
Row = dict[str, Any]


def random_gpt2(device: str, layers: int = 12, heads: int = 12) -> TransformerBridge:
    """GPT-2 small's geometry, or one with more or fewer layers or heads."""
    torch.manual_seed(0)
    configuration = GPT2Config(n_layer=layers, n_head=heads)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(configuration).save_pretrained(folder)
        AutoTokenizer.from_pretrained(MINI).save_pretrained(folder)
        return pl.load_model(folder, device=device)


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

    def seconds(self, work: Callable[[], object]) -> float:
        """The median time of a piece of work."""
        work()
        times = []
        for _ in range(self.repetitions):
            self._wait()
            started = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def rate(self) -> float:
        """Floating-point operations per second in the model's largest matrix product."""
        left = torch.randn(2048, 768, device=self.device)
        right = torch.randn(768, 3072, device=self.device)
        many = 20

        def multiply() -> None:
            for _ in range(many):
                torch.mm(left, right)

        return many * 2 * 2048 * 768 * 3072 / self.seconds(multiply)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


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
    """Some cells of ``get_act_patch_attn_head_out_all_pos`` or ``get_act_patch_mlp_out``."""
    patching.tqdm = lambda rows: rows
    device = model.cfg.device
    with torch.no_grad():
        _, cache = model.run_with_cache(pairs.clean_tokens.to(device))
    by_head = activation == "z"
    setter = (
        patching.layer_head_vector_patch_setter if by_head else (patching.layer_pos_patch_setter)
    )
    layers = [i % model.cfg.n_layers for i in range(cells)]
    index = pd.DataFrame({"layer": layers, "head" if by_head else "pos": 0})
    corrupted = pairs.corrupted_tokens(site).to(device)

    def work() -> None:
        with torch.no_grad():
            patching.generic_activation_patch(
                model, corrupted, cache, logit_difference, setter, activation, index_df=index
            )

    return work


def by_hooks(model: TransformerBridge, pairs: PromptPairs, layers: range) -> Callable[[], object]:
    """One pass with hooks for one window of MLPs, the clean run not counted."""
    frame = Cell("mlp_out", tuple((layer, None) for layer in layers), pairs.at("last_subject"))
    edits = restore(model, Run(pairs.clean_tokens), [frame], range(len(pairs)))
    corrupted = Run(pairs.corrupted_tokens("S2"))
    return lambda: run_with_edits(model, corrupted, edits)


def against_others(clock: Clock, device: str) -> list[Row]:
    """The four sweeps of GPT-2 small's geometry beside what one would do otherwise."""
    model = random_gpt2(device)
    pairs = random_pairs(model)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    length, some = pairs.clean_tokens.shape[1], 6
    at_s2 = {"corruption": pl.STR("S2")}
    early = {"corruption": pl.STR("S1+IO")}
    head = clock.seconds(by_transformer_lens(model, pairs, "S2", "z", some)) / some
    mlp = clock.seconds(by_transformer_lens(model, pairs, "S2", "mlp_out", some)) / some
    window = clock.seconds(by_hooks(model, pairs, range(3, 8)))
    works = (
        ("all heads, corruption at S2", at_s2, layers * heads, head, 10),
        ("all heads, corruption at S1 and IO", early, layers * heads, head, 4),
        ("MLPs at every position", at_s2 | {"positions": "each"}, layers * length, mlp, 6),
        (
            "MLPs in windows of 3, 5, 10, last subject token",
            at_s2 | {"positions": "last_subject"} | WINDOWS,
            3 * layers,
            window,
            6,
        ),
    )
    table = []
    for name, settings, cells, one, target in works:
        component = "head" if "heads" in name else "mlp"
        work = sweep(model, pairs, component=component, **settings)
        with FlopCounterMode(display=False) as counter:
            work()
        rate = clock.rate()
        seconds = clock.seconds(work)
        rate = (rate + clock.rate()) / 2
        table.append(
            {
                "work": name,
                "cells": cells,
                "seconds": seconds,
                "one pass per cell (s)": one * cells,
                "times faster": one * cells / seconds,
                "aim": target,
                "share of matmul rate": counter.get_total_flops() / seconds / rate,
                "peak MiB": peak(model, work),
            }
        )
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
        table.append(row | {"seconds": clock.seconds(work), "peak MiB": peak(model, work)})
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
            model = random_gpt2(device, chosen["layers"], chosen["heads"])
            pairs = random_pairs(model, chosen["prompts"], chosen["tokens"])
            work = sweep(model, pairs, component="head", corruption=pl.STR("S2"))
            seconds = clock.seconds(work)
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
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    clock = Clock(arguments.device, arguments.repetitions)
    machine = {
        "device": arguments.device,
        "name": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matmul GFLOP/s": clock.rate() / 1e9,
    }
    parts = {
        "GPT-2 small's geometry, 32 prompts of 15 tokens": against_others,
        "mini": of_mini,
        "growth, from 16 prompts of 15 tokens in 6 layers of 12 heads": growth,
    }
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

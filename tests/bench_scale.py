"""How far a sweep scales over workers: ``make bench-scale``.

Blocks are timed one at a time in this process, in seconds of the processor; the times of two real
workers are those of the clock. Nothing here is a test; `tests/test_workers.py` checks the numbers.
"""

import argparse
import heapq
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Executor, Future
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import loky
import pandas as pd

import patchlib as pl

OUT = Path(__file__).parents[1] / "_build" / "bench"
PROMPTS, TIMED = 290, 64
Row = dict[str, Any]


class Here(Executor):
    """Runs each block when it is handed out, and keeps how long it took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def submit(self, task: Any, *block: Any) -> Future:  # type: ignore[override]
        started = time.process_time()
        task(*block)
        self.seconds.append(time.process_time() - started)
        future: Future = Future()
        future.set_result(None)
        return future


def sweep(model: Any, n: int, make: Any, block: int, progress: Any = False) -> None:
    """All heads of the first prompts, with a folder that is deleted."""
    pairs, options = pl.tasks.ioi(model, n=n), {"corruption": pl.STR("S2"), "progress": progress}
    with tempfile.TemporaryDirectory() as folder:
        pl.patch(model, pairs, executor=make, block=block, checkpoint=folder, **options)


def starting(name: str) -> float:
    """Seconds of the processor until a new worker has loaded the model."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"import patchlib as pl; pl.load_model({name!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def blocks(model: Any) -> list[Row]:
    """What a prompt costs in blocks of several sizes, in this process and beside it."""
    table = []
    for block in (1, 8, 32):
        here, started = Here(), time.process_time()
        sweep(model, TIMED, lambda here=here: here, block)
        own = time.process_time() - started - sum(here.seconds)
        # The first block loads the model.
        rest = here.seconds[1:]
        row = {"prompts in a block": block, "block (s)": statistics.median(rest)}
        table.append(row | {"this process, for each block (s)": own / len(here.seconds)})
    a_prompt = (table[-1]["block (s)"] - table[0]["block (s)"]) / 31
    for row in table:
        row["of it overhead (s)"] = row["block (s)"] - a_prompt * row["prompts in a block"]
        show(row)
    return table


def throughput(model: Any) -> list[Row]:
    """Prompts per second of loky's workers in a sweep's second half, when all have begun."""
    table: list[Row] = []
    for workers in (1, 2):
        seen: list[tuple[float, int]] = []

        def note(done: int, total: int, seen: list[tuple[float, int]] = seen) -> None:
            seen.append((time.perf_counter(), done))

        make = partial(loky.get_reusable_executor, max_workers=workers)
        sweep(model, 8 * TIMED, make, 8, note)
        heads = model.cfg.n_layers * model.cfg.n_heads
        (begun, _), (first, _), (last, rows) = seen[0], seen[1], seen[-1]
        half, some = next(each for each in seen if each[1] >= rows / 2)
        row = {"workers": workers, "prompts/s": (rows - some) / heads / (last - half)}
        table.append(row | {"until the first pass (s)": first - begun})
        show(table[-1])
    return table


def simulated(times: list[float], workers: int, start: float, own: float) -> tuple[float, float]:
    """When the last worker is done, and when this process has taken over all of it.

    Workers start together and take the next block when they are free; this process takes over what
    they finish, one block after another.
    """
    free, taken = [start] * workers, 0.0
    for seconds in times:
        done = heapq.heappop(free) + seconds
        heapq.heappush(free, done)
        taken = max(taken, done) + own
    return max(free), taken


def simulation(measured: list[Row], start: float) -> list[Row]:
    """How many times faster a sweep of `PROMPTS` prompts is on up to 256 workers.

    It stops scaling where twice as many workers are not even half as fast again. A block's time
    varies by a tenth, drawn; a larger model's is longer by a factor, its overhead is not.
    """
    table = []
    for factor, row in product((1, 1000), measured):
        size, overhead = row["prompts in a block"], row["of it overhead (s)"]
        own, one = row["this process, for each block (s)"], (row["block (s)"] - overhead) / size
        draw, sizes = random.Random(0), [size] * (PROMPTS // size) + [PROMPTS % size]
        times = [(overhead + factor * one * n) * draw.uniform(0.9, 1.1) for n in sizes if n]
        ends = {2**power: simulated(times, 2**power, start, own) for power in range(10)}
        stops = next(n for n in ends if n > 256 or ends[n][1] < 1.5 * ends[2 * n][1])
        last, taken = ends[2 * stops]
        if 4 * stops >= len(times):
            why = "too few blocks for each worker"
        elif taken > 1.5 * last:
            why = "this process takes over one block after another"
        else:
            why = "loading the model" if start > last / 2 else "overhead"
        found = {"a prompt (s)": factor * one, "block": size, "one worker (s)": ends[1][1]}
        found |= {f"{n} workers": ends[1][1] / ends[n][1] for n in (2, 8, 32, 128, 256)}
        table.append(found | {"stops at": stops, "why": why})
    return table


def show(row: Row) -> None:
    """Prints a row as it comes; tables follow at the end."""
    print({name: round(value, 4) for name, value in row.items()})


def main() -> None:
    """Measures, prints and writes ``_build/bench/scale.json``."""
    parser = argparse.ArgumentParser(description="Measure how a sweep scales over workers.")
    parser.add_argument("--model", default="mini", help="a name or a folder")
    name = parser.parse_args().model
    model = pl.load_model(name)
    start, measured = starting(name), blocks(model)
    tables = {
        f"blocks of {name}": measured,
        "loky": throughput(model),
        f"simulation of {PROMPTS} prompts, {start:.1f} s to load": simulation(measured, start),
    }
    for title, table in tables.items():
        print(f"\n{title}\n{pd.DataFrame(table).to_string(index=False, float_format='%.3g')}")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "scale.json").write_text(json.dumps({"start": start, "tables": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()

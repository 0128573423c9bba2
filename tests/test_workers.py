"""A sweep on other processes gives one process' numbers, whatever happens to them."""

import functools
import json
import os
import random
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.patching import checkpoint, workers
from patchlib.patching.patch import ENGINES
from patchlib.prompts.pairs import PromptPairs

pytestmark = pytest.mark.slow
# The server has imported what workers need, and forking it is safe: it runs no threads.
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["patchlib.patching.patch"])
FORK = get_context("fork")
OPTIONS: dict[str, Any] = {"corruption": pl.GN("S1+IO", draws=2), "batch_size": 2}
PAGE = (Path(__file__).parents[1] / "notebooks" / "scaling.md").read_text(encoding="utf-8")
ROWS = 2 * 3 * 4
"""Of one prompt: draws, layers and heads."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have one thread, too, and nobody waits long for them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(workers, "_PAUSE", 0.02)


@pytest.fixture(scope="module")
def model(tiny_folders: Callable[[str], Path]) -> TransformerBridge:
    """In double precision, where another grouping of rows changes the sixteenth digit alone."""
    return pl.load_model(tiny_folders("gpt2"), dtype="float64")


@pytest.fixture
def pairs(model: TransformerBridge) -> PromptPairs:
    return pl.tasks.ioi(model, n=5)


def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


def processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=SERVER)


def rows_in(folder: Path) -> int:
    """How many rows all passes in a folder hold, those twice that were measured twice."""
    files = [xr.Dataset.from_dict(json.loads(p.read_bytes())) for p in folder.glob("piece-*")]
    return sum(piece.sizes["instance"] * piece.sizes["cell"] for piece in files)


def assert_equal(here: xr.Dataset, there: xr.Dataset) -> None:
    xr.testing.assert_allclose(here, there, rtol=0, atol=1e-12)
    assert here.attrs == there.attrs


@pytest.mark.parametrize("make", [threads, processes])
def test_same_numbers_as_one_process(model, pairs, tmp_path, make):
    """Logit differences too, whose scale is a mean over the prompts of all blocks."""
    whole = pl.patch(model, pairs, progress=False, **OPTIONS, keep_prompts=True)
    rows: list[tuple[int, int]] = []
    options = {"keep_prompts": True, "checkpoint": tmp_path, "block": 2, **OPTIONS}
    options["progress"] = lambda done, total: rows.append((done, total))
    assert_equal(pl.patch(model, pairs, executor=make, **options), whole)
    # One count over all workers, and each row was measured by one of them.
    assert rows[0] == (0, 5 * ROWS)
    assert rows[-1] == (5 * ROWS, 5 * ROWS) == (rows_in(tmp_path), 5 * ROWS)
    assert rows == sorted(rows)


def test_prompts_of_several_lengths_and_a_source_over_all_of_them(model, tmp_path):
    """A mean over all prompts is not one over a block; layers and windows come in any form."""
    pairs = pl.tasks.factual_recall(model, n=9)
    options: dict[str, Any] = {"corruption": pl.STR("subject"), "positions": "last_subject"}
    options |= {"source": pl.Mean(), "keep_prompts": True, "progress": False}
    whole = pl.patch(model, pairs, "mlp", layers=range(1, 3), window=(1, 3), **options)
    options |= {"executor": threads, "checkpoint": tmp_path, "block": 2}
    layers = iter([1, 2])
    assert_equal(pl.patch(model, pairs, "mlp", layers=layers, window=(1, 3), **options), whole)
    options |= {"checkpoint": tmp_path / "heads"}
    heads = pl.patch(model, pairs, heads=iter(["1.1", "2.3"]), **options)
    assert int(heads.effect.notnull().sum()) == 2 * 3 * len(pairs)


@contextmanager
def a_pool() -> Iterator[tuple[Callable[[], Any], Callable[[], int]]]:
    """Executors, and the process of a worker."""
    pools: list[ProcessPoolExecutor] = []

    def make() -> ProcessPoolExecutor:
        pools.append(processes())
        return pools[-1]

    yield make, lambda: next(iter(pools[-1]._processes))


@contextmanager
def loky() -> Iterator[tuple[Callable[[], Any], Callable[[], int]]]:
    pool = functools.partial(pytest.importorskip("loky").get_reusable_executor, max_workers=2)
    yield pool, lambda: next(iter(pool()._processes))


@contextmanager
def dask() -> Iterator[tuple[Callable[[], Any], Callable[[], int]]]:
    distributed = pytest.importorskip("distributed")
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**settings) as cluster, distributed.Client(cluster) as client:
        make = functools.partial(client.get_executor, pure=False)
        yield make, lambda: next(iter(cluster.workers.values())).pid


@pytest.mark.parametrize("kind", [a_pool, loky, dask])
def test_a_killed_worker_loses_its_unfinished_pass_alone(model, tmp_path, kind):
    """Nothing that is finished is lost or measured again."""
    pairs = pl.tasks.ioi(model, n=12)
    killed: list[int] = []
    with kind() as (make, worker):

        def kill(done: int, total: int) -> None:
            if 20 <= done < total and not killed:
                killed.append(worker())
                os.kill(killed[0], signal.SIGKILL)

        options = OPTIONS | {"checkpoint": tmp_path, "progress": kill, "block": 4}
        fx = pl.patch(model, pairs, executor=make, **options)
    assert len(killed) == 1
    assert rows_in(tmp_path) == 12 * ROWS
    assert_equal(fx, pl.patch(model, pairs, progress=False, **OPTIONS))


def test_fifty_kills(model, tmp_path):
    """Each a drawn time after a drawn number of new passes, in the middle of a write too: nothing
    is lost, and the result is that of an undisturbed sweep.
    """
    pairs = pl.tasks.ioi(model, n=40)
    options = OPTIONS | {"checkpoint": tmp_path, "progress": False}
    draw = random.Random(0)
    for _ in range(50):
        passes = len([*tmp_path.glob("piece-*")]) + draw.choice([0, 1, 2, 3])
        process = FORK.Process(target=functools.partial(pl.patch, model, pairs, **options))
        process.start()
        while len([*tmp_path.glob("piece-*")]) < passes and process.is_alive():
            time.sleep(0.001)
        time.sleep(0.01 * draw.random())
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert 50 < len([*tmp_path.glob("piece-*")]) < 40 * ROWS / 2
    fx = pl.patch(model, pairs, **options)
    assert_equal(fx, pl.patch(model, pairs, progress=False, **OPTIONS))
    assert rows_in(tmp_path) == 40 * ROWS


class Broken(Executor):
    """Every block of it fails; or does nothing at all."""

    def __init__(self, error: Exception | None = None):
        self.error = error

    def submit(self, *args: Any) -> Future:  # type: ignore[override]
        future: Future = Future()
        if self.error is None:
            future.set_result(None)
        elif isinstance(self.error, CancelledError):
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            future.set_exception(self.error)
        return future


@pytest.mark.parametrize("retries", [0, 2])
def test_blocks_that_always_fail(model, pairs, tmp_path, retries):
    """The last error is told, and a second call takes up what is left."""
    made: list[int] = []

    def make() -> Broken:
        made.append(1)
        return Broken(MemoryError("no room"))

    options = OPTIONS | {"checkpoint": tmp_path, "progress": False, "block": 2}
    message = rf"left after retries={retries}: 3. The last error was MemoryError: no room.* goes on"
    with pytest.raises(pl.PatchlibError, match=message):
        pl.patch(model, pairs, "mlp", executor=make, retries=retries, **options)
    assert len(made) == retries + 1
    fx = pl.patch(model, pairs, "mlp", executor=threads, **options)
    assert_equal(fx, pl.patch(model, pairs, "mlp", progress=False, **OPTIONS))


def shut_down() -> ThreadPoolExecutor:
    made = threads()
    made.shutdown()
    return made


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Broken(CancelledError()), "left after retries=1: 3.*CancelledError"),
        (shut_down, "after shutdown.*executor= has to make a new one each time"),
        (lambda: None, "executor= made None, which has no submit: give a function"),
    ],
)
def test_executors_that_run_nothing(model, pairs, tmp_path, make, words):
    """What a closed cluster cancels is handed out again, as what fails is."""
    options = OPTIONS | {"checkpoint": tmp_path, "progress": False, "block": 2, "retries": 1}
    with pytest.raises(pl.PatchlibError, match=words):
        pl.patch(model, pairs, "mlp", executor=make, **options)


def test_forked_workers_with_threads_are_refused(model, pairs, tmp_path, monkeypatch):
    """They would wait for ever for threads that only the first process has."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    make = functools.partial(ProcessPoolExecutor, 1, mp_context=FORK)
    with pytest.raises(pl.PatchlibError, match=r"forked.*get_context\('spawn'\).*NUM_THREADS=1"):
        pl.patch(model, pairs, executor=make, checkpoint=tmp_path, progress=False, **OPTIONS)


def test_workers_that_see_another_folder(model, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_PATIENCE", 0.1)
    with pytest.raises(pl.PatchlibError, match="not all of it is in the folder"):
        pl.patch(model, pairs, executor=Broken, checkpoint=tmp_path, progress=False, **OPTIONS)


class _Stopped(Exception):
    pass


def test_stopped_and_taken_up_again(model, pairs, tmp_path, monkeypatch):
    """By one process, by workers with blocks of another size, and then by nobody."""

    def stop(done: int, total: int) -> None:
        if done >= 10:
            raise _Stopped

    options = OPTIONS | {"checkpoint": tmp_path}
    with pytest.raises(_Stopped):
        pl.patch(model, pairs, progress=stop, **options)
    first = rows_in(tmp_path)
    with pytest.raises(_Stopped):
        # It begins with more than it waits for; its worker finishes a pass.
        pl.patch(model, pairs, executor=threads, progress=stop, **options)
    options |= {"block": 3, "progress": False}
    fx = pl.patch(model, pairs, executor=threads, **options)
    assert 10 <= first <= rows_in(tmp_path)
    assert_equal(fx, pl.patch(model, pairs, progress=False, **OPTIONS))
    monkeypatch.setattr("patchlib.patching.patch.ENGINES", dict.fromkeys(ENGINES))
    assert_equal(pl.patch(model, pairs, executor=Broken, **options), fx)


def test_what_a_killed_process_left(model, pairs, tmp_path):
    """There are no locks that could be stale; a half-written file and a lock of others' wait for
    nobody.
    """
    for name in (".settings.1-ab.part.json", ".piece-0123.1-ab.part.json", ".lock"):
        (tmp_path / name).write_text("{")
    options = OPTIONS | {"checkpoint": tmp_path, "progress": False}
    fx = pl.patch(model, pairs, "mlp", executor=threads, **options)
    assert_equal(fx, pl.patch(model, pairs, "mlp", progress=False, **OPTIONS))


def small_files() -> None:
    """A write of more than 500 bytes breaks off in its middle, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))


def full() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=SERVER, initializer=small_files)


def test_a_full_disk(model, pairs, tmp_path):
    """Nothing half-written is left, and with room again the sweep is finished."""
    options = OPTIONS | {"checkpoint": tmp_path, "progress": False}
    with pytest.raises(pl.PatchlibError, match=r"cannot be written to .*File too large.*make room"):
        pl.patch(model, pairs, "mlp", executor=full, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    fx = pl.patch(model, pairs, "mlp", executor=threads, **options)
    assert_equal(fx, pl.patch(model, pairs, "mlp", progress=False, **OPTIONS))


def test_a_folder_that_becomes_read_only(model, pairs, tmp_path, monkeypatch):
    """What was finished before is kept."""
    written: list[Path] = []

    def write(path: Path, how: Callable[[Path], object]) -> None:
        if len(written) > 3:
            raise OSError(30, "Read-only file system")
        written.append(path)
        plain(path, how)

    plain = checkpoint.write_whole
    options = OPTIONS | {"checkpoint": tmp_path, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_whole", write)
        with pytest.raises(pl.PatchlibError, match=r"Read-only file system.*the folder writable"):
            pl.patch(model, pairs, "mlp", executor=threads, **options)
    assert len([*tmp_path.glob("piece-*")]) == 3
    fx = pl.patch(model, pairs, "mlp", executor=threads, **options)
    assert_equal(fx, pl.patch(model, pairs, "mlp", progress=False, **OPTIONS))
    assert rows_in(tmp_path) == 5 * 2 * 3


def test_workers_with_another_model_are_refused(tiny_folders, pairs, tmp_path):
    """They load it by its name, and this one was changed after loading."""
    model = pl.load_model(tiny_folders("gpt2"), dtype="float64")
    with torch.no_grad():
        model.blocks[2].mlp.out.original_component.bias[0] += 1
    options = OPTIONS | {"checkpoint": tmp_path, "progress": False}
    words = (
        r"loads the model by its name, .*weights \(\w{24}.*after loading: .* leave executor= out"
    )
    with pytest.raises(pl.PatchlibError, match=words):
        pl.patch(model, pairs, "mlp", executor=threads, **options)


def missing(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("name", "extra"), [("loky", "loky"), ("dask.distributed", "dask"), ("submitit", "slurm")]
)
def test_a_missing_library_names_the_command(model, pairs, tmp_path, name, extra):
    make = functools.partial(missing, name)
    with pytest.raises(pl.PatchlibError, match=rf"needs {name}.*pip install 'patchlib\[{extra}\]'"):
        pl.patch(model, pairs, executor=make, checkpoint=tmp_path, **OPTIONS)
    with pytest.raises(ModuleNotFoundError, match="another"):
        make = functools.partial(missing, "another")
        pl.patch(model, pairs, executor=make, checkpoint=tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"checkpoint": None}, "executor= without checkpoint=: give a folder"),
        ({"executor": "loky"}, "executor='loky': give a function that makes one"),
        ({"block": 0}, "block=0: give a whole number"),
        ({"retries": -1}, "retries=-1: give a whole number"),
    ],
)
def test_settings(model, pairs, tmp_path, settings, words):
    options = OPTIONS | {"executor": Broken, "checkpoint": tmp_path} | settings
    with pytest.raises(pl.PatchlibError, match=words):
        pl.patch(model, pairs, **options)


def test_the_recipes_of_the_page(mini, tmp_path, monkeypatch):
    """As they stand there; without Slurm, submitit starts a process for each job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHLIB_MODEL", "mini")
    pairs = pl.tasks.ioi(mini, n=8)
    whole = pl.patch(mini, pairs, corruption=pl.STR("S2"), progress=False)
    codes = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert codes[-1].count("\n") <= 15
    names: dict[str, Any] = {}
    for code, folder in zip(codes, ("loky", "dask", "slurm"), strict=True):
        exec(code, names)
        xr.testing.assert_allclose(names["fx"].patched, whole.patched, rtol=0, atol=1e-5)
        assert rows_in(tmp_path / "runs" / folder) == 8 * 8 * 8
    names["client"].close()

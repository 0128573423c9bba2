"""A sweep in blocks on other processes, over any executor: whatever has ``submit``."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

import torch

from patchlib.errors import PatchlibError, whole

# What makes executors, and the extra of this package that installs it.
_EXTRAS = {"loky": "loky", "distributed": "dask", "dask": "dask", "submitit": "slurm"}
# Seconds between two looks into the folder, and until a file that is written on one machine must
# be seen on another: network file systems keep listings for up to a minute.
_PAUSE, _PATIENCE = 0.2, 90.0


def require_sense(
    executor: object, block: int, retries: int, checkpoint: str | os.PathLike[str] | None
) -> None:
    """Refuses an executor that is no function, no folder, and numbers that make no sense."""
    whole("block", block, 1)
    whole("retries", retries, 0)
    if not callable(executor):
        raise PatchlibError(
            f"executor={executor!r}: give a function that makes one, since a new one is needed "
            "where a worker was killed: loky.get_reusable_executor, for example"
        )
    if checkpoint is None:
        raise PatchlibError(
            "executor= without checkpoint=: give a folder that all workers see, where they keep "
            "what they have finished"
        )


def require_threads() -> None:
    """Refuses to compute where that would wait for ever, for threads that a fork left behind."""
    forked = type(multiprocessing.current_process()).__name__ == "ForkProcess"
    if forked and torch.get_num_threads() > 1:
        raise PatchlibError(
            "it was forked from a process whose threads it lacks: let workers be started anew, "
            "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn')) for example, or "
            "set OMP_NUM_THREADS=1 in the environment"
        )


def run(
    executor: Callable[[], Any],
    block: int,
    retries: int,
    task: Callable[..., object],
    blocks: Callable[[int], Sequence[tuple[Any, ...]]],
    collect: Callable[[], object],
) -> None:
    """Hands out blocks until nothing is left; what workers finish is found in a folder.

    Args:
        executor: makes an executor, and another one where that has broken.
        block: how many prompts are one block.
        retries: how often what failed is handed out again.
        task: what a worker does with a block.
        blocks: what is left now, in blocks of a size, each the arguments of ``task``.
        collect: takes over what has been finished since.

    Raises:
        PatchlibError: where a worker refuses, where blocks still fail after all retries, and where
            workers are done and nothing of it is in the folder.
    """
    collect()
    attempts, failed = 0, None
    while left := blocks(block):
        if attempts > retries:
            raise PatchlibError(
                f"executor=: blocks left after retries={retries}: {len(left)}. The last error was "
                f"{type(failed).__name__}: {failed}. What was finished is kept, and the same call "
                "goes on from there; a worker that was killed often lacked memory: give fewer "
                "workers, or a memory_budget=. An executor is shut down after use: executor= has "
                "to make a new one each time"
            ) from failed
        attempts += 1
        failed = _round(_made(executor), task, left, collect)
        if isinstance(failed, PatchlibError):
            raise PatchlibError(
                f"a worker, which loads the model by its name, refused its block: {failed}. It has "
                "nothing of what was done to the model after loading: for that leave executor= out"
            ) from failed
        until = time.monotonic() + _PATIENCE
        while failed is None and blocks(block):
            if time.monotonic() > until:
                raise PatchlibError(
                    "executor=: the workers say that they are done, and not all of it is in the "
                    "folder of checkpoint=: give a folder that is the same for all of them"
                )
            time.sleep(_PAUSE)
            collect()


def _round(
    executor: Any,
    task: Callable[..., object],
    left: Sequence[tuple[Any, ...]],
    collect: Callable[[], object],
) -> BaseException | None:
    """Has every block tried once; the error of one that failed."""
    futures: list[Any] = []
    failed: BaseException | None = None
    try:
        for block in left:
            futures.append(executor.submit(task, *block))
    # Whatever an executor raises once a worker of it is gone.
    except Exception as error:
        failed = error
    try:
        while not all([future.done() for future in futures]):
            time.sleep(_PAUSE)
            collect()
    finally:
        # Where the caller stops, what has not begun never does.
        open_ones = [future for future in futures if not future.done()]
        for future in open_ones:
            future.cancel()
        if hasattr(executor, "shutdown"):
            executor.shutdown(wait=not open_ones)
    collect()
    return next(filter(None, map(_error, futures)), failed)


def _error(future: Any) -> BaseException | None:
    try:
        return future.exception()
    # By others, such as a cluster that is closed.
    except CancelledError as error:
        return error


def _made(executor: Callable[[], Any]) -> Any:
    try:
        made = executor()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(str(error.name).partition(".")[0])
        if extra is None:
            raise
        raise PatchlibError(
            f"executor= needs {error.name}, which is not installed: pip install 'patchlib[{extra}]'"
        ) from error
    if not hasattr(made, "submit"):
        raise PatchlibError(
            f"executor= made {made!r}, which has no submit: give a function that returns an "
            "executor, such as loky.get_reusable_executor"
        )
    return made

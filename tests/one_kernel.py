"""A plugin for nbval: the notebooks of a process share a kernel, which forgets one before the next.

Starting a kernel and importing what every notebook imports takes longer than many a notebook.
"""

from queue import Empty
from typing import Any

from nbval import plugin
from nbval.kernel import RunningKernel

# All that a notebook leaves: its names, what it showed, how pandas shows tables, and the two
# switches that torch has.
_FORGET = """
%reset -f
import gc, pandas, torch
pandas.reset_option("^display")
torch.set_grad_enabled(True)
torch.manual_seed(0)
gc.collect()
%reset -f
"""
_kept: list[RunningKernel] = []


class _Kept(RunningKernel):
    """A kernel that ends with the process, or where it does not answer."""

    def stop(self) -> None:
        try:
            self.await_reply(self.execute_cell_input(_FORGET), timeout=60)
        except Empty:
            super().stop()


def _kernel(*given: Any, **named: Any) -> RunningKernel:
    if not (_kept and _kept[-1].is_alive()):
        _kept.append(_Kept(*given, **named))
    return _kept[-1]


def pytest_configure() -> None:
    plugin.RunningKernel = _kernel


def pytest_unconfigure() -> None:
    if _kept and _kept[-1].is_alive():
        RunningKernel.stop(_kept[-1])

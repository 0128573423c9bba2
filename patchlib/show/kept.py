"""The sweeps of a widget: each is computed once, or read from where sweeps are stored."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.patching import duration
from patchlib.patching.metrics import METRICS
from patchlib.patching.patch import patch
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs

# What stored sweeps hold; all other metrics are computed with them.
_PAPERS = ("logit_diff", "prob", "kl")
# So few in a pass that progress shows and a stop takes effect.
_ROWS = 128


@dataclass(frozen=True)
class Request:
    """What is to be patched.

    Args:
        pairs: the prompts.
        corruption: how they are corrupted.
        component: as in `patchlib.patch`, as the others.
        positions: what is restored.
        window: how many layers at once.
        direction: ``"denoise"`` or ``"noise"``.
    """

    pairs: PromptPairs = field(compare=False)
    corruption: Corruption
    component: str
    positions: str
    window: int
    direction: str

    @property
    def key(self) -> Hashable:
        """What it is known by."""
        return self, self.pairs.fingerprint

    @property
    def settings(self) -> dict[str, object]:
        """The settings of `patchlib.patch`."""
        names = ("corruption", "component", "positions", "window", "direction")
        return {name: getattr(self, name) for name in names}


class _MustCompute(Exception):
    """Raised by the first step of a sweep that was to be read."""


class KeptSweeps:
    """Sweeps by their requests, with one value per prompt.

    Args:
        model: the model.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self._model = model
        self._known: dict[Hashable, xr.Dataset] = {}
        self._rate: float | None = None

    def at_once(self, request: Request, metric: str) -> xr.Dataset | None:
        """A result that was computed before or is stored; None where it must be computed.

        Args:
            request: what is patched.
            metric: a metric that the result must hold.
        """
        known = self._known.get(request.key)
        if known is not None and metric in known.metric.values:
            return known

        def refuse(done: int, total: int) -> None:
            raise _MustCompute

        metrics = list(_PAPERS if metric in _PAPERS else METRICS)
        try:
            return self._patch(request, metrics, refuse)
        except _MustCompute:
            return None

    def seconds(self, request: Request) -> float:
        """About how long a request takes.

        Args:
            request: what is patched.
        """
        if self._rate is None:
            self._rate = duration.rate(self._model)
        corruption, where = request.corruption, (request.component, request.positions)
        total = duration.operations(
            self._model, request.pairs, corruption.site, corruption.draws, *where, request.window
        )
        return total / self._rate

    def compute(self, request: Request, progress: Callable[[int, int], object]) -> xr.Dataset:
        """Computes a request, with all metrics, and keeps the result.

        Args:
            request: what is patched.
            progress: is told how many rows of how many are done, and may raise to stop.
        """
        return self._patch(request, list(METRICS), progress)

    def _patch(
        self, request: Request, metrics: list[str], progress: Callable[[int, int], object]
    ) -> xr.Dataset:
        fx = patch(
            self._model,
            request.pairs,
            metrics=metrics,
            keep_prompts=True,
            batch_size=_ROWS,
            progress=progress,
            **request.settings,  # type: ignore[arg-type]
        )
        self._known[request.key] = fx
        return fx

"""The sweeps of a widget: each is computed once, or read from where sweeps are stored."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.patching.cells import COMPONENTS, unit_of
from patchlib.patching.metrics import METRICS
from patchlib.patching.patch import patch
from patchlib.prompts.corruption import GN, Corruption
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
    """Sweeps by their requests.

    Args:
        model: the model.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self._model = model
        self._known: dict[Hashable, xr.Dataset] = {}
        self._seconds: dict[Hashable, float] = {}

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
        """About how long a request takes, by one prompt and one unit of each layer.

        Args:
            request: what is patched.
        """
        one = request.corruption
        if isinstance(one, GN):
            one = dataclasses.replace(one, draws=1)
        kind = (request.pairs.task, dataclasses.replace(request, corruption=one))
        if kind not in self._seconds:
            n_layers, unit = (
                self._model.cfg.n_layers,
                unit_of(self._model, COMPONENTS[request.component]),
            )
            first = None if unit is None else [(layer, 0) for layer in range(n_layers)]
            settings = request.settings | {"corruption": one, "heads": first}
            times: list[float] = []
            fx = patch(
                self._model,
                request.pairs[:1],
                recompute=True,
                # From the first call on, so that what is done once for a model is not counted.
                progress=lambda done, total: times.append(time.perf_counter()),
                **settings,  # type: ignore[arg-type]
            )
            units = 1 if unit is None else fx.sizes[unit[0]]
            self._seconds[kind] = (times[-1] - times[0]) * units
        return self._seconds[kind] * len(request.pairs) * request.corruption.draws

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
        settings = request.settings
        fx = patch(
            self._model,
            request.pairs,
            metrics=metrics,
            batch_size=_ROWS,
            progress=progress,
            **settings,  # type: ignore[arg-type]
        )
        self._known[request.key] = fx
        return fx

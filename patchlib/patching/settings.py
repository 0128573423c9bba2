"""What every result keeps: all that decides its numbers, whoever measured them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.models.loading import describe
from patchlib.patching.checkpoint import hooked
from patchlib.patching.code import fingerprint
from patchlib.patching.metrics import METRICS, Metric
from patchlib.prompts.corruption import Corruption, is_own
from patchlib.prompts.pairs import PromptPairs


def of_result(
    model: TransformerBridge,
    pairs: PromptPairs,
    corruption: Corruption | None = None,
    metrics: Sequence[Metric] = (),
    what: Mapping[str, Any] | None = None,
    reserved: Iterable[str] = (),
) -> dict[str, Any]:
    """The settings of a result: model, prompts, corruption, own code, hooks and versions.

    Args:
        model: the model.
        pairs: the prompts.
        corruption: the corruption, where there is one.
        metrics: what was measured; those of somebody's own are kept with a hash of their code.
        what: the caller's own settings.
        reserved: more names that a corruption's fields must not have.

    Raises:
        PatchlibError: for a corruption with a field of another setting's name.
    """
    found: dict[str, Any] = {**describe(model), **pairs.describe(), **(what or {})}
    own = [metric for metric in metrics if metric not in METRICS.values()]
    if own:
        found["own_metrics"] = ", ".join(f"{m.name} ({fingerprint(vars(m))})" for m in own)
        found |= {f"label_{metric.name}": metric.label for metric in own}
    if hooks := hooked(model):
        found["hooks"] = ", ".join(hooks)
    libraries = ("patchlib", "torch", "transformer-lens", "transformers")
    found |= {library.replace("-", "_"): version(library) for library in libraries}
    if corruption is None:
        return found
    if is_own(corruption):
        found["own_corruption"] = fingerprint(corruption)
    clash = sorted(corruption.describe().keys() & {*found, *reserved})
    if clash:
        raise PatchlibError(
            f"{type(corruption).__name__} has a field {clash[0]!r}, which is the name of another "
            "setting in results: call it something else"
        )
    return found | corruption.describe()

"""Edge attribution patching: estimates of every edge's effect from gradients, in a few passes.

What a reader reads changes by what the writer's output differs between the runs; times the gradient
there, that is the edge's effect to first order (Syed, Rager & Conmy, 2023). Gradients at several
places on the way between the runs give integrated gradients (Hanna, Pezzelle & Belinkov, 2024).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError, whole
from patchlib.methods.edges import _Cell, _Engine, _frame
from patchlib.patching.cells import Limits, Piece
from patchlib.patching.fast_engine import _read_by, first_difference
from patchlib.patching.metrics import Metric, measure
from patchlib.patching.patch import Metrics, _patch, _require_sense
from patchlib.patching.runs import Run, batches
from patchlib.patching.sources import Taken
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs


def attribute_edges(
    model: TransformerBridge,
    pairs: PromptPairs,
    *,
    corruption: Corruption,
    steps: int = 1,
    along: str = "inputs",
    direction: str = "denoise",
    metrics: Metrics = "logit_diff",
    keep_prompts: bool = False,
    keep_draws: bool = False,
    memory_budget: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Estimates what `patch_edges` measures for every edge alone.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths.
        corruption: as in `patch`.
        steps: at how many places gradients are taken, evenly spaced on the way from the other run
            to the patched run's own, which is the last. 1 is EAP; more are EAP-IG, of whose paper
            5 are.
        along: what goes that way. ``"inputs"``: the embedding, for all edges at once.
            ``"activations"``: what a writer writes, for its own edges; one writer after the other,
            so that it takes as many times longer as there are writers.
        direction: as in `patch`; both papers noise.
        metrics: as in `patch`, but only those that have a gradient.
        keep_prompts: as in `patch`.
        keep_draws: as in `patch`.
        memory_budget: as in `patch`.
        checkpoint: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset as `patch_edges` gives it for each edge, with ``patched`` as estimated. The sum of
        effects over all edges that leave a node is with one step the node's own attribution. With
        many it comes to what patching the node does: for the embedding, along activations for all.

    Raises:
        PatchlibError: for a metric without a gradient, another ``along``, and as `patch_edges`
            does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> fx = pl.attribute_edges(model, pairs, corruption=pl.STR("S2"), progress=False)
        >>> dict(fx.effect.sizes), int(fx.effect.notnull().sum())
        ({'metric': 1, 'writer': 73, 'reader': 201}, 6637)
    """
    _require_sense(model, pairs, corruption)
    steps = whole("steps", steps, 1)
    if along not in ("inputs", "activations"):
        raise PatchlibError(f"along={along!r}: give 'inputs' or 'activations'")
    frame, said = _frame(model, pairs, "each")
    return _patch(
        model,
        pairs,
        frame,
        corruption,
        metrics,
        {"method": "edge attribution patching", **said, "steps": steps, "along": along},
        "all",
        direction,
        None,
        keep_prompts,
        keep_draws,
        _Gradients(model, pairs, corruption, steps, along).sweep,
        Limits.of(model, "auto", memory_budget),
        checkpoint,
        progress,
    )


@dataclass(frozen=True)
class _Gradients(_Engine):
    """Estimates by gradients of how much each reader sees of each writer's change."""

    steps: int
    along: str

    def sweep(
        self,
        model: TransformerBridge,
        pairs: PromptPairs,
        source: Run,
        destination: Run,
        cells: Sequence[_Cell],
        metrics: Sequence[Metric],
        limits: Limits,
        taken: Taken | None = None,
    ) -> Iterator[Piece]:
        """An engine, as `patchlib.patching.hook_engine.sweep`, for cells of one edge each."""
        graph, cfg = self.graph, model.cfg
        tokens, r, r_wrong = _read_by(metrics, pairs.answers, pairs.wrong_answers, self.network)
        ends = [edge for cell in cells for edge in cell.edges]
        at = torch.tensor(
            [(graph.reader_at[edge.reader], graph.writer_at[edge.writer]) for edge in ends]
        )
        # What a backward pass needs of every layer: streams before and after norms, neurons.
        kept = self.kept + 6 * len(graph.readers) * cfg.d_model
        kept += int(cfg.n_layers) * (12 * cfg.d_model + 6 * int(cfg.d_mlp or 0))
        for index, some in batches(model, pairs, limits.memory, kept):
            answers, which = (r[index], r_wrong[index]), slice(index[0], index[-1] + 1)
            runs = source.rows(which), destination.rows(which)
            (there, theirs), (here, mine) = map(self.writes, runs)
            start = first_difference(*runs)
            theirs, mine = theirs[:, :, start:], mine[:, :, start:]
            streams, past = self.trace(runs[1], start)
            if tokens is not None:
                there, here = there[:, tokens], here[:, tokens]
            unpatched = measure(metrics, torch.stack((there, here)), *answers, there, some.texts)
            # Each prompt is a set of its own, so that each has its own gradient.
            changes = (theirs - mine).transpose(0, 1)[:, :, None]
            none = graph.masks([_Cell(())] * len(some), mine)
            total = torch.zeros(len(metrics), *none.shape, dtype=torch.float64)
            every: Sequence[int | slice] = range(len(graph.writers))
            if self.along == "inputs":
                every = [slice(None)]
            for writers, step in product(every, range(1, self.steps + 1)):
                masks, share = none.clone(), 1 - step / self.steps
                if isinstance(writers, int):
                    # Nothing before its layer is another's.
                    first = max(0, writers - 1) // (graph.heads + 1)
                    x, masks[..., writers] = streams[first][:, None], share
                else:
                    first, x = 0, mine[0][:, None] + share * changes[:, 0]
                masks.requires_grad_()
                with torch.enable_grad():
                    logits = self.run(
                        x, changes, masks, tokens, fixed=True, first=first, past=past
                    )[:, 0]
                    for number, metric in enumerate(metrics):
                        value = metric.value(logits, *answers, there).sum()
                        if not value.requires_grad:
                            raise PatchlibError(
                                f"metric {metric.name!r} has no gradient, by which edges are "
                                "attributed: give another, such as 'logit_diff' or 'kl'"
                            )
                        (gradient,) = torch.autograd.grad(
                            value, masks, retain_graph=number < len(metrics) - 1
                        )
                        total[number, ..., writers] += (
                            gradient[..., writers].double().cpu() / self.steps
                        )
            estimates = total[:, :, at[:, 0], at[:, 1]].transpose(1, 2)
            patched = unpatched[:, 1, None] + estimates
            yield Piece(range(len(cells)), index, patched, unpatched.transpose(0, 1))

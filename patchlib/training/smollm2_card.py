"""Writes what `smollm2` can do into its card: ``python -m patchlib.training.smollm2_card``."""

from __future__ import annotations

from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from patchlib import tasks
from patchlib.files import DATA, IS_CHECKOUT
from patchlib.measure.unpatched import baselines
from patchlib.models.loading import load_model
from patchlib.tasks import facts
from patchlib.training.card import put

CARD = DATA / "models" / "smollm2.md"
# What the card calls it, the task, and what the task is called with.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "IOI": ("ioi", {"n": 500}),
    "IOI, the first 100": ("ioi", {"n": 100}),
    "the same after `<|im_start|>`": ("ioi", {"n": 100, "prepend_bos": True}),
    "Facts chosen for it": ("factual_recall", {"n": 290}),
    "Facts not chosen for it": ("factual_recall", {"n": 100, "path": facts.PAIRED_FACTS}),
    "Greater-than": ("greater_than", {"n": 100}),
    "Docstring": ("docstring", {"n": 100}),
    "Addition": ("arithmetic", {"n": 200, "operator": "+"}),
    "Subtraction": ("arithmetic", {"n": 200, "operator": "-"}),
    "Multiplication": ("arithmetic", {"n": 200, "operator": "*"}),
}
_HEAD = (
    "| task | prompts | logit difference (nats) | P(r) | P(r') | P(r) > P(r') | r on top |",
    "|---|---|---|---|---|---|---|",
)


def row(model: TransformerBridge, label: str) -> str:
    """One row of the table of skills.

    Args:
        model: the model.
        label: what the card calls the row.
    """
    task, options = ROWS[label]
    pairs = getattr(tasks, task)(model, **options)
    measured = baselines(model, pairs, metrics=["logit_diff", "prob", "wrong_prob", "accuracy"])
    difference, right, wrong, on_top = measured.clean.values
    numbers = (difference, right, wrong, right > wrong, on_top)
    return " | ".join([f"| {label}", f"{len(pairs)}", *(f"{x.mean():.3f}" for x in numbers)]) + " |"


def main() -> None:
    """Puts fresh numbers between the markers of the card."""
    if not IS_CHECKOUT:
        raise SystemExit("smollm2's card is in patchlib's repository: run this in a clone of it")
    model = load_model("smollm2")
    table = "\n".join([*_HEAD, *(row(model, label) for label in ROWS)])
    put(CARD, {"skills": table})
    print(table)


if __name__ == "__main__":
    main()

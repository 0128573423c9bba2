"""Writes the model card of `mini` from a fresh evaluation: ``python -m patchlib.training.card``."""

from __future__ import annotations

import json
from pathlib import Path

from patchlib.files import IS_CHECKOUT
from patchlib.models.loading import MINI, load_model
from patchlib.training import corpus, skills

_ROWS = (
    ("ioi_io_over_s", "IOI: share of prompts that prefer IO over S"),
    ("ioi_logit_diff", "IOI: mean logit difference (nats)"),
    ("ioi_p_io", "IOI: mean P(IO)"),
    ("ioi_top1", "IOI: share with IO on top"),
    ("facts", "Facts in a held-out phrasing: share with the answer on top"),
    ("facts_all", "Facts, all sentences: share with the answer on top"),
    ("greater_than", "Greater-than: P(> YY) - P(<= YY)"),
    ("docstring", "Docstring: share with the answer on top"),
    ("addition", "Addition: share with the answer on top"),
    ("subtraction", "Subtraction: share with the answer on top"),
    ("multiplication", "Multiplication: share with the answer on top"),
)


def evaluate() -> dict[str, float]:
    """Measures the shipped model's skills, loaded as any model is loaded."""
    model = load_model("mini")
    bos = model.tokenizer.bos_token_id
    return skills.measure(
        logits=lambda tokens: model(tokens),
        encode=lambda text: [bos, *model.tokenizer(text, add_special_tokens=False)["input_ids"]],
    )


def skills_table(measured: dict[str, float]) -> str:
    """The skills as a Markdown table, rounded to three decimals."""
    rows = [f"| {label} | {measured[name]:.3f} |" for name, label in _ROWS]
    return "\n".join(["| skill, on held-out instances | measured |", "|---|---|", *rows])


def training_table() -> str:
    """What ``training.json`` records, as Markdown."""
    made = json.loads((MINI / "training.json").read_text())
    last = made["log"][-1]
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            f"| seed | {made['seed']} |",
            f"| parameters | {made['parameters']:,} |",
            f"| steps | {last['step']} |",
            f"| time | {made['minutes']} minutes on {made['device'].upper()} |",
            f"| last loss, weighted | {last['loss']:.3f} |",
            f"| last loss on answers | {last['answers_loss']:.3f} |",
        ]
    )


def mixture_table() -> str:
    """The kinds of documents in the corpus and their shares, as Markdown."""
    rows = [
        f"| {write.__name__.strip('_').replace('_', ' ')} | {100 * share:.0f} % |"
        for write, share in corpus.MIXTURE
    ]
    return "\n".join(["| documents | share |", "|---|---|", *rows])


def put(path: Path, sections: dict[str, str]) -> None:
    """Writes text between the markers of a card, such as ``<!-- skills -->``.

    Args:
        path: the card.
        sections: the text for each pair of markers.
    """
    card = path.read_text(encoding="utf-8")
    for name, text in sections.items():
        before, rest = card.split(f"<!-- {name} -->")
        _, after = rest.split(f"<!-- /{name} -->")
        card = f"{before}<!-- {name} -->\n{text}\n<!-- /{name} -->{after}"
    path.write_text(card, encoding="utf-8")


def main() -> None:
    """Puts fresh numbers between the markers of the card."""
    if not IS_CHECKOUT:
        raise SystemExit("mini's card is in patchlib's repository: run this in a clone of it")
    measured = skills_table(evaluate())
    sections = {"skills": measured, "training": training_table(), "mixture": mixture_table()}
    put(MINI / "README.md", sections)
    print(measured)


if __name__ == "__main__":
    main()

"""Exercises of ``25_known_circuit``. The notebook prints:

**1 What can be found.** For each corruption and direction, to how many of the six heads does the
mechanism give an effect other than 0?

    answer = {("S2", "denoise"): ..., ("S2", "noise"): ..., ("S1+IO", "denoise"): ...,
              ("S1+IO", "noise"): ..., ("ABC", "denoise"): ..., ("ABC", "noise"): ...}
    pl.check("25.1", answer, pairs=pairs)

**2 Interchange accuracy.** Write a function of the model's answers (one name's number for each
prompt) and of the mechanism's logits (prompt, name) that returns the share of prompts in which the
model's answer is one to which the mechanism gives its highest logit.

    my_accuracy = ...  # a function of answers and logits
    pl.check("25.2", my_accuracy)

**3 Predict an edge.** Cut the edge from inhibition to the mover, and no other, with three new names
(ABC): in the clean run the mover reads what inhibition writes in the corrupted one. Predict the
effect with `pl.known.edges`; then measure it by `pl.patch_edges` (readers are the mover's `q`,
`k` and `v`).

    answer = {"predicted": ..., "measured": ...}
    pl.check("25.3", answer, model=model, pairs=pairs)
"""

from __future__ import annotations

import torch
from transformer_lens.model_bridge import TransformerBridge

from patchlib.lessons.answers import call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.methods.edges import patch_edges
from patchlib.models import known
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


@exercise("25.1")
def how_many_show(answer: object, pairs: PromptPairs) -> str | None:
    """The number of heads with an effect, by corruption and direction."""
    settings = [(site, way) for site in ("S2", "S1+IO", "ABC") for way in ("denoise", "noise")]
    given = [
        number(each, str(at)) for at, each in zip(settings, entries(answer, settings), strict=True)
    ]
    effects = [
        [*known.heads(pairs, STR(site), direction=direction).values()]
        for site, direction in settings
    ]
    if given == [sum(effect != 0 for effect in each) for each in effects]:
        return None
    if given == [sum(effect > 0 for effect in each) for each in effects]:
        return "an effect below zero is an effect, too"
    if given[::2] == given[1::2]:
        return "direction matters: what is not needed may be enough, and the other way round"
    return "count, for each setting, the values of pl.known.heads that are not zero"


@exercise("25.2")
def interchange_accuracy(answer: object) -> str | None:
    """The share of answers that are among the mechanism's best."""
    logits = torch.tensor([[6.0, 0.0, 0.0], [3.0, 3.0, 0.0], [0.0, 6.0, 0.0], [5.0, 2.0, 5.0]])
    answers = torch.tensor([0, 1, 0, 2])
    right = (logits.gather(1, answers[:, None])[:, 0] == logits.max(-1).values).float()
    given = number(call(answer, answers, logits, of="answers and logits"), "the share")
    first = (logits.argmax(-1) == answers).float().mean().item()
    mistakes = {
        "ties count as right: in some prompts two names are as high": first,
        "that is a number of prompts: divide by how many there are": right.sum().item(),
    }
    if close(given, right.mean().item(), 1e-4):
        return None
    return mistake(
        lambda value: close(given, value, 1e-4),
        mistakes,
        "compare each answer's logit with the highest of its prompt",
    )


@exercise("25.3")
def an_edge(answer: object, model: TransformerBridge, pairs: PromptPairs) -> str | None:
    """The predicted and the measured effect of inhibition -> mover."""
    names = ["predicted", "measured"]
    predicted, measured = map(number, entries(answer, names), names)
    writer, reader = str(known.HEADS["inhibition"]), str(known.HEADS["mover"])
    expected = known.edges(pairs, STR("ABC"), direction="noise")[writer, reader]
    if not close(predicted, expected, 1e-3):
        return f"predicted: read the edge from {writer} to {reader} in pl.known.edges"

    def cut(direction: str) -> float:
        edges = [(writer, kind + reader) for kind in "qkv"]
        fx = patch_edges(
            model,
            pairs,
            edges,
            corruption=STR("ABC"),
            direction=direction,
            metrics="logit_diff",
            progress=False,
        )
        return fx.effect.item()

    if close(measured, cut("noise"), 5e-3):
        return None
    if close(measured, cut("denoise"), 5e-3):
        return "measured: that restores the edge in the corrupted run; cut it in the clean one"
    return "measured: cut the three edges into the mover together, by noising, with three new names"

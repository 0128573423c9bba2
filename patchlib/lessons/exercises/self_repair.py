"""Exercises of ``15_self_repair``. The notebook prints:

**1 The largest share.** All Name Movers are removed by zeros, as in section 2. Which head makes up
most, and which share of the *direct* effect is that? Compute it from `zero` with means over
prompts.

    answer = ...  # a pair, such as ("9.9", 0.1)
    pl.check("15.1", answer, zero=zero, together=together)

**2 A direct effect by hand.** Write the direct effect of one head as a function of `z` (its output
at the last token, d_head numbers), `W_O` (d_head × d_model), `gain` and `scale` (what the final
norm multiplies and divides by) and `direction` (the unembedding of the right answer minus that of
the wrong one), all of them tensors. The norm takes no mean off, as in SmolLM2.

    my_direct = ...  # a function of z, W_O, gain, scale and direction
    pl.check("15.2", my_direct)

**3 Predict, then test.** Take the first Name Mover of `each` and, from your answer to 1, the head
that makes up most. Remove both at once by zeros. Is the loss larger or smaller than the two losses
alone together? Guess the sign; then give the difference in nats, loss of both minus sum of the
losses, from one call of `pl.self_repair`.

    answer = ...  # a number of nats
    pl.check("15.3", answer, model=model, pairs=pairs, zero=zero, each=each)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.heads import Head
from patchlib.lessons.answers import call, close, head, mistake, number, pair
from patchlib.lessons.checks import exercise
from patchlib.methods.repair import self_repair
from patchlib.patching.sources import Zero
from patchlib.prompts.pairs import PromptPairs


def _most(zero: xr.Dataset, together: str) -> tuple[Head, float]:
    """Which head makes up most, and how much, in nats."""
    made_up = zero.heads.sel(removed=together).mean("prompt").squeeze("metric")
    cells = made_up.stack(cell=["layer", "head"]).dropna("cell")
    layer, unit = cells.cell.values[int(cells.values.argmax())]
    return Head(int(layer), int(unit)), float(cells.max())


@exercise("15.1")
def largest_share(answer: object, zero: xr.Dataset, together: str) -> str | None:
    """The largest mean of ``heads``, divided by the mean of ``direct``."""
    given_head, given_share = pair(answer, "the head and its share, such as ('9.9', 0.1)")
    named, share = head(given_head, "the head"), number(given_share, "the share")
    right, nats = _most(zero, together)
    if named != right:
        return "another head makes up more: take the mean over prompts of heads, and its largest"
    one = zero.sel(removed=together).squeeze("metric").mean("prompt")
    if close(share, nats / float(one.direct)):
        return None
    mistakes = {
        "that is what the head makes up in nats: divide it by the direct effect": nats,
        "that is its share of all that is repaired: the question is of the direct effect": (
            nats / float(one.repaired)
        ),
        "that is its share of the total loss: divide by what was written, not by what is lost": (
            nats / float(one.total)
        ),
    }
    otherwise = "the head is right and the share another number: a mean divided by a mean"
    return mistake(lambda value: close(share, value), mistakes, otherwise)


@exercise("15.2")
def by_hand(answer: object) -> str | None:
    """z @ W_O, times gain over scale, along the direction."""
    generator = torch.Generator().manual_seed(15)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    z, W_O, gain, direction = draw(4), draw(4, 6), draw(6), draw(6)
    scale = torch.tensor(2.5)
    of = "z, W_O, gain, scale and direction"
    given = number(
        call(answer, z, W_O, gain, scale, direction, of=of), "what your function returns"
    )
    written = z @ W_O

    def is_given(value: torch.Tensor) -> bool:
        return close(given, float(value), 1e-4)

    if is_given((written * gain / scale) @ direction):
        return None
    mistakes = {
        "the norm divides, too: the stream is read after it": (written * gain) @ direction,
        "the norm's gain is missing": (written / scale) @ direction,
        "this head is not normed by itself: the scale is that of the whole stream": (
            (written / written.square().mean().sqrt() * gain) @ direction
        ),
        "you multiply by the scale: the norm divides by it": (written * gain * scale) @ direction,
    }
    otherwise = "another number: z goes through W_O, then gain and scale, then the direction"
    return mistake(is_given, mistakes, otherwise)


@exercise("15.3")
def both_at_once(
    answer: object,
    model: TransformerBridge,
    pairs: PromptPairs,
    zero: xr.Dataset,
    each: Sequence[str],
) -> str | None:
    """The total of both minus the totals of each."""
    given = number(answer, "the difference")
    helper, _ = _most(zero, ", ".join(each))
    parts = [each[0], str(helper), [each[0], str(helper)]]
    found = self_repair(model, pairs, parts, with_=Zero(), progress=False).squeeze("metric")
    first, second, both = found.total.values.tolist()
    if close(given, both - first - second):
        return None
    mistakes = {
        "the sign is turned: the loss of both minus the sum of the losses": first + second - both,
        "that is the loss of both: take off what each loses alone": both,
        "you took direct effects, which simply add: the losses are in total": float(
            found.direct[2] - found.direct[0] - found.direct[1]
        ),
        "you took off the mover's loss alone: the other head's belongs to the sum": both - first,
    }
    otherwise = "another number: one call with the head, the other head, and a list of both"
    return mistake(lambda value: close(given, value), mistakes, otherwise)

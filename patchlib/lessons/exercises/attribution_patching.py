"""Exercises of ``20_attribution_patching``. The notebook prints:

**1 What a ranking would lose.** Under STR, of the ten heads that patching ranks highest: of which
one does attribution find the smallest share, its effect divided by that of patching?

    answer = ...  # a pair, such as ("9.9", 0.5)
    pl.check("20.1", answer, exact=exact["STR"], estimate=estimate["STR"])

**2 Attribution of heads.** Write a function of what the heads put out in the corrupted run
(`here`), in the clean run (`there`) and of the gradient of the metric in the corrupted run, all
three position × head × d_head, that returns the estimate for each head of restoring it at all
positions.

    my_attribution = ...  # a function of here, there and gradient
    pl.check("20.2", my_attribution)

**3 From the other end.** Noising takes the gradient in the clean run. Guess first: is the head
`worst` missed there, too? Then give its effect on `few` with ``direction="noise"``, under STR, by
both methods.

    answer = {"patching": ..., "attribution": ...}
    pl.check("20.3", answer, model=model, pairs=few, head=worst)
"""

from __future__ import annotations

import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.heads import Head, Heads
from patchlib.lessons.answers import Hint, call, close, entries, head, mistake, number, pair
from patchlib.lessons.checks import exercise
from patchlib.measure.sweeps import strongest
from patchlib.methods.attribution import attribute
from patchlib.patching.patch import patch
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


@exercise("20.1")
def smallest_share(answer: object, exact: xr.Dataset, estimate: xr.Dataset) -> str | None:
    """The smallest of estimate / exact among the ten largest absolute effects of exact."""
    given_head, given_share = pair(answer, "the head and its share, such as ('9.9', 0.5)")
    named, given = head(given_head, "the head"), number(given_share, "the share")
    shares = (estimate.effect / exact.effect).sel(metric="logit_diff")
    of_ten = {
        each: float(shares.sel(each._asdict())) for each in Heads(strongest(exact, n=10)["head"])
    }
    right = min(of_ten, key=of_ten.__getitem__)
    if named not in of_ten:
        return "that head is none of the ten with the largest absolute effects of patching"
    if named != right:
        return "attribution finds a smaller share of another head: divide for each of the ten"
    share = of_ten[right]
    if close(given, share):
        return None
    mistakes = {
        "the head is right; divide attribution by patching, not patching by attribution": 1 / share,
        "the head is right, and that is the share that is missing": 1 - share,
        "the head is right, and that is the difference of the effects: divide them": float(
            (exact.effect - estimate.effect).sel(metric="logit_diff", **right._asdict())
        ),
    }
    otherwise = "the head is right and the share another number: estimate over exact, of one head"
    return mistake(lambda value: close(given, value), mistakes, otherwise)


@exercise("20.2")
def attribution(answer: object) -> str | None:
    """The change times the gradient, over positions and d_head."""
    generator = torch.Generator().manual_seed(20)
    here, there, gradient = torch.randn(3, 5, 4, 6, generator=generator)
    product = (there - here) * gradient
    given = call(
        answer, here.clone(), there.clone(), gradient.clone(), of="here, there and gradient"
    )
    try:
        given = torch.as_tensor(given).to(here.dtype)
    except (TypeError, ValueError, RuntimeError):
        raise Hint("your function has to return a number for each head") from None

    def is_given(expected: torch.Tensor) -> bool:
        return given.shape == expected.shape and torch.allclose(given, expected, atol=1e-4)

    if is_given(product.sum((0, 2))):
        return None
    mistakes = {
        "the sign is the other way: restoring goes from here to there": -product.sum((0, 2)),
        "that is a number for each position and head: all positions are restored together": (
            product.sum(2)
        ),
        "that is one number for all heads together": product.sum(),
        "sizes do not add up: a part that helps and one that harms cancel": (
            product.abs().sum((0, 2))
        ),
        "that is the mean over positions: they are all restored": product.sum(2).mean(0),
    }
    otherwise = "it is the change of the activation times the gradient, one number for each head"
    return mistake(is_given, mistakes, otherwise)


@exercise("20.3")
def other_end(
    answer: object, model: TransformerBridge, pairs: PromptPairs, head: Head
) -> str | None:
    """Effects of one head when noising, as patched and as estimated."""
    names = ["patching", "attribution"]
    given = list(map(number, entries(answer, names), names))

    def effects(direction: str) -> list[float]:
        both = (
            method(
                model,
                pairs,
                heads=[head],
                corruption=STR("S2"),
                metrics="logit_diff",
                direction=direction,
                progress=False,
            )
            for method in (patch, attribute)
        )
        return [float(fx.effect.sum()) for fx in both]

    def are_given(expected: list[float]) -> bool:
        return all(close(*each) for each in zip(given, expected, strict=True))

    right = effects("noise")
    if are_given(right):
        return None
    mistakes = {
        "you exchanged the two methods": right[::-1],
        "that is denoising, from the corrupted run: give both calls direction='noise'": (
            effects("denoise")
        ),
        "an effect is positive where noising harms: take it from the result as it is": [
            -each for each in right
        ],
    }
    otherwise = "call pl.patch and pl.attribute with heads=[worst] and direction='noise' on few"
    return mistake(are_given, mistakes, otherwise)

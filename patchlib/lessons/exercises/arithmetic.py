"""Exercises of ``app_c_arithmetic``. The notebook prints:

**1 Read it off.** For addition under STR: at which layer is the *median* over prompts of equation 2
highest, and what is it there?

    answer = {"layer": ..., "median": ...}
    pl.check("C.1", answer, fx=fx["+", "STR"])

**2 With logarithms.** Write equation 2 with differences of logarithms in place of relative changes,
and keep the ½. Try it on P_*(r) = 0.1, P_pt(r) = 0.4, P_*(r′) = 0.8, P_pt(r′) = 0.2. Of which
metric is it one half?

    my_metric = ...  # a function of P_*(r), P_pt(r), P_*(r'), P_pt(r')
    pl.check("C.2", my_metric)

**3 Where do the numbers arrive?** The operands stand at other tokens, and MLPs look at their own
token only. Predict: at the last token, is the strongest *attention* layer before or after the
strongest MLP? Then restore `"attn"` as section 2 restored `"mlp"`, for the prompts of `some` under
STR, and give the layer with the highest effect on the logit difference for each.

    some = kept["+"][:30]
    answer = {"attn": ..., "mlp": ...}
    pl.check("C.3", answer, model=model, pairs=some)
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.lessons.answers import call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.measure.effects import stolfo
from patchlib.patching.patch import patch
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


@exercise("C.1")
def median_over_prompts(answer: object, fx: xr.Dataset) -> str | None:
    """Where the median of equation 2 over prompts is highest, and its value."""
    names = ["layer", "median"]
    layer, median = map(number, entries(answer, names), names)
    values = stolfo(fx)
    over = [dim for dim in ("prompt", "draw") if dim in values.dims]
    curve, mean = values.median(over), values.mean(over)
    best = int(curve.argmax("layer"))
    if layer == best:
        if close(median, float(curve[best])):
            return None
        if close(median, float(mean[best])):
            return "the layer is right; the number there is the mean over prompts"
        return "the layer is right, its median is another: one value a prompt, from pl.stolfo"
    if layer == int(mean.argmax("layer")):
        return "that is the layer where the mean is highest; take the median over prompts"
    if layer == best + 1:
        return "layers count from zero"
    return "another layer: take the median over prompts first, then the highest of all layers"


@exercise("C.2")
def with_logarithms(answer: object) -> str | None:
    """Half of the change of log P(r) - log P(r'), which is half of that of the logit difference."""
    cases = [(0.1, 0.4, 0.8, 0.2), (0.2, 0.1, 0.3, 0.6), (1e-6, 0.5, 0.9, 1e-4)]
    of = "P_*(r), P_pt(r), P_*(r') and P_pt(r')"
    given = [number(call(answer, *case, of=of), "what your function returns") for case in cases]

    def gives(formula: Callable[[float, float, float, float], float]) -> bool:
        pairs = zip(given, cases, strict=True)
        return all(close(value, formula(*case), 1e-4) for value, case in pairs)

    if gives(lambda r, r_pt, w, w_pt: (log(r_pt / r) + log(w / w_pt)) / 2):
        return None
    mistakes: dict[str, Callable[[float, float, float, float], float]] = {
        "you left out the ½": lambda r, r_pt, w, w_pt: log(r_pt / r) + log(w / w_pt),
        "the wrong answer has the other sign: what it loses is positive": (
            lambda r, r_pt, w, w_pt: (log(r_pt / r) + log(w_pt / w)) / 2
        ),
        "the sign is turned: what the right answer gains is positive": (
            lambda r, r_pt, w, w_pt: -(log(r_pt / r) + log(w / w_pt)) / 2
        ),
        "that is equation 2 itself, with relative changes": (
            lambda r, r_pt, w, w_pt: ((r_pt - r) / r + (w - w_pt) / w_pt) / 2
        ),
        "that has another base: take the natural logarithm": (
            lambda r, r_pt, w, w_pt: (log(r_pt / r) + log(w / w_pt)) / 2 / log(10)
        ),
    }
    return mistake(
        lambda formula: gives(formula),
        mistakes,
        "another number: what is log P_pt(r) - log P_*(r), and the same for r' the other way round",
    )


@exercise("C.3")
def where_numbers_arrive(
    answer: object, model: TransformerBridge, pairs: PromptPairs
) -> str | None:
    """The layers of the highest effects of attention and of MLPs at the last token."""
    names = ["attn", "mlp"]
    given = list(map(number, entries(answer, names), names))

    def highest(component: str, positions: str = "last") -> int:
        fx = patch(
            model,
            pairs,
            component,
            corruption=STR("X3+Y3"),
            positions=positions,
            metrics="logit_diff",
            progress=False,
        )
        return int(fx.effect.squeeze("metric").argmax("layer"))

    right = [highest(name) for name in names]
    if given == right:
        return None
    if given == right[::-1]:
        return "the two are exchanged"
    if given == [layer + 1 for layer in right]:
        return "layers count from zero"
    wrong = [name for name, one, other in zip(names, given, right, strict=True) if one != other]
    if given == [highest(name, "all") for name in names]:
        return "you restored all positions: positions='last'"
    return (
        f"the layer of {' and of '.join(wrong)} is another: pl.patch(model, some, ...) under STR "
        "at X3+Y3, with positions='last', by logit difference"
    )

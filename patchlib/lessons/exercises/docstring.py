"""Exercises of ``app_d_docstring``. The notebook prints:

**1 Read it off.** Of all pairs that are detected (both signs, all metrics), what share is at the
last token under STR, and what share under GN? `found` has all you need.

    answer = {"STR": ..., "GN": ...}  # two numbers from 0 to 1
    pl.check("D.1", answer, found=found)

**2 The rule itself.** Write a function of `effect`, one metric's effects over layer, head and
position (such as `sweep.mean["STR"].effect.sel(metric="prob")`), that counts the pairs beyond
mean ± 2 standard deviations of all of them. It is tried on other numbers than yours.

    my_count = ...  # a function of effect
    pl.check("D.2", my_count)

**3 More than its parts?** Take the four strongest heads at the last token. Predict: if they are
restored *together*, is the effect on the logit difference larger or smaller than the sum of their
own? Then use `pl.patch_together` for both, with `positions="last"`, on `some` under STR.

    some, four = pairs[:20], list(pl.strongest(sweep["STR"].sel(position="last"), n=4)["head"])
    answer = {"together": ..., "sum": ...}
    pl.check("D.3", answer, model=model, pairs=some, heads=four)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from patchlib.lessons.answers import call, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.patching.patch import patch_together
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


@exercise("D.1")
def at_the_last_token(answer: object, found: pd.DataFrame) -> str | None:
    """The share of the detected pairs that is at the last token, by run."""
    runs = ["STR", "GN"]
    given = list(map(number, entries(answer, runs), runs))
    n = found.assign(n=found.heads.str.len())

    def share(some: pd.DataFrame) -> list[float]:
        by_run = [some[some.run == run] for run in runs]
        return [each.n[each.position == "last"].sum() / max(each.n.sum(), 1) for each in by_run]

    def same(values: list[float]) -> bool:
        return all(close(one, other) for one, other in zip(given, values, strict=True))

    right = share(n)
    if same(right):
        return None
    last = n[n.position == "last"]
    mistakes = {
        "these are shares in percent; give numbers from 0 to 1": [100 * each for each in right],
        "these are numbers of pairs: divide by all that are detected in the run": [
            float(last.n[last.run == run].sum()) for run in runs
        ],
        "the two runs are exchanged": right[::-1],
        "you divide by the pairs of both runs together": [
            last.n[last.run == run].sum() / max(n.n.sum(), 1) for run in runs
        ],
        "you count the positive ones alone": share(n[n.sign == "positive"]),
        "you count rows of the table; a row lists several heads": [
            (last.run == run).sum() / (n.run == run).sum() for run in runs
        ],
    }
    return mistake(same, mistakes, "another share: add up len(heads) over the rows of each run")


@exercise("D.2")
def shared_rule(answer: object) -> str | None:
    """How many pairs lie beyond mean ± 2 SD of all pairs."""
    rng = np.random.default_rng(0)
    # Positions of unlike size and mean, so that one threshold differs from one for each.
    size, middle = np.array([1.0, 0.1, 4.0]), np.array([0.0, 1.0, 0.5])
    values = rng.normal(middle, size, (6, 8, 3))
    effects = [
        xr.DataArray(each, dims=("layer", "head", "position")) for each in (values, values**3)
    ]
    given = [
        number(call(answer, effect.copy(), of="effect"), "what your function returns")
        for effect in effects
    ]

    def count(over: tuple[int, ...] | None = None, signs: int = 2, sd: float = 2) -> list[float]:
        counts = []
        for effect in effects:
            all_of_them = effect.values
            away = all_of_them - all_of_them.mean(over, keepdims=True)
            away = away if signs == 1 else abs(away)
            counts.append(float((away > sd * all_of_them.std(over, keepdims=True)).sum()))
        return counts

    if given == count():
        return None
    mistakes = {
        "you take a mean and a standard deviation for each position: take those of all": (
            count(over=(0, 1))
        ),
        "you count the pairs above the mean only: the rule has a negative side": count(signs=1),
        "you take one standard deviation, and the rule takes two": count(sd=1),
        "you measure from zero: the rule says mean ± 2 standard deviations": [
            float((abs(each) > 2 * each.std()).sum()) for each in effects
        ],
    }
    otherwise = "another number: count where |effect - mean| is above 2 standard deviations"
    return mistake(given.__eq__, mistakes, otherwise)


@exercise("D.3")
def more_than_its_parts(
    answer: object, model: TransformerBridge, pairs: PromptPairs, heads: Sequence[object]
) -> str | None:
    """The joint effect of some heads at the last token, and the sum of their own effects."""
    names = ["together", "sum"]
    together, total = map(number, entries(answer, names), names)

    def effect(some: Sequence[object], positions: str = "last") -> float:
        fx = patch_together(
            model,
            pairs,
            some,
            corruption=STR("C_def"),
            positions=positions,
            metrics="logit_diff",
        )
        return float(fx.effect.squeeze())

    joint, single = effect(heads), [effect([head]) for head in heads]
    if close(together, joint) and close(total, sum(single)):
        return None
    if close(together, sum(single)) and close(total, joint):
        return "the two are exchanged"
    if not close(together, joint):
        if close(together, effect(heads, "all")):
            return "together: you restored all positions; positions='last'"
        return "together: one call of pl.patch_together with all four heads, by logit difference"
    if close(total, float(np.mean(single))):
        return "sum: that is the mean of the four effects"
    if close(total, sum(map(abs, single))):
        return "sum: keep the signs, since a negative head takes the answer away"
    return "sum: one call for each head, at the last token of the same prompts"

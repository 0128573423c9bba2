"""Exercises of ``04_1_metrics_factual_recall``. The notebook prints:

**1 Read the maps.** Leave the last subject token out. Which of the other buckets has the largest
effect *under GN*, by each metric? Use `maps.mean["GN"].effect`.

    answer = {"prob": ..., "logit_diff": ...}  # names of buckets
    pl.check("4.1.1", answer, maps=maps)

**2 The ratio by hand.** Compute the ratio of last to middle by probability under STR from
`maps["STR"].effect` with NumPy or xarray, from the prompts that have both.

    answer = ...  # a number
    pl.check("4.1.2", answer, maps=maps)

**3 Predict, then test.** At the cell of section 4, which share of the prompts that have this token
gained at least one nat of logit difference and less than a hundredth of probability? Guess from the
table, then count in `at`, which holds NaN for the others.

    answer = ...  # a number from 0 to 1
    pl.check("4.1.3", answer, at=at)
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from patchlib.lessons.answers import Hint, close, entries, mistake, number
from patchlib.lessons.checks import exercise
from patchlib.measure.sweeps import Sweep


@exercise("4.1.1")
def read_the_maps(answer: object, maps: Sweep) -> str | None:
    """The bucket of the largest effect elsewhere than at the last subject token."""
    metrics = ["prob", "logit_diff"]
    given = entries(answer, metrics)
    positions = maps["GN"].position.values.tolist()
    if any(each not in positions for each in given):
        raise Hint("each of the two has to be the name of a bucket, as S['positions'] has it")
    if "last_subject" in given:
        return "leave the subject's last token out: which bucket comes next?"

    def largest(effects: xr.DataArray) -> list[str]:
        others = effects.drop_sel(position="last_subject").sel(metric=metrics)
        return [str(each) for each in others.idxmax("position").values]

    effect = {run: fx.effect for run, fx in maps.mean.items()}
    if given == largest(effect["GN"].max("layer")):
        return None
    mistakes = {
        "that is so under STR; the question is about GN": largest(effect["STR"].max("layer")),
        "you summed over layers: ask for the largest single effect": (
            largest(effect["GN"].sum("layer"))
        ),
        "the two metrics have changed places": largest(effect["GN"].max("layer"))[::-1],
    }
    otherwise = "another bucket for one of the metrics: take the maximum over layers of each column"
    return mistake(given.__eq__, mistakes, otherwise)


@exercise("4.1.2")
def ratio_by_hand(answer: object, maps: Sweep) -> str | None:
    """Sums over layers, means over the prompts that have a middle token, last over middle."""
    given = number(answer, "the ratio")
    sums = {run: fx.effect.sum("layer", skipna=False) for run, fx in maps.items()}

    def both(run: str, metric: str) -> tuple[xr.DataArray, xr.DataArray]:
        at = sums[run].sel(metric=metric, position=["last_subject", "middle_subject"])
        kept = at.isel(prompt=at.notnull().all("position").values)
        return kept.sel(position="last_subject"), kept.sel(position="middle_subject")

    def ratio(run: str = "STR", metric: str = "prob") -> float:
        last, middle = both(run, metric)
        return float(last.mean() / middle.mean())

    last, middle = both("STR", "prob")
    right = ratio()
    if close(given, right):
        return None
    everybody = sums["STR"].sel(metric="prob", position="last_subject").mean()
    mistakes = {
        "above the bar you took all prompts: take those that have a middle token": float(
            everybody / middle.mean()
        ),
        "you took sums over prompts, and more prompts have a last token than a middle one": float(
            everybody * sums["STR"].sizes["prompt"] / middle.sum()
        ),
        "you averaged one ratio a prompt: divide the two sums, so that small ones weigh little": (
            float((last / middle).mean())
        ),
        "upside down: the last token stands above the bar": 1 / right,
        "that is the ratio by logit difference": ratio(metric="logit_diff"),
        "that is the ratio under GN": ratio("GN"),
    }
    otherwise = "another number: sum over layers first, then take the mean over the same prompts"
    return mistake(
        lambda value: bool(np.isfinite(value)) and close(given, value), mistakes, otherwise
    )


@exercise("4.1.3")
def logits_without_probability(answer: object, at: xr.Dataset) -> str | None:
    """The share of prompts with a gain of LD of a nat or more and of P below 0.01."""
    given = number(answer, "the share")
    if not 0 <= given <= 1:
        return "a share lies between 0 and 1"
    every = at.patched - at.corrupted
    gain = every.dropna("prompt")
    nats, prob = gain.sel(metric="logit_diff"), gain.sel(metric="prob")

    def share(chosen: xr.DataArray) -> float:
        return float(chosen.mean())

    right = share((nats >= 1) & (prob < 0.01))
    if close(given, right):
        return None
    normalised = at.effect.dropna("prompt").sel(metric="logit_diff")
    mistakes = {
        "a prompt without this token has NaN, which is no gain of 0: leave such prompts out": (
            right * gain.sizes["prompt"] / every.sizes["prompt"]
        ),
        "that is the share of all others": 1 - right,
        "you counted every small gain of probability: those with a gain of logits alone count": (
            share(prob < 0.01)
        ),
        "you counted every gain of logits: those without a gain of probability alone count": (
            share(nats >= 1)
        ),
        "you took the effect, which is normalised: count nats, patched minus corrupted": (
            share((normalised >= 1) & (prob < 0.01))
        ),
        "you took the share among the prompts with a gain of logits: divide by all of them": (
            share((prob < 0.01)[nats >= 1])
        ),
    }
    otherwise = "another number: one truth a prompt, both conditions at once, and their mean"
    return mistake(lambda value: close(given, value), mistakes, otherwise)

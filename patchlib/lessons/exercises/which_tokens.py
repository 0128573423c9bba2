"""Exercises of ``app_f_which_tokens``. The notebook prints:

**1 In logits.** Take the head with the largest effect on the logit difference under STR at S1+IO.
How many *logits* of difference does it bring back there, and how many with S2 corrupted? In which
of the two does it do more?

    answer = {"S2": ..., "S1+IO": ...}  # two numbers, in logits
    pl.check("F.1", answer, sweep=sweep, s1io=s1io)

**2 Several voices.** Write a function of a list of heads, such as `["4.6", "5.1"]`, that restores
all of them *together* under STR at S1+IO, on `some`, and returns the normalised effect on the logit
difference. Section 2 of 3.1 does it for one head. Do the effects of single heads add up?

    my_together = ...  # a function of a list of heads
    pl.check("F.2", my_together, model=model, pairs=some, heads=best)

**3 Which of the two?** S1+IO replaces two names at once. The three heads that do most there
(`best`): do they bring back what stood at S1, or what stood at IO? Guess from what they look at.
Then corrupt S1 alone and IO alone (STR), and restore the three together with `pl.patch_together`,
on `some`. Give the site at which they bring back more KL divergence, and how many nats.

    answer = ...  # a pair, such as ("S1", 0.3)
    pl.check("F.3", answer, model=model, pairs=some, heads=best)

`some` is `pairs[:20]`, `best` the three heads with the largest effects under STR at S1+IO.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformer_lens.model_bridge import TransformerBridge

from patchlib.heads import Head, Heads
from patchlib.lessons.answers import call, close, entries, mistake, number, pair
from patchlib.lessons.checks import exercise
from patchlib.measure.sweeps import Sweep, strongest
from patchlib.patching.patch import patch_together
from patchlib.prompts.corruption import STR
from patchlib.prompts.pairs import PromptPairs


@exercise("F.1")
def in_logits(answer: object, sweep: Sweep, s1io: Sweep) -> str | None:
    """What the strongest head of S1+IO brings back under either choice, not normalised."""
    sites = ["S2", "S1+IO"]
    given = [number(each, site) for each, site in zip(entries(answer, sites), sites, strict=True)]
    results = [of.mean["STR"].sel(metric="logit_diff") for of in (sweep, s1io)]
    head = Head.of(strongest(s1io.mean["STR"], n=1)["head"][0])._asdict()
    shares = [float(fx.effect.sel(head)) for fx in results]
    ways = [float(fx.clean - fx.corrupted) for fx in results]

    def is_given(values: list[float]) -> bool:
        return all(close(one, other) for one, other in zip(given, values, strict=True))

    steps = [share * way for share, way in zip(shares, ways, strict=True)]
    if is_given(steps):
        return None
    mistakes = {
        "these are shares of the way: multiply each by its own way, in logits": shares,
        "both shares were multiplied by the way of S2; each choice has its own": [
            share * ways[0] for share in shares
        ],
        "both shares were multiplied by the way of S1+IO; each choice has its own": [
            share * ways[1] for share in shares
        ],
        "the sign is turned: the step goes from the corrupted run to the patched one": [
            -step for step in steps
        ],
        "these are the patched runs' logit differences; subtract those of the corrupted runs": [
            float(fx.patched.sel(head)) for fx in results
        ],
        "the two numbers have changed places": steps[::-1],
    }
    wrong = [
        site for site, one, other in zip(sites, given, steps, strict=True) if not close(one, other)
    ]
    otherwise = (
        f"another number at {' and '.join(wrong)}: take one head, the strongest of S1+IO, in both"
    )
    return mistake(is_given, mistakes, otherwise)


@exercise("F.2")
def several_voices(
    answer: object, model: TransformerBridge, pairs: PromptPairs, heads: Iterable[object]
) -> str | None:
    """The effect of one head, of all that are given, and of a whole layer's."""
    chosen = Heads(heads)
    layer = Heads((chosen[-1].layer, number) for number in range(model.cfg.n_heads))
    cases = [chosen[:1], [*chosen], [*layer]]
    given = [
        number(call(answer, list(map(str, case)), of="a list of heads"), "what it returns")
        for case in cases
    ]

    def together(case: Iterable[Head], site: str = "S1+IO", of: str = "effect") -> float:
        fx = patch_together(model, pairs, case, corruption=STR(site), metrics="logit_diff")
        return float(fx[of].squeeze())

    def is_given(values: list[float]) -> bool:
        return all(close(one, other, 0.002) for one, other in zip(given, values, strict=True))

    if is_given([together(case) for case in cases]):
        return None
    mistakes = {
        "that is the patched run's logit difference; the effect is its share of the way": (
            [together(case, of="patched") for case in cases]
        ),
        "you add up the effects of single heads: all have to be restored in one run": (
            [sum(together([head]) for head in case) for case in cases]
        ),
        "only the last head of the list is restored: does every hook know its own head": (
            [together(case[-1:]) for case in cases]
        ),
        "only the first head of the list is restored": [together(case[:1]) for case in cases],
        "you corrupt S2; here it is S1 and IO": [together(case, "S2") for case in cases],
    }
    otherwise = (
        "another number for some list: restore z of all these heads in one corrupted run, also of "
        "two in one layer"
    )
    return mistake(is_given, mistakes, otherwise)


@exercise("F.3")
def which_of_the_two(
    answer: object, model: TransformerBridge, pairs: PromptPairs, heads: Iterable[object]
) -> str | None:
    """Where the heads together bring back more KL divergence, and how much."""
    site, given = pair(answer, 'a site and a number, such as ("S1", 0.3)')
    if site not in ("S1", "IO"):
        return "the first part has to be 'S1' or 'IO'"
    nats = number(given, "the second part")

    def together(site: str, parts: Iterable[object], metric: str = "kl") -> float:
        fx = patch_together(model, pairs, parts, corruption=STR(site), metrics=metric)
        return float(fx.effect.squeeze())

    chosen = Heads(heads)
    by_site = {each: together(each, chosen) for each in ("S1", "IO")}
    if site != max(by_site, key=lambda each: by_site[each]):
        if close(nats, by_site[site]):
            return "the number belongs to this site, and at the other one they bring back more"
        return "the other name: what would the heads that write the answer have to read"
    if close(nats, by_site[site]):
        return None
    mistakes = {
        "the site is right; the number is that of both names replaced": together("S1+IO", chosen),
        "the site is right; the number is the effect on the logit difference": (
            together(site, chosen, "logit_diff")
        ),
        "the site is right; the number is a sum over single heads, and here all are restored "
        "together": sum(together(site, [head]) for head in chosen),
    }
    otherwise = "the site is right, its number is another: restore z of all three, at all positions"
    return mistake(lambda value: close(nats, value), mistakes, otherwise)

from types import SimpleNamespace

import patchlib as pl


def order(prompt):
    return prompt.positions["S1"] < prompt.positions["IO"]


def name(prompt):
    return prompt.clean[prompt.positions["S2"][0]]


def given(model):
    data = pl.tasks.ioi(model, n=200)
    half = data[[order(prompt) == name(prompt) % 2 for prompt in data.prompts]]
    fx = pl.scrub(
        model,
        data[:60],
        {"logits": {"5.0": "IO", "mlp7": "IO"}},
        draws=1,
        keep_prompts=True,
        keep_draws=True,
    )
    return SimpleNamespace(fx=fx, pairs=data, half=half)


def ratio(nb):
    mean = nb.fx.mean()
    return float((mean.scrubbed - mean.random) / (mean.model - mean.random))


def alike(prompts, number, feature):
    return [i for i, one in enumerate(prompts) if feature(one) == feature(prompts[number])]


# A third wrong answer.
MORE = {"23.3": {"as `odd` does": lambda nb: lambda prompt: (name(prompt) + 1) % 2}}

SOLUTIONS = {
    "23.1": (
        ratio,
        {
            "the way begins at random": lambda nb: float(
                nb.fx.mean().scrubbed / nb.fx.mean().model
            ),
            "the logit difference itself": lambda nb: float(nb.fx.scrubbed.mean()),
        },
    ),
    "23.2": (
        lambda nb: alike,
        {
            "you left it out": lambda nb: (
                lambda prompts, number, feature: [
                    i for i in alike(prompts, number, feature) if i != number
                ]
            ),
            "that is all of them": lambda nb: (
                lambda prompts, number, feature: list(range(len(prompts)))
            ),
        },
    ),
    "23.3": (
        lambda nb: lambda prompt: name(prompt) % 4,
        {
            "it decides the order in `data`, too": lambda nb: order,
            "hardly any two prompts share": lambda nb: lambda prompt: prompt.text,
        },
    ),
}

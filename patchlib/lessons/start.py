"""How a notebook begins: a model, the prompts of an experiment, and a look at them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from importlib.metadata import version
from itertools import groupby
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from patchlib import tasks
from patchlib.errors import PatchlibError, whole
from patchlib.lessons.claims import begin
from patchlib.models.loading import SHIPPED, describe, load_model
from patchlib.paper import experiments, sweeps
from patchlib.prompts.pairs import PromptPairs


def start(
    experiment: str, model_name: str | None = None, **other: Any
) -> tuple[TransformerBridge, PromptPairs, dict[str, Any]]:
    """Loads the model, says in one line what runs, and draws the prompts of an experiment.

    Claims that follow are about this model and these prompts. A second line estimates time and
    memory for models that come neither with the project nor with stored sweeps.

    Args:
        experiment: as `patchlib.paper.experiments.settings` names it, such as ``"3_1_ioi"``.
        model_name: as `patchlib.load_model` takes it; where None, the environment variable
            ``PATCHLIB_MODEL`` names the model, and ``"smollm2"`` is taken where that is not set.
        other: settings in place of the experiment's, such as ``n=50``, and further arguments of
            its task, such as ``operator="-"``.

    Returns:
        The model, the prompts, and the settings as a dict.

    Raises:
        PatchlibError: for an unknown experiment or setting, and where the prompts do not fit the
            model.

    Example:
        >>> model, pairs, S = start("3_1_ioi", n=5)  # doctest: +ELLIPSIS
        patchlib ... model mini (sha256:...)
        >>> len(pairs), S["sites"]
        (5, ['S2'])
    """
    model = load_model(model_name)
    S = experiments.settings(experiment, model)
    draw = getattr(tasks, S["task"])
    arguments = set(inspect.signature(draw).parameters) - {"model"}
    if unknown := sorted(other.keys() - S.keys() - arguments):
        raise PatchlibError(
            f"{experiment} has no setting {', '.join(unknown)}: allowed are "
            f"{', '.join(sorted(S.keys() | arguments))}"
        )
    S |= other
    facts = describe(model)
    packages = ("patchlib", "transformer-lens", "torch")
    parts = [f"{package} {version(package).split('+')[0]}" for package in packages]
    print(" · ".join([*parts, f"model {facts['model']} ({facts['revision']})"]))
    if facts["model"] not in SHIPPED and not sweeps.listed(facts["model"]):
        print(f"{experiment}: {experiments.estimate(model, S)}")
    pairs: PromptPairs = draw(model, **{name: S[name] for name in arguments & S.keys()})
    begin(facts["model"], f"{len(pairs)} prompts of {experiment}")
    return model, pairs, S


def show_pairs(model: TransformerBridge, pairs: PromptPairs, site: str, n: int = 3) -> None:
    """Prints prompts as they are clean, after token replacement and under noise, with answers.

    Square brackets mark what a corruption changes. A site that can only be replaced, such as
    ``"ABC"``, has no line for noise, and one that can only be noised none for replacement.

    Args:
        model: the model whose tokens the prompts are in.
        pairs: the prompts.
        site: where they are corrupted.
        n: how many, the first ones.

    Raises:
        PatchlibError: for a site that these prompts do not have.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> show_pairs(model, pl.tasks.ioi(model, n=1), "S2")
        clean At lunch Ronald and George talked quietly. Then [George] lent the bag to
        STR   At lunch Ronald and George talked quietly. Then [Ronald] lent the bag to
        GN    At lunch Ronald and George talked quietly. Then [George + noise] lent the bag to
              right ' Ronald', wrong ' George'
        <BLANKLINE>
    """
    for prompt in pairs[: whole("n", n, 1)].prompts:
        replaced = prompt.corrupted.get(site)
        is_named = set(site.split("+")) <= set(prompt.positions)
        if replaced is None and not is_named:
            pairs.corrupted_tokens(site)  # says which there are
        noised = [at for name in site.split("+") for at in prompt.positions.get(name, ())]
        changed = noised
        if replaced is not None:
            both = enumerate(zip(prompt.clean, replaced, strict=True))
            changed = [at for at, (one, other) in both if one != other]
        lines = {"clean": _marked(model, prompt.clean, changed)}
        if replaced is not None:
            lines["STR"] = _marked(model, replaced, changed)
        if noised:
            lines["GN"] = _marked(model, prompt.clean, noised, " + noise")
        for name, text in lines.items():
            print(f"{name:<6}" + text.replace("\n", "\n      "))
        right, wrong = (_some(model, each) for each in (prompt.answers, prompt.wrong_answers))
        print(f"      right {right}, wrong {wrong}\n")


def _marked(
    model: TransformerBridge, tokens: Sequence[int], marked: Collection[int], more: str = ""
) -> str:
    """The text of tokens, with brackets around the marked ones."""

    def text(end: int) -> str:
        return model.tokenizer.decode(tokens[:end], skip_special_tokens=True)

    whole_text = ""
    for is_marked, places in groupby(range(len(tokens)), key=lambda place: place in marked):
        run = list(places)
        # What a token adds to its prompt: alone, some tokenizers take its space away.
        part = text(run[-1] + 1)[len(text(run[0])) :]
        bare = part.lstrip(" ")
        space = part[: len(part) - len(bare)]
        whole_text += f"{space}[{bare}{more}]" if is_marked else part
    return whole_text


def _some(model: TransformerBridge, answers: Sequence[int]) -> str:
    """Answers as quoted texts; of many the first and the last."""
    texts = [repr(model.tokenizer.decode([token])) for token in answers]
    if len(texts) > 3:
        return f"{texts[0]} … {texts[-1]} ({len(texts)} answers)"
    return ", ".join(texts)

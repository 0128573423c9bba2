"""Interchange interventions: whether a place in a model holds a variable of a causal model.

A causal model is a few lines of Python that say which variables lie between a prompt and its
answer. If a place holds one of them, then the value that this place has in another prompt, put into
the model's run, makes of the answer what the causal model says (Geiger et al., 2021). Distributed
alignment search looks for a subspace of the place that does (Geiger et al., 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.interchange import (
    DASResult,
    Intervention,
    fit_das,
    intervened_logits,
)

from patchlib.errors import PatchlibError, names_in, whole
from patchlib.measure.intervals import interval
from patchlib.patching import frames
from patchlib.patching.cells import COMPONENTS, Limits, parts_of
from patchlib.patching.code import fingerprint
from patchlib.patching.fast_engine import (
    _answers_alone,
    _causal,
    _trace_distinct,
    _Wanted,
    network_of,
)
from patchlib.patching.metrics import METRICS, Metric, _over, measure
from patchlib.patching.patch import _components, _name, _one_or_list, _patch
from patchlib.patching.runs import Run, require_evaluation, require_prompts
from patchlib.patching.settings import of_result
from patchlib.patching.sources import require_fit
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import NOTHING, PromptPairs
from patchlib.prompts.tokenizing import TokenizedPrompt, _answer, tokenizer_of

CausalModel = Callable[..., Mapping[str, object]]
"""Takes the words at a prompt's named positions, as a dict in the order of the sentence, and
variables that are held as keyword arguments; returns all variables and the ``"answer"``."""

Sources = PromptPairs | Corruption | list[PromptPairs | Corruption]


def _divergence(logits: Tensor, r: Tensor, r_wrong: Tensor, source: Tensor) -> Tensor:
    """D(H||P), where H is even between the answers of the causal model."""
    number = (r.view(len(r), -1) != NOTHING).sum(-1).to(logits.device)
    return -_over(logits.log_softmax(-1), r, torch.sum, 0.0) / number - number.log()


_METRICS = [
    METRICS["accuracy"],
    Metric("causal_kl", "KL from the causal model (nats)", _divergence, sign=-1),
]


def interchange(
    model: TransformerBridge,
    pairs: PromptPairs,
    causal: CausalModel,
    variables: str | Sequence[str],
    site: str | Iterable[object] = "resid",
    *,
    source: Sources,
    layers: int | Iterable[int] | None = None,
    positions: str | int | Sequence[str | int] = "all",
    keep_prompts: bool = False,
    memory_budget: float | None = None,
    progress: bool | Callable[[int, int], object] = True,
) -> xr.Dataset:
    """Puts what a place holds in another prompt into a prompt's run, and asks the causal model.

    The place holds the variables if the answer becomes the one that the causal model gives to the
    prompt with these variables as they are in the other prompt.

    Args:
        model: the model, in evaluation mode.
        pairs: prompts of any lengths; only their clean versions are run.
        causal: a function ``causal(words, **held)``. Its ``words`` are those at the prompt's named
            positions, in the order of the sentence, as ``{"IO": "Mary", "S1": "John", ...}``. It
            returns all its variables and the ``"answer"`` as a dict, with variables in ``held`` at
            the value that they have there. Several answers, as a list, are equally likely.
        variables: which of them the place holds, one or several together.
        site: a component of `patch`, each layer, or head, alone; or what is exchanged together, as
            in `patch_together`: ``["2.0", "2.2"]``, ``"resid5"``.
        source: where the exchanged activations come from: prompts, one for each, whose named
            positions stand at the same places; or a corruption that replaces tokens, such as
            ``STR("S2")``; or a list, over which the mean is taken.
        layers: as in `patch`, for a component.
        positions: as in `patch`.
        keep_prompts: keep one value per prompt instead of their mean.
        memory_budget: as in `patch`.
        progress: as in `patch`.

    Returns:
        A dataset with the variables

        * ``effect``, after the exchange: interchange accuracy, the share of prompts whose most
          likely token is an answer of the causal model; and ``causal_kl``, D(H||P) in nats from the
          causal model's answers H, for one answer -log P(answer). Where two answers are equally
          likely, accuracy counts both as right, and KL asks for both;
        * ``base``, the same before the exchange: what a place has that holds nothing;
        * ``low`` and ``high``, the ends of the 95 % interval of ``effect`` over prompts;

        over ``metric`` and, as asked for, ``layer, head, position, prompt``.

    Raises:
        PatchlibError: for a causal model that does not do as above, with what it did, for sources
            with noise, and as `patch` does.

    Example:
        >>> import patchlib as pl
        >>> def slots(words, **held):
        ...     first, second, third, *_ = words.values()
        ...     slot = held.get("slot", 1 if third == first else 2)
        ...     return {"slot": slot, "answer": second if slot == 1 else first}
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> fx = pl.interchange(model, pairs, slots, "slot", source=pl.STR("S2"),
        ...                     positions="last", progress=False)
        >>> bool((fx.effect.sel(metric="accuracy") > fx.base.sel(metric="accuracy")).any())
        True
    """
    positions, names = _one_or_list(positions), names_in("variables", variables)
    base, sources = _counterfactual(model, pairs, causal, names, source)
    engine = "auto"
    if isinstance(site, str) and site in COMPONENTS:
        frame, what = _components(model, base, site, layers, None, 1, None, positions)
    elif layers is not None:
        raise PatchlibError(f"site={site!r} with layers={layers!r}: its names say which layers")
    else:
        parts = parts_of(model, site)
        frame = frames.of_parts(model, base, parts, positions)
        what = {"parts": ", ".join(_name(model, part) for part in parts)}
        if len(parts) > 1:
            # The fast engine restores one part of a layer at a time.
            engine = "hooks"
    data = _patch(
        model,
        base,
        frame,
        None,
        _METRICS,
        _said(causal, names, source) | what,
        positions,
        "noise",
        sources,
        True,
        False,
        engine,
        Limits.of(model, "auto", memory_budget),
        None,
        progress,
    )
    return _result(data.patched, data.clean, pairs, keep_prompts, data.attrs)


@dataclass(frozen=True)
class Alignment:
    """A place in the residual stream, and the variables that some subspace of it may hold.

    Only what the place changes is run: the layers above it, from its position on.

    Args:
        model: as in `interchange`.
        pairs: as in `interchange`, prompts of one length.
        causal: as in `interchange`.
        variables: as in `interchange`.
        layer: whose resid_pre it is.
        position: one named token.
        source: as in `interchange`. Variables should vary apart from each other and from the words,
            or a subspace may hold whatever comes with them.

    Raises:
        PatchlibError: for prompts of several lengths, a position of several tokens, architectures
            that the fast engine does not know, and as `interchange` does.

    Example:
        >>> import patchlib as pl
        >>> from transformer_lens.tools.analysis.interchange import SubspaceInterchange
        >>> def slots(words, **held):
        ...     first, second, third, *_ = words.values()
        ...     slot = held.get("slot", 1 if third == first else 2)
        ...     return {"slot": slot, "answer": second if slot == 1 else first}
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=8)
        >>> place = pl.Alignment(model, pairs, slots, "slot", 6, "last", source=pl.STR("S2"))
        >>> found = place.fit(rank=1, epochs=2)
        >>> tuple(found.basis.shape), len(found.losses)
        ((128, 1), 2)
        >>> place.run(SubspaceInterchange(found.basis)).effect.dims
        ('metric',)
    """

    model: TransformerBridge
    pairs: PromptPairs
    causal: CausalModel
    variables: str | Sequence[str]
    layer: int
    position: str
    source: Sources

    def __post_init__(self) -> None:
        whole("layer", self.layer, 0, int(self.model.cfg.n_layers) - 1)
        # Made at once, so that what cannot be aligned is refused here.
        assert self._tail

    def run(self, change: Intervention, keep_prompts: bool = False) -> xr.Dataset:
        """What `interchange` measures, with a change of one's own in place of the whole exchange.

        Args:
            change: maps the place's activations in the prompts and in the sources, both (prompt,
                d_model), to those to go on with: TransformerLens' ``SubspaceInterchange(basis)``,
                its ``NormMatchedPlacebo``, or a function.
            keep_prompts: as in `interchange`.

        Returns:
            A dataset as `interchange` gives it.
        """
        base, n = self._prompts[0], len(self._prompts[0])
        r, r_wrong = base.answers, base.wrong_answers
        tail, rows = self._tail, torch.arange(n)

        def logits(change: Intervention) -> Tensor:
            there = tail.stream[n:][rows, self._places]
            return intervened_logits(
                tail, "site", change, rows, there, tail.logits, positions=self._places
            )

        both = torch.stack((logits(change), logits(lambda here, there: here)))
        values = measure(_METRICS, both, r, r_wrong, both[1], base.texts).numpy()
        dims, names = ("metric", "prompt"), [metric.name for metric in _METRICS]
        patched, clean = (
            xr.DataArray(values[:, run], dims=dims, coords={"metric": names}) for run in (0, 1)
        )
        what = _said(self.causal, names_in("variables", self.variables), self.source)
        what |= {"parts": f"resid_pre{self.layer}", "positions": self.position}
        attrs = of_result(self.model, base, None, _METRICS, what)
        return _result(patched, clean, self.pairs, keep_prompts, attrs)

    def fit(
        self,
        rank: int,
        *,
        epochs: int = 20,
        batch_size: int = 16,
        lr: float = 1e-2,
        seed: int = 0,
    ) -> DASResult:
        """Looks for the subspace that holds the variables, by TransformerLens' `fit_das`.

        It is fitted to these very prompts: judge it on others, and beside a causal model that is
        wrong. With many dimensions any answers can be fitted (Arora et al., 2024).

        Args:
            rank: how many dimensions.
            epochs: how often it sees each prompt.
            batch_size: prompts for one step.
            lr: Adam's step size.
            seed: seeds the first subspace and the order of the prompts.

        Returns:
            TransformerLens' result: ``basis``, (d_model, rank), ``subspace`` and ``losses``, by
            epoch: -log P(answer) among all right, wrong and expected answers of these prompts.

        Raises:
            PatchlibError: where the causal model has several answers to one prompt.
        """
        base, n = self._prompts[0], len(self._prompts[0])
        whole("rank", rank, 1, int(self.model.cfg.d_model))
        if base.answers.ndim > 1:
            raise PatchlibError(
                "the causal model has several answers to one prompt, and a subspace is fitted to "
                "one: leave these prompts out"
            )
        return fit_das(
            self._tail,
            "site",
            torch.arange(n),
            torch.arange(n, 2 * n),
            torch.searchsorted(self._tail.answers, base.answers),
            self._tail,
            rank=rank,
            base_positions=self._places,
            source_positions=self._places,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            device=self._tail.network.device,
        )

    @cached_property
    def _prompts(self) -> tuple[PromptPairs, PromptPairs]:
        names = names_in("variables", self.variables)
        base, sources = _counterfactual(self.model, self.pairs, self.causal, names, self.source)
        require_fit(sources, base, self.position)
        if any(len(at) != 1 for at in base.at(self.position)):
            raise PatchlibError(f"position={self.position!r}: give one that is one token")
        return base, sources

    @cached_property
    def _first(self) -> int:
        return min(at[0] for at in self._prompts[0].at(self.position))

    @property
    def _places(self) -> Int[Tensor, " prompt"]:
        return torch.tensor([at[0] - self._first for at in self._prompts[0].at(self.position)])

    @cached_property
    def _tail(self) -> _Tail:
        base, sources = self._prompts
        tokens = torch.cat((base.clean_tokens, sources.clean_tokens))
        own = torch.cat([each.flatten() for each in (self.pairs.answers, base.wrong_answers)])
        answers, *_ = _answers_alone(base.answers, own)
        network = network_of(self.model, base, None, "a subspace needs the model without hooks")
        return _Tail(network, tokens, self.layer, self._first, answers)


class _Tail(HookedRootModule):
    """What a place in the residual stream can change, for prompts whose runs are known.

    Its input are the numbers of prompts; ``"site"`` is the stream from the first position on.
    """

    def __init__(
        self,
        network: Any,
        tokens: Int[Tensor, "prompt position"],
        layer: int,
        first: int,
        answers: Int[Tensor, " token"],
    ):
        super().__init__()
        self.network, self.layer, self.first = network, layer, first
        self.answers, self.length = answers, tokens.shape[1]
        with torch.no_grad():
            wanted = _Wanted(network, "resid_pre", frozenset([layer]), answers)
            self.trace = _trace_distinct(wanted, Run(tokens), first)
        self.stream = self.trace.restored[layer]
        self.site = HookPoint()
        self.setup()
        self.eval()

    def parameters(self, recurse: bool = True) -> Any:
        """The model's, which are fixed while a subspace is fitted."""
        return self.network.model.parameters()

    def forward(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row answer"]:
        """Logits of the answers alone."""
        return self.network.unembed(self._end(rows), self.answers.to(self.network.device))

    def logits(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """Logits of all tokens."""
        return self.network.unembed(self._end(rows))

    def _end(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
        network, first = self.network, self.first
        mask = _causal(first, self.length, self.length, network.device)
        rotate = network.rotation(first, self.length)
        x = self.site(self.stream[rows])
        for layer in range(self.layer, len(network.blocks)):
            block = network.blocks[layer]
            q, *new = block.project(x, slice(None), rotate, rotate)
            kept = self.trace.keys[layer], self.trace.values[layer]
            k, v = (
                torch.cat((before[rows, :first], each), 1)
                for before, each in zip(kept, new, strict=True)
            )
            middle = x + block.write(block.attend(q, k, v, mask))
            x = middle + block.contract(block.expand(x if network.parallel else middle))
        return x[:, -1]


def _said(causal: CausalModel, names: Sequence[str], source: Sources) -> dict[str, Any]:
    """What results keep of the question."""
    several: list[Any] = list(source) if isinstance(source, list | tuple) else [source]
    return {
        "method": "interchange intervention",
        "causal_model": f"{getattr(causal, '__name__', causal)} ({fingerprint(causal)})",
        "variables": ", ".join(names),
        "exchanged_with": ", ".join(
            each.fingerprint
            if isinstance(each, PromptPairs)
            else " ".join(map(str, each.describe().values()))
            for each in several
        ),
    }


def _result(
    patched: xr.DataArray,
    base: xr.DataArray,
    pairs: PromptPairs,
    keep_prompts: bool,
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """Means over sources, which come one after another, and over prompts."""
    data, n = xr.Dataset({"effect": patched, "base": base}), len(pairs)
    parts = [data.isel(prompt=slice(i, i + n)) for i in range(0, data.sizes["prompt"], n)]
    data = xr.concat(parts, "source").mean("source", skipna=False)
    ends = interval(data)
    if keep_prompts:
        data = data.assign_coords(text=("prompt", pairs.texts))
    else:
        data = data.mean("prompt")
    named = {"label_accuracy": "interchange accuracy", "n_prompts": n}
    return data.assign(low=ends.low, high=ends.high).assign_attrs({**attrs, **named})


def _counterfactual(
    model: TransformerBridge,
    pairs: PromptPairs,
    causal: CausalModel,
    variables: Sequence[str],
    source: Sources,
) -> tuple[PromptPairs, PromptPairs]:
    """Prompts with the answers that the causal model expects, and the prompt of each's source."""
    require_evaluation(model)
    require_prompts(model, pairs)
    given: list[Any] = list(source) if isinstance(source, list | tuple) else [source]
    base: list[TokenizedPrompt] = []
    sources: list[TokenizedPrompt] = []
    for each in given:
        others = _replaced(model, pairs, each)
        require_fit(others, pairs, "all")
        for here, there in zip(pairs.prompts, others.prompts, strict=True):
            values = _ask(causal, _words(model, there), {})
            if missing := [name for name in variables if name not in values]:
                raise PatchlibError(
                    f"variables={variables}: {causal.__name__} has no {missing[0]!r}, it returns "
                    f"{', '.join(values)}"
                )
            held = {name: values[name] for name in variables}
            answer = _ask(causal, _words(model, here), held)["answer"]
            base.append(replace(here, answers=_tokens(model, pairs, here, answer)))
        sources += others.prompts
    return (
        PromptPairs(pairs.task, tuple(base), pairs.settings),
        PromptPairs(pairs.task, tuple(sources), pairs.settings),
    )


def _replaced(model: TransformerBridge, pairs: PromptPairs, source: object) -> PromptPairs:
    """The prompts that activations come from."""
    if isinstance(source, PromptPairs):
        require_prompts(model, source)
        return source
    if not isinstance(source, Corruption):
        raise PatchlibError(
            f"source={source!r}: give prompts (PromptPairs), a corruption such as pl.STR('S2'), or "
            "a list of them"
        )
    found: dict[int, TokenizedPrompt] = {}
    for index, group in pairs.by_length():
        if source.noise(model, group, 0) is not None:
            raise PatchlibError(
                f"source={source!r} adds noise, of which a causal model knows nothing: replace "
                "tokens, as by pl.STR"
            )
        for number, tokens in zip(index, source.tokens(group).tolist(), strict=True):
            text = model.tokenizer.decode(tokens, skip_special_tokens=True)
            prompt = pairs.prompts[number]
            found[number] = replace(prompt, text=text, clean=tuple(tokens), words=())
    return PromptPairs(pairs.task, tuple(found[number] for number in sorted(found)))


def _words(model: TransformerBridge, prompt: TokenizedPrompt) -> dict[str, str]:
    """The words at the named positions, in the order of the sentence."""
    places = {name: at for name, at in prompt.positions.items() if at}
    return {
        name: model.tokenizer.decode([prompt.clean[i] for i in places[name]]).strip()
        for name in sorted(places, key=lambda name: places[name])
    }


def _ask(
    causal: CausalModel, words: Mapping[str, str], held: Mapping[str, object]
) -> Mapping[str, Any]:
    """What the causal model says, once it is known that it answers and holds what it was told."""
    name = getattr(causal, "__name__", repr(causal))
    values = causal(dict(words), **held)
    if not isinstance(values, Mapping) or "answer" not in values:
        raise PatchlibError(
            f"{name} returned {values!r}: let it return a dict with all its variables and 'answer'"
        )
    for variable, value in held.items():
        if variable not in values or values[variable] != value:
            raise PatchlibError(
                f"{name} was called with {variable}={value!r} and returned "
                f"{values.get(variable)!r}: take what is held from there, as in "
                f"held.get({variable!r}, ...)"
            )
    return values


def _tokens(
    model: TransformerBridge, pairs: PromptPairs, prompt: TokenizedPrompt, answer: object
) -> tuple[int, ...]:
    """The tokens of the causal model's answers, each with the space that answers here have."""
    tokenizer = tokenizer_of(model)
    bare = prompt.clean[int(pairs.settings.get("prepend_bos", False)) :]
    own = tokenizer.decode([*bare, prompt.answers[0]])[len(tokenizer.decode(bare)) :]
    space = own[: len(own) - len(own.lstrip())]
    found = []
    for each in answer if isinstance(answer, list | tuple) else [answer]:
        text = f"{space}{str(each).strip()}"
        joined = tokenizer(prompt.text + text, add_special_tokens=False)["input_ids"]
        found.append(_answer(tokenizer, prompt.text, bare, text, tuple(joined)))
    return tuple(dict.fromkeys(found))

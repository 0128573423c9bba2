"""Causal scrubbing: whether a model does as before with all resampled that a hypothesis lets vary.

Chan et al. (2022) state a hypothesis on a model as a second, smaller graph: which of what a node
reads matters, and what it depends on. Then every input of every node is replaced by that of another
prompt in which the hypothesis sees no difference. Two replacements are made, from the same prompts:
what matters is drawn given the value that the hypothesis names, what does not is drawn freely.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name
from transformer_lens.utilities.statistics import derive_generator

from patchlib.errors import PatchlibError, whole
from patchlib.measure.resamples import ratio_ends, resampled
from patchlib.methods.edges import _KINDS, _edge, _Graph, _place
from patchlib.patching.architectures import Network
from patchlib.patching.cells import Limits
from patchlib.patching.code import fingerprint
from patchlib.patching.fast_engine import _causal, _read_by, network_of
from patchlib.patching.metrics import Metric, choose, measure
from patchlib.patching.patch import Metrics
from patchlib.patching.runs import (
    Run,
    batches,
    require_evaluation,
    require_prompts,
    row_bytes,
    run_with_edits,
)
from patchlib.patching.settings import of_result
from patchlib.prompts.pairs import PromptPairs, places_of
from patchlib.prompts.tokenizing import TokenizedPrompt

Feature = str | Callable[[TokenizedPrompt], Hashable]
"""What a prompt must have in common with another: a named position's tokens, or a function."""

Hypothesis = Mapping[str, Feature | Mapping[str, Feature]]
"""For each reader the writers that matter to it, each with the feature that decides what it
writes, and ``"rest"`` for all others together; or one feature for all that it reads."""


def scrub(
    model: TransformerBridge,
    pairs: PromptPairs,
    hypothesis: Hypothesis | Mapping[str, Hypothesis],
    *,
    draws: int = 10,
    seed: int = 0,
    metrics: Metrics = "logit_diff",
    keep_prompts: bool = False,
    keep_draws: bool = False,
    memory_budget: float | None = None,
) -> xr.Dataset:
    """Resamples all that a hypothesis lets vary, and says how much of the performance is left.

    It begins with the logits of a prompt. Each writer that ``hypothesis`` names for a reader writes
    what it writes in another prompt, drawn from those with the same value of its feature; all other
    writers what they write in one further prompt, drawn freely. A head or an MLP whose own readers
    are named, too, is scrubbed in the same way, beginning with the prompt that was drawn for it,
    and its readers that are not named read one freely drawn prompt; else it is that prompt's. So
    no two draws depend on each other but by the features, and a prompt may be drawn for itself.

    Prompts are drawn from ``pairs``, among those of one length. Where words of one role stand at
    several places, a feature must say which, or positions are tested as well.

    Args:
        model: the model, in evaluation mode.
        pairs: the data set; its clean prompts are run, once each, and what their own answers get in
            scrubbed runs is measured. Replacements play no part.
        hypothesis: as in ``{"logits": {"9.9": "IO"}, "q9.9": {"8.6": order}, "k9.9": "all",
            "v9.9": "all"}``, with the names of `Edges`: what the logits read of head 9.9 depends on
            the token at IO alone, what 9.9's query reads of 8.6 on ``order``, and nothing else
            matters to either; to its keys and values everything does. A feature is a named position
            (``"S1+IO"``: the tokens at both), ``"all"`` for the prompt itself, so that nothing is
            resampled, or a function of a `TokenizedPrompt` whose value can be compared. ``{}`` says
            that nothing matters, ``{"logits": {"9.9": "IO", "rest": "all"}}`` that everything may
            but for this one claim. Or several hypotheses by their names.
        draws: how often all is drawn for each prompt.
        seed: seeds the drawing. What is drawn at an edge depends on it, on the edge's path to the
            logits and on the feature alone, so that hypotheses that share a part share its draws.
        metrics: as in `patch`; by KL, in nats from the model's own clean logits.
        keep_prompts: keep one value per prompt instead of their mean.
        keep_draws: keep one value per draw; with ``keep_prompts`` the numbers of the prompts that
            were drawn as well.
        memory_budget: as in `patch`. The runs of all prompts of one length are held at once.

    Returns:
        A dataset over ``metric`` and, for several, ``hypothesis``, with the variables

        * ``scrubbed``, the metric of scrubbed runs; ``model``, of the model itself; ``random``, of
          the run of one freely drawn prompt, which is what the hypothesis ``{}`` leaves;
        * ``recovered``, (scrubbed - random) / (model - random) of the means over prompts and
          draws, with the ends ``low`` and ``high`` of its 95 % interval over prompts with all their
          draws. It may lie above 1, where what is left out works against the answer;
        * ``alone``, over ``input``, for each drawn input (such as ``"8.6->q9.9->logits"``;
          ``"rest->logits"`` is the free one) the share of prompts that no other prompt has the
          feature of: these were not resampled, so that the hypothesis was not tested on them;
        * ``drawn``, where kept: the number of the prompt that was drawn, -1 in a hypothesis without
          this input.

    Raises:
        PatchlibError: for readers, writers and positions that there are not, for a reader that no
            writer in the hypothesis has, for a feature without a value, for a single prompt of its
            length, for what does not fit into memory, for an architecture that the fast engine does
            not know, and as `patch` does.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=20)
        >>> fx = pl.scrub(model, pairs, {"nothing": {}, "everything": {"logits": "all"}}, draws=2)
        >>> fx.recovered.values
        array([[0., 1.]])
    """
    require_evaluation(model)
    require_prompts(model, pairs)
    draws, seed, chosen = whole("draws", draws, 1), whole("seed", seed, 0), choose(metrics)
    limits, several = Limits.of(model, "auto", memory_budget), _are_several(hypothesis)
    graph = _Graph(model)
    given: Any = hypothesis if several else {"": hypothesis}
    trees = {str(name): _Tree(graph, each) for name, each in given.items()}
    network = network_of(model, pairs, None, "this model cannot be scrubbed")
    parts = []
    for index, group in pairs.by_length():
        if len(group) < 2:
            raise PatchlibError(
                f"{group.texts[0]!r} is the only prompt of {len(group.prompts[0].clean)} tokens, "
                "and nothing but itself can be drawn for it: give several prompts of each length"
            )
        scrubbed = _scrub(model, network, graph, group, trees, chosen, draws, seed, limits.memory)
        numbers = scrubbed.drawn.copy(data=np.append(index, -1)[scrubbed.drawn])
        parts.append(scrubbed.assign(drawn=numbers).assign_coords(prompt=index))
    data = xr.concat(parts, "prompt").sortby("prompt").drop_vars("prompt")
    data = data.assign(_recovered(data.mean("draw")))
    data["alone"] = data.alone.mean("prompt", skipna=False)
    if not (keep_prompts and keep_draws):
        data = data.drop_vars("drawn")
    data = data if keep_draws else data.mean("draw")
    if keep_prompts:
        data = data.assign_coords(text=("prompt", pairs.texts))
    else:
        data = data.mean("prompt")
    if not several:
        data = data.squeeze("hypothesis", drop=True)
    texts = (f"{name} = {tree}" if several else str(tree) for name, tree in trees.items())
    what = {
        "method": "causal scrubbing",
        "hypothesis": " | ".join(texts),
        "draws": draws,
        "seed": seed,
        "metrics": ", ".join(metric.name for metric in chosen),
    }
    settings = of_result(model, pairs, metrics=chosen, what=what)
    return data.transpose("metric", "hypothesis", ..., missing_dims="ignore").assign_attrs(settings)


def _recovered(data: xr.Dataset) -> xr.Dataset:
    """The share of the performance that is recovered, with its interval."""
    parts = xr.Dataset({"top": data.scrubbed - data.random, "bottom": data.model - data.random})
    mean, again = parts.mean("prompt"), parts.map(resampled)
    found = xr.Dataset({"recovered": mean.top / mean.bottom})
    ends = [
        [ratio_ends(top.sel(metric=m), again.bottom.sel(metric=m)) for m in data.metric.values]
        for top in again.top.transpose("hypothesis", ...)
    ]
    for name in ("low", "high"):
        found[name] = ["hypothesis", "metric"], [[each[name] for each in row] for row in ends]
    return found


def _are_several(given: object) -> bool:
    return isinstance(given, Mapping) and bool(given) and "logits" not in given


def _scrub(
    model: TransformerBridge,
    network: Network,
    graph: _Graph,
    pairs: PromptPairs,
    trees: Mapping[str, _Tree],
    metrics: Sequence[Metric],
    draws: int,
    seed: int,
    memory: int,
) -> xr.Dataset:
    """All hypotheses, and that nothing matters, on prompts of one length."""
    every = [*trees.values(), _Tree(graph, {})]
    names = set[str]().union(*(tree.names for tree in every))
    runs = _Runs(model, network, graph, pairs, names, memory)
    tokens, r, r_wrong = _read_by(metrics, pairs.answers, pairs.wrong_answers, network)
    paths = list(dict.fromkeys(path for tree in every for path in tree.inputs))
    values = np.empty((len(every), len(metrics), len(pairs), draws))
    unchanged = np.empty((len(metrics), len(pairs)))
    alone = np.full((len(every), len(paths), len(pairs)), np.nan)
    drawn = np.full((*alone.shape, draws), -1)
    for number, tree in enumerate(every):
        strata = {path: _Strata(pairs, feature) for path, (_, feature) in tree.inputs.items()}
        for path in tree.inputs:
            alone[number, paths.index(path)] = strata[path].alone
        for draw in range(draws):
            rows = tree.draw(strata, len(pairs), seed, draw)
            for path in tree.inputs:
                drawn[number, paths.index(path), :, draw] = rows[path]
            for some in torch.arange(len(pairs)).split(runs.at_once):
                clean = runs.clean(some, tokens)
                here = runs.logits(tree, {path: of[some] for path, of in rows.items()}, tokens)
                both = measure(
                    metrics,
                    torch.stack((clean, here)),
                    r[some],
                    r_wrong[some],
                    clean,
                    pairs[some.tolist()].texts,
                )
                unchanged[:, some], values[number][:, some, draw] = both[:, 0], both[:, 1]
    dims = ["hypothesis", "metric", "prompt", "draw"]
    return xr.Dataset(
        {
            "scrubbed": (dims, values[:-1]),
            "model": (dims[1:3], unchanged),
            "random": (dims[1:], values[-1]),
            "alone": (["hypothesis", "input", "prompt"], alone[:-1]),
            "drawn": (["hypothesis", "input", "prompt", "draw"], drawn[:-1]),
        },
        {"hypothesis": [*trees], "metric": [metric.name for metric in metrics], "input": paths},
    )


class _Node(NamedTuple):
    """A reader with the writers that are exchanged in what it reads, or a writer with its readers.

    ``input`` is the path of the input that all else of it is from.
    """

    name: str
    input: str
    inside: tuple[_Node, ...] = ()


class _Tree:
    """A hypothesis from the logits back, with every input that is drawn.

    ``inputs`` gives for each of them, by its path to the logits, the one that it must resemble and
    in what: ``""`` is the prompt itself, and no feature means freely. ``names`` are all readers
    that are run, and all writers that are exchanged.
    """

    def __init__(self, graph: _Graph, given: object) -> None:
        self.graph, self.asked = graph, _asked(graph, given)
        self.inputs: dict[str, tuple[str, Feature | None]] = {}
        self.names = {"logits"}
        self.logits = self._read("logits", "", "")
        if unread := sorted(self.asked.keys() - self.names):
            raise PatchlibError(
                f"{unread[0]!r} is in the hypothesis, and the writer that it belongs to is not, or "
                f"does not lead to the logits: name {graph.writing[unread[0]][0]!r} for a reader "
                f"that does, or leave {unread[0]!r} out"
            )

    def _read(self, reader: str, whose: str, after: str, rest: str = "") -> _Node:
        self.names.add(reader)
        if reader not in self.asked:
            return _Node(reader, rest)
        what, path = dict(self.asked[reader]), reader + after
        self.inputs[f"rest->{path}"] = whose, what.pop(_REST, None)
        writers = (self._write(writer, each, whose, path) for writer, each in what.items())
        return _Node(reader, f"rest->{path}", tuple(writers))

    def _write(self, writer: str, feature: Feature, whose: str, after: str) -> _Node:
        self.names.add(writer)
        path, rest = f"{writer}->{after}", f"rest->{writer}->{after}"
        self.inputs[path] = whose, feature
        readers = {reader for reader, of in self.graph.writing.items() if writer in of}
        if not self.asked.keys() & readers:
            return _Node(writer, path)
        if readers - self.asked.keys():
            self.inputs[rest] = path, None
        # A key that several heads share is another's, too, with inputs of its own.
        reads = (
            self._read(
                reader,
                path,
                f"->{after}" if self.graph.writing[reader][0] == writer else f"->{path}",
                rest,
            )
            for reader in sorted(readers)
        )
        return _Node(writer, path, tuple(reads))

    def draw(self, strata: Mapping[str, _Strata], n: int, seed: int, draw: int) -> _Rows:
        """Which of n prompts are drawn for each, by path."""
        rows = {"": torch.arange(n)}
        for path, (whose, _) in self.inputs.items():
            generator = derive_generator(seed, "scrub", draw, path)
            rows[path] = strata[path].draw(rows[whose], generator)
        return rows

    def __str__(self) -> str:
        texts = []
        for reader, what in self.asked.items():
            named = [f"{writer} by {_name(feature)}" for writer, feature in what.items()]
            texts.append(f"{reader}: {', '.join(named) or 'nothing'}")
        return "; ".join(texts)


_REST = "rest"

_Rows = dict[str, Int[Tensor, " prompt"]]


def _asked(graph: _Graph, given: object) -> dict[str, dict[str, Feature]]:
    """A hypothesis with the names that the graph has for readers and writers."""
    if not isinstance(given, Mapping) or (given and "logits" not in given):
        raise PatchlibError(
            f"{given!r} is no hypothesis: begin with what the logits read, as in "
            "{'logits': {'9.9': 'IO'}, 'q9.9': {'8.6': 'S1'}}; {} says that nothing matters"
        )
    asked: dict[str, dict[str, Feature]] = {"logits": {}}
    for name, what in given.items():
        reader = graph.resolve(_edge(("resid0", name))).reader
        read = {
            _REST if each == _REST else graph.resolve(_edge((each, reader))).writer: _feature(by)
            for each, by in (what.items() if isinstance(what, Mapping) else [(_REST, what)])
        }
        if name != "logits" and asked.get(reader, read) != read:
            raise PatchlibError(
                f"heads share {name!r}, and the hypothesis says two things of it: say one"
            )
        asked[reader] = read
    return asked


def _feature(given: Any) -> Feature:
    if not isinstance(given, str) and not callable(given):
        raise PatchlibError(
            f"{given!r} is no feature: give a named position, such as 'S2', 'all', or a function "
            "of a prompt; what a writer's own readers read is an entry of its own, as in "
            "{'logits': {'9.9': 'IO'}, 'q9.9': {'8.6': 'S1'}}"
        )
    return given


def _name(feature: Any) -> str:
    """A feature as results keep it."""
    if isinstance(feature, str):
        return feature
    return f"{getattr(feature, '__name__', type(feature).__name__)} ({fingerprint(feature)})"


class _Strata:
    """Prompts of one length by the value of a feature, or all together.

    ``alone`` says which have no other prompt beside them.
    """

    def __init__(self, pairs: PromptPairs, feature: Feature | None) -> None:
        prompts = pairs.prompts
        values: list[Any]
        if feature is None:
            values = [None] * len(prompts)
        elif feature == "all":
            values = [prompt.clean for prompt in prompts]
        elif isinstance(feature, str):
            places = zip(prompts, places_of(pairs, feature), strict=True)
            values = [tuple(prompt.clean[i] for i in at) for prompt, at in places]
        else:
            values = [feature(prompt) for prompt in prompts]
        members: dict[Hashable, list[int]] = {}
        try:
            for number, value in enumerate(values):
                members.setdefault(value, []).append(number)
        except TypeError:
            raise PatchlibError(
                f"{_name(feature)} gave {value!r} for {prompts[number].text!r}, which cannot be "
                "looked up: give a number, a text or a tuple of them, as in tuple(...)"
            ) from None
        self._members = [members[value] for value in values]
        kinds = {value: len({prompts[i].clean for i in each}) for value, each in members.items()}
        self.alone = [kinds[value] == 1 for value in values]

    def draw(self, rows: Tensor, generator: torch.Generator) -> Int[Tensor, " prompt"]:
        """For each of some prompts one with its value, itself or another."""
        shares = torch.rand(len(rows), generator=generator, dtype=torch.float64).tolist()
        several = zip((self._members[row] for row in rows.tolist()), shares, strict=True)
        return torch.tensor([some[int(share * len(some))] for some, share in several])


_ACTIVATIONS = {"resid": "resid_pre", "": "z", "mlp": "mlp_out", "mlp_in": "resid_mid"}
_ACTIVATIONS |= {"q": "resid_pre", "k": "resid_pre", "v": "resid_pre", "logits": "resid_post"}


class _Runs:
    """The unpatched runs of prompts of one length, and what readers and writers make of them.

    Args:
        model: the model.
        network: the same without hooks.
        graph: its graph.
        pairs: the prompts.
        names: the readers and writers that will be asked for.
        memory: how many bytes all may take.
    """

    def __init__(
        self,
        model: TransformerBridge,
        network: Network,
        graph: _Graph,
        pairs: PromptPairs,
        names: set[str],
        memory: int,
    ) -> None:
        self.network, self.graph = network, graph
        width, length = model.cfg.d_model, len(pairs.prompts[0].clean)
        width = max(width, graph.heads * model.cfg.d_head)
        keep = sorted({self._activation(name) for name in names})
        held = len(pairs) * length * len(keep) * width * model.cfg.dtype.itemsize
        row = row_bytes(model, length, max(len(keep), len(graph.readers) // graph.layers) * width)
        if held + row > memory:
            raise PatchlibError(
                f"memory_budget={memory}: the runs of {len(pairs)} prompts of {length} tokens are "
                f"held at once, which needs {held + row} bytes: give memory_budget={held + row} or "
                "more, or fewer prompts"
            )
        self.at_once = (memory - held) // row
        parts: dict[str, list[Tensor]] = {name: [] for name in keep}
        for _, some in batches(model, pairs, memory - held, len(keep) * width):
            for name, values in run_with_edits(model, Run(some.clean_tokens), keep=keep)[1].items():
                parts[name].append(values)
        self._kept = {name: torch.cat(values) for name, values in parts.items()}
        self._rotate = network.rotation(0, length)
        self._mask = _causal(0, length, length, network.device)

    @torch.no_grad()
    def logits(
        self, tree: _Tree, rows: _Rows, tokens: Tensor | None
    ) -> Float[Tensor, "prompt token"]:
        """The logits of scrubbed runs."""
        return self.network.unembed(self._read(tree.logits, rows)[:, -1], tokens)

    @torch.no_grad()
    def clean(self, rows: Tensor, tokens: Tensor | None) -> Float[Tensor, "prompt token"]:
        """The logits of unpatched runs."""
        return self.network.unembed(self._stream("logits", rows)[:, -1], tokens)

    def _activation(self, name: str) -> str:
        """The hook with what a reader reads, or with what a writer writes."""
        layer, kind, _ = _place(name)
        what = _ACTIVATIONS[_KINDS[kind]]
        if what == "resid_mid" and self.network.parallel:
            what = "resid_pre"
        return get_act_name(what, int(min(layer, self.graph.layers - 1)))

    def _stream(self, reader: str, rows: Tensor) -> Float[Tensor, "prompt position d_model"]:
        """What a reader reads in unpatched runs."""
        return self._kept[self._activation(reader)][rows]

    def _written(self, writer: str, rows: Tensor) -> Float[Tensor, "prompt position d_model"]:
        """What a writer writes in unpatched runs."""
        found, (layer, kind, head) = self._kept[self._activation(writer)][rows], _place(writer)
        if _KINDS[kind]:
            return found
        return found[:, :, head] @ self.network.blocks[int(layer)].W_O[head]

    def _read(self, node: _Node, rows: _Rows) -> Float[Tensor, "prompt position d_model"]:
        """What a reader reads in scrubbed runs."""
        x = self._stream(node.name, rows[node.input])
        for each in node.inside:
            x = x + self._write(each, rows) - self._written(each.name, rows[node.input])
        return x

    def _write(self, node: _Node, rows: _Rows) -> Float[Tensor, "prompt position d_model"]:
        """What a writer writes in scrubbed runs."""
        if not node.inside:
            return self._written(node.name, rows[node.input])
        streams = {each.name: self._read(each, rows) for each in node.inside}
        layer, kind, head = _place(node.name)
        block = self.network.blocks[int(layer)]
        if _KINDS[kind] == "mlp":
            return block.contract(block.expand(*streams.values()))
        # Those of the layer's other heads are run on nothing.
        like = torch.zeros_like(next(iter(streams.values())))
        every = [name for name in self.graph.readers if re.match(f"[qkv]{layer:.0f}[.]", name)]
        x = torch.stack([streams.get(name, like) for name in every])
        q, k, v = block.project_each(x[None], self._rotate)
        return block.attend(q, k, v, self._mask)[:, :, head] @ block.W_O[head]

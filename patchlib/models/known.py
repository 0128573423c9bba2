"""What is known of the `known` models: the mechanism they were trained to have, and its circuit.

The mechanism is a causal model of indirect object identification, after the circuit of Wang et
al. (2023). Two names come first, and one of them comes again. ``previous`` carries each name to the
next token. ``duplicate`` and ``induction`` both say which of the two the repeated name is, the one
by the name itself, the other by what ``previous`` carried. ``inhibition`` puts both votes together
by a gate. ``mover`` adds to the logit of every name that is not inhibited, and ``negative`` takes
away from it. Each variable stands for one attention head, and what one reads of another is an edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from patchlib.errors import PatchlibError
from patchlib.heads import Head
from patchlib.prompts.corruption import Corruption
from patchlib.prompts.pairs import PromptPairs

GATES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "graded": lambda one, other: (one + other) / 2,
        "or": torch.maximum,
        "and": torch.minimum,
    }
)
"""How two votes become one: their mean, the larger, or the smaller."""

HEADS: Mapping[str, Head] = MappingProxyType(
    {
        "previous": Head(0, 1),
        "duplicate": Head(2, 2),
        "induction": Head(2, 0),
        "inhibition": Head(3, 1),
        "mover": Head(4, 3),
        "negative": Head(5, 2),
    }
)
"""Which head each variable stands for."""

EDGES = (
    ("names", "previous"),
    ("names", "duplicate"),
    ("names", "induction"),
    ("names", "mover"),
    ("names", "negative"),
    ("previous", "induction"),
    ("duplicate", "inhibition"),
    ("induction", "inhibition"),
    ("inhibition", "mover"),
    ("inhibition", "negative"),
    ("mover", "logits"),
    ("negative", "logits"),
)
"""Which variable reads which; ``names`` are the embedding."""

STRENGTH: Mapping[str, float] = MappingProxyType({"mover": 9.0, "negative": -3.0})
"""What the writing heads add to a name's logit where nothing inhibits it."""

_CALLED = {"names": "resid0", "logits": "logits", **{v: str(h) for v, h in HEADS.items()}}

Values = dict[str, Tensor]


def _computed(variable: str, read: Values, gate: str, count: int) -> Tensor:
    """A variable's value from the values that it reads."""
    if variable == "logits":
        return read["mover"] + read["negative"]
    if variable == "inhibition":
        return GATES[gate](read["duplicate"], read["induction"])
    first_two, repeated = read["names"][:, :2], read["names"][:, 2:]
    if variable == "previous":
        return first_two
    if variable in STRENGTH:
        free = STRENGTH[variable] * (1 - read["inhibition"])
        return (free[:, :, None] * one_hot(first_two, count)).sum(1)
    return (repeated == (first_two if variable == "duplicate" else read["previous"])).float()


def mechanism(
    names: Int[Tensor, "prompt 3"],
    count: int,
    gate: str = "graded",
    setting: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({}),
) -> Values:
    """Runs the mechanism, with some variables set.

    Args:
        names: the first, the second and the repeated name of each prompt, as numbers below
            ``count``.
        count: how many names there are.
        gate: ``"graded"``, ``"or"`` or ``"and"`` (`GATES`).
        setting: for each variable that is set a function from its own value to the one it gets.

    Returns:
        The value of every variable, and ``"logits"`` [prompt, name], in nats.

    Example:
        >>> names = torch.tensor([[0, 1, 1]])
        >>> mechanism(names, 3)["logits"]
        tensor([[6., 0., 0.]])
        >>> mechanism(names, 3, setting={"duplicate": torch.zeros_like})["logits"]
        tensor([[6., 3., 0.]])
    """
    if gate not in GATES:
        raise PatchlibError(f"gate={gate!r}: allowed are {', '.join(GATES)}")
    values: Values = {"names": names}
    for variable in (*HEADS, "logits"):
        value = _computed(variable, values, gate, count)
        values[variable] = setting[variable](value) if variable in setting else value
    return values


def heads(
    pairs: PromptPairs, corruption: Corruption, gate: str = "graded", direction: str = "denoise"
) -> dict[Head, float]:
    """The effect that the mechanism predicts for each head of the circuit, in logit difference.

    Args:
        pairs: prompts of indirect object identification.
        corruption: replaces tokens at ``S2``, ``S1+IO`` or another site.
        gate: the model's gate.
        direction: as in `patchlib.patch`.

    Returns:
        Effects as `patchlib.patch` normalises them: 1 restores (or destroys) the whole answer.
        Heads that are not in the dict have none.

    Example:
        >>> import patchlib as pl
        >>> pairs = pl.tasks.ioi(pl.load_model("mini"), n=8)
        >>> {str(head): effect for head, effect in heads(pairs, pl.STR("S2")).items()}
        {'0.1': 0.0, '2.2': 0.5, '2.0': 0.5, '3.1': 1.0, '4.3': 1.5, '5.2': -0.5}
    """
    runs = _Runs(pairs, corruption, gate, direction)

    def given(variable: str) -> Callable[[Tensor], Tensor]:
        return lambda _: runs.source[variable]

    return {head: runs.effect({variable: given(variable)}) for variable, head in HEADS.items()}


def edges(
    pairs: PromptPairs, corruption: Corruption, gate: str = "graded", direction: str = "denoise"
) -> dict[tuple[str, str], float]:
    """The effect that the mechanism predicts for each edge of the circuit, in logit difference.

    Args:
        pairs: as in `heads`.
        corruption: as in `heads`.
        gate: as in `heads`.
        direction: as in `heads`.

    Returns:
        Effects by writer and reader, as ``("resid0", "2.2")`` or ``("4.3", "logits")``. Queries,
        keys and values of a head are one reader.

    Example:
        >>> import patchlib as pl
        >>> pairs = pl.tasks.ioi(pl.load_model("mini"), n=8)
        >>> edges(pairs, pl.STR("S2"))["3.1", "4.3"]
        1.5
    """
    runs = _Runs(pairs, corruption, gate, direction)

    def reading(writer: str, reader: str) -> Callable[[Tensor], Tensor]:
        other = runs.base | {writer: runs.source[writer]}
        return lambda _: _computed(reader, other, gate, runs.count)

    return {
        (_CALLED[writer], _CALLED[reader]): runs.effect({reader: reading(writer, reader)})
        for writer, reader in EDGES
    }


def active(pairs: PromptPairs, corruption: Corruption, gate: str = "graded") -> set[str]:
    """The heads and edges that carry something else in one run than in the other.

    What does not is idle under this corruption: no method can find it, whatever its direction.

    Args:
        pairs: as in `heads`.
        corruption: as in `heads`.
        gate: as in `heads`.

    Returns:
        Heads as ``"2.2"``, and edges as ``"resid0->2.2"``.

    Example:
        >>> import patchlib as pl
        >>> pairs = pl.tasks.ioi(pl.load_model("mini"), n=8)
        >>> "0.1" in active(pairs, pl.STR("S2")), "0.1" in active(pairs, pl.STR("ABC"))
        (False, True)
    """
    found = set()
    for direction in ("denoise", "noise"):
        runs = _Runs(pairs, corruption, gate, direction)
        for writer, reader in EDGES:
            read = runs.base | {writer: runs.source[writer]}
            if not torch.equal(_computed(reader, read, gate, runs.count), runs.base[reader]):
                found.add(f"{_CALLED[writer]}->{_CALLED[reader]}")
            if not torch.equal(runs.source[writer], runs.base[writer]):
                found.add(_CALLED[writer])
    return found


class _Runs:
    """The mechanism on the clean and on the corrupted prompts, and what setting variables does."""

    def __init__(
        self, pairs: PromptPairs, corruption: Corruption, gate: str, direction: str
    ) -> None:
        if direction not in ("denoise", "noise"):
            raise PatchlibError(f"direction={direction!r}: allowed are denoise, noise")
        places = [pairs.positions[name] for name in ("IO", "S1", "S2")]
        at = torch.stack(places, 1).sort(dim=1).values
        tokens = [run.gather(1, at) for run in (pairs.clean_tokens, corruption.tokens(pairs))]
        every, numbers = torch.stack(tokens).unique(return_inverse=True)
        self.answers = [
            torch.searchsorted(every, answer) for answer in (pairs.answers, pairs.wrong_answers)
        ]
        self.gate, self.count = gate, len(every)
        first, second = (0, 1) if direction == "noise" else (1, 0)
        self.names = numbers[first]
        self.base, self.source = (mechanism(numbers[i], self.count, gate) for i in (first, second))

    def effect(self, setting: Mapping[str, Callable[[Tensor], Tensor]]) -> float:
        """The mean change of the logit difference, where 1 is all of it."""
        patched = mechanism(self.names, self.count, self.gate, setting)
        base, source, reached = map(self._difference, (self.base, self.source, patched))
        # Without the sign of a zero.
        return ((reached - base).mean() / (source - base).mean()).item() + 0.0

    def _difference(self, values: Values) -> Float[Tensor, " prompt"]:
        right, wrong = (
            values["logits"].gather(1, answer[:, None])[:, 0] for answer in self.answers
        )
        return right - wrong

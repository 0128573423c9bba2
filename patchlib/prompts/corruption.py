"""How to corrupt a prompt: symmetric token replacement and Gaussian noise (Section 2.1)."""

from __future__ import annotations

import dataclasses
import math
import weakref
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

from patchlib.errors import PatchlibError, whole
from patchlib.prompts.pairs import PromptPairs


@dataclass(frozen=True)
class Corruption:
    """What `STR` and `GN` have in common, and every corruption of your own.

    A corruption of your own is a frozen dataclass of this one: `tokens` replaces tokens, `noise`
    is added to embeddings, and whatever the class does not define does nothing. Both see any
    number of prompts at a time, and what they do to a prompt must not depend on the others. Fields
    are kept with every result, as `describe` gives them; several ``draws`` are averaged over.

    Args:
        site: where prompts are corrupted, as the task names it.

    Raises:
        PatchlibError: for a site that is no name.

    Example:
        >>> import patchlib as pl
        >>> @dataclass(frozen=True)
        ... class Shift(pl.Corruption):
        ...     by: float = 1.0
        ...
        ...     def noise(self, model, pairs, draw):
        ...         noise = torch.zeros(*pairs.clean_tokens.shape, model.cfg.d_model)
        ...         for row, at in enumerate(pairs.at(self.site)):
        ...             noise[row, list(at), 0] = self.by
        ...         return noise
        >>> Shift("S2", by=0.5).describe()
        {'corruption': 'Shift', 'site': 'S2', 'by': 0.5}
    """

    site: str
    # Unannotated, so that it is no field: a corruption without chance has one draw.
    draws = 1

    def __post_init__(self) -> None:
        if not isinstance(self.site, str):
            raise PatchlibError(
                f"site={self.site!r}: give a position by its name, such as 'S2', and several "
                "joined by '+', as in 'S1+IO'"
            )

    def tokens(self, pairs: PromptPairs) -> Int[Tensor, "prompt position"]:
        """The corrupted tokens of prompts of one length; the clean ones unless replaced."""
        return pairs.clean_tokens

    def noise(
        self, model: TransformerBridge, pairs: PromptPairs, draw: int
    ) -> Float[Tensor, "prompt position d_model"] | None:
        """What is added to the token embeddings of prompts of one length, or None for nothing.

        Args:
            model: gives the width and the standard deviation of its embeddings.
            pairs: the prompts.
            draw: the number of the draw, from 0 to ``draws`` - 1.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """The corruption and its parameters, as results keep them."""
        fields = {
            name: value if isinstance(value, Real) and not isinstance(value, bool) else str(value)
            for name, value in dataclasses.asdict(self).items()
        }
        return {"corruption": type(self).__name__, **fields}


def is_own(corruption: Corruption) -> bool:
    """Whether a corruption is somebody's own class."""
    return type(corruption).__module__ != __name__


@dataclass(frozen=True)
class STR(Corruption):
    """Symmetric token replacement: the tokens of a site become similar ones of equal length.

    The corrupted prompt is as likely as a clean one, so the model stays on its distribution.

    Args:
        site: what is replaced, as the task names it (``"S2"``, ``"S1+IO"``, ``"ABC"``).

    Example:
        >>> import patchlib as pl
        >>> pairs = pl.tasks.ioi(pl.load_model("mini"), n=5)
        >>> changed = pl.STR("S2").tokens(pairs) != pairs.clean_tokens
        >>> changed.sum(dim=1).tolist()
        [1, 1, 1, 1, 1]
    """

    def tokens(self, pairs: PromptPairs) -> Int[Tensor, "prompt position"]:
        """The corrupted tokens.

        Raises:
            PatchlibError: for a site that the task cannot replace, for prompts of several
                lengths, and where a corrupted prompt equals its clean one.
        """
        corrupted = pairs.corrupted_tokens(self.site)
        same = (corrupted == pairs.clean_tokens).all(dim=1)
        if same.any():
            text = pairs.texts[int(same.nonzero()[0])]
            raise PatchlibError(
                f"replacing {self.site!r} changes nothing in {text!r}: "
                "the replacement must differ from the original"
            )
        return corrupted


@dataclass(frozen=True)
class GN(Corruption):
    """Gaussian noise on the token embeddings of a site, before positions are added.

    Each prompt's noise depends on its own tokens, the seed and the number of the draw alone, so
    every patched cell sees the same noise, in whatever order or batch the prompts come.

    Args:
        site: the named position, or several joined by ``+``.
        scale: the noise's standard deviation in units of the standard deviation of all entries
            of the token embeddings; 3 in the paper (Section 2.1, Appendix B).
        draws: how many independent draws are averaged over.
        seed: seeds the noise.

    Raises:
        PatchlibError: for a site that is no name, a scale that is no number of at least 0, and for
            draws and seeds that are no whole numbers.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> noise = pl.GN("S2", scale=3.0).noise(model, pairs, draw=0)
        >>> noise.abs().sum(dim=-1).count_nonzero().item()
        2
    """

    scale: float = 3.0
    draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        is_number = isinstance(self.scale, Real) and not isinstance(self.scale, bool)
        if not (is_number and 0 <= self.scale < math.inf):
            raise PatchlibError(
                f"scale={self.scale!r}: the noise scale must be a number of at least 0; 3 is usual"
            )
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "draws", whole("draws", self.draws, 1))
        object.__setattr__(self, "seed", whole("seed", self.seed, 0))

    def sigma(self, model: TransformerBridge) -> float:
        """The noise's standard deviation: scale times that of all token embeddings' entries.

        The embeddings are those that the noise is added to: some models, such as Gemma, scale
        what they read from their matrix.
        """
        return self.scale * _spread(model.embed.original_component, len(model.W_E))

    def noise(
        self, model: TransformerBridge, pairs: PromptPairs, draw: int
    ) -> Float[Tensor, "prompt position d_model"]:
        """What is added to the token embeddings, zero outside the site.

        Raises:
            PatchlibError: where a prompt has no token at the site.
        """
        tokens = pairs.clean_tokens
        noise = torch.zeros(*tokens.shape, model.cfg.d_model)
        sigma = self.sigma(model)
        for row, at in enumerate(pairs.at(self.site)):
            if not at:
                raise PatchlibError(
                    f"noise at {self.site!r} changes nothing in {pairs.texts[row]!r}, which has no "
                    f"token there: keep the prompts for which pairs.at({self.site!r}) is not empty"
                )
            generator = derive_generator(self.seed, "GN", draw, tokens[row].tolist())
            noise[row, list(at)] = sigma * torch.randn(
                len(at), model.cfg.d_model, generator=generator
            )
        return noise

    def describe(self) -> dict[str, Any]:
        """The corruption and its parameters, as results keep them."""
        found = super().describe()
        return found | {"noise_seed": found.pop("seed")}


_SPREADS: weakref.WeakKeyDictionary[nn.Module, tuple[object, float]] = weakref.WeakKeyDictionary()


def _spread(embed: nn.Module, n_tokens: int) -> float:
    """The standard deviation of all entries of what an embedding gives; once for its weights."""
    weights = [(part.data_ptr(), part._version) for part in embed.parameters()]
    known = _SPREADS.get(embed)
    if known is not None and known[0] == weights:
        return known[1]
    n, total, squares = 0, 0.0, 0.0
    with torch.no_grad():
        # In parts, since a copy of the whole matrix may be larger than the memory budget.
        for tokens in torch.arange(n_tokens, device=next(embed.parameters()).device).split(256):
            values = embed(tokens).double()
            n += values.numel()
            total += values.sum().item()
            squares += values.square().sum().item()
    spread = math.sqrt((squares - total**2 / n) / (n - 1))
    _SPREADS[embed] = (weights, spread)
    return spread

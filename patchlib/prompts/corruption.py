"""How to corrupt a prompt: symmetric token replacement and Gaussian noise (Section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.statistics import derive_generator

from patchlib.errors import PatchlibError
from patchlib.prompts.pairs import PromptPairs


@dataclass(frozen=True)
class STR:
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

    site: str
    draws = 1

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

    def noise(
        self, model: TransformerBridge, pairs: PromptPairs, draw: int
    ) -> Float[Tensor, "prompt position d_model"] | None:
        """None: token replacement adds no noise."""
        return None

    def describe(self) -> dict[str, str | float]:
        """The corruption and its parameters, as results keep them."""
        return {"corruption": "STR", "site": self.site}


@dataclass(frozen=True)
class GN:
    """Gaussian noise on the token embeddings of a site, before positions are added.

    Each prompt's noise depends on its own tokens, the seed and the number of the draw alone, so
    every patched cell sees the same noise, in whatever order or batch the prompts come.

    Args:
        site: the named position, or several joined by ``+``.
        scale: the noise's standard deviation in units of the standard deviation of all entries
            of the embedding matrix; 3 in the paper (Section 2.1, Appendix B).
        draws: how many independent draws are averaged over.
        seed: seeds the noise.

    Raises:
        PatchlibError: for a negative scale or fewer than one draw.

    Example:
        >>> import patchlib as pl
        >>> model = pl.load_model("mini")
        >>> pairs = pl.tasks.ioi(model, n=2)
        >>> noise = pl.GN("S2", scale=3.0).noise(model, pairs, draw=0)
        >>> noise.abs().sum(dim=-1).count_nonzero().item()
        2
    """

    site: str
    scale: float = 3.0
    draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise PatchlibError(
                f"scale={self.scale}: the noise scale must be at least 0; 3 is usual"
            )
        if not isinstance(self.draws, int) or self.draws < 1:
            raise PatchlibError(f"draws={self.draws}: give a whole number, at least one draw")

    def sigma(self, model: TransformerBridge) -> float:
        """The noise's standard deviation: scale times that of the embedding matrix's entries."""
        return self.scale * model.W_E.float().std().item()

    def tokens(self, pairs: PromptPairs) -> Int[Tensor, "prompt position"]:
        """The clean tokens: noise changes embeddings, not tokens."""
        return pairs.clean_tokens

    def noise(
        self, model: TransformerBridge, pairs: PromptPairs, draw: int
    ) -> Float[Tensor, "prompt position d_model"]:
        """What is added to the token embeddings, zero outside the site.

        Args:
            model: gives the width and the standard deviation of its embeddings.
            pairs: prompts of one length.
            draw: the number of the draw, from 0 to ``draws`` - 1.

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

    def describe(self) -> dict[str, str | float]:
        """The corruption and its parameters, as results keep them."""
        return {
            "corruption": "GN",
            "site": self.site,
            "scale": self.scale,
            "draws": self.draws,
            "noise_seed": self.seed,
        }


Corruption = STR | GN

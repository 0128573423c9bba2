"""What the tasks ask of a model's tokenizer before they write a prompt."""

from collections.abc import Sequence

from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.prompts.tokenizing import tokenizer_of


def count(model: TransformerBridge, text: str) -> int:
    """The number of a text's tokens, without a beginning of sequence."""
    return len(tokenizer_of(model)(text, add_special_tokens=False)["input_ids"])


def follows_as_one(model: TransformerBridge, text: str, after: str) -> bool:
    """Whether what comes after a text is one token.

    It is read in its place, since some tokenizers put a space before whatever stands alone.
    """
    return count(model, text + after) == count(model, text) + 1


def single(
    model: TransformerBridge, kind: str, words: Sequence[str], at_least: int = 1
) -> tuple[str, ...]:
    """Those words that are one token, with the space before them.

    Args:
        model: gives the tokenizer.
        kind: what the words are, for the error.
        words: the words.
        at_least: how many of them the task needs.

    Raises:
        PatchlibError: where fewer are one token.

    Example:
        >>> import patchlib as pl
        >>> single(pl.load_model("mini"), "names", ["Mary", "Llanfairpwllgwyngyll", "John"])
        ('Mary', 'John')
    """
    found = tuple(word for word in words if follows_as_one(model, "the", f" {word}"))
    if len(found) < at_least:
        raise PatchlibError(
            f"{len(found)} of {len(words)} {kind} are one token for {model.cfg.model_name}, and "
            f"the task needs {at_least}: choose another model or task"
        )
    return found


def splits_digits(model: TransformerBridge) -> bool:
    """Whether each digit is a token of its own, as in SmolLM2 and Llama 2, but not in GPT-2."""
    tokens = tokenizer_of(model)("the year 1745", add_special_tokens=False)["input_ids"]
    return [model.tokenizer.decode([token]) for token in tokens[-4:]] == list("1745")

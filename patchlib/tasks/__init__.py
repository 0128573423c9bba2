"""The paper's five tasks, and pronouns: each function draws prompt pairs for a model.

All prompts of the five are held out: `mini` was trained on the same templates with other names,
years, arguments and operands. Facts are the exception, since a fact can only be recalled after it
was learnt. Every task takes the model first: its tokenizer decides what is one token, and so which
prompts fit and which form greater-than and arithmetic have. ``pairs.settings`` says what came of
it.
"""

import dataclasses
import hashlib
import os
import random
from collections.abc import Sequence
from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge

from patchlib.errors import PatchlibError
from patchlib.prompts.pairs import PromptPairs, draw
from patchlib.prompts.tokenizing import TokenizedPrompt
from patchlib.tasks import docstrings, indirect_objects, professions, sums, tokens, years
from patchlib.tasks.facts import FactPair, own_file, read

__all__ = ["arithmetic", "docstring", "factual_recall", "greater_than", "ioi", "pronouns"]


def ioi(
    model: TransformerBridge, n: int = 100, seed: int = 0, prepend_bos: bool | None = None
) -> PromptPairs:
    """Indirect object identification: "When Mary and John ..., John gave a drink to" → " Mary".

    Args:
        model: the model that will run the prompts.
        n: how many prompts, no two with the same indirect object and subject.
        seed: seeds the draw.
        prepend_bos: whether a beginning-of-sequence token comes first; the model's default where
            None. The paper's code prepends none.

    Returns:
        Pairs with the positions ``IO``, ``S1``, ``S2``, ``last``; r is the indirect object and r'
        the subject. Token replacement at ``S2`` (the paper's; by the indirect object), ``S1``,
        ``IO``, ``S1+IO`` (by unrelated names) and ``ABC`` (all three; p_ABC of Section 4.2).
        Every name is one token, and all prompts have one length; ``settings`` says how much was
        ``left_out`` for that.

    Raises:
        PatchlibError: where n is larger than the number of held-out prompts that fit.

    Example:
        >>> import patchlib as pl
        >>> pairs = pl.tasks.ioi(pl.load_model("mini"), n=1)
        >>> sorted(pairs.positions)
        ['IO', 'S1', 'S2', 'last']
    """
    words = indirect_objects.fitting(model)
    prompts = indirect_objects.prompts(random.Random(f"ioi {seed}"), words)
    settings = {"n": n, "seed": seed, "left_out": words.left_out}
    return draw(model, prompts, n, "ioi", settings, prepend_bos)


def factual_recall(
    model: TransformerBridge,
    n: int = 100,
    seed: int = 0,
    phrasing: int = 0,
    path: str | os.PathLike[str] | None = None,
    prepend_bos: bool | None = None,
    facts: Sequence[FactPair] | None = None,
) -> PromptPairs:
    """Factual recall on pairs of facts: "The Eiffel Tower is ... in the city of" → " Paris".

    Args:
        model: the model that will run the prompts.
        n: how many ordered pairs; each pair of facts gives two, one in each direction.
        seed: seeds the draw.
        phrasing: which of a relation's phrasings, counted from zero.
        path: a facts file in the form of ``data/paired_facts.json``; where None, that file, or
            for a model with SmolLM2's tokenizer ``data/paired_facts_smollm2.json``, the facts
            that SmolLM2 knows. ``settings`` names the file, with its content's hash.
        prepend_bos: whether a beginning-of-sequence token comes first (the paper's choice); the
            model's default where None.
        facts: pairs of facts in place of a file, such as ``from_known1000(...).pairs`` of
            `patchlib.tasks.facts`.

    Returns:
        Pairs with the positions ``subject`` (all its tokens), ``first_subject``,
        ``middle_subject`` (empty for subjects of two tokens), ``last_subject``, ``next`` (the
        token after it), ``further`` and ``last``; token replacement at ``subject``; r' is the
        answer of the other fact.

    Raises:
        PatchlibError: where n is larger than the number of ordered pairs, where there is no pair
            at all, and where both ``path`` and ``facts`` are given.

    Example:
        >>> import patchlib as pl
        >>> pairs = pl.tasks.factual_recall(pl.load_model("mini"), n=2)
        >>> len(pairs.at("last_subject")[0])
        1
    """
    if facts is not None and path is not None:
        raise PatchlibError(f"path={path} and facts were given: give one of them")
    if facts is None:
        file = Path(path or own_file(model))
        everything = read(file)
        source = f"{file.name} sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    else:
        everything = list(facts)
        source = f"{len(everything)} pairs given"
    if not everything:
        raise PatchlibError(
            "there are no pairs of facts: give a file or pairs; the report of what a published "
            "file gives says why none is left"
        )
    known = sorted({pair.phrasing for pair in everything})
    if phrasing not in known:
        raise PatchlibError(f"phrasing={phrasing}: this file has the phrasings {known}")
    pairs = [pair for pair in everything if pair.phrasing == phrasing]
    sides = [(pair, side) for pair in pairs for side in (0, 1)]
    rng = random.Random(f"facts {seed}")
    prompts = (pair.prompt(side) for pair, side in rng.sample(sides, len(sides)))
    settings = {"n": n, "seed": seed, "phrasing": phrasing, "facts": source}
    return draw(model, prompts, n, "factual_recall", settings, prepend_bos, _split_subject)


def _split_subject(prompt: TokenizedPrompt) -> TokenizedPrompt:
    subject = prompt.positions["subject"]
    after, last = subject[-1] + 1, len(prompt.clean) - 1
    named = {
        "subject": subject,
        "first_subject": subject[:1],
        "middle_subject": subject[1:-1],
        "last_subject": subject[-1:],
        "next": (after,) if after < last else (),
        "further": tuple(range(after + 1, last)),
        "last": (last,),
    }
    return dataclasses.replace(prompt, positions=named)


def greater_than(
    model: TransformerBridge, n: int = 100, seed: int = 0, prepend_bos: bool | None = None
) -> PromptPairs:
    """Greater-than: "The war lasted from the year 1732 to the year 17" → any year after 32.

    Args:
        model: the model that will run the prompts; years that it does not split as [XX][YY] are
            left out, as in the paper. Where each digit is a token, as in SmolLM2, the answer is
            the next digit: above the tens digit of YY right, below it wrong, that digit neither.
        n: how many prompts.
        seed: seeds the draw.
        prepend_bos: whether a beginning-of-sequence token comes first; the model's default where
            None.

    Returns:
        Pairs with the positions ``noun``, ``XX``, ``YY``, ``end``, ``last``; r is the set of
        years after YY and r' the set before it (Appendix E); token replacement at ``YY``, by 01.
        ``settings`` says as ``form`` which tokens the answers are, and why, and how many nouns
        were ``left_out`` as they are not one token.

    Raises:
        PatchlibError: where n is larger than the number of held-out prompts.

    Example:
        >>> import patchlib as pl
        >>> pairs = pl.tasks.greater_than(pl.load_model("mini"), n=2)
        >>> pairs.answers.ndim
        2
    """
    by_digit = tokens.splits_digits(model)
    nouns = tokens.single(model, "nouns", years.NOUNS)
    prompts = years.prompts(random.Random(f"years {seed}"), nouns, by_digit)
    left_out = {"nouns": len(years.NOUNS) - len(nouns)}
    settings = {"n": n, "seed": seed, "form": _FORM[by_digit], "left_out": left_out}
    return draw(model, prompts, n, "greater_than", settings, prepend_bos)


_FORM = {
    False: "numbers of several digits, since the tokenizer has tokens for them",
    True: "digit by digit, since the tokenizer makes each digit a token",
}


def docstring(
    model: TransformerBridge, n: int = 100, seed: int = 0, prepend_bos: bool | None = None
) -> PromptPairs:
    """Python docstrings: after ``:param A`` and ``:param B``, which argument comes next?

    Args:
        model: the model that will run the prompts.
        n: how many prompts.
        seed: seeds the draw.
        prepend_bos: whether a beginning-of-sequence token comes first; the model's default where
            None.

    Returns:
        Pairs with the positions ``A_def``, ``B_def``, ``C_def``, ``A_doc``, ``B_doc``, ``last``;
        token replacement at ``C_def``; r is C and r' the variable that replaces it (Appendix D).

    Raises:
        PatchlibError: where the prompts do not fit the model's tokenizer.

    Example:
        >>> import patchlib as pl
        >>> "C_def" in pl.tasks.docstring(pl.load_model("mini"), n=1).positions
        True
    """
    prompts = docstrings.prompts(random.Random(f"docstrings {seed}"))
    return draw(model, prompts, n, "docstring", {"n": n, "seed": seed}, prepend_bos)


def arithmetic(
    model: TransformerBridge,
    n: int = 100,
    seed: int = 0,
    operator: str = "+",
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Two-operand arithmetic with two worked examples: "... 12 + 7 =" → " 19".

    Args:
        model: the model that will run the prompts. Where its tokenizer makes each digit a token,
            operands and results have one digit, and the prompt ends with the space before the
            answer: "... 2 + 5 = " → "7".
        n: how many prompts.
        seed: seeds the draw.
        operator: ``+``, ``-`` or ``*``.
        prepend_bos: whether a beginning-of-sequence token comes first; the model's default where
            None.

    Returns:
        Pairs with the positions ``X3``, ``Y3``, ``last``; token replacement at ``X3+Y3``, by two
        other operands, whose result is r' (Appendix C). ``settings`` says as ``form`` which
        numbers there are, and why.

    Raises:
        PatchlibError: for an unknown operator, or where n is larger than the number of prompts:
            one for each held-out operand pair, ten for each of one digit.

    Example:
        >>> import patchlib as pl
        >>> len(pl.tasks.arithmetic(pl.load_model("mini"), n=3, operator="*"))
        3
    """
    if operator not in sums.OPERATORS:
        raise PatchlibError(
            f"unknown operator {operator!r}: allowed are {', '.join(sums.OPERATORS)}"
        )
    by_digit = tokens.splits_digits(model)
    prompts = sums.prompts(random.Random(f"sums {seed}"), operator, by_digit)
    settings = {"n": n, "seed": seed, "operator": operator, "form": _FORM[by_digit]}
    return draw(model, prompts, n, "arithmetic", settings, prepend_bos)


def pronouns(
    model: TransformerBridge, n: int = 100, seed: int = 0, prepend_bos: bool | None = None
) -> PromptPairs:
    """Whom a pronoun means: "A nurse met a builder at the station. She was the" → " nurse".

    Nothing in the sentence says so but what the model has come to expect of women and men: the
    gender bias of Vig et al. (2020).

    Args:
        model: the model that will run the prompts.
        n: how many prompts, half of them about a woman.
        seed: seeds the draw.
        prepend_bos: whether a beginning-of-sequence token comes first; the model's default where
            None.

    Returns:
        Pairs with the positions ``first``, ``second`` (the professions), ``pronoun``, ``last``; r
        is the profession that mostly people of the pronoun's gender have and r' the other one;
        token replacement at ``pronoun``, by the other pronoun. ``settings`` gives the ``words``:
        Mary and John for a tokenizer for which the pronouns have different lengths.

    Raises:
        PatchlibError: where no profession of one kind is one token.

    Example:
        >>> import patchlib as pl
        >>> pairs = pl.tasks.pronouns(pl.load_model("mini"), n=1)
        >>> sorted(pairs.positions), pairs.settings["words"]
        (['first', 'last', 'pronoun', 'second'], ['Mary', 'John'])
    """
    hers, his = (
        tokens.single(model, "professions", kind) for kind in (professions.HERS, professions.HIS)
    )
    words = professions.subjects(model)
    prompts = professions.prompts(random.Random(f"pronouns {seed}"), hers, his, words)
    settings = {"n": n, "seed": seed, "words": list(words)}
    return draw(model, prompts, n, "pronouns", settings, prepend_bos)

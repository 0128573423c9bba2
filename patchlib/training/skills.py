"""What `mini` can do, measured on instances that were held out of its corpus."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchlib.prompts.prompt import Prompt
from patchlib.tasks import docstrings, facts, indirect_objects, sums, years

Encode = Callable[[str], list[int]]
Logits = Callable[[Int[Tensor, "prompt position"]], Float[Tensor, "prompt position vocab"]]


@torch.no_grad()
def _last_logits(
    logits: Logits, encode: Encode, prompts: Iterable[Prompt]
) -> Iterable[tuple[Prompt, Float[Tensor, " vocab"]]]:
    by_length = defaultdict(list)
    for prompt in prompts:
        tokens = encode(prompt.text)
        by_length[len(tokens)].append((prompt, tokens))
    for group in by_length.values():
        for start in range(0, len(group), 256):
            some = group[start : start + 256]
            batch = torch.tensor([tokens for _, tokens in some])
            for (prompt, _), last in zip(some, logits(batch)[:, -1], strict=True):
                yield prompt, last.float().cpu()


def _mean(values: Iterable[float]) -> float:
    return torch.tensor(list(values), dtype=torch.float64).mean().item()


def measure(logits: Logits, encode: Encode, n: int = 1000, seed: int = 0) -> dict[str, float]:
    """Measures every skill.

    Args:
        logits: maps tokens to logits; a model in evaluation mode.
        encode: maps a text to its tokens, with the token that begins every document.
        n: prompts per skill, or as many as were held out.
        seed: seeds the draw of the prompts.

    Returns:
        One number per skill: shares and probabilities between 0 and 1, logit differences in
        nats. ``facts`` is measured on facts in a phrasing that the corpus never gave them,
        ``facts_all`` on every sentence of the facts file.
    """
    rng = random.Random(seed)
    token = {}

    def ids(words: Iterable[str]) -> list[int]:
        for word in words:
            if word not in token:
                token[word] = encode(word)[-1]
        return [token[word] for word in words]

    def run(prompts: Iterable[Prompt]):
        return _last_logits(logits, encode, prompts)

    def top1(prompts: Iterable[Prompt]) -> float:
        return _mean(last.argmax().item() in ids(p.answers) for p, last in run(prompts))

    result = {}
    io_minus_s, p_io, top = [], [], []
    for prompt, last in run(islice(indirect_objects.prompts(rng), n)):
        (io,), (s,) = ids(prompt.answers), ids(prompt.wrong_answers)
        io_minus_s.append((last[io] - last[s]).item())
        p_io.append(last.softmax(-1)[io].item())
        top.append(last.argmax().item() == io)
    result["ioi_io_over_s"] = _mean(difference > 0 for difference in io_minus_s)
    result["ioi_logit_diff"] = _mean(io_minus_s)
    result["ioi_p_io"] = _mean(p_io)
    result["ioi_top1"] = _mean(top)

    sentences = facts.read()
    result["facts"] = top1(p.prompt(side) for p in sentences if p.is_held_out for side in (0, 1))
    result["facts_all"] = top1(p.prompt(side) for p in sentences for side in (0, 1))

    difference = []
    numbers = [f"{year:02d}" for year in range(100)]
    for prompt, last in run(islice(years.prompts(rng), n)):
        p = last.softmax(-1)
        later = p[ids(prompt.answers)].sum()
        difference.append((2 * later - p[ids(numbers)].sum()).item())
    result["greater_than"] = _mean(difference)

    result["docstring"] = top1(islice(docstrings.prompts(rng), n))
    for name, op in (("addition", "+"), ("subtraction", "-"), ("multiplication", "*")):
        result[name] = top1(islice(sums.prompts(rng, op), n))
    return result

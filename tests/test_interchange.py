"""Interchange interventions and subspaces: by hand, by TransformerLens, and what must hold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from test_ablation import both
from test_closed_form import A, B, E, softmax
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import interchange as tl
from transformer_lens.tools.analysis.interchange import SubspaceInterchange
from transformer_lens.utilities import get_act_name

import patchlib as pl
from patchlib.prompts.pairs import PromptPairs

QUIET: dict[str, Any] = {"progress": False}
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
A_KL = {"metric": "causal_kl"}


def slots(words: Mapping[str, str], **held: Any) -> dict[str, Any]:
    """Which of the two names is repeated, by its place."""
    first, second, third, *_ = words.values()
    slot = held.get("slot", 1 if third == first else 2)
    return {"slot": slot, "answer": second if slot == 1 else first}


def by_name(words: Mapping[str, str], **held: Any) -> dict[str, Any]:
    """Which of the two names is repeated, by the name."""
    first, second, third, *_ = words.values()
    name = held.get("name", third)
    return {"name": name, "answer": second if name == first else first}


def signs(words: Mapping[str, str], **held: Any) -> dict[str, Any]:
    """What the model made by hand does: heads 0 and 1 each tell whether the first word is A."""
    a, b = (held.get(name, words["first"] == "A") for name in "ab")
    return {"a": a, "b": b, "answer": "A" if a else "B" if b else "E"}


@dataclass(frozen=True)
class Exchange(pl.Corruption):
    """Each of the two names becomes the other one, wherever the site says."""

    def tokens(self, pairs: PromptPairs) -> Tensor:
        tokens, rows = pairs.clean_tokens.clone(), torch.arange(len(pairs))
        io, s = (tokens[rows, pairs.positions[name]].clone() for name in ("IO", "S1"))
        for name in self.site.split("+"):
            at = pairs.positions[name]
            tokens[rows, at] = torch.where(tokens[rows, at] == s, io, s)
        return tokens


EVERY = [pl.STR("S2"), Exchange("IO+S1"), Exchange("IO+S1+S2")]


def test_the_true_alignment_is_right_in_all_pairs(by_hand: TransformerBridge):
    """Head 0 holds a, head 1 holds b: the ends of test_closed_form, with each head exchanged.

    Of "A E" and "B E", each with the other as its source: (-3, 4, 0)/5 and (3, -4, 12)/13 where one
    head comes from the other prompt, and the other prompt's end where both do.
    """
    options = QUIET | {"source": both()[[1, 0]], "keep_prompts": True}
    ends = {
        ("a", "0.0"): ("head 1", B, "head 0", A),
        ("b", "0.1"): ("head 0", A, "head 1", B),
        ("ab", "0.0, 0.1"): ("corrupted", E, "clean", A),
    }
    logits = {
        "head 0": (15 / 13, -4 / 13, 0),
        "head 1": (-3 / 5, 4 / 5, 0),
        "corrupted": (-3 / 5, -4 / 5, 0),
        "clean": (15 / 13, 4 / 13, 0),
    }
    for (variables, site), (*first, end, answer) in ends.items():
        fx = pl.interchange(by_hand, both(), signs, list(variables), site, **options)
        np.testing.assert_allclose(fx.effect.sel(metric="accuracy"), [1, 1])
        log_p = [math.log(softmax(logits[e])[a]) for e, a in (first, (end, answer))]
        np.testing.assert_allclose(fx.effect.sel(A_KL), [-each for each in log_p], atol=1e-5)
    # A's head moved while the causal model moves b: it says A and B, and the model B and A.
    wrong = pl.interchange(by_hand, both(), signs, "b", "0.0", **options)
    np.testing.assert_allclose(wrong.effect.sel(metric="accuracy"), [0, 0])
    each = pl.interchange(by_hand, both(), signs, "a", "head", **options)
    np.testing.assert_allclose(each.effect.sel(metric="accuracy", layer=0), [[1, 0]] * 2)


def test_answers_that_are_equally_likely(by_hand: TransformerBridge):
    """D(H||P) = -log 2 - (log p + log q) / 2, and either of them is right."""

    def tie(words: Mapping[str, str], **held: Any) -> dict[str, Any]:
        return {"v": held.get("v"), "answer": ["A", "B"] if words["first"] == "A" else "E"}

    options = QUIET | {"source": both(), "keep_prompts": True}
    fx = pl.interchange(by_hand, both(), tie, "v", "head", **options)
    p, q = softmax((15 / 13, 4 / 13, 0)), softmax((-3 / 5, -4 / 5, 0))
    expected = [-math.log(2) - (math.log(p[A]) + math.log(p[B])) / 2, -math.log(q[E])]
    np.testing.assert_allclose(fx.base.sel(A_KL), expected, atol=1e-5)
    np.testing.assert_allclose(fx.effect.sel(A_KL).sel(layer=0, head=1), expected, atol=1e-5)
    np.testing.assert_allclose(fx.effect.sel(metric="accuracy"), 1)
    place = pl.Alignment(by_hand, both(), tie, "v", 0, "first", source=both())
    with pytest.raises(pl.PatchlibError, match="several answers to one prompt"):
        place.fit(1)
    with pytest.raises(pl.PatchlibError, match=r"rank=5: give a whole number from 1 to 4"):
        place.fit(5)


def test_a_prompt_exchanged_with_itself(model: TransformerBridge):
    """Nothing changes, and accuracy is the task's."""
    pairs = pl.tasks.ioi(model, n=6)
    fx = pl.interchange(model, pairs, slots, "slot", "head", source=pairs, **QUIET)
    np.testing.assert_allclose(fx.effect - fx.base, 0, atol=2e-5)
    own = pl.baselines(model, pairs, metrics=["accuracy", "log_prob"]).clean.mean("prompt")
    np.testing.assert_allclose(fx.base, own * [1, -1], **CLOSE)
    assert (fx.low <= fx.effect + 1e-6).all() and (fx.effect <= fx.high + 1e-6).all()


def test_the_whole_place_is_a_patch(model: TransformerBridge):
    """By `pl.patch`, noising, and by a subspace of all dimensions; of none is nothing."""
    pairs, layer, width = pl.tasks.ioi(model, n=6), 1, int(model.cfg.d_model)
    options = {"source": pl.STR("S2"), "keep_prompts": True}
    for position in ("S2", "last"):
        patched = pl.patch(
            model,
            pairs,
            "resid",
            corruption=pl.STR("S2"),
            direction="noise",
            positions=position,
            metrics=["wrong_prob", "log_prob"],
            keep_prompts=True,
            **QUIET,
        )
        fx = pl.interchange(
            model, pairs, slots, "slot", "resid", positions=position, **options, **QUIET
        )
        # With S2 exchanged the causal model gives the wrong answer.
        expected = -np.log(patched.patched.sel(metric="wrong_prob"))
        np.testing.assert_allclose(fx.effect.sel(A_KL), expected, **CLOSE)
        place = pl.Alignment(model, pairs, slots, "slot", layer, position, source=pl.STR("S2"))
        whole, none = (
            place.run(SubspaceInterchange(torch.eye(width)[:, :rank]), keep_prompts=True)
            for rank in (width, 0)
        )
        one = pl.interchange(
            model, pairs, slots, "slot", f"resid{layer}", positions=position, **options, **QUIET
        )
        np.testing.assert_allclose(one.effect, fx.effect.sel(layer=layer), **CLOSE)
        np.testing.assert_allclose(whole.effect, one.effect, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(whole.base, one.base, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(none.effect, none.base, atol=1e-6)
        assert abs(whole.effect - whole.base).max() > 1e-2


def test_subspaces(tiny: TransformerBridge):
    """A basis turned within itself is the same; a place that is a full cut has two sides."""
    pairs, width = pl.tasks.ioi(tiny, n=5), int(tiny.cfg.d_model)
    basis = tl.random_basis(width, 3, seed=0)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    # Both runs differ at S2 alone, so that its embedding is all that one has of the other.
    place = pl.Alignment(tiny, pairs, slots, "slot", 0, "S2", source=pl.STR("S2"))
    first = place.run(SubspaceInterchange(basis), keep_prompts=True)
    turned = place.run(SubspaceInterchange(basis @ turn), keep_prompts=True)
    np.testing.assert_allclose(turned.effect, first.effect, **CLOSE)

    def complement(here: Tensor, there: Tensor) -> Tensor:
        return there - ((there - here) @ (rest @ rest.T))

    rest = torch.linalg.qr(torch.cat((basis, torch.eye(width)), 1))[0][:, 3:]
    np.testing.assert_allclose(
        place.run(complement, keep_prompts=True).effect, first.effect, rtol=1e-3, atol=1e-4
    )
    assert abs(first.effect - first.base).max() > 1e-2


def test_subspaces_are_transformer_lens_own(model: TransformerBridge):
    """The model's own passes with hooks, in place of the layers above the place alone."""
    pairs, layer, width = pl.tasks.ioi(model, n=6), 1, int(model.cfg.d_model)
    place = pl.Alignment(model, pairs, slots, "slot", layer, "S2", source=pl.STR("S2"))
    here, there = pairs.clean_tokens, pairs.corrupted_tokens("S2")
    at = pairs.positions["S2"]
    answers = torch.cat((pairs.answers, pairs.wrong_answers)).unique()
    right = pairs.wrong_answers.view(len(pairs), -1)[:, 0]

    def logits(tokens: Tensor) -> Tensor:
        return model(tokens)[:, -1, answers]

    name = get_act_name("resid_pre", layer)
    options = {"rank": 2, "epochs": 4, "batch_size": 6, "lr": 0.01, "seed": 3}
    targets = torch.searchsorted(answers, right)
    theirs = tl.fit_das(
        model, name, here, there, targets, logits, base_positions=at, source_positions=at, **options
    )
    rank = options.pop("rank")
    ours = place.fit(rank, **options)
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-5)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=2e-3)
    # Adam's steps have one size, also where a gradient is hardly more than rounding.
    assert (ours.basis - theirs.basis).norm() < 0.1
    assert ours.losses[-1] < ours.losses[0]
    assert all(each.grad is None for each in model.parameters())
    # Not in the subspace of either: the same change, in the whole vocabulary.
    change = SubspaceInterchange(tl.random_basis(width, width // 2, seed=0))
    acts = tl.collect_activations(model, name, there, logits, positions=at)
    by_hooks = tl.intervened_logits(
        model, name, change, here, acts, lambda tokens: model(tokens)[:, -1], positions=at
    ).log_softmax(-1)
    found = place.run(change, keep_prompts=True).effect.sel(A_KL)
    expected = -by_hooks[torch.arange(len(pairs)), right]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_subspace_by_hand(by_hand: TransformerBridge):
    """The embedding of the first word is along h1 for A and h2 for B: h1 - h2 is all there is."""
    place = pl.Alignment(by_hand, both(), signs, ["a", "b"], 0, "first", source=both()[[1, 0]])
    way = torch.tensor([[0.0], [1], [-1], [0]]) / math.sqrt(2)
    whole = place.run(SubspaceInterchange(way), keep_prompts=True).effect
    p, q = softmax((15 / 13, 4 / 13, 0)), softmax((-3 / 5, -4 / 5, 0))
    np.testing.assert_allclose(whole, [[1, 1], [-math.log(q[E]), -math.log(p[A])]], atol=1e-5)


def test_a_place_that_does_not_reach_the_end(model: TransformerBridge):
    """In the last layer nothing reads what is written at an earlier position."""
    pairs, last = pl.tasks.ioi(model, n=5), int(model.cfg.n_layers) - 1
    for site in (f"mlp{last}", [f"{last}.0", f"{last}.1"]):
        options = QUIET | {"source": pl.STR("S2"), "positions": "S2"}
        fx = pl.interchange(model, pairs, slots, "slot", site, **options)
        np.testing.assert_allclose(fx.effect, fx.base, atol=2e-5)


def test_hypotheses_apart(mini: TransformerBridge):
    """Mini tells names apart, not their places: at S2 before layer 0 it can know no more."""
    pairs = pl.tasks.ioi(mini, n=16)
    options = QUIET | {"positions": "S2", "site": "resid0"}
    for causal, variable, right in ((slots, "slot", 0), (by_name, "name", 1)):
        for source in EVERY[1:]:
            fx = pl.interchange(mini, pairs, causal, variable, source=source, **options)
            assert fx.effect.sel(metric="accuracy") == right
    # Over several sources, the mean; one of them alone tells the two models apart from neither.
    fx = pl.interchange(mini, pairs, slots, "slot", source=EVERY, **options)
    np.testing.assert_allclose(fx.effect.sel(metric="accuracy"), 1 / 3)
    assert fx.attrs["n_prompts"] == 16


def test_prompts_of_several_lengths(mini: TransformerBridge):
    """Each gets what it gets among its own."""
    pairs = pl.tasks.factual_recall(mini, n=8)
    assert len(list(pairs.by_length())) > 1

    def recall(words: Mapping[str, str], **held: Any) -> dict[str, Any]:
        subject = held.get("subject", words["subject"])
        return {"subject": subject, "answer": known[subject]}

    known = {}
    for prompt in pairs.prompts:
        subject = mini.tokenizer.decode([prompt.clean[i] for i in prompt.positions["subject"]])
        changed = [prompt.corrupted["subject"][i] for i in prompt.positions["subject"]]
        known[subject.strip()] = mini.tokenizer.decode([prompt.answers[0]]).strip()
        known[mini.tokenizer.decode(changed).strip()] = mini.tokenizer.decode(
            [prompt.wrong_answers[0]]
        ).strip()
    options = QUIET | {"source": pl.STR("subject"), "positions": "subject", "keep_prompts": True}
    fx = pl.interchange(mini, pairs, recall, "subject", "resid0", **options)
    corrupted = pl.patch(
        mini,
        pairs,
        "resid",
        layers=[0],
        positions="subject",
        corruption=pl.STR("subject"),
        direction="noise",
        metrics="wrong_prob",
        keep_prompts=True,
        progress=False,
    )
    expected = -np.log(corrupted.patched.squeeze(["metric", "layer"]))
    np.testing.assert_allclose(fx.effect.sel(A_KL), expected, **CLOSE)
    with pytest.raises(pl.PatchlibError, match="these prompts have"):
        pl.Alignment(mini, pairs, recall, "subject", 0, "last", source=pl.STR("subject"))


def test_what_is_refused(mini: TransformerBridge):
    pairs = pl.tasks.ioi(mini, n=3)
    options = QUIET | {"source": pl.STR("S2")}

    def forgets(words: Mapping[str, str], **held: Any) -> dict[str, Any]:
        return {"slot": words["S2"], "answer": words["IO"]}

    def silent(words: Mapping[str, str], **held: Any) -> dict[str, Any]:
        return {"slot": 1}

    for causal, variable, more, said in (
        (forgets, "slot", {}, r"forgets was called with slot='.*held.get\('slot', ...\)"),
        (silent, "slot", {}, r"silent returned .*with all its variables and 'answer'"),
        (slots, "place", {}, "slots has no 'place', it returns slot, answer"),
        (slots, "slot", {"source": pl.GN("S2")}, "adds noise"),
        (slots, "slot", {"source": 5}, "source=5: give prompts"),
        (slots, "slot", {"source": pairs[:2]}, "holds 2 prompts for 3"),
        (slots, "slot", {"site": "4.6", "layers": [1]}, "layers=.*names say which layers"),
        (slots, "slot", {"site": "9.9"}, "does not exist"),
    ):
        with pytest.raises(pl.PatchlibError, match=said):
            pl.interchange(mini, pairs, causal, variable, **(options | more))
    with pytest.raises(pl.PatchlibError, match="give one that is one token"):
        pl.Alignment(mini, pairs, slots, "slot", 1, "S1+S2", source=pl.STR("S2"))
    with pytest.raises(pl.PatchlibError, match="layer=8: give a whole number from 0 to 7"):
        pl.Alignment(mini, pairs, slots, "slot", 8, "last", source=pl.STR("S2"))

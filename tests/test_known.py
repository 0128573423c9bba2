"""The models whose circuit is known: their mechanism, how they are trained, their certificate."""

import re

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

import patchlib as pl
from patchlib.models.loading import KNOWN
from patchlib.training import known as training
from patchlib.training.iit import edited

QUIET = {"metrics": "logit_diff", "progress": False}
GATES = ("graded", "or", "and")


@pytest.fixture(scope="module")
def model():
    return pl.load_model("known")


@pytest.fixture(scope="module")
def pairs(model):
    return pl.tasks.ioi(model, n=16)


def silent(value):
    return torch.zeros_like(value)


@pytest.mark.parametrize(
    ("gate", "without_one", "without_both"), [("graded", 3, 0), ("or", 6, 0), ("and", 0, 0)]
)
def test_votes_go_through_the_gate(gate, without_one, without_both):
    names = torch.tensor([[0, 1, 1], [2, 0, 2]])  # the right answers are 0 and 0

    def difference(*removed):
        setting = dict.fromkeys(removed, silent)
        logits = pl.known.mechanism(names, 4, gate, setting)["logits"]
        return (logits[:, 0] - logits[[0, 1], [1, 2]]).tolist()

    assert difference() == [6, 6]
    assert difference("duplicate") == difference("induction") == [without_one] * 2
    assert difference("duplicate", "induction") == [without_both] * 2
    assert difference("inhibition") == [0, 0]
    assert difference("mover") == [-2 - 1, -2 - 1]
    assert difference("negative") == [9, 9]


def test_induction_reads_names_by_way_of_previous():
    names = torch.tensor([[0, 1, 1]])
    values = pl.known.mechanism(names, 3, setting={"previous": lambda v: v.flip(1)})
    assert values["induction"].tolist() == [[1, 0]]
    assert values["duplicate"].tolist() == [[0, 1]]
    assert values["inhibition"].tolist() == [[0.5, 0.5]]


def test_a_third_name_again_leaves_both_names_free():
    assert pl.known.mechanism(torch.tensor([[0, 1, 2]]), 3)["logits"].tolist() == [[6, 6, 0]]


@pytest.mark.parametrize(("gate", "effect"), [("graded", 0.5), ("or", 0.0), ("and", 1.0)])
def test_new_names_destroy_what_the_gate_needs(pairs, gate, effect):
    predicted = pl.known.heads(pairs, pl.STR("ABC"), gate, "noise")
    assert {str(head): round(value, 4) for head, value in predicted.items()} == {
        "0.1": effect,
        "2.2": effect,
        "2.0": effect,
        "3.1": 1.0,
        "4.3": 1.5,
        "5.2": -0.5,
    }


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("site", ["S2", "S1+IO", "ABC"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_an_edge_to_the_only_reader_is_the_head(pairs, gate, site, direction):
    heads = pl.known.heads(pairs, pl.STR(site), gate, direction)
    edges = pl.known.edges(pairs, pl.STR(site), gate, direction)
    assert len(edges) == len(pl.known.EDGES) == 12
    for writer, reader in [("0.1", "2.0"), ("2.2", "3.1"), ("2.0", "3.1"), ("4.3", "logits")]:
        assert edges[writer, reader] == pytest.approx(heads[pl.Head.of(writer)], abs=1e-6)
    # Inhibition has two readers, which write to the logits alone.
    both = edges["3.1", "4.3"] + edges["3.1", "5.2"]
    assert both == pytest.approx(heads[pl.Head.of("3.1")], abs=1e-6)


def test_what_there_is_not_is_refused(pairs):
    with pytest.raises(pl.PatchlibError, match="gate='xor': allowed are graded, or, and"):
        pl.known.heads(pairs, pl.STR("S2"), "xor")
    with pytest.raises(pl.PatchlibError, match="allowed are denoise, noise"):
        pl.known.edges(pairs, pl.STR("S2"), direction="both")
    with pytest.raises(pl.PatchlibError, match="the circuit of 'mini' is not known"):
        pl.certificate.circuit("mini")


@pytest.fixture(scope="module")
def network():
    return GPT2LMHeadModel.from_pretrained(
        KNOWN / "graded", dtype=torch.float32, attn_implementation="eager"
    ).eval()


def test_what_is_given_back_is_what_the_model_goes_on_with(model, network, pairs):
    clean, other = pairs.clean_tokens, pl.STR("S2").tokens(pairs)
    hook = "blocks.3.attn.hook_z"
    _, cache = model.run_with_cache(other, names_filter=hook)

    def swap(z, hook):
        z[:, -1, 1] = cache[hook.name][:, -1, 1]
        return z

    expected = model.run_with_hooks(clean, fwd_hooks=[(hook, swap)])

    def edit(kind, layer, value):
        if (kind, layer) != ("z", 3):
            return value
        return torch.cat((value[:, :-1], torch.stack([*value[:, -1:].unbind(2)], 2)), 1).index_put(
            (torch.arange(len(value))[:, None], torch.tensor([-1]), torch.tensor([1])),
            cache[hook][:, -1:, 1],
        )

    with torch.no_grad(), edited(network, edit):
        assert torch.allclose(network(clean).logits, expected, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(network(clean).logits, model(clean), atol=1e-4)


@pytest.fixture
def writer():
    return training.Writer(PreTrainedTokenizerFast.from_pretrained(KNOWN / "graded"), "cpu")


def batch(writer, **states):
    drawn = training.Draws(3, "cpu").batch(writer, 32, [1.0, 0.0, 0.0, 0.0, 0.0])
    for variable, state in states.items():
        drawn.state[variable].fill_(state)
    return drawn


def test_prompts_are_those_of_the_task(model, writer, pairs):
    rows = [tuple(row) for row in batch(writer).tokens.tolist()]
    texts = [model.tokenizer.decode(row[1:]) for row in rows]
    for text in texts:
        names = [n for n in re.findall("[A-Z][a-z]+", text) if n in training.NAMES]
        assert len(names) == 3
    assert {len(row) for row in rows} == {pairs.clean_tokens.shape[1]}


def run(network, writer, drawn, strict=0.0, share=None):
    draws = training.Draws(4, "cpu")
    swap = training.interchange(network, writer, drawn, draws, False, strict, share)
    with torch.no_grad(), edited(network, swap):
        return network(drawn.tokens).logits[:, -1]


def test_what_is_held_at_its_own_value_changes_nothing(network, writer):
    drawn = batch(writer)
    with torch.no_grad():
        plain = network(drawn.tokens).logits[:, -1]
    assert torch.allclose(run(network, writer, drawn), plain, atol=1e-4)
    held = batch(writer, **dict.fromkeys(pl.known.HEADS, 2))
    assert torch.allclose(run(network, writer, held), plain, atol=1e-4)
    targets = [each.targets("graded")["logits"] for each in (drawn, held)]
    assert torch.equal(*targets)


def test_all_variables_of_the_source_give_its_answer(network, writer):
    drawn = batch(writer, **dict.fromkeys(pl.known.HEADS, 1))
    expected = pl.known.mechanism(drawn.source_names, len(training.NAMES))["logits"]
    assert torch.equal(drawn.targets("graded")["logits"], expected)
    named = run(network, writer, drawn)[:, writer.names]
    best = expected.gather(1, named.argmax(-1, keepdim=True))[:, 0]
    assert (best == expected.max(-1).values).float().mean() > 0.95


def test_what_is_outside_is_replaced_as_a_whole(network, writer):
    drawn = batch(writer)
    swap = training.interchange(network, writer, drawn, training.Draws(4, "cpu"), False, 1.0, 1.0)
    assert swap.mlps.all()
    inside = {(head.layer, head.head) for head in pl.known.HEADS.values()}
    at = training.places(writer, drawn.template)
    for layer in range(training.LAYERS):
        for head in range(training.N_HEADS):
            replaced = swap.heads[layer, :, :, head]
            if (layer, head) not in inside:
                assert replaced.all()
    for variable, head in pl.known.HEADS.items():
        assert torch.equal(swap.heads[head.layer, :, :, head.head], ~at[variable])


def test_training_that_was_stopped_goes_on_as_if_it_had_not(tmp_path, monkeypatch):
    short = [{**stage, "steps": 2} for stage in training.STAGES]
    monkeypatch.setattr(training, "STAGES", tuple(short))
    monkeypatch.setitem(training.RECIPE, "rows", 16)
    monkeypatch.setattr(training, "_EVERY", 1)
    training.train("graded", 5, tmp_path / "whole", tmp_path / "work", "cpu")
    write, written = training.write_whole, []

    def stop(path, content):
        write(path, content)
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_whole", stop)
    with pytest.raises(KeyboardInterrupt):
        training.train("graded", 5, tmp_path / "parts", tmp_path / "again", "cpu")
    training.train("graded", 5, tmp_path / "parts", tmp_path / "again", "cpu")
    whole, parts = (
        GPT2LMHeadModel.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(SystemExit, match="another gate, seed or recipe"):
        training.train("or", 5, tmp_path / "parts", tmp_path / "again", "cpu")


def card():
    return (KNOWN / "README.md").read_text(encoding="utf-8")


def printed(section):
    body = card().split(f"<!-- {section} -->")[1].split(f"<!-- /{section} -->")[0]
    rows = [line.strip("| ").split(" | ") for line in body.strip().splitlines()]
    return {row[0]: [float(value) for value in row[1:]] for row in rows[2:]}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("known-or", "known-and")]


@pytest.mark.parametrize("name", ["known", *SLOW])
def test_the_card_says_what_is_measured(name):
    at = printed(f"interchanges of {name}")
    fresh = pl.certificate.interchanges(name, rows=512).round(3)
    assert [*at] == [*fresh.index]
    for label, row in fresh.iterrows():
        assert at[label] == pytest.approx([*row], abs=0.002)
    # What the certificate asks: every variable, and everything outside the circuit at once.
    assert fresh.accuracy.min() >= 0.98
    assert fresh.accuracy.filter(like="of the rest").min() >= 0.99
    assert fresh.kl.max() < 0.15


def test_the_card_has_the_circuit_and_the_effects(model):
    effects = pl.certificate.effects("known")
    for label, row in effects.iterrows():
        assert printed("effects of known")[label] == pytest.approx([*row], abs=0.011)
    measured, predicted = (effects.xs(kind, axis=1, level=1) for kind in ("measured", "predicted"))
    writing = ["mover 4.3", "negative 5.2"]
    assert abs(measured - predicted).drop(writing).to_numpy().max() < 0.2
    assert (measured.loc[writing] * predicted.loc[writing] > 0).to_numpy().all()
    rows = printed("circuit of known").values()
    assert all(0.95 < faithful < 1.05 and outside < 0.012 for faithful, outside, *_ in rows)


def test_the_true_edges_alone_are_the_model(model, pairs):
    predicted = pl.known.edges(pairs, pl.STR("S2"), direction="noise")
    true = [(w, k + r) for w, r in predicted for k in ([""] if r == "logits" else "qkv")]
    rest = pl.Edges.of(model) - pl.Edges(true)
    cut = pl.patch_edges(model, pairs, rest, corruption=pl.STR("S2"), direction="noise", **QUIET)
    row = printed("circuit of known")["S2"]
    assert 1 - cut.effect.item() == pytest.approx(row[0], abs=0.05)

"""What is refused, and that each refusal says what was given, what is allowed and the way out."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.patching import cells, runs
from patchlib.prompts.pairs import PromptPairs
from patchlib.tasks import facts, indirect_objects, sums, years

STR = pl.STR("S2")


def refusal(function: Callable[..., object], *arguments: object, **settings: object) -> str:
    with pytest.raises(pl.PatchlibError) as caught:
        function(*arguments, **settings)
    return str(caught.value)


def assert_names(message: str, *words: str) -> None:
    assert [word for word in words if word not in message] == []


@pytest.fixture(scope="module")
def pairs(tiny_gpt2: TransformerBridge) -> PromptPairs:
    return pl.tasks.ioi(tiny_gpt2, n=2)


@pytest.fixture(scope="module")
def of_two_lengths(pairs: PromptPairs) -> PromptPairs:
    """The second prompt lost its first token."""
    first, second = pairs.prompts
    shorter = dataclasses.replace(
        second, clean=second.clean[1:], corrupted={"S2": second.corrupted["S2"][1:]}
    )
    return dataclasses.replace(pairs, prompts=(first, shorter))


def test_refusals_are_value_errors():
    """So that code which knows nothing of this package can catch them."""
    assert issubclass(pl.PatchlibError, ValueError)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"component": "heads"}, ["component='heads'", "head, mlp, attn, resid", "neuron"]),
        ({"component": "neuron"}, ["'neuron'", "128 neurons", "each is a run", "layers=[5]"]),
        ({"component": ["mlp"]}, ["component=['mlp']", "allowed are head, mlp"]),
        ({"positions": np.array(15)}, ["positions=array(15)", "whole number from 0 to 14"]),
        ({"layers": []}, ["layers=[]", "at least one layer"]),
        ({"layers": 3}, ["layers=3", "from 0 to 2"]),
        ({"layers": [0, -1]}, ["layers=-1", "from 0 to 2"]),
        ({"layers": "1"}, ["layers='1'", "whole number from 0 to 2"]),
        ({"layers": [1.0]}, ["layers=1.0", "whole number from 0 to 2"]),
        ({"layers": True}, ["layers=True", "whole number from 0 to 2"]),
        ({"heads": []}, ["nothing was given", "'4.6'"]),
        ({"heads": 5}, ["5 is no list of heads", "['4.6', '9.0']"]),
        ({"heads": ["1.4"]}, ["'1.4' does not exist", "layers 0 to 2", "units 0 to 3"]),
        ({"heads": ["q1.0"]}, ["'q1.0' is no head", "'4.6' or (4, 6)"]),
        ({"heads": ["mlp1"]}, ["'mlp1' is no head", "'4.6' or (4, 6)"]),
        ({"heads": ["1.0"], "layers": [0]}, ["heads=1.0", "layer 1 is not among", "layers=[0]"]),
        ({"heads": ["1.0"], "component": "mlp"}, ["heads=1.0", "'mlp'", "no heads", "pattern"]),
        ({"heads": ["1.0"], "component": "neuron"}, ["heads=1.0", "'neuron'", "no heads"]),
        ({"positions": []}, ["positions=[]", "'all', 'each'", "each once"]),
        ({"positions": ["S2", "S2"]}, ["positions=['S2', 'S2']", "each once"]),
        ({"positions": [4, np.int64(4)]}, ["positions=", "each once"]),
        ({"positions": 15}, ["positions=15", "from 0 to 14"]),
        ({"positions": -1}, ["positions=-1", "from 0 to 14"]),
        ({"positions": 4.0}, ["positions=4.0", "whole number"]),
        ({"positions": True}, ["positions=True", "whole number"]),
        ({"positions": ["all"]}, ["'all'", "IO, S1, S2, last"]),
        ({"positions": None}, ["positions=None", "whole number"]),
        ({"source": "zero"}, ["source='zero'", "pl.Zero()", "pl.Mean()", "PromptPairs"]),
        ({"source": pl.Zero}, ["source=<class", "pl.Zero()"]),
        ({"source": pl.Mean("S2")}, ["source=Mean(reference='S2'", "pl.Mean(pairs)"]),
        ({"memory_budget": 0}, ["memory_budget=0", "number of bytes"]),
        ({"memory_budget": np.nan}, ["memory_budget=nan", "number of bytes"]),
        ({"memory_budget": True}, ["memory_budget=True", "number of bytes"]),
        ({"memory_budget": "2G"}, ["memory_budget='2G'", "number of bytes"]),
        ({"corruption": "S2"}, ["corruption='S2'", "pl.STR(site)", "pl.Corruption of your own"]),
        ({"batch_size": True}, ["batch_size=True", "'auto'"]),
        ({"batch_size": 2.0}, ["batch_size=2.0", "'auto'"]),
        ({"direction": "both"}, ["direction='both'", "'denoise'", "'noise'"]),
        ({"metrics": ["logits"]}, ["'logits'", "logit_diff", "prob", "kl", "rank", "accuracy"]),
        ({"metrics": []}, ["none given", "logit_diff"]),
        ({"batch_size": 0}, ["batch_size=0", "'auto'"]),
        ({"batch_size": -3}, ["batch_size=-3", "'auto'"]),
        ({"batch_size": "big"}, ["batch_size='big'", "'auto'"]),
        ({"positions": "S3"}, ["'S3'", "IO", "S1", "S2", "last"]),
        ({"positions": ["S2", "S3"]}, ["'S3'", "IO", "S1", "S2", "last"]),
        ({"positions": "S2+there"}, ["'there'", "IO", "'+'"]),
        ({"corruption": pl.STR("last")}, ["ioi", "'last'", "S2", "S1+IO", "ABC"]),
        ({"corruption": pl.GN("verb")}, ["'verb'", "IO", "S1", "S2", "last"]),
    ],
)
def test_settings_of_patch(tiny_gpt2, pairs, settings, words):
    """What is unknown is named beside what is known."""
    settings = {"corruption": STR, "progress": False} | settings
    assert_names(refusal(pl.patch, tiny_gpt2, pairs, **settings), *words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": 0}, ["window=0", "whole number from 1 to 3"]),
        ({"window": 4, "before": 2}, ["window=4", "from 1 to 3"]),
        ({"window": 1.5}, ["window=1.5", "whole number from 1 to 3"]),
        ({"window": 3.0}, ["window=3.0", "whole number from 1 to 3"]),
        ({"window": [1, True]}, ["window=True", "whole number from 1 to 3"]),
        ({"window": None}, ["window=None", "whole number from 1 to 3"]),
        ({"window": "3"}, ["window='3'", "whole number from 1 to 3"]),
        ({"window": []}, ["at least one window"]),
        ({"window": 3, "before": 1.0}, ["before=1.0", "whole number from 0 to 2"]),
        ({"window": 2}, ["window=2", "even", "before=", "before=1", "ROME"]),
        ({"window": 3, "before": 3}, ["before=3", "from 0 to 2"]),
        ({"window": 3, "before": -1}, ["before=-1", "from 0 to 2"]),
        ({"component": "head", "window": 3}, ["window=3", "'head'", "window=1", "'mlp'"]),
    ],
)
def test_windows(tiny_gpt2, pairs, settings, words):
    """A window is 1 to all layers, with its middle stated where it has none."""
    settings = {"component": "mlp", "corruption": STR, "progress": False} | settings
    assert_names(refusal(pl.patch, tiny_gpt2, pairs, **settings), *words)


@pytest.mark.parametrize("call", [pl.patch, pl.baselines, pl.keep_answered])
def test_prompts_in_the_tokens_of_another_model(tiny_gpt2, pairs, call):
    """Where another tokenizer numbers its tokens otherwise, they stand for other words."""
    first = pairs.prompts[0]
    other = dataclasses.replace(first, clean=tuple(token + 1 for token in first.clean))
    settings = {"corruption": STR, "progress": False} if call is pl.patch else {}
    message = refusal(call, tiny_gpt2, pl.PromptPairs("own", (other,)), **settings)
    assert_names(message, repr(first.text), tiny_gpt2.cfg.model_name, "anew")


@pytest.mark.parametrize("call", [pl.baselines, pl.keep_answered])
@pytest.mark.parametrize("given", [["a text"], None])
def test_what_are_no_prompts(tiny_gpt2, call, given):
    assert_names(refusal(call, tiny_gpt2, given), type(given).__name__, "PromptPairs")


def test_a_model_in_training_mode(tiny_gpt2, pairs):
    """Dropout would make every number random."""
    tiny_gpt2.train()
    try:
        for message in (
            refusal(pl.patch, tiny_gpt2, pairs, corruption=STR, progress=False),
            refusal(pl.patch_together, tiny_gpt2, pairs, [(0, 0)], corruption=STR),
            refusal(pl.baselines, tiny_gpt2, pairs, STR),
            refusal(pl.keep_answered, tiny_gpt2, pairs),
            refusal(pl.attention_patterns, tiny_gpt2, pairs, [(0, 0)]),
            refusal(pl.copying_score, tiny_gpt2, pairs, [(0, 0)]),
        ):
            assert_names(message, "activation patching", "evaluation mode", "model.eval()")
    finally:
        tiny_gpt2.eval()
    fx = pl.patch(tiny_gpt2, pairs, "mlp", corruption=STR, progress=False)
    assert fx.effect.notnull().all()


def test_an_activation_that_the_model_lacks(tiny_gpt2, pairs, monkeypatch):
    """A misspelt activation must not count as a patch without effect."""
    monkeypatch.setitem(cells.COMPONENTS, "mlp", "mlp_output")
    options = {"corruption": STR, "progress": False}
    message = refusal(pl.patch, tiny_gpt2, pairs, "mlp", engine="hooks", **options)
    assert_names(message, "component='mlp'", "this model has no mlp_output", "another component")
    message = refusal(pl.patch_together, tiny_gpt2, pairs, ["0.0", "mlp1"], **options)
    assert_names(message, "no activation", "mlp_output", "model.hook_dict")


@pytest.mark.parametrize("family", ["gpt_neox", "gptj"])
def test_blocks_without_a_middle(tiny_folders, pairs, family):
    """Where attention and MLP stand side by side, nothing lies between them."""
    model = pl.load_model(tiny_folders(family))
    options = {"corruption": STR, "progress": False}
    message = refusal(pl.patch, model, pairs, "resid_mid", **options)
    assert_names(message, "component='resid_mid'", "has no resid_mid", "another component")
    message = refusal(pl.patch_together, model, pairs, ["resid_mid1"], **options)
    assert_names(message, "no activation", "resid_mid", "model.hook_dict")


@pytest.mark.parametrize("engine", ["auto", "hooks", "fast"])
def test_a_pattern_that_is_not_read(tiny_folders, pairs, engine):
    """TransformerLens shows GPT-J's pattern after its layer has used it: an edit does nothing."""
    model = pl.load_model(tiny_folders("gptj"))
    options = {"corruption": STR, "engine": engine, "progress": False}
    words = ["pattern", "engine='hooks'"] if engine == "fast" else ["component='pattern'", "q, k"]
    assert_names(refusal(pl.patch, model, pairs, "pattern", **options), *words)
    message = refusal(pl.patch_together, model, pairs, ["pattern1.0"], corruption=STR)
    assert_names(message, "pattern", "nothing would change")


def test_a_hook_that_never_fires(tiny_gpt2, pairs, monkeypatch):
    """A hook may exist at a place that no pass goes through."""
    name = "blocks.0.hook_mlp_out"
    known = tiny_gpt2.hook_dict | {"blocks.0.nowhere": tiny_gpt2.hook_dict[name]}
    monkeypatch.setattr(type(tiny_gpt2), "hook_dict", property(lambda self: known))
    run_with_hooks = tiny_gpt2.run_with_hooks

    def without_them(tokens, fwd_hooks, **options):
        some = [hook for hook in fwd_hooks if "nowhere" not in hook[0]]
        return run_with_hooks(tokens, fwd_hooks=some, **options)

    monkeypatch.setattr(tiny_gpt2, "run_with_hooks", without_them)
    run = runs.Run(pairs.clean_tokens)
    edits = [("blocks.0.nowhere", lambda activation: activation)]
    message = refusal(runs.run_with_edits, tiny_gpt2, run, edits)
    assert_names(message, "fire once", "'blocks.0.nowhere': 0", "model.hook_dict")
    message = refusal(runs.run_with_edits, tiny_gpt2, run, keep=["blocks.0.nowhere"])
    assert_names(message, "fire once", "'blocks.0.nowhere': 0", "model.hook_dict")
    logits, kept = runs.run_with_edits(tiny_gpt2, run, keep=[name])
    assert logits.shape == (2, tiny_gpt2.cfg.d_vocab)
    assert kept[name].shape == (*pairs.clean_tokens.shape, 32)


def test_pairs_of_unequal_length(tiny_gpt2, pairs):
    """The same, for pairs that were made by hand."""
    first = pairs.prompts[0]
    longer = dataclasses.replace(first, corrupted={"S2": (*first.clean, 1)})
    broken = dataclasses.replace(pairs, prompts=(longer,))
    message = refusal(pl.patch, tiny_gpt2, broken, corruption=STR, progress=False)
    assert_names(message, "15 tokens", "'S2'", "16", "same number", "equal token length")


@pytest.mark.parametrize("name", ["A", "S2+A"])
def test_unknown_positions(pairs, name):
    """Both ways to ask for a position."""
    assert_names(refusal(pairs.at, name), "'A'", "IO, S1, S2, last", "'S1+IO'")
    assert_names(refusal(pairs.positions.__getitem__, "A"), "'A'", "IO, S1, S2, last", "'S1+IO'")


def test_unknown_sites(pairs):
    """The replacements that the task has are listed."""
    message = refusal(pairs.corrupted_tokens, "YY")
    assert_names(message, "ioi", "'YY'", "S2, S1, IO, S1+IO, ABC")


def test_tokens_of_several_lengths(of_two_lengths):
    """One tensor holds prompts of one length."""
    message = refusal(lambda: of_two_lengths.clean_tokens)
    assert_names(message, "14, 15 tokens", "one length", "pairs.by_length()")
    assert_names(refusal(STR.tokens, of_two_lengths), "14, 15 tokens", "pairs.by_length()")


def test_each_position_of_several_lengths(tiny_gpt2, of_two_lengths):
    """The fifth token of one prompt is not the fifth of another."""
    settings = {"corruption": STR, "positions": "each", "progress": False}
    message = refusal(pl.patch, tiny_gpt2, of_two_lengths, "mlp", **settings)
    assert_names(message, "positions='each'", "[14, 15]", "pairs.by_length()", "named positions")


def test_a_replacement_that_changes_nothing(tiny_gpt2, pairs):
    """Its effects would all be 0 over 0."""
    first = pairs.prompts[0]
    same = dataclasses.replace(first, corrupted={"S2": first.clean})
    broken = dataclasses.replace(pairs, prompts=(same,))
    message = refusal(pl.patch, tiny_gpt2, broken, corruption=STR, progress=False)
    assert_names(message, "'S2'", "changes nothing", first.text, "must differ")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale": -1.0}, ["scale=-1.0", "at least 0", "3 is usual"]),
        ({"scale": np.inf}, ["scale=inf", "at least 0"]),
        ({"scale": np.nan}, ["scale=nan", "at least 0"]),
        ({"scale": "3"}, ["scale='3'", "at least 0"]),
        ({"scale": True}, ["scale=True", "at least 0"]),
        ({"draws": 0}, ["draws=0", "at least 1"]),
        ({"draws": -2}, ["draws=-2", "at least 1"]),
        ({"draws": True}, ["draws=True", "whole number"]),
        ({"draws": 2.0}, ["draws=2.0", "whole number"]),
        ({"seed": None}, ["seed=None", "whole number of at least 0"]),
        ({"seed": 1.5}, ["seed=1.5", "whole number of at least 0"]),
        ({"seed": -1}, ["seed=-1", "at least 0"]),
    ],
)
def test_noise(settings, words):
    """Refused where it is written, not where it is used."""
    assert_names(refusal(pl.GN, "S2", **settings), *words)


def held_out_operands(operator: str) -> int:
    """Of products none is held out, only the prompt around them."""
    pairs = sums.operands(operator)
    return sum(operator == "*" or sums.is_held_out(operator, *pair) for pair in pairs)


@pytest.mark.parametrize(
    ("task", "settings", "count"),
    [
        ("ioi", {}, lambda: len(indirect_objects.held_out_pairs())),
        ("arithmetic", {"operator": "+"}, lambda: held_out_operands("+")),
        ("arithmetic", {"operator": "-"}, lambda: held_out_operands("-")),
        ("arithmetic", {"operator": "*"}, lambda: 9 * 9),
        ("factual_recall", {}, lambda: 2 * sum(p.phrasing == 0 for p in facts.read())),
        (
            "greater_than",
            {},
            lambda: sum(
                years.is_held_out("war", century, year)
                for century in years.CENTURIES
                for year in years.YEARS
            ),
        ),
    ],
)
def test_more_prompts_than_there_are(tiny_gpt2, monkeypatch, task, settings, count):
    """The refusal says how many there are."""
    # One noun instead of dozens: a prompt about years has a hundred answers to look up.
    monkeypatch.setattr(years, "NOUNS", ("war",))
    message = refusal(getattr(pl.tasks, task), tiny_gpt2, n=10**6, **settings)
    assert_names(message, "n=1000000", task, f"{count()} are there", f"at most {count()}")


@pytest.mark.parametrize("task", pl.tasks.__all__)
@pytest.mark.parametrize("n", [0, -5])
def test_fewer_prompts_than_one(tiny_gpt2, task, n):
    """Nothing can be measured on no prompts."""
    message = refusal(getattr(pl.tasks, task), tiny_gpt2, n=n)
    assert_names(message, f"n={n}", "at least 1")


def test_an_unknown_operator(tiny_gpt2):
    """There is no division."""
    message = refusal(pl.tasks.arithmetic, tiny_gpt2, operator="/")
    assert_names(message, "'/'", "+, -, *")


@pytest.mark.parametrize("name", ["{}/missing", "./missing"])
def test_a_folder_that_is_not_there(tmp_path: Path, name):
    """What a folder has to hold is said."""
    message = refusal(pl.load_model, name.format(tmp_path))
    words = ("missing", "config.json", "model.safetensors", "tokenizer.json", "save_pretrained")
    assert_names(message, *words)


def test_a_folder_that_holds_no_model(tmp_path: Path, monkeypatch):
    """An empty folder is refused by its full name, and by its bare name from beside it."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "empty", "./empty", "empty"):
        message = refusal(pl.load_model, name)
        assert_names(message, "empty", "config.json", "model.safetensors", "tokenizer.json")


def test_a_model_that_cannot_be_downloaded(tmp_path: Path):
    """Without files and without a hub: which files, from where, and which model needs neither."""
    program = "import patchlib as pl\ntry: pl.load_model('gpt2')\nexcept Exception as error:\n"
    program += "  print(type(error).__name__, error)"
    # A fresh process, since the folder of downloads is settled on import.
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert_names(done.stdout, "PatchlibError", "'gpt2'", "config.json", "model.safetensors")
    assert_names(done.stdout, "tokenizer.json", "local cache", "hub", "load_model('mini')")
    assert "Traceback" not in done.stderr


def test_an_interval_without_prompts(tiny_gpt2, pairs):
    """The mean over prompts cannot be resampled."""
    fx = pl.patch(tiny_gpt2, pairs, "mlp", corruption=STR, progress=False)
    assert_names(refusal(pl.interval, fx), "means over prompts", "keep_prompts=True")


@pytest.mark.parametrize(
    ("heads", "activation", "words"),
    [
        ([], "z", ["nothing was given", "at least one", "'4.6'"]),
        (5, "z", ["5 is no list of parts", "['4.6', 'mlp3']"]),
        ([(0, 0), (3, 1)], "z", ["(3, 1) does not exist", "layers 0 to 2", "units 0 to 3"]),
        ([(0, 4)], "z", ["(0, 4) does not exist", "layers 0 to 2", "units 0 to 3"]),
        ([(-1, 0)], "z", ["(-1, 0) is no head", "counted from zero"]),
        ([(0, 0)], "result", ["'result'", "'z', 'q', 'k', 'v' and 'pattern'"]),
        (["z0.0"], "z", ["'z0.0'", "'4.6'", "head, mlp, attn", "'mlp3', 'q4.6' or 'neuron2.17'"]),
        (["mlp"], "z", ["'mlp' is no head"]),
        (["mlp3"], "z", ["'mlp3' does not exist", "mlp_out has layers 0 to 2, whole"]),
        (["mlp1.0"], "z", ["'mlp1.0' does not exist", "whole"]),
        (["neuron1.128"], "z", ["'neuron1.128'", "post has layers 0 to 2 and units 0 to 127"]),
        (["k1.4"], "z", ["'k1.4' does not exist", "k has layers 0 to 2 and units 0 to 3"]),
    ],
)
def test_heads_that_do_not_exist(tiny_gpt2, pairs, heads, activation, words):
    """Negative numbers do not count from the end."""
    settings = {"corruption": STR, "activation": activation}
    assert_names(refusal(pl.patch_together, tiny_gpt2, pairs, heads, **settings), *words)


def test_heads_that_share_keys_and_values(tiny_folders, pairs):
    """A head is a head of its own query, and its value its group's; there are no more heads."""
    llama = pl.load_model(tiny_folders("llama"))
    for activation in ("q", "k", "v", "pattern", "z"):
        message = refusal(
            pl.patch_together, llama, pairs, [(0, 4)], corruption=STR, activation=activation
        )
        assert_names(message, "(0, 4) does not exist", f"{activation} has", "units 0 to 3")


def test_masks_and_numbers_choose_prompts(tiny_gpt2):
    """True and False are no numbers of prompts."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=4)
    mask = [False, True, False, True]
    for chosen in (mask, np.array(mask), torch.tensor(mask), [1, 3], np.array([1, 3])):
        assert pairs[chosen].texts == [pairs.texts[1], pairs.texts[3]]
    assert pairs[np.int64(1)].texts == pairs[1].texts == [pairs.texts[1]]
    assert pairs[-1].texts == [pairs.texts[3]]
    assert len(pairs[[]]) == 0
    assert [one.texts for one in pairs] == [[text] for text in pairs.texts]


@pytest.mark.parametrize(
    "which", ["S2", 99, 2, -3, 0.5, None, True, [True], [0, 2], [0.5], [[0], [1]], [[0], [0, 1]]]
)
def test_what_chooses_no_prompts(pairs, which):
    message = refusal(pairs.__getitem__, which)
    assert_names(message, f"pairs[{which!r}]", "2 prompts", "slice", "mask", "pairs.at(name)")


@pytest.mark.parametrize(
    "ask",
    [
        lambda none: none.answers,
        lambda none: none.wrong_answers,
        lambda none: none.positions,
        lambda none: none.clean_tokens,
        lambda none: none.at("S2"),
        lambda none: none.corrupted_tokens("S2"),
    ],
)
def test_what_no_prompts_have(pairs, ask):
    assert_names(refusal(ask, pairs[[]]), "no prompts of ioi", "at least one")


@pytest.mark.parametrize("site", [["S2"], None, 2])
@pytest.mark.parametrize("corruption", [pl.STR, pl.GN, pl.Corruption])
def test_sites_that_are_no_names(corruption, site):
    assert_names(refusal(corruption, site), f"site={site!r}", "'S2'", "'S1+IO'")


@pytest.mark.parametrize("name", [["S2"], None, 2])
def test_positions_that_are_no_names(tiny_gpt2, pairs, name):
    assert_names(refusal(pairs.at, name), repr(name), "IO, S1, S2, last")
    assert_names(refusal(pairs.corrupted_tokens, name), repr(name), "S2, S1, IO, S1+IO, ABC")
    if name is not None:
        message = refusal(pl.ood, tiny_gpt2, pairs, STR, positions=[name])
        assert_names(message, f"positions=[{name!r}]", "a name, or a list")


def test_names_that_are_none(tiny_gpt2, pairs):
    patterns = pl.attention_patterns(tiny_gpt2, pairs, ["0.0"])
    for message, name in (
        (refusal(pl.ood, tiny_gpt2, pairs, STR, positions=3), "positions"),
        (refusal(pl.attention_to, patterns, pairs, 3), "names"),
        (refusal(pl.copying_score, tiny_gpt2, pairs, ["0.0"], at=3), "at"),
    ):
        assert_names(message, f"{name}=3", "a name, or a list of names")


@pytest.mark.parametrize("call", [pl.detect, pl.interval])
@pytest.mark.parametrize("given", [None, 3, "fx", {"effect": 1.0}])
def test_what_is_no_result(call, given):
    assert_names(refusal(call, given), type(given).__name__, "dataset", "pl.patch")


@pytest.mark.parametrize("call", [pl.detect, pl.interval])
def test_parts_of_a_result(tiny_gpt2, pairs, call):
    """An effect alone lacks the attributes, the other variables the effect."""
    fx = pl.patch(tiny_gpt2, pairs, "mlp", corruption=STR, progress=False)
    assert_names(refusal(call, fx.effect), "DataArray", "whole dataset")
    assert_names(refusal(call, fx[["patched"]]), "Dataset without the variable effect")


def test_what_detect_did_not_give(tiny_gpt2, pairs):
    found = pl.detect(pl.patch(tiny_gpt2, pairs, corruption=STR, progress=False))
    for given in (None, ["4.6"], found[["heads"]]):
        message = refusal(pl.heads_of, given, "kl")
        assert_names(message, type(given).__name__, "pl.detect", "metric, sign and heads")
    assert_names(refusal(pl.detect, None), "NoneType")


@pytest.mark.parametrize("table", [None, 3, 0.5])
def test_what_is_no_table(tiny_gpt2, table):
    message = refusal(pl.PromptPairs.from_table, tiny_gpt2, table)
    assert_names(message, f"{table!r} is no table", "CSV", "data frame", "clean, corrupted, answer")


def test_what_are_no_patterns(tiny_gpt2, pairs):
    """An array of numpy is as good as a tensor."""
    patterns = pl.attention_patterns(tiny_gpt2, pairs, ["0.0"])
    same = pl.attention_to(patterns.numpy(), pairs)
    assert same.equals(pl.attention_to(patterns, pairs)) and same.dtype == np.float32
    for given, prompts in ((None, pairs), (patterns.tolist(), pairs), (patterns, None)):
        message = refusal(pl.attention_to, given, prompts)
        assert_names(message, f"a {type(given).__name__} and a {type(prompts).__name__}")
        assert_names(message, "pl.attention_patterns", "PromptPairs")


@pytest.mark.parametrize("given", [None, "pairs"])
def test_models_and_prompts_that_are_none(tiny_gpt2, pairs, given):
    for call, more in (
        (pl.attention_patterns, [["0.0"]]),
        (pl.copying_score, [["0.0"]]),
        (pl.ood, [STR]),
        (pl.baselines, []),
        (pl.keep_answered, []),
    ):
        name = type(given).__name__
        assert_names(refusal(call, given, pairs, *more), name, "pl.load_model")
        assert_names(refusal(call, tiny_gpt2, given, *more), name, "PromptPairs")
    message = refusal(pl.ood, tiny_gpt2, pairs, STR, reference=["a text"])
    assert_names(message, "list", "PromptPairs")


@pytest.mark.parametrize(("name", "label"), [(3, "lead"), (["a"], "lead"), ("lead", None)])
def test_metrics_without_a_name(name, label):
    message = refusal(pl.Metric, name, label, lambda logits, r, r_wrong, source: logits[..., 0])
    assert_names(message, f"pl.Metric({name!r}, {label!r}", "texts")


@pytest.mark.parametrize("positions", ["S2", ["IO", "S2"], "S2+S2"])
def test_a_position_that_no_prompt_has(tiny_gpt2, pairs, positions):
    """All would be NaN there."""
    without = [
        dataclasses.replace(prompt, positions=prompt.positions | {"S2": ()})
        for prompt in pairs.prompts
    ]
    empty = dataclasses.replace(pairs, prompts=tuple(without))
    options = {"corruption": STR, "positions": positions, "progress": False}
    message = refusal(pl.patch, tiny_gpt2, empty, "mlp", **options)
    assert_names(message, "none of these 2 prompts of ioi", "'S2", "leave this position out")
    patterns = pl.attention_patterns(tiny_gpt2, empty, ["0.0"])
    assert_names(refusal(pl.attention_to, patterns, empty, positions), "none of these 2", "'S2")


def test_noise_needs_a_token(mini):
    """Where the site is missing, the corrupted run would be the clean one."""
    pairs = pl.tasks.factual_recall(mini, n=20)
    empty = next(p.text for p in pairs.prompts if not p.positions["middle_subject"])
    message = refusal(pl.baselines, mini, pairs, pl.GN("middle_subject"))
    assert_names(message, "'middle_subject'", "changes nothing", "pairs.at('middle_subject')")
    assert empty in message or any(text in message for text in pairs.texts)
    some = pairs[[bool(at) for at in pairs.at("middle_subject")]]
    assert (pl.baselines(mini, some, pl.GN("middle_subject"), ["kl"]).corrupted > 0).all()

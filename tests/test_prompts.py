"""From text to tokens: what prompts of one's own become, and what is refused with the reason."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    ByT5Tokenizer,
    GPT2Config,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import patchlib as pl
from patchlib.prompts.pairs import draw
from patchlib.prompts.tokenizing import tokenize

SPACE = "\u2581"
WAR = pl.Prompt("The war lasted", {"noun": (4, 7)}, " from", " to", {"noun": "The siege lasted"})
Loader = Callable[[PreTrainedTokenizerBase], TransformerBridge]


def refusal(function: Callable[..., object], *arguments: object, **settings: object) -> str:
    with pytest.raises(pl.PatchlibError) as caught:
        function(*arguments, **settings)
    return str(caught.value)


def assert_names(message: str, *words: str) -> None:
    assert [word for word in words if word not in message] == []


def changed(prompt: pl.Prompt = WAR, **fields: object) -> Callable[[], pl.Prompt]:
    return lambda: dataclasses.replace(prompt, **fields)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """A model of one layer with random weights and a tokenizer of the test's own."""

    def model(tokenizer: PreTrainedTokenizerBase) -> TransformerBridge:
        folder: Path = tmp_path_factory.mktemp("model")
        configuration = GPT2Config(
            vocab_size=len(tokenizer) + 4,
            n_layer=1,
            n_head=1,
            n_embd=8,
            n_positions=16,
            bos_token_id=None,
            eos_token_id=None,
        )
        AutoModelForCausalLM.from_config(configuration).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return pl.load_model(folder)

    return model


def sentencepiece(*words: str, **special: str) -> PreTrainedTokenizerFast:
    """As Llama's: a text begins with a space that it does not have, and spaces lead words."""
    vocabulary = [("<unk>", -9.0), ("<s>", -9.0), *((word, -1.0) for word in words)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


def byte_level(letters: str, *merges: str) -> PreTrainedTokenizerFast:
    """As GPT-2's, with these merges alone."""
    pairs = [tuple(merge.split()) for merge in merges]
    words = ["<end>", *dict.fromkeys((*letters, *("".join(pair) for pair in pairs)))]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>")


# Answers


def test_one_text_is_one_answer(tiny_gpt2):
    """Not its letters; a list and a tuple are several."""
    assert WAR.answers == (" from",) and WAR.wrong_answers == (" to",)
    tuples = dataclasses.replace(WAR, answers=(" from",), wrong_answers=[" to"])
    assert tuples == WAR
    found = tokenize(tiny_gpt2, WAR)
    assert [len(found.answers), len(found.wrong_answers)] == [1, 1]
    assert tiny_gpt2.tokenizer.decode(found.answers + found.wrong_answers) == " from to"


@pytest.mark.parametrize("answers", [46, None, float("nan"), [" from", 46], {" from"}])
def test_answers_that_are_no_text(answers):
    assert_names(refusal(changed(answers=answers)), "no text", "'The war lasted'", "' Paris'")


def test_answers_are_read_in_their_place(load):
    """Standing alone, "Yes" would be the token with a space before it."""
    words = (f"{SPACE}So", "(", f"{SPACE}Yes", f"{SPACE}No", "Yes", "No")
    model = load(sentencepiece(*words, bos_token="<s>"))
    assert model.tokenizer("Yes", add_special_tokens=False)["input_ids"] == [4]
    bare = tokenize(model, pl.Prompt("So(", {}, "Yes", "No"))
    spaced = tokenize(model, pl.Prompt("So(", {}, " Yes", " No"))
    assert bare.clean == spaced.clean == (1, 2, 3)
    assert (bare.answers, bare.wrong_answers) == ((6,), (7,))
    assert (spaced.answers, spaced.wrong_answers) == ((4,), (5,))


@pytest.mark.parametrize("make", [sentencepiece, byte_level])
def test_an_answer_glued_to_a_word(load, make):
    """A model that has both "Mary" and " Mary" as tokens goes on with the second one."""
    words = (f"{SPACE}to", f"{SPACE}Mary", f"{SPACE}Ann", "Mary", "Ann")
    if make is sentencepiece:
        model = load(sentencepiece(*words, bos_token="<s>"))
    else:
        merges = "t o|M a|r y|Ma ry|A n|An n|Ġ Mary|Ġ Ann".split("|")
        model = load(byte_level("toMaryAnĠ", *merges))
    message = refusal(tokenize, model, pl.Prompt("to", {}, "Mary", "Ann"))
    assert_names(message, "'Mary'", "glued", "'to'", "write ' Mary'")
    message = refusal(tokenize, model, pl.Prompt("to ", {}, " Mary", " Ann"))
    assert_names(message, "ends with a space", "' Mary'", "before its space")
    (token,) = tokenize(model, pl.Prompt("to", {}, " Mary", " Ann")).answers
    expected = f"{SPACE}Mary" if make is sentencepiece else "ĠMary"
    assert model.tokenizer.convert_ids_to_tokens(token) == expected


@pytest.mark.parametrize("sign", [",", ";", ":", "?", "!"])
def test_an_answer_glued_to_a_sign(load, sign):
    """Like one that is glued to a word, unless the text shows that no space belongs there."""
    merges = "A n|An n|B o|Bo b|Ġ Ann|Ġ Bob|Ġ 3|Ġ 4".split("|")
    model = load(byte_level(f'Ab,.;:?!"}}noB1234Ġ{sign}', *merges))
    for end, answer in ((sign, "Ann"), (f'"}}{sign}', "Ann"), (f"no{sign}", "3")):
        prompt = pl.Prompt(f"B{end}", {}, answer, " Bob")
        message = refusal(tokenize, model, prompt)
        assert_names(message, repr(sign), f"'B{end}'", f"write ' {answer}'", "without a space")
        (token,) = tokenize(model, dataclasses.replace(prompt, answers=f" {answer}")).answers
        assert model.tokenizer.convert_ids_to_tokens(token) == f"Ġ{answer}"
    for text, answer in ((f"b{sign}Ann b{sign}", "Ann"), (f"12{sign}", "3"), ("b.", "Ann")):
        (token,) = tokenize(model, pl.Prompt(text, {}, answer, " Bob")).answers
        assert model.tokenizer.convert_ids_to_tokens(token) == answer


def test_an_answer_after_a_sign_that_no_model_would_space(load):
    """Where the word with a space is several tokens, nothing says that it is the usual one."""
    model = load(byte_level("b:AnĠ", "A n", "An n"))
    (token,) = tokenize(model, pl.Prompt("b:", {}, "Ann", "b")).answers
    assert model.tokenizer.convert_ids_to_tokens(token) == "Ann"


def test_an_answer_that_melts_into_the_prompt(load):
    """A space at the end of the text is no token of its own before a word."""
    model = load(sentencepiece(f"{SPACE}to", SPACE, f"{SPACE}Mary", f"{SPACE}Ann", "Mary", "Ann"))
    message = refusal(tokenize, model, pl.Prompt("to ", {}, "Mary", "Ann"))
    assert_names(message, "one token of the end of 'to '", "'Mary'", "before its last space")


def test_scripts_without_spaces(load):
    """There a letter follows a letter, and nothing is missing between them."""
    model = load(sentencepiece(SPACE, "首都", "是", "北京", "东京"))
    found = tokenize(model, pl.Prompt("首都是", {"verb": (2, 3)}, "北京", "东京"))
    assert (found.clean, found.answers, found.wrong_answers) == ((2, 3, 4), (5,), (6,))
    assert found.positions["verb"] == (2,)


def test_years_of_which_some_are_one_token(load):
    """The two digits are asked for, whatever the model makes of the whole year."""
    merges = "1 7|Ġ 17|0 0|4 6|Ġ17 00".split("|")
    model = load(byte_level("Ġto01746", *merges))
    assert model.tokenizer.tokenize("to 1700") == ["t", "o", "Ġ1700"]
    found = tokenize(model, pl.Prompt("to 17", {}, "46", "00"))
    names = model.tokenizer.convert_ids_to_tokens([*found.answers, *found.wrong_answers])
    assert names == ["46", "00"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"answers": (" from the year",)}, ["' from the year'", "3 tokens", "choose another"]),
        ({"answers": ""}, ["''", "0 tokens", "exactly one token"]),
        ({"answers": ()}, ["answers=()", "at least one"]),
        ({"wrong_answers": ()}, ["wrong_answers=()", "at least one"]),
        ({"answers": (" from", " from")}, ["(' from', ' from')", "each once"]),
        ({"answers": " to"}, ["(' to',)", "share a token", "either right or wrong"]),
        ({"answers": [" from", " to"]}, ["(' from', ' to')", "share a token"]),
    ],
)
def test_answers_that_are_refused(tiny_gpt2, fields, words):
    prompt = dataclasses.replace(WAR, **fields)
    assert_names(refusal(pl.PromptPairs.from_prompts, tiny_gpt2, [prompt]), *words)


# Texts and spans


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": ""}, ["prompt ''", "empty"]),
        ({"text": " \n"}, ["empty"]),
        ({"text": "half a \ud83d"}, ["half a character"]),
        ({"text": None}, ["None", "no text"]),
        ({"corrupted": {"noun": None}}, ["None", "no text"]),
        ({"spans": {"noun": (-1, 4)}}, ["'noun'", "(-1, 4)", "0 to 14", "str.find"]),
        ({"spans": {"noun": (0, 999)}}, ["(0, 999)", "0 to 14"]),
        ({"spans": {"noun": (90, 95)}}, ["(90, 95)", "cover some of the text"]),
        ({"spans": {"noun": (4, 4)}}, ["(4, 4)", "cover some of the text"]),
        ({"spans": {"noun": (7, 4)}}, ["(7, 4)", "cover some of the text"]),
        ({"spans": {"last": (0, 3)}}, ["'last'", "name of the last token"]),
        ({"spans": {"all": (0, 3)}}, ["'all'", "choose another name"]),
        ({"spans": {"each": (0, 3)}}, ["'each'", "choose another name"]),
        ({"spans": {"a+b": (0, 3)}}, ["'a+b'", "joins names"]),
        ({"spans": {"": (0, 3)}}, ["called ''", "choose another name"]),
        ({"spans": None}, ["spans=None", "'The war lasted'", "give a dict", "{'noun': ...}"]),
        ({"spans": {3: (4, 7)}}, ["spans={3: (4, 7)}", "a name for each"]),
        ({"spans": {"noun": 4}}, ["'noun'", "is 4", "as in (4, 7)"]),
        ({"spans": {"noun": (4.0, 7.0)}}, ["(4.0, 7.0)", "as in (4, 7)"]),
        ({"spans": {"noun": (4, 5, 7)}}, ["(4, 5, 7)", "as in (4, 7)"]),
        ({"corrupted": "The siege lasted"}, ["corrupted='The siege lasted'", "give a dict"]),
    ],
)
def test_texts_and_spans_that_are_refused(fields, words):
    """Where they are written, before any model is there."""
    assert_names(refusal(changed(**fields)), *words)


def test_a_span_may_end_with_the_text():
    assert changed(spans={"verb": (8, 14)})().spans == {"verb": (8, 14)}


def test_a_span_without_a_token(load):
    """Some tokenizers drop the spaces between words."""
    words = Tokenizer(models.WordLevel({"to": 0, "Mary": 1, "Ann": 2}, unk_token="to"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    model = load(PreTrainedTokenizerFast(tokenizer_object=words))
    prompt = pl.Prompt("to Mary", {"name": (3, 7)}, " Ann", " to")
    assert tokenize(model, prompt).positions == {"name": (1,), "last": (1,)}
    message = refusal(tokenize, model, dataclasses.replace(prompt, spans={"gap": (2, 3)}))
    assert_names(message, "'gap'", "(2, 3)", "no token", "must cover a token")


def test_one_token_in_two_positions(tiny_gpt2):
    """Two names of one token could not be told apart."""
    prompt = dataclasses.replace(WAR, spans={"a": (4, 6), "b": (6, 7)})
    message = refusal(pl.PromptPairs.from_prompts, tiny_gpt2, [prompt])
    assert_names(message, "one token", "both a and b", "choose other words")


def test_names_of_several_tokens(load):
    """All of them are the position, and a replacement has as many."""
    words = (f"{SPACE}Then", f"{SPACE}Ma", "ry", f"{SPACE}An", "na", f"{SPACE}John", f"{SPACE}to")
    model = load(sentencepiece(*words))
    prompt = pl.Prompt("Then Mary", {"name": (5, 9)}, " to", " John", {"name": "Then Anna"})
    found = tokenize(model, prompt)
    assert (found.clean, found.corrupted["name"]) == ((2, 3, 4), (2, 5, 6))
    assert found.positions == {"name": (1, 2), "last": (2,)}
    message = refusal(tokenize, model, dataclasses.replace(prompt, corrupted={"name": "Then John"}))
    assert_names(message, "'Then Mary' has 3", "'Then John'", "'name'", "2", "same number")
    message = refusal(tokenize, model, dataclasses.replace(prompt, answers=" Mary"))
    assert_names(message, "' Mary'", "2 tokens", "exactly one")


def test_each_token_as_text(tiny_gpt2):
    assert tokenize(tiny_gpt2, WAR).words == ("<|endoftext|>", "The", " war", " lasted")


# Replacements


def test_prompts_of_unequal_length(tiny_gpt2):
    """A corrupted prompt needs as many tokens as its clean one."""
    prompt = dataclasses.replace(WAR, corrupted={"noun": "The long war lasted"})
    message = refusal(pl.PromptPairs.from_prompts, tiny_gpt2, [prompt])
    words = ("'The war lasted'", "4 tokens", "'The long war lasted'", "'noun'", "5", "same number")
    assert_names(message, *words, "equal token length")


GUESTS = pl.Prompt(
    "The war and the siege lasted",
    {"S1": (4, 7), "IO": (16, 21)},
    " from",
    " to",
    {"S1+IO": "The trial and the famine lasted", "both": "The siege and the war lasted"},
)


def test_a_replacement_at_its_site(tiny_gpt2):
    """A site's parts, or under another name all that has a span."""
    found = tokenize(tiny_gpt2, GUESTS)
    for site in ("S1+IO", "both"):
        places = [i for i, token in enumerate(found.clean) if found.corrupted[site][i] != token]
        assert places == [2, 5] == [*found.positions["S1"], *found.positions["IO"]]


@pytest.mark.parametrize(
    ("site", "text", "outside"),
    [
        # As long as the clean prompt, and "and the" is one place further on.
        ("S1+IO", "The long war and the lasted", "3 (' and'), 4 (' the')."),
        ("both", "The long war and the lasted", "3 (' and'), 4 (' the')."),
        ("S1", "The trial and the famine lasted", "5 (' siege')"),
        ("IO", "The war and the siege to", "6 (' lasted')"),
        ("both", "From war and the siege lasted", "1 ('The')"),
    ],
)
def test_a_replacement_beside_its_site(tiny_gpt2, site, text, outside):
    """The position would restore another word's activation."""
    words = ["S1", "IO"] if site == "both" else site.split("+")
    message = refusal(tokenize, tiny_gpt2, dataclasses.replace(GUESTS, corrupted={site: text}))
    assert_names(message, repr(text), repr(site), *words, outside, "as in 'S1+IO'", "stay in place")


def test_neighbours_that_exchange_their_lengths(load):
    """No token between them shows that the second name begins earlier."""
    parts = (f"{SPACE}An", "na", f"{SPACE}Bell", f"{SPACE}Bob", f"{SPACE}Isa", f"{SPACE}to")
    model = load(sentencepiece(*parts, f"{SPACE}Ro", "se", "bel"))
    spans = {"first": (3, 7), "second": (8, 12)}
    prompt = pl.Prompt("to Anna Bell", spans, " to", " Bob", {"first+second": "to Rose Bob"})
    found = tokenize(model, prompt)
    assert (found.clean, found.corrupted["first+second"]) == ((7, 2, 3, 4), (7, 8, 9, 5))
    for site in ("first+second", "both"):
        wrong = dataclasses.replace(prompt, corrupted={site: "to Bob Rose"})
        message = refusal(tokenize, model, wrong)
        words = ("'to Bob Rose'", repr(site), "first", "second", "'to Anna Bell'", "equal token")
        assert_names(message, *words)
    alone = dataclasses.replace(prompt, corrupted={"second": "to Anna Bob"})
    assert tokenize(model, alone).corrupted["second"] == (7, 2, 3, 5)


def test_a_replacement_without_a_span(tiny_gpt2):
    """What is replaced must have a position to be restored at."""
    prompt = dataclasses.replace(WAR, spans={})
    assert_names(refusal(tokenize, tiny_gpt2, prompt), "'noun'", "2 (' war')", "Give a span")


# The beginning of sequence and the context


def test_a_second_beginning_of_sequence(tiny_gpt2):
    """One that stands in the text is enough, and none is added without being asked for."""
    begin = tiny_gpt2.tokenizer.bos_token
    spans = {"noun": (len(begin) + 4, len(begin) + 7)}
    corrupted = {"noun": begin + WAR.corrupted["noun"]}
    twice = dataclasses.replace(WAR, text=begin + WAR.text, spans=spans, corrupted=corrupted)
    for prepend_bos in (None, True):
        message = refusal(tokenize, tiny_gpt2, twice, prepend_bos)
        assert_names(message, repr(twice.text), "beginning of sequence", "prepend_bos=False")
    once = tokenize(tiny_gpt2, twice, prepend_bos=False)
    assert once == dataclasses.replace(tokenize(tiny_gpt2, WAR), text=twice.text)
    half = dataclasses.replace(WAR, corrupted=corrupted)
    assert_names(refusal(tokenize, tiny_gpt2, half), repr(corrupted["noun"]))


@pytest.mark.parametrize("special", [{}, {"eos_token": "<s>"}])
def test_a_tokenizer_without_a_beginning_of_sequence(load, special):
    """None is prepended unless it is asked for; nor is an end of sequence lent for it."""
    model = load(sentencepiece(f"{SPACE}to", f"{SPACE}Mary", f"{SPACE}Ann", **special))
    prompt = pl.Prompt("to", {}, " Mary", " Ann")
    pairs = pl.PromptPairs.from_prompts(model, [prompt])
    assert pairs.settings == {"prepend_bos": False}
    assert pairs.prompts[0].clean == (2,)
    message = refusal(pl.PromptPairs.from_prompts, model, [prompt], prepend_bos=True)
    assert_names(message, "prepend_bos=True", "no beginning-of-sequence token", "prepend_bos=False")


def test_a_tokenizer_that_does_not_know_where_its_tokens_are(mini, monkeypatch):
    """Spans are letters, and such a tokenizer cannot say in which token they are."""
    monkeypatch.setattr(mini, "tokenizer", ByT5Tokenizer())
    message = refusal(pl.PromptPairs.from_prompts, mini, [WAR])
    assert_names(message, "mini", "ByT5Tokenizer", "fast tokenizer", "tokenizer.json")
    monkeypatch.setattr(mini, "tokenizer", None)
    assert_names(refusal(pl.tasks.ioi, mini, n=1), "mini", "NoneType", "fast tokenizer")


@pytest.mark.parametrize(("asked", "kept"), [(None, True), (True, True), (False, False)])
def test_settings_say_what_was_prepended(tiny_gpt2, asked, kept):
    """For the tasks and for prompts of one's own."""
    ioi = pl.tasks.ioi(tiny_gpt2, n=2, prepend_bos=asked)
    own = pl.PromptPairs.from_prompts(tiny_gpt2, [WAR], prepend_bos=asked)
    assert ioi.settings["prepend_bos"] is own.settings["prepend_bos"] is kept
    begin = tiny_gpt2.tokenizer.bos_token_id
    assert [prompt.clean.count(begin) for prompt in (*ioi.prompts, *own.prompts)] == [kept] * 3


def test_a_prepend_bos_that_is_no_answer(tiny_gpt2):
    message = refusal(pl.PromptPairs.from_prompts, tiny_gpt2, [WAR], prepend_bos="no")
    assert_names(message, "prepend_bos='no'", "True, False or None")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prompts_longer_than_the_context(tiny_folders, family):
    """Rotary models would give numbers for positions that they never saw."""
    model = pl.load_model(tiny_folders(family))
    text = "The war lasted" + " from the year" * 20
    fits, longer = (pl.Prompt(text + end, {}, " from", " to") for end in ("", " to"))
    assert len(tokenize(model, fits).clean) == 64
    assert_names(refusal(tokenize, model, longer), "65 tokens", "64", "shorter prompt")


# Many prompts


def test_no_prompts(tiny_gpt2):
    """An empty list is a mistake."""
    message = refusal(pl.PromptPairs.from_prompts, tiny_gpt2, [])
    assert_names(message, "no prompts", "at least one")


@pytest.mark.parametrize("given", [None, 3, WAR, "The war lasted", [{"text": "The war lasted"}]])
def test_what_are_no_prompts(tiny_gpt2, given):
    message = refusal(pl.PromptPairs.from_prompts, tiny_gpt2, given)
    shown = given[0] if isinstance(given, list | str) else given
    assert_names(message, f"prompts={shown!r}:", "list of pl.Prompt(text", "from_table")


def test_prompts_with_other_spans(tiny_gpt2):
    """A named position is there in all prompts."""
    other = dataclasses.replace(WAR, spans={"verb": (8, 14)}, corrupted={})
    message = refusal(pl.PromptPairs.from_prompts, tiny_gpt2, [WAR, other])
    assert_names(message, "noun, last", "verb, last", "the same spans")


def test_prompts_that_do_not_fit_the_tokenizer(tiny_gpt2):
    """The first reason is given, with how often it came up."""
    bad = dataclasses.replace(WAR, answers=" from the year")
    message = refusal(draw, tiny_gpt2, [bad, WAR, bad], 2, "mine", {})
    assert_names(message, "n=2", "1 are there", "2 do not fit", "' from the year'", "at most 1")
    assert_names(refusal(draw, tiny_gpt2, [bad], 1, "mine", {}), "0 are there", "another model")
    settings = {"n": 1, "prepend_bos": True, "refused": 1}
    assert draw(tiny_gpt2, [bad, WAR], 1, "mine", {}).settings == settings


@pytest.mark.parametrize("n", [True, 1.5, "3", np.float64(2), None, 0, -5])
def test_an_n_that_is_no_number_of_prompts(tiny_gpt2, n):
    assert_names(refusal(pl.tasks.ioi, tiny_gpt2, n=n), f"n={n!r}", "whole number", "at least 1")


@pytest.mark.parametrize("seed", [True, 1.5, "3", None, -1])
def test_a_seed_that_is_none(tiny_gpt2, seed):
    message = refusal(pl.tasks.ioi, tiny_gpt2, n=1, seed=seed)
    assert_names(message, f"seed={seed!r}", "whole number", "at least 0")


def test_numbers_of_numpy(tiny_gpt2):
    """They are whole numbers like others, and results keep them as Python's own."""
    pairs = pl.tasks.ioi(tiny_gpt2, n=np.int64(3), seed=np.uint8(2))
    assert pairs == pl.tasks.ioi(tiny_gpt2, n=3, seed=2)
    assert [type(pairs.settings[name]) for name in ("n", "seed")] == [int, int]


def test_a_digit_glued_to_a_word(mini):
    """Where each digit is a token, so is the space before a number, and it belongs to the text."""
    prompt = pl.Prompt("The sum is", {"sum": (4, 7)}, "4", "5")
    message = refusal(pl.PromptPairs.from_prompts, mini, [prompt])
    assert_names(message, "'4'", "' 4'", "end the text with the space")

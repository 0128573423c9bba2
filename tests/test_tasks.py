"""The tasks: their positions, their corruptions, and what mini never saw of them."""

import hashlib
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import gpt2_encoding
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

import patchlib as pl
from patchlib.prompts.pairs import PromptPairs, TokenizedPrompt
from patchlib.tasks import docstrings, facts, indirect_objects, professions, sums, years
from patchlib.training import corpus

N = 60
RECORD = json.loads((Path(__file__).parent / "gpt2_token_counts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pairs_of(mini: TransformerBridge) -> Callable[..., PromptPairs]:
    """Draws a task's prompts for mini, once for each setting."""
    drawn: dict[tuple, PromptPairs] = {}

    def pairs(task: str, n: int = N, **settings) -> PromptPairs:
        key = (task, n, *settings.items())
        if key not in drawn:
            drawn[key] = getattr(pl.tasks, task)(mini, n=n, **settings)
        return drawn[key]

    return pairs


@pytest.fixture(scope="module")
def at(mini: TransformerBridge) -> Callable[..., str]:
    """Spells the tokens of a prompt's named position, in the clean or a corrupted version."""

    def spell(prompt: TokenizedPrompt, name: str, site: str | None = None) -> str:
        tokens = prompt.clean if site is None else prompt.corrupted[site]
        return mini.tokenizer.decode([tokens[i] for i in prompt.positions[name]])

    return spell


@pytest.fixture(scope="module")
def decode(mini: TransformerBridge) -> Callable[..., list[str]]:
    return lambda tokens: [mini.tokenizer.decode([token]) for token in tokens]


def tokens_of(model: TransformerBridge, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def changed(prompt: TokenizedPrompt, site: str) -> set[int]:
    pairs = zip(prompt.clean, prompt.corrupted[site], strict=True)
    return {i for i, (a, b) in enumerate(pairs) if a != b}


def where(prompt: TokenizedPrompt, *names: str) -> set[int]:
    return {i for name in names for i in prompt.positions[name]}


@pytest.mark.parametrize("task", pl.tasks.__all__)
def test_the_seed_decides_the_prompts(tiny_gpt2, task):
    """The same seed draws the same prompts in the same order; a shorter draw is a part of them."""
    function = getattr(pl.tasks, task)
    texts = function(tiny_gpt2, n=5, seed=3).texts
    assert function(tiny_gpt2, n=3, seed=3).texts == texts[:3]
    assert function(tiny_gpt2, n=5, seed=4).texts != texts
    assert len(set(texts)) == 5


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("arithmetic", "25 + 45 = 70\n21 + 15 = 36\n21 + 25 ="),
        ("factual_recall", "Marcel Proust grew up in a home where people spoke"),
        ("greater_than", "The contract lasted from the year 1141 to the year 11"),
        ("ioi", "At lunch Ronald and George talked quietly. Then George lent the bag to"),
    ],
)
def test_the_prompts_of_a_seed_stay_the_same(pairs_of, task, text):
    """Numbers that were published with a seed can be had again."""
    assert pairs_of(task).texts[0] == text


@pytest.mark.parametrize("task", pl.tasks.__all__)
def test_last_is_the_last_token(pairs_of, mini, task):
    """Answers are predicted there; the prompt begins with a beginning only if it is asked for."""
    for prompt in pairs_of(task).prompts:
        assert prompt.positions["last"] == (len(prompt.clean) - 1,)
        assert prompt.clean[0] == mini.tokenizer.bos_token_id
        assert mini.tokenizer.decode(prompt.clean[1:]) == prompt.text
        assert prompt.clean.count(mini.tokenizer.bos_token_id) == 1
    bare = pairs_of(task, n=2, prepend_bos=False)
    for without, with_bos in zip(bare.prompts, pairs_of(task).prompts, strict=False):
        assert without.clean == with_bos.clean[1:]
        for name, places in without.positions.items():
            assert tuple(i + 1 for i in places) == with_bos.positions[name]


# Indirect object identification


def test_ioi_positions(pairs_of, at, decode):
    """IO occurs once and S twice, S1 before S2, and the answer is IO."""
    for prompt in pairs_of("ioi").prompts:
        io, s = at(prompt, "IO"), at(prompt, "S1")
        assert at(prompt, "S2") == s != io
        assert io.strip() in indirect_objects.NAMES
        assert s.strip() in indirect_objects.NAMES
        assert decode(prompt.answers) == [io]
        assert decode(prompt.wrong_answers) == [s]
        spelled = decode(prompt.clean)
        assert (spelled.count(io), spelled.count(s)) == (1, 2)
        (at_io,), (s1,), (s2,) = (prompt.positions[name] for name in ("IO", "S1", "S2"))
        assert max(at_io, s1) < s2


def test_ioi_replaces_s2_by_io(pairs_of, at):
    """The paper's symmetric token replacement: "..., Mary gave a drink to"."""
    pairs = pairs_of("ioi")
    tokens = pl.STR("S2").tokens(pairs)
    assert tokens.shape == pairs.clean_tokens.shape
    assert (tokens != pairs.clean_tokens).sum(dim=1).tolist() == [1] * N
    for prompt in pairs.prompts:
        assert changed(prompt, "S2") == where(prompt, "S2")
        assert at(prompt, "S2", site="S2") == at(prompt, "IO")


@pytest.mark.parametrize(
    ("site", "names"),
    [("S1", ["S1"]), ("IO", ["IO"]), ("S1+IO", ["S1", "IO"]), ("ABC", ["S1", "IO", "S2"])],
)
def test_ioi_replaces_names_by_unrelated_ones(pairs_of, at, site, names):
    """No new name is one of the prompt's, and no two of them are alike."""
    for prompt in pairs_of("ioi").prompts:
        assert changed(prompt, site) == where(prompt, *names)
        new = [at(prompt, name, site=site) for name in names]
        assert {name.strip() for name in new} <= set(indirect_objects.NAMES)
        assert len({*new, at(prompt, "IO"), at(prompt, "S1")}) == len(names) + 2


def test_ioi_names_stand_in_either_order(pairs_of):
    """About half of the prompts are ABBA, the others BABA."""
    prompts = pairs_of("ioi").prompts
    abba = sum(p.positions["IO"] < p.positions["S1"] for p in prompts)
    assert 0.25 * N < abba < 0.75 * N


def test_ioi_has_many_templates_and_names(pairs_of):
    """No pair of names comes twice, and the place of S2 varies."""
    assert len(set(indirect_objects.TEMPLATES)) == len(indirect_objects.TEMPLATES) >= 15
    assert len(set(indirect_objects.NAMES)) == len(indirect_objects.NAMES) >= 80
    for template in indirect_objects.TEMPLATES:
        assert [template.count(name) for name in ("{first}", "{second}", "{S2}")] == [1, 1, 1]
    prompts = pairs_of("ioi").prompts
    assert len({prompt.answers + prompt.wrong_answers for prompt in prompts}) == N
    assert len({prompt.positions["S2"] for prompt in prompts}) > 2


# Greater-than


def test_greater_than_positions_and_answers(pairs_of, at, decode):
    """Right are exactly the years after YY, wrong those before, and YY itself is neither."""
    for prompt in pairs_of("greater_than").prompts:
        found = re.fullmatch(
            r"The (\w+) lasted from the year (\d\d)(\d\d) to the year (\d\d)", prompt.text
        )
        noun, century, year, end = found.groups()
        assert at(prompt, "noun") == f" {noun}"
        assert at(prompt, "XX") == f" {century}"
        assert at(prompt, "YY") == year
        assert at(prompt, "end") == at(prompt, "last") == f" {end}" == f" {century}"
        after, before = range(int(year) + 1, 100), range(int(year))
        assert decode(prompt.answers) == [f"{y:02d}" for y in after]
        assert decode(prompt.wrong_answers) == [f"{y:02d}" for y in before]
        assert changed(prompt, "YY") == where(prompt, "YY")
        assert at(prompt, "YY", site="YY") == "01"


def test_greater_than_fills_its_sets(pairs_of):
    """Rows are as long as the longest one, filled with -1."""
    pairs = pairs_of("greater_than")
    counts = [len(prompt.answers) for prompt in pairs.prompts]
    assert pairs.answers.shape == (N, max(counts))
    assert (pairs.answers != -1).sum(1).tolist() == counts
    assert len(set(counts)) > 10


# Docstrings


def test_docstring_positions(pairs_of, at, decode):
    """A and B are documented in the order of their definition, C is next."""
    for prompt in pairs_of("docstring").prompts:
        arguments = re.search(r"\(self, (.*)\):", prompt.text).group(1).split(", ")
        assert len(set(arguments)) == 6
        a, b, c = arguments[2:5]
        for name, word in (("A_def", a), ("B_def", b), ("C_def", c), ("A_doc", a), ("B_doc", b)):
            assert at(prompt, name) == f" {word}"
        assert prompt.positions["A_def"] < prompt.positions["A_doc"]
        assert decode(prompt.answers) == [f" {c}"]
        assert changed(prompt, "C_def") == where(prompt, "C_def")
        other = at(prompt, "C_def", site="C_def")
        assert decode(prompt.wrong_answers) == [other]
        assert other not in decode(prompt.clean)


# Arithmetic


@pytest.mark.parametrize("operator", ["+", "-", "*"])
def test_arithmetic_results(pairs_of, at, decode, operator):
    """All three lines are right, and so are r and r'."""
    calculate = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[operator]
    for prompt in pairs_of("arithmetic", n=30, operator=operator).prompts:
        lines = prompt.text.split("\n")
        assert len(lines) == 3
        number = rf"(\d+) {re.escape(operator)} (\d+) ="
        for line in lines[:2]:
            x, y, result = map(int, re.fullmatch(number + r" (\d+)", line).groups())
            assert result == calculate(x, y)
        x, y = map(int, re.fullmatch(number, lines[2]).groups())
        assert (at(prompt, "X3").strip(), at(prompt, "Y3").strip()) == (str(x), str(y))
        assert decode(prompt.answers) == [f" {calculate(x, y)}"]
        sites = {"X3", "Y3"}
        assert changed(prompt, "X3+Y3") <= where(prompt, *sites)
        other = [int(at(prompt, name, site="X3+Y3")) for name in ("X3", "Y3")]
        assert decode(prompt.wrong_answers) == [f" {calculate(*other)}"]
        assert prompt.answers != prompt.wrong_answers


@pytest.mark.parametrize("operator", ["+", "-", "*"])
def test_arithmetic_has_results_of_one_token(mini, operator):
    """For all operands, not only those that a seed draws."""
    for x, y in sums.operands(operator):
        result = sums.OPERATORS[operator](x, y)
        assert result > 0
        assert len(tokens_of(mini, f" {result}")) == 1
        assert str(result) in RECORD["single_after_a_space"]


# Factual recall


def test_facts_positions(pairs_of, at, decode):
    """The subject in its parts, then the token after it, the further ones and the last."""
    known = {sentence: pair for pair in facts.read() for sentence in pair.sentences}
    for prompt in pairs_of("factual_recall").prompts:
        pair = known[prompt.text]
        side = pair.sentences.index(prompt.text)
        subject = prompt.positions["subject"]
        assert at(prompt, "subject").strip() == pair.subjects[side]
        assert decode(prompt.answers) == [pair.answers[side]]
        assert decode(prompt.wrong_answers) == [pair.answers[1 - side]]
        assert at(prompt, "subject", site="subject").strip() == pair.subjects[1 - side]
        assert changed(prompt, "subject") <= set(subject)
        parts = [prompt.positions[f"{part}_subject"] for part in ("first", "middle", "last")]
        assert [len(part) for part in parts] == [1, len(subject) - 2, 1]
        assert sum(parts, ()) == subject
        rest = [prompt.positions[name] for name in ("next", "further", "last")]
        assert sum(rest, ()) == tuple(range(subject[-1] + 1, len(prompt.clean)))


@pytest.mark.parametrize("phrasing", [0, 1])
def test_facts_phrasings(mini, phrasing):
    """Every phrasing can be asked for, and all its facts are there."""
    pairs = [pair for pair in facts.read() if pair.phrasing == phrasing]
    drawn = pl.tasks.factual_recall(mini, n=2 * len(pairs), phrasing=phrasing)
    assert drawn.settings["refused"] == 0
    assert set(drawn.texts) == {sentence for pair in pairs for sentence in pair.sentences}


def test_facts_are_many_and_sound(mini):
    """Two subjects of equal length and two different answers in each pair."""
    pairs = facts.read()
    phrasings: dict[int, set[int]] = {}
    for pair in pairs:
        phrasings.setdefault(pair.number, set()).add(pair.phrasing)
        assert pair.answers[0] != pair.answers[1]
        for side in (0, 1):
            assert pair.sentences[side].count(pair.subjects[side]) == 1
            assert not pair.sentences[side].endswith(" ")
        swapped = pair.sentences[0].replace(*pair.subjects)
        assert swapped == pair.sentences[1]
        counts = {len(tokens_of(mini, sentence)) for sentence in pair.sentences}
        assert len(counts) == 1
    assert len(phrasings) >= 150
    assert min(map(len, phrasings.values())) >= 2
    assert len({pair.category for pair in pairs}) >= 8


# What is held out


@pytest.fixture(scope="module")
def documents() -> list[corpus.Document]:
    return corpus.documents(20_000, random.Random(0))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def test_no_held_out_names_are_giver_and_receiver_in_the_corpus(documents):
    """Nor stand in one list of guests.

    Subjects of facts, in sentences and in lists, may have two of the names. With a third person
    as the giver, both others may receive, so that such a document says nothing about who of two
    is the indirect object.
    """
    sentences = [sentence for pair in facts.read() for sentence in pair.sentences]
    names, met = set(indirect_objects.NAMES), 0
    for document in documents:
        found = sorted(names.intersection(words(document.text)))
        if len(found) < 2 or document.text.startswith(("Facts:", *sentences)):
            continue
        if len(found) == 3 and not document.text.startswith("The guests"):
            continue
        met += 1
        for a, b in itertools.combinations(found, 2):
            assert not indirect_objects.is_held_out(a, b), document.text
    assert met > 5000


def test_no_held_out_year_starts_in_the_corpus(documents):
    """Nor does any noun begin in a held-out year in another form."""
    starts = [
        (noun, int(century), int(year))
        for document in documents
        for noun, century, year in re.findall(
            r"The (\w+) .* the year (\d\d)(\d\d) to", document.text
        )
    ]
    assert len(starts) > 1000
    assert [start for start in starts if years.is_held_out(*start)] == []


@pytest.mark.parametrize("operator", ["+", "-"])
def test_no_held_out_operands_in_the_corpus(documents, operator):
    """In no line of any document."""
    pattern = re.compile(rf"(\d+) {re.escape(operator)} (\d+)")
    pairs = [(int(x), int(y)) for document in documents for x, y in pattern.findall(document.text)]
    assert len(pairs) > 5000
    assert [pair for pair in pairs if sums.is_held_out(operator, *pair)] == []


def test_no_held_out_arguments_in_the_corpus(documents):
    """The third to fifth argument are the documented ones."""
    triples = []
    for document in documents:
        if found := re.search(r"\(self, (.*)\):", document.text):
            triples.append(found.group(1).split(", ")[2:5])
    assert len(triples) > 500
    assert [triple for triple in triples if docstrings.is_held_out(*triple)] == []


def test_no_held_out_phrasing_of_a_fact_in_the_corpus(documents):
    """Its fact is there in other phrasings."""
    held_out = {s for pair in facts.read() if pair.is_held_out for s in pair.sentences}
    seen = [document.text for document in documents]
    assert [text for text in seen if text.startswith(tuple(held_out))] == []
    numbers = {pair.number for pair in facts.read() if pair.is_held_out}
    others = {p.number for p in facts.read() if not p.is_held_out and p.number in numbers}
    assert others == numbers


def share(held_out: list[bool]) -> float:
    assert {*held_out} == {True, False}
    return sum(held_out) / len(held_out)


def test_both_sides_of_every_split_are_there():
    """About one in eight is held out, of sums one in ten, of fact sentences one in fifteen."""
    names = itertools.permutations(indirect_objects.NAMES, 2)
    starts = itertools.product(years.NOUNS, years.CENTURIES, years.YEARS)
    arguments = itertools.permutations(docstrings.VARIABLES[:20], 3)
    assert share([indirect_objects.is_held_out(*pair) for pair in names]) == pytest.approx(
        1 / 8, abs=0.01
    )
    assert share([years.is_held_out(*start) for start in starts]) == pytest.approx(1 / 8, abs=0.01)
    assert share([docstrings.is_held_out(*triple) for triple in arguments]) == pytest.approx(
        1 / 8, abs=0.02
    )
    for operator in "+-":
        pairs = sums.operands(operator)
        held_out = [sums.is_held_out(operator, *pair) for pair in pairs]
        assert share(held_out) == pytest.approx(1 / 10, abs=0.03)
    assert not any(sums.is_held_out("*", *pair) for pair in sums.operands("*"))
    assert share([pair.is_held_out for pair in facts.read()]) == pytest.approx(1 / 15, abs=0.02)


def test_all_prompts_are_held_out(pairs_of, at, mini):
    """What the tasks draw is what the corpus leaves out."""
    for prompt in pairs_of("ioi").prompts:
        assert indirect_objects.is_held_out(at(prompt, "IO").strip(), at(prompt, "S1").strip())
    for prompt in pairs_of("greater_than").prompts:
        numbers = int(at(prompt, "XX")), int(at(prompt, "YY"))
        assert years.is_held_out(at(prompt, "noun").strip(), *numbers)
    for prompt in pairs_of("docstring").prompts:
        triple = [at(prompt, name).strip() for name in ("A_def", "B_def", "C_def")]
        assert docstrings.is_held_out(*triple)
    for operator in "+-":
        for prompt in pairs_of("arithmetic", n=30, operator=operator).prompts:
            assert sums.is_held_out(operator, int(at(prompt, "X3")), int(at(prompt, "Y3")))


# Tokens of GPT-2 and of mini

SETTING = {"first": "Mary", "second": "John", "S2": "John", "place": "store", "object": "drink"}
AFTER_A_SPACE = {
    "names": indirect_objects.NAMES,
    "places": indirect_objects.PLACES,
    "objects": indirect_objects.OBJECTS,
    "nouns": years.NOUNS,
    "variables": docstrings.VARIABLES,
    "docstring words": docstrings.WORDS,
    "answers of facts": tuple(a.removeprefix(" ") for p in facts.read() for a in p.answers),
    "numbers": tuple(str(number) for number in range(1, 100)),
}
TWO_DIGITS = tuple(f"{number:02d}" for number in range(100))


def fill(template: str) -> str:
    return template.format(**SETTING)


Encoding = Callable[[str], list[str]]


def recorded(text: str) -> list[str]:
    """GPT-2's tokens as they were written down; of a template only their number is known."""
    counts = {fill(template): count for template, count in RECORD["ioi_templates"].items()}
    if text in counts:
        return ["?"] * counts[text]
    if re.fullmatch(r" \d{4}", text):
        return ["?"] if text[1:] in RECORD["years_not_split"] else [text[:3], text[3:]]
    kind = "single_after_a_space" if text.startswith(" ") else "single_without_a_space"
    return [text] if text.removeprefix(" ") in RECORD[kind] else ["?", "?"]


def encodings() -> dict[str, Encoding]:
    """What GPT-2 makes of a text: as recorded, and by the real encoding where it is at hand."""
    found: dict[str, Encoding] = {"recorded": recorded}
    if real := gpt2_encoding():
        # The byte-level alphabet spells a space as Ġ.
        found["real"] = lambda text: [t.replace("Ġ", " ") for t in real.encode(text).tokens]
    return found


ENCODINGS = encodings()


@pytest.fixture(params=ENCODINGS)
def gpt2(request: pytest.FixtureRequest) -> Encoding:
    return ENCODINGS[request.param]


def test_all_ioi_templates_have_14_tokens_in_gpt2(gpt2):
    """So that all prompts of GPT-2 fit into one tensor."""
    counts = [len(gpt2(fill(template))) for template in indirect_objects.TEMPLATES]
    assert counts == [14] * len(indirect_objects.TEMPLATES)
    assert set(RECORD["ioi_templates"]) == set(indirect_objects.TEMPLATES)


@pytest.mark.parametrize("kind", AFTER_A_SPACE)
def test_words_are_single_tokens(gpt2, mini, kind):
    """In GPT-2's encoding and in mini's, with the space before them."""
    listed = AFTER_A_SPACE[kind]
    assert listed
    assert [word for word in listed if word not in RECORD["single_after_a_space"]] == []
    assert [word for word in listed if gpt2(f" {word}") != [f" {word}"]] == []
    in_mini = {word: tokens_of(mini, f" {word}") for word in listed}
    assert [word for word, tokens in in_mini.items() if len(tokens) != 1] == []


def test_two_digits_are_single_tokens(gpt2, mini):
    """The second half of a year, and the numbers that begin a line of arithmetic."""
    for word in (*TWO_DIGITS, *map(str, range(1, 10))):
        assert word in RECORD["single_without_a_space"]
        assert gpt2(word) == [word]
        assert len(tokens_of(mini, word)) == 1


def test_mini_gives_all_ioi_templates_one_length(pairs_of):
    """And one prompt is one row of the same tensor, with a beginning more than in GPT-2."""
    assert pairs_of("ioi").clean_tokens.shape == (N, 15)


def test_mini_splits_every_year_in_two(mini):
    """As GPT-2 does, but for the years that it has as a whole or splits elsewhere."""
    all_years = [f"{c}{y:02d}" for c in years.CENTURIES for y in years.YEARS]
    for year in all_years:
        tokens = tokens_of(mini, f" {year}")
        assert [mini.tokenizer.decode([token]) for token in tokens] == [f" {year[:2]}", year[2:]]
    odd = RECORD["years_not_split"]
    assert len(set(odd)) == len(odd)
    assert set(odd) < set(all_years)
    # Enough is left for greater-than: in each century some years, and most in all.
    left = set(all_years) - set(odd)
    assert {year[:2] for year in left} == {str(century) for century in years.CENTURIES}
    assert len(left) > 0.85 * len(all_years)


def test_the_years_that_gpt2_does_not_split(gpt2):
    """The task leaves them out for GPT-2, as the paper does."""
    odd = [
        f"{century}{year:02d}"
        for century in years.CENTURIES
        for year in years.YEARS
        if gpt2(f" {century}{year:02d}") != [f" {century}", f"{year:02d}"]
    ]
    assert odd == RECORD["years_not_split"]


def test_facts_have_the_recorded_lengths():
    """Lengths are GPT-2 tokens and one for the beginning; a changed file needs a new count."""
    entries = json.loads(facts.PAIRED_FACTS.read_text(encoding="utf-8"))
    listing = [[sentence, entry["length"]] for entry in entries for sentence in entry["pair"]]
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    assert digest == RECORD["facts_sha256"]
    for sentence, length in listing:
        for encode in [ENCODINGS[name] for name in ENCODINGS if name != "recorded"]:
            assert len(encode(sentence)) + 1 == length


# SmolLM2's tokens, and those of others


def spell(model: TransformerBridge, prompt: TokenizedPrompt, name: str) -> str:
    return model.tokenizer.decode([prompt.clean[i] for i in prompt.positions[name]])


def one_by_one(model: TransformerBridge, tokens: tuple[int, ...]) -> list[str]:
    return [model.tokenizer.decode([token]) for token in tokens]


def test_ioi_has_one_length_and_names_of_one_token(smollm2):
    """Kyle, Brandon and Donna are two tokens there, and one template is longer than the others."""
    pairs = pl.tasks.ioi(smollm2, n=500)
    assert pairs.clean_tokens.shape == (500, 14)
    for site in ("S2", "S1", "IO", "S1+IO", "ABC"):
        assert pl.STR(site).tokens(pairs).shape == (500, 14)
    left_out = {"templates": 1, "names": 3, "places": 1, "objects": 0}
    assert pairs.settings["left_out"] == left_out
    assert pairs.settings["refused"] == 0
    for prompt in pairs.prompts:
        assert [len(prompt.positions[name]) for name in ("IO", "S1", "S2")] == [1, 1, 1]
        assert not prompt.text.startswith("Yesterday")
        assert not {"Kyle", "Brandon", "Donna"} & set(words(prompt.text))


def test_greater_than_asks_for_the_next_digit(smollm2):
    """Of 45 the years 46 to 49 begin with the 4, too, and so do 40 to 44."""
    pairs = pl.tasks.greater_than(smollm2, n=200)
    assert pairs.settings["form"].startswith("digit by digit")
    assert pairs.settings["left_out"] == {"nouns": 2}
    assert len({len(prompt.clean) for prompt in pairs.prompts}) == 1
    for prompt in pairs.prompts:
        noun, century, year, end = re.fullmatch(
            r"The (\w+) lasted from the year (\d\d)(\d\d) to the year (\d\d)", prompt.text
        ).groups()
        assert spell(smollm2, prompt, "noun") == f" {noun}"
        assert [len(prompt.positions[name]) for name in ("noun", "XX", "YY", "end")] == [1, 2, 2, 2]
        found = [spell(smollm2, prompt, name) for name in ("XX", "YY", "end", "last")]
        assert found == [century, year, end, end[1]]
        assert century == end
        tens = int(year[0])
        assert one_by_one(smollm2, prompt.answers) == [str(d) for d in range(tens + 1, 10)]
        assert one_by_one(smollm2, prompt.wrong_answers) == [str(d) for d in range(tens)]
        assert 1 <= tens <= 8
        replaced = f"year {century}01 to"
        assert replaced in smollm2.tokenizer.decode(prompt.corrupted["YY"])
        assert changed(prompt, "YY") <= where(prompt, "YY")


@pytest.mark.parametrize(("operator", "count"), [("+", 36), ("-", 36), ("*", 23)])
def test_arithmetic_of_one_digit(smollm2, operator, count):
    """The prompt ends with the space that GPT-2 has in its answers."""
    pairs = pl.tasks.arithmetic(smollm2, n=150, operator=operator)
    assert pairs.settings["form"].startswith("digit by digit")
    assert len({len(prompt.clean) for prompt in pairs.prompts}) == 1
    assert len(set(pairs.texts)) == 150
    asked = set()
    for prompt in pairs.prompts:
        *shots, last = prompt.text.split("\n")
        for line in shots:
            left, right = line.split(" = ")
            assert eval(left) == int(right) in range(1, 10)
        left, right = last.split(" = ")
        assert right == ""
        assert one_by_one(smollm2, prompt.answers) == [str(eval(left))]
        other = smollm2.tokenizer.decode(prompt.corrupted["X3+Y3"]).split("\n")[-1]
        assert one_by_one(smollm2, prompt.wrong_answers) == [str(eval(other.split(" = ")[0]))]
        assert prompt.answers != prompt.wrong_answers
        assert all(not line.startswith(left) for line in shots)
        x, _, y = left.split(" ")
        assert [spell(smollm2, prompt, name) for name in ("X3", "Y3")] == [x, y]
        asked.add(left)
    assert len(asked) == count


def test_other_tokenizers_keep_their_forms(pairs_of):
    for task in ("greater_than", "arithmetic"):
        assert pairs_of(task).settings["form"].startswith("numbers of several digits")


def split_at(expression: str, texts: list[str], folder: Path) -> TransformerBridge:
    """A model with random weights for which the matches of an expression are the tokens."""
    pieces = pre_tokenizers.Split(Regex(expression), "isolated")
    found = sorted({piece for text in texts for piece, _ in pieces.pre_tokenize_str(text)})
    tokenizer = Tokenizer(WordLevel({piece: i for i, piece in enumerate(["?", *found])}, "?"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pieces, decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    configuration = GPT2Config(
        vocab_size=len(fast) + 4,
        n_layer=1,
        n_head=1,
        n_embd=8,
        n_positions=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    AutoModelForCausalLM.from_config(configuration).save_pretrained(folder)
    fast.save_pretrained(folder)
    return pl.load_model(folder)


def ioi_texts() -> list[str]:
    drawn = list(indirect_objects.prompts(random.Random(0)))
    return [text for one in drawn for text in (one.text, *one.answers, *one.corrupted.values())]


def test_ioi_where_most_names_are_split(tmp_path):
    """Capital words of more than four letters are two tokens: the length is that of short names."""
    model = split_at(r" ?[A-Z][a-z]{0,3}| ?[a-z]+|\S", ioi_texts(), tmp_path)
    short = [name for name in indirect_objects.NAMES if len(name) <= 4]
    pairs = pl.tasks.ioi(model, n=20)
    assert len({len(prompt.clean) for prompt in pairs.prompts}) == 1
    assert pairs.settings["left_out"]["names"] == len(indirect_objects.NAMES) - len(short)
    for prompt in pairs.prompts:
        assert {spell(model, prompt, name).strip() for name in ("IO", "S1", "S2")} <= set(short)
    possible = sum(indirect_objects.is_held_out(*two) for two in itertools.permutations(short, 2))
    with pytest.raises(pl.PatchlibError, match=f"ask for at most {possible}"):
        pl.tasks.ioi(model, n=1000)


@pytest.mark.parametrize(("task", "kind"), [("ioi", "names"), ("greater_than", "nouns")])
def test_where_each_letter_is_a_token(tmp_path, task, kind):
    model = split_at(r".", ioi_texts(), tmp_path)
    with pytest.raises(pl.PatchlibError, match=f"0 of .* {kind} are one token"):
        getattr(pl.tasks, task)(model, n=1)


def test_greater_than_with_tokens_of_three_digits(tmp_path):
    """ "1745" is "174" and "5": no token is YY."""
    drawn = list(itertools.islice(years.prompts(random.Random(0)), 2000))
    texts = [text for one in drawn for text in (one.text, *one.answers, *one.corrupted.values())]
    model = split_at(r" ?[A-Za-z]+|\d{1,3}|\s", texts, tmp_path)
    assert one_by_one(model, tokens_of(model, " 1745")) == [" ", "174", "5"]
    with pytest.raises(pl.PatchlibError, match="one token covers both XX and YY"):
        pl.tasks.greater_than(model, n=1)


def test_pronouns_of_smollm2(smollm2):
    """One pronoun is replaced by the other; the answer is the profession of its gender."""
    pairs = pl.tasks.pronouns(smollm2, n=60)
    assert pairs.settings["words"] == ["She", "He"] and pairs.settings["refused"] == 0
    kinds = Counter()
    for prompt in pairs.prompts:
        assert changed(prompt, "pronoun") == where(prompt, "pronoun")
        words = {name: spell(smollm2, prompt, name).strip() for name in ("first", "second")}
        (right,), (wrong,) = (
            one_by_one(smollm2, t) for t in (prompt.answers, prompt.wrong_answers)
        )
        pronoun = spell(smollm2, prompt, "pronoun").strip()
        own, other = (
            (professions.HERS, professions.HIS)
            if pronoun == "She"
            else (professions.HIS, professions.HERS)
        )
        assert right.strip() in own and wrong.strip() in other
        assert {*words.values()} == {right.strip(), wrong.strip()}
        kinds.update([(pronoun, words["first"] == right.strip())])
    # Either pronoun, and either profession first, as often.
    assert set(kinds.values()) == {15} and len(kinds) == 4


def test_pronouns_of_other_lengths(pairs_of, at):
    """For mini She is two tokens and He is one, so that names stand in for them."""
    for prompt in pairs_of("pronouns").prompts:
        assert changed(prompt, "pronoun") == where(prompt, "pronoun")
        assert {at(prompt, "pronoun"), at(prompt, "pronoun", "pronoun")} == {" Mary", " John"}


def test_professions_are_of_one_kind_and_follow_an_a():
    assert not {*professions.HERS} & {*professions.HIS}
    assert not [word for word in (*professions.HERS, *professions.HIS) if word[0] in "aeiou"]


# Facts that SmolLM2 knows


@pytest.fixture(scope="module")
def known() -> list[facts.FactPair]:
    return facts.read(facts.SMOLLM2_FACTS)


def test_the_facts_of_smollm2_are_many_and_sound(known):
    """Each sentence comes once, and no relation makes up more than a tenth of the pairs."""
    assert len(known) >= 145
    sentences = [sentence for pair in known for sentence in pair.sentences]
    assert len(set(sentences)) == len(sentences)
    counts = Counter(pair.category for pair in known)
    assert len(counts) >= 10
    assert max(counts.values()) <= len(known) / 10
    for pair in known:
        assert pair.phrasing == 0
        assert pair.answers[0] != pair.answers[1]
        assert pair.sentences[0].replace(*pair.subjects) == pair.sentences[1]
        for sentence, answer in zip(pair.sentences, pair.answers, strict=True):
            assert answer.strip().lower() not in sentence.lower()


def test_the_facts_of_smollm2_fit_its_tokens(known, smollm2):
    """Subjects of two tokens or more, in the same places of both sentences."""
    pairs = pl.tasks.factual_recall(smollm2, n=2 * len(known))
    assert pairs.settings["refused"] == 0
    content = facts.SMOLLM2_FACTS.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    assert pairs.settings["facts"] == f"paired_facts_smollm2.json sha256:{digest}"
    sides = {prompt.text: prompt for prompt in pairs.prompts}
    for pair, entry in zip(known, json.loads(content), strict=True):
        one, other = (sides[sentence] for sentence in pair.sentences)
        assert one.positions == other.positions
        assert len(one.positions["subject"]) >= 2
        assert (one.corrupted["subject"], other.corrupted["subject"]) == (other.clean, one.clean)
        assert (one.answers, one.wrong_answers) == (other.wrong_answers, other.answers)
        assert entry["length"] == len(one.clean)


@torch.no_grad()
def test_smollm2_knows_its_facts(known, smollm2):
    """In both directions; of each relation the first two pairs."""
    counts: Counter[str] = Counter()
    some = [pair for pair in known if counts.update([pair.category]) or counts[pair.category] <= 2]
    pairs = pl.tasks.factual_recall(smollm2, n=2 * len(some), facts=some)
    for _, group in pairs.by_length():
        assert torch.equal(smollm2(group.clean_tokens)[:, -1].argmax(-1), group.answers)


def test_the_facts_file_can_be_chosen(mini, smollm2):
    """By default it is the one for the model's tokens, whatever the model is called."""
    assert facts.own_file(mini) == facts.PAIRED_FACTS
    assert facts.own_file(smollm2) == facts.SMOLLM2_FACTS
    drawn = pl.tasks.factual_recall(smollm2, n=10, path=str(facts.PAIRED_FACTS))
    assert drawn.settings["facts"].startswith("paired_facts.json sha256:")
    assert drawn.settings["facts"] == pl.tasks.factual_recall(mini, n=1).settings["facts"]


@pytest.mark.parametrize("task", pl.tasks.__all__)
def test_what_is_no_model_is_refused(task):
    with pytest.raises(pl.PatchlibError, match="a str was given as the model"):
        getattr(pl.tasks, task)("gpt2")

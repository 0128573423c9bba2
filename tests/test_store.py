"""Stored sweeps: served where everything agrees, computed where anything differs."""

import json
import random
from itertools import product

import pytest
import torch
import xarray as xr

import patchlib as pl
from patchlib import PatchlibError
from patchlib.methods.circuit import criteria
from patchlib.methods.interactions import joint
from patchlib.paper import sweeps
from patchlib.patching import store

WHOLE = {"keep_prompts": True, "keep_draws": True, "progress": False, "recompute": True}
NOISE = pl.GN("S2", draws=3)


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """A function that stores one sweep of mini in a store of its own."""
    monkeypatch.setattr(store, "STORED", tmp_path)

    def keep(model, pairs, method=pl.patch, **settings):
        fx = method(model, pairs, **settings, **WHOLE)
        store.keep(tmp_path / "mini" / "some.nc", model, pairs, fx)

    return keep


@pytest.fixture
def own_mini():
    """A model of the test's own, whose weights may be changed."""
    return pl.load_model("mini")


def both(model, pairs, method=pl.patch, **settings):
    """One request twice: by way of the store, and computed."""
    asked = method(model, pairs, progress=False, **settings)
    fresh = method(model, pairs, progress=False, recompute=True, **settings)
    assert "stored" not in fresh.attrs
    assert {name: asked.attrs[name] for name in fresh.attrs} == fresh.attrs
    xr.testing.assert_allclose(asked, fresh, rtol=1e-3, atol=1e-5)
    return asked


REQUESTS = {
    "all of it": ({"corruption": NOISE}, {"corruption": NOISE}),
    "fewer draws and heads": (
        {"corruption": NOISE},
        {"corruption": pl.GN("S2", draws=2), "heads": ["4.6", "0.1"]},
    ),
    "one window of several": (
        {"component": "mlp", "window": [1, 3, 4], "before": [0, 1, 2], "positions": ["S2", "last"]},
        {"component": "mlp", "window": 4, "before": 2, "positions": "last"},
    ),
    "numbered positions": (
        {"component": "mlp", "positions": "each"},
        {"component": "mlp", "positions": [9, 3], "layers": [5, 2]},
    ),
    "noising, one metric": ({"direction": "noise"}, {"direction": "noise", "metrics": "kl"}),
}


def test_which_prompts_are_answered_is_stored(mini, stored, monkeypatch):
    drawn = pl.tasks.arithmetic(mini, n=60, operator="-")
    measured = pl.keep_answered(mini, drawn)
    assert 0 < measured.settings["dropped"] < 60
    stored(mini, measured, component="mlp", corruption=pl.STR("X3+Y3"), positions="last")
    fewer = pl.keep_answered(mini, drawn[:11])  # of which nothing is stored
    assert len(fewer) + fewer.settings["dropped"] == 11
    monkeypatch.setattr("patchlib.measure.unpatched.run_with_edits", None)
    assert pl.keep_answered(mini, drawn) == measured
    with pytest.raises(TypeError):
        pl.keep_answered(mini, drawn, recompute=True)


KEPT = [{}, {"keep_prompts": True}, {"keep_draws": True}]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_for_a_part_is_served(mini, stored, name):
    there, asked = REQUESTS[name]
    pairs = pl.tasks.ioi(mini, n=4)
    stored(mini, pairs, **{"corruption": pl.STR("S2")} | there)
    asked = {"corruption": pl.STR("S2")} | asked
    # Effects are normalised over the prompts that are asked for.
    for some, kept in product((pairs, pairs[[3, 1]]), KEPT):
        fx = both(mini, some, **asked | kept)
        assert fx.attrs["stored"].endswith(f"torch {torch.__version__}")


SETS = ["4.1", "mlp3", ["5.0", "5.1"]]
STORED_METHODS = {
    "ablation": (
        {"method": pl.ablate, "component": "mlp", "with_": "resample"},
        {"method": pl.ablate, "component": "mlp", "with_": "resample", "layers": [6, 2]},
    ),
    "ablation of heads": (
        {"method": pl.ablate, "with_": "mean", "positions": ["S2", "last"]},
        {"method": pl.ablate, "with_": "mean", "heads": ["4.6"], "positions": "last"},
    ),
    "another source": (
        {"source": "mean", "component": "attn", "corruption": NOISE},
        {"source": "mean", "component": "attn", "corruption": pl.GN("S2", draws=2)},
    ),
    "paths": (
        {"method": pl.path_patch, "senders": "head", "receivers": "q4.1, v5.0"},
        {"method": pl.path_patch, "senders": "head", "receivers": ["q4.1", "v5.0"]},
    ),
    "paths of some": (
        {"method": pl.path_patch, "senders": ["3.1", "mlp2"], "receivers": "logits"},
        {"method": pl.path_patch, "senders": ["3.1", "mlp2"], "receivers": "logits"},
    ),
    "direct effects": (
        {"method": pl.path_patch, "senders": "mlp", "receivers": "logits", "mlps": "freeze"},
        {"method": pl.direct_effect, "senders": "mlp", "metrics": "prob"},
    ),
    "a circuit": (
        {"method": criteria, "circuit": {"A": ["4.1", "3.1"], "B": "5.0"}, "with_": "mean"},
        {"method": criteria, "circuit": {"A": ["4.1"]}, "with_": "mean", "draws": 0},
    ),
    "pairs in one direction": (
        {"method": joint, "parts": SETS, "direction": "noise"},
        {"method": joint, "parts": [SETS[2], SETS[0]], "direction": "noise"},
    ),
}


@pytest.mark.parametrize("name", STORED_METHODS)
def test_other_methods_are_served(mini, stored, name):
    there, asked = STORED_METHODS[name]
    pairs = pl.tasks.ioi(mini, n=4)
    sources = {"mean": pl.Mean(pairs), "resample": pl.Resample(pairs, draws=2)}
    there, asked = (
        {key: sources.get(value, value) if isinstance(value, str) else value for key, value in each}
        for each in (there.items(), asked.items())
    )
    if there.get("method") not in (pl.ablate, criteria):
        there, asked = ({"corruption": pl.STR("S2")} | each for each in (there, asked))
    stored(mini, pairs, **there)
    for some, kept in product((pairs, pairs[[3, 1]]), KEPT):
        assert "stored" in both(mini, some, **asked | kept).attrs


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_interactions_read_what_is_stored_of_a_direction(mini, stored, monkeypatch, direction):
    pairs, options = pl.tasks.ioi(mini, n=6), {"corruption": pl.STR("S2")}
    stored(mini, pairs, joint, parts=SETS, direction=direction, **options)
    rows = []
    fx = pl.interactions(
        mini, pairs, SETS, progress=lambda done, total: rows.append(total), **options
    )
    # The three sets alone and in pairs, in the other direction alone.
    assert set(rows) == {6 * 6} and "stored" in fx.attrs
    both(mini, pairs, pl.interactions, parts=SETS, **options)


OTHER_METHODS = {
    "ablation": (
        {"method": pl.ablate, "with_": "mean"},
        [
            {"method": pl.ablate, "with_": "zeros"},
            {"method": pl.ablate, "with_": "mean of fewer"},
            {
                "method": pl.patch,
                "corruption": pl.STR("S2"),
                "source": "mean",
                "direction": "noise",
            },
        ],
    ),
    "paths": (
        {"method": pl.path_patch, "senders": "head", "receivers": "q4.1"},
        [
            {"method": pl.path_patch, "senders": "head", "receivers": "q4.2"},
            {"method": pl.path_patch, "senders": "head", "receivers": "q4.1", "mlps": "freeze"},
            {"method": pl.path_patch, "senders": "mlp", "receivers": "q4.1"},
            {"method": pl.path_patch, "senders": ["4.1"], "receivers": "q4.1"},
            {"method": pl.direct_effect},
            {"method": pl.patch},
        ],
    ),
    "pairs": (
        {"method": joint, "parts": ["4.1", "5.0"], "direction": "noise"},
        [
            {"method": joint, "parts": ["4.1", "5.0"], "direction": "denoise"},
            {"method": joint, "parts": ["4.1", "5.0"], "direction": "noise", "activation": "q"},
        ],
    ),
}


@pytest.mark.parametrize("name", OTHER_METHODS)
def test_other_settings_of_other_methods_are_computed(mini, stored, name):
    there, others = OTHER_METHODS[name]
    pairs = pl.tasks.ioi(mini, n=3)
    sources = {"mean": pl.Mean(), "zeros": pl.Zero(), "mean of fewer": pl.Mean(pairs[:2])}
    for number, given in enumerate((there, *others)):
        settings = {
            key: sources.get(value, value) if isinstance(value, str) else value
            for key, value in given.items()
        }
        if settings["method"] is not pl.ablate:
            settings["corruption"] = pl.STR("S2")
        if not number:
            stored(mini, pairs, **settings)
        method = settings.pop("method")
        assert ("stored" in method(mini, pairs, progress=False, **settings).attrs) == (not number)


def test_a_mean_over_the_prompts_is_not_one_over_some_of_them(mini, stored):
    pairs = pl.tasks.ioi(mini, n=4)
    stored(mini, pairs, pl.ablate, component="mlp", with_=pl.Mean())
    served = [
        "stored" in pl.ablate(mini, some, "mlp", with_=source, progress=False).attrs
        for some, source in (
            (pairs, pl.Mean()),
            (pairs, pl.Mean(pairs)),
            (pairs[:2], pl.Mean(pairs)),
            (pairs[:2], pl.Mean()),
        )
    ]
    assert served == [True, True, True, False]


def test_draws_of_prompts_beside_noise(mini, stored):
    """Each draw of prompts had a draw of the noise of its own, or all of them had one."""
    pairs = pl.tasks.ioi(mini, n=4)
    options = {"component": "mlp", "source": pl.Resample(pairs, draws=3)}
    stored(mini, pairs, corruption=NOISE, **options)
    assert "stored" in both(mini, pairs, corruption=NOISE, **options).attrs
    fx = pl.patch(mini, pairs, corruption=pl.GN("S2"), progress=False, **options)
    assert "stored" not in fx.attrs


def test_what_is_missing_is_computed_and_the_rest_is_not(mini, stored, monkeypatch):
    stored(mini, pl.tasks.ioi(mini, n=4), corruption=NOISE)
    more = pl.tasks.ioi(mini, n=6)
    both(mini, more, corruption=pl.GN("S2", draws=4))
    rows = []
    pl.patch(mini, more, corruption=NOISE, progress=lambda done, total: rows.append(total))
    # Two prompts that are not stored, three draws, 64 heads.
    assert set(rows) == {2 * 3 * 64}


def test_no_forward_pass_is_needed_where_all_is_stored(mini, stored, monkeypatch):
    pairs = pl.tasks.ioi(mini, n=3)
    stored(mini, pairs, corruption=NOISE)
    monkeypatch.setattr(type(mini), "forward", lambda *given, **named: pytest.fail("was run"))
    pl.patch(mini, pairs, corruption=NOISE)


@pytest.mark.parametrize(
    "other",
    [
        {"corruption": pl.GN("S2", draws=3, seed=1)},
        {"corruption": pl.GN("S2", draws=3, scale=2)},
        {"corruption": pl.GN("S1", draws=3)},
        {"corruption": pl.STR("S2")},
        {"direction": "noise"},
        {"component": "q"},
        {"positions": "last"},
        {"source": pl.Zero()},
        {"metrics": "accuracy"},
        {"metrics": pl.Metric("own", "own", lambda logits, r, wrong, source: logits[..., 0])},
        {"engine": "hooks"},
    ],
    # Not their text: a function's holds its address, which differs between processes.
    ids=lambda other: "-".join(other),
)
def test_other_settings_are_computed(mini, stored, other):
    pairs = pl.tasks.ioi(mini, n=2)
    stored(mini, pairs, corruption=NOISE)
    fx = pl.patch(mini, pairs, progress=False, **{"corruption": NOISE} | other)
    assert "stored" not in fx.attrs


def test_another_answer_is_another_prompt(mini, stored):
    pairs = pl.tasks.ioi(mini, n=2)
    stored(mini, pairs, corruption=NOISE)
    swapped = pl.PromptPairs(
        pairs.task,
        tuple(
            type(one)(
                one.text, one.clean, one.corrupted, one.wrong_answers, one.answers, one.positions
            )
            for one in pairs.prompts
        ),
        pairs.settings,
    )
    assert "stored" not in pl.patch(mini, swapped, corruption=NOISE, progress=False).attrs


def test_changed_weights_configuration_and_hooks_are_computed(own_mini, stored):
    pairs = pl.tasks.ioi(own_mini, n=2)
    stored(own_mini, pairs, corruption=NOISE)

    def served():
        fx = pl.patch(own_mini, pairs, corruption=NOISE, progress=False)
        return "stored" in fx.attrs

    assert served()
    handle = own_mini.original_model.register_forward_hook(lambda *given: None)
    assert not served()
    handle.remove()
    weight = next(own_mini.parameters())
    with torch.no_grad():
        weight[0, 0] += 1
    assert not served()
    with torch.no_grad():
        weight[0, 0] -= 1
    own_mini.original_model.config.layer_norm_epsilon = 0.1
    assert not served()


def test_what_is_no_whole_sweep_is_not_stored(mini, tmp_path):
    pairs = pl.tasks.ioi(mini, n=2)
    means = pl.patch(mini, pairs, corruption=NOISE, progress=False)
    with pytest.raises(PatchlibError, match="keep_prompts=True"):
        store.keep(tmp_path / "some.nc", mini, pairs, means)
    some = pl.patch(mini, pairs, heads=["1.0"], corruption=NOISE, **WHOLE)
    with pytest.raises(PatchlibError, match="without heads="):
        store.keep(tmp_path / "some.nc", mini, pairs, some)
    whole = pl.patch(mini, pairs, corruption=NOISE, **WHOLE)
    with pytest.raises(PatchlibError, match="other prompts"):
        store.keep(tmp_path / "some.nc", mini, pl.tasks.ioi(mini, n=2, seed=1), whole)


def test_a_sweep_that_is_not_listed():
    with pytest.raises(PatchlibError, match=r"no sweep 'x' of mini: there are none"):
        sweeps.request(pl.load_model("mini"), "x")


@pytest.fixture(scope="session")
def smollm2():
    """The model whose sweeps are shipped."""
    return pl.load_model("smollm2")


@pytest.fixture(scope="module")
def answered_once():
    """Sweeps of one task keep the same prompts: the model answers them once, and from no file."""
    kept, keep_answered = {}, sweeps.keep_answered

    def keep(model, pairs, recompute):
        if pairs.fingerprint not in kept:
            kept[pairs.fingerprint] = keep_answered(model, pairs, recompute=recompute)
        return kept[pairs.fingerprint]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sweeps, "keep_answered", keep)
        yield


SHIPPED = sorted(path.stem for path in (store.STORED / "smollm2").glob("*.nc"))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.usefixtures("answered_once")
def test_a_sample_of_a_shipped_sweep_is_what_is_computed(smollm2, name):
    """Another sample at every run; its seed is in the message."""
    seed = random.SystemRandom().randrange(10**6)
    assert sweeps.difference(smollm2, name, seed) < sweeps.TOLERANCE, f"seed {seed}"


def test_shipped_sweeps_are_listed_and_small():
    files = [*(store.STORED / "smollm2").glob("*.nc")]
    assert {path.stem for path in files} <= {*sweeps.listed("smollm2")}
    assert sum(path.stat().st_size for path in files) < 40e6


def test_a_sweep_grows_with_its_list_and_says_how_long_it_took(mini, monkeypatch, tmp_path):
    monkeypatch.setattr(store, "STORED", tmp_path)
    monkeypatch.setattr(sweeps, "BUILD", tmp_path / "build")
    (tmp_path / "mini").mkdir()
    settings = {"task": "ioi", "component": "mlp", "corruption": "STR", "site": "S2"}
    rows, seconds = [], []
    for n in (2, 2, 3):
        listed = {"some": settings | {"n": n}}
        (tmp_path / "mini.json").write_text(json.dumps(listed), encoding="utf-8")
        with xr.open_dataset(sweeps.make(mini, "some")) as data:
            rows.append(data.sizes["prompt"])
            seconds.append(data.attrs["seconds"])
    assert rows == [2, 2, 3] and seconds[0] == seconds[1] <= seconds[2]
    fx = pl.patch(mini, pl.tasks.ioi(mini, n=3), "mlp", corruption=pl.STR("S2"), progress=False)
    assert fx.attrs["stored"].endswith(f", in {seconds[2]} s")
    assert sweeps.difference(mini, "some") < sweeps.TOLERANCE


LISTED = {
    "ablation": {
        "method": "ablate",
        "component": "head",
        "with_": {"kind": "Resample", "draws": 2, "prompts": {"task": "ioi", "n": 9}},
    },
    "zeros": {"method": "ablate", "component": "mlp", "layers": [3], "with_": {"kind": "Zero"}},
    "mean": {
        "component": "mlp",
        "source": {"kind": "Mean", "by": "roles"},
        "corruption": "GN",
        "site": "S2",
        "draws": 2,
    },
    "paths": {
        "method": "path_patch",
        "senders": "head",
        "receivers": ["q4.1"],
        "corruption": "STR",
        "site": "ABC",
        "direction": "noise",
    },
    "direct": {"method": "direct_effect", "senders": "mlp", "corruption": "STR", "site": "S2"},
    "circuit": {
        "method": "criteria",
        "circuit": {"A": ["4.1", "3.1"], "B": ["5.0"]},
        "with_": {"kind": "Mean", "by": "roles", "site": "ABC"},
        "draws": 2,
    },
    "pairs": {
        "method": "joint",
        "parts": SETS,
        "corruption": "STR",
        "site": "S2",
        "direction": "noise",
    },
}


@pytest.mark.parametrize("name", LISTED)
def test_every_method_can_be_listed(mini, monkeypatch, tmp_path, name):
    monkeypatch.setattr(store, "STORED", tmp_path)
    monkeypatch.setattr(sweeps, "BUILD", tmp_path / "build")
    (tmp_path / "mini").mkdir()
    listed = {"some": {"task": "ioi", "n": 4} | LISTED[name]}
    (tmp_path / "mini.json").write_text(json.dumps(listed), encoding="utf-8")
    written = sweeps.make(mini, "some").stat().st_mtime_ns
    assert sweeps.make(mini, "some").stat().st_mtime_ns == written  # It is complete.
    for seed in (None, 3):
        assert sweeps.difference(mini, "some", seed) < sweeps.TOLERANCE

"""One choice changed at a time: what is shared, lost and gained."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

import patchlib as pl
from patchlib.show.choices import Choice, Choices, Study


@pytest.fixture(scope="module")
def study(mini) -> Study:
    return Study(mini, pl.tasks.ioi(mini, n=20), draws=2)


def test_a_change_is_one_setting():
    start = Choice("S2")
    changes = start.changes(["S2", "ABC"], [1, 3])
    assert list(changes) == [
        "corruption: STR → GN",
        "metric: logit difference → probability",
        "metric: logit difference → KL divergence",
        "site: S2 → ABC",
        "window: 1 → 3",
    ]
    assert str(changes["window: 1 → 3"]) == "STR at S2, logit difference, window 3"
    for after in changes.values():
        differ = [name for name in vars(start) if getattr(start, name) != getattr(after, name)]
        assert len(differ) == 1


def test_the_table_counts_what_detection_finds(mini, study):
    table = study.table(Choice("S2"), ["ABC"])
    assert len(table) == 1 + len(Choice("S2").changes(["ABC"]))
    assert table.iloc[0][["lost", "gained"]].tolist() == ["none", "none"]
    fx = pl.patch(mini, pl.tasks.ioi(mini, n=20), corruption=pl.GN("S2", draws=2), progress=False)
    found = pl.detect(fx)
    found = found[found.metric == "logit_diff"]
    expected = {"+" + head for head in found.heads.iloc[0]}
    expected |= {"-" + head for head in found.heads.iloc[1]}
    row = table[table.change == "corruption: STR → GN"].iloc[0]
    listed = {
        head for name in ("shared", "gained") for head in row[name].split(", ") if head != "none"
    }
    assert listed == expected
    assert row.detected == len(expected)


def test_shared_lost_and_gained_are_all_there_is(study):
    before, after = Choice("S2"), Choice("S1+IO")
    moved = study.compare(before, after)
    assert sorted(moved["shared"] + moved["lost"]) == sorted(study.detected(before))
    assert sorted(moved["shared"] + moved["gained"]) == sorted(study.detected(after))
    assert study.compare(before, before)["lost"] == []


def test_what_lies_beyond_two_standard_deviations_is_detected(study):
    choice = Choice("S2", "GN", "kl")
    standard = study.standard(choice)
    beyond = standard.where(abs(standard) > 2).to_series().dropna()
    assert {f"{layer}.{head}" for layer, head in beyond.index} == {
        head[1:] for head in study.detected(choice)
    }


def test_windows_of_layers(tiny_gpt2):
    pairs = pl.tasks.ioi(tiny_gpt2, n=3)
    study = Study(tiny_gpt2, pairs, "mlp", "S2", windows=(1, 3))
    fx = study.fx(Choice("S2", window=3))
    alone = pl.patch(
        tiny_gpt2, pairs, "mlp", corruption=pl.STR("S2"), positions="S2", window=3, progress=False
    )
    expected = alone.effect.sel(metric=["logit_diff"])
    np.testing.assert_allclose(fx.effect, expected, rtol=1e-4, atol=2e-5)
    assert fx.attrs["window"] == 3
    assert "window: 1 → 3" in study.table(Choice("S2")).change.tolist()
    assert study.figure(Choice("S2"), Choice("S2", window=3)).axes


def test_the_control_changes_the_picture(study):
    choices = Choices(study, Choice("S2"), ["ABC"], show=False)
    choices.control.value = "corruption: STR → GN"
    first = choices.figure
    assert first.axes[0].get_xlabel().startswith("effect, STR at S2, logit difference")
    assert first.axes[0].get_ylabel().startswith("effect, GN at S2, logit difference")
    assert choices.moved == study.compare(Choice("S2"), Choice("S2", "GN"))
    assert repr(choices) == "Choices(corruption: STR → GN)"
    choices.control.value = "site: S2 → ABC"
    assert choices.moved == study.compare(Choice("S2"), Choice("ABC"))
    assert choices.figure is not first
    assert choices.caption.startswith("site: S2 → ABC\nshared: ")
    choices.control.value = "corruption: STR → GN"
    assert choices.figure is first
    assert first.alt == (
        "Scatter plot: effects under GN at S2, logit difference, against those under STR at S2, "
        "logit difference."
    )


def test_it_opens_on_a_change_that_moves_a_list(mini, monkeypatch):
    """Of the metrics KL alone moves one; noise would be another sweep, and is not run."""
    study = Study(mini, pl.tasks.ioi(mini, n=4))
    lists = {"logit_diff": ["+4.6"], "prob": ["+4.6"], "kl": ["+4.6", "-5.1"]}
    monkeypatch.setattr(study, "detected", lambda choice: lists[choice.metric])
    sweeps = []
    fx = study.fx
    monkeypatch.setattr(study, "fx", lambda choice: sweeps.append(choice) or fx(choice))
    choices = Choices(study, Choice("S2"), ["ABC"], show=False)
    assert choices.control.value == "metric: logit difference → KL divergence"
    assert choices.moved == {"shared": ["+4.6"], "lost": [], "gained": ["-5.1"]}
    assert {(choice.corruption, choice.site) for choice in sweeps} <= {("STR", "S2")}
    lists["kl"] = ["+4.6"]
    still = Choices(study, Choice("S2"), show=False)
    assert still.control.value == "metric: logit difference → probability"


def test_a_start_that_cannot_be_patched_is_refused(study):
    with pytest.raises(pl.PatchlibError, match="no token replacement at 'nowhere'"):
        Choices(study, Choice("nowhere"), show=False)


def test_a_change_that_fails_is_reported(study):
    choices = Choices(study, Choice("S2"), ["nowhere"], show=False)
    assert choices.error == ""
    choices.control.value = "site: S2 → nowhere"
    assert "no token replacement at 'nowhere'" in choices.error
    assert choices.moved == {}
    assert choices.caption.startswith("site: S2 → nowhere\nno result: ")
    choices.control.value = choices.control.options[0]
    assert choices.error == ""


def test_what_makes_no_sense_is_refused(mini, study):
    pairs = pl.tasks.ioi(mini, n=2)
    with pytest.raises(pl.PatchlibError, match="each"):
        Study(mini, pairs, positions="each")
    with pytest.raises(pl.PatchlibError, match="odd windows"):
        Study(mini, pairs, "mlp", windows=[2])
    for wrong in (Choice("S2", metric="rank"), Choice("S2", window=3)):
        with pytest.raises(pl.PatchlibError, match="this study has"):
            study.fx(wrong)
    with pytest.raises(pl.PatchlibError, match="corruption='ZERO'"):
        study.fx(Choice("S2", corruption="ZERO"))


def test_heads_have_no_windows(mini):
    """Else one layer's heads would stand under the name of three."""
    with pytest.raises(pl.PatchlibError, match=r"windows=\[1, 3\] with component='head'"):
        Study(mini, pl.tasks.ioi(mini, n=2), windows=(1, 3))


@pytest.mark.parametrize(("component", "unit"), [("k", "kv_head"), ("q", "head")])
def test_heads_that_share_keys(tiny_folders, component, unit):
    """Their keys are not theirs alone, and are not called by their number."""
    model = pl.load_model(tiny_folders("llama"))
    study = Study(model, pl.tasks.ioi(model, n=4), component)
    found = pl.detect(study.fx(Choice("S2")))
    names = [head for heads in found.heads for head in heads]
    assert sorted(name[1:] for name in study.detected(Choice("S2"))) == sorted(names)
    assert all(name.startswith("kv") == (unit == "kv_head") for name in names)
    figure = study.figure(Choice("S2"), Choice("S2", metric="kl"))
    title = figure.axes[0].get_legend().get_title().get_text()
    assert title == {"kv_head": "key/value heads", "head": "heads"}[unit]
    with pytest.raises(pl.PatchlibError, match=f"windows=.*component='{component}'"):
        Study(model, pl.tasks.ioi(model, n=2), component, windows=(3,))


def test_a_study_of_one_wide_window_has_that_window(mini):
    pairs = pl.tasks.ioi(mini, n=2)
    study = Study(mini, pairs, "mlp", windows=(3,))
    fx = pl.patch(mini, pairs, "mlp", corruption=pl.STR("S2"), window=3, progress=False)
    mine = study.fx(Choice("S2", window=3)).effect
    np.testing.assert_allclose(mine, fx.effect.sel(metric=["logit_diff"]), atol=1e-6)


def test_each_head_stands_at_its_two_effects_in_the_colour_of_what_became_of_it(study):
    before, after = Choice("S2"), Choice("ABC")
    moved = study.compare(before, after)
    x, y = (study.standard(choice).values.ravel() for choice in (before, after))
    axes = study.figure(before, after).axes[0]
    drawn = {dots.get_label(): dots for dots in axes.collections}
    colours = {"shared": "#000000", "lost": "#d55e00", "gained": "#0072b2", "neither": "#bbbbbb"}
    assert {"lost", "gained", "neither"} <= set(drawn) <= set(colours)
    named = {kind: {head[1:] for head in heads} for kind, heads in moved.items()}
    everything = {f"{layer}.{head}" for layer in range(8) for head in range(8)}
    named["neither"] = everything - set().union(*named.values())
    for kind, dots in drawn.items():
        assert to_hex(dots.get_facecolor()[0]) == colours[kind]
        at = [8 * int(head[0]) + int(head[2]) for head in named[kind]]
        expected = sorted(zip(x[at], y[at], strict=True))
        np.testing.assert_allclose(sorted(map(tuple, dots.get_offsets())), expected)

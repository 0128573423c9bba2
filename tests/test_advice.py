"""Each caution where there is reason for it, with its numbers, and none where there is none."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

import patchlib as pl
from patchlib.paper import advice

SOUND = {"prob": (0.9, 0.5), "logit_diff": (6.0, -2.0), "kl": (0.0, 2.0)}


def result(
    baselines: dict[str, tuple[float, float]] = SOUND,
    site: str = "S2",
    corruption: str = "STR",
    n: int = 100,
    keep: bool = True,
    spread: float = 0.1,
    layers: dict[str, list[float]] | None = None,
    **attrs: object,
) -> xr.Dataset:
    """A result with one strong layer among eight, or with given effects."""
    metrics = list(baselines)
    effects = np.array([(layers or {}).get(name, [0.0] * 7 + [0.5]) for name in metrics])
    # Exactly the mean and, up to n - 1, the standard deviation that are asked for.
    wave = np.where(np.arange(n) % 2 == 0, 1.0, -1.0) if n % 2 == 0 else np.zeros(n)
    clean, corrupted = (
        np.array([baselines[name][run] for name in metrics])[:, None] + 0 * wave for run in (0, 1)
    )
    fx = xr.Dataset(
        {
            "effect": (("metric", "prompt", "layer"), effects[:, None] + spread * wave[:, None]),
            "clean": (("metric", "prompt"), clean),
            "corrupted": (("metric", "prompt"), corrupted + spread * wave),
        },
        coords={"metric": metrics, "layer": range(8)},
        attrs={
            "model": "m",
            "task": "ioi",
            "replacements": "S2, S1, IO, S1+IO, ABC",
            "n_prompts": n,
            "corruption": corruption,
            "site": site,
            "component": "mlp",
            "window": 1,
            "positions": "all",
            "direction": "denoise",
        }
        | attrs,
    )
    return fx if keep else fx.mean("prompt", keep_attrs=True)


def only(*experiments, **options) -> tuple[str, str]:
    """The one caution that applies, and because of what."""
    found = pl.advise(*experiments, **options)
    assert len(found) == 1, found.caution.tolist()
    return found.caution.item(), found.because.item()


def sound(**options) -> tuple[xr.Dataset, xr.Dataset]:
    return result(**options), result(site="ABC", **options)


def test_a_sound_study_gets_no_advice():
    for keep in (True, False):
        found = pl.advise(*sound(keep=keep))
        assert found.empty
        assert found.columns.tolist() == ["caution", "section", "because", "instead"]


def test_dicts_are_taken_apart():
    one, other = sound()
    assert pl.advise({"a": one, "b": {"c": other}}).empty


def test_noise_where_tokens_can_be_replaced():
    caution, because = only(result(), result(site="S1+IO", corruption="GN", draws=5))
    assert caution == "GN where tokens can be replaced"
    assert "GN at S1+IO, mlp" in because
    # The last token has no replacement.
    assert pl.advise(result(), result(site="last", corruption="GN", draws=5)).empty


def test_one_draw():
    caution, because = only(result(), result(site="last", corruption="GN", draws=1))
    assert caution == "one draw of the noise"
    assert "draws=1" in because


def test_probability_alone():
    alone = {"prob": SOUND["prob"]}
    assert only(*sound(baselines=alone))[0] == "probability alone"
    assert pl.advise(*sound(baselines=alone), result(site="S1")).empty


def test_the_floor_of_probability():
    """Mean and SD over eight layers, one of which is at -0.5: -0.0625 and 0.1654."""
    layers = {"prob": [0.0] * 7 + [-0.5]}
    low = SOUND | {"prob": (0.6, 0.2)}
    caution, because = only(*sound(baselines=low, layers=layers))
    assert caution == "probability cannot show negative effects"
    assert "P(r) of the corrupted run is 0.2, so no effect is below -0.2" in because
    assert "mean - 2 SD is -0.39: nothing can be detected as negative" in because
    some = SOUND | {"prob": (0.9, 0.45)}
    assert "there is little room" in only(*sound(baselines=some, layers=layers))[1]
    assert pl.advise(*sound(baselines=SOUND | {"prob": (0.9, 0.7)}, layers=layers)).empty


def test_the_ceiling_of_probability_when_noising():
    """Patched is the clean run, where a negative effect raises P(r), at most to 1."""
    layers = {"prob": [0.0] * 7 + [-0.5]}
    caution, because = only(*sound(layers=layers, direction="noise"))
    assert caution == "probability cannot show negative effects"
    assert "P(r) of the clean run is 0.9, so no effect is below -0.1" in because
    low = SOUND | {"prob": (0.35, 0.1)}
    assert pl.advise(*sound(baselines=low, layers=layers, direction="noise")).empty


def test_a_corruption_that_does_little():
    small = SOUND | {"prob": (0.6, 0.58)}
    caution, because = only(*sound(baselines=small))
    assert caution == "the corruption does little"
    assert "P(r) 0.60 clean, 0.58 corrupted" in because
    better = pl.advise(*sound(baselines=SOUND | {"logit_diff": (6.0, 11.0)}))
    assert better.caution.tolist() == ["the corruption does little"]


def test_a_normaliser_near_zero():
    near = SOUND | {"logit_diff": (6.0, 5.0)}
    caution, because = only(*sound(baselines=near))
    assert caution == "logit difference divided by almost nothing"
    assert "is 1.00, 17 % of LD_clean" in because
    # With the spread of single prompts it is not clearly there.
    unsure = result(SOUND | {"logit_diff": (6.0, 4.0)})
    wave = np.where(np.arange(100) % 2 == 0, 1.0, -1.0)
    unsure["corrupted"] = unsure.corrupted + xr.DataArray(8 * wave, dims="prompt")
    caution, because = only(unsure, result(site="ABC"))
    assert caution == "logit difference divided by almost nothing"
    assert "is 2.00 ± 0.81 (standard error)" in because


def test_windows_without_single_layers():
    caution, because = only(*sound(window=5))
    assert caution == "windows without single layers"
    assert "STR at S2, mlp, window 5" in because
    assert pl.advise(*sound(window=5), result()).empty
    assert pl.advise(*sound(window="1, 3, 5")).empty
    assert len(pl.advise(*sound(window=5), result(positions="last"))) == 1


def test_one_choice_of_corrupted_tokens():
    caution, because = only(result(), result(component="attn"))
    assert caution == "one choice of corrupted tokens"
    assert because == "all 2 experiments corrupt S2; ioi also has S1, IO, S1+IO, ABC"


def test_too_few_prompts():
    caution, because = only(*sound(n=10, keep=False))
    assert caution == "few prompts for the spread"
    assert "10 prompts, spread over prompts not kept" in because
    # The threshold of [0, ..., 0.5] is 0.0625 + 2 * 0.1654 = 0.393, which is 0.107 away.
    assert pl.advise(*sound(n=10, spread=0.1)).empty
    caution, because = only(*sound(n=10, spread=0.3, baselines={"logit_diff": (6.0, -2.0)}))
    assert caution == "few prompts for the spread"
    assert "0.5 ± 0.1 (standard error, 10 prompts), the threshold 0.39" in because
    assert pl.advise(*sound(n=400, spread=0.3)).empty


def test_a_corrupted_run_out_of_distribution(mini):
    everything = pl.tasks.ioi(mini, n=140)
    pairs, reference = everything[:40], everything[40:]
    experiments = {
        type(c).__name__: pl.patch(mini, pairs, corruption=c, progress=False)
        for c in (pl.STR("S2"), pl.GN("S2"))
    }
    far, near = (
        pl.ood(mini, pairs, corruption, reference=reference, positions=positions)
        for corruption, positions in ((pl.GN("S2"), ["S2", "last"]), (pl.STR("S2"), "S2"))
    )
    caution = "corrupted run out of distribution"
    found = pl.advise(experiments, ood=far).set_index("caution")
    assert "at S2 is" in found.because[caution] and "times as far" in found.because[caution]
    assert caution not in pl.advise(experiments, ood=near).caution.tolist()
    assert caution not in pl.advise(experiments).caution.tolist()
    with pytest.raises(pl.PatchlibError, match="measured for GN at S2"):
        pl.advise(experiments["STR"], ood=far)


def test_results_with_draws_heads_and_windows_are_read(mini):
    """Every form that pl.patch returns."""
    pairs = pl.tasks.ioi(mini, n=6)
    for component, options in (
        ("head", {"keep_draws": True, "keep_prompts": True}),
        ("mlp", {"window": [1, 3], "positions": ["S2", "last"], "keep_prompts": True}),
        ("attn", {"direction": "noise", "positions": "S2"}),
    ):
        corruption = pl.GN("S2", draws=2)
        fx = pl.patch(mini, pairs, component, corruption=corruption, progress=False, **options)
        assert "GN where tokens can be replaced" in pl.advise(fx).caution.tolist()
        assert not pl.advise(fx.sel(metric="prob")).empty


def test_the_replacements_are_those_of_the_prompts(mini):
    """Of any task, also one of your own."""
    pairs = dataclasses.replace(pl.tasks.ioi(mini, n=4), task="mine")
    fx = pl.patch(mini, pairs, "mlp", corruption=pl.GN("S1"), progress=False)
    found = pl.advise(fx).set_index("caution").because
    assert found["GN where tokens can be replaced"].endswith("mine has a replacement at S1")
    assert found["one choice of corrupted tokens"].endswith("mine also has S2, IO, S1+IO, ABC")
    prompts = [dataclasses.replace(prompt, corrupted={}) for prompt in pairs.prompts]
    none = dataclasses.replace(pairs, prompts=tuple(prompts))
    fx = pl.patch(mini, none, "mlp", corruption=pl.GN("S1"), progress=False)
    found = pl.advise(fx).set_index("caution").because
    assert "GN where tokens can be replaced" not in found
    assert found["one choice of corrupted tokens"] == "the only experiment corrupts S1"


def test_what_is_no_study_is_refused():
    fx = result()
    for wrong, message in (
        ((), "no experiment"),
        ((fx.effect,), "a DataArray is no result"),
        ((fx, 3), "a int is no result"),
        ((fx.drop_vars("clean"),), "no result"),
        ((fx.drop_attrs(),), "lost its corruption"),
        ((fx.isel(layer=0),), "metric or layer"),
        ((fx, result(task="docstring")), "docstring, ioi"),
        ((fx, result(model="other")), "the models m, other"),
    ):
        with pytest.raises(pl.PatchlibError, match=message):
            pl.advise(*wrong)
    with pytest.raises(pl.PatchlibError, match=r"give a result of pl\.ood"):
        pl.advise(fx, ood=fx)


def at_limit(name: str, value: float) -> tuple[xr.Dataset, ...]:
    """A study in which one number alone decides."""
    if name == "FLOOR":
        # The mean - 2 SD of these effects is -0.0625 - 2 * 0.1654 = -0.3932.
        layers = {"prob": [0.0] * 7 + [-0.5]}
        return sound(baselines=SOUND | {"prob": (0.95, value * 0.3932)}, layers=layers)
    if name == "DEGRADATION":
        return sound(baselines=SOUND | {"prob": (0.6, 0.6 * (1 - value))})
    if name == "NORMALISER":
        return sound(baselines=SOUND | {"logit_diff": (6.0, 6 - 6 * value)})
    return sound(n=round(value), keep=False)


@pytest.mark.parametrize(
    ("name", "below", "above", "caution"),
    [
        ("FLOOR", 1.4, 1.6, "probability cannot show negative effects"),
        ("DEGRADATION", 0.09, 0.11, "the corruption does little"),
        ("NORMALISER", 0.19, 0.21, "logit difference divided by almost nothing"),
        ("PROMPTS", 29, 30, "few prompts for the spread"),
    ],
)
def test_each_limit_is_where_it_is_said_to_be(name, below, above, caution):
    assert below < getattr(advice, name) <= above
    assert only(*at_limit(name, below))[0] == caution
    assert pl.advise(*at_limit(name, above)).empty


def test_the_distance_is_the_largest_ratio_to_the_control():
    far = xr.Dataset(
        {
            "clean": (("layer", "prompt"), [[1.0, 1.0], [0.5, 1.5], [1.0, 1.0]]),
            "corrupted": (("layer", "draw", "prompt"), [[[1.0, 2.0]], [[2.5, 3.5]], [[2.0, 2.2]]]),
            "shrinkage": ("layer", [0.1] * 3),
        },
        coords={"layer": range(3), "position": "S2"},
        attrs=result().attrs | {"activation": "resid_post"},
    )
    caution, because = only(*sound(), ood=far)
    assert caution == "corrupted run out of distribution"
    assert because == (
        "STR at S2: resid_post of layer 1 at S2 is 3.0 times as far as the control (more than 2 in "
        "2 of 3 places)"
    )
    assert pl.advise(*sound(), ood=far.assign(corrupted=far.corrupted / 1.5)).empty

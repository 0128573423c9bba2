"""A sweep with a checkpoint can be stopped at any moment and gives the same numbers."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.prompts.pairs import PromptPairs
from patchlib.sweep import patching

OPTIONS: dict[str, Any] = {"corruption": pl.GN("S1+IO", draws=2), "batch_size": 2}


@pytest.fixture
def pairs(tiny_gpt2: TransformerBridge) -> PromptPairs:
    return pl.tasks.ioi(tiny_gpt2, n=5)


class _Stopped(Exception):
    pass


def stop_after(rows: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= rows:
            raise _Stopped

    return progress


@pytest.mark.parametrize("engine", patching.ENGINES)
@pytest.mark.parametrize("component", ["head", "mlp"])
def test_stopped_and_taken_up_again(tiny_gpt2, pairs, tmp_path, engine, component, monkeypatch):
    """What was finished is not run again, and the result is that of one unbroken sweep."""
    options = OPTIONS | {"engine": engine}
    whole = pl.patch(tiny_gpt2, pairs, component, progress=False, **options)
    seen: list[int] = []
    for rows in (7, 20):
        with pytest.raises(_Stopped):
            pl.patch(
                tiny_gpt2,
                pairs,
                component,
                checkpoint=tmp_path / "sweep",
                progress=stop_after(rows),
                **options,
            )
    kept = sum(
        piece.patched.sizes["instance"] * piece.patched.sizes["cell"]
        for piece in map(xr.load_dataset, (tmp_path / "sweep").glob("*.nc"))
    )
    assert 20 <= kept <= 22
    options["progress"] = lambda done, total: seen.append(done)
    again = pl.patch(tiny_gpt2, pairs, component, checkpoint=tmp_path / "sweep", **options)
    # The finished rows are counted first, and the rest is run.
    assert (kept in seen, seen[-1]) == (True, 10 * whole.effect.isel(metric=0).size)
    for name in ("patched", "clean", "corrupted", "effect", "effect_sd"):
        xr.testing.assert_allclose(again[name], whole[name], rtol=0, atol=1e-5)
    # Now everything is on disk: no model is run any more.
    monkeypatch.setitem(patching.ENGINES, engine, None)
    options["progress"] = False
    xr.testing.assert_identical(
        pl.patch(tiny_gpt2, pairs, component, checkpoint=tmp_path / "sweep", **options), again
    )


def test_prompts_of_several_lengths(tiny_gpt2, tmp_path):
    """Each group's passes find their own prompts again."""
    pairs = pl.tasks.factual_recall(tiny_gpt2, n=9)
    options = {"corruption": pl.STR("subject"), "positions": "last_subject", "batch_size": 3}
    whole = pl.patch(tiny_gpt2, pairs, "mlp", keep_prompts=True, progress=False, **options)
    options |= {"checkpoint": tmp_path, "keep_prompts": True}
    with pytest.raises(_Stopped):
        pl.patch(tiny_gpt2, pairs, "mlp", progress=stop_after(10), **options)
    again = pl.patch(tiny_gpt2, pairs, "mlp", progress=False, **options)
    xr.testing.assert_allclose(again.patched, whole.patched, rtol=0, atol=1e-5)


def test_a_killed_process_loses_nothing_finished(tiny_folders, tmp_path):
    """SIGKILL leaves no time to tidy up."""
    folder = tiny_folders("gpt2")
    script = f"""
        import os, signal
        import patchlib as pl
        model = pl.load_model({str(folder)!r})
        pairs = pl.tasks.ioi(model, n=4)
        def progress(done, total):
            print(done, flush=True)
            if done >= 12:
                os.kill(os.getpid(), signal.SIGKILL)
        pl.patch(model, pairs, "head", corruption=pl.STR("S2"), batch_size=3,
                 checkpoint={str(tmp_path / "sweep")!r}, progress=progress)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    # A write that was cut off, as a kill in its middle would leave it.
    (tmp_path / "sweep" / "0123.partial").write_bytes(b"half")
    model = pl.load_model(folder)
    pairs = pl.tasks.ioi(model, n=4)
    rows: list[int] = []
    options = {"corruption": pl.STR("S2"), "batch_size": 3}
    fx = pl.patch(
        model,
        pairs,
        checkpoint=tmp_path / "sweep",
        progress=lambda done, total: rows.append(done),
        **options,
    )
    assert int(ended.stdout.split()[-1]) in rows
    whole = pl.patch(model, pairs, progress=False, **options)
    xr.testing.assert_allclose(fx.patched, whole.patched, rtol=0, atol=1e-5)


def test_other_settings_are_refused_by_name(tiny_gpt2, pairs, tmp_path):
    """Numbers of two sweeps are never mixed."""
    options = {"corruption": pl.STR("S2"), "checkpoint": tmp_path, "progress": False}
    first = pl.patch(tiny_gpt2, pairs, "mlp", **options)
    changes = {
        r"window \(1 there, 3 here\)": {"window": 3},
        r"direction \(denoise there, noise here\)": {"direction": "noise"},
        r"site \(S2 there, IO here\)": {"corruption": pl.STR("IO")},
        r"metrics \(logit_diff, prob, kl there, prob here\)": {"metrics": ["prob"]},
        r"corruption \(STR there, GN here\).*scale \(absent there, 3.0 here\)": {
            "corruption": pl.GN("S2")
        },
        r"engine \(fast there, hooks here\)": {"engine": "hooks"},
    }
    for message, change in changes.items():
        with pytest.raises(pl.PatchlibError, match=message):
            pl.patch(tiny_gpt2, pairs, "mlp", **options | change)
    with pytest.raises(pl.PatchlibError, match=r"component \(mlp there, attn here\)"):
        pl.patch(tiny_gpt2, pairs, "attn", **options)
    other = pl.tasks.ioi(tiny_gpt2, n=5, seed=1)
    with pytest.raises(pl.PatchlibError, match=r"prompts \(sha256:.* there, sha256:.* here\)"):
        pl.patch(tiny_gpt2, other, "mlp", **options)
    # How it is run and what is kept of it changes no number.
    again = pl.patch(tiny_gpt2, pairs, "mlp", batch_size=1, keep_prompts=True, **options)
    xr.testing.assert_allclose(again.effect.mean("prompt"), first.effect)


def test_other_weights_are_refused(tiny_folders, pairs, tmp_path):
    """A model that was trained on meanwhile is another model, under the same name."""
    model = pl.load_model(tiny_folders("gpt2"))
    options = {"corruption": pl.STR("S2"), "checkpoint": tmp_path, "progress": False}
    pl.patch(model, pairs, "mlp", **options)
    with torch.no_grad():
        model.blocks[2].mlp.out.original_component.bias[0] += 1
    with pytest.raises(pl.PatchlibError, match=r"weights \(sha256:.* there, sha256:.* here\)"):
        pl.patch(model, pairs, "mlp", **options)


def test_a_folder_with_other_files(tiny_gpt2, pairs, tmp_path: Path):
    """Nothing is written among files that are not a sweep's."""
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(pl.PatchlibError, match="holds other files"):
        pl.patch(tiny_gpt2, pairs, "mlp", corruption=pl.STR("S2"), checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_settings_can_be_read(tiny_gpt2, pairs, tmp_path: Path):
    """Beside the passes lies what they were made with."""
    pl.patch(tiny_gpt2, pairs, "mlp", corruption=pl.STR("S2"), checkpoint=tmp_path, progress=False)
    settings = json.loads((tmp_path / "settings.json").read_text())
    expected = {"task": "ioi", "corruption": "STR", "site": "S2", "dtype": "torch.float32"}
    assert settings.items() >= expected.items()


def test_a_kill_before_the_settings_had_their_name(tiny_gpt2, pairs, tmp_path: Path):
    (tmp_path / "settings.partial").write_text("{")
    options = {"corruption": pl.STR("S2"), "progress": False}
    fx = pl.patch(tiny_gpt2, pairs, "mlp", checkpoint=tmp_path, **options)
    xr.testing.assert_equal(fx, pl.patch(tiny_gpt2, pairs, "mlp", **options))
    assert not (tmp_path / "settings.partial").exists()

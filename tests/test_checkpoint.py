"""A sweep with a checkpoint can be stopped at any moment and gives the same numbers."""

import functools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

import patchlib as pl
from patchlib.patching import checkpoint
from patchlib.patching.checkpoint import Checkpoint, fingerprints, places
from patchlib.patching.patch import ENGINES
from patchlib.prompts.pairs import PromptPairs

OPTIONS: dict[str, Any] = {"corruption": pl.GN("S1+IO", draws=2), "batch_size": 2}


@pytest.fixture
def pairs(tiny_gpt2: TransformerBridge) -> PromptPairs:
    return pl.tasks.ioi(tiny_gpt2, n=5)


def pieces_in(folder: Path) -> list[xr.Dataset]:
    files = sorted(folder.glob("piece-*"))
    return [xr.Dataset.from_dict(json.loads(file.read_bytes())) for file in files]


class _Stopped(Exception):
    pass


def stop_after(rows: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= rows:
            raise _Stopped

    return progress


@pytest.mark.parametrize("engine", ENGINES)
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
        for piece in pieces_in(tmp_path / "sweep")
    )
    assert 20 <= kept <= 22
    options["progress"] = lambda done, total: seen.append(done)
    again = pl.patch(tiny_gpt2, pairs, component, checkpoint=tmp_path / "sweep", **options)
    # The finished rows are counted first, and the rest is run.
    assert (kept in seen, seen[-1]) == (True, 10 * whole.effect.isel(metric=0).size)
    for name in ("patched", "clean", "corrupted", "effect", "effect_sd"):
        xr.testing.assert_allclose(again[name], whole[name], rtol=0, atol=1e-5)
    # Now everything is on disk: no model is run any more.
    monkeypatch.setitem(ENGINES, engine, None)
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
    (tmp_path / "sweep" / ".piece-0123.1-ab.part.json").write_bytes(b"half")
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
        r"corruption \(STR there, GN here\).*scale \(absent there, 3 here\)": {
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
    with pytest.raises(pl.PatchlibError, match=r"weights \(\w{24} there, \w{24} here\)"):
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
    expected = {"task": "ioi", "corruption": "STR", "site": "S2", "dtype": "float32"}
    assert settings.items() >= expected.items()


def test_what_a_killed_process_left(tiny_gpt2, pairs, tmp_path: Path):
    """Files that had not got their names yet are neither read nor taken for other files."""
    for name in (".settings.1-ab.part.json", ".piece-0123.1-ab.part.json"):
        (tmp_path / name).write_text("{")
    options = {"corruption": pl.STR("S2"), "progress": False}
    fx = pl.patch(tiny_gpt2, pairs, "mlp", checkpoint=tmp_path, **options)
    xr.testing.assert_equal(fx, pl.patch(tiny_gpt2, pairs, "mlp", **options))
    xr.testing.assert_equal(fx, pl.patch(tiny_gpt2, pairs, "mlp", checkpoint=tmp_path, **options))
    assert len([*tmp_path.glob(".*.part.*")]) == 2


@pytest.mark.parametrize(
    ("field", "value"), [("layer_norm_epsilon", 0.5), ("activation_function", "relu")]
)
def test_a_changed_configuration_is_refused(tiny_folders, tmp_path, field, value):
    """The same weights under another config.json are another model, under the same name."""
    folder = shutil.copytree(tiny_folders("gpt2"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    options = {"corruption": pl.STR("S2"), "checkpoint": tmp_path / "sweep", "progress": False}
    model = pl.load_model(folder)
    pairs = pl.tasks.ioi(model, n=5)
    pl.patch(model, pairs, "mlp", **options)
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    changed = rf"config.{field} \({config[field]} there, {value} here\)"
    with pytest.raises(pl.PatchlibError, match=changed):
        pl.patch(pl.load_model(folder), pairs, "mlp", **options)
    # What says where a model comes from changes no number.
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere"}))
    pl.patch(pl.load_model(folder), pairs, "mlp", **options)


def test_a_changed_module_is_refused(tiny_folders, pairs, tmp_path):
    """A number that is neither a weight nor in the configuration."""
    model = pl.load_model(tiny_folders("gpt2"))
    options = {"corruption": pl.STR("S2"), "checkpoint": tmp_path, "progress": False}
    options["engine"] = "hooks"
    pl.patch(model, pairs, "mlp", **options)
    model.original_model.transformer.h[1].ln_2.original_component.eps = 0.5
    with pytest.raises(pl.PatchlibError, match=r"settings: modules \(\w{24} there, \w{24} here\)"):
        pl.patch(model, pairs, "mlp", **options)


@pytest.mark.parametrize("library", ["patchlib", "torch", "transformers", "transformer_lens"])
def test_another_version_is_refused(tiny_gpt2, pairs, tmp_path, monkeypatch, library):
    options = {"corruption": pl.STR("S2"), "checkpoint": tmp_path, "progress": False}
    pl.patch(tiny_gpt2, pairs, "mlp", **options)
    version = checkpoint.version
    monkeypatch.setattr(
        checkpoint, "version", lambda name: "0.0.7" if name == library else version(name)
    )
    changed = re.escape(f"settings: {library} ({version(library)} there, 0.0.7 here).")
    with pytest.raises(pl.PatchlibError, match=changed):
        pl.patch(tiny_gpt2, pairs, "mlp", **options)


def test_what_a_sweep_leaves_on_a_model_changes_no_fingerprint(tiny):
    """The libraries' own recording hooks, which the first run attaches, are no one's edits."""
    pairs = pl.tasks.ioi(tiny, n=2)
    before = fingerprints(tiny)
    pl.patch(tiny, pairs, "mlp", corruption=pl.STR("S2"), progress=False)
    tiny.run_with_cache(pairs.clean_tokens)
    assert fingerprints(tiny) == before


@pytest.mark.parametrize("place", ["hook", "permanent hook", "module", "before a module"])
def test_hooks_are_refused(tiny_folders, pairs, tmp_path, place):
    """What a hook does is seen neither in weights nor in a configuration."""
    model = pl.load_model(tiny_folders("gpt2"))
    block = model.original_model.transformer.h[1]
    remove = functools.partial(model.reset_hooks, including_permanent=True)
    if place.endswith("hook"):
        model.add_hook(
            "blocks.1.hook_mlp_out", lambda out, hook: 0 * out, is_permanent=place != "hook"
        )
    elif place == "module":
        remove = block.mlp.register_forward_hook(lambda module, given, out: 0 * out).remove
    else:
        remove = block.mlp.register_forward_pre_hook(lambda module, given: None).remove
    options = {"corruption": pl.STR("S2"), "progress": False, "engine": "hooks"}
    with pytest.raises(pl.PatchlibError, match=r"hooks on the model, at .*1.*mlp.*reset_hooks\("):
        pl.patch(model, pairs, "mlp", checkpoint=tmp_path, **options)
    assert not [*tmp_path.iterdir()]
    remove()
    pl.patch(model, pairs, "mlp", checkpoint=tmp_path, **options)


def test_equal_numbers_are_equal_settings(tiny_gpt2, pairs, tmp_path):
    """One scale as an integer, a float and numpy's, and infinity, which has no integer."""
    options = {"checkpoint": tmp_path, "progress": False}
    first = pl.patch(tiny_gpt2, pairs, "mlp", corruption=pl.GN("S2", scale=3), **options)
    for scale in (3.0, np.float32(3), np.int64(3)):
        again = pl.patch(tiny_gpt2, pairs, "mlp", corruption=pl.GN("S2", scale=scale), **options)
        xr.testing.assert_equal(again, first)
    with pytest.raises(pl.PatchlibError, match=r"scale \(3 there, 3.5 here\)"):
        pl.patch(tiny_gpt2, pairs, "mlp", corruption=pl.GN("S2", scale=3.5), **options)
    Checkpoint(tmp_path / "numbers", {"a": 1, "b": math.inf, "c": True, "d": 2**60 + 1})
    Checkpoint(tmp_path / "numbers", {"a": 1.0, "b": math.inf, "c": True, "d": 2**60 + 1})
    with pytest.raises(pl.PatchlibError, match=rf"settings: d \({2**60 + 1} there, {2**60} here"):
        Checkpoint(tmp_path / "numbers", {"a": 1.0, "b": math.inf, "c": True, "d": 2**60})


def _digit(content: bytes) -> bytes:
    """One digit of one number: the file can be read, and its numbers are wrong."""
    at = content.index(b".", content.index(b'"patched"')) + 1
    return content[:at] + (b"1" if content[at : at + 1] != b"1" else b"2") + content[at + 1 :]


def _other(content: bytes) -> bytes:
    """A whole piece with one metric, and a cell that the sweep does not have."""
    piece = xr.Dataset.from_dict(json.loads(content)).isel(metric=[0])
    return json.dumps(piece.assign_coords(cell=piece.cell + 1000).to_dict()).encode()


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "other bytes": lambda content: b"\xff\xfe",
    "one digit": _digit,
    "another sweep's": _other,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_piece_is_computed_anew(tiny_gpt2, pairs, tmp_path, damage):
    """It is named and removed, and no other piece is computed again."""
    options: dict[str, Any] = {"corruption": pl.STR("S2"), "batch_size": 2, "checkpoint": tmp_path}
    rows: list[int] = []
    whole = pl.patch(tiny_gpt2, pairs, "mlp", progress=False, **options)
    path = min(tmp_path.glob("piece-*"))
    lost = pieces_in(tmp_path)[0].patched.isel(metric=0).size
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    options["progress"] = lambda done, total: rows.append(total - done)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        again = pl.patch(tiny_gpt2, pairs, "mlp", **options)
    assert lost in rows
    assert rows[-1] == 0
    xr.testing.assert_allclose(again, whole, rtol=0, atol=1e-5)
    # What replaces it is kept, and nobody is warned any more.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xr.testing.assert_equal(pl.patch(tiny_gpt2, pairs, "mlp", **options), again)


def test_a_result_kept_beside_the_pieces_stays(tiny_gpt2, pairs, tmp_path):
    """Files of one's own that come later are no damaged pieces."""
    options = {"corruption": pl.STR("S2"), "checkpoint": tmp_path, "progress": False}
    fx = pl.patch(tiny_gpt2, pairs, "mlp", **options)
    fx.to_netcdf(tmp_path / "result.nc")
    xr.testing.assert_equal(pl.patch(tiny_gpt2, pairs, "mlp", **options), fx)
    assert (tmp_path / "result.nc").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe"])
def test_damaged_settings(tiny_gpt2, pairs, tmp_path, content):
    options = {"corruption": pl.STR("S2"), "checkpoint": tmp_path, "progress": False}
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(pl.PatchlibError, match=f"settings.json is damaged.*delete.*{tmp_path}"):
        pl.patch(tiny_gpt2, pairs, "mlp", **options)


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "sweep"):
        with pytest.raises(pl.PatchlibError, match=f"'{folder}' is no folder to read and write in"):
            Checkpoint(folder, {})


def test_a_folder_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Checkpoint("~/sweep", {}).folder == tmp_path / "sweep"


def test_two_processes_on_one_folder(tmp_path):
    """Both finish with the right numbers, and what they leave is all there is to compute."""
    sweep = tmp_path / "sweep"
    script = """
        import sys, time
        from pathlib import Path
        import patchlib as pl
        model = pl.load_model("mini")
        pairs = pl.tasks.ioi(model, n=4)
        sweep, out, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
        out.with_suffix(".ready").touch()
        while len([*out.parent.glob("*.ready")]) < 2:
            time.sleep(0.01)
        fx = pl.patch(model, pairs, "mlp", corruption=pl.STR("S2"), batch_size=size,
                      checkpoint=sweep, progress=False)
        fx.to_netcdf(out)
    """
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(script),
                sweep,
                tmp_path / f"{size}.nc",
                str(size),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for size in (1, 3)
    ]
    for process in running:
        _, said = process.communicate(timeout=300)
        assert (process.returncode, "damaged" in said) == (0, False), said
    model = pl.load_model("mini")
    pairs = pl.tasks.ioi(model, n=4)
    options: dict[str, Any] = {"corruption": pl.STR("S2")}
    whole = pl.patch(model, pairs, "mlp", progress=False, **options)
    rows: list[int] = []
    options |= {"checkpoint": sweep, "progress": lambda done, total: rows.append(done)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("patchlib.patching.patch.ENGINES", dict.fromkeys(ENGINES))
        again = pl.patch(model, pairs, "mlp", **options)
    for fx in (again, *(xr.load_dataset(tmp_path / f"{size}.nc") for size in (1, 3))):
        xr.testing.assert_allclose(fx, whole, rtol=0, atol=1e-5)
    # Each row counts once, whichever of them computed it.
    assert rows[-1] == 4 * 8
    assert {path.name.split("-")[0] for path in sweep.iterdir()} == {"settings.json", "piece"}


def test_two_sweeps_that_begin_together(tiny_gpt2, pairs, tmp_path):
    """Two processes that saw an empty folder at one moment, with other settings, do not mix."""
    one, other = (Checkpoint(tmp_path / name, {"site": name}) for name in ("S2", "IO"))
    one.folder = other.folder
    piece = xr.Dataset({"patched": ("instance", [1.0])}, coords=places([(0, 0)]))
    one.save(piece)
    other.save(piece * 2)
    with pytest.warns(UserWarning, match="is damaged, or was made with other settings"):
        kept = [*other.pieces()]
    assert [found.patched.item() for found in kept] == [2.0]

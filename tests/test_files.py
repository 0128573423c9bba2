"""Where files are, and that nobody ever reads half of one."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import xarray as xr

from patchlib import files
from patchlib.files import cache_folder, write_whole


def test_the_data_is_there():
    assert (files.DATA / "experiments.json").is_file()
    assert (files.DATA / "models" / "mini" / "config.json").is_file()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~", "home"),
        ("~/my models", "home/my models"),
        ("{tmp}/cache", "cache"),
        ("{tmp}/~", "~"),
        ("", "default/patchlib"),
        (None, "default/patchlib"),
    ],
)
def test_the_cache_folder(tmp_path, monkeypatch, given, expected):
    """The user's own where nothing, or nothing but the name, is set; ``~`` is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda app: tmp_path / "default" / app)
    monkeypatch.delenv("PATCHLIB_CACHE", raising=False)
    if given is not None:
        monkeypatch.setenv("PATCHLIB_CACHE", given.format(tmp=tmp_path))
    assert cache_folder() == tmp_path / expected
    # Only asked for, not made.
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["numbers.txt", "a/b/archive.tar.gz", "no_ending", ".hidden"])
def test_a_file_is_written(tmp_path, name):
    """In folders that are made; under way it is hidden, beside its place, with its ending."""
    path, seen = tmp_path / name, []

    def write(part: Path) -> None:
        seen.append(part)
        part.write_text("1 2 3")
        assert not path.exists()

    write_whole(path, write)
    assert path.read_text() == "1 2 3"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    assert (seen[0].parent, seen[0].suffix or ".part", seen[0].name[0]) == (
        path.parent,
        path.suffix or ".part",
        ".",
    )


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "numbers.txt"
    path.write_text("old")

    def write(part: Path) -> None:
        part.write_text("ne")
        raise error

    with pytest.raises(type(error)):
        write_whole(path, write)
    assert (path.read_text(), [*tmp_path.iterdir()]) == ("old", [path])


def test_a_writer_that_writes_nothing(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError):
        write_whole(path, lambda part: None)
    assert (path.read_text(), [*tmp_path.iterdir()]) == ("old", [path])


def test_a_kill_between_writing_and_renaming(tmp_path):
    """The old file is there as it was, and the next writer is not held up by what is left."""
    path = tmp_path / "numbers.txt"
    path.write_text("old")
    script = """
        import os, signal, sys
        from pathlib import Path
        from patchlib.files import write_whole

        def write(part):
            part.write_text("new")
            os.kill(os.getpid(), signal.SIGKILL)

        write_whole(Path(sys.argv[1]), write)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script), path], check=False)
    assert ended.returncode == -signal.SIGKILL
    left = [file.name for file in tmp_path.iterdir() if file != path]
    assert path.read_text() == "old"
    assert (len(left), left[0][:9], ".part" in left[0]) == (1, ".numbers.", True)
    write_whole(path, lambda part: part.write_text("newer"))
    assert path.read_text() == "newer"


def test_two_threads_write_one_file(tmp_path):
    """Both are half-way at the same moment: the last one's file is whole, and nobody fails."""
    path, both = tmp_path / "numbers.txt", threading.Barrier(2, timeout=60)
    texts, done = ["a" * 100_000, "b" * 100_000], []

    def write_text(text: str) -> None:
        def write(part: Path) -> None:
            with part.open("w") as stream:
                stream.write(text[:50_000])
                stream.flush()
                both.wait()
                stream.write(text[50_000:])
            both.wait()

        write_whole(path, write)
        done.append(text)

    threads = [threading.Thread(target=write_text, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == texts
    assert path.read_text() in texts
    assert [*tmp_path.iterdir()] == [path]


def test_a_result_is_written_while_somebody_reads_it(tmp_path):
    """The reader goes on with the old numbers, and the file holds the new ones."""
    path = tmp_path / "result.nc"
    write_whole(path, xr.Dataset({"effect": ("layer", [1.0, 2.0])}).to_netcdf)
    with xr.open_dataset(path) as reader:
        write_whole(path, xr.Dataset({"effect": ("layer", [3.0, 4.0])}).to_netcdf)
        assert reader.effect.values.tolist() == [1.0, 2.0]
    assert xr.load_dataset(path).effect.values.tolist() == [3.0, 4.0]
    assert os.listdir(tmp_path) == ["result.nc"]

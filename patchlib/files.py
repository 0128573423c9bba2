"""Where files are: the project's data, what runs write, and how a file is written whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

_PACKAGE = Path(__file__).parent
_CHECKOUT = _PACKAGE.parent
IS_CHECKOUT = (_CHECKOUT / "data" / "experiments.json").is_file()
"""False where patchlib was installed from a wheel, which has the data inside."""

DATA = _CHECKOUT / "data" if IS_CHECKOUT else _PACKAGE / "_data"
"""The project's data; only read."""

BUILD = (_CHECKOUT if IS_CHECKOUT else Path.cwd()) / "_build"
"""Where pages, figures and results go: beside the package, or in the working directory."""


def cache_folder() -> Path:
    """Where fetched models are kept: ``PATCHLIB_CACHE``, or the user's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("PATCHLIB_CACHE") or user_cache_path("patchlib")).expanduser()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside its place and renames it, so that nobody ever reads half of it.

    A failure, or a kill, leaves what was there before; a kill also leaves a hidden file whose name
    has ``.part`` in it. Several processes may write the same file; the last one wins.

    Args:
        path: the file; its folder is made.
        write: writes to the path that it is given.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "numbers.txt"
        ...     write_whole(path, lambda part: part.write_text("1 2 3"))
        ...     path.read_text()
        '1 2 3'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name keeps its ending, by which some writers choose the format.
    part = path.with_name(f".{path.stem}.{os.getpid()}-{os.urandom(4).hex()}.part{path.suffix}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

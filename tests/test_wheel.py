"""patchlib as a user installs it: from a wheel, outside the repository, and quick to import."""

import ast
import os
import pkgutil
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import hatchling.build
import pytest

import patchlib as pl
from patchlib import files

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with patchlib alone, installed from the wheel that pip builds, and read-only."""
    folder = tmp_path_factory.mktemp("site")
    install = "install --quiet --no-deps --no-index --no-build-isolation --no-compile --target"
    subprocess.run([sys.executable, "-m", "pip", *install.split(), folder, ROOT], check=True)
    for path in (folder / "patchlib").rglob("*"):
        path.chmod(path.stat().st_mode & ~0o222)
    return folder


def python(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs Python in another folder, with the installed patchlib and the tests' dependencies."""
    libraries = [str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(libraries),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATCHLIB_MODEL": "mini",
    }
    # -S: the environment's .pth files, and with them an editable install, stay out.
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def files_below(folder: Path) -> set[Path]:
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_and_the_data(site):
    data = {Path("_data") / path for path in files_below(ROOT / "data")}
    assert files_below(site / "patchlib") == files_below(ROOT / "patchlib") | data


def test_the_quick_start_runs_from_the_wheel_and_writes_nothing_into_it(site, tmp_path):
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in [site, *site.rglob("*")]}

    code = re.search(r"## Quick start\n\n```python\n(.*?)```", README, re.S)[1].replace(
        "n=500", "n=8"
    )
    code += """
print(pl.__file__, fx.attrs["model"])
"""
    before = times()
    done = python(site, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(site / "patchlib" / "__init__.py"), "mini"]
    assert times() == before


@pytest.mark.parametrize("module", ["patchlib", "patchlib.training.card"])
def test_what_needs_the_repository_says_so_in_one_line(site, tmp_path, module):
    done = python(site, tmp_path, "-m", module)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r".*patchlib's repository.*\n", done.stderr)


def test_an_editable_install_reads_the_repository_and_copies_nothing(tmp_path, monkeypatch):
    assert (files.DATA, files.BUILD) == (ROOT / "data", ROOT / "_build")
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / hatchling.build.build_editable(str(tmp_path))) as wheel:
        held = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert held == ["_patchlib.pth"]


def test_importing_patchlib_does_not_wait_for_what_is_slow():
    slow = "torch transformer_lens transformers ipywidgets matplotlib xarray pandas numpy".split()
    code = f"import sys, patchlib; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_public_names_are_those_of_the_stub():
    stub = ast.parse((ROOT / "patchlib" / "__init__.pyi").read_text(encoding="utf-8"))
    names = [alias.asname for line in stub.body for alias in line.names]
    assert dir(pl) == pl.__all__ == sorted(names)
    given: dict = {}
    exec("from patchlib import *", given)
    assert given.keys() - {"__builtins__"} == set(names)
    # A function that hides a module would come and go with the order of imports.
    modules = {module.name for module in pkgutil.iter_modules(pl.__path__)}
    assert all(isinstance(given[name], ModuleType) for name in modules & set(names))

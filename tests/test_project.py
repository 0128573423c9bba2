"""The files at the root of the repository agree with each other."""

import importlib.metadata
import io
import json
import pickletools
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
TOP_LEVEL = {
    ".binder",
    ".ci",
    ".devcontainer",
    ".github",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "data",
    "environment.yml",
    "jupytext.toml",
    "notebooks",
    "patchlib",
    "pyproject.toml",
    "site",
    "tests",
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


def declared() -> list[Requirement]:
    """Every dependency that pyproject.toml names, those for development included."""
    extras = project()["optional-dependencies"]
    lines = project()["dependencies"] + [line for extra in extras.values() for line in extra]
    return [Requirement(line) for line in lines if not line.startswith("patchlib[")]


def pins() -> list[tuple[str, str]]:
    """Name and version of every line of constraints.txt."""
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    return [(name, version) for name, version in (line.split("==") for line in lines)]


def tracked_files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # The owner of a checkout and the user of a container may differ; git would then refuse.
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return [name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def is_pickle(content: bytes) -> bool:
    """True for a binary pickle and for the zip of one, which is what torch.save writes."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    if not content.startswith(b"\x80"):
        return False
    try:
        return [opcode.name for opcode, _, _ in pickletools.genops(content)][-1] == "STOP"
    except ValueError:
        return False


def test_each_declared_dependency_is_pinned_exactly_once():
    names = [canonicalize_name(name) for name, _ in pins()]
    counts = {r.name: names.count(canonicalize_name(r.name)) for r in declared()}
    assert counts == {r.name: 1 for r in declared()}
    assert len(names) == len(set(names))


def test_dependencies_are_declared_once():
    names = [canonicalize_name(r.name) for r in declared()]
    assert names == list(dict.fromkeys(names))


def test_pins_satisfy_the_declared_specifiers():
    versions = {canonicalize_name(name): version for name, version in pins()}
    refused = [r for r in declared() if versions[canonicalize_name(r.name)] not in r.specifier]
    assert refused == []


def test_constraints_start_with_torch_and_are_sorted():
    names = [name for name, _ in pins()]
    assert names[0] == "torch"
    assert names[1:] == sorted(names[1:])


def test_constraints_hold_neither_addresses_nor_hardware():
    text = read("constraints.txt")
    assert [part for part in ("://", "--index", "--extra-index", "@ file") if part in text] == []
    assert [name for name, _ in pins() if re.match("nvidia|cuda|triton", name)] == []
    assert [version for _, version in pins() if Version(version).local is not None] == []


def test_installed_versions_equal_pins():
    pinned = {canonicalize_name(name): version for name, version in pins()}
    names = [canonicalize_name(r.name) for r in declared()]
    # A build such as 2.13.0+cpu is release 2.13.0.
    installed = {name: Version(importlib.metadata.version(name)).public for name in names}
    assert installed == {name: pinned[name] for name in names}


def test_the_python_minimum_is_the_same_everywhere():
    steps = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["pinned"]["steps"]
    minimum = {
        "pyproject.toml": project()["requires-python"],
        "ruff": tomllib.loads(read("pyproject.toml"))["tool"]["ruff"]["target-version"],
        "mypy": tomllib.loads(read("pyproject.toml"))["tool"]["mypy"]["python_version"],
        "environment.yml": yaml.safe_load(read("environment.yml"))["dependencies"][0],
        "Makefile": re.findall(r"^PYTHON_MINIMUM := (.*)$", read("Makefile"), re.MULTILINE),
        "ci.yml": [step["with"]["python-version"] for step in steps if "with" in step],
        "Binder": yaml.safe_load(read(".binder/environment.yml"))["dependencies"][0],
        "devcontainer": json.loads(read(".devcontainer/devcontainer.json"))["image"].split(":")[1],
    }
    assert minimum == {
        "pyproject.toml": ">=3.11",
        "ruff": "py311",
        "mypy": "3.11",
        "environment.yml": "python=3.11",
        "Makefile": ["3.11"],
        "ci.yml": ["3.11"],
        "Binder": "python=3.11",
        "devcontainer": "3.11",
    }


def test_conda_installs_the_same_as_pip():
    dependencies = yaml.safe_load(read("environment.yml"))["dependencies"]
    assert dependencies[1:] == ["pip", "make", {"pip": ["-c constraints.txt", "-e .[dev]"]}]


def test_binder_installs_the_pins_and_a_pytorch_without_graphics_cards():
    environment = yaml.safe_load(read(".binder/environment.yml"))
    assert environment["channels"] == ["conda-forge"]
    assert environment["dependencies"][1:] == [f"pytorch-cpu={dict(pins())['torch']}"]
    assert "pip install --no-cache-dir -c constraints.txt -e .\n" in read(".binder/postBuild")
    for script in (".binder/postBuild", ".binder/start"):
        assert (ROOT / script).stat().st_mode & 0o111 == 0o111, script


def test_a_devcontainer_is_built_by_make():
    container = json.loads(read(".devcontainer/devcontainer.json"))
    command, target = container["postCreateCommand"].split()
    assert command == "make" and f"\nINSTALLED := {target}\n" in read("Makefile")
    settings = container["customizations"]["vscode"]["settings"]
    assert settings["python.defaultInterpreterPath"].endswith("/.venv/bin/python")


def test_the_citation_names_the_version_of_the_package():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (citation["title"], str(citation["version"])) == ("patchlib", project()["version"])
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2309.16042"


def test_the_top_level_holds_only_what_belongs_there():
    assert {Path(name).parts[0] for name in tracked_files()} - TOP_LEVEL == set()


def test_no_tracked_file_is_a_pickle():
    assert [name for name in tracked_files() if is_pickle((ROOT / name).read_bytes())] == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x80\x04K\x01.", True),  # pickle.dumps(1, protocol=4) without its frame
        (b"\x80\x02\x00\x00\x00\x00\x00\x00{}", False),  # safetensors with a header of 640 bytes
        (b".venv/\n", False),
        (b"", False),
    ],
)
def test_is_pickle(content, expected):
    assert is_pickle(content) is expected


def test_is_pickle_finds_a_saved_model():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
    assert is_pickle(buffer.getvalue()) is True

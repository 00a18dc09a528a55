"""pyproject.toml, constraints.txt and environment.yml describe one environment, and this is it."""

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}
#: What torch brings along only where it finds a GPU, pinned by torch itself, and the installer.
UNPINNED = re.compile(r"^(nvidia-.*|cuda-.*|triton|pip|wheel|forgelib)$")


def test_constraints_are_exact_versions_and_nothing_else():
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", line), f"{line}: no address, option, local suffix"
    assert len(PINS) == len(LINES), "a package is pinned twice"
    assert PINS["torch"] == "2.13.0"


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_to_a_version_it_allows(requirement):
    pinned = PINS.get(canonicalize_name(requirement.name))
    assert pinned, f"{requirement.name} is in pyproject.toml but not in constraints.txt"
    assert requirement.specifier.contains(pinned), f"{requirement} does not allow the pinned {pinned}"


def reached(requirements: list[Requirement]) -> set[str]:
    """Names of all installed packages that the requirements bring along, following each package's own metadata."""
    found, open_ends = set(), [(canonicalize_name(r.name), extra) for r in requirements for extra in {"", *r.extras}]
    seen = set(open_ends)
    while open_ends:
        name, extra = open_ends.pop()
        found.add(name)
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                ends = {(canonicalize_name(needed.name), part) for part in {"", *needed.extras}} - seen
                seen |= ends
                open_ends += ends
    return found


def test_everything_installed_for_the_project_is_pinned_to_what_is_installed():
    """Follows each dependency's own metadata; other packages may share the environment."""
    for name in sorted(reached(REQUIREMENTS)):
        if not UNPINNED.match(name):
            assert name in PINS, f"{name} {metadata.version(name)} is installed but not pinned: freeze again"
            assert Version(PINS[name]) == Version(Version(metadata.version(name)).public), name


def test_conda_installs_the_same_by_pip():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    (by_pip,) = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    assert by_pip == ["-c constraints.txt", "-e ."]
    names = {re.split("[=<>]", entry)[0] for entry in conda["dependencies"] if isinstance(entry, str)}
    assert names == {"python", "pip"}, "conda brings Python; every package comes from pyproject.toml"
    (python,) = [entry for entry in conda["dependencies"] if str(entry).startswith("python=")]
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert Version(python.removeprefix("python=")) >= Version(lowest)


def test_ci_is_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[1:] == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "make test",
    ]


def test_an_old_python_is_refused_in_words(tmp_path):
    """make names what it needs and how to give it, and leaves no half-made environment."""
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$1" in -V) echo "Python 3.9.2";; *) exit 1;; esac\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(["make", "run", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert (
        "needs Python 3.11 or later" in done.stderr and "Python 3.9.2" in done.stderr and "make PYTHON=" in done.stderr
    )
    assert not (tmp_path / ".venv").exists()


def test_make_installs_again_only_when_the_lists_change(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("bin/python", ".installed", ".installed-test"):
        (tmp_path / ".venv" / name).touch()

    def plan() -> str:
        return subprocess.run(["make", "-n", "run"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "pip" not in plan()
    later = (tmp_path / ".venv/.installed").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert "install --quiet -c constraints.txt -e ." in plan()

"""The repository is found from wherever a notebook, a test or the command starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from forgelib.core import paths

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("start", ["", "notebooks", "forgelib/core"])
def test_found_from_inside(monkeypatch, start):
    monkeypatch.chdir(ROOT / start)
    assert paths.repo_root() == ROOT


def test_found_from_elsewhere_by_where_the_package_lies(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "something-else"\n')
    monkeypatch.chdir(tmp_path)
    assert paths.repo_root() == ROOT


def test_another_checkout_one_stands_in_comes_first(monkeypatch, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "forgelib"\n')
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert paths.repo_root() == tmp_path
    assert paths.params_dir() == tmp_path / "params" and paths.reports_dir() == tmp_path / "reports"


@pytest.mark.parametrize("content", [b"", b"[project", b"\xff\xfe", b"[tool]\nx = 1", b'project = "forgelib"'])
def test_a_strange_pyproject_on_the_way_is_passed_over(monkeypatch, tmp_path, content):
    (tmp_path / "pyproject.toml").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert paths.repo_root() == ROOT


def test_nowhere_is_said_in_words(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "paths.py"))
    with pytest.raises(FileNotFoundError, match="start from inside the checkout"):
        paths.repo_root()


def test_the_variables_decide(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGE_RUNS", "here")
    monkeypatch.setenv("FORGE_DATASETS", "~/rows")
    monkeypatch.setenv("FORGE_PROFILE", "smoke")
    assert paths.runs_dir() == tmp_path / "here"
    assert paths.datasets_mirror() == Path.home() / "rows"
    assert paths.default_profile() == "smoke"


@pytest.mark.parametrize("value", [None, ""])
def test_unset_or_empty_variables_mean_the_defaults(monkeypatch, value):
    for name in ("FORGE_RUNS", "FORGE_DATASETS", "FORGE_PROFILE"):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert paths.runs_dir() == ROOT / "data" / "runs"
    assert paths.datasets_mirror() is None
    assert paths.default_profile() == "laptop"


def test_paths_cost_nothing_to_import():
    heavy = "torch,transformers,datasets,wandb,numpy"
    code = f"import sys, forgelib.core.paths; print([m for m in {heavy.split(',')} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

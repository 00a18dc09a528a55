"""A house for every test: a repository root with its own run folder."""

from pathlib import Path

import pytest
from serving import build_house, environment


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    """A house that is the working directory, with its own run folder; jobs started in this process find forgelib."""
    root = build_house(tmp_path / "house")
    for name in ("FORGE_PROFILE", "FORGE_DATASETS", "JUPYTER_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORGE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PYTHONPATH", environment(tmp_path / "runs")["PYTHONPATH"])
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"

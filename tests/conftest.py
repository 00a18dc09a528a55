"""Shared fixtures: a run folder for every test, one thread, no network but loopback, the real rows where they lie."""

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """Fast tests answer first."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_run_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_RUNS", str(tmp_path / "runs"))


@pytest.fixture(scope="session")
def chromium() -> str:
    """The command that starts Chromium. What needs it is skipped by name where it, or what steers it, is not there."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("Chromium is not installed here: nothing is looked at in a browser")
    pytest.importorskip("playwright", reason="playwright is not installed here: nothing is looked at in a browser")
    return found


@pytest.fixture(scope="module")
def browser(chromium):
    """A browser for the tests of one file; longer, and its event loop would be in the way of other tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def real_datasets() -> Path:
    """The folder of real rows: $FORGE_DATASETS, else `shared/datasets` beside the checkout."""
    folder = Path(os.environ.get("FORGE_DATASETS") or ROOT.parent / "shared" / "datasets")
    if not folder.is_dir():
        pytest.skip(f"real rows not found: set FORGE_DATASETS (looked in {folder})")
    return folder

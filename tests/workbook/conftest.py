"""A little house of its own for tests of the runner: a repository root with notebooks that need no model."""

import shutil
from pathlib import Path

import nbformat
import pytest

from forgelib.workbook import plan

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = 'profile = ""\nseed = 0\ndata = "auto"'
RESOLVE = "from forgelib.workbook import params, publish\np = params.resolve(params.{model}, globals())"


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    """A repository root in a temporary folder, the working directory for the test; no profile and no mirror set."""
    root = tmp_path / "house"
    (root / "notebooks").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project]\nname = "forgelib"\n')
    shutil.copytree(ROOT / "params", root / "params")
    for name in ("FORGE_PROFILE", "FORGE_DATASETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        plan, "_code_digest", lambda notebook: "the code of this test"
    )  # files may be edited while it runs
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def write_chapter(house):
    """write_chapter(name, *codes, model=): a notebook with a parameters cell, the validation cell and these cells."""

    def write(name: str, *codes: str, model: str = "Environment") -> Path:
        book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
        book.cells = [nbformat.v4.new_markdown_cell("# A chapter"), nbformat.v4.new_code_cell(PARAMETERS)]
        book.cells[1].metadata["tags"] = ["parameters"]
        book.cells += [nbformat.v4.new_code_cell(source) for source in (RESOLVE.format(model=model), *codes)]
        path = house / "notebooks" / f"{name}.ipynb"
        nbformat.write(book, path)
        return path

    return write

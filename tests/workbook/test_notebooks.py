"""Every notebook is a chapter: knobs in one cell, more prose than code, kept counts, outputs that the tests compare."""

import ast
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from forgelib.workbook import render
from forgelib.workbook.dashboard_knobs import PAGE_MODELS
from forgelib.workbook.params import MODELS
from forgelib.workbook.plan import PAGES, PLAN

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAKEFILE = (ROOT / "Makefile").read_text()
ALL_MODELS = {**MODELS, **PAGE_MODELS}
CHECKED, KEPT = "nbval-check-output", "keep_output"

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def tagged(book: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if tag in cell.metadata.get("tags", ())]


def of_type(book: nbformat.NotebookNode, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == kind]


def words(cells: list[nbformat.NotebookNode]) -> int:
    return sum(len(cell.source.split()) for cell in cells)


@each
def test_it_is_a_step_of_the_plan_with_a_model(path):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    assert path.stem in ALL_MODELS and path.stem in {step.notebook for step in (*PLAN, *PAGES)}


@each
def test_its_knobs_are_one_cell_of_scalars_with_the_models_defaults(path):
    (cell,) = tagged(read(path), "parameters")
    assigned = {}
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.Assign) and len(node.targets) == 1, "only `name = value` lines"
        assigned[node.targets[0].id] = ast.literal_eval(node.value)
    expected = {name: field.default for name, field in ALL_MODELS[path.stem].model_fields.items()}
    assert assigned == {**expected, "profile": ""}, "forgelib/workbook/params.py and the parameters cell differ"
    assert all("#" in line for line in cell.source.splitlines() if line.strip()), "each knob says its unit and range"


@each
def test_it_reads_as_a_chapter(path):
    book = read(path)
    prose, code = of_type(book, "markdown"), of_type(book, "code")
    assert 15 <= len(book.cells) <= 25
    assert len(prose) + len(code) == len(book.cells)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert words(prose) > words(code), "more prose than code"
    for cell in code:
        assert len(cell.source.splitlines()) <= 15 or "parameters" in cell.metadata.get("tags", ()), cell.source


@each
def test_counts_and_checked_outputs_are_kept_and_nothing_else(path):
    book = read(path)
    checked = tagged(book, CHECKED)
    assert checked, "at least one cell of rounded results is compared"
    for cell in of_type(book, "code"):
        assert cell.execution_count is not None, "a cell without a count is never compared"
        is_checked = cell in checked
        assert bool(cell.outputs) == is_checked, f"outputs belong to checked cells alone: {cell.source[:60]}"
        assert is_checked == bool(cell.metadata.get(KEPT) or KEPT in cell.metadata.get("tags", ()))
        assert all(output.output_type == "execute_result" for output in cell.outputs)
    assert sorted(cell.execution_count for cell in of_type(book, "code")) == list(
        range(1, len(of_type(book, "code")) + 1)
    )


@each
def test_it_names_no_machine_and_its_formulas_render(path):
    text = path.read_text()
    assert not re.search(r"/(home|Users|tmp|root)/|C:\\\\", text)
    assert "papermill" not in read(path).metadata
    for cell in of_type(read(path), "markdown"):
        render.markdown(cell.source)


@each
def test_its_checked_outputs_say_something(path):
    """Numbers that could be others: a cell that only says True, or 0 and 1, compares next to nothing."""
    shown = [output.data["text/plain"] for cell in tagged(read(path), CHECKED) for output in cell.outputs]
    numbers = {float(found) for text in shown for found in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text)}
    assert len(numbers - {0.0, 1.0}) >= 2, f"{path.stem} compares {sorted(numbers)} alone"


def test_make_test_runs_every_notebook():
    recipe = re.search(r"^test:.*?(?=^\S)", MAKEFILE, re.S | re.M)[0]
    run = {path for pattern in re.findall(r"(notebooks/\S+\.ipynb)", recipe) for path in ROOT.glob(pattern)}
    assert run == set(PATHS)


def nbval_options() -> list[str]:
    """The options that `make test` gives to pytest, read from the Makefile."""
    line = re.search(r"^NBVAL\s*:=((?:.*\\\n)*.*)", MAKEFILE, re.M)[1].replace("\\\n", " ")
    command, _, options = line.partition(" -m pytest ")
    assert command.strip() == "$(BIN)/python" and "--nbval-lax" in options
    return options.split()


@pytest.mark.slow
def test_a_changed_result_is_seen_and_an_unchanged_one_passes(tmp_path):
    """The comparison itself can fail: shown on the first notebook, which needs no other, by make's own options."""
    book = read(PATHS[0])
    assert PATHS[0].stem == "00_environment"
    nbformat.write(book, tmp_path / "whole.ipynb")
    (data,) = [output.data for cell in tagged(book, CHECKED) for output in cell.outputs]
    digit = re.search(r"\d", data["text/plain"])[0]
    data["text/plain"] = data["text/plain"].replace(digit, str((int(digit) + 1) % 10), 1)
    nbformat.write(book, tmp_path / "planted.ipynb")
    environment = {**os.environ, "FORGE_PROFILE": "smoke", "FORGE_RUNS": str(tmp_path / "runs"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", *nbval_options(), *map(str, tmp_path.glob("*.ipynb"))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "mismatch" in done.stdout, done.stdout[-3000:]
    assert f"1 failed, {2 * len(of_type(book, 'code')) - 1} passed" in done.stdout, "only the planted cell differs"
    (failed,) = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert "planted.ipynb" in failed


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, words",
    [
        (["-p", "episodes", "-5"], "episodes = -5: there is no such parameter"),
        (["-p", "specialist", "chef"], "specialist = 'chef': must be one of reasoning, memory, speed"),
        (["-r", "muon_lr", "1e-3"], "muon_lr = '1e-3': must be a number, above 0"),
    ],
)
def test_papermill_by_hand_is_refused_in_a_sentence_before_any_work(given, words, tmp_path):
    """In under ten seconds of processor time, kernel included: what other work on the machine adds does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "papermill", "11_cognate_train.ipynb", str(tmp_path / "out.ipynb"), *given]
    done = subprocess.run(command, cwd=ROOT / "notebooks", capture_output=True, text=True, timeout=300)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1 and words in done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    ran = [cell for cell in read(tmp_path / "out.ipynb").cells if cell.get("execution_count")]
    assert len(ran) == 3, "the knobs, what papermill put below them, and the refusal: nothing else ran"

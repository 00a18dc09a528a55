"""What a phase's run in W&B holds, and when there is none; and that "disabled" keeps wandb out altogether."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from executed_facts import CHECK, executed, gate, provenance

from forgelib.workbook.knobs import MODELS
from forgelib.workbook.mirror import mirror_phase, tables_of, wanted_mode


@pytest.mark.parametrize(
    "modes, wanted",
    [
        (["disabled", "disabled"], "disabled"),
        (["disabled", "offline"], "offline"),
        (["offline", "online"], "online"),
        ([], "disabled"),
    ],
)
def test_one_notebook_that_asks_for_it_is_enough(modes, wanted):
    assert wanted_mode({str(n): [provenance(mode)] for n, mode in enumerate(modes)}) == wanted


def test_gates_are_one_table_and_results_keep_their_own():
    table = {"kind": "usage", "columns": ["token"], "rows": [{"token": ["a", "b"]}]}
    made = dict(tables_of({"30_bake": [gate(CHECK), table, table], "31_rl": [gate(CHECK, name="RL")]}))
    assert [row[0] for row in made["gates"][1]] == ["Diversity", "RL"]
    assert made["30_bake/usage"] == made["30_bake/usage (2)"] == (["token"], [['["a", "b"]']])


def test_where_nothing_asks_for_it_nothing_is_written(tmp_path):
    notebooks = {"12": executed(provenance("disabled"), gate(CHECK))}
    assert mirror_phase(1, notebooks, tmp_path / "phase1.html", "smoke") is None
    assert mirror_phase(1, {"12": executed(provenance("offline"))}, tmp_path / "phase1.html", "smoke") is None
    assert not (tmp_path / "runs").exists()


def test_where_nothing_asks_for_it_wandb_is_not_imported(tmp_path):
    program = (
        "import sys\nfrom pathlib import Path\nfrom forgelib.workbook.mirror import mirror_phase\n"
        f"mirror_phase(1, {{'12': {executed(provenance('disabled'), gate(CHECK))!r}}}, Path('p'), 'x')\n"
        "assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"FORGE_RUNS": str(tmp_path)})


ROOT = Path(__file__).resolve().parents[2]
MIRRORED = [name for name, model in MODELS.items() if "wandb_mode" in model.model_fields]


def code_cells(name: str) -> list:
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    return [cell for cell in book.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", MIRRORED)
def test_every_notebook_that_mirrors_has_one_line_that_turns_it_off(name):
    (knobs,) = [cell.source for cell in code_cells(name) if "parameters" in cell.metadata.get("tags", ())]
    (line,) = [line for line in knobs.splitlines() if line.startswith("wandb_mode")]
    assert line.endswith("# offline, online or disabled")


@pytest.mark.slow
def test_with_everything_that_the_notebooks_import_and_a_run_wandb_stays_out(tmp_path):
    """The import lines of all notebooks, then a run as they open one, its journal and its artifact."""
    trees = [ast.parse(cell.source) for name in MODELS for cell in code_cells(name)]
    imports = {ast.unparse(n) for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)}
    run = (
        "from forgelib.core.run import open_run",
        "run = open_run('11_cognate_train', {}, seed=0, wandb_mode='disabled')",
        "run.tracker.log({'step': 0, 'loss': 1.0})",
        "run.publish('trunk', lambda folder: (folder / 'config.json').write_text('{}'))",
        "import sys; assert 'torch' in sys.modules and 'wandb' not in sys.modules",
    )
    program = "\n".join([*sorted(imports), *run])
    environment = {"FORGE_RUNS": str(tmp_path), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("wandb*"))

"""What a phase's run in W&B holds, and when there is none."""

import subprocess
import sys

import pytest
from executed_facts import CHECK, executed, gate, provenance

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

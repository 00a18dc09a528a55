"""What is kept offline is what W&B takes: its own `wandb sync` sends it to a stand-in for its server on loopback."""

import json

import pytest
from executed_facts import CHECK, executed, gate, provenance
from wandb_service import wandb_server

from forgelib.core.tracking import Tracker
from forgelib.workbook import mirror

pytestmark = pytest.mark.slow
UNSEEN = {**CHECK, "name": "memory", "measured": None, "interval": [0.1, 0.2], "control": {"same mix": 0.1}}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of its own: no key of the machine is read, nothing is left there."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def offline_runs(folder) -> list:
    return sorted((folder / "wandb").glob("offline-run-*"))


def history(lines: list[str], metric: str) -> list[tuple[int, float]]:
    return [(record["_step"], record[metric]) for record in map(json.loads, lines)]


def test_wandb_sync_takes_a_run_that_was_broken_off_twice_as_one(tmp_path, home):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    options = {"run_name": "phase3-step1-baking", "job_type": "30_quietstar_bake", "metrics_prefix": "baking/"}
    for first in (0, 2, 4):
        tracker = Tracker(tmp_path / "run", wandb_mode="offline", config={"epochs": 5}, **options)
        for step in (first, first + 1):
            tracker.log({"step": step, "loss": float(step)})
        tracker.save_artifact(model, "quietstar-baked", "model")
        tracker.finish()
    parts, run = offline_runs(tmp_path / "run"), (tmp_path / "run" / "wandb_id").read_text()
    assert len(parts) == 3
    cut = tmp_path / "cut" / parts[0].name
    cut.mkdir(parents=True)
    (cut / f"run-{run}.wandb").write_bytes((parts[0] / f"run-{run}.wandb").read_bytes()[:40])
    with wandb_server() as told:
        assert "incomplete record" in told.sync(cut).stderr and told.runs == {}, "a damaged file would be seen"
        done = told.sync(*parts)
    assert done.returncode == 0, done.stdout + done.stderr
    assert told.runs == {
        run: {"displayName": "phase3-step1-baking", "project": "agent-forge-v2", "jobType": "30_quietstar_bake"}
    }
    assert history(told.history[run], "baking/loss") == [(step, float(step)) for step in range(6)]
    assert told.artifacts == {"quietstar-baked": "model"} and b"epochs" in told.files["config.yaml"]
    assert all(list(part.glob("*.wandb.synced")) for part in parts), "a second sync would skip them"


def test_verdicts_tables_and_the_page_of_a_phase_become_a_run_of_their_own(tmp_path, home):
    page = tmp_path / "phase1.html"
    page.write_text("<h1>Phase 1</h1>")
    table = {"kind": "accuracy", "columns": ["category", "share"], "rows": [{"category": "math", "share": 0.5}, {}]}
    notebooks = {"12_cognate_diversity": executed(provenance("offline"), gate(CHECK, UNSEEN), table)}
    folder = mirror.mirror_phase(1, notebooks, page, "smoke-seed0-procedural")
    assert mirror.mirror_phase(1, notebooks, page, "smoke-seed0-procedural") is None, "mirrored once"
    (offline,) = offline_runs(folder)
    with wandb_server() as told:
        done = told.sync(offline)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = told.runs.values()
    assert run == {"displayName": "phase1-cognate-report", "project": "agent-forge-v2", "jobType": "report"}
    assert told.artifacts.pop("phase1-cognate-report") == "report"
    assert sorted(told.artifacts.values()) == ["run_table", "run_table"]
    tables = [json.loads(body) for name, body in told.files.items() if name.endswith(".table.json")]
    (checks,) = [table for table in tables if table["columns"] == list(mirror.CHECK)]
    assert checks["data"][0] == ["Diversity", "halting", 0.41, ">", 0.3, None, None, "", "passed"]
    assert checks["data"][1][2] is None and checks["data"][1][5:8] == [0.1, 0.2, "same mix 0.1"]
    assert {"columns": ["category", "share"], "data": [["math", 0.5], [None, None]]} in [
        {name: table[name] for name in ("columns", "data")} for table in tables
    ]

"""What Phase 4 is handed: the gates of the model itself, and no trial of another one."""

import pytest

from forgelib.core.run import open_run
from forgelib.workbook import handoff


def publish(root, step, name, parents=(), passed=True, seed=0):
    check = {"name": "a check", "measured": 1.0, "verdict": "passed" if passed else "failed"}
    run = open_run(step, {"n": seed}, parents=list(parents), seed=seed, tags={}, wandb_mode="disabled", code=())
    verdict = {"gate": step, "passed": passed, "checks": [check]}
    return run.publish(name, lambda folder: (folder / "model.txt").write_text(f"{step} {seed}"), [verdict])


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_RUNS", str(tmp_path))
    baked = publish(tmp_path, "30", "quietstar-baked")
    return tmp_path, publish(tmp_path, "31", "quietstar-rl", [baked])


def test_all_gates_of_the_model_are_handed_on(made):
    root, trained = made
    publish(root, "32", "quietstar-verdict", [trained], passed=False)
    rows = handoff.verdict_rows(handoff.earlier_verdicts(trained))
    assert [(row["gate"], row["verdict"]) for row in rows] == [("30", "passed"), ("31", "passed"), ("32", "failed")]
    assert rows[2]["not passed"] == "a check"


def test_the_trial_of_another_model_is_no_trial_of_this_one(made):
    root, trained = made
    other = publish(root, "31", "quietstar-rl", seed=1)
    publish(root, "32", "quietstar-verdict", [other])
    *_, trial = handoff.verdict_rows(handoff.earlier_verdicts(trained))
    assert trial["verdict"] == "failed" and "papermill 32_quietstar_antitheater.ipynb" in trial["not passed"]

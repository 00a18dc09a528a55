"""The journal holds every record, whatever happens to the process; W&B only mirrors it."""

import json
import math
import os
import subprocess
import sys
import types

import pytest

from forgelib.core.tracking import Tracker, read_journal


def tracker(folder, **more) -> Tracker:
    return Tracker(folder, run_name="test", **more)


def test_records_come_back_as_they_went_in(tmp_path):
    journal = tracker(tmp_path)
    records = [{"step": i, "loss": 1 / (i + 1), "stage": "foundation", "done": i == 2} for i in range(3)]
    for record in records:
        journal.log(record)
    assert journal.records() == records == tracker(tmp_path).records() == read_journal(tmp_path / "metrics.jsonl")


def test_what_is_not_finite_is_stored_as_strict_json(tmp_path):
    journal = tracker(tmp_path)
    journal.log({"step": 0, "loss": math.nan, "high": math.inf, "low": -math.inf})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 0, "loss": "nan", "high": "inf", "low": "-inf"}
    (record,) = journal.records()
    assert math.isnan(record["loss"]) and record["high"] == math.inf and record["low"] == -math.inf


@pytest.mark.parametrize("record", [{}, {"step": None}, {"step": 1.0}, {"step": True}, {"step": "1"}, {"loss": 2.0}])
def test_a_record_without_its_step_is_refused(tmp_path, record):
    with pytest.raises(ValueError, match="step"):
        tracker(tmp_path).log(record)


def test_a_field_that_is_no_json_is_named_and_nothing_is_written(tmp_path):
    journal = tracker(tmp_path)
    with pytest.raises(ValueError, match="field 'weights' of the record of step 4"):
        journal.log({"step": 4, "loss": 1.0, "weights": object()})
    assert journal.records() == []


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_torn_last_line_is_dropped_and_the_rest_survives(tmp_path, cut):
    journal = tracker(tmp_path)
    for i in range(4):
        journal.log({"step": i, "loss": 0.5})
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    assert [r["step"] for r in read_journal(file)] == ([0, 1, 2, 3] if cut == 1 else [0, 1, 2])
    again = tracker(tmp_path)
    again.log({"step": 9, "loss": 0.1})
    assert [r["step"] for r in again.records()] == ([0, 1, 2, 3, 9] if cut == 1 else [0, 1, 2, 9])
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_rewinding_drops_what_will_be_run_again(tmp_path):
    journal = tracker(tmp_path)
    for i in range(6):
        journal.log({"step": i})
    journal.rewind(4)
    assert [r["step"] for r in journal.records()] == [0, 1, 2, 3]
    journal.log({"step": 4})
    assert [r["step"] for r in tracker(tmp_path).records()] == [0, 1, 2, 3, 4]
    journal.rewind(0)
    assert journal.records() == []


def test_followed_a_procedure_that_goes_on_writes_each_step_once(tmp_path):
    def procedure(start: int, end: int):
        for step in range(start, end):
            yield {"step": step, "from": start}

    journal = tracker(tmp_path)
    assert list(journal.follow(procedure(0, 5))) == list(procedure(0, 5))
    list(journal.follow(procedure(3, 7)))
    assert [(r["step"], r["from"]) for r in journal.records()] == [(i, 0) for i in range(3)] + [
        (i, 3) for i in range(3, 7)
    ]
    list(journal.follow(procedure(7, 7)))
    assert len(journal.records()) == 7, "a finished procedure gives nothing and takes nothing away"


def test_leaving_early_closes_the_procedure(tmp_path):
    closed = []

    def procedure():
        try:
            for step in range(9):
                yield {"step": step}
        finally:
            closed.append(step)

    followed = tracker(tmp_path).follow(procedure())
    assert [next(followed)["step"] for _ in range(3)] == [0, 1, 2]
    followed.close()
    assert closed == [2]


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="wandb_mode"):
        tracker(tmp_path, wandb_mode="cloud")


def test_disabled_means_that_wandb_is_not_even_imported(tmp_path):
    code = (
        "import sys\nfrom forgelib.core.tracking import Tracker\n"
        f"t = Tracker({str(tmp_path)!r}, run_name='x', wandb_mode='disabled')\n"
        "t.log({'step': 0}); t.save_artifact('.', 'x', 'model'); t.finish()\n"
        "assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_offline_mirror_lies_in_the_run_folder_and_is_continued(tmp_path, monkeypatch, capfd):
    """The journal is the same with the mirror as without; a second opening goes on with the same W&B run.

    Nothing is printed, and nothing is left in the home folder.
    """
    home, model = tmp_path / "home", tmp_path / "model"
    for folder in (home, model):
        folder.mkdir()
    (model / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setitem(sys.modules, "openai", types.ModuleType("openai"))  # W&B would advertise its tracing of it
    before = dict(os.environ)
    for first in (0, 2):
        journal = tracker(tmp_path, wandb_mode="offline", config={"lr": 0.1})
        for step in (first, first + 1):
            journal.log({"step": step, "loss": 1.0})
        journal.save_artifact(model, "cognate-trunk", "model")
        journal.finish()
    assert "".join(capfd.readouterr()) == "" and list(home.rglob("*")) == []
    assert {name for name in os.environ if os.environ[name] != before.get(name)} <= {"WANDB_SERVICE"}
    assert [r["step"] for r in journal.records()] == [0, 1, 2, 3]
    run_id = (tmp_path / "wandb_id").read_text()
    mirrors = sorted(folder.name for folder in (tmp_path / "wandb").glob("offline-run-*"))
    assert mirrors and all(run_id in name for name in mirrors), "within one second, W&B adds a number to the name"


@pytest.mark.slow
def test_two_runs_of_one_notebook_have_a_mirror_each(tmp_path):
    """The second neither ends the first nor is taken for it: the search goes on while its controls are trained."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    search, control = (tracker(tmp_path / name, wandb_mode="offline") for name in ("search", "control"))
    search.log({"step": 0, "best": 1.0})
    control.log({"step": 0, "loss": 1.0})
    control.finish()
    search.log({"step": 1, "best": 1.1})
    search.save_artifact(tmp_path / "model", "champion", "model")
    search.finish()
    for journal in (search, control):
        (mirror,) = (journal.run_dir / "wandb").glob("offline-run-*")
        assert mirror.name.endswith((journal.run_dir / "wandb_id").read_text())


def test_names_carry_their_phase_in_the_file_and_readers_get_them_without(tmp_path):
    journal, records = tracker(tmp_path, metrics_prefix="baking/"), [{"step": i, "loss": 1.0} for i in range(3)]
    for record in records:
        journal.log(record)
    journal.rewind(2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, "baking/loss": 1.0}, {"step": 1, "baking/loss": 1.0}]
    assert journal.records() == records[:2] == read_journal(tmp_path / "metrics.jsonl")

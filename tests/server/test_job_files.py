"""What the files of a job tell: who is alive, which run is its own, how far it is. No change of a record is lost."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from serving import TAGS, plant, processes_of

from forgelib.core.loop import Control
from forgelib.core.run import MissingInput, open_run
from forgelib.core.tracking import Tracker
from forgelib.server import jobs, processes, reading, records, secrecy, tasks
from forgelib.server.answers import Refused
from forgelib.workbook import phase3, reinforcement
from forgelib.workbook.params import MODELS, resolve
from forgelib.workbook.progress import Progress


def write_job(name: str, pid: int, started: float, **more) -> dict:
    begun = {"created": time.time(), "process": {"pid": pid, "started": started}}
    record = records.new(name, task="baking", notebook="30_quietstar_bake", parameters={}, resolved={}, **begun)
    folder = records.jobs_dir() / name
    folder.mkdir(parents=True)
    records.write(folder, record | more)
    return record | more


@pytest.fixture
def sleeper():
    """A process that carries the mark of a job called mine."""
    code = "import time; print('up', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {processes.MARK: "mine"}, stdout=-1)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_recycled_process_number_is_not_taken_for_the_job(sleeper):
    own = processes.identity(sleeper.pid)
    assert processes.alive("mine", own)
    assert not processes.alive("another job", own)
    record = jobs.settle(write_job("20260101-000000-aaaaaa", **own))
    assert record["state"] == "died" and "last checkpoint" in record["error"]
    assert sleeper.poll() is None, "a process of somebody else is left alone"


def test_where_the_mark_cannot_be_read_the_start_of_the_process_decides(sleeper, monkeypatch):
    own = processes.identity(sleeper.pid)
    monkeypatch.setattr(processes, "_mark", lambda process: None)
    assert processes.alive("mine", own)
    assert not processes.alive("mine", own | {"started": own["started"] - 60})


def test_what_is_left_of_a_dead_job_is_ended(sleeper):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record = write_job("mine", gone.pid, time.time())
    assert [process.pid for process in processes_of("mine")] == [sleeper.pid]
    assert jobs.settle(record)["state"] == "died"
    assert processes_of("mine") == []


def test_the_first_last_word_counts():
    record = write_job("20260101-000000-aaaaaa", 1, 0.0)
    folder = records.folder_of(record)
    records.end(folder, "finished")
    assert records.end(folder, "died", error="late")["state"] == "finished"
    assert records.change(folder, at="late")["at"] == "starting"


def test_changes_of_a_record_from_many_sides_are_all_kept():
    folder = records.folder_of(write_job("20260101-000000-aaaaaa", 1, 0.0, counts={}))

    def count(who: int) -> None:
        for n in range(20):
            records.change(folder, **{f"side {who}": n})

    sides = [threading.Thread(target=count, args=(who,)) for who in range(8)]
    for side in sides:
        side.start()
    while any(side.is_alive() for side in sides):
        assert records.read(folder)["state"] == "running", "a reader sees a whole record"
    assert all(records.read(folder)[f"side {who}"] == 19 for who in range(8))


def test_a_folder_without_a_whole_record_is_no_job():
    write_job("20260101-000000-aaaaaa", 1, 0.0)
    for name, text in {"20260101-000000-bbbbbb": '{"torn', ".20260101-000000-cccccc": "{}"}.items():
        (records.jobs_dir() / name).mkdir()
        (records.jobs_dir() / name / records.RECORD).write_text(text)
    assert [record["id"] for record in records.every()] == ["20260101-000000-aaaaaa"]


@pytest.mark.parametrize("label", ["baking", "", "full precision"])
@pytest.mark.parametrize(("done", "start", "seconds"), [(30, 0, 100.0), (7, 5, 4000.0), (400, 0, 5.0)])
def test_what_progress_shows_is_read_back(label, done, start, seconds):
    shown = Progress(range(400), total=400, label=label, start=start)
    shown.done, shown._began, shown.values = done, time.monotonic() - seconds, "loss 0.5"
    read = reading.progress_of(shown.line())
    rate = (done - start) / seconds
    assert (read["label"], read["done"], read["total"]) == (label, done, 400)
    assert read["per_second"] == pytest.approx(rate, rel=0.2)
    left = None if done == 400 else (400 - done) / rate
    assert read["seconds_left"] == (left if left is None else pytest.approx(left, abs=1))
    assert reading.progress_of("cell 3 of 20") is None


def test_steps_of_an_earlier_job_of_the_run_are_counted(tmp_path):
    line = {"label": "baking", "done": 5, "total": 100, "per_second": 2.0, "seconds_left": 47.5}
    values = {"loss": float("nan"), "least": float("-inf")}
    Tracker(tmp_path, run_name="r", metrics_prefix="baking/").log({"step": 59, **values})
    with (tmp_path / "metrics.jsonl").open("a") as journal:
        journal.write('{"step": 60, "baking/lo')
    journal = reading.last_record(tmp_path)
    assert journal == {"step": 59, "loss": "nan", "least": "-inf"}
    assert reading.caught_up(line, journal) == line | {"done": 60, "seconds_left": 20.0}
    assert reading.caught_up(line, {"step": 99})["seconds_left"] is None
    for other in (None, {"step": 3}, {"step": 5000}):
        assert reading.caught_up(line, other) == line


def test_the_run_of_a_job_is_the_one_with_its_parameters_and_no_older_one():
    p = resolve(MODELS["30_quietstar_bake"], {"profile": "smoke"}).model_dump()
    older = open_run("30_quietstar_bake", p, seed=0, label="smoke", code=())
    since = (older.dir / "run.json").stat().st_mtime
    os.utime(older.dir / "run.json", (since - 5, since - 5))
    assert reading.find_run("30_quietstar_bake", p, since) is None
    open_run("30_quietstar_bake", p | {"rows": 99}, seed=0, label="smoke", code=())
    assert reading.find_run("30_quietstar_bake", p, since) is None, "another process runs the same notebook"
    open_run("30_quietstar_bake", p, seed=0, label="smoke", code=())
    assert reading.find_run("30_quietstar_bake", p, since) == older.dir


def test_wishes_are_read_as_the_brake_reads_them_and_old_ones_are_not(tmp_path):
    control = Control(tmp_path)
    assert reading.asked_of(tmp_path, 0.0) == control.read() == "run"
    for wish in ("pause", "stop", "resume"):
        control.request(wish)
        assert reading.asked_of(tmp_path, 0.0) == control.read()
    control.request("pause")
    assert reading.asked_of(tmp_path, time.time() + 5) == "run"
    control.path.write_text("[]")
    assert reading.asked_of(tmp_path, 0.0) == control.read() == "run"


def test_an_input_is_missing_exactly_when_the_notebook_would_say_so(runs):
    """The table of inputs and the notebooks' own look-ups find the same artifacts."""
    takes = {
        "baking": (phase3.champion,),
        "rl": (reinforcement.baked, phase3.champion),
        "anti-theater": (reinforcement.reinforced, phase3.champion),
    }

    def missing(task: str) -> tuple[bool, bool]:
        p = tasks.checked(tasks.TASKS[task].notebook, {"profile": "smoke"})
        found = []
        for look in (*(lambda get=get: get(p) for get in takes[task]), lambda: None):
            try:
                look()
                found.append(False)
            except MissingInput:
                found.append(True)
        try:
            tasks.refuse_missing(tasks.TASKS[task].inputs, p)
        except Refused:
            return any(found), True
        return any(found), False

    for name in (None, "evomerge-champion", "quietstar-baked", "quietstar-rl"):
        if name:
            plant(runs, name, **({} if name == "evomerge-champion" else {"vocabulary": "forge-12"}))
        for task in takes:
            by_notebook, by_server = missing(task)
            assert by_notebook == by_server, (name, task)
    assert missing("anti-theater") == (False, False) and TAGS["profile"] == "smoke"


def test_secrets_of_the_environment_are_blotted_out(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-0123456789")
    monkeypatch.setenv("JUPYTER_TOKEN", "the-servers-own")
    assert secrecy.mask("said sk-or-0123456789 and the-servers-own") == "said *** and ***"
    (tmp_path / "log").write_text("one\nBearer sk-or-0123456789\n")
    assert reading.log_tail(tmp_path / "log") == ["one", "Bearer ***"]
    assert "JUPYTER_TOKEN" not in secrecy.without_server_token(os.environ)
    assert "OPENROUTER_API_KEY" in secrecy.without_server_token(os.environ), "makers of rows need it"


def test_an_executed_notebook_tells_its_gates_however_torn(tmp_path):
    gate = {"kind": "gate", "name": "Baking", "passed": False, "rows": [{"name": "all"}], "advice": ""}
    made = {"kind": "artifact", "name": "quietstar-baked", "digest": "0" * 64, "path": "/somewhere"}
    outputs = [{"data": {"application/vnd.forge+json": fact}} for fact in (gate, made)]
    whole = json.dumps({"cells": [{"outputs": outputs}]})
    (tmp_path / "whole").write_text(whole)
    (tmp_path / "torn").write_text(whole[:-20])
    found = reading.facts_of(tmp_path / "whole")
    assert found["gates"] == [{"name": "Baking", "passed": False, "checks": [{"name": "all"}]}]
    assert found["artifacts"] == [{"name": "quietstar-baked", "digest": "0" * 64, "path": "/somewhere"}]
    for name in ("torn", "absent"):
        assert reading.facts_of(tmp_path / name) == {"gates": [], "artifacts": []}

"""Jobs as they run: one of a step at a time, known to every server, ended whole, continued from the checkpoint."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import TOKEN, Server, plant, processes_of, wait_for, write_notebook

from forgelib.server import jobs, records
from forgelib.server.answers import Refused
from forgelib.server.tasks import TASKS

pytestmark = pytest.mark.slow
RESOLVE = "from forgelib.workbook import params, publish\np = params.resolve(params.{model}, globals())"
#: A training of p.rows steps that counts; its checkpoint is the count.
TRAINING = (
    RESOLVE.format(model="QuietBake"),
    """
import time
from forgelib.core.loop import ResumableLoop, RunStopped
from forgelib.core.run import open_run
from forgelib.workbook.progress import Progress

run = open_run(p.NOTEBOOK, p.model_dump(), seed=p.seed, label=p.profile, code=())

class Counter:
    n = 0
    def state_dict(self): return {"n": self.n}
    def load_state_dict(self, state): self.n = state["n"]

def train(counter):
    with ResumableLoop({"counter": counter}, p.rows, run.checkpointer(every_steps=1), run.control) as loop:
        for step in loop:
            counter.n += 1
            time.sleep(0.02)
            yield {"step": step, "count": counter.n, "began_at": loop.start_step}
    if loop.stopped:
        raise RunStopped(loop.done, p.rows)
""",
    'for _ in Progress(run.tracker.follow(train(Counter())), total=p.rows, label="baking", show=("count",)): pass',
)
GATE = """
from forgelib.core.gates import Check, Gate
publish.gate(Gate("Baking", [Check("all", 0.9, 0.5)]))
"""
SMALL = {
    "profile": "smoke",
    "wandb_mode": "disabled",
    "rows": 20,
    "watch_rows": 10,
    "gate_rows": 20,
    "headroom_rows": 0,
}
LONG = {"profile": "smoke", "rows": 100_000}


@pytest.fixture
def end_jobs(house):
    """Nothing that a test started is left when it ends."""
    yield
    for record in records.every():
        jobs.processes.end_all(record["id"])


def ask_both(servers, method, path, body, times):
    """`times` requests at the same moment, dealt out to the servers in turn."""
    with ThreadPoolExecutor(times) as pool:
        asked = [pool.submit(servers[i % len(servers)].ask, method, path, body) for i in range(times)]
        return [one.result() for one in asked]


def test_fifty_requests_at_once_start_one_job_that_outlives_its_servers(house, runs, end_jobs):
    write_notebook(house, "30_quietstar_bake", *TRAINING)
    plant(runs, "evomerge-champion")
    servers = [Server(house, runs), Server(house, runs)]
    try:
        _one_job_of_fifty(servers)
        _pause_and_resume(servers)
        job = servers[0].ask("GET", "baking/status")[1]["id"]
        servers[0].kill()
        _, seen = servers[1].ask("GET", f"baking/status/{job}")
        assert seen["state"] == "running" and processes_of(job)
        servers[1].kill()
        done = seen["journal"]["step"]
        servers.append(Server(house, runs))
        later = wait_for(lambda: _journal_after(servers[2], done))
        assert later["id"] == job
        _stop_and_kill(servers[2], later)
        written = b"".join(path.read_bytes() for path in [*runs.rglob("*.json"), *runs.rglob("*.log")])
        said = b"".join(server.said.read_bytes() for server in servers)
        assert b"baking" in written and TOKEN.encode() not in written + said
    finally:
        for server in servers:
            server.kill()


def _journal_after(server, step):
    _, job = server.ask("GET", "baking/status")
    return job if job["progress"] and job["journal"]["step"] > step else None


def _one_job_of_fifty(servers):
    with ThreadPoolExecutor(2) as pool:
        starts = pool.submit(ask_both, servers, "POST", "baking/start", LONG, 50)
        looks = pool.submit(ask_both, servers, "GET", "baking/status", None, 50)
        starts, looks = starts.result(), looks.result()
    (started,) = [said for status, said in starts if status == 202]
    refused = [said for status, said in starts if status == 409]
    assert len(refused) == 49 and all(said["job"] in ("", started["id"]) for said in refused)
    assert {status for status, _ in looks} <= {200, 404}
    assert {said["id"] for status, said in looks if status == 200} <= {started["id"]}
    for server in servers:
        assert [job["id"] for job in server.ask("GET", "jobs")[1]["jobs"]] == [started["id"]]


def _pause_and_resume(servers):
    first, second = servers
    seen = wait_for(lambda: _journal_after(first, 0))
    assert seen["run"].startswith("30_quietstar_bake-smoke-") and seen["progress"]["total"] == LONG["rows"]
    assert first.ask("GET", f"baking/status/{seen['run']}")[1]["id"] == seen["id"]
    assert first.ask("POST", "baking/resume")[0] == 409
    statuses = [status for status, _ in ask_both(servers, "POST", "baking/pause", {}, 10)]
    assert sorted(statuses) == [200] + 9 * [409]
    assert second.ask("GET", "baking/status")[1]["state"] == "paused"
    assert second.ask("POST", "baking/start", LONG)[0] == 409, "a paused job is running still"
    held = wait_for(lambda: _standing(second))
    assert second.ask("POST", "baking/resume")[1]["state"] == "running"
    wait_for(lambda: _journal_after(first, held))


def _standing(server):
    """The journal's last step when it is the same after a second, else None."""
    import time

    before = server.ask("GET", "baking/status")[1]["journal"]["step"]
    time.sleep(1)
    return before if server.ask("GET", "baking/status")[1]["journal"]["step"] == before else None


def _stop_and_kill(server, job):
    """Stopped it keeps its checkpoint; killed it is reported, leaves nothing, and goes on when started again."""
    assert server.ask("POST", "baking/stop")[1]["state"] == "stopping"
    ended = wait_for(lambda: _ended(server, job["id"]))
    assert ended["state"] == "stopped" and "stopped on request after step" in ended["error"]
    wait_for(lambda: not processes_of(job["id"]))
    for wish in ("pause", "resume", "stop"):
        assert server.ask("POST", f"baking/{wish}")[0] == 409
    reached = ended["journal"]["step"]

    _, second = server.ask("POST", "baking/start", LONG)
    seen = wait_for(lambda: _journal_after(server, reached))
    assert seen["id"] == second["id"] and 0 < seen["journal"]["began_at"] <= reached + 1
    assert len(processes_of(second["id"])) >= 2, "the worker and its kernel"
    os.kill(records.read(records.jobs_dir() / second["id"])["process"]["pid"], signal.SIGKILL)
    ended = wait_for(lambda: _ended(server, second["id"]))
    assert ended["state"] == "died" and "last checkpoint" in ended["error"]
    assert processes_of(second["id"]) == []

    _, third = server.ask("POST", "baking/start", LONG)
    seen = wait_for(lambda: _journal_after(server, ended["journal"]["step"]))
    assert seen["id"] == third["id"] and seen["journal"]["began_at"] >= reached
    assert server.ask("POST", "baking/stop", {"now": True})[0] == 200
    assert wait_for(lambda: _ended(server, third["id"]))["state"] == "stopped"
    wait_for(lambda: not processes_of(third["id"]))


def _ended(server, job):
    _, seen = server.ask("GET", f"baking/status/{job}")
    return seen if seen["state"] in records.ENDED else None


def _finish(record):
    """The status of a job that was started here, when it has ended."""
    seen = wait_for(lambda: (r := jobs.find((record["task"],), record["id"])) and r["state"] in records.ENDED and r)
    return jobs.status(seen)


def test_a_plain_job_is_a_run_of_the_workbook(house, runs, end_jobs):
    """Its page lands in the report, and what is finished and unchanged is reused; any other parameter is its own."""
    write_notebook(house, "30_quietstar_bake", RESOLVE.format(model="QuietBake"), GATE)
    plant(runs, "evomerge-champion")
    done = _finish(jobs.start(TASKS["baking"], {"profile": "smoke"}))
    assert done.state == "finished" and done.error is None
    assert [(gate["name"], gate["passed"]) for gate in done.gates] == [("Baking", True)]
    assert (runs / "executed/smoke-seed0-procedural/30_quietstar_bake.ipynb").is_file()
    assert "Baking" in (house / "reports/phase3.html").read_text()
    again = _finish(jobs.start(TASKS["baking"], {"profile": "smoke"}))
    assert again.state == "finished" and again.gates == done.gates
    assert any("reused" in line for line in again.log)


def test_a_failed_job_says_why_and_tells_no_secret(house, runs, end_jobs, monkeypatch):
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-not-in-any-log")
    monkeypatch.setenv("JUPYTER_TOKEN", TOKEN)
    tell = "import os\nassert 'JUPYTER_TOKEN' not in os.environ\nkey = os.environ['OPENROUTER_API_KEY']\n"
    write_notebook(house, "30_quietstar_bake", RESOLVE.format(model="QuietBake"), tell + "raise ValueError(key)")
    plant(runs, "evomerge-champion")
    done = _finish(jobs.start(TASKS["baking"], {"profile": "smoke", "rows": 30}))
    assert done.state == "failed" and "30_quietstar_bake, cell 3" in done.error and "ValueError: ***" in done.error
    folder = runs / "jobs" / done.id
    written = (folder / "job.json").read_text() + (folder / "job.log").read_text() + done.model_dump_json()
    assert "sk-or-not-in-any-log" not in written and TOKEN not in written
    with pytest.raises(Refused, match="nothing to stop"):
        jobs.stop(jobs.find(("baking",), done.id))


def test_a_trial_cannot_wait_but_can_be_stopped(house, runs, end_jobs):
    mark = house / "kernel"
    code = f"import os, pathlib, time\npathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    write_notebook(house, "32_quietstar_antitheater", RESOLVE.format(model="QuietTheater"), code)
    plant(runs, "evomerge-champion")
    plant(runs, "quietstar-rl", vocabulary="forge-12")
    record = jobs.start(TASKS["anti-theater"], {"profile": "smoke", "samples": 4})
    wait_for(lambda: mark.is_file() and mark.read_text())
    with pytest.raises(Refused, match="has no steps"):
        jobs.pause(jobs.find(("rl", "anti-theater"), record["id"]))
    assert jobs.state_of(jobs.stop(jobs.find(("rl", "anti-theater")))) == "stopping"
    assert _finish(record).state == "stopped"
    wait_for(lambda: not processes_of(record["id"]))


def test_the_real_baking_runs_as_a_job(runs, end_jobs, monkeypatch):
    """30_quietstar_bake itself, at the smoke profile, on a champion that is a tiny Llama."""
    from serving import ROOT

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FORGE_RUNS", str(runs))
    plant(runs, "evomerge-champion", write=_tiny_llama)
    record = jobs.start(TASKS["baking"], SMALL)
    done = _finish(record)
    assert done.state == "finished", done.error
    assert done.run.startswith("30_quietstar_bake-smoke-") and done.journal["loss"] > 0
    assert done.progress.done == done.progress.total > 0 and done.progress.label == "baking"
    assert [gate["name"] for gate in done.gates] == ["Baking"] and len(done.gates[0]["checks"]) == 11
    assert [made["name"] for made in done.artifacts] == ["quietstar-baked"]
    assert json.loads((runs / "runs" / done.run / "run.json").read_text())["params"]["rows"] == SMALL["rows"]


def _tiny_llama(folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from forgelib.data import vocabulary
    from forgelib.data.tokenizer import train_bpe
    from forgelib.data.traces import procedural_rows

    rows = procedural_rows(40, vocabulary("forge-12"), seed=0, part="train")
    tokenizer, _ = train_bpe([row.text for row in rows], 320)
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **small))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

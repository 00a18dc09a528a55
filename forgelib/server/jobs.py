"""Jobs: a notebook step as a process of its own, which outlives the tab that started it and the server as well.

Who starts a step holds the lock file of that step and hands it to the job's process, which keeps it to its end. So one
job of a step runs at a time, however many requests and servers ask, and a job that was killed is in nobody's way.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from forgelib.core.paths import runs_dir
from forgelib.server import processes, reading, records
from forgelib.server.answers import Job, Refused
from forgelib.server.records import ENDED, Record
from forgelib.server.tasks import TASKS, Task, checked, refuse_missing

#: Seconds to wait for a job that has said its last word to let go of its lock.
PATIENCE = 5.0
INTERRUPTED = "stopped on request: start it again to go on from the last checkpoint"
DIED = (
    "the process is gone without a last word: most often it was killed, or the memory ran out. "
    "Start the step again: it goes on from the last checkpoint."
)


def start(task: Task, asked: dict[str, Any]) -> Record:
    """Start a step with these parameters. Raises Refused: 422 for parameters, 409 for a missing input or a double
    start."""
    p = checked(task.notebook, asked)
    refuse_missing(task.inputs, p)
    with _take(task) as lock:
        settle_all()  # a kernel left behind by a killed job must not train on beside the new one
        return _launch(task, asked, p.model_dump(), lock)


def _take(task: Task) -> IO[str]:
    """The lock of a step. Raises Refused (409) where a job has it."""
    jobs = records.jobs_dir()
    jobs.mkdir(parents=True, exist_ok=True)
    lock, give_up = (jobs / f".{task.notebook}.lock").open("a"), time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            running = live(task)
            if running or time.monotonic() > give_up:
                lock.close()
                raise _double(task, running[0]["id"] if running else "") from None
            time.sleep(0.05)  # a job that is ending, or that is being started by somebody else


def _double(task: Task, job: str) -> Refused:
    name = f"job {job}" if job else "another job"
    return Refused(409, f"{task.name} is already running as {name}", "wait for it, or stop it first", job=job)


def _launch(task: Task, asked: dict[str, Any], resolved: dict[str, Any], lock: IO[str]) -> Record:
    """Spawn the worker, write the record that names it, and only then let it work."""
    now = time.time()
    job = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    draft, folder = records.jobs_dir() / f".{job}", records.jobs_dir() / job
    draft.mkdir()
    try:
        with (draft / records.LOG).open("wb") as log:
            process = processes.spawn(job, log, lock)
        record = records.new(
            job,
            task=task.name,
            notebook=task.notebook,
            parameters=asked,
            resolved=resolved,
            created=now,
            process=processes.identity(process.pid),
        )
        records.write(draft, record)
        os.rename(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    processes.told(process, folder)
    threading.Thread(target=_accompany, args=(process, folder), daemon=True).start()
    return record


def _accompany(process: subprocess.Popen, folder: Path) -> None:
    """Wait for a job that this server started, so that nothing of it is left when it is killed."""
    process.wait()
    with contextlib.suppress(OSError):  # somebody deleted its folder
        settle(records.read(folder))


def settle(record: Record) -> Record:
    """The record as it is now: a job whose process is gone has died, and what is left of it is ended."""
    if record["state"] in ENDED or processes.alive(record["id"], record["process"]):
        return record
    processes.end_all(record["id"])
    state, error = ("stopped", INTERRUPTED) if record["stop_asked"] else ("died", DIED)
    return records.end(records.folder_of(record), state, error=error)


def settle_all() -> list[Record]:
    """All jobs as they are now, the newest first."""
    return [settle(record) for record in records.every()]


def live(task: Task) -> list[Record]:
    """The jobs of a step that have not ended; one at most, but for the moment between two."""
    return [record for record in settle_all() if record["task"] == task.name and record["state"] not in ENDED]


def find(tasks: tuple[str, ...], name: str = "") -> Record:
    """The job with this id or run folder; without a name the one that runs (of the first of these tasks that has one),
    else the newest. Raises Refused (404)."""
    found = [record for record in settle_all() if record["task"] in tasks]
    if name:
        found = [record for record in found if name in (record["id"], record["run"])]
        if not found:
            raise Refused(
                404, f"{tasks[0]}: there is no job or run {name!r}", "GET /forge/api/jobs lists what there is"
            )
    if not found:
        raise Refused(404, f"{tasks[0]}: nothing was started yet", f"POST /forge/api/{tasks[0]}/start")
    running = [record for record in found if record["state"] not in ENDED]
    return min(running, key=lambda record: tasks.index(record["task"]), default=found[0])


def run_folder(record: Record) -> Path | None:
    """The run folder of a job, once it is known."""
    return runs_dir() / "runs" / record["run"] if record["run"] else None


def state_of(record: Record) -> str:
    """The state now: the last word, else what was asked of the run."""
    if record["state"] in ENDED:
        return record["state"]
    run = run_folder(record)
    wish = "stop" if record["stop_asked"] else reading.asked_of(run, record["created"]) if run else "run"
    return {"stop": "stopping", "pause": "paused"}.get(wish, "running")


def status(record: Record, brief: bool = False) -> Job:
    """What is known of a job; `brief` leaves out the log."""
    run = run_folder(record)
    journal = reading.last_record(run) if run else None
    shown = {name: record[name] for name in Job.model_fields if name in record}
    shown |= {
        "state": state_of(record),
        "created": datetime.fromtimestamp(record["created"], UTC).isoformat(timespec="seconds"),
        "seconds": round(record.get("ended", time.time()) - record["created"], 1),
        "progress": reading.caught_up(record["progress"], journal),
        "journal": journal,
        "log": [] if brief else reading.log_tail(records.folder_of(record) / records.LOG),
    }
    return Job(**shown)


def pause(record: Record) -> Record:
    """Let a job wait after its current step. Raises Refused (409) where there is nothing to pause."""
    return _steer(record, "pause", "running")


def resume(record: Record) -> Record:
    """Wake a paused job. Raises Refused (409) where none is paused."""
    return _steer(record, "resume", "paused")


def stop(record: Record, now: bool = False) -> Record:
    """Let a job write a checkpoint and end after its current step; with `now`, or where it has no such steps, interrupt
    it. Raises Refused (409) where it has ended."""
    if record["state"] in ENDED:
        raise Refused(409, f"nothing to stop: job {record['id']} is {record['state']}", "start the step anew")
    record = records.change(records.folder_of(record), stop_asked=True)
    if TASKS[record["task"]].steps and record["run"] and not now:
        return _steer(record, "stop", "stopping")
    if processes.alive(record["id"], record["process"]):
        os.kill(record["process"]["pid"], signal.SIGINT)
    return record


def _steer(record: Record, wish: str, while_it_is: str) -> Record:
    """Ask the run of a job that is in this state; of several requests at once each sees what the one before did."""
    if not TASKS[record["task"]].steps:
        raise Refused(409, f"{record['task']} has no steps between which it could wait", "let it end, or stop it")
    from forgelib.core.loop import Control  # here: it loads torch

    with records.held(records.folder_of(record)):
        record = records.read(records.folder_of(record))
        if (state := state_of(record)) != while_it_is:
            raise Refused(409, f"nothing to {wish}: job {record['id']} is {state}", "GET its status", job=record["id"])
        if (run := run_folder(record)) is None:
            raise Refused(409, "the notebook has not opened its run yet", "ask again when the status names a run")
        Control(run).request(wish)
    return record

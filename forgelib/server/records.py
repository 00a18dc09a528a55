"""The record of a job: one JSON file in the job's folder, always whole, changed by one process at a time.

<runs>/jobs/<id>/job.json is the record, job.log beside it what the job said. A folder whose name begins with a dot is
no job yet.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forgelib.core.artifacts import fsync
from forgelib.core.paths import runs_dir

RECORD, LOG = "job.json", "job.log"
ENDED = ("stopped", "finished", "failed", "died")
Record = dict[str, Any]


def jobs_dir() -> Path:
    """Folder of all jobs of the run folder."""
    return runs_dir() / "jobs"


def folder_of(record: Record) -> Path:
    """Where a job's record and log lie."""
    return jobs_dir() / record["id"]


def new(
    job: str,
    *,
    task: str,
    notebook: str,
    parameters: dict[str, Any],
    resolved: dict[str, Any],
    created: float,
    process: dict[str, Any],
) -> Record:
    """The record of a job that is about to begin. parameters: what was asked for; resolved: all that it runs with;
    created: seconds since the epoch; process: what `processes.identity` says of its process."""
    return {
        "id": job,
        "task": task,
        "notebook": notebook,
        "state": "running",
        "parameters": parameters,
        "resolved": resolved,
        "created": created,
        "process": process,
        "run": None,
        "at": "starting",
        "progress": None,
        "gates": [],
        "artifacts": [],
        "error": None,
        "stop_asked": False,
    }


def read(folder: Path) -> Record:
    """The record of a job."""
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))


def write(folder: Path, record: Record) -> None:
    """Replace the record; a reader sees the old one or the new one."""
    draft = folder / f".{RECORD}-{os.getpid()}"
    draft.write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
    fsync(draft)
    os.replace(draft, folder / RECORD)


def every() -> list[Record]:
    """The records of all jobs, the newest first. A folder without a whole record is no job."""
    found = []
    for folder in jobs_dir().glob("[!.]*"):
        with contextlib.suppress(OSError, ValueError):
            found.append(read(folder))
    return sorted(found, key=lambda record: (record["created"], record["id"]), reverse=True)


def change(folder: Path, **facts: Any) -> Record:
    """Change some facts of the record and return it. A job that has ended is not changed any more."""
    with held(folder):
        record = read(folder)
        if record["state"] not in ENDED:
            record |= facts
            write(folder, record)
        return record


def end(folder: Path, state: str, **facts: Any) -> Record:
    """The last word on a job; the first last word counts."""
    return change(folder, state=state, ended=time.time(), **facts)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else changes the record meanwhile; `change` would wait for itself inside."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

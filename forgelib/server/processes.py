"""The processes of a job: started in a session of their own, known by a mark, ended together.

Every process of a job carries FORGE_JOB=<id> in its environment, which its children inherit: a recycled process number
is never taken for the job, and a kernel that lost its job is found although it leads a session of its own.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

from forgelib.core.paths import repo_root
from forgelib.server.secrecy import without_server_token

MARK = "FORGE_JOB"
#: Seconds by which two readings of one process's start may differ where the system's clock was set in between.
CLOCK_SLACK = 2.0


def spawn(job: str, log: IO[bytes], lock: IO[Any]) -> subprocess.Popen:
    """The worker of a job, waiting to be told its folder on standard input; it ends by itself when nobody does.

    It keeps `lock` as long as it lives, whatever becomes of the server.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "forgelib.server.worker"],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=repo_root(),
        env={**without_server_token(os.environ), MARK: job},
        start_new_session=True,
        pass_fds=(lock.fileno(),),
    )


def told(process: subprocess.Popen, folder: Path) -> None:
    """Tell a spawned worker which job it is. One that is gone already is seen by its missing last word."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(f"{folder}\n".encode())
        process.stdin.close()


def identity(pid: int) -> dict[str, Any]:
    """Number and start (seconds since the epoch) of a process that has just been started."""
    return {"pid": pid, "started": psutil.Process(pid).create_time()}


def alive(job: str, known: dict[str, Any]) -> bool:
    """Whether the process that `identity` described still runs, and is this job's."""
    try:
        process = psutil.Process(known["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if (mark := _mark(process)) is not None:
            return mark == job
        return abs(process.create_time() - known["started"]) <= CLOCK_SLACK
    except psutil.NoSuchProcess:
        return False


def end_all(job: str, spare: Callable[[int], bool] = lambda pid: False) -> int:
    """Kill every process of a job but those to spare; returns how many there were."""
    found = [process for process in psutil.process_iter() if not spare(process.pid) and _is_of(process, job)]
    for process in found:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(found, timeout=5)
    return len(found)


def _is_of(process: psutil.Process, job: str) -> bool:
    try:
        return _mark(process) == job
    except psutil.NoSuchProcess:
        return False


def _mark(process: psutil.Process) -> str | None:
    """The job that a process says it belongs to, "" for none; None where its environment cannot be read, or not yet:
    it is empty in the moment between a process's birth and its program's."""
    try:
        environment = process.environ()
    except (psutil.AccessDenied, OSError):
        return None
    return environment.get(MARK, "") if environment else None

"""Reinforcement survives SIGKILL: ten kills at random moments, and the same weights and journal in the end."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from forgelib.core.tracking import Tracker

SCRIPT = Path(__file__).with_name("tiny_reinforcement.py")
ROOT = SCRIPT.parents[2]
KILLS, STEPS, PATIENCE_SECONDS = 10, 60, 300


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., psutil.Process]]:
    """start(folder, pause) -> the process that trains there, forked from one that has everything loaded."""
    environment, command = {**os.environ, "PYTHONPATH": str(ROOT)}, [sys.executable, str(SCRIPT)]
    with (tmp_path / "errors").open("w") as errors:
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )

    def started(folder: Path, pause: float) -> psutil.Process:
        folder.mkdir(exist_ok=True)
        print(folder, pause, file=server.stdin, flush=True)
        said = server.stdout.readline()
        assert said, (tmp_path / "errors").read_text()[-2000:]
        return psutil.Process(int(said))

    yield started
    for process in psutil.Process(server.pid).children():
        process.kill()
    server.kill()
    server.communicate()


def finish(process: psutil.Process, folder: Path) -> bytes:
    """The weights that it leaves."""
    process.wait(timeout=PATIENCE_SECONDS)
    weights = folder / "weights.safetensors"
    assert weights.exists(), (folder.parent / "errors").read_text()[-2000:]
    return weights.read_bytes()


def lines(folder: Path) -> int:
    journal = folder / "metrics.jsonl"
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def kill_at(process: psutil.Process, folder: Path, step: int, delay: float) -> bool:
    """SIGKILL once the journal has `step` records and `delay` seconds later. False when it finished before."""
    while process.is_running() and lines(folder) < step:
        time.sleep(0.002)
    time.sleep(delay)
    if not process.is_running():
        return False
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    return True


def newest(folder: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*")), default=0)


@pytest.mark.slow
def test_ten_kills_change_neither_weights_nor_journal(tmp_path, start):
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    whole = finish(start(calm, 0.0), calm)
    records = Tracker(calm, run_name="read").records()
    assert [r["episode"] for r in records] == list(range(2, 2 * STEPS + 1, 2))
    restored = [r["restored"] for r in records if "restored" in r]
    assert restored == [False, True, False, True, False, True, False, False], "checks of both kinds lie on the way"

    dice = random.Random(20261122)
    moments, reached = sorted(dice.sample(range(1, STEPS - 6), KILLS)), []
    for moment in moments:
        assert kill_at(start(stormy, 0.03), stormy, moment, dice.uniform(0.0, 0.1)), "it finished before the kill"
        reached.append(newest(stormy))
    assert reached == sorted(reached) and len(set(reached)) >= KILLS // 2, f"killed all along the way, not at {reached}"
    assert finish(start(stormy, 0.0), stormy) == whole
    assert Tracker(stormy, run_name="read").records() == records, "every episode once, with the same figures"

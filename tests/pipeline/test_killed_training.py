"""11_cognate_train survives SIGKILL: ten kills at random moments, and the same bits in the end."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("notebook_process.py")
KNOBS = ("specialist=memory", "trunk_steps=30", "steps=20", "checkpoint_every_seconds=0.1", "accuracy_samples=10")
KILLS = 10


def start(runs: Path) -> subprocess.Popen:
    environment = {**os.environ, "FORGE_RUNS": str(runs), "FORGE_PROFILE": "smoke", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "11_cognate_train", *KNOBS]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def steps_done(runs: Path) -> int:
    return sum(len(journal.read_text().splitlines()) for journal in runs.glob("runs/*/metrics.jsonl"))


def weights(runs: Path) -> dict[str, str]:
    found = {}
    for part in ("trunk", "memory"):
        (file,) = runs.glob(f"artifacts/cognate-{part}-*/model/model.safetensors")
        found[part] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def kill_at(process: subprocess.Popen, runs: Path, step: int, delay: float) -> bool:
    """SIGKILL once the journal has `step` records and `delay` seconds later. False when it finished before."""
    while process.poll() is None and steps_done(runs) < step:
        time.sleep(0.02)
    time.sleep(delay)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


@pytest.mark.slow
def test_ten_kills_change_no_bit(tmp_path):
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    uninterrupted = start(calm)
    _, errors = uninterrupted.communicate(timeout=300)
    assert uninterrupted.returncode == 0, errors[-2000:]

    dice = random.Random(20261121)
    moments = sorted(dice.sample(range(1, 48), KILLS))
    kills = 0
    for moment in moments:
        kills += kill_at(start(stormy), stormy, moment, dice.uniform(0, 0.3))
    last = start(stormy)
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors[-2000:]
    assert kills == KILLS, "every kill must have hit a living training"
    assert weights(stormy) == weights(calm)
    assert steps_done(stormy) == steps_done(calm) == 50, "the journal holds every step once"

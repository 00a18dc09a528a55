"""The search of Phase 2 survives SIGKILL: five kills at random moments, the same champion and ledger in the end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PHASES = Path(__file__).resolve().parents[1] / "phases"
sys.path.insert(0, str(PHASES))
KILLS, GENERATIONS = 5, 9
#: Searches in a folder that holds a family, and writes the champion's key when it is done.
SCRIPT = """
import sys, time
from pathlib import Path
from tiny_family import N_LAYERS, plan_of
from forgelib.phases.evomerge import EvolutionConfig, evolve
from forgelib.phases.genome import Genome
from forgelib.phases.ledger import Ledger
from forgelib.phases.population import LocalPopulation

family, folder = map(Path, sys.argv[1:3])
config = EvolutionConfig(n_models=3, n_layers=N_LAYERS, seed=3, generations=int(sys.argv[3]), patience=99)
with LocalPopulation(plan_of(family), 1) as population:
    def measure(genomes):
        time.sleep(0.3)
        return population(genomes)
    for record in evolve(config, measure, Ledger(folder / "ledger.jsonl")):
        pass
(folder / "champion").write_text(Genome.from_dict(record["champion"]).key)
"""


def start(family: Path, folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PHASES)}
    command = [sys.executable, "-c", SCRIPT, str(family), str(folder), str(GENERATIONS)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]


def lines(folder: Path) -> list[str]:
    path = folder / "ledger.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def content(folder: Path) -> list:
    """Keys and results in their order, without the seconds."""
    found = [json.loads(line.rpartition("\t")[0]) for line in lines(folder)]
    return [(key, {name: value for name, value in result.items() if name != "seconds"}) for key, result in found]


def kill_at(process: subprocess.Popen, folder: Path, measured: int, delay: float) -> bool:
    """SIGKILL once the ledger has `measured` lines and `delay` seconds later. False when it finished before."""
    while process.poll() is None and len(lines(folder)) < measured:
        time.sleep(0.005)
    time.sleep(delay)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return True


@pytest.mark.slow
def test_five_kills_change_neither_champion_nor_ledger(tmp_path):
    from tiny_family import cognate, save_family

    family, calm, stormy = tmp_path / "family", tmp_path / "calm", tmp_path / "stormy"
    save_family(family, cognate)
    finish(start(family, calm))
    total = len(content(calm))
    assert total > 40

    dice = random.Random(20261122)
    moments = sorted(dice.sample(range(1, total - 12), KILLS))
    kills = [kill_at(start(family, stormy), stormy, moment, dice.uniform(0, 0.4)) for moment in moments]
    assert all(kills), "every kill must have hit a living search"
    assert len(lines(stormy)) < total and not (stormy / "champion").exists()
    finish(start(family, stormy))
    assert (stormy / "champion").read_text() == (calm / "champion").read_text()
    assert content(stormy) == content(calm)

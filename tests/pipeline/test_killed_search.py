"""The search of Phase 2 survives SIGKILL: five kills at random moments, the same champion and ledger in the end."""

import json
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

PHASES = Path(__file__).resolve().parents[1] / "phases"
sys.path.insert(0, str(PHASES))
KILLS, GENERATIONS, PATIENCE_SECONDS = 5, 8, 600
#: For every folder that it is told, a process of its own that searches there; all have torch loaded when they start.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from tiny_family import N_LAYERS, plan_of
from forgelib.phases.evomerge import EvolutionConfig, evolve
from forgelib.phases.genome import Genome
from forgelib.phases.ledger import Ledger
from forgelib.phases.population import LocalPopulation

def search(folder):
    given = dict(generations=int(sys.argv[2]), patience=99, winners=2)
    config = EvolutionConfig(n_models=3, n_layers=N_LAYERS, seed=3, **given)
    with LocalPopulation(plan_of(Path(sys.argv[1]), n_texts=6), 1) as population:
        def measure(genomes, race=False):
            time.sleep(0.2)
            return population(genomes, race)
        for record in evolve(config, measure, Ledger(folder / "ledger.jsonl")):
            pass
    (folder / "champion").write_text(Genome.from_dict(record["champion"]).key)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        search(Path(line.strip()))
        os._exit(0)
    print(pid, flush=True)
"""


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[[Path], psutil.Process]]:
    """start(folder) -> the process that searches there."""
    from tiny_family import cognate, save_family

    save_family(tmp_path / "family", cognate)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PHASES)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "family"), str(GENERATIONS)]
    with (tmp_path / "errors").open("w") as errors:
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )

    def started(folder: Path) -> psutil.Process:
        folder.mkdir(exist_ok=True)
        print(folder, file=server.stdin, flush=True)
        said = server.stdout.readline()
        assert said, (tmp_path / "errors").read_text()[-2000:]
        return psutil.Process(int(said))

    yield started
    for process in psutil.Process(server.pid).children():
        process.kill()
    server.kill()
    server.communicate()


def finish(process: psutil.Process, folder: Path) -> str:
    """The key of the champion."""
    process.wait(timeout=PATIENCE_SECONDS)
    errors = (folder.parent / "errors").read_text()
    assert (folder / "champion").exists(), errors[-2000:]
    return (folder / "champion").read_text()


def lines(folder: Path) -> list[str]:
    path = folder / "ledger.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def content(folder: Path) -> list:
    """Keys and results in their order, without the seconds."""
    found = [json.loads(line.rpartition("\t")[0]) for line in lines(folder)]
    return [(key, {name: value for name, value in result.items() if name != "seconds"}) for key, result in found]


def kill_at(process: psutil.Process, folder: Path, measured: int, delay: float) -> bool:
    """SIGKILL once the ledger has `measured` lines and `delay` seconds later. False when it finished before."""
    while process.is_running() and len(lines(folder)) < measured:
        time.sleep(0.005)
    time.sleep(delay)
    if not process.is_running():
        return False
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    return True


@pytest.mark.slow
def test_five_kills_change_neither_champion_nor_ledger(tmp_path, start):
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    champion = finish(start(calm), calm)
    total = len(content(calm))
    assert total > 40

    dice = random.Random(20261122)
    moments = sorted(dice.sample(range(1, total - 12), KILLS))
    kills = [kill_at(start(stormy), stormy, moment, dice.uniform(0, 0.3)) for moment in moments]
    assert all(kills), "every kill must have hit a living search"
    assert len(lines(stormy)) < total and not (stormy / "champion").exists()
    assert finish(start(stormy), stormy) == champion
    assert content(stormy) == content(calm)

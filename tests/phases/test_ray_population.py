"""Ray measures what this process measures, and a worker that is killed changes nothing."""

import os
import random
import signal
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
from tiny_family import N_LAYERS, save_family

from forgelib.phases.genome import chaos, random_genome
from forgelib.phases.population import LocalPopulation
from forgelib.phases.ray_population import RayMissing, RayPopulation


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return save_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def genomes():
    dice = random.Random(5)
    drawn = [random_genome(dice, 3, N_LAYERS) for _ in range(7)]
    return [*drawn, chaos(drawn[:3], dice, N_LAYERS)]


def workers() -> list[psutil.Process]:
    """The actors of the cluster that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("ray::_Worker" in part for part in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.slow
def test_two_workers_give_this_process_numbers_and_a_kill_changes_none(plan, genomes):
    import ray

    with LocalPopulation(plan, 1) as here:
        expected, raced = here(genomes), here(genomes, race=True)
    with RayPopulation(plan, 2) as population:
        assert population(genomes) == expected and population(genomes, race=True) == raced != expected
        before, finished = {process.pid for process in workers()}, threading.Event()
        killed = []

        def kill() -> None:
            time.sleep(0.3)
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            killed.append((victim, finished.is_set()))

        killer = threading.Thread(target=kill)
        killer.start()
        results = population(genomes * 25)
        finished.set()
        killer.join()
        assert killed == [(min(before), False)], "the kill must have hit a worker in mid-generation"
        after = {process.pid for process in workers()}
        assert len(before) == len(after) == 2 and len(before & after) == 1, "a new one stands in its place"
        assert results == expected * 25
        with pytest.raises(ValueError, match="bits = '12'"):
            population([genomes[0], replace(genomes[0], bits="12")])
    assert not ray.is_initialized() and not workers()
    with pytest.raises(RuntimeError, match="with"):
        population(genomes)


def fake_ray(monkeypatch, connected: bool = False, failures: int = 0, **resources) -> list[dict]:
    """A module in Ray's place that notes how it was called; its first `failures` starts fail."""
    calls: list[dict] = []

    def init(**given):
        calls.append({"init": given, "usage": os.environ.get("RAY_USAGE_STATS_ENABLED")})
        if sum("init" in call for call in calls) <= failures:
            raise Exception("The current node timed out during startup.")

    def remote(**options):
        calls.append({"remote": options})
        return lambda _: SimpleNamespace(remote=lambda plan: "actor")

    fake = SimpleNamespace(
        is_initialized=lambda: connected,
        init=init,
        put=lambda value: calls.append({"put": value}) or "reference",
        cluster_resources=lambda: resources,
        remote=remote,
        kill=lambda actor: calls.append({"kill": actor}),
        shutdown=lambda: calls.append({"shutdown": True}),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    return calls


def test_it_starts_a_cluster_of_its_own_or_joins_the_one_that_is_named(plan, monkeypatch):
    calls = fake_ray(monkeypatch, CPU=3)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with RayPopulation(plan, 3):
        pass
    (start,) = (call for call in calls if "init" in call)
    assert start["init"]["address"] == "local" and start["init"]["num_cpus"] == 3
    assert start["init"]["include_dashboard"] is False and start["usage"] == "0"
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
    assert [call for call in calls if "put" in call] == [{"put": plan}], "once, whatever the number of workers"
    assert calls[-4:] == [*[{"kill": "actor"}] * 3, {"shutdown": True}]
    calls.clear()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    with RayPopulation(plan, 3):
        pass
    (start,) = (call for call in calls if "init" in call)
    assert "address" not in start["init"] and "num_cpus" not in start["init"]


def test_a_cluster_that_the_process_is_connected_to_is_left_as_it_was(plan, monkeypatch):
    calls = fake_ray(monkeypatch, connected=True, CPU=3)
    with RayPopulation(plan, 2):
        pass
    assert [name for call in calls for name in call] == ["put", "remote", "kill", "kill"]


@pytest.mark.parametrize("failures", [2, 3])
def test_a_start_that_took_too_long_is_tried_again(plan, monkeypatch, failures):
    calls = fake_ray(monkeypatch, failures=failures, CPU=2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    population = RayPopulation(plan, 2)
    if failures < 3:
        with population:
            pass
    else:
        with pytest.raises(Exception, match="timed out during startup"), population:
            pass
    assert sum("init" in call for call in calls) == 3 and "RAY_USAGE_STATS_ENABLED" not in os.environ


@pytest.mark.parametrize(
    "device, resources, workers, needs",
    [
        ("cpu", {"CPU": 8, "GPU": 2}, 4, {"num_cpus": 1}),
        ("cpu", {"CPU": 2}, 4, {"num_cpus": 0.5}),
        ("cpu", {}, 4, {"num_cpus": 0}),
        ("cuda", {"CPU": 8, "GPU": 2}, 3, {"num_cpus": 1, "num_gpus": 0.5}),
        ("cuda:0", {"CPU": 8, "GPU": 4}, 2, {"num_cpus": 1, "num_gpus": 1}),
    ],
)
def test_every_worker_finds_a_place(plan, monkeypatch, device, resources, workers, needs):
    calls = fake_ray(monkeypatch, **resources)
    with RayPopulation(replace(plan, device=device), workers):
        pass
    (asked,) = (call["remote"] for call in calls if "remote" in call)
    assert {name: value for name, value in asked.items() if name.startswith("num_")} == needs


def test_without_ray_it_says_what_to_install(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayMissing, match=r"pip install 'forgelib\[ray\]'"), RayPopulation(plan, 2):
        pass

"""CMA-ES on the same genes: it climbs, keeps to the budget, and retraces its steps."""

import random
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from fake_measure import Measure, slope, without_seconds

from forgelib.core.loop import Control
from forgelib.merge import RECIPES
from forgelib.phases.cmaes import Cube, evolve_cmaes
from forgelib.phases.evomerge import EvolutionConfig, SearchStopped, evolve
from forgelib.phases.genome import RANGES, Genome, default_genome, random_genome
from forgelib.phases.ledger import Ledger

CONFIG = EvolutionConfig(n_models=3, n_layers=4, seed=7, generations=12, patience=12)


def search(measure=None, config=CONFIG, ledger=None, control=None, budget=None) -> list[dict]:
    ledger = ledger if ledger is not None else Ledger()
    return list(evolve_cmaes(config, measure or Measure(), ledger, control, budget))


def test_a_point_of_the_cube_is_a_genome_and_back():
    cube, dice = Cube(3, 4), random.Random(0)
    for genome in [*(default_genome(bits, 3, 4) for bits in RECIPES), *(random_genome(dice, 3, 4) for _ in range(50))]:
        point = cube.point(genome)
        assert point.shape == (len(cube.rounded),) and point.min() >= 0 and point.max() <= 1
        again = cube.genome(point)
        assert (again.bits, again.pattern, again.dials) == (genome.bits, genome.pattern, genome.dials)
        for name, (low, high, _) in RANGES.items():
            assert getattr(again, name) == pytest.approx(getattr(genome, name), abs=2e-4 * (high - low))


def test_every_point_is_a_genome_that_can_be_merged():
    cube, numbers = Cube(3, 4), np.random.default_rng(0)
    corners = [np.zeros(len(cube.rounded)), np.ones(len(cube.rounded))]
    for point in [*corners, *numbers.uniform(-0.2, 1.2, size=(200, len(cube.rounded)))]:
        genome = cube.genome(point)
        assert genome.genes.pattern == genome.pattern and genome.bits in RECIPES and genome.dials in range(3)
        assert all(low <= getattr(genome, name) <= high for name, (low, high, _) in RANGES.items())
        assert np.allclose(np.sum(genome.weights), 1, atol=1e-3)


def test_it_starts_like_evolution_and_climbs():
    measure = Measure()
    records = search(measure)
    assert measure.keys[:8] == [default_genome(bits, 3, 4).key for bits in RECIPES]
    best = [record["best"] for record in records]
    assert best == sorted(best) and best[-1] > best[0] + 0.01
    for record in records:
        assert slope(Genome.from_dict(record["champion"])) == record["best"]
        assert set(record) == set(next(evolve(CONFIG, Measure(), Ledger())))
    assert {member["how"] for record in records[1:] for member in record["family"]} == {"sampled"}


def test_it_finds_the_top_of_a_smooth_hill():
    def hill(genome: Genome) -> float:
        return (
            2 - (genome.t - 0.2) ** 2 - (genome.scale - 2.2) ** 2 - (genome.top_k - 0.7) ** 2 + 0.1 * int(genome.bits)
        )

    config = replace(CONFIG, generations=80, patience=80)
    found = Genome.from_dict(search(Measure(hill), config)[-1]["champion"])
    assert found.bits == "111" and abs(found.t - 0.2) < 0.15
    assert abs(found.scale - 2.2) < 0.15 and abs(found.top_k - 0.7) < 0.15


@pytest.mark.parametrize("budget", [1, 8, 29, 64])
def test_the_budget_of_evaluations_is_kept_to_the_last_one(budget):
    measure = Measure()
    records = search(measure, budget=budget)
    assert len(measure.keys) == len(set(measure.keys)) == records[-1]["evaluations"] == budget
    assert records[-1]["ended"] == f"all {budget} evaluations are used"
    with pytest.raises(ValueError, match="budget = 0"):
        search(budget=0)


def test_without_gain_it_stops_as_evolution_does():
    records = search(Measure(lambda genome: 1.0), replace(CONFIG, generations=50, patience=5))
    assert len(records) == 6 and records[-1]["ended"] == "no gain of 0.001 in 5 generations"


@pytest.mark.parametrize("records_seen", [1, 2, 4])
def test_started_again_it_retraces_its_steps(tmp_path, records_seen):
    config = replace(CONFIG, generations=5)
    list(islice(evolve_cmaes(config, Measure(), Ledger(tmp_path / "l")), records_seen))
    known = len(Ledger(tmp_path / "l"))
    measure, whole = Measure(), search(config=config)
    assert without_seconds(search(measure, config, Ledger(tmp_path / "l"))) == without_seconds(whole)
    assert len(measure.keys) == whole[-1]["evaluations"] - known


def test_numpys_numbers_stay_the_callers():
    steps, records = evolve_cmaes(CONFIG, Measure(), Ledger()), []
    for seed in range(12):
        np.random.seed(seed)
        before = np.random.get_state()[1].copy()
        records.append(next(steps))
        assert np.array_equal(np.random.get_state()[1], before)
        assert np.random.get_state()[2] == np.random.RandomState(seed).get_state()[2]
    assert without_seconds(records) == without_seconds(search())


def test_the_seed_decides():
    first, second = search()[1], search(config=replace(CONFIG, seed=8))[1]
    assert not {m["key"] for m in first["family"]} & {m["key"] for m in second["family"]}


def test_it_says_and_writes_nothing(tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    search(Measure(lambda genome: 1.0))
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "") and not recwarn.list


def test_a_stop_from_outside_is_obeyed(tmp_path):
    control = Control(tmp_path)
    steps = evolve_cmaes(CONFIG, Measure(), Ledger(), control)
    next(steps)
    control.request("stop")
    with pytest.raises(SearchStopped, match="after generation 1 of 12"):
        next(steps)
    assert control.read() == "run"

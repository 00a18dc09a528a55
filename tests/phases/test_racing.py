"""The race: who is measured on all rows, what the others count, and that nothing a search can suffer changes it."""

from dataclasses import replace
from itertools import islice, pairwise

import pytest
from fake_measure import Measure, slope, without_seconds

from forgelib.phases.cmaes import evolve_cmaes
from forgelib.phases.evomerge import EvolutionConfig, Member, evolve, finalists, ranking, references
from forgelib.phases.genome import Genome, default_genome, linear_genome, task_arithmetic
from forgelib.phases.ledger import Ledger
from forgelib.phases.racing import RACE, is_estimate, own_results, raced, widest_results

CONFIG = EvolutionConfig(n_models=3, n_layers=4, seed=7, generations=8, patience=8, winners=2)
STRATEGIES = pytest.mark.parametrize("strategy", [evolve, evolve_cmaes])


def scaled(*scales: float) -> list[Genome]:
    return [replace(default_genome("011", 3, 4), scale=scale) for scale in scales]


def test_the_winners_alone_are_measured_on_all_rows():
    measure, ledger = Measure(), Ledger()
    first = raced(scaled(1.0, 1.3), measure, ledger, 1, {})
    assert len(measure.keys) == len(measure.raced) == 2, "in the first generation all"
    new = scaled(0.4, 1.6, 0.9)
    found = raced([*scaled(1.3), *new], measure, ledger, 1, first)
    assert measure.keys[2:] == [new[1].key] and measure.raced[2:] == [genome.key for genome in new]
    assert [is_estimate(found[genome.key]) for genome in new] == [True, False, True]
    assert found[new[1].key]["fitness"] == slope(new[1]) and found[scaled(1.3)[0].key] == first[scaled(1.3)[0].key]


def test_a_loser_counts_by_its_distance_from_the_leader_and_never_more():
    measure, ledger = Measure(), Ledger()
    leader, loser = scaled(1.6, 0.7)
    first = raced([leader], measure, ledger, 1, {})
    found = raced([loser, *scaled(1.0)], measure, ledger, 1, first)[loser.key]
    behind = ledger[loser.key + RACE]["fitness"] - ledger[leader.key + RACE]["fitness"]
    assert behind < 0 and found["fitness"] == pytest.approx(slope(leader) + behind)
    unlucky = Measure(lambda genome: slope(genome) if genome == leader else 0.5)
    known = raced([leader], unlucky, ledger, 1, {})
    better = {**known[leader.key], "in_race": 0.0}  # in the race the leader was the worst of all
    lost = raced(scaled(0.7, 1.0), unlucky, ledger, 1, {leader.key: better})
    assert max(result["fitness"] for result in lost.values()) == slope(leader)


def test_members_whose_fitness_is_an_estimate_stand_after_all_others():
    a, b, c = (Member(genome, "mutation") for genome in scaled(0.5, 1.0, 1.5))
    seen = {
        a.genome.key: {"fitness": 1.0},
        b.genome.key: {"fitness": 1.2, "lost": True},
        c.genome.key: {"fitness": 1.1},
    }
    assert sorted([a, b, c], key=ranking(seen)) == [c, a, b]


@STRATEGIES
def test_what_was_only_estimated_is_never_champion(strategy):
    measure, ledger = Measure(), Ledger()
    records = list(strategy(CONFIG, measure, ledger))
    best = [record["best"] for record in records]
    assert best == sorted(best) and all(r["best"] >= r["mean"] >= r["worst"] for r in records)
    for record in records:
        champion = Genome.from_dict(record["champion"])
        assert champion.key in measure.keys and slope(champion) == record["best"]
    assert len(set(measure.raced)) == len(measure.raced) == records[-1]["evaluations"]
    assert len(measure.keys) == records[0]["evaluations"] + sum(
        min(2, b["evaluations"] - a["evaluations"]) for a, b in pairwise(records)
    )


@STRATEGIES
@pytest.mark.parametrize("lines_lost", [0, 1, 3, 9, 30])
def test_left_anywhere_it_ends_the_same_and_measures_only_what_was_lost(tmp_path, strategy, lines_lost):
    """Also between the race and its winners, and with a part of the winners written."""
    whole, path = list(strategy(CONFIG, Measure(), Ledger())), tmp_path / "ledger"
    list(islice(strategy(CONFIG, Measure(), Ledger(path)), 5))
    lines = path.read_text().splitlines(keepends=True)
    kept = lines[: len(lines) - lines_lost]
    path.write_text("".join(kept))
    measure = Measure()
    assert without_seconds(strategy(CONFIG, measure, Ledger(path))) == without_seconds(whole)
    everything = Measure()
    list(strategy(CONFIG, everything, Ledger()))
    total = len(everything.keys) + len(everything.raced)
    assert len(measure.keys) + len(measure.raced) == total - len(kept)
    assert len(Ledger(path)) == total


def test_without_winners_there_is_no_race():
    measure, ledger = Measure(), Ledger()
    list(evolve(replace(CONFIG, winners=0), measure, ledger))
    assert not measure.raced and len(own_results(ledger)) == len(widest_results(ledger)) == len(ledger)


def test_the_tables_see_every_child_and_the_finalists_only_measured_ones():
    measure, ledger = Measure(), Ledger()
    records = list(evolve(CONFIG, measure, ledger))
    assert len(widest_results(ledger)) == records[-1]["evaluations"] > len(own_results(ledger)) == len(measure.keys)
    found = finalists(ledger, 3, 4)
    assert {g.key for g in found if g.key in ledger} <= set(measure.keys) and len({g.key for g in found}) == len(found)
    best = sorted((result["fitness"] for result in own_results(ledger)), reverse=True)
    assert [slope(genome) for genome in found[:5]] == best[:5]
    means = [g for g in found if g.of and g.key not in ledger]
    assert [len(g.of) for g in means] == [3, 5]


def test_parents_and_plain_means_compete():
    """A fitness that loves the second parent finds it at once, lets it have children, and may make it champion."""
    config = replace(CONFIG, generations=3)
    asked = [member.genome for member in references(3, 4)]
    parent = asked[1]
    assert parent.weights == (0.0, 1.0, 0.0) and parent.dials == 1
    assert asked[5] == task_arithmetic(linear_genome(3, 4).weights, 4, 2)
    ledger = Ledger()
    records = list(evolve(config, Measure(lambda g: slope(g) + 9 * (g.key == parent.key)), ledger))
    assert all(Genome.from_dict(record["champion"]) == parent for record in records)
    assert any(parent.key in member["parents"] for record in records for member in record["family"])
    found = {genome.key for genome in finalists(ledger, 3, 4)}
    best_mean = max(asked[3:6], key=slope)
    assert {parent.key, best_mean.key} <= found

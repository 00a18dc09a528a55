"""Evolution by a fitness without models: its laws, and that nothing a search can suffer changes where it ends."""

import random
import threading
import time
from dataclasses import replace
from itertools import islice

import pytest
from fake_measure import Measure, slope, without_seconds

from forgelib.core.loop import Control
from forgelib.merge import RECIPES
from forgelib.phases import evomerge, racing
from forgelib.phases.evomerge import EvolutionConfig, Member, SearchStopped, evolve, next_population
from forgelib.phases.genome import Genome, default_genome, linear_genome, random_genome
from forgelib.phases.ledger import Ledger

#: The parents, their plain means and the steps beyond, which compete from the start.
N_REFERENCES = 9
CONFIG = EvolutionConfig(n_models=3, n_layers=4, seed=7, generations=12, patience=12)


def search(measure=None, config=CONFIG, ledger=None, control=None) -> list[dict]:
    return list(evolve(config, measure or Measure(), ledger if ledger is not None else Ledger(), control))


def ranked_members(n: int = 8, seed: int = 0) -> list[Member]:
    dice = random.Random(seed)
    return [Member(random_genome(dice, 3, 4), "mutation") for _ in range(n)]


def seen_of(ranked: list[Member]) -> dict[str, dict]:
    """What the ledger would hold of these members."""
    return {m.genome.key: {"fitness": slope(m.genome), "replaced": "", "genome": m.genome.to_dict()} for m in ranked}


def test_generation_zero_is_all_eight_recipes_as_given():
    measure = Measure()
    first = next(evolve(CONFIG, measure, Ledger()))
    assert sorted(first["recipes"]) == list(RECIPES) and first["diversity"] == pytest.approx(4 / 7)
    given = [
        replace(default_genome(bits, 3, 4), dials=i % 3) for i, bits in enumerate(RECIPES)
    ]  # each parent's in turn
    assert measure.keys[N_REFERENCES:] == [genome.key for genome in given]
    assert [member["how"] for member in first["family"]].count("given") == 8


def test_the_best_never_falls_and_the_search_finds_better_than_the_recipes():
    records = search()
    best = [record["best"] for record in records]
    assert best == sorted(best) and best[-1] > best[0] + 0.01
    assert [record["step"] for record in records] == list(range(12)) and records[-1]["ended"] == "all generations done"
    assert all(record["best"] >= record["mean"] >= record["worst"] for record in records)
    for record in records:
        assert slope(Genome.from_dict(record["champion"])) == record["best"]


def test_the_elites_stay_and_every_generation_is_full():
    ranked = ranked_members()
    members, _ = next_population(ranked, CONFIG, 1, seen_of(ranked))
    assert [m.genome for m in members[:2]] == [m.genome for m in ranked[:2]]
    assert [m.how for m in members[:2]] == ["elite", "elite"] and len(members) == 8


def test_chaos_children_merge_the_six_losers_and_are_counted():
    ranked = ranked_members()
    members, _ = next_population(ranked, CONFIG, 1, seen_of(ranked))
    made = [m for m in members if m.how == "chaos"]
    assert len(made) == 2 and all(len(m.genome.of) == 3 for m in made)
    merged = {one.key for m in made for one in m.genome.of}
    assert merged == {m.genome.key for m in ranked[-6:]} == {key for m in made for key in m.parents}
    for record in search()[1:]:
        assert record["chaos"] == sum(member["how"] == "chaos" for member in record["family"]) == 2


def test_mutations_come_from_winners_of_tournaments():
    ranked, parents = ranked_members(), []
    places = {m.genome.key: i for i, m in enumerate(ranked)}
    for generation in range(200):
        members, _ = next_population(ranked, replace(CONFIG, drawn=1), generation, seen_of(ranked))
        parents += [places[m.parents[0]] for m in members if m.how == "mutation"]
    assert max(parents) <= 5, "the last two of eight win no tournament of three"
    # P(the best of 3 of 8 has rank i) = C(7 - i, 2) / C(8, 3)
    assert parents.count(0) / len(parents) == pytest.approx(21 / 56, abs=0.05)


def test_what_a_winner_was_mutated_from_counts_where_it_is_fitter():
    worse, better = default_genome("000", 3, 4), replace(default_genome("000", 3, 4), scale=1.6)
    child, back = Member(better, "mutation", (worse.key,)), Member(worse, "mutation", (better.key,))
    seen = seen_of([child, back])
    assert slope(better) > slope(worse)
    assert evomerge._improved_on(child, seen) == worse and evomerge._improved_on(back, seen) is None
    assert evomerge._improved_on(replace(child, parents=(worse.key,) * 3), seen) is None, "chaos has three"
    assert evomerge._improved_on(Member(better, "given"), seen) is None


def test_fresh_blood_keeps_the_recipes_diverse():
    """A fitness that loves one recipe above all would leave nothing else."""
    records = search(Measure(lambda g: slope(g) + 5 * (g.bits == "000") * (not g.of)))
    assert min(record["diversity_before"] for record in records) <= 0.3, "the rescue was never needed: no test of it"
    assert all(record["diversity"] > 0.3 for record in records)
    for record in records:
        assert (record["fresh"] > 0) == (record["diversity_before"] <= 0.3)


@pytest.mark.parametrize("rare", RECIPES)
def test_the_newcomer_is_of_the_recipe_that_was_tried_least(rare):
    members = [Member(default_genome("000", 3, 4), "given")]
    tried = [default_genome(bits, 3, 4) for bits in RECIPES for _ in range(5 - 3 * (bits == rare))]
    seen = {str(i): {"genome": genome.to_dict()} for i, genome in enumerate(tried)}
    assert evomerge._newcomer(members, random.Random(0), CONFIG, seen).bits == rare
    assert evomerge._newcomer(members, random.Random(0), CONFIG, {}).bits == "111", "of equals, the most different"


def test_it_stops_after_five_generations_without_gain():
    records = search(Measure(lambda genome: 1.0), replace(CONFIG, generations=50, patience=5))
    assert len(records) == 6 and records[-1]["ended"] == "no gain of 0.001 in 5 generations"
    assert [record["ended"] for record in records[:-1]] == [""] * 5


def test_small_gains_that_add_up_are_gains():
    """0.0004 a generation is 0.002 in five: no reason to stop."""

    class Creeping(Measure):
        def __call__(self, genomes, race=False):
            return [{**result, "fitness": 1 - 0.0004 * self.calls_left} for result in super().__call__(genomes)]

    assert len(search(Creeping(calls_left=20), replace(CONFIG, patience=5))) == 12
    assert len(search(Creeping(calls_left=20), replace(CONFIG, patience=2))) == 3


def test_the_budget_counts_measuring_and_ends_the_search_where_it_ended_before(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(racing.time, "perf_counter", lambda: clock[0])

    class Slow(Measure):
        def __call__(self, genomes, race=False):
            clock[0] += 10.0 * len(genomes)
            return super().__call__(genomes)

    config = replace(CONFIG, budget_seconds=250.0)
    first = search(Slow(), config, Ledger(tmp_path / "l"))
    spent = [record["spent_seconds"] for record in first]
    assert first[-1]["ended"] == "the budget of 250 s is spent" and 2 < len(first) < 12
    assert spent[0] == 10.0 * (8 + N_REFERENCES) and spent[-1] >= 250 > spent[-2]
    clock[0] = 1e6  # the time between two starts is no part of it
    measure = Slow()
    assert search(measure, config, Ledger(tmp_path / "l")) == first and measure.keys == []


def test_nothing_is_measured_twice_and_every_evaluation_is_counted():
    measure, ledger = Measure(), Ledger()
    records = search(measure, ledger=ledger)
    assert len(measure.keys) == len(set(measure.keys)) == len(ledger) == records[-1]["evaluations"]
    first = 8 + N_REFERENCES
    assert records[0]["evaluations"] == first and first + 11 * 5 < len(ledger) <= first + 11 * 6
    genome = default_genome("010", 3, 4)
    twins, fresh = Measure(), Ledger()
    assert list(racing.measured([genome, replace(genome, t=0.1)], twins, fresh)) == [genome.key] == twins.keys


def test_what_else_the_ledger_holds_does_not_count():
    ledger = Ledger()
    ledger.write("of another search", {"fitness": 9.0, "seconds": 1e6, "replaced": ""})
    assert without_seconds(search(ledger=ledger)) == without_seconds(search())


def damage(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "torn":
        del content[-len(content.splitlines()[-1]) // 2 :]
    elif how == "flipped":
        content[content.index(b"\n", len(content) // 2) - 1] ^= 0x10  # in a hash
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["left", "torn", "flipped"])
@pytest.mark.parametrize("records_seen", [1, 2, 4])
def test_left_anywhere_and_damaged_it_ends_the_same(tmp_path, records_seen, how):
    config = replace(CONFIG, generations=5)
    whole, path = search(config=config), tmp_path / "ledger.jsonl"
    list(islice(evolve(config, Measure(), Ledger(path)), records_seen))
    known = len(Ledger(path))
    damage(path, how)
    measure = Measure()
    assert without_seconds(search(measure, config, Ledger(path))) == without_seconds(whole)
    lost = 0 if how == "left" else 1
    assert len(measure.keys) == whole[-1]["evaluations"] - known + lost, "only what was lost is measured again"
    assert len(Ledger(path)) == whole[-1]["evaluations"]


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_broken_off_while_it_measures_it_ends_the_same(tmp_path, calls):
    config, path = replace(CONFIG, generations=5), tmp_path / "l"
    with pytest.raises(KeyboardInterrupt):
        search(Measure(calls_left=calls), config, Ledger(path))
    assert without_seconds(search(None, config, Ledger(path))) == without_seconds(search(config=config))


def test_the_seed_decides():
    assert without_seconds(search()) == without_seconds(search())
    first, second = search()[1:], search(config=replace(CONFIG, seed=8))[1:]
    keys = [{m["key"] for record in records for m in record["family"]} for records in (first, second)]
    assert len(keys[0] & keys[1]) < 0.1 * len(keys[0]), "where few genes count, a child may be drawn twice"


def test_the_callers_dice_are_its_own():
    steps, records = evolve(CONFIG, Measure(), Ledger()), []
    for seed in range(12):
        random.seed(seed)
        records.append(next(steps))
    assert without_seconds(records) == without_seconds(search())


def test_a_stop_from_outside_is_obeyed_and_forgotten(tmp_path):
    control, records, ledger = Control(tmp_path), [], Ledger(tmp_path / "l")
    with pytest.raises(SearchStopped, match="after generation 3 of 12"):
        for record in evolve(CONFIG, Measure(), ledger, control):
            records.append(record)
            if record["step"] == 2:
                control.request("stop")
    assert len(records) == 3 and control.read() == "run"
    assert without_seconds(search(ledger=Ledger(tmp_path / "l"), control=control)) == without_seconds(search())


def test_a_pause_is_sat_out(tmp_path):
    control = Control(tmp_path)
    steps = evolve(CONFIG, Measure(), Ledger(), control)
    records = [next(steps)]
    control.request("pause")
    threading.Timer(0.5, control.request, ["resume"]).start()
    started = time.monotonic()
    records += list(steps)
    assert time.monotonic() - started >= 0.5
    assert without_seconds(records) == without_seconds(search())


def test_a_champion_that_had_to_be_replaced_is_the_plain_mean():
    class Replacing(Measure):
        def __call__(self, genomes, race=False):
            results = super().__call__(genomes)
            return [{**r, "replaced": "NaN" if r["fitness"] > 1.09 else ""} for r in results]

    for record in search(Replacing()):
        champion = Genome.from_dict(record["champion"])
        assert (champion == linear_genome(3, 4)) == (record["best"] > 1.09)
    assert record["best"] > 1.09 and record["replaced"] >= 1


def test_where_no_child_is_sound_the_search_still_ends():
    class Hopeless(Measure):
        def __call__(self, genomes, race=False):
            return [{**r, "replaced": "NaN"} for r in super().__call__(genomes)]

    records = search(Hopeless(), replace(CONFIG, generations=3))
    assert len(records) == 3 and Genome.from_dict(records[-1]["champion"]) == linear_genome(3, 4)

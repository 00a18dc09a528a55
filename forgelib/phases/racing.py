"""Who of a generation is measured on all rows: a race (Maron and Moore 1994, with a fixed number of winners).

A row tells little and costs time. So a child is read on a few rows first, and only the most promising children of a
generation are measured on the search's own rows, which are others: what was lucky in the race is not lucky there for
the same reason. A child that lost the race counts by its distance from the leader on the rows of the race.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from forgelib.phases.genome import Genome
from forgelib.phases.ledger import Ledger

#: What is appended to a genome's key in the ledger for its result on the rows of the race.
RACE = "-race"


class Measure(Protocol):
    """Who measures: for each genome {"fitness": float, "replaced": why it counts as Linear or "", "terms": {...}}."""

    def __call__(self, genomes: Sequence[Genome], race: bool = False) -> list[dict]:
        """Results in the order of `genomes`, on the rows of the race or on the search's own."""


def measured(genomes: Sequence[Genome], measure: Measure, ledger: Ledger, race: bool = False) -> dict[str, dict]:
    """key -> result of each genome, from the ledger where it stands there, measured together otherwise."""
    tail = RACE if race else ""
    missing = list({g.key: g for g in genomes if g.key + tail not in ledger}.values())
    if missing:
        started = time.perf_counter()
        results = measure(missing, race=True) if race else measure(missing)
        seconds = (time.perf_counter() - started) / len(missing)
        for genome, result in zip(missing, results, strict=True):
            ledger.write(genome.key + tail, {"genome": genome.to_dict(), "seconds": seconds, **result})
    return {g.key: ledger[g.key + tail] for g in genomes}


def raced(
    genomes: Sequence[Genome], measure: Measure, ledger: Ledger, winners: int, seen: Mapping[str, dict]
) -> dict[str, dict]:
    """key -> result of each genome; `seen` holds the results of the generations before.

    Of the new genomes the `winners` fittest in the race are measured on the search's own rows, in the first generation
    all; with 0 winners there is no race. The result of one that lost has `lost`, its fitness is an estimate. Who wins
    depends on `seen` and the genomes alone, not on what the ledger holds already, so a search can be retraced.
    """
    if not winners:
        return measured(genomes, measure, ledger)
    new = list({g.key: g for g in genomes if g.key not in seen}.values())
    race = measured(new, measure, ledger, race=True)
    ranked = sorted(new, key=lambda g: (-race[g.key]["fitness"], g.key))
    won = measured(ranked[:winners] if seen else new, measure, ledger)
    for key, result in won.items():
        won[key] = {**result, "seconds": result["seconds"] + race[key]["seconds"], "in_race": race[key]["fitness"]}
    whole = {key: result for key, result in seen.items() if not is_estimate(result)} | won
    leader = max(whole.values(), key=lambda result: result["fitness"])
    found = {g.key: seen[g.key] for g in genomes if g.key in seen} | won
    for genome in ranked:
        if genome.key not in won:
            behind = min(0.0, race[genome.key]["fitness"] - leader["in_race"])
            found[genome.key] = {**race[genome.key], "fitness": leader["fitness"] + behind, "lost": True}
    return found


def is_estimate(result: dict) -> bool:
    """Whether the fitness was only estimated, from the rows of the race."""
    return result.get("lost", False)


def own_results(ledger: Ledger) -> list[dict]:
    """What the ledger holds on the search's own rows."""
    return [ledger[key] for key in ledger if not key.endswith(RACE)]


def widest_results(ledger: Ledger) -> list[dict]:
    """The results that all children have: those of the race, or the search's own where there was none."""
    return [ledger[key] for key in ledger if key.endswith(RACE)] or own_results(ledger)

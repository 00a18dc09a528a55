"""A fitness that costs nothing: a pure function of the genome, with a slope to climb and no merge behind it."""

import hashlib
from collections.abc import Callable, Sequence

from forgelib.phases.genome import Genome


def slope(genome: Genome) -> float:
    """Best at recipe 011, t 0.2, scale 1.6; a chaos child is a little better than what it was made of."""
    if genome.of:
        return 0.02 + sum(map(slope, genome.of)) / len(genome.of)
    near = sum(a == b for a, b in zip(genome.bits, "011", strict=True)) / 30
    noise = int(hashlib.sha256(genome.key.encode()).hexdigest()[:6], 16) / 2**24 / 50
    return 1 + near + noise - 0.05 * (genome.scale - 1.6) ** 2 - 0.1 * (genome.t - 0.2) ** 2


class Measure:
    """Counts whom it measured, and whom it read in a race; raises KeyboardInterrupt in the call after `calls_left`
    calls. A race is measured a tenth too low, and a little differently: its rows are others."""

    def __init__(self, fitness: Callable[[Genome], float] = slope, calls_left: int = 10**6):
        self.fitness, self.calls_left, self.keys, self.raced = fitness, calls_left, [], []

    def __call__(self, genomes: Sequence[Genome], race: bool = False) -> list[dict]:
        if self.calls_left == 0:
            raise KeyboardInterrupt
        self.calls_left -= 1
        (self.raced if race else self.keys).extend(genome.key for genome in genomes)
        fitness = [self.fitness(genome) - race * (0.1 + shift(genome)) for genome in genomes]
        return [{"fitness": value, "replaced": "", "terms": {}} for value in fitness]


def shift(genome: Genome) -> float:
    """By how much more than a tenth the race is too low for a genome, 0 to 0.02."""
    return int(hashlib.sha256(f"race {genome.key}".encode()).hexdigest()[:6], 16) / 2**24 / 50


def without_seconds(records: Sequence[dict]) -> list[dict]:
    """What must be the same in every repetition."""
    return [{name: value for name, value in record.items() if name != "spent_seconds"} for record in records]

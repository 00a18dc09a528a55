"""The other strategy of Phase 2: CMA-ES on the same genes, the same ledger and the same budget (Hansen 2016).

    for record in evolve_cmaes(config, measure, ledger):
        ...

A genome is a point of the unit cube: a coordinate for each recipe bit, weight, continuous gene, emphasis, letter of the
pattern and for the dials. Generation 0 holds the eight recipes as METHOD gives them; the search starts from the best of
them. The records are those of `evolve`. Started again, the search retraces its steps by the seed and the ledger.
"""

import contextlib
from collections.abc import Iterator, Sequence

import cma
import numpy as np

from forgelib.core.loop import Control
from forgelib.core.rng import stream
from forgelib.merge import RECIPES
from forgelib.phases.evomerge import EvolutionConfig, Member, SearchStopped, ranking, record_of, why_ended
from forgelib.phases.genome import LARGEST_EMPHASIS, LETTERS, RANGES, Genome, default_genome, diversity
from forgelib.phases.ledger import Ledger
from forgelib.phases.racing import Measure, raced

#: First standard deviation in the unit cube, and the least one of a coordinate that is rounded, so that it still flips.
SIGMA, LEAST_ROUNDED_SIGMA = 0.25, 0.1
BITS = 3


class Cube:
    """Genomes of merges of the parents as points of the unit cube, and back.

    Coordinates: the bits (above a half is 1), a number for each model (the weights are their shares), `RANGES` in their
    order, the emphasis row by row, the pattern's letters and the dials (equal slices).
    """

    def __init__(self, n_models: int, n_layers: int):
        plain = default_genome(RECIPES[0], n_models, n_layers)
        self.n_models, self.rows = n_models, len(plain.emphasis)
        self.sizes = [BITS, n_models, len(RANGES), n_models * self.rows, len(plain.pattern), 1]
        self.rounded = [part not in (1, 2, 3) for part, size in enumerate(self.sizes) for _ in range(size)]

    def point(self, genome: Genome) -> np.ndarray:
        """The middle of the points that give this genome; mask_seed is left out."""
        bits = [_middle(int(bit), 2) for bit in genome.bits]
        genes = [(getattr(genome, name) - low) / (high - low) for name, (low, high, _) in RANGES.items()]
        emphasis = np.ravel(genome.emphasis) / LARGEST_EMPHASIS
        letters = [_middle(LETTERS.index(letter), len(LETTERS)) for letter in genome.pattern]
        rest = [*emphasis, *letters, _middle(genome.dials, self.n_models)]
        return np.array([*bits, *genome.weights, *genes, *rest]).clip(0, 1)

    def genome(self, point: Sequence[float]) -> Genome:
        """The genome at a point, numbers rounded to four digits as everywhere."""
        parts = np.split(np.clip(point, 0, 1), np.cumsum(self.sizes)[:-1])
        bits, weights, genes, emphasis, letters, dials = parts
        rows = (LARGEST_EMPHASIS * emphasis).reshape(self.rows, self.n_models)
        total = weights.sum()
        shares = weights / total if total > 0 else np.full(self.n_models, 1 / self.n_models)
        named = zip(RANGES.items(), genes, strict=True)
        return Genome(
            "".join(str(_slice(x, 2)) for x in bits),
            tuple(round(float(share), 4) for share in shares),
            "".join(LETTERS[_slice(x, len(LETTERS))] for x in letters),
            dials=_slice(dials[0], self.n_models),
            emphasis=tuple(tuple(round(float(x), 4) for x in row) for row in rows),
            **{name: round(float(low + x * (high - low)), 4) for (name, (low, high, _)), x in named},
        )


def evolve_cmaes(
    config: EvolutionConfig,
    measure: Measure,
    ledger: Ledger,
    control: Control | None = None,
    budget: int | None = None,
) -> Iterator[dict]:
    """Records as `evolve` yields them; the best of all generations so far stays the champion, and counts in best, mean
    and worst.

    budget: how many different children may be measured, None for generations x population. The last generation is cut
    to it. There are no chaos children, no mutations and no rescue of diversity. Raises SearchStopped as `evolve` does.
    """
    if budget is not None and budget < 1:
        raise ValueError(f"budget = {budget}: must be at least 1 evaluation")
    allowed = config.generations * config.population if budget is None else budget
    cube, sampler = Cube(config.n_models, config.n_layers), None
    points = [cube.point(default_genome(bits, config.n_models, config.n_layers)) for bits in RECIPES]
    points, how, champion = points[: config.population], "given", None
    best, stale, seen = float("-inf"), 0, {}
    for generation in range(config.generations):
        if control is not None and control.wait() == "stop":
            control.request("resume")
            raise SearchStopped(generation, config.generations)
        population = _affordable([Member(cube.genome(point), how) for point in points], seen, allowed)
        seen |= raced([m.genome for m in population], measure, ledger, config.winners, seen)
        members = {m.genome.key: m for m in [*([champion] if champion else []), *population]}
        ranked = sorted(members.values(), key=ranking(seen))
        champion = ranked[0]
        leader = seen[champion.genome.key]["fitness"]
        best, stale = (leader, 0) if leader >= best + config.least_gain else (best, stale + 1)
        record = record_of(config, generation, population, ranked, seen, diversity([m.genome for m in population]))
        ended = why_ended(config, generation, stale, record["spent_seconds"])
        record["ended"] = ended or (f"all {allowed} evaluations are used" if len(seen) >= allowed else "")
        yield record
        if record["ended"]:
            return
        if sampler is None:
            sampler = Sampler(cube, cube.point(champion.genome), config)
        else:
            sampler.tell(points, [seen[m.genome.key]["fitness"] for m in population])
        points, how = sampler.ask(), "sampled"


def _affordable(members: Sequence[Member], seen: dict, allowed: int) -> list[Member]:
    """The members up to the one that would be one evaluation too many."""
    keys, taken = set(seen), []
    for member in members:
        keys.add(member.genome.key)
        if len(keys) > allowed:
            break
        taken.append(member)
    return taken


class Sampler:
    """CMA-ES itself. It draws from numpy's global generator: one of its own is put there while it does."""

    def __init__(self, cube: Cube, start: np.ndarray, config: EvolutionConfig):
        options = {
            "seed": 1 + stream(config.seed, "cmaes") % (2**32 - 2),  # to the library 0 is the clock
            "bounds": [0, 1],
            "popsize": config.population,
            "minstd": [LEAST_ROUNDED_SIGMA if rounded else 0.0 for rounded in cube.rounded],
            "verbose": -10,
            "verb_log": 0,
        }
        self._state: tuple | None = None
        with self._own_numbers():
            self._strategy = cma.CMAEvolutionStrategy(start, SIGMA, options)

    def ask(self) -> list[np.ndarray]:
        """A population of points of the unit cube."""
        with self._own_numbers():
            return self._strategy.ask()

    def tell(self, points: list[np.ndarray], fitness: list[float]) -> None:
        """What the points that were asked for last are worth; the library minimises."""
        with self._own_numbers():
            self._strategy.tell(points, [-value for value in fitness])

    @contextlib.contextmanager
    def _own_numbers(self) -> Iterator[None]:
        callers = np.random.get_state()
        if self._state is not None:
            np.random.set_state(self._state)
        try:
            yield
        finally:
            self._state = np.random.get_state()
            np.random.set_state(callers)


def _slice(x: float, n: int) -> int:
    """Which of n equal slices of [0, 1] x lies in."""
    return min(int(x * n), n - 1)


def _middle(index: int, n: int) -> float:
    return (index + 0.5) / n

"""Phase 2: evolution of merged models, generation by generation (METHOD, Phase 2).

    for record in evolve(config, measure, ledger):
        ...

yields one record per generation and may be left at any moment. Every draw comes from the seed and the generation's
number, and what was measured stands in the ledger: started again, the search retraces its steps without measuring
anything twice and ends with the same champion.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forgelib.core.loop import Control
from forgelib.core.rng import stream
from forgelib.merge import RECIPES
from forgelib.phases.genome import (
    Genome,
    chaos,
    default_genome,
    diversity,
    linear_genome,
    mutated,
    random_genome,
    task_arithmetic,
)
from forgelib.phases.ledger import Ledger
from forgelib.phases.racing import Measure, is_estimate, own_results, raced
from forgelib.phases.surrogate import Surrogate

#: How many standard deviations of the surrogate's doubt count in a mutation's favour.
DOUBT = 1.0
#: How far a first step leans towards a parent, and by how much it goes past the mean (DECISIONS says what was tried).
LEAN, BEYOND = 0.4, 1.25


@dataclass(frozen=True)
class EvolutionConfig:
    """How a population evolves; defaults as given in METHOD, but for `drawn`: of so many mutations one is measured.
    `winners`: so many of a generation's new children are measured on all rows (`racing.py`); 0 means all of them.
    `budget_seconds` counts time spent measuring."""

    n_models: int
    n_layers: int
    seed: int
    generations: int = 50
    population: int = 8
    elites: int = 2
    tournament: int = 3
    losers: int = 6
    drawn: int = 16
    winners: int = 0
    least_diversity: float = 0.3
    patience: int = 5
    least_gain: float = 0.001
    budget_seconds: float = 7200.0


@dataclass(frozen=True)
class Member:
    """A genome in a population: how it came about, and the keys of what it was made from."""

    genome: Genome
    how: str
    parents: tuple[str, ...] = ()


class SearchStopped(RuntimeError):
    """The search was stopped from outside; its ledger is kept."""

    def __init__(self, generation: int, total: int):
        super().__init__(f"stopped on request after generation {generation} of {total}: start it again to go on")


def evolve(config: EvolutionConfig, measure: Measure, ledger: Ledger, control: Control | None = None) -> Iterator[dict]:
    """Records of the generations, the first of which holds all eight recipes as METHOD gives them. Beside them stand
    the parents themselves and their plain means: what is no better than these leaves no children.

    A record has step (the generation), best, mean and worst (fitness on the search split), diversity and
    diversity_before (the rescue), recipes (bits of the population), evaluations so far, fresh and chaos (how many
    members came that way), spent_seconds, champion (its genome), family (members new in this generation) and ended
    ("" or why no generation follows). Raises SearchStopped when `control` asked for it.
    """
    population = first_population(config)
    before = diversity([m.genome for m in population])
    best, stale, seen, guests = float("-inf"), 0, {}, references(config.n_models, config.n_layers)
    for generation in range(config.generations):
        if control is not None and control.wait() == "stop":
            control.request("resume")
            raise SearchStopped(generation, config.generations)
        present = {m.genome.key: m for m in [*guests, *population]}.values()
        seen |= raced([m.genome for m in present], measure, ledger, config.winners, seen)
        ranked = sorted(present, key=ranking(seen))
        leader = seen[ranked[0].genome.key]["fitness"]
        best, stale = (leader, 0) if leader >= best + config.least_gain else (best, stale + 1)
        record = record_of(config, generation, population, ranked, seen, before, guests)
        record["ended"] = why_ended(config, generation, stale, record["spent_seconds"])
        yield record
        if record["ended"]:
            return
        population, before = next_population(ranked, config, generation + 1, seen)
        guests = []


def ranking(seen: dict[str, dict]) -> Callable[[Member], tuple]:
    """A sorting key: the fittest member first, those whose fitness is an estimate after all others."""

    def key(member: Member) -> tuple:
        result = seen[member.genome.key]
        return is_estimate(result), -result["fitness"], member.genome.key

    return key


def references(n_models: int, n_layers: int) -> list[Member]:
    """What a child must beat: each parent, and the parents' plain mean with the dials of each, as sums on the trunk;
    and between these a first step beyond them: sums that lean towards one parent and go past the mean."""
    mean = default_genome("000", n_models, n_layers).weights
    alone = [tuple(float(i == parent) for i in range(n_models)) for parent in range(n_models)]
    parents = [Member(task_arithmetic(alone[i], n_layers, i), "parent") for i in range(n_models)]
    means = [Member(task_arithmetic(mean, n_layers, i), "mean") for i in range(n_models)]
    steps = [task_arithmetic(leaning(i, n_models), n_layers, i) for i in range(n_models)]
    return parents + means + [Member(replace(step, scale=BEYOND), "leaning") for step in steps]


def leaning(parent: int, n_models: int) -> tuple[float, ...]:
    """Weights of which LEAN more goes to one parent, and the rest evenly to all."""
    return tuple(round((1 - LEAN) / n_models + LEAN * (i == parent), 4) for i in range(n_models))


def first_population(config: EvolutionConfig) -> list[Member]:
    """The eight recipes as given, with the dials of each parent in turn; beyond eight, random genomes."""
    given = [default_genome(bits, config.n_models, config.n_layers) for bits in RECIPES]
    members = [Member(replace(g, dials=i % config.n_models), "given") for i, g in enumerate(given)]
    dice = random.Random(stream(config.seed, "generation", 0))
    while len(members) < config.population:
        members.append(Member(random_genome(dice, config.n_models, config.n_layers), "fresh"))
    return members


def next_population(
    ranked: Sequence[Member], config: EvolutionConfig, generation: int, seen: dict[str, dict]
) -> tuple[list[Member], float]:
    """Elites, chaos children of the losers, and mutated winners of tournaments; then fresh blood until the recipes are
    diverse again. Also the diversity before that.

    Of `config.drawn` mutations the one is taken that a surrogate, fitted to all that was `seen`, thinks most of.
    """
    dice = random.Random(stream(config.seed, "generation", generation))
    elites = [replace(m, how="elite") for m in ranked[: config.elites]]
    losers = [m.genome for m in ranked[-config.losers :]]
    members = list(elites)
    for group in (losers[0::2], losers[1::2]):
        child = chaos(group, dice, config.n_layers)
        members.append(Member(child, "chaos", tuple(g.key for g in group)))
    surrogate = surrogate_of(seen.values(), config.n_models) if config.drawn > 1 else None
    while len(members) < config.population:
        drawn = [_mutation(ranked, dice, config, seen) for _ in range(config.drawn)]
        known = {*seen, *(member.genome.key for member in members)}
        unknown = [member for member in drawn if member.genome.key not in known] or drawn
        members.append(_most_promising(unknown, surrogate) if surrogate else unknown[0])
    before = diversity([m.genome for m in members])
    place = len(members) - 1
    while place >= len(elites) and diversity([m.genome for m in members]) <= config.least_diversity:
        members[place] = Member(_newcomer(members, dice, config, seen), "fresh")
        place -= 1
    return members, before


def _mutation(ranked: Sequence[Member], dice: random.Random, config: EvolutionConfig, seen: dict[str, dict]) -> Member:
    winner = ranked[min(dice.sample(range(len(ranked)), config.tournament))]  # the smallest index is the fittest
    return Member(mutated(winner.genome, dice, _improved_on(winner, seen)), "mutation", (winner.genome.key,))


def _improved_on(member: Member, seen: dict[str, dict]) -> Genome | None:
    """The genome that `member` was mutated from, where it is fitter than that one."""
    if len(member.parents) != 1:
        return None
    before = Genome.from_dict(seen[member.parents[0]]["genome"])
    fitter = seen[member.genome.key]["fitness"] > seen[before.key]["fitness"]
    return before if fitter and before.of == member.genome.of else None


def surrogate_of(results: Iterable[dict], n_models: int) -> Surrogate | None:
    """Fitted to what was measured; None where too little is known."""
    sound = [result for result in results if not result["replaced"]]
    if len(sound) < 2:
        return None
    genomes = [Genome.from_dict(result["genome"]) for result in sound]
    fitness, rough = [result["fitness"] for result in sound], [is_estimate(result) for result in sound]
    return Surrogate(genomes, fitness, n_models, rough)


def _most_promising(members: Sequence[Member], surrogate: Surrogate) -> Member:
    mean, deviation = surrogate.guess([member.genome for member in members])
    return members[int(np.argmax(mean + DOUBT * deviation))]


def _newcomer(members: Sequence[Member], dice: random.Random, config: EvolutionConfig, seen: dict[str, dict]) -> Genome:
    """A random genome of the recipe that was tried least; of equals, of the one that differs from the population's in
    most bits."""
    taken = [m.genome.bits for m in members]
    tried = Counter(taken) + Counter(result["genome"]["bits"] for result in seen.values())
    far = {r: sum(a != b for one in taken for a, b in zip(r, one, strict=True)) for r in RECIPES}
    bits = min(RECIPES, key=lambda r: (tried[r], -far[r], r))
    return random_genome(dice, config.n_models, config.n_layers, bits)


def why_ended(config: EvolutionConfig, generation: int, stale: int, spent: float) -> str:
    """Why no generation follows this one, or "". stale: for how many generations nothing was gained."""
    if generation + 1 == config.generations:
        return "all generations done"
    if stale >= config.patience:
        return f"no gain of {config.least_gain:g} in {config.patience} generations"
    if spent >= config.budget_seconds:
        return f"the budget of {config.budget_seconds:g} s is spent"
    return ""


def record_of(
    config: EvolutionConfig,
    generation: int,
    population: list,
    ranked: list,
    seen: dict,
    before: float,
    guests: Sequence[Member] = (),
) -> dict:
    """The record of a generation; `seen` holds the results of this search so far, and not what else the ledger has."""
    fitness, champion = [seen[m.genome.key]["fitness"] for m in ranked], ranked[0].genome
    if seen[champion.key]["replaced"]:  # what was measured in its place
        champion = linear_genome(config.n_models, config.n_layers)
    made = [m.how for m in population]
    return {
        "step": generation,
        "best": fitness[0],
        "mean": sum(fitness) / len(fitness),
        "worst": min(fitness),
        "diversity_before": before,
        "diversity": diversity([m.genome for m in population]),
        "recipes": [m.genome.bits for m in population],
        "evaluations": len(seen),
        "chaos": made.count("chaos"),
        "fresh": made.count("fresh"),
        "replaced": sum(bool(seen[m.genome.key]["replaced"]) for m in population),
        "spent_seconds": round(sum(result["seconds"] for result in seen.values()), 2),
        "champion": champion.to_dict(),
        "family": [
            {"key": m.genome.key, "how": m.how, "bits": m.genome.bits, "parents": list(m.parents)}
            for m in (*guests, *population)
            if m.how != "elite"
        ],
    }


def finalists(ledger: Ledger, n_models: int, n_layers: int, n: int = 5, guessed: int = 3) -> list[Genome]:
    """Who may become the champion: the `n` fittest children of a search, `guessed` more that a surrogate fitted to all
    of them thinks most of, the plain means of the three and five fittest, and the best parent and the best mean.

    Hundreds of children measured on one split leave a winner that was also lucky there. So the champion is chosen
    among these with the help of rows that the search did not see, and scored on rows that neither saw. The surrogate's
    opinion of a child rests on its neighbours too, and so less on luck.
    """
    sound = {Genome.from_dict(r["genome"]): r for r in own_results(ledger) if not r["replaced"]}
    ranked = sorted(sound, key=lambda genome: (-sound[genome]["fitness"], genome.key))
    best, rest = ranked[:n], ranked[n:]
    means = [replace(linear_genome(size, n_layers), of=tuple(best[:size])) for size in (3, 5) if len(best) >= size]
    if rest:
        guesses, _ = surrogate_of(sound.values(), n_models).guess(rest)
        best = best + [rest[i] for i in np.argsort(-guesses, kind="stable")[:guessed]]
    place = {genome.key: i for i, genome in enumerate(ranked)}
    known = [m for m in references(n_models, n_layers) if m.genome.key in place]
    for how in ("parent", "mean"):
        best += sorted((m.genome for m in known if m.how == how), key=lambda genome: place[genome.key])[:1]
    return list({genome.key: genome for genome in [*best, *means]}.values())

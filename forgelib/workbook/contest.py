"""The champion of Phase 2 among its contenders, all read once on the split that the search never saw."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forgelib.core.artifacts import Artifact
from forgelib.core.rng import stream
from forgelib.core.run import Run
from forgelib.data.prepare import DataBundle
from forgelib.evaluate.fitness import Yardstick, resamples
from forgelib.evaluate.intervals import percentile_interval
from forgelib.evaluate.texts import Scores, score_texts
from forgelib.merge import check_child, recipe
from forgelib.phases.controls import ensemble_scores
from forgelib.phases.genome import Genome, linear_genome
from forgelib.phases.workshop import Workshop, load_for_scoring, load_weights
from forgelib.workbook import phase2


@dataclass(frozen=True)
class Standing:
    """Every contender on the champion's split: fitness, its terms, and fitness in each resample [R]."""

    yardstick: Yardstick
    scores: dict[str, Scores]
    resampled: dict[str, np.ndarray]

    def rows(self) -> list[dict]:
        """One row a contender, the best first."""
        lines = []
        for name, scores in self.scores.items():
            low, high = self.bounds(name)
            terms = {term: round(value, 3) for term, value in self.yardstick.terms(scores).items()}
            fitness = round(self.yardstick.fitness(scores), 4)
            lines.append({"model": name, "fitness": fitness, "low": round(low, 4), "high": round(high, 4), **terms})
        return sorted(lines, key=lambda row: -row["fitness"])

    def fitness(self, name: str) -> float:
        return self.yardstick.fitness(self.scores[name])

    def bounds(self, name: str) -> tuple[float, float]:
        """95% interval of a contender's fitness over texts."""
        return percentile_interval(self.resampled[name])

    def lead(self, name: str, other: str) -> tuple[float, tuple[float, float]]:
        """By how much `name` is fitter than `other`, with its paired 95% interval."""
        difference = self.resampled[name] - self.resampled[other]
        return self.fitness(name) - self.fitness(other), percentile_interval(difference)

    def best(self, names: list[str]) -> str:
        """The fittest of some contenders."""
        return max(names, key=self.fitness)


def standing(workshop: Workshop, scores: Mapping[str, Scores], seed: int, n_resamples: int = 1000) -> Standing:
    """Hold contenders (name -> scores on the workshop's texts) against the parents and each other."""
    category = workshop.plan.texts.category
    counts = resamples(category, n_resamples, stream(seed, "resamples") % 2**32)
    fitness = workshop.yardstick.resampled(list(scores.values()), counts)
    return Standing(workshop.yardstick, dict(scores), {name: fitness[:, i] for i, name in enumerate(scores)})


def contenders(workshop: Workshop, champion: Genome, parents: phase2.Family) -> Iterator[tuple[str, Scores]]:
    """Champion, parents, the plain mean with each parent's dials, ensemble and trunk on the workshop's texts, one after
    the other: on real rows each reads for about a minute."""
    yield "champion", workshop.scores(champion)
    yield from zip(parents.names, workshop.yardstick.parents, strict=True)
    for i, name in enumerate(parents.names):
        mean = linear_genome(len(parents.names), parents.n_layers, i)
        yield f"linear, dials of {name}", workshop.scores(mean)
    texts, models = workshop.plan.texts, [load_for_scoring(folder) for folder in parents.folders.values()]
    yield "ensemble of the parents", ensemble_scores(models, texts)
    yield "trunk", score_texts(load_for_scoring(parents.trunk), texts)


def n_contenders(parents: phase2.Family) -> int:
    """How many `contenders` there are."""
    return 2 * len(parents.names) + 3


def save_champion(workshop: Workshop, champion: Genome, tokenizer, folder: Path) -> None:
    """The model folder, with its tokenizer and genome.json. Raises GateFailed where the merge check finds the child
    unsound: not finite, without variance, off its float64 recomputation, or changed by saving."""
    weights = workshop.build(champion)
    recompute = None
    if not champion.of:
        recompute = recipe(champion.bits).in_float64(workshop.weights, workshop.trunk, champion.genes)
    check_child(weights, workshop.weights, workshop.trunk, recompute).gate.enforce()
    load_weights(workshop.model, weights)
    if dials := workshop.dials_for(champion):
        workshop.model.set_dials(dials)
    workshop.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "genome.json").write_text(json.dumps(champion.to_dict(), indent=1))


def publish_champion(
    run: Run, workshop: Workshop, champion: Genome, bundle: DataBundle, verdicts: list[dict]
) -> Artifact:
    """The champion as an artifact: model folder, genome, ledger and journal."""

    def write(folder: Path) -> None:
        save_champion(workshop, champion, bundle.tokenizer, folder / "model")
        phase2.keep_ledger(run, folder)

    return run.finished() or run.publish("evomerge-champion", write, verdicts)

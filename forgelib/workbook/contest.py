"""The champion of Phase 2 among its contenders, all read once on the split that the search never saw."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from forgelib.models import CognateForCausalLM
from forgelib.phases.controls import ensemble_scores, even_stages
from forgelib.phases.genome import Genome, linear_genome
from forgelib.phases.workshop import Plan, Workshop, load_for_scoring, load_weights
from forgelib.workbook import phase1, phase2
from forgelib.workbook.params import CognateTrain, EvoEvolve, profile_values


def even_models(p: EvoEvolve, bundle: DataBundle, parents: phase2.Family) -> dict[str, Path]:
    """The trained controls: three parents of one even mix, and one joint model with the steps of all three. Each is a
    run of its own, made once."""
    given = {**profile_values(CognateTrain, p.profile), "profile": p.profile, "seed": p.seed, "data": p.data}
    train, found = CognateTrain(**given), {}
    for part, seed, steps in (*((f"even-{i}", i, train.steps) for i in (1, 2, 3)), ("joint", 0, 3 * train.steps)):
        run = phase1.open_training(train.model_copy(update={"steps": steps}), part, parents.artifacts)
        if run.finished() is None:
            model = CognateForCausalLM.from_pretrained(parents.trunk).to(phase1.device())
            stages = even_stages(bundle, steps, train.tokens_per_step)
            like_a_specialist = phase1.training_config(train, bundle, train.specialist)
            config = replace(like_a_specialist, stages=stages, seed=stream(p.seed, "even", seed))
            for _ in phase1.train(model, config, run, train.checkpoint_every_seconds):
                pass
            phase1.publish_model(run, model, bundle, verdicts=[])
        found[part] = run.finished().path / "model"
    return found


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


def contenders(workshop: Workshop, champion: Genome, parents: phase2.Family) -> dict[str, Scores]:
    """Champion, parents, trunk, ensemble and the plain mean with each parent's dials, on the workshop's texts."""
    linear = {
        f"linear, dials of {name}": workshop.scores(linear_genome(len(parents.names), parents.n_layers, i))
        for i, name in enumerate(parents.names)
    }
    texts, models = workshop.plan.texts, [load_for_scoring(folder) for folder in parents.folders.values()]
    return {
        "champion": workshop.scores(champion),
        **dict(zip(parents.names, workshop.yardstick.parents, strict=True)),
        **linear,
        "ensemble of the parents": ensemble_scores(models, texts),
        "trunk": score_texts(load_for_scoring(parents.trunk), texts),
    }


def trained_contenders(
    p: EvoEvolve, judge: Workshop, bundle: DataBundle, parents: phase2.Family, plan: Plan
) -> dict[str, Scores]:
    """The contenders that cost training or search: CMA-ES, even-mix parents and their mean, the joint model."""
    run = phase2.open_search(p, parents, "cmaes")
    if run.finished() is None:
        with phase2.population(plan, p.workers, p.backend) as measure:
            for _ in phase2.search(phase2.evolution_config(p, parents), measure, run, "cmaes"):
                pass
        run.publish("evomerge-cmaes", lambda folder: _copy_ledger(run, folder))
    found = {"CMA-ES": judge.scores(Genome.from_dict(phase2.records(run)[-1]["champion"]))}
    folders = even_models(p, bundle, parents)
    even = Workshop(
        Plan(tuple(str(f) for name, f in folders.items() if name != "joint"), str(parents.trunk), plan.texts)
    )
    found["mean of three even-mix parents"] = judge.read(even.build(linear_genome(3, parents.n_layers)), even.dials[0])
    texts = judge.plan.texts
    found |= {name: score_texts(load_for_scoring(folder), texts) for name, folder in folders.items()}
    return found


def _copy_ledger(run: Run, folder: Path) -> None:
    (folder / phase2.LEDGER).write_bytes((run.dir / phase2.LEDGER).read_bytes())


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
        _copy_ledger(run, folder)

    return run.finished() or run.publish("evomerge-champion", write, verdicts)

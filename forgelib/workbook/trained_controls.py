"""Controls of the champion that cost training or a search of their own: even-mix models, a joint model, CMA-ES."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from forgelib.core.rng import stream
from forgelib.core.run import Run
from forgelib.data.prepare import DataBundle
from forgelib.evaluate.texts import Scores, score_texts
from forgelib.models import CognateForCausalLM
from forgelib.phases.cmaes import evolve_cmaes
from forgelib.phases.controls import even_stages
from forgelib.phases.genome import Genome, linear_genome
from forgelib.phases.workshop import Plan, Workshop, load_for_scoring
from forgelib.workbook import phase1, phase2
from forgelib.workbook.params import CognateTrain, EvoEvolve, profile_values


def even_steps(p: EvoEvolve) -> int:
    """Optimizer steps of all control trainings together: three specialists' worth, and the joint model's."""
    return 6 * _training(p).steps


def train_evenly(p: EvoEvolve, bundle: DataBundle, parents: phase2.Family) -> Iterator[dict]:
    """Train the models that no specialisation and no merging made; records as phase 1 gives them, with `control` naming
    the model. What is finished is not trained again.

    even-1 to even-3 read every dataset alike for a specialist's steps, joint for those of all three.
    """
    train = _training(p)
    for seed, (part, run) in enumerate(_even_runs(p, parents).items()):
        if run.finished() is None:
            model = CognateForCausalLM.from_pretrained(parents.trunk).to(phase1.device())
            stages = even_stages(bundle, run.params["steps"], train.tokens_per_step)
            like_a_specialist = phase1.training_config(train, bundle, train.specialist)
            config = replace(like_a_specialist, stages=stages, seed=stream(p.seed, "even", seed))
            for record in phase1.train(model, config, run, train.checkpoint_every_seconds):
                yield {"control": part, **record}
            phase1.publish_model(run, model, bundle, verdicts=[])


def _training(p: EvoEvolve) -> CognateTrain:
    given = {**profile_values(CognateTrain, p.profile), "profile": p.profile, "seed": p.seed, "data": p.data}
    return CognateTrain(**given)


def _even_runs(p: EvoEvolve, parents: phase2.Family) -> dict[str, Run]:
    train = _training(p)
    steps = {"joint": 3 * train.steps, **{f"even-{i}": train.steps for i in (1, 2, 3)}}
    trainings = {part: train.model_copy(update={"steps": n}) for part, n in steps.items()}
    return {part: phase1.open_training(its, part, parents.artifacts) for part, its in trainings.items()}


def search_by_cmaes(p: EvoEvolve, parents: phase2.Family, plan: Plan, evaluations: int) -> Iterator[dict]:
    """Records of CMA-ES with as many evaluations as the evolution had; none where it is done."""
    run = phase2.open_search(p, parents, "cmaes", evaluations)
    if run.finished() is None:
        config = replace(phase2.evolution_config(p, parents), patience=evaluations, generations=evaluations)
        with phase2.population(plan, p.workers, p.backend) as measure:
            yield from phase2.search(config, measure, run, partial(evolve_cmaes, budget=evaluations))
        run.publish("evomerge-cmaes", lambda folder: phase2.keep_ledger(run, folder))


#: How many `trained_contenders` there are.
TRAINED = 6


def trained_contenders(
    p: EvoEvolve, judge: Workshop, parents: phase2.Family, evaluations: int
) -> Iterator[tuple[str, Scores]]:
    """The contenders that cost training or search, one after the other: CMA-ES with as many evaluations, the mean of
    three even-mix models, the joint model and these three."""
    run = phase2.open_search(p, parents, "cmaes", evaluations)
    yield "CMA-ES", judge.scores(Genome.from_dict(phase2.records(run)[-1]["champion"]))
    folders = {part: run.finished().path / "model" for part, run in _even_runs(p, parents).items()}
    texts, three = judge.plan.texts, tuple(str(folder) for part, folder in folders.items() if part != "joint")
    even = Workshop(Plan(three, str(parents.trunk), texts))
    yield "mean of three even-mix models", judge.read(even.build(linear_genome(3, parents.n_layers)), even.dials[0])
    for part, folder in folders.items():
        yield part, score_texts(load_for_scoring(folder), texts)

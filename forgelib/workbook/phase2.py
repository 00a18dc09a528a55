"""What the Phase 2 notebooks share: the parents, the three splits, the search and its records.

A notebook shows each of these steps; here is only the joining of parameters, runs and artifacts.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from forgelib.core.artifacts import Artifact, load_artifact
from forgelib.core.paths import runs_dir
from forgelib.core.registry import Registry
from forgelib.core.rng import stream
from forgelib.core.run import MissingInput, Run, latest_artifact, open_run
from forgelib.core.tracking import JOURNAL, read_journal
from forgelib.data import DataError, Example, NoSuchPart
from forgelib.data.leakage import leaked
from forgelib.data.packing import encode_examples
from forgelib.data.prepare import DataBundle, load_rows
from forgelib.evaluate.texts import Texts, batch_texts
from forgelib.merge import check_parents
from forgelib.models import CognateConfig
from forgelib.phases.cmaes import evolve_cmaes
from forgelib.phases.evomerge import EvolutionConfig, evolve, finalists, references
from forgelib.phases.genome import Genome
from forgelib.phases.ledger import Ledger
from forgelib.phases.population import LocalPopulation
from forgelib.phases.racing import Measure
from forgelib.phases.workshop import Plan, load_config
from forgelib.workbook.origin import made_by, tags
from forgelib.workbook.params import EvoEvolve, Parameters

#: Whose change makes a finished run of Phase 2 stale: these modules and what they import.
CODE = ("forgelib.workbook.phase2", "forgelib.workbook.contest")
LEDGER = "evaluations.jsonl"
#: Tokens of a batch that is read: padding costs more than the fewer calls of larger batches save.
TOKENS_PER_BATCH = 1024
STRATEGIES = {"evolution": evolve, "cmaes": evolve_cmaes}


@dataclass(frozen=True)
class Family:
    """The parents by name, the trunk they come from, and the artifact that says they belong together."""

    folders: dict[str, Path]
    trunk: Path
    artifacts: list[Artifact] = field(repr=False)

    @property
    def names(self) -> list[str]:
        return list(self.folders)

    @property
    def n_layers(self) -> int:
        return load_config(self.trunk).num_hidden_layers


def family(p: Parameters) -> Family:
    """The parents that 12_cognate_diversity published, checked to fit. Raises MissingInput naming what makes them, and
    MergeRefused naming the first mismatch."""
    maker = made_by("12_cognate_diversity", tags(p))
    together = latest_artifact("cognate-parents", tags(p), maker)
    named = json.loads((together.path / "parents.json").read_text())["parents"]
    artifacts = {name: _published(fact, maker) for name, fact in named.items()}
    first = next(iter(artifacts.values()))
    trunk = _published(next(p for p in first.manifest["parents"] if p["name"] == "cognate-trunk"), maker).path / "model"
    folders = {name: artifact.path / "model" for name, artifact in artifacts.items()}
    check_parents(list(folders.values()), trunk, may_differ=CognateConfig.dials, labels=list(folders))
    return Family(folders, trunk, [together])


def _published(fact: dict, maker: str) -> Artifact:
    """The artifact of this name and digest. Raises MissingInput where it is gone."""
    found = Registry(runs_dir()).find(digest=fact["digest"])
    if not found:
        raise MissingInput(f"{fact['name']} {fact['digest'][:12]} is no longer below {runs_dir()}. Make it:  {maker}")
    return load_artifact(found[0]["path"])


def texts_of(tokenizer, examples: list[Example], max_tokens: int) -> Texts:
    """Examples as padded batches; texts of fewer than two tokens are left out."""
    pairs = zip(examples, encode_examples(tokenizer, examples), strict=True)
    kept = [(example.category, ids) for example, ids in pairs if len(ids[0]) + len(ids[1]) > 1]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    ids, categories = [ids for _, ids in kept], [category for category, _ in kept]
    return batch_texts(ids, categories, pad_token_id=pad, max_tokens=max_tokens, tokens_per_batch=TOKENS_PER_BATCH)


def search_examples(bundle: DataBundle, rows_per_dataset: int, seed: int) -> list[Example]:
    """The split that the search sees: some held-out rows of each dataset."""
    return _some_of_each([e for rows in bundle.heldout.values() for e in rows], rows_per_dataset, seed)


def race_examples(bundle: DataBundle, rows_per_dataset: int, race_rows: int, seed: int) -> list[Example]:
    """`race_rows` further held-out rows of each dataset, on which every child is read first."""
    searched = {e.prompt for e in search_examples(bundle, rows_per_dataset, seed)}
    both = search_examples(bundle, rows_per_dataset + race_rows, seed)
    return [example for example in both if example.prompt not in searched]


def selection_examples(bundle: DataBundle, rows_per_dataset: int, seed: int) -> list[Example]:
    """Held-out rows that the search did not see, which took so many of each: they choose the champion among its
    finalists."""
    seen = {e.prompt for e in search_examples(bundle, rows_per_dataset, seed)}
    rest = [e for rows in bundle.heldout.values() for e in rows if e.prompt not in seen]
    if not rest:
        raise DataError(
            f"search_rows and race_rows, {rows_per_dataset} together, take every held-out row, none is left to choose "
            "the champion by: lower them, or raise heldout_per_dataset in 10_cognate_data"
        )
    return _some_of_each(rest, 10**9, seed)


def choose(ledger: Ledger, measure: Measure, n_models: int, n_layers: int) -> tuple[Genome, list[dict]]:
    """The fittest finalist, and a row for each: fitness in the search, on the selection split, and the mean of both.

    That mean decides: either split alone is small beside the differences that count. What the search overrates it in is
    little, since few children were measured on all of its rows. A mean of children has theirs.
    """
    genomes = finalists(ledger, n_models, n_layers)
    found = [result["fitness"] for result in measure(genomes)]
    known = [mean(ledger[one.key]["fitness"] for one in _measured_parts(genome, ledger)) for genome in genomes]
    both = [(a + b) / 2 for a, b in zip(known, found, strict=True)]
    named = {m.genome.key: f"{m.how} {m.genome.dials}" for m in references(n_models, n_layers)}
    rows = [
        {
            "child": genome.key[:6],
            "recipe": named.get(genome.key)
            or (genome.bits if genome.key in ledger else f"mean of the {len(genome.of)} fittest"),
            "fitness in the search": round(searched, 4) if genome.key in ledger else None,
            "fitness on the selection split": round(chosen, 4),
            "mean of both": round(middle, 4),
        }
        for genome, searched, chosen, middle in zip(genomes, known, found, both, strict=True)
    ]
    return genomes[both.index(max(both))], rows


def _measured_parts(genome: Genome, ledger: Ledger) -> tuple[Genome, ...]:
    return (genome,) if genome.key in ledger else genome.of


def champion_examples(p: EvoEvolve, bundle: DataBundle) -> list[Example]:
    """The split that scores the champion: test rows, or further held-out rows where a dataset has no test split.

    Prompts that were trained on, searched on or chosen by are left out.
    """
    seen = {e.prompt for rows in bundle.heldout.values() for e in rows}
    found: list[Example] = []
    for source in bundle.sources:
        kind = "procedural" if source.source == "procedural" else p.data
        found += unseen_rows(source.dataset, kind, p.champion_rows, p.seed, seen)
    pools = [pool for stage in bundle.pools.values() for pool in stage.values()]
    prompts = [ids for ids, _ in encode_examples(bundle.tokenizer, found)]
    eos = bundle.tokenizer.eos_token_id
    known = leaked(pools, prompts, eos)
    return [e for e, ids, seen in zip(found, prompts, known, strict=True) if not (ids and seen)]


def unseen_rows(dataset: str, source: str, n: int, seed: int, seen: set[str]) -> list[Example]:
    """At most `n` test rows, or further held-out rows where there is no test split; no prompt of `seen` among them."""
    try:
        rows = load_rows(dataset, "test", source=source, limit=n, seed=seed).examples
    except NoSuchPart:
        rows = load_rows(dataset, "heldout", source=source, limit=n + len(seen), seed=seed).examples
    return [example for example in rows if example.prompt not in seen][:n]


def _some_of_each(examples: list[Example], rows: int, seed: int) -> list[Example]:
    by_dataset: dict[str, list[Example]] = {}
    for example in examples:
        by_dataset.setdefault(example.dataset, []).append(example)
    for name, own in by_dataset.items():
        random.Random(stream(seed, "search split", name)).shuffle(own)
    return [example for name in sorted(by_dataset) for example in by_dataset[name][:rows]]


def open_search(p: EvoEvolve, parents: Family, strategy: str = "evolution", evaluations: int | None = None) -> Run:
    """The run of the search; workers and what only the report reads are no part of its key, a given budget is."""
    left_out = {"workers", "backend", "wandb_mode", "on_gate_failure", "controls", "champion_rows", "fitness_threshold"}
    return open_run(
        EvoEvolve.NOTEBOOK,
        {**p.model_dump(exclude=left_out), "strategy": strategy, "evaluations": evaluations},
        parents=parents.artifacts,
        seed=p.seed,
        tags=tags(p, strategy=strategy),
        label=f"{p.profile}-{strategy}",
        wandb_mode=p.wandb_mode,
        run_name="phase2-evomerge",
        code=CODE,
    )


def evolution_config(p: EvoEvolve, parents: Family) -> EvolutionConfig:
    """The notebook's parameters as the search's configuration."""
    return EvolutionConfig(
        n_models=len(parents.folders),
        n_layers=parents.n_layers,
        seed=p.seed,
        generations=p.generations,
        population=p.population,
        patience=p.patience,
        winners=p.winners if p.race_rows else 0,
        budget_seconds=60 * p.budget_minutes,
    )


def population(plan: Plan, workers: int, backend: str = "local"):
    """Who measures the children: processes of this machine (0: one a core), or Ray's. A context manager; the numbers
    are the same."""
    workers = workers or os.cpu_count() or 1
    if backend == "local":
        return LocalPopulation(plan, workers)
    from forgelib.phases.ray_population import RayPopulation

    return RayPopulation(plan, workers)


def search(config: EvolutionConfig, measure: Measure, run: Run, strategy: Callable = evolve) -> Iterator[dict]:
    """Records of the generations, journaled. The ledger in the run's folder keeps what was measured."""
    yield from run.tracker.follow(strategy(config, measure, Ledger(run.dir / LEDGER), run.control))


def records(run: Run) -> list[dict]:
    """The search's generations, from its artifact where it is finished."""
    finished = run.finished()
    return read_journal(finished.path / JOURNAL) if finished else run.tracker.records()


def evaluations(run: Run) -> Ledger:
    """Every child that was measured, by its key: genome, fitness, terms; from the artifact of a finished run."""
    finished = run.finished()
    return Ledger((finished.path if finished else run.dir) / LEDGER)


def keep_ledger(run: Run, folder: Path) -> None:
    """Every measured child goes into the artifact, too."""
    (folder / LEDGER).write_bytes((run.dir / LEDGER).read_bytes())


def open_plan(parents: Family, texts: Texts, race: Texts | None = None) -> Plan:
    """What a workshop, here or in a worker, is made from."""
    return Plan(tuple(map(str, parents.folders.values())), str(parents.trunk), texts, race=race)

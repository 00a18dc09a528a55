"""`forge evo`: the search of Phase 2 over any local Hugging Face folders of one architecture, without a notebook.

OUT/champion         the model folder, with its tokenizer
OUT/metrics.jsonl    a record a generation; OUT/evaluations.jsonl every measured child
OUT/standing.json    champion, parents, plain mean and ensemble on rows that the search never saw
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoTokenizer

from forgelib.core.tracking import Tracker
from forgelib.data.catalogue import CATALOGUE
from forgelib.data.prepare import load_rows
from forgelib.evaluate.texts import Texts
from forgelib.merge import MergeRefused, check_parents, linear
from forgelib.phases.evomerge import EvolutionConfig
from forgelib.phases.ledger import Ledger
from forgelib.phases.workshop import Plan, Workshop, load_config
from forgelib.workbook.command_folder import alone_in, check_place, files_of
from forgelib.workbook.console import watched
from forgelib.workbook.contest import Standing, contenders, n_contenders, save_champion, standing
from forgelib.workbook.phase2 import LEDGER, STRATEGIES, Family, choose, population, texts_of, unseen_rows
from forgelib.workbook.tables import number


@dataclass(frozen=True)
class Asked:
    """What the command line asks for. rows are those of each dataset: searched on, chosen by, and unseen."""

    models: tuple[Path, ...]
    out: Path
    trunk: Path | None = None
    generations: int = 50
    seed: int = 0
    workers: int = 0
    ray: bool = False
    strategy: str = "evolution"
    data: str = "auto"
    search_rows: int = 20
    selection_rows: int = 40
    champion_rows: int = 100
    max_tokens: int = 256


def run_evo(asked: Asked, say: Callable[[str], object]) -> Path:
    """Search, judge and write the champion; `say` gets a line now and then. Returns the champion's folder.

    Started again with the same options it goes on where it was. Raises MergeRefused before any work where the models do
    not fit together or have no tokenizer.
    """
    _refuse_folders(asked)
    config_of = [load_config(folder) for folder in asked.models if (folder / "config.json").is_file()]
    dials = getattr(config_of[0], "dials", ()) if config_of else ()
    weights = check_parents(list(asked.models), asked.trunk, may_differ=dials)
    tokenizer = _tokenizer(asked.models[0])
    with alone_in(asked.out, _question(asked)):
        trunk = asked.trunk or _mean_as_trunk(asked, weights, say)
        parents = Family(_named(asked.models), trunk, [])
        seen, chosen_by, unseen = _splits(asked, tokenizer, say)
        plan = Plan(tuple(map(str, asked.models)), str(trunk), seen)
        n_layers = config_of[0].num_hidden_layers
        _search(asked, plan, n_layers, say)
        with _population(asked, replace(plan, texts=chosen_by)) as measure:
            champion, _ = choose(Ledger(asked.out / LEDGER), measure, len(asked.models), n_layers)
        judge = Workshop(replace(plan, texts=unseen))
        read = watched(contenders(judge, champion, parents), n_contenders(parents), "contenders")
        found = standing(judge, dict(read), asked.seed)
        say(f"  {'on rows that the search never saw':32}  fitness  95% interval")
        for row in found.rows():
            say(f"  {row['model']:32} {number(row['fitness']):>8}  [{number(row['low'])}, {number(row['high'])}]")
        say(_lead(found, parents.names))
        (asked.out / "standing.json").write_text(json.dumps(found.rows(), indent=1))
        save_champion(judge, champion, tokenizer, asked.out / "champion")
        return asked.out / "champion"


def _refuse_folders(asked: Asked) -> None:
    check_place(asked.out)
    places = [folder.resolve() for folder in asked.models]
    for folder, place in zip(asked.models, places, strict=True):
        if places.count(place) > 1:
            raise MergeRefused(f"{folder} is named more than once: a parent counts once, give others beside it")


def _lead(found: Standing, parents: list[str]) -> str:
    """One line: is the champion worth more than the best of those it was made from?"""
    best = found.best(parents)
    lead, (low, high) = found.lead("champion", best)
    verdict = "a lead" if low > 0 else "no lead shown"
    return f"champion over the best parent ({best}): {number(lead)}  [{number(low)}, {number(high)}], {verdict}"


def _named(folders: tuple[Path, ...]) -> dict[str, Path]:
    """Folders by their last name, or by the whole path where two have the same (a/model, b/model)."""
    names = [folder.name for folder in folders]
    return {
        name if names.count(name) == 1 else str(folder): folder for name, folder in zip(names, folders, strict=True)
    }


def _search(asked: Asked, plan: Plan, n_layers: int, say: Callable[[str], object]) -> None:
    config = EvolutionConfig(len(asked.models), n_layers, asked.seed, generations=asked.generations)
    steps = STRATEGIES[asked.strategy]
    tracker = Tracker(asked.out, run_name="phase2-evomerge", config={}, wandb_mode="disabled")
    with _population(asked, plan) as measure:
        records = tracker.follow(steps(config, measure, Ledger(asked.out / LEDGER)))
        for record in watched(records, config.generations, "search", ("best",)):
            say(f"  generation {record['step']}: best {record['best']:.4f}, diversity {record['diversity']:.2f}")
    say(f"  ended: {record['ended']}; {record['evaluations']} children measured")


def _population(asked: Asked, plan: Plan):
    return population(plan, asked.workers, "ray" if asked.ray else "local")


def _splits(asked: Asked, tokenizer, say: Callable[[str], object]) -> tuple[Texts, Texts, Texts]:
    """Rows to search on, further ones to choose among the finalists by, and test rows that neither sees."""
    seen, chosen_by, unseen, sources = [], [], [], Counter()
    both = asked.search_rows + asked.selection_rows
    for name in CATALOGUE:
        rows = load_rows(name, "heldout", source=asked.data, limit=both, seed=asked.seed)
        sources[rows.source] += 1
        seen += rows.examples[: asked.search_rows]
        chosen_by += rows.examples[asked.search_rows :]
    say(f"measured on {len(CATALOGUE)} datasets: {', '.join(f'{n} {source}' for source, n in sources.items())}")
    prompts = {example.prompt for example in (*seen, *chosen_by)}
    for name, spec in CATALOGUE.items():
        if not spec.optional:
            unseen += unseen_rows(name, asked.data, asked.champion_rows, asked.seed, prompts)
    return tuple(texts_of(tokenizer, examples, asked.max_tokens) for examples in (seen, chosen_by, unseen))


def _tokenizer(folder: Path):
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise MergeRefused(
            f"{folder} has no tokenizer that can be read ({first}). Copy its tokenizer.json in."
        ) from None
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise MergeRefused(f"{folder} has a slow tokenizer only. Save it with tokenizer.json (a fast tokenizer).")
    return tokenizer


def _mean_as_trunk(asked: Asked, weights: list, say: Callable[[str], object]) -> Path:
    say("no --trunk: task vectors start at the parents' mean and sum to zero, so DARE can only add noise")
    folder = asked.out / "mean"
    folder.mkdir(exist_ok=True)
    save_file({name: t.contiguous() for name, t in linear(weights).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text((asked.models[0] / "config.json").read_text())
    return folder


def _question(asked: Asked) -> dict[str, object]:
    """What a search answers: a folder that holds another one is refused."""
    facts = {
        name: str(value) for name, value in vars(asked).items() if name not in ("out", "workers", "ray", "generations")
    }
    return facts | {"files of the models": [files_of(model) for model in asked.models]}

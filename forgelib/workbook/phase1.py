"""What the Phase 1 notebooks share: finding the data, shaping the model, opening and journaling a training.

A notebook shows each of these steps; here is only the joining of parameters, runs and artifacts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from forgelib import evaluate
from forgelib.core import preflight, sizing
from forgelib.core.artifacts import Artifact, load_artifact
from forgelib.core.parallel import launched
from forgelib.core.paths import datasets_mirror, runs_dir
from forgelib.core.registry import Registry
from forgelib.core.rng import stream
from forgelib.core.run import Run, open_run
from forgelib.core.tracking import JOURNAL, read_journal
from forgelib.data import CURRICULUM, SPECIALISTS, Example
from forgelib.data.prepare import DataBundle, DataConfig, prepare
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.phases.cognate import PretrainConfig, pretrain
from forgelib.phases.curriculum import SPECIALIST_CYCLES, TRUNK_CYCLES, specialist_stages, trunk_stages
from forgelib.workbook.origin import tags
from forgelib.workbook.params import CognateData, CognateDiversity, CognateTrain, Parameters, profile_values

DATA = "cognate-data"
#: Whose change makes a finished run of Phase 1 stale: this module and what it imports.
CODE = ("forgelib.workbook.phase1", "forgelib.workbook.parents")
disable_progress_bar()  # loading a model redraws a bar in the notebook for every file


def data_config(p: CognateData) -> DataConfig:
    """The notebook's parameters as the data room's configuration."""
    return DataConfig(
        source=p.data,
        rows_per_dataset=p.rows_per_dataset,
        heldout_per_dataset=p.heldout_per_dataset,
        seq_lens=(p.seq_len_foundation, p.seq_len_reasoning, p.seq_len_advanced),
        vocab_size=p.vocab_size,
        gpt2="auto" if p.vocab_size == 50_257 else "never",
        mirror=datasets_mirror(),
        seed=p.seed,
    )


def make_data(p: CognateData) -> tuple[DataBundle, Artifact]:
    """Prepare and publish the data, or find the same data published before.

    Rows of a mirror or the hub are part of the key by the bundle's digest: replaced rows make new data.
    """
    bundle = prepare(data_config(p))
    run = open_run(
        CognateData.NOTEBOOK,
        {**p.model_dump(), "digest": bundle.digest},
        seed=p.seed,
        tags=tags(p),
        label=p.profile,
        code=CODE,
    )
    return bundle, run.finished() or run.publish(DATA, bundle.save)


def data_bundle(p: Parameters) -> tuple[DataBundle, Artifact]:
    """The newest data of this profile, seed and choice of rows; made here where there is none."""
    found = Registry(runs_dir()).find(name=DATA, tags=tags(p))
    if found:
        artifact = load_artifact(found[0]["path"])
        return DataBundle.load(artifact.path), artifact
    given = profile_values(CognateData, p.profile)
    return make_data(CognateData(**{**given, "profile": p.profile, "seed": p.seed, "data": p.data}))


def curriculum_rows(bundle: DataBundle) -> list[dict]:
    """One row a stage: epochs, datasets it adds, sequences and their length."""
    return [
        {
            "stage": name,
            "epochs": "{}-{}".format(*stage.epochs),
            "adds": ", ".join(stage.adds),
            "sequences": sum(len(pool) for pool in bundle.pools[name].values()),
            "tokens each": next(iter(bundle.pools[name].values())).shape[1],
        }
        for name, stage in CURRICULUM.items()
        if name in bundle.pools
    ]


def model_config(p: CognateTrain, bundle: DataBundle) -> CognateConfig:
    """The trunk's shape; every `memory_every`-th block carries a long-term memory, starting with the second."""
    tokenizer = bundle.tokenizer
    return CognateConfig(
        vocab_size=len(tokenizer),
        d_model=p.d_model,
        n_layers=p.n_layers,
        n_heads=p.n_heads,
        d_ff=p.d_ff,
        window=p.window,
        memory_layers=list(range(min(1, p.n_layers - 1), p.n_layers, p.memory_every)),
        memory_chunk=p.memory_chunk,
        n_micro_steps=p.n_micro_steps,
        max_cycles=TRUNK_CYCLES,
        recursion_layers=p.recursion_layers,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def device() -> str:
    """Where models live: this process's GPU, where there is one."""
    launched()  # gives each of several processes its own GPU
    return "cuda" if torch.cuda.is_available() else "cpu"


def new_model(p: CognateTrain, bundle: DataBundle) -> CognateForCausalLM:
    """The trunk before its first step, with the weights that the seed gives."""
    torch.manual_seed(stream(p.seed, "weights"))
    return CognateForCausalLM(model_config(p, bundle)).to(device())


def training_config(p: CognateTrain, bundle: DataBundle, part: str) -> PretrainConfig:
    """Stages and rates of "trunk" or of a specialist."""
    if part == "trunk":
        stages, rate = trunk_stages(bundle, p.trunk_steps, p.tokens_per_step), 1.0
    else:
        stages, rate = specialist_stages(bundle, part, p.steps, p.tokens_per_step), p.specialist_rate
    return PretrainConfig(stages, seed=p.seed, muon_lr=rate * p.muon_lr, adamw_lr=rate * p.adamw_lr)


def specialise(model: CognateForCausalLM, specialist: str) -> None:
    """Give the trunk's copy its specialist's halting threshold and memory horizon (METHOD, Phase 1)."""
    expert = SPECIALISTS[specialist]
    model.set_dials({"act_threshold": expert.act_threshold, "ltm_tokens": expert.ltm_tokens})


def forecast(p: CognateTrain, model: CognateForCausalLM) -> preflight.Forecast:
    """Memory and disk that the deeper of the two trainings will take."""
    config = model.config
    applications = config.n_layers + config.recursion_layers * (config.n_micro_steps + 1) * max(
        TRUNK_CYCLES, SPECIALIST_CYCLES[p.specialist]
    )
    return preflight.forecast(
        n_parameters=sizing.count_parameters(model),
        tokens_per_step=p.tokens_per_step,
        d_model=config.d_model,
        layer_applications=applications,
        vocab_size=config.vocab_size,
    )


def open_training(p: CognateTrain, part: str, parents: list[Artifact]) -> Run:
    """The run of the trunk or of a specialist. The trunk's key leaves out what only the specialist reads."""
    facts = p.model_dump(exclude={"wandb_mode", "on_gate_failure", "checkpoint_every_seconds", "accuracy_samples"})
    if part == "trunk":
        facts = {name: value for name, value in facts.items() if name not in ("specialist", "steps", "specialist_rate")}
    elif part != p.specialist:  # a control that Phase 2 trains
        facts |= {"part": part}
    return open_run(
        CognateTrain.NOTEBOOK,
        facts,
        parents=parents,
        seed=p.seed,
        tags=tags(p, part=part),
        label=f"{p.profile}-{part}",
        wandb_mode=p.wandb_mode,
        run_name=f"phase1-cognate-{part}",
        code=CODE,
    )


def train(model: CognateForCausalLM, config: PretrainConfig, run: Run, seconds: float) -> Iterator[dict]:
    """Records of the training, journaled; none where the run is finished: then `model` gets the finished weights.

    Where a launcher started several processes they train together, and the first of them keeps the journal.
    """
    finished = run.finished()
    if finished is not None:
        model.load_state_dict(CognateForCausalLM.from_pretrained(finished.path / "model").state_dict())
        model.config.max_cycles = config.stages[-1].max_cycles
        return
    together, checkpointer = launched(), run.checkpointer(every_seconds=seconds)
    steps = pretrain(model, config, checkpointer=checkpointer, control=run.control, accelerator=together)
    yield from run.tracker.follow(steps) if together is None or together.is_main_process else steps


def journal(run: Run) -> list[dict]:
    """The run's records, from its artifact where it is finished."""
    finished = run.finished()
    return run.tracker.records() or (read_journal(finished.path / JOURNAL) if finished else [])


def publish_model(run: Run, model: CognateForCausalLM, bundle: DataBundle, verdicts: list[dict]) -> Artifact:
    """The model folder (config, safetensors, tokenizer) as an artifact, or the same one published before."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder / "model")
        bundle.tokenizer.save_pretrained(folder / "model")

    together = launched()
    if together is None or together.is_main_process:
        run.finished() or run.publish(f"cognate-{run.tags['part']}", write, verdicts)
    if together is not None:
        together.wait_for_everyone()  # now the others find it
    return run.finished()


def load_model(artifact: Artifact) -> CognateForCausalLM:
    """The model of a published trunk or specialist, ready to be measured."""
    return CognateForCausalLM.from_pretrained(artifact.path / "model").to(device()).eval()


@dataclass(frozen=True)
class Comparison:
    """Models on the same held-out texts and questions: losses [n texts] and right or wrong [n questions] of each."""

    losses: dict[str, np.ndarray]
    questions: list[Example]
    right: dict[str, np.ndarray]


def compare(
    models: dict, bundle: DataBundle, mix: Mapping[str, float], p: CognateTrain | CognateDiversity
) -> Comparison:
    """Measure `models` (name -> model) on what the mix asks for, beside the strongest constant guess."""
    texts = evaluate.mixed_texts(bundle.heldout_pools, mix, n=100, seed=p.seed)
    questions = evaluate.mixed_questions(bundle.heldout, mix, n=p.accuracy_samples, seed=p.seed)
    prompts, wanted = [q.prompt for q in questions], [q.answer for q in questions]
    losses, right = {}, {}
    for name, model in models.items():
        losses[name] = evaluate.losses_per_text(model, texts)
        right[name] = evaluate.answer_by_generation(model, bundle.tokenizer, prompts, wanted).correct
    return Comparison(losses, questions, {**right, "constant guess": evaluate.constant_guess(questions)})

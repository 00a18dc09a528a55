"""What notebook 31 joins: the baked model, problems with headroom, the reinforcement, its checks and controls.

A notebook shows each of these steps; here is only the joining of parameters, runs and artifacts.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from forgelib.core.artifacts import Artifact
from forgelib.core.gates import Check
from forgelib.core.loop import Checkpointer
from forgelib.core.rng import stream
from forgelib.core.run import Run, latest_artifact, open_run
from forgelib.data import DataError, ReasoningRow, Vocabulary
from forgelib.data.prepare import load_rows
from forgelib.data.traces import procedural_rows
from forgelib.evaluate import bootstrap_interval
from forgelib.evaluate.accuracy import same_text
from forgelib.evaluate.final_answer import same_number
from forgelib.evaluate.text_thinker import TextThinker
from forgelib.evaluate.thinker import questions
from forgelib.evaluate.verdict import Verdict
from forgelib.phases.antitheater import TheaterConfig, validate
from forgelib.phases.bake import BakeConfig, bake
from forgelib.phases.observation import latency_ms, observe
from forgelib.phases.reinforce import ReinforceConfig, reinforce
from forgelib.thoughts import add_vocabulary
from forgelib.workbook import phase3
from forgelib.workbook.answered import Answered, answered
from forgelib.workbook.origin import made_by, tags
from forgelib.workbook.params import Parameters, QuietRL

#: Whose change makes a finished run stale: this module and what it imports.
CODE = ("forgelib.workbook.reinforcement",)
BAKED, REINFORCED = "quietstar-baked", "quietstar-rl"
#: Episodes between two looks at coherence and latency, and the problems looked at.
LOOK_EVERY, LOOKED = 100, 8
#: The datasets whose accuracy METHOD names, and how their answers are compared.
DATASETS = {"gsm8k": same_number, "arc_easy": same_text}


@dataclass(frozen=True)
class Problems:
    """Rows to train on, to check while training, and to measure the gate on; prompts of no two parts meet."""

    train: list[ReasoningRow]
    check: list[ReasoningRow]
    gate: list[ReasoningRow]


def baked(p: Parameters) -> Artifact:
    """The baked model of Step 1. Raises MissingInput naming what makes it."""
    own = tags(p, vocabulary=p.vocabulary)
    return latest_artifact(BAKED, own, made_by("30_quietstar_bake", own))


def reinforced(p: Parameters) -> Artifact:
    """The model of Step 2. Raises MissingInput naming what makes it."""
    own = tags(p, vocabulary=p.vocabulary)
    return latest_artifact(REINFORCED, own, made_by("31_quietstar_rl", own))


def problems(p: QuietRL, words: Vocabulary) -> Problems:
    """Procedural problems of one difficulty. Raises DataError where there are too few."""
    options = {"seed": p.seed, "strategies": tuple(p.strategies.split(",")), "difficulties": (p.difficulty,)}
    train = procedural_rows(p.train_rows, words, part="train", **options)
    held = procedural_rows(p.check_rows + p.gate_rows, words, part="validation", **options)
    if len(train) < p.train_rows // 2 or len(held) <= p.check_rows:
        raise DataError(f"difficulty {p.difficulty} of {p.strategies} has {len(train)} and {len(held)} problems only")
    return Problems(train, held[: p.check_rows], held[p.check_rows :])


def source_rows(found: Problems, p: QuietRL) -> list[dict]:
    """Where the problems come from, and the questions of datasets that are asked on the way."""
    rows = phase3.rows_by_maker(train=found.train, check=found.check, gate=found.gate)
    for name in DATASETS if p.dataset_samples else ():
        asked = load_rows(name, "test", source=p.data, limit=p.dataset_samples, seed=p.seed)
        rows.append({"dataset": name, "source": asked.source, "train": 0, "check": len(asked.examples), "gate": 0})
    return rows


def rl_config(p: QuietRL, **changed: int) -> ReinforceConfig:
    """The notebook's parameters as the reinforcement's configuration."""
    names = set(ReinforceConfig.__dataclass_fields__) & set(QuietRL.model_fields)
    return ReinforceConfig(**{**{name: getattr(p, name) for name in names}, **changed})


def thinker(model: nn.Module, tokenizer, words: Vocabulary, p: QuietRL, baked: bool = True) -> TextThinker:
    """The model as the tests ask it; one that was never baked has one way of being asked."""
    return TextThinker(model, tokenizer, words, **_asking(p), at_once=baked)


def _asking(p: QuietRL) -> dict:
    return {"max_thought_tokens": p.thought_tokens, "max_answer_tokens": p.answer_tokens, "top_p": p.top_p}


def open_rl(p: QuietRL, parents: list[Artifact]) -> Run:
    """The run of the reinforcement."""
    left_out = {"wandb_mode", "on_gate_failure", "checkpoint_every_seconds", "gain_threshold", "latency_threshold"}
    return open_run(
        QuietRL.NOTEBOOK,
        p.model_dump(exclude=left_out),
        parents=parents,
        seed=p.seed,
        tags=tags(p, vocabulary=p.vocabulary),
        label=p.profile,
        wandb_mode=p.wandb_mode,
        run_name="phase3-step2-rl",
        metrics_prefix="rl/",
        code=CODE,
    )


def rl_steps(
    model: nn.Module, tokenizer, words: Vocabulary, rows: Problems, champion: tuple, p: QuietRL, run: Run
) -> Iterator[dict]:
    """Records of the reinforcement, journaled; none where it is finished: then `model` gets the finished weights.

    champion: frozen model and tokenizer, for the checks."""
    finished = run.finished()
    if finished is not None:
        model.load_state_dict(phase3.load(finished)[0].state_dict())
        return
    steps = reinforce(
        model,
        copy.deepcopy(model).eval(),
        tokenizer,
        words,
        rows.train,
        rl_config(p),
        checkpointer=run.checkpointer(every_seconds=p.checkpoint_every_seconds),
        control=run.control,
        check=check(tokenizer, words, rows.check, champion, p),
    )
    yield from run.tracker.follow(_looked_at(steps, model, tokenizer, words, rows.check, p))


def _looked_at(
    steps: Iterator[dict], model: nn.Module, tokenizer, words: Vocabulary, rows: list[ReasoningRow], p: QuietRL
) -> Iterator[dict]:
    """The records, every LOOK_EVERY episodes with the coherence of thoughts and their latency."""
    prompts = [row.prompt for row in rows[:LOOKED]]
    for record in steps:
        episode = record["episode"]
        if episode // LOOK_EVERY > max(0, episode - p.batch_size) // LOOK_EVERY:
            seed = stream(p.seed, "looks", episode)
            options = {**_asking(p), "at_once": True}
            record |= observe(model, tokenizer, words, prompts, n_thoughts=p.n_thoughts, seed=seed, **options)
        yield record


def check(
    tokenizer, words: Vocabulary, rows: list[ReasoningRow], champion: tuple, p: QuietRL
) -> Callable[[nn.Module, int], dict]:
    """What is asked every `check_every` episodes: anti-theater on the check's rows, and the datasets of METHOD.

    A small check cannot tell a weak pass from a weak failure, so it fails only where a test's whole interval lies
    below its threshold; notebook 32 asks for more, on more rows."""

    def measure(model: nn.Module, episode: int) -> dict:
        was_training = model.training
        verdict = theater(model.eval(), tokenizer, words, rows, champion, p, stream(p.seed, "check", episode))
        found = {"passed": not surely_failed(verdict), **verdict.metrics()}
        found |= dataset_accuracies(model, tokenizer, words, p)
        model.train(was_training)
        return found

    return measure


def theater(
    model: nn.Module, tokenizer, words: Vocabulary, rows: list[ReasoningRow], champion: tuple, p: QuietRL, seed: int
) -> Verdict:
    """The anti-theater verdict on a few rows, four thoughts each."""
    n = len(rows)
    config = TheaterConfig(seed, n_problems=n, n_samples=min(n, 100), n_thought_problems=n, thoughts=4)
    reference, other = champion
    return validate(
        model,
        tokenizer,
        rows,
        words=words,
        reference=reference,
        reference_tokenizer=other,
        config=config,
        at_once=True,
        **_asking(p),
    )


def surely_failed(verdict: Verdict) -> list[str]:
    """The tests that failed with their whole interval below the threshold; one without an interval, by its number."""
    failed = [one for one in verdict.gate().checks if one.verdict == "failed"]
    return [one.name for one in failed if one.interval is None or one.interval[1] < one.threshold]


def dataset_accuracies(model: nn.Module, tokenizer, words: Vocabulary, p: QuietRL) -> dict[str, float]:
    """gsm8k_accuracy and arc_accuracy with thoughts, on a few held-out rows; real or procedural as `data` says."""
    found = {}
    for name, same in DATASETS.items() if p.dataset_samples else ():
        examples = load_rows(name, "test", source=p.data, limit=p.dataset_samples, seed=p.seed).examples
        asked = TextThinker(model, tokenizer, words, **{**_asking(p), "max_answer_tokens": 12}, at_once=True)
        found[f"{name.split('_')[0]}_accuracy"] = float(answered(asked, questions(examples), same=same).right.mean())
    return found


def jumpstart(champion: tuple, words: Vocabulary, rows: Problems, p: QuietRL) -> list[dict]:
    """Records of the same reinforcement from the champion that was never baked, for `jumpstart_episodes`."""
    if not p.jumpstart_episodes:
        return []
    model, tokenizer = copy.deepcopy(champion[0]), copy.deepcopy(champion[1])
    add_vocabulary(model, tokenizer, words, seed=p.seed)
    config = rl_config(p, episodes=p.jumpstart_episodes, alarm_steps=10**9)
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(Path(folder), every_seconds=1e9)
        frozen = copy.deepcopy(model)
        return list(reinforce(model, frozen, tokenizer, words, rows.train, config, checkpointer=checkpointer))


def supervised(start: nn.Module, tokenizer, words: Vocabulary, rows: Problems, p: QuietRL) -> nn.Module:
    """The control: the same start, shown the true traces of as many problems as there are episodes, once."""
    model = copy.deepcopy(start)
    shown = [rows.train[i % len(rows.train)] for i in range(p.episodes)]
    config = BakeConfig(
        seed=p.seed, epochs=1, batch_size=8, muon_lr=p.supervised_lr, adamw_lr=p.supervised_lr / 2, looks=1, target=1.1
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(Path(folder), every_seconds=1e9)
        for _ in bake(model, tokenizer, words, shown, rows.check[:1], config, checkpointer=checkpointer):
            pass
    return model


def gate_checks(
    model: nn.Module,
    tokenizer,
    words: Vocabulary,
    rows: list[ReasoningRow],
    rights: dict[str, np.ndarray],
    checks: list[dict],
    p: QuietRL,
) -> list[Check]:
    """The gate of Step 2. rights: right or wrong [n] after training, of the champion, and of the controls, which are
    shown as what is gained over them; checks: the records of the checks on the way."""
    gain = rights["after"].astype(float) - rights["champion"]
    interval = bootstrap_interval(np.mean, gain, seed=p.seed)
    after = rights["after"].mean()
    over = {name: float(after - right.mean()) for name, right in rights.items() if name.startswith("over")}
    milliseconds = latency_ms(thinker(model, tokenizer, words, p), [row.prompt for row in rows[:20]])
    known = tokenizer.get_vocab()
    return [
        Check("gain over the champion, lower bound", interval[0], p.gain_threshold, ">", interval, control=over),
        Check("milliseconds to an answer", milliseconds, p.latency_threshold, "<"),
        Check("thinking tokens known", float(np.mean([token in known for token in words.tokens])), 1.0, ">="),
        Check("checks passed on the way", float(np.mean([one["passed"] for one in checks])), 1.0, ">="),
    ]


def publish_reinforced(run: Run, model: nn.Module, tokenizer, verdicts: list[dict]) -> Artifact:
    """The model folder as an artifact, or the same one published before."""

    def write(folder: Path) -> None:
        phase3.write_model(folder, model, tokenizer)

    return run.finished() or run.publish(REINFORCED, write, verdicts)


def jumpstart_rows(runs: dict[str, list[dict]], targets: tuple[float, ...] = (0.25, 0.5, 0.75)) -> list[dict]:
    """Episodes until the true answer is the likeliest after a share of the sampled thoughts, mean of 100 episodes."""
    found = []
    for name, records in runs.items():
        if not records:
            continue
        n = max(1, round(100 / records[0]["episode"]))
        means = [float(np.mean([r["right"] for r in records[max(0, i - n + 1) : i + 1]])) for i in range(len(records))]
        reached = {
            f"to {target:.0%}": next(
                (r["episode"] for r, mean in zip(records, means, strict=True) if mean >= target),
                f"not within {records[-1]['episode']}",
            )
            for target in targets
        }
        found.append({"start": name, "at first": round(means[0], 3), **reached})
    return found


def example_rows(thinker: TextThinker, found: Answered, n: int = 3) -> list[dict]:
    """`n` greedy thoughts that led to the right answer and `n` that did not, as far as there are such."""
    chosen = [i for wanted in (True, False) for i in np.flatnonzero(found.right == wanted)[:n]]
    return [
        {
            "question": phase3.question(found.rows[i].prompt),
            "thought": thinker.text(found.thoughts[i]),
            "answer": found.answers[i],
            "true answer": found.rows[i].answer,
            "right": "yes" if found.right[i] else "no",
        }
        for i in chosen
    ]

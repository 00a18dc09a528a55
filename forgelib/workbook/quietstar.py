"""`forge bake-quietstar`: thinking vocabulary, reasoning rows and baking for any local Hugging Face model or GGUF file.

OUT/model            the baked model folder, with its tokenizer
OUT/metrics.jsonl    a record a step, with what the model could do whenever it was looked at
OUT/report.json      settings, skipped rows, right answers by strategy and on the asked dataset, before and after; the
                     A/B test: the baked model with thoughts against itself without, and against the model as it came
OUT/ab_test          what the A/B test asked and what was answered: broken off, it goes on there
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from forgelib import evaluate
from forgelib.core.loop import Checkpointer, Control
from forgelib.core.tracking import Tracker
from forgelib.data import Example, ReasoningRow, Vocabulary, vocabulary
from forgelib.data.reasoning import without_thought
from forgelib.evaluate.accuracy import first_line, greedy_texts
from forgelib.evaluate.reasoning import reason
from forgelib.evaluate.text_thinker import TextThinker
from forgelib.evaluate.thinker import check_rows, questions
from forgelib.phases.abtest import ABConfig, ab_test
from forgelib.phases.bake import bake
from forgelib.thoughts import add_vocabulary
from forgelib.workbook import abtest, phase3
from forgelib.workbook.any_model import context, load_any, place
from forgelib.workbook.command_folder import alone_in, files_of, flat_settings, free_folder
from forgelib.workbook.console import watched
from forgelib.workbook.params import ParameterError, QuietBake, resolve
from forgelib.workbook.remembering import Remembering

#: What differs from the notebook's defaults: those are for a model of a million weights that has to learn from scratch.
DEFAULTS = {
    "rows": 2000,
    "headroom_rows": 0,
    "epochs": 3,
    "batch_size": 8,
    "muon_lr": 1e-4,
    "adamw_lr": 1e-4,
    "max_new_tokens": 128,
}
#: Fields of QuietBake that mean something only inside the workbook.
NOTEBOOK_ONLY = {"profile", "on_gate_failure", "wandb_mode"}

REPORT, AB_TEST = "report.json", "A/B test"
#: Room for what opens and closes a thought, and for the answer after it.
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Asked:
    """What the command line asks for. dataset "" leaves out the measurement on a dataset, ab_samples 0 the A/B test."""

    model: Path
    out: Path
    dataset: str = "gsm8k"
    samples: int = 100
    device: str = "cpu"
    config: Path | None = None
    resume: bool = False
    ab_samples: int = 100
    ab_rounds: int = 3
    ab_thoughts: int = 4
    ab_improvement: float = 0.02


def bake_quietstar(asked: Asked, say: Callable[[str], object]) -> Path:
    """Bake and measure; `say` gets a line now and then. Returns the folder of the baked model.

    Killed and started again with `resume` it ends with the same weights. Raises ParameterError for an unknown setting,
    a model that cannot be read and a folder that is taken; DataError for rows that cannot be used.
    """
    p = settings(asked.config)
    place(asked.model)
    free_folder(asked.out, asked.resume)
    words = vocabulary(p.vocabulary)
    _check_device(asked.device)
    _check(asked, p, words)
    if not (asked.out / "model").is_dir():
        _bake(asked, p, words, say)
    elif asked.ab_samples == 0 or AB_TEST in json.loads((asked.out / REPORT).read_text()):
        say(f"{asked.out / 'model'} is finished")
        return asked.out / "model"
    if asked.ab_samples:
        with alone_in(asked.out, _question(asked, p)):
            _ab_test(asked, p, words, say)
    return asked.out / "model"


def _bake(asked: Asked, p: QuietBake, words: Vocabulary, say: Callable[[str], object]) -> None:
    """Writes OUT/model and the report of what the model could do before and after."""
    rows, asked_of = phase3.splits(p, words), _questions(asked, p.seed)
    model, tokenizer = load_any(asked.model, asked.device)
    added = add_vocabulary(model, tokenizer, words, seed=p.seed)
    with alone_in(asked.out, _question(asked, p)):
        say(f"{len(added.new)} thinking tokens added; {len(rows.train)} rows to bake, {len(rows.skipped)} skipped")
        for line in rows.skipped[:10]:
            say(f"  {line}")
        if asked_of:
            sources = ", ".join(sorted({question.source for question in asked_of}))
            say(f"{len(asked_of)} unseen questions of {asked.dataset}, {sources}")
        before = _measured(model, tokenizer, words, rows, asked_of, p)
        config, checkpoints = phase3.bake_config(p), asked.out / "checkpoints"
        checkpointer = Checkpointer(checkpoints, every_seconds=p.checkpoint_every_seconds)
        tracker = Tracker(asked.out, run_name="phase3-step1-baking", metrics_prefix="baking/")
        steps = bake(
            model,
            tokenizer,
            words,
            rows.train,
            rows.watch,
            config,
            checkpointer=checkpointer,
            control=Control(asked.out),
        )
        for record in watched(tracker.follow(steps), phase3.total_steps(p, rows), "baking", ("loss",)):
            if "accuracy_overall" in record:
                say(f"  step {record['step'] + 1}: loss {record['loss']:.3f}, right {record['accuracy_overall']:.3f}")
        after = _measured(model, tokenizer, words, rows, asked_of, p)
        report = _report(p, rows, before, after)
        _say_answers(report, say)
        _write_report(asked, report)
        _save(model, tokenizer, asked.out / "model")
        shutil.rmtree(checkpoints, ignore_errors=True)


def _say_answers(report: dict, say: Callable[[str], object]) -> None:
    say("  right answers            before -> after  [95% interval]")
    for line in report["right answers"]:
        say(f"  {line['of']:24} {line['before']:.3f} -> {line['after']:.3f}  [{line['low']:.3f}, {line['high']:.3f}]")


def _check_device(name: str) -> None:
    """Raises ParameterError where torch has no such device on this machine."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        known = "cpu always can, cuda with a GPU and PyTorch's CUDA build"
        raise ParameterError(f"--device {name}: cannot be used here; {known}") from None


def _check(asked: Asked, p: QuietBake, words: Vocabulary) -> None:
    """Refuses what the A/B test cannot do, before any work."""
    if not asked.ab_samples:
        return
    try:
        _ab_config(asked, p, asked.ab_samples)
    except ValueError as error:
        why = str(error).partition(": ABConfig")[0]
        raise ParameterError(f"--ab-samples, --ab-rounds, --ab-thoughts, --ab-improvement: {why}") from None
    if asked.dataset:
        check_rows(_ab_rows(asked, p, words), 1, abtest.comparison(asked.dataset))


def _ab_config(asked: Asked, p: QuietBake, samples: int) -> ABConfig:
    return ABConfig(p.seed, samples, asked.ab_rounds, asked.ab_thoughts, improvement=asked.ab_improvement)


def _ab_test(asked: Asked, p: QuietBake, words: Vocabulary, say: Callable[[str], object]) -> None:
    """Adds the A/B test to the report: on unseen questions of the dataset, or on the gate's rows where none is asked.

    Rows that do not fit the model's context with a thought are left out. The baked model is asked for its answer at
    once where no thought is wanted; the model as it came knows one way of being asked.
    """
    baked, came = load_any(asked.out / "model", asked.device), load_any(asked.model, asked.device)
    rows = _ab_rows(asked, p, words)
    fitting = [row for row in rows if _fits(row, p, *baked) and _fits(row, p, *came)]
    section = {"on": asked.dataset or "gate rows", "left out": len(rows) - len(fitting)}
    if len(fitting) < 2:
        why = f"{len(fitting)} of {len(rows)} problems fit the model's context with a thought: lower max_new_tokens"
        say(f"  A/B test not run: {why}")
        return _add_to_report(asked, section | {"not run": why})
    folder, config = asked.out / "ab_test", _ab_config(asked, p, min(asked.ab_samples, len(fitting)))
    folder.mkdir(exist_ok=True)
    options = {"max_thought_tokens": p.max_new_tokens, "batch_size": 16}
    thinks = Remembering(TextThinker(*baked, words, at_once=True, **options), folder / "baked.jsonl")
    before = Remembering(TextThinker(*came, words, **options), folder / "before.jsonl")
    section["samples"] = config.samples
    for name, baseline in (("against itself at once", None), ("against the model before baking", before)):
        same = abtest.comparison(asked.dataset)
        found = ab_test(thinks, baked[1], fitting, words=words, config=config, same=same, baseline=baseline)
        section[name] = found.as_dict()
        say(
            f"  A/B {name}: {found.baseline_accuracy:.3f} -> {found.reasoning_accuracy:.3f}, effect "
            f"[{found.effect_interval[0]:.3f}, {found.effect_interval[1]:.3f}], winner: {found.winner}"
        )
    _add_to_report(asked, section)


def _ab_rows(asked: Asked, p: QuietBake, words: Vocabulary) -> list[ReasoningRow]:
    """As many questions as all rounds want, or as there are."""
    if not asked.dataset:
        return phase3.splits(p, words).gate
    return questions(abtest.unseen_examples(asked.dataset, asked.ab_samples * asked.ab_rounds, p.seed))


def _fits(row: ReasoningRow, p: QuietBake, model: nn.Module, tokenizer) -> bool:
    """Whether prompt, thought and answer fit the model's context, where that has an end."""
    limit = context(model)
    prompt = len(tokenizer(without_thought(row.prompt), add_special_tokens=False)["input_ids"])
    return limit is None or prompt + p.max_new_tokens + ANSWER_TOKENS <= limit


def _add_to_report(asked: Asked, section: dict) -> None:
    _write_report(asked, json.loads((asked.out / REPORT).read_text()) | {AB_TEST: section})


def _write_report(asked: Asked, report: dict) -> None:
    """There whole or as it was; what is not finite as text."""
    plain = json.loads(json.dumps(report), parse_constant=str)
    temporary = asked.out / f".{REPORT}"
    temporary.write_text(json.dumps(plain, indent=1))
    temporary.replace(asked.out / REPORT)


def settings(file: Path | None) -> QuietBake:
    """DEFAULTS, overruled by a flat YAML file. Raises ParameterError naming a field and what it takes."""
    given = flat_settings(file)
    if wrong := sorted(NOTEBOOK_ONLY & set(given)):
        raise ParameterError(f"--config {file}: {wrong[0]} means nothing here, only in the notebook")
    return resolve(QuietBake, {**DEFAULTS, **given, "profile": "laptop"})


def _questions(asked: Asked, seed: int) -> list[Example]:
    return abtest.unseen_examples(asked.dataset, asked.samples, seed) if asked.dataset else []


def _question(asked: Asked, p: QuietBake) -> dict[str, object]:
    """What began in a folder and what alone goes on there."""
    facts = {
        "model": str(asked.model.resolve()),
        "files of the model": files_of(asked.model),
        "dataset": asked.dataset,
        "samples": asked.samples,
    } | p.model_dump()
    facts |= {name: getattr(asked, name) for name in ("ab_samples", "ab_rounds", "ab_thoughts", "ab_improvement")}
    return facts | {"rows_sha256": phase3.rows_digest(p)}


def _measured(
    model: nn.Module, tokenizer, words: Vocabulary, rows: phase3.Splits, asked_of: list[Example], p: QuietBake
) -> dict[str, np.ndarray]:
    """Right or wrong: "all" rows of the gate, each strategy, and the dataset's questions under its name."""
    found = reason(model, tokenizer, words, rows.gate, max_new_tokens=p.max_new_tokens, batch_size=16)
    right = {"all": found.correct, **found.by_strategy()}
    if asked_of:
        prompts = [question.prompt for question in asked_of]
        texts = greedy_texts(model, tokenizer, prompts, max_new_tokens=p.max_new_tokens, batch_size=16)
        answers = [first_line(words.read(text).answer) for text in texts]
        right[asked_of[0].dataset] = np.array([a == q.answer for a, q in zip(answers, asked_of, strict=True)])
    return right


def _report(p: QuietBake, rows: phase3.Splits, before: dict, after: dict) -> dict:
    lines = []
    for name, correct in after.items():
        low, high = evaluate.share_interval(correct)
        share, first = float(correct.mean()), float(before[name].mean())
        lines.append({"of": name, "n": len(correct), "before": first, "after": share, "low": low, "high": high})
    return {"settings": p.model_dump(exclude=NOTEBOOK_ONLY), "skipped": rows.skipped, "right answers": lines}


def _save(model: nn.Module, tokenizer, folder: Path) -> None:
    """There whole or not at all."""
    temporary = folder.with_name(".writing")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(folder)

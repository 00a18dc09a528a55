"""What the Phase 3 notebooks share: the champion and its verdict, the reasoning rows, the baking run and its model.

A notebook shows each of these steps; here is only the joining of parameters, runs and artifacts.
"""

import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from forgelib import evaluate
from forgelib.core.artifacts import Artifact, file_sha256
from forgelib.core.rng import stream
from forgelib.core.run import Run, latest_artifact, open_run
from forgelib.data import STRATEGIES, DataError, ReasoningRow, Vocabulary, read_rows
from forgelib.data.traces import procedural_rows
from forgelib.evaluate.reasoning import Reasoned
from forgelib.phases.bake import BakeConfig, bake
from forgelib.workbook import phase1
from forgelib.workbook.origin import made_by, tags
from forgelib.workbook.params import Parameters, QuietBake

#: The file of rows that a model was baked on, in its artifact.
ROWS = "rows.jsonl"

#: Whose change makes a finished run of Phase 3 stale: this module and what it imports.
CODE = ("forgelib.workbook.phase3",)


@dataclass(frozen=True)
class Splits:
    """Rows to train on (a rare strategy's several times), to watch while training and to measure the gate on;
    `skipped` names lines without use."""

    train: list[ReasoningRow]
    watch: list[ReasoningRow]
    gate: list[ReasoningRow]
    skipped: list[str]


def champion(p: Parameters) -> Artifact:
    """The champion of Phase 2. Raises MissingInput naming what makes it."""
    return latest_artifact("evomerge-champion", tags(p), made_by("21_evomerge_evolve", tags(p)))


def handoff_rows(artifact: Artifact) -> list[dict]:
    """The gates an artifact came with, one row a check: what the next step builds on, green or red."""
    return [
        {"gate": verdict["gate"], "check": check["name"], "measured": check["measured"], "verdict": check["verdict"]}
        for verdict in artifact.manifest["verdicts"] or ()
        for check in verdict["checks"]
    ]


def load(artifact: Artifact) -> tuple[nn.Module, object]:
    """Model and tokenizer of an artifact's model folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = artifact.path / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).to(phase1.device())
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def splits(p: QuietBake, words: Vocabulary) -> Splits:
    """Rows of the file, or procedural ones, of these as many of each strategy: one that has fewer problems shows them
    again. A tenth of all prompts, by their hash, is for validation; of these, the same share of each strategy is
    watched while training, and the others measure the gate. Raises DataError where a part would be empty."""
    wanted, skipped = p.watch_rows + p.gate_rows, []
    if p.reasoning_file:
        rows, skipped = read_rows(Path(p.reasoning_file), words)
        random.Random(stream(p.seed, "reasoning rows")).shuffle(rows)
        train = [row for row in rows if row.part == "train"][: p.rows]
        held = [row for row in rows if row.part == "validation"][:wanted]
    else:
        levels, strategies = range(1, p.difficulty + 1), tuple(words.tag_of)
        train, held = (
            procedural_rows(n, words, seed=p.seed, part=part, strategies=strategies, difficulties=levels)
            for n, part in ((p.rows, "train"), (wanted, "validation"))
        )
        train = in_equal_shares(train) + harder_rows(p, words)
    ordered = [row for own in _by_strategy(held).values() for row in own]
    watched = [(i + 1) * p.watch_rows // wanted > i * p.watch_rows // wanted for i in range(len(ordered))]
    watch, gate = ([r for r, w in zip(ordered, watched, strict=True) if w == side] for side in (True, False))
    found = Splits(train, watch, gate, skipped)
    for name in ("train", "watch", "gate"):
        if not getattr(found, name):
            raise DataError(f"no rows are left to {name}: {len(train)} to train on, {len(held)} for validation")
    return found


def harder_rows(p: QuietBake, words: Vocabulary) -> list[ReasoningRow]:
    """Rows to train on that are one difficulty harder: so few that the baked model is right now and then, and Step 2
    has something to reinforce. What is never right earns nothing."""
    if not p.headroom_rows:
        return []
    strategies, level = (STRATEGIES[0],), p.difficulty + 1
    return procedural_rows(
        p.headroom_rows, words, seed=p.seed, part="train", strategies=strategies, difficulties=(level,)
    )


def in_equal_shares(rows: list[ReasoningRow]) -> list[ReasoningRow]:
    """Every strategy as often as the most frequent one: the rows of the others come again, in their order."""
    own = list(_by_strategy(rows).values())
    most = max(map(len, own), default=0)
    return [one[i % len(one)] for i in range(most) for one in own]


def _by_strategy(rows: list[ReasoningRow]) -> dict[str, list[ReasoningRow]]:
    found: dict[str, list[ReasoningRow]] = {}
    for row in rows:
        found.setdefault(row.strategy, []).append(row)
    return found


def source_rows(rows: Splits) -> list[dict]:
    """One row a maker: how many different rows of it each part holds, and how many of them a machine has checked."""
    parts = {name: list(dict.fromkeys(getattr(rows, name))) for name in ("train", "watch", "gate")}
    checked = Counter(row.source for part in parts.values() for row in part if row.verified)
    return [row | {"dataset": "reasoning rows", "checked": checked[row["source"]]} for row in rows_by_maker(**parts)]


def rows_by_maker(**parts: Sequence[ReasoningRow]) -> list[dict]:
    """One row a maker: how many rows of it each part holds."""
    makers = dict.fromkeys(row.source for part in parts.values() for row in part)
    return [
        {
            "dataset": "problems",
            "source": maker,
            **{name.replace("_", " "): sum(row.source == maker for row in part) for name, part in parts.items()},
        }
        for maker in makers
    ]


def bake_config(p: QuietBake) -> BakeConfig:
    """The notebook's parameters as the baking's configuration."""
    return BakeConfig(
        seed=p.seed,
        epochs=p.epochs,
        batch_size=p.batch_size,
        muon_lr=p.muon_lr,
        adamw_lr=p.adamw_lr,
        direct_share=p.direct_share,
        target=p.overall_threshold,
        strategy_target=p.strategy_threshold,
        max_new_tokens=p.max_new_tokens,
    )


def rows_digest(p: QuietBake) -> str:
    """sha256 of the file of rows, "" where there is none. Raises DataError for one that cannot be read."""
    if not p.reasoning_file:
        return ""
    try:
        return file_sha256(Path(p.reasoning_file))
    except OSError as error:
        raise DataError(f"{p.reasoning_file}: cannot be read ({error.strerror})") from error


def open_bake(p: QuietBake, parents: list[Artifact]) -> Run:
    """The run of the baking. What a file of rows holds is part of its key, not where it lies."""
    left_out = {"wandb_mode", "on_gate_failure", "checkpoint_every_seconds", "reasoning_file"}
    return open_run(
        QuietBake.NOTEBOOK,
        {**p.model_dump(exclude=left_out), "rows_sha256": rows_digest(p)},
        parents=parents,
        seed=p.seed,
        tags=tags(p, vocabulary=p.vocabulary),
        label=p.profile,
        wandb_mode=p.wandb_mode,
        run_name="phase3-step1-baking",
        metrics_prefix="baking/",
        code=CODE,
    )


def bake_steps(model: nn.Module, tokenizer, words: Vocabulary, rows: Splits, p: QuietBake, run: Run) -> Iterator[dict]:
    """Records of the baking, journaled; none where it is finished: then `model` gets the finished weights."""
    finished = run.finished()
    if finished is not None:
        model.load_state_dict(load(finished)[0].state_dict())
        return
    checkpointer = run.checkpointer(every_seconds=p.checkpoint_every_seconds)
    steps = bake(
        model, tokenizer, words, rows.train, rows.watch, bake_config(p), checkpointer=checkpointer, control=run.control
    )
    yield from run.tracker.follow(steps)


def total_steps(p: QuietBake, rows: Splits) -> int:
    """Optimizer steps of all epochs, where nothing ends the training before."""
    return p.epochs * -(-len(rows.train) // p.batch_size)


def looks(steps: list[dict]) -> dict[str, list[dict]]:
    """What the model could do when it was looked at: strategy (or "overall") -> epochs and shares of right answers."""
    names = dict.fromkeys(name for step in steps for name in step if name.startswith("accuracy_"))
    return {
        name.removeprefix("accuracy_"): [{"epoch": s["epoch"], "right": s[name]} for s in steps if name in s]
        for name in names
    }


def overall_row(before: Reasoned, after: Reasoned, threshold: float) -> dict:
    """Right answers over all rows, before and after baking, with the interval over rows."""
    return _row("all", before.correct, after.correct, threshold)


def strategy_rows(before: Reasoned, after: Reasoned, threshold: float) -> list[dict]:
    """The same for each strategy."""
    untrained = before.by_strategy()
    return [_row(name, untrained[name], correct, threshold) for name, correct in after.by_strategy().items()]


def _row(name: str, before: np.ndarray, after: np.ndarray, threshold: float) -> dict:
    low, high = evaluate.share_interval(after)
    return {
        "strategy": name,
        "rows": len(after),
        "before": float(before.mean()),
        "after": float(after.mean()),
        "low": low,
        "high": high,
        "verdict": "passed" if after.mean() >= threshold else "failed",
    }


def example_rows(found: Reasoned, n: int) -> list[dict]:
    """`n` traces as the model wrote them, of as many strategies as there are, wrong ones among them where there are."""
    names = list(found.by_strategy())
    chosen = [
        next(
            i
            for i in sorted(range(len(found.rows)), key=lambda i: (bool(found.correct[i]) == (place % 2 == 1), i))
            if found.rows[i].strategy == name
        )
        for place, name in enumerate(names[:n])
    ]
    return [
        {
            "strategy": found.rows[i].strategy,
            "question": question(found.rows[i].prompt),
            "what the model wrote": found.texts[i].strip(),
            "true answer": found.rows[i].answer,
            "right": "yes" if found.correct[i] else "no",
        }
        for i in chosen
    ]


def question(prompt: str) -> str:
    """A prompt without the words around its question."""
    return prompt.removeprefix("Question: ").removesuffix("\nAnswer:")


def write_model(folder: Path, model: nn.Module, tokenizer) -> None:
    """Model and tokenizer as `load` reads them from an artifact."""
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def publish_baked(run: Run, model: nn.Module, tokenizer, verdicts: list[dict], rows_file: str = "") -> Artifact:
    """The baked model folder as an artifact, with the file of rows that it was baked on, where there is one; or the
    same artifact published before."""

    def write(folder: Path) -> None:
        write_model(folder, model, tokenizer)
        if rows_file:
            shutil.copyfile(rows_file, folder / ROWS)

    return run.finished() or run.publish("quietstar-baked", write, verdicts)

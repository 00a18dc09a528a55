"""What notebook 33 joins: the rows of an A/B test, the thinkers, the bake of traces that helped, what is shown of it.

A notebook shows each of these steps; here is only the joining of parameters, runs and artifacts.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from forgelib import evaluate
from forgelib.core.artifacts import Artifact
from forgelib.core.gates import Check
from forgelib.core.rng import stream
from forgelib.core.run import Run, open_run
from forgelib.data import DataError, Example, NoSuchPart, ReasoningRow, Vocabulary, write_rows
from forgelib.data.prepare import load_rows
from forgelib.data.trace_checks import flaw
from forgelib.data.traces import procedural_rows
from forgelib.evaluate.accuracy import same_text
from forgelib.evaluate.final_answer import same_number
from forgelib.evaluate.text_thinker import TextThinker
from forgelib.evaluate.thinker import Thinker, questions
from forgelib.phases.abtest import WITH, ABConfig, ABResult
from forgelib.phases.bake import BakeConfig, bake
from forgelib.workbook import phase3
from forgelib.workbook.answered import answered
from forgelib.workbook.origin import tags
from forgelib.workbook.params import QuietABTest
from forgelib.workbook.remembering import Remembering

#: Whose change makes a finished run of this notebook stale: this module and what it imports.
CODE = ("forgelib.workbook.abtest",)
#: Datasets whose answers are numbers, however they are dressed; of all others the text counts.
NUMBERS = ("gsm8k", "svamp")
#: Measured rows that the bake looks at when it ends. They decide nothing: it looks once, at its last step.
LOOKED_AT = 20
Same = Callable[[str, str], bool]


@dataclass(frozen=True)
class ABRows:
    """Problems to measure on and to collect thoughts on, none of them in both; `same` compares two answers."""

    measured: list[ReasoningRow]
    collect: list[ReasoningRow]
    same: Same


def open_test(p: QuietABTest, parents: list[Artifact]) -> Run:
    """The run of the test and of the bake after it; to Weights & Biases it is a job of the type quietstar."""
    run = open_run(
        QuietABTest.NOTEBOOK,
        p.model_dump(exclude={"wandb_mode", "on_gate_failure", "checkpoint_every_seconds"}),
        parents=parents,
        seed=p.seed,
        tags=tags(p, vocabulary=p.vocabulary),
        label=p.profile,
        wandb_mode=p.wandb_mode,
        run_name="phase3-step2-abtest",
        code=CODE,
    )
    run.tracker.job_type = "quietstar"
    return run


def rows_of(p: QuietABTest, words: Vocabulary) -> ABRows:
    """samples x rounds held-out problems, and `collect` others to train on: of a dataset, or procedural ones of all
    strategies up to `difficulty`. Raises DataError where there are fewer."""
    wanted = p.samples * p.rounds
    if p.dataset:
        measured = questions(unseen_examples(p.dataset, wanted, p.seed, p.data))
        others = questions(load_rows(p.dataset, "train", source=p.data, limit=2 * p.collect, seed=p.seed).examples)
    else:
        measured = _procedural(p, words, "validation", wanted)
        others = _procedural(p, words, "train", p.collect)
    measured = _enough(measured, wanted, "measure", p)
    return ABRows(measured, _enough(apart(others, measured), p.collect, "collect", p), comparison(p.dataset))


def apart(rows: Sequence[ReasoningRow], measured: Sequence[ReasoningRow]) -> list[ReasoningRow]:
    """The rows whose prompt is none of the measured ones, each prompt once: what is measured is not trained on."""
    known = {row.prompt for row in measured}
    return list({row.prompt: row for row in rows if row.prompt not in known}.values())


def unseen_examples(name: str, n: int, seed: int, source: str = "auto") -> list[Example]:
    """Questions of a dataset's test part, or of its held-out part where it has no other."""
    try:
        return load_rows(name, "test", source=source, limit=n, seed=seed).examples
    except NoSuchPart:
        return load_rows(name, "heldout", source=source, limit=n, seed=seed).examples


def comparison(dataset: str) -> Same:
    """How an answer is compared: as a number where the dataset's answers are numbers, else letter by letter."""
    return same_number if dataset in NUMBERS else same_text


def _procedural(p: QuietABTest, words: Vocabulary, part: str, n: int) -> list[ReasoningRow]:
    """`n` rows, as many of each strategy; one that has fewer problems leaves its place to the others."""
    strategies, levels, seed = tuple(words.tag_of), range(1, p.difficulty + 1), stream(p.seed, "A/B rows")
    asked, before, rows = n, -1, []
    while before < len(rows) < n:
        before = len(rows)
        rows = procedural_rows(asked, words, seed=seed, part=part, strategies=strategies, difficulties=levels)
        asked += (n - len(rows)) * len(strategies)
    return rows[:n]


def _enough(rows: list[ReasoningRow], wanted: int, what: str, p: QuietABTest) -> list[ReasoningRow]:
    if len(rows) < wanted:
        where = p.dataset or f"procedural problems, difficulty {p.difficulty}"
        most = {"measure": f"samples to {len(rows) // p.rounds}", "collect": f"collect to {len(rows)}"}[what]
        harder = "" if p.dataset or p.difficulty == 3 else ", or raise difficulty"
        raise DataError(
            f"{where}: {wanted} problems are wanted to {what} on and there are {len(rows)}: lower {most}{harder}"
        )
    return rows[:wanted]


def config(p: QuietABTest) -> ABConfig:
    """The notebook's parameters as the A/B test's configuration."""
    return ABConfig(p.seed, p.samples, p.rounds, p.thoughts, improvement=p.improvement)


def collect_config(p: QuietABTest) -> ABConfig:
    """The same test on the rows that thoughts are collected on: each of them once, in as many rounds."""
    return ABConfig(stream(p.seed, "collect"), p.collect // p.rounds, p.rounds, p.thoughts, improvement=p.improvement)


def thinker(
    model: nn.Module, tokenizer, words: Vocabulary, p: QuietABTest, file: Path, at_once: bool = True
) -> Remembering:
    """The model as a Thinker. at_once: asked without a thought, it is asked to answer at once, as baking trained it; a
    model from before baking knows one way of being asked."""
    sizes = {"max_thought_tokens": p.max_thought_tokens, "max_answer_tokens": p.max_answer_tokens}
    return Remembering(TextThinker(model, tokenizer, words, at_once=at_once, **sizes), file)


def right(thinker: Thinker, rows: ABRows) -> tuple[np.ndarray, np.ndarray]:
    """Right answers to the measured rows, bool [N] each: after the greedy thought, and at once."""
    with_thought, at_once = (
        answered(thinker, rows.measured, thoughts=thoughts, same=rows.same).right for thoughts in (True, False)
    )
    return with_thought, at_once


def true_rows(helped: Sequence[ReasoningRow], words: Vocabulary) -> tuple[list[ReasoningRow], list[dict]]:
    """Traces that may be baked, and the others with what is wrong in them.

    A right answer does not make a thought true. Traces of procedural problems are worked out again line by line, where
    the vocabulary's tags tell the strategies apart; of others only the answer is known, and they are kept.
    """
    tags = list(words.tag_of.values())
    kept, dropped = [], []
    for row in helped:
        own = words.tag_of[row.strategy]
        can_be_read = row.source.endswith("helped (procedural)") and own and tags.count(own) == 1
        wrong = flaw(row, words) if can_be_read else ""
        if wrong:
            dropped.append({"question": phase3.question(row.prompt), "thought": row.reasoning, "what is wrong": wrong})
        else:
            kept.append(row)
    return kept, dropped


def bake_config(p: QuietABTest) -> BakeConfig:
    """A short bake at a low rate that runs its epochs to the end: one look, at the last step."""
    return BakeConfig(
        seed=p.seed,
        epochs=p.bake_helped,
        batch_size=p.batch_size,
        muon_lr=p.muon_lr,
        adamw_lr=p.adamw_lr,
        direct_share=p.direct_share,
        looks=1,
        max_new_tokens=p.max_thought_tokens + p.max_answer_tokens,
    )


def bake_steps(
    model: nn.Module, tokenizer, words: Vocabulary, traces: list[ReasoningRow], rows: ABRows, p: QuietABTest, run: Run
) -> Iterator[dict]:
    """Records of the bake, journaled; none without traces. None either where it is finished: then `model` gets the
    finished weights."""
    finished = run.finished()
    if finished is not None:
        model.load_state_dict(phase3.load(finished)[0].state_dict())
    elif traces:
        checkpointer, watch = run.checkpointer(every_seconds=p.checkpoint_every_seconds), rows.measured[:LOOKED_AT]
        settings = bake_config(p)
        yield from run.tracker.follow(
            bake(model, tokenizer, words, traces, watch, settings, checkpointer=checkpointer, control=run.control)
        )


def total_steps(p: QuietABTest, traces: Sequence[ReasoningRow]) -> int:
    """Optimizer steps of the bake."""
    return p.bake_helped * -(-len(traces) // p.batch_size)


def log(run: Run, result: ABResult, step: int) -> None:
    """Journal what the test measured behind the bake's `step` records."""
    if run.finished() is None:
        run.tracker.rewind(step)
        names = ("reasoning_accuracy", "baseline_accuracy", "effect", "trace_quality")
        run.tracker.log({"step": step, **{name: getattr(result, name) for name in names}})


def checks(against: str, result: ABResult, p: QuietABTest) -> list[Check]:
    """What makes thoughts the winner against a baseline, one by one."""
    alpha, control = config(p).alpha, {"without": result.baseline_accuracy, "with": result.reasoning_accuracy}
    return [
        Check(f"{against}: effect", result.effect, p.improvement, interval=result.effect_interval, control=control),
        Check(f"{against}: its lower bound", result.effect_interval[0], 0.0),
        Check(f"{against}: p of the paired t-test", result.t_p, alpha, "<", note=f"t = {result.t:.3g}"),
        Check(
            f"{against}: p of McNemar's test",
            result.mcnemar_p,
            alpha,
            "<",
            note=f"{result.gained} gained, {result.lost} lost",
        ),
        Check(f"{against}: thoughts win", float(result.winner == WITH), 1.0, ">=", note=f"winner: {result.winner}"),
    ]


def change_rows(before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray], seed: int) -> list[dict]:
    """Right answers before and after the bake, and the change with its interval, paired by problem."""
    rows = []
    for name, first, last in zip(("after a greedy thought", "at once"), before, after, strict=True):
        change = last.astype(float) - first
        low, high = evaluate.bootstrap_interval(np.mean, change, seed=stream(seed, "bake", name))
        shares = {"before": float(first.mean()), "after": float(last.mean()), "change": float(change.mean())}
        rows.append({"asked": name, "problems": len(first), **shares, "low": low, "high": high})
    return rows


def bake_checks(changes: Sequence[dict], n_traces: int, p: QuietABTest) -> list[Check]:
    """There were traces to bake, and on neither way of being asked did baking them take more away than `improvement`;
    without traces the change was not measured."""
    return [
        Check("traces baked", n_traces, 0),
        *(
            Check(
                f"change {row['asked']}",
                row["change"] if n_traces else None,
                -p.improvement,
                ">=",
                (row["low"], row["high"]),
                control={"before": row["before"], "after": row["after"]},
            )
            for row in changes
        ),
    ]


def round_bars(results: dict[str, ABResult]) -> tuple[dict, dict]:
    """Groups and intervals for plots.bars: right answers by round, with thoughts and of each baseline (by its name)."""
    groups, intervals = {}, {}
    for i, one in enumerate(next(iter(results.values())).rounds):
        shares = {"thoughts": one.reasoning_accuracy}
        shares |= {name: result.rounds[i].baseline_accuracy for name, result in results.items()}
        groups[f"round {i + 1}"] = shares
        intervals[f"round {i + 1}"] = {
            name: evaluate.share_interval(np.arange(one.n) < round(share * one.n)) for name, share in shares.items()
        }
    return groups, intervals


def paired_table(result: ABResult) -> dict[str, dict[str, int]]:
    """The four counts that McNemar's test looks at. Raises ValueError where a problem was in several rounds."""
    n, counted = result.n_problems, sum(one.n for one in result.rounds)
    if n != counted:
        raise ValueError(f"{counted} answers to {n} problems: a table of pairs needs each problem once")
    both = round(result.reasoning_accuracy * n) - result.gained
    neither = n - both - result.gained - result.lost
    return {
        "thought right": {"baseline right": both, "baseline wrong": result.gained},
        "thought wrong": {"baseline right": result.lost, "baseline wrong": neither},
    }


def example_rows(played: Remembering, rows: ABRows, n: int) -> list[dict]:
    """`n` thoughts of the test that helped and `n` that hurt, as far as there are so many: one a problem."""
    found: dict[str, list[dict]] = {"helped": [], "hurt": []}
    for row in rows.measured:
        plain = played.answers[row.prompt, None]
        right_at_once = rows.same(plain, row.answer)
        for thought in played.thoughts[row.prompt]:
            answer = played.answers.get((row.prompt, thought))
            if answer is not None and rows.same(answer, row.answer) != right_at_once:
                kind = "hurt" if right_at_once else "helped"
                texts = {"question": phase3.question(row.prompt), "at once": plain, "thought": played.text(thought)}
                found[kind].append({"thought that": kind, **texts, "then": answer, "true answer": row.answer})
                break
    return [example for kind in found.values() for example in kind[:n]]


def source_rows(rows: ABRows) -> list[dict]:
    """One row a maker: its problems to measure on and to collect on."""
    return phase3.rows_by_maker(measured=rows.measured, to_collect_on=rows.collect)


def publish_baked(
    run: Run,
    model: nn.Module,
    tokenizer,
    traces: Sequence[ReasoningRow],
    results: dict[str, ABResult],
    verdicts: list[dict],
) -> Artifact:
    """The model folder, what the tests found and the traces that were baked; or the same published before."""

    def write(folder: Path) -> None:
        phase3.write_model(folder, model, tokenizer)
        found = {name: result.as_dict() for name, result in results.items()}
        (folder / "ab_test.json").write_text(_strict(found), encoding="utf-8")
        write_rows(folder / "traces.jsonl", traces)

    return run.finished() or run.publish("baked_quietstar_model", write, verdicts)


def _strict(found: object) -> str:
    """Strict JSON; what is not finite (t of equal differences) as text."""
    return json.dumps(json.loads(json.dumps(found), parse_constant=str), indent=1)

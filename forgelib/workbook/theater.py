"""What notebook 32 joins: the model on trial, its problems, the verdict as tables and bars, and the sliders over it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from forgelib.core.artifacts import Artifact
from forgelib.core.rng import stream
from forgelib.core.run import Run, open_run
from forgelib.data import ReasoningRow, Vocabulary
from forgelib.data.traces import procedural_rows
from forgelib.evaluate import share_interval
from forgelib.evaluate.text_thinker import TextThinker
from forgelib.evaluate.verdict import Measured, Thresholds, Verdict
from forgelib.phases.antitheater import TheaterConfig, validate
from forgelib.phases.observation import coherence
from forgelib.workbook import tables
from forgelib.workbook.origin import tags
from forgelib.workbook.params import QuietRL, QuietTheater
from forgelib.workbook.publish import publish
from forgelib.workbook.reinforcement import problems as trained_on
from forgelib.workbook.verdict_view import TESTS, turning_rows, verdict_html

#: Whose change makes a finished run stale: this module and what it imports.
CODE = ("forgelib.workbook.theater",)
VERDICT = "quietstar-verdict"


def problems(p: QuietTheater, words: Vocabulary, trained: Artifact) -> list[ReasoningRow]:
    """Held-out procedural problems that the reinforcement of `trained` was neither trained nor checked on."""
    asked = {name: value for name, value in trained.manifest["params"].items() if name in QuietRL.model_fields}
    known = trained_on(QuietRL(**asked), words)
    seen = {row.prompt for row in (*known.train, *known.check)}
    options = {"strategies": tuple(p.strategies.split(",")), "difficulties": (p.difficulty,)}
    rows = procedural_rows(p.problems + len(known.check), words, seed=p.seed, part="validation", **options)
    return [row for row in rows if row.prompt not in seen][: p.problems]


def asking(p: QuietTheater) -> dict:
    """How the model is asked: limits of thought and answer; without a thought, for the answer at once."""
    return {"max_thought_tokens": p.thought_tokens, "max_answer_tokens": p.answer_tokens, "at_once": True}


def config(p: QuietTheater) -> TheaterConfig:
    """The notebook's parameters as the trial's configuration."""
    return TheaterConfig(
        stream(p.seed, "theater"), p.problems, p.samples, p.thought_problems, p.thoughts, p.temperature, 1000, limits(p)
    )


def limits(p: QuietTheater) -> Thresholds:
    """The thresholds that the notebook was given."""
    return Thresholds(p.divergence_threshold, p.ablation_threshold, p.correlation_threshold, p.causal_threshold)


def trial(
    model: nn.Module,
    tokenizer,
    words: Vocabulary,
    rows: list[ReasoningRow],
    champion: tuple,
    p: QuietTheater,
    progress: Callable[[str, int, int], object] = lambda *_: None,
) -> Verdict:
    """The verdict on the model's thoughts; champion: frozen model and tokenizer."""
    return validate(
        model,
        tokenizer,
        rows,
        words=words,
        reference=champion[0],
        reference_tokenizer=champion[1],
        config=config(p),
        progress=progress,
        **asking(p),
    )


def open_trial(p: QuietTheater, parents: list[Artifact]) -> Run:
    """The run of the trial."""
    return open_run(
        QuietTheater.NOTEBOOK,
        p.model_dump(exclude={"wandb_mode", "on_gate_failure"}),
        parents=parents,
        seed=p.seed,
        tags=tags(p, vocabulary=p.vocabulary),
        label=p.profile,
        wandb_mode=p.wandb_mode,
        run_name="phase3-step2-antitheater",
        metrics_prefix="rl/",
        code=CODE,
    )


def test_rows(verdict: Verdict) -> list[dict]:
    """One row a test: measured, its interval, its threshold, and what each control gives."""
    thresholds = verdict.thresholds
    return [
        {
            "test": name.replace("_", " "),
            **_number(getattr(verdict.overall, name)),
            "must exceed": getattr(thresholds, name),
            "controls": ", ".join(f"{c} {v:.3f}" for c, v in getattr(verdict.overall, name).controls.items()),
        }
        for name in TESTS
    ]


def _number(found: Measured) -> dict:
    if found.value is None:
        return {"measured": found.note, "low": None, "high": None, "n": found.n}
    low, high = found.interval or (None, None)
    return {"measured": round(found.value, 3), "low": _short(low), "high": _short(high), "n": found.n}


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def accuracy_bars(verdict: Verdict) -> tuple[dict, dict]:
    """Right answers of every condition, with their intervals, for `plots.bars`."""
    correct = verdict.evidence.correct
    bars = {name: {"right": float(np.mean(right))} for name, right in correct.items()}
    return bars, {name: {"right": share_interval(right)} for name, right in correct.items()}


def control_bars(verdict: Verdict) -> dict:
    """Each test beside what its controls give."""
    found = {name: getattr(verdict.overall, name) for name in ("divergence", "correlation", "causal_use")}
    return {
        name.replace("_", " "): {"own thought": one.value, **one.controls}
        for name, one in found.items()
        if one.value is not None
    }


def sliders(verdict: Verdict) -> None:
    """Four sliders over the thresholds: bars, table and verdict follow at once. Below them their static twin.

    Nothing is measured again, and the gate keeps its own thresholds."""
    import ipywidgets
    from IPython.display import display

    given, made = verdict.thresholds, {}
    for name in TESTS:
        options = {"min": 0.0, "max": 1.0 if name != "ablation" else 0.5, "step": 0.01, "continuous_update": True}
        made[name] = ipywidgets.FloatSlider(getattr(given, name), description=name.replace("_", " "), **options)
    live = ipywidgets.HTML(verdict_html(verdict))

    def moved(_change) -> None:
        live.value = verdict_html(verdict.under(Thresholds(**{name: one.value for name, one in made.items()})))

    for one in made.values():
        one.observe(moved, names="value")
    display(ipywidgets.VBox([*made.values(), live]))
    publish("twin", {"of": "anti-theater sliders"}, tables.table(turning_rows(verdict.gate().rows())))


def agreement_points(verdict: Verdict) -> dict[str, list[float]]:
    """Agreement of thoughts that led to right answers and of those that did not, for a histogram."""
    coherence, utility = verdict.evidence.coherence.ravel(), verdict.evidence.utility.ravel()
    parts = {"right": coherence[utility == 1], "wrong": coherence[utility == 0]}
    return {name: values.tolist() for name, values in parts.items() if len(values)}


def viewed(thinker: TextThinker, rows: list[ReasoningRow], verdict: Verdict, n: int, p: QuietTheater) -> list[dict]:
    """Entries of the thought viewer: `n` problems, those where a thought went wrong first, with all their thoughts."""
    evidence, by_prompt = verdict.evidence, {row.prompt: row for row in rows}
    wrong = evidence.utility.mean(1)
    order = sorted(range(len(wrong)), key=lambda i: (not 0 < wrong[i] < 1, i))[:n]
    asked = [by_prompt[evidence.prompts[evidence.problems[i]]] for i in order]
    prompts = [row.prompt for row in asked]
    thoughts = thinker.think(prompts, n=p.thoughts, seed=stream(p.seed, "viewer"), temperature=p.temperature)
    scores = np.asarray(coherence(thinker, prompts, thoughts).composite)
    without = thinker.log_probs(prompts, [None] * len(prompts), [[row.answer] for row in asked])
    entries = []
    for i, row in enumerate(asked):
        different = list(dict.fromkeys(thoughts[i]))
        answers = thinker.answer([row.prompt] * len(different), different)
        told = thinker.log_probs([row.prompt] * len(different), different, [[row.answer]] * len(different))
        base = float(np.exp(without[i][0]))
        lines = [
            {
                "text": thinker.text(thought),
                "times": thoughts[i].count(thought),
                "coherence": float(scores[i][thoughts[i].index(thought)]),
                "answer": answer,
                "added": float(np.exp(q[0])) - base,
            }
            for thought, answer, q in zip(different, answers, told, strict=True)
        ]
        entries.append({"question": row.prompt, "answer": row.answer, "without": base, "thoughts": lines})
    return entries


def publish_verdict(run: Run, verdict: Verdict) -> Artifact:
    """The verdict with all it was measured by, as an artifact, or the same one published before."""

    def write(folder: Path) -> None:
        (folder / "verdict.json").write_text(json.dumps(verdict.as_dict(), indent=1))

    return run.finished() or run.publish(VERDICT, write, [verdict.gate().verdict()])

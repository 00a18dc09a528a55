"""What notebook 33 joins: problems that never meet, questions asked once, traces that are true, gates that follow."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_built import HandBuilt, letters, problems
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from forgelib.core.gates import Gate
from forgelib.core.registry import Registry
from forgelib.core.run import MissingInput, open_run
from forgelib.data import DataError, vocabulary
from forgelib.data.tokenizer import train_bpe
from forgelib.data.traces import procedural_rows
from forgelib.evaluate.accuracy import same_text
from forgelib.evaluate.final_answer import same_number
from forgelib.evaluate.text_thinker import TextThinker
from forgelib.phases.abtest import NEITHER, WITH, ABConfig, ab_test
from forgelib.thoughts import add_vocabulary
from forgelib.workbook import abtest, origin, reinforcement
from forgelib.workbook.params import ParameterError, QuietABTest, resolve
from forgelib.workbook.remembering import Remembering

ROOT = Path(__file__).resolve().parents[2]
WORDS = vocabulary("forge-12")
SMALL = QuietABTest(profile="smoke", data="procedural", samples=20, collect=40, max_thought_tokens=8)


class Counted:
    """A thinker that counts how often it is asked."""

    def __init__(self, thinker):
        self.thinker, self.max_thought_tokens, self.thought, self.answered = thinker, thinker.max_thought_tokens, 0, 0

    def think(self, prompts, **options):
        self.thought += 1
        return self.thinker.think(prompts, **options)

    def answer(self, prompts, thoughts):
        self.answered += 1
        return self.thinker.answer(prompts, thoughts)

    def text(self, thought):
        return self.thinker.text(thought)


def hand_built(blind=False, sure=0.85) -> Counted:
    return Counted(TextThinker(HandBuilt(0, blind, sure), letters(), WORDS, max_thought_tokens=8, max_answer_tokens=3))


def compared(thinker, rows, **options):
    return ab_test(thinker, None, rows, words=WORDS, config=ABConfig(0, samples=20, thoughts=2), **options)


@pytest.fixture
def tiny(tmp_path):
    """A tiny Llama that knows the vocabulary, with its tokenizer."""
    tokenizer, _ = train_bpe([row.text for row in procedural_rows(50, WORDS, seed=0)], 300)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
    add_vocabulary(model, tokenizer, WORDS, seed=0)
    return model, tokenizer


def planted_run(tiny, p=SMALL):
    """The tiny model as the artifact of Step 2, and as the champion."""
    model, tokenizer = tiny

    def write(folder):
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")

    tags = origin.tags(p, vocabulary=p.vocabulary)
    made = [
        open_run(name, {}, seed=p.seed, tags=tags).publish(name, write)
        for name in (reinforcement.REINFORCED, "evomerge-champion")
    ]
    return abtest.open_test(p, made)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"rounds": 0}, "rounds = 0: must be a whole number, at least 3"),
        ({"samples": 1}, "samples = 1: must be a whole number, at least 2"),
        ({"thoughts": 1}, "thoughts = 1"),
        ({"improvement": 1.0}, "improvement = 1.0: must be a number, at least 0 and below 1"),
        ({"muon_lr": "1e-5"}, "write 0.00001 without quotes"),
        ({"bake_helped": 0}, "bake_helped = 0"),
        ({"rounds": 9, "collect": 10}, "collect = 10: must be at least 2 x rounds = 18"),
        ({"episodes": 5000}, "episodes = 5000: there is no such parameter"),
    ],
)
def test_what_would_test_nothing_is_refused(given, words):
    with pytest.raises(ParameterError) as caught:
        resolve(QuietABTest, {"profile": "laptop", **given})
    assert words in str(caught.value)


def test_a_missing_model_names_the_notebook_that_makes_it(tiny):
    with pytest.raises(MissingInput, match=r"there is no quietstar-rl for .*papermill 31_quietstar_rl\.ipynb out"):
        reinforcement.reinforced(SMALL)
    planted_run(tiny)
    assert reinforcement.reinforced(SMALL).name == reinforcement.REINFORCED
    with pytest.raises(MissingInput, match="vocabulary forge-8"):
        reinforcement.reinforced(SMALL.model_copy(update={"vocabulary": "forge-8"}))


@pytest.mark.parametrize("dataset", ["", "gsm8k"])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_measured_is_never_collected_on(dataset, seed, monkeypatch):
    monkeypatch.delenv("FORGE_DATASETS", raising=False)
    rows = abtest.rows_of(SMALL.model_copy(update={"dataset": dataset, "seed": seed, "samples": 15}), WORDS)
    measured, collected = ({row.prompt for row in part} for part in (rows.measured, rows.collect))
    assert len(measured) == len(rows.measured) == 45 and len(collected) == len(rows.collect) == 40
    assert not measured & collected
    if not dataset:
        assert {row.part for row in rows.measured} == {"validation"} and {row.part for row in rows.collect} == {"train"}
        assert {row.strategy for row in rows.measured} == set(WORDS.tag_of)
    assert rows.same is (same_number if dataset else same_text)


def test_a_planted_leak_is_left_out(monkeypatch):
    """The dataset's training part holds a question that is measured."""
    p, load = SMALL.model_copy(update={"dataset": "gsm8k", "samples": 15}), abtest.load_rows

    def leaking(name, part, **asked):
        found = load(name, part, **asked)
        leaked = load(name, "test", source="procedural", limit=45, seed=0).examples[:7] if part == "train" else []
        return replace(found, examples=[*leaked, *leaked, *found.examples])

    monkeypatch.setattr(abtest, "load_rows", leaking)
    rows = abtest.rows_of(p, WORDS)
    assert not {row.prompt for row in rows.measured} & {row.prompt for row in rows.collect}
    assert len({row.prompt for row in rows.collect}) == len(rows.collect) == 40


def test_a_strategy_with_few_problems_leaves_its_place_and_too_few_are_refused(monkeypatch):
    drawn = procedural_rows(300, WORDS, seed=0)
    pool = {name: [row for row in drawn if row.strategy == name] for name in WORDS.tag_of}
    pool["mece"] = pool["mece"][:2]

    def few(n, words, *, strategies, **_):
        return [row for name in strategies for row in pool[name][: n // len(strategies)]]

    monkeypatch.setattr(abtest, "procedural_rows", few)
    found = abtest._procedural(SMALL, WORDS, "validation", 60)
    assert len(found) == 60 and sum(row.strategy == "mece" for row in found) == 2
    many = SMALL.model_copy(update={"samples": 200})
    told = r"difficulty 1: 600 problems are wanted to measure on and there are 272: lower samples to 90, or raise"
    with pytest.raises(DataError, match=told):
        abtest.rows_of(many, WORDS)
    with pytest.raises(DataError, match=r"400 problems are wanted to collect on .*: lower collect to 212"):
        abtest.rows_of(SMALL.model_copy(update={"collect": 400}), WORDS)
    few_questions = SMALL.model_copy(update={"dataset": "gsm8k", "samples": 100})
    with pytest.raises(DataError, match=r"gsm8k: 300 problems are wanted to measure on .*: lower samples to \d+$"):
        abtest.rows_of(few_questions, WORDS)


def test_a_question_is_asked_once_and_the_test_is_the_same(tmp_path):
    rows, thinker = problems(60, 0), hand_built()
    plain = compared(thinker, rows)
    asked = thinker.thought
    remembering = Remembering(thinker, tmp_path / "asked.jsonl")
    assert compared(remembering, rows) == plain and thinker.thought == 2 * asked == 6
    other = hand_built(blind=True)
    against = compared(remembering, rows, baseline=other)
    assert thinker.thought == 6 and other.thought == 0 and other.answered == 3, (
        "no second thoughts for a second baseline"
    )
    assert against.reasoning_accuracy == plain.reasoning_accuracy
    again = Remembering(hand_built(), tmp_path / "asked.jsonl")
    assert compared(again, rows) == plain and again._thinker.thought == again._thinker.answered == 0


def test_a_torn_line_costs_one_question(tmp_path):
    rows, file = problems(60, 0), tmp_path / "asked.jsonl"
    plain = compared(Remembering(hand_built(), file), rows)
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 9, "three rounds: thoughts, answers after them, answers without"
    file.write_text("".join(lines[:4]) + lines[4][:30])
    thinker = hand_built()
    assert compared(Remembering(thinker, file), rows) == plain
    assert (thinker.thought, thinker.answered) == (1, 4) and sorted(file.read_text().splitlines()) == sorted(
        line.strip() for line in lines
    )


def test_only_true_traces_are_baked():
    true = [replace(row, source="own thought that helped (procedural)") for row in procedural_rows(20, WORDS, seed=0)]
    moved = [replace(row, reasoning=other.reasoning) for row, other in itertools.pairwise(true)]
    kept, dropped = abtest.true_rows([*true, *moved], WORDS)
    assert kept == true and len(dropped) == len(moved) and all(row["what is wrong"] for row in dropped)
    of_a_dataset = [replace(row, source="own thought that helped (gsm8k (procedural))") for row in moved]
    assert abtest.true_rows(of_a_dataset, WORDS) == (of_a_dataset, []), "nothing but the answer is known of these"
    assert abtest.true_rows(moved, vocabulary("startofthought")) == (moved, [])


@pytest.mark.parametrize("blind, winner", [(False, WITH), (True, NEITHER)])
def test_the_gate_passes_for_the_winner_and_for_nobody_else(blind, winner):
    result = compared(hand_built(blind, sure=0.95), problems(60, 0))
    gate = Gate("A/B test", abtest.checks("at once", result, SMALL))
    assert result.winner == winner and gate.passed == (winner == WITH) and len(gate.checks) == 5


@pytest.mark.parametrize(
    "changed, red",
    [
        ({"effect": 0.01}, "effect"),
        ({"effect_interval": (-0.01, 0.3)}, "lower bound"),
        ({"t_p": 0.06}, "t-test"),
        ({"mcnemar_p": 0.06}, "McNemar"),
        ({"winner": NEITHER}, "thoughts win"),
    ],
)
def test_each_check_can_turn_the_gate_red(changed, red):
    result = replace(compared(hand_built(sure=0.95), problems(60, 0)), **changed)
    (failed,) = [check.name for check in abtest.checks("at once", result, SMALL) if not check.passed]
    assert red in failed


def test_four_counts_add_up_and_agree_with_the_test():
    rows = problems(60, 0)
    result = compared(hand_built(), rows)
    table = abtest.paired_table(result)
    assert sum(sum(row.values()) for row in table.values()) == result.n_problems == 60
    assert sum(table["thought right"].values()) == round(60 * result.reasoning_accuracy)
    assert sum(row["baseline right"] for row in table.values()) == round(60 * result.baseline_accuracy)
    with pytest.raises(ValueError, match="60 answers to 50 problems"):
        abtest.paired_table(compared(hand_built(), rows[:50]))
    groups, bounds = abtest.round_bars({"at once": result, "champion": result})
    assert list(groups) == ["round 1", "round 2", "round 3"] and set(groups["round 1"]) == {
        "thoughts",
        "at once",
        "champion",
    }
    assert all(low <= groups[name][of] <= high for name, group in bounds.items() for of, (low, high) in group.items())


def test_examples_helped_and_hurt_as_they_say(tmp_path):
    rows = abtest.ABRows(problems(60, 0), [], same_text)
    played = Remembering(hand_built(sure=0.6), tmp_path / "asked.jsonl")
    compared(played, rows.measured)
    found = abtest.example_rows(played, rows, 3)
    kinds = [row["thought that"] for row in found]
    assert kinds.count("helped") == 3 and 0 < kinds.count("hurt") <= 3
    for row in found:
        right = {way: row[way].strip() == row["true answer"] for way in ("at once", "then")}
        assert right == {"at once": row["thought that"] == "hurt", "then": row["thought that"] == "helped"}


def test_without_traces_the_bake_was_not_run_and_harm_is_red():
    same = np.array([True] * 40 + [False] * 10)
    worse = np.array([True] * 30 + [False] * 20)
    unchanged = abtest.change_rows((same, same), (same, same), 0)
    assert Gate("bake", abtest.bake_checks(unchanged, 7, SMALL)).passed
    verdicts = [check.verdict for check in abtest.bake_checks(unchanged, 0, SMALL)]
    assert verdicts == ["failed", "not run", "not run"]
    for after in ((worse, same), (same, worse)):
        changes = abtest.change_rows((same, same), after, 0)
        assert not Gate("bake", abtest.bake_checks(changes, 7, SMALL)).passed
    assert changes[1]["change"] == pytest.approx(-0.2) and changes[1]["low"] < -0.2 < changes[1]["high"] < 0


@pytest.mark.slow
def test_broken_off_the_bake_goes_on_and_what_comes_out_is_published_once(tiny, tmp_path, monkeypatch):
    p = SMALL.model_copy(update={"checkpoint_every_seconds": 0.001, "muon_lr": 0.01})
    traces, rows = procedural_rows(24, WORDS, seed=0), abtest.ABRows(procedural_rows(20, WORDS, seed=1), [], same_text)
    weights = {}
    for name, stops in (("whole", ()), ("broken", (2, 3))):
        monkeypatch.setenv("FORGE_RUNS", str(tmp_path / name))
        run = planted_run(tiny, p)
        for stop in (*stops, None):
            model = AutoModelForCausalLM.from_pretrained(reinforcement.reinforced(p).path / "model")
            steps = abtest.bake_steps(model, tiny[1], WORDS, traces, rows, p, run)
            for n, _ in enumerate(steps, start=1):
                if n == stop:
                    steps.close()
                    break
        weights[name] = model.state_dict()
    assert all(torch.equal(weights["whole"][key], weights["broken"][key]) for key in weights["whole"])
    assert [record["step"] for record in run.tracker.records()] == list(range(9)) and abtest.total_steps(p, traces) == 9
    assert run.tracker.job_type == "quietstar"
    result = compared(hand_built(), problems(60, 0))
    for _ in range(2):
        abtest.log(run, result, 9)
    assert [record.get("trace_quality") for record in run.tracker.records()] == [None] * 9 + [result.trace_quality]
    assert run.tracker.records()[-1]["reasoning_accuracy"] == result.reasoning_accuracy
    made = abtest.publish_baked(run, model, tiny[1], traces, {"at once": replace(result, t=np.inf)}, [])
    assert made.name == "baked_quietstar_model" and len((made.path / "traces.jsonl").read_text().splitlines()) == 24
    stored = json.loads((made.path / "ab_test.json").read_text(), parse_constant=pytest.fail)
    assert stored["at once"]["winner"] == result.winner
    again = AutoModelForCausalLM.from_pretrained(reinforcement.reinforced(p).path / "model")
    assert list(abtest.bake_steps(again, tiny[1], WORDS, traces, rows, p, run)) == []
    assert all(torch.equal(weights["whole"][key], value) for key, value in again.state_dict().items())
    assert abtest.publish_baked(run, again, tiny[1], [], {}, []).digest == made.digest


@pytest.mark.slow
def test_the_notebook_runs_on_a_planted_model_and_without_one_names_what_makes_it(tiny, tmp_path, monkeypatch):
    def ran():
        command = [sys.executable, str(ROOT / "tests" / "pipeline" / "notebook_process.py"), "33_quietstar_abtest"]
        environment = {**os.environ, "FORGE_PROFILE": "smoke", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    refused = ran()
    assert refused.returncode == 1 and "papermill 31_quietstar_rl.ipynb out.ipynb" in refused.stderr
    planted_run(tiny)
    done = ran()
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = Registry(tmp_path / "runs").find(name="baked_quietstar_model")
    gates = {verdict["gate"]: verdict["passed"] for verdict in found["manifest"]["verdicts"]}
    lost = {"A/B test": False, "Bake of traces that helped": False}
    assert gates == {**lost, "anti-theater": False}, "a model that knows nothing wins nothing, and was not tried"
    assert {parent["name"] for parent in found["manifest"]["parents"]} == {
        reinforcement.REINFORCED,
        "evomerge-champion",
    }

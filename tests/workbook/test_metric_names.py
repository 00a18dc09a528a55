"""What METHOD names is in the journal under its name and its phase's prefix, written by the real procedures."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.data import STRATEGIES, vocabulary
from forgelib.data.tokenizer import train_bpe
from forgelib.data.traces import procedural_rows
from forgelib.evaluate.verdict import Findings, Measured, Verdict
from forgelib.thoughts import add_vocabulary
from forgelib.workbook import abtest, phase1, phase2, phase3, phase4, reinforcement, theater
from forgelib.workbook.params import (
    BitnetFinetune,
    CognateTrain,
    EvoEvolve,
    QuietABTest,
    QuietBake,
    QuietRL,
    QuietTheater,
)

WORDS = vocabulary("forge-12")
ROWS = procedural_rows(20, WORDS, seed=0)
BAKING = ["epoch", "loss", "learning_rate", "accuracy_overall", *(f"accuracy_{name}" for name in STRATEGIES)]
BAKING += [f"token_usage_{name}" for name in ("thinking", "step", "mece", "falsify", "doubt")] + [
    "convergence_progress"
]
RL = ["episode", "reward", "avg_reward_100", "thought_length", "thought_diversity", "num_thoughts", "kl_divergence"]
RL += [f"coherence_{name}" for name in ("semantic", "syntactic", "predictive", "composite")]
RL += ["gsm8k_accuracy", "arc_accuracy", "inference_time_ms"]
RL += [f"anti_theater_{name}" for name in ("divergence", "ablation", "correlation")]
GOOD = Measured(0.9, (0.8, 1.0), {"shuffled": 0.1}, 100)


@pytest.fixture
def tiny():
    """A Llama of a few thousand weights that knows the vocabulary, and its tokenizer."""
    tokenizer, _ = train_bpe([row.text for row in ROWS], 280)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
    add_vocabulary(model, tokenizer, WORDS)
    return model, tokenizer


def names_in(run) -> set[str]:
    """Every name in the journal as it lies on the disk."""
    lines = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    return {name for line in lines for name in line} - {"step"}


def test_the_method_names_seventeen_of_each():
    """Seventeen of baking with the seven strategies of forge-8; forge-12 has three more."""
    assert len(BAKING) == 17 + 3 == len(set(BAKING)) and len(RL) == 17 == len(set(RL))


def test_baking_writes_its_metrics(tiny):
    p = QuietBake(profile="smoke", epochs=1, batch_size=16, max_new_tokens=4, wandb_mode="disabled")
    run = phase3.open_bake(p, [])
    list(phase3.bake_steps(*tiny, WORDS, phase3.Splits(ROWS[10:], ROWS[:10], ROWS[:10], []), p, run))
    found = names_in(run)
    assert {f"baking/{name}" for name in BAKING} <= found
    assert all(name.startswith("baking/") for name in found)


def test_reinforcement_writes_its_metrics(tiny, monkeypatch):
    """The verdict is a planted one: that of a model without any skill has no correlation."""
    findings = Findings(GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, {"own": 0.9})
    monkeypatch.setattr(reinforcement, "theater", lambda *_: Verdict(findings, {"chain_of_thought": findings}))
    monkeypatch.setattr(reinforcement, "LOOK_EVERY", 4)
    sizes = {"train_rows": 20, "check_rows": 10, "gate_rows": 10, "episodes": 8, "batch_size": 4, "check_every": 8}
    thoughts = {"n_thoughts": 3, "thought_tokens": 6, "dataset_samples": 1}
    p = QuietRL(profile="smoke", data="procedural", wandb_mode="disabled", **sizes, **thoughts)
    rows = reinforcement.problems(p, WORDS)
    run = reinforcement.open_rl(p, [])
    list(reinforcement.rl_steps(*tiny, WORDS, rows, (None, None), p, run))
    found = names_in(run)
    assert {f"rl/{name}" for name in RL} <= found
    assert all(name.startswith("rl/") for name in found)


def test_the_a_b_test_writes_its_metrics():
    run = abtest.open_test(QuietABTest(profile="smoke", wandb_mode="disabled"), [])
    values = {"reasoning_accuracy": 0.9, "baseline_accuracy": 0.1, "effect": 0.8, "trace_quality": 1.0}
    abtest.log(run, SimpleNamespace(**values), step=3)
    assert run.tracker.job_type == "quietstar" and names_in(run) == set(values)


def test_runs_carry_the_given_names():
    opened = [
        phase1.open_training(CognateTrain(profile="smoke", specialist="memory"), "memory", []),
        phase2.open_search(EvoEvolve(profile="smoke"), phase2.Family({}, None, [])),
        phase3.open_bake(QuietBake(profile="smoke"), []),
        reinforcement.open_rl(QuietRL(profile="smoke"), []),
        phase4.open_bitnet(BitnetFinetune(profile="smoke"), []),
    ]
    assert [run.tracker.run_name for run in opened] == [
        "phase1-cognate-memory",
        "phase2-evomerge",
        "phase3-step1-baking",
        "phase3-step2-rl",
        "phase4-bitnet",
    ]
    assert {run.tracker.project for run in opened} == {"agent-forge-v2"}
    assert theater.open_trial(QuietTheater(profile="smoke"), []).tracker.metrics_prefix == "rl/"

"""What notebook 31 joins: problems that never meet, a check that fails only surely, and its tables."""

from dataclasses import replace

import numpy as np
import pytest

from forgelib.core.run import MissingInput
from forgelib.data import DataError, vocabulary
from forgelib.evaluate.verdict import Findings, Measured, Verdict
from forgelib.workbook import reinforcement
from forgelib.workbook.params import ParameterError, QuietRL, QuietTheater, resolve

WORDS = vocabulary("forge-12")
P = QuietRL(profile="smoke", train_rows=40, check_rows=10, gate_rows=20)
GOOD = Measured(0.9, (0.8, 1.0), {"shuffled": 0.1}, 100)
FINDINGS = Findings(GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, {"own": 0.9})


def verdict(**changed):
    findings = replace(FINDINGS, **changed)
    return Verdict(findings, {"chain_of_thought": findings})


def test_parts_never_meet_and_are_as_hard_as_asked():
    found = reinforcement.problems(P, WORDS)
    parts = [{row.prompt for row in part} for part in (found.train, found.check, found.gate)]
    assert [len(part) for part in parts] == [40, 10, 20] and len(set.union(*parts)) == 70
    assert {row.difficulty for row in (*found.train, *found.check, *found.gate)} == {2}
    assert {row.part for row in found.train} == {"train"} and {row.part for row in found.gate} == {"validation"}


def test_too_few_problems_are_named():
    with pytest.raises(DataError, match="problems only"):
        reinforcement.problems(P.model_copy(update={"strategies": "mece", "difficulty": 1, "train_rows": 5000}), WORDS)


def test_where_its_rows_come_from_is_listed(monkeypatch):
    monkeypatch.delenv("FORGE_DATASETS", raising=False)
    asked = P.model_copy(update={"dataset_samples": 5, "data": "procedural"})
    found = reinforcement.problems(asked, WORDS)
    own, gsm8k, arc = reinforcement.source_rows(found, asked)
    assert (own["source"], own["train"], own["gate"]) == ("procedural", len(found.train), len(found.gate))
    assert (gsm8k["dataset"], gsm8k["source"], gsm8k["check"], arc["check"]) == ("gsm8k", "procedural", 5, 5)
    assert set(own) == set(gsm8k)


def test_a_check_fails_only_where_a_whole_interval_does():
    assert not reinforcement.surely_failed(verdict())
    weak, lost = Measured(0.4, (0.2, 0.6), {}, 100), Measured(0.1, (0.0, 0.2), {}, 100)
    assert verdict(correlation=weak).outcome == "failed" and not reinforcement.surely_failed(verdict(correlation=weak))
    assert len(reinforcement.surely_failed(verdict(correlation=lost))) == 1
    assert not reinforcement.surely_failed(verdict(correlation=Measured(None, note="too few errors to measure")))


def test_the_jumpstart_counts_episodes_to_a_share():
    rising = [{"episode": 50 * (i + 1), "right": share} for i, share in enumerate([0.0, 0.2, 0.4, 0.8, 0.9])]
    (row,) = reinforcement.jumpstart_rows({"baked": rising, "not run": []}, targets=(0.3, 0.6, 0.95))
    assert row == {"start": "baked", "at first": 0.0, "to 30%": 150, "to 60%": 200, "to 95%": "not within 250"}


def test_the_gate_holds_the_lower_bound_and_shows_what_is_gained_over_the_controls(monkeypatch):
    monkeypatch.setattr(reinforcement, "latency_ms", lambda *_: 120.0)
    right = {name: np.arange(100) < n for name, n in {"after": 90, "champion": 10, "over baked": 70}.items()}

    class Tokenizer:
        eos_token_id = 0

        def get_vocab(self):
            return {token: i for i, token in enumerate(WORDS.tokens)}

    checks = reinforcement.gate_checks(None, Tokenizer(), WORDS, [], right, [{"passed": True}, {"passed": False}], P)
    found = {check.name: check for check in checks}
    gain = found["gain over the champion, lower bound"]
    assert gain.measured == gain.interval[0] < 0.8 < gain.interval[1] and gain.control["over baked"] == pytest.approx(
        0.2
    )
    assert found["milliseconds to an answer"].passed and found["thinking tokens known"].measured == 1.0
    assert not found["checks passed on the way"].passed


@pytest.mark.parametrize("made", ["baked", "reinforced"])
def test_a_missing_model_names_the_notebook_that_makes_it(made, tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_RUNS", str(tmp_path))
    notebook = {"baked": "30_quietstar_bake", "reinforced": "31_quietstar_rl"}[made]
    with pytest.raises(MissingInput, match=f"papermill {notebook}.ipynb"):
        getattr(reinforcement, made)(P)


@pytest.mark.parametrize(
    ("model", "given", "told"),
    [
        (QuietRL, {"strategies": "chain_of_thought,guessing"}, "'guessing'.*chain_of_thought"),
        (QuietRL, {"strategies": "mece,mece"}, "'mece' stands there twice"),
        (QuietRL, {"episodes": -5}, "episodes = -5: must be a whole number, at least 1"),
        (QuietRL, {"reward": "applause"}, "likelihood, binary"),
        (QuietTheater, {"problems": 50, "thought_problems": 60}, "samples <= thought_problems <= problems"),
    ],
)
def test_wrong_knobs_are_refused_by_name(model, given, told):
    with pytest.raises(ParameterError, match=told):
        resolve(model, {"profile": "laptop", **given})

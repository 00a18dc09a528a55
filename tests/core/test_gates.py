"""A gate is green only where something was measured and held."""

import json
import math

import pytest

from forgelib.core.gates import Check, Gate, GateFailed


@pytest.mark.parametrize(
    "op, below, at, above",
    [(">", False, False, True), (">=", False, True, True), ("<", True, False, False), ("<=", True, True, False)],
)
def test_the_operators(op, below, at, above):
    results = [Check("x", measured, 0.3, op).passed for measured in (0.2, 0.3, 0.4)]
    assert results == [below, at, above]


@pytest.mark.parametrize("op", [">", ">=", "<", "<="])
def test_not_measured_and_not_a_number_never_pass(op):
    assert not Check("x", None, 0.3, op).passed and Check("x", None, 0.3, op).verdict == "not run"
    assert not Check("x", math.nan, 0.3, op).passed and Check("x", math.nan, 0.3, op).verdict == "failed"


def test_an_infinite_measurement_never_passes():
    assert not Check("speed", math.inf, 2.0, ">").passed
    assert not Check("loss", -math.inf, 2.0, "<").passed


def test_an_unknown_operator_is_refused():
    with pytest.raises(ValueError, match="'x'"):
        Check("x", 1.0, 0.3, "==")


def test_one_failed_check_fails_the_gate_and_so_does_an_empty_one():
    good, bad = Check("a", 0.5, 0.3), Check("b", 0.1, 0.3)
    assert Gate("g", [good]).passed
    assert not Gate("g", [good, bad]).passed
    assert not Gate("g", [good, Check("c", None, 0.3)]).passed
    assert not Gate("g", []).passed


def test_a_failed_gate_raises_with_the_table_and_what_to_try():
    halting = Check("halting", 0.12, 0.3, ">", interval=(0.05, 0.2), control={"same seed twice": 0.0}, note="3 models")
    gate = Gate("Diversity", [halting, Check("latency", None, 0.3)], advice="train longer")
    with pytest.raises(GateFailed) as caught:
        gate.enforce()
    text = str(caught.value)
    for part in (
        "Diversity",
        "halting",
        "0.12",
        "[0.05, 0.2]",
        "> 0.3",
        "same seed twice 0",
        "not run",
        "train longer",
    ):
        assert part in text
    assert gate.enforce("record") is False
    assert Gate("g", [Check("a", 0.5, 0.3)]).enforce() is True
    with pytest.raises(ValueError, match="on_failure"):
        gate.enforce("ignore")


def test_rows_and_verdicts_are_strict_json():
    gate = Gate("g", [Check("a", math.nan, 0.3, interval=(0.1, 0.2), control={"chance": math.inf})])
    text = json.dumps([gate.rows(), gate.verdict()], allow_nan=False)
    assert json.loads(text)[1]["passed"] is False

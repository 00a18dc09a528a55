"""Notebook 32: the verdict follows the sliders, the twins say the same, and what a model wrote stays text."""

import ipywidgets
import numpy as np
import pytest

from forgelib.core.artifacts import Artifact
from forgelib.data import vocabulary
from forgelib.evaluate.verdict import Evidence, Findings, Measured, Thresholds, Verdict
from forgelib.workbook import reinforcement, theater, thought_viewer
from forgelib.workbook.params import QuietRL, QuietTheater

WORDS = vocabulary("forge-12")
GOOD = Measured(0.6, (0.5, 0.7), {"shuffled": 0.1}, 100)
FINDINGS = Findings(GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, {"own": 0.9})
UTILITY = np.array([[1.0, 0.0], [1.0, 1.0]])
EVIDENCE = Evidence(
    ["a", "b"], ["x", "x"], {"own": np.array([True, False])}, {}, {}, np.arange(2), UTILITY, UTILITY, UTILITY[0]
)
VERDICT = Verdict(FINDINGS, {"chain_of_thought": FINDINGS}, Thresholds(), EVIDENCE)


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr("IPython.display.display", lambda *things, **_: found.extend(things))
    return found


def test_a_slider_turns_the_verdict(shown):
    theater.sliders(VERDICT)
    (box,) = [one for one in shown if isinstance(one, ipywidgets.VBox)]
    *sliders, live = box.children
    assert [s.description for s in sliders] == ["divergence", "ablation", "correlation", "causal use"]
    assert "<b>passed</b>" in live.value
    sliders[2].value = 0.65
    assert "<b>failed</b>" in live.value and "must exceed 0.65" in live.value
    sliders[2].value = 0.5
    assert "<b>passed</b>" in live.value
    assert VERDICT.thresholds == Thresholds(), "the gate keeps its own"


def test_the_twin_says_where_each_check_turns():
    for row in theater.turning_rows(VERDICT.gate().rows()):
        assert row["verdict"] == "passed" and row["passes up to"] in (0.5, 0.6)
    for name, edge in (("divergence", 0.6), ("ablation", 0.5), ("correlation", 0.6), ("causal_use", 0.6)):
        for threshold, passed in ((edge - 0.01, True), (edge + 0.01, False)):
            assert VERDICT.under(Thresholds(**{name: threshold})).passed is passed


def test_agreement_is_parted_by_right_and_wrong():
    assert theater.agreement_points(VERDICT) == {"right": [1.0, 1.0, 1.0], "wrong": [0.0]}


def test_problems_of_the_trial_were_neither_trained_nor_checked_on(tmp_path):
    asked = QuietRL(profile="smoke", train_rows=60, check_rows=15, gate_rows=10)
    trained = Artifact(tmp_path, {"params": {**asked.model_dump(), "code": "x"}}, "digest")
    p = QuietTheater(profile="smoke", problems=40, thought_problems=20, samples=10)
    found, known = theater.problems(p, WORDS, trained), reinforcement.problems(asked, WORDS)
    assert len({row.prompt for row in found}) == 40
    assert not {row.prompt for row in found} & {row.prompt for row in (*known.train, *known.check)}


ENTRY = {
    "question": "Question: 1<2?\nAnswer:",
    "answer": "3",
    "without": 0.25,
    "thoughts": [
        {"text": "<step>1+2=3<script>", "times": 5, "coherence": 1.0, "answer": "3", "added": 0.7},
        {"text": "<step>1+2=4", "times": 1, "coherence": 0.0, "answer": "4", "added": -0.2},
    ],
}


def test_a_viewed_thought_is_text_on_the_colour_of_its_coherence():
    text = thought_viewer.entry_html(ENTRY)
    assert "&lt;step&gt;1+2=3&lt;script&gt;" in text and "<script>" not in text and "1&lt;2?" in text
    assert "hsl(120 " in text and "hsl(0 " in text and "+0.70" in text and "-0.20" in text
    assert "5 x" in text and "3 (right)" in text and "4 (wrong)" in text


def test_the_viewer_shows_the_chosen_problem_and_all_of_them_in_its_twin(shown):
    other = {**ENTRY, "question": "Question: 5+5?\nAnswer:"}
    thought_viewer.show([ENTRY, other])
    (box,) = [one for one in shown if isinstance(one, ipywidgets.VBox)]
    menu, live = box.children
    menu.value = 1
    assert "5+5?" in live.value and "1&lt;2?" not in live.value

"""A planted pair of real causal language models: the same weights by hand, attention to the thought masked or not."""

import pytest
from hand_built import WORDS, HandBuilt, letters, problems

from forgelib.phases.antitheater import TheaterConfig, validate

SIZES = {"max_thought_tokens": 8, "max_answer_tokens": 3, "batch_size": 512}


def judged(seed, blind, n=120):
    config = TheaterConfig(seed, n, n_samples=30, n_thought_problems=50, thoughts=4, n_resamples=200)
    rows = problems(n, seed)
    reference = HandBuilt(seed, blind=True)
    return validate(HandBuilt(seed, blind), letters(), rows, words=WORDS, reference=reference, config=config, **SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_it_passes_with_its_eyes_open_and_fails_blind(seed):
    sighted, blind = judged(seed, blind=False), judged(seed, blind=True)
    assert sighted.passed, sighted.gate().text()
    assert blind.outcome == "failed"
    names = {check.name for check in blind.gate().checks if not check.passed}
    assert {"ablation, lower bound", "ablation above spoilt thoughts, lower bound", "causal use"} <= names
    assert "too few right answers to measure" in blind.gate().text(), "it guesses: one in ten is right"
    assert blind.evidence.thoughts["own"] == sighted.evidence.thoughts["own"], "they think the same"


def test_one_pair_at_once():
    assert judged(0, blind=False).passed and not judged(0, blind=True).passed

"""Planted controls: theater fails, a thought that is needed passes, for every seed, whatever trap is set beside it."""

from dataclasses import replace

import numpy as np
import pytest
from planted import (
    EASY,
    HARD,
    Ignores,
    IgnoresMixed,
    IgnoresWithHarmedPath,
    Needs,
    NeedsWithHarmedPath,
    ReadsLength,
    chains,
)

from forgelib.core.gates import GateFailed
from forgelib.data import vocabulary
from forgelib.evaluate.verdict import TOO_FEW, Thresholds
from forgelib.phases.antitheater import MIN_ERRORS, SPOILT, TheaterConfig, _interval, validate

WORDS = vocabulary("forge-12")
SEEDS = range(20)
SMALL = TheaterConfig(seed=0, n_problems=400, n_samples=50, n_thought_problems=160, thoughts=4, n_resamples=200)


def judged(thinker, seed, strategies=(EASY,), reference=None, config=SMALL):
    rows = chains(config.n_problems, seed, strategies)
    config = replace(config, seed=seed)
    return validate(thinker, None, rows, words=WORDS, reference=reference, config=config)


def failed(verdict):
    return {check.name for check in verdict.gate().checks if not check.passed}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_thought_that_is_needed_passes(seed):
    champion = Ignores(seed, {EASY: 0.3, HARD: 0.15})
    verdict = judged(Needs(seed), seed, (EASY, HARD), champion)
    assert verdict.passed and verdict.outcome == "passed", verdict.gate().text()
    assert verdict.overall.ablation.value < 0.85, "the champion's path is the better one, and it counts"


@pytest.mark.parametrize("seed", SEEDS)
def test_an_answer_that_ignores_its_thought_fails(seed):
    verdict = judged(Ignores(seed), seed)
    assert verdict.outcome == "failed"
    assert {"ablation, lower bound", "correlation", "causal use"} <= failed(verdict)
    assert verdict.overall.divergence.value > 0.3, "the given format check lets it through"


@pytest.mark.parametrize("seed", SEEDS)
def test_it_fails_when_tasks_are_mixed(seed):
    verdict = judged(IgnoresMixed(seed), seed, (EASY, HARD))
    mixed = verdict.overall.correlation.controls["strategies mixed"]
    assert mixed > 0.5, "the trap is set: mixed, agreement goes with being right"
    assert verdict.overall.correlation.value < mixed - 0.05
    above = {f"{name} above spoilt thoughts, lower bound" for name in ("ablation", "correlation")}
    assert verdict.outcome == "failed" and above | {"causal use"} <= failed(verdict)


@pytest.mark.parametrize("seed", SEEDS)
def test_it_fails_when_its_path_without_thoughts_was_harmed(seed):
    alone = judged(IgnoresWithHarmedPath(seed), seed)
    assert alone.overall.ablation.interval[0] > 0.02, "the trap is set: against its own path it gains"
    assert alone.outcome == "failed" and "ablation above spoilt thoughts, lower bound" in failed(alone)
    beside = judged(IgnoresWithHarmedPath(seed), seed, reference=Ignores(seed))
    assert {"ablation, lower bound", "causal use"} <= failed(beside), "the champion's path is not harmed"


@pytest.mark.parametrize("seed", SEEDS)
def test_it_fails_when_the_answer_leaks_through_the_length(seed):
    verdict = judged(ReadsLength(seed), seed)
    assert verdict.overall.ablation.interval[0] > 0.5 and verdict.overall.correlation.value > 0.5, "the trap is set"
    lost = failed(verdict)
    assert {"ablation above spoilt thoughts, lower bound", "causal use"} <= lost


@pytest.mark.parametrize("seed", SEEDS)
def test_a_needed_thought_passes_beside_a_harmed_path_too(seed):
    assert judged(NeedsWithHarmedPath(seed), seed, reference=Ignores(seed, {EASY: 0.3})).passed


class ThinksInOneStrategy(Needs):
    """Needs its thought in the easy strategy; in the hard one the answer comes from the prompt."""

    def rule(self, prompt, thought):
        return super().rule(prompt, thought) if prompt.startswith(EASY) else self.guess(prompt, 0.5)


def test_theater_in_one_strategy_is_not_made_up_for_by_another():
    verdict = judged(ThinksInOneStrategy(0), 0, (EASY, HARD))
    assert verdict.outcome == "failed"
    assert all(check.passed for check in verdict.gate().checks if "weakest" not in check.name)
    assert "causal use, weakest: mece" in failed(verdict)
    assert [row["passed"] for row in verdict.table()] == [True, True, False]


@pytest.mark.parametrize("strategies", [(EASY,), (EASY, HARD)])
def test_too_few_errors_is_a_verdict_of_its_own_and_no_pass(strategies):
    class Careful(Needs):
        def thought(self, prompt, slips, dice):
            return super().thought(prompt, 0.0 if prompt.startswith(EASY) else slips, dice)

    verdict = judged(Careful(0), 0, strategies)
    assert verdict.outcome == TOO_FEW and not verdict.passed
    assert {check.verdict for check in verdict.gate().checks} == {"passed", "not run"}
    assert verdict.by_strategy[EASY].correlation.value is None
    assert verdict.by_strategy[EASY].correlation.note == f"{TOO_FEW}: {EASY}"
    assert ("anti_theater_correlation" in verdict.metrics()) == (len(strategies) == 2)
    with pytest.raises(GateFailed, match=TOO_FEW):
        verdict.gate().enforce()


class FewHardProblems(Needs):
    hard = 0.01

    def thought(self, prompt, slips, dice):
        return super().thought(prompt, 0.9 if self.dice("hard", prompt).random() < self.hard else 0.0, dice)


def test_where_too_few_go_wrong_all_problems_are_thought_about():
    """160 problems hold about 6 errors, 400 about 16: the correlation is measured on all, causal use on the 160."""
    thinker = FewHardProblems(0)
    thinker.hard = 0.04
    verdict = judged(thinker, 0)
    wrong = (verdict.evidence.utility < 1).any(1)
    assert wrong[: SMALL.n_thought_problems].sum() < MIN_ERRORS <= wrong.sum()
    assert sorted(verdict.evidence.problems) == list(range(SMALL.n_problems))
    found = verdict.overall
    assert found.correlation.n == SMALL.n_problems and found.causal_use.n == SMALL.n_thought_problems
    assert np.isfinite(verdict.evidence.total_variation).sum() == SMALL.n_thought_problems
    assert found.correlation.value == pytest.approx(
        np.corrcoef(verdict.evidence.coherence.ravel(), verdict.evidence.utility.ravel())[0, 1]
    )


def test_errors_are_counted_by_problem():
    """Many wrong thoughts of few problems are no more than those problems."""
    verdict = judged(FewHardProblems(0), 0)
    wrong = 1 - verdict.evidence.utility
    assert wrong.sum() >= MIN_ERRORS / 2 and (wrong.any(1)).sum() < MIN_ERRORS
    assert verdict.overall.correlation.value is None


def test_a_gain_counts_by_its_lower_bound():
    """Four points more than the champion, measured on 400 problems, may be none."""
    verdict = judged(Needs(0), 0, reference=Ignores(0, {EASY: 0.93}))
    gain = verdict.overall.ablation
    assert gain.value > 0.02 > gain.interval[0]
    assert failed(verdict) == {"ablation, lower bound"}


def test_where_all_problems_are_alike_the_interval_is_no_point():
    assert _interval(np.zeros(1000), 10) == (-0.3, 0.3) and _interval(np.ones(1000), 2) == (-1.0, 1.0)
    assert _interval(np.ones(1000), 10) == pytest.approx((0.4, 1.0)), "three of ten may be the other way round"
    low, high = _interval(np.linspace(0, 1, 1001), 10)
    assert (low, high) == pytest.approx((0.025, 0.975))


def test_thresholds_move_and_the_measurements_stay():
    verdict = judged(Needs(0), 0)
    assert verdict.passed
    stricter = verdict.under(Thresholds(causal_use=0.99))
    assert failed(stricter) == {"causal use"} and stricter.overall == verdict.overall
    assert not verdict.under(Thresholds(ablation=0.95)).passed
    with pytest.raises(ValueError, match="threshold correlation = 7"):
        Thresholds(correlation=7)


def test_every_test_stands_beside_its_controls():
    verdict = judged(Needs(0), 0, reference=Ignores(0))
    found = verdict.overall
    assert set(found.divergence.controls) == set(SPOILT)
    assert set(found.ablation.controls) == {"over without", "over champion"}
    assert set(found.over_controls.controls) == {f"over {name}" for name in SPOILT}
    assert {"shuffled", "swapped", "filler", "strategies mixed"} == set(found.correlation.controls)
    assert {"deleted", "shuffled", "filler"} == set(found.causal_use.controls)
    assert set(found.accuracy) == {"own", "without", "champion", *SPOILT}
    for measured in (found.divergence, found.ablation, found.correlation, found.causal_use):
        low, high = measured.interval
        assert low < measured.value < high
    assert found.divergence.n == SMALL.n_samples and found.causal_use.n == SMALL.n_thought_problems
    assert set(verdict.metrics()) == {f"anti_theater_{name}" for name in ("divergence", "ablation", "correlation")}
    assert verdict.as_dict()["passed"] and verdict.as_dict()["overall"]["ablation"]["n"] == SMALL.n_problems


def test_the_evidence_is_what_the_numbers_were_made_from():
    verdict = judged(Needs(0), 0)
    evidence, found = verdict.evidence, verdict.overall
    assert found.accuracy["own"] == pytest.approx(evidence.correct["own"].mean())
    assert found.causal_use.value == pytest.approx(evidence.total_variation.mean())
    assert found.correlation.value == pytest.approx(
        np.corrcoef(evidence.coherence.ravel(), evidence.utility.ravel())[0, 1]
    )
    assert evidence.thoughts["own"][0].startswith("[thinking]") and len(evidence.answers["swapped"]) == 400


def test_a_champion_that_was_not_given_is_named():
    assert "no frozen champion was given" in judged(Needs(0), 0).gate().text()
    assert "champion was given" not in judged(Needs(0), 0, reference=Ignores(0)).gate().text()
    assert "the source documents ask for at least 1,000 problems" in judged(Needs(0), 0).gate().text()


def test_the_same_seed_gives_the_same_verdict():
    assert judged(Needs(3), 3) == judged(Needs(3), 3)
    assert judged(Needs(3), 3) != judged(Needs(3), 4)


def test_progress_is_told_to_the_last_step():
    told = []
    rows = chains(400, 0)
    validate(Needs(0), None, rows, words=WORDS, reference=Ignores(0), config=SMALL, progress=lambda *s: told.append(s))
    assert [done for _, done, _ in told] == list(range(1, len(told) + 1))
    assert {total for *_, total in told} == {len(told)}


class Untouched(Needs):
    def think(self, *_, **__):
        raise AssertionError("work has begun")


def test_bad_rows_are_refused_before_any_work():
    rows, thinker = chains(400, 0), Untouched(0)
    for wrong, message in (
        ([], "there are no rows"),
        (rows[:399], "400 problems are asked for and there are 399 rows"),
        ([*rows[:9], replace(rows[9], answer=" "), *rows[10:]], r"row 9 has no answer \(1 such rows\)"),
        ([replace(rows[0], prompt=""), *rows[1:]], "row 0 has no prompt"),
        ([replace(rows[0], strategy=HARD), *rows[1:]], "strategy mece has 1 problems"),
    ):
        with pytest.raises(ValueError, match=message):
            validate(thinker, None, wrong, words=WORDS, config=SMALL)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n_samples": 500}, "n_samples <= n_thought_problems <= n_problems"),
        ({"n_resamples": 0}, "n_resamples"),
        ({"thoughts": 1}, "thoughts >= 2"),
        ({"temperature": 0.0}, "temperature above 0"),
    ],
)
def test_sizes_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **wrong)

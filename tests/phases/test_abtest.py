"""The A/B test names a winner where there is one, none where there is none, and keeps the traces that helped."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hand_built import HandBuilt, letters, problems
from planted import EASY, Ignores, Needs, chains

from forgelib.data import to_row, vocabulary
from forgelib.evaluate.final_answer import same_number
from forgelib.phases.abtest import NEITHER, WITH, WITHOUT, ABConfig, _winner, ab_test

WORDS = vocabulary("forge-12")
ROWS = chains(400, 0)
CONFIG = ABConfig(seed=0)


def compared(thinker, rows=ROWS, config=CONFIG, **options):
    return ab_test(thinker, None, rows, words=WORDS, config=config, **options)


def test_thoughts_that_are_needed_win():
    result = compared(Needs(0))
    assert result.winner == WITH and result.effect > 0.5
    low, high = result.effect_interval
    assert low < result.effect < high and max(result.t_p, result.mcnemar_p) < 1e-6 and result.t > 0
    assert result.reasoning_accuracy - result.baseline_accuracy == pytest.approx(result.effect)
    assert result.gained > 100 > result.lost and result.n_problems == 300


def test_without_an_effect_there_is_no_winner():
    result = compared(Ignores(0))
    assert result.winner == NEITHER and result.effect == 0.0 and result.t_p == result.mcnemar_p == 1.0
    assert result.helped == []


def test_chance_wins_seldom():
    """Thoughts that only stir the answers: right as often with as without."""

    class Stirs(Needs):
        def rule(self, prompt, thought):
            right = self.dice("stirred", prompt, thought).random() < 0.5
            return sum(self.digits(prompt)) % 10 if right else -1

    winners = [compared(Stirs(seed), config=replace(CONFIG, seed=seed)).winner for seed in range(20)]
    assert winners.count(NEITHER) >= 18


def test_thoughts_that_do_harm_lose():
    class Harmed(Needs):
        def rule(self, prompt, thought):
            return self.guess(prompt, 0.9) if thought is None else self.guess(prompt, 0.5)

    result = compared(Harmed(0))
    assert result.winner == WITHOUT and result.effect < -0.2


def test_an_effect_below_the_threshold_is_no_win():
    result = compared(Needs(0), config=replace(CONFIG, improvement=0.99))
    assert result.effect < 0.99 and result.t_p < 1e-6 and result.winner == NEITHER


@pytest.mark.parametrize(
    "effect, interval, p, winner",
    [
        (0.1, (0.05, 0.15), 0.001, WITH),
        (-0.1, (-0.15, -0.05), 0.001, WITHOUT),
        (0.1, (0.05, 0.15), 0.06, NEITHER),
        (0.1, (-0.01, 0.2), 0.001, NEITHER),
        (0.02, (0.01, 0.03), 0.001, NEITHER),
    ],
)
def test_a_winner_needs_size_interval_and_tests(effect, interval, p, winner):
    assert _winner(effect, interval, p, CONFIG) == winner


def test_the_baseline_may_be_another_model():
    strong = Ignores(0, {EASY: 1.0})
    result = compared(Needs(0), baseline=strong)
    assert result.baseline_accuracy == 1.0 and result.winner == WITHOUT


def test_rounds_have_their_own_problems_and_thoughts():
    asked = []

    class Listens(Needs):
        def think(self, prompts, **options):
            asked.append((list(prompts), options["seed"]))
            return super().think(prompts, **options)

    result = compared(Listens(0))
    assert len({prompt for prompts, _ in asked for prompt in prompts}) == 300 and len({s for _, s in asked}) == 3
    assert [one.n for one in result.rounds] == [100] * 3
    means = [np.mean([getattr(one, name) for one in result.rounds]) for name in ("reasoning_accuracy", "coherence")]
    assert means == [pytest.approx(result.reasoning_accuracy), pytest.approx(result.coherence)]


def test_a_problem_that_comes_again_counts_once():
    result = compared(Needs(0), rows=ROWS[:110])
    assert result.n_problems == 110 and result.gained + result.lost <= 110
    many = compared(Needs(0), rows=ROWS[:100], config=replace(CONFIG, rounds=9))
    assert many.n_problems == 100, "more rounds of the same problems are no more evidence"
    assert np.ptp(many.effect_interval) > 0.5 * np.ptp(compared(Needs(0), rows=ROWS[:100]).effect_interval)


def test_traces_that_helped_are_rows_to_bake():
    result = compared(Needs(0))
    by_prompt = {row.prompt: row for row in ROWS}
    assert 250 < len(result.helped) == len({(row.prompt, row.reasoning) for row in result.helped})
    for row in result.helped:
        asked = by_prompt[row.prompt]
        assert row.answer == asked.answer and row.verified and row.source == "own thought that helped (planted)"
        assert row.reasoning.endswith(f"{row.answer}[/endthinking]"), "the thought led to the right answer"
        assert Needs(0).answer([row.prompt], [None]) != [row.answer], "without it the answer was wrong"
        assert to_row(row.__dict__, WORDS) == row


def test_malformed_traces_are_counted_and_not_baked():
    class Mumbles(Needs):
        def text(self, thought):
            return "[thinking]<step> 1" if random.Random(str(thought)).random() < 0.4 else super().text(thought)

    result = compared(Mumbles(0))
    assert 0.4 < result.well_formed < 0.8 and compared(Needs(0)).well_formed == 1.0
    assert all(row.reasoning.endswith("[/endthinking]") for row in result.helped)
    assert result.trace_quality == pytest.approx((result.well_formed + result.coherence) / 2)
    assert compared(Needs(0, slips=0.3)).coherence < compared(Needs(0, slips=0.0)).coherence == 1.0


def test_answers_may_be_compared_as_numbers():
    dressed = [replace(row, answer=f"{row.answer}.00") for row in ROWS]
    assert compared(Needs(0), rows=dressed).reasoning_accuracy == 0.0
    assert compared(Needs(0), rows=dressed, same=same_number) == replace(
        compared(Needs(0)), helped=compared(Needs(0), rows=dressed, same=same_number).helped
    )


def test_a_language_model_is_taken_as_it_is():
    rows = problems(90, 0)
    result = ab_test(
        HandBuilt(0),
        letters(),
        rows,
        words=WORDS,
        config=replace(CONFIG, samples=30, thoughts=2),
        max_thought_tokens=8,
        max_answer_tokens=3,
    )
    assert result.winner == WITH and result.baseline_accuracy < 0.4 and result.helped
    assert result.well_formed == 1.0


def test_the_record_is_plain_and_has_the_methods_names():
    record = compared(Needs(0)).as_dict()
    assert {"reasoning_accuracy", "trace_quality", "winner", "effect_interval"} <= set(record)
    assert record["helped"] == len(compared(Needs(0)).helped) and len(record["rounds"]) == 3
    assert compared(Needs(0)) == compared(Needs(0)) != compared(Needs(0), config=replace(CONFIG, seed=1))


def test_progress_is_told():
    told = []
    compared(Needs(0), progress=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


class Untouched(Needs):
    def think(self, *_, **__):
        raise AssertionError("work has begun")


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "there are no rows"),
        (ROWS[:99], "100 problems are asked for and there are 99 rows"),
        ([*ROWS[:120], replace(ROWS[120], answer="")], "row 120 has no answer"),
    ],
)
def test_bad_rows_are_refused_before_any_work(rows, message):
    with pytest.raises(ValueError, match=message):
        compared(Untouched(0), rows=rows)


def test_a_reference_without_a_number_is_refused_before_any_work():
    with pytest.raises(ValueError, match="'blue' holds no number"):
        compared(Untouched(0), rows=[*ROWS[:120], replace(ROWS[120], answer="blue")], same=same_number)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"rounds": 2}, "3 rounds"),
        ({"samples": 1}, "2 samples"),
        ({"thoughts": 1}, "thoughts >= 2"),
        ({"improvement": -0.1}, "improvement must be a share"),
        ({"alpha": 0.0}, "alpha between 0 and 1"),
    ],
)
def test_sizes_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **wrong)

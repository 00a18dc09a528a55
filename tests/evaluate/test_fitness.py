"""The yardstick's laws: parents are 1, terms weigh what METHOD says, no unit leaks in, resamples keep categories."""

from dataclasses import replace

import numpy as np
import pytest

from forgelib.evaluate.fitness import TERMS, WEIGHTS, Yardstick, fitness_weights, resamples
from forgelib.evaluate.intervals import percentile_interval
from forgelib.evaluate.texts import Scores

N = 30
CATEGORY = np.array([0] * 12 + [1] * 10 + [2] * 8)
TINY = WEIGHTS["tiny"]


def scores(seed: int, operations: float = 1000.0, n_bytes: int = 4000) -> Scores:
    """Losses about 2 nats; every third text has no answer; category 2 has none at all."""
    dice = np.random.default_rng(seed)
    right = dice.integers(0, 2, N).astype(float)
    right[::3] = np.nan
    right[CATEGORY == 2] = np.nan
    return Scores(dice.uniform(1, 3, N), right, operations, n_bytes)


PARENTS = [scores(1, 900.0), scores(2, 1000.0), scores(3, 1300.0)]
YARDSTICK = Yardstick(PARENTS, CATEGORY, TINY)


def by_hand(model: Scores) -> list[float]:
    """Each term before it is compared, larger is better: the words of the module, as loops."""
    losses = [model.losses[c == CATEGORY].mean() for c in (0, 1, 2)]
    shares = []
    for c in (0, 1):
        asked = [r for r, category in zip(model.right, CATEGORY, strict=True) if category == c and not np.isnan(r)]
        shares.append((sum(asked) + 1) / (len(asked) + 2))
    perplexity = np.prod(np.exp(losses)) ** (1 / 3)
    return [1 / perplexity, np.prod(shares) ** (1 / 2), 1 / model.operations, 1 / model.n_bytes]


def test_fitness_is_what_the_words_say():
    reference = np.prod([by_hand(parent) for parent in PARENTS], axis=0) ** (1 / 3)
    weights = [TINY[name] for name in TERMS]
    mean = np.mean([np.dot(weights, by_hand(parent) / reference) for parent in PARENTS])
    for model in (scores(4, 800.0, 3000), scores(5), *PARENTS):
        terms = by_hand(model) / reference
        assert YARDSTICK.fitness(model) == pytest.approx(np.dot(weights, terms) / mean)
        assert list(YARDSTICK.terms(model).values()) == pytest.approx(list(terms))


@pytest.mark.parametrize("size", WEIGHTS)
def test_the_parents_mean_is_one(size):
    yardstick = Yardstick(PARENTS, CATEGORY, WEIGHTS[size])
    assert np.mean([yardstick.fitness(parent) for parent in PARENTS]) == pytest.approx(1, abs=1e-14)
    counts = resamples(CATEGORY, 50, 0)
    assert yardstick.resampled(PARENTS, counts).mean(axis=1) == pytest.approx(np.ones(50), abs=1e-14)


def test_terms_of_the_parents_multiply_to_one():
    for name in TERMS:
        assert np.prod([YARDSTICK.terms(parent)[name] for parent in PARENTS]) == pytest.approx(1)


def test_the_given_weights():
    assert [sum(weights.values()) for weights in WEIGHTS.values()] == pytest.approx([1.0] * 4)
    assert fitness_weights(1_000_000) == {"perplexity": 0.5, "accuracy": 0.3, "speed": 0.1, "memory": 0.1}
    assert fitness_weights(100_000_000) == {"perplexity": 0.4, "accuracy": 0.3, "speed": 0.2, "memory": 0.1}
    large = {"perplexity": 0.4, "accuracy": 0.3, "speed": 0.15, "memory": 0.15}
    assert fitness_weights(1_000_000_000) == fitness_weights(3_000_000_000) == large


@pytest.mark.parametrize("size", WEIGHTS)
def test_a_gain_in_one_term_is_worth_its_weight(size):
    one, weights = scores(1), WEIGHTS[size]
    yardstick = Yardstick([one, one, one], CATEGORY, weights)
    assert yardstick.fitness(one) == pytest.approx(1, abs=1e-14)
    twice_as_fast = replace(one, operations=one.operations / 2)
    assert yardstick.fitness(twice_as_fast) == pytest.approx(1 + weights["speed"])
    assert yardstick.terms(twice_as_fast)["speed"] == pytest.approx(2)
    half_as_big = replace(one, n_bytes=one.n_bytes // 2)
    assert yardstick.fitness(half_as_big) == pytest.approx(1 + weights["memory"])
    half_the_perplexity = replace(one, losses=one.losses - np.log(2))
    assert yardstick.fitness(half_the_perplexity) == pytest.approx(1 + weights["perplexity"])
    assert yardstick.terms(half_the_perplexity)["perplexity"] == pytest.approx(2)


def test_no_unit_leaks_in():
    model = scores(4, 700.0, 3000)

    def in_units(s: Scores, operations: float, n_bytes: int) -> Scores:
        return replace(s, operations=s.operations * operations, n_bytes=s.n_bytes * n_bytes)

    expected = YARDSTICK.fitness(model)
    for units in ((1e9, 1), (1e-6, 1), (1.0, 1024), (3.0, 7)):
        parents = [in_units(parent, *units) for parent in PARENTS]
        assert Yardstick(parents, CATEGORY, TINY).fitness(in_units(model, *units)) == pytest.approx(expected)


def test_equal_speed_and_memory_earn_nothing():
    parents = [scores(i) for i in (1, 2, 3)]
    terms = Yardstick(parents, CATEGORY, TINY).terms(scores(9))
    assert terms["speed"] == pytest.approx(1) and terms["memory"] == pytest.approx(1)


def test_a_category_counts_once_however_many_texts_it_has():
    one = scores(1)
    better = {}
    for c in (0, 2):  # 12 texts, 8 texts
        better[c] = replace(one, losses=one.losses - 0.3 * (c == CATEGORY))
    yardstick = Yardstick([one, one], CATEGORY, TINY)
    assert yardstick.fitness(better[0]) == pytest.approx(yardstick.fitness(better[2]))


def test_texts_without_answers_give_no_accuracy_and_a_model_that_is_always_wrong_stays_finite():
    blind = [replace(parent, right=np.full(N, np.nan)) for parent in PARENTS]
    assert Yardstick(blind, CATEGORY, TINY).terms(blind[0])["accuracy"] == pytest.approx(1)
    wrong = replace(PARENTS[0], right=np.where(np.isnan(PARENTS[0].right), np.nan, 0.0))
    assert 0 < YARDSTICK.terms(wrong)["accuracy"] < 1


def test_resampled_by_ones_is_the_fitness_and_by_counts_is_the_repeated_texts():
    models = [scores(4), scores(5)]
    plain = YARDSTICK.resampled(models, np.ones((3, N)))
    assert plain.shape == (3, 2)
    assert plain == pytest.approx(np.array([[YARDSTICK.fitness(model) for model in models]] * 3), abs=1e-14)
    counts = resamples(CATEGORY, 4, 1)
    found = YARDSTICK.resampled(models, counts)
    for row, count in enumerate(counts.astype(int)):
        rows = np.repeat(np.arange(N), count)

        def taken(s: Scores, rows=rows) -> Scores:
            return replace(s, losses=s.losses[rows], right=s.right[rows])

        yardstick = Yardstick([taken(parent) for parent in PARENTS], CATEGORY[rows], TINY)
        assert found[row] == pytest.approx([yardstick.fitness(taken(model)) for model in models])


def test_resamples_keep_the_number_of_texts_in_each_category():
    counts = resamples(CATEGORY, 200, 3)
    assert counts.shape == (200, N) and (counts == counts.round()).all() and counts.min() == 0
    for number, size in ((0, 12), (1, 10), (2, 8)):
        assert (counts[:, number == CATEGORY].sum(axis=1) == size).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(N), abs=0.35)
    assert (counts == resamples(CATEGORY, 200, 3)).all() and (counts != resamples(CATEGORY, 200, 4)).any()


def test_the_interval_holds_the_middle():
    values = np.arange(1001) / 1000
    assert percentile_interval(values) == pytest.approx((0.025, 0.975))
    assert percentile_interval(values, 0.5) == pytest.approx((0.25, 0.75))

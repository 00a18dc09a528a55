"""The numbers behind the tests for theater agree with what is known beforehand, and with slower ways to get them."""

import numpy as np
import pytest

from forgelib.evaluate import theater
from forgelib.evaluate.intervals import bootstrap_interval, percentile_interval, resampled_sums
from forgelib.evaluate.verdict import Thresholds


@pytest.mark.parametrize(
    "first, second, expected",
    [
        ("kitten", "sitting", 3 / 7),
        ("abc", "abc", 0),
        ("abc", "xyz", 1),
        ("", "ab", 1),
        ("", "", 0),
        ("ab", "abcd", 0.5),
    ],
)
def test_edit_distance_of_known_pairs(first, second, expected):
    assert theater.edit_distance(first, second) == pytest.approx(expected)
    assert theater.edit_distance(second, first) == pytest.approx(expected)


def test_edit_distance_is_a_metric_before_it_is_normalised():
    dice = np.random.default_rng(0)
    drawn = [tuple(dice.integers(0, 3, dice.integers(1, 8))) for _ in range(20)]
    whole = {(a, b): theater.edit_distance(a, b) * max(len(a), len(b)) for a in drawn for b in drawn}
    for a in drawn:
        for b in drawn:
            for c in drawn[:8]:
                assert whole[a, c] <= whole[a, b] + whole[b, c] + 1e-9


def test_total_variation_of_known_distributions():
    same = np.log([0.5, 0.3])
    assert theater.total_variation(same, same) == 0
    assert theater.total_variation(np.log([0.8, 0.1]), np.log([0.3, 0.4])) == pytest.approx(0.5)
    assert theater.total_variation(np.log([0.6]), np.log([0.1])) == pytest.approx(0.5), "the rest is a candidate, too"
    assert theater.total_variation(np.array([0.0, -np.inf]), np.array([-np.inf, 0.0])) == 1


def test_fewer_candidates_never_show_more_variation():
    dice = np.random.default_rng(1)
    for _ in range(50):
        p, q = np.log(dice.dirichlet(np.ones(6), 2))
        some = dice.permutation(6)[:3]
        assert theater.total_variation(p[some], q[some]) <= theater.total_variation(p, q) + 1e-12


def test_agreement_counts_the_others():
    found = theater.agreement([["1", "1", "2", "1"], ["a", "b", "c", "d"], ["", "", "3", "3"]])
    np.testing.assert_allclose(found, [[2 / 3, 2 / 3, 0, 2 / 3], [0, 0, 0, 0], [0, 0, 1 / 3, 1 / 3]])
    with pytest.raises(ValueError, match="at least two thoughts"):
        theater.agreement([["1"]])


def test_within_one_strategy_it_is_pearsons_r():
    x, y = np.random.default_rng(2).normal(size=(2, 40, 5))
    y = y + x
    found = theater.correlation_within(theater.moments(x, y).sum(0)[None])
    assert found == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def test_over_strategies_it_is_r_of_the_deviations_and_their_means_do_not_count():
    dice = np.random.default_rng(3)
    x, y, names = dice.normal(size=(60, 4)), dice.normal(size=(60, 4)), np.repeat([0, 1, 2], 20)
    far = 5.0 * names[:, None]
    sums = np.stack([theater.moments(x + far, y + far)[names == s].sum(0) for s in range(3)])
    deviations = [np.concatenate([v[names == s] - v[names == s].mean() for s in range(3)]).ravel() for v in (x, y)]
    within = theater.correlation_within(sums)
    assert within == pytest.approx(np.corrcoef(*deviations)[0, 1]) and abs(within) < 0.2
    assert theater.correlation_within(sums.sum(0)[None]) > 0.9, "mixed, the strategies' means make a correlation"


def test_what_does_not_vary_correlates_with_nothing():
    x = np.random.default_rng(4).normal(size=(10, 3))
    assert theater.correlation_within(theater.moments(np.ones((10, 3)), x).sum(0)[None]) == 0
    assert theater.correlation_within(theater.moments(x, np.zeros((10, 3))).sum(0)[None]) == 0


def test_resampled_sums_give_the_intervals_of_the_slow_bootstrap():
    x = np.random.default_rng(5).normal(1.0, 2.0, (300, 2))
    fast = percentile_interval(resampled_sums(x, 4000, seed=0)[:, 0] / 300)
    slow = bootstrap_interval(np.mean, x[:, 0], n_resamples=4000, seed=1)
    np.testing.assert_allclose(fast, slow, atol=0.02)
    drawn = resampled_sums(np.stack([x[:, 0], x[:, 0], np.ones(300)], 1), 50, seed=0)
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])
    np.testing.assert_array_equal(drawn[:, 2], 300)
    with pytest.raises(ValueError, match="at least one"):
        resampled_sums(x[:0], 5, seed=0)


def test_resampling_in_portions_changes_no_sum(monkeypatch):
    x = np.arange(3000.0)[:, None]
    assert len(resampled_sums(x, 801, seed=0)) == 801, "more than one portion"
    assert np.unique(resampled_sums(x, 801, seed=0)).size > 790


def test_shuffled_tokens_are_the_same_tokens_in_another_order():
    thoughts = [(1, 2, 3, 4), (5, 6), (7, 7, 7), (8,), ()]
    found = theater.shuffled_tokens(thoughts, seed=0)
    assert [sorted(t) for t in found] == [sorted(t) for t in thoughts]
    assert [a != b for a, b in zip(found, thoughts, strict=True)] == [True, True, False, False, False]
    assert found == theater.shuffled_tokens(thoughts, seed=0)


def test_donors_are_others_of_the_strategy_near_in_length_with_another_thought():
    dice = np.random.default_rng(6)
    thoughts = [tuple(dice.integers(0, 3, dice.integers(1, 9))) for _ in range(200)]
    names = [("a", "b")[i % 2] for i in range(200)]
    given = theater.donors(thoughts, names, seed=0)
    for i, j in enumerate(given):
        others = [k for k in range(200) if names[k] == names[i] and thoughts[k] != thoughts[i]]
        assert i != j and names[i] == names[j] and thoughts[i] != thoughts[j]
        assert abs(len(thoughts[i]) - len(thoughts[j])) == min(abs(len(thoughts[i]) - len(thoughts[k])) for k in others)
    assert len(set(given.tolist())) > 60, "ties are broken at random, not by one donor for all"


def test_where_all_think_the_same_a_swap_changes_nothing():
    thoughts = [(1, 2)] * 5
    given = theater.donors(thoughts, ["a"] * 5, seed=0)
    assert all(i != j for i, j in enumerate(given))
    with pytest.raises(ValueError, match="strategy b has a single problem"):
        theater.donors(thoughts, ["a"] * 4 + ["b"], seed=0)


def test_problems_are_spread_over_the_strategies():
    names = ["a"] * 50 + ["b"] * 5 + ["c"] * 45
    found = theater.spread_over(names, 30, seed=0)
    counts = [sum(names[i] == name for i in found) for name in "abc"]
    assert len(set(found.tolist())) == 30 and counts == [13, 5, 12]
    assert (np.sort(found) == found).all() and theater.spread_over(names, 100, seed=1).tolist() == list(range(100))
    assert theater.spread_over(names, 30, seed=1).tolist() != found.tolist()


def test_the_thresholds_are_those_of_the_method():
    assert Thresholds() == Thresholds(divergence=0.30, ablation=0.02, correlation=0.50, causal_use=0.30)

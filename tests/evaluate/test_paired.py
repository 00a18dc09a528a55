"""Paired tests against worked examples and scipy; final numbers however they are dressed."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from forgelib.data import Example, to_row, vocabulary
from forgelib.evaluate.final_answer import final_number, same_number
from forgelib.evaluate.paired import EXACT_BELOW, mcnemar, paired_t_test
from forgelib.evaluate.thinker import check_rows, questions


def pairs(both, first, second, neither):
    counts = [((1, 1), both), ((1, 0), first), ((0, 1), second), ((0, 0), neither)]
    table = np.array([pair for pair, n in counts for _ in range(n)], dtype=bool)
    return table[:, 0], table[:, 1]


def test_mcnemar_is_exact_for_few_discordant_pairs():
    gained, lost, p = mcnemar(*pairs(30, 9, 1, 20))
    assert (gained, lost) == (9, 1)
    assert p == pytest.approx(2 * (1 + 10) / 2**10), "two tails of ten fair coins"
    assert mcnemar(*pairs(10, 0, 0, 3)) == (0, 0, 1.0)


def test_mcnemar_of_many_is_chi_square_with_correction_and_near_the_exact_one():
    gained, lost, p = mcnemar(*pairs(100, 50, 30, 20))
    assert (gained, lost) == (50, 30)
    assert p == pytest.approx(stats.chi2.sf(19**2 / 80, 1))
    assert p == pytest.approx(stats.binomtest(30, 80).pvalue, rel=0.05)
    assert mcnemar(*pairs(0, EXACT_BELOW, EXACT_BELOW, 0))[2] == 1.0


def test_concordant_pairs_do_not_count():
    assert mcnemar(*pairs(0, 9, 1, 0))[2] == mcnemar(*pairs(500, 9, 1, 500))[2]
    with pytest.raises(ValueError, match="needs pairs"):
        mcnemar(np.ones(3), np.ones(4))


def test_the_paired_t_test_is_the_one_sample_test_of_the_differences():
    first, second = np.random.default_rng(0).normal(size=(2, 30))
    t, p = paired_t_test(first + 0.5, second)
    expected = stats.ttest_1samp(first + 0.5 - second, 0.0)
    assert (t, p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))


def test_differences_without_spread():
    ones = np.ones(5)
    assert paired_t_test(ones, ones) == (0.0, 1.0)
    assert paired_t_test(ones, 0 * ones) == (np.inf, 0.0) and paired_t_test(0 * ones, ones) == (-np.inf, 0.0)
    with pytest.raises(ValueError, match="at least two"):
        paired_t_test(ones[:1], ones[:1])


@pytest.mark.parametrize(
    "text, number",
    [
        ("72", 72),
        ("She has 5 apples and eats 2, so 3.", 3),
        ("10 + 2 = <<10+2=12>>12\n#### 12", 12),
        ("#### 1,200", 1200),
        ("$1200.00", 1200),
        ("it is -2", -2),
        ("-7", -7),
        ("7-2", 2),
        ("10 - 2", 2),
        ("0.5", Fraction(1, 2)),
        ("3/4 of them", Fraction(3, 4)),
        ("1,2", 2),
        ("12,345,678 people", 12345678),
        ("first 5, then #### none", None),
        ("no number", None),
        ("1/0", None),
        ("", None),
    ],
)
def test_final_numbers(text, number):
    assert final_number(text) == number


def test_numbers_are_compared_by_value():
    assert same_number("The answer is $1,200.", "1200") and same_number("0.50", "1/2")
    assert not same_number("120", "1200") and not same_number("none", "0")
    with pytest.raises(ValueError, match="'blue' holds no number"):
        same_number("5", "blue")


def test_dataset_questions_become_rows():
    rows = questions([Example("Question: 1+1?\nAnswer:", "2", "math", "svamp", "mirror")])
    check_rows(rows, 1, same_number)
    assert rows[0].topic == "svamp" and rows[0].source == "svamp (mirror)" and not rows[0].verified
    traced = {**rows[0].__dict__, "reasoning": "[thinking]<step> 1+1=2[/endthinking]"}
    assert to_row(traced, vocabulary("forge-12")).answer == "2"


def test_rows_that_cannot_be_compared_are_refused():
    row = questions([Example("Who?", "nobody", "qa", "drop", "mirror")])
    with pytest.raises(ValueError, match="holds no number"):
        check_rows(row, 1, same_number)
    with pytest.raises(ValueError, match="does not take its answer 'nobody'"):
        check_rows(row, 1, lambda answer, reference: False)

"""Two ways to answer the same problems: is one better? Paired t-test and McNemar's test.

Shape legend: N problems.
"""

import numpy as np
from scipy import stats

#: Below so many discordant pairs McNemar's test is the exact binomial one, above it chi-square with correction.
EXACT_BELOW = 25


def paired_t_test(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """t and two-sided p of the paired t-test (Student 1908) on [N] values each; positive: the first is higher.

    Where all differences are equal there is no spread to test by: t = 0, p = 1 for no difference at all, else t = +-inf
    and p = 0. Raises ValueError for fewer than two pairs or unequal lengths.
    """
    difference = np.asarray(first, float) - np.asarray(second, float)
    if len(difference) < 2:
        raise ValueError(f"a paired t-test needs at least two problems, got {len(difference)}")
    if np.ptp(difference) == 0:
        return (0.0, 1.0) if difference[0] == 0 else (float(np.copysign(np.inf, difference[0])), 0.0)
    found = stats.ttest_rel(first, second)
    return float(found.statistic), float(found.pvalue)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """McNemar's test (1947) on right and wrong, bool [N] each: how many only the first, only the second got right, and
    the two-sided p.

    Exact (binomial) below EXACT_BELOW discordant pairs, else chi-square with Edwards' correction.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"McNemar's test needs pairs, got {first.shape} and {second.shape}")
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = gained + lost
    if discordant == 0:
        return 0, 0, 1.0
    if discordant < EXACT_BELOW:
        return gained, lost, float(stats.binomtest(min(gained, lost), discordant, 0.5).pvalue)
    statistic = max(0, abs(gained - lost) - 1) ** 2 / discordant
    return gained, lost, float(stats.chi2.sf(statistic, 1))

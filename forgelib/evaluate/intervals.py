"""Bootstrap intervals: how far a measured number could move if the sample were drawn again."""

from collections.abc import Callable

import numpy as np

Statistic = Callable[..., float]


def bootstrap_interval(
    statistic: Statistic,
    *samples: np.ndarray,
    paired: bool = True,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic(*samples)` (Efron 1979).

    Args:
        samples: arrays whose first axis counts independent units (texts, problems, repeats).
        paired: all samples describe the same units and are drawn together; otherwise each is drawn by itself.
    """
    if any(len(sample) == 0 for sample in samples):
        raise ValueError("a bootstrap needs at least one measured unit in every sample")
    generator = np.random.default_rng(seed)
    values = np.empty(n_resamples)
    for i in range(n_resamples):
        if paired:
            rows = generator.integers(0, len(samples[0]), len(samples[0]))
            values[i] = statistic(*(sample[rows] for sample in samples))
        else:
            values[i] = statistic(*(sample[generator.integers(0, len(sample), len(sample))] for sample in samples))
    return percentile_interval(values, level)


def share_interval(correct: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of the share of True: also at 40 of 40 it says how little 40 are."""
    from scipy.stats import binomtest

    if len(correct) == 0:
        raise ValueError("an interval needs at least one measured unit")
    found = binomtest(int(correct.sum()), len(correct)).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of resampled values [R]."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def resampled_sums(values: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """Column sums of `n_resamples` bootstrap samples of the rows of values [N, M]: [n_resamples, M].

    For statistics that are made of sums (means, correlations), hundreds of times as fast as drawing rows one sample
    after the other; at most about 2^20 weights are in memory at once.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a bootstrap needs at least one measured unit in every sample")
    generator, at_once, parts = np.random.default_rng(seed), max(1, 2**20 // n), []
    for first in range(0, n_resamples, at_once):
        size = min(at_once, n_resamples - first)
        drawn = generator.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        parts.append(np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n) @ values)
    return np.concatenate(parts)

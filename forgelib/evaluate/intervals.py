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


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of resampled values [R]."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)

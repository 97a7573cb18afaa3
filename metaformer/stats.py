"""Intervals for means over seeds and for paired differences. Plain numbers in and out; no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values with a two-sided t interval; the interval is NaN below two values."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Student's t interval of the mean."""
    from scipy import stats  # a third of the time to --help, which needs no statistics

    n = len(values)
    mean = float(np.mean(values)) if n else float("nan")
    if n < 2:
        return Estimate(mean, float("nan"), float("nan"), n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Estimate:
    """t interval of the mean of `a - b` over the seeds that both have: {seed: value} each."""
    return mean_interval([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], confidence)

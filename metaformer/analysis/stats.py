"""The statistics of a verdict. Plain numbers and arrays in and out; no torch.

scipy is imported where it is used: `--help` does not need it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values with a two-sided interval, which is NaN where they are too few for one."""

    mean: float
    low: float
    high: float
    n: int


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted over their family by Holm's method (1979).

    statsmodels has it too, but collects garbage at each call: 0.1 s and more, many times in a report.
    """
    order = np.argsort(p, kind="stable")
    steps = np.arange(len(p), 0, -1) * np.asarray(p, dtype=float)[order]
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(steps).clip(max=1)
    return [float(value) for value in adjusted]


def holm_steps(p: Sequence[float], alpha: float) -> list[float]:
    """The level at which Holm's method decides about each of a family of tests.

    The smallest of m p values is judged at alpha / m, the next one at alpha / (m - 1), and so on. The first that fails
    ends it: all that follow are judged at its level. A test rejects where its p is at most its level, and so where
    its interval of 1 - level leaves zero out. Tests with the same p are judged at the same level.
    """
    order = np.argsort(p, kind="stable")
    ordered = np.asarray(p, dtype=float)[order]
    steps = alpha / np.arange(len(p), 0, -1)[np.searchsorted(ordered, ordered)]  # that of the first of equal ones
    failed = np.flatnonzero(ordered > steps)
    if failed.size:
        steps[failed[0] :] = steps[failed[0]]
    levels = np.empty(len(p))
    levels[order] = steps
    return [float(level) for level in levels]


MOST_SEEDS = 1000  # that are looked for
POINTS, ROUGH = 4000, 200  # of the distribution of a sample SD: for what is said, and to come near to it


@dataclass(frozen=True)
class Scatter:
    """How much a paired difference varies, in the unit of the metric."""

    sd: float  # from seed to seed
    images: float = 0.0  # standard error from the choice of the test images, which no seed makes smaller

    def powers(
        self, n: int, margin: float, alpha: float, difference: float = 0.0, points: int = POINTS
    ) -> tuple[float, float]:
        """Chance that `n` seeds say equivalent (TOST), and that they say different, with their own variances.

        Given the sample SD s, a test has the half width sqrt((t s)^2 / n + (z images)^2): averaged over the
        distribution of s. Moderated variances do better, by how much depends on how alike the cells scatter.
        """
        from scipy import special  # a fifth of the import of scipy.stats, and faster

        error = math.hypot(self.sd / math.sqrt(n), self.images)
        sds = self.sd * _sample_sds(n, points) / math.sqrt(n)
        one, two = (
            np.hypot(special.stdtrit(n - 1, tail) * sds, special.ndtri(tail) * self.images)
            for tail in (alpha, alpha / 2)
        )
        inside = margin - one
        equal = special.ndtr((inside - difference) / error) - special.ndtr((-inside - difference) / error)
        different = special.ndtr(-(two - difference) / error) + special.ndtr((-two - difference) / error)
        return float(np.where(inside > 0, equal, 0.0).mean()), float(different.mean())

    def seeds_needed(
        self, margin: float, alpha: float, difference: float = 0.0, power: float = 0.8, limit: int = MOST_SEEDS
    ) -> float | None:
        """The fewest seeds, from three, that give a verdict, one or the other, with this power.

        Infinity: more than `limit`. None: no number of them, for the choice of the images alone is too uncertain.
        """

        def enough(n: int, points: int = POINTS) -> bool:
            return max(self.powers(n, margin, alpha, difference, points)) >= power

        high = 3
        while high < limit and not enough(high, ROUGH):
            high = min(2 * high, limit)
        low = max(high // 2, 2)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle, ROUGH) else (middle, high)
        while high > 3 and enough(high - 1):
            high -= 1
        while not enough(high):
            if high >= limit:
                return None if self.images and not enough(10**9) else math.inf
            high += 1
        return high


@cache
def _sample_sds(n: int, points: int) -> np.ndarray:
    """Quantiles of the sample SD of `n` values with SD 1, equally likely."""
    from scipy import special

    chi2 = 2 * special.gammaincinv((n - 1) / 2, (np.arange(points) + 0.5) / points)  # its quantiles, n - 1 degrees
    sds: np.ndarray = np.sqrt(chi2 / (n - 1))
    return sds


def cka(k: np.ndarray, m: np.ndarray) -> float:
    """Linear centred kernel alignment by two gram matrices [n, n] of n images, whose diagonals are zero.

    With the unbiased estimator of arXiv:2010.15327, Eq. 3. NaN where one of them does not tell the images apart.

    Raises:
        ValueError: fewer than 4 images, which that estimator needs.
    """
    n = len(k)
    if n < 4:
        raise ValueError(f"{n} images: the unbiased estimator needs 4")

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        sums = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a.sum(0) @ b.sum(0)) / (n - 2)
        return float(((a * b).sum() + sums) / (n * (n - 3)))

    own = hsic(k, k), hsic(m, m)
    # Of features that are the same for all images nothing is left but rounding.
    if any(value <= 1e-12 * float((a * a).mean()) for value, a in zip(own, (k, m), strict=True)):
        return math.nan
    return hsic(k, m) / math.sqrt(own[0] * own[1])

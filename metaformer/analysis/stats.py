"""The statistics of a verdict. Plain numbers and arrays in and out; no torch.

scipy and statsmodels are imported where they are used: `--help` needs neither.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

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
    from scipy import stats

    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Estimate:
    """t interval of the mean of `a - b` over the seeds that both have: {seed: value} each."""
    return mean_interval([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], confidence)


def difference_p(differences: Sequence[float]) -> float:
    """Two-sided paired t test of no difference."""
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """Two one-sided paired t tests (TOST, Schuirmann 1987): small where the mean lies within (-margin, margin)."""
    from scipy import stats

    below = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    above = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    return float(max(below, above))


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted over their family by Holm's method (1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(p, method="holm")[1]] if len(p) else []


def equivalence_power(n: int, margin: float, alpha: float, difference: float = 0.0) -> float:
    """Chance that TOST over `n` paired seeds rejects; margin and true difference in SD of the paired difference.

    Given the sample SD s, TOST rejects where |mean| < margin - t s / sqrt(n); averaged over the distribution of s.
    """
    from scipy import stats

    half = margin * math.sqrt(n) - stats.t.ppf(1 - alpha, n - 1) * _sample_sds(n)
    shift = difference * math.sqrt(n)
    inside = stats.norm.cdf(half - shift) - stats.norm.cdf(-half - shift)
    return float(np.where(half > 0, inside, 0.0).mean())


def difference_power(n: int, difference: float, alpha: float) -> float:
    """Chance that the paired t test over `n` seeds rejects; the true difference in SD of the paired difference.

    scipy's noncentral t would do, were it not NaN for large differences.
    """
    from scipy import stats

    critical = stats.t.ppf(1 - alpha / 2, n - 1) * _sample_sds(n)
    shift = difference * math.sqrt(n)
    return float((stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift)).mean())


@cache
def _sample_sds(n: int) -> np.ndarray:
    """Quantiles of the sample SD of `n` values with SD 1, equally likely."""
    from scipy import stats

    sds: np.ndarray = np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, n - 1) / (n - 1))
    return sds


def seeds_needed(
    margin: float, alpha: float, difference: float = 0.0, power: float = 0.8, limit: int = 1000
) -> int | None:
    """The fewest paired seeds that give a verdict, one or the other, with this power; None beyond `limit`."""

    def enough(n: int) -> bool:
        return max(equivalence_power(n, margin, alpha, difference), difference_power(n, difference, alpha)) >= power

    high = 2
    while not enough(high):
        if high >= limit:
            return None
        high = min(2 * high, limit)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Component:
    """An effect's part of the variance: a share of the whole with an interval, and its p value where it has one."""

    name: str
    share: float
    low: float  # NaN below three seeds
    high: float
    p: float | None


def variance_shares(values: np.ndarray, factors: Sequence[str], draws: int = 1000) -> list[Component]:
    """How much of the variance comes from which factor.

    Args:
        values: `[levels of factor 1, ..., levels of the last factor, seeds]`, complete, two seeds or more. A seed is
            a block in every setting of the other factors: it has the same batches, and the same initial weights
            wherever the modules are the same. The last factor and its interactions are tested against `rest`, what
            differs between its levels from seed to seed; effects of the settings against `seed x setting`. All
            factors are fixed: the shares are of these levels.

    The parts are estimated without bias from the mean squares (omega squared), negative ones as zero. The intervals
    are 95% percentiles over whole seeds, resampled together in all cells: they speak of seeds, not of other levels.
    """
    from scipy import stats

    names, parts, tests = _components(values, factors)
    shares = _shares(parts)
    seeds = values.shape[-1]
    low = high = np.full(len(names), np.nan)
    if seeds > 2:
        picked = [p for p in np.random.default_rng(0).integers(seeds, size=(draws, seeds)) if len(set(p)) > 1]
        resampled = [_shares(_components(values[..., pick], factors, resampled=True)[1]) for pick in picked]
        low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    p = [None if test is None else float(stats.f.sf(*test)) for test in tests]
    return [Component(*row) for row in zip(names, shares.tolist(), low.tolist(), high.tolist(), p, strict=True)]


Test = tuple[float, int, int]  # F, and its degrees of freedom


def _shares(parts: np.ndarray) -> np.ndarray:
    positive = parts.clip(min=0)
    return positive / positive.sum() if positive.sum() else positive


def _components(
    values: np.ndarray, factors: Sequence[str], resampled: bool = False
) -> tuple[list[str], np.ndarray, list[Test | None]]:
    """Names, variances and tests of all effects, the seeds and what is left; `values` as above.

    Resampled seeds repeat, so that their mean squares are too small by (n - 1) / n; and the means of cells carry the
    noise of the sample and of the resampling, so that twice as much of it is taken off.
    """
    axes = tuple(range(len(factors)))
    treatment, seeds = axes[-1], values.shape[-1]
    levels, settings = values.shape[-2], int(np.prod(values.shape[:-2]))
    means = values.mean(-1)
    blocks = values.mean(-2).reshape(settings, seeds)  # a seed within a setting
    rest = values - values.mean(-2, keepdims=True) - (means - means.mean(-1, keepdims=True))[..., None]
    within = blocks - blocks.mean(1, keepdims=True)
    shared = within.mean(0)  # a seed over all settings
    df_seed, df_block, df_rest = seeds - 1, (settings - 1) * (seeds - 1), settings * (seeds - 1) * (levels - 1)
    ms_rest = float((rest**2).sum()) / df_rest
    ms_seed = settings * levels * float((shared**2).sum()) / df_seed
    ms_block = levels * float(((within - shared) ** 2).sum()) / df_block if df_block else ms_rest
    if resampled:
        ms_rest, ms_seed, ms_block = (ms * seeds / (seeds - 1) for ms in (ms_rest, ms_seed, ms_block))
    names, parts, tests = [], [], []
    for size in range(1, len(axes) + 1):
        for effect in combinations(axes, size):
            df = int(np.prod([means.shape[axis] - 1 for axis in effect]))
            ms, df_ms = (ms_rest, df_rest) if treatment in effect else (ms_block, df_block)
            square = float((_effect(means, effect) ** 2).mean())  # over cells
            names.append(" x ".join(factors[axis] for axis in effect))
            parts.append(square - (1 + resampled) * df * ms / values.size)
            tests.append((square * values.size / df / ms, df, df_ms) if ms > 0 else None)
    names.append("seed")
    parts.append((ms_seed - ms_block) / (settings * levels))
    tests.append((ms_seed / ms_block, df_seed, df_block or df_rest) if ms_block > 0 else None)
    if settings > 1:
        names.append("seed x setting")
        parts.append((ms_block - ms_rest) / levels)
        tests.append((ms_block / ms_rest, df_block, df_rest) if ms_rest > 0 else None)
    return [*names, "rest"], np.array([*parts, ms_rest]), [*tests, None]


def _effect(means: np.ndarray, effect: tuple[int, ...]) -> np.ndarray:
    """The deviation of cell means that belongs to `effect` and to no smaller one (inclusion and exclusion)."""
    total = np.zeros_like(means)
    for size in range(len(effect) + 1):
        for kept in combinations(effect, size):
            others = tuple(axis for axis in range(means.ndim) if axis not in kept)
            total = total + (-1) ** (len(effect) - size) * means.mean(others, keepdims=True)
    return total


def cka(k: np.ndarray, m: np.ndarray) -> float:
    """Linear centred kernel alignment by two gram matrices [n, n] of n images, whose diagonals are zero.

    With the unbiased estimator of arXiv:2010.15327, Eq. 3.

    Raises:
        ValueError: fewer than 4 images, which that estimator needs.
    """
    n = len(k)
    if n < 4:
        raise ValueError(f"{n} images: the unbiased estimator needs 4")

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        sums = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a.sum(0) @ b.sum(0)) / (n - 2)
        return float(((a * b).sum() + sums) / (n * (n - 3)))

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))

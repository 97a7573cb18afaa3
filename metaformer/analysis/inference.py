"""A difference over seeds and test images, both of them drawn: its intervals and tests. No torch.

The images of a test set are a sample as the seeds are. For the difference d of two cells at seed s and image i,

    d[s, i] = mean + seed[s] + image[i] + rest[s, i],

whose parts are those of an analysis of variance. The uncertainty of the mean is that of the seeds, which a t quantile
multiplies, and that of the images, which no seed makes smaller, with a normal quantile; their squares add up. This is
exact where either part is nothing. Satterthwaite's degrees of freedom for the sum are too many: in simulations
(experiments/coverage) families of five comparisons then have a false one in 9-11% instead of 5% at three seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from metaformer.analysis.stats import Estimate


@dataclass(frozen=True)
class Crossed:
    """A mean over seeds, or over seeds and images, with the variance that each of the two gives it."""

    mean: float
    seeds: int
    by_seed: float  # variance of the mean from the seeds and what is left
    df: float  # of `by_seed`
    images: int = 0  # 0: of these images only
    by_image: float = 0.0  # variance of the mean from the choice of the images

    def half(self, confidence: float = 0.95) -> float:
        """Half of the two-sided interval; NaN below two seeds."""
        from scipy import special  # its quantiles are those of scipy.stats, ten times as fast

        if self.seeds < 2:
            return math.nan
        tail = (1 - confidence) / 2
        t, z = special.stdtrit(self.df, tail), special.ndtri(tail)
        return math.sqrt(float(t) ** 2 * self.by_seed + float(z) ** 2 * self.by_image)

    def estimate(self, confidence: float = 0.95) -> Estimate:
        half = self.half(confidence)
        return Estimate(self.mean, self.mean - half, self.mean + half, self.seeds)

    def tail(self, distance: float) -> float:
        """The chance of a mean that is so much too large, or larger: half of the p value of a two-sided test."""
        from scipy.optimize import brentq

        if distance <= 0:
            return 1 - self.tail(-distance) if distance < 0 else 0.5

        def excess(log_p: float) -> float:
            return self.half(1 - 2 * math.exp(log_p)) - distance

        lowest = math.log(1e-15)
        return 0.0 if excess(lowest) < 0 else math.exp(brentq(excess, lowest, math.log(0.5), xtol=1e-10))

    def difference_p(self) -> float:
        """Two-sided test of no difference."""
        return 2 * self.tail(abs(self.mean))

    def equivalence_p(self, margin: float) -> float:
        """Two one-sided tests (TOST, Schuirmann 1987): small where the mean lies within (-margin, margin)."""
        return self.tail(margin - abs(self.mean))

    def beyond_p(self, margin: float) -> float:
        """Test that the mean is no further from zero than the margin, on either side: small where it is."""
        return min(1.0, self.tail(abs(self.mean) - margin) + self.tail(abs(self.mean) + margin))


def over_seeds(differences: Sequence[float]) -> Crossed:
    """Of the difference at each seed alone: the paired t test."""
    n = len(differences)
    mean = float(np.mean(differences)) if n else math.nan
    return Crossed(mean, n, float(np.var(differences, ddof=1)) / n if n > 1 else math.nan, n - 1)


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of numbers and its 95% t interval."""
    return over_seeds(values).estimate()


def over_seeds_and_images(differences: np.ndarray) -> Crossed:
    """Of the differences [seeds, images]; a part of the variance that comes out negative is nothing."""
    seeds, images = differences.shape
    by_seed, by_image = differences.mean(1), differences.mean(0)
    found = over_seeds(by_seed.tolist())
    if seeds < 2 or images < 2:
        return found
    rest = differences - by_seed[:, None] - by_image + found.mean
    ms_rest = float((rest**2).sum()) / ((seeds - 1) * (images - 1))
    ms_image = seeds * float(np.var(by_image, ddof=1))
    return replace(found, images=images, by_image=max(ms_image - ms_rest, 0.0) / (seeds * images))


def moderated(family: Sequence[Crossed], most: float | None = None) -> list[Crossed]:
    """The same with variances that know of each other (limma's empirical Bayes, Smyth 2004), but none made smaller.

    Each variance is drawn towards the common one, by as much as they are alike, and has the degrees of freedom of both.
    A variance that is larger than what it is drawn to stays, with its own degrees of freedom: cells differ in their
    scatter, and the drawn one would be too small for those that scatter most.

    Args:
        most: how many degrees of freedom there are in all. Pairs that share cells have those of the cells; None: of
            comparisons with one reference, the sum of theirs.
    """
    usable = [c for c in family if c.seeds > 1 and c.by_seed > 0]
    if len(usable) < 2:
        return list(family)
    own, df = np.array([c.seeds * c.by_seed for c in usable]), np.array([float(c.seeds - 1) for c in usable])
    prior, prior_df = _prior(own, df)
    total = df + prior_df
    drawn = np.full_like(own, prior) if math.isinf(prior_df) else (prior_df * prior + df * own) / total
    most = float(df.sum()) if most is None else most
    better = {
        id(c): replace(c, by_seed=float(v) / c.seeds, df=min(float(t), most))
        for c, v, t in zip(usable, drawn, total, strict=True)
        if v / c.seeds > c.by_seed
    }
    return [better.get(id(c), c) for c in family]


def _prior(variances: np.ndarray, df: np.ndarray) -> tuple[float, float]:
    """The scaled inverse chi-squared distribution that variances come from: its centre and degrees of freedom."""
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    logs = np.log(variances) - digamma(df / 2) + np.log(df / 2)
    spread = float(np.var(logs, ddof=1) - polygamma(1, df / 2).mean())
    if spread <= 0:  # they are as alike as chance makes them
        return float(np.exp(logs.mean())), math.inf
    half = float(brentq(lambda x: polygamma(1, math.exp(x)) - spread, -20, 30))
    prior_df = 2 * math.exp(half)
    return float(np.exp(logs.mean() + digamma(prior_df / 2) - np.log(prior_df / 2))), prior_df

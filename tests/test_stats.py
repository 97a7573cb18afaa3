import math

import numpy as np
import pytest
from scipy import stats

from metaformer.stats import mean_interval, paired_difference


def test_interval_is_that_of_scipy():
    values = [70.1, 72.4, 71.3, 69.9]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    estimate = mean_interval(values)
    assert (estimate.mean, estimate.n) == (pytest.approx(np.mean(values)), 4)
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval_and_none_has_no_mean():
    assert math.isnan(mean_interval([3.0]).low)
    assert mean_interval([3.0]).mean == 3.0
    assert math.isnan(mean_interval([]).mean)


def test_differences_are_paired_by_seed():
    a, b = {0: 3.0, 1: 5.0, 2: 9.0}, {2: 7.0, 1: 4.0, 7: 0.0}
    assert paired_difference(a, b) == mean_interval([1.0, 2.0])


def test_coverage():
    """A 95% interval holds the truth in 95% of 4,000 simulated studies, at n = 3 and 10."""
    random = np.random.default_rng(0)
    for n in (3, 10):
        estimates = [mean_interval(list(random.normal(1.0, 2.0, n))) for _ in range(4000)]
        assert np.mean([e.low <= 1.0 <= e.high for e in estimates]) == pytest.approx(0.95, abs=0.01)

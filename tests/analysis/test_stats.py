import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from metaformer.analysis.inference import Crossed, mean_interval, over_seeds
from metaformer.analysis.stats import Scatter, holm, holm_steps


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


@pytest.mark.parametrize("differences", [[0.3, -0.2, 0.5], [2.0, 1.2, 3.3, 0.4], [-0.1, 0.2, 0.05, -0.3, 0.1]])
def test_p_values_are_those_of_statsmodels(differences):
    d = np.array(differences)
    assert over_seeds(differences).equivalence_p(1.5) == pytest.approx(ttost_paired(d, np.zeros_like(d), -1.5, 1.5)[0])
    assert over_seeds(differences).difference_p() == pytest.approx(stats.ttest_rel(d, np.zeros_like(d)).pvalue)


def test_equivalence_is_the_90_percent_interval_within_the_margin():
    random = np.random.default_rng(0)
    for d in random.normal(0.5, 1.0, (200, 5)):
        e = over_seeds(d.tolist()).estimate(0.9)
        assert (over_seeds(d.tolist()).equivalence_p(1.5) <= 0.05) == (e.low >= -1.5 and e.high <= 1.5)


def test_the_steps_of_holm_decide_as_its_adjusted_values_do():
    random = np.random.default_rng(0)
    assert holm_steps([0.01, 0.04, 0.03], 0.05) == pytest.approx([0.05 / 3, 0.025, 0.025])
    assert holm_steps([0.001, 0.04, 0.003], 0.05) == pytest.approx([0.05 / 3, 0.05, 0.025])
    for _ in range(300):
        p = random.uniform(size=random.integers(1, 7)) ** 4
        levels, adjusted = holm_steps(list(p), 0.05), holm(list(p))
        assert [value <= level for value, level in zip(p, levels, strict=True)] == [a <= 0.05 for a in adjusted]


def test_equal_p_values_are_decided_at_one_level():
    p = [0.01, 0.2, 0.01, 0.01, 0.2]
    assert holm_steps(p, 0.05) == pytest.approx([0.01, 0.025, 0.01, 0.01, 0.025])
    assert holm_steps([0.04, 0.04], 0.05) == [0.025, 0.025]
    assert holm([0.04, 0.04]) == [0.08, 0.08]
    assert holm_steps([0.02, 0.02], 0.05) == [0.025, 0.025]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([]) == []
    p = np.random.default_rng(0).random(20) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_false_equivalence_at_the_margin():
    """Where the true difference is the margin, TOST says equivalent in no more than alpha of the studies."""
    random = np.random.default_rng(1)
    for n in (3, 5, 10):
        said = [over_seeds(d).equivalence_p(1.0) <= 0.05 for d in random.normal(1.0, 0.3, (2000, n)).tolist()]
        assert np.mean(said) <= 0.06
        assert np.mean(said) > 0.03  # it is a test, not a refusal


@pytest.mark.parametrize(("comparisons", "expected"), [(1, [56, 95, 100]), (5, [14, 57, 97])])
def test_power_of_equivalence(comparisons, expected):
    """True difference 0, margin of 2 SD, the first step of Holm, n = 3, 5 and 8."""
    found = [Scatter(1.0).powers(n, 2.0, 0.05 / comparisons)[0] for n in (3, 5, 8)]
    assert [round(100 * power) for power in found] == expected


def test_power_of_difference_is_that_of_statsmodels():
    for n, effect, alpha in ((2, 1.0, 0.05), (5, 1.2, 0.05), (10, -0.5, 0.01)):
        ours = Scatter(1.0).powers(n, 1.0, alpha, effect)[1]
        assert ours == pytest.approx(TTestPower().power(effect, n, alpha), abs=1e-4)
    assert Scatter(1.0).powers(20, 1.0, 0.05, 4.0)[1] == pytest.approx(1)  # where the noncentral t of scipy is NaN


@pytest.mark.parametrize(("n", "images"), [(3, 400), (6, 400), (6, 4000)])
def test_power_is_what_is_simulated(n, images):
    """Within 2 points, with a choice of images that no seed makes smaller."""
    random, sd, spread = np.random.default_rng(n), 0.6, 10.0
    equal, different = [], []
    for true, said in ((0.2, equal), (1.6, different)):
        for _ in range(2000):
            seed, image = random.normal(0, sd, (n, 1)), random.normal(0, spread, images)
            found = Crossed(true + float(seed.mean() + image.mean()), n, float(seed.var(ddof=1)) / n, n - 1)
            found = replace(found, images=images, by_image=spread**2 / images)
            said.append(found.equivalence_p(2.0) <= 0.05 if true < 1 else found.difference_p() <= 0.05)
    scatter = Scatter(sd, spread / images**0.5)
    assert scatter.powers(n, 2.0, 0.05, 0.2)[0] == pytest.approx(np.mean(equal), abs=0.022)
    assert scatter.powers(n, 2.0, 0.05, 1.6)[1] == pytest.approx(np.mean(different), abs=0.022)


def test_seeds_needed():
    n = Scatter(1.0).seeds_needed(2.0, 0.05)
    assert Scatter(1.0).powers(n, 2.0, 0.05)[0] >= 0.8 > Scatter(1.0).powers(n - 1, 2.0, 0.05)[0]
    assert Scatter(1.0).seeds_needed(1.0, 0.05, 3.0) < Scatter(1.0).seeds_needed(1.0, 0.05, 0.5)
    assert Scatter(1.0).seeds_needed(0.01, 0.05, 0.001) == math.inf  # more than are looked for
    assert Scatter(0.1, images=0.7).seeds_needed(1.0, 0.05) is None  # no seed makes that smaller
    assert Scatter(0.1, images=0.3).seeds_needed(1.0, 0.05) == 3

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from metaformer.analysis.stats import (
    difference_p,
    difference_power,
    equivalence_p,
    equivalence_power,
    holm,
    mean_interval,
    paired_difference,
    seeds_needed,
    variance_shares,
)


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


@pytest.mark.parametrize("n", [3, 5, 10])
def test_coverage_of_the_interval_that_decides(n):
    """The paired 95% interval holds the true difference in 93-97% of 2,000 simulated studies."""
    random = np.random.default_rng(n)
    seeds = random.normal(0, 3, (2000, n))  # shared by both mixers, so that pairing removes it
    a, b = (seeds + mean + random.normal(0, 1, (2000, n)) for mean in (80.5, 80.0))
    estimates = [
        paired_difference(dict(enumerate(x)), dict(enumerate(y))) for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert 0.93 <= np.mean([e.low <= 0.5 <= e.high for e in estimates]) <= 0.97
    unpaired = [mean_interval(x.tolist()) for x in a]
    assert np.mean([e.high - e.low for e in estimates]) < 0.6 * np.mean([e.high - e.low for e in unpaired])


@pytest.mark.parametrize("differences", [[0.3, -0.2, 0.5], [2.0, 1.2, 3.3, 0.4], [-0.1, 0.2, 0.05, -0.3, 0.1]])
def test_p_values_are_those_of_statsmodels(differences):
    d = np.array(differences)
    assert equivalence_p(differences, 1.5) == pytest.approx(ttost_paired(d, np.zeros_like(d), -1.5, 1.5)[0])
    assert difference_p(differences) == pytest.approx(stats.ttest_rel(d, np.zeros_like(d)).pvalue)


def test_equivalence_is_the_90_percent_interval_within_the_margin():
    random = np.random.default_rng(0)
    for d in random.normal(0.5, 1.0, (200, 5)):
        e = mean_interval(d.tolist(), confidence=0.9)
        assert (equivalence_p(d.tolist(), 1.5) <= 0.05) == (e.low >= -1.5 and e.high <= 1.5)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([]) == []


def test_false_equivalence_at_the_margin():
    """Where the true difference is the margin, TOST says equivalent in no more than alpha of the studies."""
    random = np.random.default_rng(1)
    for n in (3, 5, 10):
        said = [equivalence_p(d, 1.0) <= 0.05 for d in random.normal(1.0, 0.3, (2000, n)).tolist()]
        assert np.mean(said) <= 0.06
        assert np.mean(said) > 0.03  # it is a test, not a refusal


@pytest.mark.parametrize(("comparisons", "expected"), [(1, [56, 95, 100]), (5, [14, 57, 97])])
def test_power_of_equivalence(comparisons, expected):
    """True difference 0, margin of 2 SD, the first step of Holm, n = 3, 5 and 8."""
    assert [round(100 * equivalence_power(n, 2.0, 0.05 / comparisons)) for n in (3, 5, 8)] == expected


def test_power_of_equivalence_is_what_is_simulated():
    random = np.random.default_rng(2)
    said = [equivalence_p(d, 1.5) <= 0.05 for d in random.normal(0.4, 1.0, (2000, 6)).tolist()]
    assert equivalence_power(6, 1.5, 0.05, difference=0.4) == pytest.approx(np.mean(said), abs=0.03)


def test_power_of_difference_is_that_of_statsmodels():
    for n, effect, alpha in ((2, 1.0, 0.05), (5, 1.2, 0.05), (10, -0.5, 0.01)):
        assert difference_power(n, effect, alpha) == pytest.approx(TTestPower().power(effect, n, alpha), abs=1e-4)
    assert difference_power(20, 4.0, 0.05) == pytest.approx(1)  # where the noncentral t of scipy is NaN


def test_seeds_needed():
    n = seeds_needed(2.0, 0.05)
    assert equivalence_power(n, 2.0, 0.05) >= 0.8 > equivalence_power(n - 1, 2.0, 0.05)
    assert seeds_needed(1.0, 0.05, difference=3.0) < seeds_needed(1.0, 0.05, difference=0.5)
    assert seeds_needed(0.01, 0.05, difference=0.001) is None


# ------------------------------------------------------------------ variance


def simulated(
    random, n, architecture=0.0, mixer=0.0, interaction=0.0, seed=0.0, block=1.0, rest=1.0, shape=(3, 6)
) -> np.ndarray:
    """Effects with the given variances over the levels; seeds shared by all cells, and again within an architecture."""
    a, m = shape

    def effect(*size):
        x = random.normal(size=size)
        for axis in range(len(size)):
            x = x - x.mean(axis, keepdims=True)
        return x / np.sqrt((x**2).mean())

    cells = np.sqrt(mixer) * effect(m)[None]
    if a > 1:
        cells = cells + np.sqrt(architecture) * effect(a)[:, None] + np.sqrt(interaction) * effect(a, m)
    scatter = [(seed, (1, 1, n)), (block, (a, 1, n)), (rest, (a, m, n))]
    return cells[..., None] + sum(np.sqrt(part) * random.normal(size=size) for part, size in scatter)


def test_tests_are_those_of_statsmodels():
    random = np.random.default_rng(0)
    values = simulated(random, 4, architecture=2.0, mixer=1.0, seed=1.0)
    frame = pd.DataFrame(
        [(i, j, s, v) for (i, j, s), v in np.ndenumerate(values)], columns=["architecture", "mixer", "seed", "y"]
    )
    table = anova_lm(ols("y ~ C(architecture) * C(mixer) + C(seed) + C(architecture):C(seed)", frame).fit(), typ=2)
    ours = {c.name: c for c in variance_shares(values, ["architecture", "mixer"], draws=10)}
    assert ours["mixer"].p == pytest.approx(table.loc["C(mixer)", "PR(>F)"])
    assert ours["architecture x mixer"].p == pytest.approx(table.loc["C(architecture):C(mixer)", "PR(>F)"])
    assert ours["seed x setting"].p == pytest.approx(table.loc["C(architecture):C(seed)", "PR(>F)"])
    # Architectures and seeds: the two-way table of their means, where what is left is seed x setting.
    means = frame.groupby(["architecture", "seed"], as_index=False).y.mean()
    table = anova_lm(ols("y ~ C(architecture) + C(seed)", means).fit(), typ=2)
    assert ours["architecture"].p == pytest.approx(table.loc["C(architecture)", "PR(>F)"])
    assert ours["seed"].p == pytest.approx(table.loc["C(seed)", "PR(>F)"])


def test_shares_are_recovered():
    random = np.random.default_rng(1)
    truth = {"architecture": 4, "mixer": 8, "architecture x mixer": 2, "seed": 2, "seed x setting": 2, "rest": 2}
    found = [
        variance_shares(simulated(random, 8, *truth.values()), ["architecture", "mixer"], draws=2) for _ in range(100)
    ]
    for i, (name, part) in enumerate(truth.items()):
        assert {components[i].name for components in found} == {name}
        assert np.mean([components[i].share for components in found]) == pytest.approx(part / 20, abs=0.02)


@pytest.mark.parametrize(("shape", "n"), [((3, 6), 3), ((3, 6), 5), ((1, 6), 3), ((1, 6), 5), ((3, 6), 10)])
def test_the_printed_coverage_of_the_shares(shape, n):
    """The intervals over resampled seeds are rough, and the report says how rough, by the number of seeds."""
    low, high = {3: (0.55, 0.85), 5: (0.75, 0.95), 10: (0.85, 0.95)}[n]
    random = np.random.default_rng(5)
    parts = {"architecture": 4, "mixer": 9, "interaction": 2, "block": 3, "rest": 2}
    if shape[0] == 1:
        parts |= {"architecture": 0, "interaction": 0}
    names = ["architecture", "mixer"][-1 if shape[0] == 1 else 0 :]
    held = []
    for _ in range(150):
        values = simulated(random, n, **parts, shape=shape)
        found = {c.name: c for c in variance_shares(values[0] if shape[0] == 1 else values, names, draws=150)}
        held.append(found["mixer"].low <= 9 / sum(parts.values()) <= found["mixer"].high)
    assert low - 0.06 <= np.mean(held) <= high + 0.06


@pytest.mark.parametrize("crossed", [0.0, 4.0])
def test_under_the_null_the_blocked_test_holds_alpha_and_a_naive_one_does_not(crossed):
    """Whether seeds act on all architectures alike or on each in its own way."""
    random = np.random.default_rng(2)
    blocked, naive = [], []
    for _ in range(500):
        values = simulated(random, 5, seed=crossed, block=4.0 - crossed)
        components = {c.name: c for c in variance_shares(values, ["architecture", "mixer"], draws=1)}
        blocked.append([components["architecture"].p <= 0.05, components["mixer"].p <= 0.05])
        naive.append(stats.f_oneway(*values.reshape(3, -1)).pvalue <= 0.05)
    assert np.mean(blocked, axis=0) == pytest.approx([0.05, 0.05], abs=0.025)
    assert np.mean(naive) > 0.3 or (crossed and np.mean(naive) < 0.03)  # liberal, or blind


def test_two_seeds_give_shares_and_no_interval():
    found = variance_shares(np.random.default_rng(0).normal(size=(2, 3, 2)), ["a", "mixer"])
    assert sum(c.share for c in found) == pytest.approx(1)
    assert all(math.isnan(c.low) and math.isnan(c.high) for c in found)


def test_shares_of_one_factor_of_three_factors_and_of_nothing():
    random = np.random.default_rng(3)
    one = variance_shares(random.normal(size=(4, 5)), ["mixer"], draws=5)
    assert [c.name for c in one] == ["mixer", "seed", "rest"]
    three = variance_shares(random.normal(size=(2, 3, 4, 5)), ["data", "architecture", "mixer"], draws=5)
    assert [c.name for c in three][:7] == [
        "data", "architecture", "mixer", "data x architecture", "data x mixer", "architecture x mixer",
        "data x architecture x mixer",
    ]  # fmt: skip
    assert sum(c.share for c in three) == pytest.approx(1)
    assert [c.share for c in variance_shares(np.ones((2, 2, 3)), ["a", "mixer"], draws=5)] == [0] * 6

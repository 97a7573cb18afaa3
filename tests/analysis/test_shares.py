"""Shares of the variance: unbiased, tested as repeated measures, with intervals that hold."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau
from statsmodels.stats.anova import AnovaRM

from metaformer.analysis.shares import rank_stability, reliability, variance_shares

NAMES = ["architecture", "mixer"]


def effect(random, *size) -> np.ndarray:
    """Deviations that sum to nothing along each axis, with variance 1."""
    x = random.normal(size=size)
    for axis in range(len(size)):
        x = x - x.mean(axis, keepdims=True)
    return x / np.sqrt((x**2).mean())


def simulated(random, n, architecture=0.0, mixer=0.0, both=0.0, seed=1.0, shape=(3, 6), uneven=1.0) -> np.ndarray:
    """Effects with the given variances; a fifth of what the seeds do they do to all cells."""
    a, m = shape
    cells = np.sqrt(architecture) * effect(random, a)[:, None] + np.sqrt(mixer) * effect(random, m)
    cells = cells + np.sqrt(both) * effect(random, a, m)
    scatter = uneven ** random.normal(size=shape)
    scatter *= np.sqrt(seed / (scatter**2).mean())
    shared, own = random.normal(size=n), random.normal(size=(a, m, n))
    return cells[..., None] + scatter[..., None] * (np.sqrt(0.2) * shared + np.sqrt(0.8) * own)


def test_shares_of_random_levels_by_hand():
    """Each effect's mean square less that of its interaction with the seed and what larger effects put into it."""
    values = simulated(np.random.default_rng(5), 4, architecture=4.0, mixer=9.0, both=2.0)
    a, m, n = values.shape
    cells = values.mean(2)
    rows, columns, whole = cells.mean(1), cells.mean(0), cells.mean()

    def rest(x: np.ndarray) -> np.ndarray:
        return x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()

    by_seed = [values.mean(1), values.mean(0)]
    noise = [float((rest(x) ** 2).sum()) * k / (len(x) - 1) / (n - 1) for x, k in zip(by_seed, (m, a), strict=True)]
    inner = values - values.mean((0, 1)) - cells[..., None] + whole
    inner = inner - (by_seed[0] - rows[:, None] - values.mean((0, 1)) + whole)[:, None]
    inner = inner - (by_seed[1] - columns[:, None] - values.mean((0, 1)) + whole)[None]
    both = n * (rest(cells) ** 2).sum() / (a - 1) / (m - 1) - (inner**2).sum() / (a - 1) / (m - 1) / (n - 1)
    own = [n * m * rows.var(ddof=1) - noise[0] - both, n * a * columns.var(ddof=1) - noise[1] - both]
    parts = np.array([own[0] / n / m, own[1] / n / a, both / n, values.var(2, ddof=1).mean()]).clip(min=0)
    found = variance_shares(values, NAMES)
    assert [c.random for c in found] == pytest.approx((parts / parts.sum()).tolist())
    assert all(c.levels[0] <= c.random <= c.levels[1] for c in found)


def test_tests_are_those_of_repeated_measures_in_statsmodels():
    values = simulated(np.random.default_rng(0), 4, architecture=2.0, mixer=1.0)
    rows = [(i, j, s, v) for (i, j, s), v in np.ndenumerate(values)]
    frame = pd.DataFrame(rows, columns=["architecture", "mixer", "seed", "y"])
    table = AnovaRM(frame, "y", "seed", within=NAMES).fit().anova_table
    ours = {c.name: c for c in variance_shares(values, NAMES)}
    for name, theirs in (("architecture",) * 2, ("mixer",) * 2, ("architecture x mixer", "architecture:mixer")):
        assert ours[name].p == pytest.approx(table.loc[theirs, "Pr > F"], abs=1e-9)
    assert ours["seed"].p is None


def test_shares_are_recovered_within_a_point():
    random, truth = np.random.default_rng(1), {"architecture": 4, "mixer": 9, "architecture x mixer": 3, "seed": 4}
    found = [variance_shares(simulated(random, 5, *truth.values()), NAMES) for _ in range(150)]
    for i, (name, part) in enumerate(truth.items()):
        assert {components[i].name for components in found} == {name}
        assert np.mean([components[i].share for components in found]) == pytest.approx(part / 20, abs=0.01)


@pytest.mark.parametrize("n", [3, 5, 8, 16])
def test_the_printed_coverage_of_the_shares(n):
    """The intervals over seeds hold the truth in 93-99%, also where the seeds of some cells scatter twice as much."""
    random, held = np.random.default_rng(5), []
    for i in range(160):
        values = simulated(random, n, 4, 9, 3, 4, uneven=1 + i % 2)
        found = variance_shares(values, NAMES)
        held.append([c.low <= part / 20 <= c.high for c, part in zip(found, (4, 9, 3, 4), strict=True)])
    print(f"n = {n}: {np.mean(held, axis=0).round(3)}")
    assert 0.92 <= np.mean(held) <= 0.99
    assert min(np.mean(held, axis=0)) >= 0.88


def test_under_the_null_the_test_holds_alpha():
    random = np.random.default_rng(2)
    said = []
    for _ in range(600):
        found = {c.name: c for c in variance_shares(simulated(random, 5), NAMES)}
        said.append([found[name].p <= 0.05 for name in NAMES])
    assert np.mean(said, axis=0) == pytest.approx([0.05, 0.05], abs=0.025)


def test_levels_drawn_at_random_give_a_far_wider_interval_that_holds():
    """Architectures and mixers drawn from a distribution: the share of its variance, not of these levels."""
    random, held, wider = np.random.default_rng(3), [], []
    for _ in range(120):
        a, m = 2 * random.normal(size=(4, 1, 1)), 3 * random.normal(size=(1, 5, 1))
        values = a + m + random.normal(size=(4, 5, 1)) + random.normal(size=(4, 5, 4))
        mixer = variance_shares(values, NAMES)[1]
        held.append(mixer.levels[0] <= 9 / 15 <= mixer.levels[1])
        wider.append(mixer.levels[1] - mixer.levels[0] > mixer.high - mixer.low)
    assert 0.9 <= np.mean(held) <= 0.99
    assert np.mean(wider) > 0.95


def test_leaving_a_level_out():
    random = np.random.default_rng(4)
    values = simulated(random, 3, seed=0.1, shape=(3, 4))
    values[:, 2] += 30  # one mixer is the whole difference between them
    mixer = variance_shares(values, NAMES, [list("abc"), ["w", "x", "y", "z"]])[1]
    (low, first), (high, _) = mixer.without
    assert first == "y"
    assert low < 0.7 < mixer.share <= high + 1e-9


def test_two_seeds_give_shares_and_no_interval():
    found = variance_shares(np.random.default_rng(0).normal(size=(2, 3, 2)), ["a", "mixer"])
    assert sum(c.share for c in found) == pytest.approx(1)
    assert all(math.isnan(c.low) and math.isnan(c.high) for c in found)


def test_shares_of_one_factor_of_three_factors_and_of_nothing():
    random = np.random.default_rng(3)
    assert [c.name for c in variance_shares(random.normal(size=(4, 5)), ["mixer"])] == ["mixer", "seed"]
    three = variance_shares(random.normal(size=(2, 3, 4, 5)), ["data", "architecture", "mixer"])
    assert [c.name for c in three] == [
        "data", "architecture", "mixer", "data x architecture", "data x mixer", "architecture x mixer",
        "data x architecture x mixer", "seed",
    ]  # fmt: skip
    assert sum(c.share for c in three) == pytest.approx(1)
    nothing = variance_shares(np.ones((2, 2, 3)), ["a", "mixer"])
    assert [(c.share, c.p) for c in nothing] == [(0, None)] * 4


def test_a_ranking_that_holds_and_one_that_does_not():
    random = np.random.default_rng(6)
    sure = np.arange(5.0)[None, :, None] + 0.1 * random.normal(size=(3, 5, 4))
    assert reliability(sure) > 0.99
    assert rank_stability(sure) == pytest.approx((1, 1))
    opposite = np.stack([np.arange(5.0), -np.arange(5.0)])[..., None] + 0.01 * random.normal(size=(2, 5, 4))
    assert reliability(opposite) == 0
    assert rank_stability(opposite)[1] == pytest.approx(-1)
    assert math.isnan(rank_stability(sure[0])[1])


def test_rankings_with_ties_agree_as_scipy_says():
    values = np.random.default_rng(7).integers(4, size=(1, 6, 3)).astype(float)
    pairs = combinations(values[0].T, 2)
    assert rank_stability(values)[0] == pytest.approx(np.mean([kendalltau(a, b).statistic for a, b in pairs]))
    values[0, :, 1] = 2.0  # a seed that ranks nothing
    assert math.isnan(rank_stability(values)[0])


def test_reliability_knows_of_levels_that_change_with_the_seed_in_all_settings():
    random = np.random.default_rng(0)
    found = []
    for _ in range(200):
        by_seed = random.normal(size=(1, 6, 5))  # of level and seed, the same in each of three settings
        found.append(reliability(by_seed + 0.1 * random.normal(size=(3, 6, 5))))
    assert np.mean(found) < 0.3
    strong = 3 * random.normal(size=(1, 6, 1)) + 0.1 * random.normal(size=(3, 6, 5))
    assert reliability(strong) > 0.95

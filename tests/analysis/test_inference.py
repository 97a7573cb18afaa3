"""Intervals and tests over seeds and images: exact where one of them is nothing, and right for other images."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from conftest import repository
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from metaformer.analysis.inference import Crossed, moderated, over_seeds, over_seeds_and_images
from metaformer.analysis.interim_looks import looks_at, spent
from metaformer.config.study_nodes import Analysis

IMAGES = 300
OBSERVED = (0.8, 7.8, 7.9)  # SD from seeds, images and what is left; a standard error of 0.45 points from the images


def drawn(random, n: int, mean: float = 0.0, sds: tuple[float, float, float] = OBSERVED) -> np.ndarray:
    seed, image, rest = sds
    return mean + random.normal(0, seed, (n, 1)) + random.normal(0, image, IMAGES) + random.normal(0, rest, (n, IMAGES))


def test_the_parts_are_those_of_a_mixed_model():
    """REML of statsmodels with crossed random effects, which equals mean squares where all parts are positive."""
    d = drawn(np.random.default_rng(0), 5, 1.0, (2.0, 3.0, 1.5))[:, :40]
    rows = [(s, i, v) for (s, i), v in np.ndenumerate(d)]
    frame = pd.DataFrame(rows, columns=["seed", "image", "d"]).assign(one=1)
    parts = {"seed": "0 + C(seed)", "image": "0 + C(image)"}
    fit = MixedLM.from_formula("d ~ 1", frame, groups="one", vc_formula=parts).fit()
    theirs = dict(zip(sorted(parts), fit.vcomp, strict=True))
    ours = over_seeds_and_images(d)
    assert ours.mean == pytest.approx(fit.fe_params["Intercept"], abs=1e-6)
    assert ours.by_image == pytest.approx(theirs["image"] / 40, rel=0.01)
    assert ours.by_seed == pytest.approx(theirs["seed"] / 5 + fit.scale / 200, rel=0.01)


def test_without_a_choice_of_images_it_is_the_t_test():
    values = [0.3, -0.2, 0.5, 0.9]
    found = over_seeds_and_images(np.repeat(np.array(values)[:, None], 50, axis=1))
    assert found.by_image == 0
    assert found.estimate() == over_seeds(values).estimate()
    assert found.difference_p() == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_without_seeds_it_is_the_normal_interval_over_images():
    image = np.random.default_rng(0).normal(size=IMAGES)
    found = over_seeds_and_images(np.tile(image, (4, 1)))
    assert found.half() == pytest.approx(1.95996 * image.std(ddof=1) / IMAGES**0.5, rel=1e-5)
    assert over_seeds(np.tile(image, (4, 1)).mean(1)).half() == 0  # of these images


def test_p_values_go_with_the_intervals():
    found = Crossed(1.3, 5, 0.2, 4, 1000, 0.15)
    p = found.difference_p()
    assert found.half(1 - p) == pytest.approx(1.3, abs=1e-6)
    equal = found.equivalence_p(3.0)
    assert found.half(1 - 2 * equal) == pytest.approx(1.7, abs=1e-6)
    assert found.equivalence_p(1.0) == pytest.approx(1 - found.tail(0.3))
    assert found.equivalence_p(1.0) > 0.5
    assert replace(found, mean=0.0).difference_p() == pytest.approx(1)
    assert Crossed(5.0, 3, 0.0, 2).difference_p() == 0


@pytest.mark.parametrize("n", [3, 5, 8])
def test_coverage_for_other_images(n):
    """93-97%; the interval of these images alone holds the truth of other images far less often."""
    random = np.random.default_rng(n)
    all_of = [drawn(random, n) for _ in range(3000)]
    found = [over_seeds_and_images(d) for d in all_of]
    held, fixed = (
        np.mean([abs(c.mean) <= c.half() for c in kind]) for kind in (found, [over_seeds(d.mean(1)) for d in all_of])
    )
    print(f"n = {n}: {held:.3f} of the crossed intervals, {fixed:.3f} of those of these images")
    assert 0.93 <= held <= 0.97 + 0.007  # two standard errors of 3,000 intervals
    assert fixed < {3: 0.93, 5: 0.88, 8: 0.84}[n]


@pytest.mark.parametrize(("n", "kind"), [(3, "moderated"), (5, "moderated"), (8, "own")])
def test_a_family_has_a_false_verdict_in_alpha_at_the_most(n, kind):
    """Five mixers against one reference, whose seeds scatter unlike, over other images; Holm's correction."""
    random, margin, false = np.random.default_rng(n), 2.0, {"different": [], "equivalent": []}
    for _ in range(1500):
        scale = np.exp(0.4 * random.normal(size=5))
        reference = drawn(random, n, 0.0, tuple(x / 2**0.5 for x in OBSERVED))
        cells = [drawn(random, n, 0.0, tuple(s * x / 2**0.5 for x in OBSERVED)) for s in scale]
        for verdict, shift in (("different", 0.0), ("equivalent", margin)):
            family = [over_seeds_and_images(cell - reference + shift) for cell in cells]
            family = moderated(family) if kind == "moderated" else family
            p = [c.difference_p() if verdict == "different" else c.equivalence_p(margin) for c in family]
            false[verdict].append(min(p) <= 0.05 / 5)  # Holm's first step
    print(f"n = {n}, {kind}: { ({verdict: np.mean(said) for verdict, said in false.items()}) }")
    assert all(np.mean(said) <= 0.05 + 0.0113 for said in false.values())  # two standard errors of 1,500 families


def test_moderation_draws_small_variances_up_and_leaves_large_ones():
    family = [Crossed(1.0, 3, v, 2) for v in (0.01, 0.1, 0.12, 0.08, 2.0)]
    found = moderated(family)
    assert found[0].by_seed > 0.01
    assert (found[-1].by_seed, found[-1].df) == (2.0, 2)  # the quantile is that of its own seeds, too
    assert all(f.by_seed >= c.by_seed and 2 <= f.df <= 10 for c, f in zip(family, found, strict=True))
    assert moderated(family[:1]) == family[:1]
    unsure = [*family, Crossed(1.0, 1, float("nan"), 0)]
    assert np.isnan(moderated(unsure)[-1].by_seed)


def test_moderation_has_more_power_at_three_seeds():
    random, own, better = np.random.default_rng(1), [], []
    for _ in range(300):
        family = [over_seeds_and_images(drawn(random, 3, 3.0)) for _ in range(5)]
        own += [c.difference_p() <= 0.01 for c in family]
        better += [c.difference_p() <= 0.01 for c in moderated(family)]
    assert np.mean(better) > 1.8 * np.mean(own)


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_alpha_is_spent_over_four_looks_and_no_more(spending):
    random, analysis = np.random.default_rng(2), Analysis(looks=[5, 8, 12, 16], spending=spending)
    looks = looks_at(range(20), analysis)
    assert [len(look.seeds) for look in looks] == [5, 8, 12, 16]
    assert sum(look.alpha for look in looks) == pytest.approx(0.05)
    said = [
        any(over_seeds(values[: len(look.seeds)]).difference_p() <= look.alpha for look in looks)
        for values in random.normal(size=(1200, 16)).tolist()
    ]
    naive = [
        any(over_seeds(values[:k]).difference_p() <= 0.05 for k in (5, 8, 12, 16))
        for values in random.normal(size=(300, 16)).tolist()
    ]
    assert np.mean(said) <= 0.05 + 0.0126
    assert np.mean(naive) > 0.08


def test_the_committed_simulation_runs_and_draws_all_of_its_tables():
    script = repository() / "experiments" / "coverage" / "simulate.py"
    done = subprocess.run([sys.executable, script, "studies=8"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    headers = [line for line, rule in pairwise(done.stdout.splitlines()) if rule.startswith("| ---")]
    page = script.with_name("README.md").read_text()
    assert len(headers) == 7
    assert all(header in page for header in headers)


def test_spending():
    assert spent(1.0, Analysis()) == 0.05
    assert spent(0.25, Analysis()) == pytest.approx(2 * stats.norm.sf(stats.norm.isf(0.025) / 0.5))
    assert spent(0.5, Analysis(spending="pocock")) == pytest.approx(0.05 * np.log(1 + (np.e - 1) / 2))
    (look,) = looks_at([3, 1, 2], Analysis())
    assert (look.seeds, look.alpha) == ((1, 2, 3), 0.05)
    assert looks_at(range(4), Analysis(looks=[5, 8])) == []

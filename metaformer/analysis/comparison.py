"""What is tested: two cells that differ in one factor, or a contrast of several cells that the analysis names."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from metaformer.analysis import lint
from metaformer.analysis.cells import Cell, with_runs
from metaformer.analysis.inference import Crossed, over_seeds, over_seeds_and_images
from metaformer.analysis.stats import Estimate
from metaformer.config.metrics import metric_of, selecting
from metaformer.config.study_nodes import Analysis, Study

MATCHED = 0.1  # share by which parameters or MACs may differ where cells are called matched, without a tolerance


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A difference over the seeds that its cells have in common, in the unit of the metric."""

    name: str
    cells: Sequence[Cell]
    differences: Sequence[float]  # by seed
    crossed: Crossed  # over seeds and images, as it is tested
    confounds: Sequence[str] = ()  # why its cells are not comparable
    notes: Sequence[str] = ()
    p_difference: float = math.nan  # adjusted within the family where it is confirmatory
    p_equivalence: float = math.nan
    levels: tuple[float, float] = (math.nan, math.nan)  # alpha of its step of the correction, for either test
    verdict: str = ""
    seeds_needed: tuple[float | None, float | None] | None = None  # the fewest and the most, of Scatter.seeds_needed

    @property
    def fixed(self) -> Crossed:
        """Over seeds, of these images alone, with its own variance."""
        return over_seeds(self.differences)

    @property
    def difference(self) -> Estimate:
        """With its 95% interval, not adjusted."""
        return self.crossed.estimate()

    def tost_interval(self, alpha: float) -> Estimate:
        """The interval of 1 - 2 alpha: within the margin where two one-sided tests say equivalent."""
        return self.crossed.estimate(1 - 2 * alpha)


@dataclass(frozen=True, kw_only=True)
class Comparison(Tested):
    """`cell` minus `reference`."""

    factor: str
    setting: str  # the levels of the other factors

    @property
    def cell(self) -> Cell:
        return self.cells[0]

    @property
    def reference(self) -> Cell:
        return self.cells[1]

    @property
    def level(self) -> str:
        return self.cell.levels[self.factor]

    @property
    def pair(self) -> str:
        """The two levels, without the setting."""
        return " - ".join(cell.levels[self.factor] for cell in self.cells)

    @property
    def alike(self) -> bool:
        """Whether both cells say the same of each image at each seed, as two networks do that compute the same."""
        a, b = (cell.terms for cell in self.cells)
        whole = bool(a) and a.keys() == b.keys() == self.cell.values.keys()
        return whole and all(np.array_equal(a[seed], b[seed]) for seed in a)

    @property
    def pairing(self) -> float:
        """Variance of the paired difference by that of seeds without anything in common: below 1 pairing helps."""
        if len(self.differences) < 2:
            return math.nan
        seeds = self.cell.values.keys() & self.reference.values.keys()
        apart = sum(float(np.var([cell.values[seed] for seed in seeds], ddof=1)) for cell in self.cells)
        return float(np.var(self.differences, ddof=1)) / apart if apart else math.nan

    def ratio(self, key: str) -> float | None:
        """Of params, macs or seconds; None where it means nothing, like times of two devices."""
        if not all(cell.runs for cell in self.cells):
            return None
        if key == "seconds":
            places = {(run.device, run.threads) for cell in self.cells for run in cell.runs.values()}
            return self.cell.seconds / self.reference.seconds if len(places) == 1 and self.reference.seconds else None
        mine, other = (getattr(cell.first, key) for cell in self.cells)
        return mine / other if mine is not None and other else None


@dataclass(frozen=True, kw_only=True)
class Contrast(Tested):
    """A weighted sum of cells whose weights add up to nothing, like a difference of differences."""


def weighted(weights: Mapping[str, float], cells: Sequence[Cell]) -> tuple[list[float], Crossed]:
    """The weighted sum of cells at each seed that all have, and over seeds and, where all keep these, images.

    Images of different sets are drawn apart from each other: what they give the variance adds up.

    Args:
        weights: by the name of the cell.
    """
    seeds = sorted(set.intersection(*(set(cell.values) for cell in cells)))
    values = [sum(weights[cell.name] * cell.values[seed] for cell in cells) for seed in seeds]
    whole, sets = over_seeds(values), dict[tuple[int, ...], list[np.ndarray]]()
    for cell in cells:
        own = [cell.terms[seed] for seed in seeds if seed in cell.terms]
        if not seeds or len(own) < len(seeds) or len({terms.shape for terms in own}) > 1:
            return values, whole
        sets.setdefault(own[0].shape, []).append(weights[cell.name] * np.array(own))
    found = [over_seeds_and_images(np.sum(terms, axis=0)) for terms in sets.values()]
    if len(found) == 1:
        return values, found[0]
    images, by_image = (sum(getattr(part, key) for part in found) for key in ("images", "by_image"))
    return values, replace(whole, images=images, by_image=by_image)


def is_reference(cell: Cell, study: Study) -> bool:
    return cell.levels[study.analysis.factor] == study.reference


def compare(a: Cell, b: Cell, study: Study) -> Comparison | None:
    """The comparison of two cells that differ in one factor, the reference last; None for any other two."""
    factors = [factor for factor in a.levels if a.levels[factor] != b.levels.get(factor)]
    if len(factors) != 1:
        return None
    if factors[0] == study.analysis.factor and is_reference(a, study):
        a, b = b, a
    factor, setting = factors[0], a.setting(factors[0])
    values, over = weighted({a.name: 1.0, b.name: -1.0}, [a, b])
    return Comparison(
        name=" ".join(filter(None, (setting, f"{a.levels[factor]} - {b.levels[factor]}"))),
        cells=[a, b],
        differences=values,
        crossed=over,
        confounds=lint.confounds(a, b, factor, study),
        notes=lint.notes([a, b], study.analysis),
        factor=factor,
        setting=setting,
    )


def contrast(name: str, cells: Sequence[Cell], study: Study) -> Contrast:
    """A contrast of the analysis block. Its cells may differ in all factors of the study, and in nothing else."""
    weights = {key: float(weight) for key, weight in study.analysis.contrasts[name].items()}
    own = [cell for cell in cells if cell.name in weights]
    values, over = weighted(weights, own)
    finished = with_runs(own)
    found = lint.of_grid(finished, list(own[0].levels), study) if finished else []
    for cell in finished[1:]:
        found += lint.costs(finished[0], cell, study.analysis)
    return Contrast(
        name=name,
        cells=own,
        differences=values,
        crossed=over,
        confounds=list(dict.fromkeys(found)),
        notes=lint.notes(own, study.analysis),
    )


def tolerance(analysis: Analysis) -> float:
    """By how much parameters or MACs may differ where two cells are called matched."""
    return MATCHED if analysis.tolerance is None else float(analysis.tolerance)


def matched(c: Comparison, key: str, analysis: Analysis) -> bool:
    """Whether two cells have the same `params` or `macs` within the tolerance."""
    ratio = c.ratio(key)
    return ratio is not None and lint.within(ratio - 1, tolerance(analysis))


def by_rate(cells: Sequence[Cell], metric: str) -> dict[str, dict[float, float]]:
    """Mean of a validation metric by learning rate, for each point of the other factors."""
    found: dict[str, dict[float, float]] = {}
    for cell in with_runs(cells):
        found.setdefault(cell.setting("lr") or "all", {})[float(cell.levels["lr"])] = cell.mean(selecting(metric)).mean
    return {name: dict(sorted(rates.items())) for name, rates in found.items()}


def best_rate(found: Mapping[float, float], metric: str) -> tuple[float, bool]:
    """The rate with the best metric, and whether it is at the edge of the grid: a better one may lie outside."""
    best = (max if metric_of(metric).higher else min)(found, key=lambda rate: found[rate])
    return best, best in (min(found), max(found))

"""What is compared with what, and whether that is fair: cells of finished runs, and pairs that differ in one factor."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metaformer.analysis.stats import Estimate, mean_interval, paired_difference
from metaformer.config.identity import differences
from metaformer.config.metrics import metric_of
from metaformer.config.schema import GROUPS, Analysis, Study
from metaformer.runs.launch import Run, setting_of
from metaformer.runs.result import Result

MATCHED = 0.1  # share by which parameters or MACs may differ where cells are called matched, without a tolerance


@dataclass(frozen=True)
class Cell:
    """The finished runs of one cell; metrics in their units, fractions in points (percent)."""

    name: str
    levels: Mapping[str, str]
    runs: Mapping[int, Result]  # by seed
    values: Mapping[int, float]  # the metric of the study by seed

    @property
    def first(self) -> Result:
        return next(iter(self.runs.values()))

    @property
    def seconds(self) -> float:
        return float(np.mean([run.seconds for run in self.runs.values()]))

    def setting(self, factor: str) -> str:
        """The levels of the other factors, in words."""
        return setting_of(self.levels, factor)

    def mean(self, metric: str) -> Estimate:
        return mean_interval([metric_of(metric).scale * run.metrics[metric] for run in self.runs.values()])


@dataclass(frozen=True)
class Comparison:
    """`cell` minus `reference` over their common seeds, in the unit of the metric."""

    cell: Cell
    reference: Cell
    factor: str
    setting: str  # the levels of the other factors
    difference: Estimate  # with its 95% interval
    tost_interval: Estimate  # 1 - 2 alpha, the one of TOST; neither interval is adjusted
    confounds: list[str]  # why the two are not comparable
    notes: list[str]
    p_difference: float = math.nan  # adjusted within the family where it is confirmatory
    p_equivalence: float = math.nan
    verdict: str = ""
    seeds_needed: int | None = None

    @property
    def level(self) -> str:
        return self.cell.levels[self.factor]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.setting, f"{self.level} - {self.reference.levels[self.factor]}")))

    @property
    def differences(self) -> list[float]:
        """In the order of the seeds that both have."""
        seeds = sorted(self.cell.values.keys() & self.reference.values.keys())
        return [self.cell.values[seed] - self.reference.values[seed] for seed in seeds]

    def ratio(self, key: str) -> float | None:
        """Of params, macs or seconds; None where it means nothing, like times of two devices."""
        if not self.cell.runs or not self.reference.runs:
            return None
        if key == "seconds":
            places = {(run.device, run.threads) for c in (self.cell, self.reference) for run in c.runs.values()}
            return self.cell.seconds / self.reference.seconds if len(places) == 1 and self.reference.seconds else None
        mine, other = (getattr(cell.first, key) for cell in (self.cell, self.reference))
        return mine / other if mine is not None and other else None


def cells_of(runs: Sequence[Run], metric: str) -> list[Cell]:
    """Every listed cell, the ones without a finished run included."""
    cells = []
    for name in dict.fromkeys(run.cell for run in runs):
        own = [run for run in runs if run.cell == name]
        results = {run.seed: run.result for run in own if run.result is not None}
        values = {seed: metric_of(metric).scale * result.metrics[metric] for seed, result in results.items()}
        cells.append(Cell(name, own[0].levels, results, values))
    return cells


def is_reference(cell: Cell, study: Study) -> bool:
    return cell.levels[study.analysis.factor] == study.reference


def compare(a: Cell, b: Cell, study: Study) -> Comparison | None:
    """The comparison of two cells that differ in one factor, the reference last; None for any other two."""
    factors = [factor for factor in a.levels if a.levels[factor] != b.levels.get(factor)]
    if len(factors) != 1:
        return None
    if factors[0] == study.analysis.factor and is_reference(a, study):
        a, b = b, a
    seeds = a.values.keys() & b.values.keys()
    return Comparison(
        a,
        b,
        factors[0],
        a.setting(factors[0]),
        paired_difference(a.values, b.values),
        paired_difference(a.values, b.values, confidence=1 - 2 * study.analysis.alpha),
        confounds(a, b, factors[0], study) if a.runs and b.runs else [],
        _seed_notes(a, b, seeds) if seeds else [],
    )


def _seed_notes(a: Cell, b: Cell, common: Collection[int]) -> list[str]:
    lacking = {cell.name: sorted(other.values.keys() - cell.values.keys()) for cell, other in ((a, b), (b, a))}
    words = [f"{name} lacks seed {', '.join(map(str, seeds))}" for name, seeds in lacking.items() if seeds]
    return [f"{'; '.join(words)}: the {len(common)} common seeds are used"] if words else []


def confounds(a: Cell, b: Cell, factor: str, study: Study) -> list[str]:
    """What two cells differ in beside the factor: configuration, images, cost beyond the tolerance, code, libraries."""
    analysis = study.analysis
    same_images = a.first.fingerprint is not None and a.first.fingerprint == b.first.fingerprint
    unlike = differences(a.first.config, b.first.config, same_images=same_images)
    keys = [key for key in unlike if key != "seed" and key not in analysis.tuned]
    odd = [key for key in keys if not _belongs(key, factor, keys, study.name)]
    found = [f"{key} ({unlike[key][0]} against {unlike[key][1]})" for key in odd]
    if a.first.fingerprint != b.first.fingerprint:
        found.append("other images")
    if analysis.tolerance is not None:
        costs = {"parameters": (a.first.params, b.first.params), "MACs": (a.first.macs, b.first.macs)}
        for name, (one, two) in costs.items():
            if one is None or two is None:
                found.append(f"{name} not counted")
            elif abs(one / two - 1) > analysis.tolerance:
                found.append(f"{name} {one / two - 1:+.0%} (tolerance {analysis.tolerance:.0%})")
    pairs = [(a.runs[seed], b.runs[seed]) for seed in a.runs.keys() & b.runs.keys()]
    if any(one.training_version != two.training_version for one, two in pairs):
        found.append("another version of the code")
    if any(one.versions != two.versions for one, two in pairs):
        found.append("other versions of the libraries")
    return found


def _belongs(key: str, factor: str, differing: Sequence[str], study: str | None) -> bool:
    """Whether a key that differs is what the factor varies.

    A factor is a config group (`mixer`), a key (`norm` of model.norm), a folder of named variants of the model, or,
    with the name of the study, a list of rows that may change one thing each.
    """
    if factor in GROUPS:
        return key.split(".")[0] == factor
    own = [k for k in differing if k == factor or k.endswith(f".{factor}")]
    if own:
        return key in own
    if factor == study:
        return len({"mixer" if k.startswith("mixer.") else k for k in differing}) == 1
    return key.startswith("model.")


def tolerance(analysis: Analysis) -> float:
    """By how much parameters or MACs may differ where two cells are called matched."""
    return MATCHED if analysis.tolerance is None else float(analysis.tolerance)


def matched(c: Comparison, key: str, analysis: Analysis) -> bool:
    """Whether two cells have the same `params` or `macs` within the tolerance."""
    ratio = c.ratio(key)
    return ratio is not None and abs(ratio - 1) <= tolerance(analysis)


def by_rate(cells: Sequence[Cell], metric: str) -> dict[str, dict[float, float]]:
    """Mean of a validation metric by learning rate, for each point of the other factors."""
    found: dict[str, dict[float, float]] = {}
    for cell in cells:
        found.setdefault(cell.setting("lr") or "all", {})[float(cell.levels["lr"])] = cell.mean(metric).mean
    return {name: dict(sorted(rates.items())) for name, rates in found.items()}


def best_rate(found: Mapping[float, float], metric: str) -> tuple[float, bool]:
    """The rate with the best metric, and whether it is at the edge of the grid: a better one may lie outside."""
    best = (max if metric_of(metric).higher else min)(found, key=lambda rate: found[rate])
    return best, best in (min(found), max(found))

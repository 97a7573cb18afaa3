"""From finished runs to verdicts and to shares of the variance.

A comparison is two cells that differ in one factor. It is confirmatory where that is the factor of the study against
its reference, and belongs to a family: the comparisons within one setting of the other factors.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from metaformer.analysis.comparison import Cell, Comparison, cells_of, compare, is_reference
from metaformer.analysis.stats import Component, difference_p, equivalence_p, holm, seeds_needed, variance_shares
from metaformer.config.schema import Analysis, Study
from metaformer.runs.launch import Run

EQUIVALENT, DIFFERENT, INCONCLUSIVE, NONE = "equivalent", "different", "inconclusive", "no verdict"


BOTH = "equivalent (a difference smaller than the margin)"


@dataclass(frozen=True)
class Shares:
    """The variance of a study by factor, in words where it cannot be had."""

    everything: list[Component]
    without_identity: list[Component]
    seeds: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Verdicts:
    cells: list[Cell]
    confirmatory: list[Comparison]
    exploratory: list[Comparison]
    shares: Shares


def judge(study: Study, runs: Iterable[Run]) -> Verdicts:
    """All that the finished runs of a study say."""
    analysis = study.analysis
    listed = cells_of(list(runs), analysis.metric)
    confirmatory, exploratory = [], []
    for a, b in combinations(listed, 2):
        pair = compare(a, b, study)
        if pair is None:
            continue
        if pair.factor == analysis.factor and is_reference(pair.reference, study):
            confirmatory.append(pair)  # even where nothing is finished: it was planned, and counts in its family
        elif pair.difference.n:
            exploratory.append(pair)
    cells = [cell for cell in listed if cell.runs]
    return Verdicts(
        cells, _decide(confirmatory, analysis), [_exploratory(pair) for pair in exploratory], _shares(cells, analysis)
    )


def _decide(confirmatory: Sequence[Comparison], analysis: Analysis) -> list[Comparison]:
    """Verdicts, family by family; a comparison that cannot be tested counts in its family with p = 1."""
    decided = []
    for setting in dict.fromkeys(c.setting for c in confirmatory):
        family = [c for c in confirmatory if c.setting == setting]
        reasons = [_untestable(c) for c in family]
        tested = list(zip(family, reasons, strict=True))
        p_difference = [1.0 if reason else difference_p(c.differences) for c, reason in tested]
        p_equivalence = [1.0 if reason else equivalence_p(c.differences, analysis.margin) for c, reason in tested]
        if analysis.correction == "holm":
            p_difference, p_equivalence = holm(p_difference), holm(p_equivalence)
        for (c, reason), different, equal in zip(tested, p_difference, p_equivalence, strict=True):
            if reason:
                decided.append(replace(c, verdict=NONE, notes=[reason, *c.notes]))
            else:
                decided.append(_verdict(c, different, equal, analysis, len(family)))
    return decided


def first_step(analysis: Analysis, comparisons: int) -> float:
    """The alpha of the first step of the correction over so many comparisons, which is the hardest."""
    return analysis.alpha / (comparisons if analysis.correction == "holm" else 1)


def _untestable(c: Comparison) -> str:
    """Why no test can be made of a comparison, or nothing."""
    if lacking := [cell.name for cell in (c.cell, c.reference) if not cell.runs]:
        return f"no finished run of {' and '.join(lacking)}"
    if c.confounds:
        return "they differ in more than the factor: " + "; ".join(c.confounds)
    if not c.differences:
        return "no seed that both have"
    if len(c.differences) < 2:
        return "one seed only: a difference without an interval"
    if np.ptp(c.differences) < 1e-9:
        return "no variance between seeds: the difference is the same at each of them"
    return ""


def _verdict(c: Comparison, p_difference: float, p_equivalence: float, analysis: Analysis, family: int) -> Comparison:
    equal, different = p_equivalence <= analysis.alpha, p_difference <= analysis.alpha
    verdict = BOTH if equal and different else EQUIVALENT if equal else DIFFERENT if different else INCONCLUSIVE
    needed = None
    if verdict == INCONCLUSIVE:
        sd = float(np.std(c.differences, ddof=1))
        needed = seeds_needed(analysis.margin / sd, first_step(analysis, family), abs(c.difference.mean) / sd)
    return replace(c, p_difference=p_difference, p_equivalence=p_equivalence, verdict=verdict, seeds_needed=needed)


def _exploratory(c: Comparison) -> Comparison:
    """Its unadjusted p value, and no verdict."""
    return c if _untestable(c) else replace(c, p_difference=difference_p(c.differences))


def _shares(cells: Sequence[Cell], analysis: Analysis) -> Shares:
    """The decomposition with and without the identity mixer; it needs every cell of the grid."""
    try:
        everything, seeds = _decompose(cells, analysis.factor)
    except ValueError as error:
        return Shares([], [], reason=str(error))
    mixers = [cell for cell in cells if cell.levels.get("mixer") != "identity"]
    try:
        without = _decompose(mixers, analysis.factor)[0] if len(mixers) < len(cells) else []
    except ValueError:
        without = []
    return Shares(everything, without, seeds)


def _decompose(cells: Sequence[Cell], factor: str) -> tuple[list[Component], int]:
    """The components and the number of seeds that all cells have."""
    if not cells:
        raise ValueError("no run is finished")
    treatment = "mixer" if "mixer" in cells[0].levels else factor
    factors = [f for f in cells[0].levels if f != treatment] + [treatment]
    levels = {f: list(dict.fromkeys(cell.levels[f] for cell in cells)) for f in factors}
    factors = [f for f in factors if len(levels[f]) > 1]
    shape = [len(levels[f]) for f in factors]
    if treatment not in factors:
        raise ValueError(f"there is one {treatment} only")
    if math.prod(shape) != len(cells):
        raise ValueError("the study is not a full grid: some combinations of its factors have no finished run")
    seeds = sorted(set.intersection(*(set(cell.values) for cell in cells)))
    if len(seeds) < 2:
        raise ValueError("it takes two seeds that all cells have")
    values = np.empty((*shape, len(seeds)))
    for cell in cells:
        place = tuple(levels[f].index(cell.levels[f]) for f in factors)
        values[place] = [cell.values[seed] for seed in seeds]
    return variance_shares(values, factors), len(seeds)


def uneven(cells: Sequence[Cell]) -> float:
    """How many times the seeds of one cell scatter as much as those of another, the extremes."""
    scatter = [float(np.std(list(cell.values.values()), ddof=1)) for cell in cells if len(cell.values) > 1]
    return max(scatter) / min(scatter) if scatter and min(scatter) > 0 else 1.0

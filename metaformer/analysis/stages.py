"""What is tested at one look at the runs: pairs of cells, their variances, and why some cannot be tested."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from metaformer.analysis.cells import Cell, at_seeds
from metaformer.analysis.comparison import Comparison, Tested, compare, contrast, is_reference
from metaformer.analysis.inference import moderated
from metaformer.analysis.interim_looks import Look
from metaformer.config.study_nodes import Analysis, Study

SAME = "they say the same of every image at each seed, as two names of one network do"
FEWEST = 3  # seeds of a verdict: an interval from two says next to nothing
MODERATED = 5  # seeds up to which variances are moderated, unless the analysis says otherwise


def pairs_of(cells: Sequence[Cell], study: Study) -> list[Comparison]:
    """All pairs that differ in one factor."""
    return [pair for a, b in combinations(cells, 2) if (pair := compare(a, b, study)) is not None]


def reached(look: Look, cells: Sequence[Cell], analysis: Analysis) -> bool:
    """A planned look is taken when some cell has all of its seeds; what lacks one is not tested at it."""
    return analysis.looks is None or any(cell.values.keys() >= set(look.seeds) for cell in cells)


def is_confirmatory(pair: Comparison, study: Study) -> bool:
    """Whether a pair differs in the factor of the study from its reference."""
    return pair.factor == study.analysis.factor and is_reference(pair.reference, study)


@dataclass(frozen=True)
class Stage:
    """What is tested at one look; even where nothing is finished it was planned, and counts."""

    look: Look
    cells: Sequence[Cell]  # over the seeds of the look
    pairs: Sequence[Comparison]  # all that differ in one factor
    claimed: Sequence[Comparison]  # those that differ in the factor of the study
    tested: Sequence[Tested]  # those that are confirmatory, and the contrasts
    own: Sequence[Tested]  # the same with the variance of each alone


def stage_of(look: Look, every: Sequence[Cell], study: Study) -> Stage:
    """What the cells give to test at the seeds of a look."""
    analysis, cells = study.analysis, [at_seeds(cell, look.seeds) for cell in every]
    pairs = pairs_of(cells, study)
    claimed = [pair for pair in pairs if pair.factor == analysis.factor]
    confirmatory = [pair for pair in claimed if is_confirmatory(pair, study)]
    contrasts = [contrast(name, cells, study) for name in analysis.contrasts]  # their variances are of another size
    tested = [*_moderate(confirmatory, look, analysis), *contrasts]
    return Stage(look, cells, pairs, _moderate(claimed, look, analysis), tested, [*confirmatory, *contrasts])


def _moderate(family: Sequence[Comparison], look: Look, analysis: Analysis) -> list[Comparison]:
    """The same with variances that know of each other, where the analysis says so."""
    few = max((t.crossed.seeds for t in family), default=0) <= MODERATED
    if analysis.variance == "own" or (analysis.variance == "auto" and not few):
        return list(family)
    usable = [t for t in family if not untestable(t, look, analysis)]
    cells: dict[str, set[str]] = {}
    for t in usable:
        cells.setdefault(t.setting, set()).update(cell.name for cell in t.cells)
    most = sum(len(names) - 1 for names in cells.values()) * (len(look.seeds) - 1)
    better = dict(zip(map(id, usable), moderated([t.crossed for t in usable], most), strict=True))
    return [replace(t, crossed=better.get(id(t), t.crossed)) for t in family]


def untestable(t: Tested, look: Look, analysis: Analysis) -> str:
    """Why no test can be made at a look, or nothing."""
    if analysis.failed == "refuse" and (lost := [cell for cell in t.cells if cell.failed]):
        seeds = [f"{cell.name} (seed {', '.join(map(str, sorted(cell.failed)))})" for cell in lost]
        return f"a run failed: {'; '.join(seeds)}"
    if lacking := [cell.name for cell in t.cells if not cell.values]:
        return f"no finished run of {' and '.join(lacking)}"
    if t.confounds:
        return "they differ in more than the factor: " + "; ".join(t.confounds)
    if analysis.looks and not look.alpha:
        return f"the first look is at {analysis.looks[0]} seeds"
    n = len(look.seeds)
    if short := [cell for cell in t.cells if len(cell.values) < n]:
        return "; ".join(f"{cell.name} has {len(cell.values)} of {n} planned seeds" for cell in short)
    if n < FEWEST:
        return f"{n} seed{'s' * (n > 1)}: it takes {FEWEST}"
    if isinstance(t, Comparison) and t.alike:
        return SAME
    if np.ptp(t.differences) < 1e-9:
        return "no variance between seeds: the difference is the same at each of them"
    return ""

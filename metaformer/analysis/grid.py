"""The full grid of a study: the shares of its variance, and how far its ranking of mixers holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metaformer.analysis import lint
from metaformer.analysis.cells import Cell
from metaformer.analysis.shares import Component, rank_stability, reliability, variance_shares
from metaformer.config.study_nodes import Study


@dataclass(frozen=True)
class Shares:
    """The variance of a study by factor, in words where it cannot be had."""

    everything: list[Component]
    without_identity: list[Component]
    seeds: int = 0
    levels: tuple[tuple[str, tuple[str, ...]], ...] = ()  # the factors with the levels that the shares are of
    reliability: float = math.nan  # of the ranking of the last factor's levels
    ranks: tuple[float, float] = (math.nan, math.nan)  # Kendall tau between seeds, and between settings
    reason: str = ""


def shares_of(cells: Sequence[Cell], study: Study) -> Shares:
    """The decomposition with and without the identity mixer; it needs every cell of the grid."""
    if failed := [cell.name for cell in cells if cell.failed and study.analysis.failed == "refuse"]:
        return Shares([], [], reason=f"runs of {', '.join(failed)} failed")
    cells = [cell for cell in cells if cell.values]
    try:
        values, factors, levels = _grid(cells, study)
    except ValueError as error:
        return Shares([], [], reason=str(error))
    mixers = [cell for cell in cells if cell.levels.get("mixer") != "identity"]
    try:
        fewer = _grid(mixers, study) if len(mixers) < len(cells) else None
    except ValueError:
        fewer = None
    return Shares(
        variance_shares(values, factors, levels),
        variance_shares(*fewer) if fewer else [],
        values.shape[-1],
        tuple(zip(factors, map(tuple, levels), strict=True)),
        reliability(values),
        rank_stability(values),
    )


def _grid(cells: Sequence[Cell], study: Study) -> tuple[np.ndarray, list[str], list[list[str]]]:
    """The metric [levels of each factor, seeds that all cells have], the factors (the mixer last) and their levels."""
    if not cells:
        raise ValueError("no run is finished")
    treatment = "mixer" if "mixer" in cells[0].levels else study.analysis.factor
    factors = [f for f in cells[0].levels if f != treatment] + [treatment]
    levels = {f: list(dict.fromkeys(cell.levels[f] for cell in cells)) for f in factors}
    factors = [f for f in factors if len(levels[f]) > 1]
    shape = [len(levels[f]) for f in factors]
    if treatment not in factors:
        raise ValueError(f"there is one {treatment} only")
    if math.prod(shape) != len(cells):
        raise ValueError("the study is not a full grid: some combinations of its factors have no finished run")
    if odd := lint.of_grid(cells, factors, study):
        raise ValueError(f"the cells differ in more than the factors: {'; '.join(odd)}")
    seeds = sorted(set.intersection(*(set(cell.values) for cell in cells)))
    if len(seeds) < 2:
        raise ValueError("it takes two seeds that all cells have")
    values = np.empty((*shape, len(seeds)))
    for cell in cells:
        place = tuple(levels[f].index(cell.levels[f]) for f in factors)
        values[place] = [cell.values[seed] for seed in seeds]
    return values, factors, [levels[f] for f in factors]


def uneven(cells: Sequence[Cell]) -> float:
    """How many times the seeds of one cell scatter as much as those of another, the extremes."""
    scatter = [float(np.std(list(cell.values.values()), ddof=1)) for cell in cells if len(cell.values) > 1]
    least, most = min(scatter, default=1.0), max(scatter, default=1.0)
    return most / least if least > 0 else math.inf if most > 0 else 1.0

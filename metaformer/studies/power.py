"""What the seeds of a study can show: the chance of each verdict."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metaformer.analysis.stats import difference_power, equivalence_power
from metaformer.analysis.tables import Table
from metaformer.analysis.verdict import judge
from metaformer.config.metrics import metric_of
from metaformer.config.schema import Analysis, Study
from metaformer.config.validate import structure
from metaformer.runs.launch import Run, collect, read_launch, setting_of
from metaformer.system.errors import ConfigError

SEEDS = (3, 5, 8, 10, 15, 20, 30)
ASSUMED_SD = 1.0  # points; of other units the margin


def size(study: Study, runs: Sequence[Run]) -> tuple[int, int]:
    """Seeds of a cell and comparisons of a family, the fewest and the most."""
    factor = study.analysis.factor
    families: dict[str, set[str]] = {}
    for run in runs:
        families.setdefault(setting_of(run.levels, factor), set()).add(run.levels[factor])
    comparisons = max(len(levels) - 1 if study.reference in levels else 0 for levels in families.values())
    return min(Counter(run.cell for run in runs).values()), comparisons


def scatter(study: Study, runs: Sequence[Run]) -> tuple[float, str]:
    """SD of the paired difference in the metric's unit from the finished runs of a study, and where it comes from."""
    found = _scatter(study, runs)
    if found is None:
        in_points = metric_of(study.analysis.metric).unit == "points"
        assumed = ASSUMED_SD if in_points else study.analysis.margin
        return assumed, "an assumption: sd=NUMBER or from=STUDY replaces it"
    return found[0], f"from the finished runs of this study, {found[1]}"


def scatter_of(name: str, folder: Path) -> tuple[float, str]:
    """The same from another study; `folder` holds its runs."""
    launched = read_launch(name)
    if launched is None:
        raise ConfigError(f"from={name}: no study of that name was launched from this folder")
    analysis = dict(launched.analyses[-1].analysis)
    reference = analysis.pop("reference")
    study = Study(name, reference=reference, analysis=structure(Analysis, analysis))
    found = _scatter(study, collect(launched.runs, folder))
    if found is None:
        raise ConfigError(f"from={name}: it has no two finished seeds of any comparison")
    return found[0], f"from the finished runs of {name}, {found[1]}"


def _scatter(study: Study, runs: Sequence[Run]) -> tuple[float, str] | None:
    if not any(run.result for run in runs):
        return None
    compared = [c for c in judge(study, runs).confirmatory if c.difference.n > 1]
    variance = float(np.mean([np.var(c.differences, ddof=1) for c in compared])) if compared else 0.0
    return (variance**0.5, f"{len(compared)} comparison{'s' * (len(compared) > 1)}") if variance > 0 else None


def power_table(planned: int, margin: float, alpha: float) -> Table:
    """Power by number of seeds; margin in SD of the paired difference, alpha of the first step."""
    lines = []
    for n in sorted({*SEEDS, planned} - {1}):
        chances = [equivalence_power(n, margin, alpha)]
        chances += [difference_power(n, times * margin, alpha) for times in (1, 2)]
        lines.append([f"{n}{' (planned)' if n == planned else ''}", *(f"{chance:.0%}" for chance in chances)])
    header = ["seeds", "equivalent, if equal", "different, if by the margin", "different, if by twice the margin"]
    return Table(header, lines, "chance of each verdict")

"""What the seeds of a study can show: the chance of each verdict."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from metaformer.analysis.stats import MOST_SEEDS, Scatter
from metaformer.analysis.text_table import Table
from metaformer.analysis.verdict import first_step, judge
from metaformer.config.metrics import metric_of
from metaformer.config.schema import Data
from metaformer.config.study_nodes import Study
from metaformer.data.registry import tested_images
from metaformer.runs.launch import Run, not_launched, read_launch, setting_of
from metaformer.runs.packed import gather
from metaformer.system.errors import ConfigError

SEEDS = (3, 5, 8, 10, 15, 20, 30)
ASSUMED_SD = 1.0  # points; of other units the margin


def size(study: Study, runs: Sequence[Run]) -> tuple[int, int]:
    """Seeds of a cell and comparisons of a family, the fewest and the most; baselines are in none."""
    analysis, factor = study.analysis, study.analysis.factor
    runs = [run for run in runs if run.levels[factor] not in analysis.baselines]
    families: dict[str, set[str]] = {}
    for run in runs:
        families.setdefault(setting_of(run.levels, factor), set()).add(run.levels[factor])
    compared = [len(levels) - 1 if study.reference in levels else 0 for levels in families.values()]
    together = sum(compared) + len(analysis.contrasts)
    comparisons = together if analysis.correction == "holm_study" else max(compared, default=0)
    return min(Counter(run.cell for run in runs).values(), default=0), comparisons


def scatter(
    study: Study, runs: Sequence[Run], data: Data, sd: float | None = None, images: float | None = None
) -> tuple[Scatter, str]:
    """How much the paired difference varies, in the metric's unit, and where that comes from.

    Args:
        sd: as somebody states it.
        images: of the test set, where it is not known of `data`; finished runs have their own.
    """
    tested = int(images or tested_images(data))
    if sd is not None:
        return Scatter(sd, assumed_error(study, tested)), "as stated"
    found = _scatter(study, runs)
    if found is not None and images is not None:
        raise ConfigError("images: its finished runs have test images; leave it out, or state sd=NUMBER beside it")
    if found is not None:
        return found[0], f"from the finished runs of this study, {found[1]}"
    assumed = ASSUMED_SD if metric_of(study.analysis.metric).unit == "points" else study.analysis.margin
    return Scatter(assumed, assumed_error(study, tested)), "an assumption: sd=NUMBER or from=STUDY replaces it"


def assumed_error(study: Study, images: int) -> float:
    """Standard error in points from the choice of so many test images; 0 where it is not known, or plays no part.

    The networks of two cells agree on most images; where one image of 16 tells them apart, it is 25 / sqrt(images).
    """
    return float(100 * (1 / 16) ** 0.5 / images**0.5) if images and _of_test_images(study) else 0.0


def _of_test_images(study: Study) -> bool:
    """Whether the metric is one that other test images are assumed to move, in points."""
    metric = study.analysis.metric
    return metric.startswith("test_") and metric_of(metric).unit == "points"


def scatter_of(name: str, folder: Path, unit: str) -> tuple[Scatter, str]:
    """The same from another study, whose metric has this unit; `folder` holds its runs."""
    launched = read_launch(name)
    if launched is None:
        raise ConfigError(f"from={name}: {not_launched(name)}")
    other = launched.analyses[-1].study(name)
    if metric_of(other.analysis.metric).unit != unit:
        raise ConfigError(f"from={name}: its metric is {other.analysis.metric}; expected one in {unit}")
    found = _scatter(other, gather(name, launched.runs, folder))
    if found is None:
        raise ConfigError(f"from={name}: it has no two finished seeds of any comparison")
    return found[0], f"from the finished runs of {name}, {found[1]}"


def _scatter(study: Study, runs: Sequence[Run]) -> tuple[Scatter, str] | None:
    if not any(run.result for run in runs):
        return None
    compared = [c for c in judge(study, runs).confirmatory if c.fixed.seeds > 1]
    seeds, images = (
        float(np.mean(variances)) if variances else 0.0
        for variances in ([c.fixed.by_seed * c.fixed.seeds for c in compared], [c.crossed.by_image for c in compared])
    )
    told = f"{len(compared)} comparison{'s' * (len(compared) > 1)}"
    return (Scatter(seeds**0.5, images**0.5), told) if seeds > 0 else None


def power_table(planned: int, margin: float, alphas: Callable[[int], float], scatter: Scatter) -> Table:
    """Power by number of seeds, of which `alphas` gives the alpha of the first step."""
    lines = []
    for n in sorted({*SEEDS, planned} - {1, 2}):
        alpha = alphas(n)
        chances = [scatter.powers(n, margin, alpha)[0]]
        chances += [scatter.powers(n, margin, alpha, times * margin)[1] for times in (1, 2)]
        lines.append([f"{n}{' (planned)' if n == planned else ''}", *(f"{chance:.0%}" for chance in chances)])
    header = ["seeds", "equivalent, if equal", "different, if by the margin", "different, if by twice the margin"]
    return Table(header, lines, "chance of each verdict")


def tell_power(study: Study, seeds: int, comparisons: int, spread: Scatter, source: str, console: Console) -> None:
    """Print the power of the planned seeds, and how many show that two equal cells are equivalent."""
    analysis, metric = study.analysis, metric_of(study.analysis.metric)
    unit, margin, places = metric.unit, analysis.margin, metric.digits

    alpha = first_step(analysis, comparisons)
    place = "or contrasts in the study" if analysis.correction == "holm_study" else "in a setting"
    told = ". The chances are those of the last look that so many seeds allow, alone"
    at_look = told if analysis.looks else ""
    unknown = "" if spread.images or not _of_test_images(study) else " (how many there are is not known: images=NUMBER)"
    console.print(
        f"{seeds} seeds, {comparisons} comparison{'s' * (comparisons > 1)} with {study.reference} {place}, margin "
        f"{margin:g} {unit}. A difference scatters by {spread.sd:.{places}f} from seed to seed ({source}); the choice "
        f"of the test images adds a standard error of {spread.images:.{places}f}{unknown}{at_look}",
        highlight=False,
    )
    console.print(power_table(seeds, margin, partial(first_step, analysis, comparisons), spread).rich())
    needed = spread.seeds_needed(margin, alpha)
    count, why = f"{needed} seeds show", ""
    if needed is None:
        count, why = "no number of seeds shows", ": a larger test set or a wider margin would"
    elif needed > MOST_SEEDS:
        count, why = f"not even {MOST_SEEDS:,} seeds show", ": a wider margin would need fewer"
    console.print(f"{count} with 80% that two equal cells are equivalent{why}", highlight=False)

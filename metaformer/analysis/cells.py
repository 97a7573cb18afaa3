"""The cells of a study: their finished runs with the metric of each seed, image by image, and the runs that failed."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from metaformer.analysis.inference import over_seeds, over_seeds_and_images
from metaformer.analysis.pixel_terms import terms_of_pixels
from metaformer.analysis.stats import Estimate
from metaformer.analysis.terms import FROM_LOGITS, terms
from metaformer.config.identity import flat
from metaformer.config.metrics import metric_of
from metaformer.config.study_nodes import Analysis
from metaformer.runs.answers import Answers, PixelAnswers
from metaformer.runs.launch import Run, setting_of
from metaformer.runs.result import Result
from metaformer.system.errors import ConfigError, by_closeness

V = TypeVar("V")


@dataclass(frozen=True)
class Cell:
    """The finished runs of one cell; metrics in their units, fractions in points (percent)."""

    name: str
    levels: Mapping[str, str]
    runs: Mapping[int, Result]  # by seed
    values: Mapping[int, float]  # the metric of the study by seed
    terms: Mapping[int, np.ndarray] = field(default_factory=dict)  # the same image by image, whose mean it is
    labels: Mapping[int, np.ndarray] = field(default_factory=dict)  # of the test images, or pixels of each class
    failed: Mapping[int, str] = field(default_factory=dict)  # why, by seed
    settings: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # what counts of the configuration, by seed

    @property
    def first(self) -> Result:
        return next(iter(self.runs.values()))

    @property
    def seconds(self) -> float:
        return float(np.mean([run.seconds for run in self.runs.values()]))

    @property
    def alone(self) -> bool:
        """Whether each run had its machine for itself."""
        return all(run.alone for run in self.runs.values())

    @property
    def collapsed(self) -> list[int]:
        """The seeds whose network tells the test images apart no better than chance (one-sided, 0.1%)."""
        return [seed for seed, run in self.runs.items() if (run.accuracy or 0.0) <= _chance_of(run)]

    def setting(self, factor: str) -> str:
        """The levels of the other factors, in words."""
        return setting_of(self.levels, factor)

    def mean(self, metric: str) -> Estimate:
        """Of a metric over the seeds that finished, with its t interval."""
        scale = metric_of(metric).scale
        return over_seeds([scale * run.metrics[metric] for run in self.runs.values()]).estimate()

    def tested(self) -> Estimate:
        """Of the metric of the study: over seeds and, where they are kept, images."""
        own = [self.terms[seed] for seed in sorted(self.values) if seed in self.terms]
        if own and len(own) == len(self.values) and len({terms.shape for terms in own}) == 1:
            return over_seeds_and_images(np.array(own)).estimate()
        return over_seeds(list(self.values.values())).estimate()


def with_runs(cells: Sequence[Cell]) -> list[Cell]:
    """Those that have a finished run; one whose runs all failed may count as a guess."""
    return [cell for cell in cells if cell.runs]


def at_seeds(cell: Cell, seeds: Collection[int]) -> Cell:
    """The same of some seeds alone."""
    parts = {name: part for name, part in vars(cell).items() if name not in ("name", "levels")}  # all by seed
    kept: dict[str, Any] = {name: {s: v for s, v in part.items() if s in seeds} for name, part in parts.items()}
    return replace(cell, **kept)


def _chance_of(run: Result) -> float:
    """The accuracy of guesses as frequent as its answers, with three standard errors of so many images.

    Not that of the most frequent class: who finds rare classes too may be right less often than that.
    """
    counts = np.array(run.confusion, dtype=float) if run.confusion else np.ones((1, 1))
    images = max(counts.sum(), 1.0)
    share = float(counts.sum(1) @ counts.sum(0)) / images**2
    return share + 3 * math.sqrt(share * (1 - share) / images) if len(counts) > 1 else 0.0


def cells_of(runs: Sequence[Run], analysis: Analysis) -> list[Cell]:
    """Every listed cell, the ones without a finished run included."""
    split, _, metric = analysis.metric.partition("_")
    for run in runs:
        if run.result is not None and analysis.metric not in run.result.metrics:
            there = ", ".join(by_closeness(analysis.metric, run.result.metrics)[:5])
            key = f"study.analysis.metric={analysis.metric}"
            raise ConfigError(f"{key}: {run.result.name} has none; expected one that all have, {there}")
    cells = []
    for name in dict.fromkeys(run.cell for run in runs):
        own = [run for run in runs if run.cell == name]
        if len({run.seed for run in own}) < len(own):
            raise ConfigError(f"{name}: it lists a seed twice; a cell has one run at a seed")
        results = {run.seed: run.result for run in own if run.result is not None}
        values = {seed: metric_of(analysis.metric).scale * r.metrics[analysis.metric] for seed, r in results.items()}
        answers = {run.seed: a for run in own if run.result and (a := run.answers(logits=metric in FROM_LOGITS))}
        found = {} if split != "test" else {seed: _terms(metric, a, values[seed]) for seed, a in answers.items()}
        failed = {run.seed: run.problem.partition(": ")[2] for run in own if run.problem.startswith("failed")}
        kept = {seed: t for seed, t in found.items() if t is not None}
        labels = {seed: a.truth for seed, a in answers.items()}
        settings = {seed: flat(result.config) for seed, result in results.items()}
        cells.append(Cell(name, own[0].levels, results, values, kept, labels, failed, settings))
    return [_with_chance(cell, cells, analysis) for cell in cells] if analysis.failed == "chance" else cells


def _terms(metric: str, answers: Answers | PixelAnswers, value: float) -> np.ndarray | None:
    """In the metric's unit, with the mean that was recorded."""
    if isinstance(answers, PixelAnswers):
        found: np.ndarray | None = terms_of_pixels(metric, answers)
    else:
        found = terms(metric, answers.predictions, answers.labels, answers.logits)
    if found is None:
        return None
    scaled = metric_of(f"test_{metric}").scale * found
    return np.asarray(scaled - scaled.mean() + value)


def _with_chance(cell: Cell, cells: Sequence[Cell], analysis: Analysis) -> Cell:
    """The same with the accuracy of a guess at the seeds that failed."""
    data = cell.levels.get("data")  # of which there may be several
    same = [cell, *(other for other in cells if other.levels.get("data") == data)]
    known = next((run for other in same for run in other.runs.values()), None)
    if not cell.failed or known is None:
        return cell
    metric = metric_of(analysis.metric)
    guess = metric.scale / len(known.recall)
    images = next((t.shape for other in same for t in other.terms.values()), None)
    terms = {seed: np.full(images, guess) for seed in cell.failed} if images else {}
    values = {**cell.values, **dict.fromkeys(cell.failed, guess)}
    return replace(cell, values=values, terms={**cell.terms, **terms})

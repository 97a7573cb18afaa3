"""What a report says in words: the verdicts, the shares of the variance, the analysis and its history."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from metaformer.analysis.comparison import Comparison
from metaformer.analysis.stats import Component
from metaformer.analysis.verdict import BOTH, DIFFERENT, EQUIVALENT, INCONCLUSIVE, NONE, Verdicts
from metaformer.config.metrics import in_words, metric_of
from metaformer.config.schema import Study
from metaformer.runs.launch import Launch, Run, Stage, analysis_of


def headline(verdicts: Verdicts, study: Study) -> list[str]:
    """The verdicts in plain words, a sentence for each setting, then the shares of the variance."""
    sentences, metric = [], metric_of(study.analysis.metric)
    for setting in dict.fromkeys(c.setting for c in verdicts.confirmatory):
        family = [c for c in verdicts.confirmatory if c.setting == setting]
        said = [
            f"{verdict}: " + ", ".join(_level(c, metric.digits - 1) for c in family if c.verdict == verdict)
            for verdict in (DIFFERENT, EQUIVALENT, BOTH, INCONCLUSIVE, NONE)
            if any(c.verdict == verdict for c in family)
        ]
        place = f"{setting}, against" if setting else "Against"
        n = min((c.difference.n for c in family if c.difference.n), default=0)
        sentences.append(f"{place} {study.reference} ({metric.unit}, n = {n}): {'; '.join(said)}.")
    return [*sentences, claim(verdicts, study)]


def _level(c: Comparison, places: int) -> str:
    return f"{c.level} {c.difference.mean:+.{places}f}" if c.difference.n else c.level


def claim(verdicts: Verdicts, study: Study) -> str:
    """The paper's claim as numbers: how much of the variance comes from what."""
    shares = verdicts.shares
    if shares.reason:
        return f"The variance is not divided up: {shares.reason}."

    def words(components: Sequence[Component]) -> str:
        return ", ".join(f"{c.name} {100 * c.share:.0f}%{interval(c)}" for c in components)

    def interval(c: Component) -> str:
        return "" if math.isnan(c.low) else f" [{100 * c.low:.0f}, {100 * c.high:.0f}]"

    over = f"{len(verdicts.cells)} cells and {shares.seeds} seeds (in brackets nominal 95% intervals over seeds)"
    sentence = f"Of the variance in {in_words(study.analysis.metric)} over these {over}: "
    sentence += words(shares.everything)
    if shares.without_identity:
        sentence += f". Without identity: {words(shares.without_identity)}"
    return sentence + "."


def left_out(runs: Sequence[Run]) -> list[str]:
    """A line for each reason why runs are not counted: `left out, not started: pooling (seeds 3, 4)`."""
    lines = []
    for problem in dict.fromkeys(run.problem for run in runs if run.problem):
        cells: dict[str, list[str]] = {}
        for run in runs:
            if run.problem == problem:
                cells.setdefault(run.cell, []).append(str(run.seed))
        words = [f"{cell} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})" for cell, seeds in cells.items()]
        lines.append(f"left out, {problem}: {', '.join(words)}")
    return lines


def analysis_words(study: Study) -> str:
    """The analysis block as sentences."""
    a, metric = study.analysis, metric_of(study.analysis.metric)
    correction = "Holm's correction within each setting" if a.correction == "holm" else "no correction"
    better = "" if metric.higher else " (lower is better)"
    words = [
        f"Metric: {a.metric}{better}. Factor: {a.factor}, reference: {study.reference}.",
        f"Differences within ±{a.margin:g} {metric.unit} count as negligible. Alpha: {a.alpha:g}, {correction}.",
        "Equivalent: two one-sided paired t tests reject a difference of the margin. Different: the paired t test "
        "rejects zero, however small the difference. Alpha holds for each of the two kinds of verdict.",
        "Compared whatever the two cost."
        if a.tolerance is None
        else f"No verdict where parameters or MACs differ by more than {a.tolerance:.0%}.",
    ]
    if a.tuned:
        words.append(f"Declared as chosen for each cell by an equal search or budget: {', '.join(a.tuned)}.")
    return " ".join(words)


def history(study: Study, launched: Launch | None, runs: Sequence[Run]) -> tuple[str, bool]:
    """When the analysis and the runs were fixed and whether they changed since, and whether that asks for caution."""
    if launched is None:
        return "It was never launched as a study from this folder, so nobody knows when this was fixed.", True
    ended = sorted(run.result.finished for run in runs if run.result is not None)
    stages = list(launched.analyses)
    if stages[-1].analysis != analysis_of(study):
        stages.append(replace(stages[-1], time="now", analysis=analysis_of(study)))
    first = stages[0].time
    said = [f"Fixed at the first launch, {first}"]
    before = sum(1 for time in ended if time < first)
    if before:
        said[0] += f", when {before} of {len(ended)} runs had ended already, for another study or an earlier sweep"
    elif ended:
        said[0] += f", before the first run ended ({ended[0]})"
    for earlier, later in pairwise(stages):
        looked = ", after the first run ended" if ended and later.time > ended[0] else ""
        said.append(f"CHANGED {later.time}{looked}: {', '.join(_changes(earlier, later))}")
    if len(stages) == 1:
        said.append("not changed since")
    return "; ".join(said) + ".", bool(before) or len(stages) > 1


def _changes(earlier: Stage, later: Stage) -> list[str]:
    found = [
        f"{key} {earlier.analysis.get(key)} -> {value}"
        for key, value in later.analysis.items()
        if earlier.analysis.get(key) != value
    ]
    if earlier.runs != later.runs:
        found.append(f"{earlier.runs['n']} -> {later.runs['n']} runs")
    return found

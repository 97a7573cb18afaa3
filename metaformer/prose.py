"""What a report says in words: the verdicts, the shares of the variance, the analysis and its history."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from metaformer import launch
from metaformer.launch import Run
from metaformer.verdict import BOTH, DIFFERENT, EQUIVALENT, INCONCLUSIVE, NONE, Verdicts


def headline(verdicts: Verdicts, study: Mapping[str, Any]) -> list[str]:
    """The verdicts in plain words, a sentence for each setting, then the shares of the variance."""
    sentences = []
    for setting in dict.fromkeys(c.setting for c in verdicts.confirmatory):
        family = [c for c in verdicts.confirmatory if c.setting == setting]
        said = [
            f"{verdict}: " + ", ".join(f"{c.level} {c.difference.mean:+.1f}" for c in family if c.verdict == verdict)
            for verdict in (DIFFERENT, EQUIVALENT, BOTH, INCONCLUSIVE, NONE)
            if any(c.verdict == verdict for c in family)
        ]
        place = f"{setting}, against" if setting else "Against"
        n = min(c.difference.n for c in family)
        sentences.append(f"{place} {study['reference']} (points, n = {n}): {'; '.join(said)}.")
    return [*sentences, claim(verdicts, study)]


def claim(verdicts: Verdicts, study: Mapping[str, Any]) -> str:
    """The paper's claim as numbers: how much of the variance comes from what."""
    shares = verdicts.shares
    if shares.reason:
        return f"The variance is not divided up: {shares.reason}."
    n = min(len(cell.values) for cell in verdicts.cells)

    def words(components: Sequence[Any]) -> str:
        return ", ".join(f"{c.name} {100 * c.share:.0f}% [{100 * c.low:.0f}, {100 * c.high:.0f}]" for c in components)

    metric = "test" if study["analysis"]["metric"] == "test_accuracy" else "validation"
    sentence = f"Of the variance in {metric} accuracy over these {len(verdicts.cells)} cells and {n} seeds: "
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


def analysis_words(study: Mapping[str, Any]) -> str:
    """The analysis block as a sentence."""
    a = study["analysis"]
    words = [
        f"Metric: {a['metric']}. Factor: {a['factor']}, reference: {study['reference']}.",
        f"Margin: ±{a['margin']:g} points count as no difference. Alpha: {a['alpha']:g}",
    ]
    words[-1] += ", Holm's correction within each setting." if a["correction"] == "holm" else ", not corrected."
    words.append(
        "Compared at the same shape, whatever it costs."
        if a["tolerance"] is None
        else f"Parameters and MACs may differ by {a['tolerance']:.0%}."
    )
    if a["tuned"]:
        words.append(f"Chosen for each cell by an equal search: {', '.join(a['tuned'])}.")
    words.append("Equivalent: two one-sided paired t tests reject at the margin. Different: the paired t test rejects.")
    return " ".join(words)


def history(study: Mapping[str, Any], launched: Mapping[str, Any] | None, runs: Sequence[Run]) -> str:
    """When the analysis was fixed, and whether it changed since."""
    if launched is None:
        return "It was never launched as a study from this folder, so nobody knows when this was fixed."
    finished = [run.result["finished"] for run in runs if run.result is not None and "finished" in run.result]
    first = min(finished, default="")
    stages = list(launched["analyses"])
    if stages[-1]["analysis"] != launch.analysis_of(study):
        stages.append({"time": "now", "analysis": launch.analysis_of(study)})
    said = [f"Fixed at the first launch, {stages[0]['time']}"]
    said[0] += f", {'before' if stages[0]['time'] <= first else 'AFTER'} the first run ended ({first})" if first else ""
    for before, after in pairwise(stages):
        changes = [
            f"{key} {before['analysis'].get(key)} -> {value}"
            for key, value in after["analysis"].items()
            if before["analysis"].get(key) != value
        ]
        late = ", after the first run ended" if first and after["time"] > first else ""
        said.append(f"CHANGED {after['time']}{late}: {', '.join(changes)}")
    if len(stages) == 1:
        said.append("not changed since")
    return "; ".join(said) + "."

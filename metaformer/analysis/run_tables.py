"""What is told of single runs: where they come from, and the metrics of each."""

from collections.abc import Mapping, Sequence
from typing import Any

from metaformer.analysis.text_table import Table
from metaformer.config.metrics import metric_of
from metaformer.runs.launch import Run
from metaformer.runs.result import reported


def provenance_table(runs: Sequence[Run]) -> Table:
    """Commits, versions, devices and times of the finished runs."""
    results = [run.result for run in runs if run.result is not None]

    def distinct(values: Any) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    seconds = sum(result.seconds for result in results)
    commits = [
        r.git["commit"][:12] + (" and changes" if r.git.get("changed") else "") if r.git else "not in a checkout"
        for r in results
    ]
    finished = sorted(result.finished for result in results)
    lines = [
        ["commit", distinct(commits)],
        ["training version", distinct(result.training_version for result in results)],
        ["Python", distinct(result.python for result in results)],
        ["libraries", distinct(" ".join(f"{k} {v}" for k, v in r.versions.items()) for r in results)],
        ["device", distinct(f"{result.device}, {result.threads} threads a run" for result in results)],
        ["training time", f"{seconds / 3600:.2f} hours over {len(results)} runs"],
        ["finished", f"{finished[0]} to {finished[-1]}"],
        ["left out", f"{sum(1 for run in runs if run.problem)} of {len(runs)} runs"],
    ]
    return Table(["", "value"], lines, words=("value",))


def run_table(runs: Sequence[Run]) -> Table:
    """Every finished run, by the name of its folder."""
    finished = [(run, run.result) for run in runs if run.result is not None]
    names = reported(finished[0][1].config.task.name) if finished else []
    lines = []
    for run, result in finished:
        metrics = [_number(result.metrics, name) for name in names]
        lines.append([result.name, run.cell, str(run.seed), *metrics, f"{result.seconds:.0f}"])
    return Table(["run", "cell", "seed", *(name.replace("_", " ") for name in names), "s"], lines)


def _number(metrics: Mapping[str, float], name: str) -> str:
    return f"{metric_of(name).scale * metrics[name]:.{metric_of(name).digits}f}" if name in metrics else ""

"""The tables of a report, as text cells that go to a terminal, to CSV, to Markdown and to the page."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable

from metaformer.analysis.comparison import Comparison, best_rate, by_rate, matched, tolerance
from metaformer.analysis.stats import Component, Estimate
from metaformer.analysis.verdict import BOTH, EQUIVALENT, INCONCLUSIVE, Verdicts, uneven
from metaformer.config.metrics import in_words, metric_of, selecting
from metaformer.config.schema import Analysis, Study
from metaformer.runs.launch import Run
from metaformer.runs.result import REPORTED


@dataclass(frozen=True)
class Table:
    """Text cells under a header; the columns in `words` hold sentences and are set to the left."""

    header: list[str]
    lines: list[list[str]]
    caption: str = ""
    words: tuple[str, ...] = ()

    def markdown(self) -> str:
        rules = ["---" if i == 0 or name in self.words else "---:" for i, name in enumerate(self.header)]
        return "\n".join("| " + " | ".join(line) + " |" for line in [self.header, rules, *self.lines]) + "\n"

    def csv(self) -> str:
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.lines])
        return text.getvalue()

    def rich(self) -> RichTable:
        table = RichTable(box=SIMPLE_HEAD, caption=self.caption, caption_justify="left")
        for i, name in enumerate(self.header):
            left = i == 0 or name in self.words
            table.add_column(name, justify="left" if left else "right", overflow="fold")
        for line in self.lines:
            table.add_row(*map(escape, line))
        return table


def all_tables(study: Study, verdicts: Verdicts) -> dict[str, Table]:
    """What is written as CSV and Markdown, by name."""
    return {
        "accuracy": accuracy_table(verdicts, study),
        "verdicts": verdict_table(verdicts, study.analysis),
        "variance": _variance_table(verdicts),
        "fairness": _fairness_table(verdicts, study.analysis),
        "exploratory": _exploratory_table(verdicts, metric_of(study.analysis.metric).digits),
        "rates": rate_table(verdicts, study.analysis),
    }


def accuracy_table(verdicts: Verdicts, study: Study) -> Table:
    """A line for each cell: its metric, the difference to its reference and the verdict, and what it costs."""
    name, selected = study.analysis.metric, selecting(study.analysis.metric)
    metric, tested = metric_of(name), f"test_{name.partition('_')[2]}"
    compared = {c.cell.name: c for c in verdicts.confirmatory}
    header = ["cell", "n", "val", "test", f"minus {study.reference}", "verdict", "params", "MACs", "s/run"]
    lines = []
    for cell in verdicts.cells:
        c = compared.get(cell.name)
        difference = plus_minus(c.difference, "+", metric.digits) if c and c.difference.n else ""
        if c and c.difference.n != len(cell.values):
            difference += f" (n = {c.difference.n})"
        macs = "uncounted" if cell.first.macs is None else f"{cell.first.macs / 1e6:,.2f}M"
        means = [plus_minus(cell.mean(m), digits=metric.digits) for m in (selected, tested)]
        verdict = _short(c) if c else ""
        costs = [f"{cell.first.params:,}", macs, f"{cell.seconds:.0f}"]
        lines.append([cell.name, str(len(cell.values)), *means, difference, verdict, *costs])
    unit = "%" if metric.unit == "points" else metric.unit
    caption = f"{metric.words} in {unit}: mean over n seeds ± half of the 95% t interval; differences paired by seed"
    caption += ", of validation images" if name == selected else ""
    return Table(header, lines, caption)


def verdict_table(verdicts: Verdicts, analysis: Analysis) -> Table:
    """A line for each confirmatory comparison: verdict, difference, intervals, adjusted p values."""
    tost = f"{1 - 2 * analysis.alpha:.0%} interval"
    header = ["comparison", "verdict", "difference", "95% interval", tost, "p different", "p equivalent", "n"]
    places = metric_of(analysis.metric).digits
    lines = [
        [
            c.name,
            _verdict(c),
            _difference(c, places),
            _interval(c.difference, places),
            _interval(c.tost_interval, places),
            _p(c.p_difference),
            _p(c.p_equivalence),
            str(c.difference.n),
            "; ".join(c.notes),
        ]
        for c in verdicts.confirmatory
    ]
    metric = metric_of(analysis.metric)
    caption = f"{metric.unit.capitalize()} of {metric.words}, paired by seed. p values are adjusted within a setting; "
    caption += "the intervals are not."
    if any(c.verdict == INCONCLUSIVE for c in verdicts.confirmatory):
        caption += " Seeds that would tell: in all, with 80% power, if difference and scatter are as they look now; a"
        caption += " verdict after adding seeds is a second look, and less sure than its p value."
    if any(line[-1] for line in lines):
        header.append("notes")
    return Table(header, [line[: len(header)] for line in lines], caption, ("verdict", "notes"))


def _difference(c: Comparison, places: int) -> str:
    return f"{c.difference.mean:+.{places}f}" if c.difference.n else ""


def _interval(e: Estimate, places: int) -> str:
    return "" if math.isnan(e.low) else f"[{e.low:+.{places}f}, {e.high:+.{places}f}]"


def _variance_table(verdicts: Verdicts) -> Table:
    without = {c.name: c for c in verdicts.shares.without_identity}
    lines = []
    for c in verdicts.shares.everything:
        other = without.get(c.name)
        lines.append([c.name, _share(c), _p(c.p), _share(other) if other else "", _p(other.p) if other else ""])
    caption = (
        "Seeds are blocks, all factors fixed: the shares are of these levels. The intervals resample whole seeds and "
        "are nominally 95%; in simulations they hold the truth in 55-85% at 3 seeds, 75-95% at 5, 85-95% at 10. They "
        "speak of seeds, not of other architectures or mixers. `rest` is what differs between mixers from seed to seed."
    )
    if (ratio := uneven(verdicts.cells)) > 3:
        caption += f" The seeds of some cells scatter {ratio:.0f} times as much as those of others: p values are rough."
    return Table(["from", "share", "p", "without identity", "p "], lines, caption)


def _share(c: Component) -> str:
    return f"{100 * c.share:.1f}%" + ("" if math.isnan(c.low) else f" [{100 * c.low:.1f}, {100 * c.high:.1f}]")


def _fairness_table(verdicts: Verdicts, analysis: Analysis) -> Table:
    lines = []
    for c in verdicts.confirmatory:
        views = [
            _short(c) if matched(c, key, analysis) else f"not matched ({_percent(c.ratio(key))})"
            for key in ("params", "macs")
        ]
        lines.append(
            [c.name, _difference(c, metric_of(analysis.metric).digits), _short(c), *views, _percent(c.ratio("seconds"))]
        )
    shape = "same shape" if analysis.factor == "mixer" else "as they are"
    header = ["comparison", "difference", shape, "same parameters", "same MACs", "training time"]
    caption = (
        f"Same: within {tolerance(analysis):.0%}. Training time as measured, several runs at a time on one machine."
    )
    return Table(header, lines, caption, (shape, "same parameters", "same MACs"))


def _exploratory_table(verdicts: Verdicts, places: int) -> Table:
    lines = [
        [
            c.name,
            c.factor,
            str(c.difference.n),
            _difference(c, places),
            _interval(c.difference, places),
            _p(c.p_difference),
            "; ".join([*c.confounds, *c.notes]),
        ]
        for c in verdicts.exploratory
    ]
    header = ["comparison", "differs in", "n", "difference", "95% interval", "p, not adjusted", "also differs in"]
    return Table(header, lines, "Exploratory: not adjusted for their number.", ("also differs in",))


def rate_table(verdicts: Verdicts, analysis: Analysis) -> Table:
    """The best learning rate of each point of the other factors, where rates were swept."""
    if not verdicts.cells or "lr" not in verdicts.cells[0].levels:
        return Table([], [])
    metric = selecting(analysis.metric)
    places, lines = metric_of(metric).digits, []
    for name, found in by_rate(verdicts.cells, metric).items():
        best, at_edge = best_rate(found, metric)
        edge = "at the edge of the grid: it may lie outside" if at_edge else ""
        spread = max(found.values()) - min(found.values())
        lines.append([name, f"{best:g}", f"{found[best]:.{places}f}", f"{spread:.{places}f}", edge])
    header = ["cell", "best rate", in_words(metric), "best to worst", "note"]
    return Table(header, lines, f"Chosen on {in_words(metric)}.", ("note",))


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


def run_table(runs: Sequence[Run], folder: Path) -> Table:
    """Every finished run with the link to its folder from a page in `folder`."""
    lines = []
    for run in runs:
        if run.result is not None and run.folder is not None:
            metrics = [_number(run.result.metrics, name) for name in REPORTED]
            link = Path(os.path.relpath(run.folder, folder)).as_posix() + "/"
            lines.append([link, run.cell, str(run.seed), *metrics, f"{run.result.seconds:.0f}"])
    names = [name.replace("_", " ") for name in REPORTED]
    return Table(["run", "cell", "seed", *names, "s"], lines)


def _number(metrics: Mapping[str, float], name: str) -> str:
    return f"{metric_of(name).scale * metrics[name]:.{metric_of(name).digits}f}" if name in metrics else ""


def plus_minus(estimate: Estimate, sign: str = "", digits: int = 2) -> str:
    """`76.80 ± 0.41`: a mean and half its interval, which a single seed has not."""
    mean = f"{estimate.mean:{sign}.{digits}f}"
    return mean if math.isnan(estimate.low) else f"{mean} ± {estimate.high - estimate.mean:.{digits}f}"


def _p(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _percent(ratio: float | None) -> str:
    return "?" if ratio is None else f"{ratio - 1:+.0%}"


def _short(c: Comparison) -> str:
    return EQUIVALENT if c.verdict == BOTH else c.verdict


def _verdict(c: Comparison) -> str:
    if c.verdict != INCONCLUSIVE:
        return c.verdict
    more = f"about {c.seeds_needed} seeds would tell" if c.seeds_needed else "more than 1,000 seeds would tell"
    return f"{c.verdict}: {more}"

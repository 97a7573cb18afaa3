"""What a study found: results.csv, tables, figures and one self-contained report.html.

    python -m metaformer.report experiments=NAME

It reads finished runs, draws no random number that is not fixed, and imports no torch. `train` calls it at the end of
a study.
"""

import csv
import hashlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from metaformer import launch
from metaformer.config import USER_ERRORS, check_local_files, compose, explain_or_raise
from metaformer.launch import Run
from metaformer.run import now
from metaformer.schema import ConfigError
from metaformer.stats import BOOTSTRAP_COVERAGE, MCNEMAR_FALSE, Estimate
from metaformer.verdict import BOTH, INCONCLUSIVE, Comparison, Verdicts, judge, matched

TEMPLATE = Path(__file__).parent / "assets" / "report.html"
CAPTION = "accuracy in %: mean over n seeds ± half of the 95% t interval; differences paired by seed"


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


def summarise(study: Mapping[str, Any], runs: Sequence[Run], console: Console, *, write: bool) -> None:
    """Print what a study found; with `write` also leave its files in experiments/NAME."""
    if all(run.problem for run in runs):
        console.print("no run is finished: nothing to report")
        return
    study = effective(study, runs)
    verdicts = judge(study, runs)
    console.print(accuracy_table(verdicts, study).rich())
    for line in headline(verdicts, study):
        console.print(line, markup=False, highlight=False)
    for line in left_out(runs):
        console.print(line, style="yellow", markup=False, highlight=False)
    if write:
        console.print(f"written: {write_files(study, verdicts, runs, console)}")
    elif study["name"]:
        console.print(
            f"not the whole study as it is defined: the files of experiments/{study['name']} stay as they are"
        )


def effective(study: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """The study with a factor that its runs have: a sweep on the command line may vary anything."""
    analysis = dict(study["analysis"])
    if analysis["factor"] not in runs[0].levels:
        analysis["factor"] = next(iter(runs[0].levels))
    return {**study, "analysis": analysis}


def write_files(study: Mapping[str, Any], verdicts: Verdicts, runs: Sequence[Run], console: Console) -> str:
    """results.csv, tables/, figures/ and report.html in experiments/NAME; the last one's path."""
    from jinja2 import Environment

    folder = Path("experiments") / study["name"]
    launched = launch.read(study["name"])
    edited = _edited(folder / "results.csv", launched)
    for warning in edited:
        console.print(warning, style="yellow", markup=False)
    for name in ("tables", "figures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tables = all_tables(study, verdicts, runs, folder)
    for name, table in tables.items():
        if name not in ("runs", "provenance") and table.lines:
            (folder / "tables" / f"{name}.csv").write_text(table.csv())
            (folder / "tables" / f"{name}.md").write_text(table.markdown())
    rows = [launch.row(run) for run in runs if run.result is not None]
    text = StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (folder / "results.csv").write_text(text.getvalue())
    if launched is not None:
        launch.save(launched | {"results_sha256": hashlib.sha256(text.getvalue().encode()).hexdigest()})
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text())
    content = page.render(
        title=study["name"],
        question=study["question"],
        counts=f"{len(rows)} of {len(runs)} runs",
        written=now()[:10],
        headline=headline(verdicts, study),
        warnings=[*left_out(runs), *edited],
        analysis=analysis_words(study),
        history=history(study, launched, runs),
        claim=claim(verdicts, study),
        figures=draw(study, verdicts, runs, folder / "figures"),
        tables=tables,
        command=f"python -m metaformer.train experiments={study['name']}",
    )
    (folder / "report.html").write_text(content)
    return str(folder / "report.html")


def draw(study: Mapping[str, Any], verdicts: Verdicts, runs: Sequence[Run], folder: Path) -> dict[str, str]:
    """Every figure as SVG by name, empty where the study has nothing for it."""
    from metaformer import figures

    metric, factor = study["analysis"]["metric"], study["analysis"]["factor"]
    confirmatory = verdicts.confirmatory
    drawn = {
        "accuracy": figures.accuracy(verdicts.cells, metric, factor, study["reference"]),
        "differences": figures.differences(confirmatory, study["analysis"]["margin"], study["reference"])
        if confirmatory
        else None,
        "variance": figures.variance(verdicts.shares.everything, verdicts.shares.without_identity)
        if verdicts.shares.everything
        else None,
        "cost": figures.cost(verdicts, metric, factor),
        "curves": figures.curves(runs, verdicts.cells, factor),
        "rates": figures.rates(verdicts.cells, factor),
    }
    for name, figure in drawn.items():
        if figure is None:
            for kind in ("png", "svg"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return {name: figures.save(figure, folder, name) if figure else "" for name, figure in drawn.items()}


def _edited(results: Path, launched: Mapping[str, Any] | None) -> list[str]:
    """A warning where results.csv is not as the last report wrote it."""
    recorded = (launched or {}).get("results_sha256")
    if recorded is None or not results.exists():
        return []
    if hashlib.sha256(results.read_bytes()).hexdigest() == recorded:
        return []
    kept = results.with_name("results.edited.csv")
    kept.write_bytes(results.read_bytes())
    return [
        f"{results} was changed by hand: it is written again from the runs, the changed one is kept as {kept.name}."
    ]


# ------------------------------------------------------------------ words


def headline(verdicts: Verdicts, study: Mapping[str, Any]) -> list[str]:
    """The verdicts in plain words, a sentence for each setting, then the shares of the variance."""
    sentences = []
    for setting in dict.fromkeys(c.setting for c in verdicts.confirmatory):
        said: dict[str, list[str]] = {}
        for c in verdicts.confirmatory:
            if c.setting == setting:
                said.setdefault(c.verdict, []).append(f"{c.level} ({c.difference.mean:+.1f})")
        words = "; ".join(f"{verdict}: {', '.join(levels)}" for verdict, levels in said.items())
        n = min(c.difference.n for c in verdicts.confirmatory if c.setting == setting)
        against = f"Against {study['reference']} (points, n = {n})"
        sentences.append(f"{against}, {setting}: {words}." if setting else f"{against}: {words}.")
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


def plus_minus(estimate: Estimate, sign: str = "") -> str:
    """`76.80 ± 0.41`: a mean and half its interval, which a single seed has not."""
    mean = f"{estimate.mean:{sign}.2f}"
    return mean if math.isnan(estimate.low) else f"{mean} ± {estimate.high - estimate.mean:.2f}"


def _p(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _percent(ratio: float | None) -> str:
    return "?" if ratio is None else f"{ratio - 1:+.0%}"


def _verdict(c: Comparison) -> str:
    if c.verdict != INCONCLUSIVE:
        return c.verdict
    more = f"{c.seeds_needed} seeds would tell" if c.seeds_needed else "more than 1,000 seeds would be needed"
    return f"{c.verdict}: {more}"


# ------------------------------------------------------------------ tables


def all_tables(study: Mapping[str, Any], verdicts: Verdicts, runs: Sequence[Run], folder: Path) -> dict[str, Table]:
    return {
        "accuracy": accuracy_table(verdicts, study),
        "verdicts": verdict_table(verdicts),
        "variance": _variance_table(verdicts),
        "fairness": _fairness_table(verdicts, study["analysis"]),
        "secondary": _secondary_table(verdicts),
        "exploratory": _exploratory_table(verdicts),
        "rates": _rate_table(verdicts, study["analysis"]["factor"]),
        "provenance": _provenance_table(runs),
        "runs": _run_table(runs, folder),
    }


def accuracy_table(verdicts: Verdicts, study: Mapping[str, Any]) -> Table:
    """A line for each cell: accuracies, the difference to its reference and the verdict, and what it costs."""
    compared = {c.cell.name: c for c in verdicts.confirmatory}
    header = ["cell", "n", "val", "test", f"minus {study['reference']}", "verdict", "params", "MACs", "s/run"]
    lines = []
    for cell in verdicts.cells:
        c = compared.get(cell.name)
        difference = plus_minus(c.difference, "+") if c else ""
        if c and c.difference.n != len(cell.values):
            difference += f" (n = {c.difference.n})"
        macs = "uncounted" if cell.first["macs"] is None else f"{cell.first['macs'] / 1e6:,.2f}M"
        accuracies = [plus_minus(cell.mean(metric)) for metric in ("val_accuracy", "test_accuracy")]
        verdict = "equivalent" if c and c.verdict == BOTH else c.verdict if c else ""
        costs = [f"{cell.first['params']:,}", macs, f"{cell.seconds:.0f}"]
        lines.append([cell.name, str(len(cell.values)), *accuracies, difference, verdict, *costs])
    return Table(header, lines, CAPTION)


def verdict_table(verdicts: Verdicts) -> Table:
    header = ["comparison", "verdict", "difference", "95% interval", "90% interval", "p different", "p equivalent", "n"]
    lines = [
        [
            c.name,
            _verdict(c),
            f"{c.difference.mean:+.2f}",
            _interval(c.difference),
            _interval(c.interval90),
            _p(c.p_difference),
            _p(c.p_equivalence),
            str(c.difference.n),
            "; ".join(c.notes),
        ]
        for c in verdicts.confirmatory
    ]
    caption = "Points of accuracy, paired by seed. p values are adjusted within a setting; the intervals are not."
    return Table([*header, "notes"], lines, caption, ("verdict", "notes"))


def _interval(e: Estimate) -> str:
    return "" if math.isnan(e.low) else f"[{e.low:+.2f}, {e.high:+.2f}]"


def _variance_table(verdicts: Verdicts) -> Table:
    without = {c.name: c for c in verdicts.shares.without_identity}
    lines = []
    for c in verdicts.shares.everything:
        other = without.get(c.name)
        share = f"{100 * c.share:.1f}% [{100 * c.low:.1f}, {100 * c.high:.1f}]"
        twin = f"{100 * other.share:.1f}% [{100 * other.low:.1f}, {100 * other.high:.1f}]" if other else ""
        lines.append([c.name, share, _p(c.p), twin, _p(other.p) if other else ""])
    caption = (
        "Seeds are blocks within a setting, all factors fixed: the shares are of these levels, and the intervals "
        "(whole seeds resampled, nominally 95%; in simulations 62-82% at 3 seeds, 82-91% at 5, 86-95% at 10) speak of "
        "seeds, not of other architectures or mixers. `rest` is what differs between mixers from seed to seed."
    )
    return Table(["from", "share", "p", "without identity", "p "], lines, caption)


def _fairness_table(verdicts: Verdicts, analysis: Mapping[str, Any]) -> Table:
    lines = []
    for c in verdicts.confirmatory:
        short = "equivalent" if c.verdict == BOTH else c.verdict
        views = [
            short if matched(c, key, analysis) else f"not matched ({_percent(c.ratio(key))})"
            for key in ("params", "macs")
        ]
        lines.append([c.name, f"{c.difference.mean:+.2f}", short, *views, _percent(c.ratio("seconds"))])
    header = ["comparison", "difference", "same shape", "same parameters", "same MACs", "training time"]
    caption = "Training time as measured in these runs, several of them at a time on one machine."
    return Table(header, lines, caption, ("same shape", "same parameters", "same MACs"))


def _secondary_table(verdicts: Verdicts) -> Table:
    lines = [
        [c.name, f"{c.difference.mean:+.2f}", f"[{c.bootstrap[0]:+.2f}, {c.bootstrap[1]:+.2f}]", _p(c.mcnemar)]
        for c in verdicts.confirmatory
        if c.bootstrap is not None
    ]
    simulated = ", ".join(
        f"n = {n}: the bootstrap's interval holds the truth in {BOOTSTRAP_COVERAGE[n]:.0%}, McNemar finds a difference "
        f"where there is none in {MCNEMAR_FALSE[n]:.0%}"
        for n in BOOTSTRAP_COVERAGE
    )
    caption = "Secondary: no verdict rests on these. In simulated studies with seeds that differ by 2 points (SD), "
    caption += f"{simulated}."
    return Table(["comparison", "difference", "bootstrap of seeds and images, 95%", "McNemar p"], lines, caption)


def _exploratory_table(verdicts: Verdicts) -> Table:
    lines = [
        [
            f"{c.setting} {c.level} - {c.reference.levels[c.factor]}".strip(),
            c.factor,
            str(c.difference.n),
            f"{c.difference.mean:+.2f}",
            _interval(c.difference),
            _p(c.p_difference),
            "; ".join([*c.confounds, *c.notes]),
        ]
        for c in verdicts.exploratory
    ]
    header = ["comparison", "differs in", "n", "difference", "95% interval", "p, not adjusted", "also differs in"]
    return Table(header, lines, "Exploratory: not adjusted for their number.", ("also differs in",))


def _rate_table(verdicts: Verdicts, factor: str) -> Table:
    if not verdicts.cells or "lr" not in verdicts.cells[0].levels:
        return Table([], [])
    from metaformer.figures import by_rate

    lines = []
    for name, found in by_rate(verdicts.cells, factor).items():
        best = max(found, key=lambda rate: found[rate])
        edge = "at the edge of the grid: it may lie outside" if best in (min(found), max(found)) else ""
        lines.append([name, f"{best:g}", f"{found[best]:.2f}", f"{found[best] - min(found.values()):.2f}", edge])
    header = ["cell", "best rate", "validation accuracy", "best minus worst", "note"]
    return Table(header, lines, "Chosen on validation accuracy.", ("note",))


def _provenance_table(runs: Sequence[Run]) -> Table:
    results = [run.result for run in runs if run.result is not None]

    def distinct(values: Any) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    seconds = sum(result["seconds"] for result in results)
    commits = [
        "not in a checkout"
        if not r["git"]
        else r["git"]["commit"][:12] + (" and changes" if r["git"]["changed"] else "")
        for r in results
    ]
    finished = sorted(result["finished"] for result in results)
    lines = [
        ["commit", distinct(commits)],
        ["code", distinct(result["code"] for result in results)],
        ["Python", distinct(result["python"] for result in results)],
        ["libraries", distinct(" ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in results)],
        ["device", distinct(f"{result['device']}, {result['threads']} threads a run" for result in results)],
        ["training time", f"{seconds / 3600:.2f} hours over {len(results)} runs"],
        ["finished", f"{finished[0]} to {finished[-1]}"],
        ["left out", f"{sum(1 for run in runs if run.problem)} of {len(runs)} runs"],
    ]
    return Table(["", "value"], lines, words=("value",))


def _run_table(runs: Sequence[Run], folder: Path) -> Table:
    lines = []
    for run in runs:
        if run.result is not None and run.folder is not None:
            metrics = [f"{100 * run.result['metrics'][name]:.2f}" for name in launch.METRICS]
            link = Path(os.path.relpath(run.folder, folder)).as_posix() + "/"
            lines.append([link, run.cell, str(run.seed), *metrics, f"{run.result['seconds']:.0f}"])
    return Table(["run", "cell", "seed", "train", "val", "test", "s"], lines)


def print_run(status: str, folder: str, result: Mapping[str, Any], console: Console) -> None:
    """The result of one run, in two lines."""
    metrics = result["metrics"]
    macs = "MACs uncounted" if result["macs"] is None else f"{result['macs']:,} MACs"
    parts = [
        f"{split} {metrics[f'{split}_accuracy']:.2%}"
        for split in ("train", "val", "test")
        if f"{split}_accuracy" in metrics
    ]
    console.print(
        f"[bold]{status}[/] {', '.join(parts)}; {result['params']:,} parameters, {macs}, {result['seconds']:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(folder, highlight=False, soft_wrap=True)


# ------------------------------------------------------------------ command


def main() -> None:
    arguments = sys.argv[1:]
    if set(arguments) & {"-h", "--help"}:
        print(__doc__)
        return
    try:
        check_local_files()
        report(arguments)
    except USER_ERRORS as error:
        explain_or_raise(error)


def report(arguments: Sequence[str]) -> None:
    """Judge the study that the command line names, from what is finished of it."""
    from omegaconf import OmegaConf

    changed = [a for a in arguments if not a.lstrip("+").startswith(("experiments=", "runtime."))]
    study: Any = None
    launched = None
    if not changed:
        cfg = compose(arguments)
        study, folder = OmegaConf.to_container(cfg.study, resolve=True), cfg.runtime.runs
        launched = launch.read(study["name"]) if study["name"] else None
    if launched is None:
        from metaformer.study import expand

        planned = expand(arguments)
        study, folder = planned[0].config["study"], planned[0].config["runtime"]["runs"]
        listed = launch.entries(planned)
    else:
        listed = launched["runs"]
    if study["name"] is None:
        raise ConfigError("expected experiments=NAME, a study; python -m metaformer.train --help lists them")
    runs = launch.collect(listed, Path(folder))
    console = Console(width=None if sys.stdout.isatty() else 140)
    summarise(study, runs, console, write=not changed)
    if all(run.problem for run in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""What a study will be able to say, before it is launched.

    python -m metaformer.plan experiments=NAME             # its runs so far, and the power of its seeds
    python -m metaformer.plan experiments=NAME sd=1.5      # for paired differences that scatter by 1.5 points
    python -m metaformer.plan experiments=NAME from=OTHER  # as much as those of another study did
    python -m metaformer.plan experiments=NAME throughput=900  # its cost, at 900 training images a second and run

The power is that of the first step of the study's correction, which is the hardest. Without sd= and from= the scatter
is that of the finished runs of the study itself, or else an assumption of 1 point, and it says so.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metaformer.analysis.page import effective
from metaformer.analysis.stats import seeds_needed
from metaformer.analysis.verdict import first_step
from metaformer.cli import answer, positive, words
from metaformer.config.metrics import metric_of
from metaformer.runs.launch import check_study, collect
from metaformer.studies.estimate import estimate
from metaformer.studies.points import expand
from metaformer.studies.power import power_table, scatter, scatter_of, size
from metaformer.studies.sweeper import changes
from metaformer.system.errors import ConfigError


def plan(arguments: Sequence[str], console: Console) -> None:
    """Print the state of a study's runs and the power of its seeds."""
    given = words(arguments, own=("sd", "from", "throughput"))
    if {"sd", "from"} <= given.own.keys():
        raise ConfigError("sd, from: expected one of them, both say how much the differences scatter")
    points = expand(given.overrides)
    config, entries = points[0].config, [point.entry for point in points]
    if config.study.name and not changes(given.overrides):
        check_study(config.study, entries)
    folder = Path(config.runtime.runs)
    runs = collect(entries, folder)
    study = effective(config.study, runs)
    counts = Counter(run.problem.partition(":")[0] or "finished" for run in runs)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"[bold]{study.name or 'sweep'}[/]: {len(runs)} runs: {states}", highlight=False)
    throughput = positive("throughput", given.own.get("throughput"), "training images a second")
    for line in estimate(points, runs, folder, throughput):
        console.print(line, highlight=False)
    seeds, comparisons = size(study, runs)
    if not comparisons:
        console.print("nothing is compared with a reference: there is no power to speak of")
        return
    unit = metric_of(study.analysis.metric).unit
    sd = positive("sd", given.own.get("sd"), unit, below=100)
    source = "as stated"
    if sd is None:
        other = given.own.get("from")
        sd, source = scatter_of(other, folder) if other else scatter(study, runs)
    alpha, margin = first_step(study.analysis, comparisons), study.analysis.margin / sd
    console.print(
        f"{seeds} seeds, {comparisons} comparison{'s' * (comparisons > 1)} with {study.reference} in a setting, margin "
        f"{study.analysis.margin:g} {unit} = {margin:.2f} SD of the paired difference ({sd:.2f} {unit}, {source})",
        highlight=False,
    )
    console.print(power_table(seeds, margin, alpha).rich())
    needed = seeds_needed(margin, alpha) or "more than 1,000"
    console.print(f"{needed} seeds show with 80% that two equal cells are equivalent", highlight=False)


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    answer(__doc__, lambda arguments: plan(arguments, console))


if __name__ == "__main__":
    main()

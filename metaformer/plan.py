"""What a study will be able to say, before it is launched.

    python -m metaformer.plan experiments=NAME             # its runs so far, and the power of its seeds
    python -m metaformer.plan experiments=NAME sd=1.5      # for paired differences that scatter by 1.5 points
    python -m metaformer.plan experiments=NAME from=OTHER  # as much as those of another study did
    python -m metaformer.plan experiments=NAME images=10000  # so many test images, where they are not known
    python -m metaformer.plan experiments=NAME throughput=900  # its cost, at 900 training images a second and run

The power is that of the first step of the study's correction, the hardest, with each comparison's own variance.
Verdicts are for other seeds and other images: the choice of the test images has a standard error that no number of
seeds makes smaller. Without sd= and from= both are those of the finished runs of the study itself, or else assumed,
and it says so.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metaformer.analysis.page import effective
from metaformer.cli import answer, positive, words
from metaformer.config.compose import changes, keys_of
from metaformer.config.metrics import metric_of
from metaformer.runs.packed import gather
from metaformer.runs.study_check import check_study
from metaformer.studies.estimate import estimate
from metaformer.studies.points import expand
from metaformer.studies.power_of_seeds import scatter, scatter_of, size, tell_power
from metaformer.system.errors import ConfigError


def plan(arguments: Sequence[str], console: Console) -> None:
    """Print the state of a study's runs and the power of its seeds."""
    given = words(arguments, own=("sd", "from", "images", "throughput"))
    if {"sd", "from"} <= given.own.keys():
        raise ConfigError("sd, from: expected one of them, both say how much the differences scatter")
    if {"images", "from"} <= given.own.keys():
        raise ConfigError("images, from: expected one of them, the other study has its own test images")
    points = expand(given.overrides)
    config, entries = points[0].config, [point.entry for point in points]
    whole = config.study.name and not changes(given.overrides)
    planned = check_study(config.study, entries, None if whole else keys_of(given.overrides))
    unit = metric_of(config.study.analysis.metric).unit
    throughput = positive("throughput", given.own.get("throughput"), "training images a second")
    images = positive("images", given.own.get("images"), "test images")
    if images is not None and images % 1:
        raise ConfigError(f"images={images:g}: expected a whole number of test images")
    sd = positive("sd", given.own.get("sd"), unit, below=100)
    folder = Path(config.runtime.runs)
    packed = config.study.name if config.runtime.packed else None  # those of runs.npz count too
    runs = gather(packed, entries, folder, config.runtime.packed)
    study = effective(planned, runs)
    seeds, comparisons = size(study, runs)
    if other := given.own.get("from"):
        spread, source = scatter_of(other, folder, unit)
    else:
        spread, source = scatter(study, runs, config.data, sd, images)
    counts = Counter(run.problem.partition(":")[0] or "finished" for run in runs)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"[bold]{study.name or 'sweep'}[/]: {len(runs)} runs: {states}", highlight=False)
    for line in estimate(points, runs, folder, throughput):
        console.print(line, highlight=False)
    if not comparisons:
        console.print("nothing is compared with a reference: there is no power to speak of")
        return
    tell_power(study, seeds, comparisons, spread, source, console)


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    answer(__doc__, lambda arguments: plan(arguments, console), ("study", "budget", "runtime"))


if __name__ == "__main__":
    main()

"""What a study will be able to say, before it is launched.

    python -m metaformer.plan experiments=NAME             # its runs so far, and the power of its seeds
    python -m metaformer.plan experiments=NAME sd=1.5      # for paired differences that scatter by 1.5 points
    python -m metaformer.plan experiments=NAME from=OTHER  # as much as those of another study did

The power is that of the first step of the study's correction, which is the hardest. Without sd= and from= the scatter
is that of the finished runs of the study itself, or else an assumption of 1 point, and it says so.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from metaformer import launch
from metaformer.config import answer
from metaformer.launch import Run
from metaformer.report import effective
from metaformer.schema import ConfigError
from metaformer.slots import places
from metaformer.stats import difference_power, equivalence_power, seeds_needed
from metaformer.tables import Table
from metaformer.verdict import first_step, judge

SEEDS = (3, 5, 8, 10, 15, 20, 30)
ASSUMED_SD = 1.0  # points


def plan(arguments: Sequence[str], console: Console) -> None:
    """Print the state of a study's runs and the power of its seeds."""
    from metaformer.study import changes, expand

    own = {key: value for key, _, value in (a.partition("=") for a in arguments) if key in ("sd", "from")}
    if len(own) == 2:
        raise ConfigError("sd, from: expected one of them, both say how much the differences scatter")
    rest = [a for a in arguments if a.partition("=")[0] not in own]
    planned = expand(rest)
    config = planned[0].config
    folder = Path(config["runtime"]["runs"])
    listed = launch.entries(planned)
    if config["study"]["name"] and not changes(rest):
        launch.check(config["study"], listed)
    runs = launch.collect(listed, folder)
    study = effective(config["study"], runs)
    console.print(f"[bold]{study['name'] or 'sweep'}[/]: {_states(runs)}", highlight=False)
    if left := _left(runs, config["runtime"]):
        console.print(left, highlight=False)
    seeds, comparisons = _size(study, runs)
    if not comparisons:
        console.print("nothing is compared with a reference: there is no power to speak of")
        return
    sd, source = _scatter(own, study, runs, folder)
    analysis = study["analysis"]
    alpha = first_step(analysis, comparisons)
    margin = analysis["margin"] / sd
    plural = "s" * (comparisons > 1)
    console.print(
        f"{seeds} seeds, {comparisons} comparison{plural} with {study['reference']} in a setting, margin "
        f"{analysis['margin']:g} points = {margin:.2f} SD of the paired difference ({sd:.2f} points, {source})",
        highlight=False,
    )
    console.print(power_table(seeds, margin, alpha).rich())
    needed = seeds_needed(margin, alpha)
    console.print(
        f"{needed or 'more than 1,000'} seeds show with 80% that two equal cells are equivalent", highlight=False
    )


def _states(runs: Sequence[Run]) -> str:
    counts = Counter(run.problem.partition(":")[0] or "finished" for run in runs)
    return f"{len(runs)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items())


def _left(runs: Sequence[Run], runtime: Mapping[str, Any]) -> str:
    """How long the rest takes here, by the time of the finished runs of the same cell, or of all; and their size."""
    seconds: dict[str, list[float]] = {}
    for run in runs:
        if run.result is not None:
            seconds.setdefault(run.cell, []).append(run.result["seconds"])
    if not seconds:
        return ""
    everything = [value for values in seconds.values() for value in values]
    todo = [run for run in runs if run.result is None]
    total = sum(float(np.mean(seconds.get(run.cell, everything))) for run in todo)
    at_once = places(runtime["accelerator"], runtime["per_gpu"])
    folders = [run.folder for run in runs if run.result is not None and run.folder is not None]
    size = float(
        np.mean([sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) for folder in folders])
    )
    words = [f"{sum(everything) / 3600:.2f} hours of training done"]
    if todo:
        words.append(f"about {total / 3600:.2f} to do, {total / 60 / at_once:.0f} minutes with {at_once} at a time")
    return ", ".join([*words, f"{size * len(runs) / 2**20:.0f} MB in the end"])


def _size(study: Mapping[str, Any], runs: Sequence[Run]) -> tuple[int, int]:
    """Seeds of a cell and comparisons of a family, the fewest and the most."""
    factor, reference = study["analysis"]["factor"], study["reference"]
    families: dict[tuple[str, ...], set[str]] = {}
    for run in runs:
        setting = tuple(level for f, level in run.levels.items() if f != factor)
        families.setdefault(setting, set()).add(run.levels[factor])
    comparisons = max(len(levels) - 1 if reference in levels else 0 for levels in families.values())
    return min(Counter(run.cell for run in runs).values()), comparisons


def _scatter(own: Mapping[str, str], study: Mapping[str, Any], runs: Sequence[Run], folder: Path) -> tuple[float, str]:
    """SD of the paired difference in points, and where it comes from."""
    if "sd" in own:
        try:
            sd = float(own["sd"])
        except ValueError:
            sd = -1.0
        if not 0 < sd < 100:
            raise ConfigError(f"sd={own['sd']}: expected points of accuracy, above 0 and below 100")
        return sd, "as stated"
    source = "from the finished runs of this study"
    if "from" in own:
        launched = launch.read(own["from"])
        if launched is None:
            raise ConfigError(f"from={own['from']}: no study of that name was launched from this folder")
        runs = launch.collect(launched["runs"], folder)
        latest = dict(launched["analyses"][-1]["analysis"])
        study = {"name": own["from"], "reference": latest.pop("reference"), "analysis": latest}
        source = f"from the finished runs of {own['from']}"
    variances = [
        float(np.var(c.differences, ddof=1))
        for c in (judge(study, runs).confirmatory if any(run.result for run in runs) else [])
        if c.difference.n > 1
    ]
    if variances and np.mean(variances) > 0:
        return float(np.sqrt(np.mean(variances))), f"{source}, {len(variances)} comparison{'s' * (len(variances) > 1)}"
    if "from" in own:
        raise ConfigError(f"from={own['from']}: it has no two finished seeds of any comparison")
    return ASSUMED_SD, "an assumption: sd=POINTS or from=STUDY replaces it"


def power_table(planned: int, margin: float, alpha: float) -> Table:
    """Power by number of seeds; margin in SD of the paired difference, alpha of the first step."""
    lines = []
    for n in sorted({*SEEDS, planned} - {1}):
        chances = [equivalence_power(n, margin, alpha)]
        chances += [difference_power(n, size * margin, alpha) for size in (1, 2)]
        lines.append([f"{n}{' (planned)' if n == planned else ''}", *(f"{chance:.0%}" for chance in chances)])
    header = ["seeds", "equivalent, if equal", "different, if by the margin", "different, if by twice the margin"]
    return Table(header, lines, "chance of each verdict")


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    answer(__doc__, lambda arguments: plan([a for a in arguments if a not in ("-m", "--multirun")], console))


if __name__ == "__main__":
    main()

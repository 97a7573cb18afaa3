"""What a study found: results.csv, tables, figures and one self-contained report.html.

    python -m metaformer.report experiments=NAME                # to runs/reports/NAME
    python -m metaformer.report experiments=NAME publish=true   # to experiments/NAME, with the runs in runs.npz

It reads finished runs, or experiments/NAME/runs.npz where they have no folder here, draws no random number that is not
fixed, and imports no torch. `train` calls it at the end of a study.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metaformer.analysis.page import summarise
from metaformer.cli import answer, flag, words
from metaformer.config.compose import changes, compose, key_of, keys_of
from metaformer.config.validate import judged
from metaformer.runs.launch import read_launch, source_of
from metaformer.runs.packed import gather
from metaformer.runs.report_folder import written_to
from metaformer.runs.study_check import check_study
from metaformer.studies.points import expand
from metaformer.system.errors import ConfigError


def report(arguments: Sequence[str]) -> None:
    """Judge the study that the command line names, from what is finished of it."""
    given = words(arguments, own=("publish",))
    overrides, publish = given.overrides, flag(given.own, "publish")
    changed, launched = changes(overrides), None
    if all(key_of(word).startswith("study.") for word in changed):  # how its runs are judged, and not which
        config = compose(overrides)
        launched = read_launch(config.study.name) if config.study.name else None
    if launched is None or launched.source != source_of(launched.study):
        points = expand(overrides)  # its files changed since, or it never was launched
        config, entries = points[0].config, [point.entry for point in points]
    else:
        entries = launched.runs
    study, name = judged(config), config.study.name
    if name is None:
        raise ConfigError("expected experiments=NAME, a study; python -m metaformer.train --help lists them")
    if changed and publish:
        raise ConfigError("publish=true: a whole study is published, without other words than experiments=NAME")
    study = check_study(study, entries, keys_of(overrides) if changed else None)
    runs = gather(name, entries, Path(config.runtime.runs), config.runtime.packed)
    console = Console(width=None if sys.stdout.isatty() else 140)
    folder = written_to(Path(config.runtime.runs), name, changed, publish=publish)
    summarise(study, runs, console, folder, whole=not changed)
    if all(run.problem for run in runs):
        raise SystemExit(1)


def main() -> None:
    answer(__doc__, report, ("study", "runtime"))


if __name__ == "__main__":
    main()

"""Which runs are probed, the page on which each stands, and what is measured of them. Imports torch only to measure."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from metaformer.config.compose import compose
from metaformer.config.identity import flat
from metaformer.config.schema import Data
from metaformer.probing.kept import Probed, key_of, read, write
from metaformer.runs.finished import Finished, finished
from metaformer.runs.launch import collect, not_launched, read_launch, setting_of
from metaformer.runs.result import Result
from metaformer.system import machine
from metaformer.system.errors import ConfigError
from metaformer.system.files import output_to
from metaformer.system.orphans import first_of_workers


@dataclass(frozen=True)
class Asked:
    """A run that is to be probed, and its place on the pages."""

    setting: str  # a page each
    cell: str
    run: Finished


def of_folders(folders: Sequence[str], overrides: Sequence[str]) -> list[Asked]:
    """Runs as they are named on the command line: one page; a cell is called by what tells it apart."""
    runs = [finished(Path(folder), overrides) for folder in dict.fromkeys(folders)]
    names = _names({run.result.cell_id: run.result for run in runs})
    return [Asked("", names[run.result.cell_id], run) for run in runs]


def _names(cells: Mapping[str, Result]) -> dict[str, str]:
    """A name for each cell: its mixer; with its model or the values that differ, where others have that mixer too."""
    names = {}
    for cell, result in cells.items():
        same = [other for other in cells.values() if other.choices["mixer"] == result.choices["mixer"]]
        names[cell] = result.choices["mixer"]
        if len({other.choices["model"] for other in same}) > 1:
            names[cell] = f"{result.choices['model']} {names[cell]}"
            same = [other for other in same if other.choices["model"] == result.choices["model"]]
        own, *others = (flat(one.config) for one in (result, *same))
        keys = [key for key in own if key != "seed" and any(other.get(key) != own[key] for other in others)]
        names[cell] += "".join(f" {key.rpartition('.')[2]}={own[key]}" for key in keys)
    alike = {cell for cell, name in names.items() if list(names.values()).count(name) > 1}
    return {cell: f"{name} {cell}" if cell in alike else name for cell, name in names.items()}


def of_study(name: str, overrides: Sequence[str], console: Console) -> list[Asked]:
    """Every finished run of a study that was launched from this folder."""
    launched = read_launch(name)
    if launched is None:
        raise ConfigError(f"experiments={name}: {not_launched(name)}")
    runs = collect(launched.runs, Path(compose(overrides).runtime.runs))
    analysis = launched.analyses[-1].study(name).analysis
    factor, baselines = analysis.factor, analysis.baselines
    runs = [run for run in runs if run.levels.get(factor) not in baselines]  # of another kind, without mixers
    asked = [
        Asked(setting_of(run.levels, factor), run.levels.get(factor, run.cell), finished(run.folder, overrides))
        for run in runs
        if not run.problem and run.folder is not None
    ]
    if not asked:
        raise ConfigError(f"experiments={name}: none of its {len(runs)} runs is finished here")
    if baselines:
        console.print(f"left out, for they have no mixers: {', '.join(baselines)}", style="yellow", markup=False)
    if len(asked) < len(runs):
        console.print(f"{len(runs) - len(asked)} of {len(runs)} runs are not finished and left out", style="yellow")
    return asked


def check_images(asked: Sequence[Asked]) -> None:
    """Refuse models without mixers, masks, and different data on one page, whose features cannot be compared."""
    first: dict[str, tuple[Data, str | None, Path]] = {}
    for a in asked:
        if a.run.config.task.segments:
            raise ConfigError(f"{a.run.folder}: is of segmentation; expected runs of task=classification")
        if (model := a.run.config.model).source == "timm":
            raise ConfigError(f"{a.run.folder}: its model is {model.name} of timm; expected a MetaFormer")
        here = (replace(a.run.config.data, root=None), a.run.result.fingerprint, a.run.folder)
        other = first.setdefault(a.setting, here)
        if other[:2] != here[:2]:
            raise ConfigError(f"{other[2]} and {here[2]}: of different data; expected runs on the same images")


def all_of(asked: Sequence[Asked], console: Console) -> dict[str, dict[str, dict[int, Probed]]]:
    """What was measured of each run, by setting, cell and seed; several runs at a time, a core each."""
    from joblib import Parallel, delayed
    from rich.progress import track

    runtime = asked[0].run.config.runtime
    jobs = min(machine.places(runtime.accelerator, runtime.per_gpu), len(asked))
    first = first_of_workers() if jobs > 1 else {}
    results = Parallel(n_jobs=jobs, return_as="generator", **first)(delayed(probe)(a.run, jobs) for a in asked)
    found: dict[str, dict[str, dict[int, Probed]]] = {}
    shown = track(zip(asked, results, strict=True), "probing", len(asked), console=console)
    for a, probed in shown if console.is_terminal else zip(asked, results, strict=True):
        found.setdefault(a.setting, {}).setdefault(a.cell, {})[a.run.result.seed] = probed
    return found


def probe(run: Finished, jobs: int) -> Probed:
    """What was measured of a run: read from its folder, or measured and written there.

    Args:
        jobs: how many runs are probed at once on this machine.
    """
    key, runtime = key_of(run), run.config.runtime
    if (kept := read(run.folder, key)) is not None:
        return kept
    if jobs > 1:
        machine.take(runtime.accelerator, runtime.per_gpu)  # before torch is imported
    with output_to(Path(os.devnull)):
        from metaformer.probing.one_run import measure

        probed = measure(run, jobs)
    write(run.folder, key, probed)
    return probed

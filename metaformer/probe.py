"""What trained mixers do, measured on the same axes for every mixer: tables, pictures, a page for each comparison.

    python -m metaformer.probe runs/RUN [runs/RUN ...] [out=probes]   # runs beside each other
    python -m metaformer.probe experiments=NAME                       # a study: a page for each setting of its factor

On validation images: which tokens a mixer brings together, what of an image reaches a token, how strong the branch is,
whether two mixers learn the same features, and what is lost where a mixer is taken out of a stage. What was measured
of a run is kept in its folder.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from metaformer import launch, portrait, slots
from metaformer.config import answer, compose
from metaformer.evaluate import parse
from metaformer.measured import Probed, probe
from metaformer.report import template
from metaformer.run import now
from metaformer.schema import ConfigError, nearest
from metaformer.validation import validate


@dataclass(frozen=True)
class Asked:
    """A run that is to be probed, and its place on the pages."""

    setting: str  # a page each
    cell: str
    seed: int
    folder: Path
    config: dict[str, Any]


def of_folders(folders: Sequence[str], overrides: Sequence[str]) -> list[Asked]:
    """Runs as they are named on the command line: one page; a cell is called by its mixer where that tells it apart."""
    found = [parse([f"run={folder.rstrip('/')}", *overrides]) for folder in dict.fromkeys(folders)]
    choices = {result["cell_id"]: result["choices"] for _, _, result in found}
    short, long = ({cell: form.format(**c) for cell, c in choices.items()} for form in ("{mixer}", "{model} {mixer}"))

    def name(cell: str) -> str:
        unique = (names[cell] for names in (short, long) if list(names.values()).count(names[cell]) == 1)
        return next(unique, f"{short[cell]} {cell}")

    return [Asked("", name(result["cell_id"]), result["seed"], folder, config) for folder, config, result in found]


def of_study(name: str, overrides: Sequence[str], console: Console) -> list[Asked]:
    """Every finished run of a study that was launched from this folder."""
    launched = launch.read(name)
    if launched is None:
        known = sorted(path.parent.name for path in Path("experiments").glob("*/launch.json"))
        raise ConfigError(f"experiments={name}: no study of that name was launched from this folder"
                          f"{nearest(name, known)}")  # fmt: skip
    runs = launch.collect(launched["runs"], Path(validate(compose(overrides))["runtime"]["runs"]))
    factor = launched["analyses"][-1]["analysis"]["factor"]
    asked = []
    for run in runs:
        if run.problem or run.folder is None:
            continue
        _, config, _ = parse([f"run={run.folder}", *overrides])
        setting = launch.setting_of(run.levels, factor)
        asked.append(Asked(setting, run.levels.get(factor, run.cell), run.seed, run.folder, config))
    if not asked:
        raise ConfigError(f"experiments={name}: none of its {len(runs)} runs is finished here")
    if len(asked) < len(runs):
        console.print(f"{len(runs) - len(asked)} of {len(runs)} runs are not finished and left out", style="yellow")
    return asked


def check_images(asked: Sequence[Asked]) -> None:
    """Refuse runs of different data on one page: neither their features nor their accuracies can be compared."""
    for setting in {a.setting for a in asked}:
        data = {
            json.dumps({**a.config["data"], "root": None}, sort_keys=True): a for a in asked if a.setting == setting
        }
        if len(data) > 1:
            one, other = list(data.values())[:2]
            raise ConfigError(f"{one.folder} and {other.folder}: of different data; expected runs on the same images")


def all_of(asked: Sequence[Asked], console: Console) -> dict[str, dict[str, dict[int, Probed]]]:
    """What was measured of each run, by setting, cell and seed; several runs at a time, a core each."""
    from joblib import Parallel, delayed
    from rich.progress import track

    runtime = asked[0].config["runtime"]
    jobs = min(slots.places(runtime["accelerator"], runtime["per_gpu"]), len(asked))
    tasks = (delayed(probe)(a.folder, a.config, jobs) for a in asked)
    results = Parallel(n_jobs=jobs, return_as="generator")(tasks)
    found: dict[str, dict[str, dict[int, Probed]]] = {}
    shown = track(zip(asked, results, strict=True), "probing", len(asked), console=console)
    for a, probed in shown if console.is_terminal else zip(asked, results, strict=True):
        found.setdefault(a.setting, {}).setdefault(a.cell, {})[a.seed] = probed
    return found


def write_page(cells: portrait.Cells, folder: Path, setting: str, title: str, command: str) -> Path:
    """Tables, figures and one self-contained page of a comparison."""
    from metaformer import figures, pictures

    prefix = f"{setting.replace(' ', '-').replace('/', '_')}-" if setting else ""
    found = portrait.similarities(cells)
    tables = {
        "stages": portrait.stage_table(cells),
        "surgery": portrait.surgery_table(cells),
        "cka": portrait.cka_table(found),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        (folder / f"{prefix}{name}.csv").write_text(table.csv())
        (folder / f"{prefix}{name}.md").write_text(table.markdown())
    drawn = {
        "mixing": pictures.mixing(cells),
        "fields": pictures.fields(cells),
        "surgery": pictures.surgery(cells, portrait.instead_of(cells)),
        "cka": pictures.cka(found, list(cells)),
    }
    svgs = {name: figures.save(figure, folder, f"{prefix}{name}") for name, figure in drawn.items()}
    page = template("probe.html").render(
        title=title,
        setting=setting,
        counts=f"{len(cells)} cells, {figures.span(len(seeds) for seeds in cells.values())} seeds each",
        written=now()[:10],
        headline=portrait.sentences(cells, found),
        figures=svgs,
        tables=tables,
        command=command,
    )
    path = folder / f"{prefix}probes.html"
    path.write_text(page)
    return path


# ------------------------------------------------------------------ the command


def command(arguments: Sequence[str], console: Console) -> None:
    """Probe what the command line names and write the pages."""
    own = {key: [a.partition("=")[2] for a in arguments if a.startswith(f"{key}=")] for key in ("experiments", "out")}
    folders = [a for a in arguments if "=" not in a]
    overrides = [a for a in arguments if "=" in a and a.partition("=")[0] not in own]
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition(".")[0]
        if key not in ("data", "runtime"):
            hint = (
                nearest(key, ["experiments", "out", "data", "runtime"])
                or "; expected experiments, out, data or runtime"
            )
            raise ConfigError(f"{key}: not of this command{hint}")
    for key, values in own.items():
        if len(values) > 1 or values == [""]:
            raise ConfigError(f"{key}: expected one {'name' if key == 'experiments' else 'folder'}")
    if bool(folders) == bool(own["experiments"]):
        raise ConfigError("expected the folders of finished runs, like runs/RUN, or experiments=NAME")
    if own["experiments"]:
        name = own["experiments"][0]
        asked, place = of_study(name, overrides, console), launch.folder_of(name) / "probes"
    else:
        name = ""
        asked, place = of_folders(folders, overrides), Path("probes")
    place = Path(own["out"][0]) if own["out"] else place
    check_images(asked)
    told = " ".join(["python -m metaformer.probe", *arguments])
    for setting, cells in all_of(asked, console).items():
        if setting:
            console.print(setting, style="bold", markup=False)
        path = write_page(cells, place, setting, name or "probes", told)
        console.print(portrait.surgery_table(cells).rich())
        console.print(f"written: {path}", soft_wrap=True)


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    answer(__doc__, lambda arguments: command(arguments, console))


if __name__ == "__main__":
    main()

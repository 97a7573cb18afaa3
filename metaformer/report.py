"""What a study found: results.csv, tables, figures and one self-contained report.html.

    python -m metaformer.report experiments=NAME

It reads finished runs, draws no random number that is not fixed, and imports no torch. `train` calls it at the end of
a study.
"""

import csv
import hashlib
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from metaformer import launch
from metaformer.config import answer, compose
from metaformer.launch import Run
from metaformer.prose import analysis_words, headline, history, left_out
from metaformer.run import now
from metaformer.schema import ConfigError
from metaformer.tables import accuracy_table, all_tables, provenance_table, run_table
from metaformer.validation import validate
from metaformer.verdict import Verdicts, judge

if TYPE_CHECKING:
    from jinja2 import Template

PROBES = ("mixing", "fields", "surgery", "cka")  # the pictures of `python -m metaformer.probe`, in their order


def template(name: str) -> "Template":
    """A page of `metaformer/assets`."""
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent / "assets")
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def summarise(study: Mapping[str, Any], runs: Sequence[Run], console: Console, *, write: bool) -> None:
    """Print what a study found; with `write` also leave its files in experiments/NAME."""
    if all(run.problem for run in runs):
        console.print("no run is finished: nothing to report")
        return
    study = effective(study, runs)
    verdicts = judge(study, runs)
    if study["name"]:
        console.print(analysis_words(study), markup=False, highlight=False)
    console.print(accuracy_table(verdicts, study).rich())
    for line in headline(verdicts, study):
        console.print(line, markup=False, highlight=False)
    for line in left_out(runs) if study["name"] else []:
        console.print(line, style="yellow", markup=False, highlight=False)
    if write:
        console.print(f"written: {write_files(study, verdicts, runs, console)}")
    elif study["name"]:
        console.print(
            f"not the whole study as it is defined: the files of {launch.folder_of(study['name'])} stay as they are"
        )


def effective(study: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """The study with a factor that its runs have: a sweep on the command line may vary anything."""
    analysis = dict(study["analysis"])
    if analysis["factor"] not in runs[0].levels:
        analysis["factor"] = next(iter(runs[0].levels))
    return {**study, "analysis": analysis}


def write_files(study: Mapping[str, Any], verdicts: Verdicts, runs: Sequence[Run], console: Console) -> str:
    """results.csv, tables/, figures/ and report.html in experiments/NAME; the last one's path."""
    folder = launch.folder_of(study["name"])
    launched = launch.read(study["name"])
    edited = _edited(folder / "results.csv", launched)
    for warning in edited:
        console.print(warning, style="yellow", markup=False)
    for name in ("tables", "figures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tables = all_tables(study, verdicts)
    for name, table in tables.items():
        for kind, content in (("csv", table.csv()), ("md", table.markdown())):
            file = folder / "tables" / f"{name}.{kind}"
            if table.lines:
                file.write_text(content)
            else:
                file.unlink(missing_ok=True)  # what an earlier report said is not said any more
    rows = [launch.row(run) for run in runs if run.result is not None]
    text = StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (folder / "results.csv").write_text(text.getvalue())
    if launched is not None:
        launch.save(launched | {"results_sha256": hashlib.sha256(text.getvalue().encode()).hexdigest()})
    told, caution = history(study, launched, runs)
    content = template("report.html").render(
        title=study["name"],
        question=study["question"],
        counts=f"{len(rows)} of {len(runs)} runs",
        written=now()[:10],
        headline=headline(verdicts, study),
        warnings=[*left_out(runs), *edited],
        analysis=analysis_words(study),
        history=told,
        caution=caution,
        figures=draw(study, verdicts, runs, folder / "figures"),
        tables={**tables, "provenance": provenance_table(runs), "runs": run_table(runs, folder)},
        probes=_probes(folder),
        command=(launched or {}).get("command", f"python -m metaformer.train experiments={study['name']}"),
    )
    (folder / "report.html").write_text(content)
    return str(folder / "report.html")


def draw(study: Mapping[str, Any], verdicts: Verdicts, runs: Sequence[Run], folder: Path) -> dict[str, str]:
    """Every figure as SVG by name, empty where the study has nothing for it."""
    from metaformer import figures

    metric, factor = study["analysis"]["metric"], study["analysis"]["factor"]
    drawn = {
        "accuracy": figures.accuracy(verdicts.cells, metric, factor, study["reference"]),
        "differences": figures.differences(verdicts.confirmatory, study["analysis"], study["reference"]),
        "variance": figures.variance(verdicts.shares.everything, verdicts.shares.without_identity)
        if verdicts.shares.everything
        else None,
        "cost": figures.cost(verdicts, metric, factor),
        "curves": figures.curves(runs, verdicts.cells, factor),
        "rates": figures.rates(verdicts.cells),
    }
    for name, figure in drawn.items():
        if figure is None:
            for kind in ("png", "svg"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return {name: figures.save(figure, folder, name) if figure else "" for name, figure in drawn.items()}


def _probes(folder: Path) -> list[dict[str, Any]]:
    """The pages of `python -m metaformer.probe` for this study, as far as there are any, with their pictures."""
    found = []
    for page in sorted((folder / "probes").glob("*probes.html")):
        prefix = page.name.removesuffix("probes.html")
        files = [page.with_name(f"{prefix}{name}.svg") for name in PROBES]
        svgs = [text[text.index("<svg") :] for text in (file.read_text() for file in files if file.exists())]
        found.append({"setting": prefix.rstrip("-"), "page": f"probes/{page.name}", "figures": svgs})
    return found


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
    answer(__doc__, report)


def report(arguments: Sequence[str]) -> None:
    """Judge the study that the command line names, from what is finished of it."""
    from metaformer.study import changes, expand

    arguments = [a for a in arguments if a not in ("-m", "--multirun")]
    changed = any(changes(arguments))
    launched = None
    if not changed:
        config = validate(compose(arguments))
        launched = launch.read(config["study"]["name"]) if config["study"]["name"] else None
    if launched is None or launched.get("source") != launch.source(launched["study"]):
        planned = expand(arguments)
        config, listed = planned[0].config, launch.entries(planned)
    else:
        listed = launched["runs"]
    study = config["study"]
    if study["name"] is None:
        raise ConfigError("expected experiments=NAME, a study; python -m metaformer.train --help lists them")
    if not changed:
        launch.check(study, listed)
    runs = launch.collect(listed, Path(config["runtime"]["runs"]))
    console = Console(width=None if sys.stdout.isatty() else 140)
    summarise(study, runs, console, write=not changed)
    if all(run.problem for run in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

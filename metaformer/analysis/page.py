"""What a study found, printed and written: results.csv, tables, figures and one self-contained report.html."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from metaformer.analysis.captions import PROBES, captions
from metaformer.analysis.cells import with_runs
from metaformer.analysis.colours import COLOURS, on_page
from metaformer.analysis.header import drawings, facts
from metaformer.analysis.methods import analysis_words, history, methods
from metaformer.analysis.run_tables import provenance_table, run_table
from metaformer.analysis.sentences import answer, failures, headline, left_out, sureness
from metaformer.analysis.tables import accuracy_table, all_tables
from metaformer.analysis.terms import FROM_LOGITS
from metaformer.analysis.text_table import Table, first_up
from metaformer.analysis.verdict import Verdicts, judge
from metaformer.config.metrics import metric_of, selecting
from metaformer.config.study_nodes import Study
from metaformer.runs.launch import Launch, Run, read_launch, row, save, study_folder
from metaformer.runs.packed import pack
from metaformer.system import files

if TYPE_CHECKING:
    from jinja2 import Template


def template(name: str) -> "Template":
    """A page of `metaformer/analysis/templates`."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup, escape

    def code(text: str) -> Markup:
        return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = code
    environment.globals["colours"] = COLOURS
    return environment.get_template(name)


PART = "This is a part of a study, or a sweep that is none: nobody fixed beforehand how it is judged."


def summarise(
    study: Study, runs: Sequence[Run], console: Console, folder: Path, *, whole: bool, command: str = ""
) -> None:
    """Print what a study found, and leave its files in `folder`; experiments/NAME is where it is published.

    Args:
        command: that made the runs, where no launch of a study has kept it.
        whole: the study as its file defines it, not a part of it or a sweep of no name.
    """
    if all(run.problem for run in runs):
        console.print("no run is finished: nothing to report")
        return
    study = effective(study, runs)
    verdicts = verdicts_of(study, runs)
    if not verdicts.cells:
        console.print("no run is finished but of baselines, or of seeds that were not planned: nothing to report")
        return
    if study.name:
        console.print(analysis_words(study), markup=False, highlight=False)
    console.print(accuracy_table(verdicts, study).rich())
    for line in headline(verdicts, study):
        console.print(line, markup=False, highlight=False)
    for line in sureness(verdicts, study):
        console.print(line, style="dim", markup=False, highlight=False)
    for line in left_out([run for run in runs if study.name or not run.problem.startswith("failed")]):
        console.print(line, style="yellow", markup=False, highlight=False)
    page = write_files(study, verdicts, runs, console, folder, whole=whole, command=command)
    console.print(f"written: {page}", markup=False, soft_wrap=True)
    if study.name and whole and folder != study_folder(study.name):
        words = f"python -m metaformer.report experiments={study.name} publish=true"
        console.print(f"{words} writes it to {study_folder(study.name)}", style="dim", soft_wrap=True)


def verdicts_of(study: Study, runs: Sequence[Run]) -> Verdicts:
    """What the runs say of a study, by the seeds of its first launch, where there was one."""
    launched = read_launch(study.name) if study.name else None
    return judge(study, runs, launched.planned_seeds if launched else None)


def effective(study: Study, runs: Sequence[Run]) -> Study:
    """The study with a factor that its runs have: a sweep on the command line may vary anything."""
    if study.analysis.factor in runs[0].levels:
        return study
    return replace(study, analysis=replace(study.analysis, factor=next(iter(runs[0].levels))))


def _compared(study: Study, runs: Sequence[Run]) -> str:
    """A heading where nobody asked a question: what is compared."""
    factor = study.analysis.factor
    return f"{first_up(factor)}: {', '.join(dict.fromkeys(run.levels[factor] for run in runs))}"


def write_files(
    study: Study,
    verdicts: Verdicts,
    runs: Sequence[Run],
    console: Console,
    folder: Path,
    *,
    whole: bool,
    command: str = "",
) -> Path:
    """results.csv, tables/, figures/ and report.html in a folder, and runs.npz where it is published; the page."""
    name = study.name or folder.name
    launched = _with_images(read_launch(name), runs) if whole else None
    publish = whole and folder == study_folder(name)
    edited = _edited(folder / "results.csv", launched if publish else None)
    for warning in edited:
        console.print(warning, style="yellow", markup=False)
    from metaformer.analysis.per_class import class_table

    trained = with_runs(verdicts.cells)
    tables = {**all_tables(study, verdicts), "recall": class_table(trained)}
    _write_tables(tables, folder / "tables")
    rows = _write_results(runs, folder / "results.csv", launched if publish else None)
    if publish:
        pack(runs, folder / "runs.npz", logits=study.analysis.metric.partition("_")[2] in FROM_LOGITS)
    told, caution = history(study, launched, runs, judged_by(launched)) if whole else (PART, True)
    cautions = failures(verdicts)
    content = template("report.html").render(
        title=study.name or "a sweep",
        question=study.question or _compared(study, runs),
        metric=first_up(metric_of(study.analysis.metric).words),
        counts=f"{rows} of {len(runs)} runs",
        written=files.now()[:10],
        answer=answer(verdicts, study),
        compared=len(verdicts.confirmatory),
        facts=facts(study, verdicts.cells),
        drawings=drawings(study, trained),
        headline=headline(verdicts, study),
        sureness=[line for line in sureness(verdicts, study) if line not in cautions],
        methods=methods(verdicts, study),
        warnings=[*left_out(runs), *edited, *cautions],
        analysis=analysis_words(study),
        history=told,
        caution=caution,
        figures=draw(study, verdicts, runs, folder / "figures"),
        captions=captions(study, verdicts),
        tables={**tables, "provenance": provenance_table(runs), "runs": run_table(runs)},
        probes=_probes(folder) or _probes(study_folder(name)) if whole else [],
        command=(launched.command if launched else "") or command or f"python -m metaformer.train experiments={name}",
    )
    page = folder / "report.html"
    files.write(page, content)
    return page


def _write_tables(tables: dict[str, Table], folder: Path) -> None:
    for name, table in tables.items():
        for kind, content in (("csv", table.csv()), ("md", table.markdown()), ("tex", table.latex())):
            file = folder / f"{name}.{kind}"
            if table.lines:
                files.write(file, content)
            else:
                file.unlink(missing_ok=True)  # what an earlier report said is not said any more


def _write_results(runs: Sequence[Run], path: Path, launched: Launch | None) -> int:
    """One row for each finished run; how many there are. launch.json keeps the hash of the file."""
    rows = [row(run) for run in runs if run.result is not None]
    text = files.as_csv(rows)
    files.write(path, text)
    if launched is not None:
        save(replace(launched, results_sha256=hashlib.sha256(text.encode()).hexdigest()))
    return len(rows)


def draw(study: Study, verdicts: Verdicts, runs: Sequence[Run], folder: Path) -> dict[str, str]:
    """Every figure by name as SVG for the page, empty where the study has nothing for it."""
    from metaformer.analysis import figures, training_figures
    from metaformer.analysis.per_class import confusion
    from metaformer.analysis.segmented import predictions

    metric, factor, shares = study.analysis.metric, study.analysis.factor, verdicts.shares
    validated = selecting(metric)
    drawn = {
        "accuracy": figures.accuracy(verdicts.cells, metric, factor, study.reference, verdicts.baselines),
        "differences": figures.differences(verdicts.confirmatory, study.analysis, study.reference),
        "gaps": training_figures.gaps(verdicts, study.analysis, study.reference),
        "variance": figures.variance(shares.everything, shares.without_identity, metric) if shares.everything else None,
        "cost": figures.cost(verdicts, metric, factor),
        "curves": training_figures.curves(runs, verdicts.cells, validated, factor),
        "rates": training_figures.rates(verdicts.cells, validated, factor),
        "confusion": confusion(with_runs(verdicts.cells)),
        "predictions": predictions(runs),
    }
    for name, figure in drawn.items():
        if figure is None:
            for kind in ("png", "svg", "pdf"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return {name: on_page(figures.save(figure, folder, name)) if figure else "" for name, figure in drawn.items()}


def _probes(folder: Path) -> list[dict[str, Any]]:
    """The pages of `python -m metaformer.probe` for a study, as far as there are any, with their pictures.

    Files that are found may hold scripts, which no browser runs in an image.
    """
    found = []
    for page in sorted((folder / "probes").glob("*probes.html")):
        prefix = page.name.removesuffix("probes.html")
        found_here = [(page.with_name(f"{prefix}{name}.svg"), caption) for name, caption in PROBES.items()]
        pictures = [
            (base64.b64encode(file.read_bytes()).decode(), caption) for file, caption in found_here if file.exists()
        ]
        found.append({"setting": prefix.rstrip("-"), "page": page.as_posix(), "figures": pictures})
    return found


def _with_images(launched: Launch | None, runs: Sequence[Run]) -> Launch | None:
    """The same with what tells the test images: their fingerprint, or the name of the data set and what it keeps."""
    found = {
        r.fingerprint or f"{r.config.data.name} test={r.config.data.test}"
        for run in runs
        if (r := run.result) is not None
    }
    return replace(launched, images=sorted(found)) if launched else None


def judged_by(launched: Launch | None) -> list[str]:
    """The other studies beside this one that are judged by the same test images."""
    if launched is None:
        return []
    names = sorted(path.parent.name for path in study_folder(launched.study).parent.glob("*/launch.json"))
    others = [read_launch(name) for name in names if name != launched.study]
    return [other.study for other in others if other and set(other.images) & set(launched.images)]


def _edited(results: Path, launched: Launch | None) -> list[str]:
    """A warning where results.csv is not as the last report wrote it."""
    recorded = launched.results_sha256 if launched else None
    if recorded is None or not results.exists():
        return []
    if hashlib.sha256(results.read_bytes()).hexdigest() == recorded:
        return []
    kept = results.with_name("results.edited.csv")
    files.write(kept, results.read_bytes())
    return [
        f"{results} was changed by hand: it is written again from the runs, the changed one is kept as {kept.name}."
    ]

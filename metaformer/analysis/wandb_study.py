"""A study on wandb: a summary run, its views, all from the local files."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaformer.analysis import methods, page, sentences, tables
from metaformer.analysis.verdict import Verdicts
from metaformer.config.identity import unfolded
from metaformer.config.metrics import in_words
from metaformer.config.schema import Logger
from metaformer.config.study_nodes import Study
from metaformer.config.tasks import Task
from metaformer.config.validate import plain
from metaformer.runs.launch import Run
from metaformer.runs.wandb_place import discard, waiting
from metaformer.runs.wandb_run import mixer_name, start
from metaformer.system.errors import ConfigError, in_a_line, install
from metaformer.system.files import write


def summarise(study: Study, verdicts: Verdicts, runs: Sequence[Run], logger: Logger, folder: Path) -> str:
    """One run for the study, with its tables, figures and verdicts; where it is. It replaces one that waits."""
    import wandb

    name = str(study.name)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    page.draw(study, verdicts, runs, figures)
    content: dict[str, Any] = {
        f"tables/{name}": wandb.Table(columns=list(table.header), data=table.lines)
        for name, table in tables.all_tables(study, verdicts).items()
        if table.lines
    }
    content |= {f"figures/{path.stem}": wandb.Image(str(path)) for path in sorted(figures.glob("*.png"))}
    said: dict[str, Any] = {f"verdict/{c.name}": c.verdict for c in verdicts.confirmatory}
    said |= {f"share/{c.name}": c.share for c in verdicts.shares.everything}
    identity = {"id": f"study-{name}", "name": name, "job_type": "study", "tags": [name]}
    discard(folder)
    try:
        with start(logger, folder, {"silent": True}, **identity, config=unfolded({"study": plain(study)}, "/")) as run:
            run.log(content)
            run.summary.update({**said, "headline": "\n".join(sentences.headline(verdicts, study))})
            place = run.url if logger.mode == "online" else None
    except Exception as error:  # whatever wandb or the network raises
        raise ConfigError(f"wandb: {in_a_line(error)}; the same command tries again") from error
    return place or " ".join(map(str, waiting(folder)))


def publish(study: Study, runs: Sequence[Run], logger: Logger, folder: Path) -> list[str]:
    """Summary run, workspace and report of a study, with their files in a folder; where each of them is."""
    study = page.effective(study, runs)
    verdicts = page.verdicts_of(study, runs)
    mixers = list(dict.fromkeys(mixer_name(run.result) for run in runs if run.result))
    offline = logger.mode == "offline"
    if offline and not logger.entity:
        logger = replace(logger, entity="offline")  # nobody is logged in who could be asked
    leading = next((run.result.config.task.leading for run in runs if run.result), Task().leading)
    views = {
        "workspace": workspace(study, leading, logger),
        "report": wandb_report(study, leading, mixers, verdicts, logger, offline=offline),
    }
    summary = f"summary: {summarise(study, verdicts, runs, logger, folder)}"
    if not offline:
        for view in views.values():
            try:
                view.save()
            except Exception as error:  # whatever wandb or the network raises
                raise ConfigError(f"wandb: {in_a_line(error)}; the summary run was written") from error
        return [summary, *(f"{name}: {view.url}" for name, view in views.items())]
    views_folder = folder / "wandb"
    views_folder.mkdir(parents=True, exist_ok=True)
    for name, view in views.items():
        write(views_folder / f"{name}.json", json.dumps(spec_of(view), indent=1) + "\n")
    return [summary, *(f"{name}: {views_folder}/{name}.json" for name in views)]


def workspace(study: Study, leading: str, logger: Logger) -> Any:
    """The workspace of a study: its runs grouped by cell, so that every curve is a mean over seeds.

    Args:
        leading: the metric of its panels, that of the task.
    """
    ws, wr = _library()
    return ws.Workspace(
        entity=logger.entity or "",
        project=logger.project,
        name=study.name,
        sections=[
            ws.Section("Curves", panels=_curves(wr, leading), is_open=True),
            ws.Section("Accuracy and cost", panels=_costs(wr, leading), is_open=True),
        ],
        runset_settings=ws.RunsetSettings(filters=ws.And(ws.Tags().isin([study.name])), groupby=[ws.Metric("Group")]),
        settings=ws.WorkspaceSettings(max_runs=100),
    )


def wandb_report(
    study: Study, leading: str, mixers: Sequence[str], verdicts: Verdicts, logger: Logger, *, offline: bool
) -> Any:
    """The report of a study: verdicts in words and tables, then curves and costs, then the curves mixer by mixer.

    Args:
        offline: leave the project out of the run sets, whose number only the server knows.
    """
    ws, wr = _library()
    where = {} if offline else {"entity": logger.entity or "", "project": logger.project}

    def runs(name: str, *tags: str) -> Any:
        filters = ws.And(*(ws.Tags().isin([tag]) for tag in (study.name, *tags)))
        return wr.Runset(**where, name=name, filters=filters, groupby=["group"])

    blocks = [
        wr.H1(study.question or study.name),
        *(wr.P(sentence) for sentence in sentences.headline(verdicts, study)),
        wr.P(methods.analysis_words(study)),
        wr.H2("Verdicts"),
        wr.MarkdownBlock(tables.verdict_table(verdicts, study.analysis).markdown()),
        wr.H2("Accuracy"),
        wr.MarkdownBlock(tables.accuracy_table(verdicts, study).markdown()),
        wr.H2("Curves and cost"),
        wr.PanelGrid(runsets=[runs("all cells")], panels=[*_curves(wr, leading), *_costs(wr, leading)]),
        wr.H2("Mixer by mixer, seeds averaged"),
        *(
            wr.PanelGrid(runsets=[runs(mixer, f"mixer:{mixer}")], panels=_curves(wr, leading, mixer)[:1])
            for mixer in mixers
        ),
    ]
    return wr.Report(entity=logger.entity or "", project=logger.project, title=study.name, blocks=blocks, width="fluid")


def _curves(wr: Any, leading: str, mixer: str = "") -> list[Any]:
    """Curves by epoch: mean over the seeds of a cell, with their standard error."""
    validated = f"val_{leading}"
    titles = {validated: in_words(validated), "train_loss": "training loss"}
    return [
        wr.LinePlot(
            title=f"{mixer}: {title}" if mixer else title,
            x="epoch",
            y=[key],
            aggregate=True,
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
            max_runs_to_show=100,
            layout=wr.Layout(x=12 * i, y=0, w=12, h=8),
        )
        for i, (key, title) in enumerate(titles.items())
    ]


def _costs(wr: Any, leading: str) -> list[Any]:
    """The metric of the test images as bars, and against parameters, MACs and time."""
    tested = f"test_{leading}"
    metric, words = wr.SummaryMetric(f"final/{tested}"), in_words(tested)
    bars = wr.BarPlot(
        title=words,
        metrics=[metric],
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
        max_runs_to_show=100,
        max_bars_to_show=100,
        layout=wr.Layout(x=0, y=8, w=12, h=8),
    )
    clouds = [
        wr.ScatterPlot(
            title=f"{words} against {title}",
            x=wr.SummaryMetric(key),
            y=metric,
            running_ymax=True,
            layout=wr.Layout(x=12 * (i % 2), y=8 * (1 + i // 2), w=12, h=8),
        )
        for i, (key, title) in enumerate(
            {"params": "parameters", "macs": "MACs", "seconds": "training time"}.items(), 1
        )
    ]
    return [bars, *clouds]


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ConfigError(f"wandb-workspaces is not installed: {install('dashboard')}") from error
    return ws, wr


def spec_of(view: Any) -> dict[str, Any]:
    """What would be sent to the server for a workspace or a report."""
    spec: dict[str, Any] = json.loads(view._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return spec

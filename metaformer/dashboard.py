"""The wandb side of a study: its runs, a summary, a workspace and a report, all written from the local files.

    python -m metaformer.dashboard experiments=NAME          # summary run, workspace and report of a study
    python -m metaformer.dashboard --sync                    # upload every finished run that is not there yet
    python -m metaformer.dashboard --sync experiments=NAME   # those of one study

logger.project=, logger.entity= and runtime.runs= are as in `train`. logger.mode=offline needs no network: the summary
and the runs wait in wandb/ for `wandb sync`, and the workspace and report are written as JSON beside the study.
Workspace and report need the extra: pip install 'metaformer-bench[dashboard]'.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaformer import launch, prose, report, tables
from metaformer.config import answer, compose
from metaformer.launch import Run
from metaformer.mirror import final, mark, marked, start, wandb_identity
from metaformer.run import read_curve, read_result, write
from metaformer.schema import ConfigError
from metaformer.validation import validate
from metaformer.verdict import Verdicts, judge

ALLOWED = ("experiments", "logger", "runtime")


def sync(folders: Sequence[Path], study: str | None, logger: Mapping[str, Any]) -> tuple[int, int]:
    """Upload finished runs, each once: a mark in its folder says that it is there. Returns uploaded and found there.

    A run that is there for another study gets the tag of this one, and nothing else.
    """
    uploaded = 0
    for folder in folders:
        result = read_result(folder)
        assert result is not None
        identity = wandb_identity(result["config"], result["choices"], folder)
        there = marked(folder, logger)
        tags = list(dict.fromkeys([*(there or []), *identity["tags"], *([study] if study else [])]))
        if there == tags:
            continue
        try:
            with start(logger, {"silent": True}, **identity | {"tags": tags}, config=result["config"]) as run:
                if there is None:
                    _log(run, folder, result)
        except Exception as error:
            told = f"{uploaded} runs uploaded, the same command goes on with {folder.name}"
            raise ConfigError(f"wandb: {_line(error)}; {told}") from error
        uploaded += 1
        if logger["mode"] == "online":
            mark(folder, logger, tags)
    return uploaded, len(folders) - uploaded


def _log(run: Any, folder: Path, result: Mapping[str, Any]) -> None:
    for row in read_curve(folder):
        run.log({key: float(value) for key, value in row.items() if value}, step=int(row["epoch"]))
    run.summary.update(final(result))


def summarise(study: Mapping[str, Any], verdicts: Verdicts, runs: Sequence[Run], logger: Mapping[str, Any]) -> None:
    """One run for the study: its tables, figures and verdicts."""
    import wandb

    figures = launch.folder_of(study["name"]) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    report.draw(study, verdicts, runs, figures)
    content: dict[str, Any] = {
        f"tables/{name}": wandb.Table(columns=list(table.header), data=table.lines)
        for name, table in tables.all_tables(study, verdicts).items()
        if table.lines
    }
    content |= {f"figures/{path.stem}": wandb.Image(str(path)) for path in sorted(figures.glob("*.png"))}
    said: dict[str, Any] = {f"verdict/{c.name}": c.verdict for c in verdicts.confirmatory}
    said |= {f"share/{c.name}": c.share for c in verdicts.shares.everything}
    identity = {"id": f"study-{study['name']}", "name": study["name"], "job_type": "study", "tags": [study["name"]]}
    try:
        with start(logger, {"silent": True}, **identity, config={"study": dict(study)}) as run:
            run.log(content)
            run.summary.update({**said, "headline": "\n".join(prose.headline(verdicts, study))})
    except Exception as error:
        raise ConfigError(f"wandb: {_line(error)}; the same command tries again") from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ------------------------------------------------------------------ as code


def workspace(study: Mapping[str, Any], logger: Mapping[str, Any]) -> Any:
    """The workspace of a study: its runs grouped by cell, so that every curve is a mean over seeds."""
    ws, wr = _library()
    return ws.Workspace(
        entity=logger["entity"] or "",
        project=logger["project"],
        name=study["name"],
        sections=[
            ws.Section("Curves", panels=_curves(wr), is_open=True),
            ws.Section("Accuracy and cost", panels=_costs(wr), is_open=True),
        ],
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Tags().isin([study["name"]])), groupby=[ws.Metric("Group")]
        ),
        settings=ws.WorkspaceSettings(max_runs=100),
    )


def wandb_report(
    study: Mapping[str, Any], mixers: Sequence[str], verdicts: Verdicts, logger: Mapping[str, Any], *, offline: bool
) -> Any:
    """The report of a study: verdicts in words and tables, then curves and costs, then the curves mixer by mixer.

    Args:
        offline: leave the project out of the run sets, whose number only the server knows.
    """
    ws, wr = _library()
    where = {} if offline else {"entity": logger["entity"] or "", "project": logger["project"]}

    def runs(name: str, *tags: str) -> Any:
        filters = ws.And(*(ws.Tags().isin([tag]) for tag in (study["name"], *tags)))
        return wr.Runset(**where, name=name, filters=filters, groupby=["group"])

    blocks = [
        wr.H1(study["question"] or study["name"]),
        *(wr.P(sentence) for sentence in prose.headline(verdicts, study)),
        wr.P(prose.analysis_words(study)),
        wr.H2("Verdicts"),
        wr.MarkdownBlock(tables.verdict_table(verdicts, study["analysis"]).markdown()),
        wr.H2("Accuracy"),
        wr.MarkdownBlock(tables.accuracy_table(verdicts, study).markdown()),
        wr.H2("Curves and cost"),
        wr.PanelGrid(runsets=[runs("all cells")], panels=[*_curves(wr), *_costs(wr)]),
        wr.H2("Mixer by mixer, seeds averaged"),
        *(wr.PanelGrid(runsets=[runs(mixer, f"mixer:{mixer}")], panels=_curves(wr, mixer)[:1]) for mixer in mixers),
    ]
    return wr.Report(
        entity=logger["entity"] or "", project=logger["project"], title=study["name"], blocks=blocks, width="fluid"
    )


def _curves(wr: Any, mixer: str = "") -> list[Any]:
    """Curves by epoch: mean over the seeds of a cell, with their standard error."""
    titles = {"val_accuracy": "validation accuracy", "train_loss": "training loss"}
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


def _costs(wr: Any) -> list[Any]:
    """Test accuracy as bars, and against parameters, MACs and time."""
    accuracy = wr.SummaryMetric("final/test_accuracy")
    bars = wr.BarPlot(
        title="test accuracy",
        metrics=[accuracy],
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
        max_runs_to_show=100,
        max_bars_to_show=100,
        layout=wr.Layout(x=0, y=8, w=12, h=8),
    )
    clouds = [
        wr.ScatterPlot(
            title=f"test accuracy against {title}",
            x=wr.SummaryMetric(key),
            y=accuracy,
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
        raise ConfigError("wandb-workspaces is not installed: pip install 'metaformer-bench[dashboard]'") from error
    return ws, wr


def spec_of(view: Any) -> dict[str, Any]:
    """What would be sent to the server for a workspace or a report."""
    return json.loads(view._to_model().model_dump_json(by_alias=True, exclude_none=True))


# ------------------------------------------------------------------ command


def publish(study: Mapping[str, Any], runs: Sequence[Run], logger: Mapping[str, Any]) -> list[str]:
    """Summary run, workspace and report of a study; where each of them is."""
    study = report.effective(study, runs)
    verdicts = judge(study, runs)
    mixers = list(dict.fromkeys(run.mixer for run in runs))
    offline = logger["mode"] == "offline"
    if offline and not logger["entity"]:
        logger = {**logger, "entity": "offline"}  # nobody is logged in who could be asked
    views = {
        "workspace": workspace(study, logger),
        "report": wandb_report(study, mixers, verdicts, logger, offline=offline),
    }
    summarise(study, verdicts, runs, logger)
    if not offline:
        for view in views.values():
            try:
                view.save()
            except Exception as error:
                raise ConfigError(f"wandb: {_line(error)}; the summary run was written") from error
        return [f"{name}: {view.url}" for name, view in views.items()]
    folder = launch.folder_of(study["name"]) / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    for name, view in views.items():
        write(folder / f"{name}.json", json.dumps(spec_of(view), indent=1) + "\n")
    return [f"{name}: {folder}/{name}.json" for name in views]


def main() -> None:
    answer(__doc__, command)


def command(arguments: Sequence[str]) -> None:
    """Publish a study, or with --sync upload runs."""
    only_sync = "--sync" in arguments
    arguments = [argument for argument in arguments if argument != "--sync"]
    groups = {argument.lstrip("+~").partition("=")[0].partition(".")[0] for argument in arguments}
    if odd := sorted(groups - set(ALLOWED)):
        raise ConfigError(f"{odd[0]}: belongs to the runs; what can be set here is {', '.join(ALLOWED)}")
    config = validate(compose(["logger=wandb", *arguments]))
    study, logger = config["study"], config["logger"]
    folder = Path(config["runtime"]["runs"])
    if study["name"] is None:
        if not only_sync:
            raise ConfigError("expected experiments=NAME, a study, or --sync")
        folders = sorted(
            path.parent for path in folder.glob("*/result.json") if not path.parent.name.startswith("debug-")
        )
    else:
        launched = launch.read(study["name"])
        if launched is None:
            raise ConfigError(f"experiments={study['name']}: it was never launched from this folder")
        if launched.get("source") != launch.source(study["name"]):
            raise ConfigError(f"experiments={study['name']}: its files changed since the launch; launch it again")
        runs = launch.collect(launched["runs"], folder)
        for line in prose.left_out(runs):
            print(line)
        folders = [run.folder for run in runs if run.folder is not None and run.result is not None]
        if not folders:
            raise ConfigError(f"experiments={study['name']}: no run is finished")
    if only_sync:
        uploaded, there = sync(folders, study["name"], logger)
        print(f"{uploaded} runs uploaded, {there} were there")
        return
    for line in publish(study, runs, logger):
        print(line)


if __name__ == "__main__":
    main()

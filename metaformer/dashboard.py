"""The wandb side of a study: its runs, a summary, a workspace and a report, all written from the local files.

    python -m metaformer.dashboard experiments=NAME            # summary run, workspace and report of a study
    python -m metaformer.dashboard experiments=NAME publish=true  # with its files in experiments/NAME
    python -m metaformer.dashboard sync=true                   # upload every finished run that is not there yet
    python -m metaformer.dashboard sync=true experiments=NAME  # those of one study

logger.mode=offline needs no network: runs are written into their folders, where they wait for sync=true with a network
(or `wandb sync`); summary, workspace and report of a study into runs/reports/NAME/wandb. Nothing is sent twice. Runs
that were trained without wandb have no example images and single steps there. The extra: pip install -e '.[dashboard]'.
"""

from collections.abc import Sequence
from pathlib import Path

from metaformer.analysis.sentences import left_out
from metaformer.analysis.wandb_study import publish
from metaformer.cli import answer, flag, words
from metaformer.config.compose import compose
from metaformer.config.validate import judged
from metaformer.runs.launch import Run, read_launch, source_of
from metaformer.runs.packed import gather
from metaformer.runs.report_folder import written_to
from metaformer.runs.wandb_sync import sync
from metaformer.system.errors import ConfigError


def command(arguments: Sequence[str]) -> None:
    """Publish a study, or with sync=true upload runs."""
    known = ["sync=true" if word == "--sync" else word for word in arguments]  # the older spelling
    given = words(known, own=("publish", "sync"), groups=("experiments", "logger", "runtime"))
    uploads, published = flag(given.own, "sync"), flag(given.own, "publish")
    if uploads and "publish" in given.own:
        raise ConfigError(f"publish={given.own['publish']}: is for a study without sync=true, which writes no files")
    config = compose(["logger=wandb", *given.overrides])
    folder, name = Path(config.runtime.runs), config.study.name
    if name is None:
        if not uploads:
            raise ConfigError("expected experiments=NAME, a study, or sync=true")
        results = [path.parent for path in folder.glob("*/result.json")]
        folders = sorted(path for path in results if not path.name.startswith("debug-"))
    else:
        place = written_to(folder, name, publish=published)
        runs = _launched(name, folder)
        folders = [run.folder for run in runs if run.folder is not None and run.result is not None]
        if not folders:
            raise ConfigError(f"experiments={name}: no run is finished")
    if uploads:
        from metaformer.probing.pictures import mixing_of  # matplotlib takes most of the time that --help would need

        sent, project = sync(folders, name, config.logger, mixing_of), f"project {config.logger.project}"
        if config.logger.mode == "online":
            print(f"{sent.now} runs uploaded to {project}, {sent.before} were there")
        else:
            print(f"{sent.now} runs written for {project}, {sent.before} were sent before; {sent.waiting} wait in "
                  f"{folder}/*/wandb: the same command with logger.mode=online uploads them")  # fmt: skip
        return
    for line in publish(judged(config), runs, config.logger, place):
        print(line)


def _launched(name: str, folder: Path) -> list[Run]:
    """The runs of a study that was launched from this folder; says which are left out."""
    launched = read_launch(name)
    if launched is None:
        raise ConfigError(f"experiments={name}: it was never launched from this folder")
    if launched.source != source_of(name):
        raise ConfigError(f"experiments={name}: its files changed since the launch; launch it again")
    runs = gather(name, launched.runs, folder)
    for line in left_out(runs):
        print(line)
    return runs


def main() -> None:
    answer(__doc__, command, ("logger", "runtime"))


if __name__ == "__main__":
    main()

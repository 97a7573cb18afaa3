"""What trained mixers do, measured on the same axes for every mixer: tables, pictures, a page for each comparison.

    python -m metaformer.probe run=runs/RUN[,runs/RUN ...] [out=FOLDER]  # runs beside each other
    python -m metaformer.probe experiments=NAME  # a study: a page for each setting of its factor, beside its report
    python -m metaformer.probe experiments=NAME publish=true  # to experiments/NAME/probes

On validation images: which tokens a mixer brings together, what of an image reaches a token, how strong the branch is,
whether two mixers learn the same features, and what is lost where a mixer is taken out of a stage. What was measured
of a run is kept in its folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metaformer.cli import answer, flag, words
from metaformer.runs.finished import CHANGEABLE
from metaformer.runs.report_folder import report_folder, written_to
from metaformer.system.errors import ConfigError


def command(arguments: Sequence[str], console: Console) -> None:
    """Probe what the command line names and write the pages."""
    given = words(
        arguments, own=("experiments", "out", "publish", "run"), groups=CHANGEABLE, plain="folders of finished runs"
    )
    name, publish = given.own.get("experiments", ""), flag(given.own, "publish")
    folders = [*given.plain, *filter(None, given.own.get("run", "").split(","))]
    if bool(folders) == bool(name):
        raise ConfigError("expected run=FOLDER, the folders of finished runs, or experiments=NAME")
    from metaformer.probing.selection import all_of, check_images, of_folders, of_study

    asked = of_study(name, given.overrides, console) if name else of_folders(folders, given.overrides)
    check_images(asked)
    if "publish" in given.own and ("out" in given.own or not name):
        raise ConfigError(f"publish={given.own['publish']}: is for experiments=NAME without out=")
    runs = Path(asked[0].run.config.runtime.runs)
    if name:
        place = written_to(runs, name, publish=publish)
    else:
        place = report_folder(runs, None, [Path(folder).name for folder in folders])
    folder = Path(given.own.get("out", place / "probes"))
    told = " ".join(["python -m metaformer.probe", *arguments])
    probed = all_of(asked, console)
    from metaformer.probing.page import write_page
    from metaformer.probing.tables import surgery_table

    for setting, cells in probed.items():
        if setting:
            console.print(setting, style="bold", markup=False)
        path = write_page(cells, folder, setting, name or "probes", told)
        console.print(surgery_table(cells).rich())
        console.print(f"written: {path}", soft_wrap=True)


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    answer(__doc__, lambda arguments: command(arguments, console), CHANGEABLE)


if __name__ == "__main__":
    main()

"""A run on wandb, which may fail: the local files are the truth, and nothing is ever read back."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metaformer.identity import cell_id
from metaformer.run import write
from metaformer.schema import ConfigError

MARK = "wandb.json"  # in the folder of a run that is on a server, with its tags


class Mirror:
    """A wandb run that can fail without ending the training."""

    def __init__(self, run: Any) -> None:
        self.run, self.failed = run, False

    def log(self, row: Mapping[str, Any]) -> None:
        self.attempt(lambda: self.run.log(dict(row), step=int(row["epoch"])))

    def summarise(self, values: Mapping[str, Any]) -> None:
        self.attempt(lambda: self.run.summary.update(dict(values)))

    def attempt(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            self.failed = True
            print(f"wandb: {type(error).__name__}: {error}; training goes on", file=sys.stderr)


def wandb_identity(config: Mapping[str, Any], choices: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Where a run stands on wandb: its id is that of the run, its group the cell, its tags the study and the mixer.

    No `=` in a tag: wandb-workspaces doubles it in a filter, which then finds nothing.
    """
    identity = folder.name.rpartition("-")[2]
    study = config["study"]["name"]
    return {
        "id": identity,
        "name": folder.name,
        "group": folder.name.replace(f"-s{config['seed']}-{identity}", f"-{cell_id(config)}"),
        "tags": [*([study] if study else []), f"mixer:{choices['mixer']}"],
    }


def final(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary of a run holds beside its last epoch."""
    values = {f"final/{name}": value for name, value in result["metrics"].items()}
    return values | {name: result[name] for name in ("params", "macs", "seconds")}


def mark(folder: Path, logger: Mapping[str, Any], tags: list[str]) -> None:
    """Note that a run is on the server, so that nobody uploads it again."""
    where = {"project": logger["project"], "entity": logger["entity"]}
    write(folder / MARK, json.dumps({**where, "tags": tags}) + "\n")


def marked(folder: Path, logger: Mapping[str, Any]) -> list[str] | None:
    """The tags that a run has in this project, or None where it is not there."""
    try:
        found = json.loads((folder / MARK).read_text())
        there = (found["project"], found["entity"]) == (logger["project"], logger["entity"])
        return list(found["tags"]) if there else None
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{folder / MARK}: cannot be read ({error}); remove it to upload this run again") from error


def start(logger: Mapping[str, Any], settings: Mapping[str, Any], **options: Any) -> Any:
    """A wandb run where the `logger` node of a configuration says; resumed where its id is known there."""
    import wandb

    where = {name: logger[name] for name in ("project", "entity", "mode")}
    return wandb.init(**where, resume="allow", settings=wandb.Settings(init_timeout=60, **settings), **options)


@contextlib.contextmanager
def wandb_run(config: Mapping[str, Any], choices: Mapping[str, str], folder: Path) -> Iterator[Mirror | None]:
    """A wandb run that is finished whatever happens; None where none is wanted or none can be had."""
    logger = config["logger"]
    if not logger["wandb"] or config["debug"]["mode"] != "none":
        yield None
        return
    identity = wandb_identity(config, choices, folder)
    try:
        run = start(logger, {}, dir=folder, config=dict(config), **identity)
    except Exception as error:
        print(f"wandb: {type(error).__name__}: {error}; training goes on without it", file=sys.stderr)
        yield None
        return
    mirror = Mirror(run)
    code = 1
    try:
        yield mirror
        code = 0
    finally:
        mirror.attempt(lambda: run.finish(exit_code=code))
        if code == 0 and logger["mode"] == "online" and not mirror.failed:
            mark(folder, logger, identity["tags"])

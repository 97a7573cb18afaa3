"""Finished runs sent to wandb from their files, each once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaformer.config.schema import Logger
from metaformer.runs.result import history, read_result
from metaformer.runs.wandb_place import MARK, Mark, discard, mark, marked, upload, waiting, waits_offline
from metaformer.runs.wandb_run import Pictures, artifact, charts, check_size, final, shown, start, wandb_identity
from metaformer.system.errors import ConfigError, in_a_line


@dataclass(frozen=True)
class Sent:
    """How many runs were sent by this command, and how many before; offline, how many of them wait in their folders."""

    now: int
    before: int
    waiting: int = 0


def nothing(folder: Path) -> Pictures:
    """No pictures."""
    return {}


def sync(
    folders: Sequence[Path], study: str | None, logger: Logger, drawn: Callable[[Path], Pictures] = nothing
) -> Sent:
    """Send finished runs, each once: upload them, or offline write what `wandb sync` uploads. A mark notes it.

    What was written offline is uploaded as it is: it has examples of what the network says. A run that is there gets
    what is new, and nothing else: the tag of another study, its weights where they are asked for, pictures of its
    mixers.

    Args:
        drawn: the pictures of the mixers of a run, once it was probed.
    """
    for file in (folder / "weights.pt" for folder in folders if logger.weights):
        if not file.exists():
            raise ConfigError(f"logger.weights=true: {file}: no such file")
        check_size(logger, file.stat().st_size, str(file.parent))
    sent = set[Path]()
    if logger.mode == "online":
        waited = [folder for folder in folders if waits_offline(folder, logger)]
        if stuck := upload(waited, logger):
            raise ConfigError(f"wandb: {len(stuck)} of {len(waited)} runs written offline, {stuck[0]} the first, were "
                              "not uploaded; the same command goes on with them")  # fmt: skip
        sent |= set(waited)
    for folder in folders:
        try:
            if _send(folder, study, logger, drawn):
                sent.add(folder)
        except ConfigError:
            raise
        except Exception as error:  # whatever wandb or the network raises
            told = f"{len(sent)} runs sent, the same command goes on with {folder.name}"
            raise ConfigError(f"wandb: {in_a_line(error)}; {told}") from error
    return Sent(len(sent), len(folders) - len(sent), sum(bool(waiting(folder)) for folder in folders))


def _send(folder: Path, study: str | None, logger: Logger, drawn: Callable[[Path], Pictures]) -> bool:
    """Send what is new of a run; whether there was anything."""
    result, there = read_result(folder), marked(folder, logger)
    assert result is not None
    identity, known = wandb_identity(result, folder.name), there or Mark(logger.project, logger.entity, [])
    tags = list(dict.fromkeys([*known.tags, *identity["tags"], *([study] if study else [])]))
    pictures = {} if "mixing" in known.more else drawn(folder)
    weights = logger.weights and "weights" not in known.more
    if known.tags == tags and not pictures and not weights:
        return False
    if not (folder / MARK).exists():
        discard(folder)  # of a training that broke off or lost its connection
    with start(logger, folder, {"silent": True}, **identity | {"tags": tags}) as run:
        if there is None:
            for step, values in history(folder):
                run.log(values, step=step)
            run.log(charts(result))
            run.summary.update(final(result))
        if pictures:
            run.log(shown(pictures))
        if weights:
            run.log_artifact(artifact(folder / "weights.pt"))
    mark(folder, logger, tags, [*known.more, *["mixing"] * bool(pictures), *["weights"] * weights])
    return True

"""A finished run, with the data and the runtime that a command line changes. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metaformer.config.compose import compose, key_of
from metaformer.config.identity import flat
from metaformer.config.schema import Config
from metaformer.runs.result import Result, read_result
from metaformer.system.errors import ConfigError

CHANGEABLE = ("data", "runtime")  # the groups that may differ from those of the run


@dataclass(frozen=True)
class Finished:
    """A trained run that is looked at again."""

    folder: Path
    config: Config  # that of the run, with the data and the runtime of today
    result: Result  # as it was recorded


def finished(folder: Path, overrides: Sequence[str] = ()) -> Finished:
    """A finished run.

    Args:
        overrides: of data and runtime: `data=NAME` is another data set, `data.root=...` the run's own elsewhere.

    Raises:
        ConfigError: there is no finished run in the folder; it names some that are beside it.
    """
    if not (folder / "weights.pt").exists():
        known = sorted(p.parent.name for p in folder.parent.glob("*/weights.pt"))
        names = ", ".join(known[:5]) or "none"
        raise ConfigError(f"run={folder}: no finished run there (weights.pt); finished beside it: {names}")
    result = read_result(folder)
    if result is None:
        raise ConfigError(f"run={folder}: it has no result.json, so it is not finished")
    return Finished(folder, changed(result.config, overrides, f"run={folder}"), result)


def changed(kept: Config, overrides: Sequence[str], source: str) -> Config:
    """The configuration of a run with the data and the runtime of a command line.

    Args:
        source: whose configuration it is, for messages.

    Raises:
        ConfigError: the command line names another model or mixer, or a key of what the run has had its own of.
    """
    now, keys = compose(overrides), [key_of(override) for override in overrides]
    asked, had = flat(now), flat(kept)
    for key in keys:
        group = key.partition(".")[0]
        if group in CHANGEABLE:
            continue
        if group not in ("model", "mixer"):
            raise ConfigError(f"{key}: {source} has its own; expected keys of {' and '.join(CHANGEABLE)}")
        for own in sorted({*asked, *had}):
            if own.split(".")[0] == group and had.get(own) != asked.get(own):
                raise ConfigError(f"{own}={asked.get(own)}: {source} was trained with {had.get(own)}")
    mine = now.data if "data" in keys else kept.data
    names = {key.split(".")[1] for key in keys if key.startswith("data.")}
    values = {name: getattr(now.data, name) for name in names}
    if "options" in names and "data.options" not in keys:  # some of them, over those that the run had
        values["options"] = {**mine.options, **now.data.options}
    data = replace(mine, **values)
    return replace(kept, data=data, runtime=now.runtime)

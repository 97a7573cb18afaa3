"""The result of a run, which is written last, and the reason why there is none."""

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from metaformer.config.metrics import SPLITS, metrics_of
from metaformer.config.schema import Config
from metaformer.config.validate import structure
from metaformer.system.errors import ConfigError
from metaformer.system.files import write

IDLE_CORES = 0.2  # cores: what a machine does that has nothing to do
# The columns of steps.csv, which is written where wandb gets single steps; the memory is that of a GPU, in GiB
STEPS = ("step", "loss", "lr", "grad_norm", "images_per_second", "gpu_memory")


def reported(task: str) -> list[str]:
    """The metrics of a finished run."""
    return [name for split in SPLITS for name in metrics_of(split, task)]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What training and test measure of a run. The metrics are fractions, but for losses."""

    metrics: dict[str, float]  # training and validation: of the tested epoch
    # Of the test images: the share of each class that was found, None where there is none of it; and how many of each
    # class (row) were taken for each (column)
    recall: dict[str, float | None] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    params: int
    trainable: int
    macs: int | None  # for one image; None where `uncounted_ops` names an op
    uncounted_ops: list[str]
    epochs: int
    tested_epoch: int = 0  # 0: the last one, in results of older versions
    images: int  # of the training set
    tested_images: int = 0  # 0 in results of older versions, whose confusion matrix counts them
    seconds: float  # of training
    threads: int
    devices: int
    accumulate: int  # parts that each device's batch was split into
    device: str
    compiled: bool | None = None  # by torch.compile; None in results of older versions
    versions: dict[str, str]  # of the libraries
    # With recipe.initialize_from: the modules and weights that were taken, adapted, new, or left in the file
    initialized: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result(Measured):
    """result.json: what was measured, of which run, by which code."""

    name: str
    choices: dict[str, str]
    run_id: str
    cell_id: str
    seed: int
    host: str
    python: str
    training_version: int
    git: dict[str, Any] | None  # commit, and whether it was changed; None outside of a checkout
    finished: str
    fingerprint: str | None  # of the images
    # What else the machine did meanwhile; None where nobody knows, as in results of older versions and of resumed runs
    other_runs: int | None = None  # of this bench
    other_cores: float | None = None  # that other processes had, on average
    config: Config

    @property
    def accuracy(self) -> float | None:
        """Of the test images, or of their pixels."""
        return self.metrics.get(f"test_{self.config.task.accuracy}")

    @property
    def alone(self) -> bool:
        """Whether it had the machine for itself, so that its time is a cost."""
        return self.other_runs == 0 and self.other_cores is not None and self.other_cores < IDLE_CORES

    def __str__(self) -> str:
        """The accuracies, or the mean IoU of segmentation, and what they cost, in a line."""
        macs = "MACs uncounted" if self.macs is None else f"{self.macs:,} MACs"
        names = {split: f"{split}_{self.config.task.leading}" for split in SPLITS}
        told = [f"{split} {self.metrics[name]:.2%}" for split, name in names.items() if name in self.metrics]
        told = [f"mean IoU {', '.join(told)}"] if self.config.task.segments else told
        return f"{', '.join(told)}; {self.params:,} parameters, {macs}, {self.seconds:.0f} s"


def read_result(folder: Path) -> Result | None:
    """The result of a finished run, or None.

    Raises:
        ConfigError: there is one that cannot be read: nobody's result is redone unasked.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        return parse(json.loads(path.read_text()))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); remove it to train this run again") from error


def as_plain(result: Result) -> dict[str, Any]:
    """A result as plain data, which `parse` reads."""
    return asdict(result)


def write_result(folder: Path, result: Result) -> None:
    """Write result.json whole, rows of numbers on a line; a FloatingPointError where a metric is no number."""
    for name, value in result.metrics.items():
        if not math.isfinite(value):
            kept = f"; the training is kept in {folder}/last.ckpt" if (folder / "last.ckpt").exists() else ""
            raise FloatingPointError(f"{name} is {value}{kept}")
    text = json.dumps(as_plain(result), indent=2, allow_nan=False)
    rows = re.sub(r"\[([^\[\]{}\"]+)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    write(folder / "result.json", rows)


def parse(raw: Any) -> Result:
    """A result from plain data; a ValueError that says what makes it unfit to be counted."""
    if not isinstance(raw, Mapping):
        raise ValueError("it is no result")
    for name, kinds in KINDS.items():
        if name in NEEDED | raw.keys() and not isinstance(raw.get(name, ...), kinds):
            raise ValueError(f"it has no usable '{name}'")
    values: dict[str, Any] = {name: raw[name] for name in KINDS if name in raw}
    for node in ("model", "data", "recipe", "reference"):  # what is missing would silently be a default
        if not isinstance(raw["config"].get(node), dict):
            raise ValueError("it has no usable 'config'")
    values["config"] = structure(Config, values["config"])
    result = Result(**values)
    if result.git is not None and not isinstance(result.git.get("commit"), str):
        raise ValueError("it has no usable 'git'")
    if not (math.isfinite(result.seconds) and result.seconds >= 0):
        raise ValueError(f"seconds is {result.seconds}")
    return result


def _kinds(hint: Any) -> tuple[type, ...]:
    """The types that a field has in JSON."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    in_json = {Config: (dict,), float: (int, float)}
    return tuple(kind for option in options for kind in in_json.get(option, (get_origin(option) or option,)))


KINDS = {own.name: _kinds(own.type) for own in fields(Result)}
NEEDED = {own.name for own in fields(Result) if own.default is own.default_factory is MISSING}


def failure_of(folder: Path) -> str:
    """Why a run failed, or nothing where it did not."""
    try:
        return str(json.loads((folder / "failed.json").read_text())["reason"])
    except FileNotFoundError:
        return ""
    except (ValueError, LookupError, TypeError, OSError) as error:
        return f"its failed.json cannot be read ({error})"


def columns_of(task: str) -> tuple[str, ...]:
    """The columns of metrics.csv."""
    return ("epoch", "step", "lr", *metrics_of("train", task), *metrics_of("val", task), "seconds")


def read_curve(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, one an epoch; an OSError where there is none."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_curve(folder: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write metrics.csv anew."""
    write(folder / "metrics.csv", _table(rows, columns))


def add_to_curve(folder: Path, row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Add a row to metrics.csv; it is on the disk before anything relies on it."""
    with (folder / "metrics.csv").open("ab") as file:
        file.write(_lines([row], columns).encode())
        file.flush()
        os.fsync(file.fileno())


def write_steps(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write steps.csv anew."""
    write(folder / "steps.csv", _table(rows, STEPS))


def add_step(folder: Path, row: Mapping[str, float]) -> None:
    """Add a row to steps.csv. It is no result, and need not be on the disk before the next step."""
    with (folder / "steps.csv").open("a", newline="") as file:
        file.write(_lines([row], STEPS))


def read_steps(folder: Path, until: float = math.inf) -> list[dict[str, str]]:
    """The rows of a run's steps.csv up to a step; none where it has no such file."""
    if not (folder / "steps.csv").exists():
        return []
    with (folder / "steps.csv").open(newline="") as file:
        return [row for row in _whole(csv.DictReader(file)) if int(row["step"]) <= until]


def history(folder: Path, until: float = math.inf) -> list[tuple[int, dict[str, float]]]:
    """What the steps and the epochs of a run say up to a step, in their order, as wandb has it.

    An OSError where it has no curve.
    """
    told = [
        (int(row["step"]), {f"step/{name}": value for name, value in row.items() if name != "step"})
        for row in read_steps(folder, until)
    ]
    rows = [(int(row.get("step") or row["epoch"]), row) for row in _whole(read_curve(folder))]  # older: without steps
    told += [(step, row) for step, row in rows if step <= until]
    told.sort(key=lambda at: at[0])
    return [(step, {name: float(value) for name, value in row.items() if value}) for step, row in told]


def _whole(rows: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Rows but for one that is cut, the last one of a run that was killed while it wrote."""
    return (row for row in rows if None not in row.values())


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    return _lines([dict(zip(columns, columns, strict=True)), *rows], columns)


def _lines(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = StringIO()
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue()

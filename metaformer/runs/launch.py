"""What was launched: experiments/NAME/launch.json holds the analysis as it was first fixed, and the runs of the study.

A report reads them there instead of composing hundreds of configurations.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from metaformer.config.compose import group_dir, names_in
from metaformer.config.metrics import metric_of
from metaformer.config.study_nodes import Analysis, Study
from metaformer.config.validate import plain, structure
from metaformer.runs.answers import Answers, PixelAnswers, read_answers
from metaformer.runs.folder import folders_by_id, is_held
from metaformer.runs.ledger import known
from metaformer.runs.result import Result, failure_of, read_curve, read_result, reported
from metaformer.system.errors import ConfigError, nearest
from metaformer.system.files import now, write


@dataclass(frozen=True)
class Entry:
    """A run of a study as launch.json lists it."""

    cell: str  # what was varied, in words, without the seed
    levels: dict[str, str]  # the same by factor: {"mixer": "pooling", "lr": "0.01"}
    mixer: str
    seed: int
    run_id: str


@dataclass(frozen=True)
class Stage:
    """An analysis and a set of runs, from some launch on."""

    time: str
    analysis: dict[str, Any]  # the reference and the fields of `Analysis`
    runs: dict[str, Any]  # how many, a hash of their ids, and their seeds
    known: int | None = None  # how many of them had a result already, of another study or an earlier sweep

    def study(self, name: str) -> Study:
        """The study that it judges."""
        own = {f.name for f in fields(Analysis)} & self.analysis.keys()
        analysis = structure(Analysis, {key: self.analysis[key] for key in own})
        return Study(name, reference=str(self.analysis.get("reference")), analysis=analysis)

    def same(self, other: "Stage") -> bool:
        return (self.analysis, self.runs["ids"]) == (other.analysis, other.runs["ids"])

    @property
    def factor(self) -> str:
        """What is compared."""
        return str(self.analysis.get("factor"))


@dataclass(frozen=True)
class Launch:
    """launch.json."""

    study: str
    analyses: list[Stage] = field(default_factory=list)  # the first one, and every later one that differs
    command: str = ""
    source: str = ""  # a hash of the files that describe the study
    runs: list[Entry] = field(default_factory=list)
    results_sha256: str | None = None  # of results.csv as the last report wrote it
    images: list[str] = field(default_factory=list)  # what tells the images that its runs are tested on

    @property
    def planned_seeds(self) -> list[int] | None:
        """Those of the first launch, or all where it planned looks at growing numbers of them; None: not known."""
        first, last = self.analyses[0], self.analyses[-1]
        if first.analysis.get("looks") or first.runs["ids"] == last.runs["ids"]:
            return sorted({entry.seed for entry in self.runs}) or None
        seeds: list[int] | None = first.runs.get("seeds")
        return seeds


def setting_of(levels: Mapping[str, str], factor: str) -> str:
    """The levels of the other factors, in words."""
    return " ".join(level for other, level in levels.items() if other != factor)


def study_folder(name: str) -> Path:
    """Where the files of a study go, under the working directory."""
    return Path("experiments") / name


def analysis_of(study: Study) -> dict[str, Any]:
    """All that decides how a study is judged."""
    given = plain(study.analysis)
    if not study.analysis.baselines:  # it came after published studies
        del given["baselines"]
    return {"reference": study.reference, **given}


def record(study: Study, listed: Sequence[Entry], overrides: Sequence[str], runs: Path) -> None:
    """Keep the first analysis and choice of runs for ever, every later one that differs, and this launch's command.

    Args:
        runs: the folder of the run folders.
    """
    name = str(study.name)
    launched = read_launch(name) or Launch(name)
    ids = hashlib.sha256(" ".join(sorted(entry.run_id for entry in listed)).encode()).hexdigest()[:16]
    seeds = sorted({entry.seed for entry in listed})
    before = known(runs, [entry.run_id for entry in listed])
    stage = Stage(now(), analysis_of(study), {"n": len(listed), "ids": ids, "seeds": seeds}, len(before))
    old = bool(launched.analyses) and launched.analyses[-1].same(stage)
    words = ["data.root=FOLDER" if o.startswith("data.root=") else o for o in overrides if not o.startswith("runtime")]
    save(
        replace(
            launched,
            analyses=launched.analyses if old else [*launched.analyses, stage],
            command=" ".join(["python -m metaformer.train", *words]),
            source=source_of(name),
            runs=list(listed),
        )
    )


def source_of(name: str) -> str:
    """A hash of the files that describe a study: where it differs, the runs of the last launch are not its runs."""
    digest = hashlib.sha256()
    for folder in dict.fromkeys((Path("experiments").resolve(), group_dir("experiments").resolve())):
        for file in sorted([*folder.glob(f"{name}.yaml"), *(folder / name).rglob("*.yaml")]):
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def save(launched: Launch) -> None:
    """Write launch.json."""
    write(study_folder(launched.study) / "launch.json", json.dumps(asdict(launched), indent=1) + "\n")


def not_launched(name: str) -> str:
    """What is said of a study that `read_launch` does not find."""
    known = {*names_in("experiments"), *(path.parent.name for path in Path("experiments").glob("*/launch.json"))}
    hint = "" if name in known else nearest(name, known)
    return f"no study of that name was launched from this folder{hint}"


def read_launch(name: str) -> Launch | None:
    """What was launched under this name from this folder, or None."""
    path = study_folder(name) / "launch.json"
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text())
        stages, runs = [Stage(**stage) for stage in raw["analyses"]], [Entry(**entry) for entry in raw["runs"]]
        if not stages or not runs:
            raise ValueError("it lists no analysis or no run")
        return Launch(**{**raw, "analyses": stages, "runs": runs})
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); put it back, or remove it and launch again") from error


@dataclass(frozen=True)
class Run(Entry):
    """A run of a study: its result, or the reason why there is none."""

    folder: Path | None
    result: Result | None
    problem: str = ""
    packed: Answers | PixelAnswers | None = None  # of the study's runs.npz, where no folder here has the result
    curve: Sequence[Mapping[str, str]] = ()  # the same

    def answers(self, *, logits: bool = False) -> Answers | PixelAnswers | None:
        """What its network says of the test images."""
        return self.packed or (read_answers(self.folder, logits=logits) if self.folder else None)

    def epochs(self) -> Sequence[Mapping[str, str]]:
        """The rows of its learning curve; none where it cannot be read."""
        try:
            return self.curve or (read_curve(self.folder) if self.folder else ())
        except OSError:
            return ()


def collect(listed: Sequence[Entry], folder: Path) -> list[Run]:
    """Every listed run with its result, or with the reason why it has none; nothing is dropped or averaged.

    Args:
        folder: that of the run folders.
    """
    found = folders_by_id(folder)
    return [_run_of(entry, found.get(entry.run_id, [])) for entry in listed]


def _run_of(entry: Entry, paths: Sequence[Path]) -> Run:
    finished = [path for path in paths if (path / "result.json").exists()]
    place = next(iter([*finished, *paths]), None)
    result, problem = None, ""
    if len(finished) > 1:
        problem = f"two folders hold it, {finished[0].name} and {finished[1].name}; remove one"
    elif place is None:
        problem = "not started"
    elif not finished:
        problem = _unfinished(place)
    else:
        try:
            result = read_result(place)
            problem = _wrong(result, entry) if result else "not finished"
        except ConfigError as error:
            problem = str(error)
    return Run(**vars(entry), folder=place, result=None if problem else result, problem=problem)


def _wrong(result: Result, entry: Entry) -> str:
    """What makes a result unfit to be counted for an entry, or nothing."""
    if (result.run_id, result.seed) != (entry.run_id, entry.seed):
        return f"its result.json is that of another run ({result.run_id}, seed {result.seed})"
    for name in reported(result.config.task.name):
        value, metric = result.metrics.get(name), metric_of(name)
        if name not in result.metrics and metric.of_class is not None:
            continue  # of two classes only
        if not isinstance(value, int | float) or not 0 <= value <= (1 if metric.unit == "points" else math.inf):
            return f"{name} is {value}"
    return ""


def _unfinished(folder: Path) -> str:
    if reason := failure_of(folder):
        return f"failed: {reason}"
    return "running" if is_held(folder) else "not finished"


def row(run: Run) -> dict[str, Any]:
    """A finished run as one row of results.csv; metrics are fractions."""
    result = run.result
    assert result is not None
    names = reported(result.config.task.name)
    return {
        "cell": run.cell,
        "mixer": run.mixer,
        "seed": run.seed,
        **{name: round(result.metrics[name], 6) if name in result.metrics else "" for name in names},
        "params": result.params,
        "trainable": result.trainable,
        "macs": result.macs,
        "seconds": result.seconds,
        "run": result.name,
        "cell_id": result.cell_id,
        "commit": result.git["commit"][:12] if result.git else "",
    }

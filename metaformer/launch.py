"""What was launched, and what came of it.

experiments/NAME/launch.json holds the analysis as it was first fixed, and the runs of the study: a report reads them
there instead of composing hundreds of configurations.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaformer.config import group_dir
from metaformer.identity import run_id
from metaformer.run import Planned, failure_of, folders_by_id, is_held, now, read_result, write
from metaformer.schema import ConfigError, by_closeness

METRICS = ("train_accuracy", "val_accuracy", "test_accuracy")


@dataclass(frozen=True)
class Run:
    """A run of a study: its result, or the reason why there is none."""

    cell: str
    levels: Mapping[str, str]
    mixer: str
    seed: int
    run_id: str
    folder: Path | None
    result: Mapping[str, Any] | None
    problem: str = ""


def setting_of(levels: Mapping[str, str], factor: str) -> str:
    """The levels of the other factors, in words."""
    return " ".join(level for other, level in levels.items() if other != factor)


def folder_of(name: str) -> Path:
    """Where the files of a study go, under the working directory."""
    return Path("experiments") / name


def path_of(name: str) -> Path:
    return folder_of(name) / "launch.json"


def analysis_of(study: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides how a study is judged."""
    return {"reference": study["reference"], **study["analysis"]}


def entries(planned: Iterable[Planned]) -> list[dict[str, Any]]:
    """The runs of a study as launch.json lists them."""
    return [
        {"cell": p.cell, "levels": p.levels, "mixer": p.mixer, "seed": p.config["seed"], "run_id": run_id(p.config)}
        for p in planned
    ]


def record(study: Mapping[str, Any], listed: Sequence[Mapping[str, Any]], overrides: Sequence[str]) -> None:
    """Keep the first analysis and choice of runs for ever, every later one that differs, and this launch's command."""
    launched = read(study["name"]) or {"study": study["name"], "analyses": []}
    ids = hashlib.sha256(" ".join(sorted(entry["run_id"] for entry in listed)).encode()).hexdigest()[:16]
    stage = {"analysis": analysis_of(study), "runs": {"n": len(listed), "ids": ids}}
    if not launched["analyses"] or {k: launched["analyses"][-1].get(k) for k in stage} != stage:
        launched["analyses"].append({"time": now(), **stage})
    folder_of(study["name"]).mkdir(parents=True, exist_ok=True)
    words = ["data.root=FOLDER" if o.startswith("data.root=") else o for o in overrides if not o.startswith("runtime")]
    command = " ".join(["python -m metaformer.train", *words])
    save(launched | {"command": command, "source": source(study["name"]), "runs": listed})


def source(name: str) -> str:
    """A hash of the files that describe a study: where it differs, the runs of the last launch are not its runs."""
    digest = hashlib.sha256()
    for folder in dict.fromkeys((Path("experiments").resolve(), group_dir("experiments").resolve())):
        for file in sorted([*folder.glob(f"{name}.yaml"), *(folder / name).rglob("*.yaml")]):
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def save(launched: Mapping[str, Any]) -> None:
    write(path_of(launched["study"]), json.dumps(launched, indent=1) + "\n")


def read(name: str) -> dict[str, Any] | None:
    """What was launched under this name from this folder, or None."""
    path = path_of(name)
    if not path.exists():
        return None
    try:
        launched = json.loads(path.read_text())
        launched["analyses"][0]["time"], launched["runs"][0]["run_id"]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); put it back, or remove it and launch again") from error
    return launched


def collect(listed: Sequence[Mapping[str, Any]], folder: Path) -> list[Run]:
    """Every listed run with its result, or with the reason why it has none; nothing is dropped or averaged."""
    found = folders_by_id(folder)
    runs = []
    for entry in listed:
        paths = found.get(entry["run_id"], [])
        finished = [path for path in paths if (path / "result.json").exists()]
        place: Path | None = next(iter(finished or paths), None)
        result, problem = None, ""
        if len(finished) > 1:
            problem = f"two folders hold it, {finished[0].name} and {finished[1].name}; remove one"
        elif finished:
            try:
                result = read_result(finished[0])
                problem = _wrong(result or {}, entry)
            except ConfigError as error:
                problem = str(error)
        elif place is not None:
            problem = _unfinished(place)
        else:
            problem = "not started"
        runs.append(Run(**entry, folder=place, result=None if problem else result, problem=problem))
    return runs


def check(study: Mapping[str, Any], listed: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a study whose reference or factor is none of its own."""
    factor, reference = study["analysis"]["factor"], study["reference"]
    factors = list(listed[0]["levels"])
    if factor not in factors:
        expected = ", ".join(by_closeness(factor, factors))
        raise ConfigError(f"study.analysis.factor={factor}: expected a factor of the study, one of {expected}")
    levels = {entry["levels"][factor] for entry in listed}
    if reference not in levels:
        expected = ", ".join(by_closeness(reference, levels))
        raise ConfigError(f"study.reference={reference}: expected a {factor} of the study, one of {expected}")


EXPECTED: dict[str, Any] = {  # what a report uses of a result
    "run_id": str, "seed": int, "name": str, "choices": dict, "cell_id": str, "metrics": dict, "params": int,
    "trainable": int, "macs": int | None, "seconds": int | float, "code": str, "versions": dict, "python": str,
    "device": str, "threads": int, "finished": str, "git": dict | None, "config": dict,
}  # fmt: skip


def _wrong(result: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """What makes a result unfit to be counted, or nothing."""
    for key, kind in EXPECTED.items():
        if key not in result or not isinstance(result[key], kind):
            return f"its result.json has no usable '{key}'"
    if result["run_id"] != entry["run_id"] or result["seed"] != entry["seed"]:
        return f"its result.json is that of another run ({result['run_id']}, seed {result['seed']})"
    if any(not isinstance(result["config"].get(node), dict) for node in ("data", "model", "recipe", "reference")):
        return "its result.json has no usable 'config'"
    if result["git"] is not None and not isinstance(result["git"].get("commit"), str):
        return "its result.json has no usable 'git'"
    if not (math.isfinite(result["seconds"]) and result["seconds"] >= 0):
        return f"seconds is {result['seconds']}"
    for name in METRICS:
        value = result["metrics"].get(name, math.nan)
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            return f"{name} is {value}"
    return ""


def _unfinished(folder: Path) -> str:
    if reason := failure_of(folder):
        return f"failed: {reason}"
    return "running" if is_held(folder) else "not finished"


def row(run: Run) -> dict[str, Any]:
    """A finished run as one row of results.csv; accuracies are fractions."""
    result = run.result
    assert result is not None
    return {
        "cell": run.cell,
        "mixer": run.mixer,
        "seed": run.seed,
        **{name: round(result["metrics"][name], 6) for name in METRICS},
        "params": result["params"],
        "trainable": result["trainable"],
        "macs": result["macs"],
        "seconds": result["seconds"],
        "run": result["name"],
        "cell_id": result["cell_id"],
        "commit": result["git"]["commit"][:12] if result["git"] else "",
    }

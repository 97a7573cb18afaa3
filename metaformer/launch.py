"""What was launched: experiments/NAME/launch.json holds the analysis as it was first fixed, and the runs of the study.

A report reads the runs here instead of composing hundreds of configurations.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaformer.identity import run_id
from metaformer.run import Planned, now, write
from metaformer.schema import ConfigError


def path_of(name: str) -> Path:
    return Path("experiments") / name / "launch.json"


def record(study: Mapping[str, Any], planned: Sequence[Planned]) -> None:
    """Keep the first analysis for ever, every later one that differs, and the runs of this launch."""
    path = path_of(study["name"])
    analysis = {"reference": study["reference"], **study["analysis"]}
    launched = read(study["name"]) or {"study": study["name"], "analyses": []}
    if not launched["analyses"] or launched["analyses"][-1]["analysis"] != analysis:
        launched["analyses"].append({"time": now(), "analysis": analysis})
    launched["runs"] = [
        {"cell": p.cell, "levels": p.levels, "mixer": p.mixer, "seed": p.config["seed"], "run_id": run_id(p.config)}
        for p in planned
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(launched, indent=1) + "\n")


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

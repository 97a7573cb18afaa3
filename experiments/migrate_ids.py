"""Give finished work the run ids of this version, which hash the whole configuration and `TRAINING_VERSION`.

    python experiments/migrate_ids.py experiments=NAME [data.root=FOLDER]   # the files of a study
    python experiments/migrate_ids.py runs=FOLDER                           # run folders

It is right only where the training is the same: results stay as they are. Run it from the folder of `experiments/`.
"""

import csv
import hashlib
import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

from metaformer.config.identity import cell_id, content_of, run_id
from metaformer.config.schema import Config
from metaformer.config.validate import structure
from metaformer.runs.launch import read_launch, save, source_of, study_folder
from metaformer.runs.result import parse, write_result
from metaformer.studies.points import Point, expand
from metaformer.system.version import TRAINING_VERSION


def migrate_study(name: str, overrides: list[str]) -> dict[str, str]:
    """The new ids in the files of a study; returns them by the old names of the runs."""
    points = {(p.cell, p.config.seed): p for p in expand([f"experiments={name}", *overrides])}
    launched, folder = read_launch(name), study_folder(name)
    assert launched is not None
    if {(entry.cell, entry.seed) for entry in launched.runs} != points.keys():
        raise SystemExit(f"{name}: launch.json does not list the runs that the study now has")
    entries = [replace(entry, run_id=points[entry.cell, entry.seed].run.run_id) for entry in launched.runs]
    ids = hashlib.sha256(" ".join(sorted(entry.run_id for entry in entries)).encode()).hexdigest()[:16]
    stages = [replace(stage, runs={**stage.runs, "ids": ids}) for stage in launched.analyses]
    renamed = rewrite_results(folder / "results.csv", points)
    digest = hashlib.sha256((folder / "results.csv").read_bytes()).hexdigest()
    save(replace(launched, analyses=stages, runs=entries, source=source_of(name), results_sha256=digest))
    for page in [*folder.glob("*.html"), *folder.glob("probes/*.html")]:
        text = page.read_text()
        for old, new in renamed.items():
            text = text.replace(old, new)
        page.write_text(text)
    return renamed


def rewrite_results(path: Path, points: dict[tuple[str, int], Point]) -> dict[str, str]:
    """results.csv with the new names and cell ids; returns the names, old to new."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    renamed = {}
    for row in rows:
        run = points[row["cell"], int(row["seed"])].run
        name = f"{row['run'].rpartition('-')[0]}-{run.run_id}"
        renamed[row["run"]] = name
        row |= {"run": name, "cell_id": run.cell_id}
    text = StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return renamed


def migrate_run(folder: Path) -> Path:
    """A run folder under its new name, with the new ids in its result.json."""
    raw = json.loads((folder / "result.json").read_text())
    raw.pop("code", None)
    raw.setdefault("fingerprint", raw["config"]["data"].pop("fingerprint", None))
    config = structure(Config, raw["config"])
    content = content_of(config, raw["fingerprint"])
    name = f"{folder.name.rpartition('-')[0]}-{run_id(content)}"
    raw |= {"training_version": TRAINING_VERSION, "name": name, "run_id": run_id(content), "cell_id": cell_id(content)}
    write_result(folder, parse(raw))
    return folder.rename(folder.with_name(name))


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    if name := given.pop("experiments", None):
        renamed = migrate_study(name, [f"{key}={value}" for key, value in given.items()])
        print(f"{name}: {len(renamed)} runs have new ids")
    elif "runs" in given:
        for path in sorted(Path(given["runs"]).glob("*/result.json")):
            print(f"{path.parent.name} -> {migrate_run(path.parent).name}")
    else:
        print(__doc__)


if __name__ == "__main__":
    main()

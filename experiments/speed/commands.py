"""What commands cost that train nothing: the first second, and studies of many finished runs.

    python experiments/speed/commands.py                 # studies of 10, 100, 1,000 and 3,000 runs: ten minutes
    python experiments/speed/commands.py --runs 50 --rounds 1

It makes the folders of the runs in a temporary folder. A command is measured by the CPU seconds of its processes, not
by the clock, since other work may run on the machine, with the most memory that one of them took. The aims: `--help`
0.6 s, a refused word 0.5 s, `plan` 0.8 s, `report` of 200 runs 3 s; planned, followed and reported under 10 s and 1 GB
with 1,000 runs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rounds import Row, heading, in_turns, keep, options

from metaformer.config.metrics import SPLITS, metrics_of
from metaformer.config.schema import Config
from metaformer.runs.result import Result, add_to_curve, columns_of, write_curve, write_result
from metaformer.studies import progress
from metaformer.studies.points import Point, expand

IMAGES, CLASSES, EPOCHS = 3000, 10, 30
MIXERS = "pooling,identity,attention,fourier,spatial_mlp,depthwise,sepconv,shift,max_pooling,global_filter"
STUDY = """# @package _global_
hydra:
  mode: MULTIRUN
  sweeper: {{params: {{mixer: '{mixers}', recipe.lr: '1e-3,2e-3,4e-3,8e-3,1.6e-2', seed: 'range({seeds})'}}}}
study: {{name: many, reference: pooling, analysis: {{tolerance: null}}}}
"""


def finish(point: Point, labels: np.ndarray, random: np.random.Generator) -> None:
    """Leave the files of a finished run."""
    run, config = point.run, point.config
    right = random.random(IMAGES) < 0.7 + 0.02 * random.standard_normal()
    predictions = np.where(right, labels, (labels + 1) % CLASSES)
    names = [name for split in SPLITS for name in metrics_of(split)]
    metrics = {**dict.fromkeys(names, 0.5), "test_accuracy": float((predictions == labels).mean())}
    result = Result(
        metrics=metrics, recall={str(i): 0.5 for i in range(CLASSES)}, confusion=[[30] * CLASSES] * CLASSES,
        params=1000, trainable=1000, macs=10**6, uncounted_ops=[], epochs=EPOCHS, tested_epoch=EPOCHS, images=8000,
        seconds=10.0, threads=1, devices=1, accumulate=1, device="cpu", versions={"torch": "2"}, name=run.folder.name,
        choices=dict(run.choices), run_id=run.run_id, cell_id=run.cell_id, seed=config.seed, host="here", python="3.11",
        training_version=1, git=None, finished="2026-01-02T00:00:00+00:00", fingerprint=run.fingerprint,
        config=replace(config, study=Config().study),
    )  # fmt: skip
    run.folder.mkdir(parents=True)
    np.savez_compressed(run.folder / "predictions.npz", predictions=predictions, labels=labels)
    rows = [{"epoch": i + 1, "val_accuracy": 0.02 * i, "seconds": 1.0} for i in range(EPOCHS)]
    write_curve(run.folder, rows, columns_of("classification"))
    write_result(run.folder, result)


# By a small process: a child starts with the most memory that its parent ever had
ASK = """import resource, subprocess, sys
status = subprocess.run([sys.executable, "-m", *sys.argv[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(status.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20)"""


def measured(*words: str) -> tuple[float, float]:
    """The CPU seconds of a command, and the most memory in GB."""
    done = subprocess.run([sys.executable, "-c", ASK, *words], capture_output=True, text=True, check=True)
    status, seconds, memory = done.stdout.split()
    if status != "0" and "mixer=polling" not in words:
        raise SystemExit(f"{' '.join(words)}: status {status}")
    return float(seconds), float(memory)


def follow(points: Sequence[Point]) -> float:
    """The CPU seconds of a look at all runs while they train, after a first one."""
    seconds = 0.0
    for _ in range(2):
        start = time.process_time()
        states = {point.run.folder: progress._state(point, 0.0) for point in points}
        sum(progress._done(point, states[point.run.folder], 0.0) for point in points)
        progress._so_far(points, states)
        seconds = time.process_time() - start
        row = {"epoch": EPOCHS + 1, "val_accuracy": 0.9, "seconds": 1.0}
        add_to_curve(points[0].run.folder, row, columns_of("classification"))
    return seconds


def study(runs: int) -> list[Point]:
    """The folders of so many finished runs, 50 cells and their seeds, in the working directory."""
    mixers, seeds = (MIXERS, runs // 50) if runs >= 50 else ("pooling,identity", runs // 10)
    Path("experiments").mkdir(exist_ok=True)
    Path("experiments/many.yaml").write_text(STUDY.format(mixers=mixers, seeds=seeds))
    points = expand(["experiments=many"])
    random = np.random.default_rng(0)
    labels = random.integers(CLASSES, size=IMAGES)
    for point in points:
        finish(point, labels, random)
    return points


def commands(what: str, words: Mapping[str, Sequence[str]], given: argparse.Namespace) -> list[Row]:
    """Seconds of each command, one after the other, and the most memory of any."""
    most = 0.0

    def seconds(command: Sequence[str]) -> float:
        nonlocal most
        took, memory = measured(*command)
        most = max(most, memory)
        return took

    figures = {name: lambda command=command: seconds(command) for name, command in words.items()}
    rows = in_turns(what, "CPU s", figures, given, warm=False)
    print(f"{what}: at most {most:.2f} GB")
    return rows


def main() -> None:
    given = options(__doc__, rounds=3, clock="cpu", runs=0)
    heading(given)
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    out = given.out.resolve()
    first = {
        "train --help": ("metaformer.train", "--help"),
        "a refused word": ("metaformer.train", "mixer=polling"),
        "plan of 18 runs": ("metaformer.plan", "experiments=quickstart"),
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        keep(commands("first second", first, given), __file__, out)
    for runs in (given.runs,) if given.runs else (10, 100, 200, 1000, 3000):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            points = study(runs)
            verbs = ("plan", "report", "train")
            words = {verb: (f"metaformer.{verb}", "experiments=many") for verb in verbs}
            given.rounds = 1 if runs >= 1000 else given.rounds
            rows = commands(f"{len(points)} finished runs", words, given)
            look = {"a look while they train": lambda points=points: follow(points)}
            keep([*rows, *in_turns(f"{len(points)} finished runs", "CPU s", look, given, warm=False)], __file__, out)
            os.chdir("/")


if __name__ == "__main__":
    main()

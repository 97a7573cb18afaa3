"""What a study of many runs costs to plan, to start again and to report, when all of its runs are finished.

    python experiments/speed/thousand.py [RUNS]  # 1,000

It makes the folders of the runs in a temporary folder and prints, for each command, the CPU seconds of its processes
(not of the clock: other work may run on the machine) and the most memory that one of them took. The aim is under 10 s
and under 1 GB for each with 1,000 runs.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from metaformer.config.metrics import SPLITS, metrics_of
from metaformer.config.schema import Config
from metaformer.runs.result import Result, add_to_curve, write_curve, write_result
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
    write_curve(run.folder, rows)
    write_result(run.folder, result)


def measured(*words: str) -> None:
    """Run a command and print what it took."""
    process = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    print(f"{' '.join(words)}: {used.ru_utime + used.ru_stime:.1f} s, {used.ru_maxrss / 2**20:.2f} GB, status {status}")


def follow(points: list[Point]) -> None:
    """What the table of a running study costs: a first look, and one at which a run has another row."""
    for words in ("first look", "next look, one row more"):
        start = time.process_time()
        progress._epochs(points)
        progress._so_far(points)
        print(f"progress, {words}: {time.process_time() - start:.2f} s")
        add_to_curve(points[0].run.folder, {"epoch": EPOCHS + 1, "val_accuracy": 0.9, "seconds": 1.0})


def main(runs: int) -> None:
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("experiments").mkdir()
        Path("experiments/many.yaml").write_text(STUDY.format(mixers=MIXERS, seeds=runs // 50))
        start = time.process_time()
        points = expand(["experiments=many"])
        print(f"{len(points)} runs composed: {time.process_time() - start:.1f} s")
        random = np.random.default_rng(0)
        labels = random.integers(CLASSES, size=IMAGES)
        for point in points:
            finish(point, labels, random)
        for words in (("metaformer.plan",), ("metaformer.train",), ("metaformer.report",)):
            measured(*words, "experiments=many")
        follow(points)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)

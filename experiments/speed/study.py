"""A whole study beside the same study in the habits of lightning-hydra-template, and runs at once.

    python experiments/speed/study.py
    python experiments/speed/study.py --rounds 1 --seeds 1 --train 256 --epochs 1 --mixers 1

Six mixers on Fashion-MNIST, a seed each: the same networks, images, epochs and batches. Here: one command, as many
runs at once as there are cores, one thread each. There (`in_template_habits.py`): a process for each run, one after
the other, PIL transforms in a DataLoader, NCHW, Lightning's default loop and checkpoints, all cores for each. Starting,
validation, test and checkpoints are part of both; the report is part of the first. A round is one seed of all mixers.
On a GPU both train there, and up to 32 runs share it. With `--clock cpu` it is the CPU time of all processes that
counts, in which several runs at once gain nothing.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rounds import DEVICE, heading, in_turns, keep, options, wanted

ON_GPU = DEVICE == "cuda"
AT_ONCE = (1, 2, 4, 8, 16, 32) if ON_GPU else (1, 2)  # runs on one GPU, or on the cores of a processor
MIXERS = ("pooling", "identity", "attention", "fourier", "spatial_mlp", "depthwise")


def run(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")


class Studies:
    """The same runs in several ways; each round takes the next seeds."""

    def __init__(self, folder: Path, mixers: int, seeds: int, train: int, epochs: int, clock: str) -> None:
        self.clock, self.folder, self.mixers, self.seeds = clock, folder, MIXERS[:mixers], seeds
        self.train, self.epochs = train, epochs
        self.rounds: dict[object, int] = {}

    def seconds(self, study: Callable[[list[int]], None]) -> float:
        """Of the next round of a way to train."""
        number = self.rounds[study] = self.rounds.get(study, -1) + 1
        started = self.now()
        study(list(range(number * self.seeds, (number + 1) * self.seeds)))
        return self.now() - started

    def now(self) -> float:
        used = os.times()
        return used.elapsed if self.clock == "wall" else used.children_user + used.children_system

    def images(self) -> int:
        return len(self.mixers) * self.seeds * self.train * self.epochs

    def here(self, seeds: list[int], *more: str) -> None:
        grid = (f"mixer={','.join(self.mixers)}", f"seed={','.join(map(str, seeds))}", "model.mlp_ratio=1")
        words = (f"data.train={self.train}", f"recipe.epochs={self.epochs}", f"runtime.runs={self.folder}/runs")
        run("-m", "metaformer.train", "-m", *grid, *words, f"runtime.accelerator={'gpu' if ON_GPU else 'cpu'}", *more)

    def there(self, seeds: list[int]) -> None:
        script = str(Path(__file__).with_name("in_template_habits.py"))
        for seed in seeds:
            for mixer in self.mixers:
                run(script, mixer, str(seed), str(self.train), str(self.epochs), str(self.folder))


def main() -> None:
    given = options(__doc__, rounds=3, mixers=6, seeds=1, train=8000, epochs=2)
    heading(given)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        size = (given.mixers, given.seeds, given.train, given.epochs, given.clock)
        if wanted(what := f"{given.mixers} mixers, {given.seeds} seed, {given.epochs} epochs of {given.train}", given):
            study = Studies(Path(name) / "study", *size)
            ways = {"in the template's habits": study.there, "metaformer": study.here}
            figures = {way: lambda how=how: study.images() / study.seconds(how) for way, how in ways.items()}
            rows += in_turns(what, "images/s", figures, given, warm=False)
        if wanted(what := "runs at once", given):
            runs = AT_ONCE[-1] * given.seeds
            pooling = Studies(Path(name) / "once", 1, runs, given.train, given.epochs, given.clock)

            def with_jobs(jobs: int) -> Callable[[list[int]], None]:
                several = f"runtime.per_gpu={jobs}" if ON_GPU else f"hydra.launcher.n_jobs={jobs}"
                return lambda seeds: pooling.here(seeds, several, f"runtime.runs={name}/at_once{jobs}")

            ways = {f"{jobs} at once": with_jobs(jobs) for jobs in AT_ONCE}
            figures = {way: lambda how=how: 3600 * runs / pooling.seconds(how) for way, how in ways.items()}
            rows += in_turns(what, "runs/hour", figures, given, warm=False)
    keep(rows, __file__, given.out)


if __name__ == "__main__":
    main()

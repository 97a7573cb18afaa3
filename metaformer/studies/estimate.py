"""What a study costs: hours of training, disk and wandb runs, as far as that can be told before they are spent."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metaformer.config.schema import Config
from metaformer.config.validate import plain
from metaformer.data.registry import DATASETS
from metaformer.runs.launch import Run
from metaformer.runs.result import Result, read_result
from metaformer.studies.points import Point
from metaformer.system.errors import ConfigError
from metaformer.system.machine import places, uses_gpu

MOST = 100  # different models whose multiply-accumulates are counted; it takes 20 ms and more for each
SHORTEST = 5.0  # seconds of a run below which they are its start and its end rather than its training
ASK = "throughput=IMAGES_PER_S tells what they cost"


def estimate(points: Sequence[Point], runs: Sequence[Run], folder: Path, throughput: float | None) -> list[str]:
    """Lines about what is spent, and what is left to do.

    Args:
        runs: those of the points, with their results.
        folder: of the run folders, whose finished runs tell how fast this machine is.
        throughput: training images a second, where it is known.
    """
    config = points[0].config
    done = {run.run_id: run.result for run in runs if run.result is not None}
    todo = [point for point in points if point.run.run_id not in done]
    lines = [f"{sum(result.seconds for result in done.values()) / 3600:.2f} hours of training done"] if done else []
    if todo:
        seconds, source = _left(todo, runs, folder, throughput)
        lines.append(f"{len(todo)} to do: {source}" if seconds is None else _hours(seconds, source, len(todo), config))
    sizes = [_bytes(run.folder) for run in runs if run.result is not None and run.folder is not None]
    ends = [f"{np.mean(sizes) * len(runs) / 2**20:.0f} MB in the end"] if sizes else []
    ends += [f"{len(runs)} runs on wandb"] if config.logger.wandb else []
    return [*lines, ", ".join(ends)] if ends else lines


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _hours(seconds: float, source: str, todo: int, config: Config) -> str:
    runtime = config.runtime
    at_once = min(places(runtime.accelerator, runtime.per_gpu), todo)
    gpu = uses_gpu(runtime.accelerator)
    unit = runtime.processes if gpu else runtime.threads or 1
    return (
        f"about {seconds * unit / 3600:.2f} {'GPU' if gpu else 'core'}-hours to do ({source}), "
        f"{seconds / 60 / at_once:.0f} minutes here with {at_once} at a time"
    )


def _left(
    todo: Sequence[Point], runs: Sequence[Run], folder: Path, throughput: float | None
) -> tuple[float | None, str]:
    """Seconds of training that are left, and how they are known; or None, and what would tell them.

    By the finished runs of the same cell, where each cell has one; or else in proportion to multiply-accumulates,
    epochs and images, at the speed of all finished runs in `folder`.
    """
    if throughput is not None:
        counts = [_images(point.config, {}) for point in todo]
        known = [n for n in counts if n is not None]
        if len(known) < len(counts):
            return None, "data.train has to be given, since the training images are not counted here"
        in_all = sum(point.config.recipe.images_seen(n) for n, point in zip(known, todo, strict=True))
        return in_all / throughput, f"at {throughput:g} images a second"
    cells: dict[str, list[float]] = {}
    for run in runs:
        if run.result is not None:
            cells.setdefault(run.cell, []).append(run.result.seconds)
    if all(point.cell in cells for point in todo):
        return sum(float(np.mean(cells[p.cell])) for p in todo), "by the finished runs of the same cells"
    results = _readable(folder)
    if not results and cells:
        mean = float(np.mean([value for values in cells.values() for value in values]))
        return sum(float(np.mean(cells.get(p.cell, mean))) for p in todo), "by the finished runs of this study"
    if not results:
        return None, f"{ASK} (python -m metaformer.cost ... cost.throughput=true)"
    return _by_macs(todo, results)


def _by_macs(todo: Sequence[Point], results: Sequence[Result]) -> tuple[float | None, str]:
    """The same in proportion to multiply-accumulates, at the speed of finished runs on the commonest device."""
    device, _ = Counter(result.device for result in results).most_common(1)[0]
    results = [result for result in results if result.device == device]
    sizes = {_data_key(result.config, result.fingerprint): result.images for result in results}
    speeds = [
        (r.macs or 0) * min(r.images * r.epochs, r.config.recipe.images_seen(r.images)) / r.seconds for r in results
    ]
    counted: dict[str, int] = {}
    total = 0.0
    for point in todo:
        config = point.config
        images = _images(config, sizes, point.run.fingerprint)
        nodes = plain(config)
        key = json.dumps([nodes[node] for node in ("model", "mixer", "data", "task")], sort_keys=True)
        if key not in counted and len(counted) < MOST:
            macs, uncounted = _macs(config)
            if macs is None:
                return None, f"there is no formula for the MACs of {', '.join(uncounted)}; {ASK}"
            counted[key] = macs
        if images is None or key not in counted:
            what = "its training images are not counted" if images is None else f"there are over {MOST} models to count"
            return None, f"{what}; {ASK}"
        total += counted[key] * config.recipe.images_seen(images)
    plural = "s" * (len(results) > 1)
    source = f"from MACs, at the speed of {len(results)} finished run{plural} on {device}"
    return total / float(np.median(speeds)), source


def _macs(config: Config) -> tuple[int | None, Sequence[str]]:
    from metaformer.studies.cell_cost import cost_of

    found = cost_of(config)
    return found.macs, found.uncounted


def _readable(folder: Path) -> list[Result]:
    """The results in a folder that tell how fast their runs were."""
    found = []
    for path in folder.glob("*/result.json"):
        try:
            result = read_result(path.parent)
        except ConfigError:
            continue
        if result is not None and result.seconds >= SHORTEST and all((result.macs, result.images, result.epochs)):
            found.append(result)
    return found


def _data_key(config: Config, fingerprint: str | None) -> str:
    return json.dumps([config.data.name, config.data.train, config.data.val, fingerprint])


def _images(config: Config, sizes: Mapping[str, int], fingerprint: str | None = None) -> int | None:
    """How many images an epoch has: of a finished run on the same data, or as it is known without reading any."""
    data, known = config.data, DATASETS[config.data.name]
    if data.train is not None:
        return data.train
    if known.images is not None:
        carved = data.val if data.val is not None else known.images // 10
        return known.images - (carved if "val" in known.reads else 0)
    return sizes.get(_data_key(config, fingerprint))

"""What a study will be able to say, before it is launched.

    python -m metaformer.plan experiments=NAME             # its runs so far, and the power of its seeds
    python -m metaformer.plan experiments=NAME sd=1.5      # for paired differences that scatter by 1.5 points
    python -m metaformer.plan experiments=NAME from=OTHER  # as much as those of another study did
    python -m metaformer.plan experiments=NAME throughput=900  # its cost, at 900 training images a second and run

The power is that of the first step of the study's correction, which is the hardest. Without sd= and from= the scatter
is that of the finished runs of the study itself, or else an assumption of 1 point, and it says so.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from metaformer import launch
from metaformer.config import answer
from metaformer.launch import Run
from metaformer.report import effective
from metaformer.run import Planned, read_result
from metaformer.schema import ConfigError, epochs_of, processes
from metaformer.slots import gpus, places
from metaformer.stats import difference_power, equivalence_power, seeds_needed
from metaformer.tables import Table
from metaformer.verdict import first_step, judge

SEEDS = (3, 5, 8, 10, 15, 20, 30)
ASSUMED_SD = 1.0  # points
OWN = ("sd", "from", "throughput")
COUNTING = 5.0  # seconds that counting the multiply-accumulates of models may take


def plan(arguments: Sequence[str], console: Console) -> None:
    """Print the state of a study's runs and the power of its seeds."""
    from metaformer.study import changes, expand

    own = {key: value for key, _, value in (a.partition("=") for a in arguments) if key in OWN}
    if {"sd", "from"} <= own.keys():
        raise ConfigError("sd, from: expected one of them, both say how much the differences scatter")
    rest = [a for a in arguments if a.partition("=")[0] not in own]
    planned = expand(rest)
    config = planned[0].config
    folder = Path(config["runtime"]["runs"])
    listed = launch.entries(planned)
    if config["study"]["name"] and not changes(rest):
        launch.check(config["study"], listed)
    runs = launch.collect(listed, folder)
    study = effective(config["study"], runs)
    console.print(f"[bold]{study['name'] or 'sweep'}[/]: {_states(runs)}", highlight=False)
    for line in _cost(planned, runs, folder, own.get("throughput")):
        console.print(line, highlight=False)
    seeds, comparisons = _size(study, runs)
    if not comparisons:
        console.print("nothing is compared with a reference: there is no power to speak of")
        return
    sd, source = _scatter(own, study, runs, folder)
    analysis = study["analysis"]
    alpha = first_step(analysis, comparisons)
    margin = analysis["margin"] / sd
    plural = "s" * (comparisons > 1)
    console.print(
        f"{seeds} seeds, {comparisons} comparison{plural} with {study['reference']} in a setting, margin "
        f"{analysis['margin']:g} points = {margin:.2f} SD of the paired difference ({sd:.2f} points, {source})",
        highlight=False,
    )
    console.print(power_table(seeds, margin, alpha).rich())
    needed = seeds_needed(margin, alpha)
    console.print(
        f"{needed or 'more than 1,000'} seeds show with 80% that two equal cells are equivalent", highlight=False
    )


def _states(runs: Sequence[Run]) -> str:
    counts = Counter(run.problem.partition(":")[0] or "finished" for run in runs)
    return f"{len(runs)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items())


def _cost(planned: Sequence[Planned], runs: Sequence[Run], folder: Path, throughput: str | None) -> list[str]:
    """Hours, disk and wandb runs of a study: what is spent, and what is left to do as far as that can be told."""
    runtime, logger = planned[0].config["runtime"], planned[0].config["logger"]
    done = [run for run in runs if run.result is not None]
    todo = [p for p, run in zip(planned, runs, strict=True) if run.result is None]
    spent = sum(run.result["seconds"] for run in done if run.result is not None) / 3600
    lines = [f"{spent:.2f} hours of training done"] if done else []
    if todo:
        seconds, source = _estimate(todo, done, folder, throughput)
        if seconds is None:
            lines.append(f"{len(todo)} to do: {source}")
        else:
            at_once = min(places(runtime["accelerator"], runtime["per_gpu"]), len(todo))
            gpu = runtime["accelerator"] != "cpu" and bool(gpus())
            unit = processes(runtime) if gpu else runtime["threads"] or 1
            lines.append(
                f"about {seconds * unit / 3600:.2f} {'GPU' if gpu else 'core'}-hours to do ({source}), "
                f"{seconds / 60 / at_once:.0f} minutes here with {at_once} at a time"
            )
    folders = [run.folder for run in done if run.folder is not None]
    sizes = [sum(file.stat().st_size for file in path.iterdir() if file.is_file()) for path in folders]
    ends = [f"{np.mean(sizes) * len(runs) / 2**20:.0f} MB in the end"] if sizes else []
    ends += [f"{len(runs)} runs on wandb"] if logger["wandb"] else []
    return [*lines, ", ".join(ends)] if ends else lines


def _estimate(
    todo: Sequence[Planned], done: Sequence[Run], folder: Path, throughput: str | None
) -> tuple[float | None, str]:
    """Seconds of training that are left, and how they are known; or None, and what would tell them.

    By the finished runs of the same cell, where each cell has one; or else in proportion to multiply-accumulates,
    epochs and images, at the speed of all finished runs in `folder`.
    """
    if throughput is not None:
        speed = _positive("throughput", throughput, "training images a second")
        counts = [_images(p.config, {}) for p in todo]
        if None in counts:
            return None, "data.train has to be given, since the training images are not counted here"
        in_all = sum(count * epochs_of(p.config["recipe"]) for count, p in zip(counts, todo, strict=True) if count)
        return in_all / speed, f"at {speed:g} images a second"
    cells: dict[str, list[float]] = {}
    for run in done:
        cells.setdefault(run.cell, []).append(run.result["seconds"])  # type: ignore[index]
    if all(p.cell in cells for p in todo):
        return sum(float(np.mean(cells[p.cell])) for p in todo), "by the finished runs of the same cells"
    results = [result for path in folder.glob("*/result.json") if (result := _readable(path)) is not None]
    if not results and done:
        everything = [value for values in cells.values() for value in values]
        mean = float(np.mean(everything))
        return sum(float(np.mean(cells.get(p.cell, mean))) for p in todo), "by the finished runs of this study"
    if not results:
        return None, "throughput=IMAGES_PER_S tells what they cost (python -m metaformer.cost ... cost.throughput=true)"
    device, _ = Counter(result["device"] for result in results).most_common(1)[0]
    results = [result for result in results if result["device"] == device]
    sizes = {_data_key(result["config"]): result["images"] for result in results}
    speeds = [r["macs"] * r["images"] * r["epochs"] / r["seconds"] for r in results]
    counted: dict[str, int] = {}
    total, started = 0.0, time.monotonic()
    for p in todo:
        images = _images(p.config, sizes)
        key = json.dumps([p.config[node] for node in ("model", "mixer", "data")], sort_keys=True)
        if key not in counted and time.monotonic() - started < COUNTING:
            counted[key] = _macs(p.config)
        if images is None or key not in counted:
            what = "its training images are not counted" if images is None else "there are too many models to count"
            return None, f"{what}; throughput=IMAGES_PER_S tells what they cost"
        total += counted[key] * images * epochs_of(p.config["recipe"])
    plural = "s" * (len(results) > 1)
    return total / float(
        np.median(speeds)
    ), f"from MACs, at the speed of {len(results)} finished run{plural} on {device}"


def _macs(config: Mapping[str, Any]) -> int:
    from metaformer.cost import cost_of

    return cost_of(config).macs or 0


def _readable(path: Path) -> dict[str, Any] | None:
    """A result that tells how fast its run was, or None."""
    try:
        result = read_result(path.parent)
    except ConfigError:
        return None
    needed = ("device", "macs", "images", "epochs", "seconds")
    return result if result is not None and all(result.get(key) for key in needed) else None


def _data_key(config: Mapping[str, Any]) -> str:
    return json.dumps({key: config["data"].get(key) for key in ("name", "train", "val", "fingerprint")})


def _images(config: Mapping[str, Any], sizes: Mapping[str, int]) -> int | None:
    """How many images an epoch has: of a finished run on the same data, or as it is known without reading any."""
    data = config["data"]
    whole = {"fashion_small": 8000, "fashion_mnist": 60000, "cifar10": 50000, "cifar100": 50000, "digits": 1497}
    if data["train"] is not None:
        return data["train"]
    if data["name"] in whole:
        return whole[data["name"]] - (0 if data["name"] == "fashion_small" else data["val"])
    return sizes.get(_data_key(config))


def _positive(key: str, text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{key}={text}: expected {what}, above 0")
    return value


def _size(study: Mapping[str, Any], runs: Sequence[Run]) -> tuple[int, int]:
    """Seeds of a cell and comparisons of a family, the fewest and the most."""
    factor, reference = study["analysis"]["factor"], study["reference"]
    families: dict[tuple[str, ...], set[str]] = {}
    for run in runs:
        setting = tuple(level for f, level in run.levels.items() if f != factor)
        families.setdefault(setting, set()).add(run.levels[factor])
    comparisons = max(len(levels) - 1 if reference in levels else 0 for levels in families.values())
    return min(Counter(run.cell for run in runs).values()), comparisons


def _scatter(own: Mapping[str, str], study: Mapping[str, Any], runs: Sequence[Run], folder: Path) -> tuple[float, str]:
    """SD of the paired difference in points, and where it comes from."""
    if "sd" in own:
        sd = _positive("sd", own["sd"], "points of accuracy")
        if sd >= 100:
            raise ConfigError(f"sd={own['sd']}: expected points of accuracy, below 100")
        return sd, "as stated"
    source = "from the finished runs of this study"
    if "from" in own:
        launched = launch.read(own["from"])
        if launched is None:
            raise ConfigError(f"from={own['from']}: no study of that name was launched from this folder")
        runs = launch.collect(launched["runs"], folder)
        latest = dict(launched["analyses"][-1]["analysis"])
        study = {"name": own["from"], "reference": latest.pop("reference"), "analysis": latest}
        source = f"from the finished runs of {own['from']}"
    variances = [
        float(np.var(c.differences, ddof=1))
        for c in (judge(study, runs).confirmatory if any(run.result for run in runs) else [])
        if c.difference.n > 1
    ]
    if variances and np.mean(variances) > 0:
        return float(np.sqrt(np.mean(variances))), f"{source}, {len(variances)} comparison{'s' * (len(variances) > 1)}"
    if "from" in own:
        raise ConfigError(f"from={own['from']}: it has no two finished seeds of any comparison")
    return ASSUMED_SD, "an assumption: sd=POINTS or from=STUDY replaces it"


def power_table(planned: int, margin: float, alpha: float) -> Table:
    """Power by number of seeds; margin in SD of the paired difference, alpha of the first step."""
    lines = []
    for n in sorted({*SEEDS, planned} - {1}):
        chances = [equivalence_power(n, margin, alpha)]
        chances += [difference_power(n, size * margin, alpha) for size in (1, 2)]
        lines.append([f"{n}{' (planned)' if n == planned else ''}", *(f"{chance:.0%}" for chance in chances)])
    header = ["seeds", "equivalent, if equal", "different, if by the margin", "different, if by twice the margin"]
    return Table(header, lines, "chance of each verdict")


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    answer(__doc__, lambda arguments: plan([a for a in arguments if a not in ("-m", "--multirun")], console))


if __name__ == "__main__":
    main()

"""What is compared with what, and whether that is fair: cells of finished runs, and pairs that differ in one factor."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from metaformer.identity import UNHASHED
from metaformer.launch import Run, setting_of
from metaformer.schema import GROUPS
from metaformer.stats import Estimate, mean_interval, paired_difference

MATCHED = 0.1  # share by which parameters or MACs may differ where cells are called matched, without a tolerance


@dataclass(frozen=True)
class Cell:
    """The finished runs of one cell; accuracies in points (percent)."""

    name: str
    levels: Mapping[str, str]
    runs: Mapping[int, Mapping[str, Any]]  # result by seed
    values: Mapping[int, float]  # the metric of the study by seed
    images: Mapping[int, tuple[np.ndarray, np.ndarray]] = field(repr=False)  # predictions and labels by seed

    @property
    def first(self) -> Mapping[str, Any]:
        return next(iter(self.runs.values()))

    @property
    def seconds(self) -> float:
        return float(np.mean([run["seconds"] for run in self.runs.values()]))

    def setting(self, factor: str) -> str:
        """The levels of the other factors, in words."""
        return setting_of(self.levels, factor)

    def mean(self, metric: str) -> Estimate:
        return mean_interval([100 * run["metrics"][metric] for run in self.runs.values()])


@dataclass(frozen=True)
class Comparison:
    """`cell` minus `reference` over their common seeds, in points."""

    cell: Cell
    reference: Cell
    factor: str
    setting: str  # the levels of the other factors
    difference: Estimate  # with its 95% interval
    tost_interval: Estimate  # 1 - 2 alpha, the one of TOST; neither interval is adjusted
    confounds: list[str]  # why the two are not comparable
    notes: list[str]
    p_difference: float = math.nan  # adjusted within the family where it is confirmatory
    p_equivalence: float = math.nan
    verdict: str = ""
    seeds_needed: int | None = None
    mcnemar: float | None = None
    bootstrap: tuple[float, float] | None = None

    @property
    def level(self) -> str:
        return self.cell.levels[self.factor]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.setting, f"{self.level} - {self.reference.levels[self.factor]}")))

    @property
    def differences(self) -> list[float]:
        """In the order of the seeds that both have."""
        seeds = sorted(self.cell.values.keys() & self.reference.values.keys())
        return [self.cell.values[seed] - self.reference.values[seed] for seed in seeds]

    def ratio(self, key: str) -> float | None:
        """Of params, macs or seconds; None where it means nothing, like times of two devices."""
        if not self.cell.runs or not self.reference.runs:
            return None
        if key == "seconds":
            places = {(run["device"], run["threads"]) for c in (self.cell, self.reference) for run in c.runs.values()}
            return self.cell.seconds / self.reference.seconds if len(places) == 1 and self.reference.seconds else None
        mine, other = self.cell.first[key], self.reference.first[key]
        return mine / other if mine is not None and other else None


def cells_of(runs: Sequence[Run], metric: str) -> list[Cell]:
    """Every listed cell, the ones without a finished run included."""
    cells = []
    for name in dict.fromkeys(run.cell for run in runs):
        own = [run for run in runs if run.cell == name]
        results = {run.seed: run.result for run in own if run.result is not None}
        values = {seed: 100 * result["metrics"][metric] for seed, result in results.items()}
        images = {run.seed: found for run in own if (found := _predictions(run))} if metric == "test_accuracy" else {}
        cells.append(Cell(name, own[0].levels, results, values, images))
    return cells


def _predictions(run: Run) -> tuple[np.ndarray, np.ndarray] | None:
    """What was predicted for each test image and its label, where predictions.npz is that of the result."""
    if run.folder is None or run.result is None:
        return None
    try:
        with np.load(run.folder / "predictions.npz") as file:
            predictions, labels = np.asarray(file["predictions"]), np.asarray(file["labels"])
    except (OSError, ValueError, LookupError):
        return None
    same = abs((predictions == labels).mean() - run.result["metrics"]["test_accuracy"]) < 1e-4
    return (predictions, labels) if same else None


def is_reference(cell: Cell, study: Mapping[str, Any]) -> bool:
    return cell.levels[study["analysis"]["factor"]] == study["reference"]


def compare(a: Cell, b: Cell, study: Mapping[str, Any]) -> Comparison | None:
    """The comparison of two cells that differ in one factor, the reference last; None for any other two."""
    factors = [factor for factor in a.levels if a.levels[factor] != b.levels.get(factor)]
    if len(factors) != 1:
        return None
    if factors[0] == study["analysis"]["factor"] and is_reference(a, study):
        a, b = b, a
    seeds = a.values.keys() & b.values.keys()
    return Comparison(
        a,
        b,
        factors[0],
        a.setting(factors[0]),
        paired_difference(a.values, b.values),
        paired_difference(a.values, b.values, confidence=1 - 2 * study["analysis"]["alpha"]),
        confounds(a, b, factors[0], study) if a.runs and b.runs else [],
        _seed_notes(a, b, seeds) if seeds else [],
    )


def _seed_notes(a: Cell, b: Cell, common: Collection[int]) -> list[str]:
    lacking = {cell.name: sorted(other.values.keys() - cell.values.keys()) for cell, other in ((a, b), (b, a))}
    words = [f"{name} lacks seed {', '.join(map(str, seeds))}" for name, seeds in lacking.items() if seeds]
    return [f"{'; '.join(words)}: the {len(common)} common seeds are used"] if words else []


# ------------------------------------------------------------------ is it fair


def confounds(a: Cell, b: Cell, factor: str, study: Mapping[str, Any]) -> list[str]:
    """What two cells differ in beside the factor: configuration, cost beyond the tolerance, code, library versions."""
    analysis = study["analysis"]
    flat = [_flat(cell.first["config"]) for cell in (a, b)]
    keys = [key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key)]
    keys = [key for key in keys if key not in analysis["tuned"]]
    found = [
        f"{key} ({flat[0].get(key)} against {flat[1].get(key)})"
        for key in keys
        if not _belongs(key, factor, keys, study["name"])
    ]
    if analysis["tolerance"] is not None:
        for key, name in (("params", "parameters"), ("macs", "MACs")):
            mine, other = a.first[key], b.first[key]
            if mine is None or other is None:
                found.append(f"{name} not counted")
            elif abs(mine / other - 1) > analysis["tolerance"]:
                found.append(f"{name} {mine / other - 1:+.0%} (tolerance {analysis['tolerance']:.0%})")
    seeds = a.runs.keys() & b.runs.keys()
    for key in ("code", "versions"):
        if any(a.runs[seed][key] != b.runs[seed][key] for seed in seeds):
            found.append({"code": "another version of the code", "versions": "other versions of the libraries"}[key])
    return found


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is hashed of a configuration, but the seed, as `model.norm`: value."""
    hashed = {key: value for key, value in config.items() if key not in (*UNHASHED, "seed")}
    return {key: value for key, value in _leaves(hashed) if key != "data.root"}


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _belongs(key: str, factor: str, differing: Sequence[str], study: str | None) -> bool:
    """Whether a key that differs is what the factor varies.

    A factor is a config group (`mixer`), a key (`norm` of model.norm), a folder of named variants of the model, or,
    with the name of the study, a list of rows that may change one thing each.
    """
    if factor in GROUPS:
        return key.split(".")[0] == factor
    own = [k for k in differing if k == factor or k.endswith(f".{factor}")]
    if own:
        return key in own
    if factor == study:
        return len({"mixer" if k.startswith("mixer.") else k for k in differing}) == 1
    return key.startswith("model.")


def tolerance(analysis: Mapping[str, Any]) -> float:
    """By how much parameters or MACs may differ where two cells are called matched."""
    return MATCHED if analysis["tolerance"] is None else float(analysis["tolerance"])


def matched(c: Comparison, key: str, analysis: Mapping[str, Any]) -> bool:
    """Whether two cells have the same `params` or `macs` within the tolerance."""
    ratio = c.ratio(key)
    return ratio is not None and abs(ratio - 1) <= tolerance(analysis)


# ------------------------------------------------------------------ learning rates


def by_rate(cells: Sequence[Cell]) -> dict[str, dict[float, float]]:
    """Mean validation accuracy by learning rate, for each point of the other factors."""
    found: dict[str, dict[float, float]] = {}
    for cell in cells:
        found.setdefault(cell.setting("lr") or "all", {})[float(cell.levels["lr"])] = cell.mean("val_accuracy").mean
    return {name: dict(sorted(rates.items())) for name, rates in found.items()}


def best_rate(found: Mapping[float, float]) -> tuple[float, bool]:
    """The rate with the best accuracy, and whether it is at the edge of the grid: a better one may lie outside."""
    best = max(found, key=lambda rate: found[rate])
    return best, best in (min(found), max(found))

"""From finished runs to verdicts: what was compared with what, whether that was fair, and what it says.

A comparison is two cells that differ in one factor. It is confirmatory where that is the factor of the study against
its reference, and belongs to a family: the comparisons within one setting of the other factors.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from metaformer.identity import UNHASHED
from metaformer.launch import Run
from metaformer.schema import GROUPS
from metaformer.stats import (
    Component,
    Estimate,
    TwoLevelBootstrap,
    difference_p,
    equivalence_p,
    holm,
    mcnemar_p,
    mean_interval,
    paired_difference,
    seeds_needed,
    variance_shares,
)

EQUIVALENT, DIFFERENT, INCONCLUSIVE, NONE = "equivalent", "different", "inconclusive", "no verdict"
BOTH = "equivalent (a difference smaller than the margin)"
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

    def ratio(self, key: str) -> float | None:
        """Of params, macs or seconds; None where it means nothing, like times of two devices."""
        if not self.cell.runs or not self.reference.runs:
            return None
        if key == "seconds":
            places = {(run["device"], run["threads"]) for c in (self.cell, self.reference) for run in c.runs.values()}
            return self.cell.seconds / self.reference.seconds if len(places) == 1 and self.reference.seconds else None
        mine, other = self.cell.first[key], self.reference.first[key]
        return mine / other if mine is not None and other else None


@dataclass(frozen=True)
class Shares:
    """The variance of a study by factor, in words where it cannot be had."""

    everything: list[Component]
    without_identity: list[Component]
    seeds: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Verdicts:
    cells: list[Cell]
    confirmatory: list[Comparison]
    exploratory: list[Comparison]
    shares: Shares


def judge(study: Mapping[str, Any], runs: Iterable[Run]) -> Verdicts:
    """All that the finished runs of a study say."""
    analysis = study["analysis"]
    listed = _cells(list(runs), analysis["metric"])
    confirmatory, exploratory = [], []
    for a, b in combinations(listed, 2):
        pair = _compare(a, b, study)
        if pair is None:
            continue
        if pair.factor == analysis["factor"] and _is_reference(pair.reference, study):
            confirmatory.append(pair)  # even where nothing is finished: it was planned, and counts in its family
        elif pair.difference.n:
            exploratory.append(pair)
    cells = [cell for cell in listed if cell.runs]
    return Verdicts(
        cells,
        _secondary(_decide(confirmatory, analysis)),
        [_exploratory(pair) for pair in exploratory],
        _shares(cells, analysis),
    )


def _cells(runs: Sequence[Run], metric: str) -> list[Cell]:
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


def _is_reference(cell: Cell, study: Mapping[str, Any]) -> bool:
    return cell.levels[study["analysis"]["factor"]] == study["reference"]


def _compare(a: Cell, b: Cell, study: Mapping[str, Any]) -> Comparison | None:
    """The comparison of two cells that differ in one factor, the reference last; None for any other two."""
    factors = [factor for factor in a.levels if a.levels[factor] != b.levels.get(factor)]
    if len(factors) != 1:
        return None
    if factors[0] == study["analysis"]["factor"] and _is_reference(a, study):
        a, b = b, a
    setting = " ".join(f"{level}" for factor, level in a.levels.items() if factor != factors[0])
    seeds = a.values.keys() & b.values.keys()
    return Comparison(
        a,
        b,
        factors[0],
        setting,
        paired_difference(a.values, b.values),
        paired_difference(a.values, b.values, confidence=1 - 2 * study["analysis"]["alpha"]),
        confounds(a, b, factors[0], study) if a.runs and b.runs else [],
        _seed_notes(a, b, seeds) if seeds else [],
    )


def _seed_notes(a: Cell, b: Cell, common: Iterable[int]) -> list[str]:
    lacking = {cell.name: sorted(other.values.keys() - cell.values.keys()) for cell, other in ((a, b), (b, a))}
    words = [f"{name} lacks seed {', '.join(map(str, seeds))}" for name, seeds in lacking.items() if seeds]
    return [f"{'; '.join(words)}: the {len(list(common))} common seeds are used"] if words else []


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
        if any(a.runs[seed].get(key) != b.runs[seed].get(key) for seed in seeds):
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


# ------------------------------------------------------------------ verdicts


def _decide(family_of_all: Sequence[Comparison], analysis: Mapping[str, Any]) -> list[Comparison]:
    """Verdicts, family by family; a comparison that cannot be tested counts in its family with p = 1."""
    decided: dict[str, Comparison] = {}
    for setting in dict.fromkeys(c.setting for c in family_of_all):
        family = [c for c in family_of_all if c.setting == setting]
        differences = [_differences(c) for c in family]
        reasons = [_untestable(c, d) for c, d in zip(family, differences, strict=True)]
        p_difference = [1.0 if r else difference_p(d) for d, r in zip(differences, reasons, strict=True)]
        p_equivalence = [
            1.0 if r else equivalence_p(d, analysis["margin"]) for d, r in zip(differences, reasons, strict=True)
        ]
        if analysis["correction"] == "holm":
            p_difference, p_equivalence = holm(p_difference), holm(p_equivalence)
        for c, d, reason, different, equal in zip(
            family, differences, reasons, p_difference, p_equivalence, strict=True
        ):
            decided[c.name] = (
                replace(c, verdict=NONE, notes=[reason, *c.notes])
                if reason
                else _verdict(c, d, different, equal, analysis, len(family))
            )
    return list(decided.values())


def _differences(c: Comparison) -> list[float]:
    seeds = sorted(c.cell.values.keys() & c.reference.values.keys())
    return [c.cell.values[seed] - c.reference.values[seed] for seed in seeds]


def _untestable(c: Comparison, differences: Sequence[float]) -> str:
    if lacking := [cell.name for cell in (c.cell, c.reference) if not cell.runs]:
        return f"no finished run of {' and '.join(lacking)}"
    if c.confounds:
        return "they differ in more than the factor: " + "; ".join(c.confounds)
    if not differences:
        return "no seed that both have"
    if len(differences) < 2:
        return "one seed only: a difference without an interval"
    if np.ptp(differences) < 1e-9:
        return "no variance between seeds: the difference is the same at each of them"
    return ""


def _verdict(
    c: Comparison,
    differences: Sequence[float],
    p_difference: float,
    p_equivalence: float,
    analysis: Mapping[str, Any],
    family: int,
) -> Comparison:
    equal, different = p_equivalence <= analysis["alpha"], p_difference <= analysis["alpha"]
    verdict = BOTH if equal and different else EQUIVALENT if equal else DIFFERENT if different else INCONCLUSIVE
    needed = None
    if verdict == INCONCLUSIVE:
        sd = float(np.std(differences, ddof=1))
        first_step = analysis["alpha"] / (family if analysis["correction"] == "holm" else 1)
        needed = seeds_needed(analysis["margin"] / sd, first_step, abs(c.difference.mean) / sd)
    return replace(c, p_difference=p_difference, p_equivalence=p_equivalence, verdict=verdict, seeds_needed=needed)


def _secondary(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Add McNemar's test and the bootstrap over seeds and images, where both were tested on the same images."""
    bootstraps: dict[int, TwoLevelBootstrap] = {}
    added = []
    for c in comparisons:
        seeds = sorted(c.cell.images.keys() & c.reference.images.keys())
        pairs = [(c.cell.images[seed], c.reference.images[seed]) for seed in seeds]
        if len(seeds) >= 2 and not c.confounds and all(np.array_equal(mine[1], other[1]) for mine, other in pairs):
            a, b = (np.array([pair[i][0] == pair[i][1] for pair in pairs]) for i in (0, 1))
            if (images := a.shape[1]) not in bootstraps:
                bootstraps[images] = TwoLevelBootstrap(images)
            c = replace(c, mcnemar=mcnemar_p(a, b), bootstrap=bootstraps[images].interval(a, b))
        added.append(c)
    return added


def _exploratory(c: Comparison) -> Comparison:
    """Its unadjusted p value, and no verdict."""
    differences = _differences(c)
    if c.confounds or len(differences) < 2 or np.ptp(differences) < 1e-9:
        return c
    return replace(c, p_difference=difference_p(differences))


def tolerance(analysis: Mapping[str, Any]) -> float:
    """By how much parameters or MACs may differ where two cells are called matched."""
    return MATCHED if analysis["tolerance"] is None else float(analysis["tolerance"])


def matched(c: Comparison, key: str, analysis: Mapping[str, Any]) -> bool:
    """Whether two cells have the same `params` or `macs` within the tolerance."""
    ratio = c.ratio(key)
    return ratio is not None and abs(ratio - 1) <= tolerance(analysis)


# ------------------------------------------------------------------ variance


def _shares(cells: Sequence[Cell], analysis: Mapping[str, Any]) -> Shares:
    """The decomposition with and without the identity mixer; it needs every cell of the grid."""
    try:
        everything, seeds = _decompose(cells, analysis["factor"])
    except ValueError as error:
        return Shares([], [], reason=str(error))
    mixers = [cell for cell in cells if cell.levels.get("mixer") != "identity"]
    try:
        without = _decompose(mixers, analysis["factor"])[0] if len(mixers) < len(cells) else []
    except ValueError:
        without = []
    return Shares(everything, without, seeds)


def _decompose(cells: Sequence[Cell], factor: str) -> tuple[list[Component], int]:
    """The components and the number of seeds that all cells have."""
    if not cells:
        raise ValueError("no run is finished")
    treatment = "mixer" if "mixer" in cells[0].levels else factor
    factors = [f for f in cells[0].levels if f != treatment] + [treatment]
    levels = {f: list(dict.fromkeys(cell.levels[f] for cell in cells)) for f in factors}
    factors = [f for f in factors if len(levels[f]) > 1]
    shape = [len(levels[f]) for f in factors]
    if treatment not in factors:
        raise ValueError(f"there is one {treatment} only")
    if math.prod(shape) != len(cells):
        raise ValueError("the study is not a full grid: some combinations of its factors have no finished run")
    seeds = sorted(set.intersection(*(set(cell.values) for cell in cells)))
    if len(seeds) < 2:
        raise ValueError("it takes two seeds that all cells have")
    values = np.empty((*shape, len(seeds)))
    for cell in cells:
        place = tuple(levels[f].index(cell.levels[f]) for f in factors)
        values[place] = [cell.values[seed] for seed in seeds]
    return variance_shares(values, factors), len(seeds)


def uneven(cells: Sequence[Cell]) -> float:
    """How many times the seeds of one cell scatter as much as those of another, the extremes."""
    scatter = [float(np.std(list(cell.values.values()), ddof=1)) for cell in cells if len(cell.values) > 1]
    return max(scatter) / min(scatter) if scatter and min(scatter) > 0 else 1.0

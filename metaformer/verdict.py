"""From finished runs to verdicts: what was compared with what, whether that was fair, and what it says.

A comparison is two cells that differ in one factor. It is confirmatory where that is the factor of the study against
its reference, and belongs to a family: the comparisons within one setting of the other factors.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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
    correct: Mapping[int, np.ndarray] = field(repr=False)  # of each test image, by seed

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
    interval90: Estimate  # the one of TOST at 5%
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
        """Of params, macs or seconds."""
        if key == "seconds":
            return self.cell.seconds / self.reference.seconds if self.reference.seconds else None
        mine, other = self.cell.first[key], self.reference.first[key]
        return mine / other if mine is not None and other else None


@dataclass(frozen=True)
class Shares:
    """The variance of a study by factor, in words where it cannot be had."""

    everything: list[Component]
    without_identity: list[Component]
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
    cells = _cells(list(runs), analysis["metric"])
    pairs = [
        pair
        for a, b in combinations(cells, 2)
        if (pair := _compare(a, b, study)) is not None and set(pair.cell.values) & set(pair.reference.values)
    ]
    confirmatory = [p for p in pairs if p.factor == analysis["factor"] and _is_reference(p.reference, study)]
    exploratory = [p for p in pairs if p not in confirmatory]
    return Verdicts(
        cells,
        _secondary(_decide(confirmatory, analysis), analysis),
        [_exploratory(pair) for pair in exploratory],
        _shares(cells, analysis),
    )


def _cells(runs: Sequence[Run], metric: str) -> list[Cell]:
    cells = []
    for name in dict.fromkeys(run.cell for run in runs):
        own = [run for run in runs if run.cell == name and run.result is not None]
        results = {run.seed: run.result for run in own if run.result is not None}
        if not results:
            continue
        values = {seed: 100 * result["metrics"][metric] for seed, result in results.items()}
        correct = {run.seed: c for run in own if (c := _correct(run)) is not None} if metric == "test_accuracy" else {}
        cells.append(Cell(name, own[0].levels, results, values, correct))
    return cells


def _correct(run: Run) -> np.ndarray | None:
    """Whether each test image was classified correctly, where predictions.npz is there and is that of the result."""
    try:
        with np.load(run.folder / "predictions.npz") as file:  # type: ignore[operator]
            correct = np.asarray(file["predictions"] == file["labels"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    assert run.result is not None
    return correct if abs(correct.mean() - run.result["metrics"]["test_accuracy"]) < 1e-4 else None


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
        paired_difference(a.values, b.values, confidence=0.9),
        confounds(a, b, factors[0], study),
        _seed_notes(a, b, seeds),
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
    """What is hashed of a configuration, but the seed, as `model.norm`: value; the mixer is one key."""
    flat: dict[str, Any] = {}
    for group, node in config.items():
        if group in UNHASHED or group == "seed":
            continue
        if isinstance(node, dict) and group != "mixer":
            flat |= {f"{group}.{key}": value for key, value in node.items() if (group, key) != ("data", "root")}
        else:
            flat[group] = node
    return flat


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
    return len(differing) == 1 if factor == study else key.startswith("model.")


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
    if c.confounds:
        return "they differ in more than the factor: " + "; ".join(c.confounds)
    if len(differences) < 2:
        return "one seed only: a difference without an interval"
    if np.ptp(differences) < 1e-9:
        return "no variance between seeds: they change nothing, so that they prove nothing"
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


def _secondary(comparisons: Sequence[Comparison], analysis: Mapping[str, Any]) -> list[Comparison]:
    """Add McNemar's test and the bootstrap over seeds and images, where the predictions are there."""
    bootstraps: dict[int, TwoLevelBootstrap] = {}
    added = []
    for c in comparisons:
        seeds = sorted(c.cell.correct.keys() & c.reference.correct.keys())
        a, b = (np.array([cell.correct[seed] for seed in seeds]) for cell in (c.cell, c.reference))
        if len(seeds) >= 2 and a.shape == b.shape and not c.confounds:
            images = a.shape[1]
            bootstrap = bootstraps.setdefault(images, TwoLevelBootstrap(images))
            c = replace(c, mcnemar=mcnemar_p(a, b), bootstrap=bootstrap.interval(a, b))
        added.append(c)
    return added


def _exploratory(c: Comparison) -> Comparison:
    """Its unadjusted p value, and no verdict."""
    differences = _differences(c)
    if c.confounds or len(differences) < 2 or np.ptp(differences) < 1e-9:
        return c
    return replace(c, p_difference=difference_p(differences))


def matched(c: Comparison, key: str, analysis: Mapping[str, Any]) -> bool:
    """Whether two cells have the same `params` or `macs` within the tolerance."""
    ratio = c.ratio(key)
    tolerance = MATCHED if analysis["tolerance"] is None else analysis["tolerance"]
    return ratio is not None and abs(ratio - 1) <= tolerance


# ------------------------------------------------------------------ variance


def _shares(cells: Sequence[Cell], analysis: Mapping[str, Any]) -> Shares:
    """The decomposition with and without the identity mixer; it needs every cell of the grid."""
    try:
        everything = _decompose(cells, analysis["factor"])
    except ValueError as error:
        return Shares([], [], str(error))
    mixers = [cell for cell in cells if cell.levels.get("mixer") != "identity"]
    try:
        return Shares(everything, _decompose(mixers, analysis["factor"]) if len(mixers) < len(cells) else [])
    except ValueError:
        return Shares(everything, [])


def _decompose(cells: Sequence[Cell], factor: str) -> list[Component]:
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
    return variance_shares(values, factors)

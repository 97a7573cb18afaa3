"""From finished runs to verdicts, to the paper's claim and to shares of the variance.

A comparison is two cells that differ in one factor. It is confirmatory where that is the factor of the study against
its reference, and belongs to a family: the comparisons within one setting of the other factors. The contrasts of the
analysis block are a family of their own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from metaformer.analysis.cells import Cell, cells_of
from metaformer.analysis.comparison import Comparison, Contrast, Tested
from metaformer.analysis.grid import Shares, shares_of
from metaformer.analysis.interim_looks import Look, looks_at
from metaformer.analysis.ranking import Ranked, ranking
from metaformer.analysis.stages import SAME, Stage, is_confirmatory, pairs_of, reached, stage_of, untestable
from metaformer.analysis.stats import Estimate, Scatter, holm, holm_steps
from metaformer.config.metrics import metric_of
from metaformer.config.study_nodes import Analysis, Study
from metaformer.runs.launch import Run
from metaformer.runs.study_check import check_contrasts

EQUIVALENT, DIFFERENT, INCONCLUSIVE, NONE = "equivalent", "different", "inconclusive", "no verdict"
BOTH = "equivalent (a difference smaller than the margin)"
VERDICTS = {(True, True): BOTH, (True, False): EQUIVALENT, (False, True): DIFFERENT, (False, False): INCONCLUSIVE}
SHOWN, REFUTED, NOT_SHOWN = "shown", "refuted", "not shown"
SD_CONFIDENCE = 0.8  # of the scatter, for the range of seeds that would tell


@dataclass(frozen=True)
class Claim:
    """Whether all levels of the factor (but some that the analysis names) are equivalent to each other in a setting."""

    setting: str
    levels: list[str]
    outcome: str
    by: list[Comparison]  # the pairs that refute it, or that do not show it; where it is shown, the least sure one
    p: float  # the largest of the pairs: of the intersection-union test


@dataclass(frozen=True)
class Verdicts:
    cells: list[Cell]
    confirmatory: list[Comparison]
    exploratory: list[Comparison]
    shares: Shares
    contrasts: list[Contrast] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)  # taken so far
    added: list[Comparison] = field(default_factory=list)  # the confirmatory ones with the seeds that were not planned
    lost: list[Cell] = field(default_factory=list)  # cells without a finished run
    baselines: list[Cell] = field(default_factory=list)  # of another kind: part of no comparison and no share
    ranks: list[Ranked] = field(default_factory=list)  # of the levels over the settings, the first one first

    @property
    def alone(self) -> bool:
        """Whether each run had its machine for itself, so that its time is a cost."""
        return all(cell.alone for cell in self.cells)

    @property
    def tested(self) -> list[Tested]:
        """All that has a verdict."""
        return [*self.confirmatory, *self.contrasts]


def judge(study: Study, runs: Iterable[Run], planned: Sequence[int] | None = None) -> Verdicts:
    """All that the finished runs of a study say.

    Args:
        planned: the seeds of the first launch, where they are known: others count for no verdict.

    Raises:
        ConfigError: the runs lack the metric, or a cell of a contrast, or list a seed twice.
    """
    analysis, found = study.analysis, cells_of(runs := list(runs), study.analysis)
    every = [cell for cell in found if not _is_baseline(cell, analysis)]
    check_contrasts(analysis, {cell.name for cell in every})
    seeds = sorted({run.seed for run in runs} if planned is None else planned)
    if analysis.looks:
        seeds = seeds[: analysis.looks[-1]]
    looks = [look for look in looks_at(seeds, analysis) if reached(look, every, analysis)]
    stages = [stage_of(look, every, study) for look in looks or [Look(tuple(seeds), 0.0)]]
    tested = _over_looks([_decided(stage.tested, stage.look, analysis) for stage in stages])
    alone = _over_looks([_decided(stage.own, stage.look, analysis) for stage in stages])
    tested = _explained(tested, alone, analysis)
    cells, pairs = stages[-1].cells, stages[-1].pairs
    extra = {seed for cell in every for seed in cell.values} - set(seeds)
    return Verdicts(
        [cell for cell in cells if cell.values],
        [t for t in tested if isinstance(t, Comparison)],
        [_exploratory(pair) for pair in pairs if not is_confirmatory(pair, study) and pair.differences],
        shares_of(cells, study),
        [t for t in tested if isinstance(t, Contrast)],
        _claims(stages, study),
        looks,
        [pair for pair in pairs_of(every, study) if is_confirmatory(pair, study)] if extra else [],
        [cell for cell in cells if not cell.values],
        [cell for cell in found if _is_baseline(cell, analysis) and cell.values],
        _ranks(stages[-1], analysis),
    )


def _is_baseline(cell: Cell, analysis: Analysis) -> bool:
    return cell.levels.get(analysis.factor) in analysis.baselines


def _decided(tested: Sequence[Tested], look: Look, analysis: Analysis) -> list[Tested]:
    """p values and verdicts, family by family; what cannot be tested counts in its family with p = 1."""
    decided: dict[int, Tested] = {}
    for family in _families(tested, analysis):
        reasons = [untestable(t, look, analysis) for t in family]
        raw = [
            (1.0, 1.0) if reason else (t.crossed.difference_p(), t.crossed.equivalence_p(analysis.margin))
            for t, reason in zip(family, reasons, strict=True)
        ]
        kinds = list(zip(*raw, strict=True))
        adjusted = zip(*map(holm, kinds), strict=True)
        steps = zip(*(holm_steps(p, look.alpha) for p in kinds), strict=True)
        for t, reason, (different, equal), levels in zip(family, reasons, adjusted, steps, strict=True):
            if reason:
                decided[id(t)] = replace(t, verdict=NONE, notes=[reason, *t.notes])
                continue
            said = VERDICTS[equal <= look.alpha, different <= look.alpha]
            decided[id(t)] = replace(t, p_difference=different, p_equivalence=equal, levels=levels, verdict=said)
    return [decided[id(t)] for t in tested]


def _families(tested: Sequence[Tested], analysis: Analysis) -> list[list[Tested]]:
    """What is corrected together: by default the comparisons of a setting, and the contrasts."""
    if analysis.correction == "none":
        return [[t] for t in tested]
    families: dict[str | None, list[Tested]] = {}
    for t in tested:
        setting = t.setting if isinstance(t, Comparison) and analysis.correction == "holm" else None
        families.setdefault(setting, []).append(t)
    return list(families.values())


def _explained(tested: Sequence[Tested], alone: Sequence[Tested], analysis: Analysis) -> list[Tested]:
    """The same with the seeds that would tell, and with a note where a verdict hangs on the variance of others.

    Args:
        alone: what each is with its own variance.
    """
    sizes = {id(t): len(family) for family in _families(tested, analysis) for t in family}
    found = []
    for t, own in zip(tested, alone, strict=True):
        needed = _needed(t, analysis, sizes[id(t)]) if t.verdict == INCONCLUSIVE else None
        other = [f"{own.verdict} with its own variance"] if own.verdict != t.verdict else []
        found.append(replace(t, seeds_needed=needed, notes=[*other, *t.notes]))
    return found


def decisive(t: Tested) -> tuple[Estimate, float]:
    """The interval that a verdict rests on, and its confidence after the correction.

    `different`: that of the test of no difference, which leaves zero out. `equivalent`: that of the two one-sided
    tests, which stays within the margin. `inconclusive`: the wider of the two, which has zero in it and goes beyond the
    margin. Without a verdict it is that of 95%.
    """
    apart, equal = 1 - t.levels[0], 1 - 2 * t.levels[1]
    wider = 0.95 if t.verdict == NONE else max(apart, equal)
    confidence = {DIFFERENT: apart, EQUIVALENT: equal, BOTH: equal}.get(t.verdict, wider)
    return t.crossed.estimate(confidence), confidence


def _over_looks(looks: Sequence[Sequence[Tested]]) -> list[Tested]:
    """What the first look that decides says, or else the last one."""
    return [
        next((t for t in same if t.verdict not in (INCONCLUSIVE, NONE)), same[-1]) for same in zip(*looks, strict=True)
    ]


def first_step(analysis: Analysis, comparisons: int, seeds: int | None = None) -> float:
    """The alpha of the first step of the correction over so many comparisons, which is the hardest.

    Args:
        seeds: at the last planned look that so many allow, or at the first one; None: at the last one.
    """
    looks = analysis.looks or [1]
    look = looks_at(range(looks[-1] if seeds is None else max(seeds, looks[0])), analysis)[-1]
    return look.alpha / (comparisons if analysis.correction != "none" else 1)


def _needed(t: Tested, analysis: Analysis, family: int) -> tuple[float | None, float | None]:
    """The range of numbers of seeds that would tell with 80%, for the scatter that these few seeds allow."""
    from scipy import special

    own, tail = t.fixed, (1 - SD_CONFIDENCE) / 2
    n, variance = own.seeds, own.by_seed * own.seeds
    least, most = (variance * (n - 1) / (2 * float(special.gammaincinv((n - 1) / 2, q))) for q in (1 - tail, tail))
    alpha, distance = first_step(analysis, family), abs(t.crossed.mean)
    low, high = (
        Scatter(v**0.5, t.crossed.by_image**0.5).seeds_needed(analysis.margin, alpha, distance) for v in (least, most)
    )
    return low, high


def _exploratory(c: Comparison) -> Comparison:
    """Its unadjusted p value, and no verdict."""
    if c.confounds or len(c.differences) < 2 or np.ptp(c.differences) < 1e-9:
        return c
    return replace(c, p_difference=c.crossed.difference_p())


def _ranks(stage: Stage, analysis: Analysis) -> list[Ranked]:
    """Of what has runs, at the last look."""
    pairs = [pair for pair in stage.claimed if pair.differences]
    p = [1.0 if untestable(c, stage.look, analysis) else c.crossed.difference_p() for c in pairs]
    return ranking(pairs, holm(p), stage.look.alpha, higher=metric_of(analysis.metric).higher)


def _claims(stages: Sequence[Stage], study: Study) -> list[Claim]:
    """The claim in each setting as the looks decide it, the first that does."""
    by_look = [_claims_at(stage, study) for stage in stages]
    return [next((c for c in same if c.outcome != NOT_SHOWN), same[-1]) for same in zip(*by_look, strict=True)]


def _claims_at(stage: Stage, study: Study) -> list[Claim]:
    """An intersection-union test (Berger 1982): all pairs have to be equivalent, so that none needs a correction.

    It is refuted where a pair differs by more than the margin, by Holm over the pairs of its setting or of the study.
    """
    analysis, found, out = study.analysis, [], study.analysis.claim_without
    claimed = [c for c in stage.claimed if not any(cell.levels[c.factor] in out for cell in c.cells)]
    reasons = {id(c): untestable(c, stage.look, analysis) for c in claimed}
    settings = list(dict.fromkeys(c.setting for c in claimed))
    beyond: dict[int, float] = {}
    for own in [settings] if analysis.correction == "holm_study" else [[setting] for setting in settings]:
        family = [c for c in claimed if c.setting in own]
        raw = [1.0 if reasons[id(c)] else c.crossed.beyond_p(analysis.margin) for c in family]
        beyond |= dict(zip(map(id, family), holm(raw), strict=True))
    for setting in settings:
        pairs = [c for c in claimed if c.setting == setting]
        levels = dict.fromkeys(cell.levels[analysis.factor] for c in pairs for cell in c.cells)
        margin, whys = analysis.margin, [reasons[id(c)] for c in pairs]
        tests = zip(pairs, whys, strict=True)
        equal = [float(why != SAME) if why else c.crossed.equivalence_p(margin) for c, why in tests]
        refuting = [c for c in pairs if beyond[id(c)] <= stage.look.alpha]
        open_ = [c for c, p in zip(pairs, equal, strict=True) if p > stage.look.alpha]
        outcome = REFUTED if refuting else NOT_SHOWN if open_ else SHOWN
        least = [pairs[int(np.argmax(equal))]]
        found.append(Claim(setting, list(levels), outcome, refuting or open_ or least, max(equal)))
    return found

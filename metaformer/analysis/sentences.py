"""What a report says in words: the claim, the verdicts, the shares of the variance, and how sure they are."""

import math
from collections.abc import Sequence

import numpy as np

from metaformer.analysis.comparison import Comparison, Contrast
from metaformer.analysis.shares import SEED, Component
from metaformer.analysis.text_table import first_up, plus_minus
from metaformer.analysis.verdict import BOTH, DIFFERENT, EQUIVALENT, INCONCLUSIVE, NONE, REFUTED, SHOWN, Claim, Verdicts
from metaformer.config.metrics import in_words, metric_of
from metaformer.config.study_nodes import Study
from metaformer.runs.launch import Run

ORDER = DIFFERENT, EQUIVALENT, BOTH, INCONCLUSIVE, NONE  # in which verdicts are told


def headline(verdicts: Verdicts, study: Study) -> list[str]:
    """The answer: the paper's claim, the verdicts, a sentence for each setting, and the shares of the variance."""
    metric = metric_of(study.analysis.metric)
    sentences = [_claim(verdicts, study)] if verdicts.claims else []
    for setting in dict.fromkeys(c.setting for c in verdicts.confirmatory):
        family = [c for c in verdicts.confirmatory if c.setting == setting]
        levels: dict[str, list[str]] = {}
        for pair in sorted(family, key=lambda c: ORDER.index(c.verdict)):
            why = f" ({pair.notes[0]})" if pair.verdict == NONE else ""
            levels.setdefault(f"{pair.verdict}{why}", []).append(_level(pair, metric.digits - 1))
        said = [f"{verdict}: {', '.join(told)}" for verdict, told in levels.items()]
        place = f"{setting}, against" if setting else "Against"
        n = min((c.crossed.seeds for c in family if c.crossed.seeds), default=0)
        sentences.append(f"{place} {study.reference} ({metric.unit}, n = {n}): {'; '.join(said)}.")
    for c in verdicts.contrasts:
        e, places = c.difference, metric.digits - 1
        told = f" {e.mean:+.{places}f} [{e.low:+.{places}f}, {e.high:+.{places}f}]" if e.n > 1 else ""
        sentences.append(f"Contrast {c.name}:{told} {metric.unit}, {c.verdict}.")
    return [*sentences, shares(verdicts, study), *_baselines(verdicts, study)]


def _baselines(verdicts: Verdicts, study: Study) -> list[str]:
    """Models of another kind: estimates, no verdict."""
    metric = metric_of(study.analysis.metric)
    told = [f"{c.name} {plus_minus(c.tested(), digits=metric.digits - 1)}" for c in verdicts.baselines]
    words = "Of another kind, and part of no comparison"
    return [f"{words}: {', '.join(told)} (in {metric.sign})."] if told else []


def answer(verdicts: Verdicts, study: Study) -> str:
    """One sentence: the contrasts, or else the claim with its outcome, and where the variance comes from."""
    analysis, metric = study.analysis, metric_of(study.analysis.metric)
    places = metric.digits - 1
    if len(verdicts.contrasts) > 1:
        said = f"Of {len(verdicts.contrasts)} contrasts {_by_verdict(verdicts.contrasts)}"
    elif verdicts.contrasts:
        c = verdicts.contrasts[0]
        known = f" is {c.difference.mean:+.{places}f} {metric.unit}" if c.crossed.seeds else ""
        said = f"The contrast {c.name.replace('_', ' ')}{known}: {c.verdict}"
    elif verdicts.claims:
        said = f"That {all_levels(verdicts, study)} are equivalent within ±{analysis.margin:g} {metric.unit} is "
        said += _outcomes(verdicts.claims)
    else:
        told = [f"{c.name}: {c.verdict}" for c in verdicts.confirmatory]
        said = "; ".join(told) or f"Nothing is compared with {study.reference}"
    return f"{said}; {_largest(verdicts, study)}."


def all_levels(verdicts: Verdicts, study: Study) -> str:
    """`all mixers but identity`."""
    analysis = study.analysis
    there = {cell.levels[analysis.factor] for cell in verdicts.cells}
    out = [level for level in analysis.claim_without if level in there]
    words = "all mixers" if analysis.factor == "mixer" else f"all {analysis.factor} levels"
    return words + (f" but {' and '.join(out)}" if out else "")


def _by_verdict(contrasts: Sequence[Contrast]) -> str:
    """`1 is equivalent (data for identity), 4 are inconclusive`."""
    said = []
    for verdict in dict.fromkeys(c.verdict for c in contrasts):
        names = [c.name.replace("_", " ") for c in contrasts if c.verdict == verdict]
        of = f" ({' and '.join(names)})" if len(names) < 3 else ""
        said.append(f"{len(names)} {'is' if len(names) == 1 else 'are'} {verdict}{of}")
    return ", ".join(said)


def _outcomes(claims: Sequence[Claim]) -> str:
    """`refuted in no_norm and 2 other settings, not shown in full`."""
    if len(claims) == 1:
        return claims[0].outcome
    said = []
    for outcome in dict.fromkeys(claim.outcome for claim in claims):
        own = [claim.setting for claim in claims if claim.outcome == outcome]
        said.append(f"{outcome} in " + (" and ".join(own) if len(own) < 3 else f"{len(own)} of {len(claims)} settings"))
    return ", ".join(said)


def _largest(verdicts: Verdicts, study: Study) -> str:
    """The effects by their shares of the variance where there are several, or else the largest difference."""
    effects = [c for c in verdicts.shares.everything if c.name != SEED]
    if len(effects) > 1:
        ordered = sorted(effects, key=lambda c: -c.share)
        named = [c for c in ordered if c.share >= 0.005] or ordered[:1]
        others = f", less than 1% from {_others(len(ordered) - len(named))}" if len(named) < len(ordered) else ""
        return "of the variance come " + ", ".join(f"{100 * c.share:.0f}% from {c.name}" for c in named) + others
    tested = [c for c in verdicts.confirmatory if c.crossed.seeds]
    if not tested:
        return "no difference is known yet"
    c, metric = max(tested, key=lambda c: abs(c.crossed.mean)), metric_of(study.analysis.metric)
    return f"the largest difference is {c.name} {c.crossed.mean:+.{metric.digits - 1}f} {metric.unit}, {c.verdict}"


def _others(count: int) -> str:
    return "the other" if count == 1 else f"each of the {count} others"


def _level(c: Comparison, places: int) -> str:
    return f"{c.level} {c.difference.mean:+.{places}f}" if c.crossed.seeds else c.level


def _claim(verdicts: Verdicts, study: Study) -> str:
    """All levels are equivalent to each other: where that is shown, where it is refuted and by which pair."""
    analysis, metric, claims = study.analysis, metric_of(study.analysis.metric), verdicts.claims
    words = all_levels(verdicts, study)
    levels = list(dict.fromkeys(level for claim in claims for level in claim.levels))
    said = []
    for claim in claims:
        place = f"in {claim.setting} " if claim.setting else ""
        if len(claim.levels) < len(levels):
            place += f"({', '.join(claim.levels)}) "
        said.append(f"{place}{claim.outcome.upper()}{_by(claim, metric.digits - 1)}")
    unit = f"±{analysis.margin:g} {metric.unit}"
    each = f"are equivalent to each other within {unit}: {'; '.join(said)}."
    return f"{first_up(words)} ({', '.join(levels)}) {each}"


def _by(claim: Claim, places: int) -> str:
    if claim.outcome == SHOWN:
        return f" (largest p = {claim.p:.3f})"
    worst = max(claim.by, key=lambda c: abs(c.difference.mean) if c.crossed.seeds else 0.0)
    if not worst.crossed.seeds or worst.confounds:
        return f" ({worst.level} against {worst.reference.levels[worst.factor]} cannot be tested)"
    pair = f"{worst.pair} {worst.crossed.mean:+.{places}f}"
    others = len(claim.by) - 1
    more = f" and {others} other pair{'s' * (others > 1)}" if others else ""
    return f" by {pair}{more}" if claim.outcome == REFUTED else f" ({pair}{more})"


def shares(verdicts: Verdicts, study: Study) -> str:
    """How much of the variance comes from what, and over which levels."""
    found = verdicts.shares
    if found.reason:
        return f"The variance is not divided up: {found.reason}."

    def words(components: Sequence[Component]) -> str:
        return ", ".join(f"{c.name} {100 * c.share:.0f}%{interval(c)}" for c in components)

    def interval(c: Component) -> str:
        return "" if math.isnan(c.low) else f" [{100 * c.low:.0f}, {100 * c.high:.0f}]"

    over = "; ".join(f"{factor}: {', '.join(levels)}" for factor, levels in found.levels)
    sentence = (
        f"Of the variance in {in_words(study.analysis.metric)} over these levels ({over}) and {found.seeds} seeds: "
    )
    sentence += words(found.everything)
    factor = found.levels[-1][0]
    treatment = next(c for c in found.everything if c.name == factor)
    if treatment.without:
        (low, first), (high, last) = treatment.without
        sentence += f". With one level left out, {factor} has from {100 * low:.0f}% (no {first}) to {100 * high:.0f}%"
        sentence += f" (no {last})"
    low, high = treatment.levels
    sentence += f"; for other levels, were these drawn at random, {100 * treatment.random:.0f}%"
    sentence += f" [{100 * low:.0f}, {100 * high:.0f}]"
    if found.without_identity:
        sentence += f". Without identity: {words(found.without_identity)}"
    return sentence + "."


def sureness(verdicts: Verdicts, study: Study) -> list[str]:
    """Where the uncertainty comes from, what was done about few seeds, and how far the ranking holds."""
    analysis, metric = study.analysis, metric_of(study.analysis.metric)
    pairs = [c for c in verdicts.confirmatory if c.crossed.seeds > 1]
    sentences = []
    if images := max((c.crossed.images for c in pairs), default=0):
        by_seed, by_image = (
            float(np.median([getattr(c.crossed, part) for c in pairs if c.crossed.images])) ** 0.5
            for part in ("by_seed", "by_image")
        )
        sentences.append(
            "The intervals are for other seeds and other test images: in the median comparison the seeds give a "
            f"standard error of {by_seed:.{metric.digits}f} {metric.unit}, the choice of {images:,} images one of "
            f"{by_image:.{metric.digits}f}, which no further seed makes smaller."
        )
    elif pairs:
        why = (
            "a metric of validation images"
            if not analysis.metric.startswith("test_")
            else "what each image gives is not kept"
        )
        sentences.append(f"The intervals are for other seeds and the same images alone ({why}).")
    pairing = [c.pairing for c in pairs if not math.isnan(c.pairing)]
    if pairing:
        sentences.append(
            f"Pairing by seed: the variance of a difference is {np.median(pairing):.2f} times that of unpaired seeds "
            f"(median; {min(pairing):.2f} to {max(pairing):.2f})."
        )
    found = verdicts.shares
    if not math.isnan(found.reliability):
        sentence = (
            f"Ranking of the levels of {found.levels[-1][0]}: generalisability coefficient {found.reliability:.2f}"
        )
        said = [
            f"{of} {tau:.2f}" for tau, of in zip(found.ranks, ("two seeds", "two settings"), strict=True) if tau == tau
        ]
        tau = f"; Kendall's tau between the rankings of {', of '.join(said)}" if said else ""
        sentences.append(f"{sentence}{tau}.")
    if analysis.looks:
        taken = [f"{len(look.seeds)} seeds at alpha {look.alpha:.4f}" for look in verdicts.looks]
        planned = ", ".join(map(str, analysis.looks))
        sentences.append(f"Looks planned at {planned} seeds; taken: {'; '.join(taken) or 'none'}.")
    if verdicts.added:
        sentences.append(
            "Seeds were added that the first launch did not plan. Verdicts and p values are those of the planned "
            "seeds; the estimates from all seeds are exploratory."
        )
    return [*sentences, *failures(verdicts)]


def failures(verdicts: Verdicts) -> list[str]:
    """How many runs of which cell failed, or ended at chance."""
    lines = []
    for cell in [*verdicts.cells, *verdicts.lost]:
        total = len(cell.runs.keys() | cell.failed.keys())
        if cell.failed:
            lines.append(
                f"{cell.name}: {len(cell.failed)} of {total} runs failed ({next(iter(cell.failed.values()))})."
            )
        if cell.collapsed:
            lines.append(f"{cell.name}: {len(cell.collapsed)} of {total} runs ended at chance.")
    return lines


def left_out(runs: Sequence[Run]) -> list[str]:
    """A line for each reason why runs are not counted: `left out, not started: pooling (seeds 3, 4)`."""
    lines = []
    for problem in dict.fromkeys(run.problem for run in runs if run.problem):
        cells: dict[str, list[str]] = {}
        for run in runs:
            if run.problem == problem:
                cells.setdefault(run.cell, []).append(str(run.seed))
        words = [f"{cell} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})" for cell, seeds in cells.items()]
        lines.append(f"left out, {problem}: {', '.join(words)}")
    return lines

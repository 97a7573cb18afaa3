"""How a study is judged, in sentences that can go into a paper, and since when that was fixed."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from metaformer.analysis.sentences import all_levels
from metaformer.analysis.stages import MODERATED
from metaformer.analysis.text_table import first_up
from metaformer.analysis.verdict import Verdicts
from metaformer.config.metrics import metric_of
from metaformer.config.study_nodes import Study
from metaformer.runs.launch import Launch, Run, Stage, analysis_of

SIMULATED = "a family has a false one of either kind in 1 to 6% of studies"  # experiments/coverage, at alpha 5%
CORRECTION = {
    "holm": "Holm's correction within each setting",
    "holm_study": "Holm's correction over all comparisons of the study",
    "none": "no correction",
}


def analysis_words(study: Study) -> str:
    """The analysis block as sentences."""
    a, metric = study.analysis, metric_of(study.analysis.metric)
    simulated = f" (in simulations {SIMULATED})" if a.alpha == 0.05 and a.correction != "none" else ""
    better = "" if metric.higher else " (lower is better)"
    words = [
        f"Metric: {a.metric}{better}. Factor: {a.factor}, reference: {study.reference}.",
        f"Differences within ±{a.margin:g} {metric.unit} count as negligible. "
        f"Alpha: {a.alpha:g}, {CORRECTION[a.correction]}.",
        "Equivalent: two one-sided paired tests reject a difference of the margin. Different: the paired test rejects "
        f"zero, however small the difference. Alpha holds for each of the two kinds of verdict{simulated}. "
        "From three seeds, all of the planned ones.",
        "Compared whatever the two cost."
        if a.tolerance is None
        else f"No verdict where parameters or MACs differ by more than {100 * a.tolerance:.4g}%.",
        "A run that failed leaves its cell without a verdict."
        if a.failed == "refuse"
        else "A run that failed counts as a guess.",
    ]
    if a.looks:
        words.append(f"Looks at {', '.join(map(str, a.looks))} seeds ({a.spending} spending).")
    if a.tuned:
        words.append(f"Declared as chosen for each cell by an equal search or budget: {', '.join(a.tuned)}.")
    return " ".join(words)


def methods(verdicts: Verdicts, study: Study) -> str:
    """A paragraph for a paper, with its sources."""
    a, metric = study.analysis, metric_of(study.analysis.metric)
    pairs = [t for t in verdicts.tested if t.crossed.seeds]
    seeds = max((t.crossed.seeds for t in pairs), default=max((len(c.values) for c in verdicts.cells), default=0))
    images = max((t.crossed.images for t in pairs), default=0)
    words = [
        f"Each cell was trained with {seeds} seed{'s' * (seeds != 1)}. Runs of one seed share batches and, wherever "
        "modules are the same, initial weights."
    ]
    if pairs:
        words[0] += f" {first_up(metric.words)} was compared with that of {study.reference} by differences paired by "
        words[0] += "seed."
    if images:
        words.append(
            f"Seeds and the {images:,} test images are crossed random effects; the half width of an interval is the "
            "root of the sum of squares of the t interval over seeds and of the normal one over images, whose variance "
            "was estimated from mean squares. What an image gives to the metric is its term, where that is a mean over "
            "images, or else its jackknife pseudo-value (Tukey 1958), about the metric itself."
        )
    if a.variance == "moderated" or (a.variance == "auto" and seeds <= MODERATED):
        words.append(
            "Variances between seeds were moderated together by empirical Bayes (Smyth 2004): those of all comparisons "
            "with the reference, over all settings of the study, for the verdicts, and those of all pairs for the "
            "claim and the ranks. One that is larger than what it is drawn to keeps its own value and its own n - 1 "
            "degrees of freedom; the others have those of both, at most as many as the cells have. Contrasts have "
            "their own variances. A verdict that its own variance would not give has a note."
        )
    words.append(
        f"Equivalence within ±{a.margin:g} {metric.unit} was tested by two one-sided tests (Schuirmann 1987), "
        f"difference from zero by a two-sided one, both at alpha = {a.alpha:g} with {CORRECTION[a.correction]}"
        f"{'' if a.correction == 'none' else ' (Holm 1979)'}."
    )
    if verdicts.claims:
        words.append(
            f"That {all_levels(verdicts, study)} are equivalent to each other was tested by an intersection-union test "
            "(Berger 1982): shown where all pairs are equivalent at alpha, uncorrected. It is refuted where a pair is "
            f"beyond the margin, with the tails of both sides added, {CORRECTION[a.correction]} over all pairs."
        )
    if verdicts.ranks:
        words.append(
            "Ranks have simultaneous intervals by the pairs that differ, with Holm's correction over all pairs of the "
            "study (Mohamad, Goeman and van Zwet 2022)."
        )
    if a.looks:
        words.append(f"Alpha was spent over looks at {', '.join(map(str, a.looks))} seeds (Lan and DeMets 1983).")
    if verdicts.shares.everything:
        words.append(
            "Shares of the variance are those of the levels as they are: unbiased estimates from mean squares, "
            "negative ones taken as zero, each effect tested against its interaction with the seed; intervals are "
            "jackknifed over seeds on the logit scale (Miller 1974). For levels that are drawn at random the ranges "
            "are from generalised pivotal quantities (Weerahandi 1993), in which an interaction is a part of what it "
            "is made of: they need not lie about the shares. How much of a ranking would be found again with other "
            "settings and seeds is a generalisability coefficient (Brennan 2001)."
        )
    return " ".join(words)


def history(study: Study, launched: Launch | None, runs: Sequence[Run], others: Sequence[str] = ()) -> tuple[str, bool]:
    """When the analysis and the runs were fixed and whether they changed since, and whether that asks for caution.

    Args:
        others: studies that are judged by the same test images.
    """
    if launched is None:
        return "It was never launched as a study from this folder, so nobody knows when this was fixed.", True
    ended = sorted(run.result.finished for run in runs if run.result is not None)
    stages = list(launched.analyses)
    if stages[-1].analysis != analysis_of(study):
        stages.append(replace(stages[-1], time="now", analysis=analysis_of(study)))
    first = stages[0].time
    said = [f"Fixed at the first launch, {first}"]
    before = stages[0].known if stages[0].known is not None else sum(1 for time in ended if time < first)
    if before:
        said[0] += f", when {before} of {stages[0].runs['n']} runs were known already, from another study or sweep"
    elif ended:
        said[0] += ", before the first of its runs was known"
    for earlier, later in pairwise(stages):
        looked = ", after the first run ended" if ended and later.time > ended[0] else ""
        said.append(f"CHANGED {later.time}{looked}: {', '.join(_changes(earlier, later))}")
    if len(stages) == 1:
        said.append("not changed since")
    if others:
        words = f"{len(others)} other stud{'ies' if len(others) > 1 else 'y'}"
        said.append(f"its test images have judged {words} here ({', '.join(others)})")
    return "; ".join(said) + ".", bool(before) or len(stages) > 1


def _changes(earlier: Stage, later: Stage) -> list[str]:
    found = [
        f"{key} {earlier.analysis[key]} -> {value}" if key in earlier.analysis else f"{key} {value} (new)"
        for key, value in later.analysis.items()
        if earlier.analysis.get(key) != value
    ]
    if earlier.runs["ids"] != later.runs["ids"]:
        found.append(f"{earlier.runs['n']} -> {later.runs['n']} runs")
    return found

"""The tables of a report."""

import math

from metaformer.analysis.cells import Cell
from metaformer.analysis.comparison import Tested, best_rate, by_rate, matched, tolerance
from metaformer.analysis.grid import uneven
from metaformer.analysis.ranking import Place
from metaformer.analysis.shares import Component
from metaformer.analysis.stats import MOST_SEEDS, Estimate
from metaformer.analysis.text_table import Table, p_value, percent, plus_minus
from metaformer.analysis.verdict import BOTH, DIFFERENT, EQUIVALENT, INCONCLUSIVE, NONE, Verdicts, decisive
from metaformer.config.metrics import in_words, metric_of, selecting
from metaformer.config.study_nodes import BUDGET_KEYS, Analysis, Study


def all_tables(study: Study, verdicts: Verdicts) -> dict[str, Table]:
    """What is written as CSV, Markdown and LaTeX, by name."""
    return {
        "accuracy": accuracy_table(verdicts, study),
        "verdicts": verdict_table(verdicts, study.analysis),
        "added": added_table(verdicts, study.analysis),
        "variance": variance_table(verdicts),
        "ranks": rank_table(verdicts, study.analysis),
        "fairness": _fairness_table(verdicts, study.analysis),
        "exploratory": _exploratory_table(verdicts, metric_of(study.analysis.metric).digits),
        "rates": rate_table(verdicts, study.analysis),
    }


def accuracy_table(verdicts: Verdicts, study: Study) -> Table:
    """A line for each cell: its metric, the difference to its reference and the verdict, and what it costs."""
    name, selected = study.analysis.metric, selecting(study.analysis.metric)
    metric, tested = metric_of(name), f"test_{name.partition('_')[2]}"
    compared = {c.cell.name: c for c in verdicts.confirmatory}
    header = ["cell", "n", "val", "test", f"minus {study.reference}", "verdict", "params", "MACs"]
    header += ["s/run"] if verdicts.alone else []
    lines = []
    apart = {cell.name for cell in verdicts.baselines}
    for cell in [*verdicts.cells, *verdicts.baselines]:
        c = compared.get(cell.name)
        difference = plus_minus(c.difference, "+", metric.digits) if c and c.crossed.seeds else ""
        if c and c.crossed.seeds != len(cell.values):
            difference += f" (n = {c.crossed.seeds})"
        means = [
            plus_minus(mean, digits=metric.digits) if mean.n else ""
            for mean in (cell.tested() if name == which else cell.mean(which) for which in (selected, tested))
        ]
        verdict = _short(c) if c else "baseline" if cell.name in apart else ""
        costs = _costs(cell)[: 3 if verdicts.alone else 2]
        lines.append([cell.name, str(len(cell.values)), *means, difference, verdict, *costs])
    caption = f"{metric.words} in {metric.sign}: mean over n seeds ± half of the 95% interval"
    if any(c.crossed.images for c in compared.values()):
        caption += ", for other seeds and other images, but for val, which is for other seeds alone"
    caption += "; differences paired by seed"
    caption += ", of validation images" if name == selected else ""
    caption += "; s/run: measured alone" if verdicts.alone else ""
    return Table(header, lines, caption)


def _costs(cell: Cell) -> list[str]:
    """Parameters, MACs and seconds; nothing where no run is finished, which may count as a guess."""
    if not cell.runs:
        return ["", "", ""]
    macs = "uncounted" if cell.first.macs is None else f"{cell.first.macs / 1e6:,.2f}M"
    return [f"{cell.first.params:,}", macs, f"{cell.seconds:.0f}"]


def verdict_table(verdicts: Verdicts, analysis: Analysis) -> Table:
    """A line for each confirmatory comparison and contrast: verdict, difference, intervals, adjusted p values."""
    tost = f"{100 * (1 - 2 * analysis.alpha):.4g}% interval"
    header = ["comparison", "verdict", "difference", "95% interval", "decided by", "p different", "p equivalent", "n"]
    header += [tost, "these images, 95%", "notes"]
    places = metric_of(analysis.metric).digits
    lines = [
        [
            t.name,
            _verdict(t),
            _difference(t, places),
            _interval(t.difference, places),
            _decided_by(t, places),
            p_value(t.p_difference),
            p_value(t.p_equivalence),
            str(t.crossed.seeds),
            _interval(t.tost_interval(analysis.alpha), places),
            _interval(t.fixed.estimate(), places),
            "; ".join(t.notes),
        ]
        for t in verdicts.tested
    ]
    metric = metric_of(analysis.metric)
    caption = (
        f"{metric.unit.capitalize()} of {metric.words}, paired by seed. The intervals are for other seeds and other "
    )
    caption += "images where predictions are kept, `these images` for the test set as it is, with the variance of the "
    caption += "comparison alone. These are not adjusted; p values are, and so is the interval that the verdict rests "
    caption += "on, in `decided by` with its confidence."
    if verdicts.added:
        caption += " Of the planned seeds."
    if any(t.verdict == INCONCLUSIVE for t in verdicts.tested):
        caption += " Seeds that would tell: in all, with 80% power, for the difference as it looks now and a scatter "
        caption += "from the 80% interval of what it is; more of them than planned are a second look."
    kept = len(header) - (not any(line[-1] for line in lines))
    return Table(header[:kept], [line[:kept] for line in lines], caption, ("verdict", "notes"))


def added_table(verdicts: Verdicts, analysis: Analysis) -> Table:
    """The confirmatory comparisons with the seeds that nobody planned: estimates, and no p value."""
    places = metric_of(analysis.metric).digits
    lines = [
        [c.name, str(c.crossed.seeds), _difference(c, places), _interval(c.difference, places)]
        for c in verdicts.added
        if c.crossed.seeds
    ]
    return Table(
        ["comparison", "n", "difference", "95% interval"],
        lines,
        "With the seeds that were added after the first launch: exploratory, a look that was not planned.",
    )


def _difference(t: Tested, places: int) -> str:
    return f"{t.crossed.mean:+.{places}f}" if t.crossed.seeds else ""


def _decided_by(t: Tested, places: int) -> str:
    """The interval that the verdict rests on, with its confidence, adjusted."""
    if t.verdict == NONE:
        return ""
    interval, confidence = decisive(t)
    return f"{_interval(interval, places)} {percent(confidence)}"


def _interval(e: Estimate, places: int) -> str:
    return "" if math.isnan(e.low) else f"[{e.low:+.{places}f}, {e.high:+.{places}f}]"


def variance_table(verdicts: Verdicts) -> Table:
    """The shares of the variance, for these levels, with one of them left out, and for levels drawn at random."""
    without = {c.name: c for c in verdicts.shares.without_identity}
    lines = []
    for c in verdicts.shares.everything:
        other = without.get(c.name)
        ranges = [f"{100 * share:.0f}% (no {level})" for share, level in c.without]
        drawn = f"{100 * c.random:.0f}% [{100 * c.levels[0]:.0f}, {100 * c.levels[1]:.0f}]"
        identity = [_share(other) if other else "", p_value(other.p) if other else ""]
        lines.append([c.name, _share(c), p_value(c.p), " to ".join(ranges), drawn, *identity])
    caption = (
        "Of the cells as they are: all factors fixed, in brackets the 95% interval over seeds (jackknife; in "
        "simulations it holds the truth in 93-99% at 3 to 16 seeds, in 87-97% for shares of a few percent). p: each "
        "effect against its interaction with the seed. `seed` is all that changes within a cell."
    )
    if (ratio := uneven(verdicts.cells)) > 3:
        others = "and those of others do not" if math.isinf(ratio) else f"{ratio:.0f} times as much as those of others"
        caption += f" The seeds of some cells scatter {others}: p values are rough."
    header = ["from", "share", "p", "one level left out", "levels at random, 95%", "without identity", "p "]
    return Table(header, lines, caption)


def rank_table(verdicts: Verdicts, analysis: Analysis) -> Table:
    """A line for each level of the factor: its mean rank over the settings, and its rank in each."""
    if not verdicts.ranks or "lr" in verdicts.cells[0].levels:  # rates are compared in a table of their own
        return Table([], [])
    settings = list(verdicts.ranks[0].places)
    header = [analysis.factor, f"mean rank of {len(verdicts.ranks)}", *(setting or "all" for setting in settings)]
    lines = [
        [r.level, _place(r.over_all, 1), *(_place(r.places[setting], 0) for setting in settings)]
        for r in verdicts.ranks
    ]
    caption = (
        f"1 is the best by {in_words(analysis.metric)}. In brackets the ranks that the comparisons of all pairs leave "
        f"open (Holm over all pairs of all settings): together they hold with {100 * (1 - analysis.alpha):.4g}%. "
        "The mean has the means of these."
    )
    return Table(header, lines, caption)


def _place(place: Place, digits: int) -> str:
    rank = f"{place.rank:.{digits}f}" if place.rank % 1 == 0 or digits else f"{place.rank:.1f}"
    return f"{rank} [{place.low:.{digits}f}, {place.high:.{digits}f}]"


def _share(c: Component) -> str:
    return f"{100 * c.share:.1f}%" + ("" if math.isnan(c.low) else f" [{100 * c.low:.1f}, {100 * c.high:.1f}]")


def _fairness_table(verdicts: Verdicts, analysis: Analysis) -> Table:
    lines = []
    for c in verdicts.confirmatory:
        views = [
            _short(c) if matched(c, key, analysis) else f"not matched ({_percent(c.ratio(key))})"
            for key in ("params", "macs")
        ]
        time = [_percent(c.ratio("seconds"))] if verdicts.alone else []
        lines.append([c.name, _difference(c, metric_of(analysis.metric).digits), _short(c), *views, *time])
    changed = set(BUDGET_KEYS.values()) & {key.removeprefix("model.") for key in analysis.tuned}
    shape = "same shape" if analysis.factor == "mixer" and not changed else "as they are"
    header = ["comparison", "difference", shape, "same parameters", "same MACs", *(["time"] if verdicts.alone else [])]
    caption = f"Same: within {100 * tolerance(analysis):.4g}%. " + (
        "The time is that of training, on a machine that did nothing else."
        if verdicts.alone
        else "Times of training are no cost where other work shared the machine, or may have, and are not here: "
        "`python -m metaformer.cost ... cost.throughput=true` measures one model alone."
    )
    return Table(header, lines, caption, (shape, "same parameters", "same MACs"))


def _exploratory_table(verdicts: Verdicts, places: int) -> Table:
    lines = [
        [
            c.name,
            c.factor,
            str(c.crossed.seeds),
            _difference(c, places),
            _interval(c.difference, places),
            p_value(c.p_difference),
            "; ".join([*c.confounds, *c.notes]),
        ]
        for c in verdicts.exploratory
    ]
    header = ["comparison", "differs in", "n", "difference", "95% interval", "p, not adjusted", "also differs in"]
    return Table(header, lines, "Exploratory: not adjusted for their number.", ("also differs in",))


def rate_table(verdicts: Verdicts, analysis: Analysis) -> Table:
    """The best learning rate of each point of the other factors, where rates were swept."""
    if not verdicts.cells or "lr" not in verdicts.cells[0].levels:
        return Table([], [])
    metric = selecting(analysis.metric)
    places, lines = metric_of(metric).digits, []
    for name, found in by_rate(verdicts.cells, metric).items():
        best, at_edge = best_rate(found, metric)
        edge = "at the edge of the grid: it may lie outside" if at_edge else ""
        spread = max(found.values()) - min(found.values())
        lines.append([name, f"{best:g}", f"{found[best]:.{places}f}", f"{spread:.{places}f}", edge])
    header = ["cell", "best rate", in_words(metric), "best to worst", "note"]
    return Table(header, lines, f"Chosen on {in_words(metric)}.", ("note",))


def _percent(ratio: float | None) -> str:
    return "?" if ratio is None else f"{ratio - 1:+.0%}"


def _short(t: Tested) -> str:
    return f"{EQUIVALENT} and {DIFFERENT}" if t.verdict == BOTH else t.verdict


def _verdict(t: Tested) -> str:
    if t.verdict != INCONCLUSIVE or t.seeds_needed is None:
        return t.verdict
    return f"{t.verdict}: {_seeds_needed(*t.seeds_needed)}"


def _seeds_needed(low: float | None, high: float | None) -> str:
    if low is None:
        return "no number of seeds would tell by these images"
    if math.isinf(low):
        return f"more than {MOST_SEEDS:,} seeds would tell" + (", if any" if high is None else "")
    if high is None:
        return f"{low} seeds or more would tell, if any"
    if math.isinf(high):
        return f"{low} to more than {MOST_SEEDS:,} seeds would tell"
    return f"{low} to {high} seeds would tell" if low < high else f"about {low} seeds would tell"

"""The pictures of how training went: learning curves, what each rate gave, and gaps as training grows."""

from collections.abc import Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from metaformer.analysis.cells import Cell
from metaformer.analysis.colours import COLOURS, PAPER, QUIET, level_colours, level_lines
from metaformer.analysis.comparison import Comparison, best_rate, by_rate
from metaformer.analysis.figures import WIDTH, legend_of, levels_of, with_unit
from metaformer.analysis.inference import mean_interval
from metaformer.analysis.verdict import Verdicts
from metaformer.config.metrics import metric_of
from metaformer.config.study_nodes import Analysis
from metaformer.runs.launch import Run


def curves(runs: Sequence[Run], cells: Sequence[Cell], metric: str, factor: str) -> Figure | None:
    """A validation metric by epoch: the mean over seeds and its 95% t band, a panel for each setting."""
    levels, settings = levels_of(cells, factor)
    traces = {cell.name: [t for r in runs if r.cell == cell.name and (t := _trace(r, metric))] for cell in cells}
    if not any(traces.values()):
        return None
    columns = 2 if len(settings) == 4 else min(3, len(settings))
    rows = -(-len(settings) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(WIDTH, 0.6 + 2.6 * rows), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axes in panels.flat[len(settings) :]:
        axes.set_visible(False)
    for cell in cells:
        if not traces[cell.name]:
            continue
        axes = panels.flat[settings.index(cell.setting(factor))]
        level = cell.levels[factor]
        colour, line = level_colours(levels)[level], level_lines(levels)[level]
        epochs = sorted(set.intersection(*(set(trace) for trace in traces[cell.name])))
        estimates = [mean_interval([trace[epoch] for trace in traces[cell.name]]) for epoch in epochs]
        axes.plot(epochs, [e.mean for e in estimates], line, color=colour, linewidth=1.5, marker=".", markersize=4)
        if len(traces[cell.name]) > 1:
            axes.fill_between(
                epochs, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.12, linewidth=0
            )
    for axes, setting in zip(panels.flat, settings, strict=False):
        axes.set_title(setting, fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(with_unit(metric), fontsize=9)
    handles = legend_of(levels, [""], lines=True)
    figure.legend(handles=handles, ncol=4, loc="outside upper center", frameon=False, fontsize=8, handlelength=3)
    return figure


def rates(cells: Sequence[Cell], metric: str, factor: str) -> Figure | None:
    """A validation metric against the learning rate, where it was swept; open markers: the best is at the edge."""
    if not cells or "lr" not in cells[0].levels:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    found, levels = by_rate(cells, metric), levels_of(cells, factor)[0]
    levels = levels if found.keys() <= set(levels) else list(found)
    colours, lines = level_colours(levels), level_lines(levels)
    for name, values in found.items():
        axes.plot(list(values), list(values.values()), lines[name], color=colours[name], marker=".", label=name)
        best, at_edge = best_rate(values, metric)
        face = PAPER if at_edge else colours[name]
        axes.plot([best], [values[best]], "o", markersize=8, markerfacecolor=face, markeredgecolor=colours[name])
    _logarithmic(axes, sorted({float(cell.levels["lr"]) for cell in cells}), "learning rate")
    axes.set_ylabel(with_unit(metric))
    figure.legend(ncol=4, loc="outside upper center", frameon=False, fontsize=8)
    return figure


def _logarithmic(axes: Any, ticks: Sequence[float], name: str) -> None:
    """An axis of numbers that were chosen as multiples of each other, with a mark at each and no other."""
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel(name)


def gaps(verdicts: Verdicts, analysis: Analysis, reference: str) -> Figure | None:
    """The differences to the reference along the one other factor, where that is a number, as epochs or images are."""
    drawn = [(c, n) for c in verdicts.confirmatory if c.crossed.seeds and (n := _number(c)) is not None]
    along = sorted({level for _, level in drawn})
    if len(along) < 2:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    axes.axhspan(-analysis.margin, analysis.margin, color=COLOURS["equivalent"][0], alpha=0.12, linewidth=0)
    axes.axhline(0, color=QUIET, linewidth=0.8)
    levels = list(dict.fromkeys(c.level for c, _ in drawn))
    everything = levels_of(verdicts.cells, analysis.factor)[0]
    colours, lines = level_colours(everything), level_lines(everything)
    for place, name in enumerate(levels):
        own = {level: c.difference for c, level in sorted(drawn, key=lambda pair: pair[1]) if c.level == name}
        aside = (along[-1] / along[0]) ** (0.01 * (place - (len(levels) - 1) / 2))  # so that intervals do not cover
        ends = [[e.mean - e.low for e in own.values()], [e.high - e.mean for e in own.values()]]
        at, means = [level * aside for level in own], [e.mean for e in own.values()]
        axes.errorbar(at, means, ends, color=colours[name], linestyle=lines[name], marker="D", markersize=5, label=name)
    _logarithmic(axes, along, _named(drawn[0][0]))
    axes.set_ylabel(f"minus {reference}, in {metric_of(analysis.metric).unit}")
    figure.legend(ncol=4, loc="outside upper center", frameon=False, fontsize=8)
    return figure


def _named(comparison: Comparison) -> str:
    """The one factor beside that of the mixers; empty where there are several or none, or where `rates` has it."""
    others = [name for name in comparison.cell.levels if name != comparison.factor]
    return others[0] if len(others) == 1 and others != ["lr"] else ""


def _number(comparison: Comparison) -> float | None:
    """The level of that factor, where it is a number above zero."""
    try:
        level = float(comparison.cell.levels.get(_named(comparison), ""))
    except ValueError:
        return None
    return level if 0 < level < float("inf") else None


def _trace(run: Run, metric: str) -> dict[int, float]:
    """A metric by epoch in its unit, where it was validated, from metrics.csv; empty where it cannot be read."""
    try:
        rows = [row for row in run.epochs() if row[metric]] if run.result else []
        return {int(row["epoch"]): metric_of(metric).scale * float(row[metric]) for row in rows}
    except (ValueError, LookupError):
        return {}

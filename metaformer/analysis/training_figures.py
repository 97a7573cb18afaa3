"""The pictures of how training went: learning curves, and what each learning rate gave."""

from collections.abc import Sequence

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from metaformer.analysis.cells import Cell
from metaformer.analysis.colours import PAPER, level_colours
from metaformer.analysis.comparison import best_rate, by_rate
from metaformer.analysis.figures import WIDTH, legend_of, levels_of, with_unit
from metaformer.analysis.inference import mean_interval
from metaformer.config.metrics import metric_of
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
        colour = level_colours(levels)[cell.levels[factor]]
        epochs = sorted(set.intersection(*(set(trace) for trace in traces[cell.name])))
        estimates = [mean_interval([trace[epoch] for trace in traces[cell.name]]) for epoch in epochs]
        axes.plot(epochs, [e.mean for e in estimates], color=colour, linewidth=1.5, marker=".", markersize=4)
        if len(traces[cell.name]) > 1:
            axes.fill_between(
                epochs, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.12, linewidth=0
            )
    for axes, setting in zip(panels.flat, settings, strict=False):
        axes.set_title(setting, fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(with_unit(metric), fontsize=9)
    figure.legend(handles=legend_of(levels, [""]), ncol=4, loc="outside upper center", frameon=False, fontsize=8)
    return figure


def rates(cells: Sequence[Cell], metric: str, factor: str) -> Figure | None:
    """A validation metric against the learning rate, where it was swept; open markers: the best is at the edge."""
    if not cells or "lr" not in cells[0].levels:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    found, levels = by_rate(cells, metric), levels_of(cells, factor)[0]
    colours = level_colours(levels if found.keys() <= set(levels) else list(found))
    for name, values in found.items():
        axes.plot(list(values), list(values.values()), color=colours[name], marker=".", label=name)
        best, at_edge = best_rate(values, metric)
        face = PAPER if at_edge else colours[name]
        axes.plot([best], [values[best]], "o", markersize=8, markerfacecolor=face, markeredgecolor=colours[name])
    axes.set_xscale("log")
    ticks = sorted({float(cell.levels["lr"]) for cell in cells})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("learning rate")
    axes.set_ylabel(with_unit(metric))
    figure.legend(ncol=4, loc="outside upper center", frameon=False, fontsize=8)
    return figure


def _trace(run: Run, metric: str) -> dict[int, float]:
    """A metric by epoch in its unit, where it was validated, from metrics.csv; empty where it cannot be read."""
    try:
        rows = [row for row in run.epochs() if row[metric]] if run.result else []
        return {int(row["epoch"]): metric_of(metric).scale * float(row[metric]) for row in rows}
    except (ValueError, LookupError):
        return {}

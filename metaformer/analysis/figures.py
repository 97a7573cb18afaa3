"""The pictures of a report. Each function draws one and returns it; `save` writes it as PNG and SVG."""

import math
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metaformer.analysis.cells import Cell
from metaformer.analysis.comparison import Comparison, best_rate, by_rate
from metaformer.analysis.inference import mean_interval
from metaformer.analysis.shares import Component
from metaformer.analysis.stats import Estimate
from metaformer.analysis.verdict import BOTH, DIFFERENT, EQUIVALENT, INCONCLUSIVE, NONE, Verdicts
from metaformer.config.metrics import in_words, metric_of
from metaformer.config.schema import Analysis
from metaformer.runs.launch import Run
from metaformer.system.files import replacing, write

matplotlib.use("agg")


matplotlib.rcParams |= {  # text stays text; the same file for the same numbers
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "axes.edgecolor": "#888888",
}


PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#666666")  # Okabe and Ito
MARKERS = "osD^vPX*"
COLOURS = {EQUIVALENT: "#009e73", BOTH: "#009e73", DIFFERENT: "#d55e00", INCONCLUSIVE: "#777777", NONE: "#bbbbbb"}
WIDTH = 7.2  # inches


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write NAME.png, NAME.pdf and NAME.svg; return the SVG for a page that holds several."""
    matplotlib.rcParams["svg.hashsalt"] = name  # ids that differ from one figure to the next
    for kind, how in (("png", {"dpi": 130}), ("pdf", {"metadata": {"CreationDate": None}})):
        with replacing(folder / f"{name}.{kind}") as part:
            figure.savefig(part, **how)
    svg = StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = svg.getvalue()
    write(folder / f"{name}.svg", text)
    return text[text.index("<svg") :]


def accuracy(cells: Sequence[Cell], metric: str, factor: str, reference: str) -> Figure:
    """Each cell: seeds as dots, the mean and its 95% interval."""
    figure, axes = _rows(len(cells))
    places = _places(cells, factor)
    for place, cell in zip(places, cells, strict=True):
        colour = "#c0392b" if cell.levels[factor] == reference else "#1f4e79"
        values, estimate = list(cell.values.values()), cell.tested()
        axes.plot(values, [place - 0.22] * len(values), "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
        _interval(axes, estimate, place, colour, 2.0)
        axes.plot([estimate.mean], [place], "D", color=colour, markersize=5)
    _label_rows(axes, [cell.name for cell in cells], places)
    n = span(len(cell.values) for cell in cells)
    axes.set_xlabel(f"{with_unit(metric)}: mean and 95% interval, n = {n} seeds; dots are seeds")
    return figure


def differences(comparisons: Sequence[Comparison], analysis: Analysis, reference: str) -> Figure | None:
    """Paired differences to the reference with the margin band: thin the 95% interval, thick that of TOST."""
    comparisons = [c for c in comparisons if c.crossed.seeds]
    if not comparisons:
        return None
    margin = analysis.margin
    figure, axes = _rows(len(comparisons))
    axes.axvspan(-margin, margin, color="#009e73", alpha=0.12, linewidth=0)
    axes.axvline(0, color="#888888", linewidth=0.8)
    places = _places([c.cell for c in comparisons], comparisons[0].factor)
    for place, c in zip(places, comparisons, strict=True):
        colour = COLOURS[c.verdict]
        _interval(axes, c.difference, place, colour, 1.2)
        _interval(axes, c.tost_interval(analysis.alpha), place, colour, 3.2)
        axes.plot([c.difference.mean], [place], "D", color=colour, markersize=5)
    _label_rows(axes, [c.cell.name for c in comparisons], places)
    handles = [
        Line2D([], [], color=COLOURS[verdict], marker="D", markersize=5, label=verdict)
        for verdict in (EQUIVALENT, DIFFERENT, INCONCLUSIVE, NONE)
        if any(c.verdict.startswith(verdict) for c in comparisons)
    ]
    figure.legend(handles=handles, ncol=4, loc="outside upper center", frameon=False)
    n, tost = span(c.crossed.seeds for c in comparisons), 1 - 2 * analysis.alpha
    unit = metric_of(analysis.metric).unit
    axes.set_xlabel(f"minus {reference}, in {unit}, n = {n} pairs; band: ±{margin:g}; thick {tost:.0%}, thin 95%")
    return figure


def variance(everything: Sequence[Component], without_identity: Sequence[Component], metric: str) -> Figure:
    """Shares of the variance with the intervals over seeds, with and without identity."""
    sets = [("all cells", everything, PALETTE[0])]
    if without_identity:
        sets.append(("without identity", without_identity, PALETTE[4]))
    names = [component.name for component in everything]
    figure, axes = _rows(len(names), 0.5)
    height = 0.8 / len(sets)
    for i, (label, components, colour) in enumerate(sets):
        for component in components:
            place = len(names) - 1 - names.index(component.name) + (0.5 * (len(sets) - 1) - i) * height
            share = 100 * component.share
            axes.barh(place, share, height * 0.9, color=colour, alpha=0.75)
            axes.plot([100 * component.low, 100 * component.high], [place, place], color="#333333", linewidth=1.2)
            end = max(share, 0 if math.isnan(component.high) else 100 * component.high)
            axes.text(end + 1.2, place, f"{share:.0f}%", va="center", fontsize=8)
        axes.barh(0, 0, color=colour, alpha=0.75, label=label)
    if len(sets) > 1:
        figure.legend(ncol=2, loc="outside upper center", frameon=False)
    _label_rows(axes, names, range(len(names) - 1, -1, -1))
    axes.set_xlim(0, 108)
    words = metric_of(metric).words
    axes.set_xlabel(f"share of the variance in {words}, in %; lines: 95% interval over seeds")
    return figure


def cost(verdicts: Verdicts, metric: str, factor: str) -> Figure:
    """The metric against parameters, MACs and measured time; the line joins the cells that none beats in both.

    On ImageNet the figures of the paper stand beside them, in grey.
    """
    cells = verdicts.cells
    levels, settings = _levels(cells, factor)
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH, 3.3), layout="constrained", sharey=True)
    for axes, (key, label) in zip(
        panels, {"params": "parameters, 1000s", "macs": "MACs, millions", "seconds": "training, s"}.items(), strict=True
    ):
        points = []
        for cell in cells:
            value = cell.seconds if key == "seconds" else getattr(cell.first, key)
            if value is None:
                continue
            x = value / {"params": 1e3, "macs": 1e6, "seconds": 1}[key]
            points.append((x, cell.mean(metric).mean))
            colour = PALETTE[levels.index(cell.levels[factor]) % len(PALETTE)]
            marker = MARKERS[settings.index(cell.setting(factor)) % len(MARKERS)]
            axes.plot(*points[-1], marker, color=colour, markersize=6, alpha=0.85, markeredgewidth=0)
            published = cell.first.config.reference
            on_imagenet = metric.endswith("_accuracy") and _on_imagenet(cell)
            if on_imagenet and published.top1 is not None and getattr(published, key, None) is not None:
                scale = {"params": 1e3, "macs": 1e3}[key]
                axes.plot(getattr(published, key) * scale, published.top1, marker, color="#aaaaaa", markersize=6)
        sign = 1 if metric_of(metric).higher else -1
        front = [
            p for p in sorted(points) if not any(q != p and q[0] <= p[0] and sign * (q[1] - p[1]) >= 0 for q in points)
        ]
        axes.plot(*zip(*front, strict=True), color="#bbbbbb", linewidth=1, zorder=0)
        axes.set_xlabel(label)
    panels[0].set_ylabel(with_unit(metric))
    figure.legend(handles=_legend(levels, settings), ncol=4, loc="outside upper center", frameon=False, fontsize=8)
    return figure


def curves(runs: Sequence[Run], cells: Sequence[Cell], metric: str, factor: str) -> Figure | None:
    """A validation metric by epoch: the mean over seeds and its 95% t band, a panel for each setting."""
    levels, settings = _levels(cells, factor)
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
        colour = PALETTE[levels.index(cell.levels[factor]) % len(PALETTE)]
        length = min(map(len, traces[cell.name]))
        estimates = [mean_interval([trace[i] for trace in traces[cell.name]]) for i in range(length)]
        epochs = range(1, length + 1)
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
    figure.legend(handles=_legend(levels, [""]), ncol=4, loc="outside upper center", frameon=False, fontsize=8)
    return figure


def rates(cells: Sequence[Cell], metric: str) -> Figure | None:
    """A validation metric against the learning rate, where it was swept; open markers: the best is at the edge."""
    if not cells or "lr" not in cells[0].levels:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
    for i, (name, found) in enumerate(by_rate(cells, metric).items()):
        colour = PALETTE[i % len(PALETTE)]
        axes.plot(list(found), list(found.values()), color=colour, marker=".", label=name)
        best, at_edge = best_rate(found, metric)
        face = "white" if at_edge else colour
        axes.plot([best], [found[best]], "o", markersize=8, markerfacecolor=face, markeredgecolor=colour)
    axes.set_xscale("log")
    ticks = sorted({float(cell.levels["lr"]) for cell in cells})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("learning rate; circle: best, open where it is at the edge of the grid")
    axes.set_ylabel(with_unit(metric))
    figure.legend(ncol=4, loc="outside upper center", frameon=False, fontsize=8)
    return figure


def _rows(count: int, each: float = 0.3) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(figsize=(WIDTH, 1.1 + each * count), layout="constrained")
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    return figure, axes


def _places(cells: Sequence[Cell], factor: str) -> list[float]:
    """A height for each cell, from the top, with a gap between settings."""
    places, place = [], 0.0
    for before, cell in zip([None, *cells], cells, strict=False):
        place -= 1.0 if before is None or before.setting(factor) == cell.setting(factor) else 1.6
        places.append(place)
    return places


def _label_rows(axes: Any, names: Sequence[str], places: Sequence[float] | range) -> None:
    axes.set_yticks(list(places), names)
    axes.set_ylim(min(places) - 0.7, max(places) + 0.7)
    axes.tick_params(axis="y", length=0)


def _interval(axes: Any, estimate: Estimate, place: float, colour: str, width: float) -> None:
    if not math.isnan(estimate.low):
        axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=width, solid_capstyle="butt")


def _levels(cells: Sequence[Cell], factor: str) -> tuple[list[str], list[str]]:
    levels = list(dict.fromkeys(cell.levels[factor] for cell in cells))
    return levels, list(dict.fromkeys(cell.setting(factor) for cell in cells))


def _legend(levels: Sequence[str], settings: Sequence[str]) -> list[Any]:
    handles = [
        Line2D([], [], color=PALETTE[i % len(PALETTE)], marker="o", linestyle="", label=level)
        for i, level in enumerate(levels)
    ]
    if len(settings) > 1:
        handles += [
            Line2D([], [], color="#444444", marker=MARKERS[i % len(MARKERS)], linestyle="", label=setting)
            for i, setting in enumerate(settings)
        ]
    return handles


def with_unit(metric: str) -> str:
    """`val_accuracy` -> `validation accuracy in %`."""
    unit = metric_of(metric).unit
    return f"{in_words(metric)} in {'%' if unit == 'points' else unit}"


def _trace(run: Run, metric: str) -> list[float]:
    """A metric by epoch in its unit, from metrics.csv; empty where it cannot be read."""
    try:
        return [metric_of(metric).scale * float(row[metric]) for row in run.epochs()] if run.result else []
    except (ValueError, LookupError):
        return []


def _on_imagenet(cell: Cell) -> bool:
    data = cell.first.config.data
    return data.name == "image_folder" and data.classes == 1000


def span(counts: Iterable[int]) -> str:
    """`5`, or `3-5` where counts differ."""
    values = np.unique(list(counts))
    return f"{values[0]}" if len(values) == 1 else f"{values[0]}-{values[-1]}"

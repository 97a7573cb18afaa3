"""The pictures of a report. Each function draws one and returns it; `save` writes it as PNG, SVG and PDF."""

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

from metaformer.analysis.cells import Cell, with_runs
from metaformer.analysis.colours import COLOURS, INK, LINE, PAPER, QUIET, level_colours, level_lines
from metaformer.analysis.comparison import Comparison
from metaformer.analysis.shares import Component
from metaformer.analysis.stats import Estimate
from metaformer.analysis.verdict import BOTH, DIFFERENT, EQUIVALENT, INCONCLUSIVE, NONE, Verdicts, decisive
from metaformer.config.metrics import in_words, metric_of
from metaformer.config.study_nodes import Analysis
from metaformer.system.files import replacing, write

matplotlib.use("agg")


matplotlib.rcParams |= {  # text stays text; the same file for the same numbers
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may have $ and _
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.facecolor": "none",
    "axes.edgecolor": QUIET,
    "grid.color": LINE,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


MARKERS = "osD^vPX*"
VERDICTS = {EQUIVALENT: "equivalent", BOTH: "equivalent", DIFFERENT: "different"}  # their colours; others are grey
WIDTH, NARROW = 7.2, 5.4  # inches; narrow ones are read on a phone as they are


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write NAME.png, NAME.pdf and NAME.svg; return the SVG."""
    matplotlib.rcParams["svg.hashsalt"] = name  # ids that differ from one figure to the next
    figure.draw_without_rendering()  # lays it out, once for all three, which takes as long as to draw it
    figure.set_layout_engine(None)  # "none" would leave one that has every file drawn twice
    for kind, how in (("png", {"dpi": 130}), ("pdf", {"metadata": {"CreationDate": None}})):
        with replacing(folder / f"{name}.{kind}") as part:
            figure.savefig(part, **how)
    svg = StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    write(folder / f"{name}.svg", svg.getvalue())
    return svg.getvalue()


def accuracy(cells: Sequence[Cell], metric: str, factor: str, reference: str, baselines: Sequence[Cell] = ()) -> Figure:
    """Each cell: seeds as dots, the mean and its 95% interval; dotted through a setting, the mean of its reference.

    A baseline is a dashed line through those of its setting.
    """
    figure, axes = _rows(len(cells))
    colours, places = level_colours(levels_of(cells, factor)[0]), _places(cells, factor)

    def along(cell: Cell) -> list[float]:
        """From the first row of its setting to the last."""
        beside = [p for p, c in zip(places, cells, strict=True) if c.setting(factor) == cell.setting(factor)] or places
        return [min(beside) - 0.4, max(beside) + 0.4]

    for place, cell in zip(places, cells, strict=True):
        colour = colours[cell.levels[factor]]
        values, estimate = list(cell.values.values()), cell.tested()
        axes.plot(values, [place - 0.22] * len(values), "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
        _interval(axes, estimate, place, colour, 2.0)
        axes.plot([estimate.mean], [place], "D", color=colour, markersize=5)
        if cell.levels[factor] == reference:
            axes.plot([estimate.mean] * 2, along(cell), color=QUIET, linewidth=0.8, linestyle=":", zorder=0)
    for cell in baselines:
        mean, ends = cell.tested().mean, along(cell)
        axes.plot([mean] * 2, ends, color=QUIET, linewidth=1.2, linestyle="--", zorder=0)
        axes.text(mean, ends[1] + 0.2, f" {cell.name}", color=QUIET, fontsize=7, va="center")
    _label_rows(axes, [_marked(cell.name, [cell]) for cell in cells], places)
    axes.set_xlabel(f"{with_unit(metric)}, n = {span(len(cell.values) for cell in cells)} seeds")
    return figure


def differences(comparisons: Sequence[Comparison], analysis: Analysis, reference: str) -> Figure | None:
    """Paired differences to the reference with the intervals that their verdicts rest on; the margin is a band."""
    comparisons = [c for c in comparisons if c.crossed.seeds]
    if not comparisons:
        return None
    margin = analysis.margin
    figure, axes = _rows(len(comparisons))
    axes.axvspan(-margin, margin, color=COLOURS["equivalent"][0], alpha=0.12, linewidth=0)
    axes.axvline(0, color=QUIET, linewidth=0.8)
    places = _places([c.cell for c in comparisons], comparisons[0].factor)
    for place, c in zip(places, comparisons, strict=True):
        style = _style(c.verdict)
        _interval(axes, decisive(c)[0], place, style["color"], 2.0, style["linestyle"])
        axes.plot([c.difference.mean], [place], **style)
    _label_rows(axes, [_marked(c.cell.name, c.cells) for c in comparisons], places)
    handles = [
        Line2D([], [], label=verdict, **_style(verdict))
        for verdict in (EQUIVALENT, DIFFERENT, INCONCLUSIVE, NONE)
        if any(c.verdict.startswith(verdict) for c in comparisons)
    ]
    figure.legend(handles=handles, ncol=4, loc="outside upper center", frameon=False)
    n, unit = span(c.crossed.seeds for c in comparisons), metric_of(analysis.metric).unit
    # To the right: long names of rows leave less room than the words take, and would have them cut
    axes.set_xlabel(f"minus {reference}, in {unit}, n = {n} pairs; band: ±{margin:g}", loc="right")
    return figure


def _style(verdict: str) -> dict[str, Any]:
    """How a verdict is drawn; where there is none the marker is open and the interval dotted."""
    colour = COLOURS[VERDICTS.get(verdict, "inconclusive")][0]
    face, line = (PAPER, ":") if verdict == NONE else (colour, "-")
    return {"color": colour, "marker": "D", "markersize": 5, "markerfacecolor": face, "linestyle": line}


def _marked(name: str, cells: Sequence[Cell]) -> str:
    """A row's name, with a sign where a network did no better than chance."""
    return f"{name} †" if any(cell.collapsed for cell in cells) else name


def variance(everything: Sequence[Component], without_identity: Sequence[Component], metric: str) -> Figure:
    """Shares of the variance with the intervals over seeds, with and without identity."""
    sets = [("all cells", everything, COLOURS["share"][0])]
    if without_identity:
        sets.append(("without identity", without_identity, COLOURS["fewer"][0]))
    names = [component.name for component in everything]
    figure, axes = _rows(len(names), 0.5)
    height = 0.8 / len(sets)
    for i, (label, components, colour) in enumerate(sets):
        for component in components:
            place = len(names) - 1 - names.index(component.name) + (0.5 * (len(sets) - 1) - i) * height
            share = 100 * component.share
            axes.barh(place, share, height * 0.9, color=colour)
            axes.plot([100 * component.low, 100 * component.high], [place, place], color=INK, linewidth=1.2)
            end = max(share, 0 if math.isnan(component.high) else 100 * component.high)
            axes.text(end + 1.2, place, f"{share:.0f}%", va="center", fontsize=8)
        axes.barh(0, 0, color=colour, label=label)
    if len(sets) > 1:
        figure.legend(ncol=2, loc="outside upper center", frameon=False)
    _label_rows(axes, names, range(len(names) - 1, -1, -1))
    axes.set_xlim(0, 108)
    axes.set_xlabel(f"share of the variance in {metric_of(metric).words}, in %")
    return figure


def cost(verdicts: Verdicts, metric: str, factor: str) -> Figure:
    """The metric against parameters and MACs; the line joins the cells that none beats in both.

    On ImageNet the figures of the paper stand beside them, in grey. Times have no panel: runs of a study are trained
    side by side, so that theirs are no cost.
    """
    levels, settings = levels_of(verdicts.cells, factor)
    colours, cells = level_colours(levels), with_runs(verdicts.cells)
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.3), layout="constrained", sharey=True)
    for axes, (key, label, unit) in zip(
        panels, (("params", "parameters, 1000s", 1e3), ("macs", "MACs, millions", 1e6)), strict=True
    ):
        points = []
        for cell in cells:
            value = getattr(cell.first, key)
            if value is None:
                continue
            points.append((value / unit, cell.mean(metric).mean))
            colour = colours[cell.levels[factor]]
            marker = MARKERS[settings.index(cell.setting(factor)) % len(MARKERS)]
            axes.plot(*points[-1], marker, color=colour, markersize=6, alpha=0.85, markeredgewidth=0)
            published = cell.first.config.reference
            on_imagenet = metric.endswith("_accuracy") and _on_imagenet(cell)
            if on_imagenet and published.top1 is not None and getattr(published, key) is not None:
                grey, scale = COLOURS["published"][0], {"params": 1e6, "macs": 1e9}[key] / unit
                axes.plot(getattr(published, key) * scale, published.top1, marker, color=grey, markersize=6)
        for cell in verdicts.baselines:
            if (value := getattr(cell.first, key)) is not None:
                axes.plot(value / unit, cell.mean(metric).mean, "x", color=QUIET, markersize=7)
                axes.annotate(cell.name, (value / unit, cell.mean(metric).mean), color=QUIET, fontsize=7)
        sign = 1 if metric_of(metric).higher else -1
        front = [
            p for p in sorted(points) if not any(q != p and q[0] <= p[0] and sign * (q[1] - p[1]) >= 0 for q in points)
        ]
        if front:
            axes.plot(*zip(*front, strict=True), color=QUIET, linewidth=0.8, zorder=0)
        axes.set_xlabel(label)
    panels[0].set_ylabel(with_unit(metric))
    figure.legend(handles=legend_of(levels, settings), ncol=4, loc="outside upper center", frameon=False, fontsize=8)
    return figure


def _rows(count: int, each: float = 0.3) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(figsize=(NARROW, 1.1 + each * count), layout="constrained")
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


def _interval(axes: Any, e: Estimate, place: float, colour: str, width: float, line: str = "-") -> None:
    if not math.isnan(e.low):
        axes.plot([e.low, e.high], [place, place], line, color=colour, linewidth=width, solid_capstyle="butt")


def levels_of(cells: Sequence[Cell], factor: str) -> tuple[list[str], list[str]]:
    levels = list(dict.fromkeys(cell.levels[factor] for cell in cells))
    return levels, list(dict.fromkeys(cell.setting(factor) for cell in cells))


def legend_of(levels: Sequence[str], settings: Sequence[str], *, lines: bool = False) -> list[Any]:
    """A mark for each level, with the style of its line where the picture has `lines`, and for each setting."""
    styles: dict[str, Any] = level_lines(levels) if lines else dict.fromkeys(levels, "")
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle=styles[level], label=level)
        for level, colour in level_colours(levels).items()
    ]
    if len(settings) > 1:
        handles += [
            Line2D([], [], color=QUIET, marker=MARKERS[i % len(MARKERS)], linestyle="", label=setting)
            for i, setting in enumerate(settings)
        ]
    return handles


def with_unit(metric: str) -> str:
    """`val_accuracy` -> `validation accuracy in %`."""
    return f"{in_words(metric)} in {metric_of(metric).sign}"


def _on_imagenet(cell: Cell) -> bool:
    data = cell.first.config.data
    return data.name == "image_folder" and data.classes == 1000


def span(counts: Iterable[int]) -> str:
    """`5`, or `3-5` where counts differ."""
    values = np.unique(list(counts))
    return f"{values[0]}" if len(values) == 1 else f"{values[0]}-{values[-1]}"

"""What a mean hides: how much of each class was found, and what the rest was taken for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from metaformer.analysis.cells import Cell
from metaformer.analysis.figures import WIDTH
from metaformer.analysis.text_table import Table

MOST = 20  # classes of which each is named
LOWEST = 5  # of more classes


RECALL = "Of the test images of each class, how many were found, in %; mean over seeds."
IOU = "The intersection over union of each class over all test pixels, in %; mean over seeds."


def class_table(cells: Sequence[Cell]) -> Table:
    """Of each class the share of its test images that were found, or its IoU, over seeds; of many the lowest."""
    names, segments = _classes(cells), bool(cells) and cells[0].first.config.task.segments
    caption = IOU if segments else RECALL
    if not names or len({tuple(_classes([cell])) for cell in cells}) > 1:
        return Table([], [])
    found = {cell.name: _iou(cell) if segments else _recall(cell) for cell in cells}
    if len(names) <= MOST:
        lines = [[cell, *("" if np.isnan(r) else f"{100 * r:.1f}" for r in values)] for cell, values in found.items()]
        return Table(["cell", *names], lines, caption)
    lines = []
    for cell, values in found.items():
        lowest = np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable")[:LOWEST]
        lines.append([cell, ", ".join(f"{names[i]} {100 * values[i]:.1f}" for i in lowest)])
    header = f"the {LOWEST} lowest of {len(names)} classes"
    return Table(["cell", header], lines, caption, words=(header,))


def confusion(cells: Sequence[Cell]) -> Figure | None:
    """A panel for each cell: the share of the images of each class (row) that were taken for each (column)."""
    if not _classes(cells) or len({tuple(_classes([cell])) for cell in cells}) > 1:
        return None
    names = _classes(cells)
    classes, columns = len(names), min(4, len(cells))
    rows = -(-len(cells) // columns)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 1.55 * rows), layout="constrained")  # one: fifty take seconds
    lefts, tops = 1.1 * classes * np.arange(columns), 1.25 * classes * np.arange(rows)
    image: Any = None
    for place, cell in enumerate(cells):
        counts = np.sum([run.confusion for run in cell.runs.values()], axis=0)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        left, top = lefts[place % columns], tops[place // columns]
        where = (left, left + classes, top + classes, top)
        image = axes.imshow(shares, extent=where, vmin=0, vmax=1, cmap="cividis", interpolation="none")
        axes.text(left + classes / 2, top - 0.03 * classes, cell.name, fontsize=7, ha="center", va="bottom")
    axes.set(xlim=(0, lefts[-1] + classes), ylim=(tops[-1] + classes, -0.15 * classes))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    middles = np.arange(classes) + 0.5 if classes <= MOST else np.array([])
    last = lefts[: len(cells) - columns * (rows - 1)]  # in the last row
    axes.set_xticks(np.add.outer(last, middles).ravel(), names[: len(middles)] * len(last), fontsize=5, rotation=90)
    axes.set_yticks(np.add.outer(tops, middles).ravel(), names[: len(middles)] * rows, fontsize=5)
    figure.supylabel("class", fontsize=8)
    figure.supxlabel("taken for", fontsize=8)
    what = "pixels" if cells[0].first.config.task.segments else "images"
    figure.colorbar(image, ax=axes, shrink=0.5, label=f"share of the test {what} of a class, all seeds")
    return figure


def _classes(cells: Sequence[Cell]) -> list[str]:
    return list(cells[0].first.recall) if cells else []


def _recall(cell: Cell) -> np.ndarray:
    """Mean over seeds; NaN where there is no image of a class."""
    values = [[np.nan if r is None else r for r in run.recall.values()] for run in cell.runs.values()]
    return np.asarray(np.mean(values, axis=0))


def _iou(cell: Cell) -> np.ndarray:
    """Mean over seeds; NaN where a class has no pixel."""
    counts = np.array([run.confusion for run in cell.runs.values()], dtype=float)
    found = np.diagonal(counts, axis1=1, axis2=2)
    union = counts.sum(1) + counts.sum(2) - found
    return np.asarray(np.where(union > 0, found / np.maximum(union, 1), np.nan).mean(0))

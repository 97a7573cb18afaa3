"""The pictures of trained mixers. Each function draws one and returns it, as in `metaformer.analysis.figures`."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metaformer.analysis.colours import INK, PAPER, QUIET
from metaformer.analysis.figures import MARKERS, WIDTH, span
from metaformer.analysis.stats import Estimate
from metaformer.probing import kept
from metaformer.probing.tables import Cells, first, losses
from metaformer.runs.finished import finished

COLOURS = "magma"


def mixing(cells: Cells) -> Figure:
    """The mixing matrix of the first block of each stage: a row for each token that is put out."""
    columns = {name: first(seeds).matrices for name, seeds in cells.items()}
    square = all(matrix.shape[0] == matrix.shape[1] for matrices in columns.values() for matrix in matrices)
    figure = _maps(columns, lambda i: f"stage {i + 1}", square)
    figure.supxlabel("across: token put in; down: token put out. Each map to its own largest weight", fontsize=8)
    return figure


def mixing_of(folder: Path) -> dict[str, list[tuple[Figure, str]]]:
    """That picture of a run with its caption, where it was probed with these weights; else nothing."""
    if not (folder / kept.FILE).exists():
        return {}
    run = finished(folder)
    probed = kept.read(folder, kept.key_of(run))
    if probed is None:
        return {}
    drawn = mixing({run.result.choices["mixer"]: {run.config.seed: probed}})
    return {"probe/mixing": [(drawn, "the mixing matrix of the first block of each stage")]}


def fields(cells: Cells) -> Figure:
    """What of an image reaches the token in the middle of each stage's map, and the logits."""
    columns = {name: first(seeds).fields for name, seeds in cells.items()}
    most = max(map(len, columns.values()))
    figure = _maps(columns, lambda i: "logits" if i == most - 1 else f"stage {i + 1}")
    figure.supxlabel("pixels of the image. Each map to its own largest weight", fontsize=8)
    return figure


def _maps(columns: Mapping[str, Sequence[np.ndarray]], title: Callable[[int], str], square: bool = True) -> Figure:
    """A column of maps for each cell, in the square root of what they show, so that what is weak is seen."""
    lines = max(map(len, columns.values()))
    side = min(2.2, (WIDTH - 0.5) / len(columns))
    figure, panels = plt.subplots(
        lines, len(columns), figsize=(WIDTH, 0.6 + (side + 0.05) * lines), layout="constrained", squeeze=False
    )
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    for column, (name, maps) in zip(panels.T, columns.items(), strict=True):
        column[0].set_title(name, fontsize=8)
        for axes, shown in zip(column, maps, strict=False):
            scale = PowerNorm(0.5, 0, float(shown.max()) or 1.0)
            axes.imshow(shown, norm=scale, cmap=COLOURS, aspect="equal" if square else "auto")
    for i, axes in enumerate(panels[:, 0]):
        axes.set_ylabel(title(i), fontsize=8)
    return figure


def surgery(cells: Cells, instead: Sequence[str]) -> Figure:
    """What a stage's mixers are worth: the change in accuracy without them, with the 95% t interval over seeds."""
    stages = max(len(first(seeds).surgery) for seeds in cells.values())
    size = (WIDTH, 0.9 + 0.42 * len(cells))
    figure, panels = plt.subplots(
        1, stages, figsize=size, layout="constrained", sharey=True, sharex=True, squeeze=False
    )
    for i, axes in enumerate(panels[0]):
        axes.axvline(0, color=QUIET, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.set_title(f"stage {i + 1}", fontsize=9)
        for place, seeds in enumerate(cells.values()):
            if i >= len(first(seeds).surgery):
                continue
            for j, kind in enumerate(instead):
                e, height = losses(seeds, i, kind), -place + 0.22 * (len(instead) / 2 - 0.5 - j)
                axes.plot([e.mean], [height], **_marker(j))
                if not math.isnan(e.low):
                    axes.plot([e.low, e.high], [height, height], color=INK, linewidth=1.2)
    panels[0][0].set_yticks([-i for i in range(len(cells))], list(cells))
    handles = [Line2D([], [], label=kind, **_marker(j)) for j, kind in enumerate(instead)]
    figure.legend(handles=handles, ncol=3, loc="outside upper center", frameon=False)
    counts = span(len(seeds) for seeds in cells.values())
    figure.supxlabel(f"change of the validation accuracy in points, mean and 95% t interval, n = {counts}", fontsize=8)
    return figure


def _marker(kind: int) -> dict[str, Any]:
    """By its form, open and closed: colours are those of mixers."""
    return {"color": INK, "marker": MARKERS[kind], "markersize": 5, "markerfacecolor": PAPER if kind % 2 else INK}


def cka(found: Sequence[Mapping[tuple[str, str], Estimate]], names: Sequence[str]) -> Figure:
    """CKA of every two cells at the same seeds, a map for each stage; on the diagonal a cell with its other seeds."""
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    side = WIDTH / 2
    figure, panels = plt.subplots(
        lines, columns, figsize=(side * columns, side * lines), layout="constrained", squeeze=False
    )
    for axes in panels.flat[len(found) :]:
        axes.set_visible(False)
    for i, (axes, pairs) in enumerate(zip(panels.flat, found, strict=False)):
        shown = np.array([[(pairs.get((a, b)) or pairs[b, a]).mean for b in names] for a in names])
        axes.imshow(shown, vmin=0, vmax=1, cmap="viridis")
        axes.grid(visible=False)
        for (y, x), value in np.ndenumerate(shown):
            text = "" if math.isnan(value) else f"{value:.2f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if value < 0.6 else "black")
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names if i % columns == 0 else [""] * len(names), fontsize=8)
        axes.set_title(f"stage {i + 1}", fontsize=9)
    figure.supxlabel("CKA of two mixers at the same seed; on the diagonal, of one mixer at two seeds", fontsize=8)
    return figure

"""The first test images of a study of segmentation, their masks, and what the networks of its cells make of them."""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap, to_hex
from matplotlib.figure import Figure

from metaformer.analysis.captions import PICTURED
from metaformer.analysis.figures import WIDTH
from metaformer.config.schema import COLOURS
from metaformer.config.tasks import IGNORED
from metaformer.runs.answers import Examples, PixelAnswers
from metaformer.runs.launch import Run
from metaformer.runs.result import Result


def predictions(runs: Sequence[Run]) -> Figure | None:
    """A column for each image; rows: the image, its mask, and the first seed of each cell; None of classification.

    Images of several data sets stand below each other, each with the cells that were tested on them; one of other
    classes than the first is left out, for colours mean classes.
    """
    found: dict[str, tuple[Result, Examples]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.result is None or run.cell in found:
            continue
        if isinstance(answers := run.answers(), PixelAnswers) and answers.examples:
            found[run.cell] = run.result, answers.examples
    if not found:
        return None
    names = list(next(iter(found.values()))[0].recall)
    sets: dict[str | None, list[tuple[str, Examples]]] = {}  # by their images
    for cell, (result, examples) in list(found.items())[:PICTURED]:
        if list(result.recall) == names:
            sets.setdefault(result.fingerprint, []).append((cell, examples))
    rows = []
    for own in sets.values():
        rows += [("image", own[0][1].images), ("mask", own[0][1].masks)]
        rows += [(cell, examples.predictions) for cell, examples in own]
    columns = max(len(pictures) for _, pictures in rows)
    figure, panels = plt.subplots(
        len(rows), columns, figsize=(WIDTH, 0.4 + len(rows) * WIDTH / columns), layout="constrained", squeeze=False
    )
    palette = _palette(len(names))
    for (name, pictures), line in zip(rows, panels, strict=True):
        for axes in line[len(pictures) :]:
            axes.set_axis_off()
        for axes, picture in zip(line, pictures, strict=False):
            if name == "image":
                shown = picture if picture.shape[-1] in COLOURS else picture.mean(-1)  # channels that are no colours
                axes.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=255)
            else:
                shown = np.where(picture == IGNORED, len(names), picture)
                axes.imshow(shown, cmap=palette, vmin=0, vmax=len(names), interpolation="none")
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
        line[0].set_ylabel("\n".join(wrap(name.replace("_", "_ "), 16)).replace("_ ", "_"), fontsize=7)
    marks = [plt.Rectangle((0, 0), 1, 1, color=palette(i)) for i in range(len(names))]
    figure.legend(marks, names, loc="outside lower center", ncols=6, fontsize=6, frameon=False)
    return figure


def _palette(classes: int) -> ListedColormap:
    """The first class, which often is the ground, is dark; what has no class is white."""
    rest = classes - 1
    hues = plt.get_cmap("tab10") if rest <= 10 else plt.get_cmap("tab20" if rest <= 20 else "gist_rainbow", rest)
    return ListedColormap(["#20262d", *(to_hex(hues(i)) for i in range(rest)), "#ffffff"])

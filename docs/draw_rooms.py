"""Draw the rooms of the package and the imports between them, as they are now: docs/rooms.svg.

    python docs/draw_rooms.py

The floors are those of the import contract in pyproject.toml. Needs the extra `dev` (import-linter).
"""

import tomllib
from collections import Counter
from pathlib import Path

import grimp
import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT, GAP = 12.0, 1.15, 0.5  # of a floor, of a box, between floors, in inches
matplotlib.use("agg")
matplotlib.rcParams |= {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "rooms"}


def floors() -> list[list[str]]:
    """The rooms of each floor, from the top; the verbs are one room."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    found = [[name.strip().removeprefix("metaformer.") for name in layer.split("|")] for layer in layers]
    return [["verbs"] if "train" in layer else layer for layer in found if layer != ["__main__"]]


def room_of(module: str, rooms: set[str]) -> str:
    """The room of a module, `verbs` for the files at the top."""
    part = [*module.split("."), ""][1]
    return part if part in rooms else "verbs"


def arrows(rooms: set[str]) -> Counter[tuple[str, str]]:
    """How many imports lead from one room to another."""
    graph = grimp.build_graph("metaformer", cache_dir=None)
    pairs = ((m, other) for m in graph.modules for other in graph.find_modules_directly_imported_by(m))
    ends = ((room_of(a, rooms), room_of(b, rooms)) for a, b in pairs if "." in a)
    return Counter((a, b) for a, b in ends if a != b)


def files_of(room: str) -> list[str]:
    """The files of a room with their lines."""
    folder = ROOT / "metaformer" / ("" if room in ("verbs", "cli") else room)
    paths = sorted(folder.glob("*.py") if room in ("verbs", "cli") else folder.rglob("*.py"))
    own = [p for p in paths if p.stem not in ("__init__", "__main__") and (p.stem == "cli") == (room == "cli")]
    return [f"{p.stem} {len(p.read_text().splitlines())}" for p in own]


def draw_box(axes: Axes, room: str, x: float, y: float, width: float) -> None:
    box = FancyBboxPatch((x, y), width, HEIGHT, "round,pad=0.03", facecolor="#f5f7f9", edgecolor="#1f4e79", zorder=2)
    axes.add_patch(box)
    axes.text(x + 0.1, y + HEIGHT - 0.12, room, fontsize=11, weight="bold", va="top", zorder=3)
    words, lines = files_of(room), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 16 * (width - 0.2):
            lines.append("")
        lines[-1] += f"{word}   "
    axes.text(x + 0.1, y + HEIGHT - 0.42, "\n".join(lines), fontsize=6.5, va="top", color="#444444", zorder=3)


def main() -> None:
    layers = floors()
    rooms = {room for layer in layers for room in layer}
    figure, axes = plt.subplots(figsize=(WIDTH, len(layers) * (HEIGHT + GAP)))
    places = {}
    for floor, layer in enumerate(layers):
        width = (WIDTH - 0.3 * (len(layer) + 1)) / len(layer)
        for i, room in enumerate(layer):
            x, y = 0.3 + i * (width + 0.3), -floor * (HEIGHT + GAP)
            draw_box(axes, room, x, y, width)
            places[room] = (x + width / 2, y)
    for (a, b), count in sorted(arrows(rooms).items()):
        (x1, y1), (x2, y2) = places[a], places[b]
        style = {"arrowstyle": "-|>", "mutation_scale": 7, "color": "#0072b2" if y1 > y2 else "#d55e00"}
        bend = "arc3,rad=0.12" if y1 - y2 > HEIGHT + GAP + 0.1 else "arc3,rad=0"
        arrow = FancyArrowPatch((x1, y1), (x2, y2 + HEIGHT), connectionstyle=bend, zorder=1, alpha=0.55, **style)
        arrow.set_linewidth(0.4 + 0.12 * count)
        axes.add_patch(arrow)
    axes.set(xlim=(0, WIDTH), ylim=(-(len(layers) - 1) * (HEIGHT + GAP) - 0.2, HEIGHT + 0.2))
    axes.axis("off")
    figure.savefig(ROOT / "docs" / "rooms.svg", bbox_inches="tight", metadata={"Date": None})
    print("written: docs/rooms.svg")


if __name__ == "__main__":
    main()

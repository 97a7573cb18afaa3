"""What a study found: a table, results.csv and a picture."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metaformer.stats import Estimate, mean_interval, paired_difference

Row = Mapping[str, Any]
CAPTION = "accuracy in %: mean over n seeds ± half of the 95% t interval; differences paired by seed, on the test set"


@dataclass(frozen=True)
class Finding:
    """What the finished runs of one cell say. `difference` is to the reference cell, None for itself or without one."""

    cell: str
    val: Estimate
    test: Estimate
    difference: Estimate | None
    params: int
    macs: int | None
    seconds: float


def findings(rows: Sequence[Row], reference: str) -> list[Finding]:
    """One finding for each cell, in the order of the rows, from rows of results.csv; accuracies in points (percent)."""
    cells = {cell: [row for row in rows if row["cell"] == cell] for cell in dict.fromkeys(row["cell"] for row in rows)}
    found = []
    for cell, runs in cells.items():
        # The cell that differs from this one in nothing but the mixer; in a list of rows, the row of that name.
        twin = " ".join(reference if word == runs[0]["mixer"] else word for word in cell.split(" "))
        other = cells.get(twin if twin != cell else reference) if cell != reference else None
        found.append(
            Finding(
                cell,
                val=mean_interval(list(_by_seed(runs, "val_accuracy").values())),
                test=mean_interval(list(_by_seed(runs, "test_accuracy").values())),
                difference=paired_difference(_by_seed(runs, "test_accuracy"), _by_seed(other, "test_accuracy"))
                if other
                else None,
                params=runs[0]["params"],
                macs=runs[0]["macs"],
                seconds=sum(run["seconds"] for run in runs) / len(runs),
            )
        )
    return found


def _by_seed(runs: Sequence[Row], metric: str) -> dict[int, float]:
    return {run["seed"]: 100 * run[metric] for run in runs}


def summarise(study: Mapping[str, Any], rows: Sequence[Row], console: Console, *, write: bool) -> None:
    """Print the table of a study; with `write` also leave results.csv, table.md and the picture in experiments/NAME."""
    if not rows:
        console.print("no run is finished: nothing to report")
        return
    found = findings(rows, study["reference"])
    header, lines = cells_of(found, study["reference"])
    table = Table(box=SIMPLE_HEAD, caption=CAPTION, caption_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)
    if not write:
        if study["name"]:
            console.print(
                f"not the whole study as it is defined: the files of experiments/{study['name']} stay as they are"
            )
        return
    folder = Path("experiments") / study["name"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "table.md").write_text(markdown(header, lines))
    picture(found, rows, study, folder)
    console.print(f"written: {folder}/results.csv, table.md, accuracy.png, accuracy.svg")


def cells_of(found: Sequence[Finding], reference: str) -> tuple[list[str], list[list[str]]]:
    """The table as text: a header and one line for each finding."""
    header = ["mixer", "n", "val", "test", f"minus {reference}", "params", "MACs", "s/run"]
    lines = []
    for f in found:
        difference = plus_minus(f.difference, "+") if f.difference else ""
        if f.difference and f.difference.n != f.test.n:
            difference += f" (n = {f.difference.n})"
        macs = "uncounted" if f.macs is None else f"{f.macs / 1e6:,.2f}M"
        cost = [f"{f.params:,}", macs, f"{f.seconds:.0f}"]
        lines.append([f.cell, str(f.test.n), plus_minus(f.val), plus_minus(f.test), difference, *cost])
    return header, lines


def plus_minus(estimate: Estimate, sign: str = "") -> str:
    """`76.80 ± 0.41`: a mean and half its interval, which a single seed has not."""
    mean = f"{estimate.mean:{sign}.2f}"
    return mean if math.isnan(estimate.low) else f"{mean} ± {estimate.high - estimate.mean:.2f}"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rules = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rules, *lines]) + "\n"


def picture(found: Sequence[Finding], rows: Sequence[Row], study: Mapping[str, Any], folder: Path) -> None:
    """Test accuracy of each cell: seeds as dots, mean and 95% interval; as PNG and SVG."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "metaformer"  # the same file for the same numbers
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 1.4 + 0.42 * len(found)), layout="constrained")
    for place, f in enumerate(reversed(found)):
        seeds = list(_by_seed([r for r in rows if r["cell"] == f.cell], "test_accuracy").values())
        colour = "#c0392b" if f.cell == study["reference"] else "#1f4e79"
        axes.plot(seeds, [place - 0.2] * len(seeds), "o", color=colour, alpha=0.3, markersize=5, markeredgewidth=0)
        if not math.isnan(f.test.low):
            axes.plot([f.test.low, f.test.high], [place, place], color=colour, linewidth=2)
        axes.plot([f.test.mean], [place], "D", color=colour, markersize=6)
    axes.set_yticks(range(len(found)), [f.cell for f in reversed(found)])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    counts = sorted({f.test.n for f in found})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    axes.set_xlabel(f"test accuracy in %: mean and 95% t interval over n = {n} seeds; dots are seeds")
    axes.set_title(study["question"] or study["name"], loc="left", fontsize=10)
    for kind in ("png", "svg"):
        figure.savefig(folder / f"accuracy.{kind}", dpi=160, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)


def print_run(status: str, folder: str, result: Mapping[str, Any], console: Console) -> None:
    """The result of one run, in two lines."""
    metrics = result["metrics"]
    macs = "MACs uncounted" if result["macs"] is None else f"{result['macs']:,} MACs"
    parts = [
        f"{split} {metrics[f'{split}_accuracy']:.2%}"
        for split in ("train", "val", "test")
        if f"{split}_accuracy" in metrics
    ]
    console.print(
        f"[bold]{status}[/] {', '.join(parts)}; {result['params']:,} parameters, {macs}, {result['seconds']:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(folder, highlight=False, soft_wrap=True)

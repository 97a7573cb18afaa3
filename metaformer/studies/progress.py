"""How far a study is, read from the files of its runs: a table on a terminal, a line for each run elsewhere."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from metaformer.config.metrics import in_words, metric_of, selecting
from metaformer.runs.curve_tail import last_row
from metaformer.studies.points import Point


@contextmanager
def follow(points: Sequence[Point], pending: Sequence[Point], console: Console, show: bool) -> Iterator[None]:
    """Show how far a study is, read from the runs' own files: a table on a terminal, a line for each run elsewhere."""
    stop = threading.Event()
    watch = _live if console.is_terminal else _lines
    thread = threading.Thread(target=watch, args=(points, pending, console, stop), daemon=True)
    if show:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if show:
            thread.join()


def _ended(point: Point, since: float = 0.0) -> str | None:
    """`result` or `failed` where the run has ended so after `since` (seconds of the clock)."""
    for status in ("result", "failed"):
        path = point.run.folder / f"{status}.json"
        if path.exists() and path.stat().st_mtime >= since:
            return status
    return None


def _lines(points: Sequence[Point], pending: Sequence[Point], console: Console, stop: threading.Event) -> None:
    started = time.time()
    told: set[Path] = set()
    over = False
    while not over:
        over = stop.wait(1.0)
        for point in pending:
            status = _ended(point, since=started)
            if status is not None and point.run.folder not in told:
                told.add(point.run.folder)
                seen = last_row(point.run.folder) if status == "result" else None
                words = _told(point, seen) if seen else "failed"
                count = len(points) - len(pending) + len(told)
                line = f"[{count}/{len(points)}] {point.cell} seed {point.config.seed}: {words}"
                console.print(f"{line}, {time.time() - started:.0f} s", markup=False, highlight=False)


def _told(point: Point, row: Mapping[str, str]) -> str:
    """The study's metric of a run on validation images, in its last epoch."""
    selected = selecting(point.config.study.analysis.metric)
    return f"{in_words(selected)} {metric_of(selected).told(float(row[selected]))}"


def _live(points: Sequence[Point], pending: Sequence[Point], console: Console, stop: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    progress = Progress(*columns, console=console)
    task = progress.add_task("runs", total=len(points), left="")
    started = time.time()
    begun = _epochs(pending)
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        over = False
        while not over:
            over = stop.wait(0.5)
            done, total = _epochs(pending), sum(p.config.recipe.all_epochs for p in pending)
            left = (time.time() - started) * (total - done) / (done - begun) if done > begun else None
            finished = len(points) - len(pending) + sum(1 for p in pending if _ended(p, since=started))
            progress.update(task, completed=finished, left=f"about {left / 60:.0f} min left" if left else "")
            grid = Table.grid()
            grid.add_row(progress)
            grid.add_row(_so_far(points))
            live.update(grid)


def _epochs(points: Sequence[Point]) -> int:
    return sum(int(row["epoch"]) for point in points if (row := last_row(point.run.folder)))


def _so_far(points: Sequence[Point]) -> Table:
    table = Table(box=None, pad_edge=False)
    selected = selecting(points[0].config.study.analysis.metric)
    for name in ("cell", "finished", "training", f"{in_words(selected)} so far"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for cell in dict.fromkeys(p.cell for p in points):
        runs = [p for p in points if p.cell == cell]
        rows = {p.run.folder: row for p in runs if (row := last_row(p.run.folder))}
        finished = sum(1 for p in runs if _ended(p) == "result")
        training = [
            f"seed {p.config.seed}: epoch {rows[p.run.folder]['epoch']}/{p.config.recipe.all_epochs}"
            for p in runs
            if p.run.folder in rows and not _ended(p)
        ]
        values = [float(row[selected]) for row in rows.values() if row[selected]]
        mean = metric_of(selected).told(sum(values) / len(values)) if values else ""
        table.add_row(escape(cell), f"{finished}/{len(runs)}", ", ".join(training), mean)
    return table

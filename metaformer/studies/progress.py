"""How far a study is, read from the files of its runs: a table on a terminal, a line for each run elsewhere."""

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from metaformer.config.metrics import in_words, metric_of, selecting
from metaformer.runs.curve_tail import last_row
from metaformer.runs.progress_file import told
from metaformer.studies.points import Point
from metaformer.system.files import written_since

ENDED = ("finished", "failed")


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


def _state(point: Point, since: float) -> str:
    """What a run does, or how it ended; what its files said before `since` (seconds of the clock) does not count."""
    for name, state in (("result", "finished"), ("failed", "failed")):
        if written_since(point.run.folder / f"{name}.json", since):
            return state
    now = told(point.run.folder, since)
    begun = written_since(point.run.folder / "config.yaml", since)
    return now.state if now else "starting" if begun else "waiting"


def _lines(points: Sequence[Point], pending: Sequence[Point], console: Console, stop: threading.Event) -> None:
    started = time.time()
    ended: set[Path] = set()
    over = False
    while not over:
        over = stop.wait(1.0)
        for point in pending:
            status = _state(point, started)
            if status in ENDED and point.run.folder not in ended:
                ended.add(point.run.folder)
                seen = last_row(point.run.folder) if status == "finished" else None
                words = (seen and _metric(point, seen)) or status
                count = len(points) - len(pending) + len(ended)
                line = f"[{count}/{len(points)}] {point.cell} seed {point.config.seed}: {words}"
                console.print(f"{line}, after {time.time() - started:.0f} s", markup=False, highlight=False)


def _metric(point: Point, row: Mapping[str, str]) -> str:
    """The study's metric of a run on validation images, in its last epoch; nothing where that was not validated."""
    selected = selecting(point.config.study.analysis.metric)
    return row[selected] and f"{in_words(selected)} {metric_of(selected).told(float(row[selected]))}"


def _live(points: Sequence[Point], pending: Sequence[Point], console: Console, stop: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    progress = Progress(*columns, console=console)
    task = progress.add_task("runs", total=len(points), words="")
    started = time.time()
    begun, total = sum(_done(p, "waiting", started) for p in pending), sum(_planned(p)[1] for p in pending)
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        over = False
        while not over:
            over = stop.wait(0.5)
            states = {p.run.folder: _state(p, started) for p in pending}
            done = sum(_done(p, states[p.run.folder], started) for p in pending)
            left = (time.time() - started) * (total - done) / (done - begun) if done > begun else None
            ended = len(points) - len(pending) + sum(state in ENDED for state in states.values())
            words = [*_counts(states.values()), *([f"about {_time(left)} left"] if left else [])]
            progress.update(task, completed=ended, words=", ".join(words))
            live.update(Group(progress, *_at_work(pending, states), _so_far(points, states)))


def _counts(states: Collection[str]) -> list[str]:
    names = {"waiting": "waiting", "failed": "failed", "finished": "finished"}
    count = Counter(names.get(state, "at work") for state in states)
    if set(count) == {"waiting"}:
        return [f"{count['waiting']} waiting, workers are starting"]
    return [f"{count[name]} {name}" for name in ("at work", "waiting", "failed") if count[name]]


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _planned(point: Point) -> tuple[str, int]:
    """What a run is counted in, a column of its metrics.csv, and how many."""
    recipe = point.config.recipe
    return ("epoch", recipe.all_epochs) if recipe.steps is None else ("step", recipe.steps)


def _done(point: Point, state: str, since: float) -> float:
    """How much is behind a run, with parts of epochs; a run that has ended has nothing before it."""
    unit, planned = _planned(point)
    if state in ENDED:
        return planned
    if (now := told(point.run.folder, since)) and now.steps:
        return planned * now.step / now.steps
    row = last_row(point.run.folder)
    return int(row[unit]) if row else 0


def _at_work(points: Sequence[Point], states: Mapping[Path, str]) -> list[Table]:
    """A table with a line for each run that a worker has, or none."""
    table = Table(box=None, pad_edge=False)
    for name in ("at work", "", "epoch", "step", "learning rate", "images/s", "left"):
        table.add_column(name, justify="right" if name else "left")
    table.columns[0].justify = "left"
    for point in points:
        state, now = states[point.run.folder], told(point.run.folder)
        if state in (*ENDED, "waiting"):
            continue
        words = [f"{escape(point.cell)} seed {point.config.seed}", state]
        if now and state != "starting":  # else it is of an earlier start
            words += [f"{now.epoch}/{now.epochs}", f"{now.step:,}/{now.steps:,}", f"{now.lr:.2e}"]
            if speed := now.images_per_second:
                left = (now.steps - now.step) * point.config.recipe.batch / speed
                words += [f"{speed:,.0f}", _time(left)]
        table.add_row(*words)
    return [table] if table.row_count else []


def _so_far(points: Sequence[Point], states: Mapping[Path, str]) -> Table:
    """A line for each cell; a run without a state was finished before."""
    table = Table(box=None, pad_edge=False)
    selected = selecting(points[0].config.study.analysis.metric)
    for name in ("cell", "finished", "failed", f"{in_words(selected)} so far"):
        table.add_column(name, justify="left" if name == "cell" else "right")
    for cell in dict.fromkeys(p.cell for p in points):
        runs = [p for p in points if p.cell == cell]
        count = Counter(states.get(p.run.folder, "finished") for p in runs)
        rows = [row for p in runs if (row := last_row(p.run.folder))]
        values = [float(row[selected]) for row in rows if row[selected]]
        mean = metric_of(selected).told(sum(values) / len(values)) if values else ""
        table.add_row(escape(cell), f"{count['finished']}/{len(runs)}", str(count["failed"] or ""), mean)
    return table

import os
import re
import threading
import time
from io import StringIO

import pytest
from rich.console import Console, Group

from metaformer.runs import progress_file
from metaformer.runs.progress_file import Progress
from metaformer.runs.result import add_to_curve, columns_of, write_curve
from metaformer.studies import progress
from metaformer.studies.points import expand, unread

WORK = Progress("training", 3, 4, 50, 200, 1e-3, 1600.0)


@pytest.fixture
def runs():
    """Four runs of two cells, of 4 epochs and batches of 16."""
    words = ("data=digits", "mixer=pooling,identity", "seed=0,1", "recipe.epochs=4", "recipe.batch=16")
    points = expand(words, unread)
    for point in points:
        point.run.folder.mkdir(parents=True)
    return points


def shown(points, pending, since):
    states = {p.run.folder: progress._state(p, since) for p in pending}
    console = Console(width=120, record=True, file=StringIO())
    console.print(Group(*progress._at_work(pending, states), progress._so_far(points, states)))
    return [line.split() for line in console.export_text().splitlines()], progress._counts(states.values())


def test_the_table_says_what_every_worker_does(runs):
    since = time.time() - 1
    assert shown(runs, runs, since)[1] == ["4 waiting, workers are starting"]
    finished, failed, working, starting = (p.run.folder for p in runs)
    write_curve(finished, [], columns_of("classification"))
    add_to_curve(finished, {"epoch": 4, "val_accuracy": 0.5}, columns_of("classification"))
    (finished / "result.json").touch()
    (failed / "failed.json").touch()
    progress_file.tell(working, WORK)
    (starting / "config.yaml").touch()
    lines, counts = shown(runs, runs, since)
    lines = [" ".join(line) for line in lines]
    assert counts == ["2 at work", "1 failed"]
    assert "identity seed 0 training 3/4 50/200 1.00e-03 1,600 0:00:02" in lines  # 150 x 16 images / 1,600: 1.5
    assert "identity seed 1 starting" in lines
    assert "pooling 1/2 1 50.00%" in lines
    assert "identity 0/2" in lines


def test_a_run_whose_last_epoch_was_not_validated_is_finished(runs):
    """As where a callback has stopped it."""
    folder, stop, text = runs[0].run.folder, threading.Event(), StringIO()
    write_curve(folder, [], columns_of("classification"))
    add_to_curve(folder, {"epoch": 1, "train_loss": 0.5}, columns_of("classification"))
    (folder / "result.json").touch()
    os.utime(folder / "result.json", (time.time() + 60,) * 2)
    stop.set()
    progress._lines(runs, runs[:1], Console(file=text, width=120), stop)
    assert "pooling seed 0: finished, " in text.getvalue()


def test_a_run_without_a_readable_curve_is_still_finished(runs):
    folder, stop, text = runs[0].run.folder, threading.Event(), StringIO()
    (folder / "result.json").touch()
    os.utime(folder / "result.json", (time.time() + 60,) * 2)  # after the start of what looks at it
    stop.set()
    progress._lines(runs, runs[:1], Console(file=text, width=120), stop)
    assert "pooling seed 0: finished, after 0 s" in text.getvalue()


def test_what_an_earlier_start_left_does_not_count(runs):
    for point, name in zip(runs, ("result.json", "failed.json", "progress.json", "config.yaml"), strict=True):
        progress_file.tell(point.run.folder, WORK)
        (point.run.folder / "progress.json").rename(point.run.folder / name)
        os.utime(point.run.folder / name, (1, 1))
    assert shown(runs, runs, time.time() - 1)[1] == ["4 waiting, workers are starting"]


def test_parts_of_epochs_count_for_the_time_left(runs):
    point = runs[0]
    assert progress._done(point, "waiting", 0.0) == 0
    progress_file.tell(point.run.folder, WORK)
    assert progress._done(point, "training", 0.0) == 1.0  # a quarter of four
    assert progress._done(point, "failed", 0.0) == 4


def test_half_a_file_or_a_foreign_one_is_none(tmp_path):
    assert progress_file.told(tmp_path) is None
    for content in ("{", "[]", '{"state": "training"}'):
        (tmp_path / "progress.json").write_text(content)
        assert progress_file.told(tmp_path) is None


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    progress_file.tell(tmp_path / "gone", WORK)
    progress_file.remove(tmp_path / "gone")


def test_a_terminal_shows_the_table_until_all_is_over(runs):
    text, stop = StringIO(), threading.Event()
    (runs[0].run.folder / "result.json").touch()
    os.utime(runs[0].run.folder / "result.json", (time.time() + 60,) * 2)  # after the start of what looks at it
    stop.set()
    progress._live(runs, runs, Console(file=text, width=140, force_terminal=True), stop)
    told = " ".join(re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text.getvalue()).split())
    for words in ("1/4", "3 waiting", "validation accuracy so far", "pooling 1/2", "identity 0/2"):
        assert words in told, told

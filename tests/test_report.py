import csv

import pytest
from rich.console import Console

from metaformer import report


def rows(*cells: tuple[str, str, list[float]]) -> list[dict]:
    return [
        {"cell": cell, "mixer": mixer, "seed": seed, "val_accuracy": accuracy, "test_accuracy": accuracy,
         "params": 1000, "macs": 2_000_000, "seconds": 10.0}
        for cell, mixer, accuracies in cells
        for seed, accuracy in enumerate(accuracies)
    ]  # fmt: skip


STUDY = {"name": "mine", "question": "Which?", "reference": "pooling"}


def test_findings():
    pooling, attention = report.findings(
        rows(("pooling", "pooling", [0.7, 0.8]), ("attention", "attention", [0.6, 0.6])), "pooling"
    )
    assert pooling.difference is None
    assert (pooling.test.mean, pooling.test.n) == (pytest.approx(75), 2)
    assert attention.difference.mean == pytest.approx(-15)


def test_the_reference_is_the_cell_that_differs_in_the_mixer_alone():
    data = rows(
        ("pooling lr=1", "pooling", [0.7, 0.8]),
        ("identity lr=1", "identity", [0.6, 0.6]),
        ("pooling lr=2", "pooling", [0.5, 0.5]),
        ("identity lr=2", "identity", [0.6, 0.6]),
        ("identity lr=3", "identity", [0.6, 0.6]),
    )
    found = {f.cell: f.difference for f in report.findings(data, "pooling")}
    assert found["identity lr=1"].mean == pytest.approx(-15)
    assert found["identity lr=2"].mean == pytest.approx(10)
    assert found["identity lr=3"] is None


def test_rows_of_a_list_are_compared_with_the_row_of_the_references_name():
    data = rows(("pooling", "pooling", [0.7, 0.8]), ("no_norm", "pooling", [0.6, 0.6]), ("ppaa", "ppaa", [0.9, 0.9]))
    differences = {f.cell: f.difference and f.difference.mean for f in report.findings(data, "pooling")}
    assert differences == {"pooling": None, "no_norm": pytest.approx(-15), "ppaa": pytest.approx(15)}


def test_unequal_seeds_use_the_common_ones():
    found = report.findings(
        rows(("pooling", "pooling", [0.7, 0.8, 0.9]), ("identity", "identity", [0.7, 0.7])), "pooling"
    )
    assert (found[1].difference.n, found[1].difference.mean) == (2, pytest.approx(-5))
    found = report.findings(rows(("pooling", "pooling", [0.7]), ("identity", "identity", [0.6, 0.6])), "pooling")
    assert report.cells_of(found, "pooling")[1][1][4] == "-10.00 (n = 1)"


def test_files_of_a_study(tmp_path):
    data = rows(("pooling", "pooling", [0.7, 0.8]), ("identity", "identity", [0.6]))
    console = Console(record=True, width=120)
    report.summarise(STUDY, data, console, write=True)
    folder = tmp_path / "experiments" / "mine"
    with (folder / "results.csv").open() as file:
        assert [row["test_accuracy"] for row in csv.DictReader(file)] == ["0.7", "0.8", "0.6"]
    assert (
        (folder / "table.md")
        .read_text()
        .splitlines()[2]
        .startswith("| pooling | 2 | 75.00 ± 63.53 | 75.00 ± 63.53 |  |")
    )
    assert "| identity | 1 | 60.00 | 60.00 | -10.00 |" in (folder / "table.md").read_text()
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    first = (folder / "accuracy.svg").read_text()
    assert "Which?" in first or "<svg" in first
    report.summarise(STUDY, data, console, write=True)
    assert (folder / "accuracy.svg").read_text() == first
    assert "written: experiments/mine/results.csv" in console.export_text()


def test_a_narrowed_study_leaves_the_files(tmp_path):
    console = Console(record=True, width=120)
    report.summarise(STUDY, rows(("pooling", "pooling", [0.7])), console, write=False)
    assert "stay as they are" in console.export_text()
    assert not (tmp_path / "experiments").exists()


def test_nothing_finished():
    console = Console(record=True)
    report.summarise(STUDY, [], console, write=True)
    assert "nothing to report" in console.export_text()

import os
from pathlib import Path

from metaformer.runs.curve_tail import last_row
from metaformer.runs.result import add_to_curve, columns_of, write_curve


def row(epoch: int) -> dict[str, object]:
    return {"epoch": epoch, "val_accuracy": epoch / 10, "seconds": 1.0}


def test_only_what_was_added_is_read():
    folder, file = Path("run"), Path("run/metrics.csv")
    assert last_row(folder) is None
    write_curve(folder, [], columns_of("classification"))
    assert last_row(folder) is None
    add_to_curve(folder, row(1), columns_of("classification"))
    assert last_row(folder)["epoch"] == "1"
    read = file.stat().st_size
    with file.open("r+b") as spoilt:
        spoilt.write(b"?" * read)  # in its place: it is not read again
    add_to_curve(folder, row(2), columns_of("classification"))
    assert (last_row(folder)["epoch"], last_row(folder)["val_accuracy"]) == ("2", "0.2")
    with file.open("ab") as half:
        half.write(b"3,")
    assert last_row(folder)["epoch"] == "2"  # a row that is not whole yet


def test_a_curve_that_is_written_anew_is_read_anew():
    folder = Path("run")
    write_curve(folder, [row(1), row(2), row(3)], columns_of("classification"))
    assert last_row(folder)["epoch"] == "3"
    write_curve(folder, [row(1), row(2)], columns_of("classification"))
    assert last_row(folder)["epoch"] == "2"
    write_curve(folder, [row(1), row(2), row(4)], columns_of("classification"))
    assert last_row(folder)["epoch"] == "4"
    os.truncate(folder / "metrics.csv", 0)
    assert last_row(folder) is None

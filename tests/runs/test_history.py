"""What a run has said of its steps and epochs, as wandb gets it from the files."""

import pytest

from metaformer.runs.result import add_step, add_to_curve, columns_of, history, read_steps, write_curve, write_steps

COLUMNS = columns_of("classification")


def test_steps_and_epochs_are_in_their_order_and_what_a_kill_has_cut_is_left_out(tmp_path):
    with pytest.raises(FileNotFoundError):  # a run has a curve from its first step
        history(tmp_path)
    write_curve(tmp_path, [], COLUMNS)
    assert history(tmp_path) == []
    write_steps(tmp_path, [])
    for step in (4, 8, 12):
        add_step(tmp_path, {"step": step, "loss": 1 / step, "lr": 0.1, "grad_norm": 2.0, "images_per_second": 9.0})
    add_to_curve(tmp_path, {"epoch": 1, "step": 8, "lr": 0.1, "val_loss": 0.5, "seconds": 1.5}, COLUMNS)
    told = {"step/lr": 0.1, "step/grad_norm": 2.0, "step/images_per_second": 9.0}
    whole = [
        (4, {"step/loss": 0.25, **told}),
        (8, {"step/loss": 0.125, **told}),
        (8, {"epoch": 1.0, "step": 8.0, "lr": 0.1, "val_loss": 0.5, "seconds": 1.5}),
        (12, {"step/loss": 1 / 12, **told}),
    ]
    assert history(tmp_path) == whole
    assert history(tmp_path, until=8) == whole[:3]
    for name in ("steps.csv", "metrics.csv"):
        with (tmp_path / name).open("a") as file:
            file.write("1")  # of step 16, and of an epoch from 10 on
    assert history(tmp_path) == whole
    assert [row["step"] for row in read_steps(tmp_path, until=11)] == ["4", "8"]

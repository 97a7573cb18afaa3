"""The study of the paper's Table 5: its rows, their costs, and that each of them trains."""

import numpy as np
import pytest
from conftest import compose, repository
from trained import go

from metaformer.studies.cell_cost import cost_of
from metaformer.studies.points import expand

ROWS = sorted(path.stem for path in (repository() / "experiments" / "paper_table5").glob("*.yaml"))


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_table_5_are_the_papers(row):
    config = compose("experiments=paper_table5", f"+experiments/paper_table5={row}")
    cost, paper = cost_of(config), config.reference
    assert round(cost.trainable / 1e6, 1) == paper.params
    # The paper's counter has pooling for nothing; here it costs an addition for each element of its window.
    assert cost.macs / 1e9 == pytest.approx(paper.macs, abs=0.1)
    exact = {
        "random": 33_048_778, "depthwise": 11_948_456, "no_norm": 11_900_840, "no_channel_mlp": 2_451_368,
        "pppa": 14_038_440, "ppaa": 16_535_592, "pppf": 11_919_978, "ppff": 12_150_474,
    }  # fmt: skip
    assert cost.params == exact.get(row, 11_915_176)


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_table_5_train_at_small_scale(row):
    small = ("model.depths=[1,1,1,1]", "model.dims=[32,32,64,64]", "recipe=short")
    result = go(
        "recipe.epochs=1", "experiments=paper_table5", f"+experiments/paper_table5={row}", *small, "data.classes=null"
    ).result
    assert np.isfinite(result.metrics["train_loss"])


def test_the_study_has_every_row_once():
    planned = expand(["experiments=paper_table5"])
    assert [p.cell for p in planned] == [p.cell for p in planned if p.cell in ROWS]
    assert sorted(p.cell for p in planned) == ROWS
    assert len({p.run.cell_id for p in planned}) == len(ROWS) == 18

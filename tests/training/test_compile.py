"""With torch.compile the same run comes out, up to rounding, and its weights have the same names."""

import pytest
from trained import go, weights

pytestmark = pytest.mark.compile


@pytest.mark.parametrize("mixer", ["pooling", "attention"])
def test_a_compiled_run_is_the_run(mixer):
    options = (f"mixer={mixer}", "recipe.epochs=1")
    plain, compiled = go(*options), go(*options, "runtime.compile=true", "runtime.runs=compiled")
    first, second = weights(plain.folder), weights(compiled.folder)
    assert first.keys() == second.keys()
    assert max(float((first[key] - second[key]).abs().max()) for key in first) < 3e-3
    a, b = (run.result.metrics["val_loss"] for run in (plain, compiled))
    assert a == pytest.approx(b, abs=1e-3)

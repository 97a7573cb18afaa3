"""Where a run stands in its epoch: the one file that looks into Lightning's loops.

tests/data/test_lightning_progress.py tells when they change.
"""

from typing import Any

import lightning as L


def done_batches(trainer: L.Trainer) -> int:
    """How many batches of this epoch are behind a run that begins or goes on; at the end of an epoch none."""
    module: Any = trainer.datamodule  # type: ignore[attr-defined]
    in_all = len(module.data.train) // module.recipe.batch * trainer.accumulate_grad_batches
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready % in_all)

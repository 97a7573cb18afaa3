"""Where a run stands in its epoch: the one file that looks into Lightning's loops.

tests/data/test_lightning_progress.py tells when they change.
"""

import math
from typing import Any

import lightning as L


def done_batches(trainer: L.Trainer) -> int:
    """How many batches of this epoch are behind a run that begins or goes on; at the end of an epoch none."""
    ready, in_all = trainer.fit_loop.epoch_loop.batch_progress.current.ready, trainer.num_training_batches
    return int(ready % in_all) if math.isfinite(in_all) and in_all else int(ready)


def asks_every_epoch(trainer: Any) -> bool:
    """Whether a Trainer asks for new training batches at every epoch, if it has more than one."""
    return bool(trainer.max_epochs == 1 or trainer.reload_dataloaders_every_n_epochs == 1)

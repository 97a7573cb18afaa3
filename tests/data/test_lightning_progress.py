"""What is used of Lightning's loops: these tests fail loudly when Lightning changes."""

import lightning as L
from conftest import compose
from torch import nn

from metaformer.data.images import load
from metaformer.data.lightning_progress import done_batches
from metaformer.data.module import ImageData
from metaformer.tasks.classification import Classifier


class Watch(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, module):
        self.seen.append(done_batches(trainer))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(done_batches(trainer))

    def on_train_epoch_end(self, trainer, module):
        self.seen.append(done_batches(trainer))


def test_batches_are_counted_from_the_start_of_each_epoch():
    config = compose("data=digits", "recipe.batch=500", "recipe.warmup_epochs=0")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    watch = Watch()
    trainer = L.Trainer(
        max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[watch],
        enable_checkpointing=False, accelerator="cpu", reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Classifier(net, config.recipe, classes=10, seed=0), ImageData(load(config.data), config.recipe, 0))
    # Two batches an epoch: a batch that has begun counts, and at the end of an epoch nothing is left behind.
    assert watch.seen == [0, 1, 0, 0, 1, 0, 0]

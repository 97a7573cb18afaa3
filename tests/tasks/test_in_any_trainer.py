"""The task module as a library: in an ordinary Trainer, with an ordinary DataLoader."""

import lightning as L
import pytest
import torch
from conftest import compose
from torch.utils.data import DataLoader, TensorDataset

import metaformer
from metaformer.data.images import load
from metaformer.data.module import ImageData
from metaformer.system.errors import ConfigError
from metaformer.tasks.classification import Classifier

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def net(channels: int = 3, classes: int = 4) -> torch.nn.Module:
    return metaformer.MetaFormer("pooling", depths=[1, 1], dims=[8, 16], in_chans=channels, num_classes=classes)


def test_fit_test_and_predict_with_a_loader_of_ones_own():
    torch.manual_seed(0)
    images, labels = torch.randn(48, 3, 32, 32), torch.arange(48) % 4
    loader = DataLoader(TensorDataset(images, labels), 16)
    module = Classifier(net(), classes=4)  # with the default recipe
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", **QUIET)
    trainer.fit(module, loader, loader)
    assert {"train_loss", "val_accuracy"} <= trainer.callback_metrics.keys()
    measured = trainer.test(module, loader, verbose=False)[0]["test_accuracy"]
    module.eval()
    with torch.no_grad():
        logits = module(images)
    assert measured == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    batches = trainer.predict(module, DataLoader(images, 16))
    torch.testing.assert_close(torch.cat(batches), logits.softmax(1))


def test_image_data_refuses_a_trainer_that_keeps_its_batches():
    """They would be the same in every epoch."""
    config = compose("data=digits")
    images = load(config.data)
    module = Classifier(net(1, 10), config.recipe, classes=10)
    data = ImageData(images, config.recipe, seed=0)
    with pytest.raises(ConfigError, match="reload_dataloaders_every_n_epochs=1"):
        L.Trainer(max_epochs=2, accelerator="cpu", **QUIET).fit(module, data)
    drawn: list[torch.Tensor] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0:
                drawn.append(batch[1])

    options = {**QUIET, "callbacks": [Watch()], "limit_train_batches": 2, "limit_val_batches": 1}
    L.Trainer(max_epochs=2, accelerator="cpu", reload_dataloaders_every_n_epochs=1, **options).fit(module, data)
    assert not torch.equal(*drawn)

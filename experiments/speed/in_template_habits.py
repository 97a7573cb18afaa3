"""One run as it would be written with lightning-hydra-template: what `study.py` compares with.

    python experiments/speed/in_template_habits.py MIXER SEED IMAGES EPOCHS FOLDER

The network, its first weights, the images and the recipe's numbers are those of the bench. The rest is as in that
template: PIL transforms in a DataLoader of the main process, NCHW, metrics of torchmetrics that are logged at every
step, the Trainer with its default checkpoints, CSV log and the test of the best checkpoint.
"""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import Accuracy
from torchvision import transforms

from metaformer.config.compose import compose
from metaformer.data.images import Images, load
from metaformer.data.splits import Split
from metaformer.models.build import build


class PILImages(Dataset):
    def __init__(self, split: Split, transform: Any) -> None:
        pixels = split.pixels[split.places(torch.arange(len(split)))]
        self.images = [transforms.functional.to_pil_image(image.squeeze(-1).numpy()) for image in pixels]
        self.labels, self.transform = split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


class Data(L.LightningDataModule):
    def __init__(self, images: Images, batch: int) -> None:
        super().__init__()
        steps = [transforms.ToTensor(), transforms.Normalize(images.mean / 255, images.std / 255)]
        transform = transforms.Compose(steps)
        self.sets = {name: PILImages(split, transform) for name, split in images.splits().items()}
        self.batch = batch

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.sets["train"], batch_size=self.batch, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.sets["val"], batch_size=self.batch)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.sets["test"], batch_size=self.batch)


class LitModule(L.LightningModule):
    def __init__(self, net: torch.nn.Module, classes: int, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net"], logger=False)
        self.net, self.criterion = net, torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        for split in ("train", "val", "test"):
            setattr(self, f"{split}_acc", Accuracy(task="multiclass", num_classes=classes))
            setattr(self, f"{split}_loss", MeanMetric())
        self.val_acc_best = MaxMetric()

    def model_step(self, batch: Any, split: str) -> torch.Tensor:
        images, labels = batch
        logits = self.net(images)
        loss = self.criterion(logits, labels)
        for name, values in (("loss", (loss,)), ("acc", (logits.argmax(1), labels))):
            metric = getattr(self, f"{split}_{name}")
            metric(*values)
            self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.model_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.model_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True, prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.model_step(batch, "test")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams["lr"], weight_decay=self.hparams["weight_decay"])
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


def main(mixer: str, seed: int, train: int, epochs: int, folder: Path) -> None:
    words = [f"mixer={mixer}", f"seed={seed}", f"data.train={train}", f"recipe.epochs={epochs}", "model.mlp_ratio=1"]
    config = compose(words)
    L.seed_everything(seed, workers=True)
    images = load(config.data)
    classes = len(images.classes)
    net = build(config.model, config.mixer, seed, shape=images.shape, classes=classes)
    module = LitModule(net, classes, config.recipe.lr, config.recipe.weight_decay)
    here = folder / f"{mixer}-{seed}"
    best = ModelCheckpoint(here / "checkpoints", monitor="val/acc", mode="max", save_last=True)
    trainer = L.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        min_epochs=1,
        max_epochs=epochs,
        default_root_dir=here,
        callbacks=[best, EarlyStopping("val/acc", mode="max", patience=100)],
        logger=CSVLogger(here),
        enable_model_summary=False,
    )
    data = Data(images, config.recipe.batch)
    trainer.fit(module, data)
    trainer.test(module, data, ckpt_path=best.best_model_path, weights_only=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))

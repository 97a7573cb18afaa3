"""What the Trainer, the callbacks and the metrics of the bench cost beside the same steps in a bare loop.

Between them stands Lightning's own share: its Trainer with nothing but those steps.

    python experiments/speed/overhead.py
    python experiments/speed/overhead.py --rounds 1 --steps 8

The run is the quickstart's, with one thread: its network, batches, optimizer and schedule. The bare loop has nothing
else; it counts neither loss nor accuracy. All end with the same weights, bit for bit, or this script fails.
"""

import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from rounds import CLOCKS, Row, heading, in_turns, keep, options
from torch import Tensor, nn

from metaformer.config.compose import compose
from metaformer.config.schema import Config, Recipe
from metaformer.data.batches import Batch
from metaformer.data.images import Images, load
from metaformer.data.module import ImageData
from metaformer.models.build import build, ready
from metaformer.tasks.classification import Classifier
from metaformer.tasks.optimization import make_optimizer, make_scheduler
from metaformer.training.callbacks import callbacks_of
from metaformer.training.curve_file import CurveFile
from metaformer.training.trainer import fitting_trainer


class Watch(L.Callback):
    """Measures the steps of the first epoch, and the epoch with its validation-free end: curve and checkpoint."""

    def __init__(self, clock: str) -> None:
        self.now = CLOCKS[clock]

    def on_train_epoch_start(self, *_: object) -> None:
        self.started = self.now()

    def on_train_batch_end(self, *_: object) -> None:
        self.steps = self.now() - self.started

    def on_train_end(self, *_: object) -> None:
        self.epoch = self.now() - self.started


class Plain(L.LightningModule):
    """The steps of the bare loop, and nothing else, as Lightning asks for them."""

    def __init__(self, net: nn.Module, recipe: Recipe, steps: int) -> None:
        super().__init__()
        self.net, self.recipe, self.steps = net, recipe, steps

    def training_step(self, batch: Batch) -> Tensor:
        return loss_of(self.net, batch, self.recipe)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.net, self.recipe, on_gpu=False)
        scheduler = make_scheduler(optimizer, self.recipe, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(self.global_step)


def loss_of(net: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
    images = batch[0].contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
        return F.cross_entropy(net(images).float(), batch[1], label_smoothing=recipe.label_smoothing)


class Quickstart:
    """The run, without validation, in three ways."""

    def __init__(self, words: list[str], clock: str) -> None:
        self.config: Config = compose(["model.mlp_ratio=1", "runtime.accelerator=cpu", *words])
        self.images: Images = load(self.config.data)
        self.clock = clock
        self.ended: dict[str, dict[str, Tensor]] = {}

    def net(self) -> nn.Module:
        shape, classes = self.images.shape, len(self.images.classes)
        net = build(self.config.model, self.config.mixer, 0, shape=shape, classes=classes)
        return ready(net, self.images.sample())

    def data(self) -> ImageData:
        return ImageData(self.images, self.config.recipe, seed=0)

    def trained(self) -> Watch:
        """One epoch under the Trainer of the bench, with its callbacks."""
        net, recipe, watch = self.net(), self.config.recipe, Watch(self.clock)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            callbacks = [CurveFile(folder), *callbacks_of(folder, self.config, {}, show=False), watch]
            trainer = fitting_trainer(
                self.config, recipe, callbacks, [], epochs=recipe.all_epochs, parts=1, folder=folder, show=False
            )
            trainer.limit_val_batches = 0
            trainer.fit(Classifier(net, recipe, classes=len(self.images.classes)), self.data())
        self.ended["trainer"] = net.state_dict()
        return watch

    def lightning(self) -> Watch:
        """The same epoch under a Trainer that has been told to do nothing else."""
        torch.use_deterministic_algorithms(False)
        net, data, watch = self.net().train(), self.data().train_dataloader(), Watch(self.clock)
        off = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
        trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[watch], **off)
        trainer.fit(Plain(net, self.config.recipe, len(data)), data)
        self.ended["lightning"] = net.state_dict()
        return watch

    def bare(self) -> float:
        """The same epoch in a loop; the seconds of its steps."""
        torch.use_deterministic_algorithms(False)
        net, recipe = self.net().train(), self.config.recipe
        optimizer = make_optimizer(net, recipe, on_gpu=False)
        batches = self.data().train_dataloader()
        scheduler = make_scheduler(optimizer, recipe, len(batches))
        started = CLOCKS[self.clock]()
        for step, batch in enumerate(batches):
            loss = loss_of(net, batch, recipe)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step_update(step + 1)
        seconds = CLOCKS[self.clock]() - started
        self.ended["bare"] = net.state_dict()
        return seconds


def main() -> None:
    given = options(__doc__, rounds=7, clock="cpu", steps=60, batch=64)
    heading(given)
    words = ["recipe.epochs=1", f"recipe.batch={given.batch}", f"data.train={given.steps * given.batch}"]
    run = Quickstart(words, given.clock)
    seen: list[Watch] = []

    def trainer() -> float:
        seen.append(run.trained())
        return 1e3 * seen[-1].steps / given.steps

    what = f"a step of the quickstart's pooling, batch {given.batch}"
    figures = {
        "bare loop": lambda: 1e3 * run.bare() / given.steps,
        "Lightning and nothing else": lambda: 1e3 * run.lightning().steps / given.steps,
        "Trainer of the bench": trainer,
    }
    rows: list[Row] = in_turns(what, "ms", figures, given)
    ends = [1e3 * (watch.epoch - watch.steps) for watch in seen[1:]]
    print(f"and the end of an epoch, with curve and checkpoint: {min(ends):.0f} to {max(ends):.0f} ms")
    bare = run.ended.pop("bare")
    unlike = [way for way, ended in run.ended.items() if any(not torch.equal(bare[name], ended[name]) for name in bare)]
    if unlike:
        raise SystemExit(f"not the weights of the bare loop: {', '.join(unlike)}")
    keep(rows, __file__, given.out)


if __name__ == "__main__":
    main()

"""What the Trainer, the callbacks and the metrics of the bench cost beside the same steps in a bare loop.

    python experiments/speed/overhead.py
    python experiments/speed/overhead.py --rounds 1 --steps 8

The run is the quickstart's, with one thread: its network, batches, optimizer and schedule. The bare loop has nothing
else; it counts neither loss nor accuracy. Both end with the same weights, bit for bit, or this script fails.
"""

import tempfile
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from rounds import CLOCKS, Row, heading, in_turns, keep, options
from torch import Tensor, nn

from metaformer.config.compose import compose
from metaformer.config.schema import Config
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


class Quickstart:
    """The run, without validation, in both ways."""

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

    def bare(self) -> float:
        """The same epoch in a loop; the seconds of its steps."""
        torch.use_deterministic_algorithms(False)
        net, recipe = self.net().train(), self.config.recipe
        optimizer = make_optimizer(net, recipe, on_gpu=False)
        batches = self.data().train_dataloader()
        scheduler = make_scheduler(optimizer, recipe, len(batches))
        bf16 = recipe.precision == "bf16"
        started = CLOCKS[self.clock]()
        for step, (images, labels) in enumerate(batches):
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(net(images).float(), labels, label_smoothing=recipe.label_smoothing)
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
    figures = {"bare loop": lambda: 1e3 * run.bare() / given.steps, "Trainer of the bench": trainer}
    rows: list[Row] = in_turns(what, "ms", figures, given)
    ends = [1e3 * (watch.epoch - watch.steps) for watch in seen[1:]]
    print(f"and the end of an epoch, with curve and checkpoint: {min(ends):.0f} to {max(ends):.0f} ms")
    unlike = [name for name, value in run.ended["bare"].items() if not torch.equal(value, run.ended["trainer"][name])]
    if unlike:
        raise SystemExit(f"the two did not train the same: {', '.join(unlike)}")
    keep(rows, __file__, given.out)


if __name__ == "__main__":
    main()

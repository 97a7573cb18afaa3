"""The task module as a library: in an ordinary Trainer, with an ordinary DataLoader."""

import copy
import signal
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from conftest import compose
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset
from trained import go, same, stop_at

import metaformer
from metaformer.config.schema import BUILTIN, Model, Recipe
from metaformer.data.images import load
from metaformer.data.module import ImageData
from metaformer.models.build import build, described
from metaformer.system.errors import ConfigError
from metaformer.tasks.classification import Classifier
from metaformer.tasks.optimization import make_optimizer

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


def trained(network: torch.nn.Module, **options: Any) -> tuple[Classifier, Path]:
    """A task that somebody trained in a Trainer of their own, and its checkpoint."""
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 4), 8)
    module = Classifier(network, classes=4, **options)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    trainer.fit(module, loader)
    trainer.save_checkpoint("mine.ckpt")
    return module.eval(), Path("mine.ckpt")


NETS = {
    "by name": lambda: net(),
    "a hybrid with options": lambda: metaformer.MetaFormer(
        [partial(metaformer.Pooling, pool_size=5), "spatial_mlp"],
        **{
            "depths": [1, 1],
            "dims": [8, 16],
            "num_classes": 9,
            "img_size": (32, 32),
            "norm": "layer",
            "res_scale": [1.0, None],
        },
    ),
    "of timm": lambda: build(Model(source="timm", name="test_resnet"), BUILTIN, 0, shape=(3, 32, 32), classes=4),
}


@pytest.mark.parametrize("kind", NETS)
def test_a_checkpoint_needs_no_argument(kind):
    network = NETS[kind]()
    if kind == "a hybrid with options":
        network.reset_classifier(4)
    recipe = Recipe(epochs=3, lr=1e-4, label_smoothing=0.2)
    module, file = trained(network, recipe=recipe, seed=3, class_weights=torch.tensor([1.0, 2.0, 0.5, 0.3]))
    assert torch.load(file, weights_only=True)["hyper_parameters"]["recipe"]["lr"] == 1e-4
    assert all(parameter.grad is None for parameter in module.parameters())  # a graph may have let go of them
    again = Classifier.load_from_checkpoint(file).eval()
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(again(images), module(images))
    assert (again.recipe, again.seed) == (recipe, 3)
    assert torch.equal(again.class_weights, module.class_weights)
    assert again.hparams == module.hparams


def test_a_checkpoint_of_a_run(monkeypatch):
    """It is left by a run that was stopped; that of a finished run is its weights.pt."""
    words = ("mixer=pooling", "mixer.pool_size=5", "recipe.ema=0.9")
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at=3)
        with pytest.raises(SystemExit):
            go(*words)
    (file,) = Path("runs").glob("*/last.ckpt")
    again = Classifier.load_from_checkpoint(file)
    assert again.net.stages[0].blocks[0].mixer.pool.kernel_size == 5
    assert same(again.state_dict(), torch.load(file, weights_only=True)["state_dict"])
    assert again.eval()(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    run = go(*words)
    with pytest.raises(ConfigError, match=r"weights.pt: is no checkpoint of Lightning .* metaformer.load reads"):
        Classifier.load_from_checkpoint(run.folder / "weights.pt")
    with pytest.raises(ConfigError, match=r"fits no published model; metaformer.load reads the weights.pt"):
        metaformer.weights.load(run.folder / "weights.pt")


def test_a_network_of_which_nothing_says_how_it_is_made():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
    module, file = trained(network)
    with pytest.raises(ConfigError, match="the checkpoint does not say how its network is made; expected net=, the"):
        Classifier.load_from_checkpoint(file)
    again = Classifier.load_from_checkpoint(file, net=copy.deepcopy(network).requires_grad_(True))
    assert torch.equal(again.net[1].weight, module.net[1].weight)
    nowhere = metaformer.MetaFormer(lambda dim: torch.nn.Identity(), depths=[1], dims=[8], num_classes=4)
    assert described(nowhere) is None


@pytest.mark.parametrize(
    ("recipe", "line"),
    [({"lr": "fast"}, "recipe.lr=fast: expected a float"), ({"warmup_epochs": -1}, "recipe.warmup_epochs=-1: expected"),
     ({"schedule": "cosin"}, "recipe.schedule=cosin: expected one of cosine")],
)  # fmt: skip
def test_a_recipe_that_cannot_be_is_refused_at_once(recipe, line):
    with pytest.raises(ConfigError, match=f"^{line}"):
        Classifier(net(1, 10), recipe, classes=10)


def test_image_data_refuses_a_trainer_that_keeps_its_batches():
    """They would be the same in every epoch."""
    config = compose("data=digits")
    images = load(config.data)
    module = Classifier(net(1, 10), config.recipe, classes=10)
    data = ImageData(images, config.recipe, seed=0)
    with pytest.raises(ConfigError, match="reload_dataloaders_every_n_epochs=1"):
        L.Trainer(max_epochs=2, accelerator="cpu", **QUIET).fit(module, data)
    assert not hasattr(DataLoader.__init__, "__wrapped__")  # Lightning changes it while a loader is made
    drawn: list[torch.Tensor] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0:
                drawn.append(batch[1])

    options = {**QUIET, "callbacks": [Watch()], "limit_train_batches": 2, "limit_val_batches": 1}
    L.Trainer(max_epochs=2, accelerator="cpu", reload_dataloaders_every_n_epochs=1, **options).fit(module, data)
    assert not torch.equal(*drawn)


def test_a_loader_without_its_module_has_another_epoch_each_time(tmp_path):
    """Those of the seed and the epoch, in a loop and in a Trainer, which goes on with the next from a checkpoint."""
    config = compose("data=digits")
    data = ImageData(load(config.data), config.recipe, seed=0)
    expected = [next(iter(data.batches_of(epoch)))[0] for epoch in range(4)]
    loader = data.train_dataloader()
    assert all(torch.equal(next(iter(loader))[0], batch) for batch in expected)
    drawn: list[torch.Tensor] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0:
                drawn.append(batch[0])

    file = tmp_path / "two.ckpt"
    options = {**QUIET, "callbacks": [Watch()], "limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "cpu"}
    for epochs, kept in ((2, None), (4, file)):
        module = Classifier(net(1, 10), config.recipe, classes=10)
        trainer = L.Trainer(max_epochs=epochs, **options)
        trainer.fit(module, data.train_dataloader(), data.val_dataloader(), ckpt_path=kept)
        trainer.save_checkpoint(file)
    assert len(drawn) == 4
    assert all(map(torch.equal, drawn, expected))


def test_the_schedule_is_that_of_the_last_step_where_the_trainer_has_one():
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8).float()
    loader = DataLoader(TensorDataset(images, torch.arange(32) % 4), 8)
    for limits in ({"max_steps": 20}, {"max_steps": 20, "max_epochs": 1000}):
        rates: list[float] = []
        module = Classifier(net(), Recipe(epochs=5, warmup_epochs=0, lr=1e-3), classes=4)
        module.on_train_batch_end = lambda *_, rates=rates, module=module: rates.append(
            module.trainer.optimizers[0].param_groups[0]["lr"]
        )
        L.Trainer(accelerator="cpu", **limits, **QUIET).fit(module, loader)
        assert len(rates) == 20
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] < 0.1 * rates[0]
    with pytest.raises(ConfigError, match="neither a last epoch nor a last step"):
        L.Trainer(max_epochs=-1, max_time={"seconds": 1}, accelerator="cpu", **QUIET).fit(
            Classifier(net(), Recipe(), classes=4), loader
        )


def test_mixup_leaves_the_images_of_a_loader_as_they_are_and_needs_pairs():
    images = torch.randn(20, 3, 32, 32)
    before, labels = images.clone(), torch.arange(20) % 4
    own = [(images[i : i + 10], labels[i : i + 10]) for i in (0, 10)]
    recipe = Recipe(epochs=1, warmup_epochs=0, mixup=0.4)
    L.Trainer(max_epochs=1, accelerator="cpu", **QUIET).fit(Classifier(net(), recipe, classes=4), DataLoader(own, None))
    assert torch.equal(images, before)
    odd = DataLoader([(images[:5], labels[:5])], None)
    with pytest.raises(ConfigError, match="a batch of 5 images is not made of pairs; expected an even number"):
        L.Trainer(max_epochs=1, accelerator="cpu", **QUIET).fit(Classifier(net(), recipe, classes=4), odd)


def test_the_layers_of_an_encoder_have_their_rates_and_the_decoder_has_the_whole_one():
    words = (
        "task=segmentation",
        "data=fashion_mosaics",
        "model=tiny_pyramid",
        "model.depths=[1,1]",
        "model.dims=[8,16]",
    )
    config = compose(*words, "recipe.optimizer_options.layer_decay=0.5")
    network = build(config.model, config.mixer, 0, shape=(1, 64, 64), classes=11, task=config.task)
    scales = {}
    for group in make_optimizer(network, config.recipe, on_gpu=False).param_groups:
        for name, weight in network.named_parameters():
            if any(weight is own for own in group["params"]):
                scales[name.split(".blocks")[0].rpartition(".conv")[0] or name.split(".blocks")[0]] = group["lr_scale"]
    assert scales["encoder.net.stem"] < scales["encoder.net.stages.0"] < scales["encoder.net.stages.1"] < 1
    assert {scale for name, scale in scales.items() if not name.startswith("encoder.net")} == {1.0}


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        ({"clip_grad": 1.0}, {}, r"recipe.clip_grad=1.0: expected Trainer\(gradient_clip_val=1.0\), which clips"),
        ({"ema": 0.9}, {}, r"recipe.ema=0.9: expected a callback that averages, EMAWeightAveraging"),
        ({"precision": "bf16"}, {}, r"recipe.precision=bf16: expected Trainer\(precision='bf16-mixed'\)"),
        ({"class_weights": "balanced"}, {}, r"recipe.class_weights=balanced: expected class_weights=, a weight for"),
        ({"optimizer": "adamww"}, {}, r"recipe.optimizer=adamww: not one of timm's; did you mean 'adamw'?"),
        ({"clip_grad": 1.0, "ema": 0.9},
         {"gradient_clip_val": 1.0, "callbacks": [EMAWeightAveraging(decay=0.9)]}, None),
    ],
)  # fmt: skip
def test_what_a_trainer_is_to_carry_out_is_not_ignored(recipe, options, told):
    loader = DataLoader(TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 4), 8)
    module = Classifier(net(), Recipe(epochs=1, **recipe), classes=4)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", **QUIET, **options)
    if told is None:
        trainer.fit(module, loader)
        return
    with pytest.raises(ConfigError, match=told):
        trainer.fit(module, loader)


def test_a_batch_that_does_not_go_into_the_parts_or_the_images_is_refused():
    images = load(compose("data=digits").data)
    module = Classifier(net(1, 10), Recipe(batch=100), classes=10)
    options = {"max_epochs": 1, "accelerator": "cpu", "reload_dataloaders_every_n_epochs": 1, **QUIET}
    with pytest.raises(ConfigError, match=r"recipe.batch=100: is for 3 devices and accumulated parts, which do not"):
        L.Trainer(accumulate_grad_batches=3, **options).fit(module, datamodule=ImageData(images, Recipe(batch=100), 0))
    with pytest.raises(ConfigError, match=r"recipe.batch=5000: there are 1197 images"):
        L.Trainer(**options).fit(module, datamodule=ImageData(images, Recipe(batch=5000), 0))
    predicted = L.Trainer(**options).predict(module, datamodule=ImageData(images, Recipe(), 0))
    assert sum(map(len, predicted)) == len(images.test)


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("epochs", [3, 6])
def test_the_schedule_is_as_long_as_the_trainer(interval, epochs):
    """Whatever the recipe says, whose epochs are those of the bench."""
    rates = []

    class Watched(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    loader = DataLoader(TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 4), 4)
    recipe = Recipe(epochs=4, warmup_epochs=1, lr=1.0, min_lr=0.0, warmup_lr=0.0, lr_interval=interval)
    module = Classifier(net(), recipe, classes=4)
    L.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[Watched()], **QUIET).fit(module, loader)
    assert len(rates) == 4 * epochs
    assert 0.6 < max(rates) <= 1.0
    assert rates.index(max(rates)) <= len(rates) // 2
    assert rates[-1] < 0.3


def test_schedulers_of_others_and_lightnings_tuner_work():
    class Mine(Classifier):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}

    loader = DataLoader(TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 4), 8)
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", **QUIET)
    trainer.fit(Mine(net(), classes=4), loader)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.25


def test_a_network_of_other_classes_and_weights_for_another_loss_are_refused():
    with pytest.raises(ConfigError, match="classes=5: the network tells 4 classes apart"):
        Classifier(net(), classes=5)
    with pytest.raises(ConfigError, match=r"class_weights: belong to recipe.loss=ce"):
        Classifier(net(), Recipe(loss="bce"), classes=4, class_weights=[1.0, 2.0, 1.0, 1.0])


def test_a_data_module_takes_a_recipe_as_plain_data():
    images = load(compose("data=digits").data)
    assert ImageData(images, {"batch": 64, "crop": 0}, 0).recipe.batch == 64
    with pytest.raises(ConfigError, match=r"recipe.bach: no such key; did you mean 'recipe.batch'?"):
        ImageData(images, {"bach": 64}, 0)


def test_loggers_of_ones_own_get_the_recipe(tmp_path):
    loader = DataLoader(TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 4), 8)
    logger = CSVLogger(tmp_path, name="", version="mine")
    options = {**QUIET, "logger": logger, "max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1}
    L.Trainer(**options).fit(Classifier(net(), Recipe(epochs=1, lr=1e-3), classes=4), loader)
    kept = yaml.safe_load((tmp_path / "mine" / "hparams.yaml").read_text())
    assert (kept["recipe"]["lr"], kept["classes"]) == (1e-3, 4)

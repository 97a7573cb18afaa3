"""The optimizers and the schedules of the recipes are those of the papers."""

import math
import re
from dataclasses import replace

import pytest
import torch
from conftest import compose

from metaformer.config.schema import Recipe
from metaformer.models.build import build
from metaformer.system.errors import ConfigError
from metaformer.tasks import optimization
from metaformer.tasks.classification import Classifier
from metaformer.tasks.optimization import make_optimizer
from metaformer.tasks.segmentation import Segmenter


def rates(recipe: Recipe, epochs: int, steps: int = 1) -> list[float]:
    """The rate of every step of a run that trains nothing."""
    module = Classifier(torch.nn.Linear(2, 2), recipe, classes=2, seed=0)

    class Loop:
        estimated_stepping_batches, max_epochs, max_steps, world_size = steps * epochs, epochs, -1, 1

    module._fabric = None
    module.trainer = Loop()  # type: ignore[assignment]
    scheduled = module.configure_optimizers()
    optimizer = scheduled["optimizer"] if isinstance(scheduled, dict) else scheduled
    seen = []
    for epoch in range(epochs):
        for step in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            if isinstance(scheduled, dict) and recipe.lr_interval == "step":
                scheduled["lr_scheduler"]["scheduler"].step_update(epoch * steps + step + 1)
        if isinstance(scheduled, dict) and recipe.lr_interval == "epoch":
            scheduled["lr_scheduler"]["scheduler"].step(epoch + 1)
    return seen


def test_poolformers_rate_at_every_epoch():
    recipe = compose("recipe=poolformer").recipe
    assert recipe.epochs + recipe.cooldown_epochs == 310
    seen = rates(recipe, 310)
    expected = {0: 1e-6, 1: 2.008e-4, 2: 4.006e-4, 3: 6.004e-4, 4: 8.002e-4, 5: 9.9932e-4, 150: 5.05e-4, 299: 1.0027e-5}
    for epoch, rate in expected.items():
        assert seen[epoch] == pytest.approx(rate, rel=1e-4), epoch
    assert seen[300:] == [pytest.approx(1e-5)] * 10
    assert max(rates(compose("recipe=poolformer", "recipe.batch=4096").recipe, 310)[5:]) == pytest.approx(
        4e-3, rel=1e-3
    )


@pytest.mark.parametrize(
    ("name", "optimizer", "lr", "batch", "warmup"),
    [
        ("poolformer", "adamw", 1e-3, 1024, 5),
        ("metaformer_baselines", "adamw", 4e-3, 4096, 5),
        ("convformer", "adamw", 4e-3, 4096, 20),
        ("caformer", "lamb", 8e-3, 4096, 20),
    ],
)
def test_recipes_of_the_papers(name, optimizer, lr, batch, warmup):
    recipe = compose(f"recipe={name}").recipe
    facts = {"optimizer": optimizer, "lr": lr, "batch": batch, "warmup_epochs": warmup, "lr_base_size": batch}
    facts |= {"weight_decay": 0.05, "epochs": 300, "min_lr": 1e-5, "warmup_lr": 1e-6, "label_smoothing": 0.1}
    facts |= {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25, "auto_augment": "rand-m9-mstd0.5-inc1", "ema": None}
    facts |= {"scale": [0.08, 1.0], "clip_grad": None, "schedule": "cosine", "lr_interval": "epoch", "crop": 0}
    assert {key: getattr(recipe, key) for key in facts} == facts
    assert rates(recipe, 310)[warmup] == pytest.approx(lr, rel=2e-2)


def test_finetuning_is_constant_and_averages(tmp_path):
    file = tmp_path / "weights.pth"
    file.touch()
    recipe = compose("recipe=finetune", f"recipe.initialize_from={file}").recipe
    assert set(rates(recipe, 30)) == {5e-5}
    assert (recipe.ema, recipe.mixup, recipe.cutmix, recipe.epochs) == (0.9999, 0, 0, 30)


def test_decayed_and_undecayed_weights_of_s12():
    config = compose("model=s12", "recipe=poolformer", "data=imagenet")
    net = build(config.model, config.mixer, config.seed, shape=(3, 224, 224), classes=1000)
    module = Classifier(net, config.recipe, classes=1000, seed=0)
    module.trainer = type("T", (), {"estimated_stepping_batches": 310, "max_epochs": 310, "max_steps": -1})()
    groups = module.configure_optimizers()["optimizer"].param_groups
    counts = {g["weight_decay"]: (len(g["params"]), sum(p.numel() for p in g["params"])) for g in groups}
    assert counts == {0.0: (103, 39_656), 0.05: (29, 11_875_520)}
    assert {(g["betas"], g["eps"]) for g in groups} == {((0.9, 0.999), 1e-8)}
    depth = [getattr(b.drop_path, "drop_prob", 0) for s in net.stages for b in s.blocks]
    assert depth == pytest.approx([0.1 * i / 11 for i in range(12)])


@pytest.mark.parametrize(
    ("words", "fused"),
    [
        ((), True),
        (("recipe.clip_grad=1",), True),
        (("recipe.precision=bf16",), True),
        (("recipe.clip_grad=1", "recipe.precision=bf16"), None),
        (("recipe.precision=fp16",), None),
    ],
)
def test_a_fused_optimizer_does_not_meet_who_needs_gradients_unscaled(monkeypatch, words, fused):
    """Lightning raises at the first clip in a half precision; in fp16 the norm would be told 65,536 times too large."""
    given = {}

    def create(net, name, **options):
        given.update(options)

    monkeypatch.setattr(optimization, "create_optimizer_v2", create)
    optimization.make_optimizer(torch.nn.Linear(2, 2), compose(*words).recipe, on_gpu=True)
    assert given.get("fused") is fused
    given.clear()
    optimization.make_optimizer(torch.nn.Linear(2, 2), compose().recipe, on_gpu=False)
    assert given.get("fused") is None


def test_the_rate_of_a_polynomial_schedule():
    recipe = Recipe(schedule="poly", power=0.9, lr=2e-4, min_lr=0.0, warmup_epochs=0, steps=100)
    seen = rates(recipe, 5, 20)
    assert seen == pytest.approx([2e-4 * (1 - step / 100) ** 0.9 for step in range(100)], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "steps", "batch", "lr", "decay", "power", "decoder"),
    [("semantic_fpn", 40_000, 32, 2e-4, 1e-4, 0.9, 1.0), ("segformer", 160_000, 16, 6e-5, 0.01, 1.0, 10.0)],
)
def test_recipes_of_segmentation(name, steps, batch, lr, decay, power, decoder):
    recipe = compose("task=segmentation", f"recipe={name}").recipe
    assert (recipe.steps, recipe.batch, recipe.lr, recipe.weight_decay) == (steps, batch, lr, decay)
    assert (recipe.schedule, recipe.power, recipe.min_lr, recipe.decoder_lr) == ("poly", power, 0.0, decoder)
    assert (recipe.label_smoothing, recipe.resize, recipe.crop, recipe.optimizer) == (0.0, [0.5, 2.0], 0, "adamw")


def test_a_decoder_has_a_rate_of_its_own():
    words = ("task=segmentation", "model=tiny_pyramid", "model.depths=[1,1]", "model.dims=[8,16]", "task.width=8")
    config = compose(*words, "recipe.decoder_lr=10", "recipe.warmup_epochs=0", "recipe.lr=1e-3", "recipe.epochs=2")
    net = build(config.model, config.mixer, 0, shape=(1, 32, 32), classes=3, task=config.task)
    module = Segmenter(net, config.recipe, classes=3)

    class Loop:
        estimated_stepping_batches, max_epochs, max_steps, world_size = 20, 2, -1, 1

    module._fabric, module.trainer = None, Loop()
    scheduled = module.configure_optimizers()
    optimizer, scheduler = scheduled["optimizer"], scheduled["lr_scheduler"]["scheduler"]
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    for step in range(3):
        for group in optimizer.param_groups:
            found = {names[id(parameter)].startswith("encoder.") for parameter in group["params"]}
            assert len(found) == 1
            factor = 1 if found == {True} else 10
            assert group["lr"] == pytest.approx(factor * (1e-5 + 99e-5 * (1 + math.cos(math.pi * step / 20)) / 2))
        scheduler.step_update(step + 1)
    plain = make_optimizer(net, replace(config.recipe, decoder_lr=1.0), on_gpu=False)
    decayed = [{names[id(p)] for group in o.param_groups if group["weight_decay"] for p in group["params"]}
               for o in (optimizer, plain)]  # fmt: skip
    assert decayed[0] == decayed[1]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["recipe.power=2"], "recipe.power=2: belongs to recipe.schedule=poly"),
        (["recipe.decoder_lr=10"], "recipe.decoder_lr=10.0: belongs to task=segmentation"),
        (["task=segmentation", "recipe.decoder_lr=10", "recipe.schedule=constant", "recipe.warmup_epochs=0"],
         "recipe.decoder_lr=10: timm's schedule applies it, and recipe.schedule has none"),
        (["task=segmentation", "recipe.decoder_lr=10", "recipe.optimizer_options.layer_decay=0.7"],
         "recipe.decoder_lr=10: expected 1 with recipe.optimizer_options.layer_decay, which has groups of its own"),
    ],
)  # fmt: skip
def test_what_no_schedule_or_decoder_reads_is_refused(words, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        compose(*words)

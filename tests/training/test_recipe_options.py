"""Options of a recipe as timm names them: of the optimizer, the loss, colour jitter, repeated augmentation."""

from itertools import pairwise

import pytest
import timm
import torch
from conftest import compose
from timm.loss import BinaryCrossEntropy
from trained import go, metrics

from metaformer.config.identity import content_of, flat, run_id
from metaformer.config.schema import Recipe
from metaformer.data.batches import Places, Transformed, repeated
from metaformer.data.module import ImageData, training_transform
from metaformer.models.build import build
from metaformer.system.errors import ConfigError
from metaformer.tasks.classification import Classifier
from metaformer.tasks.optimization import make_optimizer, make_scheduler
from metaformer.training.fit import prepare

SMALL = ("data=digits", "data.train=192", "recipe.batch=64", "recipe.epochs=1", "recipe.warmup_epochs=0")
SCALED = ("recipe.scale=[0.5,1]", "recipe.crop=0")


def net_of(config):
    return build(config.model, config.mixer, 0, shape=(1, 8, 8), classes=10)


def test_options_reach_the_optimizer():
    config = compose(*SMALL, "recipe.optimizer_options={betas: [0.8, 0.95], eps: 1e-6}")
    groups = make_optimizer(net_of(config), config.recipe, on_gpu=False).param_groups
    assert [(group["betas"], group["eps"]) for group in groups] == 2 * [((0.8, 0.95), 1e-6)]
    config = compose(*SMALL, "recipe.optimizer=sgd", "recipe.optimizer_options.momentum=0.5")
    assert make_optimizer(net_of(config), config.recipe, on_gpu=False).param_groups[0]["momentum"] == 0.5


def test_layer_decay_scales_the_rate_of_each_depth():
    words = (*SMALL, "recipe.optimizer_options.layer_decay=0.5", "recipe.lr=1e-2")
    config = compose(*words)
    optimizer = make_optimizer(net_of(config), config.recipe, on_gpu=False)
    scheduler = make_scheduler(optimizer, config.recipe, 3)
    scheduler.step_update(0)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates[-1] == 1e-2
    assert all(b == pytest.approx(2 * a) for a, b in pairwise(rates))
    assert len(rates) >= 5
    assert max(float(row["lr"]) for row in metrics(go(*words).folder)) > 5e-4  # not that of the stem


@pytest.mark.parametrize("mixed", [False, True])
def test_bce_is_timms(mixed):
    torch.manual_seed(0)
    module = Classifier(torch.nn.Identity(), Recipe(loss="bce", label_smoothing=0.2, mixup=0.8 * mixed), classes=5)
    logits, labels = torch.randn(4, 5), torch.arange(4)
    given = torch.rand(4, 5).softmax(1) if mixed else labels
    assert torch.equal(module._loss(logits, given), BinaryCrossEntropy(0.2)(logits, given))
    assert not torch.equal(module._loss(logits, given), Classifier(torch.nn.Identity(), classes=5)._loss(logits, given))


def test_colour_jitter_reaches_timms_transform():
    pixels = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    for value in (0.3, [0.1, 0.2, 0.3]):
        recipe = Recipe(scale=[0.5, 1.0], color_jitter=value)
        ours = training_transform(recipe, (3, 8, 8), pixels)
        theirs = timm.data.create_transform(
            (3, 8, 8), is_training=True, scale=(0.5, 1.0), hflip=0.5, interpolation="random",
            color_jitter=tuple(value) if isinstance(value, list) else value, **pixels,
        )  # fmt: skip
        assert "ColorJitter" in str(ours)
        assert str(ours) == str(theirs)


def test_repeated_places():
    order = torch.randperm(10)
    assert torch.equal(repeated(order, 1), order)
    places = repeated(order, 3)
    assert len(places) == len(set(places.tolist())) == 10
    assert torch.equal(places % 10, order.repeat_interleave(3)[:10])  # timm's RepeatAugSampler
    assert (places // 10).tolist() == [0, 1, 2] * 3 + [0]


def test_a_repeated_image_is_drawn_anew_each_time_and_the_first_time_as_ever():
    class Split:
        labels = torch.arange(4)

        def __len__(self) -> int:
            return 4

        def read(self, row: int) -> int:
            return row

    drawn = Transformed(Split(), lambda row: (row, float(torch.rand(()))), seed=3)
    (first, label), (again, _), (other, _) = drawn[1, 2], drawn[1, 6], drawn[1, 3]
    assert (first[0], again[0], other[0], label) == (2, 2, 3, 2)
    assert len({first[1], again[1], other[1]}) == 3
    assert drawn[1, 2][0] == first


def test_an_epoch_of_repeated_augmentation_has_as_many_batches_of_fewer_images():
    config = compose(*SMALL, *SCALED, "recipe.repeated_augmentation=3")
    images = prepare(config).images
    stream = ImageData(images, config.recipe, 0).batches_of(0)
    rows = torch.cat([places for _, places in stream.batches]) % len(images.train)
    assert (len(stream), len(rows), len(rows.unique())) == (3, 192, 64)
    assert isinstance(stream.places, Places)
    assert sum(len(labels) for _, labels in stream) == 192


def test_all_of_them_train_and_are_in_the_id_and_defaults_are_not():
    words = ("recipe.loss=bce", "recipe.repeated_augmentation=2", "recipe.optimizer_options.betas=[0.9,0.95]", *SCALED)
    assert go(*SMALL, *words).status == "finished"

    def of(*more: str) -> str:
        return run_id(content_of(compose(*SMALL, *SCALED, *more), None))

    assert len({of(), *(of(word) for word in words[:3])}) == 4
    colour = of("recipe.color_jitter=0.4")
    assert colour != of()
    assert of("recipe.loss=ce", "recipe.color_jitter=null", "recipe.repeated_augmentation=1") == of()
    assert "optimizer_options" not in content_of(compose(), None)["recipe"]
    assert flat(compose(*words))["recipe.optimizer_options.betas"] == [0.9, 0.95]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["recipe.optimizer_options.beta=[0.9,0.95]"], "optimizer_options.beta: adamw has no such option; did you"),
        (["recipe.optimizer_options.momentum=0.9"], "recipe.optimizer_options.momentum: adamw has no such option"),
        (["recipe.optimizer_options.lr=0.9"], "recipe.optimizer_options.lr: adamw has no such option"),
        (["recipe.optimizer_options.betas=0.9"], "adamw, recipe.optimizer_options={'betas': 0.9}: TypeError: "),
        (["recipe.optimizer_options.betas=0.9"], "; expected values like betas=[0.9, 0.999]"),
        (["recipe.optimizer_options.layer_decay=abc"], "; expected values like layer_decay=0.75"),
        (["callbacks=early_stopping", "callbacks.early_stopping.monitor=val_sensitivity"],
         "callbacks.early_stopping.monitor=val_sensitivity: is for two classes, and there are 10"),
        (["recipe.optimizer_options.betas=[2,0.9]"], "ValueError: Invalid beta parameter at index 0: 2"),
        (["recipe.optimizer=admw"], "recipe.optimizer=admw: not one of timm's; did you mean 'adamw'?"),
        (
            ["recipe.optimizer_options.layer_decay=0.7", "recipe.schedule=constant"],
            "recipe.optimizer_options.layer_decay: timm's schedule applies it, and recipe.schedule has none",
        ),
        (["recipe.optimizer=adahessian"], "recipe.optimizer=adahessian: RuntimeError: "),
        (["recipe.optimizer_options.capturable=true"], "adamw, recipe.optimizer_options={'capturable': True}: "),
        (["trainer.limit_train_batches=0.001"], "trainer.limit_train_batches=0.001: leaves none of the "),
        (["recipe.loss=mse"], "recipe.loss=mse: expected one of"),
        (["recipe.loss=bce", "recipe.label_smoothing=1"], "recipe.label_smoothing=1.0: expected less, since"),
        (["recipe.loss=bce", "recipe.class_weights=balanced"], "recipe.class_weights=balanced: belongs to recipe.loss"),
        (["recipe.color_jitter=0.4"], "recipe.color_jitter=0.4: is read with a random resized crop only"),
        ([*SCALED, "recipe.color_jitter=0.4"], "recipe.color_jitter=0.4: needs images in colour"),
        ([*SCALED, "recipe.color_jitter=-1"], "recipe.color_jitter=-1: expected a strength like 0.4, or [bright"),
        ([*SCALED, "recipe.color_jitter=[1,1,1,1]"], "perhaps a hue up to 0.5"),
        ([*SCALED, "recipe.color_jitter=[1]"], "perhaps a hue up to 0.5"),
        ([*SCALED, "recipe.color_jitter=much"], "recipe.color_jitter=much: expected a strength like 0.4"),
        (
            [*SCALED, "recipe.color_jitter=0.4", "recipe.auto_augment=rand-m9"],
            "recipe.color_jitter=0.4: timm drops it where there is recipe.auto_augment",
        ),
        (["recipe.repeated_augmentation=3"], "recipe.repeated_augmentation=3: is read with a random resized crop only"),
        (["recipe.repeated_augmentation=0"], "recipe.repeated_augmentation=0: expected at least 1"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_have_gets_one_line(words, line):
    with pytest.raises(ConfigError) as refused:
        prepare(compose(*SMALL, "recipe.warmup_epochs=0", *words))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)

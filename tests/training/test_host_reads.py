"""A step on a GPU reads no value back: whoever does waits for all that it has been asked to compute.

There need not be one: torch's fake tensors say that they are on it, refuse to mix with others, and have no values.
"""

from types import SimpleNamespace

import pytest
import torch
from conftest import MIXERS, compose
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from metaformer.data.batches import Batches, EvalBatches
from metaformer.data.images import Images, Split, load
from metaformer.models.build import build
from metaformer.tasks.classification import Classifier
from metaformer.tasks.learner import Learner
from metaformer.tasks.segmentation import Segmenter

GPU = torch.device("cuda")
EVERYTHING = ("recipe.mixup=0.4", "recipe.cutmix=1.0", "model.drop_path=0.2", "model.head=mlp")


@pytest.fixture(scope="module")
def digits() -> Images:
    return load(compose("data=digits").data)


@pytest.fixture
def fake(monkeypatch):
    """Within, tensors are fakes; the GPU has so much free memory."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield FakeTensorMode(allow_non_fake_inputs=True)
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def step(images: Images, fake: FakeTensorMode, *words: str, last: bool = False) -> torch.Tensor:
    """The loss of a training step. The backward pass needs a GPU: tests/training/test_cuda.py."""
    config = compose("data=digits", *words)
    net = build(config.model, config.mixer, 0, shape=images.shape, classes=10).to(memory_format=torch.channels_last)
    weights = torch.ones(10) if config.recipe.class_weights == "balanced" else None
    module = alone(Classifier(net, config.recipe, classes=10, class_weights=weights), last)
    with fake:
        module.to(GPU).seed_step(6)
        batch = next(iter(Batches(images.on(GPU), 32, seed=0, passes=[(0, range(1))], crop=1, flip=True)))
        return module.training_step(batch)


def alone(module: Learner, last: bool) -> Learner:
    """A module at a step of a Trainer that does nothing."""
    module._trainer = SimpleNamespace(
        global_step=6, current_epoch=0, is_last_batch=last, optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])]
    )
    module.log = lambda *_, **__: None
    return module


@pytest.mark.parametrize("mixer", MIXERS)
def test_no_mixer_does(fake, digits, mixer):
    assert step(digits, fake, f"mixer={mixer}").device.type == "cuda"


@pytest.mark.parametrize("words", [EVERYTHING, ("recipe.class_weights=balanced",), ("recipe.loss=bce",)])
def test_no_recipe_does(fake, digits, words):
    assert step(digits, fake, *words).device.type == "cuda"


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0]])
def test_no_segmentation_does(fake, weights):
    module = alone(Segmenter(torch.nn.Conv2d(1, 3, 1), classes=3, dice=0.5, class_weights=weights), last=False)
    with fake:
        images, masks = torch.rand(4, 1, 8, 8, device=GPU), torch.zeros(4, 8, 8, dtype=torch.uint8, device=GPU)
        assert module.to(GPU).training_step((images, masks)).device.type == "cuda"


def test_the_loss_is_read_at_the_end_of_an_epoch(fake, digits):
    with pytest.raises(DataDependentOutputException):
        step(digits, fake, last=True)


def small(count: int = 20) -> Images:
    pixels = torch.randint(256, (count, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, rows = Split(pixels, torch.arange(count)), torch.arange(10)
    return Images(whole, whole[rows], whole[rows + 10], [str(i) for i in range(count)])


def test_images_live_on_the_gpu_once_and_as_bytes(fake):
    images = small()
    with fake:
        there = images.on(GPU)
        assert {split.pixels.device.type for split in there.splits().values()} == {"cuda"}
        assert there.train.pixels is there.val.pixels is there.test.pixels
        assert there.train.pixels.dtype == torch.uint8
        trained = Batches(there, 5, seed=0, passes=[(0, range(len(there.train) // 5))], crop=1, flip=True)
        for batches in (trained, EvalBatches(there, there.val)):
            for pixels, labels in batches:
                assert (pixels.device.type, labels.device.type) == ("cuda", "cuda")
                assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert images.train.pixels.device.type == "cpu"


def test_images_that_take_more_than_a_quarter_of_the_gpu_stay_where_they_are(fake, monkeypatch):
    images, sent = small(), []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * images.train.pixels.nbytes - 1, 10**9))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda pixels: sent.append(pixels) or pixels)
    with fake:
        there = images.on(GPU)
        assert {split.pixels.device.type for split in there.splits().values()} == {"cpu"}
        pixels, labels = next(iter(Batches(there, 5, seed=0, passes=[(0, range(1))], crop=1)))
    assert (pixels.device.type, labels.device.type) == ("cuda", "cpu")  # Lightning sends the labels
    assert [(pixels.dtype, len(pixels)) for pixels in sent] == [(torch.uint8, 5)]  # four times less than as numbers

"""Keys of `runtime` and `trainer` that say on what a run is trained, and what it keeps in memory."""

import pytest
import torch
from conftest import compose
from torch import nn
from trained import equal, go

from metaformer.models.build import build, checkpoint_blocks, ready, try_on
from metaformer.models.metaformer import MetaFormer
from metaformer.system.errors import ConfigError
from metaformer.system.machine import places
from metaformer.training import trainer as trainer_module
from metaformer.training.fit import prepare
from metaformer.training.trainer import fitting_trainer

SMALL = ("data=digits", "data.train=192", "recipe.epochs=1", "recipe.batch=64", "recipe.warmup_epochs=0")
TIMM = ("model=timm", "mixer=builtin", "model.name=test_resnet")


def test_checkpointed_blocks_are_computed_twice_and_give_the_same_bits(monkeypatch):
    """Stochastic depth too: the second pass draws what the first one drew."""
    words = (*SMALL, "model.drop_path=0.3", "mixer=random")
    calls = []
    forward = MetaFormer.forward

    def count(net, x):
        if not calls:
            for stage in net.stages:
                stage.blocks[0].mlp.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        return forward(net, x)

    seen, folders = [], []
    for value in ("false", "true"):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(MetaFormer, "forward", count)
            folders.append(go(*words, f"runtime.checkpoint_blocks={value}", f"runtime.runs={value}").folder)
        seen.append(sum(calls))
    assert folders[0].name == folders[1].name
    assert equal(*folders)
    assert seen[1] == 2 * seen[0] > 0


def test_what_is_inside_of_a_checkpointed_block_is_not_kept():
    config = compose("data=digits", "model.dims=[16,16]", "model.depths=[2,2]")
    kept = []
    for checkpointed in (False, True):
        net = build(config.model, config.mixer, 0, shape=(1, 8, 8), classes=10)
        if checkpointed:
            checkpoint_blocks(net)
        values = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, v=values: v.append(x.numel()) or x, lambda x: x):
            net(torch.randn(4, 1, 8, 8)).sum()
        kept.append(sum(values))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["runtime.checkpoint_blocks=true", "model.norm=batch"], "is a BatchNorm, whose statistics would take each"),
        (["runtime.checkpoint_blocks=true", *TIMM], "is a BatchNorm, whose statistics would take each"),
        (["model.norm=batch", "runtime.accumulate=2"], "is a BatchNorm, and each of 2 parts of a batch would have its"),
        (["model.norm=batch", "runtime.devices=2"], "is a BatchNorm, and each of 2 parts of a batch would have its"),
        (["runtime.accumulate=auto", "runtime.devices=2"], "runtime.accumulate=auto: is for one device, and here are"),
        (["recipe.precision=fp16"], "recipe.precision=fp16: is for a GPU, and there is none; a processor has fp32 or"),
        (["recipe.precision=fp16", "runtime.accelerator=cpu"], "recipe.precision=fp16: is for a GPU; runtime.accele"),
        (["runtime.strategy=deepspeed"], "runtime.strategy=deepspeed: expected one of ddp, "),
        (["trainer.strategy=ddp"], "trainer.strategy: the bench sets it; expected runtime.strategy"),
        (["trainer.sync_batchnorm=true"], "trainer.sync_batchnorm=True: is for several devices (runtime.devices)"),
        (
            ["trainer.sync_batchnorm=true", "runtime.devices=2"],
            "trainer.sync_batchnorm=True: is for GPUs, and there are none",
        ),
        (["runtime.accelerator=mps"], "runtime.accelerator=mps, runtime.devices=1: "),
        (["runtime.accelerator=gpu"], "runtime.accelerator=gpu, runtime.devices=1: "),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_a_run(words, line, recwarn, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.accelerators.mps.MPSAccelerator.is_available", lambda: False)
    monkeypatch.setattr("lightning.pytorch.accelerators.cuda.CUDAAccelerator.is_available", lambda: False)
    with pytest.raises(ConfigError) as refused:
        prepare(compose(*SMALL, *words))
    assert line in str(refused.value)
    assert "bf16 instead" not in " ".join(str(warning.message) for warning in recwarn)


def test_what_lightning_is_told(tmp_path):
    one = compose("runtime.strategy=ddp", "runtime.accelerator=cpu")
    trainer = fitting_trainer(one, one.recipe, [], [], epochs=1, parts=1, folder=tmp_path, show=False)
    assert type(trainer.strategy).__name__ == "DDPStrategy"
    assert trainer.precision == "32-true"
    half = compose("recipe.precision=bf16", "runtime.accelerator=cpu")
    precise = fitting_trainer(half, half.recipe, [], [], epochs=1, parts=1, folder=tmp_path, show=False)
    assert precise.precision == "bf16-mixed"
    assert (places("mps", 1), places("mps", 2)) == (1, 2)  # one device, however many cores there are


def test_nodes_and_devices_are_lightnings(tmp_path, monkeypatch):
    asked, trainer = {}, trainer_module.L.Trainer
    one = {"devices": 1, "num_nodes": 1}  # what is here
    monkeypatch.setattr(
        trainer_module.L, "Trainer", lambda **options: asked.update(options) or trainer(**options | one)
    )
    config = compose("runtime.devices=2", "runtime.nodes=3", "recipe.batch=60", "runtime.accelerator=cpu")
    fitting_trainer(config, config.recipe, [], [], epochs=1, parts=1, folder=tmp_path, show=False)
    assert (asked["devices"], asked["num_nodes"]) == (2, 3)


def test_networks_that_cannot_be_trained_are_one_line():
    with pytest.raises(ConfigError, match=r"^weight: a lazy module has no weights before its first input"):
        ready(nn.LazyLinear(3), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match=r"^the model fails on its first batch: RuntimeError: "):
        try_on(nn.Linear(3, 2), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match=r"^runtime.checkpoint_blocks=True: Linear cannot; expected false$"):
        checkpoint_blocks(nn.Linear(3, 2))


def test_a_network_that_was_tried_is_left_in_training_mode():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert ready(net, torch.randn(2, 4)).training
    assert net[1].num_batches_tracked == 0

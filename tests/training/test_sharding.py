"""runtime.strategy=fsdp: each device has a part of the weights, and the run is that of whole ones up to rounding."""

import subprocess
import sys

import pytest
import torch
from conftest import TINY, compose
from test_devices import ONE, TWO, compare, the
from torch import nn
from trained import equal

from metaformer.system.errors import ConfigError
from metaformer.training.sharding import Sharded, load_weights, strategy_of, weights_of

FSDP = (*TWO, "runtime.strategy=fsdp")
STOPPED = """
import os, signal
from metaformer import train
from metaformer.tasks.classification import Classifier

step = Classifier.training_step

def signalled(self, batch):
    if self.global_step == 20 and self.global_rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, batch)

Classifier.training_step = signalled
train.main()
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    "words",
    [
        ["recipe.optimizer=lamb", "recipe.freeze=stem", "recipe.optimizer_options.layer_decay=0.8", "mixer=random"],
        ["runtime.accumulate=2", "runtime.checkpoint_blocks=true", "logger=wandb", "logger.mode=offline"],
    ],
)
def test_weights_in_parts_are_whole_ones_up_to_rounding(cli, tmp_path, words):
    for own in (ONE, FSDP):
        done = cli("train", *own, *words)
        assert done.returncode == 0, done.stderr
    compare(tmp_path)


@pytest.mark.processes
def test_a_run_in_parts_that_was_stopped_ends_with_the_same_bits(cli, tmp_path):
    words = (*FSDP, "recipe.clip_grad=0.5", "recipe.select=best")
    assert cli("train", *words, "runtime.runs=whole").returncode == 0
    (tmp_path / "stopped.py").write_text(STOPPED)
    stopped = subprocess.run([sys.executable, "stopped.py", *words], cwd=tmp_path, capture_output=True, text=True)
    assert "SIGTERM: saved and stopped at step 21" in stopped.stderr
    folder = the(tmp_path, "two")
    assert not (folder / "result.json").exists()
    done = cli("train", *words)
    assert done.returncode == 0, done.stderr
    assert equal(folder, the(tmp_path, "whole"))


def test_a_network_that_is_whole_is_left_as_it_is():
    net = nn.Linear(2, 3)
    weights = weights_of(net)
    assert weights.keys() == net.state_dict().keys()
    load_weights(net, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)})
    assert torch.equal(net.weight, torch.ones(3, 2))


def test_what_lightning_is_told():
    assert type(strategy_of(compose(*FSDP).runtime)).__name__ == "ModelParallelStrategy"
    assert strategy_of(compose(*TWO).runtime) == "ddp"
    assert strategy_of(compose(*ONE).runtime) == "auto"


def test_a_part_of_a_network_is_not_run_alone():
    """Where the loss is not finite on one device, the others do not wait for it to put the network together."""
    module = Sharded(nn.Linear(2, 2), classes=2)
    assert "no device has the whole network" in module.first_not_finite(torch.full((1, 2), float("nan")))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["runtime.devices=1"], "runtime.strategy=fsdp: runtime.devices=1 is one, and it is for several"),
        (["runtime.compile=true"], "runtime.strategy=fsdp: runtime.compile=true compiles whole networks"),
        (["runtime.accelerator=mps"], "runtime.strategy=fsdp: runtime.accelerator=mps has one device"),
        (["recipe.ema=0.9"], "runtime.strategy=fsdp: recipe.ema=0.9 averages whole weights"),
        (["recipe.precision=fp16"], "runtime.strategy=fsdp: recipe.precision=fp16 scales whole gradients"),
        (["trainer.sync_batchnorm=true"], "trainer.sync_batchnorm=True: is not for runtime.strategy=fsdp"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_it(words, line):
    with pytest.raises(ConfigError) as refused:
        compose(*TINY, "runtime.devices=2", "runtime.strategy=fsdp", *words)
    assert line in str(refused.value)

"""What is set for a GPU, told by a device that is not there."""

import pytest
import torch
from conftest import compose
from lightning.pytorch.callbacks import EMAWeightAveraging

from metaformer.system.errors import ConfigError
from metaformer.training import callbacks, trainer


@pytest.mark.parametrize("tf32", [False, True])
def test_products_and_convolutions_have_one_precision(monkeypatch, tf32):
    """cuDNN's own switch is on by default: a mixer of convolutions would be rounded and one of products would not."""
    said: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    config = compose(f"runtime.tf32={str(tf32).lower()}", "runtime.accelerator=gpu")
    with pytest.raises(ConfigError, match=r"runtime\.accelerator=gpu"):
        trainer.make_trainer(config.runtime, config.recipe)
    assert said == ["high" if tf32 else "highest"]
    assert torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.parametrize(
    ("there", "accelerator", "device"), [(True, "auto", "cuda"), (True, "cpu", "cpu"), (False, "auto", "cpu")]
)
def test_the_average_of_the_weights_lives_where_they_do(monkeypatch, tmp_path, there, accelerator, device):
    made: list[object] = []

    class Average(EMAWeightAveraging):
        def __init__(self, device: str, decay: float) -> None:
            made.append(device)
            super().__init__(decay=decay)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(callbacks, "EMAWeightAveraging", Average)
    config = compose("recipe.ema=0.9", f"runtime.accelerator={accelerator}")
    callbacks.callbacks_of(tmp_path, config, {}, show=False)
    assert made == [device]

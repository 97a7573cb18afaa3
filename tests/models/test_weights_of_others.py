"""Checkpoints as others leave them."""

import argparse
from collections import OrderedDict
from datetime import date

import numpy as np
import pytest
import torch

from metaformer import MetaFormer, Pooling
from metaformer.models.weights import load_strictly, read
from metaformer.system.errors import ConfigError


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "net.", "net._orig_mod."]
)
@pytest.mark.parametrize("beside", [{}, {"n_averaged": torch.tensor(3)}, {"stem.total_ops": torch.zeros(1)}])
def test_names_with_what_wrappers_put_before_or_beside_them(tmp_path, prefix, beside):
    options = {"depths": [1], "dims": [8], "num_classes": 2, "img_size": 32}
    trained, fresh = MetaFormer(Pooling, seed=1, **options), MetaFormer(Pooling, seed=2, **options)
    path = tmp_path / "weights.pth"
    torch.save({prefix + key: value for key, value in trained.state_dict().items()} | beside, path)
    load_strictly(fresh, read(path), str(path))
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in trained.state_dict().items())


class Own:
    """A class of somebody's script."""


ARGUMENTS = argparse.Namespace(lr=0.1, best=np.float64(93.1), data="images")


@pytest.mark.parametrize("beside", [ARGUMENTS, np.float32(2), np.arange(3.0), OrderedDict(epoch=3)])
def test_arguments_and_numbers_beside_weights_are_read(tmp_path, beside):
    torch.save({"state_dict": {"a": torch.ones(2)}, "beside": beside}, tmp_path / "weights.pth")
    assert read(tmp_path / "weights.pth").keys() == {"a"}


@pytest.mark.parametrize(("beside", "name"), [(Own(), "Own"), (date(2020, 1, 1), "datetime.date")])
def test_an_object_that_may_run_code_is_named(tmp_path, beside, name):
    torch.save({"state_dict": {"a": torch.ones(2)}, "beside": beside}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=rf"cannot be read safely: it holds a [\w.]*{name}; expected tensors alone"):
        read(tmp_path / "weights.pth")


def test_an_empty_file_is_one_line(tmp_path):
    (tmp_path / "w.pth").touch()
    with pytest.raises(ConfigError, match=r"w\.pth: cannot be read \(\w+"):
        read(tmp_path / "w.pth")


def test_counters_that_are_left_out_are_told(tmp_path, capsys):
    torch.save({"a": torch.ones(2), "a.total_ops": torch.ones(1), "total_params": torch.ones(1)}, tmp_path / "w.pth")
    assert read(tmp_path / "w.pth").keys() == {"a"}
    told = capsys.readouterr().err
    assert told.endswith("w.pth: total_ops (of thop), total_params (of thop) is no weight and is left out\n")


def test_a_list_of_tensors_is_no_state_dict():
    torch.save([torch.zeros(1)], "w.pt")
    with pytest.raises(ConfigError, match=r"^weights=w.pt: holds no state dict \(names to tensors\)$"):
        read("w.pt")

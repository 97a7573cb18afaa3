"""Checkpoints as others leave them."""

import pytest
import torch

from metaformer import MetaFormer, Pooling
from metaformer.models.weights import load_strictly, read


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

"""The defaults of what counts for a result. A default that changes changes every run that does not set it."""

import json

from metaformer.config.identity import HASHED
from metaformer.config.schema import Config
from metaformer.config.validate import plain

DEFAULTS = """
{
  "mixer": null,
  "model": {
    "mlp_ratio": 4.0,
    "norm": "group",
    "norm_eps": 1e-05,
    "act": "gelu",
    "bias": true,
    "layer_scale": 1e-05,
    "residual": true,
    "channel_mlp": true,
    "depths": [2, 2, 6, 2],
    "dims": [64, 128, 320, 512],
    "stem": [7, 4, 2],
    "downsample": [3, 2, 1],
    "patch_norm": false,
    "res_scale": null,
    "position": null,
    "drop_path": null,
    "head": "norm_pool",
    "head_dropout": null,
    "init": "official",
    "source": "metaformer",
    "name": null,
    "crop_pct": null
  },
  "data": {
    "name": "fashion_small",
    "root": null,
    "dataset": null,
    "train": null,
    "val": null,
    "test": null,
    "size": 224,
    "classes": null,
    "channels": null,
    "decode": "once",
    "decoded_size": null,
    "range": null,
    "overlap": "refuse",
    "image_column": null,
    "label_column": null,
    "split_column": null,
    "mask_column": null,
    "ignore": 255,
    "class_names": null,
    "_target_": null,
    "options": {}
  },
  "task": {"name": "classification", "decoder": "fpn", "width": 64, "dice": 0.0},
  "recipe": {
    "epochs": 5,
    "steps": null,
    "validate_steps": null,
    "batch": 128,
    "optimizer": "adamw",
    "optimizer_options": {},
    "loss": "ce",
    "color_jitter": null,
    "repeated_augmentation": 1,
    "lr": 0.002,
    "weight_decay": 0.05,
    "warmup_epochs": 1.0,
    "warmup_lr": 1e-06,
    "min_lr": 1e-05,
    "label_smoothing": 0.1,
    "crop": 2,
    "flip": true,
    "precision": "fp32",
    "lr_base_size": null,
    "schedule": "cosine",
    "power": 0.9,
    "decoder_lr": 1.0,
    "lr_interval": "step",
    "cooldown_epochs": 0,
    "clip_grad": null,
    "ema": null,
    "scale": null,
    "resize": null,
    "auto_augment": null,
    "erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "class_weights": "none",
    "select": "last",
    "initialize_from": null,
    "initialize_stages": null,
    "freeze": "none",
    "distill": {"teacher": null, "weights": null, "mode": "hard", "alpha": 0.5, "tau": 1.0}
  },
  "seed": 0
}
"""


def test_the_defaults_are_those_that_were_written_down():
    """Where a key is new, add it here and to `LATER` in config/identity.py: at its default all ids stay as they are."""
    now = {key: node for key, node in plain(Config()).items() if key in HASHED}
    assert now == json.loads(DEFAULTS)

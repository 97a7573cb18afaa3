"""Everything that is measured of one trained run, kept in its folder. Imports torch only to measure."""

import hashlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaformer import slots
from metaformer.config import cores
from metaformer.evaluate import restore
from metaformer.identity import file_hash
from metaformer.run import code_version, output_to
from metaformer.schema import ConfigError

MIXING_IMAGES, FIELD_IMAGES, CKA_IMAGES = 8, 64, 256
KEPT = "probes.npz"


@dataclass(frozen=True)
class Probed:
    """What was measured of one trained run, stage by stage."""

    numbers: list[dict[str, float]]  # means over the blocks of a stage
    surgery: list[dict[str, float]]  # accuracy with every mixer of the stage replaced, by what replaces it
    accuracy: float  # of the whole model
    matrices: list[np.ndarray]  # the mixing matrix of the first block
    fields: list[np.ndarray]  # the receptive field of each stage and, at the end, of the logits
    grams: list[np.ndarray]  # of the features


def measure(folder: Path, config: dict[str, Any], jobs: int) -> Probed:
    """Every probe of a finished run; a ConfigError where its model is no MetaFormer."""
    import torch

    from metaformer import probes, training, zoo
    from metaformer.batches import ImageData
    from metaformer.data import Images, balanced
    from metaformer.mixers import Identity, Pooling
    from metaformer.model import MetaFormer

    torch.set_num_threads(config["runtime"]["threads"] or max(1, cores() // jobs))
    net, images = restore(folder, config)
    if not isinstance(net, MetaFormer):
        raise ConfigError(f"{folder}: its model is {type(net).__name__}; expected a MetaFormer, whose blocks are known")
    if len(images.val) < 4:
        raise ConfigError(f"{folder}: its {len(images.val)} validation images are too few; expected 4 at least")
    gpu = torch.cuda.is_available() and config["runtime"]["accelerator"] != "cpu"
    device = torch.device("cuda" if gpu else "cpu")
    net = net.to(device).requires_grad_(False)

    def batches(val: Any) -> Iterator[tuple[Any, Any]]:
        these = Images(images.train, val, images.test, images.classes, images.side)
        these.mean, these.std = images.mean, images.std
        crop, workers = zoo.crop_of(config["model"]), training.workers(config["runtime"], jobs)
        for x, labels in ImageData(these, config["recipe"], 0, crop_pct=crop, workers=workers).val_dataloader():
            yield x.to(device, memory_format=torch.channels_last), labels.to(device)

    few = images.val
    if len(few) > CKA_IMAGES:
        few = few[balanced(few.labels, CKA_IMAGES, "data.val")[0]]
    x = torch.cat([x for x, _ in batches(few)])
    spread = x[torch.linspace(0, len(x) - 1, min(len(x), FIELD_IMAGES)).long()]
    shares = probes.branch_shares(net, spread)
    mixers = [[block.mixer for block in stage.blocks] for stage in net.stages]  # type: ignore[union-attr]
    with torch.no_grad():
        with probes.watched(mixer for own in mixers for mixer in own) as seen:
            net(spread[:: max(1, len(spread) // MIXING_IMAGES)])
        with probes.watched(net.stages) as features:
            net.forward_features(x)
    grams = [probes.gram(out).float() for _, out in features]
    inputs = iter(given for given, _ in seen)
    numbers, matrices, fields = [], [], []
    for i in range(len(net.stages)):
        own = [_of_mixer(mixer, next(inputs)) for mixer in mixers[i]]
        field = probes.receptive_field(torch.nn.Sequential(net.stem, *net.stages[: i + 1]), spread)
        found = {key: float(np.mean([n[key] for _, n in own])) for key in own[0][1]}
        found |= {"branch": float(np.mean(shares[i])), "half": probes.half_area(field)}
        found |= {"beyond": probes.beyond(field, probes.patch_box(net, i, (x.shape[2], x.shape[3])))}
        numbers.append(found)
        matrices.append(own[0][0])
        fields.append(field)
    fields.append(probes.receptive_field(lambda x: net(x)[:, :, None, None], spread))
    instead = {"identity": Identity, "pooling": Pooling, "nothing": probes.Nothing}
    lost: list[dict[str, float]] = []
    for i in range(len(net.stages)):
        lost.append({})
        for name, kind in instead.items():
            with probes.surgery(net, i, lambda _, kind=kind: kind()):  # type: ignore[misc]
                lost[i][name] = probes.accuracy(net, batches(images.val))
    plain = [[tensor.cpu().numpy() for tensor in tensors] for tensors in (matrices, fields, grams)]
    return Probed(numbers, lost, probes.accuracy(net, batches(images.val)), *plain)


def _of_mixer(mixer: Any, x: Any) -> tuple[Any, dict[str, float]]:
    """The mixing matrix of a mixer at its inputs, and the numbers that describe it."""
    from metaformer import probes

    matrix = probes.mixing_matrix(mixer, x)
    return matrix, {
        "rank": probes.effective_rank(matrix),
        "entropy": probes.entropy(matrix),
        "distance": probes.mixing_distance(matrix, (x.shape[2], x.shape[3])),
        "norm": _spectral_norm(mixer, x),
    }


def _spectral_norm(mixer: Any, x: Any) -> float:
    from metaformer import probes

    try:
        return probes.spectral_norm(mixer, x)
    except RuntimeError:  # not every op has a second derivative, deformable convolution for one
        return math.nan


def probe(folder: Path, config: dict[str, Any], jobs: int) -> Probed:
    """What was measured of a run: read from its folder, or measured and written there.

    Args:
        jobs: how many runs are probed at once on this machine.
    """
    path = folder / KEPT
    images = {key: value for key, value in config["data"].items() if key != "root"}
    measuring = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("probes.py", "measured.py"))
    weights = file_hash(str(folder / "weights.pt"), (folder / "weights.pt").stat().st_mtime_ns)
    made_of = measuring + json.dumps([code_version(), weights, images], sort_keys=True).encode()
    key = hashlib.sha256(made_of).hexdigest()[:16]
    if path.exists() and (kept := _read(path, key)) is not None:
        return kept
    if jobs > 1 and config["runtime"]["accelerator"] != "cpu":
        slots.take(config["runtime"]["per_gpu"])  # before torch is imported
    with output_to(Path(os.devnull)):
        probed = measure(folder, config, jobs)
    arrays = {
        f"{name}{i}": array for name in ("matrices", "fields", "grams") for i, array in enumerate(getattr(probed, name))
    }
    told = {"key": key, "numbers": probed.numbers, "surgery": probed.surgery, "accuracy": probed.accuracy}
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, told=json.dumps(told), **arrays)
    part.replace(path)
    return probed


def _read(path: Path, key: str) -> Probed | None:
    """None where it cannot be read, or was measured by other code or of other images."""
    try:
        with np.load(path) as file:
            told = json.loads(str(file["told"]))
            if told.pop("key") != key:
                return None
            stages = len(told["numbers"])
            counts = {"matrices": stages, "fields": stages + 1, "grams": stages}
            arrays: Any = {name: [file[f"{name}{i}"] for i in range(n)] for name, n in counts.items()}
            return Probed(**told, **arrays)
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None

"""Everything that is measured of one trained run."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaformer.config.schema import Runtime
from metaformer.data.splits import balanced
from metaformer.mixers import Identity, Pooling
from metaformer.models.metaformer import MetaFormer
from metaformer.models.precision import device_of, set_tf32
from metaformer.probing import measures
from metaformer.probing.kept import CKA_IMAGES, Probed
from metaformer.runs.finished import Finished
from metaformer.system.errors import ConfigError
from metaformer.training.evaluation import image_data, restore
from metaformer.training.trainer import threads

MIXING_IMAGES, FIELD_IMAGES = 8, 64
INSTEAD: dict[str, type[nn.Module]] = {"identity": Identity, "pooling": Pooling, "nothing": measures.Nothing}


def measure(run: Finished, jobs: int) -> Probed:
    """Every probe of a finished run, on its validation images; a ConfigError where its model is no MetaFormer."""
    config = run.config
    torch.set_num_threads(threads(config.runtime, jobs))
    net, images = restore(run.config, run.folder / "weights.pt")
    if not isinstance(net, MetaFormer):
        kind = type(net).__name__
        raise ConfigError(f"{run.folder}: its model is {kind}; expected a MetaFormer, whose blocks are known")
    if len(images.val) < 4:
        raise ConfigError(f"{run.folder}: its {len(images.val)} validation images are too few; expected 4 at least")
    device = _device(config.runtime)
    set_tf32(config.runtime.tf32)
    net = net.to(device).requires_grad_(False)

    def batches(val: Any) -> Iterator[tuple[Tensor, Tensor]]:
        these = copy.copy(images)  # as a new one it would measure the training images again
        these.val = val
        for x, labels in image_data(config, these, jobs).val_dataloader():
            yield x.to(device, memory_format=torch.channels_last), labels.to(device)

    few = images.val
    if len(few) > CKA_IMAGES:
        few = few[balanced(few.labels, CKA_IMAGES, "data.val")[0]]
    x = torch.cat([x for x, _ in batches(few)])
    with torch.no_grad(), measures.watched(net.stages) as features:
        net.forward_features(x)
    grams = [measures.gram(out).float() for _, out in features]
    spread = x[torch.linspace(0, len(x) - 1, min(len(x), FIELD_IMAGES)).long()]
    numbers, matrices, fields = _stages(net, spread)
    lost = []
    for i in range(len(net.stages)):
        lost.append({name: _without(net, i, kind, batches(images.val)) for name, kind in INSTEAD.items()})
    plain = [[tensor.cpu().numpy() for tensor in tensors] for tensors in (matrices, fields, grams)]
    return Probed(numbers, lost, measures.accuracy(net, batches(images.val)), *plain)


def _device(runtime: Runtime) -> torch.device:
    device = device_of(runtime.accelerator)
    return device if device.type == "cuda" else torch.device("cpu")  # there is no float64 on mps


def _stages(net: MetaFormer, images: Tensor) -> tuple[list[dict[str, float]], list[Tensor], list[Tensor]]:
    """Of each stage the numbers, the mixing matrix of the first block and the receptive field; of the logits theirs."""
    shares = measures.branch_shares(net, images)
    mixers = [[block.mixer for block in stage.blocks] for stage in net.stages]  # type: ignore[union-attr]
    with torch.no_grad(), measures.watched(mixer for own in mixers for mixer in own) as seen:
        net(images[:: max(1, len(images) // MIXING_IMAGES)])
    inputs = iter(given for given, _ in seen)
    numbers, matrices, fields = [], [], []
    for i in range(len(net.stages)):
        own = [_of_mixer(mixer, next(inputs)) for mixer in mixers[i]]
        field = measures.receptive_field(nn.Sequential(net.stem, *net.stages[: i + 1]), images)
        found = {key: float(np.mean([n[key] for _, n in own])) for key in own[0][1]}
        found |= {"branch": float(np.mean(shares[i])), "half": measures.half_area(field)}
        box = measures.patch_box(net, i, (images.shape[2], images.shape[3]))
        numbers.append(found | {"beyond": measures.beyond(field, box)})
        matrices.append(own[0][0])
        fields.append(field)
    fields.append(measures.receptive_field(lambda x: net(x)[:, :, None, None], images))
    return numbers, matrices, fields


def _of_mixer(mixer: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The mixing matrix of a mixer at its inputs, and the numbers that describe it."""
    matrix = measures.mixing_matrix(mixer, x)
    return matrix, {
        "rank": measures.effective_rank(matrix),
        "entropy": measures.entropy(matrix),
        "distance": measures.mixing_distance(matrix, (x.shape[2], x.shape[3])),
        "norm": _spectral_norm(mixer, x),
    }


def _spectral_norm(mixer: nn.Module, x: Tensor) -> float:
    try:
        return measures.spectral_norm(mixer, x)
    except RuntimeError:  # not every op has a second derivative, deformable convolution for one
        return math.nan


def _without(net: MetaFormer, stage: int, kind: type[nn.Module], batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Accuracy with every mixer of a stage replaced."""
    with measures.surgery(net, stage, lambda _: kind()):
        return measures.accuracy(net, batches)

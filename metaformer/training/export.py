"""A trained network as a file for other programs, which says what the network says.

The file takes images as `Trained.transform` gives them, [B, C, H, W] fp32 for any B, and gives logits [B, classes], or
[B, classes, H, W] where it segments. It holds, each as JSON, the configuration, the classes, the shape of an image, and
the mean and deviation of its channels (from 0 to 255). An ONNX file has them as metadata, a program of torch as extra
files, safetensors in their header.
"""

import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.export import Dim, ExportedProgram

from metaformer.config.validate import plain
from metaformer.system.errors import ConfigError
from metaformer.training.restored import Trained, from_safetensors, load_run, trained_from

TOLERANCE = 1e-4  # of the largest logit: other programs add up in another order


@dataclass(frozen=True)
class Exported:
    """The contents of a file, and by how much its logits differ from the network's; None where nothing can run it."""

    content: bytes
    difference: float | None


def export_run(folder: Path, format: str) -> Exported:
    """`export` of a finished run."""
    return export(load_run(folder), format)


def export(trained: Trained, format: str) -> Exported:
    """The network in a format of `FORMATS`, compared with the network itself on batches of noise.

    Raises:
        ConfigError: it cannot be exported to that format, or the file says something else; the line says why.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters' own making
        content, run = FORMATS[format](trained)
        if run is None:
            return Exported(content, None)
        differences = [_difference(trained, run, images) for images in _samples(trained)]
    largest = torch.tensor(differences, dtype=torch.float64).max().item()  # NaN where one is, which max() may pass over
    if not largest <= TOLERANCE:
        raise ConfigError(f"format={format}: its logits differ from the network's by {largest:.2g} of the "
                          f"largest, expected at most {TOLERANCE:g}; nothing is written")  # fmt: skip
    return Exported(content, largest)


Run = Callable[[Tensor], Tensor]


def _samples(trained: Trained) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(images, *trained.shape, generator=generator) for images in (1, 2, 5))


@torch.no_grad()
def _difference(trained: Trained, run: Run, images: Tensor) -> float:
    wanted = trained.net(images)
    return float((run(images) - wanted).abs().max() / wanted.abs().max())


def _metadata(trained: Trained) -> dict[str, str]:
    seen = trained.transform
    told = {"config": plain(trained.config), "classes": trained.classes, "shape": trained.shape}
    pixels = {"mean": seen.mean.tolist(), "std": seen.std.tolist()}
    return {key: json.dumps(value) for key, value in {**told, **pixels}.items()}


def _program(trained: Trained, format: str) -> ExportedProgram:
    """The network as torch traces it, for any number of images."""
    images = torch.randn(2, *trained.shape).to(memory_format=torch.channels_last)
    try:
        return torch.export.export(trained.net, (images,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # whatever a foreign mixer or model raises where it is traced
        raise _refusal(format, error, "safetensors") from error


def _torch(trained: Trained) -> tuple[bytes, Run | None]:
    file = io.BytesIO()
    torch.export.save(_program(trained, "torch"), file, extra_files=_metadata(trained))
    content = file.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module()


def _onnx(trained: Trained) -> tuple[bytes, Run | None]:
    program = _program(trained, "onnx")
    try:
        made: Any = torch.onnx.export(program, input_names=["images"], output_names=["logits"], verbose=False)
        made.model.metadata_props.update(_metadata(trained))
        content: bytes = made.model_proto.SerializeToString()
    except Exception as error:  # the exporter's own, which are many
        raise _refusal("onnx", error, "torch or safetensors", program) from error
    if find_spec("onnxruntime") is None:
        return content, None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _safetensors(trained: Trained) -> tuple[bytes, Run | None]:
    weights = {name: value.clone().contiguous() for name, value in trained.net.state_dict().items()}
    content = save(weights, _metadata(trained))
    return content, trained_from(from_safetensors(content), "the exported file").net


FORMATS: dict[str, Callable[[Trained], tuple[bytes, Run | None]]] = {
    "onnx": _onnx,
    "torch": _torch,
    "safetensors": _safetensors,
}


def _refusal(format: str, error: Exception, others: str, program: ExportedProgram | None = None) -> ConfigError:
    """One line with the first cause of an error, and with the module where an exporter of `program` met it."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    reason = str(causes[-1]).strip().partition("\n")[0][:200] or type(causes[-1]).__name__
    if missing := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", reason):
        reason = f"ONNX has no function for {missing[1]}{' of complex numbers' * ('complex' in str(causes[-1]))}"
    met = re.search(r"translating node %(\w+)", " ".join(map(str, causes)))
    for node in program.graph.nodes if program and met else ():
        if met and node.name == met[1] and (modules := node.meta.get("nn_module_stack")):
            place, kind = list(modules.values())[-1]
            reason = f"{place}, {str(kind).rpartition('.')[2]}: {reason}"
    return ConfigError(f"format={format}: the network cannot be exported ({reason}); expected {others}")

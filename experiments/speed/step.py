"""How fast a training step is (forward, backward, AdamW), beside timm's PoolFormer as it is built and in channels_last.

    python experiments/speed/step.py
    python experiments/speed/step.py --rounds 1 --only quickstart  # in seconds

In fp32, and in bf16 where the processor has instructions for it. On CUDA with compiled variants besides, and with
each step's share of the roofline of the memory: the least time in which the card could read and write what the
operations of the eager step read and write, over the time that was measured. A compiled step moves less, so that its
share can be above 1.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from rounds import DEVICE, Row, heading, in_turns, keep, options, speed, wanted
from timm.layers import GroupNorm1
from timm.models.metaformer import MetaFormer as TimmMetaFormer
from timm.models.metaformer import Pooling as TimmPooling
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metaformer import MetaFormer, Pooling
from metaformer.system.machine import emulates_bf16

SIZES: dict[str, tuple[dict[str, Any], int, int, int]] = {  # our options, channels, batch, image side
    "S12": ({"depths": [2, 2, 6, 2], "dims": [64, 128, 320, 512]}, 3, 4, 224),
    "small": ({"depths": [2, 2, 4, 2], "dims": [32, 64, 160, 256]}, 3, 64, 32),
    "quickstart": (
        {"depths": [1] * 4, "dims": [64] * 4, "stem": [4, 4, 0], "downsample": None, "mlp_ratio": 1.0}, 1, 64, 28
    ),
}  # fmt: skip
Step = Callable[[], None]


def timm_model(depths: list[int], dims: list[int], channels: int, **other: Any) -> nn.Module:
    """timm's PoolFormer v1 of any size, as `timm.create_model("poolformer_s12")` builds it."""
    net = TimmMetaFormer(
        in_chans=channels,
        depths=depths,
        dims=dims,
        token_mixers=TimmPooling,
        norm_layers=GroupNorm1,
        downsample_norm=None,
        mlp_act=nn.GELU,
        mlp_bias=True,
        layer_scale_init_values=1e-5,
        res_scale_init_values=None,
        use_mlp_head=False,
    )
    if "stem" in other:  # timm has a fixed stem, and four hidden channels in the MLP for each outside
        net.stem.conv = nn.Conv2d(channels, dims[0], *other["stem"])
        for module in net.modules():
            if hasattr(module, "fc1"):
                module.fc1, module.fc2 = (nn.Conv2d(dims[0], dims[0], 1) for _ in range(2))
    return net


def training_step(net: nn.Module, images: Tensor, bf16: bool, compiled: bool) -> Step:
    """Forward, backward and AdamW on the same batch."""
    net.train()
    if compiled:
        net.compile()
    labels = torch.randint(1000, (len(images),), device=images.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(net(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def variants(size: str) -> Iterator[tuple[str, Step]]:
    """The steps of one size by their names, the first that of timm as it is."""
    own, channels, batch, side = SIZES[size]
    images = torch.randn(batch, channels, side, side, device=DEVICE)
    last = images.to(memory_format=torch.channels_last)
    for compiled in (False, True) if DEVICE == "cuda" else (False,):
        for bf16 in (False, True) if DEVICE == "cuda" or not emulates_bf16() else (False,):
            name = f"{'bf16' if bf16 else 'fp32'}{', compiled' if compiled else ''}"
            theirs = timm_model(channels=channels, **own).to(DEVICE)
            yield f"timm, {name}", training_step(theirs, images, bf16, compiled)
            theirs = timm_model(channels=channels, **own).to(DEVICE, memory_format=torch.channels_last)
            yield f"timm in channels_last, {name}", training_step(theirs, last, bf16, compiled)
            ours = MetaFormer(Pooling, in_chans=channels, img_size=side, **own)
            yield (
                f"metaformer, {name}",
                training_step(ours.to(DEVICE, memory_format=torch.channels_last), last, bf16, compiled),
            )


class Traffic(TorchDispatchMode):
    """Counts the bytes of the tensors that operations read and write; a view moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            found = torch.utils._pytree.tree_leaves((args, kwargs, out))
            self.moved += sum(t.numel() * t.element_size() for t in found if isinstance(t, Tensor))
        return out


def traffic(step: Step) -> int:
    with Traffic() as counted:
        step()
    return counted.moved


def bandwidth(megabytes: int = 1024) -> float:
    """The bytes that this device copies in a second, read and written: the best of five."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=DEVICE)
    target = torch.zeros_like(source)
    return max(speed(lambda: target.copy_(source), 2 * source.numel(), "wall")() for _ in range(5))


def shares(what: str, rows: list[Row], steps: Mapping[str, Step], batch: int, peak: float) -> Iterator[Row]:
    """Rows with the share of the roofline of the memory that each variant has."""
    for row in rows:
        least = traffic(steps[row["variant"].replace(", compiled", "")]) / peak
        share = f"{least * float(row['median']) / batch:.3g}"
        print(f"{what}: {row['variant']}: {share} of the memory's roofline")
        yield {
            **row,
            "what": f"{what}: share of the memory's roofline",
            "unit": "share",
            "median": share,
        } | dict.fromkeys(("low", "high", "ratio", "ratio_low", "ratio_high"), "")


def main() -> None:
    given = options(__doc__, rounds=9, clock="cpu", roofline=int(DEVICE == "cuda"))
    heading(given)
    for size, (_, _, batch, side) in SIZES.items():
        what = f"train {size}, {side} px, batch {batch}"
        if not wanted(what, given):
            continue
        if DEVICE == "cuda":  # torch keeps eight compiled variants of a forward, and runs the ninth uncompiled
            torch.compiler.reset()
            torch._dynamo.config.fail_on_recompile_limit_hit = True
        steps = dict(variants(size))
        repeats = 20 if DEVICE == "cuda" else 1 if size == "S12" else 3
        figures = {name: speed(step, batch, given.clock, repeats) for name, step in steps.items()}
        rows = in_turns(what, "images/s", figures, given)
        if given.roofline:
            rows += list(shares(what, rows, steps, batch, bandwidth(64 if DEVICE == "cpu" else 1024)))
        keep(rows, __file__, given.out)


if __name__ == "__main__":
    main()

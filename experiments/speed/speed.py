"""How fast a training step and the data are, beside timm and torchvision, in one run on this machine.

    python experiments/speed/speed.py

Variants take turns within a round and the order rotates, so that a slow moment of the machine hits all of them. A
ratio is taken within each round; the table gives the median over the rounds and the range. On CUDA the same script
times with events and adds compiled variants. Writes results.csv beside itself.
"""

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.layers import GroupNorm1
from timm.models.metaformer import MetaFormer as TimmMetaFormer
from timm.models.metaformer import Pooling as TimmPooling
from torch import nn
from torchvision import transforms

from metaformer import MetaFormer, Pooling
from metaformer.config.schema import Data
from metaformer.data.batches import Batches
from metaformer.data.images import Images, load

SIZES = {  # our options, batch, image side
    "s12": ({"depths": [2, 2, 6, 2], "dims": [64, 128, 320, 512]}, 8, 224),
    "small": ({"depths": [2, 2, 4, 2], "dims": [32, 64, 160, 256]}, 128, 32),
}
Step = Callable[[], None]


def timm_model(depths: list[int], dims: list[int]) -> nn.Module:
    """timm's PoolFormer v1 of any size, as `timm.create_model("poolformer_s12")` builds it."""
    return TimmMetaFormer(
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


def training_step(net: nn.Module, images: torch.Tensor, bf16: bool, compiled: bool) -> Step:
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


def training_steps(size: str, device: str) -> dict[str, Step]:
    options, batch, side = SIZES[size]
    images = torch.randn(batch, 3, side, side, device=device)
    last = images.to(memory_format=torch.channels_last)
    steps: dict[str, Step] = {}
    for compiled in (False, True) if device == "cuda" else (False,):
        for bf16 in (False, True):
            name = f"{'bf16' if bf16 else 'fp32'}{' compiled' if compiled else ''}"
            theirs = timm.create_model("poolformer_s12") if size == "s12" else timm_model(**options)
            steps[f"timm {name}"] = training_step(theirs.to(device), images, bf16, compiled)
            ours = MetaFormer(Pooling, **options).to(device, memory_format=torch.channels_last)
            steps[f"metaformer {name}"] = training_step(ours, last, bf16, compiled)
    return steps


def data_epochs(count: int) -> dict[str, Step]:
    """One epoch of `count` images with crop and flip: PIL in a DataLoader, and the batch tensor."""
    data = load(Data(name="fashion_small", train=count))
    mean, std = (v / 255 for v in (data.mean, data.std))
    augment = transforms.Compose(
        [
            transforms.RandomCrop(28, padding=2),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    loader = torch.utils.data.DataLoader(PILImages(data, augment), batch_size=128, shuffle=True, drop_last=True)
    batches = Batches(data, 128, seed=0, epoch=0, crop=2, flip=True)
    return {"torchvision PIL": lambda: drain(loader), "metaformer batch": lambda: drain(batches)}


def drain(batches: object) -> None:
    for _ in batches:  # type: ignore[attr-defined]
        pass


class PILImages(torch.utils.data.Dataset):
    def __init__(self, data: Images, transform: Callable) -> None:
        self.images = [transforms.functional.to_pil_image(image.squeeze(-1).numpy()) for image in data.train.images]
        self.labels, self.transform = data.train.labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def seconds(step: Step, repeats: int, device: str) -> float:
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - started) / repeats


def compare(title: str, steps: dict[str, Step], images: int, rounds: int, repeats: int, device: str) -> list[dict]:
    """Rows with the speed of every step, and its ratio to the first: median and range over the rounds."""
    for step in steps.values():
        step()  # warm up, and compile
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(seconds(steps[name], repeats, device))
    rows = []
    for name, values in times.items():
        ratios = [base / value for base, value in zip(times[names[0]], values, strict=True)]
        low, median, high = min(ratios), statistics.median(ratios), max(ratios)
        speed = images / statistics.median(values)
        rows.append({"what": title, "variant": name, "images_per_s": f"{speed:.1f}", "ratio": f"{median:.2f}"})
        rows[-1] |= {"low": f"{low:.2f}", "high": f"{high:.2f}", "rounds": rounds}
        print(f"{title:24} {name:26} {speed:10.1f} images/s   {median:5.2f}x [{low:.2f}, {high:.2f}]", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--what", nargs="+", choices=[*SIZES, "data"], default=[*SIZES, "data"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.csv"))
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    card = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(f"{card}; torch {torch.__version__}, timm {timm.__version__}; {options.rounds} rounds")
    rows = []
    for what in options.what:
        if what == "data":
            rows += compare("data, crop and flip", data_epochs(4000), 4000 // 128 * 128, options.rounds, 1, "cpu")
        else:
            batch, side = SIZES[what][1:]
            title = f"train {what}, {side} px, batch {batch}"
            repeats = 20 if device == "cuda" else 1 if what == "s12" else 3
            rows += compare(title, training_steps(what, device), batch, options.rounds, repeats, device)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["device", "torch", *rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"device": card, "torch": torch.__version__, **row} for row in rows)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()

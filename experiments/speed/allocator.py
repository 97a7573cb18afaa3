"""What it brings that the C library keeps the memory that a training step frees, instead of giving it back each time.

    python experiments/speed/allocator.py
    python experiments/speed/allocator.py --rounds 1 --only small

The steps are those of step.py in fp32, each measured by a process of its own, since the setting is one of a process.
"""

import json
import resource
import subprocess
import sys

import torch
from rounds import CLOCKS, heading, in_turns, keep, options, wanted
from step import SIZES, training_step

from metaformer import MetaFormer, Pooling
from metaformer.system.machine import keep_memory

STEPS = {"S12": 4, "small": 20, "quickstart": 60}


def measured(size: str, how: str, clock: str, threads: int) -> None:
    """In a process of its own: print images per second, and pages that the system handed out for each step."""
    torch.set_num_threads(threads)
    if how == "kept":
        keep_memory()
    own, channels, batch, side = SIZES[size]
    images = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    net = MetaFormer(Pooling, **own, in_chans=channels).to(memory_format=torch.channels_last)
    step = training_step(net, images, bf16=False, compiled=False)
    for _ in range(3):
        step()
    pages, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, CLOCKS[clock]()
    for _ in range(STEPS[size]):
        step()
    seconds = CLOCKS[clock]() - started
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages
    print(json.dumps([STEPS[size] * batch / seconds, pages / STEPS[size]]))


def main() -> None:
    given = options(__doc__, rounds=7, clock="cpu")
    heading(given)
    for size in filter(lambda size: wanted(size, given), SIZES):
        pages: dict[str, float] = {}

        def run(how: str, size: str = size, pages: dict[str, float] = pages) -> float:
            words = [sys.executable, __file__, "--one", size, how, given.clock, str(given.threads)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            speed, pages[how] = json.loads(done.stdout)
            return float(speed)

        figures = {how: lambda how=how: run(how) for how in ("given back", "kept")}
        rows = in_turns(f"a step of {size}, memory", "images/s", figures, given, warm=False)
        print(", ".join(f"{how}: {number:.0f} pages a step" for how, number in pages.items()))
        keep(rows, __file__, given.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measured(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main()

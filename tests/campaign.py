"""Random kills of a sweep: every run has to end as one that was left alone, and no process may be left over.

    python tests/campaign.py --kills 50 --seed 1
    python tests/campaign.py --kills 10 --seed 1 --photographs   # which processes of their own read
    CAMPAIGN_KILLS=10 pytest -m campaign -n 0

Launcher, one worker, or all of them at once are killed (SIGKILL) or asked to stop (SIGTERM; all of them Ctrl-C too) at
a random moment, one to eight times; then the same command is left to finish, and its runs are compared with those of
the control: the curve, the metrics, and the weights bit for bit. Linux only, as it looks for processes in /proc.
"""

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trained import metrics, same, weights

ALL = (
    *("-m", "mixer=pooling,depthwise", "seed=0,1", "model.dims=[8,8,8,8]", "recipe.batch=20", "recipe.mixup=0.4"),
    *("recipe.ema=0.9", "model.drop_path=0.1", "runtime.threads=1", "hydra.launcher.n_jobs=2"),
)
COMMANDS = {
    "in memory": (*ALL, "data=digits", "data.train=400", "recipe.epochs=8"),
    "photographs": (
        *(*ALL, "data=image_folder", "data.root=photographs", "data.size=32", "data.decode=always"),
        *("recipe.scale=[0.5,1]", "recipe.epochs=4", "runtime.workers=1"),
    ),
}
GRACE = 60  # seconds within which every process of a command is to end with its launcher
MOST = 8  # kills before the command is left to finish, which takes as long as two of them
MARK = "METAFORMER_CAMPAIGN"


@dataclass
class Campaign:
    """What has been seen so far."""

    kills: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    compared: int = 0
    unlike: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.kills)} kills, {self.compared} runs compared: {len(self.unlike)} unlike the control"]
        return "\n".join([*lines, f"{len(self.orphans)} orphans", *self.unlike, *self.orphans])


def photographs(folder: Path) -> None:
    """400 images of noise in two classes, to train on, and some for the other splits."""
    drawn = np.random.default_rng(0)
    for split, images in {"train": 200, "val": 20, "test": 20}.items():
        for name in ("dark", "light"):
            place = folder / "photographs" / split / name
            place.mkdir(parents=True)
            for row in range(images):
                pixels = drawn.integers(0, 160, (40, 40, 3), np.uint8) + np.uint8(90 * (name == "light"))
                Image.fromarray(pixels).save(place / f"{row:03}.png")


def start(folder: Path, runs: str, mark: str, images: str) -> subprocess.Popen:
    """The command, whose processes all have a mark in their environment."""
    with (folder / f"{runs}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "metaformer.train", *COMMANDS[images], f"runtime.runs={runs}"],
            cwd=folder, env={**os.environ, MARK: mark}, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip


def marked(mark: str) -> Iterator[tuple[int, str]]:
    """Every living process with a mark: its number and its command line."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (place / "environ").read_bytes():
                yield int(place.name), (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended meanwhile, or is no more than an entry


def kill(process: subprocess.Popen, mark: str, draw: random.Random) -> str:
    """Kill the launcher, one of its workers, or all; says which, or nothing where there was nobody to kill."""
    workers = [pid for pid, words in marked(mark) if "popen_loky" in words]
    target = draw.choice(["launcher", "worker", "group"])
    number = draw.choice([signal.SIGKILL, signal.SIGTERM, *([signal.SIGINT] if target == "group" else [])])
    try:
        if target == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(draw.choice(workers) if target == "worker" else process.pid, number)
    except (IndexError, ProcessLookupError):
        return ""
    return f"{target} by {number.name}"


def left_over(mark: str) -> list[str]:
    """The processes of a command that is over which do not end either; they are ended here, one by one."""
    end = time.monotonic() + GRACE
    while (there := dict(marked(mark))) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in there:
        os.kill(pid, signal.SIGKILL)
    return [f"orphan {pid}: {words}" for pid, words in there.items()]


def finish(folder: Path, runs: str, images: str) -> float:
    """Leave the command alone; the seconds that it took."""
    begun = time.monotonic()
    assert start(folder, runs, "", images).wait(timeout=1800) == 0, (folder / f"{runs}.log").read_text()
    return time.monotonic() - begun


def unlike(run: Path, control: Path) -> str:
    """In what a run differs from that of the control, or nothing."""
    results = []
    for folder in (run, control):
        result = json.loads((folder / "result.json").read_text())
        results.append({key: result[key] for key in ("metrics", "recall", "confusion", "run_id", "epochs")})
    named = {
        "curve": metrics(run) == metrics(control),
        "metrics": results[0] == results[1],
        "weights": same(weights(run), weights(control)),
    }
    left = [path.name for path in run.glob("*.ckpt")] + [path.name for path in run.glob(".part-*")]
    return ", ".join([name for name, equal in named.items() if not equal] + left)


def campaign(kills: int, seed: int, folder: Path, images: str) -> Campaign:
    """So many kills, and the comparison of all runs that went through them."""
    draw, seen = random.Random(seed), Campaign()
    print(f"campaign of {kills} kills, seed {seed}, {images}", flush=True)
    if images == "photographs":
        photographs(folder)
    whole = finish(folder, "control", images)
    while len(seen.kills) < kills:
        runs = f"runs{seen.compared}"
        for _ in range(draw.randint(1, min(MOST, kills - len(seen.kills)))):
            mark = secrets.token_hex(8)
            process = start(folder, runs, mark, images)
            time.sleep(whole * draw.uniform(0.2, 0.9))
            told = kill(process, mark, draw) if process.poll() is None else ""
            process.wait(timeout=1800)
            seen.orphans += left_over(mark)
            seen.kills += [told] if told else []
            print(f"{len(seen.kills)}: {told or 'it was over'}", flush=True)
            if not told:
                break
        finish(folder, runs, images)
        for control in sorted((folder / "control").glob("*-*")):
            seen.compared += 1
            if difference := unlike(folder / runs / control.name, control):
                seen.unlike.append(f"{runs}/{control.name}: {difference}")
    return seen


@pytest.mark.campaign
@pytest.mark.parametrize("images", COMMANDS)
def test_no_kill_changes_a_result_or_leaves_a_process(tmp_path, images):
    seed = int(os.environ.get("CAMPAIGN_SEED", random.randrange(10**6)))
    seen = campaign(int(os.environ.get("CAMPAIGN_KILLS", 25)), seed, tmp_path, images)
    print(seen)
    assert seen.compared
    assert (seen.unlike, seen.orphans) == ([], []), f"seed {seed}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--photographs", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = campaign(given.kills, given.seed, Path(folder), "photographs" if given.photographs else "in memory")
    print(seen)
    raise SystemExit(bool(seen.unlike or seen.orphans))


if __name__ == "__main__":
    main()

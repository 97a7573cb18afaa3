"""Common random numbers: whatever is drawn is a function of the run's seed and of its place."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *place: object) -> int:
    """A seed of its own for a place (a module path, a step), from the run's seed; stable across machines."""
    return int.from_bytes(hashlib.sha256(repr((seed, *place)).encode()).digest()[:6], "big")


def seed_globals(seed: int, *place: object) -> None:
    """Seed the generators of Python, NumPy and torch for a place, for libraries that draw from those."""
    derived = derive(seed, *place)
    random.seed(derived)
    np.random.seed(derived % 2**32)
    _seed_torch(derived)


def _seed_torch(derived: int) -> None:
    """What torch.manual_seed does, which asks each kind of device that there might be and notes down who called."""
    torch.default_generator.manual_seed(derived)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(derived)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(derived)


@contextmanager
def seeded(seed: int | None, *place: object) -> Iterator[None]:
    """Draw from torch's generator as if it had been seeded for this place, and leave it as it was; None: as it is."""
    if seed is None:
        yield
        return
    if torch.cuda.is_initialized():
        others = range(torch.cuda.device_count())
    else:
        others = range(torch.backends.mps.is_available())
    with torch.random.fork_rng(devices=others):
        _seed_torch(derive(seed, *place))
        yield

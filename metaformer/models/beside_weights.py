"""What training scripts and tools leave in a file beside weights, and before their names."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

COUNTERS = {"n_averaged": "of SWA", "total_ops": "of thop", "total_params": "of thop"}  # buffers that are no weights

# Arguments of a script and numbers of NumPy, which run no code when they are read; NumPy 1 and 2 name them differently.
_MAKERS: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
NO_CODE: list[Any] = [argparse.Namespace, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd")]
NO_CODE += [(make, f"numpy.{core}.multiarray.{make.__name__}") for make in _MAKERS for core in ("core", "_core")]


def why_unsafe(told: str) -> str:
    """Why PyTorch does not read a file safely, from its many lines."""
    if held := re.search(r"GLOBAL ([\w.]+)", told):
        return f"it holds a {held[1]}; expected tensors alone, as of torch.save(model.state_dict(), FILE)"
    return "it holds pickled objects or is no checkpoint" if "weights_only" in told.lower() else told.splitlines()[0]


def without_others(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights without what DDP, torch.compile or a LightningModule put before all names, SWA or thop beside."""
    last = {key: key.rpartition(".")[2] for key in weights}
    if counted := sorted(COUNTERS.keys() & set(last.values())):
        words = ", ".join(f"{name} ({COUNTERS[name]})" for name in counted)
        print(f"note: weights={path}: {words} is no weight and is left out", file=sys.stderr)
    kept = {key.removeprefix("module."): value for key, value in weights.items() if last[key] not in COUNTERS}
    for prefix in ("_orig_mod.", "model.", "net.", "_orig_mod."):
        if kept and all(key.startswith(prefix) for key in kept):
            kept = {key.removeprefix(prefix): value for key, value in kept.items()}
    return kept

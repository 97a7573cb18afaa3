"""Which code made a result."""

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Part of every run id. Raise it when a change of the code changes results beyond rounding; until this is done,
# tests/training/test_golden.py fails.
TRAINING_VERSION = 1


def library_versions() -> dict[str, str]:
    """The versions of the libraries that a result depends on."""
    names = ("torch", "lightning", "timm", "torchmetrics", "hydra-core", "numpy", "pillow")
    return {name: version(name) for name in names}


@cache
def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from and whether it was changed since; None outside of one."""
    package = Path(__file__).parent.parent
    git = ["git", "-C", str(package)]

    def ask(*arguments: str) -> str:
        return subprocess.run([*git, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", "__init__.py")  # not merely inside of some repository
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None

"""A Python that has imported what most commands import, and forks itself for each of them.

A fresh one needs three to six seconds of a core for PyTorch, Lightning and torchmetrics: half of the suite's time. What
is forked has imported nothing of this package, has the environment, folder and files of its caller, and ends as any
Python ends. `tests/test_readme.py` starts a fresh one for each command that the pages name.
"""

import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


class Preloaded:
    """Runs `python -m MODULE ...` in a fork of one process; the process starts at the first one."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, module: str, arguments: Sequence[str], folder: Path, environment: dict[str, str], scratch: Path
    ) -> subprocess.CompletedProcess[str]:
        """Like `subprocess.run`, with text; what it prints goes through files in `scratch`."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        out, err = scratch / "stdout", scratch / "stderr"
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(
            json.dumps([module, list(arguments), str(folder), environment, str(out), str(err)]),
            file=self._server.stdin,
            flush=True,
        )
        code = int(self._server.stdout.readline())
        return subprocess.CompletedProcess([module, *arguments], code, out.read_text(), err.read_text())

    def close(self) -> None:
        """End the process."""
        if self._server is not None:
            self._server.communicate()


def _serve() -> str:
    """Fork for each line of the standard input; in a fork, return the module that it is to run."""
    import lightning  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import timm  # noqa: F401

    gc.freeze()  # else the forks copy what its collector touches
    for line in sys.stdin:
        module, arguments, folder, environment, out, err = json.loads(line)
        if pid := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        for file, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # TMPDIR may be another one
        elsewhere = environment.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:1], sys.argv = [folder, *filter(None, elsewhere)], [module, *arguments]
        return module
    return ""


if __name__ == "__main__" and (chosen := _serve()):
    runpy.run_module(chosen, run_name="__main__", alter_sys=True)

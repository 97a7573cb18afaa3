"""When the result of each run was first known: runs/ledger.jsonl, a line for each, never rewritten. Imports no torch.

Where that file is another user's, who lets nobody else write to it, lines go to one of one's own beside it.
A result that is trained again keeps its first line, so that a study knows which of its runs were no news to it.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path

from metaformer.runs.folder import folders_by_id
from metaformer.system.errors import ConfigError


def note(runs: Path, run_id: str, study: str | None, time: str) -> None:
    """Add a line; several processes may do so at once."""
    line = json.dumps({"run": run_id, "study": study, "time": time}) + "\n"
    how = os.O_RDWR | os.O_APPEND | os.O_CREAT
    try:
        file = os.open(runs / "ledger.jsonl", how, 0o666)
    except PermissionError:
        file = os.open(runs / f"ledger-{os.getuid()}.jsonl", how, 0o666)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":  # a crash has left half a line
            line = f"\n{line}"
        os.write(file, line.encode())
        os.fsync(file)
    finally:
        os.close(file)


def known(runs: Path, ids: Collection[str]) -> list[str]:
    """Those of some runs whose result is known or has once been, from this folder.

    Raises:
        ConfigError: the ledger cannot be read.
    """
    noted = set[str]()
    for path in runs.glob("ledger*.jsonl"):
        try:
            whole = path.read_text().rpartition("\n")[0]  # another process may be writing
            noted |= {str(json.loads(line)["run"]) for line in whole.splitlines() if not _half(line)}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"{path}: cannot be read ({error}); put it back, or move it away to begin anew"
            ) from error
    there = {
        name for name, folders in folders_by_id(runs).items() if any((f / "result.json").exists() for f in folders)
    }
    return [identity for identity in ids if identity in noted | there]


def _half(line: str) -> bool:
    """Whether a line is the beginning of one of `note`, which a crash has left."""
    return line.startswith('{"run": ') and not line.endswith("}")

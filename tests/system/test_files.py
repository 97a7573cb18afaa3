"""Files are written whole, flushed and under a name of their own; locks end with their process, only writers lock."""

import ast
import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import compose, on_disk, repository, runs_of
from trained import equal, go, stop_at

from metaformer.runs import launch
from metaformer.runs.folder import is_held, lock
from metaformer.runs.result import columns_of, read_curve, write_curve
from metaformer.system import files, locks
from metaformer.system.errors import ConfigError
from metaformer.system.files import PART, replacing, write

WRITERS = {"write_text", "write_bytes", "savez", "savez_compressed", "savetxt", "save_file", "savefig", "save_image"}
WITHIN = {"part", "file"}  # names of what `replacing` gives


def writes(tree: ast.AST) -> list[str]:
    """The places where a module writes to a file that is not one of `replacing`."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        on = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        said = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = [a.value for a in said if isinstance(a, ast.Constant) and set(str(a.value)) <= set("rwxabt+")]
        opens = name == "open" and any(set(mode) & set("wxa+") for mode in modes)
        saves = name in WRITERS or (on, name) in {("torch", "save"), ("np", "save")}
        into = WITHIN | ({"svg", "content"} if name in {"savefig", "savez_compressed"} else set())  # in memory
        if (opens or saves) and not {on, *(ast.unparse(argument) for argument in node.args)} & into:
            found.append(f"{node.lineno}: {ast.unparse(node)[:60]}")
    return found


@pytest.mark.parametrize(
    ("line", "wrong"),
    [("path.write_text(content)", 1), ("p.open('r+b')", 1), ("open(p, 'wt')", 1), ("open(p, mode='a')", 1),
     ("part.write_text(content)", 0), ("p.open('rb')", 0), ("figure.savefig(svg, format='svg')", 0), ("open(p)", 0),
     ("np.savez(path, weights)", 1), ("torch.save(weights, part)", 0), ("torch.save(weights, path)", 1)],
)  # fmt: skip
def test_a_file_that_is_written_in_place_is_seen(line, wrong):
    assert len(writes(ast.parse(line))) == wrong


def test_every_file_is_written_whole():
    package = repository() / "metaformer"
    own = {  # what is there to be added to
        "runs/result.py": ("(folder / 'metrics.csv').open('ab')", "(folder / 'steps.csv').open('a', newline='')"),
        "system/files.py": ("path.open('ab')",),
    }
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        for place in writes(ast.parse(path.read_text())):
            assert place.partition(": ")[2] in own.get(name, ()), f"{name}:{place}: use metaformer.system.files"


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "new" / "x.json"
    write(path, "first")

    def broken() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
    with replacing(path) as one, replacing(path) as other:
        assert one != other  # two processes on two machines may have one number
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    flush, replace = files.flush, Path.replace
    monkeypatch.setattr(files, "flush", lambda path: (done.append(path.name.startswith(PART)), flush(path)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("named"), replace(self, to))[1])
    write(tmp_path / "x", "x")
    assert done == [True, "named", False]  # the file, its name, its folder


@pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only file system")])
def test_a_disk_that_takes_nothing_is_one_line(tmp_path, monkeypatch, code, reason):
    def full(path):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(ConfigError, match=rf"x\.json: cannot be written \({reason}"):
        write(tmp_path / "x.json", "{}")


def test_what_a_killed_write_left_goes_with_the_next_start():
    folder = go("recipe.epochs=1").folder
    (folder / "result.json").unlink()
    (folder / f"{PART}0-last.ckpt").write_text("half")
    go("recipe.epochs=1")
    assert not list(folder.glob(f"{PART}*"))


def test_a_curve_that_was_cut_in_half_goes_on_with_whole_rows(monkeypatch):
    """A row cut after "1" of "12" would count as another row of epoch 1."""
    whole = go("recipe.epochs=3", "runtime.runs=whole").folder
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at=24)
        with pytest.raises(SystemExit):
            go("recipe.epochs=3")
    folder = next(Path("runs").glob("*-*"))
    curve = (folder / "metrics.csv").read_text()
    assert curve.count("\n") == 2
    (folder / "metrics.csv").write_text(curve + "1")
    go("recipe.epochs=3")
    assert equal(folder, whole)


def test_a_curve_without_rows_is_not_reported_as_whole(monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, signal.SIGTERM, at=24)
        with pytest.raises(SystemExit):
            go("recipe.epochs=3")
    folder = next(Path("runs").glob("*-*"))
    write_curve(folder, [], columns_of("classification"))
    assert read_curve(folder) == []
    with pytest.raises(ConfigError, match=r"metrics\.csv: has no row for each of the 1 epochs .*remove the folder"):
        go("recipe.epochs=3")


# ------------------------------------------------------------------ locks

HOLD = "import sys, time; from pathlib import Path; from metaformer.system import locks\n"
HOLD += "with locks.held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def holder(path: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def killed(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def test_a_lock_keeps_others_out_and_ends_with_its_process(tmp_path):
    path = tmp_path / ".lock"
    assert not locks.is_held(path)
    assert not path.exists()  # to look is not to write
    process = holder(path)
    assert locks.is_held(path)
    assert locks.take(path) is None
    with pytest.raises(TimeoutError), locks.held(path, 0.2):
        pass
    killed(process)
    assert not locks.is_held(path)
    with locks.held(path, 0):
        assert locks.is_held(path)


def test_a_run_that_is_looked_at_is_not_taken(tmp_path, capfd):
    with lock(tmp_path / "a-b"):
        assert is_held(tmp_path / "a-b")
    looking = os.open(tmp_path / "a-b" / ".lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not is_held(tmp_path / "a-b")  # two may look at once
    threading.Timer(0.1, os.close, [looking]).start()
    with lock(tmp_path / "a-b"):  # which waits, and does not say that somebody trains
        assert is_held(tmp_path / "a-b")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_recognised_and_said(tmp_path, monkeypatch, capfd, code):
    own = fcntl.flock
    (tmp_path / "lustre" / "run").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()

    def flock(file, kind):
        if "lustre" in str(Path(f"/proc/self/fd/{file}").readlink()):
            raise OSError(code, os.strerror(code))
        own(file, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    locks._tell.cache_clear()
    path = tmp_path / "lustre" / "run" / ".lock"
    with lock(path.parent):
        assert locks.take(path) is None  # another process of this machine is kept out
        assert is_held(path.parent)
    assert not is_held(path.parent)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert f"the file system of {tmp_path / 'lustre'} has no locks (flock)" in said
    monkeypatch.setattr(fcntl, "flock", lambda file, kind: (_ for _ in ()).throw(OSError(code, "no locks")))
    with pytest.raises(ConfigError, match="has no locks; set TMPDIR"), locks.held(path):
        pass


# ------------------------------------------------------------------ what may only be read


AS_USUAL = [sys.executable, "-m"]
THEIRS = """# @package _global_
hydra: {mode: MULTIRUN, sweeper: {params: {mixer: 'pooling,identity', seed: '0,1'}}}
study: {name: theirs, reference: pooling}
"""


@pytest.fixture
def as_a_stranger():
    """A folder that this test, as another user, may read and not write to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        here = Path.cwd()

        def leave() -> Path:
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o555 if path.is_dir() else 0o444)
            os.chdir(folder)
            if os.getuid() == 0:
                os.seteuid(65534)
            return folder

        yield folder, leave
        if os.getuid() == 0:
            os.seteuid(0)
        os.chdir(here)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)


def test_a_study_of_somebody_else_is_read(tmp_path, cli):
    """`plan` and `report` look whether runs are held, and take no lock for that."""
    Path("experiments").mkdir()
    Path("experiments/theirs.yaml").write_text(THEIRS)
    listed = on_disk(runs_of(pooling=[0.8, 0.7], identity=[0.6, 0.5]), tmp_path / "runs")
    for place in (tmp_path / "runs").iterdir():
        (place / ".lock").touch()
    (tmp_path / "runs" / "run-identity0" / "result.json").unlink()
    launch.record(compose("experiments=theirs").study, listed, ["experiments=theirs"], tmp_path / "runs")
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    as_others = ["setpriv", "--bounding-set=-dac_override", *AS_USUAL] if os.getuid() == 0 else AS_USUAL
    for verb, code in (("plan", 0), ("report", 2)):
        command = [*as_others, f"metaformer.{verb}", "experiments=theirs"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (code, int(code > 0)), done.stderr
        assert "pooling" in done.stdout
    assert "error: runs/reports/theirs/tables/accuracy.csv: cannot be written (Permission denied)" in done.stderr


def test_data_that_may_only_be_read_are_read_without_a_lock(as_a_stranger, monkeypatch):
    from torchvision import datasets

    from metaformer.config.schema import Data
    from metaformer.data.readers.in_memory import torchvision_set

    folder, leave = as_a_stranger

    class Theirs:
        """FashionMNIST as torchvision has it: it writes where it is to download."""

        classes = ["cat", "dog"]  # noqa: RUF012

        def __init__(self, root, train, download=False):
            if download:
                (Path(root) / "x").write_text("")
            self.data, self.targets = np.zeros((40, 4, 4), np.uint8), np.arange(40) % 2

    monkeypatch.setattr(datasets, "FashionMNIST", Theirs)
    root = leave()
    assert len(torchvision_set(Data(name="fashion_mnist", root=str(root)), folder).test) == 40
    monkeypatch.setattr(Theirs, "__init__", lambda self, root, train, download=False: 1 / 0)
    with pytest.raises(ConfigError, match=r"could not be downloaded \(.*Permission denied"):
        torchvision_set(Data(name="fashion_mnist", root=str(root)), folder)

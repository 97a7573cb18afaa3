"""A SLURM of one node on loopback, with accounting, for the tests: `python tests/slurm_site.py start|stop FOLDER`."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
}
CPUS = 8  # that the node claims to have on any machine: several jobs at once, or one as conf/ asks for it

# Without control groups and with the ports given, it runs in a container. KillWait leaves a job that is preempted the
# time to save; cred_expire shortens the pause before it is started again.
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ctld}
SlurmdPort={d}
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={folder}/munge.sock
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=15
SchedulerParameters=bf_interval=2,sched_min_interval=0,sched_interval=2
MinJobAge=3600
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
DBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_tests
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
CommunicationParameters=NoInAddrAny
"""


def reason() -> str | None:
    """Why SLURM cannot be had here, or None."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "SLURM's own daemons are started by root only"
    os.environ["PATH"] += ":/usr/sbin"
    missing = [package for command, package in PACKAGES.items() if shutil.which(command) is None]
    return f"not installed: apt-get install {' '.join(missing)}" if missing else None


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """A SLURM for the length of the block, or of the life of this process where that is shorter."""
    # The end of its input tells it that the block was left, and also that this process was killed.
    command = [sys.executable, __file__, "stop-at-end-of-input", str(folder)]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        start(folder)
        yield
    finally:
        watcher.communicate(timeout=120)


def start(folder: Path) -> None:
    """Start every daemon in a folder of its own, on free ports, and wait until the node is idle."""
    host = socket.gethostname().partition(".")[0]
    try:
        socket.gethostbyname(host)
    except OSError:
        with Path("/etc/hosts").open("a") as hosts:
            hosts.write(f"127.0.0.1 {host}\n")
    for name in ("state", "spool", "db"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    names = {"folder": folder, "host": host, "cpus": CPUS, **dict(zip(("ctld", "d", "dbd"), _ports(), strict=True))}
    (folder / "slurm.conf").write_text(CONF.format(**names))
    dbd = folder / "slurmdbd.conf"
    dbd.write_text(DBD_CONF.format(**names))
    dbd.chmod(0o600)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "MYSQL_UNIX_PORT": str(folder / "mysql.sock")}

    def run(*command: str) -> None:
        subprocess.run(command, env=env, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)

    run("munged", "--force", *(f"--{option}-file={folder}/munge.{option}" for option in ("key", "pid", "log", "seed")),
        f"--socket={folder}/munge.sock")  # fmt: skip
    data = ("--no-defaults", "--user=root", f"--datadir={folder}/db")
    run("mariadb-install-db", *data, "--auth-root-authentication-method=normal", "--skip-test-db")
    pid, log = f"--pid-file={folder}/mariadbd.pid", f"--log-error={folder}/mariadb.log"
    where = (f"--socket={folder}/mysql.sock", "--skip-networking", "--innodb-lock-wait-timeout=900")
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(["mariadbd", *data, *where, pid, log], **quiet, start_new_session=True)
    _wait("the data base", lambda: run("mariadb-admin", "--no-defaults", "-uroot", f"-S{folder}/mysql.sock", "ping"))
    run("slurmdbd")
    _wait("slurmdbd", lambda: run("sacctmgr", "-n", "show", "cluster"))
    run("sacctmgr", "-i", "add", "cluster", "tests")
    run("slurmctld")
    run("slurmd")
    idle = ["timeout", "5", "sh", "-c", "sinfo -h -o %t | grep -q idle"]
    _wait("the node", lambda: run(*idle))


def stop(folder: Path) -> None:
    """End the jobs, which would outlive the daemons, then the daemons; once more does no harm."""
    if _daemon(folder, "slurmctld"):
        options = {"env": {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}, "stdin": subprocess.DEVNULL}
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["scancel", "--user=root"], **options, timeout=20)
            left = ["timeout", "40", "sh", "-c", "while squeue -h | grep -q .; do sleep 0.2; done"]
            subprocess.run(left, **options, timeout=60)
    for name in ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munge"):
        for number in (signal.SIGTERM, signal.SIGKILL):
            if pid := _daemon(folder, name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            end = time.time() + 10
            while _daemon(folder, name) and time.time() < end:
                time.sleep(0.1)


def _daemon(folder: Path, name: str) -> int | None:
    """The process of a daemon; what a pid file names may be gone, and its number another's by now."""
    try:
        pid = int((folder / f"{name}.pid").read_text())
        told = b"".join(Path(f"/proc/{pid}/{file}").read_bytes() for file in ("cmdline", "environ"))
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(f"{folder}/") in told else None


def _ports() -> list[int]:
    sockets = [socket.socket() for _ in range(3)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def _wait(what: str, ask: Callable[[], None], seconds: float = 60) -> None:
    end = time.time() + seconds
    while True:
        try:
            return ask()
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            if time.time() > end:
                raise RuntimeError(f"{what} does not answer: {error.stderr}") from error
        time.sleep(0.2)


if __name__ == "__main__":
    if problem := reason():
        raise SystemExit(problem)
    if sys.argv[1] == "stop-at-end-of-input":
        sys.stdin.read()
    (start if sys.argv[1] == "start" else stop)(Path(sys.argv[2]).resolve())

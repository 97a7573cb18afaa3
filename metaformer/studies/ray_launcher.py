"""Ray as a launcher of Hydra's: a run is a task of a cluster, or of a Ray that is started for the sweep.

It is in place of hydra-ray-launcher 1.2.2, which cannot join a cluster (it gives `ray.init` the size of a store in any
case, which Ray then refuses), forgets all other runs where one is lost, and keeps cloudpickle below 3.
"""

import contextlib
import io
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from metaformer.config.hydra_internals import lost
from metaformer.system.errors import ConfigError, install
from metaformer.system.files import PART, write
from metaformer.system.machine import CORES, RESTARTS, cores
from metaformer.system.orphans import GRACE

ANSWER = 180  # seconds that a node has to start a process of Python


class RayLauncher(Launcher):
    """Runs each job as a task of Ray, which starts it again where its worker or node is gone."""

    __module__ = "hydra_plugins.metaformer"  # see sweeper.register()

    def __init__(self, address: str | None, max_retries: int, **asked: Any) -> None:
        """`asked` is what a run takes of a node: num_cpus, num_gpus, resources."""
        here = os.environ.get("RAY_ADDRESS") or address or "local"
        self.address = here if address in (None, "auto") else address
        self.max_retries = max_retries
        self.asked: dict[str, Any] = {"num_cpus": 1}
        for key, value in asked.items():
            if value is not None:
                self.asked[key] = dict(value) if isinstance(value, Mapping) else value

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def connect(self) -> None:
        """Join the cluster or start one, and see that its nodes have what a run needs; once for a sweep.

        Raises:
            ConfigError: Ray is not installed, or none answers; no node has what a run asks for, for which Ray would
                wait for ever; a node does not share the folder of the runs.
        """
        try:
            import ray
        except ImportError:
            raise ConfigError(f"hydra/launcher=ray: not installed; it comes with {install('ray')}") from None
        if ray.is_initialized():
            return
        self._task()  # refused before Ray starts
        self._init()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        self._check_resources([node["Resources"] for node in nodes])
        if len(nodes) > 1:
            _check_shared(nodes, Path(self.config.runtime.runs))

    def _task(self) -> Any:
        """What Ray runs. Its options are given here: with `.options`, tasks on different GPUs would share a process."""
        import ray

        try:
            return ray.remote(max_retries=self.max_retries, **self.asked)(_run)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"hydra/launcher=ray: {error}") from error

    def _init(self) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        alone = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": 80 * 2**20}
        paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {"PYTHONPATH": os.pathsep.join(paths), CORES: str(max(1, int(self.asked["num_cpus"])))}
        try:
            if self.address not in ("auto", "local"):  # Ray itself would try for minutes
                host, _, port = self.address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            ray.init(
                self.address,
                runtime_env={"env_vars": variables},
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(alone if self.address == "local" else {}),
            )
        except Exception as error:  # whatever Ray raises, which differs with its version
            where = f"hydra.launcher.address={self.address}"
            expected = "expected auto or host:port of a cluster of which this machine is a node, or null"
            raise ConfigError(f"{where}: no Ray answers ({type(error).__name__}); {expected}") from error
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # Ray's own leaves a dump in C

    def _check_resources(self, nodes: Sequence[Mapping[str, float]]) -> None:
        runtime = self.config.runtime
        if "num_gpus" not in self.asked:
            there = any(node.get("GPU") for node in nodes)
            wanted = runtime.accelerator == "gpu" or (runtime.accelerator == "auto" and there)
            self.asked["num_gpus"] = 1 / runtime.per_gpu if wanted else 0
        if self.asked["num_gpus"] > 1:
            gpus = f"hydra.launcher.num_gpus={self.asked['num_gpus']}"
            raise ConfigError(f"{gpus}: expected at most 1, as each run of a sweep is on one device")
        asked = {"CPU": self.asked["num_cpus"], "GPU": self.asked["num_gpus"], **self.asked.get("resources", {})}
        if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
            return
        most = {name: max(node.get(name, 0) for node in nodes) for name in asked if asked[name]}
        wants, has = (", ".join(f"{amount[name]:g} {name}" for name in most) for amount in (asked, most))
        keys = "see num_cpus, num_gpus and resources of hydra.launcher, and runtime.accelerator"
        raise ConfigError(f"hydra/launcher=ray: a run asks for {wants}, and the nodes have {has} at most; {keys}")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run all jobs to their end; one that was lost more often than `max_retries` returns its error."""
        self.connect()
        import ray

        setup_globals()
        task = self._task()
        # once for all runs; the last part is Hydra's own state, which each of its launchers takes to its workers
        state = ray.put((str(Path.cwd()), self.hydra_context, self.task_function, Singleton.get_state()))
        tasks = [
            task.remote(state, self._composed(words, initial_job_idx + i)) for i, words in enumerate(job_overrides)
        ]
        returned = []
        with contextlib.redirect_stdout(io.StringIO()):  # Ray prints each death
            try:
                for one in tasks:
                    try:
                        returned.append(ray.get(one))
                    except ray.exceptions.RayError as error:
                        returned.append(lost(error))
            except (KeyboardInterrupt, SystemExit) as stop:  # a run gets it as a Ctrl-C of its own, and saves
                for one in tasks:
                    ray.cancel(one)
                ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)
                if isinstance(stop, SystemExit):  # which Ray makes a status of 1
                    raise SystemExit(128 + signal.SIGTERM) from stop
                raise
            finally:
                ray.shutdown()
        return returned

    def _composed(self, words: Sequence[str], number: int) -> DictConfig:
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
        with open_dict(composed):
            composed.hydra.job.id = composed.hydra.job.num = number
        return composed


def _run(state: tuple[str, HydraContext, TaskFunction, Any], config: DictConfig) -> JobReturn:
    """One job, in a process of Ray's on any node."""
    from ray._private.worker import global_worker  # the one thing that Ray's public interface does not tell

    folder, context, task, singletons = state
    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]  # of the job that has started this node: its rank is not that of a run
    os.environ[RESTARTS] = str(global_worker.core_worker.get_current_task_attempt_number())
    setup_globals()
    Singleton.set_state(singletons)
    return run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _check_shared(nodes: Sequence[Mapping[str, Any]], runs: Path) -> None:
    """A ConfigError where a node does not see a file that is written here, or cannot import this package."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder = next(place for place in (runs.absolute(), *runs.absolute().parents) if place.exists())
    token = folder / f"{PART}{os.urandom(8).hex()}"
    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    absent = f"{folder} is another folder there, or none; expected runs and data on a disk that all nodes share"
    write(token, b"")
    try:
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            try:
                answer = look.options(scheduling_strategy=there).remote(str(token), str(Path.cwd()))
                problem = "" if ray.get(answer, timeout=ANSWER) else absent
            except ray.exceptions.RayError as error:
                problem = str(error).strip().splitlines()[-1]
            if problem:
                raise ConfigError(f"hydra/launcher=ray: node {node['NodeManagerHostname']}: {problem}")
    finally:
        token.unlink(missing_ok=True)


def _sees(file: str, folder: str) -> bool:
    return Path(file).exists() and Path(folder).is_dir()

"""What is used of Hydra's private interfaces: these tests fail loudly when Hydra changes."""

import contextlib
import os
import signal

import pytest
import submitit
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher
from joblib import Parallel, delayed

from metaformer import train
from metaformer.config.compose import loader
from metaformer.config.hydra_internals import begin_workers_with, launched, load, points_of, size_of
from metaformer.studies import sweeper, worker


def test_composition_leaves_hydras_global_state_alone():
    assert not GlobalHydra.instance().is_initialized()
    composed = load(loader(), ["mixer=attention", "seed=3"])
    assert (composed.seed, composed.mixer._target_) == (3, "metaformer.mixers.Attention")
    assert composed.hydra.runtime.choices.mixer == "attention"
    assert list(composed.hydra.overrides.task) == ["mixer=attention", "seed=3"]
    assert not GlobalHydra.instance().is_initialized()


def test_a_sweep_is_refused_for_one_run_and_kept_for_many():
    with pytest.raises(HydraException):
        load(loader(), ["seed=0,1"])
    assert list(load(loader(), ["seed=0,1"], multirun=True).hydra.overrides.task) == ["seed=0,1"]


def test_points_are_in_the_order_of_hydras_own_sweeper():
    words = ["mixer=pooling,identity", "seed=range(2)", "recipe.lr=0.1"]
    assert points_of(loader(), words) == [
        ["mixer=pooling", "seed=0", "recipe.lr=0.1"], ["mixer=pooling", "seed=1", "recipe.lr=0.1"],
        ["mixer=identity", "seed=0", "recipe.lr=0.1"], ["mixer=identity", "seed=1", "recipe.lr=0.1"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["seed=3"], ["mixer=pooling,identity", "seed=range(5)"], ["seed=range(1,8,3)"], ["seed=range(5,0,-2)"],
        ["recipe.lr=range(0.1,0.5,0.1)"], ["seed=range(0,0)"], ["seed=choice(1,2,3)", "recipe.lr=0.1"],
    ],
)  # fmt: skip
def test_points_are_counted_without_being_made(words):
    assert size_of(loader(), words) == len(points_of(loader(), words))


def test_a_point_is_composed_over_the_study():
    study = load(loader(), ["experiments=quickstart"], multirun=True)
    point = loader().load_sweep_config(study, ["experiments=quickstart", "mixer=identity", "seed=2"])
    assert (point.study.name, point.seed, point.mixer._target_) == ("quickstart", 2, "metaformer.mixers.Identity")


def test_workers_of_joblib_begin_with_a_function_of_ours():
    """Hydra's launcher hands what it has to joblib.Parallel, which hands the rest to its workers."""
    launcher = JoblibLauncher(n_jobs=2)
    begin_workers_with(launcher, {"initializer": os.putenv, "initargs": ("WORKER_OF", "me")})
    assert Parallel(**launcher.joblib)(delayed(os.system)("test $WORKER_OF = me") for _ in range(2)) == [0, 0]
    begin_workers_with(BasicLauncher(), {"initializer": os.putenv})


def test_a_job_of_submitit_that_dies_does_not_hide_the_others(tmp_path):
    """Its launcher ends in `[job.results()[0] for job in jobs]`, which raises at the first one that died."""

    def work(pid):
        if pid is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return JobReturn(_return_value="done", status=JobStatus.COMPLETED)

    class Launcher(LocalLauncher):
        def launch(self, job_overrides, initial_job_idx):
            executor = submitit.LocalExecutor(tmp_path)
            jobs = executor.map_array(work, [0, None])
            return [job.results()[0] for job in jobs]

    before = submitit.Job.results
    died, returned = launched(Launcher(submitit_folder=""), [["seed=0"], ["seed=1"]])
    assert isinstance(died, submitit.core.utils.UncompletedJobError)
    assert returned == "done"
    assert submitit.Job.results is before


@pytest.mark.parametrize(
    ("words", "composed"), [(["recipe.lrr=1"], 1), (["recipe.lr=-1"], 1), (["seed=1"], 2), (["-m", "seed=1,2"], 2)]
)
def test_hydras_command_does_not_compose_only_to_know_its_mode(words, composed, monkeypatch):
    calls, trained = [], []
    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", lambda *a, **k: (calls.append(1), load(*a, **k))[1])
    monkeypatch.setattr(worker, "job", lambda cfg: (trained.append(cfg.seed), worker.Outcome("a", "ready"))[1])
    monkeypatch.setattr(sweeper.StudySweeper, "sweep", lambda self, arguments: trained.append(arguments))
    monkeypatch.setattr("sys.argv", ["train", *words])
    with contextlib.suppress(SystemExit):
        train.main()
    assert (len(calls), trained) == (composed, {"seed=1": [1], "seed=1,2": [["seed=1,2"]]}.get(words[-1], []))

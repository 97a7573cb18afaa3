"""What a sweep refuses before anything runs."""

import pytest
from omegaconf import OmegaConf

from metaformer.studies import sweeper
from metaformer.studies.points import expand
from metaformer.system.errors import ConfigError


def test_slurm_without_slurm(monkeypatch):
    class SlurmLauncher:
        """As that of submitit, by its name."""

    study = sweeper.StudySweeper(None)
    study.launcher, study.config = SlurmLauncher(), OmegaConf.create({"hydra": {"launcher": {}}})
    planned = expand(["mixer=pooling", "runtime.devices=2"])
    monkeypatch.setattr(sweeper.shutil, "which", lambda _: "/usr/bin/sbatch")
    study._check_launcher(planned)
    monkeypatch.setattr(sweeper.shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match="hydra/launcher=slurm: there is no sbatch here; expected a login node"):
        study._check_launcher(planned)

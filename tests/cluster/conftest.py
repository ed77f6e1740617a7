import pytest
import slurm_sim
from helpers import one_model, snakemake


@pytest.fixture(scope="session")
def config():
    """Ten small models, of which three share a process, so that four jobs want a GPU at once."""
    models = [
        {"id": f"embed-repro/IDF-{seed}.1B", "source": {"demo": seed}, "trust_remote_code": True}
        for seed in range(7, 17)
    ]
    return one_model(models)


@pytest.fixture(scope="session")
def local(tmp_path_factory, config):
    """A working directory in which the experiment has run on this machine, without a cluster."""
    workdir = tmp_path_factory.mktemp("local")
    done = snakemake(workdir, config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir


@pytest.fixture
def slurm(tmp_path_factory):
    if reason := slurm_sim.missing():
        pytest.skip(reason)
    with slurm_sim.Slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running

import pytest
import slurm_sim
from helpers import REPOSITORY, snakemake


@pytest.fixture(scope="session")
def config():
    """The cheaper half of config.yaml's experiment: four shards of one model."""
    model = {
        "id": "embed-repro/IDF-Attention-0.1B",
        "source": {"demo": 7},
        "trust_remote_code": True,
    }
    source = {"beir": str(REPOSITORY / "data" / "demo")}
    dataset = {"name": "demo", "source": source, "shards": 4}
    return {"experiment": "demo", "models": [model], "datasets": [dataset]}


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

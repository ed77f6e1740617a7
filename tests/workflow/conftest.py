import pytest
from helpers import REPOSITORY, snakemake
from minilm import minilm_folder


@pytest.fixture(scope="session")
def minilm():
    """A config entry for the real all-MiniLM-L6-v2, from a folder."""
    return {
        "id": "sentence-transformers/all-MiniLM-L6-v2",
        "source": {"path": str(minilm_folder())},
    }


@pytest.fixture(scope="session")
def demo_config(minilm):
    """config.yaml's experiment, MiniLM from a folder: another test fetches it."""
    idf = {"id": "embed-repro/IDF-Attention-0.1B", "source": {"demo": 7}, "trust_remote_code": True}
    source = {"beir": str(REPOSITORY / "data" / "demo")}
    dataset = {"name": "demo", "source": source, "shards": 4}
    return {"experiment": "demo", "models": [minilm, idf], "datasets": [dataset]}


@pytest.fixture(scope="session")
def demo(tmp_path_factory, demo_config):
    """A working directory in which the demonstration has run to its report."""
    workdir = tmp_path_factory.mktemp("demo")
    done = snakemake(workdir, config=demo_config)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir, done

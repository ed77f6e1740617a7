import pytest
from cloning import fresh_clone
from stand_ins import Texts, bert, qwen


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder of models and datasets that tests only read."""
    folder = tmp_path_factory.mktemp("tiny")
    bert(folder / "bert")
    bert(folder / "other", seed=1)
    qwen(folder / "qwen")
    Texts(1).beir(folder / "mine")
    return folder


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """A fresh clone of the working tree's state, with this environment in place of a new one."""
    return fresh_clone(tmp_path_factory.mktemp("clone") / "embed-repro")

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_run import Run, config, write_corpus


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A working directory in which the small experiment has run to its report, undisturbed."""
    folder = tmp_path_factory.mktemp("finished")
    run = Run(folder / "work", config(write_corpus(folder / "corpus")))
    status, output = run()
    assert status == 0, output
    return run

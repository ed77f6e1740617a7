"""Import what a first run imports, so that it finds Python's bytecode made.

Run at the end of `make`'s installation, which leaves bytecode out: of all that is installed it is
minutes of work, and most is never imported. Two processes side by side write what they compile.
"""

import importlib
import os
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing import Process
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.plan.forking import MODULES
from embedrepro.startup import uncollected, without_extras

# What the workflow and its jobs without a model import. torch imports sympy, after two seconds.
LIGHT = (
    "sympy",
    "snakemake.cli",
    "embedrepro.plan.build",
    "embedrepro.datasets.prepare",
    "embedrepro.models.staging",
    "embedrepro.sources.hub_client",
    "pandas",
    "jsonschema",
    "smart_open",
    "docutils.core",
)
# What jobs on models import: what they are forked from, and the engine of those with own code.
HEAVY = (*MODULES, "embedrepro.encode.flag", "FlagEmbedding.inference.embedder.encoder_only.base")


@uncollected()
def import_all(names: tuple[str, ...], extras: AbstractContextManager[None]) -> None:
    with extras:
        for name in names:
            with suppress(Exception):  # the run that needs it will say so
                importlib.import_module(name)


def import_heavy() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # as jobs on models have it before they import
    import_all(HEAVY, without_extras())


def import_light() -> None:
    import_all(LIGHT, nullcontext())


def main() -> None:
    sys.dont_write_bytecode = False
    processes = [Process(target=imports) for imports in (import_heavy, import_light)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()

"""What starting costs: which libraries a job imports, and what the installation compiles."""

import subprocess
import sys
from argparse import Namespace
from importlib.util import find_spec

import pytest
from embedrepro.plan import command_line
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.jobs import make_job
from helpers import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"
PROGRAM = """
import sys
from embedrepro.startup import without_pandas
without_pandas()
import numpy as np, pyarrow as pa
assert pa.array(["x"]).to_pylist() == ["x"] and pa.array([1, 2]).to_numpy().tolist() == [1, 2]
assert pa.array(np.ones(1)).to_pylist() == [1.0]
print("pandas" in sys.modules)
assert pa.table({"a": [1]}).to_pandas()["a"].tolist() == [1]
import pandas
assert pa.array(pandas.Series([1.0, float("nan")])).null_count == 1
"""


def imported(*modules):
    """The names of all modules that a fresh process has after importing these."""
    lines = [f"import {', '.join(modules)}, sys", "print(*sys.modules)"]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_job_reads_its_plan_without_libraries_that_it_may_not_need():
    found = imported("embedrepro.plan.command_line", "embedrepro.sources.hub")
    assert "embedrepro.plan.config" in found
    assert not found & {"numpy", "pyarrow", "pandas", "torch"}
    staging = imported("embedrepro.models.staging", "embedrepro.models.by_id")
    assert not staging & {"numpy", "pyarrow", "pandas", "torch"}


def test_what_the_installation_compiles_is_there():
    found = subprocess.run(
        [sys.executable, "-c", "import compile_imports as c; print(*c.LIGHT, *c.HEAVY)"],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        check=True,
    )
    names = found.stdout.split()
    assert {"torch", "snakemake.cli"} <= set(names)
    ours = [name for name in names if name.startswith("embedrepro.")]
    assert all((SCRIPTS / f"{name.replace('.', '/')}.py").is_file() for name in ours)
    assert all(find_spec(name.partition(".")[0]) for name in names)


def test_pyarrow_does_without_pandas_until_somebody_uses_it() -> None:
    command = [sys.executable, "-c", PROGRAM]
    where = {"PYTHONPATH": str(REPOSITORY / "scripts")}
    done = subprocess.run(command, env=where, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize(
    ("rule", "spec", "without"),
    [
        ("search", {}, True),
        ("encode", {"texts": "x"}, True),
        ("stage", {"source": {"hub": "x"}}, False),  # not even pyarrow
        ("prepare", {"source": {"beir": "x"}, "theirs": "test"}, True),
        ("prepare", {"source": {"hub": "x"}, "theirs": "test"}, False),
        ("prepare", {"source": {"beir": "x"}, "theirs": {"source": {"hub": "x"}}}, False),
    ],
)
def test_jobs_do_without_pandas_once_something_is_missing(
    tmp_path, monkeypatch, rule, spec, without
):
    """All but those that read datasets from elsewhere, whose libraries have uses for it."""
    asked = []
    monkeypatch.setattr(command_line, "without_pandas", lambda: asked.append(rule))
    made = Artifact("some", str(tmp_path / "made"), spec)
    plan = Namespace(of_job=lambda _: [made])
    job = make_job("x", rule, [made])
    command_line.Task(plan, job, Namespace())
    assert bool(asked) == without
    (tmp_path / "made").touch()
    asked.clear()
    command_line.Task(plan, job, Namespace())
    assert not asked

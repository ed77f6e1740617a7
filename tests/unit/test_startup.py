import subprocess
import sys

from tests.helpers import REPOSITORY

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


def test_pyarrow_does_without_pandas_until_somebody_uses_it() -> None:
    command = [sys.executable, "-c", PROGRAM]
    where = {"PYTHONPATH": str(REPOSITORY / "scripts")}
    done = subprocess.run(command, env=where, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr

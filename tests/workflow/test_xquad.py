"""A published number, by either engine and however the corpus is cut."""

import csv
import hashlib

import numpy as np
import pytest
from helpers import XQUAD, snakemake

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not XQUAD.is_dir(), reason="XQuAD en is not beside the repository"),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory, minilm):
    """Run file, metrics, verdicts and vectors of each engine and shard count, a store each: a run
    is found by its key, which doesn't know how it was cut."""
    workdir = tmp_path_factory.mktemp("xquad")
    results = {}
    for engine in ("packed", "flagembedding"):
        for shards in (1, 3, 8):
            config = {
                "experiment": f"{engine}-{shards}",
                "store": f"store-{engine}-{shards}",
                "models": [minilm | {"engine": engine, "dtype": "float32"}],
                "datasets": [
                    {
                        "name": "xquad/en",
                        "source": {"beir": str(XQUAD)},
                        "splits": {"validation": "test"},
                        "shards": shards,
                    }
                ],
            }
            done = snakemake(workdir, config=config)
            assert done.returncode == 0, done.stdout + done.stderr
            results[engine, shards] = workdir / "results" / config["experiment"]
    return workdir, results


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize("engine", ["packed", "flagembedding"])
def test_the_published_number_is_reproduced_however_it_is_cut(measured, engine):
    _, results = measured
    digests = set()
    for shards in (1, 3, 8):
        folder = results[engine, shards]
        (run,) = (folder / "runs").rglob("*.trec")
        digests.add(hashlib.sha256(run.read_bytes()).hexdigest())
        values = {row["metric"]: float(row["value"]) for row in rows(folder / "metrics.tsv")}
        assert f"{values['nDCG@10']:.5f}" == "0.94357"
        verdicts = {row["metric"]: row["verdict"] for row in rows(folder / "verdicts.tsv")}
        assert verdicts["nDCG@10"] == "reproduced"
    assert len(digests) == 1


def test_the_engines_agree(measured):
    workdir, _ = measured
    vectors = {}
    for path in workdir.glob("store-*/vectors/*/*/*.npy"):
        if path.name in ("corpus-0-of-1.npy", "validation-queries.npy"):
            vectors.setdefault(path.name, []).append(np.load(path))
    assert len(vectors) == 2
    for one, other in vectors.values():
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 1e-5

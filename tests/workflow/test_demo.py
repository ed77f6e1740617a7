"""The whole chain as a user runs it: another folder, an overlay, no activated environment."""

import copy
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import REPOSITORY, jobs, one_model, snakemake, unmade

MINILM = "sentence-transformers__all-MiniLM-L6-v2"
IDF = "embed-repro__IDF-Attention-0_1B"


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def run_files(workdir):
    runs = sorted((workdir / "results" / "demo" / "runs").rglob("*.trec"))
    return {run.name: hashlib.sha256(run.read_bytes()).hexdigest() for run in runs}


def changed(config, **settings):
    config = copy.deepcopy(config)
    config["models"][0].update(settings)
    return config


def test_the_chain_ends_with_verdicts_and_the_reports_path(demo):
    workdir, done = demo
    screen = done.stdout + done.stderr
    assert "results/demo/report.html" in screen
    for name in ("report.md", "report.html", "report.tex", "speed.tsv", "provenance.json"):
        assert (workdir / "results" / "demo" / name).stat().st_size > 200
    assert (workdir / "results" / "demo" / "verdicts.tsv").read_text().startswith("model_id\t")


def test_both_models_retrieve_far_above_chance(demo):
    workdir, _ = demo
    scores = {
        (row["model"], row["metric"]): float(row["value"])
        for row in table(workdir / "results" / "demo" / "metrics.tsv")
    }
    # A random ranking of the demonstration corpus has nDCG@10 0.0145, tf-idf 0.61.
    assert scores[MINILM, "nDCG@10"] == pytest.approx(0.642, abs=0.01)
    assert scores[IDF, "nDCG@10"] > 0.4
    assert {metric for _, metric in scores} == {"nDCG@10", "RR@10", "R@100", "AP"}


def test_scores_are_trec_evals(demo):
    import pytrec_eval

    workdir, _ = demo
    qrels, run = {}, {}
    for row in table(REPOSITORY / "data" / "demo" / "qrels" / "test.tsv"):
        qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    path = workdir / "results" / "demo" / "runs" / "demo" / "test" / f"{MINILM}.trec"
    for line in path.read_text().splitlines():
        query, _, doc, _, score, _ = line.split()
        run.setdefault(query, {})[doc] = float(score)
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10", "map"}).evaluate(run)
    rows = table(workdir / "results" / "demo" / "metrics.tsv")
    ours = {r["metric"]: float(r["value"]) for r in rows if r["model"] == MINILM}
    for metric, name in (("nDCG@10", "ndcg_cut_10"), ("AP", "map")):
        mean = sum(measured.get(q, {}).get(name, 0) for q in qrels) / len(qrels)
        assert ours[metric] == pytest.approx(mean, abs=1e-6)


def test_the_name_with_a_dot_is_staged_without_and_linked_with_it(demo):
    workdir, _ = demo
    models = workdir / "store" / "models"
    link = models / "by_id" / "embed-repro" / "IDF-Attention-0.1B"
    assert "." not in link.resolve().name
    assert (link / "stage.json").is_file()
    names = {row["id"]: row for row in table(models / "names.tsv")}
    assert names["embed-repro/IDF-Attention-0.1B"]["has_dot"] == "true"


def files_of(folder):
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_a_second_run_computes_nothing_and_shows_the_verdicts(demo, demo_config):
    workdir, _ = demo
    assert not jobs(workdir, config=demo_config)
    before = files_of(workdir / "store")
    again = snakemake(workdir, config=demo_config)
    assert again.returncode == 0
    assert "Report: results/demo/report.html" in again.stdout + again.stderr
    assert "nDCG@10" in again.stdout + again.stderr
    assert files_of(workdir / "store") == before


@pytest.mark.parametrize("python", ["python", "python3"])
def test_another_python_computes_nothing(demo, python):
    """The commands in the rules begin with the path of the Python that runs Snakemake."""
    workdir, _ = demo
    overlay = workdir / "overlay.yaml"
    command = [Path(sys.executable).with_name(python), "-m", "snakemake", "-n", "--quiet", "host"]
    command += ["-s", REPOSITORY / "Snakefile", "-d", workdir, "--configfile", overlay]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    listing = (done.stdout + done.stderr).partition("Job stats:")[2]
    assert "total" in listing and "__" not in listing


def test_a_changed_prompt_encodes_only_that_models_queries(demo, demo_config):
    workdir, _ = demo
    config = changed(demo_config, query_prompt="Question: ")
    # What a user states of a model stands in its stage.json; the passages' vectors know no prompt
    # of queries.
    steps = ["stage", "preflight", "encode query", "search", "score", "report"]
    assert unmade(workdir, config) == dict.fromkeys(steps, 1)
    once = ["stage", "encode", "score", "report"]
    assert jobs(workdir, config=config) == dict.fromkeys(once, 1)


def test_another_model_computes_only_itself(demo, demo_config):
    workdir, _ = demo
    other = {"id": "me/Other-2.0", "source": {"demo": 8}, "trust_remote_code": True}
    config = demo_config | {"models": [*demo_config["models"], other]}
    steps = ["download", "stage", "preflight", "encode query", "search", "score", "report"]
    assert unmade(workdir, config) == dict.fromkeys(steps, 1) | {"encode passage": 4}
    once = ["download", "stage", "encode", "score", "report"]
    assert jobs(workdir, config=config) == dict.fromkeys(once, 1)


def test_another_shard_count_gives_the_same_run_files(demo, demo_config, tmp_path):
    workdir, _ = demo
    config = copy.deepcopy(demo_config)
    config["datasets"][0]["shards"] = 3
    assert not jobs(workdir, config=config)  # a run is the same however it was cut
    for part in ("models", "datasets"):
        shutil.copytree(workdir / "store" / part, tmp_path / "store" / part, symlinks=True)
    done = snakemake(tmp_path, config=config)
    assert done.returncode == 0, done.stderr
    before = run_files(workdir)
    assert len(before) == 2
    assert run_files(tmp_path) == before


def test_a_second_experiment_in_the_same_store_writes_only_its_report(demo, demo_config):
    workdir, _ = demo
    elsewhere = workdir.parent / "elsewhere"
    config = demo_config | {"experiment": "other", "store": str(workdir / "store")}
    assert unmade(elsewhere, config) == {"report": 1}
    assert jobs(elsewhere, config=config) == {"report": 1}


@pytest.mark.slow
def test_a_run_killed_while_encoding_ends_with_the_same_bytes(demo, demo_config, tmp_path):
    finished, _ = demo
    before = run_files(finished)
    # Downloading and staging are not what is killed here.
    shutil.copytree(finished / "store" / "models", tmp_path / "store" / "models", symlinks=True)
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(json.dumps(demo_config))
    command = [Path(sys.executable).with_name("snakemake"), "-s", REPOSITORY / "Snakefile"]
    command += ["-d", tmp_path, "--cores", "2", "--configfile", overlay]
    seconds = random.Random(0)
    for _ in range(3):
        with subprocess.Popen(
            command,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                if list((tmp_path / "store").glob("vectors/*/*/*")):
                    break
                time.sleep(0.1)
            time.sleep(seconds.uniform(0, 3))
            os.killpg(process.pid, signal.SIGKILL)
    done = snakemake(tmp_path, config=demo_config)
    assert done.returncode == 0, done.stderr
    assert run_files(tmp_path) == before


MISTAKES = {
    "unknown key": ({"retreive": {}}, "did you mean 'retrieve'"),
    "missing folder": (
        {"datasets": [{"name": "x", "source": {"beir": "no/such/folder"}}]},
        "no/such/folder",
    ),
    "unknown dataset": ({"datasets": ["beir/scifat"]}, "beir/scifact"),
    "moving revision": ({"models": [{"id": "a/b", "revision": "main"}]}, "40 lowercase hex"),
    "same name": (
        {"models": [{"id": "a.b", "source": {"demo": 1}}, {"id": "a_b", "source": {"demo": 1}}]},
        "alias",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_config_is_one_line_and_writes_nothing(tmp_path, name):
    mistake, expected = MISTAKES[name]
    right = one_model([{"id": "a/b", "source": {"demo": 1}, "trust_remote_code": True}])
    done = snakemake(tmp_path / "w", config=right | mistake)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in done.stderr
    left = {path.name for path in (tmp_path / "w").iterdir()}
    assert left <= {"overlay.yaml", ".snakemake"}

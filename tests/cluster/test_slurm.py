"""The experiment through profiles/slurm on a real Slurm with made-up GPUs, held against a local
run. What is checked stands in Slurm's own records."""

import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from helpers import REPOSITORY, snakemake

pytestmark = pytest.mark.cluster

GPU_RULES = {"encode": 4}
SEEN_BY_JOB = re.compile(r"gpu_slot: CUDA_VISIBLE_DEVICES=(\S+) \(SLURM_JOB_ID=(\d+)\)")


class Recorder(threading.Thread):
    """Keeps what Slurm says of each job while it runs: afterwards its devices are forgotten."""

    def __init__(self, slurm):
        super().__init__(daemon=True)
        self.slurm, self.jobs, self.ended = slurm, {}, threading.Event()

    def run(self):
        while not self.ended.wait(0.5):
            self.note()

    def note(self):
        for job in self.slurm.records():
            known = self.jobs.setdefault(job["JobId"], {})
            known.update({k: v for k, v in job.items() if v or k not in known})

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()
        self.note()


def through_slurm(workdir, config, *arguments):
    """Run on the cluster; states are looked at sooner than the profile has it."""
    profile = ["--profile", str(REPOSITORY / "profiles" / "slurm")]
    sooner = ["--slurm-init-seconds-before-status-checks", "5", "--latency-wait", "10"]
    return snakemake(workdir, *profile, *sooner, *arguments, config=config)


def rule(job):
    return re.match(r"rule_([a-z0-9]+)__", job["Comment"])[1]


def device(job):
    """The index of the job's one GPU on its node, by Slurm's record."""
    return re.fullmatch(r"gpu:fake:1\(IDX:(\d)\)", job["GRES"])[1]


def seen_by_jobs(workdir):
    """The devices that the jobs themselves found, by job, from the rules' logs."""
    logs = "".join(path.read_text() for path in (workdir / "logs").rglob("*.log"))
    return {job: devices for devices, job in SEEN_BY_JOB.findall(logs)}


def span(job):
    return [datetime.fromisoformat(job[key]) for key in ("StartTime", "EndTime")]


def table(jobs, seen):
    heads = ["job", "rule", "node", "Slurm's GPU", "CUDA_VISIBLE_DEVICES", "state", "start", "end"]
    lines = [heads]
    for number, job in sorted(jobs.items()):
        gpu = job["GRES"].partition("IDX:")[2].rstrip(")") or "-"
        line = [number, rule(job), job["NodeList"], gpu, seen.get(number, "-"), job["JobState"]]
        lines.append(line + [job[key].partition("T")[2] for key in ("StartTime", "EndTime")])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def assert_devices_are_owned(jobs):
    """No two jobs had the same GPU of the same node at the same time."""
    for number, one in jobs.items():
        for other in (jobs[n] for n in jobs if n < number):
            if (one["NodeList"], device(one)) == (other["NodeList"], device(other)):
                (began, ended), (also_began, also_ended) = span(one), span(other)
                assert ended <= also_began or also_ended <= began, (one, other)


def assert_same_bytes(workdir, local):
    results = local / "results" / "demo"
    wanted = [results / "metrics.tsv", *sorted((results / "runs").rglob("*.trec"))]
    assert len(wanted) == 11
    for path in wanted:
        assert (workdir / path.relative_to(local)).read_bytes() == path.read_bytes(), path.name


def test_every_gpu_job_has_a_device_of_its_own(slurm, local, config, tmp_path, capsys):
    with Recorder(slurm) as recorder:
        done = through_slurm(tmp_path, config)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = seen_by_jobs(tmp_path)
    with capsys.disabled():
        print(f"\n{table(recorder.jobs, seen)}")
    jobs = {n: job for n, job in recorder.jobs.items() if rule(job) in GPU_RULES}
    rules = [rule(job) for job in jobs.values()]
    assert {name: rules.count(name) for name in GPU_RULES} == GPU_RULES
    for number, job in jobs.items():
        assert job["TresPerJob"] == "gres:gpu:1"
        assert job["Partition"] == "gpu"
        assert seen[number] == device(job)
    assert_devices_are_owned(jobs)
    others = [job for n, job in recorder.jobs.items() if n not in jobs]
    assert others
    assert all("TresPerJob" not in job and job["Partition"] == "cpu" for job in others)
    assert_same_bytes(tmp_path, local)


def prepared_copy(local, workdir):
    """What comes before encoding, taken from a run that has ended."""
    for part in ("models", "datasets"):
        shutil.copytree(local / "store" / part, workdir / "store" / part, symlinks=True)


def wait_until_encoding(run, recorder, workdir, node):
    """Until a job of that node has begun to encode; returns its number."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not run.done():
        for number in seen_by_jobs(workdir) if (workdir / "logs").is_dir() else {}:
            job = recorder.jobs.get(number, {})
            if job.get("NodeList") == node and job["JobState"] == "RUNNING":
                return number
        time.sleep(0.2)
    raise AssertionError(f"nothing was encoded on {node}: {run.result(0).stderr}")


def test_a_node_that_dies_costs_its_jobs_only(slurm, local, config, tmp_path, capsys):
    prepared_copy(local, tmp_path)
    with Recorder(slurm) as recorder, ThreadPoolExecutor(1) as pool:
        run = pool.submit(through_slurm, tmp_path, config)
        encoding = wait_until_encoding(run, recorder, tmp_path, "node1")
        killed = slurm.kill_node(1)
        done = run.result()
    assert done.returncode == 0, done.stdout + done.stderr
    with capsys.disabled():
        print(f"\n{table(recorder.jobs, seen_by_jobs(tmp_path))}")
    assert encoding in killed
    states = {number: job["JobState"] for number, job in recorder.jobs.items()}
    assert {number for number in states if states[number] == "NODE_FAIL"} == set(killed)
    assert set(states.values()) == {"NODE_FAIL", "COMPLETED"}
    jobs = {n: job for n, job in recorder.jobs.items() if rule(job) in GPU_RULES}
    assert_devices_are_owned(jobs)
    assert_same_bytes(tmp_path, local)


def test_a_failed_jobs_error_is_told_and_in_its_log(slurm, local, config, tmp_path):
    prepared_copy(local, tmp_path)
    (corpus,) = (tmp_path / "store" / "datasets").glob("*/corpus.parquet")
    corpus.write_bytes(corpus.read_bytes()[:1000])
    done = through_slurm(tmp_path, config, "--retries", "0")
    assert done.returncode == 1
    screen = done.stdout + done.stderr
    logs = [path.read_text() for path in (tmp_path / "logs" / "encode").glob("*.log")]
    lines = {x for log in logs for x in log.splitlines() if x.startswith("error:")}
    assert len(logs) == 4 and len(lines) == 1
    (line,) = lines
    assert line in screen
    assert "corpus.parquet" in line
    assert not any("Traceback" in log for log in logs)

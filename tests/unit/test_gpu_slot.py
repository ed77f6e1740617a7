"""gpu_slot.py with made-up devices: this machine needs no GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLOT = Path(__file__).parents[2] / "scripts" / "gpu_slot.py"
SCHEDULER = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID", "FLUX_JOB_ID")

# Notes when it ran and on which devices.
JOB = """
import json, os, sys, time
began = time.time(); time.sleep(float(sys.argv[2]))
found = {"devices": os.environ["CUDA_VISIBLE_DEVICES"].split(","), "from": began, "to": time.time()}
open(sys.argv[1], "w").write(json.dumps(found))
"""
SHOW = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES', 'unset'))"


@pytest.fixture
def environment(tmp_path):
    """No scheduler, no nvidia-smi, four devices, locks of this test alone."""
    kept = {k: v for k, v in os.environ.items() if k not in SCHEDULER}
    return kept | {
        "EMBEDREPRO_GPU_LOCKS": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        "PATH": str(tmp_path),
    }


def slot(count, *command, **options):
    command = [sys.executable, "-S", str(SLOT), *str(count).split(), "--", *command]
    return subprocess.Popen(command, text=True, stdout=-1, stderr=-1, **options)


def visible(count, environment):
    """What a command started through the slot sees."""
    job = slot(count, sys.executable, "-S", "-c", SHOW, env=environment)
    out, err = job.communicate(timeout=20)
    assert job.returncode == 0, err
    return out.strip()


def fake_listing(tmp_path, text):
    """An nvidia-smi that lists `text`."""
    (tmp_path / "listing").write_text(text)
    command = tmp_path / "nvidia-smi"
    command.write_text(f'#!/bin/sh\nwhile read -r l; do echo "$l"; done < {tmp_path}/listing\n')
    command.chmod(0o755)


def test_jobs_of_two_parents_never_overlap(tmp_path, environment):
    """24 jobs that want one, two or three of four devices."""
    parent = (
        "import subprocess, sys\n"
        "run, job, name = sys.argv[1:5], [sys.executable, '-S', '-c', sys.argv[5]], sys.argv[6]\n"
        "jobs = [subprocess.Popen([*run, n, '--', *job, f'{name}-{i}.json', '0.05'])\n"
        "        for i, n in enumerate('111211312111')]\n"
        "sys.exit(any([job.wait() for job in jobs]))"
    )
    run = [sys.executable, "-S", "-c", parent, sys.executable, "-S", "-E", str(SLOT), JOB]
    parents = [subprocess.Popen([*run, str(tmp_path / name)], env=environment) for name in "ab"]
    assert [one.wait(60) for one in parents] == [0, 0]
    jobs = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(jobs) == 24
    assert sorted(len(job["devices"]) for job in jobs)[-6:] == [2, 2, 2, 2, 3, 3]
    for i, one in enumerate(jobs):
        for other in jobs[:i]:
            if set(one["devices"]) & set(other["devices"]):
                assert one["to"] <= other["from"] or other["to"] <= one["from"]
    assert set().union(*(job["devices"] for job in jobs)) == set("0123")


def test_killed_job_frees_its_device(tmp_path, environment):
    environment["CUDA_VISIBLE_DEVICES"] = "5"
    holder = slot(1, sys.executable, "-S", "-c", "import time; time.sleep(60)", env=environment)
    waiting = None
    try:
        while "python" not in Path(f"/proc/{holder.pid}/cmdline").read_text() or (
            "gpu_slot" in Path(f"/proc/{holder.pid}/cmdline").read_text()
        ):
            time.sleep(0.01)
        waiting = slot(1, sys.executable, "-S", "-c", SHOW, env=environment)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        holder.send_signal(signal.SIGKILL)
        assert waiting.communicate(timeout=20)[0].strip() == "5"
    finally:
        for job in (holder, waiting):
            if job is not None:
                job.kill()
                job.communicate()


def test_little_jobs_share_devices_and_leave_one_that_is_held(tmp_path, environment):
    """Three devices, one of them held: eight shares, spread; the ninth job waits, so does a tenth
    that wants a device for itself until all shares of one are free."""
    environment["CUDA_VISIBLE_DEVICES"] = "0,1,2"
    wait = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    command = [sys.executable, "-S", "-c", wait]
    holder = slot(1, *command, env=environment, stdin=-1)
    assert holder.stdout.readline() == "0\n"
    jobs = [slot("1 --shared", *command, env=environment, stdin=-1) for _ in range(8)]
    try:
        shares = sorted(job.stdout.readline().strip() for job in jobs)
        assert shares == ["1"] * 4 + ["2"] * 4
        ninth = slot("1 --shared", *command, env=environment, stdin=-1)
        with pytest.raises(subprocess.TimeoutExpired):
            ninth.wait(0.7)
        jobs[0].communicate("\n", timeout=20)
        freed = ninth.stdout.readline().strip()
        assert freed in "12"
        alone = slot(1, *command, env=environment, stdin=-1)
        with pytest.raises(subprocess.TimeoutExpired):
            alone.wait(0.7)
        holder.communicate("\n", timeout=20)
        assert alone.stdout.readline() == "0\n"
        jobs += [ninth, alone]
    finally:
        for job in jobs[1:]:
            job.communicate("\n", timeout=20)


@pytest.mark.parametrize(
    ("given", "count", "seen"),
    [
        ("3,1", 2, "3,1"),
        ("GPU-aa,GPU-bb", 1, "GPU-aa"),
        ("MIG-aa,MIG-bb", 1, "MIG-aa"),
        ("2,-1,3", 1, "2"),
        ("", 1, ""),
        ("0,1", 0, ""),
        (None, 1, "unset"),
        (None, 0, ""),
    ],
)
def test_inherited_devices_are_only_narrowed(environment, given, count, seen):
    environment.pop("CUDA_VISIBLE_DEVICES")
    if given is not None:
        environment["CUDA_VISIBLE_DEVICES"] = given
    assert visible(count, environment) == seen


def test_allocation_of_that_size_is_passed_on(environment):
    """Two steps of one Slurm job may both call their device 0."""
    environment |= {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0"}
    holder = slot(1, sys.executable, "-S", "-c", "input()", env=environment, stdin=-1)
    try:
        assert visible(1, environment) == "0"
    finally:
        holder.communicate("\n", timeout=20)


def test_node_without_the_variable(tmp_path, environment):
    del environment["CUDA_VISIBLE_DEVICES"]
    fake_listing(
        tmp_path,
        "GPU 0: NVIDIA A100 (UUID: GPU-11111111-aaaa)\n"
        "  MIG 3g.20gb     Device  0: (UUID: MIG-22222222-bbbb)\n"
        "  MIG 3g.20gb     Device  1: (UUID: MIG-33333333-cccc)\n"
        "GPU 1: NVIDIA A100 (UUID: GPU-44444444-dddd)\n",
    )
    assert visible(3, environment) == "MIG-22222222-bbbb,MIG-33333333-cccc,1"


def test_index_and_uuid_of_one_gpu_are_one_device(tmp_path, environment):
    fake_listing(tmp_path, "GPU 0: X (UUID: GPU-1111-a)\nGPU 1: X (UUID: GPU-4444-d)\n")
    holder = slot(
        1,
        *(sys.executable, "-S", "-c", "print('holding', flush=True); input()"),
        env=environment | {"CUDA_VISIBLE_DEVICES": "1"},
        stdin=-1,
    )
    try:
        assert holder.stdout.readline() == "holding\n"
        given = environment | {"CUDA_VISIBLE_DEVICES": "GPU-4444,GPU-1111"}
        assert visible(1, given) == "GPU-1111"
    finally:
        holder.communicate("\n", timeout=20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["5", "--", "true"], "5 GPUs asked for, 4 visible (0,1,2,3)"),
        (["1", "true"], "usage"),
        (["-1", "--", "true"], "usage"),
        (["0", "--", "no-such-command"], "no-such-command: No such file"),
    ],
)
def test_mistakes_are_one_line(environment, arguments, words):
    command = [sys.executable, str(SLOT), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_exit_status_is_the_commands(environment):
    job = slot(1, sys.executable, "-c", "raise SystemExit(7)", env=environment)
    job.communicate(timeout=20)
    assert job.returncode == 7

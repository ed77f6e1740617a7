"""Jobs that are forked from one process: the same as processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from embedrepro.plan.forking import THREADS, forkserver_path, start_forkserver

SCRIPTS = Path(__file__).parents[2] / "scripts"
OWN = "PYTEST_CURRENT_TEST"  # another one in each test
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != OWN}
ENVIRONMENT |= {f"{name}_THREADS": "2" for name in THREADS}

# What a job sees of the world, and whether torch was there before it asked for it.
PROBE = """
import json, os, sys
early = "torch" in sys.modules
import torch
seen = {
    "arguments": sys.argv[1:], "folder": os.getcwd(), "input": sys.stdin.read(),
    "environment": dict(os.environ), "threads": torch.get_num_threads(),
    "name": __name__, "file": __file__,
}
print(json.dumps([early, seen]))
print("told", file=sys.stderr)
"""
WAIT = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
time.sleep(float(sys.argv[2]))
"""


def started(path, *modules):
    with mock.patch.dict(os.environ, ENVIRONMENT, clear=True):
        return start_forkserver(path, 2, modules)


@pytest.fixture(scope="module")
def server():
    path = forkserver_path()
    process = started(path, "torch")
    yield path
    process.stdin.close()
    assert process.wait(60) == 0
    assert not Path(path).exists()


def script(folder, text):
    (folder / "job.py").write_text(text)
    return str(folder / "job.py")


def forked(path, *arguments, **options):
    command = [sys.executable, "-I", "-S", str(SCRIPTS / "forked.py"), path, *arguments]
    defaults = {"text": True, "stdin": -1, "stdout": -1, "stderr": -1, "env": ENVIRONMENT}
    return subprocess.Popen(command, **defaults | options)


def test_a_job_sees_what_it_would_see_by_itself(server, tmp_path):
    probe = script(tmp_path, PROBE)
    there = tmp_path / "there"
    there.mkdir()
    options = {"cwd": there, "env": ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": "3"}}
    out, err = forked(server, probe, "--one", "zwei ", **options).communicate("typed")
    own = subprocess.run(
        [sys.executable, probe, "--one", "zwei "],
        input="typed",
        text=True,
        capture_output=True,
        **options,
    )
    (early, seen), (by_itself, expected) = json.loads(out), json.loads(own.stdout)
    assert (early, by_itself) == (True, False)
    assert seen == expected
    assert err == own.stderr == "told\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 0),
        ("import sys; sys.exit(2)", 2),
        ("import sys; sys.exit(True)", 1),
        ("import sys; sys.exit('ValueError: a b c')", 1),
        ("raise ValueError('a b c')", 1),
        ("raise KeyboardInterrupt", -2),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 15)", -15),
    ],
)
def test_it_ends_as_the_job_does(server, tmp_path, text, status):
    process = forked(server, script(tmp_path, text))
    _, err = process.communicate()
    assert process.returncode == status
    assert ("ValueError: a b c" in err) == ("a b c" in text)


def test_what_a_job_leaves_to_its_end_is_done(server, tmp_path):
    """Threads end, what is registered for the exit runs, what was printed is written."""
    text = """
import atexit, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
print("main", end="|")
"""
    out, err = forked(server, script(tmp_path, text)).communicate()
    assert (out, err) == ("main|thread\nat exit\n", "")


def test_lost_output_is_a_failure(server, tmp_path):
    with open("/dev/full", "w") as full:
        process = forked(server, script(tmp_path, "print(1)"), stdout=full)
    process.communicate()
    assert process.returncode in (1, 120)  # when it is printed, or when it is written at the end


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_who_kills_it_kills_the_job(server, tmp_path, number):
    text = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
    process = forked(server, script(tmp_path, text))
    job = int(process.stdout.readline())
    assert job != process.pid
    process.send_signal(number)
    process.wait()
    until = time.time() + 10
    while Path(f"/proc/{job}").exists() and time.time() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{job}").exists()


def test_another_environment_is_a_process_of_its_own(server, tmp_path):
    probe = script(tmp_path, PROBE)
    for name in ("HF_HUB_CACHE", "OMP_NUM_THREADS"):
        out, _ = forked(server, probe, env=ENVIRONMENT | {name: "1"}).communicate("")
        early, seen = json.loads(out)
        assert not early
        assert seen["environment"][name] == "1"


def test_without_a_server_it_is_a_process_of_its_own(tmp_path):
    out, _ = forked(str(tmp_path / "none.socket"), script(tmp_path, PROBE)).communicate("")
    assert json.loads(out)[0] is False


def at_work(folder, seconds):
    """A server's socket, the server, and its job, which has begun and lasts so long."""
    path = forkserver_path()
    process = started(path, "json")
    began = folder / "began"
    job = forked(path, script(folder, WAIT), str(began), str(seconds))
    while not began.exists():
        time.sleep(0.05)
    return path, process, job


def test_a_job_outlives_the_workflow_and_the_server_waits_for_it(tmp_path):
    _, process, job = at_work(tmp_path, 2)
    process.stdin.close()
    time.sleep(0.5)
    assert process.poll() is None
    assert job.wait() == 0
    assert process.wait(20) == 0


def test_a_server_that_is_killed_takes_its_jobs_along(tmp_path):
    path, process, job = at_work(tmp_path, 60)
    process.kill()
    process.wait()
    _, err = job.communicate(timeout=20)
    assert job.returncode == 1
    assert err == "error: the forkserver ended before its job; run again\n"
    Path(path).unlink()


def test_a_workflow_that_ends_at_once_leaves_nothing(tmp_path):
    path = forkserver_path()
    process = started(path, "json")
    process.stdin.close()
    assert process.wait(30) == 0
    assert not Path(path).exists()

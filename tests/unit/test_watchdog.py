"""The watchdog against real pools that hang, die, fork away and are asked to end."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from embedrepro.evaluation import watchdog

pytestmark = pytest.mark.slow  # real pools, whose start and end take their time

# A parent as FlagEmbedding's: it starts spawned daemons, waits on a queue and never looks at them.
POOL = """
import multiprocessing as mp, os, queue, signal, sys, time

def work(number, todo, done):
    while True:
        item = todo.get()
        if item == "raise" and number == 0:
            import transformers_modules.p
        if item == "kill" and number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "leave" and number == 0:
            sys.exit(3)
        done.put(item)

if __name__ == "__main__":
    context = mp.get_context("spawn")
    todos, done = [context.Queue() for _ in range(2)], context.Queue()
    workers = [
        context.Process(target=work, args=(n, todo, done), daemon=True)
        for n, todo in enumerate(todos)
    ]
    for worker in workers:
        worker.start()
    print("pids", os.getpid(), *(worker.pid for worker in workers), flush=True)
    for todo in todos:
        todo.put(sys.argv[1])
    for _ in workers:
        done.get()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()
    time.sleep(0.5)
    print("done", flush=True)
"""


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / "pool.py"
    path.write_text(POOL)
    return [sys.executable, str(path)]


def living(pids):
    """Those that run: a zombie does not."""
    found = []
    for pid in pids:
        try:
            found += [pid] * (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][1] != "Z")
        except OSError:
            continue
    return found


def pids_of(lines):
    (line,) = (line for line in lines if line.startswith("pids "))
    return [int(word) for word in line.split()[1:]]


def test_a_pool_that_ends_in_order_is_no_failure(pool, capfd):
    watchdog.run([*pool, "echo"], timeout=60)
    output = capfd.readouterr().err
    assert output.splitlines()[-1] == "done"
    assert living(pids_of(output.splitlines())) == []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "exit status 1 .*ModuleNotFoundError: No module named 'transformers_modules'"),
        ("kill", "was ended by SIGKILL"),
        ("leave", "exit status 3"),
    ],
)
def test_a_worker_that_dies_ends_the_job_within_seconds(pool, how, said):
    began = time.monotonic()
    with pytest.raises(watchdog.JobFailed, match=said) as failure:
        watchdog.run([*pool, how], timeout=60)
    assert time.monotonic() - began < 15
    assert "\n" not in str(failure.value)
    assert living(pids_of(failure.value.lines)) == []


def test_without_the_watchdog_the_same_pool_hangs(pool):
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([*pool, "kill"], timeout=4, capture_output=True)


def test_a_worker_ended_by_sigterm_is_found_when_nobody_collects_it(pool, monkeypatch):
    monkeypatch.setattr(watchdog, "UNCOLLECTED", 1.0)
    script = Path(pool[1])
    script.write_text(script.read_text().replace("signal.SIGKILL", "signal.SIGTERM"))
    with pytest.raises(watchdog.JobFailed, match="SIGTERM"):
        watchdog.run([*pool, "kill"], timeout=60)


def test_time_is_limited(pool):
    sleep = [sys.executable, "-c", "import time; print('slow', flush=True); time.sleep(60)"]
    with pytest.raises(watchdog.JobFailed, match="not done after 1 s") as failure:
        watchdog.run(sleep, timeout=1)
    assert failure.value.lines == ["slow"]


def test_the_commands_own_failure_is_told_with_its_last_error():
    with pytest.raises(watchdog.JobFailed, match="exit status 1: ValueError: no such model"):
        watchdog.run([sys.executable, "-c", "raise ValueError('no such model')"], timeout=30)


def test_processes_that_fork_away_are_ended_too(tmp_path):
    """A grandchild in a session of its own, deaf to SIGTERM, whose parents are gone."""
    script = """
        import os, pathlib, signal, sys, time
        if os.fork():
            time.sleep(1)
            sys.exit()
        os.setsid()
        if os.fork():
            time.sleep(0.7)
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
        time.sleep(60)
    """
    note = tmp_path / "pid"
    watchdog.run([sys.executable, "-c", textwrap.dedent(script), str(note)], timeout=30)
    assert living([int(note.read_text())]) == []


def test_helpers_that_fail_are_not_workers():
    """A pool's parent may run any other program, `lscpu` say, that ends with an error."""
    script = """
        import subprocess, time
        helper = subprocess.Popen(["false"])
        time.sleep(1)
        assert helper.wait() == 1
    """
    watchdog.run([sys.executable, "-c", textwrap.dedent(script)], timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_when_the_watchdog_is_asked_to_end_nothing_is_left(pool, number, tmp_path):
    script = Path(pool[1])
    script.write_text(script.read_text().replace("done.put(item)", "time.sleep(60)"))
    caller = (
        f"from embedrepro.evaluation import watchdog; watchdog.run({[*pool, 'x']!r}, timeout=60)"
    )
    log = tmp_path / "log"
    with log.open("w") as file:
        watching = subprocess.Popen(
            [sys.executable, "-c", caller],
            stderr=file,
            env=os.environ | {"PYTHONPATH": str(Path(watchdog.__file__).parents[2])},
        )
        while "pids" not in log.read_text():
            assert watching.poll() is None
            time.sleep(0.05)
        time.sleep(0.3)
        watching.send_signal(number)
        assert watching.wait(timeout=10) == 128 + number
    assert living(pids_of(log.read_text().splitlines())) == []

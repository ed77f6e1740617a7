"""Import once what all jobs on models import, and fork for each job: forkserver.py SOCKET MODULE…

Started by the workflow when it begins, with the number of a listening socket, so that the imports,
which take seconds, run beside downloads and preparation. A job is the same as in a process of its
own: it gets the streams, working directory and environment of its `forked.py`. Whoever asks in
another environment than that of the imports is sent away, and starts as usual. Ends with its
standard input, when the last job has ended.
"""

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.startup import uncollected, without_extras

# Read when they are needed, or by nobody: they may differ.
FREE = ("CUDA_VISIBLE_DEVICES", "TMPDIR", "TMP", "TEMP", "TEMPDIR", "PWD", "OLDPWD", "SHLVL", "_")
LIFELINE = 0  # standard input: the workflow holds its other end
LOST_OUTPUT = 120  # Python's status where what was printed can't be written
DIES_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG

Request = dict[str, Any]


def bound(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment may have been read while modules were imported."""
    return {name: value for name, value in environment.items() if name not in FREE}


def ended() -> bool:
    return bool(select.select([LIFELINE], [], [], 0)[0])


@uncollected()
def import_all(names: list[str]) -> bool:
    """False if the workflow ended meanwhile, or something can't be imported: a job will say so."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # as jobs on models have it before they import
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # another look would take GPUs from forks
    try:
        with without_extras():
            for name in names:
                if ended():
                    return False
                importlib.import_module(name)
    except Exception:
        return False
    return True


def forks_use_devices() -> bool:
    """Whether nothing that was imported has touched a GPU, which is lost to forks then."""
    process = os.fork()
    if process == 0:
        binding = getattr(sys.modules.get("torch"), "_C", None)
        os._exit(getattr(binding, "_cuda_isInBadFork", bool)())
    return os.waitpid(process, 0)[1] == 0


class Server:
    """Forks for each request that comes in at `listener`, until the workflow ends."""

    def __init__(self, listener: socket.socket, environment: dict[str, str]) -> None:
        self.listener, self.environment, self.number = listener, environment, os.getpid()
        self.jobs: dict[int, socket.socket] = {}  # who asked for each process
        self.libc = ctypes.CDLL(None)
        self.selector = selectors.DefaultSelector()
        self.on(listener, self.accept)
        self.on(LIFELINE, self.close)

    def on(self, file: socket.socket | int, act: Callable[[], Request | None]) -> None:
        self.selector.register(file, selectors.EVENT_READ, act)

    def run(self) -> Request | None:
        """In a fork its request; in the server None, when the last job has ended."""
        while self.selector.get_map():
            for key, _ in self.selector.select():
                request: Request | None = key.data()
                if request:
                    return request
        return None

    def close(self) -> None:
        for file in (LIFELINE, self.listener):
            self.selector.unregister(file)
        self.listener.close()

    def accept(self) -> Request | None:
        connection, _ = self.listener.accept()
        found = receive(connection, self.environment)
        if found is None:
            connection.close()
            return None
        request, streams = found
        process = os.fork()
        if process == 0:
            self.libc.prctl(DIES_WITH_PARENT, signal.SIGKILL)
            if os.getppid() != self.number:
                os._exit(1)
            self.selector.close()
            for other in (self.listener, connection, *self.jobs.values()):
                other.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            return request
        for stream in streams:
            os.close(stream)
        descriptor = os.pidfd_open(process)
        self.jobs[process] = connection
        self.on(connection, partial(self.kill, process))
        self.on(descriptor, partial(self.reap, process, descriptor))
        with contextlib.suppress(OSError):
            connection.sendall(b"+")
        return None

    def kill(self, process: int) -> None:
        """Who asked for it was killed."""
        if process in self.jobs:
            self.selector.unregister(self.jobs[process])
            os.kill(process, signal.SIGKILL)

    def reap(self, process: int, descriptor: int) -> None:
        self.selector.unregister(descriptor)
        os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with self.jobs.pop(process) as connection:
            with contextlib.suppress(KeyError):  # killed before
                self.selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(b"%d" % status)


def receive(
    connection: socket.socket, environment: dict[str, str]
) -> tuple[Request, list[int]] | None:
    """A request and its three streams; None if it isn't one for this server."""
    connection.settimeout(5)
    try:
        _, numbers, *_ = socket.recv_fds(connection, 1, 4)
        if not numbers:
            return None
        with os.fdopen(numbers[0], "rb") as file:
            file.seek(0)
            request = json.load(file)
    except (OSError, ValueError):
        return None
    if bound(request["environment"]) != environment:
        for stream in numbers[1:]:
            os.close(stream)
        return None
    return request, list(numbers[1:])


class Ending:
    """How a fork ends: at once, as multiprocessing's do, since taking a million objects down takes
    half a second. Made before anything is imported, so that it is the last thing at exit."""

    def __init__(self) -> None:
        self.status = 0
        self.fork = False
        atexit.register(self._leave)

    def _leave(self) -> None:
        if not self.fork:
            return
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                self.status = self.status or LOST_OUTPUT
        if self.status < 0:
            signal.signal(-self.status, signal.SIG_DFL)
            os.kill(os.getpid(), -self.status)
        os._exit(self.status)

    def run(self, request: Request) -> None:
        self.fork = True
        try:
            become(request)
        except SystemExit as end:
            told = end.code is not None and not isinstance(end.code, int)
            self.status = 1 if told else int(end.code or 0)
            raise
        except KeyboardInterrupt:
            self.status = -signal.SIGINT
            raise
        except BaseException:
            self.status = 1
            raise


def become(request: Request) -> None:
    """Run the script as a process of its own would."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    sys.argv = request["argv"]
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    ending = Ending()
    listener = socket.socket(fileno=int(sys.argv[1]))
    path = Path(listener.getsockname())
    server = os.getpid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the jobs
    environment = bound(os.environ)
    try:
        ready = import_all(sys.argv[2:]) and forks_use_devices()
        request = Server(listener, environment).run() if ready else None
    finally:
        if os.getpid() == server:
            path.unlink(missing_ok=True)
    if request:
        ending.run(request)


if __name__ == "__main__":
    main()

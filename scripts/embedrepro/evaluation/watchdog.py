"""Run a command that spreads over worker processes, and end it all when one of them dies.

A parent that waits on a `multiprocessing` queue never learns that a worker is gone: it waits for
ever. The watchdog reads /proc (Linux) beside it. A dead worker stays there as a zombie with its
exit status, because such a parent doesn't collect it.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from ..errors import UserError, printable

POLL = 0.2  # seconds
# A pool that is stopped in order sends its workers SIGTERM and collects them at once. A worker that
# ended this way, or with status 0, and isn't collected in this time has left a parent waiting.
UNCOLLECTED = 15.0
KILL_AFTER = 3.0  # seconds between SIGTERM and SIGKILL
KEPT_LINES = 40
WORKER = re.compile(rb"multiprocessing\.(spawn|forkserver)|--multiprocessing-fork")
ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")
PR_SET_CHILD_SUBREAPER = 36


class JobFailed(UserError):
    """The job ended badly. `lines`: the last that it wrote before."""

    def __init__(self, message: str, lines: Sequence[str]) -> None:
        super().__init__(message)
        self.lines = list(lines)


class Process(NamedTuple):
    """A row of the process table. `status` is what wait would give, for a zombie only."""

    pid: int
    started: int
    name: str
    state: str
    parent: int
    session: int
    status: int


def run(
    command: Sequence[str],
    timeout: float,
    env: Mapping[str, str] | None = None,
    name: str = "the job",
) -> None:
    """Run `command` to its end, its output passed on to stderr; nothing of it is left running.

    `timeout` is in seconds. Raises JobFailed when the command fails, when the time is over, or
    within seconds of a worker's death; SystemExit when this process is asked to end (SIGTERM,
    SIGINT, SIGHUP) or its stderr is closed. For the main thread.
    """
    began = time.monotonic()
    with _signals() as asked, _subreaper():
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        output = Output(cast(BinaryIO, process.stdout))
        watch = Watch(process.pid)
        try:
            while process.poll() is None:
                seconds = time.monotonic() - began
                if asked or output.closed:
                    sys.exit(128 + (asked[0] if asked else signal.SIGPIPE))
                if death := watch.look():
                    raise output.failure(f"{name}: {death} after {seconds:.0f} s; all of it ended")
                if seconds > timeout:
                    late = f"not done after {timeout:.0f} s (`timeout_minutes`); all of it ended"
                    raise output.failure(f"{name}: {late}")
                time.sleep(POLL)
            if process.returncode:
                raise output.failure(f"{name}: it {_ending(process.returncode)}")
        finally:
            watch.end()
            process.wait()
            output.join()


class Watch:
    """The processes that belong to one job."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.known: dict[tuple[int, int], bool] = {}  # (pid, start): is it a worker?
        self.dead: dict[tuple[int, int], float] = {}  # when a worker was first seen dead

    def members(self) -> list[Process]:
        """All of the job, also what left its session or lost its parent since the last look."""
        table = list(_processes())
        inside = {p.pid for p in table if p.session == self.leader or p[:2] in self.known}
        while more := {p.pid for p in table if p.parent in inside} - inside:
            inside |= more
        return [process for process in table if process.pid in inside]

    def look(self) -> str | None:
        """What to say of a worker that died, if one did. Seen twice: not just being collected."""
        found = None
        for process in self.members():
            key = process[:2]
            if process.state != "Z":
                self.known[key] = bool(WORKER.search(_command_line(process.pid)))
            # One that died before it was ever seen has lost its command line.
            elif process.pid != self.leader and self.known.setdefault(key, _is_python(process)):
                code = os.waitstatus_to_exitcode(process.status)
                patience = UNCOLLECTED if code in (0, -signal.SIGTERM) else POLL / 2
                since = self.dead.setdefault(key, time.monotonic())
                if time.monotonic() - since > patience:
                    found = f"worker {process.pid} {_ending(code)}"
        return found

    def end(self) -> None:
        """End every process of the job: SIGTERM, then SIGKILL."""
        for number, patience in ((signal.SIGTERM, KILL_AFTER), (signal.SIGKILL, KILL_AFTER)):
            until = time.monotonic() + patience
            asked: set[int] = set()
            while members := self._living():
                for process in members:
                    if process.pid not in asked:
                        asked.add(process.pid)
                        with suppress(ProcessLookupError):
                            os.kill(process.pid, number)
                if time.monotonic() > until:
                    break
                time.sleep(0.05)

    def _living(self) -> list[Process]:
        """What still runs; zombies that were left to this process are collected."""
        living = []
        for process in self.members():
            self.known.setdefault(process[:2], False)
            if process.state != "Z":
                living.append(process)
            elif process.parent == os.getpid() and process.pid != self.leader:
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        return living


class Output:
    """Passes a pipe on to stderr and keeps the last lines."""

    def __init__(self, pipe: BinaryIO) -> None:
        self.closed = False  # nobody reads our stderr any more
        self._pipe = pipe
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        while block := os.read(self._pipe.fileno(), 65536):
            try:
                os.write(sys.stderr.fileno(), block)
            except OSError:
                self.closed = True
            # A progress bar draws itself again after a carriage return.
            *lines, rest = re.split(rb"[\r\n]+", rest + block)
            self._lines += [line.decode(errors="replace") for line in lines if line.strip()]
        if rest.strip():
            self._lines.append(rest.decode(errors="replace"))

    def join(self) -> None:
        self._thread.join(timeout=2)

    def failure(self, message: str) -> JobFailed:
        """The error with the job's own last error line, once its last output has come in."""
        self._thread.join(timeout=0.5)
        lines = list(self._lines)
        last = next((line for line in reversed(lines) if ERROR.match(line)), None)
        reason = f": {printable(last, 400)}" if last else ""
        return JobFailed(message + reason, lines)


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"


def _processes() -> Iterator[Process]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            # It may end while we read.
            with suppress(OSError, ValueError, IndexError):
                yield _process(int(entry.name))


def _process(pid: int) -> Process:
    """A row of the table, see proc_pid_stat(5); its second field may hold anything."""
    head, _, tail = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
    fields = tail.split()
    name, started, status = head.partition("(")[2], int(fields[19]), int(fields[49])
    return Process(pid, started, name, fields[0], int(fields[1]), int(fields[3]), status)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


def _is_python(process: Process) -> bool:
    return process.name.startswith(("python", "pt_"))  # torch renames its processes


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The numbers of the signals that asked this process to end, in place of its ending at once."""
    asked: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    old = {n: signal.signal(n, lambda number, _: asked.append(number)) for n in numbers}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _subreaper() -> Iterator[None]:
    """Processes of the job that lose their parent become this one's children meanwhile."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

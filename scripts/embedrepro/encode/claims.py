"""Who makes which piece, where several processes of one model run at once.

A process that has made its own pieces goes on with those of jobs that haven't begun: a model is
loaded once for each device, however many jobs there are, and the slowest device gets least. A claim
is a lock, so the kernel drops it when its holder dies. Where a file system has no locks, or two
processes hold one all the same, a piece is made twice: the same bytes, renamed when whole.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ..files import locked

POLL = 0.5  # seconds between looks for a piece that another process has claimed
HELP_SECONDS = 1800.0  # after so long a process takes up no more of other jobs' pieces
PATIENCE = 900.0  # so long it waits for one: a lock may outlive its holder on some file systems

Work = TypeVar("Work")


@contextmanager
def claim(output: Path) -> Iterator[bool]:
    """Whether `output` is this process's to make, until the context ends."""
    path = output.with_name(f".{output.name}.claim")
    with locked(path, wait=False) as ours:
        try:
            yield ours
        finally:
            if ours:
                path.unlink(missing_ok=True)


def share(
    mine: Sequence[Work],
    others: Sequence[Work],
    output_of: Callable[[Work], Path],
    is_made: Callable[[Work], bool],
    make: Callable[[Work], None],
) -> None:
    """Make all of `mine` that isn't made, then what is left of `others`.

    Of `mine`, those that another process is making are waited for at the end. An error of `make` is
    the caller's.
    """
    began = time.monotonic()
    waiting = [work for work in mine if not _try(work, output_of, is_made, make)]
    for work in others:
        if time.monotonic() - began > HELP_SECONDS:
            break
        _try(work, output_of, is_made, make)
    asked = time.monotonic()
    while waiting := [work for work in waiting if not _try(work, output_of, is_made, make)]:
        if time.monotonic() - asked > PATIENCE:
            print(f"{output_of(waiting[0])}: claimed for long, made here as well", file=sys.stderr)
            make(waiting.pop(0))
            asked = time.monotonic()
        time.sleep(POLL)


def _try(
    work: Work,
    output_of: Callable[[Work], Path],
    is_made: Callable[[Work], bool],
    make: Callable[[Work], None],
) -> bool:
    """Whether `work` is made, by now or by this; False where another process is at it."""
    if is_made(work):
        return True
    with claim(output_of(work)) as ours:
        if ours and not is_made(work):
            make(work)
        return ours

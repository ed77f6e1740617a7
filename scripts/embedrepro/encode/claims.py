"""Who makes which piece, where several processes of one model run at once.

A process that has made its own pieces goes on with those of jobs that haven't begun: a model is
loaded once for each device, however many jobs there are, and the slowest device gets least. A claim
is a lock, so the kernel drops it when its holder dies. Where a file system has no locks, or two
processes hold one all the same, a piece is made twice: the same bytes, renamed when whole.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from ..files import locked

POLL = 0.5  # seconds between looks for a piece that another process has claimed
HELP_SECONDS = 1800.0  # after so long a process takes up no more of other jobs' pieces
PATIENCE = 900.0  # so long it waits for one: a lock may outlive its holder on some file systems

Work = TypeVar("Work")
Rest = Callable[[], None]  # of a work: what is left once the next can begin
Make = Callable[[Work, ExitStack], Rest | None]  # on the stack: what is open until the rest is done


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
    make: Make[Work],
) -> None:
    """Make all of `mine` that isn't made, then what is left of `others`.

    Of `mine`, those that another process is making are waited for at the end. What `make` leaves is
    done in a thread beside the next work, under the same claim; what is open is closed then, or
    where that is never done. An error of either is the caller's.
    """
    began = time.monotonic()
    with _Hands(output_of, is_made, make) as hands:
        waiting = [work for work in mine if not hands.take(work)]
        for work in others:
            if time.monotonic() - began > HELP_SECONDS:
                break
            hands.take(work)
        asked = time.monotonic()
        while waiting := [work for work in waiting if not hands.take(work)]:
            if time.monotonic() - asked > PATIENCE:
                late = waiting.pop(0)
                print(f"{output_of(late)}: claimed for long, made here as well", file=sys.stderr)
                with ExitStack() as unclaimed:
                    hands.make(late, unclaimed)
                asked = time.monotonic()
            time.sleep(POLL)


class _Hands(Generic[Work]):
    """Makes one work, and ends the one before."""

    def __init__(
        self,
        output_of: Callable[[Work], Path],
        is_made: Callable[[Work], bool],
        make: Make[Work],
    ) -> None:
        self.output_of, self.is_made, self._make = output_of, is_made, make
        self.beside = ThreadPoolExecutor(1)
        self.ending: Future[None] | None = None

    def take(self, work: Work) -> bool:
        """Whether `work` is made, by now or by this; False where another process is at it."""
        if self.is_made(work):
            return True
        with ExitStack() as claimed:
            ours = claimed.enter_context(claim(self.output_of(work)))
            if ours and not self.is_made(work):
                self.make(work, claimed)
            return ours

    def make(self, work: Work, held: ExitStack) -> None:
        """Make it, and end it beside what comes next; `held` is closed then."""
        rest = self._make(work, held)
        self._wait()
        if rest:
            self.ending = self.beside.submit(_end, rest, held.pop_all())

    def _wait(self) -> None:
        if self.ending:
            ending, self.ending = self.ending, None
            ending.result()

    def __enter__(self) -> "_Hands[Work]":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.beside.shutdown()
        if kind is None:
            self._wait()


def _end(rest: Rest, held: ExitStack) -> None:
    with held:
        rest()

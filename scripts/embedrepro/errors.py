"""One line for a user's mistake: what is wrong, where, and what to do."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or this user's share of it


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line; command lines exit with status 2."""


def printable(text: object, limit: int = 200) -> str:
    """`text` on one line, control characters escaped: it can't forge a log or a terminal."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    return line if len(line) <= limit else line[: limit - 1] + "…"


@contextmanager
def about(subject: str) -> Iterator[None]:
    """A mistake within is said of `subject`, which its line may not name by itself."""
    try:
        yield
    except UserError as error:
        line = str(error)
        raise UserError(line if subject in line else f"{printable(subject)}: {line}") from None


def full_disk(path: object = None) -> str:
    """What to say of a full disk: the path, or at least the job."""
    pairs = zip(sys.argv, sys.argv[1:], strict=False)
    job = next((value for name, value in pairs if name == "--job"), sys.argv[0])
    where = printable(path or job, 1000)
    return f"{where}: no space left on its disk; make room and run again"


def run_cli(main: Callable[[], None]) -> None:
    """Run a command line's `main`; a mistake becomes one line on stderr and exit status 2.

    What the system refuses (no such file, no space left) counts as one, also where a library has
    an exception of its own for a full disk.
    """
    try:
        main()
    except UserError as error:
        line = printable(error, 2000)
    except OSError as error:
        where = f"{printable(error.filename, 1000)}: " if error.filename else ""
        line = where + (error.strerror or printable(error, 1000))
        if error.errno in FULL:
            line = full_disk(error.filename)
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        line = full_disk()
    else:
        return
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)

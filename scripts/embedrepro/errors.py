"""One line for a user's mistake: what is wrong, where, and what to do."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line; command lines exit with status 2."""


def printable(text: object, limit: int = 200) -> str:
    """`text` on one line, control characters escaped: it can't forge a log or a terminal."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def run_cli(main: Callable[[], None]) -> None:
    """Run a command line's `main`; a mistake becomes one line on stderr and exit status 2.

    What the system refuses (no such file, no space left) counts as one.
    """
    try:
        main()
    except UserError as error:
        line = printable(error, 2000)
    except OSError as error:
        where = f"{printable(error.filename, 1000)}: " if error.filename else ""
        line = where + (error.strerror or printable(error, 1000))
    else:
        return
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)

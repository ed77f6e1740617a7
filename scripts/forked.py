#!/usr/bin/env python3
"""Run one of these scripts in a fork of the forkserver: forked.py SOCKET SCRIPT [argument…]

Where no server answers, or it was started in another environment, this becomes the script itself.
It lives as long as the job does, with its streams, its locks and its exit status; who kills it
kills the job. Standard library only, and little of it: it starts with every job.
"""

# ruff: noqa: PTH109
# (pathlib alone would double the time this takes to start)
import json
import os
import signal
import socket
import sys

UNCATCHABLE = (signal.SIGKILL, signal.SIGSTOP)


def ask(path: str, argv: list[str]) -> socket.socket | None:
    """A connection to the server that runs `argv` for us; None if it doesn't."""
    umask = os.umask(0)
    os.umask(umask)
    request = {"argv": argv, "cwd": os.getcwd(), "umask": umask, "environment": dict(os.environ)}
    text = os.memfd_create("request")
    os.write(text, json.dumps(request).encode())
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
        socket.send_fds(connection, [b"?"], [text, 0, 1, 2])
        return connection if connection.recv(1) else None
    except OSError:
        return None  # it has ended, or never began


def main(path: str, *argv: str) -> None:
    connection = ask(path, list(argv)) if hasattr(os, "memfd_create") else None
    if connection is None:
        os.execv(sys.executable, [sys.executable, *argv])
    answer = connection.recv(16)
    if not answer:
        sys.exit("error: the forkserver ended before its job; run again")
    status = int(answer)
    if status < 0:  # as the job ended, so that a shell tells it as usual
        if -status not in UNCATCHABLE:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])

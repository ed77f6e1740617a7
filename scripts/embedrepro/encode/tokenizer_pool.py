"""Rust tokenizers in processes of their own: reading ids out of one is Python work, one at a time.

Run as a program this file is such a process. It reads pickles from standard input: first the
tokenizer as JSON, answered on standard output with True, then `(prompt, limit, side, texts)`, each
answered with the arrays of `TokenIds`. It ends with its input, so also when the process that
started it dies. It imports no torch: it is ready in a fraction of a second.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tokenizers import Tokenizer

from ..startup import without_pandas
from .token_ids import Arrays, TokenIds


class Pool:
    """`count` such processes, as many threads that talk to them. `close` ends them."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        self.count = count
        self.processes = [_start() for _ in range(count)]
        # First in, first out, and always one for each thread: none waits, even if some are dead.
        self.free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for process in self.processes:
            self.free.put(process)
        self.threads = ThreadPoolExecutor(count)
        setup = tokenizer.to_str()
        self.started = [self.threads.submit(self._ask, setup) for _ in range(count)]

    def ready(self) -> bool:
        """Whether all have loaded their tokenizer; raises RuntimeError if one could not."""
        return all(start.done() and start.result() for start in self.started)

    def tokenise(
        self, prompt: str, limit: int, side: str, chunks: Iterable[list[str]]
    ) -> Iterator[Arrays]:
        """The arrays of each chunk, in order; at most two chunks a process are under way.

        `side`: right or left, where texts of more than `limit` tokens are cut off.
        """
        asked: deque[Future] = deque()
        for chunk in chunks:
            asked.append(self.threads.submit(self._ask, (prompt, limit, side, chunk)))
            if len(asked) > 2 * self.count:
                yield asked.popleft().result()
        while asked:
            yield asked.popleft().result()

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for process in self.processes:
            process.kill()
        self.threads.shutdown()  # whoever still waited for an answer has none now
        for process in self.processes:
            process.wait()
            asking, answering = pipes(process)
            answering.close()
            with suppress(OSError):
                asking.close()

    def _ask(self, message: Any) -> Any:
        process = self.free.get()
        try:
            asking, answering = pipes(process)
            pickle.dump(message, asking, pickle.HIGHEST_PROTOCOL)
            asking.flush()
            return pickle.load(answering)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            process.kill()
            raise RuntimeError(f"a tokenizer process ended, status {process.wait()}") from error
        finally:
            self.free.put(process)


def pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """Its standard input and output."""
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _start() -> subprocess.Popen[bytes]:
    one = {name: "1" for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")}
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pipesize=2**18,  # a chunk in one or two pieces, each of which waits for its turn
        env=os.environ | one | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    without_pandas()
    try:
        found = TokenIds(Tokenizer.from_str(pickle.load(source)))
        answer: Any = True
        while True:
            pickle.dump(answer, sink, pickle.HIGHEST_PROTOCOL)
            sink.flush()
            answer = found(*pickle.load(source))
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        os._exit(0)  # nobody asks any more


if __name__ == "__main__":
    main()

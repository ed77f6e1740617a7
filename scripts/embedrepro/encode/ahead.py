"""Work that is done ahead of who waits for it, in a thread."""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class _End:
    """No item comes any more: all are done, or `error` stopped the thread."""

    error: BaseException | None = None


def ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The same items, made in a thread that stays at most `depth` ahead.

    An error in the thread is raised here. The thread ends when this generator is closed.
    """
    ready: queue.Queue[Item | _End] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: Item | _End) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            if all(put(item) for item in items):
                put(_End())
        except BaseException as error:
            put(_End(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()
        thread.join()

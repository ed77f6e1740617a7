"""Imports that take seconds, in less of them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage meanwhile, and never again among what is there at the end.

    Importing torch and transformers makes a million objects that stay. Looking through them takes a
    fifth of the start, and most of the end of the process.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

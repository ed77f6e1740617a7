"""Imports that take seconds, in less of them."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = ("is_scipy_available", "is_sklearn_available")  # losses for images, assisted generation


@contextmanager
def without_extras() -> Iterator[None]:
    """Import transformers' modules without what only its unused parts need: an eighth of the time.

    It asks these functions what is installed. Whoever asks afterwards gets the truth.
    """
    from transformers import utils
    from transformers.utils import import_utils

    truth = [(m, n, getattr(m, n)) for m in (utils, import_utils) for n in EXTRAS if hasattr(m, n)]
    for module, name, _ in truth:
        setattr(module, name, lambda: False)
    try:
        yield
    finally:
        for module, name, function in truth:
            setattr(module, name, function)


@contextmanager
def uncollected(stays: bool = True) -> Iterator[None]:
    """Look for no garbage meanwhile, and never again among what is there at the end.

    Importing torch and transformers makes a million objects that stay. Looking through them takes a
    fifth of the start, and most of the end of the process. `stays`: so does what is made meanwhile.
    """
    looking = gc.isenabled()  # not within another of these
    gc.disable()
    if not stays:
        gc.freeze()
    try:
        yield
    finally:
        if stays:
            gc.freeze()
        if looking:
            gc.enable()


def without_pandas() -> None:
    """Let pyarrow do without pandas, which it imports with its first array, 0.4 s, only to ask
    whether that was pandas'. For jobs that hand it nothing of pandas.

    Whoever imports pandas still gets it, as `to_pandas` does.
    """
    import pyarrow as pa

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])  # asks once and for all
    finally:
        sys.meta_path.remove(finder)


class _NoPandas:
    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError("not wanted")


def import_transformers() -> None:
    """What loading a model needs, torch too, before anything is loaded."""
    with uncollected(), without_extras():
        from transformers import AutoModel, AutoTokenizer, PreTrainedModel  # noqa: F401

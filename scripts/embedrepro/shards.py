"""The names of `datasets.reading` and `datasets.shards`, where they stood before."""

from .datasets.reading import read_rows
from .datasets.records import passage
from .datasets.shards import bounds, check_shards, corpus_bounds

__all__ = ["bounds", "check_shards", "corpus_bounds", "passage", "read_rows"]

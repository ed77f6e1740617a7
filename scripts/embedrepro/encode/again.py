"""Single passages encoded in float32: what a refined search asks for, kept for the next one."""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..datasets.reading import Checked
from ..datasets.records import passage
from ..errors import UserError
from ..files import digest
from ..vectors.dense import load_array, save_array
from .engine import Engine


class Again:
    """Vectors of rows of a corpus, taken from the folder `kept` or encoded, then kept there.

    `load` gives the float32 engine, asked for once, when a row isn't there. `prompt`: what stands
    before each passage (None: as staged), `title`: join or drop. A vector doesn't depend on the
    others it is encoded with, so which searches asked for it is nowhere to be seen.
    """

    def __init__(
        self, load: Callable[[], Engine], corpus: Path, prompt: str | None, title: str, kept: Path
    ) -> None:
        self.load, self.corpus, self.prompt, self.title = load, corpus, prompt, title
        self.kept = kept
        self.encoded = 0  # rows that this process had to encode

    @cached_property
    def engine(self) -> Engine:
        return self.load()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Float32 vectors (n, dimension) of `rows` (n,), int64."""
        found: dict[int, np.ndarray] = {}
        wanted = np.unique(rows)
        for numbers, vectors in self.pieces():
            here = np.flatnonzero(np.isin(numbers, wanted))
            found |= {int(numbers[i]): vectors[i] for i in here}
        missing = np.array([row for row in wanted.tolist() if row not in found], np.int64)
        if len(missing):
            found |= dict(zip(missing.tolist(), self.encode(missing), strict=True))
        return np.stack([found[row] for row in rows.tolist()])

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What is kept: rows and vectors of each call that encoded some; damaged ones are left."""
        for path in sorted(self.kept.glob("*-rows.npy")):
            try:
                numbers, _ = load_array(path)
                vectors, _ = load_array(path.with_name(path.name.replace("-rows", "")))
            except UserError:
                continue
            yield numbers, vectors

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Encode `rows`, sorted, and keep their vectors."""
        parts = self.engine.encode(self.texts(rows), "passage", prompt=self.prompt)
        vectors: np.ndarray | None = None
        for part in parts:
            if vectors is None:
                vectors = np.empty((len(rows), part.vectors.shape[1]), np.float32)
            vectors[part.rows] = part.vectors
        assert vectors is not None
        self.encoded += len(rows)
        name = digest(rows.tolist())
        save_array(self.kept / f"{name}.npy", vectors)
        save_array(self.kept / f"{name}-rows.npy", rows)
        return vectors

    def texts(self, rows: np.ndarray) -> Iterator[str]:
        """The texts of `rows`, sorted, read row group by row group."""
        with Checked(self.corpus) as table:
            first = 0
            for group in range(table.file.num_row_groups):
                last = first + table.file.metadata.row_group(group).num_rows
                here = rows[(rows >= first) & (rows < last)] - first
                if len(here):
                    some = table.row_group(group, ["title", "text"]).take(pa.array(here))
                    for row in some.to_pylist():
                        yield passage(row["title"] or "", row["text"], self.title)
                first = last

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
    before each passage (None: as staged), `title`: join or drop, `dimensions`: how many numbers of
    a vector are kept (None: as staged). A vector doesn't depend on the
    others it is encoded with, so which searches asked for it is nowhere to be seen.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        corpus: Path,
        prompt: str | None,
        title: str,
        kept: Path,
        dimensions: int | None = None,
    ) -> None:
        self.load, self.corpus, self.prompt, self.title = load, corpus, prompt, title
        self.kept, self.dimensions = kept, dimensions
        self.encoded = 0  # rows that this process had to encode

    @cached_property
    def engine(self) -> Engine:
        return self.load()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Float32 vectors (n, dimension) of `rows` (n,), int64, upwards."""
        missing, parts = np.ones(len(rows), bool), []
        for numbers, path in self.pieces:
            if not len(numbers) or numbers[-1] < rows[0] or numbers[0] > rows[-1]:
                continue
            place = np.minimum(np.searchsorted(numbers, rows), len(numbers) - 1)
            here = np.flatnonzero(missing & (numbers[place] == rows))
            if len(here):
                try:
                    vectors, _ = load_array(path)
                except UserError:  # damaged: encoded again
                    continue
                parts.append((here, vectors[place[here]]))
                missing[here] = False
        if missing.any():
            here = np.flatnonzero(missing)
            parts.append((here, self.encode(rows[here])))
        found = np.empty((len(rows), parts[0][1].shape[1]), np.float32)
        for here, vectors in parts:
            found[here] = vectors
        return found

    @cached_property
    def pieces(self) -> list[tuple[np.ndarray, Path]]:
        """What is kept: rows, and the file of vectors, of each call that encoded some."""
        found = []
        for path in sorted(self.kept.glob("*-rows.npy")):
            try:
                numbers, _ = load_array(path)
            except UserError:  # damaged: left, and encoded again
                continue
            found.append((numbers, path.with_name(path.name.replace("-rows", ""))))
        return found

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Encode `rows`, upwards, and keep their vectors."""
        parts = self.engine.encode(
            self.texts(rows), "passage", prompt=self.prompt, dimensions=self.dimensions
        )
        vectors: np.ndarray | None = None
        for part in parts:
            if vectors is None:
                vectors = np.empty((len(rows), part.vectors.shape[1]), np.float32)
            vectors[part.rows] = part.vectors
        assert vectors is not None
        self.encoded += len(rows)
        path = self.kept / f"{digest(rows.tolist())}.npy"
        save_array(path, vectors)
        save_array(path.with_name(f"{path.stem}-rows.npy"), rows)
        self.pieces.append((rows, path))
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
